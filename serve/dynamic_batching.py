"""Requests that arrive together are scored together. Knows no Ray and no HTTP.

While one batch is scored, requests queue up and make the next batch, so batches grow with the load by themselves.
`ray.serve.batch` is the rejected twin: it counts requests instead of sequences, or else (batch_size_fn) recounts the
whole batch for every request it adds and refuses a larger one, and an exception fails all requests of a batch.

May import: model.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.scoring.scorer import Scored

Score = Callable[[pa.Table], Scored]
_logger = logging.getLogger(__name__)


class Batcher:
    """Scores tables of one model in batches of at most `max_sequences` rows (a larger table goes alone)."""

    def __init__(self, score: Score, max_sequences: int, wait_seconds: float = 0.0) -> None:
        self._score = score
        self._max_sequences = max_sequences
        self._wait_seconds = wait_seconds
        self._waiting: deque[tuple[pa.Table, asyncio.Future[Scored]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def score(self, table: pa.Table) -> Scored:
        """The table's rows, scored together with whatever else is waiting."""
        answer: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.append((table, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._wait_seconds)
            batch = self._take()
            if batch:
                await self._answer(batch)

    def _take(self) -> list[tuple[pa.Table, asyncio.Future[Scored]]]:
        """The next requests in order; those whose caller has gone are dropped."""
        batch: list[tuple[pa.Table, asyncio.Future[Scored]]] = []
        rows = 0
        while self._waiting:
            table, answer = self._waiting[0]
            if batch and rows + table.num_rows > self._max_sequences:
                break
            self._waiting.popleft()
            if not answer.cancelled():
                batch.append((table, answer))
                rows += table.num_rows
        return batch

    async def _answer(self, batch: list[tuple[pa.Table, asyncio.Future[Scored]]]) -> None:
        tables = [table for table, _ in batch]
        try:
            results: Sequence[Scored | Exception] = await asyncio.to_thread(score_together, self._score, tables)
        except Exception as error:
            # A mistake of ours. Its request must fail, its batch-mates must not.
            _logger.exception("scoring failed")
            results = [error] if len(tables) == 1 else await asyncio.to_thread(self._one_by_one, tables)
        for (_, answer), result in zip(batch, results, strict=True):
            if answer.cancelled():
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

    def _one_by_one(self, tables: list[pa.Table]) -> list[Scored | Exception]:
        results: list[Scored | Exception] = []
        for table in tables:
            try:
                results += score_together(self._score, [table])
            except Exception as error:  # noqa: BLE001 - as above
                results.append(error)
        return results


def score_together(score: Score, tables: Sequence[pa.Table]) -> list[Scored]:
    """One scoring of all tables' rows, and its result cut into theirs."""
    whole = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")
    scored = _refuse_overflow(score(whole))
    if len(tables) == 1:
        return [scored]
    starts = np.cumsum([0, *(table.num_rows for table in tables)]).tolist()
    return [_cut(scored, start, stop) for start, stop in pairwise(starts)]


def _cut(scored: Scored, start: int, stop: int) -> Scored:
    errors = {row - start: error for row, error in scored.errors.items() if start <= row < stop}
    state = tuple(part[start:stop] for part in scored.state)
    return Scored(scored.predictions.slice(start, stop - start), state, errors)


def _refuse_overflow(scored: Scored) -> Scored:
    """A state that is no longer finite would be refused when it comes back: its row is an error now."""
    finite = np.ones(scored.predictions.num_rows, bool)
    for part in scored.state:
        finite &= np.isfinite(part).all(1)
    if finite.all():
        return scored
    overflow = DataError("the features are too large: the model's answer to them is not finite")
    errors = dict.fromkeys(np.flatnonzero(~finite).tolist(), overflow)
    return Scored(scored.predictions, scored.state, {**errors, **scored.errors})
