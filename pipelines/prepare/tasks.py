"""What runs in the tasks of a preparation: events to sorted runs, runs to sequences.

Each task holds about `task_mebibytes` of events at once, however large the input, a row group or a key is. Apart from
the pipeline, because a task's process imports the module of what it runs: this one loads neither torch nor Ray Data.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from model.errors import DataError
from model.storage import join, make_directory, remove_file, write_bytes
from model.tables.arrow_lists import plain
from model.tables.prepared import with_prepared
from pipelines.prepare.cut import Cutter
from pipelines.prepare.detect import differs_within, ends_columns, ends_of, first_and_last, same_key
from pipelines.prepare.layout import CARRIED, LEFT, Layout, time_numbers
from pipelines.prepare.read import EventReader, Share
from pipelines.prepare.settings import MIB, SPLITS, PrepareSettings
from pipelines.prepare.sort import Arrange, Events, concatenated, in_order, merged
from pipelines.prepare.sorted_runs import BATCH_BYTES, RunFile, RunReader, write_run
from pipelines.prepare.write import SequenceWriter
from pipelines.quarantine import quarantined, write_quarantine

LEFT_ROWS = 1 << 16  # of a row group


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
        found: dict[str, Any] = {"bytes": 0, "ends": {}, "bad": 0, "repeats": False, "quarantine": []}
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
            same = same_key(events)
            found["repeats"] |= bool(same.any())
            found["bytes"] += events.nbytes
            candidates = [column for column in candidates if not differs_within(events, column, same)]
            runs.append(self._write(name, events))
            if len(self.shares) == 1:  # it may be the only run, and then no more is to be looked at
                found["ends"] = ends_of(first_and_last(events), self.layout, ends_columns(self.layout, candidates))
        return {**found, "runs": runs, "candidates": candidates}

    def _sorted(self, tables: list[pa.Table]) -> Events:
        table = pa.concat_tables(tables).combine_chunks()
        tables.clear()  # half of what the task would hold else
        arrange = Arrange.of(self.layout)
        return in_order(arrange(table, time_numbers(plain(table.column(self.layout.time)))))

    def _write(self, name: str, events: Events) -> dict[str, Any]:
        # A name of its own for each attempt: two of one task, after a node was lost, do not meet.
        path = join(self.work, "runs", f"{name}.{uuid.uuid4().hex[:8]}.arrow")
        make_directory(join(self.work, "runs"))
        return write_run(path, [events], self.buckets).to_plain()


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
        cutter = Cutter(self.layout, most_bytes=2 * memory, skip=self.settings.on_bad_rows == "skip")
        writers: dict[int, SequenceWriter] = {}
        left = self._left_writer(number)
        quarantine: list[str] = []
        for events in chain(self._in_order(number, memory), [None]):
            self._write(number, cutter.add(events), writers)
            for table in cutter.left:
                left.add(table)
            quarantine += [self._quarantine(number, len(quarantine), table) for table in cutter.late_rows]
            cutter.left, cutter.late_rows = [], []
        files = [file for _, writer in sorted(writers.items()) for file in writer.close()]
        return {**cutter.counts.to_plain(), "files": files, "left": left.close(), "quarantine": quarantine}

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
            with_prepared(self.layout.output_schema(), self.layout.prepared(split if below else None)),
            group_rows=settings.row_group_rows,
            group_bytes=settings.row_group_mebibytes * MIB,
            file_bytes=settings.file_mebibytes * MIB,
        )

    def _left_writer(self, number: int) -> SequenceWriter:
        """Writes what is left for the preparation that continues this one; hidden from readers of Parquet."""
        schema = with_prepared(pa.schema([*self.layout.schema, *CARRIED]), self.layout.prepared())
        return SequenceWriter(
            join(self.work, "files"),
            f"{LEFT}/keys-{number:05d}",
            schema,
            group_rows=LEFT_ROWS,
            group_bytes=self.settings.row_group_mebibytes * MIB,
            file_bytes=self.settings.file_mebibytes * MIB,
            suffix=".pq",
        )

    def _quarantine(self, number: int, count: int, late: pa.Table) -> str:
        problem = "older than the events of its key that the preparation before has written"
        reason = DataError(problem, column=self.layout.time)
        name = f"late-{number:06d}-{count:04d}.parquet"
        rows = quarantined(late, dict.fromkeys(range(late.num_rows), reason), file=None, first_row=None)
        write_quarantine(join(self.work, "quarantine"), name, rows)
        return name

    def _in_order(self, number: int, memory: int) -> Iterator[Events]:
        runs = [run for run in self.runs if run.rows[number]]
        if sum(run.rows[number] for run in runs) * self.row_bytes <= memory:
            parts = [events for run in runs for events in self._reader(run).bucket(number)]
            if parts:
                yield in_order(concatenated(parts))
            return
        yield from self._merged(number, runs, memory)

    def _reader(self, run: RunFile) -> RunReader:
        names = self.layout.read_schema.names
        return RunReader(run, Arrange.of(self.layout), names, names)

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
