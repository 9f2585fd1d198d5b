"""Columns that stand in paths: `year=2024/country=DE/part.parquet`, as Hive, Spark and pyarrow write them.

Below what was named as the data, a path's column is the data set's and stands for one of the same name in the file,
as with Spark and pyarrow. A `name=value` directory at or above it is used only where the file has no such column: so
`data/year=2024` and `data/year=2025` may be training and validation rows. Knows paths, but reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from model.storage import is_remote, search_root
from model.storage.filesystems import PathLike
from model.tables.fragments import PartitionValue

NULL = "__HIVE_DEFAULT_PARTITION__"
_BEYOND_INT64 = 2**63


@dataclass(frozen=True)
class Partitions:
    """One file's columns from its path: `inner` from below the data's root, `outer` from the root and above it."""

    inner: Mapping[str, PartitionValue]
    outer: Mapping[str, PartitionValue]

    def beside(self, held: Sequence[str]) -> dict[str, PartitionValue]:
        """The columns that the path gives a file which holds the columns `held` itself."""
        return {name: value for name, value in self.outer.items() if name not in held} | dict(self.inner)


def partitions_of(path: PathLike, files: Sequence[str]) -> list[Partitions]:
    """The columns from the path of each of the `files` that were found under `path`.

    A column is of integers if all its values over all files are, else of strings.
    """
    root = search_root(path, files)
    outer = _texts(root if root in files else f"{root}/")
    inner = [_texts(_name(file)[len(_name(root)) :]) for file in files]
    integers = _integers([outer | texts for texts in inner])
    return [Partitions(_values(texts, integers), _values(outer, integers)) for texts in inner]


def _name(file: str) -> str:
    """A path without what makes it a URI: options, and letters that are percent-encoded."""
    return unquote(file.partition("?")[0]) if is_remote(file) else file


def _texts(path: str) -> dict[str, str]:
    """What the directories of a path say; Hive percent-encodes signs in names and values."""
    pairs = (part.partition("=") for part in path.split("/")[:-1])
    return {unquote(name): unquote(text) for name, equals, text in pairs if name and equals}


def _integers(texts: Sequence[Mapping[str, str]]) -> set[str]:
    seen: dict[str, set[str]] = {}
    for found in texts:
        for name, text in found.items():
            seen.setdefault(name, set()).add(text)
    return {name for name, values in seen.items() if all(_is_integer(text) for text in values - {NULL})}


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and -_BEYOND_INT64 <= int(text) < _BEYOND_INT64


def _values(texts: Mapping[str, str], integers: set[str]) -> dict[str, PartitionValue]:
    return {name: _value(text, integer=name in integers) for name, text in texts.items()}


def _value(text: str, *, integer: bool) -> PartitionValue:
    if text == NULL:
        return None
    return int(text) if integer else text
