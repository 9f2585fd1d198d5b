"""Training on Ray Train: starts the workers, gives each its `Job`, keeps checkpoints and the best bundle.

runs/<name>/run.yaml        the config, with the overrides in it
runs/<name>/data/           fitted columns and the rows' index
runs/<name>/bundles/…       the best and the latest bundle; `best` and `latest` are files that name them
runs/<name>/metrics.jsonl   one line a validation
runs/<name>/report.html     a page on all of it, and tensorboard/ its event files
runs/<name>/ended.json      why training ended; nan_batch.json: rows of a step whose loss was no number
runs/<name>/train/          Ray Train's own: checkpoints to resume from
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch

from model.batches.plan import Plan
from model.bundle.bundle import load_bundle
from model.bundle.run_directory import BUNDLES, METRICS, RUN_YAML, SWEEP, checkpoint_names, resolve_bundle
from model.bundle.run_directory import CHECKPOINTS as RAY_RUN
from model.errors import ConfigError, DynamicRnnError, TrainingError, from_plain, to_plain
from model.settings import dump_yaml
from model.storage import exists, join, read_bytes, remove_file, remove_tree, write_bytes
from pipelines.cluster import malloc as allocation
from pipelines.cluster.capacity import available_gpus, node_memories, preflight_workers
from pipelines.cluster.worker_count import settled
from pipelines.config import RunConfig, run_config
from pipelines.ingest import batches as batching
from pipelines.ingest import scan as ingest
from pipelines.ingest.fit_cache import fitted_data
from pipelines.ingest.read_task import RowReader
from pipelines.supervision.driver_channel import Mailbox, mailbox
from pipelines.supervision.heartbeat import Pulse, Watch
from pipelines.supervision.ray_trainer import Trainer
from pipelines.supervision.telemetry import Telemetry, listening
from pipelines.supervision.watchdog import watching
from pipelines.tracking.followers import Followed, followed
from pipelines.train import loop as worker
from pipelines.train import memory_estimate as memory
from pipelines.train import retention as keeping
from pipelines.train.checkpoints import latest_checkpoint, remove_untold, tell, write_checkpoint
from pipelines.train.nan_batch import told_where, write_nan_batch
from pipelines.train.resume import check_resumable
from pipelines.train.retention import ENDED, read_metrics
from pipelines.train.steps import Step
from pipelines.train.warm_start import START, in_columns_of, read_start, write_start

ERROR = "error.json"


@dataclass(frozen=True)
class TrainResult:
    """Where the run lies, its best bundle and the metrics of that bundle, why training ended, and its page."""

    directory: str
    bundle: str
    fingerprint: str
    metrics: dict[str, float]
    ended: str = ""
    report: str | None = None


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    on_progress: Callable[[worker.Progress], None] | None = None,
    on_scan: ingest.Progress | None = None,
    on_report: Callable[[dict[str, float]], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Trains a run on the Ray that is connected, and returns its best bundle. `say` gets lines for people.

    Raises ConfigError when the run's directory is taken (or, with `resume`, holds other settings), DataError for bad
    data, TrainingError for a loss that is not finite, ResourceError when the cluster is too small.
    """
    check_run(config, resume=resume)
    resources = config.resources
    workers = settled(resources.workers, resources.cpus_per_worker, resources.gpu)
    gpus = gpus_for(config, workers[0])
    per_worker = (resources.cpus_per_worker, 1 if gpus else 0)
    preflight_workers(workers[0], *per_worker, wait_seconds=resources.start_timeout_seconds)
    open_run(config, resume=resume)
    with mailbox() as box:
        prepared, began = fitted_data(config, resume=resume, progress=on_scan, say=say), time.monotonic()
        write_start(config, prepared)
        tell_memory(config, prepared, workers, say)
        with followed(config, void_from(config.directory), on_progress, on_report) as told:
            run_workers(config, workers, gpus, box, told)
            result = finished(config.directory)
            told.finish(result.bundle, result.fingerprint)
    return reported(config, prepared, result, time.monotonic() - began)


