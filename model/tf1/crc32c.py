"""CRC-32C of bytes, in numpy: what TensorFlow's files are checked with. Pure; knows no files.

A checksum is linear over GF(2), so the bytes are cut into lanes that are taken together, one byte of each at a time,
and the lanes are joined pairwise by "followed by n zero bytes", a 32 x 32 bit matrix.
"""

from __future__ import annotations

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected
ALL_BITS = np.arange(32, dtype=np.uint32)
Words = np.ndarray  # of uint32


def _table() -> Words:
    """The effect of each byte on the register."""
    register: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        register = (register >> np.uint32(1)) ^ (register & np.uint32(1)) * np.uint32(POLYNOMIAL)
    return register


def _pairs() -> Words:
    """The effect of each two bytes, the first one in the lower half."""
    first = TABLE[np.arange(65536) & 0xFF]
    high = np.arange(65536, dtype=np.uint32) >> np.uint32(8)
    pairs: Words = TABLE[(first ^ high) & 0xFF] ^ (first >> np.uint32(8))
    return pairs


TABLE = _table()
PAIRS = _pairs()


def crc32c(content: bytes) -> int:
    """The checksum of `content`."""
    data = np.frombuffer(content, np.uint8)
    if len(data) < 4:  # the register's first value is set by the first four bytes
        return _bytewise(data)
    length = 2 << max(0, (len(data).bit_length() - 1) // 2)  # bytes of a lane
    lanes = 1 << (-(-len(data) // length) - 1).bit_length()
    padded = np.zeros(lanes * length, np.uint8)  # zeros before the first byte change nothing
    padded[-len(data) :] = data
    start = len(padded) - len(data)
    padded[start : start + 4] ^= 0xFF
    columns = np.ascontiguousarray(padded.view("<u2").reshape(lanes, length // 2).T)
    registers = np.zeros(lanes, np.uint32)
    for column in columns:
        registers = PAIRS.take((registers ^ column) & 0xFFFF) ^ (registers >> np.uint32(16))
    return int(_joined(registers, length)) ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """A checksum as the files hold it: rotated and moved, for a checksum of checksums is a poor one."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _bytewise(data: np.ndarray) -> int:
    register = 0xFFFFFFFF
    for byte in data.tolist():
        register = int(TABLE[(register ^ byte) & 0xFF]) ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _joined(registers: Words, length: int) -> np.uint32:
    """One register of lanes of `length` bytes that stand one behind the other."""
    one_zero = np.uint32(1) << ALL_BITS
    matrix = TABLE[one_zero & 0xFF] ^ (one_zero >> np.uint32(8))  # row i: where bit i goes
    for _ in range(length.bit_length() - 1):
        matrix = _through(matrix, matrix)
    while len(registers) > 1:
        registers = _through(matrix, registers[::2]) ^ registers[1::2]
        matrix = _through(matrix, matrix)
    return np.uint32(registers[0])


def _through(matrix: Words, registers: Words) -> Words:
    """Each register times the matrix."""
    moved = np.zeros_like(registers)
    for bit in range(32):
        moved ^= np.where((registers >> np.uint32(bit)) & 1, matrix[bit], np.uint32(0))
    return moved
