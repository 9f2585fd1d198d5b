"""Going on from the output of an earlier preparation: what it left of each key, and whether it fits.

Beside its sequences every preparation leaves, below `OUT/_open`, a few rows a key in the order of the keys' hashes: the
last event that stands in a sequence, for its time, and behind it those that wait for their label. The next one reads
them before its own events. Knows no Ray.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from model.errors import ConfigError
from model.storage import absolute, exists, is_directory, join, list_names, read_bytes
from model.storage.filesystems import PathLike
from pipelines.prepare.layout import LEFT
from pipelines.prepare.settings import PrepareSettings
from pipelines.prepare.workspace import SOURCE, SUMMARY

# What decides which events stand where, and what they are; the greatest length and the parts of a split may differ.
SAME = (
    *("key", "time", "columns", "context", "detect_context", "time_delta", "gap"),
    *("label", "label_shift", "label_change", "for_scoring"),
)


@dataclass(frozen=True)
class Continuation:
    """What an earlier preparation left: files of rows, its sequence and context columns, and what only an end tells."""

    directory: str
    files: tuple[str, ...]
    columns: tuple[tuple[str, ...], tuple[str, ...]]
    ends: tuple[str, ...]


def continuation_of(directory: PathLike, settings: PrepareSettings) -> Continuation:
    """What the preparation that wrote `directory` left; ConfigError where `settings` cannot go on from it."""
    place = absolute(directory)
    if not exists(join(place, SUMMARY)) or not exists(join(place, SOURCE)):
        raise ConfigError(f"--continue must name the output of a finished prepare, but {place} is none")
    left = join(place, LEFT)
    if not is_directory(left):
        raise ConfigError(
            f"--continue must name an output that tells how it ended, but {place} is of an earlier version, or its "
            f"{LEFT} is lost; prepare those events again"
        )
    before = PrepareSettings.model_validate(json.loads(read_bytes(join(place, SOURCE)))["settings"])
    differ = [name for name in SAME if getattr(before, name) != getattr(settings, name)]
    if differ:
        told = "; ".join(f"{name} was {getattr(before, name)!r} and is {getattr(settings, name)!r}" for name in differ)
        raise ConfigError(f"--continue {place} needs the settings of then: {told}")
    found = json.loads(read_bytes(join(place, SUMMARY)))
    context = tuple(found["context_columns"])
    ends = tuple(name for name in found["prepared"].get("known_at_end", ()) if name in context)
    files = tuple(join(left, name) for name in sorted(list_names(left)))
    return Continuation(place, files, (tuple(found["sequence_columns"]), context), ends)
