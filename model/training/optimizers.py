"""The original's six optimizers with its defaults and update rules, on one flat vector of weights.

`Optimizer` is what they share with those of `torch.optim` (`model.training.torch_optimizers`).

Weights, gradients and slots each lie in one vector, so a step is a handful of vector operations, the global norm
is one norm, and workers reduce one buffer. Embedding tables come last: rules that move a weight without a gradient
(Momentum, RMSProp, Ftrl) touch only the rows that were looked up, as the original's sparse updates do.
Knows no batches, no losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.errors import ConfigError, TrainingError
from model.network.network import RnnNetwork
from model.training.config import OptimizerConfig, StepConfig

Tensor = torch.Tensor
Slots = dict[str, Tensor]
VOTES = 2


@dataclass(frozen=True)
class ParameterSlot:
    """Where one parameter lies in the flat vectors; `touched` is where its rows' look-up marks lie, for tables."""

    name: str
    start: int
    shape: tuple[int, ...]
    touched: int | None = None

    @property
    def stop(self) -> int:
        """End in the flat vectors."""
        return self.start + math.prod(self.shape)


class FlatParameters:
    """A network's trainable parameters as views of one vector, and their gradients as views of another.

    `buffer` holds, one behind the other: the gradients, a mark for each table row (> 0: looked up), the sums of losses
    and weights, and the workers' votes. It is all that workers add up.
    """

    def __init__(self, network: RnnNetwork) -> None:
        tables = {id(part.table) for part in network.inputs.modules() if getattr(part, "table", None) is not None}
        named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        named.sort(key=lambda pair: id(pair[1]) in tables)  # stable: dense ones first
        self.segments: list[ParameterSlot] = []
        total = sum(parameter.numel() for _, parameter in named)
        start, mark = 0, total
        for name, parameter in named:
            table = id(parameter) in tables
            self.segments.append(ParameterSlot(name, start, tuple(parameter.shape), mark if table else None))
            start += parameter.numel()
            mark += len(parameter) if table else 0
        self.size = total
        self.weights = torch.cat([parameter.detach().reshape(-1) for _, parameter in named])
        self.buffer = self.weights.new_zeros(mark + 2 + VOTES)
        self.parameters = dict(named)
        for segment, (_, parameter) in zip(self.segments, named, strict=True):
            parameter.data = self.weights[segment.start : segment.stop].view(segment.shape)
            parameter.grad = self.gradient[segment.start : segment.stop].view(segment.shape)

    @property
    def gradient(self) -> Tensor:
        """The gradients' part of the buffer, in the order of `segments`."""
        return self.buffer[: self.size]

    @property
    def sums(self) -> Tensor:
        """[loss sum, weight sum] of the step."""
        return self.buffer[-2 - VOTES : -VOTES]

    @property
    def votes(self) -> Tensor:
        """What workers tell each other beside the step, added up with it."""
        return self.buffer[-VOTES:]

    def mark(self, name: str, ids: Tensor) -> None:
        """Marks rows of table `name` as looked up; −1 is nothing."""
        segment = next(segment for segment in self.segments if segment.name == name)
        assert segment.touched is not None, "only tables have rows to mark"
        flat = ids.reshape(-1)
        self.buffer[segment.touched :].index_fill_(0, flat[flat >= 0], 1.0)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector cut into the parameters' names and shapes."""
        return {s.name: vector[s.start : s.stop].view(s.shape) for s in self.segments}


Clip = Callable[[list[tuple[Tensor, str]]], Sequence[tuple[Tensor, str]]]


