"""Variables of a TensorFlow checkpoint (format V2) or of an `.npz`, without TensorFlow. Reads; never writes.

    model.ckpt-25.index                 a table: name → BundleEntryProto (dtype, shape, shard, offset, size, slices)
    model.ckpt-25.data-00000-of-00001   the values, raw, one behind the other; there may be several shards
    checkpoint                          the text file of a model directory that names the latest checkpoint

A partitioned variable has an entry that lists its slices, and an entry a slice under an encoded key. Each value is
read, and held against its checksum, when it is asked for: optimizer slots cost nothing. Knows no network.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from model.errors import CheckpointError
from model.settings import did_you_mean
from model.storage import absolute, exists, is_directory, join, list_names, read_bytes, resolve
from model.storage.filesystems import PathLike
from model.tf1.sstable import DamagedError, fields, is_table, masked_crc32c, table_items

# numbers of types.proto
DTYPES = {
    1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 8: "c8", 9: "i8", 10: "?", 11: "i1", 12: "u1", 13: "i4",
    15: "i2", 16: "u2", 17: "u2", 18: "c16", 19: "f2", 22: "u4", 23: "u8",
}  # fmt: skip
BFLOAT16 = 14
WHOLE = -1  # length of a slice that takes all of a dimension
Slice = tuple[tuple[int, int], ...]  # (start, length) of each dimension


@dataclass(frozen=True)
class Entry:
    """Where a variable's values are, and what they are."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    nbytes: int = 0
    checksum: int = 0
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True)
class _Index:
    shards: int = 1
    order: str = "<"
    entries: dict[bytes, Entry] = field(default_factory=dict)


class TfCheckpoint(Mapping[str, np.ndarray]):
    """The numeric variables by name, each read when it is asked for; bfloat16 becomes float32.

    `skipped` names those that hold no numbers, such as strings. CheckpointError says what cannot be read.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._index = _read_index(f"{prefix}.index")
        entries = {
            key.decode(errors="replace"): e for key, e in self._index.entries.items() if not key.startswith(b"\0")
        }
        self._entries = {name: entry for name, entry in entries.items() if _is_numeric(entry)}
        self.skipped = tuple(name for name in entries if name not in self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # Mapping's own would read the value

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        if not entry.slices:
            return self._values(name, entry, entry.shape)
        parts = {each: self._slice_entry(name, each) for each in entry.slices}
        covered, size = sum(math.prod(part.shape) for part in parts.values()), math.prod(entry.shape)
        if covered != size:
            raise CheckpointError(
                f"{self.prefix}: the slices of variable {name!r} must hold its {size} values, but hold {covered}"
            )
        whole = np.zeros(entry.shape, _dtype(entry, "=") if entry.dtype != BFLOAT16 else np.float32)
        for each, part in parts.items():
            place = whole[_place(each, entry.shape, name)]
            place[...] = self._values(name, part, place.shape)
        return whole

    def _slice_entry(self, name: str, part: Slice) -> Entry:
        found = self._index.entries.get(slice_key(name, part))
        if found is None:
            raise CheckpointError(f"{self.prefix}: a slice of variable {name!r} is missing; copy the checkpoint anew")
        return found

    def _values(self, name: str, entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
        """The values of an entry that stand in one piece."""
        dtype = _dtype(entry, self._index.order)
        if entry.nbytes != math.prod(shape) * dtype.itemsize or entry.shape != shape:
            raise CheckpointError(
                f"{self.prefix}: variable {name!r} must hold {dtype} of shape {shape}, but its entry tells "
                f"{entry.nbytes} bytes of shape {entry.shape}"
            )
        path = f"{self.prefix}.data-{entry.shard:05d}-of-{self._index.shards:05d}"
        content = _read_part(path, entry.offset, entry.nbytes, name)
        if masked_crc32c(content) != entry.checksum:
            raise CheckpointError(
                f"{path}: variable {name!r} is damaged: its bytes do not have the checksum in the index; copy the "
                f"checkpoint anew"
            )
        values = np.frombuffer(content, dtype).reshape(shape)
        if entry.dtype == BFLOAT16:  # the upper half of a float32
            return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values.astype(dtype.newbyteorder("="))


def _is_numeric(entry: Entry) -> bool:
    return entry.dtype in DTYPES or entry.dtype == BFLOAT16


def _dtype(entry: Entry, order: str) -> np.dtype:
    return np.dtype(order + ("u2" if entry.dtype == BFLOAT16 else DTYPES[entry.dtype]))


def _place(part: Slice, shape: tuple[int, ...], name: str) -> tuple[slice, ...]:
    if part and len(part) != len(shape):
        raise CheckpointError(f"variable {name!r}: a slice has {len(part)} dimensions, but the shape is {shape}")
    return tuple(slice(None) if length == WHOLE else slice(start, start + length) for start, length in part)


def _read_part(path: str, offset: int, nbytes: int, name: str) -> bytes:
    filesystem, inner = resolve(path)
    try:
        with filesystem.open_input_file(inner) as stream:
            content = bytes(stream.read_at(nbytes, offset)) if nbytes else b""
    except OSError as error:
        raise CheckpointError(
            f"{path}: must be there, for it holds variable {name!r}, but cannot be read; copy all files of the "
            f"checkpoint"
        ) from error
    if len(content) != nbytes:
        raise CheckpointError(
            f"{path}: is cut short: variable {name!r} ends at byte {offset + nbytes}; copy the checkpoint anew"
        )
    return content


# The index ------------------------------------------------------------------------------------------------------


def _read_index(path: str) -> _Index:
    content = _file(path)
    try:
        items = dict(table_items(content))
        header = dict(fields(items.pop(b"", b"")))
        shards, order = header.get(1, 1), ">" if header.get(2, 0) else "<"
        if not isinstance(shards, int):
            raise DamagedError("its number of shards is none")
        return _Index(shards, order, {key: _entry(value) for key, value in items.items()})
    except DamagedError as error:
        raise CheckpointError(f"{path}: must be the index of a checkpoint, but {error}; copy it anew") from error


def _entry(message: bytes) -> Entry:
    """A BundleEntryProto."""
    numbers: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    slices = []
    for number, value in fields(message):
        if isinstance(value, int):
            numbers[number] = value
        elif number == 2:
            shape = tuple(_extent(dim, 1, 0) for n, dim in fields(value) if n == 2 and isinstance(dim, bytes))
        elif number == 7:
            extents = [part for n, part in fields(value) if n == 1 and isinstance(part, bytes)]
            slices.append(tuple((_extent(part, 1, 0), _extent(part, 2, WHOLE)) for part in extents))
    if min(shape, default=0) < 0:
        raise DamagedError("a shape has a negative size")
    dtype, shard, offset, nbytes, checksum = (numbers.get(number, 0) for number in (1, 3, 4, 5, 6))
    return Entry(dtype, shape, shard, offset, nbytes, checksum, tuple(slices))


def _extent(message: bytes, wanted: int, default: int) -> int:
    """A signed number of a message."""
    value = next((value for number, value in fields(message) if number == wanted), default)
    if not isinstance(value, int):
        raise DamagedError("a size is no number")
    return value - (1 << 64) if value >> 63 == 1 else value


def slice_key(name: str, part: Slice) -> bytes:
    """The index's key of one slice: TensorFlow's ordered code of 0, name, rank, and each start and length."""
    escaped = name.encode().replace(b"\0", b"\0\xff") + b"\0\1"  # UTF-8 has no byte 0xff to escape
    return b"\0" + escaped + _unsigned(len(part)) + b"".join(_signed(n) for extent in part for n in extent)


def _unsigned(number: int) -> bytes:
    size = (number.bit_length() + 7) // 8
    return bytes([size]) + number.to_bytes(size, "big")


def _signed(number: int) -> bytes:
    """Big-endian, led by as many one bits as there are bytes, all bits turned for negative numbers."""
    size = (number if number >= 0 else ~number).bit_length() // 7 + 1
    head = ((1 << size) - 1) << (8 * size - size)
    return ((number ^ head) & ((1 << 8 * size) - 1)).to_bytes(size, "big")


# Finding the checkpoint -----------------------------------------------------------------------------------------


def read_variables(path: PathLike) -> Mapping[str, np.ndarray]:
    """The variables of a model directory, a saved model, a checkpoint (its prefix or one of its files) or an `.npz`."""
    text = absolute(path)
    return _read_npz(text) if text.endswith(".npz") else TfCheckpoint(find_prefix(text))


def find_prefix(path: str) -> str:
    """The common beginning of a checkpoint's files. CheckpointError where there is none."""
    if is_directory(path):
        return _in_directory(path)
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path)
    if exists(f"{prefix}.index"):
        return prefix
    _refuse_old_format(prefix)
    directory, _, wanted = prefix.rpartition("/")
    found = [name.removesuffix(".index") for name in list_names(directory) if name.endswith(".index")]
    held = did_you_mean(wanted, found) or (f"; there are {', '.join(found)}" if found else "")
    raise CheckpointError(f"{path}: must be a checkpoint, but {wanted}.index is not there{held}")


