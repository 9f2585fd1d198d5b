"""Encoded rows as an Arrow table and back without copies: how they travel between processes.

One row a sequence, so that an engine may cut and join the tables anywhere. Knows nothing of what the values mean.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.batches.encoded_rows import EncodedRows
from model.features.encoded import Encoded
from model.tables.arrow_lists import fixed_values, offsets_of, plain, unnest

PER_STEP = b"per_step"


def to_arrow(rows: EncodedRows) -> pa.Table:
    """A table with columns `length`, `row`, `s:<key>`, `c:<key>`, `label`, `weight`, `state:<i>`.

    Weights of ids stand beside them, as `sw:<key>` or `cw:<key>`.
    """
    steps = offsets_of(rows.lengths_B)
    ones = np.arange(len(rows) + 1, dtype=np.int64)
    columns = {"length": pa.array(rows.lengths_B), "row": pa.array(rows.rows_B)}
    for mark, offsets, group in (("s", steps, rows.sequence), ("c", ones, rows.context)):
        for key, encoded in group.items():
            columns[f"{mark}:{key}"] = _lists(offsets, _entries(encoded))
            if encoded.weights is not None:
                weights = _entries(Encoded(encoded.weights, encoded.offsets))
                columns[f"{mark}w:{key}"] = _lists(offsets, weights)
    owner = steps if rows.per_step else ones
    for name, values in (("label", rows.labels), ("weight", rows.weights)):
        if values is not None:
            columns[name] = _lists(owner, pa.array(values))
    for i, part in enumerate(rows.state or ()):
        columns[f"state:{i}"] = _lists(ones, _entries(Encoded(part)))
    table = pa.table(columns)
    return table.replace_schema_metadata({PER_STEP: b"1" if rows.per_step else b"0"})


def from_arrow(table: pa.Table) -> EncodedRows:
    """The rows that `to_arrow` wrote, also from a slice or a concatenation of such tables."""
    assert table.schema.metadata is not None, "tables of encoded rows carry their metadata"
    values = {name: plain(table.column(name)) for name in table.column_names}
    flat = {name: unnest(array, name).values for name, array in values.items() if name not in ("length", "row")}
    states = [name for name in flat if name.startswith("state:")]
    return EncodedRows(
        lengths_B=values["length"].to_numpy(),
        rows_B=values["row"].to_numpy(),
        sequence=_group(flat, "s"),
        context=_group(flat, "c"),
        per_step=table.schema.metadata[PER_STEP] == b"1",
        labels=flat["label"].to_numpy() if "label" in flat else None,
        weights=flat["weight"].to_numpy() if "weight" in flat else None,
        state=tuple(_encoded(flat[name]).values for name in states) or None,
    )


def _group(flat: dict[str, pa.Array], mark: str) -> dict[str, Encoded]:
    """The values of sequence or context, each with its weights where it has some."""
    group = {}
    for name, array in flat.items():
        kind, _, key = name.partition(":")
        if kind == mark:
            weights = flat.get(f"{mark}w:{key}")
            encoded = _encoded(array)
            group[key] = encoded if weights is None else encoded._replace(weights=_encoded(weights).values)
    return group


def _lists(offsets: np.ndarray, entries: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets), entries)


def _entries(encoded: Encoded) -> pa.Array:
    """Vectors as fixed_size_list, single ids as they are, several ids an entry as lists."""
    if encoded.values.ndim == 2:
        width = encoded.values.shape[1]
        return pa.FixedSizeListArray.from_arrays(pa.array(encoded.values.reshape(-1)), width)
    flat = pa.array(encoded.values)
    return flat if encoded.offsets is None else _lists(encoded.offsets, flat)


def _encoded(entries: pa.Array) -> Encoded:
    if pa.types.is_fixed_size_list(entries.type):
        flat = fixed_values(entries).to_numpy()
        return Encoded(flat.reshape(-1, entries.type.list_size))
    if pa.types.is_large_list(entries.type):
        values, offsets = unnest(entries, "values")
        return Encoded(values.to_numpy(), offsets)
    return Encoded(entries.to_numpy())
