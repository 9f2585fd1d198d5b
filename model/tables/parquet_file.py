"""How this project opens Parquet files: the one place for the options that decide what type a column is read as.

INT96, the time of Hive, Impala and older Spark, holds any year, but pyarrow reads it as nanoseconds, which end in 2262
and then begin anew: 9999-12-31 would be a day of 1816. It is read as microseconds here. Other types are as stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from model.storage import resolve

if TYPE_CHECKING:  # loaded by the functions that use it: a quarter of what `from model import …` would take
    import pyarrow.parquet as pq

_OPTIONS = {"coerce_int96_timestamp_unit": "us"}


def open_parquet(file: str, **options: Any) -> pq.ParquetFile:
    """A file to read from, a context manager. Errors are pyarrow's."""
    import pyarrow.parquet as pq

    filesystem, inner = resolve(file)
    return pq.ParquetFile(inner, filesystem=filesystem, **_OPTIONS, **options)


def arrow_schema(metadata: pq.FileMetaData) -> pa.Schema:
    """The types that `open_parquet` reads a file's columns as, by its footer; `to_arrow_schema` knows no options."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(b""), metadata=metadata, **_OPTIONS).schema_arrow
