"""When a training stops before its budget of steps, and when it is kept: early stopping, and the clock.

All workers decide alike: a metric is the same sum on each of them, and what the clock of rank 0 says travels with the
gradients. What has been counted so far is plain data in every checkpoint. Knows no Ray, no files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from model.scoring.metric_names import score
from pipelines.config import EarlyStoppingConfig


class EarlyStopping:
    """Counts evaluations without an improvement. `best` is a score to minimise, reached at `best_step`."""

    def __init__(self, config: EarlyStoppingConfig, state: Mapping[str, Any] | None = None) -> None:
        self.config = config
        told = state or {}
        best = told.get("best")
        self.best = math.inf if best is None else float(best)
        self.best_step = int(told.get("best_step", 0))
        self.worse = int(told.get("worse", 0))

    def state(self) -> dict[str, Any]:
        """What a resumed training goes on from, as JSON has it."""
        best = self.best if math.isfinite(self.best) else None
        return {"best": best, "best_step": self.best_step, "worse": self.worse}

    def take(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes an evaluation into account; a metric that is no number is no improvement."""
        value = score(metrics, self.config.metric, self.config.best_is)
        if value < self.best - self.config.min_delta or (math.isinf(self.best) and math.isfinite(value)):
            self.best, self.best_step, self.worse = value, step, 0
        else:
            self.worse += 1

    @property
    def reason(self) -> str | None:
        """Why training ends now; None while it goes on."""
        if self.worse < self.config.patience:
            return None
        best = self.best if self.config.best_is == "min" else -self.best
        least = f" by more than {self.config.min_delta:g}" if self.config.min_delta else ""
        return (
            f"early stopping: {self.config.metric} has not got better{least} in {self.worse} evaluations; the best was "
            f"{best:.6g} at step {self.best_step}"
        )


class Clock:
    """Seconds this run has trained, in this process and before, and when a checkpoint is due by the minute."""

    def __init__(self, max_minutes: float | None, checkpoint_minutes: float | None, seconds_before: float) -> None:
        self.max_minutes = max_minutes
        self.checkpoint_minutes = checkpoint_minutes
        self._before = seconds_before
        self._began = self._kept = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds the run has trained."""
        return self._before + time.monotonic() - self._began

    @property
    def is_over(self) -> bool:
        """Whether the time budget is used up."""
        return self.max_minutes is not None and self.seconds >= 60 * self.max_minutes

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return self.checkpoint_minutes is not None and time.monotonic() - self._kept >= 60 * self.checkpoint_minutes

    def kept(self) -> None:
        """A checkpoint has been made."""
        self._kept = time.monotonic()


class Rules:
    """What may end a training before its last step. `state` is that of a checkpoint, or None at the start.

    `vote` is this worker's word for its next step, `hear` takes the sum of all workers' words with that step.
    """

    def __init__(
        self,
        early_stopping: EarlyStoppingConfig | None,
        clock: tuple[float | None, float | None],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        told = state or {}
        self.early = None if early_stopping is None else EarlyStopping(early_stopping, told.get("early_stopping"))
        self.clock = Clock(*clock, float(told.get("seconds", 0.0)))
        self.checkpoint_due = False
        self._time_is_up = self.clock.is_over

    def vote(self, rank: int) -> tuple[float, float]:
        """(time is up, a checkpoint is due) by the clock of rank 0, the only one that counts."""
        return (float(self.clock.is_over), float(self.clock.checkpoint_due)) if rank == 0 else (0.0, 0.0)

    def hear(self, votes: tuple[float, ...]) -> None:
        """What all workers have said with a step."""
        self._time_is_up, self.checkpoint_due = votes[0] > 0, votes[1] > 0

    def take(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes an evaluation into account."""
        if self.early is not None:
            self.early.take(step, metrics)

    def reason(self) -> str | None:
        """Why training ends now; None while it goes on."""
        if self._time_is_up:
            return f"time budget: train.max_minutes {self.clock.max_minutes:g} are over"
        return None if self.early is None else self.early.reason

    def state(self) -> dict[str, Any]:
        """What a resumed training goes on from, as JSON has it."""
        early = None if self.early is None else self.early.state()
        return {"seconds": self.clock.seconds, "early_stopping": early}
