"""Monitors for `fit`: called with `StepInfo` after each step; True stops the training. Any function will do as well.

Knows no estimator: what is measured is handed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from model.estimator.learned import StepInfo

Report = Callable[[str], object]


class EarlyStopping:
    """Stops when `measure()` has not been better by `min_delta` for `patience` measurements in a row.

    `measure` runs every `every_steps` steps and sees the weights of that step, such as
    `lambda: estimator.evaluate(x, y)["loss"]`. `best` and `best_step` tell the best value seen.
    """

    def __init__(
        self,
        measure: Callable[[], float],
        *,
        every_steps: int = 100,
        patience: int = 3,
        min_delta: float = 0.0,
        higher_is_better: bool = False,
    ) -> None:
        self.measure = measure
        self.every_steps = every_steps
        self.patience = patience
        self.min_delta = min_delta
        self.sign = -1.0 if higher_is_better else 1.0
        self.best, self.best_step, self.worse = math.nan, 0, 0

    def __call__(self, info: StepInfo) -> bool:
        """Measures, if it is time; whether to stop."""
        if info.global_step % self.every_steps:
            return False
        info.publish()
        value = self.measure()
        if math.isnan(self.best) or self.sign * value < self.sign * self.best - self.min_delta:
            self.best, self.best_step, self.worse = value, info.global_step, 0
        else:
            self.worse += 1
        return self.worse >= self.patience


class Checkpoints:
    """Writes a checkpoint every `every_steps` steps, beside those that the estimator writes by the clock."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps

    def __call__(self, info: StepInfo) -> None:
        """Saves, if it is time."""
        if info.global_step % self.every_steps == 0:
            info.save()


class Progress:
    """Reports step, mean loss since the last report and steps a second, every `every_seconds`."""

    def __init__(self, every_seconds: float = 10.0, report: Report = print) -> None:
        self.every_seconds = every_seconds
        self.report = report
        self.told, self.steps, self.loss = time.monotonic(), 0, 0.0

    def __call__(self, info: StepInfo) -> None:
        """Reports, if it is time."""
        self.steps += 1
        self.loss += info.loss
        seconds = time.monotonic() - self.told
        if seconds >= self.every_seconds:
            rate = self.steps / max(seconds, 1e-9)
            self.report(f"step {info.global_step}: loss {self.loss / self.steps:.4f}, {rate:.1f} steps/s")
            self.told, self.steps, self.loss = time.monotonic(), 0, 0.0
