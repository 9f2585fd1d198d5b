"""What runs in a worker process of Ray Train: from the run's directory to the loop, and reports back to Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import ray.train.torch

from model.batches.plan import Plan
from model.bundle.run_directory import ERROR, RAY_TRAIN, RUN_YAML
from model.errors import DynamicRnnError, TrainingError
from model.storage import exists, join
from pipelines.config import RunConfig, run_config
from pipelines.ingest.batches import batches
from pipelines.ingest.fitted_data import FittedData, load_fitted
from pipelines.ingest.read_task import RowReader
from pipelines.supervision.driver_channel import WorkerReports
from pipelines.supervision.heartbeat import Heartbeat, HeartbeatSpec
from pipelines.train import loop, memory_estimate, retention
from pipelines.train.checkpoints import latest_checkpoint, remove_untold, report_to_ray, write_checkpoint
from pipelines.train.failures import record_error
from pipelines.train.job import Job, Report
from pipelines.train.nan_batch import told_where, write_nan_batch
from pipelines.train.steps import Step
from pipelines.train.warm_start import in_columns_of, read_start


def train_loop(settings: dict[str, Any]) -> None:
    """What each worker of a run executes."""
    config = run_config(settings["run"], where=RUN_YAML)
    job = partial(job_of, config, settings["telemetry"], gpu=settings["gpu"])
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
    reader = RowReader(prepared.columns, prepared.label, prepared.state_spec)
    job = loop.job_on(
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


def job_of(config: RunConfig, telemetry: WorkerReports, heartbeat: Heartbeat, *, gpu: bool) -> Job:
    """The job of a run's worker: checkpoints are written where they stay; rank 0 keeps bundles and tells progress."""
    start, rank = read_start(config), ray.train.get_context().get_world_rank()
    prepared = in_columns_of(load_fitted(config.directory), start)
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
    needed = memory_estimate.estimate_of(config, prepared, job.world)
    memory_estimate.require_here(needed, job.device, ray.train.get_context().get_local_world_size())
    if rank == 0:
        remove_untold(join(config.directory, RAY_TRAIN))
    return replace(
        job,
        explain=partial(explain, config, rank, job.device, job.reduce, job.train),
        resume=latest_checkpoint(join(config.directory, RAY_TRAIN)),
        provenance=provenance(config, job.world) | prepared.provenance | ({} if start is None else start.provenance),
    )


def rank_batches(
    reader: RowReader, rank: int, world: int, plugins: tuple[str, ...], device: Any, plan: Any, start: int, stop: int
) -> Iterator[Any]:
    """`Batches` over Ray Data."""
    return batches(plan, reader, rank, world, start, stop, plugins, device)


def sum_over_workers(buffer: Any) -> None:
    """Adds a buffer up over all workers, in place: one collective a step."""
    import torch.distributed

    torch.distributed.all_reduce(buffer)
    if buffer.is_cuda:  # NCCL only begins here; the caller needs the sum at once, and the watchdog sees who waits
        torch.cuda.synchronize(buffer.device)


def provenance(config: RunConfig, workers: int | None = None) -> dict[str, Any]:
    """What is known of how a bundle came to be, by so many workers (those of the config where they are a number)."""
    import torch

    return {
        "run": config.name,
        "seed": config.train.seed,
        "train": config.train.model_dump(mode="json"),
        "workers": config.resources.workers if workers is None else workers,
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def report(config: RunConfig, rank: int, telemetry: WorkerReports, heartbeat: Heartbeat, report: Report) -> None:
    """A validation: every rank comes here; rank 0 keeps bundle and metrics, and makes a checkpoint."""
    if rank == 0:
        retention.retain(config.directory, report, config.train)
    checkpoint(config, rank, heartbeat, report)
    if rank == 0:
        telemetry.report(report.metrics)


def checkpoint(config: RunConfig, rank: int, heartbeat: Heartbeat, report: Report) -> None:
    """A checkpoint with Ray Train: a barrier, every rank comes here; rank 0 writes."""
    made = write_checkpoint(join(config.directory, RAY_TRAIN), report) if rank == 0 else None
    report_to_ray(heartbeat.at_sync_point(ray.train.report), report.metrics, made)


def explain(
    config: RunConfig, rank: int, device: Any, reduce: Any, plan: Plan, error: TrainingError, step: Step
) -> TrainingError:
    """Lists the rows of a step that has failed, which it has on every rank; none ends before the list is written."""
    import torch

    if rank == 0:
        write_nan_batch(config.directory, plan, step, config.data.key, error)
    if reduce is not None:
        reduce(torch.zeros(1, device=device))
    return told_where(config.directory, error)
