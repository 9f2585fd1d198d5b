"""The original's hashes, against its own numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model.features import hashing
from model.features.hashing import buckets_of, cross, cross_start, fingerprint, fingerprints

VECTORS = json.loads((Path(__file__).parents[2] / "golden" / "hash_vectors.json").read_text())["vectors"]
# sparse_feature_cross_op_test.py of the original: three values, crossed by the first formula and by the second.
CROSSED = ["batch1-FC1-F1", "batch1-FC2-F1", "batch1-FC3-F1"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["utf8_hex"][:16] or "empty")
def test_a_string_has_the_originals_fingerprint(vector: dict[str, int | str]) -> None:
    text = bytes.fromhex(str(vector["utf8_hex"])).decode()
    hashes = fingerprints(pa.array([text]))
    assert int(hashes[0]) == fingerprint(text)
    assert fingerprint(text) % 2**62 == vector["mod_2pow62"]
    assert buckets_of(hashes, 1000).tolist() == [vector["mod_1000"]]


def test_integers_are_hashed_as_their_decimal_text() -> None:
    numbers = fingerprints(pa.array([42, -7, None, 42]))
    assert numbers.tolist() == fingerprints(pa.array(["42", "-7", None, "42"])).tolist()
    assert numbers.tolist() == [fingerprint(42), fingerprint("-7"), 0, fingerprint("42")]


@pytest.mark.parametrize("values", [[], [None, None]])
def test_nothing_has_no_fingerprint(values: list[None]) -> None:
    assert fingerprints(pa.array(values, pa.string())).tolist() == [0] * len(values)


def test_each_distinct_value_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr(hashing.farmhash, "fingerprint64", lambda text: hashed.append(text) or len(text))
    assert fingerprints(pa.array(["a", "bb", None, "a", "bb", "a"])).tolist() == [1, 2, 0, 1, 2, 1]
    assert hashed == [b"a", b"bb"]


@pytest.mark.parametrize(
    ("hash_key", "crossed", "hundred"), [(None, 3735511728867393167, 74), (0xDECAFCAFFE, 1971693436396284976, 83)]
)
def test_values_are_crossed_as_the_original_crosses_them(hash_key: int | None, crossed: int, hundred: int) -> None:
    hashes = cross_start(2, hash_key)
    for value in CROSSED:
        hashes = cross(hashes, fingerprints(pa.array([value, value])), hash_key)
    assert (hashes % np.uint64(2**63 - 1)).tolist() == [crossed] * 2
    assert buckets_of(hashes, 100).tolist() == [hundred] * 2
