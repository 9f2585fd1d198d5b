"""The original's factories of feature columns, over our own declarations. Knows no files, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from model.columns.representations import Combiner, Embedding, OneHot
from model.columns.sources import (
    Bucketized,
    Crossed,
    HashBucket,
    Identity,
    Key,
    Numeric,
    Quantiles,
    Vocabulary,
    Weighted,
)
from model.errors import ConfigError
from model.registry import normalizer_name

SparseColumn = Vocabulary | Identity | HashBucket


def real_valued_column(
    column_name: str,
    dimension: int | None = None,
    default_value: float | None = None,
    normalizer: str | Callable[[Any], Any] | None = None,
    *,
    nan_is_missing: bool = False,
) -> Numeric:
    """A numeric column. `dimension=None` takes it from the data; an explicit mismatch is an error at fit.

    With `nan_is_missing` a NaN of a table is what a null is; arrays of numpy and pandas know no other null.
    `normalizer` is one of ours by name, or a function that `model.registry.register_normalizer` knows.
    """
    return Numeric(
        name=column_name,
        dimension=dimension,
        missing="error" if default_value is None else float(default_value),
        nan_is_missing=nan_is_missing,
        normalizer=normalizer_name(normalizer),
    )


def bucketized_column(
    source_column: Numeric, boundaries: Sequence[float] | None = None, *, quantiles: int | None = None
) -> Bucketized:
    """One-hot of the interval each number of `source_column` falls into.

    `quantiles` in place of boundaries learns them: so many intervals of like count in the training data.
    """
    if quantiles is not None and boundaries is None:
        return Bucketized(source=source_column, boundaries=Quantiles(quantiles=quantiles))
    if boundaries is None or quantiles is not None:
        found = "both" if boundaries is not None else "neither"
        raise ConfigError(f"bucketized_column needs boundaries or quantiles, one of the two, but has {found}")
    return Bucketized(source=source_column, boundaries=tuple(boundaries))


def sparse_column_with_keys(column_name: str, keys: Sequence[Key], default_value: int = -1) -> Vocabulary:
    """Ids by position in `keys`; a value outside them gets the id `default_value`, or is dropped where that is −1."""
    return Vocabulary(name=column_name, keys=tuple(keys), oov_buckets=0, default_value=default_value)


def sparse_column_with_vocabulary_file(
    column_name: str,
    vocabulary_file: str,
    num_oov_buckets: int = 0,
    vocab_size: int | None = None,
    default_value: int = -1,
) -> Vocabulary:
    """Ids by line of a file, of its first `vocab_size` lines if given; other values are hashed into the OOV buckets.

    Without OOV buckets they get the id `default_value`, or are dropped where that is −1.
    """
    return Vocabulary(
        name=column_name,
        file=str(vocabulary_file),
        max_keys=vocab_size,
        oov_buckets=num_oov_buckets,
        default_value=default_value,
    )


def sparse_column_with_hash_bucket(column_name: str, hash_bucket_size: int) -> HashBucket:
    """Strings or integers hashed into `hash_bucket_size` ids, with the original's hash."""
    return HashBucket(name=column_name, buckets=hash_bucket_size)


def sparse_column_with_integerized_feature(column_name: str, bucket_size: int) -> Identity:
    """Integers modulo `bucket_size` (Python's modulo: −1 is the last bucket)."""
    return Identity(name=column_name, buckets=bucket_size)


def weighted_sparse_column(sparse_id_column: SparseColumn, weight_column_name: str) -> Weighted:
    """The ids of a sparse column, each with a weight from another column of the data."""
    return Weighted(source=sparse_id_column, weights=weight_column_name)


def crossed_column(
    columns: Sequence[SparseColumn | Bucketized | Crossed], hash_bucket_size: int, hash_key: int | None = None
) -> Crossed:
    """Every combination of the columns' values, hashed into `hash_bucket_size` ids, with the original's hash.

    A crossed column among `columns` stands for the columns that it crosses.
    """
    return Crossed(sources=tuple(columns), buckets=hash_bucket_size, hash_key=hash_key)


def one_hot_column(sparse_id_column: SparseColumn | Weighted | Crossed) -> OneHot:
    """Multi-hot counts of the ids."""
    return OneHot(source=sparse_id_column)


def embedding_column(
    sparse_id_column: SparseColumn | Weighted | Crossed,
    dimension: int,
    combiner: Combiner = "mean",
    *,
    max_norm: float | None = None,
    trainable: bool = True,
) -> Embedding:
    """A trained embedding of width `dimension`."""
    return Embedding(
        source=sparse_id_column, dimension=dimension, combiner=combiner, max_norm=max_norm, trainable=trainable
    )


def shared_embedding_columns(
    sparse_id_columns: Sequence[SparseColumn | Weighted | Crossed],
    dimension: int,
    combiner: Combiner = "mean",
    shared_embedding_name: str | None = None,
    *,
    max_norm: float | None = None,
    trainable: bool = True,
) -> list[Embedding]:
    """Embeddings, one a column, that share one table; sequence and context columns may."""
    table = shared_embedding_name or "_".join(sorted(each.name for each in sparse_id_columns)) + "_shared_embedding"
    return [
        Embedding(
            source=each,
            dimension=dimension,
            combiner=combiner,
            table=table,
            max_norm=max_norm,
            trainable=trainable,
        )
        for each in sparse_id_columns
    ]