def run_workers(config: RunConfig, workers: tuple[int, int], gpus: int, box: Mailbox, told: Followed) -> None:
    """Ray Train's workers until they have ended; raises what a worker has recorded, or what Ray Train has to say."""
    with (
        listening(box, lambda plain: told.on_progress(worker.Progress(**plain)), told.on_report) as telemetry,
        watching(box, config.resources, workers) as watchdog,
        interruptible(),
    ):
        try:
            ray_trainer(config, workers, gpus, telemetry, watchdog.watch).fit()
        except ray.train.TrainingFailedError as error:
            raise_recorded(config.directory)
            watchdog.explain(error)
            raise
    raise_recorded(config.directory)


def tell_memory(
    config: RunConfig, prepared: ingest.Prepared, workers: tuple[int, int], say: Callable[[str], None]
) -> None:
    """Says what a worker needs, and whether the nodes have so much; each worker then asks its own."""
    fewest, most = workers
    needed = memory.estimate_of(config, prepared, fewest)
    say(f"memory of a worker: {needed}")
    nodes = node_memories()
    warning = memory.warning(needed, min(nodes), -(-most // len(nodes)), "a node")
    if warning is not None:
        say(warning)


def reported(config: RunConfig, prepared: ingest.Prepared, result: TrainResult, seconds: float) -> TrainResult:
    """The result with its page, unless none is wanted."""
    if not config.tracking.report:
        return result
    from pipelines.report.training import write_report

    return replace(
        result, report=write_report(config, prepared, result.bundle, read_metrics(config.directory), seconds)
    )


def void_from(directory: str) -> int:
    """The first step of which an earlier start may have told what will now be told again; 0 for a fresh run."""
    steps = [round(line["step"]) for line in read_metrics(directory)]
    return steps[-1] + 1 if steps else 0


def ray_trainer(config: RunConfig, workers: tuple[int, int], gpus: int, telemetry: Telemetry, watch: Watch) -> Trainer:
    """Ray Train's part: where workers run, how often they are started again, and which checkpoints stay."""
    fewest, most = workers
    told = {"gpu": gpus > 0, "telemetry": telemetry, "watch": watch}
    return Trainer(
        train_loop,
        start_seconds=config.resources.start_timeout_seconds,
        train_loop_config={"run": config.model_dump(mode="json"), **told},
        torch_config=ray.train.torch.TorchConfig(timeout_s=watch.collective_seconds),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if fewest == most else workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": config.resources.cpus_per_worker, "GPU": 1 if gpus else 0},
        ),
        run_config=ray.train.RunConfig(
            name=RAY_RUN,
            worker_runtime_env={"env_vars": allocation.environment()},
            storage_path=config.directory,
            failure_config=ray.train.FailureConfig(max_failures=config.resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )


def finished(directory: str) -> TrainResult:
    """The result of a run that has come to its end."""
    path = resolve_bundle(directory)
    bundle = load_bundle(path)
    return TrainResult(directory, path, bundle.fingerprint, bundle.metrics, keeping.why_ended(directory))


def gpus_for(config: RunConfig, workers: int | None = None) -> int:
    """GPUs that so many workers (those of the config where they are a number) take: one each, or none."""
    wanted = config.resources.gpu
    if workers is None:
        assert isinstance(config.resources.workers, int), "auto and ranges are settled before"
        workers = config.resources.workers
    if wanted == "auto":
        return workers if available_gpus() >= workers else 0
    return workers if wanted else 0


def check_run(config: RunConfig, *, resume: bool) -> None:
    """ConfigError when the run's directory is taken or, with `resume`, holds no run that can go on so. Changes nothing.

    A run that failed before its first validation holds nothing to lose; its directory is free.
    """
    where = join(config.directory, RUN_YAML)
    if exists(join(config.directory, SWEEP)):
        raise ConfigError(f"{config.directory} holds a sweep, not a run; choose another name=…")
    if resume:
        if not exists(where):
            raise ConfigError(f"{config.directory}: there is no run to resume; start it without --resume")
        check_resumable(read_bytes(where).decode(), config, where=where)
    elif exists(join(config.directory, METRICS)):
        raise ConfigError(
            f"{config.directory} holds a run already; go on with it by --resume, or choose another name=…"
        )


def has_begun(config: RunConfig) -> bool:
    """Whether there is something to resume: what failed before its first checkpoint starts anew."""
    return exists(join(config.directory, METRICS)) or bool(checkpoint_names(join(config.directory, RAY_RUN)))


def open_run(config: RunConfig, *, resume: bool) -> None:
    """Writes the run's config; a fresh run first clears what a failed start of ours has left."""
    where = join(config.directory, RUN_YAML)
    if not resume and exists(where):  # else what lies there is not ours
        for part in (START, RAY_RUN, BUNDLES):
            remove_tree(join(config.directory, part))
        remove_file(join(config.directory, ENDED))
    remove_file(join(config.directory, ERROR))
    write_bytes(where, dump_yaml(config).encode())


# Errors of the user's ---------------------------------------------------------------------------------------------


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C a KeyboardInterrupt again: Ray Train's own handler stops the workers, then ends with SystemExit(0).

    Puts our handler back, too: Ray Train and Ray Tune leave theirs installed, and a later Ctrl-C would do nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def record_error(directory: str, error: DynamicRnnError) -> None:
    """Keeps a mistake of the user's where the driver finds it."""
    write_bytes(join(directory, ERROR), json.dumps(to_plain(error)).encode())


def raise_recorded(directory: str) -> None:
    """Raises the recorded mistake, if there is one."""
    if exists(join(directory, ERROR)):
        raise from_plain(json.loads(read_bytes(join(directory, ERROR))))


# In the workers ---------------------------------------------------------------------------------------------------


def train_loop(settings: dict[str, Any]) -> None:
    """What each worker of Ray Train runs. After a mistake of the user's, Ray Train's new try ends at once."""
    config = run_config(settings["run"], where=RUN_YAML)
    if exists(join(config.directory, ERROR)):
        return
    try:
        with settings["watch"].pulse() as pulse:
            worker.run(job_of(config, settings["telemetry"], pulse, gpu=settings["gpu"]))
    except DynamicRnnError as error:
        record_error(config.directory, error)
        raise


def job_of(config: RunConfig, telemetry: Telemetry, pulse: Pulse, *, gpu: bool) -> worker.Job:
    """This worker's job: its rank of the plan, Ray Data's batches, and reports to Ray Train."""
    import torch

    torch.set_num_threads(config.resources.cpus_per_worker)
    context = ray.train.get_context()
    start = read_start(config)
    prepared = in_columns_of(ingest.load_prepared(config.directory), start)
    train_plan, validation_plan = worker.plans(config, prepared.train, prepared.validation)
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if gpu else torch.device("cpu")
    reduce = pulse.meet(sum_over_workers) if world > 1 else None
    needed = memory.estimate_of(config, prepared, world)
    memory.require_here(needed, device, context.get_local_world_size())
    if rank == 0:
        remove_untold(join(config.directory, RAY_RUN))
    return worker.Job(
        config=config,
        columns=prepared.columns,
        label=prepared.label,
        train=train_plan,
        validation=validation_plan,
        batches=pulse.over(
            partial(rank_batches, RowReader(prepared.columns, prepared.label), rank, world, config.plugins, device),
            train_plan,
        ),
        report=partial(report, config, rank, telemetry, pulse),
        checkpoint=partial(checkpoint, config, rank, pulse),
        progress=lambda progress: telemetry.progress(asdict(progress)),  # plain: the mailbox need not import torch
        explain=partial(explain, config, rank, device, reduce, train_plan),
        reduce=reduce,
        rank=rank,
        world=world,
        device=device,
        start=start,
        resume=latest_checkpoint(join(config.directory, RAY_RUN)),
        provenance=provenance(config, world) | ({} if start is None else start.provenance),
    )


def rank_batches(
    reader: RowReader, rank: int, world: int, plugins: tuple[str, ...], device: Any, plan: Any, start: int, stop: int
) -> Iterator[Any]:
    """`worker.Batches` over Ray Data."""
    return batching.batches(plan, reader, rank, world, start, stop, plugins, device)


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


def report(config: RunConfig, rank: int, telemetry: Telemetry, pulse: Pulse, report: worker.Report) -> None:
    """A validation: every rank comes here; rank 0 keeps bundle and metrics, and makes a checkpoint."""
    if rank == 0:
        keeping.keep(config.directory, report, config.train)
    checkpoint(config, rank, pulse, report)
    if rank == 0:
        telemetry.report(report.metrics)


def checkpoint(config: RunConfig, rank: int, pulse: Pulse, report: worker.Report) -> None:
    """A checkpoint with Ray Train: a barrier, every rank comes here; rank 0 writes."""
    made = write_checkpoint(join(config.directory, RAY_RUN), report) if rank == 0 else None
    tell(pulse.meet(ray.train.report), report.metrics, made)


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
