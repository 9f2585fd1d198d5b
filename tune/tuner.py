"""The sweep as Ray Tune knows it: trainable, space, scheduler, how many trials at a time. Knows no bundles."""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.tune

from model.batches.plan import DataIndex
from model.bundle.run_directory import RAY_TUNE
from model.errors import ConfigError
from model.storage import join, list_names
from model.training.truncation import segment_count
from pipelines.cluster.capacity import SPARE_CPUS, available_gpus
from pipelines.cluster.machine import cpu_count
from pipelines.config import RunConfig
from pipelines.supervision.driver_channel import WorkerReports
from pipelines.train.job import plans
from pipelines.train.run import gpus_for
from pipelines.train.steps import epoch_steps
from tune.config import DEFAULT_TRIALS, TuneConfig
from tune.points import points, trial_run
from tune.reporter import RemindedAsha, Reporter, directory_of
from tune.trial import SCORE, Sweep, run_trial

_NESTED_CPUS = 0.01  # of a trial that only waits for its workers: a whole CPU each could leave none for them

_CUTS = {
    f"train.{name}"
    for name in ("batch_sequences", "batch_padded_steps", "window_batches", "accumulate_batches", "unroll_steps")
}  # what decides how many steps an epoch takes

# How unpickling says that a module of ours is not there, or no longer holds a name.
_GONE = re.compile(r"(No module named|Can't get attribute .* on <module) '(model|pipelines|tune)\b")

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box even when it is told to be silent
}


def tuner(
    config: RunConfig, tuning: TuneConfig, *, index: DataIndex, gpus: float, telemetry: WorkerReports, resume: bool
) -> Any:
    """The Tuner of a new sweep, or of one that goes on: ConfigError where another version began that."""
    directory = join(config.directory, RAY_TUNE)
    # A sweep may have been stopped before any trial was known to Ray Tune; there is nothing to restore then.
    if resume and any(name.startswith("experiment_state") for name in list_names(directory)):
        return restored(config.directory, directory, trainable(config, tuning, gpus, telemetry))
    searcher, space, count = search_of(config, tuning)
    return ray.tune.Tuner(
        trainable(config, tuning, gpus, telemetry),
        param_space={"point": space},
        tune_config=ray.tune.TuneConfig(
            metric=SCORE,
            mode="min",
            search_alg=searcher,
            scheduler=asha(config, tuning, index),
            num_samples=count,
            max_concurrent_trials=at_a_time(config, tuning, gpus),
            # Safe: a trial leaves nothing behind in its process but imported modules.
            reuse_actors=tuning.workers_per_trial == 1,
            trial_name_creator=directory_of,
            trial_dirname_creator=directory_of,
        ),
        run_config=ray.tune.RunConfig(
            name=RAY_TUNE,
            storage_path=config.directory,
            callbacks=[Reporter()],
            failure_config=ray.tune.FailureConfig(max_failures=config.resources.max_failures),
            checkpoint_config=ray.tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="min"
            ),
            verbose=0,
        ),
    )


def restored(sweep: str, directory: str, function: Any) -> Any:
    """The Tuner of a sweep that goes on. Ray Tune has pickled our callback and our scheduler by module and name."""
    try:
        return ray.tune.Tuner.restore(directory, function, resume_unfinished=True, resume_errored=True)
    except (ModuleNotFoundError, AttributeError) as error:
        if not _GONE.match(str(error)):
            raise
        raise ConfigError(
            f"{sweep}: a sweep goes on with the code that began it, but another version of dynamic-rnn began this one "
            f"({error}); its reports and, if it has one, its best bundle can be read; begin a new sweep, another name=…"
        ) from error


def trainable(config: RunConfig, tuning: TuneConfig, gpus: float, telemetry: WorkerReports) -> Any:
    """The function of a trial with what it holds."""
    held = {"cpu": _NESTED_CPUS, "gpu": 0.0}
    if tuning.workers_per_trial == 1:
        held = {"cpu": config.resources.cpus_per_worker, "gpu": gpus}
    sweep = Sweep(config.model_dump(mode="json"), gpus, telemetry)
    return ray.tune.with_resources(ray.tune.with_parameters(run_trial, sweep=sweep), held)


