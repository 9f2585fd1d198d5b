"""Weights of the original as ours: names, order of gates, real checkpoints, and what is said when they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from model import DynamicRnnEstimator, Scorer, embedding_column, real_valued_column
from model.columns import sparse_column_with_integerized_feature
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.settings.yaml_text import dump_plain
from model.tf1.checkpoint import read_variables
from model.tf1.import_bundle import Held, import_config, import_variables
from pipelines.cli.app import app
from tests.fitting import weights_from_variables

REAL = Path(__file__).parents[2] / "golden" / "tf_checkpoint"
MODELS: list[dict[str, Any]] = json.loads((REAL / "manifest.json").read_text())

D, H = 3, 2


def config(**options: Any) -> ModelConfig:
    columns = {
        "sequence": [
            {"type": "numeric", "name": "x"},
            {"type": "embedding", "source": {"type": "identity", "name": "tok", "buckets": 4}, "dimension": 2},
        ]
    }
    settings = {
        "problem_type": "linear_regression",
        "prediction_type": "single_value",
        "columns": columns,
        "label": "y",
        "num_units": [H],
        "cell_type": "lstm",
    }
    return ModelConfig.model_validate(settings | options)


def variables(gates: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    shapes = {
        "rnn/lstm_cell/kernel": (D + H, gates * H),
        "rnn/lstm_cell/bias": (gates * H,),
        "fully_connected/weights": (H, 1),
        "fully_connected/biases": (1,),
        "sequence_input_from_feature_columns/tok_embedding/weights": (4, 2),
    }
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_gates_of_an_lstm_come_in_torchs_order() -> None:
    given = variables()
    found = weights_from_variables(given, config())
    kernel = given["rnn/lstm_cell/kernel"]
    i, j, f, o = (kernel[:, gate * H : (gate + 1) * H] for gate in range(4))
    expected = np.concatenate([i, f, j, o], 1)
    np.testing.assert_array_equal(found["cell.0.weight_ih"], expected[:D].T)
    np.testing.assert_array_equal(found["cell.0.weight_hh"], expected[D:].T)
    np.testing.assert_array_equal(found["cell.0.bias"], given["rnn/lstm_cell/bias"].reshape(4, H)[[0, 2, 1, 3]].ravel())
    np.testing.assert_array_equal(found["projection.weight"], given["fully_connected/weights"].T)
    # Embeddings stand before numbers in the order of the input.
    np.testing.assert_array_equal(
        found["inputs.sequence.0.weight"], given["sequence_input_from_feature_columns/tok_embedding/weights"]
    )
    assert len(found) == 6


def test_slots_and_counters_are_left_aside() -> None:
    given = variables()
    more = {"global_step": np.array(7), "OptimizeLoss/fully_connected/weights/Adam": np.ones((H, 1), np.float32)}
    assert weights_from_variables(given | more, config()).keys() == weights_from_variables(given, config()).keys()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"fully_connected/biases": None},
            {},
            r"variable 'fully_connected/biases' must be there, but is not",
        ),
        (
            {"rnn/lstm_cell/bias": np.zeros(3)},
            {},
            r"variable 'rnn/lstm_cell/bias' must have shape \(8\) for num_units 2, but has \(3,\)",
        ),
        (
            {"rnn/lstm_cell/kernel": np.zeros((5, 12))},
            {},
            r"variable 'rnn/lstm_cell/kernel' must have shape \(any, 8\) for num_units 2, but has \(5, 12\)",
        ),
        ({}, {"num_units": [H, H]}, "rnn/multi_rnn_cell/cell_0/lstm_cell/kernel"),
        ({}, {"cell_type": "gru"}, "its GRU is gru_reset_before"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in (variables() | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        weights_from_variables(given, config(**options))


# Whole bundles ---------------------------------------------------------------------------------------------------


def invoke(*words: object) -> tuple[int, str]:
    """(exit code, standard output and error) of the command line, in this process."""
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    return result.exit_code, result.output


def settings_of(model: dict[str, Any]) -> dict[str, Any]:
    """The settings with which a user would import one of the original's models; the cell is called gru there."""
    tok = {"type": "identity", "name": "tok", "buckets": model["vocab"]}
    return {
        "problem_type": model["problem"].lower(),
        "prediction_type": model["pred"].lower(),
        "columns": {
            "sequence": [{"type": "numeric", "name": "x"}, {"type": "embedding", "source": tok, "dimension": 4}],
            "context": [{"type": "numeric", "name": "ctx", "dimension": 1}],
        },
        "label": "y",
        "num_units": model["num_units"],
        "cell_type": model["cell_type"],
        "predict_probabilities": model["num_classes"] is not None,
    }


