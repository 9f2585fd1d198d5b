"""An inspection as plain data: what the terminal, the page and the JSON file show. Knows no torch, no Ray."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.inspect.column_profile import BOOLEAN, COUNTS, NUMBER, OTHER, ColumnProfile
from pipelines.inspect.findings import SEVERITIES, is_classification
from pipelines.inspect.roles import Role
from pipelines.inspect.survey import Survey

if TYPE_CHECKING:
    from pipelines.inspect.run import Inspection

FORMAT_VERSION = 1
SHARES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SHARE_NAMES = ("min", "1%", "5%", "25%", "median", "75%", "95%", "99%", "max")
INNER = (0.0025, 0.9975)  # what a histogram shows where few values lie far out
BINS = 40
TOP = 12


def report(inspection: Inspection) -> dict[str, Any]:
    """The whole report, ready for JSON; without values of the data where the inspection says so."""
    survey = inspection.survey
    counted = {severity: sum(f.severity == severity for f in inspection.findings) for severity in SEVERITIES}
    return {
        "format_version": FORMAT_VERSION,
        "data": survey.data,
        "parts": dict(survey.parts),
        "rows": survey.rows,
        "files": survey.files,
        "row_groups": len(survey.fragments),
        "damaged": {"row_groups": len(survey.damages), "rows": sum(damage.rows for damage in survey.damages)},
        "label": {"column": survey.label.name, "chosen": survey.label.reason},
        "key": {"column": survey.key.name, "chosen": survey.key.reason, **_keys(survey)},
        "findings": [finding.to_plain() for finding in inspection.findings],
        "counts": counted,
        "lengths": _lengths(survey),
        "ties": None if survey.ties is None else asdict(survey.ties),
        "classes": _classes(survey, values=inspection.values),
        "columns": [
            column_report(name, profile, survey.roles[name], values=inspection.values)
            for name, profile in survey.columns.items()
        ],
        "estimates": None if inspection.estimates is None else asdict(inspection.estimates),
        "configured": inspection.config is not None,
        "proposal": {"yaml": inspection.proposal.text, "reason": inspection.proposal.reason},
        "values_shown": inspection.values,
        "sample": [dict(row) for row in survey.sample],
    }


def _keys(survey: Survey) -> dict[str, Any]:
    if survey.keys is None:
        return {"columns": list(survey.look.key), "distinct": None, "duplicate_rows": None}
    facts = survey.keys
    return {"columns": list(facts.columns), "distinct": facts.distinct, "duplicate_rows": facts.duplicates}


def _lengths(survey: Survey) -> dict[str, Any] | None:
    lengths = survey.lengths
    if lengths is None or not len(lengths):
        return None
    quantiles = np.quantile(lengths, SHARES, method="inverted_cdf").tolist()
    inner = np.quantile(lengths, INNER, method="inverted_cdf").tolist()
    edges = _edges(*_shown(float(lengths.min()), inner[0], inner[1], float(lengths.max())), whole=True)
    counts, _ = np.histogram(lengths, edges)
    outside = {"below": int((lengths < edges[0]).sum()), "above": int((lengths > edges[-1]).sum())}
    return {
        "column": survey.look.reference,
        "steps": int(lengths.sum()),
        "mean": float(lengths.mean()),
        "empty": int((lengths == 0).sum()),
        "quantiles": dict(zip(SHARE_NAMES, map(int, quantiles), strict=True)),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist(), **outside},
    }


def _edges(low: float, high: float, *, whole: bool) -> np.ndarray:
    """Edges of at most BINS bars from low to high; whole numbers lie in the middle of theirs."""
    if whole:
        width = max(1, math.ceil((high - low + 1) / BINS))
        bars = math.ceil((high - low + 1) / width)
        return low - 0.5 + width * np.arange(bars + 1)
    if high <= low:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, BINS + 1)


def _shown(low: float, inner_low: float, inner_high: float, high: float) -> tuple[float, float]:
    """What a histogram covers: everything, or the 99.5 % in the middle where few values lie far out."""
    return (inner_low, inner_high) if high - low > 4 * (inner_high - inner_low) > 0 else (low, high)


def _classes(survey: Survey, *, values: bool) -> dict[str, Any] | None:
    """Balance of the label's classes; None for a regression."""
    name = survey.label.name
    if name is None or not is_classification(survey):
        return None
    profile = survey.columns[name]
    labels = profile.counts["known_values"]
    top = profile.top.most(TOP * 4)
    listed = [{"value": value if values else None, "count": count} for value, count in top]
    return {"count": profile.distinct_values, "labels": labels, "top": listed, "error": profile.top.error}


