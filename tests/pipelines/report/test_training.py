"""Where a model errs, and the page that shows it: sums against their definitions, and pages read by a parser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows
from model.bundle.bundle import Bundle, bundle_of, save_bundle
from model.network.network import build_network
from model.scoring.diagnostics import calibration_error, diagnose, residual_histogram
from model.scoring.metrics import batch_state, merged, results
from pipelines.config import RunConfig, run_config
from pipelines.ingest import scan as ingest
from pipelines.report.training import (
    calibration_chart,
    class_table,
    curves,
    errors_by_length,
    figures,
    sampled,
    write_report,
)

PROBLEMS = [
    ("classification", "multiple_value"),
    ("classification", "single_value"),
    ("linear_regression", "multiple_value"),
]
MakeTable = Callable[..., pa.Table]


def batches_of(bundle: Bundle, table: pa.Table, rows: int) -> Iterator[SequenceBatch]:
    for start in range(0, table.num_rows, rows):
        yield collate(encode_rows(table.slice(start, rows), bundle.columns, bundle.label))


@pytest.mark.parametrize(("problem", "prediction"), PROBLEMS)
def test_errors_are_those_of_the_metrics_however_they_are_batched(
    problem: str, prediction: str, make_bundle: Callable[..., Bundle], make_table: MakeTable
) -> None:
    bundle = make_bundle(problem, prediction, weight="w")
    table = make_table(problem, prediction, rows=40, seed=3)
    network = bundle.network()
    found = diagnose(network, bundle.label, batches_of(bundle, table, 7))
    states = [batch_state(bundle.label, network(b).logits.detach(), b) for b in batches_of(bundle, table, 40)]
    metrics = results(bundle.label, merged(states))
    assert found.items == pytest.approx(metrics["weight"])
    if problem == "classification":
        assert np.trace(found.confusion) / found.confusion.sum() == pytest.approx(metrics["accuracy"])
        assert found.confidence_right.sum() / found.items == pytest.approx(metrics["accuracy"])
        assert 1 - found.length_errors.sum() / found.items == pytest.approx(metrics["accuracy"])
        assert 0 <= calibration_error(found) <= 1
    else:
        edges, counts, scale = residual_histogram(found)
        assert scale == pytest.approx(metrics["rmse"], rel=1e-5)
        assert counts.sum() == pytest.approx(found.items)
        assert edges[-1] == pytest.approx(4 * scale)
        assert found.length_errors.sum() / found.items == pytest.approx(metrics["loss"], rel=1e-5)
    lengths = np.array([len(row) for row in table["x"].to_pylist()])
    present = sorted({int(np.log2(length)) for length in lengths if length})
    assert np.flatnonzero(found.length_items).tolist() == present


def test_rare_classes_share_a_row_and_a_column(make_bundle: Callable[..., Bundle]) -> None:
    from model.scoring.diagnostics import Diagnostics

    label = make_bundle().label.model_copy(update={"num_classes": 20, "classes": tuple(f"c{i}" for i in range(20))})
    confusion = np.diag(np.arange(20.0)) + 1
    zeros = np.zeros(20)
    told = class_table(Diagnostics(np.zeros(32), np.zeros(32), confusion, zeros, zeros, zeros), label)
    assert told["names"] == [*(f"c{i}" for i in range(19, 3, -1)), "4 others"]
    assert sum(told["counts"]) == pytest.approx(confusion.sum())
    assert np.allclose(np.sum(told["shares"], axis=1), 1)
    assert told["shares"][-1][-1] == pytest.approx(confusion[:4, :4].sum() / confusion[:4].sum())


@pytest.mark.parametrize("confidence", [0.02, 0.9])
def test_the_axes_of_calibration_fit_many_classes(confidence: float) -> None:
    from model.scoring.diagnostics import Diagnostics

    items = np.zeros(25)
    items[int(confidence * 25)] = 100.0
    zeros = np.zeros(32)
    sums = confidence * items
    chart = str(calibration_chart(Diagnostics(zeros, zeros, np.zeros((2, 2)), items, sums, sums)))
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", chart)]
    assert confidence / 2 <= max(ticks) <= 1.2 * confidence


class Page(HTMLParser):
    """The texts of a page, its headings, and whatever it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("h2", "h3"):
            self.headings.append(data)
            self.tags.append("")


@pytest.fixture
def run_on(tmp_path: Path) -> Callable[..., RunConfig]:
    """run_on(table, model, **settings): a run over the table."""

    def make(table: pa.Table, model: dict[str, Any], **settings: Any) -> RunConfig:
        pq.write_table(table, tmp_path / "data.parquet", row_group_size=16)
        data = {"train": str(tmp_path / "data.parquet"), "validation_fraction": 0.3}
        train = {"steps": 6, "batch_sequences": 8, "evaluate_every_steps": 2}
        return run_config(
            {"output": str(tmp_path / "runs"), "data": data, "model": model, "train": train, **settings},
            where="run.yaml",
        )

    return make