@pytest.mark.parametrize("model", MODELS, ids=[model["name"] for model in MODELS])
@pytest.mark.parametrize("section", [True, False], ids=["a run's YAML", "the model's YAML"])
def test_an_imported_bundle_predicts_what_the_original_did(
    model: dict[str, Any], section: bool, tmp_path: Path
) -> None:
    settings = settings_of(model)
    (tmp_path / "c.yaml").write_text(dump_plain({"model": settings, "output": "o"} if section else settings))
    output = tmp_path / "bundle"
    code, told = invoke("import-tf", REAL / model["name"], output, "--config", tmp_path / "c.yaml")
    assert code == 0, told
    assert ("gru_reset_before" in told) == (model["cell_type"] == "gru")
    with np.load(REAL / model["name"] / "io.npz") as arrays:
        check_estimator(model, output, dict(arrays))
        check_scorer(model, output, dict(arrays))


def check_estimator(model: dict[str, Any], bundle: Path, arrays: dict[str, np.ndarray]) -> None:
    """The estimator takes the bundle as its model_dir, and the original's padded input."""
    cell = "gru_reset_before" if model["cell_type"] == "gru" else model["cell_type"]
    tok = sparse_column_with_integerized_feature("tok", model["vocab"])
    estimator = DynamicRnnEstimator(
        model["problem"].lower(),
        model["pred"].lower(),
        [real_valued_column("x"), embedding_column(tok, 4)],
        [real_valued_column("ctx", 1)],
        num_classes=model["num_classes"],
        num_units=model["num_units"],
        cell_type=cell,
        predict_probabilities=model["num_classes"] is not None,
        model_dir=bundle,
        config={"device": "cpu"},
        label="y",
    )
    features = {name: arrays[name] for name in ("x", "tok", "ctx", "sequence_length")}
    found = estimator.predict(x=features, as_iterable=False)
    real = np.arange(arrays["x"].shape[1])[None] < arrays["sequence_length"][:, None]
    for name in ("classes", "probabilities", "scores"):
        if f"predict/{name}" in arrays:
            ours, theirs = found[name], arrays[f"predict/{name}"]
            if model["pred"] == "MULTIPLE_VALUE":
                ours, theirs = ours[real], theirs[real]
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def check_scorer(model: dict[str, Any], bundle: Path, arrays: dict[str, np.ndarray]) -> None:
    """The states of rows that are full are those the original gave, which ran over the padding of the others."""
    full = {name: arrays[name].tolist() for name in ("x", "tok")} | {"ctx": arrays["ctx"][:, 0]}
    scored = Scorer.load(bundle).score(pa.table(full))
    assert not scored.errors
    for i, state in enumerate(scored.state):
        np.testing.assert_allclose(state, arrays[f"predict/rnn_cell_state_{i}"], rtol=1e-5, atol=1e-5)


GOLDEN = Path(__file__).parents[2] / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text())["cases"]


def declared(column: dict[str, Any]) -> dict[str, Any]:
    """A column of a fixture as YAML declares it, with the original's rule for unknown values."""
    name = column.get("column_name")
    if column["type"] == "real_valued_column":
        return {"type": "numeric", "name": name, "dimension": column.get("dimension")}
    if column["type"] == "sparse_column_with_keys":
        return {"type": "vocabulary", "name": name, "keys": column["keys"], "oov_buckets": 0}
    if column["type"] == "sparse_column_with_integerized_feature":
        return {"type": "identity", "name": name, "buckets": column["bucket_size"]}
    if column["type"] == "bucketized_column":
        return {"type": "bucketized", "source": declared(column["source_column"]), "boundaries": column["boundaries"]}
    options = {key: column[key] for key in ("dimension", "combiner") if key in column}
    kind = column["type"].removesuffix("_column")
    return {"type": kind, "source": declared(column["sparse_id_column"]), **options}


