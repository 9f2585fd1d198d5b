"""The plan of a batch prediction: choices, bundle, footers and output checked before Ray starts or a byte is written.

Knows no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from model.bundle.run_directory import DataChoices, data_choices, resolve_bundle
from model.errors import DataError
from model.registry import import_plugins
from model.scan.needed_columns import optional_columns
from model.state import STATES_CURE, check_own_states, state_schemas
from model.storage import absolute, join
from model.tables.arrow_lists import is_list
from model.tables.parquet import find_fragments
from model.tables.slices import Footer, SlicedRowGroup, read_footers, schemas_of, slice_row_groups
from pipelines.predict.bad_rows import QUARANTINE, BadRowPolicy
from pipelines.predict.entity_keys import key_types
from pipelines.predict.output_claim import Claim, check_output, digest_of
from pipelines.predict.prediction import ORDER, Chain, Choices, Prediction, bytes_of
from pipelines.predict.state_files import STATES, States, find_states, refuse_states_in_data

if TYPE_CHECKING:
    from model.scoring.scorer import Scorer

PARTITION_BYTES = 64 << 20  # of rows and results, on average: about what one task holds
PARTITION_ROWS = 4096  # small data are parted, too, so that several processes have something to do
FEW_PARTITIONS, MOST_PARTITIONS = 32, 1024


def plan_prediction(bundle: str, data: str, output: str, choices: Choices) -> Prediction:
    """What `pipelines.predict.run.predict` is going to do; its errors, as far as footers tell."""
    from model.bundle.bundle import load_bundle
    from model.scoring.scorer import Scorer

    import_plugins(choices.plugins)
    path, target = resolve_bundle(bundle), absolute(output)
    chosen = data_choices(path, on_bad_rows=choices.on_bad_rows, initial_states=choices.initial_states)
    scorer = Scorer(load_bundle(path), probabilities=choices.probabilities)
    inputs = scorer.columns.input_names
    needed = [*inputs, *choices.key, *(choices.keep or ())]
    optional = optional_columns(scorer.config)
    fragments = find_fragments(data, needed, optional=optional, partition_types=choices.partition_types)
    footers = read_footers([fragment.file for fragment in fragments])
    schemas = schemas_of(fragments, footers, [*choices.key, *(choices.keep or ())])
    keep = _kept(choices, schemas)
    _check_states(choices, chosen, scorer, footers)
    row_bytes, step_bytes = computed_bytes(scorer)
    blocks = slice_row_groups(fragments, footers, [*inputs, *keep], row_bytes=row_bytes, step_bytes=step_bytes)
    chain, states_digest = plan_chain(choices, scorer, target, blocks, schemas) if choices.key else (None, None)
    claim = claim_of(choices, chosen, scorer, data, footers, keep) | {
        "content of the initial states": states_digest,
        "way of cutting": [sum(block.slices for block in blocks), *(() if chain is None else (chain.partitions,))],
    }
    check_output(target, claim)
    if chain is not None:
        check_output(chain.states, claim)
    return Prediction(
        bundle=path,
        fingerprint=scorer.fingerprint,
        plugins=choices.plugins,
        columns=scorer.columns,
        state_spec=scorer.state_spec,
        probabilities=scorer.probabilities,
        predicted=scorer.to_arrow({}, np.zeros(0, np.int64)).schema,
        output=target,
        keep=keep,
        blocks=blocks,
        setting_aside=BadRowPolicy(chosen.on_bad_rows, join(target, QUARANTINE)),
        reads_states=chosen.initial_states == "read" and not choices.key,
        chain=chain,
        claim=claim,
    )


def _check_states(choices: Choices, chosen: DataChoices, scorer: Scorer, footers: Mapping[str, Footer]) -> None:
    """States in the data, where they are read: none beside --key, else of this model. Errors as in `model.state`."""
    if chosen.initial_states == "ignore":
        return
    states = state_schemas({file: footer.schema for file, footer in footers.items()})
    if choices.key:
        refuse_states_in_data(states, scorer.state_spec)
    check_own_states(
        states,
        scorer.state_spec,
        scorer.fingerprint,
        unbound=choices.unbound_states,
        cure=STATES_CURE,
        shape_cure=f"; {STATES_CURE}",
    )


def _kept(choices: Choices, schemas: Mapping[str, pa.Schema]) -> tuple[str, ...]:
    """The columns that are carried through: the keys, and those chosen or else all of the first file that are no lists.

    DataError where another file lacks one of them.
    """
    first = next(iter(schemas.values()))
    plain = [field.name for field in first if not is_list(field.type) and not pa.types.is_null(field.type)]
    chosen = plain if choices.keep is None else choices.keep
    kept = tuple(dict.fromkeys([*choices.key, *chosen]))
    for file, schema in schemas.items():
        for name in kept:
            if name not in schema.names:
                raise DataError(
                    "is not in the file, but in others; choose by --keep what is carried through",
                    file=file,
                    column=name,
                )
    return kept


def computed_bytes(scorer: Scorer) -> tuple[int, int]:
    """What is computed, in bytes: for a row (its state), and for each of its steps."""
    row_bytes = 4 * sum(component.numel for component in scorer.state_spec.components)
    values = len(scorer.label.class_values) if scorer.probabilities else 1
    return (row_bytes, 4 * values) if scorer.label.per_step else (row_bytes + 4 * values, 0)


def claim_of(
    choices: Choices,
    chosen: DataChoices,
    scorer: Scorer,
    data: str,
    footers: Mapping[str, Footer],
    keep: Sequence[str],
) -> Claim:
    """All that decides about the output."""
    return {
        "bundle": scorer.fingerprint,
        "input": absolute(data),
        "content of the input": digest_of(footers),
        "choice of columns": [*keep, *(f"{name}={kind}" for name, kind in choices.partition_types.items())],
        "choice of probabilities": scorer.probabilities,
        "key": list(choices.key),
        "place of initial states": None if choices.state_from is None else absolute(choices.state_from),
        "place of final states": None if choices.states_to is None else absolute(choices.states_to),
        "choice of --states-only": choices.states_only,
        "treatment of bad rows": chosen.on_bad_rows,
        "treatment of states in the data": chosen.initial_states,
    }


# Chains ---------------------------------------------------------------------------------------------------------------


def plan_chain(
    choices: Choices, scorer: Scorer, target: str, blocks: Sequence[SlicedRowGroup], schemas: Mapping[str, pa.Schema]
) -> tuple[Chain, str | None]:
    """How rows are chained by their key, and a digest of the states that they go on from."""
    states = target if choices.states_only else absolute(choices.states_to or join(target, STATES))
    given = States((), {}, None)
    if choices.state_from is not None:
        given = find_states(
            choices.state_from,
            scorer.state_spec,
            choices.key,
            scorer.fingerprint,
            new=states,
            unbound=choices.unbound_states,
        )
    chain = Chain(
        keys=key_types(choices.key, {**schemas, **given.schemas}),
        ordered=is_ordered(schemas),
        state_blocks=given.blocks,
        states=states,
        states_only=choices.states_only,
        partitions=partition_count([*blocks, *given.blocks]),
        chunk_rows=max(1, int(PARTITION_BYTES / (bytes_of(blocks) / sum(block.fragment.rows for block in blocks)))),
    )
    return chain, given.digest


def is_ordered(schemas: Mapping[str, pa.Schema]) -> bool:
    """Whether the data have the column that orders the rows of a key; DataError where not all files agree."""
    having = [file for file, schema in schemas.items() if ORDER in schema.names]
    for file, schema in schemas.items():
        if having and file not in having:
            raise DataError(f"must be in all files or in none, but is in {having[0]}", file=file, column=ORDER)
        if having and not pa.types.is_integer(schema.field(ORDER).type):
            raise DataError(
                f"must hold whole numbers, but its type is {schema.field(ORDER).type}", file=file, column=ORDER
            )
    return bool(having)


def partition_count(blocks: Sequence[SlicedRowGroup]) -> int:
    """Into how many parts keys are hashed. A function of the data alone: so a run that goes on finds its parts."""
    rows = sum(block.fragment.rows for block in blocks)
    count = max(math.ceil(bytes_of(blocks) / PARTITION_BYTES), min(FEW_PARTITIONS, rows // PARTITION_ROWS))
    return max(1, min(MOST_PARTITIONS, count))
