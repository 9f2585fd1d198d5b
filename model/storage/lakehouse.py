"""Tables that are more than their files: Delta, Iceberg and Hudi keep a log of the files that are live.

The other files of such a directory hold rows that were deleted, overwritten or not yet committed, so it is never read
as plain files. A Delta table is read by its log, through the package `deltalake`, at its newest version or, as
`table@v12`, at another one; what could not be read right is refused, with the count of live files. Knows no columns.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from pyarrow import fs

from model.errors import DataError, first_line
from model.storage.filesystems import (
    PathLike,
    _options_of,
    absolute,
    is_directory,
    is_remote,
    join,
    read_bytes,
    resolve,
)

LOG = "_delta_log"
_VERSION = re.compile(r"(.+)@v(\d+)")
_MARKER = re.compile(r"(?:^|/)(?:_delta_log/|\.hoodie/|metadata/[^/]*\.metadata\.json$)")
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10}))?\.parquet")
_SUFFIXES = (".parquet", ".parq", ".pq")
# Of the protocol's reader features those that change nothing for whoever reads whole live files.
_HARMLESS = {"checkpointProtection", "deletionVectors", "columnMapping", "timestampNtz", "typeWidening", "variantType",
             "v2Checkpoint", "vacuumProtocolCheck"}  # fmt: skip
_ELSEWHERE = "write its live rows into a directory of their own as plain Parquet"

Value = str | int | float | None


class Snapshot(NamedTuple):
    """A version of a Delta table: its live files, with the values of their partition, and all its columns."""

    version: int
    files: dict[str, dict[str, Value]]
    columns: tuple[str, ...]


def pinned(path: str) -> str:
    """A Delta table's path with the version that it has now, where it names none; other paths as they are."""
    table = snapshot_of(path)
    if table is None or _versioned(absolute(path))[1] is not None:
        return path
    place, options = _split(path)
    return f"{place}@v{table.version}{options}"


def without_version(path: str) -> str:
    """A path without the version of a Delta table that it may name."""
    return _versioned(path)[0]


def snapshot_of(path: PathLike) -> Snapshot | None:
    """The live files of the Delta table that a path names; None where it names none.

    DataError for one that cannot be read right, or not without `deltalake`.
    """
    place, version = _versioned(absolute(path))
    if not _has_log(place):
        return None
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as error:
        cure = f"pip install 'dynamic-rnn[lakehouse]' lets it be read, or {_ELSEWHERE}"
        raise _refusal(place, "a Delta table", cure) from error
    names = _log_names(place, version)
    live = _live(place, names)
    with tempfile.TemporaryDirectory() as directory:  # the log alone, by our filesystems and credentials
        log = Path(directory) / LOG
        log.mkdir()
        for name in names:
            (log / name).write_bytes(read_bytes(join(place, LOG, name)))
        try:
            table = DeltaTable(directory)
            _refuse_features(place, table, live)
            actions = table.get_add_actions()
            columns = tuple(field.name for field in table.schema().fields)
        except DeltaError as error:
            problem = f"a Delta table whose log cannot be read ({first_line(error)})"
            raise _refusal(place, problem, f"mend it, or {_ELSEWHERE}") from error
    parts = zip(_column(actions, "path"), _column(actions, "partition"), strict=True)
    files = {
        _file(place, name): {key: _value(value) for key, value in (values or {}).items()} for name, values in parts
    }
    return Snapshot(table.version(), files, columns)


def refuse_tables(directory: str, names: Iterable[str]) -> None:
    """DataError where one of the files below a directory is that of a lakehouse table's log."""
    for name in names:
        marker = _MARKER.search(name)
        within = name[: marker.start()] if marker else None
        if within is not None and not any(part.startswith((".", "_")) for part in within.split("/") if part):
            place = absolute(directory)
            raise _refused_table(join(place, quote(within) if is_remote(place) else within) if within else place)


