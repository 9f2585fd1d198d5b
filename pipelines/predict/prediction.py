"""A batch prediction as plain data: what the user chose, and what follows from it, the bundle and the files' footers.

The tasks of all passes get it. Knows no Ray, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from model.errors import ConfigError
from model.features.fitted_columns import FittedColumns
from model.state import FINGERPRINT, StateSpec
from model.storage import join
from model.tables import slices
from model.tables.hive_paths import PartitionTypes
from model.tables.slices import SlicedRowGroup
from pipelines.predict.bad_rows import BadRowPolicy, OnBadRows
from pipelines.predict.entity_keys import KeyTypes
from pipelines.predict.output_claim import Claim

ORDER = "sequence_index"  # the column that orders the rows of one key
WORK = "_work"  # in the output's directory, while rows are on their way to those of the same key


@dataclass(frozen=True)
class Choices:
    """What the user chose; see `pipelines.predict.run.predict`."""

    keep: tuple[str, ...] | None = None
    probabilities: bool | None = None
    plugins: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    state_from: str | None = None
    states_to: str | None = None
    states_only: bool = False
    on_bad_rows: OnBadRows | None = None
    initial_states: Literal["read", "ignore"] | None = None
    unbound_states: bool = False
    partition_types: PartitionTypes = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_bad_rows not in (None, "error", "skip"):
            raise ConfigError(f"on_bad_rows must be error or skip, but is {self.on_bad_rows!r}")
        if not self.key:
            for name in ("state_from", "states_to", "states_only"):
                if getattr(self, name):
                    option = f"--{name.replace('_', '-')}"
                    raise ConfigError(f"{option} needs to know whose states they are: name the key's column by --key")
        if self.states_only:
            for name in ("states_to", "keep", "probabilities"):
                if getattr(self, name) is not None:
                    option = f"--{name.replace('_', '-')}"
                    raise ConfigError(f"--states-only writes states alone, into the output directory: drop {option}")


@dataclass(frozen=True)
class Chain:
    """How the rows of one key follow from one another.

    `keys` are the key columns and their types. Rows are `ordered` by `sequence_index`, else as they lie in the files.
    `state_blocks` hold where keys go on from; `states` is the directory of where they end. Keys are hashed into
    `partitions`; of each, `chunk_rows` rows at a time are held in memory.
    """

    keys: KeyTypes
    ordered: bool
    state_blocks: tuple[SlicedRowGroup, ...]
    states: str
    states_only: bool
    partitions: int
    chunk_rows: int

    def states_file(self, partition: int) -> str:
        """Where the final states of the keys of a partition are written."""
        return join(self.states, f"states-{partition:05d}.parquet")

    @property
    def states_files(self) -> list[str]:
        """The files of all final states."""
        return [self.states_file(partition) for partition in range(self.partitions)]


@dataclass(frozen=True)
class Prediction:
    """A checked prediction. Without a `chain` each row stands for itself.

    `predicted` is the schema of predictions; `claim` is all that decides about the output. With `reads_states` rows
    begin with the states that the data hold.
    """

    bundle: str
    fingerprint: str
    plugins: tuple[str, ...]
    columns: FittedColumns
    state_spec: StateSpec
    probabilities: bool
    predicted: pa.Schema
    output: str
    keep: tuple[str, ...]
    blocks: tuple[SlicedRowGroup, ...]
    setting_aside: BadRowPolicy
    reads_states: bool
    chain: Chain | None
    claim: Claim

    @property
    def inputs(self) -> list[str]:
        """The data columns that the model reads."""
        return list(self.columns.input_names)

    @property
    def rows(self) -> int:
        """Rows of the data."""
        return sum(block.fragment.rows for block in self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes that are decoded and computed, initial states included: at most this, as far as slices tell."""
        blocks = [*self.blocks, *(() if self.chain is None else self.chain.state_blocks)]
        return int(bytes_of(blocks))

    @property
    def metadata(self) -> dict[str, str]:
        """What output files say about the states that they hold."""
        return {FINGERPRINT: self.fingerprint}

    @property
    def work(self) -> str:
        """Where rows and results lie on their way."""
        return join(self.output, WORK)


def bytes_of(blocks: Sequence[SlicedRowGroup]) -> float:
    """Decoded values and results of blocks, as far as their slices tell: at most this."""
    return sum(block.fragment.rows * slices.SLICE_BYTES / block.slice_rows for block in blocks)


def block_of(blocks: Sequence[SlicedRowGroup], number: int) -> SlicedRowGroup:
    """The block that holds the slice with this number."""
    return blocks[int(np.searchsorted([block.first_slice for block in blocks], number, side="right")) - 1]
