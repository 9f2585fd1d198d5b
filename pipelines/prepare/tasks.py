"""What runs in the tasks of a preparation: events to sorted runs, which columns are context, runs to sequences.

Each task holds about `task_mebibytes` of events at once, however large the input, a row group or a key is. Apart from
the pipeline, because a task's process imports the module of what it runs: this one loads neither torch nor Ray Data.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from model.storage import join, make_directory, remove_file, write_bytes
from model.tables.arrow_lists import plain
from pipelines.prepare.cut import Cutter
from pipelines.prepare.layout import Layout, time_numbers
from pipelines.prepare.read import EventReader, Share
from pipelines.prepare.settings import MIB, SPLITS, PrepareSettings
from pipelines.prepare.sort import Events, arranged, concatenated, in_order, merged, unequal
from pipelines.prepare.sorted_runs import BATCH_BYTES, RunFile, RunReader, write_run
from pipelines.prepare.write import SequenceWriter
from pipelines.quarantine import write_quarantine


@dataclass(frozen=True)
class Recorded:
    """A task whose results are kept in `directory`, so that a preparation that was stopped goes on where it was."""

    compute: Callable[[int], dict[str, Any]]
    directory: str

    def __call__(self, number: int) -> dict[str, Any]:
        result = self.compute(number)
        write_bytes(record_of(self.directory, number), json.dumps(result).encode())
        pa.default_memory_pool().release_unused()
        return result


def record_of(directory: str, number: int) -> str:
    """Where the result of a task is kept."""
    return join(directory, f"{number:06d}.json")


# Events to runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Partition:
    """Share of the input to sorted runs, each of about `task_mebibytes`."""

    shares: tuple[Share, ...]
    layout: Layout
    settings: PrepareSettings
    buckets: int
    work: str

    def __call__(self, number: int) -> dict[str, Any]:
        runs: list[dict[str, Any]] = []
        found: dict[str, Any] = {"bytes": 0, "bad": 0, "repeats": False, "quarantine": []}
        candidates = list(self.layout.candidates)
        reader = EventReader(self.layout, skip=self.settings.on_bad_rows == "skip")
        for tables, bad in reader.portions(self.shares[number], self.settings.task_mebibytes * MIB):
            name = f"{number:06d}-{len(runs):04d}"
            if bad is not None:
                write_quarantine(join(self.work, "quarantine"), f"{name}.parquet", bad)
                found["quarantine"].append(f"{name}.parquet")
                found["bad"] += bad.num_rows
            if not tables:
                continue
            events = self._sorted(tables)
            same = ~unequal(events.keys.slice(0, len(events) - 1), events.keys.slice(1))
            found["repeats"] |= bool(same.any())
            found["bytes"] += events.nbytes
            candidates = [column for column in candidates if not _differs_within(events, column, same)]
            runs.append(self._write(name, events))
        return {**found, "runs": runs, "candidates": candidates}

    def _sorted(self, tables: list[pa.Table]) -> Events:
        table = pa.concat_tables(tables).combine_chunks()
        tables.clear()  # half of what the task would hold else
        return in_order(arranged(table, self.layout.key, time_numbers(plain(table.column(self.layout.time)))))

    def _write(self, name: str, events: Events) -> dict[str, Any]:
        # A name of its own for each attempt: two of one task, after a node was lost, do not meet.
        path = join(self.work, "runs", f"{name}.{uuid.uuid4().hex[:8]}.arrow")
        make_directory(join(self.work, "runs"))
        return write_run(path, [events], self.buckets).to_plain()


def _differs_within(events: Events, column: str, same_key: np.ndarray) -> bool:
    """Whether a column has two values within a key; the rows are sorted, `same_key` says which go on with a key."""
    values = plain(events.table.column(column))
    return bool((unequal(values.slice(0, len(values) - 1), values.slice(1)) & same_key).any())


# Which columns are context ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detect:
    """Which candidates have one value in every key of a bucket; within each run they have."""

    runs: tuple[RunFile, ...]
    layout: Layout
    candidates: tuple[str, ...]

    def __call__(self, number: int) -> dict[str, Any]:
        columns = (self.layout.key, *self.candidates)
        firsts: list[Events] = []
        for run in self.runs:
            reader = RunReader(run, self.layout.key, columns, self.layout.schema.names)
            firsts += [_first_of_each_key(events) for events in reader.bucket(number)]
        if not firsts:
            return {"candidates": list(self.candidates), "repeats": False}
        events = in_order(concatenated(firsts))
        same = ~unequal(events.keys.slice(0, len(events) - 1), events.keys.slice(1))
        constant = [column for column in self.candidates if not _differs_within(events, column, same)]
        return {"candidates": constant, "repeats": bool(same.any())}


def _first_of_each_key(events: Events) -> Events:
    new = np.ones(len(events), bool)
    new[1:] = unequal(events.keys.slice(0, len(events) - 1), events.keys.slice(1))
    first = events.take(np.flatnonzero(new))
    return Events(first.hash_N, np.zeros(len(first), np.int64), first.keys, first.table)


# Runs to sequences ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """A bucket of all runs to files of sequences. `row_bytes` are the bytes of an event on average."""

    runs: tuple[RunFile, ...]
    layout: Layout
    settings: PrepareSettings
    row_bytes: float
    work: str

    def __call__(self, number: int) -> dict[str, Any]:
        memory = self.settings.task_mebibytes * MIB
        cutter = Cutter(self.layout, most_bytes=2 * memory)
        writers: dict[int, SequenceWriter] = {}
        for events in self._in_order(number, memory):
            self._write(number, cutter.add(events), writers)
        self._write(number, cutter.add(None), writers)
        files = [file for _, writer in sorted(writers.items()) for file in writer.close()]
        return {**cutter.counts.to_plain(), "files": files}

    def _write(self, number: int, tables: dict[int, pa.Table], writers: dict[int, SequenceWriter]) -> None:
        for split, table in tables.items():
            if split not in writers:
                writers[split] = self._writer(number, split)
            writers[split].add(table)

    def _writer(self, number: int, split: int) -> SequenceWriter:
        settings = self.settings
        below = f"{SPLITS[split]}/" if settings.split_by_time else ""
        return SequenceWriter(
            join(self.work, "files"),
            f"{below}part-{number:05d}",
            self.layout.output_schema(),
            group_rows=settings.row_group_rows,
            group_bytes=settings.row_group_mebibytes * MIB,
            file_bytes=settings.file_mebibytes * MIB,
        )

    def _in_order(self, number: int, memory: int) -> Iterator[Events]:
        runs = [run for run in self.runs if run.rows[number]]
        if sum(run.rows[number] for run in runs) * self.row_bytes <= memory:
            parts = [events for run in runs for events in self._reader(run).bucket(number)]
            if parts:
                yield in_order(concatenated(parts))
            return
        yield from self._merged(number, runs, memory)

    def _reader(self, run: RunFile) -> RunReader:
        names = self.layout.schema.names
        return RunReader(run, self.layout.key, names, names)

    def _merged(self, number: int, runs: Sequence[RunFile], memory: int) -> Iterator[Events]:
        """Merges a bucket that is larger than the memory, in several rounds where there are too many runs for one."""
        at_once, temporary = max(2, memory // (2 * BATCH_BYTES)), list[str]()
        while len(runs) > at_once:
            groups = [runs[start : start + at_once] for start in range(0, len(runs), at_once)]
            runs = [self._merge_to_file(number, group, memory) for group in groups]
            temporary += [run.file for run in runs]
        yield from merged([self._reader(run).bucket(number) for run in runs], memory)
        for file in temporary:
            remove_file(file)

    def _merge_to_file(self, number: int, runs: Sequence[RunFile], memory: int) -> RunFile:
        path = join(self.work, "runs", f"merged-{number:06d}.{uuid.uuid4().hex[:8]}.arrow")
        parts = merged([self._reader(run).bucket(number) for run in runs], memory)
        return write_run(path, parts, len(self.runs[0].rows))
