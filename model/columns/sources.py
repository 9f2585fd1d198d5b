"""Sources: how a column of data becomes numbers or ids, declared as plain data.

`Numeric` gives numbers; `Vocabulary`, `Identity` and `HashBucket` give ids from one column each, `Weighted` and
`Crossed` from several. Their representations are in `model.columns.representations`, their fitted forms in
`model.features.fit`.
Knows no files, no torch, no Ray.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from model.registry import BUILT_IN_NORMALIZERS, registered_normalizer
from model.settings import Settings

Key = str | int
MOST_BUCKETS = 2**31 - 1
MOST_INTERVALS = 1000


def without_later_defaults(plain: dict[str, Any]) -> dict[str, Any]:
    """A column of numbers as 0.1.0 wrote it and reads it, where its model is one that 0.1.0 could have made."""
    return plain if plain.get("nan_is_missing") else {k: v for k, v in plain.items() if k != "nan_is_missing"}


class Numeric(Settings):
    """Floats or integers: one value, or a vector of `dimension` values, a step (sequence) or a row (context)."""

    type: Literal["numeric"] = "numeric"
    name: str = Field(description="column in the data")
    dimension: int | None = Field(None, ge=1, description="values a step; null takes it from the data at fit")
    missing: float | Literal["error", "mean"] = Field(
        "error", description="what a null becomes: a number, the column's mean, or an error"
    )
    nan_is_missing: bool = Field(False, description="a NaN is as good as a null; false: it is an error")
    normalizer: str = Field(
        "none",
        description="applied before the cast to float32: none, zscore or minmax (both fitted on the training data), "
        "log1p, or a registered one",
    )
    indicator: bool = Field(False, description="adds a feature for each value: 1 where it was missing, else 0")

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later_defaults(serialize(self))

    def model_post_init(self, _context: object) -> None:
        registered_normalizer(self.normalizer)
        if self.indicator and self.missing == "error":
            raise ValueError("indicator needs `missing` to be mean or a number, but it is error, which refuses nulls")

    @property
    def function(self) -> str | None:
        """The normalizer's name where it is a registered function."""
        return None if self.normalizer in BUILT_IN_NORMALIZERS else self.normalizer

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("RealValued", self.name)


class Vocabulary(Settings):
    """Strings or integers looked up in a list of keys; given, read from a file, or learned from the training data."""

    type: Literal["vocabulary"] = "vocabulary"
    name: str = Field(description="column in the data")
    keys: tuple[Key, ...] | None = Field(None, min_length=1, description="the keys in id order; null learns them")
    file: str | None = Field(None, description="path of a file with the keys in id order, one a line; read at fit")
    max_keys: int | None = Field(None, ge=1, description="learned: keep the most frequent ones; file: the first ones")
    min_count: int = Field(1, ge=1, description="learned: drop rarer keys")
    oov_buckets: int = Field(
        1, ge=0, le=MOST_BUCKETS, description="ids that unknown values are hashed into; 0 drops such values"
    )
    default_value: int = Field(
        -1, ge=-1, description="with oov_buckets 0: the id, of a key, that unknown values get; -1 drops them"
    )

    def model_post_init(self, _context: object) -> None:
        self._check_default_value()
        if self.keys is None:
            return
        if self.file is not None:
            raise ValueError("keys and file exclude each other; set one of them to null")
        if len({type(key) for key in self.keys}) > 1:
            raise ValueError("keys must be all strings or all integers, but they are mixed")
        if len(set(self.keys)) != len(self.keys):
            raise ValueError("keys must be distinct, but a value stands twice")

    def _check_default_value(self) -> None:
        if self.default_value < 0:
            return
        if self.oov_buckets:
            raise ValueError(
                f"default_value needs oov_buckets 0, but oov_buckets is {self.oov_buckets}: unknown values are hashed "
                f"into those; set one of the two"
            )
        most = self.max_keys if self.keys is None else len(self.keys)
        if most is not None and self.default_value >= most:
            raise ValueError(
                f"default_value must be the id of a key, 0 to {most - 1}, or -1 to drop unknown values, but is "
                f"{self.default_value}"
            )

    @property
    def learned(self) -> bool:
        """Whether the keys come from the training data."""
        return self.keys is None and self.file is None

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("Keys" if self.file is None else "Vocabulary", self.name)


class Identity(Settings):
    """Integers that are ids already; taken modulo `buckets`, as the original's integerized column."""

    type: Literal["identity"] = "identity"
    name: str = Field(description="column in the data")
    buckets: int = Field(ge=1, description="number of ids")

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("Integerized", self.name)


class HashBucket(Settings):
    """Any strings or integers, by the original's hash: FarmHash's Fingerprint64 of the text, modulo `buckets`."""

    type: Literal["hash_bucket"] = "hash_bucket"
    name: str = Field(description="column in the data")
    buckets: int = Field(ge=1, le=MOST_BUCKETS, description="number of ids")

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("Hashed", self.name)


Plain = Annotated[Vocabulary | Identity | HashBucket, Field(discriminator="type")]


