"""A sweep: the data scanned once, a trial for each point on Ray Tune, the best trial's bundle kept.

    runs/<name>/run.yaml        the config, with the overrides in it
    runs/<name>/data/           fitted columns and the rows' index, read by every trial
    runs/<name>/trials.jsonl    one line a trial; metrics.jsonl: one line a validation
    runs/<name>/bundles/…       the best trial's bundle at its best report, which `best` names
    runs/<name>/best.yaml       the run with the best settings and its own budget, to train next
    runs/<name>/tune/           Ray Tune's own (train/: Ray Train's, for trials of several workers)

Trials are reproducible: each trains with the run's seed on the same rows in the same order, so what differs between
two of them is their settings. What ASHA stops depends on which trial is how far, and so on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ray.exceptions

from model.bundle.bundle import load_bundle, save_bundle
from model.bundle.run_directory import BEST_YAML, RAY_TRAIN, RAY_TUNE, RUN_YAML, TRIALS, bundle_name, point_to, pointed
from model.errors import ResourceError, TrainingError
from model.settings import dump_yaml
from model.storage import exists, join, make_directory, remove_tree, write_bytes
from pipelines.cluster.capacity import preflight, preflight_workers
from pipelines.config import RunConfig
from pipelines.ingest.fit_cache import fitted_data
from pipelines.ingest.fitted_data import FittedData
from pipelines.ingest.scan import Progress as ScanProgress
from pipelines.supervision.driver_channel import WorkerReports, delivering, driver_channel
from pipelines.supervision.failures import interruptible
from pipelines.tracking.run_status import status_kept
from tune.check import check_sweep, shape_varies, states_of_one_shape
from tune.config import TuneConfig
from tune.points import best_run
from tune.reporter import following
from tune.results import collected
from tune.trial import SAID
from tune.trials import Trial, best_of, own_error
from tune.tuner import gpus_per_trial, settled, tuner


@dataclass(frozen=True)
class SweepResult:
    """Where the sweep lies, its best trial and that one's bundle, and what became of every trial."""

    directory: str
    bundle: str
    fingerprint: str
    metrics: dict[str, float]
    metric: str
    best: Trial
    trials: tuple[Trial, ...]


def sweep(
    config: RunConfig,
    *,
    resume: bool = False,
    on_report: Callable[[str], None] | None = None,
    on_scan: ScanProgress | None = None,
    quiet: bool = True,
) -> SweepResult:
    """Runs (or with `resume` goes on with) a sweep on the Ray that is connected. `on_report` gets lines for people.

    Raises ConfigError for settings that cannot work, for a directory that is taken and for a sweep that another version
    began, DataError for bad data, ResourceError when the cluster is too small; when all trials fail, the first one's
    error. Ctrl-C ends the trials, keeps what is done, tells `on_report` what that is, and is raised again.
    """
    say = on_report or (lambda _: None)
    tuning = check_sweep(config, resume=resume)
    gpus = gpus_per_trial(config, tuning)
    check_room(config, tuning, gpus)
    prepared = prepare(config, resume=resume, on_scan=on_scan, say=say)
    if prepared.state_spec is not None and shape_varies(config, tuning):
        raise states_of_one_shape(tuning, config.data.train)
    with settled(quiet=quiet), driver_channel() as channel:
        # Before the status says that the sweep runs: one that cannot go on stays as it is.
        reports = WorkerReports(channel)
        made = tuner(config, tuning, index=prepared.train, gpus=gpus, telemetry=reports, resume=resume)
        with status_kept(config.directory, tuning.metric) as heard:
            with (
                delivering(channel, None, lambda told: say(told[SAID])),
                interruptible(),
                following(config.directory, tuning, say, heard) as followed,
            ):
                results = made.fit()
            trials = collected(config, tuning, results, followed.ray_trials)
            kept = keep(config, tuning, trials)
            if any(trial.status in ("unfinished", "not started") for trial in trials):
                say(what_is_kept(config, trials, kept))
                raise KeyboardInterrupt
            if kept is None:
                raise first_error(trials)
    return kept


def check_room(config: RunConfig, tuning: TuneConfig, gpus: float) -> None:
    """ResourceError where no trial would ever start. Workers of Ray Train's need room on nodes, and Ray Data a CPU."""
    workers, resources = tuning.workers_per_trial, config.resources
    cpus, seconds = resources.cpus_per_worker, resources.start_timeout_seconds
    if workers == 1:
        preflight(cpus, gpus, seconds)
    else:
        preflight_workers(workers, cpus, gpus / workers, wait_seconds=seconds)


def prepare(
    config: RunConfig, *, resume: bool, on_scan: ScanProgress | None, say: Callable[[str], None] | None = None
) -> FittedData:
    """The data, scanned once for all trials (or before, by `fit-columns`); clears what a failed start has left."""
    prepared = fitted_data(config, resume=resume, progress=on_scan, say=say)
    if resume:
        return prepared
    if exists(join(config.directory, RUN_YAML)):  # else what lies there is not ours
        for part in (RAY_TUNE, RAY_TRAIN):
            remove_tree(join(config.directory, part))
    make_directory(join(config.directory, RAY_TUNE))
    write_bytes(join(config.directory, RUN_YAML), dump_yaml(config).encode())
    return prepared


def keep(config: RunConfig, tuning: TuneConfig, trials: tuple[Trial, ...]) -> SweepResult | None:
    """Writes the trials and the best one's bundle and settings; None where no trial has a usable report."""
    write_bytes(join(config.directory, TRIALS), "".join(f"{trial.line}\n" for trial in trials).encode())
    best = best_of(trials)
    if best is None:
        return None
    assert best.step is not None, "the best trial has a report"
    with best.checkpoint.as_directory() as directory:
        bundle = load_bundle(directory)
    name, before = bundle_name(best.step, best.name), pointed(config.directory, "best")
    fingerprint = save_bundle(join(config.directory, name), bundle)
    point_to(config.directory, "best", name)
    if before is not None and before != name:
        remove_tree(join(config.directory, before))
    write_bytes(join(config.directory, BEST_YAML), dump_yaml(best_run(config, best.settings)).encode())
    path = join(config.directory, name)
    return SweepResult(config.directory, path, fingerprint, bundle.metrics, tuning.metric, best, trials)


def what_is_kept(config: RunConfig, trials: tuple[Trial, ...], kept: SweepResult | None) -> str:
    """What a stopped sweep has left, and how to go on."""
    done = sum(trial.status not in ("unfinished", "not started") for trial in trials)
    bundle = "no bundle yet" if kept is None else f"the best bundle so far is {kept.bundle}"
    return (
        f"stopped: {done} of {len(trials)} trials are done, {bundle}; go on with the others from their latest "
        f"reports with --resume ({config.directory})"
    )


def first_error(trials: tuple[Trial, ...]) -> BaseException:
    """Why a sweep has no best trial: a mistake of the user's as itself, a bug with its traceback."""
    for trial in trials:
        if isinstance(trial.error, ray.exceptions.RayActorError):
            return ResourceError(
                f"trials must have room to train, but trial {trial.name} failed: {trial.reason}; lower "
                f"tune.max_concurrent_trials or train.batch_sequences, or use a larger machine"
            )
        if trial.error is not None:
            return own_error(trial.error) or trial.error
    return TrainingError(
        f"none of the {len(trials)} trials has reported a metric that is a finite number; lower train.learning_rate, "
        f"or look for validation rows without weight"
    )
