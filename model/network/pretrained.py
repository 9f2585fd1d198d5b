"""Pretrained vectors: tables in .npy, .npz or .safetensors files, one row an id. Nothing in them is executed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from model.columns import Column, Embedding
from model.columns.config import column_name
from model.errors import ConfigError
from model.network.column_layers import ColumnLayer
from model.storage import read_bytes

FORMS = ".npy, .npz or .safetensors"


def load_pretrained(column: Column, part: ColumnLayer) -> None:
    """Copies the vectors that a column names into its table. ConfigError when they cannot be read or do not fit.

    A file may lack the last rows, those of the OOV buckets: they keep their initial values.
    """
    if not isinstance(column, Embedding) or column.pretrained is None:
        return
    assert part.table is not None, "an embedding has a table"
    vectors = read_vectors(column.pretrained, column.pretrained_array)
    oov = getattr(column.source, "oov_buckets", 0)
    rows, width = part.table.shape
    if vectors.shape not in ((rows, width), (rows - oov, width)):
        raise ConfigError(
            f"{column.pretrained}: column {column_name(column)!r} needs {rows} vectors"
            + (f" (or {rows - oov} without those of unknown values)" if oov else "")
            + f" of {width} numbers, but the shape is {list(vectors.shape)}"
        )
    with torch.no_grad():
        part.table[: len(vectors)] = torch.from_numpy(vectors).to(part.table)


def read_vectors(path: str, array: str | None = None) -> np.ndarray:
    """The file's array as float32 or float64; `array` names it where the file holds several."""
    vectors = _chosen(path, _arrays(path), array)
    if vectors.dtype.kind != "f" or not np.isfinite(vectors).all():
        raise ConfigError(f"{path}: pretrained vectors must be finite floats, but are {_what(vectors)}")
    return vectors.astype(np.float64 if vectors.dtype == np.float64 else np.float32)


def _what(vectors: np.ndarray) -> str:
    return str(vectors.dtype) if vectors.dtype.kind != "f" else "not all finite"


def _arrays(path: str) -> Mapping[str, np.ndarray]:
    """All arrays of a file by name; the one of an .npy file under ""."""
    if not path.endswith((".npy", ".npz", ".safetensors")):
        raise ConfigError(f"{path}: pretrained vectors must be a {FORMS} file, but the name ends otherwise")
    try:
        content = read_bytes(path)
        if path.endswith(".safetensors"):
            tensors: Mapping[str, np.ndarray] = load_safetensors(content)
            return tensors
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ConfigError(f"{path}: must hold pretrained vectors, but cannot be read: {reason}") from error
    except (SafetensorError, zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: must be a {FORMS} file of numbers, but: {error}") from error


def _chosen(path: str, arrays: Mapping[str, np.ndarray], name: str | None) -> np.ndarray:
    if name is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if name is None:
        raise ConfigError(f"{path}: holds {', '.join(arrays) or 'no array'}; name one as pretrained_array")
    if name not in arrays:
        raise ConfigError(f"{path}: pretrained_array must be one of {', '.join(arrays)}, but is {name!r}")
    return arrays[name]
