"""The sweep as Ray Tune knows it: trainable, space, scheduler, how many trials at a time. Knows no bundles."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.tune

from model.storage import join, list_names
from pipelines.cluster import SPARE_CPUS, available_gpus
from pipelines.config import RunConfig
from pipelines.machine import cpu_count
from pipelines.train import gpus_for
from tune.check import RAY_TUNE
from tune.config import DEFAULT_TRIALS, TuneConfig
from tune.following import RemindedAsha, Reporter, directory_of
from tune.points import points, trial_run
from tune.trial import SCORE, Sweep, run_trial

_NESTED_CPUS = 0.01  # of a trial that only waits for its workers: a whole CPU each could leave none for them

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box even when it is told to be silent
}


def tuner(config: RunConfig, tuning: TuneConfig, *, steps_per_epoch: int, gpus: float, resume: bool) -> Any:
    """The Tuner of a new sweep, or of one that goes on."""
    directory = join(config.directory, RAY_TUNE)
    # A sweep may have been stopped before any trial was known to Ray Tune; there is nothing to restore then.
    if resume and any(name.startswith("experiment_state") for name in list_names(directory)):
        return ray.tune.Tuner.restore(
            directory, trainable(config, tuning, gpus), resume_unfinished=True, resume_errored=True
        )
    searcher, space, count = search_of(config, tuning)
    return ray.tune.Tuner(
        trainable(config, tuning, gpus),
        param_space={"point": space},
        tune_config=ray.tune.TuneConfig(
            metric=SCORE,
            mode="min",
            search_alg=searcher,
            scheduler=asha(config, tuning, steps_per_epoch),
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


def trainable(config: RunConfig, tuning: TuneConfig, gpus: float) -> Any:
    """The function of a trial with what it holds."""
    held = {"cpu": _NESTED_CPUS, "gpu": 0.0}
    if tuning.workers_per_trial == 1:
        held = {"cpu": config.resources.cpus_per_worker, "gpu": gpus}
    sweep = Sweep(config.model_dump(mode="json"), gpus)
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


def asha(config: RunConfig, tuning: TuneConfig, steps_per_epoch: int) -> Any:
    """ASHA over our own clock, the one the budget counts in; None where no trial could be stopped early.

    Not over Ray Tune's `training_iteration`: that starts anew when a trial is resumed.
    """
    if tuning.asha is None:
        return None
    train = trial_run(config, tuning, {}).train
    every = train.evaluate_every_steps or steps_per_epoch
    grace = tuning.asha.grace_steps or tuning.asha.grace_reports * every
    total = train.total_steps(lambda epochs: steps_per_epoch * epochs)
    in_steps = train.steps is not None or tuning.asha.grace_steps is not None
    if grace >= total:
        return None
    return RemindedAsha(
        time_attr="step" if in_steps else "epoch",
        max_t=total if in_steps else total / steps_per_epoch,
        # A hair less: 3 × (40 / 70) and 120 / 70 differ in their last bit.
        grace_period=grace if in_steps else grace / steps_per_epoch * (1 - 1e-9),
        reduction_factor=tuning.asha.reduction_factor,
        stop_last_trials=False,
    )


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
