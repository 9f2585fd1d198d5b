"""Runs and how they stand: <run>/status.json, written by the driver, and the list of the runs in a directory.

Knows no Ray and no torch. A driver that was killed cannot say so: where its process is gone, the run is "stopped".
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from model.runs import CHECKPOINTS, METRICS, RUN_YAML, SWEEP, TRIALS, checkpoint_names, pointed
from model.storage import exists, join, list_names, read_bytes, write_bytes
from pipelines.console import TrainingProgress

if TYPE_CHECKING:
    from pipelines.tracking import Outcome

STATUS = "status.json"
ENDED_EARLY = ("failed", "interrupted", "stopped")


@dataclass(frozen=True)
class Status:
    """What a driver says of its run. Times are seconds since 1970; `step` is that of the last validation."""

    status: str
    host: str
    process: int
    started: float
    updated: float
    step: int | None = None


class StatusFile:
    """A follower that keeps status.json: "running", and at the end "finished", "failed" or "interrupted"."""

    def __init__(self, directory: str) -> None:
        self.where = join(directory, STATUS)
        self.started = time.time()
        self._write("running", None)

    def on_progress(self, progress: TrainingProgress) -> None:
        """Nothing: a file a second would be too many."""

    def on_report(self, metrics: dict[str, float]) -> None:
        """The step of the validation."""
        self._write("running", round(metrics["step"]))

    def close(self, outcome: Outcome) -> None:
        """How it ended."""
        self._write(outcome.status, self.step)

    def _write(self, status: str, step: int | None) -> None:
        self.step = step
        told = Status(status, socket.gethostname(), os.getpid(), self.started, time.time(), step)
        write_bytes(self.where, json.dumps(asdict(told)).encode())


@dataclass(frozen=True)
class RunLine:
    """A run in the list. `metric` names what its best bundle is best in; None where nothing was validated yet.

    `resumable`: it has not come to its end, nobody trains it, and there is something to go on from.
    """

    name: str
    status: str
    step: int | None
    metric: str | None
    value: float | None
    updated: float | None
    bundle: str | None
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
    status = "sweep" if sweep else "not begun" if told is None else shown_status(told)
    metric, value = _best_metric(directory)
    return RunLine(
        name=name,
        status=status,
        step=None if told is None else told.step,
        metric=metric,
        value=value,
        updated=None if told is None else told.updated,
        bundle=None if best is None else join(directory, best),
        resumable=_sweep_is_open(directory) if sweep else status in ENDED_EARLY and _has_begun(directory),
    )


def _has_begun(directory: str) -> bool:
    return exists(join(directory, METRICS)) or bool(checkpoint_names(join(directory, CHECKPOINTS)))


def _sweep_is_open(directory: str) -> bool:
    """Whether trials of a sweep were left; of one that runs now, too, for a sweep keeps no status."""
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


def _best_metric(directory: str) -> tuple[str | None, float | None]:
    """The lowest validation loss so far; of the training where nothing validates."""
    lines = list(_metrics(directory))
    for metric in ("validation_loss", "train_loss"):
        values = [line[metric] for line in lines if line.get(metric) is not None]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            return metric, min(finite)
    return None, None


def _metrics(directory: str) -> Iterator[dict[str, Any]]:
    where = join(directory, METRICS)
    if exists(where):
        yield from (json.loads(line) for line in read_bytes(where).decode().splitlines())
