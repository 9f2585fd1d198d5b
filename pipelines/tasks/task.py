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
    """Computes plain data of each number in a batch `id`; a mistake of the user's travels as a value."""

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


def to_message(compute: Callable[[], Any]) -> str:
    """The JSON of what `compute` returns (plain data), or of the mistake that it raises."""
    try:
        return json.dumps({"value": compute()})
    except DynamicRnnError as error:
        return json.dumps({"error": to_plain(error)})


def from_message(message: str) -> Any:
    """The value of an `to_message`; raises its mistake if it is one."""
    told = json.loads(message)
    if "error" in told:
        raise from_plain(told["error"])
    return told["value"]
