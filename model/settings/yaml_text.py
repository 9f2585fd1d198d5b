"""Our YAML: one document in, plain Python values out, and back. Knows no config class and no file layout.

PyYAML speaks YAML 1.1, whose guesses surprise people who write configs. Here a plain (unquoted) word is

    true, false                     a boolean (also True, TRUE). yes, no, on, off are strings: labels and
                                    country codes stay as written; a true-or-false setting still takes them
    null, ~, nothing                null
    3, -3, 1_000, 0x1f              an integer
    0.5, .5, 1., 1e-3, .inf, .nan   a float: 1e-3 is one here, for PyYAML it is a string
    anything else                   a string: also 2026-01-31, 12:30 and 007, which YAML 1.1 takes for others

A key written twice in one mapping is refused: PyYAML would silently keep the last one. A merge (`<<: *base`, or
`<<: [*one, *two]`) gives a mapping the keys that it does not write itself; the earlier of two merges wins.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from enum import Enum
from pathlib import PurePath
from typing import Any

import yaml

from model.errors import ConfigError

_BOOL, _NULL, _INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "int", "float", "merge"))
# tag, what a plain word of it looks like, the characters it can begin with
_WORDS: list[tuple[str, str, str]] = [
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_NULL, r"~|null|Null|NULL|", "~nN\0"),
    (_INT, r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        _FLOAT,
        r"[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"
        r"|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    (_MERGE, r"<<", "<"),
]
# PyYAML looks a word up by its first character; "" is that of an empty word.
_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _tag, _pattern, _first in _WORDS:
    for _character in _first:
        _RESOLVERS.setdefault(_character.strip("\0"), []).append((_tag, re.compile(f"^(?:{_pattern})$")))
# A string is quoted whenever our loader, or any other reader of YAML, would take it for something else.
_QUOTED = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _RESOLVERS.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_RESOLVERS}
}


class _DuplicateKeyError(yaml.MarkedYAMLError):
    pass


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked while composing: later, merge keys (<<) have put inherited keys beside the written ones.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first_line: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in first_line:
                problem = f"the key {key.value!r} stands twice in one mapping, first on line "
                problem += f"{first_line[key.tag, key.value]}; keep one of them"
                raise _DuplicateKeyError(problem=problem, problem_mark=key.start_mark)
            first_line[key.tag, key.value] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # PyYAML's own merging differs by release: 6.0.4 compares keys by id(), so that a key's length decides who wins.
        parents: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                parents += value.value if isinstance(value, yaml.SequenceNode) else [value]
        mappings = [parent for parent in parents if isinstance(parent, yaml.MappingNode)]
        if mappings and len(mappings) == len(parents):
            written = [pair for pair in node.value if pair[0].tag != _MERGE]
            node.value = written  # before the parents: an anchor may be merged into its own mapping
            inherited: list[tuple[yaml.Node, yaml.Node]] = []
            for parent in reversed(mappings):
                self.flatten_mapping(parent)
                inherited += parent.value
            # Each key once, its last pair: else merges of merges would multiply the pairs at every level.
            node.value = list({self._identity(pair[0]): pair for pair in inherited + written}.values())
        super().flatten_mapping(node)  # finds no merge any more, or says what cannot be merged

    def _identity(self, key: yaml.Node) -> Any:
        value = self.construct_object(key)  # 1 and 0x1 are one key
        return value if isinstance(value, Hashable) else id(key)  # no key at all: PyYAML refuses it later


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _QUOTED

    def ignore_aliases(self, data: Any) -> bool:
        return True  # people read this file: a value used twice is written twice

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # items of a list are indented under their key


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Line breaks of Unicode are lost by PyYAML in any style but this one, which writes them as escapes.
    rare = any(sign in text for sign in "\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if rare else None)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_multi_representer(PurePath, lambda dumper, value: dumper.represent_str(str(value)))
_Dumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))
_Dumper.add_representer(set, lambda dumper, value: dumper.represent_list(sorted(value)))
_Dumper.add_representer(frozenset, lambda dumper, value: dumper.represent_list(sorted(value)))


def parse_yaml(text: str, *, where: str) -> Any:
    """The one document in `text`; `where` names it in a ConfigError. Nothing at all is None."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"{at}: {_problem(error)}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number Python refuses, such as one too long
        raise ConfigError(f"{where}: must be YAML text, but {' '.join(str(error).split())}") from error


def _problem(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _DuplicateKeyError):
        return str(error.problem)
    told = ", ".join(part for part in (error.context, error.problem) if part)
    return f"must be valid YAML, but here is a fault: {told}"


def dump_plain(value: Any) -> str:
    """`value` as YAML that `parse_yaml` reads as an equal value; tuples and sets as lists, paths as text."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def dump_line(mapping: dict[str, Any]) -> str:
    """The mapping of one key as one line, `key: [1, 2]`."""
    text: str = yaml.dump(mapping, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.strip()[1:-1]
