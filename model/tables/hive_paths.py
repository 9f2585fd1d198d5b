"""Columns that stand in paths: `year=2024/country=DE/part.parquet`, as Hive, Spark and pyarrow write them.

Below what was named as the data, a path's column is the data set's and stands for one of the same name in the file,
as with Spark and pyarrow. A `name=value` directory at or above it is used only where the file has no such column: so
`data/year=2024` and `data/year=2025` may be training and validation rows. Knows paths, but reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import unquote

from model.errors import DataError
from model.storage import is_remote, search_root, snapshot_of
from model.storage.filesystems import PathLike
from model.tables.fragments import PartitionValue

NULL = "__HIVE_DEFAULT_PARTITION__"
_BEYOND_INT64 = 2**63
PartitionType = Literal["string", "int64", "float64"]
PARTITION_TYPES = get_args(PartitionType)
PartitionTypes = Mapping[str, PartitionType]


@dataclass(frozen=True)
class Partitions:
    """One file's columns from its path: `inner` from below the data's root, `outer` from the root and above it."""

    inner: Mapping[str, PartitionValue]
    outer: Mapping[str, PartitionValue]

    def beside(self, held: Sequence[str]) -> dict[str, PartitionValue]:
        """The columns that the path gives a file which holds the columns `held` itself."""
        return {name: value for name, value in self.outer.items() if name not in held} | dict(self.inner)


def partitions_of(path: PathLike, files: Sequence[str], types: PartitionTypes | None = None) -> list[Partitions]:
    """The columns from the path of each of the `files` that were found under `path`.

    A column is of the type that `types` names; else of integers if all its values over all files are written as such,
    and of strings if not: `01` is a code. DataError where a value is not of the declared type.
    """
    if (table := snapshot_of(path)) is not None:
        return [Partitions(_declared(table.files[file], types or {}, file), {}) for file in files]
    root = search_root(path, files)
    outer = _texts(root if root in files else f"{root}/")
    inner = [_texts(_name(file)[len(_name(root)) :]) for file in files]
    kinds = _kinds([outer | texts for texts in inner]) | dict(types or {})
    return [
        Partitions(_values(texts, kinds, file), _values(outer, kinds, file))
        for file, texts in zip(files, inner, strict=True)
    ]


def _declared(values: Mapping[str, PartitionValue], types: PartitionTypes, file: str) -> dict[str, PartitionValue]:
    """The values of a Delta table's partition, which its log gives, of the types that are declared."""
    return {
        name: value if name not in types or value is None else _value(str(value), types[name], name, file)
        for name, value in values.items()
    }


def _name(file: str) -> str:
    """A path without what makes it a URI: options, and letters that are percent-encoded."""
    return unquote(file.partition("?")[0]) if is_remote(file) else file


def _texts(path: str) -> dict[str, str]:
    """What the directories of a path say; Hive percent-encodes signs in names and values."""
    pairs = (part.partition("=") for part in path.split("/")[:-1])
    return {unquote(name): unquote(text) for name, equals, text in pairs if name and equals}


def _kinds(texts: Sequence[Mapping[str, str]]) -> dict[str, PartitionType]:
    """The type of each column, by all its values."""
    seen: dict[str, set[str]] = {}
    for found in texts:
        for name, text in found.items():
            seen.setdefault(name, set()).add(text)
    return {
        name: "int64" if all(_is_integer(text) for text in values - {NULL}) else "string"
        for name, values in seen.items()
    }


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or str(int(text)) != text:
        return False
    return -_BEYOND_INT64 <= int(text) < _BEYOND_INT64


def _values(texts: Mapping[str, str], kinds: PartitionTypes, file: str) -> dict[str, PartitionValue]:
    return {name: _value(text, kinds[name], name, file) for name, text in texts.items()}


def _value(text: str, kind: PartitionType, name: str, file: str) -> PartitionValue:
    if text == NULL:
        return None
    value: PartitionValue = None
    with suppress(ValueError):  # told below
        value = _READ[kind](text)
    if value is None or (isinstance(value, int) and not -_BEYOND_INT64 <= value < _BEYOND_INT64):
        raise DataError(
            f"its path must give a value of type {kind}, as the partition types declare, but gives {text!r}",
            file=file,
            column=name,
        )
    return value


_READ: dict[PartitionType, Callable[[str], Any]] = {"string": str, "int64": int, "float64": float}
