r"""The demo's data set: the Python sources of this interpreter's own standard library, one character a step.

Rows. One row is one top-level function or class with its decorators and the comments above it, or one stretch
of the code between two of them (a module's preamble is the first). What follows a definition and is blank or
indented stays with it, so a row begins with its first real character. A block longer than `max_length` is cut
after the last line that fits (inside a line only when none does). Nothing of a file is lost: its rows'
`next_char`, joined by `sequence_index`, are its text with each symbol outside `ALPHABET` as "\ufffd".

    path            string        the file, relative to the standard library; the key
    sequence_index  int32         the row's place in its file
    package         string        context: the top-level package; "(top level)" for a module of one file
    indent_width    float32       context: 0 where a block begins; in its later pieces the columns by which
                                  the last line before the cut that is not blank is indented: read off the
                                  text before the row, never off its labels, so it gives no answer away
    char            list<string>  the inputs: the character before the row, then the row's, but for its last
    next_char       list<string>  the labels: the row's characters

Every character is a label exactly once. The first input of a file is a newline, and a row nearly always
follows one: generation starts by sending "\n", and goes on by sending each character that was answered.

Left out: tests, installed packages, and files that are tables or made by a program (`GENERATED`).
Files are put in the order of a hash of their path. The first 5 % of the library (in bytes) are for test, the
next 5 % for validation, the rest for training; from each share, files are taken in that order while they fit
into its part of `max_bytes`. So a file has the same split at every `max_bytes`, and no file is in two.

Knows Python's layout (ast), Arrow and Parquet. Knows no Ray, no torch, no model.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import ConfigError, ResourceError
from model.storage import write_bytes
from model.storage.atomic import appearing

ALPHABET: tuple[str, ...] = (*map(chr, range(0x20, 0x7F)), "\n", "\t", "\ufffd")
"""Printable ASCII, newline, tab, and one symbol for everything else: no text holds an unknown label."""

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sequence_index", pa.int32()),
        ("package", pa.string()),
        ("indent_width", pa.float32()),
        ("char", pa.list_(pa.string())),
        ("next_char", pa.list_(pa.string())),
    ]
)

FORMAT_VERSION = 1
RECORD = "corpus.json"
OUR_FILES = "stdlib-*.parquet"
ROW_GROUP_ROWS = 512
PARTS = {"train": 8, "validation": 2, "test": 2}
SHARE_PERCENT = {"test": 5, "validation": 5, "train": 90}

NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
GENERATED = re.compile(
    r"encodings/.*"  # a codec each, nearly all of it a table of 256 code points
    r"|pydoc_data/.*"  # the manual, as string literals
    r"|config-.*|_sysconfigdata.*"  # written when the interpreter was built
    r"|html/entities\.py|stringprep\.py"  # tables of code points
)

_NEWLINE_ID = ALPHABET.index("\n")
_OTHER_ID = len(ALPHABET) - 1
_ID_OF_ASCII = np.full(128, _OTHER_ID, dtype=np.uint8)
_ID_OF_ASCII[[ord(symbol) for symbol in ALPHABET[:_OTHER_ID]]] = np.arange(_OTHER_ID, dtype=np.uint8)

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class DemoSplit:
    """A directory of Parquet files and what they hold: `files` counts Python files, `characters` labels."""

    path: Path
    files: int
    rows: int
    characters: int


@dataclass(frozen=True)
class DemoData:
    """The data set under `directory`; `reused`: it was there, of the same settings and interpreter."""

    directory: Path
    train: DemoSplit
    validation: DemoSplit
    test: DemoSplit
    reused: bool = field(default=False, compare=False)


class Piece(NamedTuple):
    """One row's labels: characters `start` to `end` of its file."""

    start: int
    end: int
    indent_width: float


def write_demo_data(
    directory: str | Path,
    *,
    max_bytes: int = 3_000_000,
    max_length: int = 512,
    seed: int = 0,
    stdlib: str | Path | None = None,
) -> DemoData:
    """Write `train/`, `validation/`, `test/` and `corpus.json` into `directory`, or find them there.

    `max_bytes` bounds the Python text of all splits together, `max_length` the characters of a row; `seed`
    draws other files. `stdlib` is another tree of Python files to read (default: this interpreter's library).
    ConfigError for a setting out of range or a directory that holds other Parquet files, ResourceError where
    the sources are not on disk or the directory cannot be written.
    """
    target = Path(directory).absolute()
    library = Path(stdlib or sysconfig.get_paths()["stdlib"]).absolute()
    # All that decides the bytes written: a data set is reused only if these are equal.
    settings = {
        "format_version": FORMAT_VERSION,
        "max_bytes": max_bytes,
        "max_length": max_length,
        "seed": seed,
        "stdlib": str(library),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "pyarrow": pa.__version__,
    }
    _check({"max_bytes": max_bytes, "max_length": max_length}, target)
    try:
        return _read_record(target, settings) or _write(target, library, settings)
    except OSError as error:
        raise ResourceError(
            f"the demo data need {library} to be readable and {target} to be writable, but {error}; "
            "free space or give another directory"
        ) from error


