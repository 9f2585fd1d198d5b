"""What each column of unknown data may be for a model: sequence, context, label, key, state or nothing, and why.

Guesses are told as guesses. Two moments: a peek at one row group decides what the one pass over all data looks for
(`choose`); what that pass found decides the roles (`roles_of`). Knows no torch, no Ray, no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from model.config import ModelConfig
from model.errors import ConfigError
from model.features.fitted_columns import GROUPS
from model.scan.needed_columns import read_columns
from model.settings import did_you_mean
from model.state import STATE_PREFIX
from model.tables.prepared import Prepared
from pipelines.inspect.column_profile import BOOLEAN, NOTHING, NUMBER, OTHER, STRING, TIME, ColumnProfile
from pipelines.inspect.patterns import LEAST_GROUPS, Pattern, ends_with_it, is_scattered, words
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
NAMED, BY_NAME = "named", "guessed from its name"
NUMERIC, CATEGORICAL = "numeric", "categorical"
SEQUENCE_INDEX = "sequence_index"
MOST_CLASSES = 100  # distinct values that still look like classes
FEW_NUMBERS = 20  # different whole floats that still look like classes
LABEL_NAMES = (  # those that say it plainly come before those that hint at it
    re.compile(r"^(label|labels|target|targets|class|classes|outcome|y)$", re.I),
    re.compile(r"^(next_.+|.+_next(_\d+)?|.+_label|label_.+|.+_target|target_.+)$", re.I),  # `prepare` writes …_next
)
NEXT_NAME = re.compile(r"^(?:next_(?P<after>.+)|(?P<before>.+)_next(_\d+)?)$", re.I)
# The names below are matched with words in small letters and `_` between them: userId and user:id are user_id.
_ENTITIES = (
    "user|session|visitor|visit|customer|client|account|member|player|patient|subject|device|machine|vehicle|card|case|"
    "household|driver|student|employee|host|sensor|meter|store|trip|entity"
)
ENTITY_NAME = re.compile(rf"^(.*_)?({_ENTITIES})(_concept_name|_(id|key|no|nr|number|uuid|guid|name))?$")
KEY_NAME = re.compile(r"^(key|id|uuid|guid|.*_id|.*_key|.*_uuid|user|entity|session|visitor|customer|account)$")
ITEM_NAME = re.compile(
    r"(^|_)(item|product|article|sku|asin|isbn|ean|upc|movie|film|song|track|artist|book|token|word|activity)"
    r"(_(id|key|no|nr|number|code))?$"
)
WEIGHT_NAME = re.compile(r"^(weight|weights|sample_weight|w)$")
CODE_NAME = re.compile(r"(^|_)(id|ids|code|codes|type|kind|category|cat|class|zip|postcode)$")
TIME_NAME = re.compile(
    r"^(.*_)?(ts|time|timestamp|datetime|date|at|when|unixtime|epoch|occurred)(_(s|ms|us|ns|utc|seconds|millis))?$"
)
INDEX_NAME = re.compile(r"^__index_level_\d+__$")  # what pandas writes of its index
PERIOD_NAME = re.compile(r"(^|_)(year|quarter|month|week|weekday|day|date|hour|minute)(_|$)")
MOST_UNALIGNED = 0.05  # of the rows: a list that differs in more of them is not one of the sequence
MOST_GROUPINGS = 4  # columns that are tried
EVENT_STEPS = 4  # values of a list that one event holds, at most on average
A_MOMENT = "a point in time, beyond which all later sequences lie: the time between events tells more (--time-delta)"
AT_END = "known only after a sequence's last event, but the label lies before it: the future as a feature"


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
    """What a peek gives; a `Merger`."""

    rows: int
    columns: dict[str, ColumnProfile]
    patterns: dict[str, Pattern]
    alike: dict[str, int]


@dataclass(frozen=True)
class Given:
    """Columns that a person named, by option."""

    label: str | None = None
    key: str | None = None
    time: str | None = None
    columns: tuple[str, ...] | None = None

    @property
    def named(self) -> dict[str, str]:
        """The columns by their options."""
        told = {"--label": self.label, "--key": self.key, "--time": self.time}
        return {option: name for option, name in told.items() if name is not None}

    @property
    def read(self) -> tuple[str, ...] | None:
        """All of them; None where every column is read."""
        return None if self.columns is None else tuple(dict.fromkeys([*self.columns, *self.named.values()]))


@dataclass(frozen=True)
class Chosen:
    """What a pass looks for, and what label and key are."""

    look: Look
    label: Choice
    key: Choice


# Before the pass ------------------------------------------------------------------------------------------------


def choose(
    peek: Merged, given: Given, prepared: Prepared | None = None, in_paths: frozenset[str] = frozenset()
) -> Chosen:
    """What to look for, from some row groups and from what `prepare` told; `in_paths` are columns of the files' paths.

    ConfigError for a name that no column has.
    """
    names = list(peek.columns)
    for option, name in given.named.items():
        if name not in names:
            raise ConfigError(
                f"{option} must name a column, but {name!r} is none{did_you_mean(name, names)}; "
                f"the columns are {', '.join(names)}"
            )
    label = choose_label(peek.columns, given.label, in_paths, prepared)
    index = prepared.index if prepared is not None and prepared.index in names else SEQUENCE_INDEX
    key, keys = choose_key(peek.columns, given.key, label.name, prepared)
    reference = choose_reference(peek.alike, label.name)
    time = None
    if prepared is None and SEQUENCE_INDEX not in names:
        time = choose_time(peek.columns, given.time, {label.name, *keys})
        if key.reason != NAMED:
            entity = choose_entity(peek, {label.name, time}, named=reference is not None)
            key, keys = (key, keys) if entity is None else (entity, (entity.name or "",))
        if reference is not None and not is_events(peek, keys, time, label.name):
            time = None
        else:
            reference = None
    look = Look(
        reference=reference,
        label=label.name,
        key=(*keys, index) if keys and index in names and time is None else keys,
        columns=given.read,
        groups=() if keys or time else groupings(peek, label.name, in_paths),
        ends=ends_of(names, prepared),
        time=time,
    )
    return Chosen(look, label, key)


def ends_of(names: Sequence[str], prepared: Prepared | None) -> tuple[str, str] | None:
    """The columns with the times of each sequence's first and last event, as `prepare` calls them."""
    there = set(names)
    times = [name.removesuffix("_last") for name in names if name.endswith("_last")]
    if prepared is None and SEQUENCE_INDEX not in there:
        return None
    if prepared is not None and prepared.time:
        times = [prepared.time[0]]
    ends = [(f"{time}_first", f"{time}_last") for time in times]
    return next((pair for pair in ends if {*pair} <= there), None)


