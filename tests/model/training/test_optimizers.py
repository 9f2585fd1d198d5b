"""The original's six optimizers against a restatement of its rules in float64 numpy, a parameter at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import ConfigError, TrainingError
from model.settings import build
from model.training.config import OptimizerConfig
from model.training.optimizers import VOTES, FlatOptimizer, FlatParameters

RULES = ("SGD", "Momentum", "Adagrad", "Adam", "RMSProp", "Ftrl")
MOVE_WITHOUT_GRADIENT = ("Momentum", "RMSProp", "Ftrl")
RATE, STEPS = 0.05, 6
Arrays = dict[str, np.ndarray]


class Reference:
    """One parameter and its slots."""

    def __init__(self, rule: str, w: np.ndarray) -> None:
        self.rule, self.w = rule, w.copy()
        self.a = np.full_like(w, 0.1 if rule in ("Adagrad", "Ftrl") else 1.0 if rule == "RMSProp" else 0.0)
        self.b = np.zeros_like(w)

    def step(self, g: np.ndarray, t: int, rows: Any) -> None:
        """`rows` are those that move (all of them, but for embedding tables)."""
        before = self.w.copy(), self.a.copy(), self.b.copy()
        self.apply(g, t)
        for mine, old in zip((self.w, self.a, self.b), before, strict=True):
            kept = np.ones(len(mine), bool)
            kept[rows] = False
            mine[kept] = old[kept]

    def apply(self, g: np.ndarray, t: int) -> None:
        if self.rule == "SGD":
            self.w -= RATE * g
        elif self.rule == "Momentum":
            self.a = 0.9 * self.a + g
            self.w -= RATE * self.a
        elif self.rule == "Adagrad":
            self.a += g**2
            self.w -= RATE * g / np.sqrt(self.a)
        elif self.rule == "Adam":
            self.a = 0.9 * self.a + 0.1 * g
            self.b = 0.999 * self.b + 0.001 * g**2
            rate = RATE * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            self.w -= rate * self.a / (np.sqrt(self.b) + 1e-8)
        elif self.rule == "RMSProp":
            self.a = 0.9 * self.a + 0.1 * g**2
            self.w -= RATE * g / np.sqrt(self.a + 1e-10)
        else:
            new = self.a + g**2
            self.b += g - (np.sqrt(new) - np.sqrt(self.a)) / RATE * self.w
            self.a = new
            self.w = -self.b * RATE / np.sqrt(self.a)


def config_of(rule: str, clip: float | None = None) -> OptimizerConfig:
    momentum = 0.9 if rule == "Momentum" else None
    return OptimizerConfig(optimizer=rule, learning_rate=RATE, momentum=momentum, gradient_clipping_norm=clip)


def flat_of(make_bundle: Any) -> FlatParameters:
    return FlatParameters(make_bundle(dtype="float64", num_units=[3]).network())


def fill_gradient(flat: FlatParameters, step: int, scale: float = 1.0) -> dict[str, list[int]]:
    """A seeded gradient, zero in the table rows that are not looked up; those that are, by table."""
    random = np.random.default_rng(step)
    flat.buffer.zero_()
    flat.gradient.copy_(torch.from_numpy(random.normal(size=flat.size) * scale))
    looked_up = {}
    for segment in flat.segments:
        if segment.touched is not None:
            rows = sorted(random.choice(segment.shape[0], 2, replace=False).tolist())
            looked_up[segment.name] = rows
            kept = torch.zeros(segment.shape[0], 1, dtype=torch.float64)
            kept[rows] = 1
            flat.named(flat.gradient)[segment.name].mul_(kept)
            flat.mark(segment.name, torch.tensor([[*rows, -1, rows[0]]]))
    return looked_up


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("rule", RULES)
def test_weights_follow_the_originals_rule(make_bundle: Any, rule: str, clip: float | None) -> None:
    flat = flat_of(make_bundle)
    optimizer = FlatOptimizer(config_of(rule, clip), flat)
    references = {name: Reference(rule, view.numpy()) for name, view in flat.named(flat.weights).items()}
    for step in range(1, STEPS + 1):
        looked_up = fill_gradient(flat, step, scale=0.01 if step == 2 else 1.0)  # step 2 lies below the clip norm
        gradients = {name: view.numpy().copy() for name, view in flat.named(flat.gradient).items()}
        norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        factor = 1.0 if clip is None else clip / max(norm, clip)
        assert optimizer.step(RATE) == pytest.approx(norm, rel=1e-12)
        for name, reference in references.items():
            lazy = rule in MOVE_WITHOUT_GRADIENT and name in looked_up
            reference.step(gradients[name] * factor, step, looked_up[name] if lazy else slice(None))
        for name, view in flat.named(flat.weights).items():
            np.testing.assert_allclose(view.numpy(), references[name].w, rtol=1e-12, atol=1e-14)
    assert optimizer.step_count == STEPS


@pytest.mark.parametrize("rule", RULES)
def test_a_table_row_that_was_never_looked_up_never_moves(make_bundle: Any, rule: str) -> None:
    flat = flat_of(make_bundle)
    optimizer = FlatOptimizer(config_of(rule), flat)
    before = flat.weights.clone()
    seen: dict[str, set[int]] = {}
    for _ in range(2):
        for name, rows in fill_gradient(flat, 100).items():  # the same rows at each step
            seen.setdefault(name, set()).update(rows)
        optimizer.step(RATE)
    for name, view in flat.named(flat.weights).items():
        if name in seen:
            still = [row for row in range(len(view)) if row not in seen[name]]
            assert still
            assert torch.equal(view[still], flat.named(before)[name][still])
            assert not torch.equal(view, flat.named(before)[name])


def test_the_first_ftrl_step_replaces_weights_even_without_a_gradient(make_bundle: Any) -> None:
    flat = flat_of(make_bundle)
    flat.buffer.zero_()
    FlatOptimizer(config_of("Ftrl"), flat).step(RATE)
    for segment, view in zip(flat.segments, flat.named(flat.weights).values(), strict=True):
        assert bool(view.any()) == (segment.touched is not None)


@pytest.mark.parametrize("rule", RULES)
def test_a_saved_state_goes_on_bit_for_bit(make_bundle: Any, rule: str) -> None:
    def run(optimizer: FlatOptimizer, steps: range) -> None:
        for step in steps:
            fill_gradient(optimizer.flat, step)
            optimizer.step(RATE)

    whole, part, resumed = (FlatOptimizer(config_of(rule), flat_of(make_bundle)) for _ in range(3))
    run(whole, range(6))
    run(part, range(3))
    saved = {name: tensor.clone() for name, tensor in part.state_tensors().items()}
    resumed.flat.weights.copy_(part.flat.weights)
    resumed.load_state(part.step_count, saved, {})
    run(resumed, range(3, 6))
    assert torch.equal(resumed.flat.weights, whole.flat.weights)
    assert (resumed.step_count, sorted(resumed.state_tensors())) == (6, sorted(whole.state_tensors()))


def test_parameters_gradients_and_tables_are_views_of_one_vector(make_bundle: Any) -> None:
    network = make_bundle().network()
    named = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    flat = FlatParameters(network)
    names = [segment.name for segment in flat.segments]
    assert sorted(names) == sorted(named)
    tables = ["inputs.sequence.0.weight", "inputs.context.0.weight"]
    assert names[-2:] == tables
    assert [segment.name for segment in flat.segments if segment.touched is not None] == tables
    flat.buffer.fill_(2)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, named[name])
        assert torch.equal(parameter.grad, torch.full_like(parameter, 2))
    flat.weights.zero_()
    assert not any(parameter.any() for parameter in network.parameters())
    rows = sum(named[name].shape[0] for name in tables)
    assert len(flat.buffer) == flat.size + rows + 2 + VOTES


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_that_is_no_number_moves_nothing(make_bundle: Any, rule: str, value: float) -> None:
    flat = flat_of(make_bundle)
    optimizer = FlatOptimizer(config_of(rule, 5.0), flat)
    before, slots = flat.weights.clone(), {name: slot.clone() for name, slot in optimizer.slots.items()}
    fill_gradient(flat, 1)
    flat.gradient[3] = value
    with pytest.raises(TrainingError) as raised:
        optimizer.step(RATE)
    assert str(raised.value) == (
        f"the gradients' norm must be a finite number, but is {value} at step 1; lower train.learning_rate, or look "
        f"for extreme values in the data"
    )
    assert torch.equal(flat.weights, before)
    assert all(torch.equal(optimizer.slots[name], slot) for name, slot in slots.items())
    assert optimizer.step_count == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "Momentum"}, "optimizer Momentum needs `momentum`, but it is null; 0.9 is a usual value"),
        ({"momentum": 0.9}, "momentum is for optimizer Momentum, but optimizer is SGD"),
        (
            {"optimizer": "adam"},
            "optimizer must be one of Adagrad, Adam, Ftrl, Momentum, RMSProp, SGD, but is 'adam'; did you mean Adam?; "
            "one of your own must be registered by a module listed under `plugins:`",
        ),
        ({"learning_rate": 0}, "learning_rate must be greater than 0, but is 0"),
        ({"gradient_clipping_norm": -1}, "gradient_clipping_norm must be greater than 0, but is -1"),
    ],
)
def test_a_faulty_setting_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(OptimizerConfig, settings, where="run.yaml")
    assert str(raised.value) == f"run.yaml: {message}"
