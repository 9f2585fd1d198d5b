"""Whether a run may begin or go on in its directory, and what a resumed run may change. Knows no Ray, no torch.

Free is what says how long training goes on, what is kept of it and on which machines; all else decides what a step
computes, and the run would be neither the old one nor a new one.
"""

from __future__ import annotations

from model.bundle.run_directory import METRICS, RAY_TUNE, RUN_YAML
from model.errors import ConfigError
from model.settings.yaml_text import parse_yaml
from model.storage import exists, join, read_bytes
from pipelines.config import RunConfig, changed_settings, flat, run_config

FREE = frozenset({
    "name", "output", "tune", "serve", "data.test", "data.unseen_labels", "data.mixed_parts",
} | {f"train.{name}" for name in (
    "epochs", "steps", "max_minutes", "early_stopping", "keep_best", "checkpoint_every_steps",
    "checkpoint_every_minutes",
)})  # fmt: skip
FREE_SECTIONS = ("resources.", "tracking.", "train.early_stopping.", "tune.", "serve.")


def check_run(config: RunConfig, *, resume: bool) -> None:
    """ConfigError when the run's directory is taken or, with `resume`, holds no run that can go on so. Changes nothing.

    A run that failed before its first validation holds nothing to lose; its directory is free.
    """
    where = join(config.directory, RUN_YAML)
    if exists(join(config.directory, RAY_TUNE)):
        raise ConfigError(f"{config.directory} holds a sweep, not a run; choose another name=…")
    if resume:
        if not exists(where):
            raise ConfigError(f"{config.directory}: there is no run to resume; start it without --resume")
        check_resumable(read_bytes(where).decode(), config, where=where)
    elif exists(join(config.directory, METRICS)):
        raise ConfigError(
            f"{config.directory} holds a run already; go on with it by --resume, or choose another name=…"
        )


def check_resumable(stored: str, config: RunConfig, *, where: str) -> None:
    """ConfigError that names every setting which differs from the stored run and may not."""
    # As a config, so that a setting which an older version did not know has its default.
    before = flat(run_config(parse_yaml(stored, where=where), where=where).model_dump(mode="json"))
    after = flat(config.model_dump(mode="json"))
    changed = [
        clause
        for name, clause in changed_settings(before, after).items()
        if name not in FREE and not name.startswith(FREE_SECTIONS)
    ]
    if changed:
        raise ConfigError(
            f"{where}: a resumed run may change only its budget, stopping rules, checkpoints, resources and tracking, "
            f"but {'; '.join(changed)}; set it back, or start a new run under another name"
        )
