"""Local and remote paths through pyarrow's filesystems; files that appear whole or not at all.

A path is a local one, or a URI that pyarrow knows (`s3://`, `gs://`, `hdfs://`), percent-encoded where a name holds
`%` or `?`, with the filesystem's options behind a question mark: `s3://bucket/data?endpoint_override=host:9000`. What
is found below a URI is a URI with the same options, so that any process can open it. Knows nothing of what the bytes
mean.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pyarrow import fs

from model.errors import ConfigError

PathLike = str | os.PathLike[str]
_BUCKETS = ("s3", "gs", "gcs")  # schemes whose paths begin with the URI's host


def is_remote(path: PathLike) -> bool:
    """Whether a path is a URI of an object store rather than a local path."""
    return "://" in str(path) and not str(path).startswith("file://")


def absolute(path: PathLike) -> str:
    """The path as every process may use it: URIs as they are, local paths made absolute (workers change directory)."""
    text = str(path)
    if is_remote(text):
        place, options = _options_of(text)
        return place.rstrip("/") + options
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def _options_of(uri: str) -> tuple[str, str]:
    """A URI without its options, and the options with their question mark ("" for none)."""
    place, mark, options = uri.partition("?")
    return place, mark + options


def resolve(path: PathLike) -> tuple[Any, str]:
    """(filesystem, path inside it). ConfigError for a URI pyarrow cannot read, or whose bucket cannot be found."""
    text = absolute(path)
    if not is_remote(text):
        return fs.LocalFileSystem(), text
    place, options = _options_of(text)
    scheme, _, rest = place.partition("://")
    host, _, inner = rest.partition("/")
    try:
        if scheme not in _BUCKETS:
            filesystem, inner = fs.FileSystem.from_uri(f"{scheme}://{host}/{_encoded(inner)}{options}")
            return filesystem, inner
        filesystem, bucket = _bucket(f"{scheme}://{host}{options}")
    except ValueError as error:
        raise ConfigError(f"{text}: must be a local path or a URI such as s3://bucket/data, but: {error}") from error
    except OSError as error:
        raise _refused(text, "opened", error) from error
    return filesystem, f"{bucket}/{unquote(_encoded(inner))}" if inner else bucket


@lru_cache(maxsize=64)  # to open a bucket may take requests; thousands of files lie in one
def _bucket(uri: str) -> tuple[Any, str]:
    filesystem, bucket = fs.FileSystem.from_uri(uri)
    return filesystem, bucket


def _encoded(inner: str) -> str:
    """A URI's path as people write it, with spaces and letters of any alphabet, percent-encoded."""
    return quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", inner), safe="/%!$&'()*+,;=:@[]")


def is_refused(path: PathLike, error: BaseException) -> bool:
    """Whether a filesystem refused access, so that it is not the file that is at fault."""
    return bool(_ACCESS_REFUSED.search(str(error))) if is_remote(path) else isinstance(error, PermissionError)


def why(path: PathLike, error: BaseException) -> str:
    """What a filesystem says, in one line; where it refused access, that and what to check."""
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    if not is_refused(path, error):
        return reason
    if not is_remote(path):
        return f"{reason}; check its permissions"
    return f"access was refused ({reason}); check the credentials, and that they may read or write there"


# The names of S3's and Google's errors, as their SDKs write them; a HEAD request has nothing but its status.
_ACCESS_REFUSED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID|INVALID_SIGNATURE|"
    "EXPIRED_?TOKEN|PERMISSION_DENIED|UNAUTHENTICATED|HTTP status 40[13]|Permission denied",
    re.IGNORECASE,
)


def _refused(path: PathLike, what: str, error: OSError) -> ConfigError:
    """What people can mend: a name, permissions, credentials, an endpoint."""
    known = is_refused(path, error) or not is_remote(path)
    cure = "" if known else "; check the bucket's name, the credentials, the region and the endpoint"
    return ConfigError(f"{path}: cannot be {what}: {why(path, error)}{cure}")