class Weighted(Settings):
    """Ids of `source`, each with the weight at the same place of column `weights`: equally nested lists."""

    type: Literal["weighted"] = "weighted"
    source: Plain
    weights: str = Field(description="column in the data with a number for each of the source's values")

    def model_post_init(self, _context: object) -> None:
        if self.weights == self.source.name:
            raise ValueError(f"weights must be another column than that of the values, but both are {self.weights!r}")

    @property
    def name(self) -> str:
        return f"{self.source.name}*{self.weights}"

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("WeightedSparse", *self.source.sort_key, self.weights)


class Quantiles(Settings):
    """Boundaries that are learned: they cut the training data into so many intervals of like count.

    Equal values stay together, so that there are fewer intervals where a value is frequent. Missing values do not
    count; the values of a vector count together, after the normalizer.
    """

    quantiles: int = Field(ge=2, le=MOST_INTERVALS, description="intervals to learn; 10 for deciles")

    def __str__(self) -> str:
        return f"{self.quantiles} quantiles"


class Bucketized(Settings):
    """One-hot of the interval a number falls into, for each of the source's dimensions: a value on an edge goes up.

    n boundaries make n + 1 intervals; they cut the values as the source gives them, after its normalizer. The source's
    indicators follow, if it has any.
    """

    type: Literal["bucketized"] = "bucketized"
    source: Numeric
    boundaries: Annotated[tuple[float, ...], Field(min_length=1)] | Quantiles = Field(
        description="edges between the intervals, rising; or {quantiles: 10} to learn them from the training data"
    )

    def model_post_init(self, _context: object) -> None:
        if isinstance(self.boundaries, Quantiles):
            return
        if any(low >= high for low, high in pairwise(self.boundaries)):
            raise ValueError(f"boundaries must rise, but are {list(self.boundaries)}")

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("Bucketized", self.source.name, str(self.boundaries))


Part = Vocabulary | Identity | HashBucket | Bucketized


class Crossed(Settings):
    """Every combination of the parts' values in an entry, hashed into `buckets` ids.

    The values themselves are crossed, in the order of the columns' names: strings by their fingerprint, integers as
    they are, numbers by their interval. The keys, buckets and hashes of the parts do not matter, as in the original. A
    cross within a cross stands for its parts: its place is that of its name, its buckets and its key do not matter.
    """

    type: Literal["crossed"] = "crossed"
    sources: tuple[Annotated[Part | Crossed, Field(discriminator="type")], ...] = Field(
        min_length=2, description="what is crossed: categorical or bucketized columns, or crosses of such"
    )
    buckets: int = Field(ge=1, le=MOST_BUCKETS, description="number of ids")
    hash_key: int | None = Field(None, description="null: the original's first hash; a number: its second, so keyed")

    def model_post_init(self, _context: object) -> None:
        names = [part_name(part) for part in self.parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the columns crossed must be distinct, but {twice!r} stands twice")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The sources over one column each, in the order they are hashed in; those of inner crosses stand together."""
        ordered = sorted(self.sources, key=_cross_order)
        return tuple(leaf for part in ordered for leaf in (part.parts if isinstance(part, Crossed) else (part,)))

    @property
    def name(self) -> str:
        return "_X_".join(part_name(part) for part in self.parts)

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("Crossed", self.name)


def part_name(part: Part) -> str:
    """The data column that a part of a cross reads."""
    return part.source.name if isinstance(part, Bucketized) else part.name


def _cross_order(part: Part | Crossed) -> str:
    """The original orders a cross by its columns' names: a bucketized one ends so, a cross joins its own in order."""
    if isinstance(part, Crossed):
        return "_X_".join(sorted(map(_cross_order, part.sources)))
    return f"{part_name(part)}_bucketized" if isinstance(part, Bucketized) else part.name


Categorical = Annotated[Vocabulary | Identity | HashBucket | Weighted | Crossed, Field(discriminator="type")]
Leaf = Numeric | Vocabulary | Identity | HashBucket
Source = Leaf | Weighted | Crossed


def source_key(source: Source) -> str:
    """The name under which a source's fitted form and its encoded values are kept."""
    return f"{source.type}:{source.name}"


def data_columns(source: Source) -> tuple[str, ...]:
    """The columns of the data that a source reads, in the order its fitted form takes them."""
    if isinstance(source, Weighted):
        return (source.source.name, source.weights)
    if isinstance(source, Crossed):
        return tuple(part_name(part) for part in source.parts)
    return (source.name,)


def leaves(source: Source) -> tuple[Leaf, ...]:
    """The sources over one column each whose statistics fit `source`."""
    if isinstance(source, Weighted):
        return (source.source,)
    if isinstance(source, Crossed):
        return tuple(part.source if isinstance(part, Bucketized) else raw_leaf(part) for part in source.parts)
    return (source,)


def raw_leaf(part: Vocabulary | Identity | HashBucket) -> HashBucket:
    """What tells how a crossed column's entries look; no keys are learned for a cross."""
    return HashBucket(name=part.name, buckets=1)
