"""Pydantic's faults in the house voice: what must be, what is, where, what to do. Knows no YAML and no files.

Pydantic locates a fault by a tuple in which the branch of a union stands like a key. `_locate` walks the
config class beside it, so that people read the path they wrote: `columns.0.name`, not
`columns.0.numeric.name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from model.errors import MOST_LISTED, ConfigError, listed
from model.settings.fields import every_field, fields_of, inside, is_config, leaves, members, tags

# What must be, for each of pydantic's error types; the braces are filled from the error's context.
_REQUIREMENTS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "frozen_set_type": "a list",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_type": "an integer",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "mapping_type": "a mapping",
    "model_attributes_type": "a mapping",
    "model_type": "a mapping",
    "multiple_of": "a multiple of {multiple_of}",
    "none_required": "null",
    "path_type": "a path",
    "set_type": "a list",
    "string_pattern_mismatch": "a string of the form {pattern}",
    "string_sub_type": "a string",
    "string_too_long": "a string of at most {max_length} characters",
    "string_too_short": "a string of at least {min_length} characters",
    "string_type": "a string",
    "tuple_type": "a list",
}
_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class _Place:
    path: _Path  # as the user writes it
    annotation: Any  # the type of what stands there; None where unknown
    owner: type[BaseModel] | None  # the config class whose field the last part is, or should be
    # The unions without a discriminator on the way, outermost first: path and pydantic's label of the alternative.
    unions: tuple[tuple[_Path, str], ...] = ()


@dataclass(frozen=True)
class _Fault:
    place: _Place
    error: ErrorDetails

    @property
    def context(self) -> dict[str, Any]:
        return self.error.get("ctx", {})


def config_error(where: str, faults: Sequence[str]) -> ConfigError:
    """One fault is one line; several are a header and a line each, as many as are read."""
    lines = [f"{where}: {fault}" for fault in dict.fromkeys(faults)]
    if len(lines) == 1:
        return ConfigError(lines[0])
    more = [f"{where}: and {len(lines) - MOST_LISTED} more"] if len(lines) > MOST_LISTED else []
    return ConfigError("\n".join([f"{where}: {len(lines)} faults", *lines[:MOST_LISTED], *more]))


def fault_lines(config_class: type[BaseModel], error: ValidationError) -> list[str]:
    """Every fault of `error`, one line each, `where` not yet in front."""
    errors = [e for e in error.errors(include_url=False) if not _is_long_enough(e)]
    faults = [_Fault(_locate(config_class, e["loc"]), e) for e in errors]
    return [_line(config_class, group) for group in _settle_unions(faults)]


def _is_long_enough(error: ErrorDetails) -> bool:
    """Pydantic counts only the valid items, so it finds a list too short whose items have faults of their own."""
    if error["type"] != "too_short" or not isinstance(error["input"], list | tuple):
        return False
    return error["ctx"]["field_type"] in ("List", "Tuple") and len(error["input"]) >= error["ctx"]["min_length"]


def true_as_number(annotation: Any, value: Any, path: _Path = ()) -> list[str]:
    """The faults pydantic does not see: it takes true for 1, and `epochs: true` would train one epoch."""
    options = leaves(annotation)
    if isinstance(value, bool):
        literals = [choice for kind in options if get_origin(kind) is Literal for choice in get_args(kind)]
        if bool in options or value in literals or not {int, float} & set(options):
            return []
        kind = "an integer" if int in options else "a number"
        return [f"{dotted(path)} must be {kind}, but is {quoted(value)}"]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    fitting = [option for option in options if is_config(option) and _is_tagged(option, value)] or options
    faults = []
    for key, item in items:
        held = [kind for option in fitting if (kind := inside(option, key)[1]) is not None]
        faults += true_as_number(held[0], item, (*path, key)) if held else []
    return faults


def _is_tagged(config_class: type[BaseModel], value: Any) -> bool:
    return isinstance(value, dict) and any(tag in value.values() for tag in tags(config_class))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean lstm?` for the choice closest to `word`, or nothing where none is close."""
    near = _nearest(word, choices)
    return "" if near is None else f"; did you mean {near}?"


