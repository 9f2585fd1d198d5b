"""Encoded entries: what columns hand to the network. Knows no Arrow, no torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MISSING_ID = -1


class Encoded(NamedTuple):
    """Entries as numbers. Floats: `values` float32 [n, D], no offsets. Ids: `values` int32 [m]; entry i holds
    `values[offsets[i]:offsets[i + 1]]`, or exactly `values[i]` where `offsets` is None. −1 is "nothing".
    `weights` float32 [m]: of weighted ids, one each."""

    values: np.ndarray
    offsets: np.ndarray | None = None
    weights: np.ndarray | None = None


def weights_key(key: str) -> str:
    """The name under which a batch holds the weights of the ids under `key`."""
    return f"{key}/weights"