def search_of(config: RunConfig, tuning: TuneConfig) -> tuple[Any, Any, int]:
    """(searcher, space, samples). Points are drawn by us, so that each was checked before anything started."""
    if tuning.search != "optuna":
        numbered = [{"number": i, "settings": point} for i, point in enumerate(points(config, tuning))]
        return None, ray.tune.grid_search(numbered), 1
    from ray.tune.search.optuna import OptunaSearch

    importlib.import_module("optuna.logging").set_verbosity(logging.WARNING)
    seed = config.train.seed if tuning.seed is None else tuning.seed
    space = {"settings": {name: declaration.domain() for name, declaration in tuning.space.items()}}
    return OptunaSearch(metric=SCORE, mode="min", seed=seed), space, tuning.trials or DEFAULT_TRIALS


def asha(config: RunConfig, tuning: TuneConfig, index: DataIndex) -> Any:
    """ASHA over our own clock, the one the budget counts in; None where no trial could be stopped early.

    Not over Ray Tune's `training_iteration`: that starts anew when a trial is resumed.
    """
    if tuning.asha is None:
        return None
    train = trial_run(config, tuning, {}).train
    in_steps = train.steps is not None or tuning.asha.grace_steps is not None
    grace = grace_of(config, tuning, index, in_steps=in_steps)
    most = (train.steps or most_steps(config, tuning, index)) if in_steps else train.epochs or 1
    if grace >= most:
        return None
    return RemindedAsha(
        time_attr="step" if in_steps else "epoch",
        max_t=most,
        # A hair less: 3 × (40 / 70) and 120 / 70 differ in their last bit.
        grace_period=grace if in_steps else grace * (1 - 1e-9),
        reduction_factor=tuning.asha.reduction_factor,
        stop_last_trials=False,
    )


def grace_of(config: RunConfig, tuning: TuneConfig, index: DataIndex, *, in_steps: bool) -> float:
    """When a trial may be stopped first, in steps or in epochs."""
    assert tuning.asha is not None, "only ASHA has a grace"
    if tuning.asha.grace_steps is not None:
        return tuning.asha.grace_steps
    run, reports = trial_run(config, tuning, {}), tuning.asha.grace_reports
    plan, every = plans(run, index, None)[0], run.train.evaluate_every_steps
    if every is not None:
        return reports * every / (1 if in_steps else epoch_steps(plan, run.train))
    return sum(epoch_steps(plan, run.train, epoch) for epoch in range(reports)) if in_steps else reports


def most_steps(config: RunConfig, tuning: TuneConfig, index: DataIndex) -> int:
    """What no trial's epochs take more steps than: ASHA stops those beyond it, and never comes to later milestones."""
    train = trial_run(config, tuning, {}).train
    longest, epochs = int(index.lengths.max(initial=1)), train.epochs or 1
    if _CUTS & tuning.space.keys():
        return epochs * index.rows * longest
    plan = plans(trial_run(config, tuning, {}), index, None)[0]
    return train.total_steps(plan.first_step) * segment_count(longest, train.unroll_steps)


def gpus_per_trial(config: RunConfig, tuning: TuneConfig) -> float:
    """GPUs a trial takes; trials of one worker may share one."""
    resources = config.resources.model_copy(update={"workers": tuning.workers_per_trial})
    gpus = gpus_for(config.model_copy(update={"resources": resources}))
    return gpus / tuning.trials_per_gpu if tuning.workers_per_trial == 1 else gpus


def at_a_time(config: RunConfig, tuning: TuneConfig, gpus: float) -> int:
    """Trials that run at a time.

    Trials of one worker read their data themselves, so they may take every CPU there is (on one machine: that really
    is, for a private Ray offers more). Workers of Ray Train's read through Ray Data, which starves without spare CPUs.
    """
    per_trial = tuning.workers_per_trial * config.resources.cpus_per_worker
    cpus = int(ray.cluster_resources().get("CPU", 1))
    if tuning.workers_per_trial > 1:
        room = (cpus - SPARE_CPUS) // per_trial
    elif tuning.max_concurrent_trials is not None:
        return tuning.max_concurrent_trials  # Ray Tune starts what fits, also on a cluster that grows
    else:
        room = (min(cpus, cpu_count()) if len(ray.nodes()) == 1 else cpus) // per_trial
    if gpus:
        room = min(room, int(available_gpus() / gpus))
    return max(1, min(room, tuning.max_concurrent_trials or room))


@contextmanager
def settled(*, quiet: bool) -> Iterator[None]:
    """Ray Tune without its loggers of CSV, JSON and TensorBoard files, its tables and, if `quiet`, its log.

    What it logs about a failed trial is in our table; the reports are in our file.
    """
    before, logger = {name: os.environ.get(name) for name in _ENVIRONMENT}, logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(_ENVIRONMENT)
    if quiet:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
