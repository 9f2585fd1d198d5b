"""Optimizers of torch's and of the user's: as class, function, instance and registered name; resumed to the bit."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import DynamicRnnEstimator, PredictionType, ProblemType, real_valued_column, registry
from model.errors import ConfigError, TrainingError
from model.estimator.arguments import declare
from model.settings import build
from model.training.config import OptimizerConfig
from model.training.trainer import Trainer

BATCH: dict[str, Any] = {"x": {"x": np.arange(24.0).reshape(3, 8) / 24}, "y": np.ones((3, 8))}
CLASSES = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop,
    torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.ASGD, torch.optim.Rprop,
    torch.optim.Adafactor,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(registry._optimizers)
    yield
    registry._optimizers.clear()
    registry._optimizers.update(before)


def estimator(**options: Any) -> Any:
    settings: dict[str, Any] = {"num_units": [3, 2], "cell_type": "lstm", "config": {"device": "cpu"}}
    return DynamicRnnEstimator(
        ProblemType.LINEAR_REGRESSION, PredictionType.MULTIPLE_VALUE, [real_valued_column("x")], **(settings | options)
    )


def variables(model: Any) -> dict[str, np.ndarray]:
    return {name: model.get_variable_value(name) for name in model.get_variable_names()}


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: value for name, value in variables(model).items() if name.startswith(("cell", "projection"))}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def fitted(optimizer: Any, steps: int = 3, **options: Any) -> Any:
    return estimator(optimizer=optimizer, **options).fit(**BATCH, steps=steps)


# How it can be given ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        torch.optim.AdamW,
        lambda params, lr: torch.optim.AdamW(params, lr=lr),
        lambda params, rate: torch.optim.AdamW(params, lr=rate),
        lambda params: torch.optim.AdamW(params, lr=0.02),
        functools.partial(torch.optim.AdamW, eps=1e-8),
        functools.partial(torch.optim.AdamW, lr=0.02),
        torch.optim.AdamW([torch.zeros(1)], lr=0.02),
    ],
    ids=["class", "lr", "by place", "params alone", "partial", "partial with lr", "instance"],
)
def test_every_form_makes_the_same_optimizer(given: Any) -> None:
    registry.register_optimizer("adamw", torch.optim.AdamW)
    expected = fitted("adamw", learning_rate=0.02)
    assert_same(variables(fitted(given, learning_rate=0.02)), variables(expected))
    assert expected.get_variable_value("learning_rate") == np.float32(0.02)


def test_torchs_sgd_makes_the_steps_of_ours() -> None:
    assert_same(weights(fitted(torch.optim.SGD)), weights(fitted("SGD")))


def test_without_a_learning_rate_the_optimizers_own_holds() -> None:
    model = fitted(torch.optim.AdamW, learning_rate=None)
    assert model.get_variable_value("learning_rate") == np.float32(1e-3)
    schedule = {"type": "constant", "warmup_steps": 10**9}
    still = fitted(torch.optim.SGD, learning_rate=None, schedule=schedule)
    for name, value in weights(fitted("SGD", learning_rate=1e-60)).items():
        np.testing.assert_allclose(weights(still)[name], value, atol=1e-8)


def test_groups_keep_their_own_rates_under_a_schedule() -> None:
    def grouped(params: list[Any], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": params[:-2]}, {"params": params[-2:], "lr": 0.0}], lr=lr)

    model = fitted(grouped, schedule={"type": "linear", "decay_steps": 2}, steps=5)
    start = fitted("SGD", learning_rate=1e-60, steps=1)
    for name, value in weights(model).items():
        assert (value == weights(start)[name]).all() == name.startswith("projection"), name


def stepped_template() -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.ones(1))
    made = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(1)
    made.step()
    return made


def scheduled_template() -> torch.optim.Optimizer:
    made = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    torch.optim.lr_scheduler.ConstantLR(made)
    return made


TEMPLATE = (
    "DynamicRnnEstimator: an optimizer instance is taken as a template for the network's own parameters, but {}; give "
    "its class, or a function (params, lr) that makes it"
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (stepped_template, TEMPLATE.format("it has made steps already")),
        (scheduled_template, TEMPLATE.format("a scheduler of torch's hangs on it (use schedule=)")),
        (
            lambda: torch.optim.SGD([{"params": [torch.ones(1)]}, {"params": [torch.ones(1)]}]),
            TEMPLATE.format("it has 2 parameter groups"),
        ),
        (
            lambda: dict,
            "DynamicRnnEstimator: optimizer must be a name, a torch.optim class, an instance of one or a function "
            "(params, lr), but is class dict",
        ),
        (
            lambda: 7,
            "DynamicRnnEstimator: optimizer must be a name, a torch.optim class, an instance of one or a function "
            "(params, lr), but is 7",
        ),
    ],
)
def test_what_cannot_be_an_optimizer_is_told_at_once(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        estimator(optimizer=make())
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda params: 7, "optimizer: the function must return a torch.optim.Optimizer, but returns 7"),
        (
            lambda params, lr: torch.optim.SGD(params, lr=-lr),
            "optimizer: it cannot be made for this model's parameters: Invalid learning rate: -0.1",
        ),
        (
            torch.optim.LBFGS,
            "optimizer LBFGS evaluates the loss several times a step; use one that takes one gradient",
        ),
        (
            lambda params, lr: torch.optim.SGD(params[1:], lr=lr),
            "optimizer SGD must be over all parameters it was given, but leaves out cell.0.weight_ih",
        ),
        (
            lambda params, lr: torch.optim.SGD([*params, torch.nn.Parameter(torch.ones(1))], lr=lr),
            "optimizer SGD must be over all parameters it was given, but holds others, too",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_the_model_is_told(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        fitted(given)
    assert str(raised.value) == message


# Names in a config ------------------------------------------------------------------------------------------------


def test_a_registered_optimizer_trains_by_its_name_alone() -> None:
    registry.register_optimizer("adamw", torch.optim.AdamW)
    config = build(OptimizerConfig, {"optimizer": "adamw", "learning_rate": 0.02}, where="run.yaml")
    bundle = fitted("SGD").fitted_bundle()
    trainer = Trainer(bundle.network().train(), bundle.label, config, seed=0)
    assert type(trainer.optimizer).__name__ == "TorchOptimizer"
    assert declare(estimator(optimizer="adamw").get_params()).optimizer.model_dump()["optimizer"] == "adamw"


def test_code_has_no_place_in_a_config() -> None:
    with pytest.raises(ConfigError) as raised:
        build(OptimizerConfig, {"optimizer": torch.optim.AdamW}, where="run.yaml")
    assert str(raised.value) == (
        "run.yaml: optimizer must be a name in a config, for code cannot be saved, but is <class "
        "'torch.optim.adamw.AdamW'>; call model.registry.register_optimizer('some_name', …) and use that name"
    )


def test_a_taken_name_is_refused() -> None:
    registry.register_optimizer("mine", torch.optim.AdamW)
    registry.register_optimizer("mine", torch.optim.AdamW)
    for name in ("mine", "SGD"):
        with pytest.raises(ConfigError) as raised:
            registry.register_optimizer(name, torch.optim.SGD)
        assert str(raised.value) == f"optimizer name '{name}' is taken; register this one under another name"


# Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_training_in_parts_is_training_at_once_to_the_bit(kind: Any, tmp_path: Path) -> None:
    options = {"optimizer": kind, "learning_rate": 0.01, "schedule": {"type": "cosine", "decay_steps": 9}}
    whole = estimator(**options).fit(**BATCH, steps=6)
    estimator(**options, model_dir=tmp_path).fit(**BATCH, steps=2)
    resumed = estimator(**options, model_dir=tmp_path).fit(**BATCH, steps=4)
    assert_same(variables(whole), variables(resumed))
    names = {path.name for path in (tmp_path / "checkpoint-00000006").rglob("*") if path.is_file()}
    assert names == {"MANIFEST.json", "model.json", "model.safetensors", "state.json", "tensors.safetensors"}
    state = json.loads((tmp_path / "checkpoint-00000006" / "training" / "state.json").read_text())
    assert state["optimizer"] == kind.__name__


class Counting(torch.optim.SGD):
    """Keeps a count among its settings, as some optimizers do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        group["count"] = group.get("count", 0) + 1
        group["lr"] /= group["count"]
        super().step()


