"""Results of data tasks as JSON: a value, or a mistake of the user's that travels as a value.

An exception in a task would be retried and come back wrapped; so the user sees the mistake alone and at once. JSON,
because no pickle of ours crosses processes. Knows no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from model.errors import DynamicRnnError, from_plain, to_plain


def outcome(compute: Callable[[], Any]) -> str:
    """The JSON of what `compute` returns (plain data), or of the mistake that it raises."""
    try:
        return json.dumps({"value": compute()})
    except DynamicRnnError as error:
        return json.dumps({"error": to_plain(error)})


def value_of(message: str) -> Any:
    """The value of an `outcome`; raises its mistake if it is one."""
    told = json.loads(message)
    if "error" in told:
        raise from_plain(told["error"])
    return told["value"]
