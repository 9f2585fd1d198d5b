"""A config class read as a tree of fields: for error messages, help and "did you mean". Knows no values.

"Config class" is any pydantic model; a union of config classes is told apart by a Literal field such as
`type: Literal["numeric"]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from enum import Enum
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

_WORDS = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "string",
    NoneType: "null",
    SecretStr: "secret string",
    SecretBytes: "secret string",
    list: "list",
    dict: "mapping",
}
_LISTS = (Sequence, Set)


def is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def members(annotation: Any) -> list[Any]:
    """The alternatives of a type, None left out: [int] for int, Optional[int] and Annotated[int, ...]."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin not in (Union, UnionType):
        return [annotation]
    some = [member for member in get_args(annotation) if member is not NoneType]
    return members(some[0]) if len(some) == 1 else some


def leaves(annotation: Any) -> list[Any]:
    """`members`, with unions inside the union opened too."""
    options = members(annotation)
    return options if len(options) == 1 else [leaf for option in options for leaf in leaves(option)]


def fields_of(config_class: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields under the names people write: the alias where there is one."""
    return {field.alias or name: field for name, field in config_class.model_fields.items()}


def tags(config_class: type[BaseModel]) -> list[Any]:
    """The values by which a union knows the class: `numeric` for a field `type: Literal["numeric"]`.

    A Literal of several values is a choice (lstm or gru), not a tag.
    """
    kinds = [field.annotation for field in config_class.model_fields.values()]
    fixed = [get_args(kind) for kind in kinds if get_origin(kind) is Literal]
    return [values[0] for values in fixed if len(values) == 1]


def inside(container: Any, piece: str | int) -> tuple[type[BaseModel] | None, Any]:
    """The config class that owns `piece` of `container`, if one does, and the type that stands there."""
    if is_config(container):
        field = fields_of(container).get(str(piece))
        return container, field.annotation if field else None
    origin, arguments = get_origin(container), get_args(container)
    if not isinstance(origin, type) or not arguments:
        return None, None
    if issubclass(origin, Mapping):
        return None, arguments[1]
    if issubclass(origin, tuple) and arguments[-1] is not Ellipsis:
        return None, arguments[piece] if isinstance(piece, int) and piece < len(arguments) else None
    return None, arguments[0] if issubclass(origin, _LISTS) else None


def nested(annotation: Any) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """The config classes a type may hold, each behind the path to it: `0` for an item, `NAME` for a key."""
    for leaf in leaves(annotation):
        origin, arguments = get_origin(leaf), get_args(leaf)
        if is_config(leaf):
            yield (), leaf
        elif isinstance(origin, type) and arguments and issubclass(origin, (Mapping, *_LISTS)):
            step, item = ("NAME", arguments[1]) if issubclass(origin, Mapping) else ("0", arguments[0])
            yield from (((step, *path), config_class) for path, config_class in nested(item))


def every_field(
    config_class: type[BaseModel], prefix: tuple[str, ...] = (), above: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """The path of every field under `config_class` and the class that owns it; a class inside itself once."""
    if config_class in above:
        return
    for name, field in fields_of(config_class).items():
        yield (*prefix, name), config_class
        for path, inner in nested(field.annotation):
            yield from every_field(inner, (*prefix, name, *path), (*above, config_class))


def type_words(annotation: Any) -> str:
    """A type as people say it: `list of integer`, `auto or integer`, `one of lstm, gru`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([type_words(arguments[0]), bounds_words(arguments[1:])]).strip()
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_words(argument) for argument in arguments))
    if origin is Literal:
        return _choice([str(value) for value in arguments])
    if isinstance(origin, type) and arguments:
        if issubclass(origin, Mapping):
            return f"mapping of {type_words(arguments[0])} to {type_words(arguments[1])}"
        return "list of " + " and ".join(type_words(a) for a in arguments if a is not Ellipsis)
    if annotation is Any or not isinstance(annotation, type):
        return "any value"
    if issubclass(annotation, Enum):
        return _choice([str(member.value) for member in annotation])
    if issubclass(annotation, PurePath):
        return "path"
    return "settings" if is_config(annotation) else _WORDS.get(annotation, annotation.__name__)


def bounds_words(metadata: Sequence[Any]) -> str:
    """The limits of a field as people say them: `at least 1, less than 2`."""
    said = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    said |= {"multiple_of": "a multiple of", "pattern": "of the form"}
    said |= {"min_length": "of length at least", "max_length": "of length at most"}
    found = ((words, getattr(mark, name, None)) for mark in metadata for name, words in said.items())
    return ", ".join(f"{words} {value}" for words, value in found if value is not None)


def _choice(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
