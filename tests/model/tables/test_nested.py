"""Fields of structs as columns: found by their paths, read alone, with the nulls and lists that are around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.nested import NestedSchema, with_fields
from model.tables.parquet import find, find_fragments, read_fragment, read_whole_fragment
from model.tables.slices import empty_slices, read_footers, read_slices, schemas_of, slice_row_groups

HITS = [[{"item": "a", "price": 1.0}, {"item": None, "price": 2.0}], None, [], [{"item": "b", "price": None}, None]]
VECTOR = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)
PAIR = pa.list_(pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int64()))]), 2)


def dense(*values: float) -> dict[str, Any]:
    return {"type": 1, "size": None, "indices": None, "values": list(values)}


SPARSE = {"type": 0, "size": 9, "indices": [3], "values": [1.0]}
TABLE = pa.table(
    {
        "row": [0, 1, 2, 3],
        "events": HITS,
        "seq": [
            {"item": ["a"], "inner": {"deep": 1}},
            None,
            {"item": None, "inner": None},
            {"item": [], "inner": {"deep": 2}},
        ],
        "google": [{"list": [{"element": 1.0}, {"element": None}]}, None, {"list": None}, {"list": []}],
        "hits": [{"list": [{"element": {"item": "a"}}, {"element": None}]}, None, {"list": None}, {"list": []}],
        "spark": pa.array([dense(1, 2), None, dense(3, 4), dense()], VECTOR),
        "steps": pa.array([[dense(1, 2), dense(3, 4)], None, [], [None]], pa.list_(VECTOR)),
        "pair": pa.array([[{"a": 1, "b": [1]}, {"a": 2, "b": None}], None, [None, {"a": 4, "b": []}], None], PAIR),
        "seq.item": ["its", "own", "very", "name"],
    }
)
COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "row": ("int64", [0, 1, 2, 3]),
    "events.item": ("list<item: string>", [["a", None], None, [], ["b", None]]),
    "events.price": ("list<item: double>", [[1.0, 2.0], None, [], [None, None]]),
    "seq.inner.deep": ("int64", [1, None, None, 2]),
    "google": ("list<item: double>", [[1.0, None], None, None, []]),
    "hits.item": ("list<item: string>", [["a", None], None, None, []]),
    "spark": ("list<element: double>", [[1.0, 2.0], None, [3.0, 4.0], []]),
    "steps": ("list<item: list<element: double>>", [[[1.0, 2.0], [3.0, 4.0]], None, [], [None]]),
    "pair.a": ("fixed_size_list<item: int64>[2]", [[1, 2], None, [None, 4], None]),
    "pair.b": (
        "fixed_size_list<item: list<element: int64>>[2]",
        [[[1], None], None, [None, []], None],
    ),
    "seq.item": ("string", ["its", "own", "very", "name"]),
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def test_a_schema_names_fields_by_their_paths_and_a_column_of_that_very_name_comes_first(path: str) -> None:
    schema = NestedSchema(pq.read_schema(path))
    assert schema.names == list(COLUMNS)
    assert {name: str(schema.type(name)) for name in schema.names} == {
        name: kind for name, (kind, _) in COLUMNS.items()
    }
    assert "events" in schema
    assert "events.list" not in schema
    assert "google.list" not in schema


@pytest.mark.parametrize("name", COLUMNS)
def test_a_field_is_read_alone_with_its_lists_and_nulls(path: str, name: str) -> None:
    (fragment,) = find_fragments(path, [name])
    column = read_fragment(fragment, [name]).column(name)
    column.validate(full=True)
    assert (str(column.type), column.to_pylist()) == COLUMNS[name]
    assert with_fields(TABLE, [name]).slice(1).column(name).to_pylist() == COLUMNS[name][1][1:]
    assert read_whole_fragment(fragment).column(name).to_pylist() == COLUMNS[name][1]


def test_all_fields_are_read_in_slices_too(path: str) -> None:
    fragments = find_fragments(path, list(COLUMNS))
    footers = read_footers([path])
    (block,) = slice_row_groups(fragments, footers, list(COLUMNS), row_bytes=1 << 23, step_bytes=0)
    tables = [table for _, table in read_slices(block, list(COLUMNS))]
    assert len(tables) == 4
    found = {name: [value for table in tables for value in table.column(name).to_pylist()] for name in COLUMNS}
    assert found == {name: values for name, (_, values) in COLUMNS.items()}
    assert [table.schema for _, table in empty_slices(block, list(COLUMNS))] == [table.schema for table in tables]
    assert schemas_of(fragments, footers, ["events.item"])[path].field("events.item").type == pa.list_(pa.string())


def test_a_struct_is_carried_along_under_its_own_name(path: str) -> None:
    (fragment,) = find_fragments(path, ["events", "events.item"])
    assert read_fragment(fragment, ["events", "events.item"]).column("events").to_pylist() == HITS
    assert read_whole_fragment(fragment, as_stored=True).equals(TABLE)


def test_only_the_fields_that_are_asked_for_are_read(tmp_path: Path) -> None:
    """The bytes of the others are no pages at all."""
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"events": HITS, "events.item.more": [1, 2, 3, 4]}), file, compression="none")
    group = pq.read_metadata(file).row_group(0)
    places = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    content = bytearray(file.read_bytes())
    for column in ("events.list.element.price", "events.item.more"):
        chunk = places[column]
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(content)
    (fragment,) = find_fragments(file, ["events.item"])
    assert read_fragment(fragment, ["events.item"]).column("events.item").to_pylist() == COLUMNS["events.item"][1]
    with pytest.raises(DataError, match="cannot be decoded"):
        read_fragment(fragment, ["events.price"])


def test_a_missing_field_is_told_with_the_paths_there_are(path: str) -> None:
    with pytest.raises(DataError) as raised:
        find(path, ["events.itme"])
    assert str(raised.value) == (
        f"{path}, column 'events.itme': is not in the file; did you mean events.item?; its columns are "
        f"{', '.join(COLUMNS)}"
    )


def test_files_agree_on_the_type_of_a_field_however_it_is_stored(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [[1.0]]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [{"list": [{"element": 2.0}]}]}), tmp_path / "b.parquet")
    tables = [read_fragment(fragment, ["x"]) for fragment in find_fragments(tmp_path, ["x"])]
    assert [table.column("x").to_pylist() for table in tables] == [[[1.0]], [[2.0]]]
    pq.write_table(pa.table({"x": [{"list": [{"element": "2"}]}]}), tmp_path / "b.parquet")
    with pytest.raises(DataError) as raised:
        find(tmp_path, ["x"])
    assert "here it is list<item: string> and in" in str(raised.value)


@pytest.mark.parametrize(
    ("vectors", "row"), [([dense(1), dense(2), SPARSE], 2), ([[dense(1)], [], [dense(2), SPARSE]], 2)]
)
def test_a_sparse_vector_is_refused_with_its_row(tmp_path: Path, vectors: list[Any], row: int) -> None:
    kind = VECTOR if isinstance(vectors[0], dict) else pa.list_(VECTOR)
    pq.write_table(pa.table({"x": pa.array(vectors, kind)}), tmp_path / "a.parquet")
    (fragment,) = find_fragments(tmp_path, ["x"])
    with pytest.raises(DataError) as raised:
        read_fragment(fragment, ["x"])
    assert str(raised.value) == (
        f"{tmp_path}/a.parquet, row {row}, column 'x': must hold dense vectors, but here is a sparse one of Spark ML; "
        "write the column again with pyspark.ml.functions.vector_to_array"
    )
    assert read_whole_fragment(fragment).column("x").type == kind  # `inspect` tells of all other columns


@pytest.mark.parametrize("text", ["`seq.inner.deep` >= 2", "seq.inner.deep >= 2"])
def test_a_filter_reads_a_field(tmp_path: Path, text: str) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=2)
    found = find(tmp_path, ["events.item"], where=Filter(text))
    assert found.fragments[-1].row_group == 1
    assert read_fragment(found.fragments[-1], ["seq.inner.deep"]).column("seq.inner.deep").to_pylist() == [None, 2]


VALUES = st.none() | st.fixed_dictionaries({"a": st.none() | st.integers(-9, 9), "b": st.none() | st.text(max_size=2)})


@given(st.lists(st.none() | st.lists(VALUES, max_size=4), min_size=1, max_size=8), st.data())
def test_a_field_of_any_lists_is_as_python_takes_it(lists: list[Any], data: Any) -> None:
    struct = pa.struct([("a", pa.int64()), ("b", pa.string())])
    kind = data.draw(st.sampled_from([pa.list_(struct), pa.large_list(struct)]))
    start = data.draw(st.integers(0, len(lists) - 1))
    table = pa.table({"x": pa.chunked_array([pa.array(lists, kind).slice(start), pa.array(lists, kind)])})
    column = with_fields(table, ["x.b"]).column("x.b")
    column.validate(full=True)
    expected = [None if row is None else [each and each["b"] for each in row] for row in [*lists[start:], *lists]]
    assert column.to_pylist() == expected
    assert column.type == NestedSchema(table.schema).type("x.b")


@pytest.mark.parametrize("with_ray", [False, True])
def test_a_tensor_of_ray_is_steps_of_values_with_its_type_and_without(tmp_path: Path, with_ray: bool) -> None:
    if with_ray:
        import ray.data  # noqa: F401 - registers the type
    told = {"ARROW:extension:name": "ray.data.arrow_tensor_v2", "ARROW:extension:metadata": "[2, 3]"}
    rows = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], None, [7.0] * 6]
    path, kind = tmp_path / "a.parquet", pa.large_list(pa.float64())
    pq.write_table(pa.table([pa.array(rows, kind)], schema=pa.schema([pa.field("x", kind, metadata=told)])), path)
    (fragment,) = find_fragments(path, ["x"])
    column = read_fragment(fragment, ["x"]).column("x")
    assert column.to_pylist() == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], None, [[7.0] * 3] * 2]
    assert read_whole_fragment(fragment).column("x").type == column.type
    if not with_ray:
        rows[2] = [7.0] * 5
        pq.write_table(pa.table([pa.array(rows, kind)], schema=pa.schema([pa.field("x", kind, metadata=told)])), path)
        with pytest.raises(DataError) as raised:
            read_fragment(fragment, ["x"])
        problem = "must hold tensors of [2, 3] as its metadata say, but some have other sizes"
        assert str(raised.value) == f"{path}, column 'x': {problem}"


# What is whole but cannot be read ---------------------------------------------------------------------------------


def with_codec(path: Path, number: int, columns: dict[str, Any]) -> Fragment:
    """A file whose footer says that its column x is compressed with the codec of a number (3 is LZO, 9 is none)."""
    pq.write_table(pa.table(columns), path, compression="snappy")
    place = b"\x18\x01x\x15"  # the path ["x"], and then the codec as a zigzag integer
    content = path.read_bytes()
    assert content.count(place + b"\x02") == 1
    path.write_bytes(content.replace(place + b"\x02", place + bytes([2 * number])))
    return Fragment(str(path), 0, 2)


@pytest.mark.parametrize(("number", "told"), [(3, "LZO"), (9, "codec number 9")])
def test_a_codec_that_nobody_reads_is_named_with_its_column(tmp_path: Path, number: int, told: str) -> None:
    fragment = with_codec(tmp_path / "a.parquet", number, {"y": [1, 2], "x": [1.0, 2.0]})
    with pytest.raises(DataError) as raised:
        read_fragment(fragment, ["y", "x"])
    assert type(raised.value) is DataError  # not damaged: `skip` does not leave it out
    assert str(raised.value) == (
        f"{tmp_path}/a.parquet, column 'x': row group 0 is compressed with {told}, which is not supported; write the "
        "file again with zstd or snappy"
    )
    assert read_fragment(fragment, ["y"]).column("y").to_pylist() == [1, 2]


def test_an_encoding_that_nobody_reads_is_named_with_its_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    delta = {"x": "DELTA_BINARY_PACKED"}
    pq.write_table(pa.table({"x": [1, 2]}), path, compression="none", use_dictionary=False, column_encoding=delta)
    page, footer = b"\x15\x04\x15\n\x15\x06", b"\x19%\x06\n\x19"
    content = path.read_bytes()
    assert content.count(page) == content.count(footer) == 1
    path.write_bytes(content.replace(page, b"\x15\x04\x15\x28\x15\x06").replace(footer, b"\x19%\x06\x28\x19"))
    with pytest.raises(DataError) as raised:
        read_fragment(Fragment(str(path), 0, 2), ["x"])
    assert type(raised.value) is DataError
    assert str(raised.value) == (
        f"{path}, column 'x': row group 0 is encoded with UNKNOWN, which is not supported; write the file again with "
        "plain or dictionary encoding, and zstd or snappy"
    )


# Lists without a group between them and their values, as older writers leave them ----------------------------------


def required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


HIT = pa.struct([required("item", pa.int32()), required("p", pa.int32())])
GROUP = b"5\x00\x18\x01x\x15\x02\x15\x06L<\x00\x00\x00"  # required group x (LIST), of one field
LIST = b"5\x04\x18\x04list\x15\x02\x00"
INTEGER = b"\x15\x02%\x00\x18\x07element\x00"
STRUCT = b"5\x00\x18\x07element\x15\x04\x00"
# What stands in the footer of a file with three levels, and what in one with two: the pages are the same.
LEGACY: dict[str, tuple[pa.DataType, list[tuple[bytes, bytes]], dict[str, list[Any]]]] = {
    "repeated int32 x": (
        pa.int32(),
        [
            (b"\x19L5", b"\x19\x2c5"),
            (GROUP + LIST + INTEGER, b"\x15\x02%\x04\x18\x01x\x00"),
            (b"\x198\x01x\x04list\x07element", b"\x19\x18\x01x"),
        ],
        {"x": [[1, 2], [], [3]]},
    ),
    "group x (LIST) { repeated int32 array }": (
        pa.int32(),
        [
            (b"\x19L5", b"\x19\x3c5"),
            (LIST + INTEGER, b"\x15\x02%\x04\x18\x05array\x00"),
            (b"\x198\x01x\x04list\x07element", b"\x19\x28\x01x\x05array"),
        ],
        {"x": [[1, 2], [], [3]]},
    ),
    "repeated group x { item, p }": (
        HIT,
        [
            (b"\x19l5", b"\x19\x4c5"),
            (GROUP + LIST + STRUCT, b"5\x04\x18\x01x\x15\x04\x00"),
            (b"\x19H\x01x\x04list\x07element", b"\x19\x28\x01x"),
        ],
        {"x.item": [[1, 3], [], [5]], "x.p": [[2, 4], [], [6]]},
    ),
    "group x (LIST) { repeated group array { item, p } }": (
        HIT,
        [
            (b"\x19l5", b"\x19\x5c5"),
            (LIST + STRUCT, b"5\x04\x18\x05array\x15\x04\x00"),
            (b"\x19H\x01x\x04list\x07element", b"\x19\x38\x01x\x05array"),
        ],
        {"x.item": [[1, 3], [], [5]], "x.p": [[2, 4], [], [6]]},
    ),
}


@pytest.mark.parametrize("schema", LEGACY)
def test_a_legacy_list_of_two_levels_is_a_list(tmp_path: Path, schema: str) -> None:
    kind, changes, columns = LEGACY[schema]
    hits = [[{"item": 1, "p": 2}, {"item": 3, "p": 4}], [], [{"item": 5, "p": 6}]]
    values = hits if kind == HIT else [[1, 2], [], [3]]
    field = required("x", pa.list_(required("element", kind)))
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table([pa.array(values, field.type)], schema=pa.schema([field])),
        path, store_schema=False, compression="none", use_dictionary=False,
    )  # fmt: skip
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    pages, footer = content[: -8 - size], content[-8 - size : -8]
    for before, after in changes:
        assert before in footer
        footer = footer.replace(before, after)
    path.write_bytes(pages + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert "list {" not in str(pq.ParquetFile(path).schema)
    assert NestedSchema(pq.read_schema(path)).names == list(columns)
    for name, expected in columns.items():
        (fragment,) = find_fragments(path, [name])
        assert read_fragment(fragment, [name]).column(name).to_pylist() == expected
    (fragment,) = find_fragments(path, list(columns))
    assert read_whole_fragment(fragment).to_pydict() == columns
