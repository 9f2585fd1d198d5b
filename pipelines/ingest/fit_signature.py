"""Whether what was fitted still goes with the data and the settings: a signature of both, stored beside it.

A signature holds the settings that decide what is scanned and fitted, and each file's size and time of change: those
of the data and of vocabularies. Files that were only touched differ, too; they are scanned again. Knows no Ray.
"""

from __future__ import annotations

import json
from typing import Any

from model.bundle.run_directory import FIT_SIGNATURE
from model.columns import Vocabulary, Weighted
from model.columns.config import source_of
from model.storage import (
    exists,
    find_files,
    join,
    pinned,
    read_bytes,
    remove_file,
    resolve,
    without_version,
    write_bytes,
)
from pipelines.config import RunConfig, changed_settings, flat

FITTED = (
    "problem_type", "prediction_type", "columns", "label", "weight", "num_classes", "classes", "class_weights",
    "standardize_label",
)  # fmt: skip
NOT_FITTED = (
    "test",
    "unseen_labels",
    "mixed_parts",
    "nan_is_missing",
)  # of the data's; the last is in the columns
SHAPING = ("cell_type", "num_units")  # of the state: they count where rows bring states
MOST_TOLD = 3


def signature_of(config: RunConfig) -> dict[str, Any]:
    """The settings and files that decide what is fitted, as JSON holds them. DataError where there are no data."""
    model, data = config.model.model_dump(mode="json"), config.data.model_dump(mode="json")
    settings = {f"model.{name}": model[name] for name in FITTED}
    settings |= flat({"data": {name: value for name, value in data.items() if name not in NOT_FITTED}})
    paths = [path for name in ("train", "validation") if data[name] is not None for path in find_files(data[name])]
    found: dict[str, Any] = json.loads(
        json.dumps(
            {
                "settings": settings | {"plugins": config.plugins},
                "files": {path: _state(path) for path in dict.fromkeys([*paths, *vocabulary_files(config)])},
            }
        )
    )
    return found


def shape_of(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the shape of the model's state."""
    model = config.model.model_dump(mode="json")
    return {f"model.{name}": model[name] for name in SHAPING}


def pinned_data(config: RunConfig, *, resume: bool) -> RunConfig:
    """The config with the versions of its Delta tables: those they have now, or of a resumed run had when it began."""
    where = join(config.directory, FIT_SIGNATURE)
    before = json.loads(read_bytes(where))["settings"] if resume and exists(where) else {}
    paths = {}
    for name in ("train", "validation"):
        path, stored = getattr(config.data, name), before.get(f"data.{name}")
        if path is not None and stored is not None and without_version(stored) == path:
            paths[name] = stored
        elif path is not None:
            paths[name] = pinned(path)
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})


def vocabulary_files(config: RunConfig) -> list[str]:
    """The files that vocabularies are read from."""
    columns = config.model.columns
    sources = [source_of(column) for column in (*columns.sequence, *columns.context)]
    plain = [source.source if isinstance(source, Weighted) else source for source in sources]
    return [source.file for source in plain if isinstance(source, Vocabulary) and source.file is not None]


def _state(path: str) -> list[int | None]:
    """Bytes and nanoseconds of the last change; nulls where a filesystem does not tell."""
    filesystem, inner = resolve(path)
    information = filesystem.get_file_info(inner)
    return [information.size, information.mtime_ns]


def changes(config: RunConfig, now: dict[str, Any]) -> list[str]:
    """What differs between the stored signature and this one, in words; empty where nothing does."""
    where = join(config.directory, FIT_SIGNATURE)
    if not exists(where):
        return ["it is not known what the stored columns were fitted on"]
    before = json.loads(read_bytes(where))
    shape = {name: value for name, value in shape_of(config).items() if name in before["settings"]}
    settings = changed_settings(before["settings"], now["settings"] | shape).values()
    gone = [f"{path} is no longer there" for path in before["files"] if path not in now["files"]]
    new = [f"{path} is new" for path in now["files"] if path not in before["files"]]
    changed = [
        f"{path} has changed"
        for path, state in now["files"].items()
        if path in before["files"] and before["files"][path] != state
    ]
    return [*settings, *gone, *new, *changed]


def listed(found: list[str]) -> str:
    """The first changes, for a message."""
    more = f" and {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
    return "; ".join(found[:MOST_TOLD]) + more


def store(directory: str, signature: dict[str, Any]) -> None:
    """Writes the signature: what lies beside it is whole from now on."""
    write_bytes(join(directory, FIT_SIGNATURE), json.dumps(signature, ensure_ascii=False).encode())


def forget(directory: str) -> None:
    """Removes the signature, before what lies beside it is written."""
    remove_file(join(directory, FIT_SIGNATURE))