class Optimizer:
    """What all optimizers do: check and clip the mean gradient, count the step, and have `_update` move the weights.

    `clip` replaces the clipping by a global norm: it gets [(gradient, name)] and returns the same with new gradients.
    """

    def __init__(self, config: StepConfig, flat: FlatParameters, clip: Clip | None = None) -> None:
        self.config = config
        self.flat = flat
        self.clip = clip
        self.step_count = 0

    def step(self, learning_rate: float) -> float:
        """Clips the mean gradient in the buffer, updates the weights, and returns the norm before clipping.

        TrainingError when the norm is not finite; nothing has moved then.
        """
        gradient = self.flat.gradient
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradients' norm must be a finite number, but is {norm} at step {self.step_count + 1}; lower "
                f"train.learning_rate, or look for extreme values in the data"
            )
        limit = self.config.gradient_clipping_norm
        if self.clip is not None:
            self._clip_by(self.clip)
        elif limit is not None and norm > limit:
            gradient.mul_(limit / norm)
        self.step_count += 1
        self._update(learning_rate)
        return norm

    def _clip_by(self, clip: Clip) -> None:
        views = self.flat.named(self.flat.gradient)
        clipped = clip([(view.clone(), name) for name, view in views.items()])
        pairs = isinstance(clipped, Sequence) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in clipped)
        if not pairs or [name for _, name in clipped] != list(views):
            raise ConfigError(
                "gradient_clipping_norm: a function must return the [(gradient, name)] it was given, with other "
                "gradients but the same names in the same order"
            )
        for (value, name), view in zip(clipped, views.values(), strict=True):
            if value.shape != view.shape:
                raise ConfigError(
                    f"gradient_clipping_norm: the gradient of {name} must keep its shape {tuple(view.shape)}, but the "
                    f"function gives {tuple(value.shape)}"
                )
            view.copy_(value)

    def _update(self, learning_rate: float) -> None:
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        """The rate at the schedule's factor 1."""
        return self.config.learning_rate

    def state_tensors(self) -> dict[str, Tensor]:
        """What the rule remembers, by `<slot>/<parameter>`, for a checkpoint."""
        raise NotImplementedError

    def state_numbers(self) -> dict[str, Any]:
        """What it remembers beside tensors, as plain data."""
        return {}

    def check_fits(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """ConfigError where the state is that of another optimizer."""
        raise NotImplementedError

    def load_state(self, step_count: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """The inverse of `state_tensors` and `state_numbers`."""
        raise NotImplementedError


class FlatOptimizer(Optimizer):
    """Applies one of the six rules; `step_count` and `slots` are its whole state."""

    def __init__(self, config: OptimizerConfig, flat: FlatParameters, clip: Clip | None = None) -> None:
        super().__init__(config, flat, clip)
        self.rule, self.momentum = config.optimizer, config.momentum
        fills = SLOTS[self.rule]
        self.slots: Slots = {name: torch.full_like(flat.weights, fill) for name, fill in fills.items()}

    def _update(self, learning_rate: float) -> None:
        gradient, update = self.flat.gradient, self._rule(learning_rate)
        if self.rule not in LAZY:
            update(self.flat.weights, gradient, self.slots)
            return
        dense = next((s.start for s in self.flat.segments if s.touched is not None), self.flat.size)
        update(self.flat.weights[:dense], gradient[:dense], {name: s[:dense] for name, s in self.slots.items()})
        for segment in self.flat.segments:
            if segment.touched is not None:
                self._update_rows(segment, segment.touched, update)

    def _update_rows(self, segment: ParameterSlot, mark: int, update: Callable[[Tensor, Tensor, Slots], None]) -> None:
        """The rule on the looked-up rows of a table alone."""
        rows = (self.flat.buffer[mark : mark + segment.shape[0]] > 0).nonzero().squeeze(1)

        def table(vector: Tensor) -> Tensor:
            return vector[segment.start : segment.stop].view(segment.shape)

        weights, slots = table(self.flat.weights)[rows], {n: table(s)[rows] for n, s in self.slots.items()}
        update(weights, table(self.flat.gradient)[rows], slots)
        table(self.flat.weights)[rows] = weights
        for name, values in slots.items():
            table(self.slots[name])[rows] = values

    def _rule(self, learning_rate: float) -> Callable[[Tensor, Tensor, Slots], None]:
        if self.rule == "Adam":
            return lambda w, g, slots: adam(w, g, slots, learning_rate, self.step_count)
        if self.rule == "Momentum":
            assert self.momentum is not None, "OptimizerConfig requires it"
            decay = self.momentum
            return lambda w, g, slots: momentum(w, g, slots, learning_rate, decay)
        rule = {"SGD": sgd, "Adagrad": adagrad, "RMSProp": rmsprop, "Ftrl": ftrl}[self.rule]
        return lambda w, g, slots: rule(w, g, slots, learning_rate)

    def state_tensors(self) -> dict[str, Tensor]:
        return {f"{slot}/{name}": t for slot, v in self.slots.items() for name, t in self.flat.named(v).items()}

    def check_fits(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        held = {name.split("/")[0] for name in tensors}
        theirs = numbers.get("optimizer")  # absent: one of the six, told by its slots
        if theirs is None and held == set(self.slots):
            return
        fitting = theirs or " or ".join(name for name, slots in SLOTS.items() if set(slots) == held)
        raise other_optimizer(fitting, self.rule)

    def load_state(self, step_count: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self.step_count = step_count
        for slot, vector in self.slots.items():
            for name, view in self.flat.named(vector).items():
                view.copy_(tensors[f"{slot}/{name}"])


def other_optimizer(trained_with: str, now: str) -> ConfigError:
    """The error for a state of another optimizer."""
    return ConfigError(
        f"optimizer must be {trained_with}, with which the model has been trained so far, but is {now}; use another "
        f"model_dir"
    )


# The rules, in place on weights w, gradients g and slots of one shape ------------------------------------------

SLOTS: dict[str, dict[str, float]] = {
    "SGD": {},
    "Momentum": {"momentum": 0.0},
    "Adagrad": {"accumulator": 0.1},
    "Adam": {"m": 0.0, "v": 0.0},
    "RMSProp": {"mean_square": 1.0},
    "Ftrl": {"accumulator": 0.1, "linear": 0.0},
}
LAZY = frozenset({"Momentum", "RMSProp", "Ftrl"})  # move weights even where the gradient is zero


def sgd(w: Tensor, g: Tensor, _slots: Slots, lr: float) -> None:
    """w ← w − lr·g."""
    w.add_(g, alpha=-lr)


def momentum(w: Tensor, g: Tensor, slots: Slots, lr: float, decay: float) -> None:
    """a ← decay·a + g; w ← w − lr·a. No Nesterov, no dampening."""
    w.add_(slots["momentum"].mul_(decay).add_(g), alpha=-lr)


def adagrad(w: Tensor, g: Tensor, slots: Slots, lr: float) -> None:
    """a ← a + g² from 0.1; w ← w − lr·g/√a, without an epsilon."""
    w.addcdiv_(g, slots["accumulator"].addcmul_(g, g).sqrt(), value=-lr)


def adam(w: Tensor, g: Tensor, slots: Slots, lr: float, t: int) -> None:
    """Adam with β = (0.9, 0.999) and ε = 1e-8 in the paper's "epsilon hat" place, unlike `torch.optim.Adam`."""
    m, v = slots["m"].lerp_(g, 0.1), slots["v"].mul_(0.999).addcmul_(g, g, value=0.001)
    w.addcdiv_(m, v.sqrt().add_(1e-8), value=-lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t))


def rmsprop(w: Tensor, g: Tensor, slots: Slots, lr: float) -> None:
    """s ← 0.9·s + 0.1·g² from 1; w ← w − lr·g/√(s + 1e-10)."""
    w.addcdiv_(g, slots["mean_square"].mul_(0.9).addcmul_(g, g, value=0.1).add(1e-10).sqrt_(), value=-lr)


def ftrl(w: Tensor, g: Tensor, slots: Slots, lr: float) -> None:
    """a' = a + g² from 0.1; l ← l + g − (√a' − √a)/lr·w; w ← −l·lr/√a'. No regularisation."""
    a, linear = slots["accumulator"], slots["linear"]
    before = a.sqrt()
    after = a.addcmul_(g, g).sqrt()
    linear.add_(g).sub_((after - before).mul_(w).div_(lr))
    w.copy_(linear).div_(after).mul_(-lr)
