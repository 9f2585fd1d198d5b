"""What each column of unknown data may be for a model: sequence, context, label, key, state or nothing, and why.

Guesses are told as guesses. Two moments: a peek at one row group decides what the one pass over all data looks for
(`choose_look`); what that pass found decides the roles (`roles_of`). Knows no torch, no Ray, no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from model.config import ModelConfig
from model.errors import ConfigError
from model.features.fitted_columns import GROUPS
from model.settings import did_you_mean
from model.state import STATE_PREFIX
from model.tables.filters import Filter
from pipelines.inspect.column_profile import BOOLEAN, NOTHING, NUMBER, OTHER, STRING, TIME, ColumnProfile
from pipelines.inspect.profile_task import Look

SEQUENCE, CONTEXT, LABEL, KEY, ORDER, WEIGHT, STATE, UNUSED = (
    "sequence",
    "context",
    "label",
    "key",
    "order",
    "weight",
    "state",
    "unused",
)
NAMED = "named"  # by a person
NUMERIC, CATEGORICAL = "numeric", "categorical"
SEQUENCE_INDEX = "sequence_index"
MOST_CLASSES = 100  # distinct values that still look like classes
LABEL_NAMES = (  # those that say it plainly come before those that hint at it
    re.compile(r"^(label|labels|target|targets|class|classes|outcome|y)$", re.I),
    re.compile(r"^(next_.+|.+_next|.+_label|label_.+|.+_target|target_.+)$", re.I),  # `prepare` writes …_next
)
KEY_NAME = re.compile(r"^(key|id|uuid|guid|.*_id|.*_key|.*_uuid|user|entity|session|visitor|customer|account)$", re.I)
WEIGHT_NAME = re.compile(r"^(weight|weights|sample_weight|w)$", re.I)
CODE_NAME = re.compile(r"(^|_)(id|code|type|kind|category|cat|class|zip|postcode)$", re.I)
INTEGER_CODES = 1000  # distinct integers of a column called so that are taken for codes


@dataclass(frozen=True)
class Role:
    """What a column may be used for: `reads` is NUMERIC or CATEGORICAL for inputs; `reason` says why, where asked."""

    role: str
    reads: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """A column that was given or guessed, and how."""

    name: str | None
    reason: str


class Merged(Protocol):
    """What a peek gives; a `Merger` or one fragment's profile."""

    columns: dict[str, ColumnProfile]
    alike: dict[str, int]


# Before the pass ------------------------------------------------------------------------------------------------


def choose_look(
    peek: Merged, label: str | None, key: str | None, in_paths: frozenset[str] = frozenset()
) -> tuple[Look, Choice, Choice]:
    """(what to look for, the label, the key), from some row groups; `in_paths` are columns of the files' paths.

    ConfigError for a name that no column has.
    """
    names = list(peek.columns)
    for option, name in (("--label", label), ("--key", key)):
        if name is not None and name not in names:
            raise ConfigError(
                f"{option} must name a column, but {name!r} is none{did_you_mean(name, names)}; "
                f"the columns are {', '.join(names)}"
            )
    told_label = choose_label(peek.columns, label, in_paths)
    told_key = choose_key(peek.columns, key, told_label.name)
    reference = choose_reference(peek.alike, told_label.name)
    return Look(reference, told_label.name, key_columns(told_key.name, names)), told_label, told_key


def configured_look(
    config: ModelConfig, key: str | None, names: Iterable[str], where: Filter | None, plugins: tuple[str, ...]
) -> tuple[Look, Choice, Choice]:
    """The same of a run: nothing is guessed."""
    reference = config.columns.data_columns("sequence")[0]
    look = Look(reference, config.label, key_columns(key, names), config, where, plugins)
    return look, Choice(config.label, NAMED), Choice(key, NAMED if key else "the run names no data.key")


def key_columns(key: str | None, names: Iterable[str]) -> tuple[str, ...]:
    """The columns that together name a row."""
    if key is None:
        return ()
    return (key, SEQUENCE_INDEX) if SEQUENCE_INDEX in names else (key,)


def choose_reference(alike: Mapping[str, int], label: str | None) -> str | None:
    """The list column whose lengths agree with most others; of several, inputs before the label, then the first."""
    order = list(alike)
    return max(order, key=lambda name: (alike[name], name != label, -order.index(name)), default=None)


def choose_label(
    columns: Mapping[str, ColumnProfile], given: str | None, in_paths: frozenset[str] = frozenset()
) -> Choice:
    """A column called like a label, else the last scalar one with few values that is not one `in_paths`."""
    if given is not None:
        return Choice(given, NAMED)
    usable = {name: told for name, told in columns.items() if told.kind != OTHER and not name.startswith(STATE_PREFIX)}
    for pattern in LABEL_NAMES:
        for name in usable:
            if pattern.match(name):
                return Choice(name, "guessed from its name")
    for name, told in reversed(usable.items()):
        if name in in_paths or told.depth or KEY_NAME.match(name) or name == SEQUENCE_INDEX:
            continue
        if _few_values(told):
            return Choice(name, "guessed: the last column with one of a few values a row")
    return Choice(None, "no column looks like a label: name it with --label")


