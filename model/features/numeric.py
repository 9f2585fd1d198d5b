"""Numeric columns once they are fitted: entries to normalised floats. Knows no torch, no files."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from model.columns import Numeric, Quantiles
from model.columns.sources import without_later_defaults
from model.errors import DataError
from model.features.encoded import Encoded
from model.features.quantile_sketch import QuantileSketch
from model.features.stats import ColumnStats, applied, matrix_of, numeric_stats
from model.registry import registered_normalizer
from model.settings import Settings
from model.tables import compute as pc
from model.tables.arrow_lists import Array, as_float32, is_list, narrow_numbers, plain, unnest

BLOCK_VALUES = 1 << 14  # that are normalised at a time: 128 KiB of float64


class FittedNumeric(Settings):
    """value → (value − shift) · scale after an optional log1p or function; a null becomes `fill` before that.

    With `indicator`, as many features follow the values: 1 where a null was, else 0. `boundaries` are those that were
    learned for intervals over this column, by how many were asked for.
    """

    type: Literal["numeric"] = "numeric"
    name: str
    dimension: int
    fill: tuple[float, ...] | None = None
    nan_is_missing: bool = False
    log1p: bool = False
    shift: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    function: str | None = None
    indicator: bool = False
    boundaries: dict[str, tuple[float, ...]] = Field({})

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later_defaults(serialize(self))

    def model_post_init(self, _context: object) -> None:
        if self.function is not None:
            registered_normalizer(self.function)

    @property
    def width(self) -> int:
        """Floats an entry becomes."""
        return self.dimension * 2 if self.indicator else self.dimension

    @property
    def entry_types(self) -> dict[str, pa.DataType]:
        """Arrow type of an entry of each data column."""
        return {self.name: self.value_type}

    @property
    def value_type(self) -> pa.DataType:
        """Arrow type of one entry."""
        return pa.float32() if self.dimension == 1 else pa.list_(pa.float32(), self.dimension)

    def encode(self, entries: Array) -> Encoded:
        """Entries to float32 [n, width]; DataError (row = entry) for what is missing, NaN, Inf, a wrong width."""
        matrix = matrix_of(entries, self.name, self.dimension, narrow_numbers)
        values = self.normalize(matrix)
        if np.isfinite(values).all():
            return Encoded(self.indicated(values, None))
        self._refuse_non_finite(entries, matrix)
        if self.fill is not None:
            values = self.normalize(np.where(np.isnan(matrix), self.fill, matrix))
        beyond = ~np.isfinite(values).all(1)
        if beyond.any():
            raise DataError(
                "must lie within float32's range when normalised, but an entry does not",
                row=int(np.argmax(beyond)),
                column=self.name,
            )
        return Encoded(self.indicated(values, np.isnan(matrix)))

    def indicated(self, values: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
        """Values float32 [n, dimension] and, if declared, the indicators of what is `missing` (None: nothing)."""
        if not self.indicator:
            return values
        return np.concatenate([values, np.zeros_like(values) if missing is None else missing], 1, dtype=np.float32)

    def _refuse_non_finite(self, entries: Array, matrix: np.ndarray) -> None:
        values = plain(entries)
        if is_list(values.type):
            values = unnest(values, self.name).values
        bad = ~np.isfinite(matrix).all(1)
        if pa.types.is_floating(values.type) and pc.any(self._refused(values), min_count=0).as_py():
            row, value = self._first_refused(entries, bad)
            what = "infinite"
            if np.isnan(value):
                what = "NaN; `nan_is_missing: true` of this column, or under data, takes it for missing"
            raise DataError(f"must be finite numbers, but an entry is {what}", row=row, column=self.name)
        if self.fill is None and bad.any():
            what, them = ("null or NaN", "both") if self.nan_is_missing else ("null", "nulls")
            raise DataError(
                f"must not be {what}; declare `missing: mean` or a number for this column to fill {them}",
                row=int(np.argmax(bad)),
                column=self.name,
            )

    def _refused(self, values: Array) -> Array:
        """Which floats are no numbers, nor missing: null for null."""
        return pc.is_inf(values) if self.nan_is_missing else pc.invert(pc.is_finite(values))

    def _first_refused(self, entries: Array, bad: np.ndarray) -> tuple[int, float]:
        """Nulls and NaN both arrive as NaN; of the bad entries the first that holds a real NaN or Inf, and that."""
        for entry in np.flatnonzero(bad):
            held = entries[int(entry)].as_py()
            for value in held if isinstance(held, list) else [held]:
                if value is not None and (np.isinf(value) or (np.isnan(value) and not self.nan_is_missing)):
                    return int(entry), value
        raise AssertionError("a non-finite value was counted but not found")

    def normalize(self, matrix: np.ndarray) -> np.ndarray:
        """Floats [n, dimension] to normalised float32 of the same shape; NaN and Inf stay what they are.

        Computed in float64. What needs no change is a view of what was given.
        """
        if self.log1p or self.function is not None:
            matrix = matrix.astype(np.float64, copy=False)
        if self.log1p:
            if (matrix <= -1).any():
                row = int(np.argmax((matrix <= -1).any(1)))
                raise DataError("log1p needs values above -1, but an entry is not", row=row, column=self.name)
            matrix = np.log1p(matrix)
        if self.function is not None:
            matrix = applied(self.function, self.name, matrix)
        if self.shift is not None and self.scale is not None:
            return _shifted_and_scaled(matrix, self.shift, self.scale)
        return as_float32(matrix)

    def normalize_one(self, values: np.ndarray) -> np.ndarray:
        """`normalize` for single values, float64 [n] to float32 [n]."""
        return self.normalize(values[:, None])[:, 0]

    def edges(self, boundaries: tuple[float, ...] | Quantiles) -> tuple[float, ...]:
        """Boundaries as declared, or as learned."""
        return self.boundaries[str(boundaries.quantiles)] if isinstance(boundaries, Quantiles) else boundaries

    def component(self, place: int) -> FittedNumeric:
        """How one of the values of a vector is normalised, on what a function has made of it already."""
        shift, scale = (None if each is None else (each[place],) for each in (self.shift, self.scale))
        return self.model_copy(update={"dimension": 1, "shift": shift, "scale": scale, "function": None})


def _shifted_and_scaled(matrix: np.ndarray, shift: tuple[float, ...], scale: tuple[float, ...]) -> np.ndarray:
    """(matrix − shift) · scale in float64, as float32 [n, D], in blocks that the processor's cache holds.

    Blocks are flat, with shift and scale repeated along them: numpy's inner loop is then as long as the block and not
    as short as D. Six times as fast as the plain expression for D = 8, bit for bit its results.
    """
    if matrix.size <= BLOCK_VALUES:
        return as_float32((matrix - np.array(shift)) * np.array(scale))
    rows = max(1, BLOCK_VALUES // len(shift))
    shifts, scales, block = np.tile(shift, rows), np.tile(scale, rows), np.empty(rows * len(shift))
    values, result = matrix.reshape(-1), np.empty(matrix.shape, np.float32)
    flat = result.reshape(-1)
    with np.errstate(over="ignore"):
        for start in range(0, len(values), len(block)):
            part = values[start : start + len(block)]
            held = len(part)
            np.subtract(part, shifts[:held], out=block[:held])
            np.multiply(block[:held], scales[:held], out=block[:held])
            flat[start : start + held] = block[:held]
    return result


def fit_numeric(source: Numeric, stats: ColumnStats) -> FittedNumeric:
    """The fitted form of a declaration. DataError when the data contradict it."""
    held = len(stats.count)
    dimension = held if stats.count.any() else source.dimension or held  # nulls alone say nothing of the width
    if source.dimension not in (None, dimension):
        raise DataError(
            f"is declared with dimension {source.dimension}, but the data hold {dimension} values a step; "
            f"correct the declaration or leave it out",
            column=source.name,
        )
    if not stats.count.any():
        stats = numeric_stats(np.zeros((1, dimension)))
    shift, scale = _normalizer(source, stats)
    fill = None
    if source.missing == "mean":
        fill = tuple(stats.mean.tolist())
    elif source.missing != "error":
        fill = (float(source.missing),) * dimension
    return FittedNumeric(
        name=source.name,
        dimension=dimension,
        fill=fill,
        nan_is_missing=source.nan_is_missing,
        log1p=source.normalizer == "log1p",
        shift=shift,
        scale=scale,
        function=source.function,
        indicator=source.indicator,
    )


def learned_edges(fitted: FittedNumeric, stats: ColumnStats, intervals: int) -> tuple[float, ...]:
    """Boundaries between so many intervals of like count, as the fitted column gives values: float32, rising.

    There are fewer where edges coincide, and none for a column whose values are all equal or all missing.
    """
    total = QuantileSketch()
    for place, sketch in enumerate(stats.sketches):
        total = total.merge(sketch.mapped(fitted.component(place).normalize_one))
    edges = total.edges(intervals)
    return tuple(edges[np.isfinite(edges)].tolist())


def _normalizer(source: Numeric, stats: ColumnStats) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if source.normalizer == "zscore":
        deviation = np.sqrt(stats.squares / np.maximum(stats.count, 1))
        shift, spread = stats.mean, deviation
    elif source.normalizer == "minmax":
        shift, spread = stats.low, stats.high - stats.low
    else:
        return None, None
    # Rounding leaves a constant column a spread of 1e-17, whose inverse would blow up whatever differs.
    varies = (stats.high > stats.low) & (spread > np.finfo(np.float64).tiny)
    shift = np.where(varies, shift, np.where(stats.count > 0, stats.low, 0.0))
    scale = np.divide(1.0, spread, out=np.ones_like(spread), where=varies)
    return tuple(shift.tolist()), tuple(scale.tolist())
