"""A Ray of our own or one that is joined; what the machine and the cluster have; malloc; the doctor.
May import: pipelines.config, model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cluster.session import ray_session as ray_session


def __getattr__(name: str) -> Any:  # resolved when used: what a data task runs loads nothing more
    if name != "ray_session":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.cluster.session import ray_session

    return ray_session
