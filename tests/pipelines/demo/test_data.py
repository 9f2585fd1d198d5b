"""The demo's data set: what a row is, that nothing is lost or doubled, and that a second write is safe."""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from model.errors import ConfigError, ResourceError
from pipelines.demo.data import (
    ALPHABET,
    SCHEMA,
    DemoData,
    choose_files,
    cut_pieces,
    library_files,
    read_source,
    symbol_ids,
    write_demo_data,
)

SPLITS = ("train", "validation", "test")
MAX_BYTES = 120_000
MAX_LENGTH = 200

MODULE = '''\
"""A module."""

import functools

LIMIT = 3


# Said above the decorator.
@functools.cache
def first(x):
    # inside
    return x

    # indented, so still the function's


# A heading.

# Another.
class Second:
    pass
TAIL = """
# not a comment
def not_a_function(): ...
"""

# Above the last.
async def third(): ...
# Of nobody's: it stays with the block before it.
'''


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("demo") / "data", max_bytes=MAX_BYTES, max_length=MAX_LENGTH)


@pytest.fixture
def small_library(tmp_path: Path) -> Path:
    """Thirty modules of about 1 kB, half of them in a package; some files that are no part of a corpus."""
    library = tmp_path / "library"
    for number in range(30):
        _put(library, f"{'tools/' if number % 2 else ''}m{number:02d}.py", f"x = {number}\n" * (100 + number))
    for name in (
        "test/t.py",
        "tools/tests/t.py",
        "site-packages/p.py",
        "encodings/cp1.py",
        "tools/__pycache__/c.py",
    ):
        _put(library, name, "x = 0\n")
    _put(library, "empty.py", "")
    (library / "gone.py").symlink_to("nowhere.py")
    return library


def _put(library: Path, name: str, text: str) -> None:
    file = library / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())


def _rows(data: DemoData) -> dict[str, list[dict[str, Any]]]:
    return {split: pq.read_table(getattr(data, split).path).to_pylist() for split in SPLITS}


def _blocks(text: str, max_length: int = 10_000) -> list[str]:
    return [text[piece.start : piece.end] for piece in cut_pieces(text, max_length)]


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# --- the rows


def test_the_alphabet_is_printable_ascii_newline_tab_and_other() -> None:
    assert len(ALPHABET) == len(set(ALPHABET)) == 98
    assert set(ALPHABET) == {chr(code) for code in range(0x20, 0x7F)} | {"\n", "\t", "\ufffd"}


def test_a_row_is_a_definition_with_what_stands_above_it_or_the_code_between() -> None:
    assert _blocks(MODULE) == [
        '"""A module."""\n\nimport functools\n\nLIMIT = 3\n\n\n',
        "# Said above the decorator.\n@functools.cache\ndef first(x):\n    # inside\n    return x\n\n"
        "    # indented, so still the function's\n\n\n",
        "# A heading.\n\n# Another.\nclass Second:\n    pass\n",
        'TAIL = """\n# not a comment\ndef not_a_function(): ...\n"""\n\n',
        "# Above the last.\nasync def third(): ...\n# Of nobody's: it stays with the block before it.\n",
    ]


def test_a_long_block_is_cut_after_its_last_line_that_fits_and_a_long_line_at_the_cap() -> None:
    text = "def f():\n    if x:\n        return 1\n    y\n" + "z = " + "9" * 20 + "\n"
    pieces = cut_pieces(text, 18)
    assert [text[piece.start : piece.end] for piece in pieces] == [
        "def f():\n",
        "    if x:\n",
        "        return 1\n",
        "    y\n",
        "z = 99999999999999",
        "999999\n",
    ]
    # The block's start, then the line before each cut; the module's own statement starts a block again.
    assert [piece.indent_width for piece in pieces] == [0, 0, 4, 8, 0, 0]


def test_indent_width_is_read_off_the_text_before_a_row_and_never_off_its_labels() -> None:
    before, one, other = "def f():\n\tif x:\n\n", "\t\t\tpass\n", "return\n"
    widths = [
        {piece.start: piece.indent_width for piece in cut_pieces(before + after, len(before))}[len(before)]
        for after in (one, "\t" + other)
    ]
    assert widths == [8, 8]


@pytest.mark.parametrize("text", ["def broken(:\n  pass\nclass A:\n", "x = '\0'\ndef f(): ...\n"])
def test_a_file_python_cannot_parse_is_one_block(text: str) -> None:
    assert _blocks(text) == [text]


@pytest.mark.parametrize("max_length", [1, 2, 7, 512])
def test_pieces_cover_the_text_from_end_to_end(max_length: int) -> None:
    pieces = cut_pieces(MODULE, max_length)
    assert "".join(_blocks(MODULE, max_length)) == MODULE
    assert [piece.end for piece in pieces[:-1]] == [piece.start for piece in pieces[1:]]
    assert all(0 < piece.end - piece.start <= max_length for piece in pieces)


