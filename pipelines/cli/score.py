"""The commands that run a bundle over data: evaluate and predict."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from pipelines.cli.options import (
    Address,
    BundlePath,
    DataPath,
    Executor,
    PartitionTypeOptions,
    Plugins,
    executor_for,
    local_cpus,
    partition_types_of,
)
from pipelines.console import Console

TOLD_BAD_ROWS = 20  # shown one by one; the rest is in the quarantine


class UnseenLabels(StrEnum):
    """What to do with labels that are none of the model's classes."""

    COUNT = "count"
    ERROR = "error"


class BadRows(StrEnum):
    """What to do with rows that break the data contract."""

    ERROR = "error"
    SKIP = "skip"


class InitialStates(StrEnum):
    """What to do with states in the data."""

    READ = "read"
    IGNORE = "ignore"


StatesInData = Annotated[
    InitialStates | None,
    typer.Option("--initial-states", help="rows begin with the data's rnn_cell_state_i, or not; default: as the run"),
]
UnboundStates = Annotated[
    bool, typer.Option("--unbound-states", help="states that name no model are this one's: you know it")
]


def evaluate(
    context: typer.Context,
    bundle: BundlePath,
    data: DataPath,
    on_bad_rows: Annotated[
        BadRows | None,
        typer.Option("--on-bad-rows", help="stop at the first, or leave them out and count them; default: as the run"),
    ] = None,
    quarantine: Annotated[
        str | None, typer.Option("--quarantine", metavar="DIRECTORY", help="for the bad rows, each with the reason")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--filter", metavar="EXPRESSION", help="rows to keep, such as \"country == 'DE'\"")
    ] = None,
    unseen_labels: Annotated[
        UnseenLabels,
        typer.Option("--unseen-labels", help="labels of no class: count them as wrong and without a loss, or bad rows"),
    ] = UnseenLabels.COUNT,
    partition_types: PartitionTypeOptions = None,
    initial_states: StatesInData = None,
    unbound_states: UnboundStates = False,
    plugin: Plugins = None,
    executor: Executor = "auto",
    address: Address = None,
) -> None:
    """Metrics of a bundle over every row, each counted once."""
    choices = {
        "plugins": tuple(plugin or ()),
        "on_bad_rows": on_bad_rows,
        "filter": only,
        "quarantine": quarantine,
        "unseen_labels": unseen_labels.value,
        "partition_types": partition_types_of(partition_types),
        "initial_states": initial_states,
        "unbound_states": unbound_states,
    }
    evaluation = planned_evaluation(bundle, data, **choices)
    with executor_for(context, executor, evaluation.found.nbytes, local_cpus(), address):
        show_evaluation(context.obj, evaluation, f"{bundle} on {data}")
    context.obj.next("predict", bundle, data, "OUTPUT")


def planned_evaluation(bundle: str, data: str, **choices: Any) -> Any:
    """A checked evaluation: mistakes are told before Ray starts."""
    from model.bundle.run_directory import resolve_bundle
    from model.storage import find_files

    resolve_bundle(bundle)
    find_files(data)  # a wrong path is told before torch is loaded
    from pipelines.evaluate import plan_evaluation

    return plan_evaluation(bundle, data, **choices)


def evaluate_data(console: Console, bundle: str, data: str) -> dict[str, float]:
    """Evaluates and shows the metrics."""
    return show_evaluation(console, planned_evaluation(bundle, data), f"{bundle} on {data}")


def show_evaluation(console: Console, evaluation: Any, title: str) -> dict[str, float]:
    """Runs a planned evaluation and shows the metrics."""
    from pipelines.evaluate import run_evaluation

    with console.counting("evaluating row groups") as progress:
        metrics = run_evaluation(evaluation, progress)
    console.table(title, metrics)
    return metrics


