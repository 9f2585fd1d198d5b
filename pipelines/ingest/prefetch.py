"""Batches computed ahead in a thread, and copied to a CUDA device while it computes on the ones before.

The same batches in the same order: what is ahead changes when a batch is made, never what is in it. On a CPU the
thread reads, encodes and pads while torch computes, which lets go of the interpreter's lock. Knows no Ray, no plan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

import torch

from model.batches.collate import SequenceBatch

AHEAD_BATCHES = 2
T = TypeVar("T")


def prefetched(batches: Iterator[SequenceBatch | None], device: torch.device) -> Iterator[SequenceBatch | None]:
    """The batches, some of them computed ahead; on a CUDA device they lie there when they arrive."""
    return _uploaded(batches, device) if device.type == "cuda" else ahead(batches, AHEAD_BATCHES)


def ahead(items: Iterator[T], count: int) -> Generator[T, None, None]:
    """The items, up to `count` of them computed before they are asked for, in one thread, one after another.

    An error is raised in the place of the item that it prevents. Closing (or dropping) the generator ends the thread,
    after the item at work, and closes `items` in it.
    """
    end: list[T] = []  # like no item
    with ThreadPoolExecutor(1, thread_name_prefix="batches ahead") as thread:
        waiting: deque[Future[T | list[T]]] = deque(thread.submit(next, items, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield cast(T, item)
        finally:
            for future in waiting:
                future.cancel()
            if isinstance(items, Generator):
                thread.submit(items.close).result()


def _uploaded(batches: Iterator[SequenceBatch | None], device: torch.device) -> Iterator[SequenceBatch | None]:
    """The thread pins a batch and starts its copy on a stream of its own; here the device is told to wait for it."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def sent() -> Iterator[tuple[SequenceBatch | None, torch.cuda.Event]]:
        for batch in batches:
            with torch.cuda.stream(stream):
                copy = None if batch is None else batch.pin_memory().to(device)
                copied = stream.record_event()
            yield copy, copied

    for batch, copied in ahead(sent(), AHEAD_BATCHES):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        if batch is not None:
            batch.record_stream(computing)
        yield batch
