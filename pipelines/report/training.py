"""The report of a training: <run>/report.html, one page with nothing loaded from anywhere.

Curves, where the best bundle errs on validation rows, the data, the settings, the machine and the time it took.
Discloses names of columns and classes, counts and settings; no row. Rows are looked at up to a bound, a fixed sample.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from model.batches.collate import SequenceBatch, length_batches
from model.batches.plan import DataIndex
from model.bundle.bundle import Bundle, load_bundle
from model.bundle.run_directory import REPORT
from model.features.labels import FittedLabel
from model.scoring.diagnostics import Diagnostics, calibration_error, diagnose, residual_histogram
from model.settings import dump_yaml
from model.storage import join, write_bytes
from pipelines.config import RunConfig
from pipelines.ingest.batches import reading
from pipelines.ingest.fitted_data import FittedData
from pipelines.ingest.read_task import Request, RowReader
from pipelines.report.charts import histogram, lines
from pipelines.report.formatting import metric_name
from pipelines.report.page import chart, render

SAMPLE_STEPS = 1 << 18  # of validation rows that the report looks at: a second or two of computing
SHOWN_CLASSES = 16
MOST_LINES = 200  # of the table of validations
SIZES = ("validation_rows", "validation_weight")  # the same at every validation
LEFT_OUT = {*SIZES, "validation_perplexity"}  # of the curves
LEAST_CONFIDENT = 0.005  # of all items: fewer in a bin of confidence tell chance rather than calibration


def write_report(
    config: RunConfig,
    prepared: FittedData,
    bundle: str,
    metrics: list[dict[str, float]],
    seconds: float,
    memory: str,
    ended: str = "",
) -> str:
    """Writes the page; returns where it lies. `metrics` are the lines of metrics.jsonl, `seconds` those of
    training, `memory` what a worker needed, `ended` why training ended.
    """
    best = load_bundle(bundle)
    page = render(
        "training.html",
        command="train",
        title=f"Training report: {config.name}",
        name=config.name,
        directory=config.directory,
        bundle=bundle,
        fingerprint=best.fingerprint,
        figures=figures(best.metrics),
        seconds=seconds,
        ended=ended,
        curves=curves(metrics),
        rows=metrics[-MOST_LINES:],
        keys=told_keys(metrics),
        data=data_summary(prepared),
        settings=dump_yaml(config),
        environment=environment() | {"memory of a worker": memory},
        per_step=prepared.label.per_step,
        **errors_of(best, prepared, config.plugins),
    )
    where = join(config.directory, REPORT)
    write_bytes(where, page.encode())
    return where


def errors_of(best: Bundle, prepared: FittedData, plugins: tuple[str, ...]) -> dict[str, Any]:
    """Where a bundle errs, on a sample of validation rows; of training rows where nothing validates."""
    split, index = ("training", prepared.train) if prepared.validation is None else ("validation", prepared.validation)
    rows, label = sampled(index), prepared.label
    reader = RowReader(prepared.columns, label, prepared.state_spec, unseen_labels=True)
    found = diagnose(best.network(), label, sample_batches(index, rows, reader, plugins))
    classes = label.num_classes is not None
    return {
        "sample": {"rows": len(rows), "of": index.rows, "split": split},
        "errors": errors_by_length(found, label),
        "classes": class_table(found, label) if classes else None,
        "calibration": calibration_chart(found) if classes else None,
        "calibration_error": calibration_error(found),
        "residuals": None if classes else residual_chart(found),
    }


# What the model does on the sample --------------------------------------------------------------------------------


def sampled(index: DataIndex) -> np.ndarray:
    """Numbers of rows, in order: all, or every k-th so that their steps stay below the bound."""
    rows = np.concatenate([index.fragment_rows(fragment) for fragment in range(len(index.fragments))])
    every = max(1, -(-index.steps // SAMPLE_STEPS))
    return rows[::every]


def sample_batches(
    index: DataIndex, rows: np.ndarray, reader: RowReader, plugins: tuple[str, ...]
) -> Iterator[SequenceBatch]:
    """The rows, read a fragment a request, in batches of like length."""
    fragments = np.searchsorted(index.starts, rows, side="right") - 1
    requests = (Request.of(index, rows[fragments == fragment]) for fragment in np.unique(fragments))
    for block in reading(index, reader, plugins)(requests):
        yield from length_batches(block)


# Charts and tables ------------------------------------------------------------------------------------------------


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """What one wants to know of the best bundle first, by what it is called."""
    named = {"best step": "step", "epochs": "epoch"}
    named |= {metric_name(name): name for name in metrics if name.startswith("validation_") and name not in SIZES}
    named |= {} if "validation_loss" in metrics else {"train loss": "train_loss"}
    return {told: metrics[name] for told, name in named.items() if name in metrics}


def told_keys(metrics: list[dict[str, float]]) -> list[str]:
    """The columns of the table of validations."""
    return [key for key in (metrics[-1] if metrics else ()) if key not in SIZES]


def curves(metrics: list[dict[str, float]]) -> list[tuple[str, Any]]:
    """(what it shows, a chart) for each metric that was told at least twice: training and validation in one."""
    names = dict.fromkeys(name for line in metrics for name in line)
    shared = [name for name in names if name.startswith("validation_") and name not in LEFT_OUT]
    charts = []
    for name in shared or ["train_loss"]:
        short = name.removeprefix("validation_").removeprefix("train_")
        series = [
            (which, [line["step"] for line in told], [line[key] for line in told])
            for which, key in (("validation", f"validation_{short}"), ("training", f"train_{short}"))
            if len(told := [line for line in metrics if np.isfinite(line.get(key, np.nan))]) > 1
        ]
        if series:
            called = metric_name(short)
            charts.append((called, chart(lines(series, title=f"{called} by step", x="step", y=called))))
    return charts


def errors_by_length(found: Diagnostics, label: FittedLabel) -> list[dict[str, Any]]:
    """A row for each power of two of the rows' length: items, and accuracy or root mean squared error."""
    powers = np.flatnonzero(found.length_items)
    items = found.length_items[powers]
    means = found.length_errors[powers] / items
    values = 1 - means if label.num_classes else np.sqrt(means)
    bars = values if label.num_classes else values / (values.max(initial=0) or 1)
    told = zip(powers.tolist(), items.tolist(), values.tolist(), bars.tolist(), strict=True)
    return [{"length": span(power), "items": n, "value": value, "bar": bar} for power, n, value, bar in told]


