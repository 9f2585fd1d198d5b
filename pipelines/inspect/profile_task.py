"""What a data task of `inspect` runs: the profile of one row group, as plain data.

Apart from the pipeline, because a task's process imports the module of what it runs: this one loads neither torch nor
Ray Data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from model.config import ModelConfig
from model.errors import DecodeError
from model.features.quantile_sketch import packed, unpacked
from model.registry import import_plugins
from model.tables.arrow_lists import Array, numbers, plain, ranges
from model.tables.filter_arrow import kept_rows
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import first_row, is_stored, read_fragment, read_whole_fragment, with_path_columns
from pipelines.inspect.column_profile import (
    MOST_PLACES,
    ColumnProfile,
    Places,
    Unnested,
    profile_column,
    row_lengths,
    unnested,
)
from pipelines.inspect.label_relations import Entries, Relation
from pipelines.inspect.patterns import Ends, Groups, Pattern, event_times, groups_of, pattern_of
from pipelines.inspect.row_faults import Damage, RowFaults, row_faults
from pipelines.inspect.sketches import Coded, mixed

MOST_COMPONENTS = 32  # values a step that are each held against the label
MOST_COMPARED = 64  # list columns whose lengths are compared, each with each, to find the sequence's
SAMPLE_ROWS = 3
SAMPLE_CHARACTERS = 400


@dataclass(frozen=True)
class Look:
    """What a pass looks for besides the columns' own profiles: names of columns, None or empty where there is none.

    `reference` is the list column whose lengths are the sequences'; `key` the columns that together name a row.
    `model` is what a run would read: its rows are checked as training checks them; `where` is the run's filter.
    `columns` are what is read, None for all; `groups` may name whose rows these are; `ends` are the times of a
    sequence's first and last event; `time` orders the events of an event table.
    """

    reference: str | None = None
    label: str | None = None
    key: tuple[str, ...] = ()
    model: ModelConfig | None = None
    where: Filter | None = None
    plugins: tuple[str, ...] = ()
    sample: bool = False
    columns: tuple[str, ...] | None = None
    groups: tuple[str, ...] = ()
    ends: tuple[str, str] | None = None
    time: str | None = None


@dataclass(frozen=True, eq=False)
class Disagreement:
    """Rows whose list is not as long as that of the reference column, and the first few of them."""

    rows: int = 0
    places: Places = field(default_factory=Places)

    def merge(self, other: Disagreement) -> Disagreement:
        """Of the rows of both."""
        return Disagreement(self.rows + other.rows, self.places + other.places)


@dataclass(frozen=True, eq=False)
class FragmentProfile:
    """What one row group tells.

    `lengths` are int32 [rows] of the reference column, `keys` uint64 [rows] hashes, `times` float64 [rows] of events.
    `alike` counts, for each list column, how often its length agrees with another's: only where there is no reference.
    """

    rows: int
    columns: dict[str, ColumnProfile]
    lengths: np.ndarray | None = None
    keys: np.ndarray | None = None
    disagreements: dict[str, Disagreement] = field(default_factory=dict)
    alike: dict[str, int] = field(default_factory=dict)
    relations: dict[str, Relation] = field(default_factory=dict)
    patterns: dict[str, Pattern] = field(default_factory=dict)
    groups: dict[str, Groups] = field(default_factory=dict)
    times: np.ndarray | None = None
    faults: RowFaults = field(default_factory=RowFaults)
    sample: list[dict[str, str]] = field(default_factory=list)
    damage: Damage | None = None

    def to_plain(self) -> dict[str, Any]:
        """Plain data that travels as JSON."""
        return {
            "rows": self.rows,
            "columns": {name: profile.to_plain() for name, profile in self.columns.items()},
            "lengths": None if self.lengths is None else packed(self.lengths, "<i4"),
            "keys": None if self.keys is None else packed(self.keys, "<u8"),
            "disagreements": {name: [told.rows, list(told.places.found)] for name, told in self.disagreements.items()},
            "alike": self.alike,
            "relations": {name: relation.to_plain() for name, relation in self.relations.items()},
            "patterns": {name: pattern.to_plain() for name, pattern in self.patterns.items()},
            "groups": {name: groups.to_plain() for name, groups in self.groups.items()},
            "times": None if self.times is None else packed(self.times, "<f8"),
            "faults": self.faults.to_plain(),
            "sample": self.sample,
            "damage": None if self.damage is None else asdict(self.damage),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> FragmentProfile:
        """What `to_plain` described."""
        return cls(
            rows=plain["rows"],
            columns={name: ColumnProfile.from_plain(told) for name, told in plain["columns"].items()},
            lengths=None if plain["lengths"] is None else unpacked(plain["lengths"], "<i4"),
            keys=None if plain["keys"] is None else unpacked(plain["keys"], "<u8"),
            disagreements={
                name: Disagreement(rows, Places(tuple((file, row) for file, row in found)))
                for name, (rows, found) in plain["disagreements"].items()
            },
            alike=plain["alike"],
            relations={name: Relation.from_plain(told) for name, told in plain["relations"].items()},
            patterns={name: Pattern.from_plain(told) for name, told in plain["patterns"].items()},
            groups={name: Groups.from_plain(told) for name, told in plain["groups"].items()},
            times=None if plain["times"] is None else unpacked(plain["times"], "<f8"),
            faults=RowFaults.from_plain(plain["faults"]),
            sample=plain["sample"],
            damage=None if plain["damage"] is None else Damage(**plain["damage"]),
        )


@dataclass(frozen=True)
class ProfileTask:
    """Profiles the fragment of a number."""

    fragments: tuple[Fragment, ...]
    look: Look

    def __call__(self, number: int) -> dict[str, Any]:
        import_plugins(self.look.plugins)
        return profile_fragment(self.fragments[number], self.look).to_plain()


def profile_fragment(fragment: Fragment, look: Look) -> FragmentProfile:
    """Reads a row group once, and profiles the rows that the run's filter keeps; of a damaged one, its damage.

    DataError when its bytes cannot be fetched.
    """
    first = first_row(fragment)
    try:
        table, rows = _read(fragment, look.columns), first + np.arange(fragment.rows)
    except DecodeError as error:
        if not is_stored(fragment):
            raise
        damage = Damage(fragment.file, fragment.row_group, first, fragment.rows, error.problem)
        return FragmentProfile(rows=0, columns={}, damage=damage)
    if look.where is not None:
        kept = kept_rows(look.where, table)
        table, rows = table.filter(pa.array(kept)), rows[kept]
    found = profile_table(table, look, fragment.file, rows)
    if look.model is None:
        return found
    whole = with_path_columns(table, fragment, fragment.absent)
    return replace(found, faults=row_faults(whole, look.model, fragment.file, rows))


def _read(fragment: Fragment, columns: tuple[str, ...] | None) -> pa.Table:
    """The columns that the file and its path give."""
    if columns is None:
        return read_whole_fragment(fragment)
    return read_fragment(fragment, [name for name in columns if name not in fragment.absent])


def profile_table(table: pa.Table, look: Look, file: str, rows: np.ndarray) -> FragmentProfile:
    """The profile of a table; `rows` are the numbers of its rows in `file`."""
    label = _LabelEntries.of(table, look)
    lengths = None
    if look.reference is not None and look.reference in table.column_names:
        lengths = row_lengths(table.column(look.reference), look.reference)
    ends = _ends(table, look, lengths)
    columns: dict[str, ColumnProfile] = {}
    relations: dict[str, Relation] = {}
    patterns: dict[str, Pattern] = {}
    scalars: dict[str, Coded] = {}
    for name in table.column_names:
        columns[name], coded = profile_column(table.column(name), name, file, rows)
        patterns[name] = pattern_of(table.column(name), name, columns[name], coded, ends)
        if coded is None:
            continue
        if not columns[name].depth:
            scalars[name] = coded
        if label is not None and name != look.label:
            relations |= label.relations(name, plain(table.column(name)), coded)
    return FragmentProfile(
        rows=table.num_rows,
        columns=columns,
        lengths=None if lengths is None else lengths.astype(np.int32),
        keys=_key_hashes(table, look.key),
        disagreements={} if lengths is None else _disagreements(table, look, lengths, file, rows),
        alike=_alike(table) if look.reference is None else {},
        relations=relations,
        patterns=patterns,
        groups={name: groups_of(name, scalars) for name in look.groups if name in scalars},
        times=event_times(table, look.time) if look.time is not None and look.time in table.column_names else None,
        sample=_sample(table) if look.sample else [],
    )


def _ends(table: pa.Table, look: Look, lengths: np.ndarray | None) -> Ends:
    times = [event_times(table, name) if name in table.column_names else None for name in look.ends or ()]
    return Ends(None if lengths is None else lengths.astype(np.float64), *times)


# Lengths --------------------------------------------------------------------------------------------------------


def _disagreements(
    table: pa.Table, look: Look, lengths: np.ndarray, file: str, rows: np.ndarray
) -> dict[str, Disagreement]:
    """Every other list column held against the reference; those that always agree are there, too, with 0 rows."""
    found = {}
    for name in table.column_names:
        other = None if name == look.reference else row_lengths(table.column(name), name)
        if other is not None:
            wrong = np.flatnonzero(other != lengths)
            found[name] = Disagreement(len(wrong), Places(tuple((file, int(rows[row])) for row in wrong[:MOST_PLACES])))
    return found


def _alike(table: pa.Table) -> dict[str, int]:
    lengths = {name: row_lengths(table.column(name), name) for name in table.column_names}
    lists = {name: found for name, found in lengths.items() if found is not None}
    alike = dict.fromkeys(lists, 0)
    for one, other in combinations(list(lists)[:MOST_COMPARED], 2):
        equal = int((lists[one] == lists[other]).sum())
        alike[one] += equal
        alike[other] += equal
    return alike


def _key_hashes(table: pa.Table, key: tuple[str, ...]) -> np.ndarray | None:
    """One uint64 a row over the key's columns; None where there is no key that can be hashed."""
    if not key or any(name not in table.column_names for name in key):
        return None
    found = np.zeros(table.num_rows, np.uint64)
    for name in key:
        profile, coded = profile_column(table.column(name), name, "", np.arange(table.num_rows))
        if coded is None or profile.depth:
            return None
        found = mixed(found) ^ coded.entry_hashes()
    return found


