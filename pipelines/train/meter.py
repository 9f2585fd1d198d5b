"""How fast a training is and how far it has come: what the loop counts between two reports. Knows no Ray."""

from __future__ import annotations

import math
import time
from functools import cached_property

import torch

from model.scoring.metric_names import TRAIN_LOSS
from model.training.trainer import StepResult
from pipelines.tracking.follower import Progress
from pipelines.tracking.time_left import TimeLeft
from pipelines.train.job import Job, Past
from pipelines.train.steps import Step, epochs_at, total_steps

PROGRESS_SECONDS = 0.5


class Meter:
    """Counts steps, losses and padding, and tells rank 0's progress now and then.

    Speeds leave out the time spent validating; the time that is left does not.
    """

    def __init__(self, job: Job, past: Past) -> None:
        self.job = job
        self.total_steps = total_steps(job.train, job.config.train)
        self.began = self.told = self.reported = time.monotonic()
        first_step = past.place.step
        self.steps = self.steps_at_told = self.steps_at_report = first_step
        self.left = TimeLeft()
        self.seconds_before = float((past.rules or {}).get("seconds", 0.0))
        self.loss, self.weight = (float(past.meter.get(name, 0.0)) for name in ("loss", "weight"))
        # The past counts once over all workers.
        self.real, self.padded = (int(past.meter.get(each, 0)) if job.rank == 0 else 0 for each in ("real", "padded"))
        self.real_at_told = self.real
        self._paused: float | None = None
        self._reporting = False
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
            self.told = self.reported = now
            self.steps_at_told = self.steps_at_report = step.number
            self.real_at_told = self.real
        if now - self.told >= PROGRESS_SECONDS or step.last:
            self._tell(step.number, epochs_at(self.job.train, step), now)

    def _tell(self, step: int, epoch: float, now: float) -> None:
        seconds = max(now - self.told, 1e-9)
        rate = (step - self.steps_at_told) / seconds
        self.left.took(step - self.steps_at_told, seconds)
        self.latest = Progress(
            step=step,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=self.latest_loss,
            steps_per_second=rate,
            real_steps_per_second=(self.real - self.real_at_told) / seconds * self.job.world,
            padding=self.padded / self.real if self.real else 1.0,
            seconds_left=self._seconds_left(step, epoch, now),
        )
        self.told, self.steps_at_told, self.real_at_told = now, step, self.real
        if self.job.rank == 0:
            self.job.progress(self.latest)

    def _seconds_left(self, step: int, epoch: float, now: float) -> float:
        """Seconds of all steps and validations that are left, and at most those of the time budget."""
        settings = self.job.config.train
        every, total = settings.evaluate_every_steps, self.total_steps
        # Those that were made end before this step: the one that is due after it has yet to come.
        if every is None:
            validations = math.ceil(epoch * total / step - 1e-9) - (math.ceil(epoch - 1e-9) - 1)
        else:
            validations = math.ceil(total / every) - (step - 1) // every
        left = self.left.seconds(total - step, validations, self._validation_steps)
        if settings.max_minutes is None:
            return left
        budget = max(0.0, 60 * settings.max_minutes - self.seconds_before - (now - self.began))
        return budget if math.isnan(left) else min(left, budget)

    @cached_property
    def _validation_steps(self) -> float:
        """As many steps of training as a validation is likely to take, before there was one: a step without gradients
        takes about a third.
        """
        train, validation = self.job.train, self.job.validation
        if validation is None or not train.index.steps:
            return 0.0
        most = self.job.config.train.validation_batches or validation.steps_per_epoch
        share = min(1.0, most / max(validation.steps_per_epoch, 1))
        return share * validation.index.steps / (train.index.steps / train.steps_per_epoch) / 3

    def since_report(self) -> dict[str, float]:
        """The training loss and speed since the last report; begins the next. Of the first step no speed is known."""
        loss = self.loss / self.weight if self.weight else math.nan
        self.loss = self.weight = 0.0
        self.pause()
        self._reporting = True
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
            if self._reporting:
                self.left.paused(pause)
            else:
                self.left.took(0, pause)  # checkpoints beside the validations slow the steps down
            self._reporting = False
            self.told += pause
            self.reported += pause
