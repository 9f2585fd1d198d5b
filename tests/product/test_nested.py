"""Columns inside structs by every door: what a model makes of them is what it makes of the same values side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model import DynamicRnnEstimator
from model.batches.arrow_transport import to_arrow
from model.batches.plan import DataIndex
from model.bundle.bundle import save_bundle
from model.columns import ColumnsConfig, Embedding, Numeric, OneHot, Vocabulary
from model.config import ModelConfig
from model.errors import DataError
from model.features.categorical import FittedVocabulary
from model.features.fitted_columns import FittedColumns
from model.features.labels import PredictionType, ProblemType
from model.scan.fragment_scan import scan_fragment
from model.scan.split import SplitBy
from model.scoring.scorer import Scorer
from model.tables import parquet
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import find_fragments
from pipelines.evaluate import FragmentEvaluator, plan_evaluation
from pipelines.ingest.read_task import Request, RowReader
from pipelines.inspect.profile_task import Look, profile_fragment
from pipelines.predict.plan import plan_prediction
from pipelines.predict.prediction import Choices
from pipelines.predict.score_task import RowPredictor
from pipelines.quarantine import Quarantine
from pipelines.tasks.task import to_message
from serve.config import LimitsConfig
from serve.wire.arrow_codec import ArrowDecoder
from serve.wire.inputs import Inputs
from serve.wire.json_codec import JsonDecoder

ROWS = 60
NAMES = ["hits.item", "hits.price", "seq.vector", "user.country", "user.buys"]


def flat() -> pa.Table:
    random = np.random.default_rng(0)
    lengths = random.integers(0, 6, ROWS).tolist()
    items = [random.choice(["a", "b", "c"], length).tolist() for length in lengths]
    return pa.table(
        {
            "hits.item": items,
            "hits.price": [random.normal(size=length).tolist() for length in lengths],
            "seq.vector": pa.array(
                [random.normal(size=(length, 2)).tolist() for length in lengths], pa.list_(pa.list_(pa.float64()))
            ),
            "user.country": random.choice(["at", "de"], ROWS),
            "user.buys": [int("b" in row) for row in items],
            "key": [f"k{row % 20}" for row in range(ROWS)],
        }
    )


def nested() -> pa.Table:
    """The same values: a list of structs in BigQuery's wrapper, a struct of lists of dense Spark vectors, a struct."""
    rows = flat().to_pylist()
    hits = [
        {"list": [{"element": {"item": item, "price": price}} for item, price in zip(*pair, strict=True)]}
        for pair in ((row["hits.item"], row["hits.price"]) for row in rows)
    ]
    lists = {"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
    vector = pa.struct({"type": pa.int8(), "size": pa.int32(), **lists})
    dense = [{"vector": [{"type": 1, "values": values} for values in row["seq.vector"]]} for row in rows]
    users = [{"country": row["user.country"], "buys": row["user.buys"]} for row in rows]
    columns = {"hits": hits, "seq": pa.array(dense, pa.struct({"vector": pa.list_(vector)})), "user": users}
    return pa.table({**columns, "key": flat().column("key")})


def estimator() -> DynamicRnnEstimator:
    return DynamicRnnEstimator(
        ProblemType.CLASSIFICATION,
        PredictionType.SINGLE_VALUE,
        [
            OneHot(source=Vocabulary(name="hits.item")),
            Numeric(name="hits.price", normalizer="zscore"),
            Numeric(name="seq.vector"),
        ],
        [Embedding(source=Vocabulary(name="user.country"), dimension=2)],
        num_classes=2,
        num_units=[4],
        label="user.buys",
    )


@pytest.fixture(scope="module")
def fitted() -> DynamicRnnEstimator:
    return estimator().fit(flat(), steps=5)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, table in (("flat", flat()), ("nested", nested())):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    return {name: str(tmp_path / f"{name}.parquet") for name in ("flat", "nested")}


def test_an_estimator_learns_the_same(fitted: DynamicRnnEstimator, files: dict[str, str]) -> None:
    fingerprint = fitted.fitted_bundle().fingerprint
    for data in (nested(), nested().to_pandas(), files["flat"], files["nested"]):
        assert estimator().fit(data, steps=5).fitted_bundle().fingerprint == fingerprint
    assert fitted.evaluate(nested()) == fitted.evaluate(flat())


def test_a_scan_tells_the_same(fitted: DynamicRnnEstimator, files: dict[str, str]) -> None:
    config, split = fitted.fitted_bundle().config, SplitBy(fraction=0.3, key="key")
    where = Filter("user.country == 'at'")
    told = []
    for path in files.values():
        (fragment,) = find_fragments(path, ["hits.item"], where=where)
        scan = scan_fragment(fragment, config, split, fit=True, where=where)
        told.append(to_message(scan.to_plain))
    assert told[0] == told[1]


def test_evaluation_and_prediction_are_the_same(
    fitted: DynamicRnnEstimator, files: dict[str, str], tmp_path: Path
) -> None:
    save_bundle(tmp_path / "bundle", fitted.fitted_bundle())
    metrics, tables = [], []
    for name, path in files.items():
        (fragment,) = find_fragments(path, NAMES)
        metrics.append(FragmentEvaluator(plan_evaluation(str(tmp_path / "bundle"), path), device="cpu")(fragment))
        choices = Choices(keep=("key", "user.country"))
        prediction = plan_prediction(str(tmp_path / "bundle"), path, str(tmp_path / name), choices)
        RowPredictor(prediction, device="cpu")(prediction.blocks[0])
        tables.append(pq.read_table(tmp_path / name))
    assert metrics[0] == metrics[1]
    assert tables[0].equals(tables[1])
    assert tables[0].column("user.country").to_pylist() == flat().column("user.country").to_pylist()


def test_a_server_takes_fields_by_their_paths(fitted: DynamicRnnEstimator) -> None:
    bundle = fitted.fitted_bundle()
    inputs = Inputs.of(bundle.columns, Scorer(bundle).state_spec)
    names = inputs.schema.names
    assert set(names) == {"hits.item", "hits.price", "seq.vector", "user.country"}
    rows = [{"features": {name: row[name] for name in names}} for row in flat().slice(0, 5).to_pylist()]
    by_json = JsonDecoder(inputs, LimitsConfig()).decode(json.dumps({"sequences": rows}).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, flat().schema) as writer:
        writer.write_table(flat().slice(0, 5))
    by_arrow = ArrowDecoder(inputs, LimitsConfig()).decode(sink.getvalue().to_pybytes())
    assert by_json.errors == by_arrow.errors == {}
    scored = [Scorer(bundle).score(table).predictions for table in (by_json.table, by_arrow.table, flat().slice(0, 5))]
    assert scored[0].equals(scored[2])
    assert scored[1].equals(scored[2])


def test_bad_rows_are_kept_as_they_were(fitted: DynamicRnnEstimator, files: dict[str, str], tmp_path: Path) -> None:
    table = nested()
    rows = table.to_pylist()
    rows[3]["hits"]["list"] = [{"element": {"item": "a", "price": float("nan")}}] * len(rows[3]["seq"]["vector"])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), files["nested"])
    (fragment,) = find_fragments(files["nested"], NAMES)
    scan = scan_fragment(
        fragment, fitted.fitted_bundle().config, None, fit=True, on_bad=Quarantine(str(tmp_path / "bad"))
    )
    assert [(reason.column, reason.rows, reason.row) for reason in scan.reasons] == [("hits.price", 1, 3)]
    (kept,) = pq.read_table(tmp_path / "bad").to_pylist()
    assert kept["seq"] == rows[3]["seq"]
    assert len(kept["hits"]["list"]) == len(rows[3]["hits"]["list"])


