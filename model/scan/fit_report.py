"""What was fitted, for people: plain data of each column and of the label, and a line of text for each.

Made once, when the columns are fitted, and stored beside them: shares of unknown values and the like are known only
while the statistics are at hand. Knows no files, no torch.
"""

from __future__ import annotations

from collections import Counter
from heapq import nsmallest
from typing import Any

import numpy as np

from model.columns import Crossed, Key, Numeric, leaves, source_key
from model.columns.config import source_of
from model.features.categorical import FittedVocabulary
from model.features.combined import FittedWeighted
from model.features.fitted_columns import FittedColumns, iterate_sources
from model.features.labels import FittedLabel, ProblemType
from model.features.numeric import FittedNumeric
from model.features.ordered_merge import DataStats
from model.features.stats import ColumnStats

Plain = dict[str, Any]
MOST_SHOWN = 5  # keys, classes or boundaries of a column in a line


def report_of(columns: FittedColumns, label: FittedLabel, stats: DataStats) -> Plain:
    """{"columns": [one each], "label": …} as JSON may hold it; numbers are those of the training rows."""
    found = []
    for group, key, column in iterate_sources(columns.columns):
        source, fitted = source_of(column), columns.sources[key]
        own = stats.columns.get(source_key(source if isinstance(source, Numeric) else leaves(source)[0]), ColumnStats())
        told: Plain = {"column": source.name, "group": group, "kind": source.type, "entries": own.entries}
        if isinstance(fitted, FittedNumeric):
            told |= _moments(own) | {"boundaries": {count: list(edges) for count, edges in fitted.boundaries.items()}}
        elif isinstance(source, Crossed):
            told |= {"buckets": source.buckets, "boundaries": _crossed_boundaries(fitted)}
        else:
            inner = fitted.source if isinstance(fitted, FittedWeighted) else fitted
            told |= {"values": own.filled, "buckets": inner.buckets}
            if isinstance(inner, FittedVocabulary):
                told |= _keys(inner, own)
        found.append(told)
    return {"columns": found, "label": _label(label, stats.labels)}


def _moments(stats: ColumnStats) -> Plain:
    if not stats.count.any():
        return {"missing": 1.0 if stats.entries else 0.0, "mean": [], "deviation": [], "low": [], "high": []}
    held = stats.count > 0
    deviation = np.sqrt(np.divide(stats.squares, stats.count, out=np.zeros_like(stats.squares), where=held))
    shown = {"mean": stats.mean, "deviation": deviation, "low": stats.low, "high": stats.high}
    entries = stats.entries * len(stats.count)  # none are counted of labels, which are never missing
    missing = 1 - stats.count.sum() / entries if entries else 0.0
    return {"missing": float(missing)} | {
        name: [float(value) if there else None for value, there in zip(values, held, strict=True)]
        for name, values in shown.items()
    }


def _crossed_boundaries(fitted: Any) -> dict[str, list[float]]:
    """The edges of each column of numbers that a cross takes by its intervals."""
    return {part.source.name: list(part.boundaries) for part in fitted.parts if part.type == "intervals"}


def _keys(fitted: FittedVocabulary, stats: ColumnStats) -> Plain:
    """Keys, the share of values outside them, and the most frequent."""
    known = {key: stats.keys[key] for key in fitted.keys if key in stats.keys}
    return {
        "keys": len(fitted.keys),
        "oov_buckets": fitted.oov_buckets,
        "oov_share": 1 - sum(known.values()) / stats.filled if stats.filled else 0.0,
        "frequent": _frequent(Counter(known), stats.filled),
    }


def _frequent(counts: Counter[Key], total: int) -> list[tuple[Key, float]]:
    """The most frequent values and their shares, ties by value."""
    ordered = nsmallest(MOST_SHOWN, counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(key, count / total) for key, count in ordered]


def _label(label: FittedLabel, stats: ColumnStats) -> Plain:
    told: Plain = {"column": label.name, "problem_type": str(label.problem_type)}
    if label.problem_type is not ProblemType.CLASSIFICATION:
        return told | {"labels": int(stats.count.sum())} | _moments(stats)
    total = stats.keys.total()
    balance = [(value, stats.keys[value] / total if total else 0.0) for value in label.class_values]
    return told | {"labels": total, "classes": balance, "class_weights": label.class_weights}


# Lines ------------------------------------------------------------------------------------------------------------


def lines_of(report: Plain) -> dict[str, str]:
    """Name → what was fitted, for a table."""
    lines = {}
    for told in report["columns"]:
        context = "context, " if told["group"] == "context" else ""
        lines[f"{told['column']} ({context}{told['kind'].replace('_', ' ')})"] = _line(told)
    label = report["label"]
    lines[f"{label['column']} (label, {label['problem_type'].replace('_', ' ')})"] = _label_line(label)
    return lines


def _line(told: Plain) -> str:
    if told["kind"] == "numeric":
        edges = [_edges(f"{count} quantiles", values) for count, values in told["boundaries"].items()]
        return "; ".join([_numbers_line(told), *edges])
    if told["kind"] == "crossed":
        edges = [_edges(f"intervals of {name}", values) for name, values in told["boundaries"].items()]
        return "; ".join([f"{told['buckets']:,} ids", *edges])
    if "keys" not in told:
        return f"{told['buckets']:,} ids for {told['values']:,} values"
    share = told["oov_share"]
    unknown = "unknown values were not counted" if share is None else f"{_percent(share)} unknown"
    parts = [f"{told['keys']:,} keys", f"{told['values']:,} values", unknown]
    return ", ".join(parts) + (f"; most frequent: {_shares(told['frequent'])}" if told["frequent"] else "")


def _numbers_line(told: Plain) -> str:
    if not told["mean"]:
        return "no value that is not missing"
    missing = f", {_percent(told['missing'])} missing" if told["missing"] else ""
    if len(told["mean"]) > 1:
        spread = f"{_number(_least(told['low']))} … {_number(_most(told['high']))}"
        return f"{len(told['mean'])} numbers a step, all in {spread}{missing}"
    mean, deviation, low, high = (told[name][0] for name in ("mean", "deviation", "low", "high"))
    return f"mean {_number(mean)}, deviation {_number(deviation)}, {_number(low)} … {_number(high)}{missing}"


def _label_line(label: Plain) -> str:
    if "classes" not in label:
        return _numbers_line(label)
    classes = label["classes"]
    least = min(classes, key=lambda pair: pair[1])
    shown = sorted(classes, key=lambda pair: -pair[1])[:MOST_SHOWN]
    rarest = f"; rarest: {_shares([least])}" if len(classes) > MOST_SHOWN else ""
    return f"{len(classes)} classes of {label['labels']:,} labels: {_shares(shown)}{rarest}"


def _edges(what: str, edges: list[float]) -> str:
    shown = ", ".join(map(_number, edges[:MOST_SHOWN])) + (", …" if len(edges) > MOST_SHOWN else "")
    return f"{what} at {shown}" if edges else f"{what}: no edge, the values do not differ"


def _shares(pairs: list[Any]) -> str:
    return ", ".join(f"{key!r} {_percent(share)}" for key, share in pairs)


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _least(values: list[Any]) -> float:
    return float(min(value for value in values if value is not None))


def _most(values: list[Any]) -> float:
    return float(max(value for value in values if value is not None))