# --- which files


def library_files(library: Path) -> dict[str, int]:
    """Relative path → bytes of every file of `library` that belongs in the corpus, empty ones left out."""
    files: dict[str, int] = {}
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = [name for name in subfolders if name not in NOT_LIBRARY]
        for file in (Path(folder, name) for name in names if name.endswith(".py")):
            path = file.relative_to(library).as_posix()
            # is_file: a distribution may leave links to configuration that is not installed.
            if not GENERATED.fullmatch(path) and file.is_file() and (file_bytes := file.stat().st_size):
                files[path] = file_bytes
    if not files:
        raise ResourceError(
            f"the demo data are the Python sources of the standard library, but {library} holds none "
            f"(a zipped or stripped interpreter); run with a Python whose library is on disk as .py files"
        )
    return files


def choose_files(files: dict[str, int], *, max_bytes: int, seed: int) -> dict[str, dict[str, int]]:
    """Split → the files of its share that fit into its part of `max_bytes`, both in the order of the hash."""
    shares = _shares(files, seed)
    chosen: dict[str, dict[str, int]] = {}
    for split in PARTS:
        left_bytes = max_bytes * SHARE_PERCENT[split] // 100
        chosen[split] = {}
        for path in shares[split]:
            if files[path] <= left_bytes:
                chosen[split][path] = files[path]
                left_bytes -= files[path]
    empty = [split for split in chosen if not chosen[split]]
    if empty:
        raise ConfigError(
            f"train, validation and test must hold a Python file each, but {' and '.join(empty)} would hold "
            f"none of {len(files)} files at max_bytes={max_bytes}; raise max_bytes"
        )
    return chosen


def _shares(files: dict[str, int], seed: int) -> dict[str, list[str]]:
    """The whole library, divided by the bytes before a file: each share has one, however few there are."""
    splits = iter(SHARE_PERCENT.items())
    (split, limit_percent), before_bytes, total_bytes = next(splits), 0, sum(files.values())
    shares: dict[str, list[str]] = {name: [] for name in SHARE_PERCENT}
    for path in sorted(files, key=lambda path: hashlib.sha256(f"{seed}/{path}".encode()).digest()):
        if shares[split] and before_bytes * 100 >= total_bytes * limit_percent:
            split, percent = next(splits)
            limit_percent += percent
        shares[split].append(path)
        before_bytes += files[path]
    return shares


# --- a file into rows


def read_source(file: Path) -> str:
    """The text, with "\\n" line ends. A coding line is not obeyed: outside ASCII all is "other" anyway."""
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cut_pieces(text: str, max_length: int) -> list[Piece]:
    """The rows of a file: they cover `text` from end to end, each at most `max_length` long."""
    block_starts = _block_starts(text)
    return [
        Piece(start, end, _indent_width(text[block_start:start]))
        for block_start, block_end in zip(block_starts, [*block_starts[1:], len(text)], strict=True)
        for start, end in _cut_block(text, block_start, block_end, max_length)
    ]


def _block_starts(text: str) -> list[int]:
    """Where the definitions begin, and the code between them: offsets into `text`, the first 0."""
    lines = text.split("\n")  # not splitlines: a form feed ends no line for ast
    first_lines, next_line, after_definition = {0}, 0, False
    for statement in _statements(text):
        is_definition = isinstance(statement, _DEFINITIONS)
        if is_definition or after_definition:
            first_lines.add(_first_own_line(lines, next_line, statement.lineno - 1))
        assert statement.end_lineno is not None
        next_line, after_definition = statement.end_lineno, is_definition
    line_starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    return [line_starts[line] for line in sorted(first_lines)]


def _statements(text: str) -> list[ast.stmt]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old escape in a library file is not the user's affair
        try:
            return ast.parse(text).body
        except (SyntaxError, ValueError):  # a template, or a NUL byte: cut by lines alone, as one block
            return []


def _first_own_line(lines: list[str], start: int, statement_line: int) -> int:
    """The first line from `start` that is neither blank nor indented: a comment, a decorator (ast counts
    a definition from its keyword), or the statement itself."""
    between = range(start, statement_line)
    return next((line for line in between if lines[line][:1].strip()), statement_line)


def _cut_block(text: str, start: int, end: int, max_length: int) -> Iterator[tuple[int, int]]:
    while end - start > max_length:
        cut = text.rfind("\n", start, start + max_length) + 1 or start + max_length
        yield start, cut
        start = cut
    if start < end:
        yield start, end


def _indent_width(before: str) -> float:
    """Columns before the last line's first character; `before` is the block so far (nothing of it: 0)."""
    line = before.rstrip().rpartition("\n")[2].expandtabs(8)
    return float(len(line) - len(line.lstrip()))