def span(power: int) -> str:
    """The lengths of a power of two: 1, 2 to 3, 4 to 7 …"""
    return f"{2**power} to {2 ** (power + 1) - 1}" if power else "1"


def class_table(found: Diagnostics, label: FittedLabel) -> dict[str, Any]:
    """The confusion matrix of the most frequent classes, as shares of each label; the rest in one row and column."""
    order = np.argsort(-found.confusion.sum(1), kind="stable")
    names = [str(value) for value in label.class_values]
    shown, others = order[:SHOWN_CLASSES], order[SHOWN_CLASSES:]
    groups = [*np.split(shown, len(shown)), *([others] if len(others) else [])]
    matrix = np.array([[found.confusion[np.ix_(a, b)].sum() for b in groups] for a in groups])
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    headings = [names[place] for place in shown] + ([f"{len(others)} others"] if len(others) else [])
    return {"names": headings, "counts": totals[:, 0].tolist(), "shares": shares.tolist()}


def calibration_chart(found: Diagnostics) -> Any:
    """Share of right predictions by their confidence, beside what a calibrated model has."""
    seen = found.confidence_items > LEAST_CONFIDENT * found.confidence_items.sum()
    confidence = found.confidence_sums[seen] / found.confidence_items[seen]
    right = found.confidence_right[seen] / found.confidence_items[seen]
    most = min(1.0, 1.1 * max([*confidence, *right], default=1.0))  # of many classes none may be likely
    series = [("this model", confidence.tolist(), right.tolist()), ("calibrated", [0.0, most], [0.0, most])]
    return chart(lines(series, title="Right predictions by confidence", x="confidence", y="share that is right"))


def residual_chart(found: Diagnostics) -> Any:
    """Prediction − label."""
    edges, counts, _ = residual_histogram(found)
    title, x = "Residuals", "prediction minus label"
    return chart(histogram(edges.tolist(), counts.tolist(), title=title, x=x, y="items"))


# Data and machine -------------------------------------------------------------------------------------------------


def data_summary(prepared: FittedData) -> list[dict[str, Any]]:
    """Rows, steps and lengths of each split."""
    splits = [("training", prepared.train), ("validation", prepared.validation)]
    return [split_summary(name, index) for name, index in splits if index is not None]


def split_summary(name: str, index: DataIndex) -> dict[str, Any]:
    """One split's numbers."""
    lengths = index.lengths if index.selected is None else index.lengths[index.selected]
    low, median, high = np.quantile(lengths, [0, 0.5, 1]).tolist()
    return {"name": name, "rows": index.rows, "steps": index.steps, "shortest": low, "median": median, "longest": high}


def environment() -> dict[str, str]:
    """Versions of what computed."""
    import pyarrow
    import torch

    return {
        "Python": sys.version.split()[0],
        "torch": torch.__version__,
        "Ray": importlib.metadata.version("ray"),
        "pyarrow": pyarrow.__version__,
        "NumPy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
