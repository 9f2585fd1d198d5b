"""What runs in the tasks of a pass over numbers. Knows no Ray and no torch, which a task's process would load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipelines.tasks.messages import outcome


@dataclass(frozen=True)
class Numbered:
    """Computes plain data of each number in a batch `id`; a mistake of the user's travels as a value."""

    compute: Callable[[int], Any]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        told = [outcome(partial(self.compute, int(number))) for number in batch["id"]]
        return {"id": batch["id"], "result": np.array(told, object)}
