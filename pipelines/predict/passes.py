"""Distributed passes one after the other, and how far they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.tasks.map import over_items

Progress = Callable[[int, int], None]


class CountedPasses:
    """Runs passes; `progress` is told after each item how many are done of `total`."""

    def __init__(self, progress: Progress | None, *, total: int, done: int = 0) -> None:
        self.progress = progress
        self.total = total
        self.done = done

    def run(
        self, holder: type[Any], arguments: tuple[Any, ...], items: Sequence[Any], *, scoring: bool = True
    ) -> list[Any]:
        """The results of `pipelines.tasks.map.over_items`."""
        results = []
        for result in over_items(holder, arguments, items, scoring=scoring):
            results.append(result)
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        return results
