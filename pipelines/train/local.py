"""A training in this process, without Ray: the loop's only worker, on this machine's GPU or CPU.

The same job and loop as Ray Train's workers have, so the same bits. A process that dies is not started again: a
training that was killed goes on with `resume`, from the checkpoints in the same places. Knows no Ray.
"""

from __future__ import annotations

from functools import partial

import torch

from model.bundle.run_directory import RAY_TRAIN
from model.storage import join
from pipelines.cluster.machine import torch_threads
from pipelines.config import RunConfig
from pipelines.ingest.batches import batches
from pipelines.ingest.fitted_data import load_fitted
from pipelines.tracking.followers import Followed
from pipelines.train import loop, retention
from pipelines.train.checkpoints import keep_latest, take_over, write_checkpoint
from pipelines.train.job import Job, Report, job_on, reader_of
from pipelines.train.warm_start import in_columns_of, read_start


def train_here(config: RunConfig, told: Followed, *, gpu: bool) -> None:
    """Trains until the run's budget is used up or a rule ends it; raises what ends it otherwise."""
    with torch_threads(config.resources.cpus_per_worker):
        loop.run(local_job(config, told, gpu=gpu))


def local_job(config: RunConfig, told: Followed, *, gpu: bool) -> Job:
    """The job of the run's only worker, from its latest checkpoint on."""
    start = read_start(config)
    prepared = in_columns_of(load_fitted(config.directory), start)
    device = torch.device("cuda" if gpu else "cpu")
    reader = reader_of(config, prepared)
    directory = join(config.directory, RAY_TRAIN)
    job = job_on(
        config,
        prepared,
        batches=lambda plan, start, stop: batches(plan, reader, 0, 1, start, stop, device=device),
        report=partial(report, config, told),
        checkpoint=partial(checkpoint, directory),
        progress=told.on_progress,
        device=device,
        start=start,
    )
    return loop.of_run(job, prepared, 1, take_over(directory))


def report(config: RunConfig, told: Followed, report: Report) -> None:
    """A validation: bundle and metrics are kept, and a checkpoint is made."""
    retention.retain(config.directory, report, config.train)
    checkpoint(join(config.directory, RAY_TRAIN), report)
    told.on_report(report.metrics)


def checkpoint(directory: str, report: Report) -> None:
    """A checkpoint; those before the one before it go."""
    write_checkpoint(directory, report)
    keep_latest(directory)
