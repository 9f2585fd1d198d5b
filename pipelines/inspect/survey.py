"""All that one pass over the data has told, merged in (file, row group) order. Knows no torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.batches.plan import DataIndex
from model.tables.fragments import Fragment
from model.tables.prepared import Prepared
from pipelines.inspect.column_profile import ColumnProfile
from pipelines.inspect.label_relations import Relation
from pipelines.inspect.patterns import Groups, Pattern, Ties, ties_of
from pipelines.inspect.profile_task import Disagreement, FragmentProfile, Look
from pipelines.inspect.roles import Choice, Chosen, Role
from pipelines.inspect.row_faults import Damage, RowFaults
from pipelines.inspect.sketches import Value

MOST_KEYS = 1 << 26  # rows whose keys are compared exactly: 512 MiB of hashes


@dataclass(frozen=True)
class Located:
    """Data as found: `root` is the path that was named, `data` that whose row groups are profiled, of a split its
    training part; `parts` are the paths of all of a split's parts by name, empty where there is none; `mixed` says that
    parts are read as one. `nbytes` are those of `root`.
    """

    root: str
    data: str
    fragments: tuple[Fragment, ...]
    nbytes: int
    prepared: Prepared | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    mixed: bool = False


@dataclass(frozen=True)
class KeyFacts:
    """Rows a key. `duplicates` are rows whose key another row before them has; by 64-bit hashes: two different keys
    pass for one in a thousand million rows with a chance of 3 %.
    """

    columns: tuple[str, ...]
    distinct: int
    duplicates: int


@dataclass(frozen=True, eq=False)
class Survey:
    """The data as seen: `lengths` int64 [rows] of the sequences, None where there are none.

    `at_end` are columns known only once a sequence has ended, where the label lies before; `key_like` is a column that
    seems to name whose rows these are, and why; `late_classes` are labels that only the validation part has.
    """

    root: str
    data: str
    fragments: tuple[Fragment, ...]
    look: Look
    label: Choice
    key: Choice
    columns: Mapping[str, ColumnProfile]
    roles: Mapping[str, Role]
    rows: int
    lengths: np.ndarray | None
    keys: KeyFacts | None
    disagreements: Mapping[str, Disagreement]
    relations: Mapping[str, Relation]
    faults: RowFaults
    sample: tuple[Mapping[str, str], ...] = ()
    absent: Mapping[str, int] = field(default_factory=dict)
    damages: tuple[Damage, ...] = ()
    patterns: Mapping[str, Pattern] = field(default_factory=dict)
    groups: Mapping[str, Groups] = field(default_factory=dict)
    ties: Ties | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    mixed: bool = False
    prepared: Prepared | None = None
    at_end: frozenset[str] = frozenset()
    key_like: tuple[str, str] | None = None
    late_classes: tuple[Value, ...] = ()

    @property
    def files(self) -> int:
        """Files with at least one row."""
        return len({fragment.file for fragment in self.fragments})

    @property
    def index(self) -> DataIndex:
        """What training's plan is computed from."""
        assert self.lengths is not None, "only sequences have an index"
        return DataIndex(self.fragments, self.lengths)


class Merger:
    """Takes the profiles of all fragments in their order; memory is bounded but for 4 + 8 bytes a row."""

    def __init__(self) -> None:
        self.rows = 0
        self.columns: dict[str, ColumnProfile] = {}
        self.held: dict[str, int] = {}
        self.lengths: list[np.ndarray] = []
        self.keys: list[np.ndarray] = []
        self.disagreements: dict[str, Disagreement] = {}
        self.relations: dict[str, Relation] = {}
        self.faults = RowFaults()
        self.damages: list[Damage] = []
        self.sample: list[dict[str, str]] = []
        self.alike: dict[str, int] = {}
        self.patterns: dict[str, Pattern] = {}
        self.groups: dict[str, Groups] = {}
        self.times: list[np.ndarray] = []

    def add(self, part: FragmentProfile) -> None:
        """Merges the next fragment's profile."""
        self.rows += part.rows
        if part.damage is not None:
            self.damages.append(part.damage)
        for name, profile in part.columns.items():
            self.columns[name] = self.columns[name].merge(profile) if name in self.columns else profile
            self.held[name] = self.held.get(name, 0) + part.rows
        for name, told in part.disagreements.items():
            self.disagreements[name] = self.disagreements.get(name, Disagreement()).merge(told)
        for name, relation in part.relations.items():
            self.relations[name] = self.relations[name].merge(relation) if name in self.relations else relation
        self.faults = self.faults.merge(part.faults)
        self.lengths.append(np.zeros(part.rows, np.int32) if part.lengths is None else part.lengths)
        if part.keys is not None:
            self.keys.append(part.keys)
        for name, pattern in part.patterns.items():
            self.patterns[name] = self.patterns[name].merge(pattern) if name in self.patterns else pattern
        for name, groups in part.groups.items():
            self.groups[name] = self.groups.get(name, Groups()).merge(groups)
        if part.times is not None:
            self.times.append(part.times)
        self.sample = self.sample or part.sample
        for name, rows in part.alike.items():
            self.alike[name] = self.alike.get(name, 0) + rows

    def key_facts(self, look: Look) -> KeyFacts | None:
        """Rows a key; None where there is no key, or more rows than are compared."""
        if not look.key or sum(map(len, self.keys)) != self.rows or self.rows > MOST_KEYS:
            return None
        distinct = len(np.unique(np.concatenate(self.keys)))
        return KeyFacts(look.key, distinct, self.rows - distinct)

    def ties(self, look: Look) -> Ties | None:
        """How many events have the time of another one; None where key or time is not known of all of them."""
        counts = (sum(map(len, each)) for each in (self.keys, self.times))
        if not self.rows or self.rows > MOST_KEYS or look.time is None or any(count != self.rows for count in counts):
            return None
        return ties_of(np.concatenate(self.keys), np.concatenate(self.times))

    def absent(self) -> dict[str, int]:
        """Rows of files that lack a column which others have."""
        return {name: self.rows - held for name, held in self.held.items() if held < self.rows}


def survey_of(
    merger: Merger,
    located: Located,
    fragments: Sequence[Fragment],
    chosen: Chosen,
    roles: dict[str, Role],
    at_end: frozenset[str],
    key_like: tuple[str, str] | None,
) -> Survey:
    """The survey of merged profiles."""
    look = chosen.look
    return Survey(
        root=located.root,
        data=located.data,
        fragments=tuple(fragments),
        look=look,
        label=chosen.label,
        key=chosen.key,
        columns=merger.columns,
        roles=roles,
        rows=merger.rows,
        lengths=None if look.reference is None else np.concatenate(merger.lengths).astype(np.int64),
        keys=merger.key_facts(look),
        disagreements=merger.disagreements,
        relations=merger.relations,
        faults=merger.faults,
        sample=tuple(merger.sample),
        absent=merger.absent(),
        damages=tuple(merger.damages),
        patterns=merger.patterns,
        groups=merger.groups,
        ties=merger.ties(look),
        parts=located.parts,
        mixed=located.mixed,
        prepared=located.prepared,
        at_end=at_end,
        key_like=key_like,
    )
