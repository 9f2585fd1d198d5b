"""Finding files: a file, a directory, a glob or a URI to the paths of all files meant, in a fixed order.

Of a Delta table these are its live files; what lies in other lakehouse tables is refused (`model.storage.lakehouse`).
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from urllib.parse import quote, unquote

from pyarrow import fs

from model.errors import DataError
from model.storage.filesystems import PathLike, _options_of, absolute, is_remote, join, resolve, why
from model.storage.lakehouse import refuse_tables, refuse_within_tables, snapshot_of, without_version

PARQUET = ".parquet"
ENDINGS = (PARQUET, ".parq", ".pq")  # of Parquet files; Hive's `000000_0` has none, and others have their own
MAGIC = b"PAR1"
SNIFFED_AT_ONCE = 16  # files wait for disks and networks rather than for processors
_log = logging.getLogger("dynamic_rnn")


def find_files(pattern: PathLike, suffix: str = PARQUET) -> list[str]:
    """The files a path, directory (recursively) or glob names, as absolute paths or URIs in sorted order.

    Names that begin with '.' or '_' are left out, as everywhere in the Parquet world. In globs, `*` and `?` stay
    within a name and `**` is any number of directories; a URI has no `?`, which begins its options. Parquet files in
    directories are those named so, and those without an ending that begin as Parquet does; where there is neither, any
    that do. DataError when nothing is found.
    """
    text = absolute(pattern)
    try:
        table = snapshot_of(text) if suffix == PARQUET else None
        found = list(table.files) if table else _glob(text, suffix) if _is_glob(text) else _below(text, suffix)
        if table is None and suffix == PARQUET and found != [text]:
            refuse_within_tables(_root_of(text))
        if not found:
            raise _nothing(text, suffix)
    except OSError as error:
        raise DataError(f"cannot be listed: {why(text, error)}", file=text) from error
    return sorted(found)


def _nothing(text: str, suffix: str) -> DataError:
    others = [] if _is_glob(text) else sorted(_files_below(text))
    if not others:
        return DataError(f"must hold at least one {suffix} file, but holds none; check the path", file=text)
    count = f"{len(others)} files are" if len(others) > 1 else "file is"
    return DataError(f"must hold at least one {suffix} file, but its {count} none, such as {others[0]}", file=text)


def _root_of(text: str) -> str:
    """The directory that a path names, or that a glob searches."""
    if not _is_glob(text):
        return text
    place, options = _options_of(text) if is_remote(text) else (text, "")
    return re.split(r"[*?[]", place, maxsplit=1)[0].rpartition("/")[0] + options


def search_root(pattern: PathLike, files: Sequence[str]) -> str:
    """The directory, without its options, below which the layout of `files` is that of the data `pattern` names."""
    text = without_version(absolute(pattern))
    place = _options_of(text)[0] if is_remote(text) else text
    if place in files or all(file.startswith(f"{place}/") for file in files):
        return place
    return re.split(r"[*?[]", place, maxsplit=1)[0].rpartition("/")[0]


def _is_glob(text: str) -> bool:
    """A file may be called `a[1].parquet`, and a URI's options begin with a question mark."""
    place = _options_of(text)[0] if is_remote(text) else text
    if not glob.has_magic(place):
        return False
    filesystem, inner = resolve(text)
    return bool(filesystem.get_file_info(inner).type == fs.FileType.NotFound)


def _glob(text: str, suffix: str) -> list[str]:
    if is_remote(text):
        return _remote_glob(text, suffix)
    root = os.path.dirname(re.split(r"[*?[]", text, maxsplit=1)[0])
    found = set()
    for match in glob.glob(text, recursive=True):
        if not _hidden(match[len(root) :]):
            found.update(_below(match, suffix))
    return list(found)


def _remote_glob(text: str, suffix: str) -> list[str]:
    """Lists all below the directory before the first wildcard: object stores have no cheaper way."""
    place, options = _options_of(text)
    root = re.split(r"[*[]", place, maxsplit=1)[0].rpartition("/")[0]
    matches = _glob_pattern(unquote(place[len(root) + 1 :])).fullmatch
    names = _files_below(root + options, allow_not_found=True)
    below = [name for name in names if not matches(name) and any(map(matches, _directories(name)))]
    found = [name for name in names if matches(name)] + _with_ending(root + options, below, suffix)
    return [f"{root}/{quote(name)}{options}" for name in found]


def _glob_pattern(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: `*` does not cross a slash, `**` as a whole name is any directories."""
    pieces = re.split(r"((?:(?<=/)|^)\*\*/|\*|\?|\[[^\]]+\])", pattern)
    return re.compile("".join(_GLOB.get(piece) or _set_or_text(piece) for piece in pieces))


_GLOB = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}


def _set_or_text(piece: str) -> str:
    if not piece.startswith("["):
        return re.escape(piece)
    negated = piece[1] == "!"
    members = piece[1 + negated : -1].replace("\\", "\\\\")
    return f"[{'^' if negated else ''}{members}]"


def _directories(path: str) -> Iterator[str]:
    """The directories that hold a path, nearest first."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _below(text: str, suffix: str) -> list[str]:
    filesystem, inner = resolve(text)
    info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.NotFound:
        raise DataError("there is no such file or directory; check the path", file=text)
    if info.type == fs.FileType.File:
        return [text]
    return [_path(text, name) for name in _with_ending(text, _files_below(text), suffix)]


def _path(directory: str, name: str) -> str:
    return join(directory, quote(name) if is_remote(directory) else name)


def _with_ending(directory: str, names: list[str], suffix: str) -> list[str]:
    """Those of the files below a directory that are meant by it."""
    if suffix != PARQUET:
        return [name for name in names if name.endswith(suffix)]
    named = [name for name in names if name.endswith(ENDINGS)]
    bare = _sniffed(directory, [name for name in names if "." not in name.rpartition("/")[2]])
    if not named and not bare:
        bare = _sniffed(directory, [name for name in names if "." in name.rpartition("/")[2]])
    if bare:
        _say_once(f"{directory}: files that are not named so are read as Parquet: {len(bare)}, such as {min(bare)}")
    return named + bare


def _sniffed(directory: str, names: list[str]) -> list[str]:
    """Those that begin as Parquet does."""
    with ThreadPoolExecutor(SNIFFED_AT_ONCE) as threads:
        marks = threads.map(lambda name: _begins_as_parquet(_path(directory, name)), names)
        return [name for name, mark in zip(names, marks, strict=True) if mark]


def _begins_as_parquet(file: str) -> bool:
    filesystem, inner = resolve(file)
    with filesystem.open_input_file(inner) as stream:
        return bool(stream.read(len(MAGIC)) == MAGIC)


@cache
def _say_once(line: str) -> None:
    """A command looks for its files more than once."""
    _log.warning(line)


def _files_below(directory: str, *, allow_not_found: bool = False) -> list[str]:
    """Visible files in a directory and those in it, by their paths from it."""
    filesystem, inner = resolve(directory)
    selector = fs.FileSelector(inner, allow_not_found=allow_not_found, recursive=True)
    files = [info.path for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    names = [path[len(inner) :].lstrip("/") for path in files]
    refuse_tables(directory, names)
    return [name for name in names if not _hidden(name)]


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/") if part)
