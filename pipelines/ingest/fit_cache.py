"""Columns fitted once and used by all: `fit-columns`, a training, a sweep and their resumes come through `fitted_data`.

What lies in a run's `data/` is used only while its signature goes with the data and the settings. Otherwise a fresh run
scans again; a resumed one scans again, too, and goes on only if it finds the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from model.batches.plan import DataIndex
from model.bundle.run_directory import METRICS
from model.errors import ConfigError
from model.storage import exists, join
from pipelines.config import RunConfig
from pipelines.ingest.fit_signature import changes, forget, listed, pinned_data, shape_of, signature_of, store
from pipelines.ingest.fitted_data import FittedData, has_fitted, load_fitted, save_fitted
from pipelines.ingest.scan import Progress, fit_data

_log = logging.getLogger("dynamic_rnn")


def check_fit(config: RunConfig) -> None:
    """ConfigError where fitting would take away what a run or a sweep was trained on. Changes nothing."""
    config = pinned_data(config, resume=False)
    if exists(join(config.directory, METRICS)) and (changed := changes(config, signature_of(config))):
        raise ConfigError(
            f"{config.directory} holds a run that was trained on other data or columns: {listed(changed)}; choose "
            f"another name=…"
        )


def is_current(config: RunConfig) -> bool:
    """Whether what is stored for a run goes with its data and settings, so that nothing need be scanned.

    DataError where there are no data.
    """
    config = pinned_data(config, resume=False)
    signature = signature_of(config)
    return has_fitted(config.directory) and not changes(config, signature)


def fitted_data(
    config: RunConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> FittedData:
    """A run's fitted columns and row indexes: what is stored where it is current, else scanned and stored.

    `say` gets a line on why columns are fitted: none are stored, or they no longer hold; and one on how rows are split.
    DataError for bad data;
    ConfigError where a resumed run would go on with other data than it began with.
    """
    config = pinned_data(config, resume=resume)
    directory, signature = config.directory, signature_of(config)
    stored = load_fitted(directory) if has_fitted(directory) else None
    changed = changes(config, signature) if stored is not None else []
    if stored is not None and not changed:
        _tell(stored, say)
        return stored
    if say is not None:
        say(
            "fitting the columns: none are stored"
            if stored is None
            else f"fitting the columns again: {listed(changed)}"
        )
    if resume and stored is not None and stored.states is None:  # it goes on as it began, with an earlier version
        found = replace(fit_data(without_states(config), progress), states=None)
    else:
        found = fit_data(config, progress)
    if resume and stored is not None and not same(stored, found):
        raise ConfigError(
            f"{directory}: a resumed run goes on with the data it began with, but they have changed: "
            f"{listed(changed)}; restore them, or start a new run under another name"
        )
    if not resume or stored is None:  # else the same is stored, and stays as the run was begun with
        forget(directory)  # until all of it is written
        save_fitted(directory, found)
    if found.state_spec is not None:
        signature["settings"] |= shape_of(config)
    store(directory, signature)
    _tell(found, say)
    kept = load_fitted(directory)  # whose lengths are the node's, not this process's own
    return replace(found, train=kept.train, validation=kept.validation)


def _tell(prepared: FittedData, say: Callable[[str], None] | None) -> None:
    """By what rows are split and what is amiss with that, at every start."""
    if say is not None and prepared.split:
        say(prepared.split)
    for line in prepared.warnings:
        _log.warning(line)


def without_states(config: RunConfig) -> RunConfig:
    """The run whose rows all begin at zero."""
    return config.model_copy(update={"data": config.data.model_copy(update={"initial_states": "ignore"})})


def same(one: FittedData, other: FittedData) -> bool:
    """Whether two scans have found the same columns, initial states and rows, to the last bit."""
    if (one.columns, one.label, one.states) != (other.columns, other.label, other.states):
        return False
    if one.validation is None or other.validation is None:
        return one.validation is other.validation and same_index(one.train, other.train)
    return same_index(one.train, other.train) and same_index(one.validation, other.validation)


def same_index(one: DataIndex, other: DataIndex) -> bool:
    """Whether two indexes name the same rows of the same row groups, of the same lengths."""
    groups = [[(part.file, part.row_group, part.rows) for part in index.fragments] for index in (one, other)]
    if groups[0] != groups[1] or not np.array_equal(one.lengths, other.lengths):
        return False
    if one.selected is None or other.selected is None:
        return one.selected is other.selected
    return np.array_equal(one.selected, other.selected)