def test_what_cannot_be_read_is_no_bad_row_group(
    fitted: DynamicRnnEstimator, files: dict[str, str], tmp_path: Path
) -> None:
    """`skip` leaves out what is damaged, not what another writer's codec holds."""
    path = Path(files["flat"])
    pq.write_table(flat(), path, compression={"user.country": "snappy"}, use_dictionary=False)
    place = b"\x18\x0cuser.country\x15"
    content = path.read_bytes()
    assert content.count(place + b"\x02") == 1
    path.write_bytes(content.replace(place + b"\x02", place + b"\x06"))
    save_bundle(tmp_path / "bundle", fitted.fitted_bundle())
    config, told = fitted.fitted_bundle().config, []

    def on_bad(_fragment: Fragment, errors: Any) -> None:
        raise AssertionError(errors)

    (fragment,) = find_fragments(path, NAMES)
    evaluator = FragmentEvaluator(plan_evaluation(str(tmp_path / "bundle"), path, on_bad_rows="skip"), device="cpu")
    choices = Choices(on_bad_rows="skip")
    prediction = plan_prediction(str(tmp_path / "bundle"), str(path), str(tmp_path / "out"), choices)
    doors = (
        lambda: scan_fragment(fragment, config, None, fit=True, on_bad=on_bad),
        lambda: evaluator(fragment),
        lambda: RowPredictor(prediction, device="cpu")(prediction.blocks[0]),
    )
    for door in doors:
        with pytest.raises(DataError) as raised:
            door()
        told.append(str(raised.value))
    problem = "row group 0 is compressed with LZO, which is not supported; write the file again with zstd or snappy"
    assert told == [f"{path}, column 'user.country': {problem}"] * 3


