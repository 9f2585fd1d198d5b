"""What runs in a worker process of Ray Train: from the run's directory to the loop, and reports back to Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import ray.train.torch

from model.bundle.run_directory import ERROR, MANIFEST, RAY_TRAIN, RUN_YAML, checkpoint_names
from model.errors import DynamicRnnError
from model.storage import exists, join, remove_tree
from pipelines.config import RunConfig, run_config
from pipelines.ingest.batches import batches
from pipelines.ingest.fitted_data import FittedData, load_fitted
from pipelines.ingest.read_task import RowReader
from pipelines.supervision.driver_channel import WorkerReports
from pipelines.supervision.failures import record_error
from pipelines.supervision.heartbeat import Heartbeat, HeartbeatSpec
from pipelines.train import loop, retention
from pipelines.train.checkpoints import newest_whole, step_of, write_checkpoint
from pipelines.train.job import Job, Report, job_on, reader_of
from pipelines.train.warm_start import in_columns_of, read_start


def train_loop(settings: dict[str, Any]) -> None:
    """What each worker of a run executes."""
    config = run_config(settings["run"], where=RUN_YAML)
    job = partial(job_of, config, settings["telemetry"], settings["left_by_local"], gpu=settings["gpu"])
    enter(config.directory, settings["watch"], job)


def enter(directory: str, watch: HeartbeatSpec, job_with: Callable[[Heartbeat], Job]) -> None:
    """The entry of every worker of Ray Train, of a run or of a trial: the loop on its job.

    A mistake of the user's is recorded in `directory`; Ray Train's new try then ends at once.
    """
    if exists(join(directory, ERROR)):
        return
    try:
        with watch.heartbeat() as heartbeat:
            loop.run(job_with(heartbeat))
    except DynamicRnnError as error:
        record_error(directory, error)
        raise


def rank_job(config: RunConfig, prepared: FittedData, heartbeat: Heartbeat, *, gpu: bool, **by_caller: Any) -> Job:
    """This worker's job: its rank of the plan, and Ray Data's batches. How it reports is the caller's to say."""
    import torch

    torch.set_num_threads(config.resources.cpus_per_worker)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if gpu else torch.device("cpu")
    reader = reader_of(config, prepared)
    job = job_on(
        config,
        prepared,
        batches=partial(rank_batches, reader, rank, world, config.plugins, device),
        reduce=heartbeat.at_sync_point(sum_over_workers) if world > 1 else None,
        rank=rank,
        world=world,
        device=device,
        **by_caller,
    )
    return replace(job, batches=heartbeat.over(job.batches, job.train))


def job_of(config: RunConfig, telemetry: WorkerReports, left: str, heartbeat: Heartbeat, *, gpu: bool) -> Job:
    """The job of a run's worker: checkpoints are written where they stay; rank 0 keeps bundles and tells progress."""
    start, rank = read_start(config), ray.train.get_context().get_world_rank()
    prepared = in_columns_of(load_fitted(config.directory), start)
    directory = join(config.directory, RAY_TRAIN)
    job = rank_job(
        config,
        prepared,
        heartbeat,
        gpu=gpu,
        report=partial(report, config, rank, telemetry, heartbeat),
        checkpoint=partial(checkpoint, config, rank, heartbeat),
        progress=lambda progress: telemetry.progress(asdict(progress)),  # plain: the channel need not import torch
        start=start,
    )
    if rank == 0:
        remove_untold(directory, left)
    known = known_name() or left
    resume = newest_whole(directory, known) if known else None
    return loop.of_run(job, prepared, ray.train.get_context().get_local_world_size(), resume)


def rank_batches(
    reader: RowReader, rank: int, world: int, plugins: tuple[str, ...], device: Any, plan: Any, start: int, stop: int
) -> Iterator[Any]:
    """`Batches` over Ray Data."""
    return batches(plan, reader.over(plan), rank, world, start, stop, plugins, device)


def sum_over_workers(buffer: Any) -> None:
    """Adds a buffer up over all workers, in place: one collective a step."""
    import torch.distributed

    torch.distributed.all_reduce(buffer)
    if buffer.is_cuda:  # NCCL only begins here; the caller needs the sum at once, and the watchdog sees who waits
        torch.cuda.synchronize(buffer.device)


def report(config: RunConfig, rank: int, telemetry: WorkerReports, heartbeat: Heartbeat, report: Report) -> None:
    """A validation: every rank comes here; rank 0 keeps bundle and metrics, and makes a checkpoint."""
    if rank == 0:
        retention.retain(config.directory, report, config.train)
    checkpoint(config, rank, heartbeat, report)
    if rank == 0:
        telemetry.report(report.metrics)


def checkpoint(config: RunConfig, rank: int, heartbeat: Heartbeat, report: Report) -> None:
    """A checkpoint with Ray Train: a barrier, every rank comes here; rank 0 writes. Nothing is copied."""
    path = write_checkpoint(join(config.directory, RAY_TRAIN), report) if rank == 0 else None
    heartbeat.at_sync_point(ray.train.report)(
        report.metrics,
        checkpoint=None if path is None else ray.train.Checkpoint(path),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def remove_untold(directory: str, left: str) -> None:
    """Removes what a kill has left of a write, and whole checkpoints of which Ray Train was never told.

    Their steps are computed again; those that a training in one process has left, up to `left`, are gone on from. For
    a worker's start: later, Ray Train deletes old checkpoints at the same time.
    """
    known = known_name() or left
    for name in checkpoint_names(directory):
        untold = name != known and step_of(name) >= step_of(known)
        if untold or not exists(join(directory, name, MANIFEST)):
            remove_tree(join(directory, name))


def known_name() -> str:
    """The latest checkpoint that Ray Train was told of; "" at the start of a run."""
    known = ray.train.get_checkpoint()
    return "" if known is None else str(known.path).rstrip("/").rpartition("/")[2]
