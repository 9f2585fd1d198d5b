"""`inspect` on data as they come: each finding is right and says what to do, and the proposed run reads the data."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.settings.yaml_text import parse_yaml
from pipelines.config import run_config
from pipelines.ingest.scan import fit_data
from pipelines.inspect.html import page
from pipelines.inspect.report import report
from pipelines.inspect.run import Inspection, inspect_data

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = 150
Columns = dict[str, Any]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def inspected(tmp_path: Path) -> Callable[..., Inspection]:
    """inspected(columns, ...): of files with these columns, by their paths below the data's; the page can be made."""

    def inspect(files: Columns | dict[str, Columns], **options: Any) -> Inspection:
        for name, columns in ({"a.parquet": files} if "x" in files else files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns), tmp_path / name, row_group_size=60)
        inspection = inspect_data(str(tmp_path), **options)
        assert "<h1>" in page(report(inspection))
        return inspection

    return inspect


def told(inspection: Inspection) -> dict[tuple[str, str | None], str]:
    """Texts of the findings, by severity-code and column."""
    found = {(f"{each.severity} {each.code}", each.column): each.text for each in inspection.findings}
    assert len(found) == len(inspection.findings)
    return found


def inputs(inspection: Inspection) -> set[str]:
    """The columns that the proposed run reads, once it has been read, checked and fitted as it is written."""
    assert inspection.proposal.text is not None, inspection.proposal.reason
    config = run_config(parse_yaml(inspection.proposal.text, where="proposal"), where="proposal")
    assert fit_data(config).train.rows > 0
    columns = config.model.columns
    return {*columns.data_columns("sequence"), *columns.data_columns("context")}


def steps(random: np.random.Generator, rows: int = ROWS) -> list[list[float]]:
    return [random.normal(size=random.integers(2, 9)).tolist() for _ in range(rows)]


def alike(lists: list[list[Any]], value: Callable[[], Any]) -> list[list[Any]]:
    return [[value() for _ in row] for row in lists]


def test_the_label_is_the_column_that_says_so_most_plainly(inspected: Any, random: np.random.Generator) -> None:
    x, y = steps(random), random.choice(["stays", "leaves"], ROWS)
    inspection = inspected({"x": x, "copy_of_label": y, "label": y})
    assert inspection.survey.label.name == "label"
    assert told(inspection) == {("warning label-copy", "copy_of_label"): "equals the label always"}
    assert inputs(inspection) == {"x"}


def test_what_prepare_calls_next_is_the_label_and_a_copy_one_step_early_is_told(
    inspected: Any, random: np.random.Generator
) -> None:
    x = [random.choice(["home", "cart", "pay"], random.integers(3, 9)).tolist() for _ in range(ROWS)]
    after = [[*row[1:], "home"] for row in x]
    early = [[*row[1:], "home"] for row in after]
    inspection = inspected({"early": early, "x": x, "x_next": after})
    assert inspection.survey.label.name == "x_next"
    found = told(inspection)
    assert found["note next-step", "x"] == "the label is this column one step later: next-step prediction"
    assert found["warning label-delayed", "early"] == (
        "the label is this column one step before: a model needs only to remember it"
    )
    assert inputs(inspection) == {"x"}


def test_a_column_of_the_paths_is_an_input_rather_than_the_label(inspected: Any, random: np.random.Generator) -> None:
    files = {
        f"year={year}/country={country}/a.parquet": {
            "x": steps(random, 60),
            "churned": pa.array(random.integers(0, 2, 60)),
        }
        for year in (2023, 2024)
        for country in ("at", "de")
    }
    nothing = {"x": pa.array([], pa.list_(pa.float64())), "churned": pa.array([], pa.int64())}
    inspection = inspected({**files, "year=2025/country=fr/a.parquet": nothing})
    assert inspection.survey.label.name == "churned"
    assert told(inspection) == {}
    assert inputs(inspection) == {"x", "year", "country"}


def test_ids_are_left_out_of_sequences_and_context_alike(inspected: Any, random: np.random.Generator) -> None:
    x = steps(random)
    urls = alike(x, lambda: f"/item/{random.integers(10**9)}")
    emails = [f"{row}@example.org" for row in range(ROWS)]
    inspection = inspected({"key": range(ROWS), "x": x, "url": urls, "email": emails, "y": random.normal(size=ROWS)})
    assert [code for code, _ in told(inspection)] == ["warning near-unique"] * 2
    assert inputs(inspection) == {"x"}
    assert inspection.proposal.text is not None
    assert "# left out: url: almost every value stands once: an id, not a feature" in inspection.proposal.text


