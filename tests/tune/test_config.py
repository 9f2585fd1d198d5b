"""The tune: section: what it means, what is refused before any trial starts, and which points are drawn. No Ray."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ConfigError
from model.settings import apply_overrides, describe
from pipelines.config import RunConfig, run_config
from tune.check import check_states, check_sweep, shape_varies
from tune.config import VARIABLE, TuneConfig, ray_cpus, tune_config
from tune.points import best_run, points, trial_run

Maker = Callable[..., RunConfig]


@pytest.fixture
def make_run(tmp_path: Path) -> Maker:
    """make_run(tune section, model=…, train=…, data=…): a run of one numeric column."""

    def make(tuning: dict[str, Any] | None, **sections: dict[str, Any]) -> RunConfig:
        model = {
            "problem_type": "classification",
            "prediction_type": "multiple_value",
            "label": "y",
            "num_units": [8],
            "columns": {"sequence": [{"type": "numeric", "name": "x"}]},
        }
        mapping = {
            "output": str(tmp_path),
            "data": {"train": "/data/train", "validation": "/data/validation"},
            "model": model | sections.pop("model", {}),
            "tune": tuning,
            **sections,
        }
        return run_config(mapping, where="run.yaml")

    return make


def drawn(config: RunConfig) -> list[dict[str, Any]]:
    return points(config, check_sweep(config))


# --- names ---


def test_a_name_without_a_room_is_looked_up_in_the_model_then_in_the_training(make_run: Maker) -> None:
    config = make_run({"space": {"num_units": [[4]], "learning_rate": [0.1], "model.cell_type": ["gru"]}})
    assert list(tune_config(config).space) == ["model.num_units", "train.learning_rate", "model.cell_type"]


def test_what_varies_is_what_leaves_the_data_and_the_budget_as_they_are() -> None:
    assert {
        "model.cell_type",
        "model.num_units",
        "model.dropout_keep_probabilities",
        "train.optimizer",
        "train.learning_rate",
        "train.batch_sequences",
        "train.seed",
    } <= set(VARIABLE)
    assert not {"model.columns.config", "model.label", "model.classes", "train.steps", "train.epochs"} & set(VARIABLE)


def test_an_override_on_the_command_line_wins_over_the_file(make_run: Maker) -> None:
    section = {"tune": {"space": {"model.num_units": [[4]], "cell_type": ["lstm"]}}}
    overridden = apply_overrides(section, ["tune.space.model.num_units=[[8], [9]]", "tune.space.cell_type=[gru]"])
    assert drawn(make_run(overridden["tune"] | {"search": "grid"})) == [
        {"model.cell_type": "gru", "model.num_units": [8]},
        {"model.cell_type": "gru", "model.num_units": [9]},
    ]


# --- points ---


def test_lists_are_drawn_from_without_repetition(make_run: Maker) -> None:
    space = {"num_units": [[4], [8]], "cell_type": ["lstm", "gru"]}
    some, all_of_them = (drawn(make_run({"space": space, "trials": trials})) for trials in (3, 9))
    assert (len(some), len(all_of_them)) == (3, 4)
    for found in (some, all_of_them):
        assert len({str(point) for point in found}) == len(found)


def test_draws_depend_on_the_seed_alone(make_run: Maker) -> None:
    space = {
        "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
        "num_units": {"type": "lograndint", "low": 4, "high": 64},
    }
    reordered = dict(reversed(space.items()))
    first, again, other_order, other_seed = (
        drawn(make_run({"space": declared, "trials": 5, "seed": seed}))
        for declared, seed in ((space, 1), (space, 1), (reordered, 1), (space, 2))
    )
    assert first == again == other_order
    assert first != other_seed


def test_without_a_seed_of_its_own_a_sweep_draws_by_the_runs(make_run: Maker) -> None:
    space = {"learning_rate": {"type": "uniform", "low": 0.1, "high": 1}}
    own = make_run({"space": space, "seed": 7})
    runs = make_run({"space": space}, train={"seed": 7})
    assert drawn(own) == drawn(runs) != drawn(make_run({"space": space}))
    assert trial_run(own, tune_config(own), drawn(own)[0]).train.seed == 42, "training keeps the run's seed"


@pytest.mark.parametrize(
    ("declared", "low", "high"),
    [
        ({"type": "uniform", "low": 0.5, "high": 1}, 0.5, 1),
        ({"type": "loguniform", "low": 0.001, "high": 1}, 0.001, 1),
        ({"type": "quniform", "low": 0.1, "high": 0.9, "step": 0.4}, 0.1, 0.9),
        ({"type": "randint", "low": 3, "high": 5}, 3, 5),
        ({"type": "lograndint", "low": 1, "high": 3}, 1, 3),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_a_range_gives_values_of_its_kind_and_keeps_its_ends(
    make_run: Maker, declared: dict[str, Any], low: float, high: float
) -> None:
    name = "train.batch_sequences" if "int" in declared["type"] else "train.learning_rate"
    values = [point[name] for point in drawn(make_run({"space": {name: declared}, "trials": 300}))]
    assert all(low <= value <= high for value in values)
    assert {type(value) for value in values} == {int if "int" in declared["type"] else float}
    if "int" in declared["type"]:
        assert set(values) == set(range(int(low), int(high) + 1)), "both ends are drawn"
    else:
        assert min(values) < low + (high - low) / 4
        assert max(values) > high - (high - low) / 4


def test_a_grid_is_crossed_with_the_same_draws(make_run: Maker) -> None:
    space = {
        "num_units": {"type": "grid", "values": [[4], [8]]},
        "learning_rate": {"type": "uniform", "low": 0.1, "high": 1},
    }
    found = drawn(make_run({"space": space, "trials": 2}))
    assert [point["model.num_units"] for point in found] == [[4], [8], [4], [8]]
    rates = [point["train.learning_rate"] for point in found]
    assert rates[0] == rates[1] != rates[2] == rates[3]


# --- what a point becomes ---


def test_a_number_for_dropout_keeps_the_input_and_fits_any_number_of_layers(make_run: Maker) -> None:
    config = make_run({"space": {"num_units": [[4], [4, 4], 6], "dropout_keep_probabilities": [0.8]}})
    made = [trial_run(config, tune_config(config), point).model for point in drawn(config)]
    assert {model.num_units: model.dropout_keep_probabilities for model in made} == {
        (4,): (1.0, 0.8),
        (4, 4): (1.0, 0.8, 0.8),
        (6,): (1.0, 0.8),
    }


def test_momentum_is_left_out_of_trials_with_another_optimizer(make_run: Maker) -> None:
    config = make_run({"space": {"optimizer": ["Adam", "Momentum"], "momentum": [0.9]}, "search": "grid"})
    made = [trial_run(config, tune_config(config), point).train for point in drawn(config)]
    assert [(train.optimizer, train.momentum) for train in made] == [("Adam", None), ("Momentum", 0.9)]


def test_a_trial_has_the_sweeps_budget_and_the_best_run_its_own(make_run: Maker) -> None:
    tuning = {"space": {"num_units": [[4]]}, "steps": 10, "evaluate_every_steps": 5, "workers_per_trial": 2}
    config = make_run(tuning, train={"epochs": 3})
    trial, best = trial_run(config, tune_config(config), drawn(config)[0]), best_run(config, drawn(config)[0])
    assert (trial.train.steps, trial.train.epochs, trial.train.evaluate_every_steps) == (10, None, 5)
    assert (best.train.steps, best.train.epochs, best.train.evaluate_every_steps) == (None, 3, None)
    assert (trial.resources.workers, best.resources.workers) == (2, 1)
    assert (best.name, best.model.num_units, best.tune) == ("run-best", (4,), None)


def test_a_sweep_asks_for_room_for_one_trial_and_for_reading(make_run: Maker) -> None:
    assert ray_cpus(make_run({"space": {"num_units": [[4]]}})) == 3
    assert ray_cpus(make_run({"space": {"num_units": [[4]]}, "workers_per_trial": 4})) == 6


@pytest.mark.parametrize(
    ("metric", "mode", "best"),
    [
        ("validation_loss", None, "min"),
        ("validation_accuracy", None, "max"),
        ("validation_accuracy", "min", "min"),
        ("train_loss", None, "min"),
    ],
)
def test_which_end_of_a_metric_is_good_is_known(make_run: Maker, metric: str, mode: str | None, best: str) -> None:
    assert check_sweep(make_run({"space": {"num_units": [[4]]}, "metric": metric, "mode": mode})).best_is == best


# --- what is refused, before anything starts ---

UNITS = {"num_units": [[4]]}
NEEDS_VALUES = (
    "tune: search grid needs a list of values for each setting, but space.train.learning_rate is a range; list its "
    "values, or use search random"
)
REFUSED: list[tuple[dict[str, Any] | None, str]] = [
    (
        None,
        "tune must be given to sweep a run, but the run has no such section; for example tune: {trials: 4, space: "
        "{num_units: [[64], [128]], cell_type: [lstm, gru]}}",
    ),
    ({"space": UNITS, "metrc": "x"}, "tune: metrc is not a setting; did you mean metric?"),
    ({"space": {}}, "tune: space must have at least 1 item, but has none"),
    (
        {"space": {"num_unit": [[4]]}},
        "tune: space.model.num_unit is not a setting that can vary; did you mean model.num_units?",
    ),
    (
        {"space": {"train.learning_rat": [1]}},
        "tune: space.train.learning_rat is not a setting that can vary; did you mean train.learning_rate?",
    ),
    (
        {"space": {"model.label": ["a", "b"]}},
        "tune: space.model.label cannot vary: the data are read and the columns fitted once for all trials",
    ),
    (
        {"space": {"train.steps": [1, 2]}},
        "tune: space.train.steps cannot vary: it is part of a trial's budget; set it beside space, or in the run",
    ),
    (
        {"space": {"num_units": [[4]], "model.num_units": [[5]]}},
        "tune: space.model.num_units stands twice, once without its room; keep one of them",
    ),
    (
        {"space": {"learning_rate": 0.1}},
        "tune: space.train.learning_rate must be a list of values, or a range such as {type: loguniform, low: 1.0e-3, "
        "high: 0.1}, but is 0.1",
    ),
    (
        {"space": {"learning_rate": {"type": "loguni", "low": 1, "high": 2}}},
        "tune: space.train.learning_rate.type must be one of choice, grid, uniform, loguniform, quniform, randint, "
        "lograndint, but is 'loguni'; did you mean loguniform?",
    ),
    (
        {"space": {"learning_rate": {"type": "uniform", "low": 2, "high": 1}}},
        "tune: space.train.learning_rate: low must be less than high, but low is 2 and high is 1",
    ),
    (
        {"space": {"learning_rate": {"type": "uniform", "low": -1, "high": 1}}},
        "tune.space: train.learning_rate -1.0: train.learning_rate must be greater than 0, but is -1.0",
    ),
    (
        {"space": {"cell_type": ["lstm", "lstmm"], "num_units": [[4], [8]]}},
        "tune.space: model.cell_type 'lstmm': model: cell_type must be one of basic_rnn, lstm, gru, gru_reset_before, "
        "but is 'lstmm'; did you mean lstm?; a cell of your own must be registered by a module listed under `plugins:`",
    ),
    (
        {"space": {"num_units": [[4], [4, 4]], "dropout_keep_probabilities": [[1.0, 0.8]]}},
        "tune.space: model.num_units [4, 4]: model: dropout_keep_probabilities must hold 3 values, one for the input "
        "of each of the 2 layers and one for the output, but holds 2; a single number in the space for "
        "model.dropout_keep_probabilities fits any number of layers",
    ),
    (
        {"space": {"num_units": [[4], [0]], "batch_sequences": [0, 8]}},
        "tune.space: 2 faults\n"
        "tune.space: train.batch_sequences 0: train.batch_sequences must be at least 1, but is 0\n"
        "tune.space: model.num_units [0]: model: num_units must be positive, but is [0]",
    ),
    (
        {"space": {"optimizer": ["Momentum"]}},
        "tune.space: train.optimizer 'Momentum': train: optimizer Momentum needs `momentum`, but it is null; 0.9 is a "
        "usual value; in the space, train.momentum is left out of trials with another optimizer",
    ),
    (
        {"space": UNITS, "metric": "validation_rmse"},
        "tune.metric must be one of train_loss, validation_loss, validation_accuracy, validation_perplexity, "
        "validation_bits_per_step, but is 'validation_rmse'; did you mean validation_loss?",
    ),
    (
        {"space": UNITS, "search": "grid", "trials": 3},
        "tune: search grid tries every combination once; leave trials out, or use search random",
    ),
    ({"space": {"learning_rate": {"type": "uniform", "low": 1, "high": 2}}, "search": "grid"}, NEEDS_VALUES),
    (
        {"space": {"num_units": {"type": "grid", "values": [[4]]}}, "search": "optuna"},
        "tune: search optuna chooses values itself, but space.model.num_units is of type grid; make it a choice",
    ),
    ({"space": UNITS, "steps": 1, "epochs": 1}, "tune: epochs and steps exclude each other; set one of them to null"),
]


@pytest.mark.parametrize(("tuning", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_mistake_is_told_before_anything_starts(make_run: Maker, tuning: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sweep(make_run(tuning))
    assert str(caught.value) == message


def test_of_many_combinations_each_value_and_each_drawn_point_is_checked(make_run: Maker) -> None:
    space = {
        "batch_sequences": list(range(1, 2000)),
        "num_units": [[4], [4, 4]],
        "dropout_keep_probabilities": [[1.0, 0.8], [1.0, 0.8, 0.8]],
    }
    with pytest.raises(ConfigError, match="dropout_keep_probabilities must hold"):
        check_sweep(make_run({"space": space, "trials": 20}))
    with pytest.raises(ConfigError, match=r"train\.batch_sequences must be at least 1, but is 0"):
        check_sweep(make_run({"space": {**space, "batch_sequences": list(range(1999, -1, -1))}, "trials": 1}))


def test_a_metric_of_validation_needs_rows_to_validate(make_run: Maker) -> None:
    data = {"train": "/data/train", "validation_fraction": 0}
    with pytest.raises(ConfigError) as caught:
        check_sweep(make_run({"space": UNITS}, data=data))
    assert str(caught.value) == (
        "tune.metric validation_loss needs validation rows, but data.validation is null and data.validation_fraction "
        "is 0; set one of them, or tune.metric=train_loss"
    )
    check_sweep(make_run({"space": UNITS, "metric": "train_loss"}, data=data))


def test_optuna_is_named_where_it_is_not_installed(make_run: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        check_sweep(make_run({"space": UNITS, "search": "optuna"}))
    assert str(caught.value) == (
        "tune.search optuna needs the package optuna, but it is not installed; install dynamic-rnn[search], or use "
        "search random"
    )


def test_there_must_be_a_sweep_to_go_on_with(make_run: Maker, tmp_path: Path) -> None:
    config = make_run({"space": UNITS})
    with pytest.raises(ConfigError, match="there is no sweep to resume; start it without --resume"):
        check_sweep(config, resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("")
    with pytest.raises(ConfigError, match="holds a training run, not a sweep"):
        check_sweep(config, resume=True)


def test_a_sweep_goes_on_with_the_settings_it_began_with(make_run: Maker, tmp_path: Path) -> None:
    from model.settings import dump_yaml

    (tmp_path / "run" / "tune").mkdir(parents=True)
    (tmp_path / "run" / "run.yaml").write_text(dump_yaml(make_run({"space": UNITS, "trials": 2})))
    check_sweep(make_run({"space": UNITS, "trials": 2}, resources={"address": "10.0.0.1:6379"}), resume=True)
    with pytest.raises(ConfigError) as caught:
        check_sweep(make_run({"space": UNITS, "trials": 3}, train={"epochs": 2}), resume=True)
    assert str(caught.value) == (
        f"{tmp_path}/run/run.yaml: a sweep goes on with the settings it began with, but train.epochs was None, but is "
        f"2; tune.trials was 2, but is 3; set it back, or start a new sweep under another name"
    )


def test_the_section_is_described(make_run: Maker) -> None:
    text = describe(TuneConfig)
    assert "\nsearch: random  # one of random, grid, optuna\n" in text
    assert "\n  #   type: loguniform  # loguniform\n" in text


def test_a_mistake_is_told_without_loading_ray() -> None:
    code = "import sys, tune.check, tune.report; print(*sorted({'ray', 'optuna'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- initial states ---


@pytest.mark.parametrize(
    ("space", "varies"),
    [
        ({"num_units": [[8], [16]]}, True),
        ({"cell_type": ["gru", "lstm"]}, True),
        ({"num_units": [[8, 8]]}, True),
        ({"num_units": [8], "cell_type": ["gru", "basic_rnn"]}, False),
        ({"learning_rate": [0.1, 0.2]}, False),
        ({"num_units": {"type": "randint", "low": 8, "high": 10}}, True),
    ],
)
def test_a_sweep_over_the_shape_of_the_state_leaves_the_states_in_the_data_out(
    make_run: Maker, tmp_path: Path, space: dict[str, Any], varies: bool
) -> None:
    plain, stateful = tmp_path / "plain.parquet", tmp_path / "stateful.parquet"
    table = pa.table({"x": [[1.0]], "y": [[0]]})
    pq.write_table(table, plain)
    pq.write_table(table.append_column("rnn_cell_state_0", pa.array([[0.0] * 8])), stateful)

    def check(train: Path, validation: Path, **data: Any) -> None:
        paths = {"train": str(train), "validation": str(validation)}
        config = make_run({"space": space}, model={"cell_type": "gru"}, data=paths | data)
        assert shape_varies(config, tune_config(config)) == varies
        check_states(config, tune_config(config))

    check(plain, plain)
    check(stateful, stateful, initial_states="ignore")
    if not varies:
        return check(stateful, stateful)
    names = " and ".join(name for name in ("model.cell_type", "model.num_units") if name.partition(".")[2] in space)
    for paths in ((stateful, plain), (plain, stateful)):
        with pytest.raises(ConfigError) as told:
            check(*paths)
        assert str(told.value) == (
            "tune.space: trials that begin with the states in the data must have states of one shape, that of the "
            f"run's model, but {names} change it, and {stateful} holds states; set data.initial_states=ignore, or take "
            "them out of the space"
        )
    return None
