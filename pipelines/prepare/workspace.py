"""The place of a preparation: whose output a directory is, the work beside it, and how the output appears at once.

    OUT/_PREPARE.json   settings and inputs: whose output this is, written first
    OUT/_work/          while it is not finished; hidden from readers of Parquet, as all that begins with _
    OUT/…parquet        moved here when all of them are whole, below train/, validation/ and test/ where it is split
    OUT/_open/          how each key ended, for the preparation that continues this one
    OUT/_quarantine/    events that were left out
    OUT/_SUMMARY.json   the result, written last

Knows no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from model.errors import ConfigError
from model.storage import (
    absolute,
    exists,
    is_directory,
    join,
    list_names,
    make_directory,
    read_bytes,
    remove_file,
    remove_tree,
    resolve,
    write_bytes,
)
from model.storage.filesystems import PathLike
from pipelines.prepare.settings import PrepareSettings
from pipelines.prepare.tasks import record_of

FORMAT = 1
SOURCE, SUMMARY, WORK, MOVES = "_PREPARE.json", "_SUMMARY.json", "_work", "moves.json"


def kept_results(directory: str, count: int) -> dict[int, dict[str, Any]]:
    """The results of tasks 0 … count − 1 that a stopped preparation has left, by the task's number."""
    there = set(list_names(directory))
    paths = {number: record_of(directory, number) for number in range(count)}
    return {number: json.loads(read_bytes(path)) for number, path in paths.items() if path.rpartition("/")[2] in there}


def _stamp(file: str) -> list[int]:
    """Size and time of change of a file: what tells that it is another one."""
    filesystem, inner = resolve(file)
    info = filesystem.get_file_info(inner)
    return [info.size or 0, info.mtime_ns or 0]


class Workplace:
    """An output directory and the work in it."""

    def __init__(
        self,
        events: PathLike,
        output: PathLike,
        settings: PrepareSettings,
        files: Sequence[str],
        before: Sequence[str] = (),
    ) -> None:
        """`files` are those of the events, `before` those that an earlier preparation has left, if this one goes on."""
        self.events = absolute(events)
        self.output = absolute(output)
        self.work = join(self.output, WORK)
        self.settings = settings
        self.source = {
            "format": FORMAT,
            "settings": settings.model_dump(mode="json"),
            "inputs": [[file, *_stamp(file)] for file in files],
        }
        if before:
            self.source["continues"] = [[file, *_stamp(file)] for file in before]

    def records(self, phase: str) -> str:
        """Where the results of a phase's tasks are kept."""
        return join(self.work, "results", phase)

    def check(self) -> dict[str, Any] | None:
        """The result if this preparation was finished before. ConfigError where the directory holds something else."""
        if self.output == self.events or (self.output.startswith(f"{self.events}/") and is_directory(self.events)):
            raise ConfigError(f"the output must lie outside the events, but {self.output} lies within {self.events}")
        if not self._claimed():
            self._refuse_other()
        elif exists(join(self.output, SUMMARY)):
            found: dict[str, Any] = json.loads(read_bytes(join(self.output, SUMMARY)))
            return found
        return None

    def claim(self) -> dict[str, Any] | None:
        """`check`, and the directory is ours. What an unfinished preparation of other settings has left is removed."""
        if self.check() is None:
            if self._claimed():
                self._finish_moves()
            else:
                remove_tree(self.work)
                make_directory(self.output)
                write_bytes(join(self.output, SOURCE), json.dumps(self.source).encode())
        found = self.check()
        if found is None:
            make_directory(self.work)
        else:
            remove_tree(self.work)
        return found

    def _claimed(self) -> bool:
        where = join(self.output, SOURCE)
        if not exists(where):
            return False
        found = json.loads(read_bytes(where))
        try:  # an earlier version had fewer settings, a later one may have more
            same = PrepareSettings.model_validate(found["settings"]) == self.settings
        except ValueError:
            return False
        return same and {**found, "settings": None} == {**self.source, "settings": None}

    def _refuse_other(self) -> None:
        names = set(list_names(self.output)) if is_directory(self.output) else set()
        if SOURCE in names and names <= {SOURCE, WORK} and not exists(join(self.work, MOVES)):
            return  # an unfinished one, of which nothing was to be seen yet
        if SOURCE in names:
            raise ConfigError(
                f"{self.output} holds the sequences of other events or settings, or of events that have changed; "
                f"remove it, or name another directory"
            )
        if names or (exists(self.output) and not is_directory(self.output)):
            raise ConfigError(f"{self.output} must be a new or empty directory, but is not; name another one")

    def clear(self) -> None:
        """Leaves the directory as it was before: without work and claim."""
        remove_tree(self.work)
        remove_file(join(self.output, SOURCE))
        if is_directory(self.output) and not list_names(self.output):
            remove_tree(self.output)

    def publish(self, files: Sequence[tuple[str, str]], result: dict[str, Any]) -> None:
        """Moves finished files (where each lies, its name below the output) into the output, and ends the work.

        What is to be moved is written down first: after a crash midway the next call moves the rest.
        """
        moves = {"files": list(files), "result": result}
        write_bytes(join(self.work, MOVES), json.dumps(moves).encode())
        self._finish_moves()

    def _finish_moves(self) -> None:
        where = join(self.work, MOVES)
        if not exists(where):
            return
        moves = json.loads(read_bytes(where))
        filesystem, _ = resolve(self.output)
        made = set()
        for path, name in moves["files"]:
            below = join(self.output, *name.split("/")[:-1])
            if below not in made:
                make_directory(below)
                made.add(below)
            if exists(path):
                filesystem.move(resolve(path)[1], resolve(join(self.output, name))[1])
        write_bytes(join(self.output, SUMMARY), json.dumps(moves["result"], ensure_ascii=False, indent=1).encode())
        remove_tree(self.work)