def test_each_fixtures_variables_are_imported_without_data() -> None:
    for case in CASES:
        settings = {
            "problem_type": case["problem_type"].lower(),
            "prediction_type": case["prediction_type"].lower(),
            "columns": {
                "sequence": [declared(each) for each in case["sequence_feature_columns"]],
                "context": [declared(each) for each in case["context_feature_columns"] or []],
            },
            "label": "label",
            "num_units": case["num_units"],
            "cell_type": case["cell_type"],
        }
        found, notes = import_config(settings, where="test")
        assert bool(notes) == (case["cell_type"] == "gru")
        bundle, notes = import_variables(read_variables(GOLDEN / case["file"]), found)
        assert not notes
        assert bundle.label.num_classes == case["num_classes"]
        bundle.network()


def test_what_the_config_leaves_open_is_taken_from_the_shapes() -> None:
    found, notes = import_variables(variables() | {"global_step": np.array(7), "other": np.ones(1)}, config())
    assert found.columns.sources["numeric:x"].dimension == 1
    assert found.provenance == {"imported_from": "", "global_step": 7}
    assert notes == ("left aside: other",)
    three = {"fully_connected/weights": np.zeros((H, 3)), "fully_connected/biases": np.zeros(3)}
    label = import_variables(variables() | three, config(problem_type="classification"))[0].label
    assert label.num_classes == 3
    assert import_variables(variables(), config(problem_type="classification"))[0].label.num_classes == 2


def test_cells_and_names_that_mean_the_same_are_known() -> None:
    given = variables()
    other = {
        name.replace("lstm_cell/kernel", "basic_lstm_cell/weights").replace(
            "lstm_cell/bias", "basic_lstm_cell/biases"
        ): a
        for name, a in given.items()
    }
    assert "rnn/basic_lstm_cell/weights" in other
    ours = import_variables(given, config())[0]
    assert import_variables(other, config())[0].fingerprint == ours.fingerprint


def test_columns_with_several_values_are_declared_at_import() -> None:
    held = import_variables(variables(), config(), held=Held(several=["tok"]))[0].columns.input_schema()
    assert held.field("tok").type == pa.list_(pa.list_(pa.int64()))
    with pytest.raises(ConfigError, match=r"'toc' must be a categorical column of the config, .* did you mean tok"):
        import_variables(variables(), config(), held=Held(several=["toc"]))


KEYS = {"type": "vocabulary", "name": "tok", "keys": ["a", "b", "c", "d"], "oov_buckets": 0}


