"""Parquet files as fragments (row groups): footers read and checked, fragments read with just the columns needed.

Knows no Ray: the data tasks of a cluster and the estimator on one machine call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from model.errors import DataError, DecodeError, first_line, listed
from model.settings import did_you_mean
from model.storage import find_files, is_refused, resolve, snapshot_of, why
from model.storage.filesystems import PathLike
from model.tables.arrow_lists import large
from model.tables.filter_arrow import kept_row_groups
from model.tables.filters import Filter
from model.tables.fragments import Fragment, PartitionValue
from model.tables.hive_paths import Partitions, PartitionTypes, partitions_of
from model.tables.nested import NestedSchema
from model.tables.parquet_file import arrow_schema, open_parquet
from model.tables.prepared import Prepared, prepared_of
from model.tables.schema_agreement import SchemaAgreement
from model.tables.unsupported import unsupported

if TYPE_CHECKING:  # loaded by the functions that use it: a quarter of what `from model import …` would take
    import pyarrow.parquet as pq

# Of the classes that libraries have registered for types of theirs, such as Ray for its tensors.
_EXTENSION_FAULTS = (ValueError, TypeError, KeyError, IndexError, AttributeError)
_Read = TypeVar("_Read")

VALUE_BYTES = 8  # a row has at least, once decoded: a footer says what dictionaries and runs take
FOOTER_THREADS = 16  # footers wait for disks and networks rather than for processors


@dataclass(frozen=True)
class Found:
    """The row groups under a path, about their bytes in memory, and what a filter left out unread: files and rows.

    `prepared` is what `prepare` tells of the files, each different answer once; empty for files that others wrote.
    `unprepared_files` are those of which it tells nothing, beside others.
    `beside` has the columns that were looked for by their prefix, of each file that has some, and its metadata.
    """

    fragments: list[Fragment]
    excluded_files: int = 0
    excluded_rows: int = 0
    nbytes: int = 0
    prepared: tuple[Prepared, ...] = ()
    unprepared_files: int = 0
    beside: Mapping[str, pa.Schema] = field(default_factory=dict)


def find_fragments(
    path: PathLike,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    where: Filter | None = None,
    partition_types: PartitionTypes | None = None,
) -> list[Fragment]:
    """The non-empty row groups of all files under `path`, in (file, row group) order; see `find`."""
    return find(path, columns, optional=optional, where=where, partition_types=partition_types).fragments


def find(
    path: PathLike,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    where: Filter | None = None,
    agreement: SchemaAgreement | None = None,
    partition_types: PartitionTypes | None = None,
    beside: str | None = None,
) -> Found:
    """The non-empty row groups of all files under `path`, in (file, row group) order.

    Every footer is read first, so that a damaged file, a missing column or files that contradict each other are told
    before anything is computed. Columns may stand in the files or in their paths (`model.tables.hive_paths`); those
    that are `optional` may be missing in some files, but not in all. Of the files and row groups that `where` excludes
    by paths and statistics, nothing more is read. An `agreement` holds the types of other paths, with which these files
    must agree, too, as files of one data set do; it takes theirs. `partition_types` declare columns of paths. What
    begins with the prefix `beside` may be there.
    """
    files = find_files(path)
    parts = partitions_of(path, files, partition_types)
    _check_partition_types(partition_types or {}, parts, files)
    if where is not None:
        kept = [not where.excludes(part.inner) for part in parts]
        parts = [part for part, keep in zip(parts, kept, strict=True) if keep]
        excluded, files = kept.count(False), [file for file, keep in zip(files, kept, strict=True) if keep]
    else:
        excluded = 0
    if (table := snapshot_of(path)) is not None:
        optional = [*optional, *table.columns]  # a column that the table has got later is null in older files
    needed = list(dict.fromkeys([*columns, *(where.columns if where is not None else ())]))
    footers = of_each_file(_footer_of, files, parts, repeat(where))
    _check_columns(footers, needed, optional, SchemaAgreement() if agreement is None else agreement)
    fragments = [fragment for footer in footers for fragment in _fragments(footer, needed)]
    rows = sum(sum(footer.rows) for footer in footers)
    if not fragments:
        raise _nothing_left(path, where, excluded=bool(rows or excluded))
    left_out = rows - sum(fragment.rows for fragment in fragments)
    prepared = tuple(dict.fromkeys(footer.prepared for footer in footers if footer.prepared is not None))
    unprepared = sum(footer.prepared is None for footer in footers)
    nbytes = sum(footer.nbytes for footer in footers)
    held = _beside(beside, footers, fragments)
    return Found(fragments, excluded, left_out, nbytes, prepared, unprepared, held)


def _beside(prefix: str | None, footers: Sequence[_Footer], fragments: Sequence[Fragment]) -> dict[str, pa.Schema]:
    """By file, of those that are read: the columns that begin with the prefix, under the metadata of the file."""
    found, read = {}, {fragment.file for fragment in fragments}
    for footer in footers if prefix is not None else ():
        schema = footer.schema.schema
        fields = [each for each in schema if each.name.startswith(prefix)]
        if fields and footer.file in read:
            _refuse_repeated(footer, [each.name for each in fields])
            found[footer.file] = pa.schema(fields, schema.metadata)
    return found


def of_each_file(read: Callable[..., _Read], files: Sequence[str], *arguments: Iterable[Any]) -> list[_Read]:
    """`read` of each file (and what stands at its place in the other arguments), by threads, in the files' order."""
    with ThreadPoolExecutor(FOOTER_THREADS) as threads:
        return list(threads.map(read, files, *arguments))


