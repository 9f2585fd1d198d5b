"""How fast a training is and how long it will take: what the loop counts between two reports. Knows no Ray."""

from __future__ import annotations

import math
import time

import torch

from model.scoring.metric_names import TRAIN_LOSS
from model.training.trainer import StepResult
from pipelines.tracking.follower import Progress
from pipelines.train.job import Job, Past
from pipelines.train.steps import Step, epochs_at, total_steps

PROGRESS_SECONDS = 0.5


class Meter:
    """Counts steps, losses and padding, and tells rank 0's progress now and then. Time spent validating is left out."""

    def __init__(self, job: Job, past: Past) -> None:
        self.job = job
        self.total_steps = total_steps(job.train, job.config.train)
        self.began = self.told = self.reported = time.monotonic()
        first_step = past.place.step
        self.steps = self.steps_at_start = self.steps_at_told = self.steps_at_report = first_step
        self.loss, self.weight = (float(past.meter.get(name, 0.0)) for name in ("loss", "weight"))
        # The past counts once over all workers.
        self.real, self.padded = (int(past.meter.get(each, 0)) if job.rank == 0 else 0 for each in ("real", "padded"))
        self.real_at_told = self.real
        self._paused: float | None = None
        self.latest_loss = math.nan
        self._running = False
        self.latest = Progress(first_step, self.total_steps, 0, math.nan, 0, 0, 1, math.nan)

    def count(self, step: Step, result: StepResult) -> None:
        """Takes one step into account and, if it is time, reports."""
        if result.weight:
            self.latest_loss = result.loss * self.job.label.scale**2  # in the label's units, as validation's
            self.loss += self.latest_loss * result.weight
            self.weight += result.weight
        real, padded = step.sizes()
        self.real += real
        self.padded += padded
        self.total_steps = total_steps(self.job.train, self.job.config.train, step)
        self.steps, now = step.number, time.monotonic()
        if not self._running:  # the clock starts when the pipeline has delivered
            self._running = True
            self.began = self.told = self.reported = now
            self.steps_at_start = self.steps_at_told = self.steps_at_report = step.number
            self.real_at_told = self.real
        if now - self.told >= PROGRESS_SECONDS or step.last:
            self._tell(step.number, epochs_at(self.job.train, step), now)

    def _tell(self, step: int, epoch: float, now: float) -> None:
        seconds = max(now - self.told, 1e-9)
        rate = (step - self.steps_at_told) / seconds
        overall = (step - self.steps_at_start) / max(now - self.began, 1e-9)
        self.latest = Progress(
            step=step,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=self.latest_loss,
            steps_per_second=rate,
            real_steps_per_second=(self.real - self.real_at_told) / seconds * self.job.world,
            padding=self.padded / self.real if self.real else 1.0,
            seconds_left=(self.total_steps - step) / overall
            if overall
            else 0.0
            if step == self.total_steps
            else math.nan,
        )
        self.told, self.steps_at_told, self.real_at_told = now, step, self.real
        if self.job.rank == 0:
            self.job.progress(self.latest)

    def since_report(self) -> dict[str, float]:
        """The training loss and speed since the last report; begins the next. Of the first step no speed is known."""
        loss = self.loss / self.weight if self.weight else math.nan
        self.loss = self.weight = 0.0
        self.pause()
        assert self._paused is not None
        seconds, made = self._paused - self.reported, self.steps - self.steps_at_report
        self.reported, self.steps_at_report = self._paused, self.steps
        real, padded = self.sizes()
        metrics = {TRAIN_LOSS: loss, "padding": padded / real if real else 1.0}
        if made and seconds:
            metrics["steps_per_second"] = made / seconds
        return metrics | ({"long_rows": float(self.job.train.long_rows)} if self.job.train.long_rows else {})

    def state(self) -> dict[str, float]:
        """What a resumed training goes on counting from."""
        real, padded = self.sizes()
        return {"loss": self.loss, "weight": self.weight, "real": real, "padded": padded}

    def sizes(self) -> tuple[int, int]:
        """(real steps, padded steps) that all workers have computed. Every rank comes here."""
        counts = torch.tensor([self.real, self.padded], dtype=torch.float64, device=self.job.device)
        if self.job.reduce is not None:
            self.job.reduce(counts)
        real, padded = counts.tolist()
        return int(real), int(padded)

    def pause(self) -> None:
        """Stops the clock for a validation or a checkpoint."""
        self._paused = time.monotonic()

    def resume(self) -> None:
        """Goes on after a pause, if there was one: the time it took does not count."""
        if self._paused is not None:
            pause, self._paused = time.monotonic() - self._paused, None
            self.began += pause
            self.told += pause
            self.reported += pause
