"""Feature columns as declared: what is accepted, their order, the original's factories, and the way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.columns import (
    Bucketized,
    Column,
    ColumnsConfig,
    Embedding,
    Identity,
    Numeric,
    OneHot,
    Vocabulary,
    bucketized_column,
    embedding_column,
    one_hot_column,
    real_valued_column,
    source_key,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
)
from model.columns.config import column_name, source_of
from model.errors import ConfigError
from model.settings import build

X = {"type": "numeric", "name": "x"}
WORD = {"type": "vocabulary", "name": "word"}

EVERY_COLUMN: list[Column] = [
    Numeric(name="x"),
    Numeric(name="x", dimension=3, missing=-1.5, normalizer="minmax"),
    Bucketized(source=Numeric(name="x", missing="mean"), boundaries=(-1, 0.5)),
    OneHot(source=Vocabulary(name="word", keys=("b", "a"), oov_buckets=0)),
    OneHot(source=Vocabulary(name="number", keys=(3, 1))),
    Embedding(source=Vocabulary(name="word", max_keys=5, min_count=2), dimension=4, combiner="sqrtn"),
    Embedding(source=Identity(name="id", buckets=7), dimension=2, combiner="sum"),
]


@pytest.mark.parametrize("column", EVERY_COLUMN, ids=repr)
def test_a_declaration_survives_json(column: Column) -> None:
    declared = ColumnsConfig(sequence=(column,))
    assert build(ColumnsConfig, json.loads(declared.model_dump_json()), where="model.json") == declared


def test_keys_keep_their_type_through_json() -> None:
    declared = ColumnsConfig(sequence=(OneHot(source=Vocabulary(name="a", keys=("1", "2"))),))
    assert source_of(ColumnsConfig.model_validate_json(declared.model_dump_json()).sequence[0]).keys == ("1", "2")


def test_the_network_reads_columns_in_the_originals_order() -> None:
    shuffled = (
        Numeric(name="b"),
        OneHot(source=Vocabulary(name="a")),
        Numeric(name="a"),
        Bucketized(source=Numeric(name="e"), boundaries=(0,)),
        Embedding(source=Vocabulary(name="z"), dimension=2),
        OneHot(source=Identity(name="z", buckets=2)),
        Embedding(source=Identity(name="y", buckets=2), dimension=2),
        Embedding(source=Vocabulary(name="c"), dimension=2),
    )
    expected = ["e", "y", "c", "z", "z", "a", "a", "b"]
    assert [column_name(column) for column in ColumnsConfig(sequence=shuffled).ordered("sequence")] == expected
    assert [column_name(c) for c in ColumnsConfig(sequence=shuffled[::-1]).ordered("sequence")] == expected


@pytest.mark.parametrize(
    ("made", "declared"),
    [
        (real_valued_column("x"), Numeric(name="x")),
        (real_valued_column("x", 3, default_value=0), Numeric(name="x", dimension=3, missing=0.0)),
        (bucketized_column(real_valued_column("x"), [0, 1]), Bucketized(source=Numeric(name="x"), boundaries=(0, 1))),
        (sparse_column_with_keys("w", ["b", "a"]), Vocabulary(name="w", keys=("b", "a"), oov_buckets=0)),
        (sparse_column_with_integerized_feature("i", 5), Identity(name="i", buckets=5)),
        (
            one_hot_column(sparse_column_with_integerized_feature("i", 5)),
            OneHot(source=Identity(name="i", buckets=5)),
        ),
        (
            embedding_column(sparse_column_with_keys("w", ["a"]), 4, "sum"),
            Embedding(source=Vocabulary(name="w", keys=("a",), oov_buckets=0), dimension=4, combiner="sum"),
        ),
    ],
    ids=["real", "real of three", "bucketized", "keys", "integerized", "one hot", "embedding"],
)
def test_the_originals_factories_make_our_declarations(made: Any, declared: Any) -> None:
    assert made == declared


def test_two_representations_of_one_source_share_it() -> None:
    word = Vocabulary(name="word")
    assert source_key(source_of(OneHot(source=word))) == source_key(source_of(Embedding(source=word, dimension=2)))
    ColumnsConfig(sequence=(OneHot(source=word), Embedding(source=word, dimension=2)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sequence": []}, "sequence must have at least 1 item, but has none"),
        ({"sequence": [X], "context": [X]}, "each column must be declared once, but 'x' stands twice"),
        (
            {"sequence": [{"type": "bucketized", "source": X, "boundaries": [0, 0]}]},
            "sequence.0: boundaries must rise, but are [0.0, 0.0]",
        ),
        ({"sequence": [X, X]}, "each column must be declared once, but 'x' stands twice"),
        (
            {"sequence": [X], "context": [{"type": "one_hot", "source": {**WORD, "name": "x"}}]},
            "a column must stand under sequence or under context, but 'x' stands in both",
        ),
        (
            {
                "sequence": [
                    {"type": "one_hot", "source": WORD},
                    {"type": "embedding", "source": {**WORD, "min_count": 2}, "dimension": 2},
                ]
            },
            "the sources over one column must be equal, but those over 'word' differ",
        ),
        (
            {"sequence": [{"type": "one_hot", "source": {**WORD, "keys": ["a", 1]}}]},
            "sequence.0.source: keys must be all strings or all integers, but they are mixed",
        ),
        (
            {"sequence": [{"type": "one_hot", "source": {**WORD, "keys": ["a", "b", "a"]}}]},
            "sequence.0.source: keys must be distinct, but a value stands twice",
        ),
        (
            {"sequence": [{"type": "one_hot", "source": {"type": "identity", "name": "i", "buckets": 0}}]},
            "sequence.0.source.buckets must be at least 1, but is 0",
        ),
        (
            {"sequence": [{"type": "one_hot", "source": WORD, "dimension": 2}]},
            "sequence.0.dimension is not a setting of type one_hot, but of numeric, embedding",
        ),
        (
            {"sequence": [{**X, "normaliser": "zscore"}]},
            "sequence.0.normaliser is not a setting; did you mean sequence.0.normalizer?",
        ),
        (
            {"sequence": [{**X, "type": "numerik"}]},
            "sequence.0.type must be one of numeric, bucketized, one_hot, embedding, but is 'numerik'; did you mean "
            "numeric?",
        ),
        (
            {"sequence": [{**X, "missing": "median"}]},
            "sequence.0.missing must be a number or one of error, mean, but is 'median'; did you mean mean?",
        ),
    ],
)
def test_a_faulty_declaration_is_told(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(ColumnsConfig, columns, where="run.yaml")
    assert str(raised.value) == f"run.yaml: {message}"
