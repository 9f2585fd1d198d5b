"""The estimator's arguments as checked configs, and the settings that the original kept in its RunConfig.

Every mistake is found when the estimator is built. Knows no data, no torch modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from model.columns import Bucketized, ColumnsConfig, Embedding, Numeric, OneHot
from model.config import ModelConfig
from model.errors import ConfigError
from model.features.labels import ProblemType
from model.registry import name_of_cell
from model.settings import Settings, build
from model.training.config import OptimizerConfig, StepConfig
from model.training.torch_optimizers import NO_CODE, OptimizerCode, factory_of

WHERE = "DynamicRnnEstimator"
COLUMN_CLASSES = (Numeric, OneHot, Embedding, Bucketized)


class EstimatorConfig(Settings):
    """How an estimator runs; the place of the original's RunConfig."""

    model_dir: str | None = Field(None, description="directory for checkpoints; null keeps the model in memory alone")
    seed: int = Field(42, ge=0, lt=2**32, description="decides initial weights, order of rows and dropout masks")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    save_checkpoints_seconds: float = Field(600.0, gt=0, description="time between checkpoints within one fit")
    keep_checkpoints: int = Field(5, ge=1, description="checkpoints kept in model_dir, newest first")
    window_batches: int = Field(64, ge=1, description="batches a shuffling window holds")


@dataclass(frozen=True)
class Declared:
    """What the constructor's arguments mean."""

    model: ModelConfig
    optimizer: StepConfig
    run: EstimatorConfig
    code: OptimizerCode = NO_CODE


def declare(arguments: Mapping[str, Any]) -> Declared:
    """Checked configs from the constructor's arguments. ConfigError tells what is wrong."""
    model = build(ModelConfig, _model_settings(arguments), where=WHERE)
    inputs = {*model.columns.data_columns("sequence"), *model.columns.data_columns("context")}
    for what in ("label", "weight"):
        if getattr(model, what) in inputs:
            raise ConfigError(
                f"{WHERE}: {what} must be the name of a column that is no input, but {getattr(model, what)!r} is a "
                f"feature column; choose another one"
            )
    return Declared(model, _optimizer(arguments), _run_settings(arguments), _code(arguments))


def _model_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    problem = _member(ProblemType, arguments["problem_type"], "problem_type")
    classification = problem is ProblemType.CLASSIFICATION
    if classification and arguments["num_classes"] is None:
        raise ConfigError(
            f"{WHERE}: classification needs num_classes: a number of at least 2, or 'auto' to take the labels' values"
        )
    columns = {
        "sequence": _columns(arguments, "sequence_feature_columns"),
        "context": _columns(arguments, "context_feature_columns"),
    }
    return {
        "problem_type": problem,
        "prediction_type": arguments["prediction_type"],
        "columns": build(ColumnsConfig, columns, where=WHERE),
        "label": arguments["label"],
        "weight": arguments["weight"],
        "class_weights": arguments["class_weights"] or {},
        "standardize_label": arguments["standardize_label"],
        "num_classes": arguments["num_classes"] if classification else "auto",
        "cell_type": _cell_name(arguments["cell_type"]),
        "num_units": _units(arguments["num_units"]),
        "dropout_keep_probabilities": _dropout(arguments["dropout_keep_probabilities"]),
        "predict_probabilities": arguments["predict_probabilities"],
    }


def _member(kind: type[ProblemType], value: Any, name: str) -> ProblemType:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(f"{kind.__name__}.{each.name}" for each in kind)
        raise ConfigError(f"{WHERE}: {name} must be one of {known}, but is {value!r}") from error


def _columns(arguments: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    given = arguments[name] if arguments[name] is not None else ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f"{WHERE}: {name} must be a list of feature columns, but is {type(given).__name__}")
    for i, column in enumerate(given):
        if not isinstance(column, COLUMN_CLASSES):
            raise ConfigError(
                f"{WHERE}: {name}[{i}] must be a column such as real_valued_column(…), or embedding_column(…) or "
                f"one_hot_column(…) over a sparse column, but is {type(column).__name__}"
            )
    return tuple(given)


def _cell_name(cell_type: Any) -> Any:
    """A name; for a registered class its name."""
    if not isinstance(cell_type, type):
        return cell_type
    name = name_of_cell(cell_type)
    if name is None:
        raise ConfigError(
            f"{WHERE}: cell class {cell_type.__name__} has no name that a saved model could refer to; call "
            f"model.registry.register_cell('some_name', {cell_type.__name__}) first"
        )
    return name


def _units(num_units: Any) -> Any:
    """A bare int is one layer."""
    if num_units is None:
        raise ConfigError(f"{WHERE}: num_units must be a positive int or a list of them, one a layer, but is None")
    if isinstance(num_units, int) and not isinstance(num_units, bool):
        return (num_units,)
    return tuple(num_units) if isinstance(num_units, Sequence) and not isinstance(num_units, str) else num_units


def _dropout(keep: Any) -> Any:
    """None entries mean 1.0: no dropout there; an empty list means none at all."""
    if isinstance(keep, Sequence) and not isinstance(keep, str):
        return tuple(1.0 if each is None else each for each in keep) or None
    return keep


def _optimizer(arguments: Mapping[str, Any]) -> StepConfig:
    """The config of the optimizer: of one with a name, or what it has beside the code that makes it."""
    settings = {name: arguments[name] for name in ("learning_rate", "schedule", "gradient_clipping_norm")}
    if callable(settings["gradient_clipping_norm"]):
        settings["gradient_clipping_norm"] = None
    named = isinstance(arguments["optimizer"], str)
    if not named and settings["learning_rate"] is None:
        settings["learning_rate"] = 1.0  # the optimizer has its own; a schedule is a factor on it
    if not named:
        return build(StepConfig, settings, where=WHERE)
    settings["optimizer"] = arguments["optimizer"]
    if settings["optimizer"] == "Momentum":  # the original ignores it for the other optimizers
        settings["momentum"] = arguments["momentum"]
    return build(OptimizerConfig, settings, where=WHERE)


def _code(arguments: Mapping[str, Any]) -> OptimizerCode:
    """What of the optimizer is code: none of it, if it has a name and a number for its clipping."""
    optimizer, clip = arguments["optimizer"], arguments["gradient_clipping_norm"]
    factory = None if isinstance(optimizer, str) else factory_of(optimizer, arguments["learning_rate"], where=WHERE)
    return OptimizerCode(factory, clip if callable(clip) else None)


def _run_settings(arguments: Mapping[str, Any]) -> EstimatorConfig:
    config, model_dir = arguments["config"], arguments["model_dir"]
    if config is None:
        config = EstimatorConfig()
    elif not isinstance(config, EstimatorConfig):
        config = build(EstimatorConfig, config, where=f"{WHERE}: config")
    if model_dir is None:
        return config
    if config.model_dir not in (None, str(model_dir)):
        raise ConfigError(
            f"{WHERE}: model_dir is {str(model_dir)!r}, but config.model_dir is {config.model_dir!r}; give one"
        )
    return config.model_copy(update={"model_dir": str(model_dir)})
