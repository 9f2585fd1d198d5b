"""What runs in a trial's process: `pipelines.train.loop.run`, the loop of every training, with Ray Tune's report.

A trial of one worker trains right here. One of several workers starts Ray Train's workers from here and passes on
what they report; that start takes ten seconds and more, so it is for trials that need it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import ray.tune
import torch
from ray.tune.integration.ray_train import TuneReportCallback

from model.batches.collate import SequenceBatch
from model.batches.plan import Plan
from model.bundle.bundle import Bundle, TrainingState, load_bundle, load_training_state, save_bundle
from model.bundle.run_directory import RAY_TRAIN
from model.errors import DynamicRnnError, to_plain
from model.scoring.metric_names import score
from model.storage import join
from pipelines.cluster.malloc import OF_COMPUTING, keep_freed_memory
from pipelines.config import RunConfig, run_config
from pipelines.ingest.batches import CPU, planned
from pipelines.ingest.fitted_data import load_fitted
from pipelines.ingest.prefetch import prefetched
from pipelines.ingest.read_task import RowReader
from pipelines.supervision.driver_channel import WorkerReports, driver_channel
from pipelines.supervision.failures import fit_or_raise
from pipelines.supervision.heartbeat import Heartbeat
from pipelines.supervision.ray_trainer import trainer_of
from pipelines.supervision.watchdog import watching
from pipelines.train import loop
from pipelines.train.job import Job, Report, job_on, reader_of
from pipelines.train.ray_worker import enter, rank_job
from tune.config import TuneConfig, tune_config
from tune.points import Point, trial_run

SCORE, FAILURE, LAST, METRICS, SAID = "score", "failure", "last", "metrics", "said"
WORST = 1e300  # not infinity: ASHA's percentiles would become NaN


@dataclass(frozen=True)
class Sweep:
    """The sweep as its trials see it: plain values that travel to them, and where to tell people something."""

    run: dict[str, Any]
    gpus: float
    telemetry: WorkerReports

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
            train_on_workers(sweep, tuning, run, settings)
    except DynamicRnnError as error:
        # As a value: raised, it would be tried again as if a machine had died.
        # Without `step`, which ASHA ranks by: a failed trial must not move the bar for the others.
        ray.tune.report({SCORE: WORST, FAILURE: to_plain(error)})


def decoded(tuning: TuneConfig, settings: Mapping[str, Any]) -> Point:
    """The point behind a trial's settings: as they are, or as a searcher chose them."""
    if tuning.search != "optuna":
        return dict(settings)
    return {name: tuning.space[name].decoded(value) for name, value in settings.items()}


def outcome(tuning: TuneConfig, report: Report) -> dict[str, Any]:
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
    return min(score(metrics, tuning.metric, tuning.best_is), WORST)


# One worker -------------------------------------------------------------------------------------------------------


def train_here(config: RunConfig, tuning: TuneConfig, run: RunConfig, settings: Point, *, cuda: bool) -> None:
    """Trains in this process, from the trial's latest checkpoint where there is one."""
    import torch

    torch.set_num_threads(run.resources.cpus_per_worker)
    prepared = load_fitted(config.directory)
    reader = reader_of(config, prepared)
    device = torch.device("cuda" if cuda else "cpu")
    loop.run(
        job_on(
            run,
            prepared,
            batches=partial(direct_batches, reader, device=device),
            report=partial(report_to_tune, tuning),
            device=device,
            resume=loaded(ray.tune.get_checkpoint()),
            provenance=loop.provenance(run) | prepared.provenance | {"trial": settings},
        )
    )


def report_to_tune(tuning: TuneConfig, report: Report) -> None:
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


def train_on_workers(sweep: Sweep, tuning: TuneConfig, run: RunConfig, settings: Point) -> None:
    """Trains on workers of Ray Train's, whose reports go on to Ray Tune; one that hangs is named and replaced."""
    directory = join(sweep.config.directory, RAY_TRAIN, ray.tune.get_context().get_trial_id())
    workers, name = (tuning.workers_per_trial,) * 2, ray.tune.get_context().get_trial_name()
    told = {"sweep": sweep.run, "settings": settings, "cuda": sweep.gpus > 0, "directory": directory}

    def tell(text: str) -> None:
        sweep.telemetry.report({SAID: f"{name}: {text}"})

    with driver_channel() as channel, watching(channel, run.resources, workers, tell) as watchdog:
        storage, _, last = directory.rpartition("/")
        trainer = trainer_of(
            train_loop,
            {**told, "watch": watchdog.watch},
            run.resources,
            tuning.workers_per_trial,
            gpu=sweep.gpus > 0,
            name=last,
            storage_path=storage,
            callbacks=[TuneReportCallback()],
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="min"
            ),
        )
        fit_or_raise(trainer, directory, watchdog)


def train_loop(given: dict[str, Any]) -> None:
    """What each worker of a trial executes."""
    enter(given["directory"], given["watch"], partial(worker_job, given))


def worker_job(given: dict[str, Any], heartbeat: Heartbeat) -> Job:
    """As a run's worker has it, on the sweep's data with the trial's run; it reports to the trial."""
    config = run_config(given["sweep"], where="the sweep's run.yaml")
    tuning = tune_config(config)
    run = trial_run(config, tuning, given["settings"])
    prepared = load_fitted(config.directory)
    return rank_job(
        run,
        prepared,
        heartbeat,
        gpu=given["cuda"],
        report=partial(report_to_train, tuning, heartbeat.at_sync_point(ray.train.report)),
        resume=loaded(ray.train.get_checkpoint()),
        provenance=loop.provenance(run) | prepared.provenance | {"trial": given["settings"]},
    )


def report_to_train(tuning: TuneConfig, meet: Callable[..., None], report: Report) -> None:
    """Every rank comes here, equally often; rank 0's report and checkpoint count."""
    if ray.train.get_context().get_world_rank() != 0:
        meet(outcome(tuning, report))
        return
    with tempfile.TemporaryDirectory() as temporary:
        save_bundle(temporary, report.bundle, report.training)
        meet(outcome(tuning, report), checkpoint=ray.train.Checkpoint.from_directory(temporary))


KEPT_BYTES = 128 * 2**20  # of encoded rows; less than a worker of a run keeps, for a machine runs several trials


def direct_batches(
    reader: RowReader, plan: Plan, start: int, stop: int, device: torch.device = CPU
) -> Iterator[SequenceBatch | None]:
    """`Batches` of the only worker, for steps start … stop − 1. DataError names file, row and column."""
    keep_freed_memory(OF_COMPUTING)
    reader = reader.over(plan)
    return prefetched(planned(plan, reader, 0, 1, start, stop, partial(map, reader.read), KEPT_BYTES), device)
