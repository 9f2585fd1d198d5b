"""Warm starts: the bundle's weights and ids stay where they were, and what is new is added only if one says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.bundle.bundle import Bundle, bundle_of
from model.bundle.warm_start import started
from model.columns import ColumnsConfig
from model.config import ModelConfig
from model.errors import ConfigError, DataError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.network.network import build_network
from model.scoring.scorer import Scorer
from tests.fitting import column_stats

COLUMNS = {
    "sequence": [
        {"type": "numeric", "name": "x", "normalizer": "zscore"},
        {"type": "one_hot", "source": {"type": "vocabulary", "name": "kind"}},
        {"type": "embedding", "source": {"type": "vocabulary", "name": "item", "oov_buckets": 2}, "dimension": 3},
    ],
    "context": [{"type": "one_hot", "source": {"type": "vocabulary", "name": "country"}}],
}


def table_of(kinds: str, items: str, countries: str, labels: list[int] | None = None, scale: float = 1.0) -> pa.Table:
    """One row a country; every row has all kinds and items."""
    rows, steps = len(countries), len(kinds)
    return pa.table(
        {
            "x": [[scale * step for step in range(steps)]] * rows,
            "kind": [list(kinds)] * rows,
            "item": [list(items)] * rows,
            "country": list(countries),
            "y": labels or [row % 2 for row in range(rows)],
        }
    )


def config_of(**changes: Any) -> ModelConfig:
    settings = {
        "problem_type": "classification",
        "prediction_type": "single_value",
        "label": "y",
        "num_units": [5],
        "cell_type": "lstm",
        "columns": COLUMNS,
        "predict_probabilities": True,
    }
    return ModelConfig.model_validate(settings | changes)


def fitted(config: ModelConfig, table: pa.Table, classes: int = 2) -> tuple[FittedColumns, FittedLabel]:
    label = FittedLabel(
        name=config.label,
        problem_type=config.problem_type,
        prediction_type=config.prediction_type,
        num_classes=classes,
    )
    return FittedColumns.fit(config.columns, column_stats(table, config.columns)), label


OLD = table_of("aabbc", "pqpqr", "xyzx")
NEW = table_of("aabde", "pqsst", "xyvw", scale=100.0)


@pytest.fixture
def bundle() -> Bundle:
    config = config_of()
    return bundle_of(build_network(config, *fitted(config, OLD), seed=3), *fitted(config, OLD))


def begin(bundle: Bundle, table: pa.Table, config: ModelConfig | None = None, classes: int = 2, **how: Any) -> Bundle:
    config = config or config_of()
    return started(bundle, config, *fitted(config, table, classes), seed=8, **how)


def probabilities(bundle: Bundle, table: pa.Table) -> np.ndarray:
    found = Scorer(bundle).score(table).predictions["probabilities"]
    return np.stack(found.to_numpy(zero_copy_only=False))


@pytest.mark.parametrize("how", ["add", "unknown"])
def test_rows_that_the_bundle_knows_are_predicted_as_before(bundle: Bundle, how: str) -> None:
    warm = begin(bundle, NEW, new_vocabulary=how)
    np.testing.assert_allclose(probabilities(warm, OLD), probabilities(bundle, OLD), rtol=0, atol=1e-6)


def test_unknown_keys_stay_unknown_and_every_weight_is_the_bundles(bundle: Bundle) -> None:
    warm = begin(bundle, NEW, new_vocabulary="unknown")
    assert warm.columns == bundle.columns
    assert warm.fingerprint == bundle.fingerprint


def test_added_keys_stand_behind_the_bundles_and_begin_anew(bundle: Bundle) -> None:
    warm = begin(bundle, NEW, new_vocabulary="add")
    held, grown = (each.columns.sources["vocabulary:item"] for each in (bundle, warm))
    assert grown.keys == (*held.keys, "s", "t")
    assert warm.columns.sources["numeric:x"] == bundle.columns.sources["numeric:x"]
    old, new = (each.tensors["inputs.sequence.0.weight"] for each in (bundle, warm))
    assert len(new) == len(old) + 2
    assert torch.equal(new[:3], old[:3])
    assert torch.equal(new[5:], old[3:]), "the out-of-vocabulary buckets move behind the new keys"
    config = config_of()
    fresh = build_network(config, warm.columns, warm.label, seed=8).state_dict()
    assert torch.equal(new[3:5], fresh["inputs.sequence.0.weight"][3:5])
    assert warm.tensors["cell.0.weight_ih"].shape[1] == bundle.tensors["cell.0.weight_ih"].shape[1] + 4
    for name in ("cell.0.weight_hh", "cell.0.bias", "projection.weight", "projection.bias"):
        assert torch.equal(warm.tensors[name], bundle.tensors[name])


def test_a_new_key_no_longer_counts_as_unknown(bundle: Bundle) -> None:
    row = table_of("ddddd", "ppppp", "x")
    unknown, added = (probabilities(begin(bundle, NEW, new_vocabulary=how), row) for how in ("unknown", "add"))
    assert np.abs(unknown - added).max() > 1e-4


def test_new_keys_are_refused_unless_one_says_what_becomes_of_them(bundle: Bundle) -> None:
    with pytest.raises(DataError) as raised:
        begin(bundle, table_of("aabbc", "pqsst", "xyzx"))
    assert str(raised.value) == (
        "column 'item': must hold the keys that the bundle of train.warm_start knows, but 2 are new: 's', 't'; set "
        "train.new_vocabulary to add (trained from new), or to unknown (as in scoring)"
    )
    assert begin(bundle, OLD).fingerprint == bundle.fingerprint


def test_new_classes_are_refused(bundle: Bundle) -> None:
    with pytest.raises(DataError) as raised:
        begin(bundle, OLD, classes=3)
    assert str(raised.value) == (
        "column 'y': must hold the classes of the bundle of train.warm_start, but one is new: 2; a model of more "
        "classes must be trained from the start"
    )


def test_a_config_of_another_network_is_refused_by_name(bundle: Bundle) -> None:
    with pytest.raises(ConfigError) as raised:
        begin(bundle, OLD, config_of(num_units=[6], cell_type="gru"))
    assert str(raised.value) == (
        "train.warm_start: the model must be that of the bundle, but cell_type is 'lstm' there and 'gru' here; "
        "num_units is (5,) there and (6,) here"
    )


def test_dropout_class_weights_and_names_are_the_new_configs(bundle: Bundle) -> None:
    config = config_of(dropout_keep_probabilities=[0.5, 0.5], class_weights={"1": 3.0}, weight="w")
    warm = begin(bundle, OLD, config)
    assert warm.config == config
    assert (warm.label.weight, warm.label.class_weights) == ("w", (1.0, 3.0))


def test_numbers_of_another_width_are_refused() -> None:
    columns = {"sequence": [{"type": "numeric", "name": "x"}]}
    config = config_of(columns=columns)
    one, two = (pa.table({"x": [[value]], "y": [0]}) for value in (1.0, [1.0, 2.0]))
    bundle = bundle_of(build_network(config, *fitted(config, one), seed=0), *fitted(config, one))
    with pytest.raises(DataError) as raised:
        begin(bundle, two, config)
    assert str(raised.value) == "column 'x': must have 1 values a step as in the bundle, but has 2"
    assert isinstance(config.columns, ColumnsConfig)


def test_a_registered_cell_cannot_follow_a_wider_input(register: Callable[[str, type[Any]], None]) -> None:
    from model.network.cells import GruResetBeforeCell

    register("own_cell", GruResetBeforeCell)
    config = config_of(cell_type="own_cell")
    bundle = bundle_of(build_network(config, *fitted(config, OLD), seed=3), *fitted(config, OLD))
    assert begin(bundle, NEW, config, new_vocabulary="unknown").fingerprint == bundle.fingerprint
    with pytest.raises(
        ConfigError, match=r"which cell_type own_cell \(not a built-in one\) does not say how to follow"
    ):
        begin(bundle, NEW, config, new_vocabulary="add")
