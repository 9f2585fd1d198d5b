"""Learning rates that vary: pure functions of the optimizer step, the same in one go and after a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import DynamicRnnEstimator, PredictionType, ProblemType, real_valued_column
from model.errors import ConfigError
from model.settings import build, dump_yaml
from model.settings.yaml_text import parse_yaml
from model.training.config import TrainConfig

HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (None, [2, 2, 2, 2, 2]),
        ({"type": "constant"}, [2, 2, 2, 2, 2]),
        ({"type": "constant", "warmup_steps": 4}, [0.5, 1, 1.5, 2, 2]),
        ({"type": "step", "every_steps": 2, "multiplier": 0.5}, [2, 2, 1, 1, 0.5]),
        ({"type": "step", "every_steps": 1, "multiplier": 0.5, "warmup_steps": 2}, [1, 2, 2, 1, 0.5]),
        ({"type": "cosine", "decay_steps": 4}, [2, 1 + HALF, 1, 1 - HALF, 0]),
        ({"type": "cosine", "decay_steps": 2, "final_factor": 0.5, "warmup_steps": 1}, [2, 2, 1.5, 1, 1]),
        ({"type": "linear", "decay_steps": 4}, [2, 1.5, 1, 0.5, 0]),
        ({"type": "linear", "decay_steps": 2, "final_factor": 0.5}, [2, 1.5, 1, 1, 1]),
    ],
)
def test_the_rate_is_a_function_of_the_step(schedule: Any, rates: list[float]) -> None:
    config = build(TrainConfig, {"learning_rate": 2.0, "schedule": schedule}, where="run.yaml")
    assert [config.rate(step) for step in range(5)] == pytest.approx(rates)
    assert build(TrainConfig, parse_yaml(dump_yaml(config), where="run.yaml"), where="run.yaml") == config


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            {"type": "cosin"},
            "schedule.type must be one of constant, step, cosine, linear, but is 'cosin'; did you mean cosine?",
        ),
        (
            {"type": "cosine"},
            "schedule.decay_steps must be given, but is missing (steps from the end of the warm-up to final_factor)",
        ),
        ({"type": "step", "every_steps": 0}, "schedule.every_steps must be at least 1, but is 0"),
    ],
)
def test_a_faulty_schedule_is_told(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(TrainConfig, {"schedule": schedule}, where="run.yaml")
    assert str(raised.value) == f"run.yaml: {message}"
    with pytest.raises(ConfigError) as raised:
        estimator(schedule=schedule)
    assert str(raised.value) == f"DynamicRnnEstimator: {message}"


def estimator(**options: Any) -> Any:
    return DynamicRnnEstimator(
        ProblemType.LINEAR_REGRESSION, PredictionType.MULTIPLE_VALUE, [real_valued_column("x")], num_units=3,
        **({"config": {"device": "cpu"}} | options),
    )  # fmt: skip


def weights(model: Any) -> np.ndarray:
    value: np.ndarray = model.get_variable_value("projection.weight")
    return value


BATCH: dict[str, Any] = {"x": {"x": np.arange(12.0).reshape(3, 4) / 12}, "y": np.ones((3, 4))}


def test_the_estimator_steps_by_the_schedule() -> None:
    def moved(steps: int, **options: Any) -> np.ndarray:
        return weights(estimator(**options).fit(**BATCH, steps=steps))

    halved = {"learning_rate": 0.2, "schedule": {"type": "constant", "warmup_steps": 2}}
    np.testing.assert_array_equal(moved(1, **halved), moved(1, learning_rate=0.1))
    ended = {"schedule": {"type": "linear", "decay_steps": 3}}
    np.testing.assert_array_equal(moved(3, **ended), moved(9, **ended))  # the rate is 0 by then
    assert (moved(3, **ended) != moved(2, **ended)).all()


@pytest.mark.parametrize("kind", ["step", "cosine", "linear"])
def test_a_resumed_training_goes_on_with_the_schedule(kind: str, tmp_path: Path) -> None:
    own = {"every_steps": 2} if kind == "step" else {"decay_steps": 6}
    options = {"optimizer": "Adam", "learning_rate": 0.05, "schedule": {"type": kind, "warmup_steps": 2, **own}}
    whole = estimator(**options).fit(**BATCH, steps=7)
    estimator(**options, model_dir=tmp_path).fit(**BATCH, steps=3)
    resumed = estimator(**options, model_dir=tmp_path).fit(**BATCH, steps=4)
    np.testing.assert_array_equal(weights(resumed), weights(whole))
    assert resumed.get_variable_value("learning_rate") == np.float32(0.05)