def configured_choice(
    config: ModelConfig, key: str | None, names: Sequence[str], look: Look, prepared: Prepared | None
) -> Chosen:
    """The same of a run: nothing is guessed, and what the run does not read is not read."""
    keys = () if key is None else (key, SEQUENCE_INDEX) if SEQUENCE_INDEX in names else (key,)
    where = () if look.where is None else look.where.columns
    look = replace(
        look,
        reference=config.columns.data_columns("sequence")[0],
        label=config.label,
        key=keys,
        model=config,
        columns=tuple(dict.fromkeys([*read_columns(config), *keys, *where])),
        ends=ends_of(names, prepared),
    )
    return Chosen(look, Choice(config.label, NAMED), Choice(key, NAMED if key else "the run names no data.key"))


def choose_reference(alike: Mapping[str, int], label: str | None) -> str | None:
    """The list column whose lengths agree with most others; of several, inputs before the label, then the first."""
    order = list(alike)
    return max(order, key=lambda name: (alike[name], name != label, -order.index(name)), default=None)


def choose_label(
    columns: Mapping[str, ColumnProfile],
    given: str | None,
    in_paths: frozenset[str] = frozenset(),
    prepared: Prepared | None = None,
) -> Choice:
    """What `prepare` made as a label, a column called like one, else the last scalar one with few values that is not
    one `in_paths`."""
    if given is not None:
        return Choice(given, NAMED)
    if prepared is not None and prepared.label is not None and prepared.label.column in columns:
        return Choice(prepared.label.column, "prepared as the label")
    usable = {
        name: told
        for name, told in columns.items()
        if told.kind != OTHER and not name.startswith(STATE_PREFIX) and not INDEX_NAME.match(name)
    }
    for pattern in LABEL_NAMES:
        for name in usable:
            if pattern.match(name):
                return Choice(name, BY_NAME)
    for name, told in reversed(usable.items()):
        if name in in_paths or told.depth or KEY_NAME.match(words(name)) or name == SEQUENCE_INDEX:
            continue
        if _few_values(told):
            return Choice(name, "guessed: the last column with one of a few values a row")
    return Choice(None, "no column looks like a label: name it with --label")