def refuse_within_tables(directory: str) -> None:
    """DataError where a directory is, or lies in, a lakehouse table."""
    filesystem, inner = resolve(directory)
    places = [inner, *(str(parent) for parent in Path(inner).parents if str(parent) not in (".", "/"))]
    markers = [f"{place}/{name}" for place in places for name in (LOG, ".hoodie", "metadata")]
    try:
        found = filesystem.get_file_info(markers)
    except OSError:  # whoever may read a prefix of a bucket need not see what is above it
        return
    for place, marker in ((info.path.rpartition("/")[0], info) for info in found):
        if marker.type == fs.FileType.Directory and _is_log(filesystem, marker.path):
            above = inner.removeprefix(place).count("/")
            raise _refused_table(_up(directory, above))


def _is_log(filesystem: Any, directory: str) -> bool:
    if not directory.endswith("/metadata"):
        return True
    return any(info.path.endswith(".metadata.json") for info in filesystem.get_file_info(fs.FileSelector(directory)))


def _up(directory: str, levels: int) -> str:
    place, options = _split(directory)
    return (place.rsplit("/", levels)[0] if levels else place) + options


def _split(path: str) -> tuple[str, str]:
    return _options_of(path) if is_remote(path) else (path, "")


def _versioned(text: str) -> tuple[str, int | None]:
    """A table's path and the version that stands behind it; a directory of that very name wins."""
    place, options = _split(text)
    found = _VERSION.fullmatch(place)
    if found is None or is_directory(text):
        return text, None
    return found[1] + options, int(found[2])


def _has_log(place: str) -> bool:
    if re.search(r"[*?[]", _split(place)[0]):
        return False
    filesystem, inner = resolve(join(place, LOG))
    return bool(filesystem.get_file_info(inner).type == fs.FileType.Directory)


# What a log says ----------------------------------------------------------------------------------------------------


def _log_names(place: str, version: int | None = None) -> list[str]:
    """The files of a Delta log that make the version: the newest checkpoint up to it, and the commits since."""
    filesystem, inner = resolve(join(place, LOG))
    names = sorted(info.base_name for info in filesystem.get_file_info(fs.FileSelector(inner)))
    commits = {int(found[1]): found[0] for found in map(_COMMIT.fullmatch, names) if found}
    newest = max(commits, default=-1) if version is None else version
    parts: dict[int, list[str]] = {}
    whole = {}
    for found in filter(None, map(_CHECKPOINT.fullmatch, names)):
        parts.setdefault(int(found[1]), []).append(found[0])
        whole[int(found[1])] = int(found[2] or 1)
    begin = max(
        (number for number, held in parts.items() if number <= newest and len(held) >= whole[number]), default=-1
    )
    since = range(begin + 1, newest + 1)
    if newest < 0 or any(number not in commits for number in since):
        known = f"{min(commits)} to {max(commits)}" if commits else "none"
        wanted = "its newest" if version is None else version
        raise DataError(
            f"a version of a Delta table must be in its log, but {wanted} is not; commits: {known}",
            file=place,
        )
    return [*parts.get(begin, ()), *(commits[number] for number in since)]


def _live(place: str, names: Iterable[str]) -> dict[str, bool]:
    """The live files of a Delta table, by the names of its log, and whether a deletion vector takes rows from them."""
    live: dict[str, bool] = {}
    for name in names:
        if _CHECKPOINT.fullmatch(name):
            live |= _checkpoint(read_bytes(join(place, LOG, name)))
            continue
        for line in filter(str.strip, read_bytes(join(place, LOG, name)).decode().splitlines()):
            action = json.loads(line)
            if removed := action.get("remove"):
                live.pop(removed["path"], None)
            if added := action.get("add"):
                live[added["path"]] = added.get("deletionVector") is not None
    return live


