"""Dropout masks: a function of (seed, step, row, place) alone, and as random as they should be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.network.dropout import DropoutKey, drop, mask

ROWS = torch.tensor([7, 0, 123_456_789_012, 3])
KEY = DropoutKey(seed=5, step=11, rows_B=ROWS)


def mask_of(
    key: DropoutKey = KEY, steps: int = 30, features: int = 20, keep: float = 0.5, site: int = 0
) -> torch.Tensor:
    return mask(torch.Size((len(key.rows_B), steps, features)), keep, site, key)


@given(st.permutations(range(4)), st.integers(0, 4), st.integers(0, 30), st.integers(1, 20))
def test_an_element_knows_its_row_step_and_feature_but_not_its_batch(
    order: list[int], rows: int, steps: int, features: int
) -> None:
    picked = order[:rows]
    part = mask_of(dataclasses.replace(KEY, rows_B=ROWS[picked]), steps, features)
    assert torch.equal(part, mask_of()[picked, :steps, :features])


def test_a_piece_that_begins_later_has_the_masks_of_those_steps() -> None:
    assert torch.equal(mask_of(dataclasses.replace(KEY, first_step=12), 18), mask_of()[:, 12:])


@pytest.mark.parametrize(
    "other",
    [
        lambda: mask_of(dataclasses.replace(KEY, seed=6)),
        lambda: mask_of(dataclasses.replace(KEY, step=12)),
        lambda: mask_of(dataclasses.replace(KEY, rows_B=ROWS + 1)),
        lambda: mask_of(site=1),
        lambda: mask_of(dataclasses.replace(KEY, first_step=1)),
        lambda: mask_of().flip(2),
    ],
    ids=["seed", "step", "row", "site", "time", "feature"],
)
def test_masks_that_differ_in_one_thing_are_independent(other: Any) -> None:
    agreement = (mask_of() == other()).double().mean()
    assert abs(agreement - 0.5) < 0.05  # 2400 elements: five standard deviations


def test_rows_of_a_batch_are_independent_of_each_other() -> None:
    masks = mask_of(DropoutKey(0, 0, torch.arange(200)), 10, 10).flatten(1).double()
    correlation = torch.corrcoef(masks).fill_diagonal_(0)
    assert correlation.abs().max() < 0.65
    assert correlation.mean().abs() < 0.01


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_the_share_kept_is_the_keep_probability(keep: float) -> None:
    masks = mask_of(DropoutKey(1, 2, torch.arange(100)), 100, 40, keep)
    deviation = (keep * (1 - keep) / masks.numel()) ** 0.5
    assert abs(masks.double().mean() - keep) < 5 * deviation


def test_a_higher_keep_probability_keeps_what_a_lower_one_keeps() -> None:
    assert bool((mask_of(keep=0.8) | ~mask_of(keep=0.3)).all())


@pytest.mark.parametrize("site", range(12))
def test_every_site_of_a_deep_stack_has_masks_of_its_own(site: int) -> None:
    agreements = [(mask_of(site=site) == mask_of(site=other)).double().mean() for other in range(12) if other != site]
    assert max(agreements) < 0.56


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_kept_is_scaled_and_the_rest_is_zero(dtype: torch.dtype) -> None:
    x = torch.randn(4, 30, 20).to(dtype)
    dropped = drop(x, 0.25, 2, KEY)
    assert dropped.dtype == dtype
    torch.testing.assert_close(dropped, torch.where(mask_of(keep=0.25, site=2), x * 4, 0))


@pytest.mark.parametrize(("keep", "key"), [(1.0, KEY), (0.5, None)])
def test_without_dropout_the_input_goes_through(keep: float, key: DropoutKey | None) -> None:
    x = torch.randn(4, 30, 20)
    assert drop(x, keep, 0, key) is x


def test_masks_stay_what_they_are() -> None:
    """A resumed job may run another version: a change of the hash is a change of format."""
    found = mask_of(DropoutKey(42, 1000, torch.tensor([0, 5])), 2, 8)
    assert ["".join("01"[bit] for bit in row) for row in found.flatten(1).int().tolist()] == [
        "1110101110000001",
        "0101100101110001",
    ]
