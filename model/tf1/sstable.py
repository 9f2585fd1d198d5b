"""The containers inside TensorFlow's checkpoint files: sorted string tables and protocol buffers.

A table is LevelDB's: blocks of key → value whose keys share prefixes, an index block, and a footer of 48 bytes that
says where the index block is. Only what a whole scan needs is read. Knows no tensors and no files.
"""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c
import pyarrow as pa

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER_BYTES, TRAILER_BYTES = 48, 5
PLAIN, SNAPPY = 0, 1


class DamagedError(Exception):
    """The bytes are not what they should be; whoever knows the file's name says so to people."""


def is_table(content: bytes) -> bool:
    """Whether bytes end as a table does."""
    return len(content) >= FOOTER_BYTES and content.endswith(MAGIC)


def table_items(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a table in order. DamagedError where it is none, or a checksum does not hold."""
    if not is_table(content):
        raise DamagedError("it does not end as a table does, so it is cut short or no index at all")
    footer = content[-FOOTER_BYTES:]
    _, place = _handle(footer, 0)  # of the metaindex, which holds nothing here
    (offset, size), _ = _handle(footer, place)
    for _, handle in _entries(_block(content, offset, size)):
        yield from _entries(_block(content, *_handle(handle, 0)[0]))


def masked_crc32c(content: bytes) -> int:
    """The checksum of `content` as the files hold it: rotated and moved, for a CRC of bytes with their CRC is poor."""
    checksum: int = google_crc32c.value(content)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(content: bytes, place: int) -> tuple[int, int]:
    """An unsigned number of seven bits a byte, and the place after it."""
    number = shift = 0
    while place < len(content) and shift < 70:
        byte = content[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, place
        shift += 7
    raise DamagedError("a number does not end")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer: numbers as unsigned integers, all else as bytes."""
    place = 0
    while place < len(message):
        tag, place = varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = varint(message, place)
            yield number, value
            continue
        if kind == 2:
            size, place = varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise DamagedError(f"a field of kind {kind} stands where there can be none")
        part = _part(message, place, size)
        place += size
        yield number, part if kind == 2 else int.from_bytes(part, "little")


def _part(content: bytes, place: int, size: int) -> bytes:
    if size > len(content) - place:
        raise DamagedError(f"{size} bytes should follow byte {place}, but only {len(content) - place} do")
    return content[place : place + size]


def _handle(content: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Where a block is, (offset, size), and the place after that."""
    offset, place = varint(content, place)
    size, place = varint(content, place)
    return (offset, size), place


def _block(content: bytes, offset: int, size: int) -> bytes:
    """A block's bytes, checked and unpacked."""
    block = _part(content, offset, size + TRAILER_BYTES)
    held = int.from_bytes(block[-4:], "little")
    if held != masked_crc32c(block[:-4]):
        raise DamagedError("a block does not have the checksum beside it")
    kind = block[size]
    if kind == PLAIN:
        return block[:size]
    if kind == SNAPPY:
        return _unpacked(block[:size])
    raise DamagedError(f"a block is compressed in a way (number {kind}) that is not known")


def _unpacked(block: bytes) -> bytes:
    size, _ = varint(block, 0)
    try:
        unpacked: bytes = pa.Codec("snappy").decompress(block, decompressed_size=size, asbytes=True)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"a block cannot be unpacked: {error}") from error
    return unpacked


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A block's keys and values: each key as (bytes shared with the one before, bytes of its own)."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    place, key = 0, b""
    while place < end:
        shared, place = varint(block, place)
        own, place = varint(block, place)
        size, place = varint(block, place)
        key = key[:shared] + _part(block, place, own)
        yield key, _part(block, place + own, size)
        place += own + size