def _few_values(profile: ColumnProfile) -> bool:
    if profile.kind not in (STRING, BOOLEAN) and not profile.integers:
        return False
    return 2 <= profile.distinct.count <= min(MOST_CLASSES, max(2, profile.counts["rows"] // 4))


def choose_key(columns: Mapping[str, ColumnProfile], given: str | None, label: str | None) -> Choice:
    """A scalar column called like a key, else a string column with a value of its own in each row."""
    if given is not None:
        if columns[given].depth:
            raise ConfigError(f"--key must name a column with one value a row, but {given!r} holds lists")
        return Choice(given, NAMED)
    scalars = {
        name: told
        for name, told in columns.items()
        if not told.depth and name not in (label, SEQUENCE_INDEX) and (told.kind == STRING or told.integers)
    }
    for name in scalars:
        if KEY_NAME.match(name):
            return Choice(name, "guessed from its name")
    for name, told in scalars.items():
        if told.kind == STRING and SEQUENCE_INDEX in columns:
            return Choice(name, f"guessed: the first strings beside {SEQUENCE_INDEX!r}")
        if told.kind == STRING and told.counts["rows"] > 1 and told.distinct.count >= 0.98 * told.counts["rows"]:
            return Choice(name, "guessed: its values are unique")
    return Choice(None, "no column looks like a key: name it with --key")


# After the pass -------------------------------------------------------------------------------------------------


def roles_of(
    columns: Mapping[str, ColumnProfile],
    look: Look,
    disagreeing_rows: Mapping[str, int],
) -> dict[str, Role]:
    """The role of every column, in the data's order."""
    found = {}
    for name, profile in columns.items():
        found[name] = _named_role(name, profile, look) or _input_role(
            name, profile, look, disagreeing_rows.get(name, 0)
        )
    return found


def configured_roles(columns: Iterable[str], config: ModelConfig, key: str | None) -> dict[str, Role]:
    """The roles that a run gives to the columns."""
    numbers = config.columns.number_columns()
    found: dict[str, Role] = dict.fromkeys(columns, Role(UNUSED, reason="the run does not read it"))
    for group in GROUPS:
        for name in config.columns.data_columns(group):
            found[name] = Role(group, NUMERIC if name in numbers else CATEGORICAL)
    for special, role in ((key, KEY), (config.weight, WEIGHT), (config.label, LABEL)):
        if special is not None:
            found[special] = Role(role)
    return found


def _named_role(name: str, profile: ColumnProfile, look: Look) -> Role | None:
    """A role by name; None for what may be an input."""
    if name == look.label:
        return Role(LABEL)
    if name in look.key:
        return Role(ORDER if name == SEQUENCE_INDEX and len(look.key) > 1 else KEY)
    if name == SEQUENCE_INDEX:
        return Role(ORDER)
    if name.startswith(STATE_PREFIX):
        return Role(STATE, reason="an initial state: read by its name, not declared")
    if WEIGHT_NAME.match(name) and profile.kind == NUMBER and not profile.counts["negatives"]:
        return Role(WEIGHT, reason="guessed from its name")
    return None


def _input_role(name: str, profile: ColumnProfile, look: Look, disagreeing: int) -> Role:
    """Sequence or context, numeric or categorical; UNUSED with the reason."""
    reason = _unreadable(profile)
    if reason is not None:
        return Role(UNUSED, reason=reason)
    reads = reading_of(name, profile)
    if reads is None:
        return Role(UNUSED, reason=f"{_widths(profile)} numbers a step: they must be equally many")
    if not profile.depth or (profile.fixed and profile.depth == 1):
        return _context_role(name, profile, reads)
    if near_unique(profile):
        return Role(UNUSED, reads, "almost every value stands once: an id, not a feature")
    if 2 * disagreeing <= profile.counts["rows"]:
        return Role(SEQUENCE, reads)
    if reads == CATEGORICAL and profile.depth == 1:
        return Role(CONTEXT, CATEGORICAL, "lists whose lengths are not those of the sequences: several values a row")
    return Role(UNUSED, reason=f"its lists are not as long as those of {look.reference!r} in {disagreeing} rows")


def _context_role(name: str, profile: ColumnProfile, reads: str) -> Role:
    values = profile.counts["values"]
    if reads == CATEGORICAL and not profile.depth and values > 20 and profile.distinct.count > 0.5 * values:
        return Role(UNUSED, reads, "almost every row has a value of its own: an id, not a feature")
    return Role(CONTEXT, reads)


def near_unique(profile: ColumnProfile) -> bool:
    """Whether strings are so many different ones that they name things rather than describe them."""
    unique = profile.distinct_values
    return profile.kind == STRING and unique > 100 and unique > 0.5 * profile.counts["known_values"]


def _unreadable(profile: ColumnProfile) -> str | None:
    if profile.counts["not_utf8"]:
        return "holds bytes that are no UTF-8"
    if profile.kind == OTHER:
        return f"its type {' or '.join(profile.types)} is none that columns are read from"
    if profile.kind == NOTHING or not profile.counts["values"] or not profile.distinct.count:
        return "holds no value"
    return None


def reading_of(name: str, profile: ColumnProfile) -> str | None:
    """NUMERIC or CATEGORICAL; None for numbers that are not equally many a step."""
    if profile.kind == STRING:
        return CATEGORICAL
    uneven = profile.widths is not None and profile.widths[0] != profile.widths[1]
    if profile.integers and (uneven or _coded(name, profile)):
        return CATEGORICAL
    assert profile.kind in (NUMBER, BOOLEAN, TIME), "other kinds are not read"
    return None if uneven else NUMERIC


def _coded(name: str, profile: ColumnProfile) -> bool:
    return bool(CODE_NAME.search(name)) and profile.distinct.count <= INTEGER_CODES and not profile.counts["negatives"]


def _widths(profile: ColumnProfile) -> str:
    assert profile.widths is not None, "only lists of steps have widths"
    return f"{profile.widths[0]} to {profile.widths[1]}"
