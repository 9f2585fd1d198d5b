"""Dropout masks as a pure function of (seed, step, row, place): the same on any number of workers and after a resume.

A worker's random generator could not give that. Each mask element is a 32-bit integer hash (the "lowbias32"
finaliser found by Chris Wellons' hash-prospector), compared with the keep probability. B rows, T steps, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class DropoutKey:
    """What the masks of one training step are drawn from; `first_step` is where the rows' pieces begin (unrolling)."""

    seed: int
    step: int
    rows_B: Tensor
    first_step: int = 0

    def row_keys(self) -> np.ndarray:
        """One well-mixed uint32 a row, from seed, step and the row's number in the data set."""
        mixed = (self.seed * 0x9E3779B97F4A7C15 + self.step * 0xD6E8FEB86659FD93) % 2**64
        keys = self.rows_B.cpu().numpy().astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        keys = (keys ^ np.uint64(mixed)) * np.uint64(0xBF58476D1CE4E5B9)
        keys ^= keys >> np.uint64(31)
        return ((keys * np.uint64(0x94D049BB133111EB)) >> np.uint64(32)).astype(np.uint32)


def drop(x_BTF: Tensor, keep: float, site: int, key: DropoutKey | None) -> Tensor:
    """x with each element kept with probability `keep` and scaled by 1/keep; x itself for keep 1 or without a key."""
    if keep >= 1.0 or key is None:
        return x_BTF
    return x_BTF * (mask(x_BTF.shape, keep, site, key).to(x_BTF.device, x_BTF.dtype) / keep)


def mask(shape: torch.Size, keep: float, site: int, key: DropoutKey) -> Tensor:
    """Boolean [B, T, F]; element (b, t, f) depends on the key, row b, the site, t and f alone, not on B or T."""
    _, steps, features = shape
    device = key.rows_B.device
    rows = torch.from_numpy(key.row_keys().view(np.int32)).to(device).view(-1, 1, 1)
    t = torch.arange(key.first_step, key.first_step + steps, dtype=torch.int32, device=device).view(1, -1, 1)
    f = torch.arange(features, dtype=torch.int32, device=device).view(1, 1, -1)
    place = _hash(_hash(t + site * 0x3C6EF372) + f)
    bits = _hash(rows ^ place)
    threshold = int(keep * 2**32) - 2**31
    return bits < min(threshold, 2**31 - 1)


def _hash(x: Tensor) -> Tensor:
    """lowbias32 on int32 tensors; torch's shift is arithmetic, so the sign bits are masked off."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * -2073254261  # 0x846CA68B as int32
    return x ^ ((x >> 16) & 0xFFFF)
