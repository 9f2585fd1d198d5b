"""What runs in the processes of a distributed pass: one that loads once what it needs, then does an item a call.

Knows no Ray and, until a scoring task asks for it, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.cluster.malloc import OF_COMPUTING, keep_freed_memory
from pipelines.tasks.task import Numbered

_held: dict[str, Any] = {}  # in a task's process: what the latest job has loaded


@dataclass(frozen=True)
class HeldTask:
    """Does the item of a number by `holder_class(*arguments)`, which a process makes once; `job` names the pass.

    With a `device`, the holder computes there and gets it as `device=`.
    """

    holder_class: type[Any]
    arguments: tuple[Any, ...]
    items: tuple[Any, ...]
    job: str
    device: str | None

    def __call__(self, number: int) -> Any:
        return self._holder()(self.items[number])

    def _holder(self) -> Any:
        if self.job not in _held:
            _held.clear()
            _held[self.job] = self._load()
        return _held[self.job]

    def _load(self) -> Any:
        if self.device is None:
            return self.holder_class(*self.arguments)
        import torch

        torch.set_num_threads(1)
        keep_freed_memory(OF_COMPUTING)
        return self.holder_class(*self.arguments, device=self.device)


class GpuTask:
    """The same in an actor that owns a GPU."""

    def __init__(self, task: HeldTask) -> None:
        self.task = Numbered(replace(task, device="cuda"))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.task(batch)
