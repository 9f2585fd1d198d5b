"""Points of the space, and the run that a point stands for. Knows no Ray and starts nothing.

Draws depend on the seed alone. A trial is a pure function of its settings (all trials train with the run's own
seed), so a list of values is drawn from without repetition: a point tried twice would tell nothing new.

What a value becomes in the run:

    model.num_units: 64                          [64]: a number is one layer
    model.dropout_keep_probabilities: 0.8        [1.0, 0.8, …, 0.8]: the input is kept whole, the output of each
                                                 layer is kept with this probability; fits any number of layers
    train.momentum: 0.9                          null in trials whose optimizer is not Momentum
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from model.errors import ConfigError
from model.settings import build
from model.settings.messages import config_error, quoted
from pipelines.config import RunConfig
from tune.config import DEFAULT_TRIALS, TuneConfig
from tune.space import Choice, Grid

Point = dict[str, Any]
MOST_COMBINATIONS = 1000  # checking one takes about a quarter of a millisecond
_DROPOUT, _MOMENTUM = "model.dropout_keep_probabilities", "train.momentum"


def points(config: RunConfig, tuning: TuneConfig) -> list[Point]:
    """The settings of each trial of a random or grid search, in order."""
    crossed = {
        name: declaration.values
        for name, declaration in tuning.space.items()
        if isinstance(declaration, Choice) and (isinstance(declaration, Grid) or tuning.search == "grid")
    }
    # The same draws for each combination of the grid, so that its values are compared under equal conditions.
    return [
        {name: (drawn | combination)[name] for name in tuning.space}
        for drawn in _draws(config, tuning, crossed)
        for combination in _combinations(crossed)
    ]


def _draws(config: RunConfig, tuning: TuneConfig, crossed: Mapping[str, Any]) -> list[Point]:
    space = {name: tuning.space[name] for name in sorted(tuning.space) if name not in crossed}
    seed = config.train.seed if tuning.seed is None else tuning.seed
    random = np.random.Generator(np.random.PCG64(seed))
    count = tuning.trials or DEFAULT_TRIALS
    lists = {name: declaration.values for name, declaration in space.items() if isinstance(declaration, Choice)}
    if len(lists) < len(space):
        return [{name: declaration.draw(random) for name, declaration in space.items()} for _ in range(count)]
    sizes = [len(values) for values in lists.values()]
    numbers = random.choice(math.prod(sizes), min(count, math.prod(sizes)), replace=False)
    places = [np.unravel_index(number, sizes) if sizes else () for number in numbers]
    return [{name: values[int(place[i])] for i, (name, values) in enumerate(lists.items())} for place in places]


def _combinations(lists: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def trial_run(config: RunConfig, tuning: TuneConfig, point: Mapping[str, Any], *, where: str = "trial") -> RunConfig:
    """The run of one trial: the sweep's run with the point's settings and the trial's budget."""
    run = config.model_dump(mode="json") | {"tune": None, "serve": None}
    run["resources"] |= {"workers": tuning.workers_per_trial}
    if tuning.steps is not None or tuning.epochs is not None:
        run["train"] |= {"steps": tuning.steps, "epochs": tuning.epochs}
    if tuning.evaluate_every_steps is not None:
        run["train"] |= {"evaluate_every_steps": tuning.evaluate_every_steps}
    return _with_point(run, point, where)


def best_run(config: RunConfig, point: Mapping[str, Any]) -> RunConfig:
    """The sweep's run with the best settings and its own budget: what to train next."""
    run = config.model_dump(mode="json") | {"tune": None, "name": f"{config.name}-best"}
    return _with_point(run, point, "best")


def _with_point(run: dict[str, Any], point: Mapping[str, Any], where: str) -> RunConfig:
    for name, value in point.items():
        room, _, field = name.partition(".")
        run[room][field] = value
    if _MOMENTUM in point and run["train"]["optimizer"] != "Momentum":
        run["train"]["momentum"] = None
    return build(RunConfig, run, where=where)


# Checks before anything starts ------------------------------------------------------------------------------------


def check_points(config: RunConfig, tuning: TuneConfig) -> None:
    """ConfigError that names each value or combination of the space which makes no valid run."""
    faults: dict[str, list[Point]] = {}
    tried = list(to_check(config, tuning))
    for point in tried:
        for fault in _faults(config, tuning, point):
            faults.setdefault(fault, []).append(point)
    if faults:
        raise config_error("tune.space", [_fault_line(fault, bad, tried) for fault, bad in faults.items()])


def to_check(config: RunConfig, tuning: TuneConfig) -> Iterator[Point]:
    """All combinations where they are few; else each value beside the others' first, and every drawn point."""
    values = {name: declaration.checked for name, declaration in tuning.space.items()}
    if math.prod(len(of_one) for of_one in values.values()) <= MOST_COMBINATIONS:
        yield from _combinations(values)
        return
    first = {name: of_one[0] for name, of_one in values.items()}
    yield from ({**first, name: value} for name, of_one in values.items() for value in of_one)
    if tuning.search != "optuna":
        yield from points(config, tuning)


def _faults(config: RunConfig, tuning: TuneConfig, point: Point) -> list[str]:
    try:
        trial_run(config, tuning, point)
    except ConfigError as error:
        lines = str(error).splitlines()
        return [line.removeprefix("trial: ") for line in (lines[1:] if len(lines) > 1 else lines)]
    return []


def _fault_line(fault: str, bad: list[Point], tried: list[Point]) -> str:
    """The fault behind the settings that bring it about: those that are not free while it stays."""
    point = bad[0]
    guilty = {
        name: value
        for name, value in point.items()
        if any(other not in bad for other in tried if _differ_in(other, point) == [name])
    } or point
    settings = ", ".join(f"{name} {quoted(value)}" for name, value in guilty.items())
    # The rules above, where they would help.
    hint = ""
    if "needs `momentum`" in fault:
        hint = f"; in the space, {_MOMENTUM} is left out of trials with another optimizer"
    if "dropout_keep_probabilities must hold" in fault:
        hint = f"; a single number in the space for {_DROPOUT} fits any number of layers"
    return f"{settings}: {fault}{hint}"


def _differ_in(one: Point, other: Point) -> list[str]:
    return [name for name in one if one[name] != other[name]]
