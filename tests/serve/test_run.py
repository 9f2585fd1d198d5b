"""Starting and ending: overload behind Ray's own proxy, SIGTERM, and what a server that cannot start says."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pyarrow as pa
import pytest

from model.bundle.bundle import Bundle, save_bundle
from model.errors import CheckpointError, ResourceError
from serve.client import Client
from serve.config import ServeConfig
from serve.run import ServeHandle, _reason, run

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Bundle]) -> Path:
    path = tmp_path_factory.mktemp("bundle")
    save_bundle(path, make_bundle())
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def overloaded(url: str, request: dict[str, Any]) -> list[httpx.Response]:
    """Answers to more requests at once than a server takes that works on one and lets one wait."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda _: httpx.post(f"{url}/v1/predict", json=request, timeout=30), range(8)))


def test_overload_is_told_and_sigterm_ends_the_server(bundle: Path, make_table: Callable[..., pa.Table]) -> None:
    table = make_table(lengths=[1]).select(["x", "vector", "kind", "tags", "age", "country"])
    request = {"sequences": [{"features": table.to_pylist()[0]}]}
    # Waiting for a batch makes every request last a second.
    config = ServeConfig(
        port=free_port(),
        ingress="default",
        max_batch_sequences=1,
        max_ongoing_requests=1,
        max_queued_requests=1,
        retry_after_seconds=2,
        batch_wait_seconds=1.0,
    )
    answers: list[httpx.Response] = []
    patient: list[Any] = []

    def use(handle: ServeHandle) -> None:
        try:
            answers.extend(overloaded(handle.url, request))
            with ThreadPoolExecutor(4) as pool, Client(handle.url, retries=8) as client:
                patient.extend(pool.map(lambda _: client.predict(request["sequences"]), range(4)))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_ready(handle: ServeHandle) -> None:
        threading.Thread(target=use, args=(handle,), daemon=True).start()

    before = signal.getsignal(signal.SIGTERM)
    handle = run(str(bundle), config, blocking=True, on_ready=on_ready)
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429} == {"2"}
    assert len(patient) == 4
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{handle.url}/readyz")


def test_a_missing_or_damaged_bundle_is_told_before_anything_starts(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a bundle, but has no MANIFEST"):
        run(str(tmp_path), ServeConfig())
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "model.safetensors").open("ab") as weights:
        weights.write(b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        run(str(tmp_path), ServeConfig())


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (
            "The deployment failed to start 3 times in a row.\nTraceback:\n  File replica.py\n"
            "model.errors.ConfigError: cell_type 'mine' is not registered",
            "cell_type 'mine' is not registered",
        ),
        ("The deployment failed to start.\nTraceback:\n  File x\nOSError: disk full\n", "OSError: disk full"),
    ],
)
def test_a_failed_replica_is_told_by_its_own_error(monkeypatch: pytest.MonkeyPatch, told: str, reason: str) -> None:
    deployments = {"dynamic-rnn": SimpleNamespace(message=told)}
    status = SimpleNamespace(applications={"dynamic-rnn": SimpleNamespace(deployments=deployments)})
    monkeypatch.setattr("ray.serve.status", lambda: status)
    monkeypatch.setattr("serve.run._controller", lambda: "there")
    assert _reason(RuntimeError("Failed to update the deployments ['dynamic-rnn'].")) == reason


def test_a_taken_port_is_told_before_anything_starts(bundle: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ResourceError) as caught:
            run(str(bundle), ServeConfig(port=port))
    assert str(caught.value) == (
        f"port {port} of 127.0.0.1 must be free, but something listens there or it is not ours; set serve.port to "
        "another one"
    )
