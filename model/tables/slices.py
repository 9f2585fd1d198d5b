"""Row groups as blocks: read slice by slice, so that memory is bounded however large a row group is.

Cut in the driver from the footers, read in tasks: the same files give the same slices anywhere. Knows no Ray, no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import DataError
from model.storage import resolve, stem
from model.tables.fragments import Fragment
from model.tables.nested import NestedSchema
from model.tables.parquet import batches_of, columns_in_file, leaf_paths, not_decoded, of_each_file, undecodable
from model.tables.parquet_file import arrow_schema, open_parquet

SLICE_BYTES = 16 << 20  # of decoded values and of what is computed from them; a task holds a few times as much
MOST_SLICE_ROWS = 1 << 16
STREAM_BYTES = 1 << 20  # read at once from a column; without it pyarrow reads a row group's whole column


@dataclass(frozen=True)
class Footer:
    """What a file's footer says, and a digest of it: other content has other statistics, sizes or places."""

    schema: pa.Schema
    group_rows: tuple[int, ...]
    group_columns: tuple[Mapping[str, tuple[int, int]], ...]  # by column: bytes, and values of its longest leaf
    digest: str


@dataclass(frozen=True)
class SlicedRowGroup:
    """A row group, the name of what is made of it, and its slices: `slice_rows` rows each, numbered through all blocks.

    `first_row` is the place in the file of its row 0.
    """

    fragment: Fragment
    name: str
    first_row: int
    slice_rows: int
    first_slice: int

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return -(-self.fragment.rows // self.slice_rows)

    def rows_of(self, number: int) -> int:
        """Rows of the slice with this number."""
        return min(self.slice_rows, self.fragment.rows - (number - self.first_slice) * self.slice_rows)

    def row_in_file(self, number: int, row: int = 0) -> int:
        """Place in the file of a row of the slice with this number."""
        return self.first_row + (number - self.first_slice) * self.slice_rows + row

    def slice_name(self, number: int) -> str:
        """A file's name for what belongs to one slice."""
        return f"{stem(self.name)}-{number - self.first_slice:05d}.parquet"


def read_footers(files: Sequence[str]) -> dict[str, Footer]:
    """The footers of Parquet files, which were found to be whole before."""
    distinct = list(dict.fromkeys(files))
    return dict(zip(distinct, of_each_file(_read_footer, distinct), strict=True))


def _read_footer(file: str) -> Footer:
    filesystem, inner = resolve(file)
    with filesystem.open_input_file(inner) as stream:
        metadata = pq.read_metadata(stream)
        length = int.from_bytes(stream.read_at(4, stream.size() - 8), "little") + 8
        digest = hashlib.sha256(stream.read_at(length, stream.size() - length)).hexdigest()
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    schema = arrow_schema(metadata)
    columns = NestedSchema(schema)
    sizes = tuple(_column_sizes(group, columns) for group in groups)
    return Footer(schema, tuple(group.num_rows for group in groups), sizes, digest)


def _column_sizes(group: pq.RowGroupMetaData, columns: NestedSchema) -> dict[str, tuple[int, int]]:
    """By column: bytes that its values take when decoded, at most, and the values of its longest leaf."""
    leaves = [group.column(number) for number in range(group.num_columns)]
    # Dictionaries and runs are decoded: eight bytes a value on top bound what numbers become.
    sizes = [leaf.total_uncompressed_size + 8 * leaf.num_values for leaf in leaves]
    found = {name: columns.leaves(name) for name in columns}
    return {
        name: (sum(sizes[place] for place in places), max((leaves[place].num_values for place in places), default=0))
        for name, places in found.items()
    }


def slice_row_groups(
    fragments: Sequence[Fragment],
    footers: Mapping[str, Footer],
    columns: Sequence[str],
    *,
    row_bytes: int,
    step_bytes: int,
) -> tuple[SlicedRowGroup, ...]:
    """Blocks of the fragments. `row_bytes` and `step_bytes` are what is computed for each row and each of its steps."""
    blocks, slices = [], 0
    for fragment in fragments:
        footer = footers[fragment.file]
        sizes = [footer.group_columns[fragment.row_group].get(name, (0, 0)) for name in columns]
        decoded = sum(size for size, _ in sizes) + step_bytes * max((values for _, values in sizes), default=0)
        per_row = decoded / fragment.rows + row_bytes
        slice_rows = max(1, min(MOST_SLICE_ROWS, int(SLICE_BYTES / max(per_row, 1))))
        first_row = sum(footer.group_rows[: fragment.row_group])
        blocks.append(SlicedRowGroup(fragment, output_name(fragment), first_row, slice_rows, slices))
        slices += blocks[-1].slices
    return tuple(blocks)


def output_name(fragment: Fragment) -> str:
    """An output file's name for a fragment: the input's stem, a short hash of its path, the row group."""
    digest = hashlib.sha256(fragment.file.encode()).hexdigest()[:8]
    return f"{stem(fragment.file)}-{digest}-{fragment.row_group:05d}.parquet"


def read_slices(block: SlicedRowGroup, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """(number, table) of each slice of a block. DecodeError, after some slices, where the pages cannot be decoded."""
    number, held, rows = block.first_slice, [], 0
    for table in _pieces(block, columns):
        held.append(table)
        rows += table.num_rows
        while rows >= block.rows_of(number):
            whole = pa.concat_tables(held)
            wanted = block.rows_of(number)
            yield number, whole.slice(0, wanted)
            held, rows, number = [whole.slice(wanted)], rows - wanted, number + 1
            if number == block.first_slice + block.slices:
                return
    raise not_decoded(block.fragment, f"its pages hold fewer rows than the {block.fragment.rows} of the footer")


def empty_slices(block: SlicedRowGroup, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """What `read_slices` yields, without rows: of a block whose pages are damaged there is only the footer."""
    with open_parquet(block.fragment.file) as file:
        schema = file.schema_arrow
    names = list(dict.fromkeys(columns))
    table = NestedSchema(schema).table(schema.empty_table(), columns_in_file(block.fragment, names))
    for number in range(block.first_slice, block.first_slice + block.slices):
        yield number, _completed(table, block.fragment, names)


def schemas_of(
    fragments: Sequence[Fragment], footers: Mapping[str, Footer], fields: Sequence[str] = ()
) -> dict[str, pa.Schema]:
    """The columns of each file: those in its path, those in itself that the path does not name, and nulls it lacks.

    Among them are those of the `fields` of structs that the file has, as columns of their own.
    """
    schemas = {}
    for fragment in fragments:
        in_path = [pa.field(name, pa.scalar(value).type) for name, value in fragment.partitions]
        columns = NestedSchema(footers[fragment.file].schema)
        names = [name for name in columns.schema.names if name not in dict(fragment.partitions)]
        stored = [pa.field(name, columns.type(name)) for name in names]
        absent = [pa.field(name, pa.null()) for name in fragment.absent]
        taken = {*names, *dict(fragment.partitions)}
        beside = [pa.field(name, columns.type(name)) for name in fields if name in columns and name not in taken]
        schemas[fragment.file] = pa.schema([*stored, *in_path, *beside, *absent])
    return schemas


def _completed(table: pa.Table, fragment: Fragment, names: Sequence[str]) -> pa.Table:
    """With the columns that stand in the file's path, and nulls for those that it does not have."""
    for name, value in [*fragment.partitions, *((name, None) for name in fragment.absent)]:
        if name in names:
            table = table.append_column(name, pa.repeat(pa.scalar(value), table.num_rows))
    return table.select(names)


def _pieces(block: SlicedRowGroup, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The block's rows in pieces of at most `slice_rows`, as pyarrow happens to cut them."""
    fragment = block.fragment
    names = list(dict.fromkeys(columns))
    stored, done = columns_in_file(fragment, names), 0
    try:
        with open_parquet(fragment.file, buffer_size=STREAM_BYTES) as reader:
            schema = NestedSchema(reader.schema_arrow)
            paths = leaf_paths(reader.metadata, schema, stored)
            for batch in batches_of(reader, fragment, paths, block.slice_rows):
                yield _completed(schema.table(pa.table(batch), stored), fragment, names)
                done += batch.num_rows
    except DataError as error:
        raise error.located(file=fragment.file, first_row=block.first_row + done) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise undecodable(fragment, error) from error