@contextmanager
def _refusals_as_config_errors(path: PathLike, what: str) -> Iterator[None]:
    """Turns refusals of a filesystem into a ConfigError; a full disk stays what it is."""
    try:
        yield
    except OSError as error:
        if is_remote(path) or isinstance(error, PermissionError):
            raise _refused(path, what, error) from error
        raise


def join(base: PathLike, *parts: str) -> str:
    """`base` with parts appended, for local paths and URIs alike; a URI keeps its options at its end."""
    place, options = _options_of(str(base)) if is_remote(base) else (str(base), "")
    return "/".join([place.rstrip("/"), *parts]) + options


def stem(path: PathLike) -> str:
    """A file's name without its ending, as part of another file's name: signs that mean something in URIs become _."""
    place = unquote(_options_of(str(path))[0]) if is_remote(path) else str(path)
    return re.sub(r"[%?#*\[\]]", "_", os.path.splitext(place.rpartition("/")[2])[0])


def exists(path: PathLike) -> bool:
    """Whether there is a file or directory at `path`."""
    return bool(_kind(path) != fs.FileType.NotFound)


def is_directory(path: PathLike) -> bool:
    """Whether there is a directory at `path`."""
    return bool(_kind(path) == fs.FileType.Directory)


def _kind(path: PathLike) -> Any:
    filesystem, inner = resolve(path)
    with _refusals_as_config_errors(path, "read"):
        return filesystem.get_file_info(inner).type


def read_bytes(path: PathLike) -> bytes:
    """The content of a file; OSError as the filesystem raises it."""
    filesystem, inner = resolve(path)
    with filesystem.open_input_stream(inner) as stream:
        return bytes(stream.read())


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes a file so that readers see the old one or the whole new one, and after a crash either of them."""
    filesystem, inner = resolve(path)
    with _refusals_as_config_errors(path, "written"):
        if is_remote(path):  # object stores put whole objects
            with filesystem.open_output_stream(inner) as stream:
                stream.write(content)
        else:
            _write_local(inner, content)


def _write_local(inner: str, content: bytes) -> None:
    directory = Path(inner).parent
    directory.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{Path(inner).name}.", dir=directory)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, inner)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_directory(path: PathLike) -> None:
    """Creates a directory and its parents; no error where it is there already."""
    filesystem, inner = resolve(path)
    with _refusals_as_config_errors(path, "made"):
        filesystem.create_dir(inner, recursive=True)


def list_names(path: PathLike) -> list[str]:
    """Names in a directory, sorted; empty where there is no such directory."""
    return sorted(info.base_name for info in _listed(path))


def list_directories(path: PathLike) -> list[str]:
    """Names of the directories in a directory, sorted; empty where there is no such directory."""
    return sorted(info.base_name for info in _listed(path) if info.type == fs.FileType.Directory)


def _listed(path: PathLike) -> Any:
    filesystem, inner = resolve(path)
    with _refusals_as_config_errors(path, "listed"):
        return filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))


def copy_tree(source: PathLike, target: PathLike) -> None:
    """Copies a directory's files; between filesystems, too."""
    from_filesystem, from_path = resolve(source)
    to_filesystem, to_path = resolve(target)
    to_filesystem.create_dir(to_path, recursive=True)
    fs.copy_files(from_path, to_path, source_filesystem=from_filesystem, destination_filesystem=to_filesystem)


def remove_tree(path: PathLike) -> None:
    """Deletes a directory and what is in it; no error where there is none."""
    filesystem, inner = resolve(path)
    if not is_remote(path):
        if os.path.isdir(inner):
            shutil.rmtree(inner)
        return
    if is_directory(path):
        try:
            filesystem.delete_dir(inner)
        except FileNotFoundError:
            if is_directory(path):  # else there were only files: Google's store misses a directory that nobody made
                raise


def remove_file(path: PathLike) -> None:
    """Deletes a file; no error where there is none."""
    filesystem, inner = resolve(path)
    if filesystem.get_file_info(inner).type == fs.FileType.File:
        filesystem.delete_file(inner)
