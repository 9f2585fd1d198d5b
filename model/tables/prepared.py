"""What `prepare` knew of the sequences it wrote: kept in the metadata of each file's schema, for whoever reads them.

Columns of a file do not say that a time is that of a sequence's last event, which nobody knows before it has come, or
that a label is a later value of another column. Files that others wrote have no such metadata. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pyarrow as pa

from model.errors import DataError, first_line
from model.settings import Settings

METADATA_KEY = b"dynamic_rnn.prepared"


class PreparedLabel(Settings):
    """A label's column and where it comes from: the value of `source` that is `shift` events later, 0 for a sequence's
    own; with `change` the difference until then."""

    column: str
    source: str
    shift: int = 0
    change: bool = False


class Prepared(Settings):
    """Columns by what they are for, and how the sequences were cut. Unknown fields of later versions are an error."""

    version: Literal[1] = 1
    key: tuple[str, ...] = ()  # the entity; none for a single series
    index: str | None = None  # orders the sequences of one key
    time: tuple[str, ...] = ()  # the events' order, first the time itself
    gap_seconds: float | None = None  # a longer time without event began a new sequence
    label: PreparedLabel | None = None
    known_at_end: tuple[str, ...] = ()  # columns whose value is known only after a sequence's last event
    split: Literal["train", "validation", "test"] | None = None  # the part of --split-by-time
    for_scoring: bool = False  # labels are null where they are not known yet


def with_prepared(schema: pa.Schema, prepared: Prepared) -> pa.Schema:
    """The schema, with `prepared` in its metadata beside what is there."""
    text = prepared.model_dump_json(exclude_defaults=True)
    return schema.with_metadata({**(schema.metadata or {}), METADATA_KEY: text.encode()})


def prepared_of(metadata: Mapping[bytes, bytes] | None, file: str) -> Prepared | None:
    """What the metadata of a schema or of a footer tell; None where `prepare` has not written the file."""
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        return Prepared.model_validate_json(text)
    except ValueError as error:
        raise DataError(
            f"its metadata {METADATA_KEY.decode()} cannot be read ({first_line(error)}): prepare it again with this "
            "version, or install the one that wrote it",
            file=file,
        ) from error
