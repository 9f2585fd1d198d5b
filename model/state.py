"""The RNN state as named arrays: `rnn_cell_state_0` …, and the spec that says what a model's state looks like.

Depth first, the original's order: layer 0's components, then layer 1's; an LSTM layer has c then h. A state is
all components or none; a null in Arrow is the zero state. Knows no torch, no files: batch, stream and training
read the same columns. Parquet files may say which model computed the states in them.

May import: model.errors, model.settings, model.tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from model.errors import ConfigError, DataError, StateError
from model.settings import Settings
from model.tables.arrow_lists import Array, as_float32, is_list, numbers, plain, unnest

STATE_PREFIX = "rnn_cell_state"
STATE_COLUMN = re.compile(rf"{STATE_PREFIX}_\d+")
FINGERPRINT = "dynamic_rnn.fingerprint"  # in the Parquet metadata: the model that computed predictions and states
STATES_CURE = "compute them again with this model, or leave them out by --initial-states ignore"
Schemas = Mapping[str, pa.Schema]  # by file


class StateComponent(Settings):
    """One array of the state: its column name and its shape for one sequence."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of float32 values for one sequence."""
        return int(np.prod(self.shape))


class StateSpec(Settings):
    """The components of a model's state, in order."""

    components: tuple[StateComponent, ...]

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, ...]]) -> StateSpec:
        """The spec of components with these shapes, named in order."""
        named = [StateComponent(name=f"{STATE_PREFIX}_{i}", shape=shape) for i, shape in enumerate(shapes)]
        return cls(components=tuple(named))

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(component.name for component in self.components)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sequence's state."""
        return 4 * sum(component.numel for component in self.components)

    def arrow_fields(self) -> list[pa.Field]:
        """The state's columns as `fixed_size_list<float32>[numel]`."""
        return [pa.field(c.name, pa.list_(pa.float32(), c.numel)) for c in self.components]

    def to_arrow(self, state: Sequence[np.ndarray]) -> list[Array]:
        """Arrays [B, numel] to the columns of `arrow_fields`."""
        columns = []
        for component, values in zip(self.components, state, strict=True):
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), component.numel))
        return columns

    def from_arrow(self, table: pa.Table) -> tuple[np.ndarray, ...] | None:
        """The state columns of a table as float32 [B, numel]; None where the table has none of them.

        StateError when some components are missing, a width differs, or a value is not finite.
        """
        present = [name for name in self.names if name in table.column_names]
        if not present:
            return None
        self.require_complete(present)
        self._refuse_partial_rows(table)
        return tuple(_component(table.column(c.name), c) for c in self.components)

    def _refuse_partial_rows(self, table: pa.Table) -> None:
        nulls = np.stack([table.column(name).is_null().to_numpy() for name in self.names])
        partial = nulls.any(0) & ~nulls.all(0)
        if partial.any():
            row = int(np.argmax(partial))
            given = [name for name, null in zip(self.names, nulls[:, row], strict=True) if not null]
            self.require_complete(given, row=row)

    def require_complete(self, present: Sequence[str], row: int | None = None) -> None:
        """All components or none: a StateError names the missing ones."""
        missing = [name for name in self.names if name not in present]
        if missing:
            raise StateError(
                f"a state must have all of {', '.join(self.names)} or none, but {', '.join(missing)} is missing",
                row=row,
            )

    def zeros(self, rows: int) -> tuple[np.ndarray, ...]:
        """The zero state of `rows` sequences."""
        return tuple(np.zeros((rows, component.numel), np.float32) for component in self.components)


def _component(column: pa.ChunkedArray, component: StateComponent) -> np.ndarray:
    array = plain(column)
    state = np.zeros((len(array), component.numel), np.float32)
    if pa.types.is_null(array.type):
        return state
    if not is_list(array.type):
        raise StateError(f"must be a list of {component.numel} numbers, but is {array.type}", column=component.name)
    values, offsets = unnest(array, component.name)
    given = array.is_valid().to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    wrong = given & (lengths != component.numel)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise StateError(
            f"must hold {component.numel} numbers, but holds {lengths[row]}", row=row, column=component.name
        )
    try:
        state[given] = as_float32(numbers(values, component.name)).reshape(-1, component.numel)
    except DataError as error:
        raise StateError(error.problem, column=component.name) from error
    bad = ~np.isfinite(state).all(1)
    if bad.any():
        raise StateError("must be finite numbers, but a value is not", row=int(np.argmax(bad)), column=component.name)
    return state


