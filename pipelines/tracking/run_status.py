"""Runs and how they stand: <run>/status.json, written by the driver, and the list of the runs in a directory.

Knows no Ray and no torch. A driver that was killed cannot say so: where its process is gone, the run is "stopped".
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from model.bundle.run_directory import (
    CHECKPOINTS,
    METRICS,
    RUN_YAML,
    SWEEP,
    TRIALS,
    bundle_name,
    checkpoint_names,
    pointed,
)
from model.storage import exists, join, list_names, read_bytes, write_bytes
from pipelines.console import TrainingProgress

if TYPE_CHECKING:
    from pipelines.tracking.followers import Outcome

STATUS = "status.json"
ENDED_EARLY = ("failed", "interrupted", "stopped")


@dataclass(frozen=True)
class Status:
    """What a driver says of its run. Times are seconds since 1970; `step` is that of the last validation.

    `metric` is what the best bundle is best in; None: the validation loss, or that of the training without validation.
    """

    status: str
    host: str
    process: int
    started: float
    updated: float
    step: int | None = None
    metric: str | None = None


class StatusFile:
    """A follower that keeps status.json: "running", and at the end "finished", "failed" or "interrupted"."""

    def __init__(self, directory: str, metric: str | None = None) -> None:
        self.where = join(directory, STATUS)
        self.metric = metric
        self.step: int | None = None
        self.started = time.time()
        self.tell("running")

    def on_progress(self, progress: TrainingProgress) -> None:
        """Nothing: a file a second would be too many."""

    def on_report(self, metrics: dict[str, float]) -> None:
        """The step of the validation."""
        self.step = round(metrics["step"])
        self.tell("running")

    def close(self, outcome: Outcome) -> None:
        """How it ended."""
        self.tell(outcome.status)

    def tell(self, status: str) -> None:
        """Writes how it stands now."""
        told = Status(status, socket.gethostname(), os.getpid(), self.started, time.time(), self.step, self.metric)
        write_bytes(self.where, json.dumps(asdict(told)).encode())


@contextmanager
def status_kept(directory: str, metric: str) -> Iterator[Callable[[], None]]:
    """Keeps the status.json of a sweep while the block runs; gives what to call when it has come further."""
    told, status = StatusFile(directory, metric), "failed"
    try:
        yield partial(told.tell, "running")
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        told.tell(status)


@dataclass(frozen=True)
class RunLine:
    """A run or a sweep in the list. `value` is its best bundle's, in `metric`; None where nothing was validated yet.

    `kind` is "training" or "sweep". `resumable`: it has not come to its end, nobody trains it, and there is something
    to go on from.
    """

    name: str
    status: str
    step: int | None
    metric: str | None
    value: float | None
    updated: float | None
    bundle: str | None
    kind: str = "training"
    resumable: bool = False


def list_runs(output: str) -> list[RunLine]:
    """The runs and sweeps directly below `output`, by name."""
    return [line for name in list_names(output) if (line := _line(output, name)) is not None]


def _line(output: str, name: str) -> RunLine | None:
    directory = join(output, name)
    sweep = exists(join(directory, SWEEP))
    if not sweep and not exists(join(directory, RUN_YAML)):
        return None
    try:
        return _told(name, directory, sweep=sweep)
    except (ValueError, TypeError, KeyError) as error:  # a file cut short, or of another version: the others are listed
        return RunLine(name, f"unreadable: {error}", None, None, None, None, None)


def _told(name: str, directory: str, *, sweep: bool) -> RunLine:
    best = pointed(directory, "best")
    told = _status(directory)
    status = "not begun" if told is None else shown_status(told)
    metric, value = (None, None) if best is None else _value(directory, best, told.metric if told else None)
    has_more = _sweep_is_open if sweep else _has_begun
    return RunLine(
        name=name,
        status=status,
        step=None if told is None else told.step,
        metric=metric,
        value=value,
        updated=None if told is None else told.updated,
        bundle=None if best is None else join(directory, best),
        kind="sweep" if sweep else "training",
        resumable=status in ENDED_EARLY and has_more(directory),
    )


def _has_begun(directory: str) -> bool:
    return exists(join(directory, METRICS)) or bool(checkpoint_names(join(directory, CHECKPOINTS)))


def _sweep_is_open(directory: str) -> bool:
    """Whether trials of a sweep were left."""
    if not exists(join(directory, TRIALS)):
        return exists(join(directory, METRICS))
    lines = read_bytes(join(directory, TRIALS)).decode().splitlines()
    return any(json.loads(line)["status"] in ("unfinished", "not started") for line in lines)


def shown_status(told: Status) -> str:
    """What the file says, but "stopped" where the driver that was running is gone from this machine."""
    if told.status == "running" and told.host == socket.gethostname() and not _is_alive(told.process):
        return "stopped"
    return told.status


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _status(directory: str) -> Status | None:
    where = join(directory, STATUS)
    return Status(**json.loads(read_bytes(where))) if exists(where) else None


def _value(directory: str, bundle: str, metric: str | None) -> tuple[str | None, float | None]:
    """(metric, value) of the validation that a bundle is of."""
    of_bundle = (line for line in _metrics(directory) if bundle_name(round(line["step"]), line.get("trial")) == bundle)
    told = next(of_bundle, {})
    for name in (metric,) if metric else ("validation_loss", "train_loss"):
        value = told.get(name)
        if value is not None and math.isfinite(value):
            return name, value
    return None, None


def _metrics(directory: str) -> Iterator[dict[str, Any]]:
    where = join(directory, METRICS)
    if exists(where):
        yield from (json.loads(line) for line in read_bytes(where).decode().splitlines())