def test_the_struct_itself_is_refused_with_its_fields(files: dict[str, str]) -> None:
    with pytest.raises(DataError) as raised:
        estimator().set_params(sequence_feature_columns=[Numeric(name="user")]).fit(files["nested"], steps=1)
    assert str(raised.value).endswith(
        "column 'user': must hold values or lists of them, but holds structs; name a field: user.country, user.buys"
    )


def test_a_row_group_in_pieces_gives_what_it_gives_whole(
    fitted: DynamicRnnEstimator, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces are for more text than an array holds: here it only seems so."""
    rows = nested().to_pylist()
    for row in (3, 40):
        rows[row]["hits"]["list"] = [{"element": {"item": "a", "price": float("nan")}}] * 9
    pq.write_table(pa.Table.from_pylist(rows, nested().schema), files["nested"])
    (fragment,) = find_fragments(files["nested"], NAMES)
    bundle, good = fitted.fitted_bundle(), np.delete(np.arange(ROWS), [3, 40])
    save_bundle(tmp_path / "bundle", bundle)
    reader = RowReader(bundle.columns, bundle.label)

    def told(directory: Path) -> dict[str, Any]:
        scan = scan_fragment(fragment, bundle.config, None, fit=True, on_bad=Quarantine(str(directory)))
        planned = plan_evaluation(
            str(tmp_path / "bundle"), files["nested"], on_bad_rows="skip", quarantine=str(directory / "evaluated")
        )
        evaluator = FragmentEvaluator(planned, device="cpu")
        rows = reader.read(Request.of(DataIndex((fragment,), scan.lengths), good))
        with pytest.raises(DataError) as raised:
            reader.read(Request.of(DataIndex((fragment,), scan.lengths), np.array([0, 40])))
        return {
            "scan": scan.to_plain(),
            "evaluation": evaluator(fragment),
            "rows": rows,
            "error": str(raised.value),
            "bad": pq.read_table(directory, partitioning=None).to_pylist(),
        }

    whole = told(tmp_path / "whole")
    monkeypatch.setattr(parquet, "_whole", lambda *_: None)
    assert len(list(parquet.pieces(parquet.read_fragment(fragment, NAMES)))) == 4
    cut = told(tmp_path / "cut")
    rows, others = to_arrow(whole.pop("rows")), to_arrow(cut.pop("rows"))
    assert rows.equals(others)
    assert str(cut.pop("bad")) == str(whole.pop("bad"))  # as text, in which NaN is NaN
    assert cut.pop("error") == whole.pop("error")
    assert_alike(cut, whole)


def assert_alike(one: Any, other: Any) -> None:
    """Equal, but for the rounding of sums in float32."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_alike(*pair)
    elif isinstance(one, np.ndarray):
        assert_alike(one.tolist(), other.tolist())
    else:
        assert one == (pytest.approx(other, rel=1e-6) if isinstance(other, float) else other)


@pytest.mark.slow
def test_a_row_group_with_more_text_than_an_array_holds_is_read(tmp_path: Path) -> None:
    """2.2 GB of text in a few kilobytes: one word, in the dictionary. Takes 6 GB."""
    rows, words = 2200, 1000
    one = pa.DictionaryArray.from_arrays(pa.array([0] * (rows * words), pa.int32()), pa.array(["w" * 1000]))
    offsets = pa.array(range(0, (rows + 1) * words, words), pa.int32())
    table = pa.table({"text": pa.ListArray.from_arrays(offsets, one), "y": [0, 1] * (rows // 2)})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=False)
    (fragment,) = find_fragments(tmp_path, ["text", "y"])
    config = ModelConfig(
        problem_type=ProblemType.CLASSIFICATION,
        prediction_type=PredictionType.SINGLE_VALUE,
        columns=ColumnsConfig(sequence=(OneHot(source=Vocabulary(name="text")),)),
        label="y",
        num_classes=2,
        num_units=(4,),
    )

    def on_bad(_fragment: Fragment, errors: Any) -> None:
        raise AssertionError(errors)

    scan = scan_fragment(fragment, config, None, fit=True, on_bad=on_bad)
    assert scan.bad_rows == 0
    assert scan.lengths.tolist() == [words] * rows
    assert scan.columns["vocabulary:text"].keys == {"w" * 1000: rows * words}
    sources = {"vocabulary:text": FittedVocabulary(name="text", keys=("w" * 1000,))}
    reader = RowReader(FittedColumns(columns=config.columns, sources=sources), None)
    encoded = reader.read(Request.of(DataIndex((fragment,), scan.lengths), np.array([3, 1500, 2199])))
    assert encoded.lengths_B.tolist() == [words] * 3
    profile = profile_fragment(fragment, Look(reference="text", label="y"))
    assert (profile.damage, profile.rows) == (None, rows)
    assert profile.columns["text"].counts["known_values"] == rows * words
