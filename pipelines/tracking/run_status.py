"""Runs and how they stand: <run>/status.json, written by the driver, and the list of the runs in a directory.

Knows no Ray and no torch. A driver that was killed cannot say so: where its process is gone, the run is "stopped".
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from model.bundle.run_directory import STATUS
from model.storage import exists, join, read_bytes, write_bytes
from pipelines.tracking.follower import Progress

if TYPE_CHECKING:
    from pipelines.tracking.follower import Outcome


@dataclass(frozen=True)
class Status:
    """What a driver says of its run. Times are seconds since 1970; `step` is that of the last validation; `reason` says
    why it ended.

    `metric` is what the best bundle is best in; None: the validation loss, or that of the training without validation.
    """

    status: str
    host: str
    process: int
    started: float
    updated: float
    step: int | None = None
    metric: str | None = None
    reason: str | None = None


class StatusFile:
    """A follower that keeps status.json: "running", and at the end "finished", "failed" or "interrupted"."""

    def __init__(self, directory: str, metric: str | None = None) -> None:
        self.where = join(directory, STATUS)
        self.metric = metric
        self.step: int | None = None
        self.started = time.time()
        self.tell("running")

    def on_progress(self, progress: Progress) -> None:
        """Nothing: a file a second would be too many."""

    def on_report(self, metrics: dict[str, float]) -> None:
        """The step of the validation."""
        self.step = round(metrics["step"])
        self.tell("running")

    def close(self, outcome: Outcome) -> None:
        """How it ended."""
        self.tell(outcome.status, outcome.reason)

    def tell(self, status: str, reason: str | None = None) -> None:
        """Writes how it stands now."""
        here, now = (socket.gethostname(), os.getpid()), time.time()
        told = Status(status, *here, self.started, now, self.step, self.metric, reason)
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