def from_mapping(spec: StateSpec, state: Mapping[str, object], rows: int) -> tuple[np.ndarray, ...] | None:
    """Named arrays [B, numel] as float32 in the spec's order; None when there are none; extra names are ignored."""
    present = [name for name in spec.names if name in state]
    if not present:
        return None
    spec.require_complete(present)
    arrays = []
    for component in spec.components:
        array = np.asarray(state[component.name], np.float32)
        if array.shape not in ((rows, component.numel), (rows, *component.shape)):
            raise StateError(
                f"must have shape ({rows}, {component.numel}), but has {array.shape}", column=component.name
            )
        arrays.append(array.reshape(rows, component.numel))
    return tuple(arrays)


# In Parquet files ------------------------------------------------------------------------------------------------


def state_schemas(schemas: Schemas) -> dict[str, pa.Schema]:
    """The columns of states, and the metadata, of each file that has some."""
    found = {}
    for file, schema in schemas.items():
        fields = [each for each in schema if STATE_COLUMN.fullmatch(each.name)]
        if fields:
            found[file] = pa.schema(fields, schema.metadata)
    return found


def check_state_columns(states: Schemas, spec: StateSpec, cure: str = "") -> None:
    """StateError, naming the file, where components are missing or too many, or a type has another width or kind.

    `cure` is a clause on what else can be done.
    """
    for file, schema in states.items():
        try:
            _check_columns(schema, spec)
        except StateError as error:
            raise StateError(f"{error.problem}{cure}", file=file, column=error.column) from error.__cause__


def _check_columns(schema: pa.Schema, spec: StateSpec) -> None:
    spec.require_complete(schema.names)
    for name in schema.names:
        if name not in spec.names:
            raise StateError(
                f"is no part of this model's state, which has {', '.join(spec.names)}; another model wrote it",
                column=name,
            )
    for component in spec.components:
        kind = schema.field(component.name).type
        if pa.types.is_fixed_size_list(kind) and kind.list_size != component.numel:
            raise StateError(
                f"must hold {component.numel} numbers, but holds {kind.list_size}; another model wrote it",
                column=component.name,
            )
    spec.from_arrow(schema.empty_table())


def models_of(states: Schemas) -> dict[str, str | None]:
    """The fingerprint of the model that computed the states of each file; None where its metadata do not say.

    Files whose states are all null, by their types, are left out: these are nobody's.
    """
    return {
        file: fingerprint.decode() if (fingerprint := (schema.metadata or {}).get(FINGERPRINT.encode())) else None
        for file, schema in states.items()
        if not all(pa.types.is_null(kind) for kind in schema.types)
    }


def refuse_other_models(states: Schemas, fingerprint: str, cure: str) -> None:
    """ConfigError where another model computed the states of a file."""
    for file, theirs in models_of(states).items():
        if theirs is not None and theirs != fingerprint:
            raise ConfigError(f"{file}: {_ours(fingerprint)}, but are of another ({theirs[:12]}); {cure}")


def _ours(fingerprint: str) -> str:
    return f"states must be of the model that goes on from them ({fingerprint[:12]})"


def check_own_states(
    states: Schemas, spec: StateSpec, fingerprint: str, *, unbound: bool, cure: str, shape_cure: str = ""
) -> None:
    """ConfigError where another model computed the states of a file or, unless `unbound`, where nobody says which one.

    StateError as `check_state_columns`, with `shape_cure`.
    """
    refuse_other_models(states, fingerprint, cure)
    check_state_columns(states, spec, shape_cure)
    for file, theirs in models_of(states).items():
        if theirs is None and not unbound:
            raise ConfigError(
                f"{file}: {_ours(fingerprint)}, but the file's metadata name no model; if it is this one, say "
                f"--unbound-states, else {cure}"
            )