def predict(
    context: typer.Context,
    bundle: BundlePath,
    data: DataPath,
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="directory for what is written")],
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="COLUMN", help="column to carry through (repeatable); default: all but lists"),
    ] = None,
    probabilities: Annotated[
        bool | None, typer.Option("--probabilities/--no-probabilities", help="default: as the model is configured")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="COLUMN", help="whose rows they are (repeatable): chains the rows of one key"),
    ] = None,
    state_from: Annotated[
        str | None, typer.Option("--state-from", metavar="PATH", help="Parquet of states that the keys go on from")
    ] = None,
    states_to: Annotated[
        str | None,
        typer.Option("--states-to", metavar="DIRECTORY", help="for the keys' new states; default: OUTPUT/_states"),
    ] = None,
    states_only: Annotated[
        bool, typer.Option("--states-only", help="write the keys' states alone, into OUTPUT, as after a retrain")
    ] = False,
    on_bad_rows: Annotated[
        BadRows | None,
        typer.Option(
            "--on-bad-rows", help="stop at the first, or set them aside in OUTPUT/_quarantine; default: as the run"
        ),
    ] = None,
    initial_states: StatesInData = None,
    unbound_states: UnboundStates = False,
    partition_types: PartitionTypeOptions = None,
    plugin: Plugins = None,
    executor: Executor = "auto",
    address: Address = None,
) -> None:
    """Predictions and final states of every row, Parquet to Parquet. A stopped prediction goes on where it was.

    With --key, the rows of one key go on from one another, in the order of
    their sequence_index (else as they lie in the files), and the first of them
    from --state-from. The states of all keys are written, too, so that each
    day's run costs just that day's events:

    dynamic-rnn predict runs/r mon out/mon --key user

    dynamic-rnn predict runs/r tue out/tue --key user --state-from out/mon
    """
    choices = {
        "keep": None if keep is None else tuple(keep),
        "probabilities": probabilities,
        "plugins": tuple(plugin or ()),
        "key": tuple(key or ()),
        "state_from": state_from,
        "states_to": states_to,
        "states_only": states_only,
        "on_bad_rows": on_bad_rows,
        "initial_states": initial_states,
        "unbound_states": unbound_states,
        "partition_types": partition_types_of(partition_types),
    }
    prediction = planned(bundle, data, output, **choices)
    with executor_for(context, executor, prediction.nbytes, local_cpus(), address):
        show_prediction(context.obj, prediction)
    if key:
        names = [word for name in key for word in ("--key", name)]
        context.obj.next("predict", bundle, "NEXT_DATA", "NEXT_OUTPUT", *names, "--state-from", states_to or output)
    else:
        context.obj.next("serve", bundle)


def planned(bundle: str, data: str, output: str, **choices: Any) -> Any:
    """A checked prediction: mistakes are told before Ray starts."""
    from pipelines.predict.plan import plan_prediction
    from pipelines.predict.prediction import Choices

    return plan_prediction(bundle, data, output, Choices(**choices))


def predict_data(console: Console, bundle: str, data: str, output: str, **choices: Any) -> Any:
    """Predicts and says what was written."""
    return show_prediction(console, planned(bundle, data, output, **choices))


def show_prediction(console: Console, prediction: Any) -> Any:
    """Runs a planned prediction and says what was written and which rows were set aside."""
    from pipelines.predict.bad_rows import told_set_aside
    from pipelines.predict.run import run_prediction

    with console.counting("predicting") as progress:
        result = run_prediction(prediction, progress)
    if result.quarantine is not None:
        for line in told_set_aside(result.quarantine, TOLD_BAD_ROWS):
            console.note(f"bad row: {line}")
        console.say(f"{result.bad_rows} bad rows were set aside, each with the reason: {result.quarantine}")
    if result.files:
        there = f" ({result.skipped_files} were there)" if result.skipped_files else ""
        console.say(f"{result.written_rows} rows in {result.files} files{there}: {result.directory}")
    if result.states is not None:
        console.say(f"states of {result.entities} keys: {result.states}")
    return result
