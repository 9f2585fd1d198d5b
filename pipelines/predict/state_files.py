"""States of entities in Parquet: one row an entity, its key and `rnn_cell_state_0` …; checked before they are used.

Knows no Ray, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from model.errors import ConfigError, DataError
from model.state import FINGERPRINT as FINGERPRINT
from model.state import STATE_PREFIX, StateSpec, check_own_states, refuse_other_models, state_schemas
from model.storage import absolute, exists, join
from model.tables.parquet import find
from model.tables.slices import Footer, SlicedRowGroup, read_footers, schemas_of, slice_row_groups
from pipelines.predict.output_claim import digest_of

STATES = "_states"  # in the output's directory: the states after a prediction with keys
REBUILD = "rebuild them from the history by --states-only"


@dataclass(frozen=True)
class States:
    """Initial states: their blocks, the columns of their files, and a digest of these."""

    blocks: tuple[SlicedRowGroup, ...]
    schemas: dict[str, pa.Schema]
    digest: str | None


def find_states(
    path: str, spec: StateSpec, key: Sequence[str], fingerprint: str, *, new: str, unbound: bool = False
) -> States:
    """The states under `path`, or in the directory of states in it; `new` is where those after them will go.

    ConfigError where another model computed them, or (unless `unbound`) nobody knows which; DataError or StateError
    where columns are missing or do not fit.
    """
    where = absolute(path)
    if exists(join(where, STATES)):
        where = join(where, STATES)
    if where == new:
        raise ConfigError(f"{new}: new states must not go where the initial ones are; name another directory")
    found = find(where, key, beside=STATE_PREFIX)
    footers = read_footers([fragment.file for fragment in found.fragments])
    states = state_schemas(found.beside)
    refuse_other_models(states, fingerprint, REBUILD)  # before what this one would need
    _require_all(footers, spec)
    check_own_states(states, spec, fingerprint, unbound=unbound, cure=REBUILD)
    schemas = schemas_of(found.fragments, footers)
    columns = [*key, *spec.names]
    blocks = slice_row_groups(found.fragments, footers, columns, row_bytes=0, step_bytes=0)
    return States(blocks, schemas, digest_of(footers))


def _require_all(footers: Mapping[str, Footer], spec: StateSpec) -> None:
    """DataError where a file lacks a component: a file of states has them all."""
    for file, footer in footers.items():
        for name in spec.names:
            if name not in footer.schema.names:
                columns = ", ".join(footer.schema.names)
                raise DataError(f"is not in the file; its columns are {columns}", file=file, column=name)


def refuse_states_in_data(schemas: Mapping[str, pa.Schema], spec: StateSpec) -> None:
    """DataError where the data bring states of their own, though their rows are chained."""
    for file, schema in schemas.items():
        for name in spec.names:
            if name in schema.names:
                raise DataError(
                    "rows that are chained by a key go on from one another, so the data must have no states; name a "
                    "file of states by --state-from, or leave out --key, or the states by --initial-states ignore",
                    file=file,
                    column=name,
                )