def columns(source: dict[str, Any] | None = None, **numeric: Any) -> dict[str, Any]:
    tok = source or {"type": "identity", "name": "tok", "buckets": 4}
    x = {"type": "numeric", "name": "x", **numeric}
    return {"sequence": [x, {"type": "embedding", "source": tok, "dimension": 2}]}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {},
            {"columns": columns({**KEYS, "oov_buckets": 1})},
            "variable 'sequence_input_from_feature_columns/tok_embedding/weights' makes inputs.sequence.0.weight "
            "of shape (4, 2), but the config builds (5, 2); declare oov_buckets: 0 for column 'tok', as the original "
            "has it",
        ),
        (
            {},
            {"columns": columns({**KEYS, "keys": ["a", "b"]})},
            "of shape (4, 2), but the config builds (2, 2) for the 2 keys of column 'tok'",
        ),
        (
            {},
            {"columns": columns(dimension=4)},
            "variable 'rnn/lstm_cell/kernel' has 5 rows, which with num_units 2 is an input of 3 values a step, but "
            "the columns make 6 (tok 2, x 4)",
        ),
        (
            {},
            {"columns": columns({"type": "vocabulary", "name": "tok"})},
            "the keys of 'tok' would have to be learned from data, but an import sees none; declare it as the "
            "original's model had it",
        ),
        ({}, {"columns": columns(normalizer="zscore")}, "the normalizer of 'x' would have to be learned"),
        ({}, {"standardize_label": True}, "the label's scale would have to be learned"),
        (
            {"fully_connected/weights": np.zeros((H, 3)), "fully_connected/biases": np.zeros(3)},
            {},
            "'fully_connected/biases' has 3 values, but linear_regression has one; is it a classification?",
        ),
        (
            {"fully_connected/weights": np.zeros((H, 3)), "fully_connected/biases": np.zeros(3)},
            {"problem_type": "classification", "num_classes": 4},
            "'fully_connected/biases' has 3 values, the logits of 3 classes, but the config tells 4 classes",
        ),
        (
            {"input_from_feature_columns/c_embedding/weights": np.zeros((2, 2))},
            {},
            "variable 'input_from_feature_columns/c_embedding/weights' is part of the original's model, but the config "
            "builds nothing of it; check num_units and columns",
        ),
        (
            {"rnn/lstm_cell/kernel": None, "rnn/gru_cell/gates/kernel": np.zeros((5, 4))},
            {},
            "variable 'rnn/lstm_cell/kernel' must be there, but is not; there are rnn/gru_cell/gates/kernel, "
            "rnn/lstm_cell/bias",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_told(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in (variables() | change).items() if value is not None}
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        import_variables(given, config(**options))
    assert message in str(caught.value)


def test_shared_weighted_and_crossed_tables_are_found_under_the_originals_names() -> None:
    kind, tag = ({"type": "hash_bucket", "name": name, "buckets": 4} for name in ("kind", "tag"))
    bucketized = {"type": "bucketized", "source": {"type": "numeric", "name": "age"}, "boundaries": [1.0]}
    crossed = {"type": "crossed", "sources": [bucketized, {"type": "hash_bucket", "name": "land", "buckets": 2}]}
    settings = {
        "sequence": [
            {"type": "embedding", "source": kind, "dimension": 1, "table": "words"},
            {"type": "embedding", "source": tag, "dimension": 1, "table": "words"},
            {"type": "embedding", "source": {"type": "weighted", "source": tag, "weights": "w"}, "dimension": 1},
        ],
        "context": [{"type": "embedding", "source": {**crossed, "buckets": 6}, "dimension": 2}],
    }
    given = variables()
    tables = {
        "sequence_input_from_feature_columns/kind_shared_embedding/kind_tag_shared_embedding": np.ones((4, 1)),
        "sequence_input_from_feature_columns/tag_weighted_by_w_embedding/weights": np.full((4, 1), 2),
        "input_from_feature_columns/age_bucketized_X_land_embedding/weights": np.full((6, 2), 3),
    }
    given = {name: values for name, values in given.items() if "tok" not in name} | tables
    given["rnn/lstm_cell/kernel"] = np.ones((5 + H, 4 * H))
    held = Held(several=["tag"], integers=["kind", "land"])
    bundle, notes = import_variables(given, config(columns=settings), held=held)
    assert not notes
    found = [part.weight.mean().item() for part in bundle.network().inputs.represents("sequence")]
    assert found == [1, 1, 2]
    assert "inputs.sequence.1.weight" not in bundle.tensors  # a shared table stands under its first column alone
    assert bundle.tensors["inputs.context.0.weight"].mean() == 3
    schema = bundle.columns.input_schema()
    assert schema.field("land").type == pa.int64()
    assert schema.field("w").type == pa.list_(pa.list_(pa.float32()))


def test_layers_left_over_are_refused() -> None:
    model = MODELS[0] | {"num_units": [5, 3]}
    assert model["name"] == "lstm_multi_classes"
    settings, _ = import_config(settings_of(model), where="test")
    random = np.random.default_rng(1)
    given = {name: random.normal(size=shape) for name, shape in model["variables"].items()}
    import_variables(given, settings)
    more = {"rnn/multi_rnn_cell/cell_2/lstm_cell/kernel": np.zeros((6, 12))}
    with pytest.raises(CheckpointError, match="cell_2/lstm_cell/kernel' is part of the original's model"):
        import_variables(given | more, settings)


def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(dump_plain(settings_of(MODELS[0])))
    code, told = invoke("import-tf", tmp_path / "none", tmp_path / "bundle", "--config", tmp_path / "c.yaml")
    assert (code, told.count("\n")) == (2, 1)
    assert "none.index is not there" in told
    code, told = invoke("import-tf", REAL / "lstm_multi_classes", tmp_path, "--config", tmp_path / "c.yaml")
    assert (code, told) == (
        2,
        f"dynamic-rnn: {tmp_path}: must be a new or empty directory, but holds files; name another\n",
    )
