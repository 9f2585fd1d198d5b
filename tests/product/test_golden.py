"""The original's own numbers: fixtures computed by TensorFlow 1.14, one test each.

GOLDEN_DIR names the directory to read (default tests/golden), so that others of the same form can be run. Everything
goes through the estimator's public input: sparse and dense features, padded with garbage. Padded steps, of which the
original's numbers are meaningless, are left out; the state is its padded one where rows are full, else the one after
the last real step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import (
    DynamicRnnEstimator,
    PredictionType,
    ProblemType,
    bucketized_column,
    embedding_column,
    one_hot_column,
    real_valued_column,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
)
from model.batches.collate import SequenceBatch, collate
from model.estimator.arguments import declare
from model.estimator.inputs import rows_of
from model.estimator.learned import StepInfo, TrainedModel, save, start
from model.estimator.row_sources import Encoder
from model.network.network import RnnNetwork
from model.scan.fit import fit_columns
from model.scan.fragment_scan import scan_table
from model.training.config import OptimizerConfig
from model.training.trainer import Trainer
from tests.fitting import weights_from_variables

torch.set_num_threads(1)

DIRECTORY = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
CASES: list[dict[str, Any]] = json.loads((DIRECTORY / "manifest.json").read_text())["cases"]
TOLERANCE, ADAM_TOLERANCE = 1e-5, 2e-4
CELLS = {"basic_rnn": "basic_rnn", "lstm": "lstm", "gru": "gru_reset_before"}
FACTORIES: dict[str, Any] = {
    "real_valued_column": real_valued_column,
    "bucketized_column": bucketized_column,
    "embedding_column": embedding_column,
    "one_hot_column": one_hot_column,
    "sparse_column_with_keys": sparse_column_with_keys,
    "sparse_column_with_integerized_feature": sparse_column_with_integerized_feature,
}


def close(ours: Any, theirs: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """|a − b| ≤ tolerance · (1 + |b|) everywhere, and equal shapes."""
    assert np.shape(ours) == np.shape(theirs), what
    np.testing.assert_array_less(
        np.abs(np.subtract(ours, theirs)), tolerance * (1 + np.abs(theirs)) + 1e-300, err_msg=what
    )


def column(declared: Mapping[str, Any]) -> Any:
    """A column from the manifest, by the factory that bears its type's name."""
    arguments = {name: column(v) if isinstance(v, dict) else v for name, v in declared.items() if name != "type"}
    return FACTORIES[declared["type"]](**arguments)