def _nothing_left(path: PathLike, where: Filter | None, *, excluded: bool) -> DataError:
    if where is not None and excluded:
        return DataError(
            f"must hold at least one row that the filter {where.text!r} keeps, but no file or row group can hold one",
            file=str(path),
        )
    return DataError("must hold at least one row, but all its files are empty", file=str(path))


@dataclass(frozen=True)
class _Footer:
    """What is kept of one file's footer."""

    file: str
    schema: NestedSchema
    rows: list[int]  # of each row group
    partitions: dict[str, PartitionValue]
    kept: set[int] | None  # row groups that a filter may keep; None: all
    nbytes: int  # of all row groups and columns, in memory, about
    prepared: Prepared | None = None

    @property
    def names(self) -> list[str]:
        """The columns the file gives, its path's among them."""
        return list(dict.fromkeys([*self.schema.names, *self.partitions]))

    def has(self, name: str) -> bool:
        """Whether the file or its path gives a column."""
        return name in self.schema or name in self.partitions

    def types(self, names: Sequence[str]) -> dict[str, pa.DataType]:
        """Their types, as far as the file gives them."""
        found = {name: self.schema.type(name) for name in names if name in self.schema}
        return found | {name: _partition_type(self.partitions[name]) for name in names if name in self.partitions}


def _footer_of(file: str, parts: Partitions, where: Filter | None) -> _Footer:
    metadata = read_footer(file)
    schema = NestedSchema(arrow_schema(metadata))
    partitions = parts.beside(schema.schema.names)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    nbytes = sum(max(group.total_byte_size, VALUE_BYTES * group.num_rows) for group in groups)
    prepared = prepared_of(metadata.metadata, file)
    footer = _Footer(file, schema, [group.num_rows for group in groups], partitions, None, nbytes, prepared)
    if where is None or not all(map(footer.has, where.columns)):  # a missing one is told later
        return footer
    _refuse_repeated(footer, where.columns)
    if where.excludes(partitions):
        return replace(footer, kept=set())
    filesystem, inner = resolve(file)
    types = footer.types(where.columns)
    try:
        return replace(footer, kept=kept_row_groups(where, filesystem, inner, types, partitions))
    except DataError as error:
        raise error.located(file=file) from error.__cause__


def _check_columns(
    footers: Sequence[_Footer], needed: Sequence[str], optional: Sequence[str], agreement: SchemaAgreement
) -> None:
    for footer in footers:
        _refuse_repeated(footer, needed)
        for name in needed:
            if not footer.has(name) and name not in optional:
                raise _missing(footer, name)
        agreement.add(footer.types(needed), footer.file, in_path=footer.partitions)
    for name in needed:
        if footers and name not in agreement.names:
            raise _missing(footers[0], name)


def _check_partition_types(types: PartitionTypes, parts: Sequence[Partitions], files: Sequence[str]) -> None:
    found = dict.fromkeys(name for part in parts for name in (*part.inner, *part.outer))
    for name in types:
        if name not in found:
            known = f"; they give {', '.join(found)}" if found else ""
            raise DataError(
                f"a type is declared for this column of the paths, but none gives it{did_you_mean(name, list(found))}"
                f"{known}",
                file=files[0],
                column=name,
            )


