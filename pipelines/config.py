"""RunConfig: one YAML for a run. Data, model, training and resources are ours; `tune` and `serve` stay raw here.

Those two sections belong to rooms that this one does not know; they are checked when their command runs.

May import: model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from model.columns.config import with_nan_missing
from model.config import ModelConfig
from model.registry import import_plugins
from model.scoring.metric_names import good_end
from model.settings import Settings, build, load_settings
from model.storage import absolute, join
from model.tables.filters import Filter
from model.tables.hive_paths import PartitionType
from model.training.config import TrainConfig

ExecutorChoice = Literal["auto", "local", "ray"]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted paths to leaves; lists are leaves, and sequences compare as lists."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): list(tree) if isinstance(tree, tuple) else tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.")
    return leaves


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """The settings in which two flat configs differ, by name; each with a clause that tells both values.

    A setting that one of them lacks is null there.
    """
    return {
        name: f"{name} was {before.get(name)!r}, but is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


class EarlyStoppingConfig(Settings):
    """Ends a training whose metric has stopped getting better."""

    metric: str = Field("validation_loss", description="validation_… as `evaluate` names it, or train_loss")
    patience: int = Field(3, ge=1, description="evaluations in a row without an improvement that end the training")
    min_delta: float = Field(0.0, ge=0, description="how much better than the best so far counts as an improvement")
    mode: Literal["auto", "min", "max"] = Field(
        "auto", description="which end of the metric is good; auto: max for accuracy and r2, else min"
    )
    restore_best: bool = Field(
        True, description="the run's bundle is the best by this metric; false: the one training ended with"
    )

    @property
    def best_is(self) -> Literal["min", "max"]:
        """Which end of the metric is good."""
        return good_end(self.metric) if self.mode == "auto" else self.mode


class MlflowConfig(Settings):
    """An MLflow run for each training; needs the extra `dynamic-rnn[mlflow]`."""

    uri: str | None = Field(None, description="tracking server or database; null takes MLFLOW_TRACKING_URI")
    experiment: str = Field("dynamic-rnn", description="experiment that gets the run; created where there is none")
    bundle: bool = Field(True, description="store the best bundle as an artefact of the run")


class TrackingConfig(Settings):
    """Followers of a training."""

    tensorboard: bool = Field(True, description="event files in the run's directory, below `tensorboard`")
    report: bool = Field(True, description="write report.html into the run's directory at the end")
    mlflow: MlflowConfig | None = Field(None, description="log to MLflow; {} takes the defaults")


class WorkerRange(Settings):
    """Elastic training: it goes on with fewer workers when nodes go, and takes more when they come."""

    min: int = Field(ge=1, description="workers without which training waits")
    max: int = Field(ge=1, description="workers at most")

    def model_post_init(self, _context: object) -> None:
        if self.max < self.min:
            raise ValueError(f"max must be at least min, but is {self.max}, and min is {self.min}")

    def __str__(self) -> str:
        return f"{self.min} to {self.max}"


Workers = int | Literal["auto"] | WorkerRange


class DataConfig(Settings):
    """Where the Parquet data lie: a file, a directory, a glob or a URI each."""

    train: str = Field(description="training rows")
    validation: str | None = Field(None, description="validation rows; null splits some off the training rows")
    test: str | None = Field(None, description="rows for `evaluate` and `predict` when no path is given")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of keys (or rows) that validate where `validation` is null; 0 for none"
    )
    validation_by_time: str | None = Field(
        None, description="column of times: the latest rows validate, `validation_fraction` of them, rather than any"
    )
    key: str | tuple[str, ...] | None = Field(
        None,
        description="column (or columns) that name the entity: its rows never straddle the split; null takes the key "
        "that `prepare` wrote",
    )
    mixed_parts: bool = Field(
        False, description="train on a path that holds several parts of a split that `prepare` made, such as its test"
    )
    filter: str | None = Field(
        None, description="rows to train and validate on, as in \"country == 'DE' and year >= 2020\"; null for all"
    )
    nan_is_missing: bool = Field(
        False, description="in every numeric input a NaN is as good as a null, as with its nan_is_missing"
    )
    partition_types: dict[str, PartitionType] = Field(
        {},
        description="types of columns in paths (year=2024/): string, int64 or float64 by name; others are int64 where "
        "all values are whole numbers without leading zeros, else string",
    )
    on_bad_rows: Literal["error", "skip"] = Field(
        "error", description="skip: count the rows that break the contract, set them aside and go on without them"
    )
    initial_states: Literal["read", "ignore"] = Field(
        "read", description="columns rnn_cell_state_0 … in the data: where each row begins, or nothing to us"
    )

    unseen_labels: Literal["count", "error"] = Field(
        "count",
        description="labels of validation rows that are of no class: count them as wrong and without a loss, or refuse "
        "them as bad rows",
    )

    @field_validator("filter")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        if text is not None:
            Filter(text)
        return text

    @field_validator("key")
    @classmethod
    def _names_columns(cls, key: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if key == ():
            raise ValueError("must name at least one column, but is empty; null splits without a key")
        return key

    def model_post_init(self, _context: object) -> None:
        if self.validation_by_time is not None and (self.validation is not None or not self.validation_fraction):
            other = "validation names other rows" if self.validation is not None else "validation_fraction is 0"
            raise ValueError(f"validation_by_time splits off the latest training rows, but {other}; set one of the two")

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of the key that is named here."""
        return () if self.key is None else (self.key,) if isinstance(self.key, str) else self.key

    @property
    def where(self) -> Filter | None:
        """The filter; None for all rows."""
        return None if self.filter is None else Filter(self.filter)