def _nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    by_folded = {choice.casefold(): choice for choice in choices}
    close = get_close_matches(word.casefold(), by_folded, n=1, cutoff=cutoff)
    return by_folded[close[0]] if close else None


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)


def quoted(value: Any) -> str:
    """`value` as a message quotes it: short, and null, true and false as YAML writes them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"a list of {len(value)} items" if isinstance(value, list) else f"{text[:57]}..."


# --- where: pydantic's location held against the class ---


def _locate(root: type[BaseModel], location: _Path) -> _Place:
    place = _Place((), root, None)
    for piece in location:
        options = members(place.annotation)
        if len(options) > 1:  # the piece is a label of pydantic's, not a part of the path
            tagged = [option for option in options if is_config(option) and piece in tags(option)]
            place = replace(place, annotation=tagged[0] if tagged else _branch(options, str(piece)))
            if not tagged:
                place = replace(place, unions=(*place.unions, (place.path, str(piece))))
        elif piece != "[key]":  # the mark of a mapping's key; the key itself came before
            owner, annotation = inside(options[0], piece)
            place = replace(place, path=(*place.path, piece), annotation=annotation, owner=owner)
    return place


def _branch(options: list[Any], label: str) -> Any:
    """The alternative that pydantic labels `label`: `int`, `list[int]`, `OptimizerConfig`."""
    kind = label.split("[")[0]
    named = [option for option in options if getattr(option, "__name__", "") == kind]
    unions = [option for option in options if len(members(option)) > 1]
    return (named or unions or [None])[0]


def _settle_unions(faults: list[_Fault], depth: int = 0) -> Iterator[list[_Fault]]:
    """The faults of each line. A value that fits no alternative of a union is one fault, not one for each."""
    done: set[_Path] = set()
    for fault in faults:
        if len(fault.place.unions) <= depth:
            yield [fault]
        elif (union := fault.place.unions[depth][0]) not in done:
            done.add(union)
            branches: dict[str, list[_Fault]] = {}
            for other in faults:
                if other.place.unions[depth : depth + 1] and other.place.unions[depth][0] == union:
                    branches.setdefault(other.place.unions[depth][1], []).append(other)
            # The alternative whose outer form fits, for its faults lie deeper; of several the one with fewest.
            fitting = [b for b in branches.values() if all(len(each.place.path) > len(union) for each in b)]
            if fitting:
                yield from _settle_unions(min(fitting, key=len), depth + 1)
            else:
                yield [each for branch in branches.values() for each in branch]


# --- what: one line a fault ---


def _line(root: type[BaseModel], faults: list[_Fault]) -> str:
    fault = faults[0]
    place, error, context = fault.place, fault.error, fault.context
    name = dotted(place.path) or "the top level"
    match error["type"]:
        case "extra_forbidden":
            return _unknown(root, place)
        case "missing":
            return f"{name} must be given, but is missing{_purpose(place)}"
        case "union_tag_not_found" | "union_tag_invalid":
            return _wrong_tag(fault)
        case "value_error" | "assertion_error":
            return _own_words(place, context["error"])
        case "invalid_key":
            return f"the key {name} must be a string; write it in quotes: '{name}'"
        case "too_short":
            return f"{name} must have at least {_items(context['min_length'])}, but has {_length(context)}"
        case "too_long":
            return f"{name} must have at most {_items(context['max_length'])}, but has {_length(context)}"
    if error["loc"] and error["loc"][-1] == "[key]":
        name = f"the key {name}"
    requirement = " or ".join(dict.fromkeys(_requirement(each) for each in faults))
    value = "a secret" if _holds_secret(place.annotation) else quoted(error["input"])
    if requirement.startswith(":"):
        return f"{name}{requirement}; it is {value}"
    line = f"{name} must be {requirement}, but is {value}"
    if isinstance(error["input"], str):
        choices = [word for each in faults for word in _quoted(each.context.get("expected", ""))]
        return line + did_you_mean(error["input"], choices)
    plain = requirement == "a string" and isinstance(error["input"], int | float)
    return f"{line}; write it in quotes: '{value}'" if plain else line


def _holds_secret(annotation: Any) -> bool:
    return annotation in (SecretStr, SecretBytes) or any(map(_holds_secret, get_args(annotation)))


def _requirement(fault: _Fault) -> str:
    kind = fault.error["type"]
    if kind in ("literal_error", "enum"):
        return _one_of(fault.context["expected"])
    if kind in _REQUIREMENTS:
        whole = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in fault.context.items()}
        return _REQUIREMENTS[kind].format(**whole)
    if kind in ("value_error", "assertion_error"):
        return f"what this asks: {fault.context['error']}"
    # The rarer types, and those of later pydantics: mostly "Input should be ...", else a sentence of its own.
    found = re.fullmatch(r"(?:Input|Value) should be (.*)", fault.error["msg"])
    return found[1] if found else f": {fault.error['msg']}"


def _plain(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _wrong_tag(fault: _Fault) -> str:
    context = fault.context
    name = dotted([*fault.place.path, context["discriminator"].strip("'")])
    if fault.error["type"] == "union_tag_not_found":
        known = [str(tag) for leaf in leaves(fault.place.annotation) if is_config(leaf) for tag in tags(leaf)]
        return f"{name} must be one of {', '.join(known)}, but is missing"
    line = f"{name} must be {_one_of(context['expected_tags'])}, but is {quoted(context['tag'])}"
    return line + did_you_mean(str(context["tag"]), _quoted(context["expected_tags"]))


def _own_words(place: _Place, error: Exception) -> str:
    """A validator's own text, on one line, behind the path unless it begins with the path itself."""
    text, name = " ".join(str(error).split()), dotted(place.path)
    return text if not name or text.startswith(name) else f"{name}: {text}"