def _missing(footer: _Footer, name: str) -> DataError:
    return DataError(
        f"is not in the file{did_you_mean(name, footer.names)}; its columns are {listed(footer.names)}",
        file=footer.file,
        column=name,
    )


def _refuse_repeated(footer: _Footer, needed: Sequence[str]) -> None:
    for name in needed:
        if footer.schema.schema.names.count(name) > 1:
            raise DataError(
                "stands more than once in the file; write it again with a name for each", file=footer.file, column=name
            )


def _fragments(footer: _Footer, needed: Sequence[str]) -> Iterator[Fragment]:
    given = tuple(footer.partitions.items())
    absent = tuple(name for name in needed if not footer.has(name))
    first = 0
    for group, rows in enumerate(footer.rows):
        if rows and (footer.kept is None or group in footer.kept):
            yield Fragment(footer.file, group, rows, first, given, absent)
        first += rows


def read_footer(file: str, columns: Sequence[str] = ()) -> pq.FileMetaData:
    """A file's metadata, after checking that it is Parquet and has `columns`."""
    import pyarrow.parquet as pq

    filesystem, inner = resolve(file)
    try:
        metadata = pq.read_metadata(inner, filesystem=filesystem)
        schema = NestedSchema(arrow_schema(metadata))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"must be a whole Parquet file, but its footer cannot be read ({first_line(error)}); write it again",
            file=file,
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read: {why(file, error)}", file=file) from error
    except _EXTENSION_FAULTS as error:
        raise _strange_extension(file) from error
    for name in columns:
        if name not in schema:
            raise _missing(_Footer(file, schema, [], {}, None, 0), name)
    return metadata


def read_fragment(fragment: Fragment, columns: Sequence[str]) -> pa.Table:
    """One row group's columns, those from its path and absent ones (nulls) among them; names it has not are left out.

    DataError when its pages cannot be decoded.
    """
    return with_path_columns(_read(fragment, columns_in_file(fragment, columns)), fragment, columns)


