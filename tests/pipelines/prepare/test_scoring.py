"""From raw events to predictions, night after night: what one run over everything gives; and how good they are."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.bundle.bundle import bundle_of, save_bundle
from model.config import ModelConfig
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel, PredictionType, ProblemType
from model.network.network import build_network
from pipelines.evaluate import evaluate
from pipelines.predict.run import predict
from pipelines.prepare.run import prepare
from pipelines.prepare.settings import PrepareSettings
from tests.fitting import column_stats
from tests.preparing import in_process, sequences, write

KINDS = ("buy", "leave", "view")
NIGHTS = [datetime.datetime(2026, 1, day) for day in (1, 2, 3, 4)]
SETTINGS: dict[str, Any] = {
    "key": "user",
    "time": "at",
    "label": "kind",
    "label_shift": 1,
    "time_delta": "since",
    "gap": "5h",
    "max_length": 3,
    "context": ("home",),
}


def events(seed: int = 0) -> pa.Table:
    """Three days of events of users who come on some of them."""
    random = np.random.default_rng(seed)
    rows = 200
    user = random.integers(0, 25, rows)
    seconds = random.permutation(3 * 86_400)[:rows]
    return pa.table(
        {
            "user": user,
            "at": [NIGHTS[0] + datetime.timedelta(seconds=int(each)) for each in seconds],
            "kind": random.choice(KINDS, rows).tolist(),
            "x": random.normal(size=rows),
            "home": np.array(["at", "de"])[user % 2].tolist(),
        }
    )


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """A model of the next event, with random weights."""
    config = ModelConfig.model_validate(
        {
            "columns": {
                "sequence": [
                    {"type": "numeric", "name": "x"},
                    {"type": "numeric", "name": "since", "normalizer": "zscore"},
                    {"type": "one_hot", "source": {"type": "vocabulary", "name": "kind"}},
                ],
                "context": [{"type": "one_hot", "source": {"type": "vocabulary", "name": "home"}}],
            },
            "label": "kind_next",
            "num_units": [5],
            "problem_type": "classification",
            "prediction_type": "multiple_value",
            "predict_probabilities": True,
        }
    )
    with in_process():
        prepare(write(tmp_path / "history", events(1)), tmp_path / "training", PrepareSettings(**SETTINGS))
    columns = FittedColumns.fit(config.columns, column_stats(pq.read_table(tmp_path / "training"), config.columns))
    label = FittedLabel(
        name="kind_next",
        problem_type=ProblemType.CLASSIFICATION,
        prediction_type=PredictionType.MULTIPLE_VALUE,
        num_classes=3,
        classes=KINDS,
    )
    save_bundle(tmp_path / "bundle", bundle_of(build_network(config, columns, label, 7), columns, label))
    return str(tmp_path / "bundle")


def predictions(*outputs: Path) -> dict[int, np.ndarray]:
    """The probabilities of each user's events, one behind the other."""
    found: dict[int, list[Any]] = {}
    for output in outputs:
        for row in sorted(sequences(output), key=lambda row: int(row["sequence_index"])):
            found.setdefault(row["user"], []).extend(row["probabilities"])
    return {user: np.array(rows) for user, rows in found.items()}


@pytest.mark.usefixtures("here")
def test_nights_from_raw_events_to_predictions_are_one_run_over_everything(bundle: str, tmp_path: Path) -> None:
    table = events()
    settings = PrepareSettings(**{**SETTINGS, "for_scoring": True})
    out = []
    for number in range(3):
        time = np.array(table["at"].to_pylist())
        night = table.filter(pa.array((time >= NIGHTS[number]) & (time < NIGHTS[number + 1])))
        before = {} if not number else {"continue_from": tmp_path / f"sequences-{number - 1}"}
        with in_process():
            prepare(write(tmp_path / f"events-{number}", night), tmp_path / f"sequences-{number}", settings, **before)
        out.append(tmp_path / f"predictions-{number}")
        states = {} if not number else {"state_from": str(out[-2])}
        predict(bundle, str(tmp_path / f"sequences-{number}"), str(out[-1]), key=["user"], **states)
    with in_process():
        prepare(write(tmp_path / "events", table), tmp_path / "sequences", settings)
    predict(bundle, str(tmp_path / "sequences"), str(tmp_path / "predictions"), key=["user"])
    found, wanted = predictions(*out), predictions(tmp_path / "predictions")
    assert sum(map(len, wanted.values())) == table.num_rows  # each event, once
    assert found.keys() == wanted.keys()
    for user in wanted:
        np.testing.assert_allclose(found[user], wanted[user], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("here")
def test_an_evaluation_leaves_labels_that_are_not_known_yet_out_and_counts_them(bundle: str, tmp_path: Path) -> None:
    write(tmp_path / "events", events())
    # Uncut, an event without label is a user's last and no other's state depends on it.
    given = {**SETTINGS, "gap": None, "max_length": None}
    with in_process():
        for name, scoring in (("known", False), ("all", True)):
            prepare(tmp_path / "events", tmp_path / name, PrepareSettings(**{**given, "for_scoring": scoring}))
    known, everything = (evaluate(bundle, str(tmp_path / name)) for name in ("known", "all"))
    assert everything.pop("unknown_labels") == 25
    assert everything == pytest.approx(known, rel=1e-6)
    assert "unknown_labels" not in known
    labels = [label for row in sequences(tmp_path / "all") for label in row["kind_next"]]
    assert (len(labels), labels.count(None)) == (200, 25)
    filtered = evaluate(bundle, str(tmp_path / "all"), filter="user < 5", on_bad_rows="skip")
    assert (filtered["unknown_labels"], filtered["bad_rows"], filtered["filtered_rows"]) == (5, 0, 20)
