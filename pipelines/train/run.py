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

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import ray
import ray.train
import ray.train.torch

from model.bundle.bundle import load_bundle
from model.bundle.run_directory import (
    BUNDLES,
    ENDED,
    ERROR,
    METRICS,
    RAY_TRAIN,
    RAY_TUNE,
    RUN_YAML,
    START,
    pointed,
    resolve_bundle,
)
from model.errors import ConfigError, TrainingError
from model.settings import dump_yaml
from model.storage import exists, join, read_bytes, remove_file, remove_tree, write_bytes
from pipelines.cluster import malloc
from pipelines.cluster.capacity import available_gpus, node_memories, preflight_workers
from pipelines.cluster.worker_count import settled
from pipelines.config import RunConfig
from pipelines.ingest.fit_cache import fitted_data
from pipelines.ingest.fitted_data import FittedData
from pipelines.ingest.scan import Progress as ScanProgress
from pipelines.supervision.driver_channel import DriverChannel, WorkerReports, delivering, driver_channel
from pipelines.supervision.heartbeat import HeartbeatSpec
from pipelines.supervision.ray_trainer import BoundedTorchTrainer, trainer_of
from pipelines.supervision.watchdog import watching
from pipelines.tracking.follower import Progress
from pipelines.tracking.followers import Followed, followed
from pipelines.train import memory_estimate, retention
from pipelines.train.failures import fit_or_raise, interruptible
from pipelines.train.ray_worker import train_loop
from pipelines.train.resume import check_resumable
from pipelines.train.retention import read_metrics
from pipelines.train.warm_start import write_start


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
    on_progress: Callable[[Progress], None] | None = None,
    on_scan: ScanProgress | None = None,
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
    with driver_channel() as channel:
        prepared, began = fitted_data(config, resume=resume, progress=on_scan, say=say), time.monotonic()
        write_start(config, prepared)
        needed = tell_memory(config, prepared, workers, say)
        with followed(config, void_from(config.directory), on_progress, on_report) as told:
            try:
                run_workers(config, workers, gpus, channel, told)
            except TrainingError as error:
                tell_kept(config, prepared, str(error), time.monotonic() - began, needed, say)
                raise
            result = finished(config.directory)
            told.finish(result.bundle, result.fingerprint, result.ended or None)
    return reported(config, prepared, result, time.monotonic() - began, needed)


def run_workers(config: RunConfig, workers: tuple[int, int], gpus: int, channel: DriverChannel, told: Followed) -> None:
    """Ray Train's workers until they have ended; raises what a worker has recorded, or what Ray Train has to say."""
    with (
        delivering(channel, lambda plain: told.on_progress(Progress(**plain)), told.on_report) as telemetry,
        watching(channel, config.resources, workers) as watchdog,
        interruptible(),
    ):
        fit_or_raise(ray_trainer(config, workers, gpus, telemetry, watchdog.watch), config.directory, watchdog)


def tell_memory(config: RunConfig, prepared: FittedData, workers: tuple[int, int], say: Callable[[str], None]) -> str:
    """Says what a worker needs (returned, too), and whether the nodes have so much; each worker then asks its own."""
    fewest, most = workers
    needed = memory_estimate.estimate_of(config, prepared, fewest)
    say(f"memory of a worker: {needed}")
    nodes = node_memories()
    warning = memory_estimate.warning(needed, min(nodes), -(-most // len(nodes)), "a node")
    if warning is not None:
        say(warning)
    return str(needed)


def tell_kept(
    config: RunConfig, prepared: FittedData, why: str, seconds: float, needed: str, say: Callable[[str], None]
) -> None:
    """What a training that has failed leaves: its best bundle and a page, unless no bundle was any good."""
    if pointed(config.directory, "best") is None:
        return
    kept = replace(finished(config.directory), ended=why)
    if all(map(math.isfinite, kept.metrics.values())):  # else its page would fail, and hide why training did
        page = reported(config, prepared, kept, seconds, needed).report
        say(f"the best bundle so far: {kept.bundle}" + ("" if page is None else f"; report: {page}"))


def reported(config: RunConfig, prepared: FittedData, result: TrainResult, seconds: float, needed: str) -> TrainResult:
    """The result with its page, unless none is wanted."""
    if not config.tracking.report:
        return result
    from pipelines.report.training import write_report

    metrics = read_metrics(config.directory)
    page = write_report(config, prepared, result.bundle, metrics, seconds, needed, result.ended)
    return replace(result, report=page)


def void_from(directory: str) -> int:
    """The first step of which an earlier start may have told what will now be told again; 0 for a fresh run."""
    steps = [round(line["step"]) for line in read_metrics(directory)]
    return steps[-1] + 1 if steps else 0


def ray_trainer(
    config: RunConfig, workers: tuple[int, int], gpus: int, telemetry: WorkerReports, watch: HeartbeatSpec
) -> BoundedTorchTrainer:
    """Ray Train's part: where workers run, how often they are started again, and which checkpoints stay."""
    fewest, most = workers
    return trainer_of(
        train_loop,
        {"run": config.model_dump(mode="json"), "gpu": gpus > 0, "telemetry": telemetry, "watch": watch},
        config.resources,
        most if fewest == most else workers,
        gpu=gpus > 0,
        name=RAY_TRAIN,
        worker_runtime_env={"env_vars": malloc.environment()},
        storage_path=config.directory,
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
    )


def finished(directory: str) -> TrainResult:
    """The result of a run that has come to its end."""
    path = resolve_bundle(directory)
    bundle = load_bundle(path)
    return TrainResult(directory, path, bundle.fingerprint, bundle.metrics, retention.why_ended(directory))


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
    if exists(join(config.directory, RAY_TUNE)):
        raise ConfigError(f"{config.directory} holds a sweep, not a run; choose another name=…")
    if resume:
        if not exists(where):
            raise ConfigError(f"{config.directory}: there is no run to resume; start it without --resume")
        check_resumable(read_bytes(where).decode(), config, where=where)
    elif exists(join(config.directory, METRICS)):
        raise ConfigError(
            f"{config.directory} holds a run already; go on with it by --resume, or choose another name=…"
        )


def open_run(config: RunConfig, *, resume: bool) -> None:
    """Writes the run's config; a fresh run first clears what a failed start of ours has left."""
    where = join(config.directory, RUN_YAML)
    if not resume and exists(where):  # else what lies there is not ours
        for part in (START, RAY_TRAIN, BUNDLES):
            remove_tree(join(config.directory, part))
        remove_file(join(config.directory, ENDED))
    remove_file(join(config.directory, ERROR))
    write_bytes(where, dump_yaml(config).encode())