def pieces(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """(first row, rows) of the pieces of a table: one, or as many as a row group had to be read in.

    No column of a piece holds more than 2 GiB of text, which is what Arrow's functions take of it at once.
    """
    first = 0
    for batch in table.to_batches() if any(column.num_chunks > 1 for column in table.columns) else ():
        yield first, pa.Table.from_batches([batch])
        first += batch.num_rows
    if not first:
        yield 0, table


def read_whole_fragment(fragment: Fragment, *, as_stored: bool = False) -> pa.Table:
    """One row group with all columns of the file, and those from its path. DataError as `read_fragment`.

    Fields of structs are columns; or with `as_stored` the structs themselves are.
    """
    table = _read(fragment, None, as_stored=as_stored)
    given = [name for name, _ in fragment.partitions]
    kept = [place for place, name in enumerate(table.column_names) if name not in given]
    return with_path_columns(table.select(kept), fragment, given)


def columns_in_file(fragment: Fragment, columns: Sequence[str]) -> list[str]:
    """Those of the columns that are read from the fragment's file, each once."""
    elsewhere = {*dict(fragment.partitions), *fragment.absent}
    return [name for name in dict.fromkeys(columns) if name not in elsewhere]


def with_path_columns(table: pa.Table, fragment: Fragment, columns: Sequence[str]) -> pa.Table:
    """Rows of a fragment with those of the columns that stand in its path, or are absent, beside what was read."""
    given = dict(fragment.partitions)
    for name in dict.fromkeys(columns):
        if name in given or name in fragment.absent:
            value = given.get(name)
            rows = table.num_rows if table.num_columns else fragment.rows
            column = pa.nulls(rows) if value is None else pa.repeat(pa.scalar(value, _partition_type(value)), rows)
            table = table.append_column(name, column) if table.num_columns else pa.table({name: column})
    return table


def _read(fragment: Fragment, columns: Sequence[str] | None, *, as_stored: bool = False) -> pa.Table:
    try:
        with open_parquet(fragment.file) as reader:
            schema = NestedSchema(reader.schema_arrow)
            paths = None if columns is None else leaf_paths(reader.metadata, schema, columns)
            whole = _whole(reader, fragment, paths)
            table = _in_batches(reader, fragment, paths) if whole is None else whole
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise undecodable(fragment, error) from error
    except _EXTENSION_FAULTS as error:
        raise _strange_extension(fragment.file) from error
    if as_stored:
        return table
    try:
        found = schema.all_of(table) if columns is None else schema.table(table, columns)
    except DataError as error:
        raise error.located(file=fragment.file, first_row=first_row(fragment)) from error
    return found if whole is not None else _long(found)


def leaf_paths(metadata: pq.FileMetaData, schema: NestedSchema, columns: Sequence[str]) -> list[str]:
    """The Parquet columns that hold the columns, as pyarrow names them: fields that nobody asked for are not read."""
    numbers = [number for name in columns if name in schema for number in schema.leaves(name)]
    return [metadata.schema.column(number).path for number in dict.fromkeys(numbers)]


def _whole(reader: pq.ParquetFile, fragment: Fragment, paths: list[str] | None) -> pa.Table | None:
    """A row group; None where it cannot be read at once."""
    try:
        return reader.read_row_group(fragment.row_group, columns=paths, use_threads=False)
    except pa.ArrowNotImplementedError:
        return None


def _in_batches(reader: pq.ParquetFile, fragment: Fragment, paths: list[str] | None) -> pa.Table:
    """A row group with more text in lists than one Arrow array with 32-bit offsets can hold."""
    batches = list(batches_of(reader, fragment, paths, -(-fragment.rows // 4)))
    return pa.Table.from_batches(batches)


def _long(table: pa.Table) -> pa.Table:
    """With 64-bit offsets, so that rows can be taken from chunks that no other array could hold together."""
    return pa.table(
        {name: table.column(name).cast(large(table.schema.field(name).type)) for name in table.column_names}
    )


def batches_of(
    reader: pq.ParquetFile, fragment: Fragment, paths: list[str] | None, rows: int
) -> Iterator[pa.RecordBatch]:
    """A row group in batches of at most `rows`; of fewer where one Arrow array cannot hold so much text in lists.

    That is 2 GiB, and how much a page decodes to is written nowhere.
    """
    done = 0
    while done < fragment.rows:
        seen = 0
        try:
            for batch in reader.iter_batches(rows, row_groups=[fragment.row_group], columns=paths, use_threads=False):
                known, seen = max(0, done - seen), seen + batch.num_rows
                if known < batch.num_rows:
                    done = seen
                    yield batch.slice(known)
            return
        except pa.ArrowNotImplementedError:
            if rows == 1:
                raise
            rows = -(-rows // 4)


def undecodable(fragment: Fragment, error: BaseException) -> DataError:
    """What to say of a row group that a library could not read: a DecodeError where it is damaged."""
    if is_refused(fragment.file, error):
        return DecodeError(
            f"row group {fragment.row_group} cannot be read: {why(fragment.file, error)}", file=fragment.file
        )
    return unsupported(fragment, error) or not_decoded(fragment, first_line(error))


def not_decoded(fragment: Fragment, reason: str) -> DecodeError:
    """What to say of a row group whose pages give no rows."""
    return DecodeError(
        f"row group {fragment.row_group} cannot be decoded ({reason}); write the file again", file=fragment.file
    )


def _strange_extension(file: str) -> DataError:
    """Whoever registered the type has refused it: Ray its tensors, say, whose shape is a pickle."""
    return DataError(
        "its schema names an Arrow extension type that cannot be read (nothing in a file is ever run); write it again "
        "with plain types",
        file=file,
    )


def is_stored(fragment: Fragment) -> bool:
    """Whether the bytes of a row group can be fetched: if so and it cannot be decoded, it is damaged for good."""
    import pyarrow.parquet as pq

    filesystem, inner = resolve(fragment.file)
    try:
        with filesystem.open_input_file(inner) as stream:
            group = pq.read_metadata(stream).row_group(fragment.row_group)
            for number in range(group.num_columns):
                chunk = group.column(number)
                start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
                stream.read_at(min(chunk.total_compressed_size, stream.size()), start)
    except (pa.ArrowException, OSError):
        return False
    return True


def _partition_type(value: PartitionValue) -> pa.DataType:
    if value is None:
        return pa.null()
    return {int: pa.int64(), float: pa.float64(), str: pa.string()}[type(value)]


def first_row(fragment: Fragment) -> int:
    """Number in its file of a fragment's first row; errors count from the file's start."""
    if fragment.first_row is not None:
        return fragment.first_row
    metadata = read_footer(fragment.file)
    return sum(metadata.row_group(group).num_rows for group in range(fragment.row_group))
