"""Exports: real graphs run by onnxruntime, held against the estimator and the scorer on tables."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from model import DynamicRnnEstimator, Scorer, load_bundle, real_valued_column, save_bundle
from model.batches.collate import collate
from model.batches.encode import encode_rows
from model.bundle.bundle import Bundle, bundle_of
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError, NotFittedError
from model.export.check import compare, sample
from model.export.export import export
from model.export.graphs import SequenceGraph, StepGraph
from model.features.fitted_columns import FittedColumns
from model.network.cells import Cell
from model.network.network import build_network
from model.scan.fit import fit_label
from pipelines.cli.app import app
from tests.fitting import column_stats

# Each cell once, with each problem and prediction type; all over numbers, vectors, one-hot, several values, context.
CASES: list[dict[str, Any]] = [
    {"cell": "lstm", "problem": "classification", "prediction": "multiple_value", "num_classes": 3},
    {"cell": "gru", "problem": "linear_regression", "prediction": "single_value"},
    {"cell": "gru_reset_before", "problem": "classification", "prediction": "single_value", "num_classes": 2},
    {"cell": "basic_rnn", "problem": "linear_regression", "prediction": "multiple_value"},
]
Export = tuple[Bundle, Path]


@pytest.fixture(scope="module", params=CASES, ids=[case["cell"] for case in CASES])
def exported(
    request: pytest.FixtureRequest, make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Export:
    """(bundle, its export)."""
    bundle, directory = make_bundle(**request.param), tmp_path_factory.mktemp("export")
    save_bundle(directory / "bundle", bundle)
    result = CliRunner().invoke(app, ["--quiet", "export", str(directory / "bundle"), str(directory / "out")])
    assert result.output == f"exported: {directory / 'out'}\n"
    return bundle, directory / "out"


def run(directory: Path, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(directory / f"{graph}.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def inputs_of(bundle: Bundle, table: pa.Table) -> dict[str, np.ndarray]:
    """A table as the inputs of the sequence graph, by what `signature.json` and the fitted columns tell."""
    batch = collate(encode_rows(table, bundle.columns))
    values = {key: tensor.numpy() for key, tensor in (batch.sequence | batch.context).items()}
    for key in batch.sequence:
        if not values[key].shape[1]:  # time is at least 1
            values[key] = np.zeros((len(batch), 1, values[key].shape[2]), values[key].dtype)
    found = {feature.port.name: values[feature.key] for feature in SequenceGraph(bundle).features}
    states = {port.name: np.zeros((len(batch), *port.dims[1:]), np.float32) for port in StepGraph(bundle).states}
    return found | {"sequence_length": batch.lengths_B.numpy()} | states


@pytest.mark.parametrize("lengths", [[1], [4, 0, 9, 2], [3, 3, 3, 3, 3, 3], [0, 0]], ids=str)
def test_the_sequence_graph_predicts_what_the_bundle_does(
    exported: Export, make_table: Callable[..., pa.Table], lengths: list[int]
) -> None:
    bundle, directory = exported
    check_sequence(bundle, directory, make_table(lengths=lengths, seed=len(lengths)), lengths)


def check_sequence(bundle: Bundle, directory: Path, table: pa.Table, lengths: list[int]) -> None:
    """The graph gives what the scorer gives."""
    found = run(directory, "sequence", inputs_of(bundle, table))
    scored = Scorer(bundle, probabilities=bundle.label.num_classes is not None).score(table)
    for i, state in enumerate(scored.state):
        np.testing.assert_allclose(found[f"next_rnn_cell_state_{i}"], state, rtol=1e-5, atol=1e-5)
    for name in scored.predictions.column_names:
        for row, want in enumerate(scored.predictions.column(name).to_pylist()):
            if want is None:
                assert lengths[row] == 0
                continue
            have = found[name][row][: lengths[row]] if bundle.label.per_step else found[name][row]
            np.testing.assert_allclose(have, np.reshape(want, np.shape(have)), rtol=1e-5, atol=1e-5)


def test_steps_one_by_one_end_where_the_sequence_does(exported: Export, make_table: Callable[..., pa.Table]) -> None:
    bundle, directory = exported
    inputs = inputs_of(bundle, make_table(lengths=[5, 5, 5]))
    whole = run(directory, "sequence", inputs)
    signature = json.loads((directory / "signature.json").read_text())["graphs"]
    timed = {each["name"] for each in signature["sequence"]["inputs"] if "time" in each["dims"]}
    state = signature["step"]["state"]
    given = {each["name"]: inputs[each["name"]] for each in signature["step"]["inputs"]}
    program = torch.export.load(directory / "step.pt2").module()
    for t in range(5):
        given |= {name: inputs[name][:, t] for name in timed}
        after = run(directory, "step", given)
        by_torch = program(*(torch.from_numpy(given[each["name"]]) for each in signature["step"]["inputs"]))
        for each, tensor in zip(signature["step"]["outputs"], by_torch, strict=True):
            np.testing.assert_allclose(tensor, after[each["name"]], rtol=1e-5, atol=1e-5)
        given |= {name: after[following] for name, following in state.items()}
    for name, values in after.items():
        last = whole[name][:, -1] if bundle.label.per_step and name not in state.values() else whole[name]
        np.testing.assert_allclose(values, last, rtol=1e-5, atol=1e-5)


def test_an_export_is_a_bundle_and_its_signature_tells_the_graphs(exported: Export) -> None:
    bundle, directory = exported
    assert load_bundle(directory).fingerprint == bundle.fingerprint
    signature = json.loads((directory / "signature.json").read_text())
    assert signature["fingerprint"] == bundle.fingerprint
    assert signature["graphs"]["step"]["files"] == ["step.onnx", "step.pt2"]
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64"}
    for name, told in signature["graphs"].items():
        session = onnxruntime.InferenceSession(directory / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for ends, held in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            real = [{"name": end.name, "dtype": kinds[end.type], "dims": end.shape} for end in held]
            assert [{key: each[key] for key in ("name", "dtype", "dims")} for each in told[ends]] == real


def test_an_export_holds_no_pickle_and_no_path_of_this_machine(exported: Export) -> None:
    _, directory = exported
    with zipfile.ZipFile(directory / "step.pt2") as archive:
        assert not any(each.file_size for each in archive.infolist() if each.filename.endswith((".pt", ".pkl")))
        parts = [archive.read(name) for name in archive.namelist()]
    parts += [(directory / f"{graph}.onnx").read_bytes() for graph in ("sequence", "step")]
    assert not any(str(Path(__file__).parents[3]).encode() in part for part in parts)


def test_a_graph_that_computes_something_else_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    graph = SequenceGraph(make_bundle())
    given = sample(graph, 3, 5, seed=0)
    right = {name: values.copy() for name, values in given.expected.items()}
    compare(right, given, "a")
    padded = right | {"classes": np.where(given.real, right["classes"], 9)}
    compare(padded, given, "a")  # what stands in the padding is nobody's business
    wrong = right | {"next_rnn_cell_state_0": right["next_rnn_cell_state_0"] + np.float32(0.01)}
    with pytest.raises(CheckpointError, match="a: output 'next_rnn_cell_state_0' must be what the model gives"):
        compare(wrong, given, "a")
    with pytest.raises(CheckpointError, match=r"output 'classes' must be int64 \(3, 5\), but is float64 \(3, 5\)"):
        compare(right | {"classes": right["classes"] * 1.0}, given, "a")


def test_weighted_crossed_and_shared_columns_are_exported(tmp_path: Path) -> None:
    tag, kind = ({"type": "hash_bucket", "name": name, "buckets": 5} for name in ("tag", "kind"))
    columns = {
        "sequence": [
            {"type": "embedding", "source": {"type": "weighted", "source": tag, "weights": "w"}, "dimension": 2},
            {"type": "embedding", "source": kind, "dimension": 3, "table": "words", "max_norm": 0.5},
            {"type": "one_hot", "source": {"type": "crossed", "sources": [kind, tag], "buckets": 7}},
            {"type": "numeric", "name": "x", "missing": 0.0, "indicator": True},
        ],
        "context": [
            {"type": "embedding", "source": {**kind, "name": "c"}, "dimension": 3, "table": "words", "max_norm": 0.5}
        ],
    }
    settings = {"problem_type": "classification", "prediction_type": "multiple_value", "num_classes": 2, "label": "y"}
    config = ModelConfig.model_validate({**settings, "columns": columns, "num_units": 3, "cell_type": "gru"})
    table = pa.table(
        {
            "tag": [[["a", "b"], ["c"]], [[]], []],
            "w": pa.array([[[1.0, 2.0], [-1.0]], [[]], []], pa.list_(pa.list_(pa.float32()))),
            "kind": [["u", "v"], ["u"], []],
            "x": pa.array([[1.0, None], [3.0], []], pa.list_(pa.float32())),
            "c": ["p", None, "u"],
        }
    )
    fitted_columns = FittedColumns.fit(config.columns, column_stats(table, config.columns))
    label = fit_label(config, ())
    bundle = bundle_of(build_network(config, fitted_columns, label, seed=3), fitted_columns, label)
    directory = Path(export(bundle, tmp_path / "out"))
    check_sequence(bundle, directory, table, [2, 1, 0])


class TwoStates(Cell):
    """A cell of the user's with a nested state."""

    def __init__(self, input_size: int, num_units: int) -> None:
        super().__init__(input_size, num_units)
        self.mix = torch.nn.Linear(input_size + num_units, num_units)

    def zero_state(self, rows: int) -> Any:
        zeros = self.mix.weight.new_zeros(rows, self.num_units)
        return (zeros, (zeros.new_zeros(rows, 2, 1),))

    def step(self, x_BF: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        h, (count,) = state
        h = torch.tanh(self.mix(torch.cat([x_BF, h], 1)) + count.sum((1, 2)).unsqueeze(1))
        return h, (h, (count + 0.1,))


def test_a_cell_of_the_users_exports_its_step(
    make_bundle: Callable[..., Bundle], register: Callable[[str, type[Any]], None], tmp_path: Path
) -> None:
    register("two_states", TwoStates)
    bundle = make_bundle(cell="two_states", num_units=[3])
    directory = Path(export(bundle, tmp_path / "out"))
    assert not (directory / "sequence.onnx").exists()
    (told,) = json.loads((directory / "signature.json").read_text())["graphs"].values()
    assert told["state"] == {f"rnn_cell_state_{i}": f"next_rnn_cell_state_{i}" for i in range(2)}
    assert [each["dims"] for each in told["inputs"][-2:]] == [["batch", 3], ["batch", 2, 1]]


def fitted(directory: Path) -> DynamicRnnEstimator:
    estimator = DynamicRnnEstimator(
        "linear_regression", "single_value", [real_valued_column("x")], num_units=2, model_dir=directory
    )
    with pytest.raises(NotFittedError):
        estimator.export(directory / "early")
    return estimator.fit(x={"x": np.ones((4, 3), np.float32)}, y=np.ones(4, np.float32), steps=1)


def test_the_estimator_exports_under_the_time_with_the_users_files(tmp_path: Path) -> None:
    estimator = fitted(tmp_path / "model")
    (tmp_path / "words.txt").write_text("a\n")
    base = tmp_path / "exports"
    found = Path(estimator.export_savedmodel(base, None, assets_extra={"lists/words.txt": tmp_path / "words.txt"}))
    assert found.parent == base
    assert found.name.isdecimal()
    assert (found / "assets.extra" / "lists" / "words.txt").read_text() == "a\n"
    checkpoint = tmp_path / "model" / "checkpoint-00000001"
    second = Path(estimator.export_savedmodel(base, checkpoint_path=checkpoint))
    assert int(second.name) > int(found.name)
    assert load_bundle(second).fingerprint == estimator.fitted_bundle().fingerprint
    with pytest.raises(ConfigError, match="as_text must be False"):
        estimator.export_savedmodel(base, as_text=True)


def test_mistakes_are_told_before_anything_is_traced(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    for name in ("../a", "/a", ""):
        with pytest.raises(ConfigError, match="a name must lie below the export"):
            export(bundle, tmp_path / "out", assets_extra={name: __file__})
    with pytest.raises(ConfigError, match="must name files, but"):
        export(bundle, tmp_path / "out", assets_extra={"a": tmp_path})
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").touch()
    with pytest.raises(ConfigError, match="must be a new or empty directory"):
        export(bundle, tmp_path / "held")
    save_bundle(tmp_path / "bundle", bundle)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    result = CliRunner().invoke(app, ["--quiet", "export", str(tmp_path / "bundle"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.output == (
        "dynamic-rnn: an export needs the package 'onnxscript', but it is not installed: "
        "pip install 'dynamic-rnn[onnx]'\n"
    )
    assert not (tmp_path / "out").exists()