def test_settings_that_an_optimizer_changes_itself_are_resumed(tmp_path: Path) -> None:
    whole = fitted(Counting, steps=4)
    fitted(Counting, steps=2, model_dir=tmp_path)
    assert_same(weights(fitted(Counting, steps=2, model_dir=tmp_path)), weights(whole))


def test_settings_may_change_between_fits(tmp_path: Path) -> None:
    fitted(torch.optim.AdamW, steps=1, model_dir=tmp_path)
    still = functools.partial(torch.optim.AdamW, weight_decay=0.0)
    before = weights(estimator(model_dir=tmp_path))
    model = fitted(still, steps=1, model_dir=tmp_path, learning_rate=1e-60)
    assert_same(weights(model), before)


def test_another_optimizer_cannot_go_on(tmp_path: Path) -> None:
    fitted(torch.optim.AdamW, model_dir=tmp_path)
    for other, name in ((torch.optim.SGD, "SGD"), ("Adam", "Adam")):
        with pytest.raises(ConfigError) as raised:
            fitted(other, model_dir=tmp_path)
        assert str(raised.value) == (
            f"optimizer must be AdamW, with which the model has been trained so far, but is {name}; use another "
            f"model_dir"
        )
    fitted("Adam", model_dir=tmp_path / "ours")
    with pytest.raises(ConfigError, match=r"must be one of the original's six, .* but is AdamW"):
        fitted(torch.optim.AdamW, model_dir=tmp_path / "ours")


