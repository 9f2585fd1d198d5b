"""One JSON value held against an Arrow type: the value to store, or what is wrong with it. Knows no rows, no HTTP.

pyarrow alone will not do: it turns 1.5 into the integer 1, and its errors name no place.
Lists are looked at as wholes (`set(map(type, values))`); only a list with a fault is walked value by value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from model.tables.arrow_lists import is_list

_SHOWN_CHARACTERS = 40
_NULL = {type(None)}


class ValueRefused(ValueError):
    """What is wrong with a value: a phrase that follows the column's name."""


@dataclass(frozen=True)
class ScalarReader:
    """A single value or null, of type `kind`; `types` are Python's types of the JSON values that may stand there.

    7.0 is the integer 7 and true is 1, as in training data; 7.5 is no integer.
    """

    word: str
    kind: type[str] | type[int] | type[float]
    types: frozenset[type]
    max_string_length: int

    def read(self, value: Any) -> Any:
        """The value as `kind`."""
        if fault := self._fault(value):
            raise ValueRefused(fault)
        return None if value is None else self.kind(value)

    def read_list(self, values: list[Any]) -> list[Any]:
        """Many values; the error names the first bad item."""
        types = set(map(type, values)) - _NULL
        if types <= self.types and self._fine(values, types):
            return values if types <= {self.kind} else [self.read(value) for value in values]
        index, fault = next((i, fault) for i, value in enumerate(values) if (fault := self._fault(value)))
        raise ValueRefused(f"item {index} {fault}")

    def _fine(self, values: list[Any], types: set[type]) -> bool:
        present = [value for value in values if value is not None]
        if str in types:
            return len(max(present, key=len)) <= self.max_string_length
        if self.kind is int and not types <= {int}:
            return not any(map(self._fault, values))
        if float in types:
            # Integers beyond the range of floats make an array of objects, and overflow there.
            array = np.array(present)
            return array.dtype != object and bool(np.isfinite(array).all())
        return not present or -(2**63) <= min(present) <= max(present) < 2**63

    def _fault(self, value: object) -> str | None:
        if value is None:
            return None
        if type(value) not in self.types:
            return f"must be {self.word}, but is {quoted(value)}"
        if isinstance(value, str) and len(value) > self.max_string_length:
            return f"must be a string of at most {self.max_string_length} characters, but has {len(value)}"
        if self.kind is int and isinstance(value, float):
            return _float_fault(value)
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be a finite number, but is {value}"
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return "must be an integer of at most 64 bits, but is larger"
        return None


def _float_fault(value: float) -> str | None:
    """Why a float is no integer."""
    if not value.is_integer():
        return f"must be an integer, but is {value}"
    return "must be written without a point or exponent where it is beyond 2^53" if abs(value) > 2**53 else None


@dataclass(frozen=True)
class ListReader:
    """A list or null; of `width` items where that is given."""

    item: ScalarReader | ListReader
    width: int | None

    def read(self, value: object) -> Any:
        """The list, its items read."""
        if value is None:
            return None
        if not isinstance(value, list):
            raise ValueRefused(f"must be {self.word}, but is {quoted(value)}")
        if self.width is not None and len(value) != self.width:
            raise ValueRefused(f"must be {self.word}, but has {len(value)} items")
        return self.item.read_list(value)

    def read_list(self, values: list[Any]) -> list[Any]:
        """Many lists; the error names the first bad item."""
        read = []
        for index, value in enumerate(values):
            try:
                read.append(self.read(value))
            except ValueRefused as error:
                raise ValueRefused(f"item {index}{',' * str(error).startswith('item')} {error}") from error
        return read

    @property
    def word(self) -> str:
        """What must stand there."""
        items = "lists" if isinstance(self.item, ListReader) else f"{self.item.word.split()[-1]}s"
        return f"a list of {items}" if self.width is None else f"a list of {self.width} {items}"


def reader_of(arrow_type: pa.DataType, max_string_length: int) -> ScalarReader | ListReader:
    """How JSON values of an Arrow type are read."""
    if is_list(arrow_type):
        width = arrow_type.list_size if pa.types.is_fixed_size_list(arrow_type) else None
        return ListReader(reader_of(arrow_type.value_type, max_string_length), width)
    if pa.types.is_floating(arrow_type):
        return ScalarReader("a number", float, frozenset({int, float, bool}), max_string_length)
    if pa.types.is_integer(arrow_type):
        return ScalarReader("an integer", int, frozenset({int, float, bool}), max_string_length)
    assert pa.types.is_string(arrow_type), f"a model reads numbers, integers and strings, not {arrow_type}"
    return ScalarReader("a string", str, frozenset({str}), max_string_length)


def quoted(value: object) -> str:
    """A value as a message quotes it: short, and null, true and false as JSON writes them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    # Cut before repr: a string may be as long as the body.
    text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value)
    cut = len(text) > _SHOWN_CHARACTERS or (isinstance(value, str) and len(value) > _SHOWN_CHARACTERS)
    return f"{text[:_SHOWN_CHARACTERS]}…" if cut else text
