"""Which rows are used: an expression over columns with one value a row, such as `country == 'DE' and year >= 2020`.

    comparisons    == != < <= > >=, also 1 < x <= 3
    membership     x in ('a', 'b'), x not in (1, 2)
    nulls          x is null, x is not null; anything else about a null is unknown, and keeps no row
    truth values   paid, not paid, for a column of booleans
    joined by      and, or, not, parentheses
    values         'text', 1, -2.5, true, false; times as text: day >= '2024-01-31', at < '2024-01-31 12:00'
    columns        by name, of structs as ctx.country; in backticks where that is no plain name: `unit price` > 3

The text is read by Python's own parser and turned into the few nodes below; nothing of it is ever run.
`model.tables.filter_arrow` makes Arrow's expressions of them. Knows no Arrow and no files.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

from model.errors import ConfigError

EXAMPLE = "country == 'DE' and (year >= 2020 or score is null)"
ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="
}  # fmt: skip
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}

Literal = str | int | float | bool
Outcome = bool | None  # of a row; None is unknown, as in SQL


@dataclass(frozen=True)
class Column:
    """A column's value."""

    name: str


@dataclass(frozen=True)
class Comparison:
    """`left order right`."""

    order: str
    left: Column | Literal
    right: Column | Literal


@dataclass(frozen=True)
class Membership:
    """`column in values`."""

    column: Column
    values: tuple[Literal, ...]


@dataclass(frozen=True)
class IsNull:
    """`column is null`."""

    column: Column


@dataclass(frozen=True)
class Not:
    """`not part`."""

    part: Node


@dataclass(frozen=True)
class Joined:
    """`part and part and …`, or the same with `or`."""

    word: str
    parts: tuple[Node, ...]


Node = Column | Comparison | Membership | IsNull | Not | Joined


