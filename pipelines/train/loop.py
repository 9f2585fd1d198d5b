"""The worker's loop: train, validate, report. It reads as a paragraph of verbs and knows nothing of who started it.

Rank, world size, batches, the sum over workers and the report are handed in, so that a worker of Ray Train, a trial
of a sweep and a test run the very same code. Knows no Ray.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from model.bundle.bundle import Bundle, TrainingState, bundle_of, load_weights
from model.errors import ConfigError, TrainingError
from model.network.network import build_network
from model.scoring.metric_names import TRAIN_LOSS, metric_names, of_validation
from model.settings import did_you_mean
from model.training.numerics import autocast_type, set_numerics
from model.training.trainer import StepResult, Trainer
from pipelines.config import RunConfig
from pipelines.ingest.fitted_data import FittedData
from pipelines.train import memory_estimate
from pipelines.train.carried_states import gathered, restore
from pipelines.train.job import Job, Past, Report
from pipelines.train.meter import Meter
from pipelines.train.nan_batch import told_where, write_nan_batch
from pipelines.train.steps import Position, Step, epochs_at, steps, stop_batch
from pipelines.train.stopping import Rules
from pipelines.train.validation import Validation


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


def past_of(job: Job) -> Past:
    """The past of `job.resume`; checkpoints of older versions know the place alone."""
    if job.resume is None:
        return Past()
    numbers = job.resume[1].numbers
    if "place" not in numbers:
        return Past(Position(int(numbers["step"]), int(numbers["step"])))
    return Past(Position(**numbers["place"]), numbers["rules"], numbers["meter"])


def rules_of(job: Job, past: Past) -> Rules:
    """The run's stopping rules. ConfigError where early stopping watches a metric that there is not."""
    settings = job.config.train
    if settings.early_stopping is not None:
        known = [TRAIN_LOSS]
        if job.validation is not None:
            known += map(of_validation, metric_names(job.label))
        if settings.early_stopping.metric not in known:
            metric = settings.early_stopping.metric
            why = " (there are no validation rows)" if job.validation is None else did_you_mean(metric, known)
            raise ConfigError(f"train.early_stopping.metric must be one of {', '.join(known)}, but is {metric}{why}")
    clock = (settings.max_minutes, settings.checkpoint_every_minutes)
    return Rules(settings.early_stopping, clock, past.rules)


def compute(job: Job, trainer: Trainer, step: Step, past: Past) -> StepResult:
    """One step; the states of the first one, where it goes on within a batch, come from the checkpoint."""
    group = step.group
    if step.segment and step.number == past.place.step + 1:
        assert job.resume is not None, "only a checkpoint begins within a batch"
        restore(group, job.train, trainer.network, job.rank, job.world, job.resume[1].tensors)
    try:
        result = trainer.step_over(group.parts, step.segment)
    except TrainingError as error:
        raise job.explain(error, step) from error
    if step.ends_group:
        trainer.position = group.stop
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
    if not step.ends_group:
        tensors |= gathered(step.group, job.train, trainer.network, job.rank, job.world, job.reduce)
    return Report(step.number, metrics, bundle, TrainingState(numbers, tensors), ended is not None, ended or "")


def of_run(job: Job, prepared: FittedData, workers_here: int, resume: tuple[Bundle, TrainingState] | None) -> Job:
    """The job of a run's worker, one of `workers_here` on this machine: with room for it, its past, and where it comes
    from; a step that fails lists its rows. ResourceError where the memory does not suffice."""
    needed = memory_estimate.estimate_of(job.config, prepared, job.world)
    memory_estimate.require_here(needed, job.device, workers_here)
    come_from = prepared.provenance | ({} if job.start is None else job.start.provenance)
    return replace(
        job,
        explain=partial(explain, job),
        resume=resume,
        provenance=provenance(job.config, job.world) | come_from,
    )


def provenance(config: RunConfig, workers: int | None = None) -> dict[str, Any]:
    """What is known of how a bundle came to be, by so many workers (those of the config where they are a number)."""
    return {
        "run": config.name,
        "seed": config.train.seed,
        "train": config.train.model_dump(mode="json"),
        "workers": config.resources.workers if workers is None else workers,
        "torch": torch.__version__,
        "ray": importlib.metadata.version("ray"),
    }


def explain(job: Job, error: TrainingError, step: Step) -> TrainingError:
    """Lists the rows of a step that has failed, which it has on every rank; none ends before the list is written."""
    if job.rank == 0:
        write_nan_batch(job.config.directory, job.train, step, job.config.data.keys, error)
    if job.reduce is not None:
        job.reduce(torch.zeros(1, device=job.device))
    return told_where(job.config.directory, error)
