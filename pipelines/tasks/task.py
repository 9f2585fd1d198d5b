"""What runs in the tasks of a pass over numbers. Knows no Ray and no torch, which a task's process would load."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from model.errors import DynamicRnnError, from_plain, to_plain
from pipelines.cluster.malloc import OF_COMPUTING, keep_freed_memory


@dataclass(frozen=True)
class NumberedTask:
    """Computes plain data and arrays of each number in a batch `id`; a mistake of the user's travels as a value."""

    compute: Callable[[int], Any]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        told = [to_message(partial(self.compute, int(number))) for number in batch["id"]]
        return {"id": batch["id"], "result": np.array(told, object)}


@dataclass(frozen=True)
class ScoringTask(NumberedTask):
    """The same by torch, in a process of Ray's: with one thread, for every CPU has its task."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        torch.set_num_threads(1)
        keep_freed_memory(OF_COMPUTING)
        return super().__call__(batch)


_ARRAY = "\0array"  # stands in a message for an array: its type, where its bytes begin, how many it holds
_cached: dict[str, Any] = {}  # in a task's process: what the latest job has loaded


@dataclass(frozen=True)
class CachedTask:
    """Does the item of a number by `holder_class(*arguments)`, which a process makes once; `job` names the pass.

    With a `device` ("cpu" or "cuda"), the holder computes there and gets it as `device=`.
    """

    holder_class: type[Any]
    arguments: tuple[Any, ...]
    items: tuple[Any, ...]
    job: str
    device: str | None

    def __call__(self, number: int) -> Any:
        return self._holder()(self.items[number])

    def _holder(self) -> Any:
        if self.job not in _cached:
            _cached.clear()
            _cached[self.job] = self._load()
        return _cached[self.job]

    def _load(self) -> Any:
        if self.device is None:
            return self.holder_class(*self.arguments)
        return self.holder_class(*self.arguments, device=self.device)


def forget_cached() -> None:
    """Lets go of what this process has loaded for a pass."""
    _cached.clear()


class GpuTask:
    """The same in an actor that owns a GPU."""

    def __init__(self, task: CachedTask) -> None:
        self.task = ScoringTask(task)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.task(batch)


def to_message(compute: Callable[[], Any]) -> bytes:
    """What `compute` returns, or the mistake that it raises: a line of JSON, and behind it the bytes of its arrays.

    Arrays (numpy, one dimension) may stand anywhere in the plain data: a million lengths are four megabytes of an Arrow
    buffer on their way, not a million numbers of a text.
    """
    try:
        told = {"value": compute()}
    except DynamicRnnError as error:
        told = {"error": to_plain(error)}
    buffers: list[bytes] = []

    def set_aside(value: Any) -> dict[str, Any]:
        assert isinstance(value, np.ndarray), f"results are plain data and arrays, not {value!r}"
        start = sum(map(len, buffers))
        buffers.append(value.tobytes())
        return {_ARRAY: [value.dtype.str, start, len(value)]}

    return b"".join([json.dumps(told, default=set_aside).encode(), b"\n", *buffers])


def from_message(message: bytes) -> Any:
    """The value of a `to_message`; raises its mistake if it is one."""
    behind = message.index(b"\n") + 1

    def put_back(plain: dict[str, Any]) -> Any:
        if plain.keys() != {_ARRAY}:
            return plain
        kind, start, count = plain[_ARRAY]
        return np.frombuffer(message, kind, count, behind + start).copy()  # aligned, and not holding on to the message

    told = json.loads(message[:behind], object_hook=put_back)
    if "error" in told:
        raise from_plain(told["error"])
    return told["value"]
