"""Normalizers of the user's: functions registered by name, which saved models refer to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.batches.encode import encode_rows
from model.columns import ColumnsConfig, Numeric, real_valued_column
from model.errors import ConfigError, DataError
from model.features.fitted_columns import FittedColumns
from model.features.numeric import FittedNumeric
from model.registry import normalizer_name, register_normalizer
from model.settings import build
from tests.fitting import column_stats


def fitted_to(columns: ColumnsConfig, table: pa.Table) -> FittedColumns:
    return FittedColumns.fit(columns, column_stats(table, columns))


def halved(matrix: Any) -> Any:
    return matrix / 2


@pytest.fixture(autouse=True)
def _only_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.registry._normalizers", {})


@pytest.mark.parametrize("group", ["sequence", "context"])
def test_a_registered_function_normalises(group: str) -> None:
    register_normalizer("halved", halved)
    column = real_valued_column("x", default_value=8, normalizer=halved)
    assert column == Numeric(name="x", missing=8.0, normalizer="halved")
    values, clock = [[2.0, 4.0], None], real_valued_column("clock")
    if group == "sequence":
        columns, table = ColumnsConfig(sequence=(column,)), pa.table({"x": [values]})
    else:
        columns = ColumnsConfig(sequence=(clock,), context=(column,))
        table = pa.table({"x": values, "clock": [[1.0], [2.0]]})
    fitted = build(FittedColumns, fitted_to(columns, table).model_dump(mode="json"), where="model.json")
    encoded = encode_rows(table, fitted)
    assert getattr(encoded, group)["numeric:x"].values.tolist() == [[1, 2], [4, 4]]


def test_a_normalizer_cannot_hide_what_is_bad() -> None:
    register_normalizer("all ones", np.ones_like)
    columns = ColumnsConfig(sequence=(Numeric(name="x", normalizer="all ones"),))
    fitted = fitted_to(columns, pa.table({"x": [[5.0]]}))
    for value, message in ((float("nan"), "must be finite numbers"), (None, "must not be null")):
        with pytest.raises(DataError, match=message):
            encode_rows(pa.table({"x": pa.array([[value]], pa.list_(pa.float64()))}), fitted)


def test_what_is_wrong_with_a_normalizer_is_told() -> None:
    with pytest.raises(ConfigError) as raised:
        real_valued_column("x", normalizer=halved)
    assert str(raised.value) == (
        "normalizer halved has no name that a saved model could refer to; call "
        "model.registry.register_normalizer('some_name', halved) first"
    )
    register_normalizer("halved", halved)
    register_normalizer("halved", halved)
    assert (normalizer_name(None), normalizer_name("log1p"), normalizer_name(halved)) == ("none", "log1p", "halved")
    for name in ("halved", "zscore"):
        with pytest.raises(ConfigError, match=rf"^normalizer name '{name}' is taken; register sum under another one$"):
            register_normalizer(name, sum)
    register_normalizer("total", lambda matrix: matrix.sum(1))
    columns = ColumnsConfig(sequence=(Numeric(name="x", normalizer="total"),))
    table = pa.table({"x": [[1.0, 2.0]]})
    fitted = fitted_to(columns, table)
    with pytest.raises(ConfigError) as raised:
        encode_rows(table, fitted)
    assert str(raised.value) == (
        "column 'x': normalizer 'total' must return an array of shape (2, 1), as it was given, but returned (2,)"
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("dimension", "entries"), [(1, 1), (1, 50_000), (3, 20_001), (8, 2048), (20_000, 3)])
def test_normalising_in_blocks_gives_the_bits_of_the_whole(dimension: int, entries: int, kind: type) -> None:
    random = np.random.default_rng(dimension)
    shift, scale = random.normal(size=dimension), random.normal(size=dimension)
    fitted = FittedNumeric(name="x", dimension=dimension, shift=tuple(shift), scale=tuple(scale))
    matrix = random.normal(0, 9, (entries, dimension)).astype(kind)
    matrix[-1, -1] = np.nan
    expected = ((matrix.astype(np.float64) - shift) * scale).astype(np.float32)
    before = matrix.copy()
    assert fitted.normalize(matrix).tobytes() == expected.tobytes()
    assert matrix.tobytes() == before.tobytes()


def test_a_value_beyond_float32_is_named_also_in_a_long_column() -> None:
    values = np.ones(60_000)
    values[50_000] = 1e300
    with pytest.raises(DataError, match=r"float32's range when normalised") as caught:
        FittedNumeric(name="x", dimension=1, shift=(0.0,), scale=(1.0,)).encode(pa.array(values))
    assert caught.value.row == 50_000


@pytest.mark.parametrize("normalizer", [{}, {"shift": (1.0, 2.0), "scale": (3.0, 4.0)}, {"log1p": True}])
def test_vectors_cut_out_of_a_longer_array_are_encoded_as_alone(normalizer: dict[str, Any]) -> None:
    fitted = FittedNumeric(name="v", dimension=2, **normalizer)
    rows = [[0.5, 1.5], [2.5, 3.5], [4.5, 5.5], [6.5, 7.5]]
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float32()), pa.list_(pa.float64(), 2)):
        found = fitted.encode(pa.array(rows, kind).slice(1, 2)).values
        alone = fitted.encode(pa.array(rows[1:3], pa.list_(pa.float64()))).values
        assert found.tobytes() == alone.tobytes()
    with pytest.raises(DataError, match="must hold 3 values, but this one holds 2"):
        FittedNumeric(name="v", dimension=3).encode(pa.array(rows, pa.list_(pa.float32(), 2)))
