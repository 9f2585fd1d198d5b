"""pyarrow's compute functions, loaded when the first is called: a third of what `from model import …` would take."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    import pyarrow.compute

    function = getattr(pyarrow.compute, name)
    globals()[name] = function  # found at once from now on
    return function