def _sample(table: pa.Table) -> list[dict[str, str]]:
    rows = table.slice(0, SAMPLE_ROWS).to_pylist()
    return [{name: _cut(_json(value)) for name, value in row.items()} for row in rows]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …"


# The label ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _LabelEntries:
    """The label's values by code: one a row, or one a step where `offsets` bound the rows."""

    entries: Entries
    known: np.ndarray
    offsets: np.ndarray | None

    @classmethod
    def of(cls, table: pa.Table, look: Look) -> _LabelEntries | None:
        if look.label is None or look.label not in table.column_names:
            return None
        array = plain(table.column(look.label))
        parts = unnested(array, look.label)
        _, coded = profile_column(array, look.label, "", np.arange(len(array)))
        if coded is None or parts.step_offsets is not None:
            return None
        return cls(_entries(parts, coded), coded.codes >= 0, parts.row_offsets)

    def relations(self, name: str, array: Array, coded: Coded) -> dict[str, Relation]:
        """How the column, or each of the values of a step, stands to the label; empty where they cannot be paired."""
        parts = unnested(array, name)
        width = _width(parts)
        if not width or width > MOST_COMPONENTS:
            return {}
        entries, places = _entries(parts, coded), self._places(parts)
        names = [name] if parts.step_offsets is None else [f"{name}[{part}]" for part in range(width)]
        last = self.offsets is None and parts.row_offsets is not None
        return {told: self._relation(entries, *places, width, part, last) for part, told in enumerate(names)}

    def _relation(
        self,
        entries: Entries,
        mine: np.ndarray,
        labels: np.ndarray,
        offsets: np.ndarray | None,
        width: int,
        part: int,
        last: bool,
    ) -> Relation:
        """`mine` are the steps (or rows) of the column that stand beside the label's entries `labels`."""
        if offsets is None:  # steps keep their neighbours, null labels among them
            known = self.known[labels]
            mine, labels = mine[known], labels[known]
        return Relation.of(entries.take(mine * width + part), self.entries.take(labels), offsets, last=last)

    def _places(self, parts: Unnested) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(column's steps, label's entries, offsets of rows) at the same places; rows that disagree are left out."""
        rows = np.arange(len(self.known) if self.offsets is None else len(self.offsets) - 1)
        if self.offsets is None:
            if parts.row_offsets is None:
                return rows, rows, None
            held = np.flatnonzero(np.diff(parts.row_offsets) > 0)
            return parts.row_offsets[held + 1] - 1, held, None
        lengths = np.diff(self.offsets)
        steps = np.arange(len(self.known))
        if parts.row_offsets is None:
            return np.repeat(rows, lengths), steps, None
        alike = np.flatnonzero(np.diff(parts.row_offsets) == lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths[alike])])
        return ranges(parts.row_offsets, alike), ranges(self.offsets, alike), offsets


def _width(parts: Unnested) -> int:
    """Values a step; 0 where the steps hold different numbers of them."""
    if parts.step_offsets is None:
        return 1
    widths = np.unique(np.diff(parts.step_offsets))
    return int(widths[0]) if len(widths) == 1 else 0


def _entries(parts: Unnested, coded: Coded) -> Entries:
    kind = parts.values.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return Entries(coded.codes, coded.hashes, numbers(parts.values, "") if numeric else None)
