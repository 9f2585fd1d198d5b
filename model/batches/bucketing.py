"""Rows of a window to batches of like length: sorted with some slack, cut by rows or by padded steps, batches shuffled.

Sorting alone would put nearly the same rows together in each epoch where a window holds all the data, and lengths
differ. So the order is loosened at the margin: a length counts as up to 2 % more or less, and a row moves by up to a
tenth of a batch whatever its length. Measured on lengths drawn log-normally (median 60, sigma 0.8, at most 512), 64
rows a batch, all rows in one window of 64 batches: 1.062 padded steps a real one against 1.049 for the bare sort, and
the most alike batches of two epochs share 68 % of their rows against 85 %. Knows no files, no torch, no Ray.
"""

from __future__ import annotations

import numpy as np

LENGTH_SLACK = 0.02  # of a row's length
PLACE_SLACK = 0.1  # of a batch


def by_length(lengths_R: np.ndarray, rows_per_batch_R: np.ndarray, random: np.random.Generator | None) -> np.ndarray:
    """Places of rows from the shortest to the longest; with `random` only about so.

    `rows_per_batch_R`: how many rows stand in a batch of rows as long as each.
    """
    if random is None:
        return np.argsort(lengths_R, kind="stable")
    order = random.permutation(len(lengths_R))
    about = lengths_R[order] * (1 + LENGTH_SLACK * random.uniform(-1, 1, len(order)))
    order = order[np.argsort(about, kind="stable")]
    places = np.arange(len(order)) + PLACE_SLACK * rows_per_batch_R[order] * random.uniform(-1, 1, len(order))
    return order[np.argsort(places, kind="stable")]


def cut_by_rows(rows: np.ndarray, batch_rows: int, first: int, random: np.random.Generator | None) -> np.ndarray:
    """Rows (by length) as batches of exactly `batch_rows`, where the window begins at position `first` of the epoch.

    The longest rows complete the batch begun before and begin the one that goes on after.
    """
    head = min(-first % batch_rows, len(rows))
    middle, longest = rows[: len(rows) - head], rows[len(rows) - head :]
    batches, tail = divmod(len(middle), batch_rows)
    body = middle[: batches * batch_rows].reshape(batches, batch_rows)
    if random is not None:
        body = body[random.permutation(batches)]
    # Rows of one fragment stand together in a batch, so that a rank's slice touches few fragments.
    body = np.sort(body, axis=1)
    return np.concatenate([np.sort(longest), body.reshape(-1), np.sort(middle[len(middle) - tail :])])


def cut_by_steps(
    rows: np.ndarray, lengths_R: np.ndarray, padded_steps: int, random: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, rows of each batch): as many of the rows (by length) a batch as rows × longest ≤ `padded_steps` allows.

    A longer row stands alone; one of length 0 takes as much room as one of length 1. Cut from the longest down, so
    that what fills no batch are the window's shortest rows.
    """
    rows, lengths_R = rows[::-1], np.maximum(lengths_R[::-1], 1)
    sizes, start = [], 0
    while start < len(rows):
        most = max(padded_steps // int(lengths_R[start]), 1)
        longest = np.maximum.accumulate(lengths_R[start : start + most])
        padded = longest * np.arange(1, len(longest) + 1)
        sizes.append(max(int(np.searchsorted(padded, padded_steps, side="right")), 1))
        start += sizes[-1]
    order = np.arange(len(sizes)) if random is None else random.permutation(len(sizes))
    place = np.argsort(order)
    shuffled = np.lexsort((rows, np.repeat(place, sizes)))  # as above, by row number in each batch
    return rows[shuffled], np.array(sizes, np.int64)[order]