def test_symbols_outside_the_alphabet_are_other() -> None:
    ids = symbol_ids("a\tb\n\r\f\0\x7f\x80é€𝄞~ ")
    assert "".join(ALPHABET[i] for i in ids) == "a\tb\n" + "\ufffd" * 8 + "~ "


def test_line_ends_and_a_byte_order_mark_are_taken_off(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\xe9\n")
    assert read_source(file) == "a\nb\nc\n\ufffd\n"


# --- the corpus


def test_the_files_hold_the_documented_columns(corpus: DemoData) -> None:
    for split in SPLITS:
        for file in getattr(corpus, split).path.iterdir():
            assert pq.read_schema(file).equals(SCHEMA)


def test_labels_are_the_inputs_shifted_by_one(corpus: DemoData) -> None:
    rows = [row for split in _rows(corpus).values() for row in split]
    assert all(row["char"][1:] == row["next_char"][:-1] for row in rows)
    assert all(1 <= len(row["char"]) == len(row["next_char"]) <= MAX_LENGTH for row in rows)
    assert {symbol for row in rows for column in ("char", "next_char") for symbol in row[column]} <= set(ALPHABET)


def test_joining_a_files_rows_gives_its_text_back(corpus: DemoData) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    for rows in _rows(corpus).values():
        pieces = defaultdict(list)
        for row in rows:
            pieces[row["path"]].append(row)
        for path, of_file in pieces.items():
            assert [row["sequence_index"] for row in of_file] == list(range(len(of_file)))
            text = "".join(ALPHABET[i] for i in symbol_ids(read_source(library / path)))
            assert "".join("".join(row["next_char"]) for row in of_file) == text
            assert "".join("".join(row["char"]) for row in of_file) == "\n" + text[:-1]


def test_a_row_names_its_package(corpus: DemoData) -> None:
    for rows in _rows(corpus).values():
        for row in rows:
            parts = row["path"].split("/")
            assert row["package"] == (parts[0] if len(parts) > 1 else "(top level)")


def test_no_python_file_is_in_two_splits(corpus: DemoData) -> None:
    paths = {split: {row["path"] for row in rows} for split, rows in _rows(corpus).items()}
    assert all(paths.values())
    assert len(set.union(*paths.values())) == sum(map(len, paths.values()))


def test_the_counts_are_those_of_the_files(corpus: DemoData) -> None:
    for split, rows in _rows(corpus).items():
        told = getattr(corpus, split)
        assert told.path == corpus.directory / split
        assert told.rows == len(rows)
        assert told.files == len({row["path"] for row in rows})
        assert told.characters == sum(len(row["next_char"]) for row in rows)
    total = sum(getattr(corpus, split).characters for split in SPLITS)
    assert 0.8 * MAX_BYTES < total <= MAX_BYTES
    assert 0.85 * total < corpus.train.characters < 0.95 * total


def test_row_groups_are_bounded_and_training_is_several_files(corpus: DemoData) -> None:
    files = list(corpus.train.path.iterdir())
    assert len(files) > 1
    for file in files:
        footer = pq.ParquetFile(file).metadata
        assert all(footer.row_group(group).num_rows <= 512 for group in range(footer.num_row_groups))


# --- which files


def test_tests_packages_tables_empty_files_and_dead_links_are_left_out(small_library: Path) -> None:
    names = {f"{'tools/' if number % 2 else ''}m{number:02d}.py" for number in range(30)}
    assert set(library_files(small_library)) == names


@pytest.mark.parametrize("small_bytes", [30_000, 100_000, 1_000_000])
def test_a_file_has_the_same_split_at_every_corpus_length(small_bytes: int) -> None:
    files = {f"m{number}.py": 500 + 37 * number for number in range(400)}
    whole = choose_files(files, max_bytes=2_000_000_000, seed=0)
    assert sum(map(len, whole.values())) == len(files)
    for split, chosen in choose_files(files, max_bytes=small_bytes, seed=0).items():
        assert chosen
        assert set(chosen) <= set(whole[split])


def test_the_choice_depends_on_the_seed_and_not_on_the_directorys_order() -> None:
    files = {f"m{number}.py": 1000 for number in range(100)}
    reversed_files = dict(reversed(files.items()))
    assert choose_files(files, max_bytes=60_000, seed=0) == choose_files(reversed_files, max_bytes=60_000, seed=0)
    assert choose_files(files, max_bytes=60_000, seed=0) != choose_files(files, max_bytes=60_000, seed=1)


# --- writing


def test_two_writes_give_equal_bytes(corpus: DemoData, tmp_path: Path) -> None:
    again = write_demo_data(tmp_path, max_bytes=MAX_BYTES, max_length=MAX_LENGTH)
    assert not again.reused
    assert _digests(tmp_path) == _digests(corpus.directory)


def test_a_whole_data_set_is_reused_and_not_touched(corpus: DemoData) -> None:
    before = {file: file.stat().st_mtime_ns for file in corpus.directory.rglob("*")}
    again = write_demo_data(corpus.directory, max_bytes=MAX_BYTES, max_length=MAX_LENGTH)
    assert again == corpus
    assert again.reused
    assert {file: file.stat().st_mtime_ns for file in corpus.directory.rglob("*")} == before


@pytest.mark.parametrize(
    "damage", ["no record", "half a record", "a part is gone", "a part is shorter", "one more part"]
)
def test_what_is_not_whole_is_written_anew(damage: str, small_library: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    written = write_demo_data(target, max_bytes=30_000, stdlib=small_library)
    digests = _digests(target)
    part = sorted(written.train.path.iterdir())[-1]
    match damage:
        case "no record":
            (target / "corpus.json").unlink()
        case "half a record":
            (target / "corpus.json").write_text('{"settings": ')
        case "a part is gone":
            part.unlink()
        case "a part is shorter":
            part.write_bytes(part.read_bytes()[:-1])
        case _:
            part.with_name("stdlib-00099.parquet").write_bytes(part.read_bytes())
    again = write_demo_data(target, max_bytes=30_000, stdlib=small_library)
    assert not again.reused
    assert _digests(target) == digests


def test_other_settings_replace_the_data_set(small_library: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_demo_data(target, max_bytes=30_000, stdlib=small_library)
    shorter = write_demo_data(target, max_bytes=30_000, max_length=50, stdlib=small_library)
    assert not shorter.reused
    lengths = [len(row["char"]) for rows in _rows(shorter).values() for row in rows]
    assert max(lengths) <= 50
    assert sum(lengths) == sum(getattr(shorter, split).characters for split in SPLITS)


def test_a_write_that_fails_leaves_no_record_and_no_temporary_file(
    small_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    write_demo_data(target, max_bytes=30_000, stdlib=small_library)
    write_table = pq.write_table

    def full_disk(table: object, file: Path, **options: object) -> None:
        write_table(table, file, **options)
        if "validation" in str(file):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(ResourceError) as caught:
        write_demo_data(target, max_bytes=30_000, seed=1, stdlib=small_library)
    assert str(caught.value) == (
        f"the demo data need {small_library} to be readable and {target} to be writable, "
        "but [Errno 28] No space left on device; free space or give another directory"
    )
    left = {file.name for file in target.rglob("*") if file.is_file()}
    assert left
    assert all(name.startswith("stdlib-") for name in left)


def test_the_record_tells_settings_and_interpreter(corpus: DemoData) -> None:
    record = json.loads((corpus.directory / "corpus.json").read_text())
    assert record["settings"]["max_bytes"] == MAX_BYTES
    assert record["settings"]["python"].endswith(platform.python_version())
    assert record["splits"]["test"]["counts"]["rows"] == corpus.test.rows


# --- mistakes


def test_a_library_without_sources_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        write_demo_data(tmp_path / "out", stdlib=tmp_path / "python311.zip")
    assert str(caught.value) == (
        "the demo data are the Python sources of the standard library, but "
        f"{tmp_path / 'python311.zip'} holds none (a zipped or stripped interpreter); "
        "run with a Python whose library is on disk as .py files"
    )


def test_settings_out_of_range_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_demo_data(tmp_path, max_bytes=0, max_length=-1)
    assert str(caught.value) == (
        "max_bytes must be at least 1, but is 0; max_length must be at least 1, but is -1; give a larger number"
    )


def test_a_corpus_too_small_for_three_splits_is_refused(small_library: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_demo_data(tmp_path / "out", max_bytes=5_000, stdlib=small_library)
    assert str(caught.value) == (
        "train, validation and test must hold a Python file each, but validation and test would hold "
        "none of 30 files at max_bytes=5000; raise max_bytes"
    )
    assert not (tmp_path / "out").exists()


def test_a_directory_with_other_parquet_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "train" / "mine.parquet"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(ConfigError) as caught:
        write_demo_data(tmp_path, max_bytes=MAX_BYTES)
    assert str(caught.value) == (
        f"the demo data need a directory of their own, but {mine} is not theirs; give another path"
    )
    assert _digests(tmp_path) == {"train/mine.parquet": hashlib.sha256(b"mine").hexdigest()}


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("mine")
    with pytest.raises(ConfigError) as caught:
        write_demo_data(file)
    assert str(caught.value) == f"the demo data need a directory, but {file} is a file; give another path"