def _purpose(place: _Place) -> str:
    """The first sentence of the field's description: what one who left it out has to think of."""
    field = fields_of(place.owner).get(str(place.path[-1])) if place.owner else None
    described = field.description if field else None
    return f" ({described.split('. ')[0].rstrip('.')})" if described else ""


def _unknown(root: type[BaseModel], place: _Place) -> str:
    """A setting of this name elsewhere may be meant: on its level, then anywhere, then another type's."""
    *above, word = place.path
    level = fields_of(place.owner) if place.owner else {}
    line = f"{dotted(place.path)} is not a setting"
    if (near := _nearest(str(word), level)) is not None:
        return f"{line}; did you mean {dotted([*above, near])}?"
    everywhere = [(path, owner) for path, owner in every_field(root) if owner is not place.owner]
    here = tuple("0" if isinstance(part, int) else part for part in place.path)
    others = [str(tags(owner)[0]) for path, owner in everywhere if path == here and tags(owner)]
    if others and place.owner and tags(place.owner):
        return f"{line} of type {tags(place.owner)[0]}, but of {', '.join(others)}"
    near = _nearest(str(word), (path[-1] for path, _ in everywhere), cutoff=0.75)
    paths = list(dict.fromkeys(dotted(path) for path, _ in everywhere if path[-1] == near))
    if paths:
        return f"{line}; did you mean {' or '.join(paths[:3])}?"
    return f"{line}; {dotted(above) or 'the top level'} has {listed(level) or 'no settings'}"


def _one_of(expected: str) -> str:
    words = _quoted(expected)
    return expected if not words else words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _quoted(expected: str) -> list[str]:
    """The words of pydantic's "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", expected)


def _length(context: dict[str, Any]) -> str:
    return str(context["actual_length"] or "none")


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"
