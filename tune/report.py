"""The sweep's table: the best trial first, and what each value did on average. Knows no Ray."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tune.trials import Trial, short_name, value_words

if TYPE_CHECKING:
    from tune.sweep import SweepResult

WIDTH = 160
MOST_VALUES = 8  # of a setting that is told value by value; a range has a value a trial


def table(result: SweepResult, *, width: int = WIDTH) -> str:
    """The tables as text: all trials, then the averages."""
    tables = [trials_table(result.trials, result.metric, result.best)]
    tables += [effects_table(result.trials, result.metric)] if effects(result.trials, result.metric) else []
    stream = io.StringIO()
    console = Console(file=stream, width=width, no_color=True)
    for each in tables:
        console.print(each)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def trials_table(trials: Sequence[Trial], metric: str, best: Trial | None) -> Table:
    """A row a trial, the best first and marked; those without a score last."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.settings))
    rich_table = Table(title="trials", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "trial", *map(short_name, names)):
        rich_table.add_column(heading)
    for heading in (metric, "at step", "steps", "seconds"):
        rich_table.add_column(heading, justify="right")
    rich_table.add_column("status", overflow="fold")
    for trial in sorted(trials, key=lambda each: (each.score, each.name)):
        values = [value_words(trial.settings[name]) if name in trial.settings else "" for name in names]
        mark = "*" if best is not None and trial.name == best.name else ""
        rich_table.add_row(mark, trial.name, *values, *_numbers(trial, metric), _status(trial))
    return rich_table


def _numbers(trial: Trial, metric: str) -> list[str]:
    if trial.step is None:
        return ["", "", f"{trial.steps}" if trial.steps else "", _seconds(trial)]
    return [f"{_value(trial, metric):.4f}", f"{trial.step}", f"{trial.steps}", _seconds(trial)]


def _seconds(trial: Trial) -> str:
    return f"{trial.seconds:.1f}" if trial.seconds else ""


def _value(trial: Trial, metric: str) -> float:
    return trial.metrics.get(metric, math.nan)


def _status(trial: Trial) -> str:
    return trial.status if trial.reason is None else f"{trial.status}: {trial.reason}"


def effects(trials: Iterable[Trial], metric: str) -> list[tuple[str, str, int, float, float]]:
    """(setting, value, trials, mean, best) of each value that several trials could have.

    Trials that were stopped early count with their best report, so a value that is slow at first looks worse.
    """
    scored = [trial for trial in trials if math.isfinite(trial.score) and trial.status != "failed"]
    found = []
    for name in dict.fromkeys(name for trial in scored for name in trial.settings):
        groups: dict[str, list[Trial]] = {}
        for trial in scored:
            groups.setdefault(value_words(trial.settings[name]), []).append(trial)
        if 1 < len(groups) <= min(MOST_VALUES, len(scored) - 1):
            found += [(name, words, *_summary(group, metric)) for words, group in groups.items()]
    return found


def _summary(trials: Sequence[Trial], metric: str) -> tuple[int, float, float]:
    best = min(trials, key=lambda trial: trial.score)
    return len(trials), sum(_value(trial, metric) for trial in trials) / len(trials), _value(best, metric)


def effects_table(trials: Sequence[Trial], metric: str) -> Table:
    """A row for each value of each setting."""
    rich_table = Table(title=f"\n{metric} by setting", title_justify="left", box=None, pad_edge=False)
    for heading in ("setting", "value"):
        rich_table.add_column(heading)
    for heading in ("trials", "mean", "best"):
        rich_table.add_column(heading, justify="right")
    before: Any = None
    for name, words, count, mean, best in effects(trials, metric):
        shown_name = "" if name == before else short_name(name)
        rich_table.add_row(shown_name, words, f"{count}", f"{mean:.4f}", f"{best:.4f}")
        before = name
    return rich_table
