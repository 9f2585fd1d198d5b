"""Embeddings that share a table: their ids must mean the same. Knows no torch, no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from model.columns import ColumnsConfig, Embedding, Vocabulary, Weighted, source_key
from model.errors import DataError
from model.features.categorical import FittedVocabulary
from model.features.combined import FittedWeighted
from model.features.fit import Fitted
from model.features.numeric import FittedNumeric
from model.features.stats import ColumnStats


def joint_stats(columns: ColumnsConfig, stats: Mapping[str, ColumnStats]) -> Mapping[str, ColumnStats]:
    """Statistics in which learned vocabularies that share a table count the values of all of them."""
    joint = dict(stats)
    for embeddings in columns.shared_tables().values():
        keys = list(dict.fromkeys(source_key(source) for source in _learned(embeddings)))
        total = ColumnStats()
        for key in keys:
            total = total.merge(ColumnStats(keys=stats[key].keys))
        for key in keys:
            joint[key] = replace(stats[key], keys=total.keys)
    return joint


def _learned(embeddings: list[Embedding]) -> Iterator[Vocabulary]:
    for embedding in embeddings:
        source = embedding.source.source if isinstance(embedding.source, Weighted) else embedding.source
        if isinstance(source, Vocabulary) and source.learned:
            yield source


def check_same_ids(columns: ColumnsConfig, fitted: Mapping[str, Fitted]) -> None:
    """DataError where columns of one table have other ids."""
    for table, embeddings in columns.shared_tables().items():
        (first, expected), *others = ((each.source.name, _ids(fitted[source_key(each.source)])) for each in embeddings)
        for name, ids in others:
            if ids != expected:
                raise DataError(
                    f"columns that share the table {table!r} must have the same ids, but {first!r} has {expected[0]} "
                    f"and {name!r} has {ids[0]}; give their sources the same settings",
                    column=name,
                )


def _ids(fitted: Fitted) -> tuple[str, object]:
    """How many ids there are, in words, and what they stand for."""
    if isinstance(fitted, FittedWeighted):
        return _ids(fitted.source)
    kind = fitted.type.replace("_", " ")
    assert not isinstance(fitted, FittedNumeric), "numbers have no table"
    keys = fitted.keys if isinstance(fitted, FittedVocabulary) else None
    return f"{fitted.buckets} {kind} ids", keys
