"""The command that explains a run's YAML: a start to fill in, a section, or every setting."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

STARTER = """\
# A start, to be filled in: dynamic-rnn settings > run.yaml, then dynamic-rnn train run.yaml.
# `dynamic-rnn inspect DATA --write run.yaml` writes one for your data. Any setting can be overridden behind the file:
# train.epochs=3. `dynamic-rnn settings train` explains a section, `dynamic-rnn settings --all` every setting there is.
name: run
output: runs                        # the run lies in runs/run

data:
  train: data/train                 # Parquet: a file, a directory, a glob or a URI
  validation_fraction: 0.1          # so much is held back to validate on; or name it: validation: data/validation
  key: null                         # column that names whose rows they are: nobody's stand on both sides of the split

model:
  problem_type: classification      # or linear_regression
  prediction_type: multiple_value   # an answer a step; single_value: one a row, after its last step
  label: y                          # column to predict: a list as long as the sequence, or one value a row
  cell_type: lstm                   # or gru; `dynamic-rnn tune` compares
  num_units: [64]
  columns:
    sequence:                       # a value a step
      - {type: numeric, name: x, normalizer: zscore}
      - {type: embedding, source: {type: vocabulary, name: item}, dimension: 16}
    context: []                     # a value a row, seen at each step

train:
  epochs: 100                       # at most: early stopping ends it
  batch_sequences: 64               # of all workers together
  optimizer: Adam
  learning_rate: 1.0e-3
  gradient_clipping_norm: 1.0
  early_stopping:                   # the bundle that is kept is the best one
    metric: validation_loss
    patience: 3                     # validations, one an epoch
"""


def settings(
    section: Annotated[
        str | None, typer.Argument(metavar="[SECTION]", help="data, model, train, resources, tracking, tune or serve")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="every setting of every section")] = False,
) -> None:
    """Print a run's YAML to start from; with SECTION or --all, settings with their defaults and meaning."""
    if everything:
        typer.echo(_all())
    elif section is None:
        typer.echo(STARTER, nl=False)
    else:
        typer.echo(_section(section), nl=False)


def _section(name: str) -> str:
    from model.errors import ConfigError
    from model.settings import describe, did_you_mean

    found = _sections()
    if name not in found:
        known = ", ".join(found)
        raise ConfigError(f"SECTION must be one of {known}, but is {name!r}{did_you_mean(name, found)}")
    return f"{name}:\n{indent(describe(found[name]), '  ')}"


def _sections() -> dict[str, type[BaseModel]]:
    from model.settings.fields import members
    from pipelines.config import RunConfig
    from serve.config import ServeConfig
    from tune.config import TuneConfig

    own: dict[str, Any] = {name: members(field.annotation)[0] for name, field in RunConfig.model_fields.items()}
    configs = {name: kind for name, kind in own.items() if hasattr(kind, "model_fields")}
    return {**configs, "tune": TuneConfig, "serve": ServeConfig}


def _all() -> str:
    from model.settings import describe
    from pipelines.config import RunConfig
    from serve.config import ServeConfig
    from tune.config import TuneConfig

    rest = f"# the sections `tune:` and `serve:`\n# tune:\n{describe(TuneConfig)}\n# serve:\n{describe(ServeConfig)}"
    return f"{describe(RunConfig)}\n{rest}"