def _few_values(profile: ColumnProfile) -> bool:
    if profile.kind not in (STRING, BOOLEAN) and not profile.whole:
        return False
    most = FEW_NUMBERS if profile.whole and not profile.integers else MOST_CLASSES
    return 2 <= profile.distinct.count <= min(most, max(2, profile.counts["rows"] // 4))


def choose_key(
    columns: Mapping[str, ColumnProfile], given: str | None, label: str | None, prepared: Prepared | None
) -> tuple[Choice, tuple[str, ...]]:
    """The key, and its columns: those that `prepare` wrote, else one called like a key, else one of strings with a
    value of its own in each row. A choice names one column; of several keys none, for `data.key` takes one."""
    if given is not None:
        if columns[given].depth:
            raise ConfigError(f"--key must name a column with one value a row, but {given!r} holds lists")
        return Choice(given, NAMED), (given,)
    if prepared is not None:
        keys = tuple(name for name in prepared.key if name in columns)
        told = ", ".join(map(repr, keys)) if keys else "none: a single series"
        return Choice(keys[0] if len(keys) == 1 else None, "prepared as the key" if len(keys) == 1 else told), keys
    choice = _guessed_key(columns, label)
    return choice, () if choice.name is None else (choice.name,)


def _guessed_key(columns: Mapping[str, ColumnProfile], label: str | None) -> Choice:
    scalars = {
        name: told
        for name, told in columns.items()
        if not told.depth
        and name not in (label, SEQUENCE_INDEX)
        and not INDEX_NAME.match(name)
        and (told.kind == STRING or told.whole)
    }
    names = list(columns)
    if SEQUENCE_INDEX in names and names.index(SEQUENCE_INDEX) > 0:
        before = names[names.index(SEQUENCE_INDEX) - 1]  # where `prepare` writes it
        if before in scalars:
            return Choice(before, f"guessed: it stands before {SEQUENCE_INDEX!r}")
    for pattern in (ENTITY_NAME, KEY_NAME):
        for name in scalars:
            if pattern.match(words(name)) and not ITEM_NAME.search(words(name)):
                return Choice(name, BY_NAME)
    for name, told in scalars.items():
        if told.kind == STRING and SEQUENCE_INDEX in columns:
            return Choice(name, f"guessed: the first strings beside {SEQUENCE_INDEX!r}")
        if told.kind == STRING and told.counts["rows"] > 1 and told.distinct.count >= 0.98 * told.counts["rows"]:
            return Choice(name, "guessed: its values are unique")
    return Choice(None, "no column looks like a key: name it with --key")


# Events ---------------------------------------------------------------------------------------------------------


def choose_time(columns: Mapping[str, ColumnProfile], given: str | None, others: set[str | None]) -> str | None:
    """The column that orders events: points in time called so, else any of them, else numbers called like a time."""
    if given is not None:
        return given
    scalars = {name: told for name, told in columns.items() if not told.depth and name not in others}
    dates = [name for name, told in scalars.items() if told.dates]
    named = [name for name, told in scalars.items() if TIME_NAME.match(words(name))]
    for names in ([name for name in dates if name in named], dates, [n for n in named if scalars[n].kind == NUMBER]):
        if names:
            return names[0]
    return None


def choose_entity(peek: Merged, others: set[str | None], *, named: bool) -> Choice | None:
    """The column that names whose events these are, with several rows each: called like an entity, or like a key; else
    the first one, unless it must be `named` so."""
    for pattern in (ENTITY_NAME, KEY_NAME):
        for name, told in peek.columns.items():
            usable = not told.depth and name not in others and (told.kind == STRING or told.whole)
            item = ITEM_NAME.search(words(name))
            if usable and pattern.match(words(name)) and not item and told.distinct_values <= 0.7 * peek.rows:
                return Choice(name, BY_NAME)
    for name in () if named else groupings(peek, None, frozenset(), least=1):
        if name not in others and not ITEM_NAME.search(words(name)):
            return Choice(name, "guessed: the first column with several rows each")
    return None


def is_events(peek: Merged, keys: tuple[str, ...], time: str | None, label: str | None) -> bool:
    """Whether rows that hold lists are events all the same: a key stands in several rows at several times, lists are
    not as long as one another, and each row holds values beside key and time."""
    if time is None or not keys or peek.columns[keys[0]].distinct_values > 0.7 * peek.rows:
        return False
    lists = {name: peek.patterns[name].lengths for name in peek.alike}
    varied = {name: told for name, told in lists.items() if told is not None and told[0] < told[1]}
    if (label in lists and label in varied) or any(2 * peek.alike[name] > peek.rows for name in varied):
        return False
    short = all(peek.columns[name].counts["steps"] <= EVENT_STEPS * peek.rows for name in varied)
    values = [
        name
        for name, told in peek.columns.items()
        if not told.depth and name not in (*keys, time) and told.kind != OTHER and not INDEX_NAME.match(name)
    ]
    return short and bool(values) and peek.columns[time].distinct.count > 1


def groupings(
    peek: Merged, label: str | None, in_paths: frozenset[str], least: int = LEAST_GROUPS // 2
) -> tuple[str, ...]:
    """Columns that may name whose rows these are: whole numbers or strings that stand in several rows each."""
    found = [
        name
        for name, told in peek.columns.items()
        if not told.depth and name != label and (told.kind == STRING or told.whole)
        if name not in in_paths and not INDEX_NAME.match(name) and not PERIOD_NAME.search(words(name))
        if told.distinct_values >= least and 1.5 * told.distinct_values <= peek.rows
    ]
    return tuple(found[:MOST_GROUPINGS])


# After the pass -------------------------------------------------------------------------------------------------


def roles_of(
    columns: Mapping[str, ColumnProfile],
    patterns: Mapping[str, Pattern],
    look: Look,
    disagreeing_rows: Mapping[str, int],
    at_end: frozenset[str],
) -> dict[str, Role]:
    """The role of every column, in the data's order; those `at_end` are no inputs."""
    found = {}
    for name, profile in columns.items():
        role = _named_role(name, profile, look)
        if role is None and name in at_end:
            role = Role(UNUSED, reason=AT_END)
        elif role is None and name in (look.ends or ()):
            role = Role(UNUSED, reason=A_MOMENT)
        found[name] = role or _input_role(name, profile, patterns[name], look, disagreeing_rows.get(name, 0))
    return found


def at_end_of(
    columns: Mapping[str, ColumnProfile], patterns: Mapping[str, Pattern], look: Look, prepared: Prepared | None
) -> frozenset[str]:
    """The columns known only once a sequence has ended, where the label lies within it: as `prepare` told, its time of
    the last event, and what is in line with how a sequence ends."""
    if look.label is None or look.label not in columns or not columns[look.label].depth:
        return frozenset()
    named = {*(look.ends or ())[1:], *(() if prepared is None else prepared.known_at_end)}
    return frozenset(
        name for name, told in columns.items() if name in named or ends_with_it(name, told, patterns[name])
    ) - {look.label, *look.key}


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
    if INDEX_NAME.match(name):
        return Role(UNUSED, reason="the index that pandas wrote, no value of the data")
    if WEIGHT_NAME.match(words(name)) and profile.kind == NUMBER and not profile.counts["negatives"]:
        return Role(WEIGHT, reason=BY_NAME)
    return None


def _input_role(name: str, profile: ColumnProfile, pattern: Pattern, look: Look, disagreeing: int) -> Role:
    """Sequence or context, numeric or categorical; UNUSED with the reason."""
    reason = _unreadable(profile)
    if reason is not None:
        return Role(UNUSED, reason=reason)
    reads = reading_of(name, profile, pattern)
    if reads is None:
        return Role(UNUSED, reason=f"{_widths(profile)} numbers a step: they must be equally many")
    if not profile.depth or (profile.fixed and profile.depth == 1):
        return _context_role(name, profile, reads)
    if near_unique(profile):
        return Role(UNUSED, reads, "almost every value stands once: an id, not a feature")
    if disagreeing <= MOST_UNALIGNED * profile.counts["rows"]:
        return Role(SEQUENCE, reads)
    if reads == CATEGORICAL and profile.depth == 1:
        return Role(CONTEXT, CATEGORICAL, "lists whose lengths are not those of the sequences: several values a row")
    return Role(
        UNUSED, reason=f"its lists are not as long as those of {look.reference!r} in {disagreeing:,} rows: no sequence"
    )


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


def reading_of(name: str, profile: ColumnProfile, pattern: Pattern) -> str | None:
    """NUMERIC or CATEGORICAL; None for numbers that are not equally many a step."""
    if profile.kind == STRING:
        return CATEGORICAL
    uneven = profile.widths is not None and profile.widths[0] != profile.widths[1]
    coded = called_code(name) or is_scattered(profile, pattern)
    if profile.whole and (coded or (uneven and profile.integers)):
        return CATEGORICAL
    assert profile.kind in (NUMBER, BOOLEAN, TIME), "other kinds are not read"
    return None if uneven else NUMERIC


def called_code(name: str) -> bool:
    """Whether whole numbers of this name tell what something is, not how much."""
    return bool(CODE_NAME.search(words(name)) or ITEM_NAME.search(words(name)))


def label_source(label: str, prepared: Prepared | None) -> str:
    """The column whose later value the label is, by what `prepare` told or by name; else the label itself."""
    if prepared is not None and prepared.label is not None and prepared.label.column == label:
        return prepared.label.source
    found = NEXT_NAME.match(label)
    return (found["before"] or found["after"]) if found else label


def _widths(profile: ColumnProfile) -> str:
    assert profile.widths is not None, "only lists of steps have widths"
    return f"{profile.widths[0]} to {profile.widths[1]}"
