"""Event tables to sequences: an external sort by key, cut and written.
May import: pipelines.quarantine, pipelines.tasks, model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.prepare.run import prepare as prepare


def __getattr__(name: str) -> Any:  # resolved when used: what a data task runs loads nothing more
    if name != "prepare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.prepare.run import prepare

    return prepare
