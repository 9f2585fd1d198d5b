"""ModelConfig: what the network is. Together with the fitted columns it decides every tensor's shape.

Knows nothing of how the network is trained or where the data lie. Part of the fingerprint.

May import: model.registry, model.settings, model.columns, model.features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from model.columns import ColumnsConfig, Key
from model.features.labels import PredictionType, ProblemType, weights_in_order
from model.registry import registered_cell
from model.settings import Settings
from model.settings.messages import quoted


class ModelConfig(Settings):
    """The network and what it reads and predicts."""

    problem_type: ProblemType = Field(description="classification or linear_regression")
    prediction_type: PredictionType = Field(
        description="one prediction a row (single_value) or a step (multiple_value)"
    )
    columns: ColumnsConfig = Field(description="the inputs: sequence and context columns")
    label: str = Field(description="column to predict: a value a row, or a list as long as the sequence")
    weight: str | None = Field(None, description="column with the weight of a row, or a list with one a step")
    num_classes: int | Literal["auto"] = Field(
        "auto",
        description="classification: number of classes; auto takes the training labels' distinct values",
    )
    classes: tuple[Key, ...] | None = Field(
        None,
        min_length=2,
        description="classification: the class values in id order; null means 0 … num_classes - 1",
    )
    class_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="classification: weights by class value, times those of rows and steps; others weigh 1"
    )
    standardize_label: bool = Field(
        False, description="regression: train on (label - mean) / deviation of the training labels; predict the label"
    )
    cell_type: str = Field("basic_rnn", description="basic_rnn, lstm, gru, gru_reset_before, or a registered cell")
    num_units: tuple[int, ...] = Field(min_length=1, description="units of each layer, input side first")
    dropout_keep_probabilities: tuple[float, ...] | None = Field(
        None,
        description="keep probability of each layer's input and of the last output: len(num_units) + 1 values; a "
        "number: the input is kept whole, the output of each layer with this probability",
    )
    predict_probabilities: bool = Field(False, description="predictions hold the class probabilities, too")
    dtype: Literal["float32", "float64"] = Field("float32", description="float64 is for checks; bundles hold float32")

    @field_validator("num_units", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        """A bare integer means one layer, as in the original."""
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("dropout_keep_probabilities", mode="before")
    @classmethod
    def _behind_each_layer(cls, value: object, info: ValidationInfo) -> object:
        """A bare number means the same keep probability for the output of each layer."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return value
        return (1.0, *[value] * len(info.data.get("num_units", ())))  # without units their own fault is told

    @field_validator("class_weights", mode="before")
    @classmethod
    def _text_keys(cls, value: object) -> object:
        """Class values by their text: YAML reads them as they are, JSON has string keys alone."""
        if not isinstance(value, Mapping):
            return value
        return {str(int(key) if isinstance(key, bool) else key): weight for key, weight in value.items()}

    def model_post_init(self, _context: object) -> None:
        registered_cell(self.cell_type)
        _check_units(self.num_units)
        _check_dropout(self.dropout_keep_probabilities, len(self.num_units))
        if self.problem_type is ProblemType.LINEAR_REGRESSION:
            if self.predict_probabilities:
                raise ValueError("predict_probabilities needs problem_type classification, but it is linear_regression")
            if self.classes is not None:
                raise ValueError("classes need problem_type classification, but it is linear_regression")
            if self.class_weights:
                raise ValueError("class_weights need problem_type classification, but it is linear_regression")
            return
        if self.standardize_label:
            raise ValueError("standardize_label needs problem_type linear_regression, but it is classification")
        if isinstance(self.num_classes, int) and self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, but is {self.num_classes}")
        self._check_classes()

    def _check_classes(self) -> None:
        if self.classes is None:
            return
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be distinct, but a value stands twice")
        if len({type(value) for value in self.classes}) != 1:
            raise ValueError("classes must be all strings or all integers, but they are mixed")
        if self.num_classes not in ("auto", len(self.classes)):
            raise ValueError(f"num_classes is {self.num_classes}, but classes lists {len(self.classes)} values")
        weights_in_order(self.class_weights, self.classes)

    @property
    def keep_probabilities(self) -> tuple[float, ...]:
        """One keep probability a dropout site: each layer's input, then the last layer's output."""
        return self.dropout_keep_probabilities or (1.0,) * (len(self.num_units) + 1)


# What decides the shapes of the weights and what they mean.
_NETWORK = ("problem_type", "prediction_type", "columns", "cell_type", "num_units", "classes", "dtype")


def network_settings(there: ModelConfig, here: ModelConfig) -> list[str]:
    """The settings by which two configs mean different networks."""
    return [name for name in _NETWORK if getattr(here, name) != getattr(there, name)]


def there_and_here(
    names: Iterable[str], there: ModelConfig, here: ModelConfig, shown: Callable[[object], str] = quoted
) -> str:
    """A clause for each of these settings that tells both values."""
    return "; ".join(
        f"{name} is {shown(getattr(there, name))} there and {shown(getattr(here, name))} here" for name in names
    )


def _check_units(num_units: tuple[int, ...]) -> None:
    if any(units < 1 for units in num_units):
        raise ValueError(f"num_units must be positive, but is {list(num_units)}")


def _check_dropout(keep: tuple[float, ...] | None, layers: int) -> None:
    if not keep:
        return
    if len(keep) != layers + 1:
        raise ValueError(
            f"dropout_keep_probabilities must hold {layers + 1} values, one for the input of each of the {layers} "
            f"layers and one for the output, but holds {len(keep)}"
        )
    if any(not 0 < probability <= 1 for probability in keep):
        raise ValueError(f"dropout_keep_probabilities must lie in (0, 1], but are {list(keep)}")
