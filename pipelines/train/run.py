"""A training: its directory, its data, and the workers, which are Ray Train's or this process alone.

runs/<name>/run.yaml        the config, with the overrides in it
runs/<name>/data/           fitted columns and the rows' index
runs/<name>/bundles/…       the best and the latest bundle; `best` and `latest` are files that name them
runs/<name>/metrics.jsonl   one line a validation
runs/<name>/report.html     a page on all of it, and tensorboard/ its event files
runs/<name>/ended.json      why training ended; nan_batch.json: rows of a step whose loss was no number
runs/<name>/train/          checkpoints to resume from, by either way, and what Ray Train knows of them
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from model.bundle.bundle import load_bundle
from model.bundle.run_directory import BUNDLES, ENDED, ERROR, RAY_TRAIN, RUN_YAML, START, pointed, resolve_bundle
from model.errors import ConfigError, ResourceError, TrainingError
from model.settings import dump_yaml
from model.storage import exists, join, remove_file, remove_tree, write_bytes
from pipelines.cluster import malloc
from pipelines.cluster.capacity import available_gpus, node_memories, preflight_workers, ray_is_running
from pipelines.cluster.worker_count import settled
from pipelines.config import RunConfig
from pipelines.ingest.fit_cache import fitted_data
from pipelines.ingest.fitted_data import FittedData
from pipelines.ingest.scan import Progress as ScanProgress
from pipelines.tracking.follower import Progress
from pipelines.tracking.followers import Followed, followed
from pipelines.train import memory_estimate, retention
from pipelines.train.check import check_run
from pipelines.train.checkpoints import left_by_local
from pipelines.train.local import train_here
from pipelines.train.retention import read_metrics
from pipelines.train.warm_start import write_start

if TYPE_CHECKING:  # Ray's, which a training in this process does without
    from pipelines.supervision.driver_channel import DriverChannel, WorkerReports
    from pipelines.supervision.heartbeat import HeartbeatSpec
    from pipelines.supervision.ray_trainer import BoundedTorchTrainer


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
    """Trains a run on the Ray that is connected, or in this process, and returns its best bundle.

    In this process where no Ray is connected, or `resources.executor` is local. `say` gets lines for people. Raises
    ConfigError when the run's directory is taken (or, with `resume`, holds other settings), DataError for bad
    data, TrainingError for a loss that is not finite, ResourceError when the cluster is too small.
    """
    check_run(config, resume=resume)
    here = trains_here(config)
    resources = config.resources
    workers = (1, 1) if here else settled(resources.workers, resources.cpus_per_worker, resources.gpu)
    gpus = gpus_with_room(config, workers[0], here=here)
    open_run(config, resume=resume)
    with nullcontext() if here else started_channel() as channel:
        prepared, began = fitted_data(config, resume=resume, progress=on_scan, say=say), time.monotonic()
        if prepared.states is not None and prepared.states.spec is not None:
            say(str(prepared.states))
        write_start(config, prepared)
        needed = tell_memory(config, prepared, workers, say)
        with followed(config, void_from(config.directory), on_progress, on_report) as told:
            try:
                if channel is None:
                    train_here(config, told, gpu=gpus > 0)
                else:
                    run_workers(config, workers, gpus, channel, told)
            except TrainingError as error:
                tell_kept(config, prepared, str(error), time.monotonic() - began, needed, say)
                raise
            result = finished(config.directory)
            told.finish(result.bundle, result.fingerprint, result.ended or None)
    return reported(config, prepared, result, time.monotonic() - began, needed)


def trains_here(config: RunConfig) -> bool:
    """Whether this process trains by itself. ConfigError where the config wants otherwise."""
    executor, workers = config.resources.executor, config.resources.workers
    if executor == "local" and workers != 1:
        raise ConfigError(f"resources.executor local is one process, but resources.workers is {workers}: set it to 1")
    if executor == "local" or not ray_is_running():
        if executor == "ray" or workers != 1:
            raise ConfigError(
                f"resources.executor {executor} with resources.workers {workers} needs Ray, but this process is not "
                "connected: train within `with pipelines.cluster.ray_session(logical_cpus=…):`"
            )
        return True
    return False


def gpus_with_room(config: RunConfig, workers: int, *, here: bool) -> int:
    """GPUs that the workers take; ResourceError where there is no room for them."""
    gpus, resources = gpus_for(config, workers), config.resources
    if not here:
        each = (resources.cpus_per_worker, 1 if gpus else 0)
        preflight_workers(workers, *each, wait_seconds=resources.start_timeout_seconds)
    elif gpus > available_gpus():
        raise ResourceError("resources.gpu true needs a GPU, but torch finds none on this machine: set it to auto")
    return gpus


def started_channel() -> AbstractContextManager[DriverChannel]:
    """The channel of Ray Train's workers; its process starts while the data are scanned."""
    from pipelines.supervision.driver_channel import driver_channel

    return driver_channel()


def run_workers(config: RunConfig, workers: tuple[int, int], gpus: int, channel: DriverChannel, told: Followed) -> None:
    """Ray Train's workers until they have ended; raises what a worker has recorded, or what Ray Train has to say."""
    from pipelines.supervision.driver_channel import delivering
    from pipelines.supervision.failures import fit_or_raise, interruptible
    from pipelines.supervision.watchdog import watching

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
    import ray.train

    from pipelines.supervision.ray_trainer import trainer_of
    from pipelines.train.ray_worker import train_loop

    fewest, most = workers
    given = {"run": config.model_dump(mode="json"), "gpu": gpus > 0, "telemetry": telemetry, "watch": watch}
    return trainer_of(
        train_loop,
        given | {"left_by_local": left_by_local(join(config.directory, RAY_TRAIN))},
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


def open_run(config: RunConfig, *, resume: bool) -> None:
    """Writes the run's config; a fresh run first clears what a failed start of ours has left."""
    where = join(config.directory, RUN_YAML)
    if not resume and exists(where):  # else what lies there is not ours
        for part in (START, RAY_TRAIN, BUNDLES):
            remove_tree(join(config.directory, part))
        remove_file(join(config.directory, ENDED))
    remove_file(join(config.directory, ERROR))
    write_bytes(where, dump_yaml(config).encode())