def symbol_ids(text: str) -> npt.NDArray[np.uint8]:
    """Each character's place in `ALPHABET`."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return np.where(code_points < 128, _ID_OF_ASCII[code_points & 127], np.uint8(_OTHER_ID))


# --- rows into Parquet


def build_table(texts: dict[str, str], max_length: int) -> pa.Table:
    """The rows of several files. Symbols are taken by index: millions of str objects would take seconds."""
    pieces = {path: cut_pieces(text, max_length) for path, text in texts.items()}
    rows = [(path, index, piece) for path in texts for index, piece in enumerate(pieces[path])]
    labels = [symbol_ids(text) for text in texts.values()]
    inputs = [np.insert(ids, 0, _NEWLINE_ID)[:-1] for ids in labels]
    offsets = np.cumsum([0, *(piece.end - piece.start for _, _, piece in rows)], dtype=np.int32)
    columns = {
        "path": [path for path, _, _ in rows],
        "sequence_index": [index for _, index, _ in rows],
        "package": [path.partition("/")[0] if "/" in path else "(top level)" for path, _, _ in rows],
        "indent_width": [piece.indent_width for _, _, piece in rows],
        "char": _lists(inputs, offsets),
        "next_char": _lists(labels, offsets),
    }
    return pa.table(columns, schema=SCHEMA)


def _lists(ids: list[npt.NDArray[np.uint8]], offsets: npt.NDArray[np.int32]) -> pa.Array:
    symbols = pa.array(ALPHABET, pa.string()).take(pa.array(np.concatenate(ids)))
    return pa.ListArray.from_arrays(pa.array(offsets), symbols)


def _write(target: Path, library: Path, settings: dict[str, Any]) -> DemoData:
    chosen = choose_files(library_files(library), max_bytes=settings["max_bytes"], seed=settings["seed"])
    # The record goes first and comes back last: a data set that was interrupted does not look whole.
    (target / RECORD).unlink(missing_ok=True)
    splits = {
        split: _write_split(target / split, library, files, settings["max_length"]) for split, files in chosen.items()
    }
    record = {"settings": settings, "splits": splits}
    write_bytes(target / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return _demo_data(target, splits, reused=False)


def _write_split(folder: Path, library: Path, files: dict[str, int], max_length: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(OUR_FILES):
        old.unlink()
    rows = characters = 0
    part_bytes: dict[str, int] = {}
    for number, paths in enumerate(_groups(files, PARTS[folder.name])):
        texts = {path: read_source(library / path) for path in paths}
        table = build_table(texts, max_length)
        part = folder / f"stdlib-{number:05d}.parquet"
        with appearing(part) as temporary:
            pq.write_table(table, temporary, row_group_size=ROW_GROUP_ROWS, compression="zstd")
        part_bytes[part.name] = part.stat().st_size
        rows += table.num_rows
        characters += sum(map(len, texts.values()))
    return {"counts": {"files": len(files), "rows": rows, "characters": characters}, "parts": part_bytes}


def _groups(files: dict[str, int], parts: int) -> list[list[str]]:
    """Neighbours in the given order, about equal in bytes; a Python file's rows stay in one Parquet file."""
    groups: list[list[str]] = [[] for _ in range(parts)]
    total_bytes, before_bytes = sum(files.values()), 0
    for path, file_bytes in files.items():
        groups[before_bytes * parts // total_bytes].append(path)
        before_bytes += file_bytes
    return [group for group in groups if group]


# --- the record, and what is there


def _check(limits: dict[str, int], target: Path) -> None:
    faults = [f"{name} must be at least 1, but is {value}" for name, value in limits.items() if value < 1]
    if faults:
        raise ConfigError("; ".join(faults) + "; give a larger number")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"the demo data need a directory, but {target} is a file; give another path")
    # Readers take every Parquet file of a directory: others' must not lie beside ours, nor do we delete them.
    files = (file for split in PARTS for file in (target / split).glob("*.parquet"))
    foreign = next((file for file in files if not file.match(OUR_FILES)), None)
    if foreign:
        raise ConfigError(
            f"the demo data need a directory of their own, but {foreign} is not theirs; give another path"
        )


def _read_record(target: Path, settings: dict[str, Any]) -> DemoData | None:
    """The data set that is there, if it is whole and of these settings."""
    try:
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none, or a damaged one: the data set is written anew
        return None
    if not isinstance(record, dict) or record.get("settings") != settings:
        return None
    on_disk = {split: {file.name: file.stat().st_size for file in (target / split).glob(OUR_FILES)} for split in PARTS}
    if on_disk != {split: content["parts"] for split, content in record["splits"].items()}:
        return None
    return _demo_data(target, record["splits"], reused=True)


def _demo_data(target: Path, splits: dict[str, dict[str, Any]], *, reused: bool) -> DemoData:
    found = {split: DemoSplit(target / split, **content["counts"]) for split, content in splits.items()}
    return DemoData(target, **found, reused=reused)
