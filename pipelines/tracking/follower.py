"""What followers of a training are told, as plain data, and what a follower is. Knows no torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """How a training ended: "finished" with its best bundle, "failed" or "interrupted"; `reason` says why, in words."""

    status: str = "failed"
    bundle: str | None = None
    fingerprint: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Progress:
    """Where training stands; counts are global, rates are since the last report, padding is that of this worker."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    steps_per_second: float
    real_steps_per_second: float
    padding: float
    seconds_left: float


class Follower(Protocol):
    """What a status file, TensorBoard and MLflow have in common."""

    def on_progress(self, progress: Progress) -> None: ...
    def on_report(self, metrics: dict[str, float]) -> None: ...
    def close(self, outcome: Outcome) -> None: ...
