"""What ModelConfig makes of what people write."""

from __future__ import annotations

from typing import Any

import pytest

from model.config import ModelConfig
from model.errors import ConfigError
from model.settings import apply_overrides, build

MODEL: dict[str, Any] = {
    "problem_type": "classification",
    "prediction_type": "single_value",
    "label": "y",
    "num_units": [4, 3],
    "columns": {"sequence": [{"type": "numeric", "name": "x"}]},
}


def built(*overrides: str) -> ModelConfig:
    return build(ModelConfig, apply_overrides({"model": MODEL}, overrides)["model"], where="run.yaml")


@pytest.mark.parametrize(
    ("overrides", "keep"),
    [
        (["model.dropout_keep_probabilities=0.8"], (1.0, 0.8, 0.8)),
        (["model.dropout_keep_probabilities=0.8", "model.num_units=6"], (1.0, 0.8)),
        (["model.dropout_keep_probabilities=1"], (1.0, 1.0, 1.0)),
        (["model.dropout_keep_probabilities=[0.5, 0.6, 0.7]"], (0.5, 0.6, 0.7)),
        (["model.dropout_keep_probabilities="], None),
    ],
)
def test_a_number_for_dropout_keeps_the_input_and_spreads_over_the_layers(
    overrides: list[str], keep: tuple[float, ...] | None
) -> None:
    assert built(*overrides).dropout_keep_probabilities == keep


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.dropout_keep_probabilities=1.8"],
         "dropout_keep_probabilities must lie in (0, 1], but are [1.0, 1.8, 1.8]"),
        (["model.dropout_keep_probabilities=true"], "dropout_keep_probabilities must be a list, but is true"),
        (["model.dropout_keep_probabilities=0.8", "model.num_units=x"], "num_units must be a list, but is 'x'"),
    ],
)  # fmt: skip
def test_what_is_no_probability_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        built(*overrides)
    assert str(refused.value) == f"run.yaml: {told}"
