"""The worker's loop: train, validate, report. It reads as a paragraph of verbs and knows nothing of who started it.

Rank, world size, batches, the sum over workers and the report are handed in, so that a worker of Ray Train, a trial
of a sweep and a test run the very same code. Knows no Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from model.batches.collate import SequenceBatch
from model.batches.plan import DataIndex, Plan
from model.bundle.bundle import Bundle, TrainingState, bundle_of, load_weights
from model.errors import ConfigError, TrainingError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.network.network import RnnNetwork, build_network
from model.scoring.metrics import MetricState, batch_state, merged, results
from model.settings import did_you_mean
from model.training.numerics import autocast_type, set_numerics
from model.training.trainer import Reduce, StepResult, Trainer
from pipelines.config import RunConfig
from pipelines.train.carried_states import gathered, restore
from pipelines.train.steps import Place, Step, epochs_at, steps, stop_batch, total_steps
from pipelines.train.stopping import Rules

PROGRESS_SECONDS = 0.5
KEPT_VALIDATION_BYTES = 256 * 2**20  # a worker


class Batches(Protocol):
    """Gives this rank's batches of a plan's steps start … stop − 1."""

    def __call__(self, plan: Plan, start: int, stop: int) -> Iterator[SequenceBatch | None]: ...


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


@dataclass(frozen=True)
class Report:
    """The state at one validation or checkpoint: metrics, a bundle, and what it takes to go on from here.

    `ended` says why the `last` one is the last; it is empty before.
    """

    step: int
    metrics: dict[str, float]
    bundle: Bundle
    training: TrainingState
    last: bool
    ended: str = ""


@dataclass(frozen=True)
class Job:
    """What one worker is to do. `report` is called by every rank, equally often; `progress` by rank 0 alone.

    `checkpoint` gets what is to be kept between validations (None: nothing is); `explain` adds to the error of a step
    that has failed; `start` holds the weights to begin with (None: the seed's).
    """

    config: RunConfig
    columns: FittedColumns
    label: FittedLabel
    train: Plan
    validation: Plan | None
    batches: Batches
    report: Callable[[Report], None]
    checkpoint: Callable[[Report], None] | None = None
    progress: Callable[[Progress], None] = lambda _: None
    explain: Callable[[TrainingError, Step], TrainingError] = lambda error, _: error
    reduce: Reduce | None = None
    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    start: Bundle | None = None
    resume: tuple[Bundle, TrainingState] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def run(job: Job) -> None:
    """Trains from the start or from `job.resume` until the budget is used up or a rule ends it."""
    settings = job.config.train
    set_numerics(settings, job.device)
    trainer, past = start_trainer(job), past_of(job)
    rules, meter, validation = rules_of(job, past), Meter(job, past), Validation(job)
    stop = stop_batch(job.train, settings, past.place)
    if rules.reason() is not None or past.place.batches >= stop:
        return
    for step in steps(job.train, job.batches(job.train, past.place.batches, stop), settings, past.place, stop):
        trainer.vote = rules.vote(job.rank)
        result = compute(job, trainer, step, past)
        rules.hear(trainer.votes)
        meter.count(step, result)
        if is_report_step(job, step, rules):
            metrics = meter.since_report() | validation.metrics(trainer.network)
            rules.take(step.number, metrics)
            job.report(snapshot(job, trainer, step, rules, meter, metrics))
        elif job.checkpoint is not None and is_checkpoint_step(job, step, rules):
            meter.pause()
            job.checkpoint(snapshot(job, trainer, step, rules, meter, {}))
        if rules.reason() is not None:
            return
        meter.resume()


def start_trainer(job: Job) -> Trainer:
    """A trainer with the first weights, or those and the optimizer state of the checkpoint."""
    config = job.config.train
    network = build_network(job.config.model, job.columns, job.label, config.seed)
    if config.warm_start is not None and job.start is None:
        raise ConfigError("train.warm_start is for `train`, but this is a trial of a sweep; set it to null")
    weights = job.start if job.resume is None else job.resume[0]
    if weights is not None:
        load_weights(network, weights.tensors)
    autocast = autocast_type(config, network.dtype)
    network = network.to(job.device)
    trainer = Trainer(network, job.label, config, seed=config.seed, reduce=job.reduce, autocast=autocast)
    if job.resume is not None:
        trainer.load_state(job.resume[1].numbers, job.resume[1].tensors)
    return trainer


@dataclass(frozen=True)
class Past:
    """What a checkpoint says of the training so far, beside weights and optimizer; nothing at the start."""

    place: Place = field(default_factory=Place)
    rules: Mapping[str, Any] | None = None
    meter: Mapping[str, float] = field(default_factory=dict)


def past_of(job: Job) -> Past:
    """The past of `job.resume`; checkpoints of older versions know the place alone."""
    if job.resume is None:
        return Past()
    numbers = job.resume[1].numbers
    if "place" not in numbers:
        return Past(Place(int(numbers["step"]), int(numbers["step"])))
    return Past(Place(**numbers["place"]), numbers["rules"], numbers["meter"])


def rules_of(job: Job, past: Past) -> Rules:
    """The run's stopping rules. ConfigError where early stopping watches a metric that there is not."""
    settings = job.config.train
    if settings.early_stopping is not None:
        known = {"train_loss": 0.0}
        if job.validation is not None:
            known |= named(results(job.label, dict.fromkeys(metric_names(job.label), 1.0)))
        if settings.early_stopping.metric not in known:
            metric = settings.early_stopping.metric
            why = " (there are no validation rows)" if job.validation is None else did_you_mean(metric, known)
            raise ConfigError(f"train.early_stopping.metric must be one of {', '.join(known)}, but is {metric}{why}")
    clock = (settings.max_minutes, settings.checkpoint_every_minutes)
    return Rules(settings.early_stopping, clock, past.rules)


def compute(job: Job, trainer: Trainer, step: Step, past: Past) -> StepResult:
    """One step; the states of the first one, where it goes on within a batch, come from the checkpoint."""
    turn = step.turn
    if step.segment and step.number == past.place.step + 1:
        assert job.resume is not None, "only a checkpoint begins within a batch"
        restore(turn, job.train, trainer.network, job.rank, job.world, job.resume[1].tensors)
    try:
        result = trainer.step_over(turn.parts, step.segment)
    except TrainingError as error:
        raise job.explain(error, step) from error
    if step.ends_turn:
        trainer.position = turn.stop
    return result


def is_report_step(job: Job, step: Step, rules: Rules) -> bool:
    """Whether to validate and checkpoint after a step: every so many of them or each epoch, and at the end."""
    every = job.config.train.evaluate_every_steps
    due = step.ends_epoch if every is None else step.number % every == 0
    return due or step.last or rules.reason() is not None


def is_checkpoint_step(job: Job, step: Step, rules: Rules) -> bool:
    """Whether to checkpoint after a step that is not validated."""
    every = job.config.train.checkpoint_every_steps
    return rules.checkpoint_due or (every is not None and step.number % every == 0)


class Validation:
    """This rank's validation batches, kept after the first pass where they are small enough to be read once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._kept: list[SequenceBatch] | None = None

    def metrics(self, network: RnnNetwork) -> dict[str, float]:
        """Metrics over the validation rows, each exactly once over all ranks, named `validation_…`."""
        if self.job.validation is None:
            return {}
        total = summed(self.job, merged(batch_metrics(self.job, network, batch) for batch in self._batches()))
        return named(results(self.job.label, total))

    def _batches(self) -> Iterator[SequenceBatch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[SequenceBatch] | None = []
        kept_bytes = 0
        for batch in self._read():
            kept_bytes += batch.nbytes
            if kept_bytes > KEPT_VALIDATION_BYTES:
                kept = None
            if kept is not None:
                kept.append(batch)
            yield batch
        self._kept = kept

    def _read(self) -> Iterator[SequenceBatch]:
        plan = self.job.validation
        assert plan is not None, "metrics() returns before"
        steps = min(plan.steps_per_epoch, self.job.config.train.validation_batches or plan.steps_per_epoch)
        return (batch for batch in self.job.batches(plan, 0, steps) if batch is not None)


def named(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the validation rows, under the names they are reported by."""
    return {f"validation_{name}": value for name, value in metrics.items()}


def batch_metrics(job: Job, network: RnnNetwork, batch: SequenceBatch) -> MetricState:
    """The metric sums of one batch, without gradients or dropout."""
    batch = batch.to(job.device, network.dtype)
    with torch.inference_mode():
        return batch_state(job.label, network(batch, keep_state=False).logits, batch)


def summed(job: Job, state: MetricState) -> MetricState:
    """Metric sums added up over all workers; a worker that had no row joins with zeros."""
    if job.reduce is None:
        return state
    names = sorted(metric_names(job.label))
    vector = torch.tensor([state.get(name, 0.0) for name in names], dtype=torch.float64, device=job.device)
    job.reduce(vector)
    return dict(zip(names, vector.tolist(), strict=True))


def metric_names(label: FittedLabel) -> tuple[str, ...]:
    """Names of the metric sums, known to a rank that has seen no batch."""
    if label.num_classes is not None:
        return ("rows", "weight", "loss", "correct")
    return ("rows", "weight", "loss", "absolute", "target", "target_squares")


def snapshot(job: Job, trainer: Trainer, step: Step, rules: Rules, meter: Meter, metrics: dict[str, float]) -> Report:
    """Metrics, a copy of the weights, and the training state of this moment."""
    rules.clock.kept()
    ended = rules.reason() or (f"all of its {step.number} steps are made" if step.last else None)
    metrics = {"step": float(step.number), "epoch": epochs_at(job.train, step)} | metrics
    bundle = bundle_of(
        trainer.network, job.columns, job.label, metrics=metrics, provenance={**job.provenance, "step": step.number}
    )
    numbers, tensors = trainer.state()
    numbers |= {"place": asdict(step.place), "rules": rules.state(), "meter": meter.state()}
    if not step.ends_turn:
        tensors |= gathered(step.turn, job.train, trainer.network, job.rank, job.world, job.reduce)
    return Report(step.number, metrics, bundle, TrainingState(numbers, tensors), ended is not None, ended or "")


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
        metrics = {"train_loss": loss, "padding": padded / real if real else 1.0}
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


def plans(config: RunConfig, train: DataIndex, validation: DataIndex | None) -> tuple[Plan, Plan | None]:
    """The run's plans: training rows shuffled by its seed, validation rows each once and bucketed by length."""
    settings = config.train
    plan = partial(Plan, batch_sequences=settings.batch_sequences, batch_padded_steps=settings.batch_padded_steps)
    return (
        plan(train, seed=settings.seed, window_batches=settings.window_batches),
        None if validation is None else plan(validation, shuffle=False),
    )
