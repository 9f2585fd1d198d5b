"""What columns become once they are fitted: how entries turn into numbers.

Entries are the steps of a sequence column or the rows of a context column; what was learned of them is
`model.features.stats`. A fitted source encodes entries: floats [n, D] for `FittedNumeric`, ids for the others; what
reads several columns takes the entries of each. Knows no torch; of files only those of vocabularies, at fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from model.columns import (
    Bucketized,
    ColumnsConfig,
    Crossed,
    HashBucket,
    Identity,
    Key,
    Leaf,
    Numeric,
    Quantiles,
    Source,
    Vocabulary,
    Weighted,
    source_key,
)
from model.columns.sources import Part, raw_leaf
from model.errors import DataError
from model.features.categorical import FittedHashBucket, FittedIdentity, FittedVocabulary
from model.features.combined import FittedCrossed, FittedIntervals, FittedRaw, FittedWeighted
from model.features.numeric import FittedNumeric, fit_numeric, learned_edges
from model.features.stats import ColumnStats
from model.features.vocabulary_file import file_keys
from model.tables.arrow_lists import owner

FittedLeaf = FittedNumeric | FittedVocabulary | FittedIdentity | FittedHashBucket
Fitted = Annotated[FittedLeaf | FittedWeighted | FittedCrossed, Field(discriminator="type")]


def fit_declared(source: Source, stats: Mapping[str, ColumnStats]) -> FittedLeaf | FittedWeighted | FittedCrossed:
    """The fitted form of any source, from the statistics of its leaves by source key. DataError as `fit_source`."""
    if isinstance(source, Weighted):
        inner = fit_source(source.source, stats[source_key(source.source)])
        assert not isinstance(inner, FittedNumeric), "weights stand beside ids"
        return FittedWeighted(source=inner, weights=source.weights)
    if isinstance(source, Crossed):
        parts = tuple(_fit_part(part, stats) for part in source.parts)
        return FittedCrossed(parts=parts, buckets=source.buckets, hash_key=source.hash_key)
    return fit_source(source, stats[source_key(source)])


def _fit_part(part: Part, stats: Mapping[str, ColumnStats]) -> FittedRaw | FittedIntervals:
    if isinstance(part, Bucketized):
        seen = stats[source_key(part.source)]
        numbers, boundaries = fit_numeric(part.source, seen), part.boundaries
        if isinstance(boundaries, Quantiles):
            boundaries = learned_edges(numbers, seen, boundaries.quantiles)
        return FittedIntervals(source=numbers, boundaries=boundaries)
    seen = stats[source_key(raw_leaf(part))]
    return FittedRaw(name=part.name, several=seen.several, integers=seen.integers)


def with_boundaries(
    columns: ColumnsConfig, fitted: Mapping[str, Fitted], stats: Mapping[str, ColumnStats]
) -> dict[str, Fitted]:
    """The fitted sources with the boundaries that columns of intervals over them have learned."""
    found = dict(fitted)
    for name, wanted in columns.learned_boundaries().items():
        key = f"numeric:{name}"
        if isinstance(numbers := fitted.get(key), FittedNumeric):  # a cross keeps its own
            learned = {str(count): learned_edges(numbers, stats[key], count) for count in sorted(wanted)}
            found[key] = numbers.model_copy(update={"boundaries": learned})
    return found


def fit_source(source: Leaf, stats: ColumnStats) -> FittedLeaf:
    """The fitted form of a declaration. DataError when the data contradict it or hold nothing to learn from."""
    if isinstance(source, Numeric):
        return fit_numeric(source, stats)
    if isinstance(source, Identity):
        return FittedIdentity(name=source.name, buckets=source.buckets, several=stats.several)
    if isinstance(source, HashBucket):
        return FittedHashBucket(
            name=source.name, buckets=source.buckets, several=stats.several, integers=stats.integers
        )
    refuse_mixed(stats, source.name)
    keys = _vocabulary_keys(source, stats)
    if not keys and not source.oov_buckets:
        raise DataError(
            "must hold at least one value to learn a vocabulary from, but it holds none", column=source.name
        )
    if source.default_value >= len(keys):
        raise DataError(
            f"default_value must be the id of a key, and the vocabulary has {len(keys)} keys, but it is "
            f"{source.default_value}; lower it, or set it to -1 to drop unknown values",
            column=source.name,
        )
    return FittedVocabulary(
        name=source.name,
        keys=keys,
        oov_buckets=source.oov_buckets,
        default_value=source.default_value,
        several=stats.several,
    )


def _vocabulary_keys(source: Vocabulary, stats: ColumnStats) -> tuple[Key, ...]:
    if source.keys is not None:
        return source.keys
    if source.file is not None:
        return file_keys(source.file, integers=stats.integers, most=source.max_keys)
    return learned_keys(stats.keys, source.min_count, source.max_keys)


def refuse_mixed(stats: ColumnStats, name: str) -> None:
    """DataError when some files hold strings and others integers."""
    if len({type(key) for key in stats.keys}) > 1:
        raise DataError("must hold strings or integers, but some files hold one and some the other", column=name)


def learned_keys(counts: Counter[Key], min_count: int = 1, max_keys: int | None = None) -> tuple[Key, ...]:
    """Keys by falling count, ties by value: the same data give the same ids on any number of workers."""
    kept = [(key, count) for key, count in counts.items() if count >= min_count]
    kept.sort(key=lambda pair: (-pair[1], pair[0]))
    return tuple(key for key, _ in kept[:max_keys])


def entry_to_row(error: DataError, offsets: np.ndarray | None) -> DataError:
    """An error whose row is an entry's index, with the row that holds the entry (sequence columns)."""
    if error.row is None or offsets is None:
        return error
    return DataError(error.problem, file=error.file, row=owner(offsets, error.row), column=error.column)
