"""A run that begins with a bundle's weights (`train.warm_start`): what all its workers start from, in `<run>/start`.

Written once, by the driver, before the workers are started: they need not reach the bundle itself, and a resumed run
goes on in the same columns whatever has become of it. Knows no Ray.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from model.bundle.bundle import Bundle, load_bundle, save_bundle
from model.bundle.run_directory import MANIFEST, START, resolve_bundle
from model.bundle.warm_start import started
from model.storage import exists, join
from pipelines.config import RunConfig

if TYPE_CHECKING:
    from pipelines.ingest.fitted_data import FittedData


def write_start(config: RunConfig, prepared: FittedData) -> None:
    """Writes what the run starts from, if it is a bundle and not written yet; errors as
    `model.bundle.warm_start.started`."""
    path = join(config.directory, START)
    if config.train.warm_start is None or exists(join(path, MANIFEST)):
        return
    bundle = load_bundle(resolve_bundle(config.train.warm_start))
    begun = started(
        bundle,
        config.model,
        prepared.columns,
        prepared.label,
        seed=config.train.seed,
        new_vocabulary=config.train.new_vocabulary,
    )
    origin = {"bundle": config.train.warm_start, "fingerprint": bundle.fingerprint}
    save_bundle(path, replace(begun, provenance={"warm_start": origin}))


def read_start(config: RunConfig) -> Bundle | None:
    """What the run starts from; None where that is the seed's weights."""
    return None if config.train.warm_start is None else load_bundle(join(config.directory, START))


def in_columns_of(prepared: FittedData, start: Bundle | None) -> FittedData:
    """The run's data in the columns and classes that the start knows them by."""
    return prepared if start is None else replace(prepared, columns=start.columns, label=start.label)
