"""Remote files that every process of a node maps into memory: fetched once a node, so that it holds them once.

They lie in the directory for temporary files under the hash of their content. Knows no Ray.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pyarrow import fs

from model.errors import ConfigError
from model.storage.atomic import appearing
from model.storage.filesystems import PathLike, resolve

KEPT_SECONDS = 7 * 86_400  # a copy that nobody has asked for in so long makes room when another is fetched


def node_copy(path: PathLike, sha256: str) -> str:
    """This node's copy of a remote file of that content; the first process that asks fetches it, others wait."""
    import fcntl  # Windows has none; there Ray trains on no cluster

    directory = _directory()
    copy = directory / sha256
    with open(directory / f"{sha256}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            _remove_old(directory)
            _fetch(path, sha256, copy)
        os.utime(copy)
    return str(copy)


def sha256_of(local: PathLike) -> str:
    """The SHA-256 of a local file's content."""
    with open(local, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(path: PathLike, sha256: str, copy: Path) -> None:
    filesystem, inner = resolve(path)
    with appearing(copy) as partial:
        fs.copy_files(inner, partial, source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
        found = sha256_of(partial)
        if found != sha256:
            raise ConfigError(
                f"{path}: must have the SHA-256 {sha256}, but has {found}; start the run anew, under another name"
            )


def _remove_old(directory: Path) -> None:
    for file in directory.iterdir():
        with suppress(FileNotFoundError):  # another process is at it
            if time.time() - file.stat().st_mtime > KEPT_SECONDS:
                file.unlink()


def _directory() -> Path:
    """Where copies lie: this user's alone, for whoever writes there decides what a training reads."""
    directory = Path(tempfile.gettempdir(), f"dynamic-rnn-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise ConfigError(f"{directory}: must belong to user {os.getuid()}; set TMPDIR to another directory")
    return directory