@pytest.mark.usefixtures("local_ray")
def test_a_training_ends_with_a_page_that_loads_and_runs_nothing(
    run_on: Callable[..., RunConfig], make_table: MakeTable, make_config: Callable[..., Any]
) -> None:
    from pipelines.train.run import train

    table = make_table("classification", "single_value", rows=80, seed=1)
    names = pa.array([["<script>", "b & c", "c"][value] for value in table["y"].to_pylist()])
    table = table.set_column(table.column_names.index("y"), "y", names)
    model = make_config("classification", "single_value", num_classes="auto").model_dump(mode="json")
    result = train(run_on(table, model))
    assert result.report == f"{result.directory}/report.html"
    text = Path(result.report).read_text()
    page = Page(text)
    assert page.headings == [
        *("Curves", "loss", "accuracy", "bits per row"),
        *("Where the best bundle errs", "Predictions by label", "Calibration", "By length of the sequence"),
        *("Data", "Validations", "Settings", "Environment"),
    ]
    assert page.loads == []
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text
    assert page.tags.count("svg") >= 3  # two curves at least, and the calibration
    assert result.fingerprint in text
    assert "entity 3" not in text  # no value of a row


@pytest.mark.usefixtures("local_ray")
def test_a_regression_shows_its_residuals(
    run_on: Callable[..., RunConfig],
    make_table: MakeTable,
    make_config: Callable[..., Any],
    tmp_path: Path,
) -> None:
    problem = ("linear_regression", "multiple_value")
    config = run_on(make_table(*problem, rows=60), make_config(*problem).model_dump(mode="json"))
    prepared = ingest.fit_data(config)
    network = build_network(config.model, prepared.columns, prepared.label, 1)
    save_bundle(tmp_path / "bundle", bundle_of(network, prepared.columns, prepared.label))
    lines = [{"step": 2.0, "train_loss": 1.0}, {"step": 4.0, "train_loss": float("nan")}]
    where = write_report(
        config, prepared, str(tmp_path / "bundle"), lines, 1.0, "12 MiB", "all of its 2 steps are made"
    )
    page = Page(Path(where).read_text())
    assert "<dt>Why training ended</dt><dd>all of its 2 steps are made</dd>" in Path(where).read_text()
    assert "Residuals" in page.headings
    assert "Calibration" not in page.headings


def test_without_validation_rows_the_training_loss_has_its_curve() -> None:
    lines = [{"step": step, "train_loss": 4.0 / step} for step in (1.0, 2.0, 4.0)]
    [(told, drawn)] = curves(lines)
    assert told == "loss"
    assert "training: 4 to 1" in drawn


def test_training_and_validation_share_a_chart() -> None:
    lines = [{"step": step, "train_loss": 8 / step, "validation_loss": 9 / step} for step in (1.0, 4.0)]
    [(_, drawn)] = curves(lines)
    assert "validation: 9 to 2.25; training: 8 to 2" in drawn


def test_the_figures_at_the_head_are_called_as_people_call_them() -> None:
    metrics = {"step": 8.0, "train_loss": 1.0, "validation_rmse": 0.5, "validation_rows": 3.0}
    assert figures(metrics) == {"best step": 8.0, "validation RMSE": 0.5, "train loss": 1.0}
    assert figures({**metrics, "validation_loss": 0.25}) == {
        "best step": 8.0,
        "validation RMSE": 0.5,
        "validation loss": 0.25,
    }


def test_a_sample_of_the_rows_bounds_what_the_report_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from model.batches.plan import DataIndex
    from model.tables.fragments import Fragment

    index = DataIndex((Fragment("a", 0, 60), Fragment("b", 0, 40)), np.full(100, 10), np.arange(100) % 2 == 0)
    assert sampled(index).tolist() == list(range(0, 100, 2))
    monkeypatch.setattr("pipelines.report.training.SAMPLE_STEPS", 200)
    chosen = sampled(index)
    assert len(chosen) == 17
    assert set(chosen) <= set(range(0, 100, 2))


def test_lengths_are_told_by_powers_of_two(make_bundle: Callable[..., Bundle], make_table: MakeTable) -> None:
    bundle = make_bundle()
    table = make_table(lengths=[1, 2, 3, 4, 7, 8])
    told = errors_by_length(diagnose(bundle.network(), bundle.label, batches_of(bundle, table, 3)), bundle.label)
    assert [(row["length"], row["items"]) for row in told] == [("1", 1), ("2 to 3", 5), ("4 to 7", 11), ("8 to 15", 8)]
