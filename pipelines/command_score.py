"""The commands that run a bundle over data: evaluate and predict."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli_options import Address, BundlePath, DataPath, Plugins, local_cpus, ray_for
from pipelines.console import Console


def evaluate(
    context: typer.Context,
    bundle: BundlePath,
    data: DataPath,
    plugin: Plugins = None,
    address: Address = None,
) -> None:
    """Metrics of a bundle over every row, each counted once."""
    check_inputs(bundle, data)
    with ray_for(context, local_cpus(), address):
        evaluate_data(context.obj, bundle, data, tuple(plugin or ()))


def check_inputs(bundle: str, data: str) -> None:
    """Tells a wrong path at once, before Ray starts."""
    from model.runs import resolve_bundle
    from model.storage import find_files

    resolve_bundle(bundle)
    find_files(data)


def evaluate_data(console: Console, bundle: str, data: str, plugins: tuple[str, ...] = ()) -> dict[str, float]:
    """Evaluates and shows the metrics."""
    from pipelines.evaluate import evaluate as evaluate_rows

    with console.counting("evaluating row groups") as progress:
        metrics = evaluate_rows(bundle, data, plugins=plugins, progress=progress)
    console.table(f"{bundle} on {data}", metrics)
    return metrics


def predict(
    context: typer.Context,
    bundle: BundlePath,
    data: DataPath,
    output: Annotated[str, typer.Argument(help="directory for the predictions")],
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="COLUMN", help="column to carry through (repeatable)")
    ] = None,
    probabilities: Annotated[
        bool | None, typer.Option("--probabilities/--no-probabilities", help="default: as the model is configured")
    ] = None,
    plugin: Plugins = None,
    address: Address = None,
) -> None:
    """Predictions and final states of every row, Parquet to Parquet. A stopped prediction goes on where it was."""
    check_inputs(bundle, data)
    with ray_for(context, local_cpus(), address):
        predict_data(
            context.obj, bundle, data, output, keep=keep, probabilities=probabilities, plugins=tuple(plugin or ())
        )


def predict_data(console: Console, bundle: str, data: str, output: str, **choices: Any) -> Any:
    """Predicts and says where the predictions lie."""
    from pipelines.predict import predict as predict_rows

    with console.counting("predicting row groups") as progress:
        result = predict_rows(bundle, data, output, progress=progress, **choices)
    console.say(f"{result.rows} rows in {result.files} files ({result.skipped_files} were there): {result.directory}")
    return result