@dataclass(frozen=True)
class Filter:
    """A filter; ConfigError, with the place, for a text that cannot be read."""

    text: str

    def __post_init__(self) -> None:
        if not self.columns:
            raise ConfigError(f"the filter {self.text!r} must name a column, but names none; write it as in {EXAMPLE}")

    @cached_property
    def root(self) -> Node:
        """The parsed expression."""
        return _Parser(self.text).parse()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that the filter reads."""
        return tuple(dict.fromkeys(column.name for column in _columns(self.root)))

    def excludes(self, known: Mapping[str, str | int | float | None]) -> bool:
        """Whether no row can be kept where some columns have these values, whatever the others hold."""
        return True not in _outcomes(self.root, known)


def _columns(node: Node | Literal) -> Iterator[Column]:
    match node:
        case Column():
            yield node
        case Comparison():
            yield from (*_columns(node.left), *_columns(node.right))
        case Membership() | IsNull():
            yield node.column
        case Not():
            yield from _columns(node.part)
        case Joined():
            for part in node.parts:
                yield from _columns(part)


# With some columns known -------------------------------------------------------------------------------------------

_ANY: frozenset[Outcome] = frozenset({True, False, None})


def _outcomes(node: Node, known: Mapping[str, Any]) -> frozenset[Outcome]:
    """What an expression may come to."""
    match node:
        case Joined():
            parts = product(*(_outcomes(part, known) for part in node.parts))
            return frozenset(_joined(node.word, outcomes) for outcomes in parts)
        case Not():
            return frozenset(None if outcome is None else not outcome for outcome in _outcomes(node.part, known))
        case IsNull():
            return frozenset({known[node.column.name] is None}) if node.column.name in known else _ANY
        case Membership():
            return _compared(known, node.column, node.values, lambda value, values: value in values)
        case Comparison():
            return _compared(known, node.left, node.right, ORDERS[node.order])
        case Column():
            return _ANY


def _joined(word: str, outcomes: tuple[Outcome, ...]) -> Outcome:
    decisive = word == "or"
    if decisive in outcomes:
        return decisive
    return None if None in outcomes else not decisive


def _compared(known: Mapping[str, Any], left: Any, right: Any, order: Callable[[Any, Any], Any]) -> frozenset[Outcome]:
    sides = [side for side in (left, right) if isinstance(side, Column)]
    if any(side.name not in known for side in sides):
        return _ANY
    if any(known[side.name] is None for side in sides):
        return frozenset({None})
    one, other = (known[side.name] if isinstance(side, Column) else side for side in (left, right))
    several = other if isinstance(other, tuple) else (other,)
    if any(isinstance(value, str) != isinstance(one, str) for value in several):
        return _ANY  # a mistake, which is told when the filter meets the column's type
    return frozenset({bool(order(one, other))})


# Reading the text --------------------------------------------------------------------------------------------------


class _Parser:
    """Python's syntax tree to ours; everything that is not listed above is refused with its place."""

    def __init__(self, text: str) -> None:
        self.text = text
        quoted = re.findall("`[^`]+`", text)  # become names of the same length, so that places stay
        self.names = {f"_{i}".ljust(len(name), "_"): name[1:-1] for i, name in enumerate(quoted)}

    def parse(self) -> Node:
        """The whole expression."""
        placeholders = iter(self.names)
        plain = re.sub("`[^`]+`", lambda _: next(placeholders), self.text)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes in strings
                tree = ast.parse(f"({plain})", mode="eval").body
        except SyntaxError as error:
            raise self._fault((error.offset or 2) - 2) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise self._fault(0) from error
        return self._node(tree)

    def _fault(self, place: int) -> ConfigError:
        rest = self.text[max(place, 0) :].strip()
        where = f"from {rest!r} on" if rest else "at its end"
        return ConfigError(f"the filter {self.text!r} cannot be read {where}; write it as in {EXAMPLE}")

    def _fault_at(self, node: ast.expr) -> ConfigError:
        lines = f"({self.text})".split("\n")
        before = sum(len(line) + 1 for line in lines[: node.lineno - 1])
        within = len(lines[node.lineno - 1].encode()[: node.col_offset].decode(errors="ignore"))  # Python counts bytes
        return self._fault(before + within - 1)

    def _node(self, node: ast.expr) -> Node:
        if isinstance(node, ast.BoolOp):
            word = "and" if isinstance(node.op, ast.And) else "or"
            return Joined(word, tuple(self._node(value) for value in node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return Not(self._node(node.operand))
        if isinstance(node, ast.Compare):
            places = pairwise([node.left, *node.comparators])
            parts = [self._compare(op, *sides) for op, sides in zip(node.ops, places, strict=True)]
            return parts[0] if len(parts) == 1 else Joined("and", tuple(parts))
        return self._column(node)

    def _compare(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> Node:
        if isinstance(op, ast.Is | ast.IsNot):
            if not self._is_null(right):
                raise self._fault_at(right)
            found: Node = IsNull(self._column(left))
        elif isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
                raise self._fault_at(right)
            found = Membership(self._column(left), tuple(self._literal(each) for each in right.elts))
        else:
            sides = [self._column(side) if self._is_column(side) else self._literal(side) for side in (left, right)]
            if not any(isinstance(side, Column) for side in sides):
                raise self._fault_at(left)
            return Comparison(_OPERATORS[type(op)], *sides)
        return Not(found) if isinstance(op, ast.IsNot | ast.NotIn) else found

    def _is_column(self, node: ast.expr) -> bool:
        return self._name(node) is not None

    def _name(self, node: ast.expr) -> str | None:
        """The column that a node names, `a.b` among them; None where it is something else."""
        if isinstance(node, ast.Attribute):
            outer = self._name(node.value)
            return None if outer is None else f"{outer}.{node.attr}"
        if not isinstance(node, ast.Name) or (node.id not in self.names and node.id in _WORDS):
            return None
        name: str = self.names.get(node.id, node.id)
        return name

    def _is_null(self, node: ast.expr) -> bool:
        named = isinstance(node, ast.Name) and not self._is_column(node) and _WORDS[node.id] is None
        return named or (isinstance(node, ast.Constant) and node.value is None)

    def _column(self, node: ast.expr) -> Column:
        name = self._name(node)
        if name is None:
            raise self._fault_at(node)
        return Column(name)

    def _literal(self, node: ast.expr) -> Literal:
        if isinstance(node, ast.Name) and node.id in _WORDS and _WORDS[node.id] is not None:
            return bool(_WORDS[node.id])
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._literal(node.operand)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value
        raise self._fault_at(node)