class RunTrainConfig(TrainConfig):
    """How to train, and when to look at the result."""

    evaluate_every_steps: int | None = Field(
        None, ge=1, description="steps between validations and checkpoints; null means once an epoch and at the end"
    )
    validation_batches: int | None = Field(
        None, ge=1, description="validate on at most so many batches of the validation rows; null for all of them"
    )
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints beside those of the validations, which always make one"
    )
    checkpoint_every_minutes: float | None = Field(
        None, gt=0, description="minutes after a checkpoint until the next one, if none has been made before"
    )
    max_minutes: float | None = Field(
        None, gt=0, description="time budget beside steps or epochs: the first step beyond it is the last"
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        None, description="ends the training when a metric has stopped getting better; null for never"
    )
    keep_best: int = Field(1, ge=1, description="how many of the best bundles are kept, beside the latest")
    warm_start: str | None = Field(
        None, description="a bundle (or a run's directory) to begin with: its weights, columns and classes"
    )
    new_vocabulary: Literal["refuse", "unknown", "add"] = Field(
        "refuse", description="keys that the bundle of warm_start does not know: unknown as in scoring, or added"
    )


class ResourcesConfig(Settings):
    """What the training may use."""

    executor: ExecutorChoice = Field(
        "auto",
        description="local: this process alone; ray: on Ray; auto: local for one worker and little data, unless a "
        "cluster is joined",
    )

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] | WorkerRange = Field(
        1,
        description="training processes, each with a slice of every batch; auto: a GPU each, or all CPUs; {min, max}: "
        "goes on with fewer when nodes go",
    )
    gpu: bool | Literal["auto"] = Field("auto", description="auto: a GPU a worker where the cluster has enough of them")
    cpus_per_worker: int = Field(1, ge=1, description="logical CPUs and torch threads of a worker")
    max_failures: int = Field(3, ge=0, description="restarts from the latest checkpoint after a worker or node dies")
    start_timeout_seconds: float = Field(
        900.0,
        gt=0,
        description="seconds until there must be room for all workers (of a range, the fewest); new nodes take minutes",
    )
    collective_timeout_seconds: float = Field(
        600.0, gt=0, description="seconds the workers wait for one of them; it is then named, killed and started again"
    )
    address: str | None = Field(None, description="address of a Ray cluster to join; null starts one on this machine")


class RunConfig(Settings):
    """A run: what to train on what, and where the results go."""

    name: str = Field("run", pattern=r"^[\w.-]+$", description="name of the run, its directory below `output`")
    output: str = Field("runs", description="directory or URI that holds the runs")
    plugins: tuple[str, ...] = Field(
        (), description="modules that register cells, optimizers or normalizers; imported in every process"
    )
    data: DataConfig
    model: ModelConfig
    train: RunTrainConfig = Field(RunTrainConfig(), description="optimizer, batches and budget")
    resources: ResourcesConfig = Field(ResourcesConfig(), description="workers and their hardware")
    tracking: TrackingConfig = Field(TrackingConfig(), description="followers of a training")
    tune: dict[str, Any] | None = Field(None, description="the sweep; see `dynamic-rnn tune --help`")
    serve: dict[str, Any] | None = Field(None, description="the service; see `dynamic-rnn serve --help`")

    @property
    def directory(self) -> str:
        """The run's directory, absolute."""
        return join(absolute(self.output), self.name)


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's YAML with overrides; relative data paths count from the current directory.

    Plugins are imported first: a cell of the user's must be known before `cell_type` is checked.
    """
    return run_config(load_settings(path, overrides), where=str(path))


def run_config(mapping: dict[str, Any], *, where: str) -> RunConfig:
    """A RunConfig from a mapping, with absolute data paths."""
    plugins = mapping.get("plugins") or ()
    if isinstance(plugins, list | tuple):
        import_plugins([name for name in plugins if isinstance(name, str)])
    config = build(RunConfig, mapping, where=where)
    paths = {name: absolute(path) for name in ("train", "validation", "test") if (path := getattr(config.data, name))}
    changed: dict[str, Any] = {"data": config.data.model_copy(update=paths), "output": absolute(config.output)}
    if config.data.nan_is_missing:  # in the model, so that whoever scores with it does the same
        columns = with_nan_missing(config.model.columns)
        changed["model"] = config.model.model_copy(update={"columns": columns})
    if config.train.warm_start is not None:
        changed["train"] = config.train.model_copy(update={"warm_start": absolute(config.train.warm_start)})
    return config.model_copy(update=changed)
