"""Vocabularies in files: one key a line, in id order. They are read when columns are fitted; models keep the keys."""

from __future__ import annotations

from model.columns import Key
from model.errors import ConfigError
from model.storage import read_bytes


def file_keys(path: str, *, integers: bool, most: int | None) -> tuple[Key, ...]:
    """The first `most` lines (None: all) of a UTF-8 file as keys. ConfigError names the line that cannot be one."""
    try:
        text = read_bytes(path).decode("utf-8")
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ConfigError(f"{path}: must be a vocabulary, one key a line, but cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be a vocabulary in UTF-8, but byte {error.start} is not") from error
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")][:most] if text else []
    if not lines:
        raise ConfigError(f"{path}: must be a vocabulary, one key a line, but is empty")
    keys = [_integer(path, number, line) if integers else line for number, line in enumerate(lines, 1)]
    first: dict[Key, int] = {}
    for number, key in enumerate(keys, 1):
        if first.setdefault(key, number) != number:
            raise ConfigError(f"{path}: keys must be distinct, but {key!r} stands in lines {first[key]} and {number}")
    return tuple(keys)


def _integer(path: str, number: int, line: str) -> int:
    try:
        return int(line)
    except ValueError as error:
        raise ConfigError(
            f"{path}: the column holds integers, so each line must be one, but line {number} is {line!r}"
        ) from error
