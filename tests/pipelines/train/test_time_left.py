"""The time that is left, told by the loop itself, on a clock that each step and each validation moves on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows
from model.batches.plan import Plan
from model.bundle.bundle import Bundle
from pipelines.tracking.follower import Progress
from pipelines.tracking.time_left import TimeLeft
from pipelines.train import meter

ROWS = 40  # ten batches


@pytest.fixture
def told(
    make_bundle: Callable[..., Bundle],
    make_table: Callable[..., Any],
    train_in_memory: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[list[tuple[float, Progress]], float]]:
    """told(step_seconds, report_seconds, **train): (seconds passed, progress) of each step, and the seconds of all."""

    def run(
        step_seconds: Callable[[int], float], report_seconds: float, *, validates: bool = True, **train: Any
    ) -> tuple[list[tuple[float, Progress]], float]:
        bundle = make_bundle()
        rows = encode_rows(make_table(rows=ROWS), bundle.columns, bundle.label)
        passed, heard = [0.0], list[tuple[float, Progress]]()

        def batches(plan: Plan, start: int, stop: int) -> Iterator[SequenceBatch | None]:
            for step in range(start, stop):
                passed[0] += step_seconds(step) if plan.shuffle else 0.0
                yield collate(rows.take(np.concatenate([piece.rows for piece in plan.pieces(0, 1, step, step + 1)])))

        def report(_: Any) -> None:
            passed[0] += report_seconds

        monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: passed[0]))
        train_in_memory(
            bundle,
            rows,
            validation=rows if validates else None,
            job={"batches": batches, "report": report, "progress": lambda each: heard.append((passed[0], each))},
            **train,
        )
        return heard, passed[0]

    return run


@pytest.mark.parametrize(
    ("step_seconds", "report_seconds", "train"),
    [
        (lambda step: 1.0, 3.0, {"steps": 60, "evaluate_every_steps": 60}),
        (lambda step: 2.0 if step < 3 else 1.0, 8.0, {"steps": 100, "evaluate_every_steps": 10}),
        (lambda step: 3.0 if step < 5 else 1.0, 2.0, {"steps": 300, "evaluate_every_steps": 20}),
        (lambda step: (0.6, 1.4)[step // 5 % 2], 3.0, {"epochs": 6}),
        (lambda step: 1.0, 4.0, {"epochs": 2}),
        (lambda step: 1.0, 5.0, {"steps": 25, "accumulate_batches": 2}),
    ],
    ids=["even", "validations", "a slow start", "long and short batches", "few epochs", "accumulated"],
)
def test_the_time_left_is_right_within_a_quarter_after_a_tenth_of_the_time(
    told: Callable[..., Any], step_seconds: Callable[[int], float], report_seconds: float, train: dict[str, Any]
) -> None:
    heard, whole = told(step_seconds, report_seconds, **train)
    late = [(progress.seconds_left, whole - passed) for passed, progress in heard if passed > whole / 10]
    assert len(late) > 20 * 0.8
    worst = max(abs(left - true) / true for left, true in late if true)
    assert worst <= 0.25
    assert all(left == 0 for left, true in late if not true)


def test_a_time_budget_bounds_what_is_left(told: Callable[..., Any]) -> None:
    heard, _ = told(lambda step: 1.0, 0.0, validates=False, steps=200, evaluate_every_steps=200, max_minutes=1.0)
    assert [round(progress.seconds_left) for passed, progress in heard if passed in (11, 31, 51)] == [49, 29, 9]


def test_nothing_is_known_before_a_step_and_nothing_left_after_the_last() -> None:
    left = TimeLeft()
    assert math.isnan(left.seconds(5, 0))
    assert left.seconds(0, 0) == 0.0
    left.took(2, 1.0)
    assert left.seconds(10, 0) == pytest.approx(5.0)
    assert left.seconds(10, 2, guess_steps=4) == pytest.approx(5.0 + 2 * 2.0)
    left.paused(30.0)
    assert left.seconds(10, 2, guess_steps=4) == pytest.approx(5.0 + 60.0)
