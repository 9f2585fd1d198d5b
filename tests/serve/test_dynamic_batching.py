"""The batcher: what is scored together, and that no request suffers from another."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pyarrow as pa

from model.scoring.scorer import Scored
from serve.dynamic_batching import Batcher


def numbers(first: int, rows: int) -> pa.Table:
    return pa.table({"x": np.arange(first, first + rows)})


def doubled(table: pa.Table) -> Scored:
    values = np.array(table["x"], np.float32)
    return Scored(pa.table({"scores": values * 2}), (values[:, None],), {})


async def gathered(batcher: Batcher, tables: list[pa.Table]) -> list[Scored | BaseException]:
    return await asyncio.gather(*(batcher.score(table) for table in tables), return_exceptions=True)


def scores(results: list[Scored | BaseException]) -> list[Any]:
    return [
        result.predictions["scores"].to_pylist() if isinstance(result, Scored) else repr(result) for result in results
    ]


def test_requests_that_wait_together_are_scored_together() -> None:
    seen: list[int] = []

    def score(table: pa.Table) -> Scored:
        seen.append(table.num_rows)
        return doubled(table)

    tables = [numbers(0, 2), numbers(10, 1), numbers(20, 2), numbers(30, 7), numbers(40, 1)]
    results = asyncio.run(gathered(Batcher(score, 5), tables))
    assert scores(results) == [[0, 2], [20], [40, 42], [60, 62, 64, 66, 68, 70, 72], [80]]
    assert seen == [5, 7, 1]


def test_a_failure_fails_its_own_request_only() -> None:
    def score(table: pa.Table) -> Scored:
        if 13 in table["x"].to_pylist():
            raise RuntimeError("a mistake of ours")
        return doubled(table)

    results = asyncio.run(gathered(Batcher(score, 5), [numbers(1, 1), numbers(13, 1), numbers(2, 1)]))
    assert scores(results) == [[2], "RuntimeError('a mistake of ours')", [4]]


def test_a_state_that_overflows_is_an_error_of_its_row() -> None:
    def overflowing(table: pa.Table) -> Scored:
        scored = doubled(table)
        return Scored(scored.predictions, (np.array([[1], [np.inf], [2]], np.float32),), {})

    first, second = asyncio.run(gathered(Batcher(overflowing, 5), [numbers(0, 1), numbers(1, 2)]))
    assert isinstance(first, Scored)
    assert isinstance(second, Scored)
    assert first.errors == {}
    assert {row: str(error) for row, error in second.errors.items()} == {
        0: "the features are too large: the model's answer to them is not finite"
    }


def test_a_caller_that_has_gone_is_not_waited_for() -> None:
    async def leave_and_stay() -> Scored:
        batcher = Batcher(doubled, 5)
        gone = asyncio.create_task(batcher.score(numbers(1, 1)))
        await asyncio.sleep(0)
        gone.cancel()
        return await batcher.score(numbers(2, 1))

    assert scores([asyncio.run(leave_and_stay())]) == [[4]]
