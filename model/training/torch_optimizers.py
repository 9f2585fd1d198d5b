"""Optimizers of `torch.optim`, or of the user's, on the network's named parameters, with our clipping and schedules.

Three forms: a class, made as cls(params, lr=learning_rate); a function, called as f(params, lr) or f(params); and an
instance, which is a template, for its own parameters are not the network's: its class and settings are used. Gradients
are dense: such an optimizer moves the rows of embedding tables that were not looked up as its rule says.

The state is saved as tensors and plain data, without pickle. Knows no batches, no losses.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model.errors import ConfigError, TrainingError
from model.registry import registered_optimizer
from model.training.config import OptimizerConfig, StepConfig
from model.training.optimizers import Clip, FlatOptimizer, FlatParameters, Optimizer, other_optimizer

Tensor = torch.Tensor
Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class OptimizerCode:
    """What of an optimizer is code, and so has no place in a config."""

    factory: Factory | None = None
    clip: Clip | None = None


NO_CODE = OptimizerCode()


def make_optimizer(config: StepConfig, flat: FlatParameters, code: OptimizerCode = NO_CODE) -> Optimizer:
    """The optimizer that `code` makes or, where it makes none, that the config names."""
    if code.factory is not None:
        return TorchOptimizer(config, flat, code.factory, code.clip)
    assert isinstance(config, OptimizerConfig), "an optimizer has a name or a factory"
    registered = registered_optimizer(config.optimizer)
    if registered is None:
        return FlatOptimizer(config, flat, code.clip)
    factory = factory_of(registered, config.learning_rate, where=f"optimizer {config.optimizer}")
    return TorchOptimizer(config, flat, factory, code.clip)


# Making one -------------------------------------------------------------------------------------------------------


def factory_of(given: Any, learning_rate: float | None, *, where: str) -> Factory:
    """What makes an optimizer for given parameters, from a class, a function or an instance; ConfigError for others."""
    if isinstance(given, torch.optim.Optimizer):
        return _from_template(given, where)
    if isinstance(given, type) and issubclass(given, torch.optim.Optimizer):
        options: dict[str, Any] = {} if learning_rate is None else {"lr": learning_rate}
        return lambda parameters: given(parameters, **options)
    if callable(given) and not isinstance(given, type):
        return _from_function(given, learning_rate)
    shown = f"class {given.__name__}" if isinstance(given, type) else repr(given)
    raise ConfigError(
        f"{where}: optimizer must be a name, a torch.optim class, an instance of one or a function (params, lr), but "
        f"is {shown}"
    )


def _from_function(given: Callable[..., Any], learning_rate: float | None) -> Factory:
    """f(params, lr), or f(params) where it takes no rate or has a bound one, or where there is none to give."""
    fixed = isinstance(given, functools.partial) and "lr" in given.keywords
    names = list(inspect.signature(given).parameters)
    if learning_rate is None or fixed or len(names) < 2:
        return given
    if "lr" in names:
        return lambda parameters: given(parameters, lr=learning_rate)
    return lambda parameters: given(parameters, learning_rate)


def _from_template(given: torch.optim.Optimizer, where: str) -> Factory:
    """The instance's class with its settings, for other parameters. ConfigError for what that cannot carry over."""
    kind, group = type(given), given.param_groups[0]
    problem = None
    if len(given.param_groups) != 1:
        problem = f"it has {len(given.param_groups)} parameter groups"
    elif given.state:
        problem = "it has made steps already"
    elif "initial_lr" in group:
        problem = "a scheduler of torch's hangs on it (use schedule=)"
    if problem is not None:
        raise ConfigError(
            f"{where}: an optimizer instance is taken as a template for the network's own parameters, but {problem}; "
            f"give its class, or a function (params, lr) that makes it"
        )
    known = inspect.signature(kind.__init__).parameters
    options = {name: value for name, value in group.items() if name != "params" and name in known}
    return lambda parameters: kind(parameters, **options)


# The optimizer ----------------------------------------------------------------------------------------------------