class Fixture:
    """One case: its arrays, and the same model of ours."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        with np.load(DIRECTORY / case["file"], allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.labels = self.arrays["labels"]
        self.features = self._features()
        self.per_step = case["prediction_type"] == "MULTIPLE_VALUE"
        self.lengths = self.features.get("sequence_length", np.full(case["batch"], case["padded_length"]))
        self.real = np.arange(case["padded_length"])[None, :] < self.lengths[:, None]
        self.learned = self._learned()

    def _features(self) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key, array in self.group("features").items():
            name, _, part = key.partition("/")
            if part:
                features.setdefault(name, {})[part] = array
            else:
                features[name] = array
        return features

    def group(self, head: str) -> dict[str, np.ndarray]:
        """The arrays under `head/`, by the rest of their names."""
        return {name[len(head) + 1 :]: a for name, a in self.arrays.items() if name.startswith(f"{head}/")}

    def estimator(self, **options: Any) -> Any:
        case = self.case
        columns = {
            name: [column(each) for each in case[name]] if case[name] else None
            for name in ("sequence_feature_columns", "context_feature_columns")
        }
        settings = {
            "num_classes": case["num_classes"],
            "num_units": case["num_units"],
            "cell_type": CELLS[case["cell_type"]],
            "learning_rate": case["learning_rate"],
            "gradient_clipping_norm": case["gradient_clipping_norm"],
            "predict_probabilities": case["predict_probabilities"],
            "config": {"device": "cpu"},
            **columns,
        }
        problem, prediction = ProblemType[case["problem_type"]], PredictionType[case["prediction_type"]]
        return DynamicRnnEstimator(problem, prediction, **(settings | options))

    def _learned(self, **options: Any) -> TrainedModel:
        """Our model with the fixture's initial weights."""
        declared = declare(self.estimator(**options).get_params())
        table = rows_of(self.features, self.labels, declared.model).table
        scan = scan_table(table, declared.model, None, fit=True, place="")
        learned = start(declared, *fit_columns(declared.model, [scan]))
        return replace(learned, bundle=replace(learned.bundle, tensors=self.ours(self.group("weights"))))

    def ours(self, variables: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return weights_from_variables(variables, declare(self.estimator().get_params()).model)

    def trained(self, directory: Path, optimizer: str) -> Any:
        """An estimator that goes on from the fixture's weights."""
        momentum = self.case["momentum"] if optimizer == "Momentum" else None
        options = {"optimizer": optimizer, "momentum": momentum}
        save(str(directory), self._learned(**options), keep=9)
        return self.estimator(**options, model_dir=directory)

    def batch(self) -> SequenceBatch:
        bundle = self.learned.bundle
        rows = rows_of(self.features, self.labels, bundle.config)
        return collate(Encoder(bundle.columns, bundle.label, bundle.network().state_spec()).encode(rows))

    def steps(self, padded: np.ndarray) -> np.ndarray:
        """Values at the real steps, flat."""
        values: np.ndarray = padded[self.real[:, : padded.shape[1]]]
        return values


@cache
def fixture(number: int) -> Fixture:
    return Fixture(CASES[number])


def check_forward(case: Fixture) -> None:
    """RNN input and logits at each real step."""
    network: RnnNetwork = case.learned.bundle.network()
    batch = case.batch()
    with torch.inference_mode():
        x = network.inputs(batch, network.dtype)
        close(case.steps(x.numpy()), case.steps(case.arrays["infer/rnn_input"]), "rnn_input")
        for cell, state in zip(network.cells, network.initial_state(batch), strict=True):
            x, _ = cell.unroll(x, batch.lengths_B, state, keep_state=False)
        logits = network.projection(x).numpy()
    close(case.steps(logits), case.steps(case.arrays["infer/logits_all_steps"]), "logits")


def check_predictions(case: Fixture, model: Any) -> None:
    """What predict returns: the original's keys and values, and the states."""
    found = model.predict(x=case.features, as_iterable=False)
    expected = case.group("infer")
    assert set(found) == set(expected) - {"rnn_input", "logits_all_steps"}
    states = case.group("state_at_last_valid_step") or expected
    for name, ours in found.items():
        if name.startswith("rnn_cell_state"):
            close(ours, states[name], name)
            continue
        theirs = expected[name]
        assert ours.shape == theirs.shape, name
        if case.per_step:
            ours, theirs = case.steps(ours), case.steps(theirs)
        if name == "classes":
            np.testing.assert_array_equal(ours, theirs)
        else:
            close(ours, theirs, name)


def check_gradients(case: Fixture) -> None:
    """Gradients before clipping, and their norm over all weights."""
    bundle = case.learned.bundle
    config = OptimizerConfig(gradient_clipping_norm=None)
    trainer = Trainer(bundle.network().train(), bundle.label, config, seed=0)
    result = trainer.step(case.batch())
    gradients = trainer.flat.named(trainer.flat.gradient)
    expected = case.ours(case.group("grads"))
    assert gradients.keys() == expected.keys()
    for name, theirs in expected.items():
        close(gradients[name].numpy(), theirs.numpy(), f"gradient of {name}")
    close(result.gradient_norm, case.arrays["grads_global_norm"], "global norm")


def check_training(case: Fixture, directory: Path) -> None:
    """Losses of five steps on the same batch, and the weights after the first and the fifth, for each optimizer."""
    for optimizer in sorted({name.split("/")[0] for name in case.group("train")}):
        model = case.trained(directory / optimizer, optimizer)
        seen: list[StepInfo] = []
        tolerance = ADAM_TOLERANCE if optimizer == "Adam" else TOLERANCE
        for steps, total in ((1, 1), (4, 5)):
            model.fit(x=case.features, y=case.labels, steps=steps, monitors=[seen.append])
            for name, theirs in case.ours(unflattened(case, f"train/{optimizer}/flat_{total}")).items():
                ours = model.get_variable_value(name)
                close(ours, theirs.numpy(), f"{optimizer}: {name} after {total}", tolerance)
        close([info.loss for info in seen], case.arrays[f"train/{optimizer}/loss"], f"{optimizer}: loss")


def unflattened(case: Fixture, name: str) -> dict[str, np.ndarray]:
    """All variables from one vector, in the manifest's order."""
    flat, variables, start = case.arrays[name], {}, 0
    for variable, shape in case.case["var_order"]:
        stop = start + int(np.prod(shape))
        variables[variable], start = flat[start:stop].reshape(shape), stop
    assert start == len(flat)
    return variables


@pytest.mark.parametrize("number", range(len(CASES)), ids=[Path(case["file"]).stem for case in CASES])
def test_the_originals_numbers(number: int, tmp_path: Path) -> None:
    case = fixture(number)
    check_forward(case)
    model = case.trained(tmp_path / "initial", "SGD")
    check_predictions(case, model)
    found = model.evaluate(x=case.features, y=case.labels)
    for name, theirs in case.group("eval").items():
        close(found[name], theirs, name)
    check_gradients(case)
    check_training(case, tmp_path)


def test_the_fixtures_are_all_there() -> None:
    assert len(CASES) >= 40 or "GOLDEN_DIR" in os.environ
    assert all((DIRECTORY / case["file"]).is_file() for case in CASES)
