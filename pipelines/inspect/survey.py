"""All that one pass over the data has told, merged in (file, row group) order. Knows no torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.batches.plan import DataIndex
from model.tables.fragments import Fragment
from pipelines.inspect.column_profile import ColumnProfile
from pipelines.inspect.label_relations import Relation
from pipelines.inspect.profile_task import Disagreement, FragmentProfile, Look
from pipelines.inspect.roles import Choice, Role
from pipelines.inspect.row_faults import Damage, RowFaults

MOST_KEYS = 1 << 26  # rows whose keys are compared exactly: 512 MiB of hashes


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
    """The data as seen: `lengths` int64 [rows] of the sequences, None where there are none."""

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
        self.sample = self.sample or part.sample
        for name, rows in part.alike.items():
            self.alike[name] = self.alike.get(name, 0) + rows

    def key_facts(self, look: Look) -> KeyFacts | None:
        """Rows a key; None where there is no key, or more rows than are compared."""
        if not look.key or sum(map(len, self.keys)) != self.rows or self.rows > MOST_KEYS:
            return None
        distinct = len(np.unique(np.concatenate(self.keys)))
        return KeyFacts(look.key, distinct, self.rows - distinct)

    def absent(self) -> dict[str, int]:
        """Rows of files that lack a column which others have."""
        return {name: self.rows - held for name, held in self.held.items() if held < self.rows}


def survey_of(
    merger: Merger,
    data: str,
    fragments: Sequence[Fragment],
    look: Look,
    label: Choice,
    key: Choice,
    roles: dict[str, Role],
) -> Survey:
    """The survey of merged profiles."""
    return Survey(
        data=data,
        fragments=tuple(fragments),
        look=look,
        label=label,
        key=key,
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
    )