@pytest.mark.parametrize("values", [(0.5, 1.0), (-1, 1)])
def test_a_label_of_few_numbers_that_are_no_classes_is_told(
    values: tuple[float, float], inspected: Any, random: np.random.Generator
) -> None:
    inspection = inspected({"x": steps(random), "label": random.choice(values, ROWS)})
    assert told(inspection) == {
        ("note few-numbers", "label"): "holds 2 different numbers, which are predicted as numbers: if they are "
        "classes, write them as strings or as whole numbers from 0 on"
    }
    assert "problem_type: linear_regression" in (inspection.proposal.text or "")
    assert inputs(inspection) == {"x"}


def test_times_are_told_by_what_they_are(inspected: Any, random: np.random.Generator) -> None:
    x = steps(random)
    days = alike(x, lambda: date(2024, 1, 1) + timedelta(days=int(random.integers(300))))
    lists = pa.array(x).offsets
    seconds = pa.array(random.integers(0, 86_400, int(lists[-1].as_py())), pa.int32())
    inspection = inspected(
        {
            "x": x,
            "day": days,
            "span": pa.ListArray.from_arrays(lists, seconds.cast(pa.int64()).cast(pa.duration("ms"))),
            "daytime": pa.ListArray.from_arrays(lists, seconds.cast(pa.time32("s"))),
            "signup": [date(2020, 1, 1) + timedelta(days=row) for row in range(ROWS)],
            "label": random.integers(0, 3, ROWS),
        }
    )
    point = "is a point in time, read as seconds since 1970: "
    assert told(inspection) == {
        ("note time", "day"): f"{point}time since the step before tells more (`dynamic-rnn prepare --time-delta`)",
        ("note time", "signup"): f"{point}the days from it to the last step, say, tell more",
    }
    assert inputs(inspection) == {"x", "day", "span", "daytime", "signup"}
    shown = page(report(inspection))
    assert "2024-01-01" in shown
    assert "mean 2020-03-15 12:00:00, standard deviation 43.3 days" in shown


def test_null_lists_are_empty_ones_and_no_missing_values(inspected: Any, random: np.random.Generator) -> None:
    x = [None if row % 50 == 0 else values for row, values in enumerate(steps(random))]
    gaps = [None if row is None else [None, *row[1:]] for row in x]
    inspection = inspected({"x": x, "gaps": gaps, "label": random.choice(["a", "b"], ROWS)})
    missing = [(each.column, each.text) for each in inspection.findings if each.code == "missing"]
    assert missing == [
        ("x", "holds 3 null lists: read as having no step"),
        ("gaps", "holds 3 null lists: read as having no step"),
        ("gaps", "holds 147 nulls: declare `missing: mean` and `indicator: true`"),
    ]
    assert inspection.proposal.text is not None
    assert "{type: numeric, name: x, normalizer: zscore}\n" in inspection.proposal.text
    assert "# 147 nulls become the mean" in inspection.proposal.text
    assert inputs(inspection) == {"x", "gaps"}
    known = report(inspection)["columns"][1]["counts"]
    assert known["known_values"] == known["values"] - 147
    again = inspect_data(inspection.survey.data, config=inspection.proposal.config)
    configured = [each.text for each in again.findings if each.column == "gaps" and "nulls" in each.text]
    assert configured == ["holds 147 nulls: the run bears them"]


def test_why_no_list_can_be_read_is_said(inspected: Any, random: np.random.Generator) -> None:
    x = [[[1.0, 2.0]] * 3] * (ROWS - 1) + [[[1.0]] * 3]
    inspection = inspected({"x": x, "y": random.normal(size=ROWS)})
    assert inspection.proposal.reason == (
        "no column of lists can be read as sequences ('x': 1 to 2 numbers a step: they must be equally many)"
    )
    assert told(inspection)["error widths-disagree", "x"] == "holds 1 to 2 numbers a step: must be equally many"
    (found,) = (finding for finding in inspection.findings if finding.code == "widths-disagree")
    assert [row for _, row in found.places.found] == [ROWS - 1, 0]


def test_pieces_that_share_a_place_are_told_and_train(inspected: Any, random: np.random.Generator) -> None:
    columns = {"user_id": [row // 3 for row in range(ROWS)], "sequence_index": [row % 2 for row in range(ROWS)]}
    inspection = inspected({**columns, "x": steps(random), "label": random.integers(0, 2, ROWS)})
    assert told(inspection) == {
        ("warning duplicate-keys", "user_id"): "50 of 150 rows repeat a key that another row has: 'user_id' and "
        "'sequence_index' together must name one row; batch prediction refuses others"
    }
    assert "on_bad_rows" not in (inspection.proposal.text or "")
    assert inputs(inspection) == {"x"}


def test_distinct_values_are_never_more_than_values(inspected: Any, random: np.random.Generator) -> None:
    x = [random.normal(size=60).tolist() for _ in range(ROWS)]
    for column in report(inspected({"x": x, "y": random.normal(size=ROWS)}))["columns"]:
        assert column["distinct"] <= column["counts"]["known_values"]
