"""Batch prediction, Parquet to Parquet, with states from day to day; chain_*: rows of one key one after another.
May import: pipelines.quarantine, pipelines.tasks, model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.predict.run import predict as predict


def __getattr__(name: str) -> Any:  # resolved when used: what a data task runs loads nothing more
    if name != "predict":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.predict.run import predict

    return predict