class Remembering(torch.optim.SGD):
    """Its state is neither tensors nor numbers."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.state[self.param_groups[0]["params"][0]]["seen"] = {1, 2}


def test_a_state_that_cannot_be_saved_is_told_at_the_first_step() -> None:
    with pytest.raises(TrainingError) as raised:
        fitted(Remembering, steps=9)
    assert str(raised.value) == (
        "optimizer Remembering must have a state of tensors and numbers, for it is saved without pickle, but "
        "seen/cell.0.weight_ih is of type set"
    )


# Clipping ---------------------------------------------------------------------------------------------------------


def test_a_function_may_clip() -> None:
    seen: list[str] = []

    def by_norm(gradients: list[tuple[torch.Tensor, str]]) -> list[tuple[torch.Tensor, str]]:
        seen.extend(name for _, name in gradients)
        norm = torch.cat([gradient.reshape(-1) for gradient, _ in gradients]).norm()
        return [(gradient * (0.01 / norm), name) for gradient, name in gradients]

    theirs = fitted("SGD", gradient_clipping_norm=by_norm, steps=2)
    ours = fitted("SGD", gradient_clipping_norm=0.01, steps=2)
    for name, value in weights(ours).items():
        np.testing.assert_allclose(weights(theirs)[name], value, rtol=1e-5, atol=1e-7)
    assert seen == 2 * sorted(weights(ours), key=seen.index)
    nothing = fitted("SGD", gradient_clipping_norm=lambda pairs: [(g * 0, name) for g, name in pairs])
    assert_same(weights(nothing), weights(fitted("SGD", learning_rate=1e-60)))


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (
            lambda pairs: None,
            "gradient_clipping_norm: a function must return the [(gradient, name)] it was given, with other gradients "
            "but the same names in the same order",
        ),
        (
            lambda pairs: pairs[1:],
            "gradient_clipping_norm: a function must return the [(gradient, name)] it was given, with other gradients "
            "but the same names in the same order",
        ),
        (
            lambda pairs: [(g.sum(), name) for g, name in pairs],
            "gradient_clipping_norm: the gradient of cell.0.weight_ih must keep its shape (12, 1), but the function "
            "gives ()",
        ),
    ],
)
def test_a_clipping_function_that_gives_something_else_is_told(clip: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        fitted("SGD", gradient_clipping_norm=clip)
    assert str(raised.value) == message
