"""Training: the driver (run), a worker of Ray Train (ray_worker) or this process alone (local), and the loop of both
(loop), which knows no Ray.
May import: pipelines.config, pipelines.cluster, pipelines.ingest, pipelines.report, pipelines.supervision,
pipelines.tracking, model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.train.run import train as train


def __getattr__(name: str) -> Any:  # resolved when used: what a data task runs loads nothing more
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.train.run import train

    return train