def _in_directory(path: str) -> str:
    names = list_names(path)
    if "checkpoint" in names:
        return _latest(path, _file(join(path, "checkpoint")).decode(errors="replace"))
    found = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    if len(found) == 1:
        return join(path, found[0])
    if "saved_model.pb" in names:
        return join(path, "variables", "variables")
    told = f"holds several; name one of {', '.join(found)}" if found else "holds neither `checkpoint` nor an .index"
    raise CheckpointError(f"{path}: must be a model directory with one checkpoint, but {told}")


def _latest(directory: str, text: str) -> str:
    """What `model_checkpoint_path` names; in this directory, should the whole path be one of another machine."""
    found = re.search(r'^\s*model_checkpoint_path:\s*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE)
    if found is None:
        raise CheckpointError(
            f"{join(directory, 'checkpoint')}: must name a checkpoint, but does not; name it yourself"
        )
    named = re.sub(r"\\(.)", r"\1", found[1])
    whole = named if named.startswith("/") or "://" in named else join(directory, named)
    prefixes = (whole, join(directory, named.rpartition("/")[2]))
    for prefix in prefixes:
        if exists(f"{prefix}.index"):
            return prefix
        _refuse_old_format(prefix)
    raise CheckpointError(f"{directory}: `checkpoint` names {named!r}, but {prefixes[1]}.index is not there")


def _refuse_old_format(prefix: str) -> None:
    if exists(prefix) and not is_directory(prefix) and is_table(_file(prefix)):
        raise CheckpointError(
            f"{prefix}: must be a checkpoint of format V2 (with an .index file), but is one of format V1; let "
            f"TensorFlow restore it and save it again"
        )


def _read_npz(path: str) -> dict[str, np.ndarray]:
    content = io.BytesIO(_file(path))
    if not zipfile.is_zipfile(content):
        raise CheckpointError(f"{path}: must be an .npz of arrays, but is another file or is cut short")
    try:
        with np.load(content, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: must be a whole .npz of plain arrays, but: {error}") from error
    weights = {name.removeprefix("weights/"): a for name, a in held.items() if name.startswith("weights/")}
    return weights or held


def _file(path: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
