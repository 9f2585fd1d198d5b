"""The commands that turn one form of a model into another: import-tf and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import BundlePath, Plugins


def import_tf(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="the original's model directory, a checkpoint, or an .npz")
    ],
    output: Annotated[str, typer.Argument(metavar="BUNDLE", help="directory for the bundle")],
    config: Annotated[Path, typer.Option("--config", help="YAML with the model's settings, columns fully declared")],
    several: Annotated[
        list[str] | None,
        typer.Option("--several", metavar="COLUMN", help="categorical column with lists of values (repeatable)"),
    ] = None,
    integers: Annotated[
        list[str] | None,
        typer.Option("--integers", metavar="COLUMN", help="hashed or crossed column of integers (repeatable)"),
    ] = None,
) -> None:
    """Turn a checkpoint of TensorFlow's DynamicRnnEstimator into a bundle that predicts the same."""
    from model.settings import load_settings
    from model.tf1.import_bundle import Held, import_checkpoint

    held = Held(several or (), integers or ())
    imported = import_checkpoint(source, output, load_settings(config), where=str(config), held=held)
    for note in imported.notes:
        context.obj.note(note)
    context.obj.table(f"bundle: {output}", imported.bundle.provenance | {"fingerprint": imported.bundle.fingerprint})
    context.obj.next("evaluate", output, "DATA")


def export(
    context: typer.Context,
    bundle: BundlePath,
    output: Annotated[str, typer.Argument(metavar="OUT", help="directory for bundle and graphs")],
    plugin: Plugins = None,
) -> None:
    """Write a bundle with ONNX graphs of sequence and step, and the step for torch.export, each checked."""
    from model.bundle.bundle import load_bundle
    from model.bundle.run_directory import resolve_bundle
    from model.export.export import export as export_bundle
    from model.registry import import_plugins

    import_plugins(plugin or ())
    loaded = load_bundle(resolve_bundle(bundle))
    context.obj.note("tracing and checking the graphs …")
    context.obj.say(f"exported: {export_bundle(loaded, output)}")
    context.obj.note("next: run the graphs without this package, as docs/onnx.md shows; or")
    context.obj.next("serve", output)
