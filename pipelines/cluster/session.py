"""Starting a private Ray, or joining one that runs; what a process needs beside it. Knows no data, no model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import ConfigError, ResourceError
from pipelines.cluster.capacity import _require, preflight, ray_is_running
from pipelines.cluster.machine import listens
from pipelines.cluster.private_ray import EVERY_RAY, private_ray, set_defaults


@dataclass(frozen=True)
class RaySession:
    """The Ray we are connected to. `address` is host:port; `started` says that it is ours and ends with us."""

    address: str
    started: bool


@contextmanager
def ray_session(
    *,
    logical_cpus: int,
    address: str | None = None,
    gpus: int | None = None,
    object_store_bytes: int | None = None,
    quiet: bool = True,
) -> Iterator[RaySession]:
    """Connect to Ray, check that it holds `logical_cpus` and `gpus`, and leave it as it was found.

    A Ray that this process already uses is reused. An `address`, RAY_ADDRESS or a Ray job means joining that cluster.
    Otherwise a private Ray is started on this machine (`gpus=0` hides its GPUs, `object_store_bytes` bounds its object
    store) and stopped at the end with all its processes. `quiet` drops Ray's notices and what its workers print.
    """
    refuse_unsafe_environment()
    cluster = joined_address(address)
    if ray_is_running():
        preflight(logical_cpus, gpus or 0)
        yield _session(started=False)
    elif cluster is not None:
        with _joined_ray(cluster, quiet=quiet):
            preflight(logical_cpus, gpus or 0)
            yield _session(started=False)
    else:
        with private_ray(logical_cpus, gpus, object_store_bytes, **_logging(quiet=quiet)):
            _require(logical_cpus, gpus or 0, most=None, wait_seconds=0)
            yield _session(started=True)


def configure_ray_data() -> None:
    """Settings for every process that builds a Ray Dataset: the steady reader, rows in order, no chatter."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.use_datasource_v2 = False  # seconds slower an epoch, and loses good rows beside a damaged page
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def on_this_node() -> Any:
    """Where an actor belongs that must live as long as this process: Ray puts it anywhere, and nodes die."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)


def joined_address(address: str | None) -> str | None:
    """The cluster that work belongs on: `address`, else RAY_ADDRESS or a Ray job's own; None where there is none."""
    if address or os.environ.get("RAY_ADDRESS"):
        return address or os.environ["RAY_ADDRESS"]
    return "auto" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else None


def refuse_unsafe_environment() -> None:
    """Raise ConfigError if a variable makes Ray Data run code that it finds inside Parquet files."""
    for name, value in sorted(os.environ.items()):
        if name.startswith("RAY_DATA_AUTOLOAD_") and value.strip().lower() not in {"", "0", "false"}:
            raise ConfigError(
                f"{name} must not be set, but is {value!r} in the environment: with it, reading a Parquet file can run "
                f"code from that file; unset {name}"
            )


def _session(*, started: bool) -> RaySession:
    import ray

    return RaySession(address=ray.get_runtime_context().gcs_address, started=started)


def _logging(*, quiet: bool) -> dict[str, Any]:
    return {"logging_level": logging.ERROR if quiet else logging.INFO, "log_to_driver": not quiet}


@contextmanager
def _joined_ray(address: str, *, quiet: bool) -> Iterator[None]:
    _check_that_it_answers(address)
    set_defaults(EVERY_RAY)
    import ray

    try:
        ray.init(address=address, **_logging(quiet=quiet))
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).partition(". ")[0]
        raise ResourceError(
            f"the Ray cluster at {address} must let us in, but does not ({reason}): if it asks for a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token's file, else check that it runs our Ray version"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_that_it_answers(address: str) -> None:
    """Raise ResourceError where nobody listens at `address`; `ray.init` would try for more than two minutes."""
    if "://" in address:
        raise ResourceError(
            f"the address of a Ray cluster must be HOST:PORT or auto, but is {address}: send the work there as a job "
            "(ray job submit --working-dir . -- python -m pipelines ...), or unset RAY_ADDRESS to run on this machine"
        )
    if address != "auto":
        where, known_at = address, ""
    elif cluster_file().is_file():
        where = cluster_file().read_text().strip()
        known_at = f", where {cluster_file()} expects it (remove that file if the cluster is gone)"
    else:
        return  # Ray looks for one that runs, and gives up at once
    if not listens(where):
        raise ResourceError(
            f"a Ray cluster must answer at {where}{known_at}, but nothing does: check that it is up and that its port "
            "is open to this machine, or unset RAY_ADDRESS to run on this machine"
        )


def ray_temp_directory() -> Path:
    """Where Ray keeps its sockets, its logs and spilled objects."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def cluster_file() -> Path:
    """The file in which `ray start` leaves the cluster's address, for "auto"; a killed cluster leaves it behind."""
    return ray_temp_directory() / "ray_current_cluster"
