"""States of entities in Parquet: one row an entity, its key and `rnn_cell_state_0` …; checked before they are used.

What a prediction wrote says by which model. Knows no Ray, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from model.errors import ConfigError, DataError, StateError
from model.state import StateSpec
from model.storage import absolute, exists, join
from model.tables.parquet import find_fragments
from model.tables.slices import SlicedRowGroup, read_footers, schemas_of, slice_row_groups
from pipelines.predict.output_claim import digest_of

STATES = "_states"  # in the output's directory: the states after a prediction with keys
FINGERPRINT = "dynamic_rnn.fingerprint"  # in the Parquet metadata: the model that computed predictions and states


@dataclass(frozen=True)
class States:
    """Initial states: their blocks, the columns of their files, and a digest of these."""

    blocks: tuple[SlicedRowGroup, ...]
    schemas: dict[str, pa.Schema]
    digest: str | None


def find_states(path: str, spec: StateSpec, key: Sequence[str], fingerprint: str, *, new: str) -> States:
    """The states under `path`, or in the directory of states in it; `new` is where those after them will go.

    ConfigError where another model computed them, DataError or StateError where columns are missing or do not fit.
    """
    where = absolute(path)
    if exists(join(where, STATES)):
        where = join(where, STATES)
    if where == new:
        raise ConfigError(f"{new}: new states must not go where the initial ones are; name another directory")
    columns = [*key, *spec.names]
    fragments = find_fragments(where, columns)
    footers = read_footers([fragment.file for fragment in fragments])
    for file, footer in footers.items():
        theirs = (footer.schema.metadata or {}).get(FINGERPRINT.encode(), fingerprint.encode()).decode()
        if theirs != fingerprint:
            raise ConfigError(
                f"{file}: states must be of the model that goes on from them ({fingerprint[:12]}), but are of another "
                f"({theirs[:12]}); rebuild them from the history by --states-only"
            )
    schemas = schemas_of(fragments, footers)
    check_state_columns(schemas, spec)
    return States(slice_row_groups(fragments, footers, columns, row_bytes=0, step_bytes=0), schemas, digest_of(footers))


def check_state_columns(schemas: Mapping[str, pa.Schema], spec: StateSpec) -> None:
    """StateError, naming the file, where some components are missing or a type has another width."""
    for file, schema in schemas.items():
        present = [name for name in spec.names if name in schema.names]
        if not present:
            continue
        try:
            spec.require_complete(present)
        except StateError as error:
            raise error.located(file=file) from error
        for component in spec.components:
            kind = schema.field(component.name).type
            if pa.types.is_fixed_size_list(kind) and kind.list_size != component.numel:
                raise StateError(
                    f"must hold {component.numel} numbers, but holds {kind.list_size}; another model wrote it",
                    file=file,
                    column=component.name,
                )


def refuse_states_in_data(schemas: Mapping[str, pa.Schema], spec: StateSpec) -> None:
    """DataError where the data bring states of their own, though their rows are chained."""
    for file, schema in schemas.items():
        for name in spec.names:
            if name in schema.names:
                raise DataError(
                    "rows that are chained by a key go on from one another, so the data must have no states; name a "
                    "file of states by --state-from, or leave out --key",
                    file=file,
                    column=name,
                )
