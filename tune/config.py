"""TuneConfig: the `tune:` section of a run's YAML. Knows no Ray, so that a mistake is told before Ray starts.

    tune:
      trials: 6
      space:
        num_units: [[64], [128], [64, 64]]
        cell_type: [lstm, gru]
        dropout_keep_probabilities: [1.0, 0.8]
        train.learning_rate: {type: loguniform, low: 1.0e-3, high: 1.0e-2}

A setting is named as in the run, `model.num_units`; a name without a room is looked up in `model`, then in `train`.
What a value of the space becomes in a trial is `tune.points`' to say.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from model.config import ModelConfig
from model.errors import ConfigError
from model.scoring.metric_names import good_end
from model.settings import Settings, build, did_you_mean
from pipelines.cluster.capacity import logical_cpus_for
from pipelines.config import RunConfig, RunTrainConfig
from tune.space import Choice, Declaration, Grid

# What decides the data, how they are read and fitted (once for all trials), or how long a trial trains.
_FIXED = {
    "model": {
        "problem_type", "prediction_type", "columns", "label", "weight", "num_classes", "classes", "class_weights",
        "standardize_label", "predict_probabilities", "dtype",
    },
    "train": {
        "epochs", "steps", "max_minutes", "evaluate_every_steps", "validation_batches", "checkpoint_every_steps",
        "checkpoint_every_minutes", "early_stopping", "keep_best", "warm_start", "new_vocabulary",
    },
}  # fmt: skip
VARIABLE = tuple(
    f"{room}.{name}"
    for room, owner in (("model", ModelConfig), ("train", RunTrainConfig))
    for name in owner.model_fields
    if name not in _FIXED[room]
)
DEFAULT_TRIALS = 8


class AshaConfig(Settings):
    """Stopping trials early: of those that get as far, only the best part goes on (ASHA)."""

    grace_reports: int = Field(1, ge=1, description="validations of a trial before it may be stopped")
    grace_steps: int | None = Field(
        None, ge=1, description="optimizer steps of a trial before it may be stopped; null means `grace_reports`"
    )
    reduction_factor: float = Field(3, gt=1, description="one trial in so many goes on to so many times as many steps")


class TuneConfig(Settings):
    """A sweep: what varies, how often, and what is best."""

    space: dict[str, Declaration] = Field(
        min_length=1, description="what varies, by the setting's name: a list of values, or one of the below"
    )
    search: Literal["random", "grid", "optuna"] = Field(
        "random", description="random draws, every combination, or optuna's choice (needs dynamic-rnn[search])"
    )
    trials: int | None = Field(
        None, ge=1, description=f"draws; null means {DEFAULT_TRIALS}, and with search grid every combination"
    )
    metric: str = Field("validation_loss", description="validation_… as `evaluate` names it, or train_loss")
    mode: Literal["min", "max"] | None = Field(
        None, description="which end of the metric is good; null: max for accuracy and r2, else min"
    )
    steps: int | None = Field(None, ge=1, description="optimizer steps of a trial; null means the run's budget")
    epochs: int | None = Field(None, ge=1, description="epochs of a trial; exclusive with steps")
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="steps between a trial's validations; null means the run's"
    )
    asha: AshaConfig | None = Field(AshaConfig(), description="when trials are stopped early; null for never")
    seed: int | None = Field(
        None, ge=0, lt=2**32, description="decides the draws; null means train.seed, with which every trial trains"
    )
    max_concurrent_trials: int | None = Field(
        None, ge=1, description="trials at a time at most; null for as many as the cluster has room for"
    )
    workers_per_trial: int = Field(1, ge=1, description="training processes of a trial; 1 is by far the fastest start")
    trials_per_gpu: int = Field(1, ge=1, description="trials that share a GPU, where trials have one worker")

    @field_validator("space", mode="before")
    @classmethod
    def _named_in_full(cls, space: Any) -> Any:
        return _flat(space) if isinstance(space, dict) else space

    def model_post_init(self, _context: object) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps exclude each other; set one of them to null")
        ranges = [name for name, declaration in self.space.items() if not isinstance(declaration, Choice)]
        if self.search == "grid" and ranges:
            raise ValueError(
                f"search grid needs a list of values for each setting, but space.{ranges[0]} is a range; list its "
                f"values, or use search random"
            )
        if self.search == "grid" and self.trials is not None:
            raise ValueError("search grid tries every combination once; leave trials out, or use search random")
        grids = [name for name, declaration in self.space.items() if isinstance(declaration, Grid)]
        if self.search == "optuna" and grids:
            raise ValueError(
                f"search optuna chooses values itself, but space.{grids[0]} is of type grid; make it a choice"
            )

    @property
    def best_is(self) -> Literal["min", "max"]:
        """Which end of the metric is good."""
        return self.mode or good_end(self.metric)


def _flat(space: dict[Any, Any]) -> dict[str, Any]:
    """Full names. `tune.space.model.num_units=…` on the command line arrives nested, and wins over a dotted key."""
    flat: dict[str, Any] = {}
    for name, entry in space.items():
        if _is_room(name, entry):
            continue
        full = _full_name(str(name))
        if full in flat:
            raise ValueError(f"space.{full} stands twice, once without its room; keep one of them")
        flat[full] = _declared(full, entry)
    for room, entries in space.items():
        if _is_room(room, entries):
            flat |= {f"{room}.{name}": _declared(f"{room}.{name}", entry) for name, entry in entries.items()}
    unknown = [_unknown(name) for name in flat if name not in VARIABLE]
    if unknown:
        raise ValueError("; ".join(unknown))
    return flat


def _is_room(name: Any, entry: Any) -> bool:
    return name in _FIXED and isinstance(entry, dict)


def _full_name(name: str) -> str:
    """A name without a room is meant in `model`, then in `train`."""
    if "." in name:
        return name
    return next((f"{room}.{name}" for room in _FIXED if f"{room}.{name}" in VARIABLE), f"model.{name}")


def _declared(name: str, entry: Any) -> Any:
    if isinstance(entry, list | tuple):
        return {"type": "choice", "values": list(entry)}
    if not isinstance(entry, dict | Settings):
        raise ValueError(
            f"space.{name} must be a list of values, or a range such as {{type: loguniform, low: 1.0e-3, high: 0.1}}, "
            f"but is {entry!r}"
        )
    return entry


def _unknown(name: str) -> str:
    room, _, field = name.partition(".")
    if field in _FIXED.get(room, ()):
        if room == "train":
            return f"space.{name} cannot vary: it is part of a trial's budget; set it beside space, or in the run"
        return f"space.{name} cannot vary: the data are read and the columns fitted once for all trials"
    short = {field.partition(".")[2]: field for field in VARIABLE}
    near = did_you_mean(name, VARIABLE) or did_you_mean(field, short)
    return f"space.{name} is not a setting that can vary" + (near or f"; these can: {', '.join(VARIABLE)}")


def tune_config(config: RunConfig) -> TuneConfig:
    """The run's `tune:` section. ConfigError where there is none, or for what is wrong in it."""
    if not config.tune:
        raise ConfigError(
            "tune must be given to sweep a run, but the run has no such section; for example "
            "tune: {trials: 4, space: {num_units: [[64], [128]], cell_type: [lstm, gru]}}"
        )
    return build(TuneConfig, config.tune, where="tune")


def ray_cpus(config: RunConfig) -> int:
    """Logical CPUs the sweep needs for a trial and for reading data; with more, more trials run at a time."""
    return logical_cpus_for(tune_config(config).workers_per_trial * config.resources.cpus_per_worker)
