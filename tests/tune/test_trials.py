"""What became of a sweep's trials: the best one, the reasons of those that failed, and the tables. No Ray."""

from __future__ import annotations

from typing import Any

import pytest

from model.errors import ConfigError
from tune.report import effects, trials_table
from tune.trials import PROCESS_DIED, Trial, best_of, reason_of


def a_trial(name: str, score: float, **changes: Any) -> Trial:
    return Trial(
        **{"name": name, "settings": {}, "status": "finished", "score": score, "checkpoint": "there", **changes}
    )


def test_a_failed_trial_or_one_without_a_number_is_never_the_best() -> None:
    failed, nothing = a_trial("0", 0.1, status="failed"), a_trial("1", float("inf"))
    unreported, second, third = a_trial("2", 0.2, checkpoint=None), a_trial("3", 0.3), a_trial("4", 0.4)
    assert best_of([failed, nothing, unreported, third, second]) is second
    assert best_of([failed, nothing, unreported]) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Traceback (most recent call last):\n  File ...\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("The actor died unexpectedly before finishing this task.\n\tpid: 1\n", PROCESS_DIED),
        ("", "Ray gives no reason"),
    ],
)
def test_of_what_ray_says_of_a_failure_one_line_is_told(text: str, reason: str) -> None:
    assert reason_of(RuntimeError(text)) == reason


def test_a_mistake_of_the_users_is_found_behind_rays_errors() -> None:
    outer = RuntimeError("Ray's own")
    outer.__cause__ = ConfigError("a must be b")
    assert reason_of(outer) == "a must be b"


def test_effects_are_told_of_settings_whose_values_came_more_than_once() -> None:
    losses = {("lstm", 0.1): 1.0, ("lstm", 0.2): 2.0, ("gru", 0.3): 4.0}
    trials = [
        a_trial(str(i), loss, settings={"model.cell_type": cell, "train.learning_rate": rate}, metrics={"loss": loss})
        for i, ((cell, rate), loss) in enumerate(losses.items())
    ]
    failed = a_trial("9", 0.0, status="failed", settings={"model.cell_type": "gru"}, metrics={"loss": 0.0})
    assert effects([*trials, failed], "loss") == [
        ("model.cell_type", "lstm", 2, 1.5, 1.0),
        ("model.cell_type", "gru", 1, 4.0, 4.0),
    ]


def test_the_table_tells_trials_that_never_began() -> None:
    trials = [
        Trial("000", {"model.cell_type": "lstm"}, "not started"),
        a_trial("001", 1.0, metrics={"loss": 1.0}, step=2),
    ]
    columns = {column.header: list(column.cells) for column in trials_table(trials, "loss", trials[1]).columns}
    assert columns == {
        "": ["*", ""],
        "trial": ["001", "000"],
        "cell_type": ["", "lstm"],
        "loss": ["1.0000", ""],
        "at step": ["2", ""],
        "steps": ["0", ""],
        "seconds": ["", ""],
        "status": ["finished", "not started"],
    }
