"""What runs in a trial's process: `pipelines.worker.run`, the loop of every training, with Ray Tune's report.

A trial of one worker trains right here. One of several workers starts Ray Train's workers from here and passes on
what they report; that start takes ten seconds and more, so it is for trials that need it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from model.checkpoint import Bundle, TrainingState, load_bundle, load_training_state, save_bundle
from model.errors import DynamicRnnError, to_plain
from model.storage import exists, join
from pipelines import ingest, train, worker
from pipelines.config import RunConfig, run_config
from pipelines.reading import RowReader
from tune.check import RAY_TRAIN
from tune.config import TuneConfig, tune_config
from tune.points import Point, trial_run
from tune.reading import direct_batches

SCORE, FAILURE, LAST, METRICS = "score", "failure", "last", "metrics"
WORST = 1e300  # not infinity: ASHA's percentiles would become NaN


@dataclass(frozen=True)
class Sweep:
    """The sweep as its trials see it: plain values that travel to them."""

    run: dict[str, Any]
    gpus: float

    @property
    def config(self) -> RunConfig:
        """The sweep's run; its plugins are imported first."""
        return run_config(self.run, where="the sweep's run.yaml")


def run_trial(chosen: Mapping[str, Any], *, sweep: Sweep) -> None:
    """The function trainable. A mistake of the user's ends the trial and is reported as a value."""
    config = sweep.config
    tuning = tune_config(config)
    settings = decoded(tuning, chosen["point"]["settings"])
    try:
        run = trial_run(config, tuning, settings)
        if tuning.workers_per_trial == 1:
            train_here(config, tuning, run, settings, cuda=sweep.gpus > 0)
        else:
            train_on_workers(config, tuning, run, settings, cuda=sweep.gpus > 0)
    except DynamicRnnError as error:
        # As a value: raised, it would be tried again as if a machine had died.
        # Without `step`, which ASHA ranks by: a failed trial must not move the bar for the others.
        ray.tune.report({SCORE: WORST, FAILURE: to_plain(error)})


def decoded(tuning: TuneConfig, settings: Mapping[str, Any]) -> Point:
    """The point behind a trial's settings: as they are, or as a searcher chose them."""
    if tuning.search != "optuna":
        return dict(settings)
    return {name: tuning.space[name].decoded(value) for name, value in settings.items()}


def outcome(tuning: TuneConfig, report: worker.Report) -> dict[str, Any]:
    """What Ray Tune is told: a score to minimise, our own clocks, and the metrics."""
    return {
        SCORE: scored(tuning, report.metrics),
        "step": report.step,
        "epoch": report.metrics["epoch"],
        LAST: report.last,
        METRICS: dict(report.metrics),
    }


def scored(tuning: TuneConfig, metrics: Mapping[str, Any]) -> float:
    """The sweep's metric as a finite number to minimise, for Ray Tune."""
    value = metrics.get(tuning.metric)
    if value is None or not math.isfinite(value):
        return WORST
    return float(value) if tuning.best_is == "min" else -float(value)


# One worker -------------------------------------------------------------------------------------------------------


def train_here(config: RunConfig, tuning: TuneConfig, run: RunConfig, settings: Point, *, cuda: bool) -> None:
    """Trains in this process, from the trial's latest checkpoint where there is one."""
    import torch

    torch.set_num_threads(run.resources.cpus_per_worker)
    prepared = ingest.load_prepared(config.directory)
    device = torch.device("cuda" if cuda else "cpu")
    worker.run(
        job(
            run,
            settings,
            prepared,
            batches=partial(direct_batches, RowReader(prepared.columns, prepared.label), device=device),
            report=partial(report_to_tune, tuning),
            device=device,
            resume=loaded(ray.tune.get_checkpoint()),
        )
    )


def job(run: RunConfig, settings: Point, prepared: ingest.Prepared, **by_place: Any) -> worker.Job:
    """The trial's job: its run on the sweep's data; `by_place` is what differs by where it trains."""
    train_plan, validation_plan = worker.plans(run, prepared.train, prepared.validation)
    return worker.Job(
        config=run,
        columns=prepared.columns,
        label=prepared.label,
        train=train_plan,
        validation=validation_plan,
        provenance=train.provenance(run) | {"trial": settings},
        **by_place,
    )


def report_to_tune(tuning: TuneConfig, report: worker.Report) -> None:
    """Hands Ray Tune the outcome and a checkpoint; it answers by going on or by ending this thread."""
    with tempfile.TemporaryDirectory() as temporary:
        save_bundle(temporary, report.bundle, report.training)
        ray.tune.report(outcome(tuning, report), checkpoint=ray.tune.Checkpoint.from_directory(temporary))


def loaded(checkpoint: Any) -> tuple[Bundle, TrainingState] | None:
    """The model and training state of a checkpoint of Ray's."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as directory:
        return load_bundle(directory), load_training_state(directory)


# Several workers --------------------------------------------------------------------------------------------------


def train_on_workers(config: RunConfig, tuning: TuneConfig, run: RunConfig, settings: Point, *, cuda: bool) -> None:
    """Trains on workers of Ray Train's, whose reports go on to Ray Tune."""
    storage, name = join(config.directory, RAY_TRAIN), ray.tune.get_context().get_trial_id()
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={
            "sweep": config.model_dump(mode="json"),
            "settings": settings,
            "cuda": cuda,
            "directory": join(storage, name),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=tuning.workers_per_trial,
            use_gpu=cuda,
            resources_per_worker={"CPU": run.resources.cpus_per_worker, "GPU": 1 if cuda else 0},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=[TuneReportCallback()],
            failure_config=ray.train.FailureConfig(max_failures=run.resources.max_failures, controller_failure_limit=3),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="min"
            ),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError:
        train.raise_recorded(join(storage, name))
        raise
    train.raise_recorded(join(storage, name))


def train_loop(given: dict[str, Any]) -> None:
    """What each worker of a trial runs. After a mistake of the user's, Ray Train's new try ends at once."""
    if exists(join(given["directory"], train.ERROR)):
        return
    try:
        train_rank(given)
    except DynamicRnnError as error:
        train.record_error(given["directory"], error)
        raise


def train_rank(given: dict[str, Any]) -> None:
    """As `pipelines.train` does, on the sweep's data with the trial's run."""
    import torch

    config = run_config(given["sweep"], where="the sweep's run.yaml")
    tuning = tune_config(config)
    run = trial_run(config, tuning, given["settings"])
    torch.set_num_threads(run.resources.cpus_per_worker)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    prepared = ingest.load_prepared(config.directory)
    reader = RowReader(prepared.columns, prepared.label)
    device = ray.train.torch.get_device() if given["cuda"] else torch.device("cpu")
    worker.run(
        job(
            run,
            given["settings"],
            prepared,
            batches=partial(train.rank_batches, reader, rank, world, run.plugins, device),
            report=partial(report_to_train, tuning, rank),
            reduce=train.sum_over_workers,
            rank=rank,
            world=world,
            device=device,
            resume=loaded(ray.train.get_checkpoint()),
        )
    )


def report_to_train(tuning: TuneConfig, rank: int, report: worker.Report) -> None:
    """Every rank comes here, equally often; rank 0's report and checkpoint count."""
    if rank != 0:
        ray.train.report(outcome(tuning, report))
        return
    with tempfile.TemporaryDirectory() as temporary:
        save_bundle(temporary, report.bundle, report.training)
        ray.train.report(outcome(tuning, report), checkpoint=ray.train.Checkpoint.from_directory(temporary))