def _checkpoint(content: bytes) -> Iterator[tuple[str, bool]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = pq.ParquetFile(pa.BufferReader(content)).read(columns=["add.path", "add.deletionVector.storageType"])
    for added in held["add"].to_pylist():
        if added is not None and added["path"] is not None:
            vector = added.get("deletionVector")
            yield added["path"], vector is not None and vector["storageType"] is not None


def _refuse_features(place: str, table: Any, live: dict[str, bool]) -> None:
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    others = sorted({*(table.protocol().reader_features or ())} - _HARMLESS)
    if any(live.values()):
        cure = "purge them (REORG TABLE … APPLY (PURGE)), or " + _ELSEWHERE
        raise _refusal(place, "a Delta table with deletion vectors, which are not read", cure)
    if mapping != "none":
        raise _refusal(place, "a Delta table with column mapping, which is not read", _ELSEWHERE)
    if others:
        raise _refusal(place, f"a Delta table with {', '.join(others)}, which is not read", _ELSEWHERE)
    if any(re.match(r"[a-z0-9]+:|/", path) for path in live):
        raise _refusal(
            place, "a Delta table with files that lie elsewhere (a shallow clone), which are not read", _ELSEWHERE
        )


def _file(place: str, name: str) -> str:
    return join(place, quote(unquote(name)) if is_remote(place) else unquote(name))


def _column(actions: Any, name: str) -> list[Any]:
    import pyarrow as pa

    table = pa.table(actions)
    return list(table[name].to_pylist()) if name in table.column_names else [None] * table.num_rows


def _value(value: Any) -> Value:
    """A partition's value as columns of paths have them: dates and the like are text, as in the log."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if value is None or isinstance(value, str | int | float) else str(value)


# Refusals -----------------------------------------------------------------------------------------------------------


def _refused_table(place: str) -> DataError:
    """What to say of a table that was not named as one."""
    if _has_log(place):
        return _refusal(place, "a Delta table", "name its own directory, or a version such as table@v3")
    filesystem, inner = resolve(join(place, ".hoodie"))
    if filesystem.get_file_info(inner).type == fs.FileType.Directory:
        return _refusal(place, "a Hudi table, which is not read", _ELSEWHERE)
    return _refusal(place, "an Iceberg table, which is not read", _ELSEWHERE)


def _refusal(place: str, what: str, cure: str) -> DataError:
    stored = _parquet_files(place)
    live = _live_count(place, what, stored)
    told = "" if live is None else f"; {live} of {len(stored)} files {'is' if live == 1 else 'are'} live"
    return DataError(f"is {what}{told}; {cure}", file=place)


def _parquet_files(place: str) -> list[str]:
    filesystem, inner = resolve(place)
    found = filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
    names = [info.path[len(inner) :].lstrip("/") for info in found if info.type == fs.FileType.File]
    hidden = re.compile(r"(?:^|/)[._]")
    return [name for name in names if name.endswith(_SUFFIXES) and not hidden.search(name)]


def _live_count(place: str, what: str, stored: list[str]) -> int | None:
    """How many files are live, as far as that can be told."""
    if "Delta" in what:
        try:
            return len(_live(place, _log_names(place)))
        except DataError:  # checkpoints of another kind
            return None
    if "Hudi" in what:  # the newest file of each group is; a group may be replaced as a whole
        return len({(name.rpartition("/")[0], name.rpartition("/")[2].partition("_")[0]) for name in stored})
    return _iceberg_count(place)


def _iceberg_count(place: str) -> int | None:
    filesystem, inner = resolve(join(place, "metadata"))
    names = [info for info in filesystem.get_file_info(fs.FileSelector(inner)) if info.path.endswith(".metadata.json")]
    newest = max(names, key=lambda info: (int((re.findall(r"\d+", info.base_name) or ["0"])[0]), info.mtime_ns or 0))
    told = json.loads(read_bytes(join(place, "metadata", newest.base_name)))
    current = told.get("current-snapshot-id")
    summary: dict[str, Any] = next(
        (each.get("summary", {}) for each in told.get("snapshots", ()) if each["snapshot-id"] == current), {}
    )
    count = summary.get("total-data-files")
    return None if count is None else int(count)
