"""The latest rows of a path, or the keys that begin last: found by one pass over their times, before the scan.

The pass reads the time, the key and the filter's columns alone, and keeps 8 bytes a row (16 with a key). Knows no Ray,
no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from model.errors import DataError
from model.scan.split import SplitBy, key_hashes, time_numbers
from model.tables.filter_arrow import kept_rows
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import first_row, is_stored, read_fragment

READERS = 8  # threads


def split_by_time(
    fragments: Sequence[Fragment],
    time: str,
    fraction: float,
    key: tuple[str, ...] = (),
    where: Filter | None = None,
    *,
    skip_damaged: bool = False,
) -> SplitBy:
    """The split whose validation rows are the latest `fraction` of those that `where` keeps.

    Rows of one time stay together. With a key, all rows of a key stand with the first of them, and it is the latest
    `fraction` of keys. DataError where a time is missing or all are the same.
    """

    def read(fragment: Fragment) -> tuple[np.ndarray, np.ndarray]:
        return _times_and_keys(fragment, time, key, where, skip_damaged=skip_damaged)

    with ThreadPoolExecutor(READERS) as threads:
        parts = list(threads.map(read, fragments))
    times = np.concatenate([times for times, _ in parts])
    split = SplitBy(fraction=fraction, key=key or None, time=time)
    if not len(times):
        return split.model_copy(update={"since": 0})  # no row is left: the scan says so
    if not key:
        return split.model_copy(update={"since": _since(times, fraction, time)})
    hashes, place = np.unique(np.concatenate([hashes for _, hashes in parts]), return_inverse=True)
    firsts = np.full(len(hashes), times.max())
    np.minimum.at(firsts, place, times)
    since = _since(firsts, fraction, time)
    return split.model_copy(update={"since": since, "late_keys": hashes[firsts >= since].tobytes()})


def _times_and_keys(
    fragment: Fragment, time: str, key: tuple[str, ...], where: Filter | None, *, skip_damaged: bool
) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = read_fragment(fragment, [time, *key, *(where.columns if where is not None else ())])
    except DataError:
        if skip_damaged and is_stored(fragment):
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)  # the scan tells of it
        raise
    rows = np.arange(table.num_rows) if where is None else np.flatnonzero(kept_rows(where, table))
    try:
        used = table.take(rows)
        return time_numbers(used, time), key_hashes(used, key) if key else np.zeros(0, np.uint64)
    except DataError as error:
        row = None if error.row is None else int(rows[error.row])
        at = DataError(error.problem, row=row, column=error.column)
        raise at.located(file=fragment.file, first_row=first_row(fragment)) from error.__cause__


def _since(times: np.ndarray, fraction: float, name: str) -> int | float:
    """The first of the latest times: as many as the fraction, and those that tie with the first of them; not all."""
    ordered = np.sort(times)
    since = ordered[len(ordered) - max(1, round(fraction * len(ordered)))]
    if since == ordered[0]:
        later = ordered[ordered > since]
        if not len(later):
            raise DataError(
                "the time to split by must differ, but is the same in all rows; name another column with "
                "data.validation_by_time",
                column=name,
            )
        since = later[0]
    found: int | float = since.item()
    return found