def column_report(name: str, profile: ColumnProfile, role: Role, *, values: bool) -> dict[str, Any]:
    """One column; see docs/inspect.md for the fields."""
    told: dict[str, Any] = {
        "name": name,
        "role": role.role,
        "reads": role.reads,
        "reason": role.reason,
        "types": dict(profile.types),
        "kind": profile.kind,
        "widths": None if profile.widths is None else list(profile.widths),
        "characters": None if profile.characters is None else list(profile.characters),
        "counts": {name: int(profile.counts[name]) for name in COUNTS},
        "missing": int(profile.missing),
        "places": {
            fault: [{"file": file, "row": row} for file, row in places.found]
            for fault, places in profile.places.items()
        },
        "distinct": None if profile.kind == OTHER else profile.distinct_values,
        "distinct_exact": profile.distinct.exact,
        "top": None,
        "numbers": None,
    }
    if values and _has_top(profile):
        least = max(1, profile.top.error)
        listed = [{"value": value, "count": count} for value, count in profile.top.most(TOP) if count > least]
        told["top"] = {"values": listed, "error": profile.top.error}
    if profile.quantiles.count:
        told["numbers"] = _numbers(profile, values=values)
    return told


def _has_top(profile: ColumnProfile) -> bool:
    """Whether some values stand often enough to be worth naming."""
    if profile.kind == OTHER or not profile.top.counts:
        return False
    return profile.top.most(1)[0][1] > max(1, profile.top.error)


def _numbers(profile: ColumnProfile, *, values: bool) -> dict[str, Any]:
    moments = profile.moments
    known = moments.count > 0
    deviations = np.sqrt(moments.squares[known] / moments.count[known])
    told: dict[str, Any] = {
        "count": profile.quantiles.count,
        "means": moments.mean[known].tolist(),
        "deviations": deviations.tolist(),
        "lows": moments.low[known].tolist() if values else None,
        "highs": moments.high[known].tolist() if values else None,
        "dates": profile.dates,
        "quantiles": None,
        "rank_error": profile.quantiles.rank_error,
        "histogram": None,
    }
    if values:
        quantiles = profile.quantiles.quantiles(SHARES).tolist()
        told["quantiles"] = dict(zip(SHARE_NAMES, quantiles, strict=True))
        told["histogram"] = _histogram(profile)
    return told


def _histogram(profile: ColumnProfile) -> dict[str, Any]:
    """Counts in bars, and how many numbers lie outside of them."""
    sketch = profile.quantiles
    least, most = _shown(*sketch.quantiles([0.0, *INNER, 1.0]).tolist())
    whole = profile.kind in (NUMBER, BOOLEAN) and not profile.counts["fractions"] and most - least < 1e6
    edges = _edges(least, most, whole=whole)
    below = [sketch.rank(float(np.nextafter(edge, -np.inf))) for edge in edges[:-1]]
    ranks = np.array([*below, sketch.rank(float(edges[-1]))])
    outside = {"below": int(ranks[0]), "above": int(sketch.count - ranks[-1])}
    return {"edges": edges.tolist(), "counts": np.diff(ranks).clip(min=0).tolist(), **outside}