class TorchOptimizer(Optimizer):
    """An optimizer of torch's over the network's parameters, whose gradients are views of the flat buffer."""

    def __init__(self, config: StepConfig, flat: FlatParameters, factory: Factory, clip: Clip | None = None) -> None:
        super().__init__(config, flat, clip)
        self.made = _made(factory, list(flat.parameters.values()))
        self.name = type(self.made).__name__
        self._declared = [_settings(group) for group in self.made.param_groups]
        self._names = self._index(flat)

    def _index(self, flat: FlatParameters) -> list[str]:
        """The parameters' names in the order of torch's state; ConfigError where one is missing."""
        names = {id(parameter): name for name, parameter in flat.parameters.items()}
        held = [names.get(id(each)) for group in self.made.param_groups for each in group["params"]]
        missing = sorted(set(names.values()) - set(held))
        if None in held or missing:
            what = f"leaves out {', '.join(missing)}" if missing else "holds others, too"
            raise ConfigError(f"optimizer {self.name} must be over all parameters it was given, but {what}")
        return [name for name in held if name is not None]

    @property
    def learning_rate(self) -> float:
        return float(self._declared[0].get("lr", self.config.learning_rate))

    def _update(self, learning_rate: float) -> None:
        factor = learning_rate / self.config.learning_rate
        for group, declared in zip(self.made.param_groups, self._declared, strict=True):
            if "lr" in declared:
                group["lr"] = declared["lr"] * factor
        self.made.step()
        if self.step_count == 1:
            self._parts()  # so that a state which cannot be saved is told at once

    # State: tensors by `<slot>/<parameter>`, the rest as plain data; of the groups' settings those that have changed.

    def state_tensors(self) -> dict[str, Tensor]:
        return self._parts()[0]

    def state_numbers(self) -> dict[str, Any]:
        return {"optimizer": self.name, "optimizer_values": self._parts()[1], "optimizer_groups": self._changed()}

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = {}, {}
        for index, slots in self.made.state_dict()["state"].items():
            for slot, value in slots.items() if isinstance(index, int) else ():
                name = f"{slot}/{self._names[index]}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                elif _is_plain(value):
                    values[name] = value
                else:
                    raise TrainingError(
                        f"optimizer {self.name} must have a state of tensors and numbers, for it is saved without "
                        f"pickle, but {name} is of type {type(value).__name__}"
                    )
        return tensors, values

    def _changed(self) -> list[dict[str, Any]]:
        """What the optimizer itself has changed in its groups; the rate is the schedule's business."""
        groups = []
        for group, declared in zip(self.made.param_groups, self._declared, strict=True):
            now = _settings(group)
            groups.append({k: v for k, v in now.items() if k != "lr" and (k not in declared or declared[k] != v)})
        return groups

    def check_fits(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        theirs = numbers.get("optimizer")
        if theirs != self.name:
            raise other_optimizer(theirs or "one of the original's six", self.name)

    def load_state(self, step_count: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self.step_count = step_count
        state: dict[int, dict[str, Any]] = {}
        for name, value in (*tensors.items(), *numbers["optimizer_values"].items()):
            slot, _, parameter = name.partition("/")
            state.setdefault(self._names.index(parameter), {})[slot] = value
        groups = self.made.state_dict()["param_groups"]
        for group, changed in zip(groups, numbers["optimizer_groups"], strict=True):
            group.update(changed)
        self.made.load_state_dict({"state": state, "param_groups": groups})


def _made(factory: Factory, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer, if it is one that can be used here."""
    try:
        made = factory(parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: it cannot be made for this model's parameters: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"optimizer: the function must return a torch.optim.Optimizer, but returns {made!r}")
    name = type(made).__name__
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(f"optimizer {name} evaluates the loss several times a step; use one that takes one gradient")
    if isinstance(made, torch.optim.SparseAdam):
        raise ConfigError(f"optimizer {name} needs sparse gradients, but they are dense here; Adam is lazy in no row")
    return made


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings as plain data: what is not that is neither compared nor saved."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in group.items()}
    return {name: value for name, value in plain.items() if name != "params" and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
