"""Batches computed ahead: the same ones in the same order, errors in their place, and a thread that ends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
import torch

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows
from pipelines.ingest.prefetch import ahead, prefetched


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Source:
    """Counts up to `count`, and remembers what was computed where and whether it was closed."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.computed: list[int] = []
        self.threads: set[int] = set()
        self.closed_in: int | None = None
        self.items = self._items(count, fails_at)

    def _items(self, count: int, fails_at: int | None) -> Iterator[int]:
        try:
            for number in range(count):
                self.threads.add(threading.get_ident())
                if number == fails_at:
                    raise ValueError(f"item {number}")
                self.computed.append(number)
                yield number
        finally:
            self.closed_in = threading.get_ident()


def threads_ahead() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches ahead")]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("items", [0, 1, 4, 50])
def test_all_items_come_in_order_from_one_other_thread(count: int, items: int) -> None:
    source = Source(items)
    assert list(ahead(source.items, count)) == list(range(items))
    assert threading.get_ident() not in source.threads
    assert len(source.threads) == min(items, 1)
    assert threads_ahead() == []


def test_as_many_items_as_told_are_computed_before_they_are_asked_for() -> None:
    source = Source(100)
    items = ahead(source.items, 3)
    for asked in range(5):
        assert next(items) == asked
        until(lambda wanted=asked + 4: len(source.computed) == wanted)
    time.sleep(0.05)
    assert source.computed == list(range(8)), "no further"
    items.close()


def test_nothing_is_computed_before_the_first_is_asked_for() -> None:
    source = Source(10)
    items = ahead(source.items, 3)
    time.sleep(0.02)
    assert source.computed == []
    assert next(items) == 0
    items.close()


def test_an_error_comes_in_the_place_of_its_item() -> None:
    source = Source(10, fails_at=3)
    items = ahead(source.items, 2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^item 3$"):
        next(items)
    assert list(items) == []
    assert threads_ahead() == []


@pytest.mark.parametrize("end", ["closed", "dropped", "an error of the consumer's"])
def test_whoever_stops_early_leaves_no_thread_and_no_open_source(end: str) -> None:
    source = Source(100)
    items = ahead(source.items, 2)
    assert next(items) == 0
    if end == "closed":
        items.close()
    elif end == "dropped":
        del items
        gc.collect()
    else:
        with pytest.raises(ZeroDivisionError):
            items.throw(ZeroDivisionError)
    assert threads_ahead() == []
    assert source.closed_in in source.threads, "closed where it was computed: a generator is in one thread at a time"
    assert len(source.computed) <= 4


def some_batches(make_bundle: Any, make_table: Any) -> list[SequenceBatch | None]:
    columns = make_bundle().columns
    tables: list[pa.Table | None] = [make_table(rows=5, seed=1), None, make_table(rows=3, seed=2)]
    return [None if table is None else collate(encode_rows(table, columns)) for table in tables]


def test_batches_for_the_cpu_are_the_ones_that_were_made(make_bundle: Any, make_table: Any) -> None:
    batches = some_batches(make_bundle, make_table)
    found = list(prefetched(iter(batches), torch.device("cpu")))
    assert len(found) == 3
    assert all(one is other for one, other in zip(found, batches, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies to a CUDA device need one")
def test_batches_for_a_cuda_device_arrive_there_unchanged(make_bundle: Any, make_table: Any) -> None:
    device = torch.device("cuda")
    many = some_batches(make_bundle, make_table) * 20
    for found, made in zip(prefetched(iter(many), device), many, strict=True):
        assert (found is None) == (made is None)
        if found is not None and made is not None:
            assert found.lengths_B.device.type == "cpu"
            assert torch.equal(found.lengths_B, made.lengths_B)
            for key, tensor in found.sequence.items():
                assert tensor.device.type == "cuda"
                assert torch.equal(tensor.cpu(), made.sequence[key])
