"""Finding files: a file, a directory, a glob or a URI to the paths of all files meant, in a fixed order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote, unquote

from pyarrow import fs

from model.errors import DataError
from model.storage.filesystems import PathLike, _options_of, absolute, is_remote, join, resolve, why


def find_files(pattern: PathLike, suffix: str = ".parquet") -> list[str]:
    """The files a path, directory (recursively) or glob names, as absolute paths or URIs in sorted order.

    Names that begin with '.' or '_' are left out, as everywhere in the Parquet world. In globs, `*` and `?` stay
    within a name and `**` is any number of directories; a URI has no `?`, which begins its options. DataError when
    nothing is found.
    """
    text = absolute(pattern)
    try:
        found = _glob(text, suffix) if _is_glob(text) else _below(text, suffix)
    except OSError as error:
        raise DataError(f"cannot be listed: {why(text, error)}", file=text) from error
    if not found:
        raise DataError(f"must hold at least one {suffix} file, but holds none; check the path", file=text)
    return sorted(found)


def search_root(pattern: PathLike, files: Sequence[str]) -> str:
    """The directory, without its options, below which the layout of `files` is that of the data `pattern` names."""
    text = absolute(pattern)
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
    return [
        f"{root}/{quote(name)}{options}"
        for name in _files_below(root + options, allow_not_found=True)
        if matches(name) or (name.endswith(suffix) and any(map(matches, _directories(name))))
    ]


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
    names = [name for name in _files_below(text) if name.endswith(suffix)]
    return [join(text, quote(name) if is_remote(text) else name) for name in names]


def _files_below(directory: str, *, allow_not_found: bool = False) -> list[str]:
    """Visible files in a directory and those in it, by their paths from it."""
    filesystem, inner = resolve(directory)
    selector = fs.FileSelector(inner, allow_not_found=allow_not_found, recursive=True)
    files = [info.path for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    names = [path[len(inner) :].lstrip("/") for path in files]
    return [name for name in names if not _hidden(name)]


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/") if part)
