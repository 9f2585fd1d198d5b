"""Everything about a sweep that can be told before Ray starts: its settings, its metric, its directory.

Knows no Ray. `check_sweep` is what the front door calls first, and what `tune.sweep` calls again.
"""

from __future__ import annotations

import importlib.util

from model.bundle.run_directory import METRICS, RAY_TUNE, RUN_YAML
from model.errors import ConfigError
from model.scan.row_checks import unfitted_label
from model.scoring.metric_names import COUNTS, TRAIN_LOSS, metric_names, of_validation
from model.settings import did_you_mean
from model.settings.yaml_text import parse_yaml
from model.state import STATE_PREFIX, state_schemas
from model.storage import exists, join, list_names, read_bytes
from model.tables.parquet import find
from pipelines.config import RunConfig, changed_settings, flat, run_config
from tune.config import TuneConfig, tune_config
from tune.points import check_points, to_check, trial_run

SHAPING = ("model.cell_type", "model.num_units")  # decide the shape of the model's state
_FREE = (
    "name",
    "output",
    "data.test",
    "data.unseen_labels",
    "data.mixed_parts",
    "resources.address",
    "resources.executor",
    "serve",
)


def check_sweep(config: RunConfig, *, resume: bool = False) -> TuneConfig:
    """The sweep's settings; ConfigError for what is wrong in them, or where the directory is taken."""
    tuning = tune_config(config)
    check_points(config, tuning)
    check_metric(config, tuning)
    if tuning.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "tune.search optuna needs the package optuna, but it is not installed; install dynamic-rnn[search], or "
            "use search random"
        )
    check_directory(config, resume=resume)
    return tuning


def check_metric(config: RunConfig, tuning: TuneConfig) -> None:
    """ConfigError where no trial would ever report the sweep's metric."""
    known = [TRAIN_LOSS]
    if config.data.validation is not None or config.data.validation_fraction > 0:
        names = metric_names(unfitted_label(config.model))
        known += [of_validation(name) for name in names if name not in COUNTS]
    elif tuning.metric.startswith("validation_"):
        raise ConfigError(
            f"tune.metric {tuning.metric} needs validation rows, but data.validation is null and "
            f"data.validation_fraction is 0; set one of them, or tune.metric=train_loss"
        )
    if tuning.metric not in known:
        raise ConfigError(
            f"tune.metric must be one of {', '.join(known)}, but is {tuning.metric!r}"
            f"{did_you_mean(tuning.metric, known)}"
        )


def check_states(config: RunConfig, tuning: TuneConfig) -> None:
    """ConfigError where the data hold initial states, but trials have states of several shapes. Reads the footers."""
    if config.data.initial_states == "ignore" or not shape_varies(config, tuning):
        return
    for path in filter(None, (config.data.train, config.data.validation)):
        states = state_schemas(find(path, [], where=config.data.where, beside=STATE_PREFIX).beside)
        if states:
            raise states_of_one_shape(tuning, next(iter(states)))


def shape_varies(config: RunConfig, tuning: TuneConfig) -> bool:
    """Whether the state of some trial has another shape than the run's."""
    if not any(name in tuning.space for name in SHAPING):
        return False
    from model.network.network import state_spec_of

    models = [config.model, *(trial_run(config, tuning, point).model for point in to_check(config, tuning))]
    kinds = {(model.cell_type, tuple(model.num_units)): model for model in models}
    return len({str(state_spec_of(model, 1)) for model in kinds.values()}) > 1


def states_of_one_shape(tuning: TuneConfig, where: str) -> ConfigError:
    """What to say where the data have states that fit one shape at most."""
    varied = " and ".join(name for name in SHAPING if name in tuning.space)
    return ConfigError(
        f"tune.space: trials that begin with the states in the data must have states of one shape, that of the run's "
        f"model, but {varied} change it, and {where} holds states; set data.initial_states=ignore, or take them out of "
        f"the space"
    )


def check_directory(config: RunConfig, *, resume: bool) -> None:
    """ConfigError where a fresh sweep finds its directory taken, or a resumed one no sweep, or another one.

    A sweep that failed before its first validation holds nothing to lose; its directory is free.
    """
    where = join(config.directory, RUN_YAML)
    if not resume:
        if exists(join(config.directory, METRICS)):
            raise ConfigError(
                f"{config.directory} holds a run or a sweep already; go on with a sweep by --resume, or choose "
                f"another name=…"
            )
        return
    if not exists(where):
        raise ConfigError(f"{config.directory}: there is no sweep to resume; start it without --resume")
    if RAY_TUNE not in list_names(config.directory):
        raise ConfigError(f"{config.directory} holds a training run, not a sweep; choose another name=…")
    _check_unchanged(config, where)


def _check_unchanged(config: RunConfig, where: str) -> None:
    # As a config, so that a setting which an older version did not know has its default.
    stored = run_config(parse_yaml(read_bytes(where).decode(), where=where), where=where)
    before = flat(stored.model_dump(mode="json"))
    after = flat(config.model_dump(mode="json"))
    changed = [clause for name, clause in changed_settings(before, after).items() if not name.startswith(_FREE)]
    if changed:
        raise ConfigError(
            f"{where}: a sweep goes on with the settings it began with, but {'; '.join(changed)}; set it back, or "
            f"start a new sweep under another name"
        )
