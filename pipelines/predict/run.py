"""Batch prediction, Parquet to Parquet: predictions, final states and the carried columns, in the rows' order.

One output file a row group, written whole or not at all, so that a run that was stopped goes on where it was: what
is finished is skipped. Nothing of the data passes through the driver, and no task holds more than a bounded part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.storage import exists, join
from model.storage.atomic import remove_partial
from model.tables.hive_paths import PartitionTypes
from model.tables.parquet import read_footer
from pipelines.predict.bad_rows import OnBadRows, count_set_aside
from pipelines.predict.chain_run import run_chain
from pipelines.predict.output_claim import claim_output
from pipelines.predict.passes import CountedPasses, Progress
from pipelines.predict.plan import plan_prediction
from pipelines.predict.prediction import Choices, Prediction
from pipelines.predict.score_task import RowPredictor


@dataclass(frozen=True)
class PredictResult:
    """What a batch prediction wrote. `rows` are all rows of the data, `bad_rows` those of them that were set aside, and
    `written_rows` those that stand in the `files`.

    `states` is the directory of the states of `entities` keys; None and 0 without keys.
    """

    directory: str
    files: int
    rows: int
    skipped_files: int
    written_rows: int = 0
    bad_rows: int = 0
    quarantine: str | None = None
    states: str | None = None
    entities: int = 0


def predict(
    bundle: str,
    data: str,
    output: str,
    *,
    keep: Sequence[str] | None = None,
    probabilities: bool | None = None,
    plugins: Sequence[str] = (),
    key: Sequence[str] = (),
    state_from: str | None = None,
    states_to: str | None = None,
    states_only: bool = False,
    on_bad_rows: OnBadRows | None = None,
    initial_states: Literal["read", "ignore"] | None = None,
    unbound_states: bool = False,
    partition_types: PartitionTypes | None = None,
    progress: Progress | None = None,
) -> PredictResult:
    """Scores all rows under `data` into Parquet files in the directory `output`.

    `keep` are the columns carried through; None carries every column that is no list. Without `key` each row stands
    for itself: states in the data (`rnn_cell_state_i`) are where it goes on from. With `key`, the rows of one key are
    chained, in the order of `sequence_index` where the data have it, else as they lie in the files; the first goes on
    from the key's state under `state_from`. The states of all keys, those of `state_from` that have no row included,
    are written to `states_to` (default: `_states` in `output`), one row a key; `states_only` writes nothing but them,
    into `output`. With `on_bad_rows="skip"` bad rows are set aside in `_quarantine` in `output`. States must be this
    model's by the files' metadata or, with `unbound_states`, by your word; `initial_states="ignore"` leaves those in
    the data out. What is None of these two is as the run has it that the bundle lies in, else "error" and "read".
    `partition_types` declare columns of paths.

    ConfigError when choices do not fit or `output` holds something else; DataError names file, row and column.
    """
    choices = Choices(
        keep=None if keep is None else tuple(keep),
        probabilities=probabilities,
        plugins=tuple(plugins),
        key=tuple(key),
        state_from=state_from,
        states_to=states_to,
        states_only=states_only,
        on_bad_rows=on_bad_rows,
        initial_states=initial_states,
        unbound_states=unbound_states,
        partition_types=partition_types or {},
    )
    return run_prediction(plan_prediction(bundle, data, output, choices), progress)


def run_prediction(prediction: Prediction, progress: Progress | None = None) -> PredictResult:
    """Does what was planned, on the Ray that this process is connected to, else right here."""
    directories = {prediction.output, prediction.output if prediction.chain is None else prediction.chain.states}
    for directory in sorted(directories):
        claim_output(directory, prediction.claim)
        remove_partial(directory)
    blocks = () if prediction.chain is not None and prediction.chain.states_only else prediction.blocks
    todo = [block for block in blocks if not exists(join(prediction.output, block.name))]
    if prediction.chain is None:
        passes = CountedPasses(progress, total=len(prediction.blocks), done=len(prediction.blocks) - len(todo))
        passes.run(RowPredictor, (prediction,), todo)
    else:
        run_chain(prediction, prediction.chain, todo, progress)
    return _result(prediction, [join(prediction.output, block.name) for block in blocks], len(blocks) - len(todo))


def _result(prediction: Prediction, files: Sequence[str], skipped: int) -> PredictResult:
    quarantine = prediction.setting_aside.directory
    bad = count_set_aside(quarantine)
    chain = prediction.chain
    states = [] if chain is None else chain.states_files
    return PredictResult(
        directory=prediction.output,
        files=len(files),
        rows=prediction.rows,
        skipped_files=skipped,
        written_rows=sum(map(_rows_in, files)) if bad else prediction.rows if files else 0,
        bad_rows=bad,
        quarantine=quarantine if bad else None,
        states=None if chain is None else chain.states,
        entities=sum(map(_rows_in, states)),
    )


def _rows_in(file: str) -> int:
    return int(read_footer(file).num_rows)
