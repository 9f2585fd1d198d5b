"""The passes of a chained prediction, by one of two ways.

Where no key has rows in two blocks, these stay where they are (`chain_local`); else they are brought to those of their
key, and results back (`chain_tasks`). Both ways give the same rows and states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model.storage import exists, remove_tree
from model.storage.atomic import remove_partial
from model.tables.slices import SlicedRowGroup
from pipelines.predict.chain_in_place import InPlaceScorer, RouteStatesTask
from pipelines.predict.chain_locality import MOST_LOCAL_ROWS, OPEN_BYTES, KeysOverlapTask, LocateKeysTask
from pipelines.predict.chain_score import ChainScorer
from pipelines.predict.chain_shuffle import AssembleTask, SplitTask
from pipelines.predict.output_claim import read_note, write_note
from pipelines.predict.passes import CountedPasses, Progress
from pipelines.predict.prediction import Chain, Prediction

WAY = "way of chaining"  # noted beside the claim: a run that goes on takes the same
LOCAL, SHUFFLED = "in their row groups", "shuffled"
STAY = "rows stay in their row groups: no key has rows in two of them, and those of each key lie in their order"
MOVE = "rows are brought to those of their key: "


def run_chain(
    prediction: Prediction,
    chain: Chain,
    todo: Sequence[SlicedRowGroup],
    progress: Progress | None,
    tell: Callable[[str], None],
) -> None:
    """Writes what is not there: the output files of `todo`, and the states. `tell` hears which way is taken and why."""
    if not todo and (files := states_files(prediction, chain)) and all(map(exists, files)):
        return
    remove_partial(prediction.work)
    passes = CountedPasses(progress, total=_items(prediction, chain, todo))
    if _stay(prediction, chain, passes, tell):
        passes.total = passes.done + len(prediction.blocks)
        passes.total += len(chain.state_blocks) + chain.partitions if chain.state_blocks else 0
        _run_local(prediction, chain, passes)
    else:
        passes.total = passes.done + _items(prediction, chain, todo, keys=False)
        _run_shuffled(prediction, chain, todo, passes)
    remove_tree(prediction.work)


def states_files(prediction: Prediction, chain: Chain) -> list[str]:
    """The files of final states; none as long as the way is not known."""
    way = read_note(chain.states, WAY)
    if way is None:
        return []
    if way != LOCAL:
        return [chain.states_file(partition) for partition in range(chain.partitions)]
    untouched = range(chain.partitions) if chain.state_blocks else ()
    return [
        *(chain.states_file(number) for number in range(len(prediction.blocks))),
        *(chain.untouched_file(partition) for partition in untouched),
    ]


def _items(prediction: Prediction, chain: Chain, todo: Sequence[SlicedRowGroup], *, keys: bool = True) -> int:
    """Of the way that has more of them."""
    items = len(prediction.blocks) + len(chain.state_blocks) + chain.partitions + len(todo)
    return items + len(prediction.blocks) + chain.partitions if keys else items


def _run_local(prediction: Prediction, chain: Chain, passes: CountedPasses) -> None:
    if chain.state_blocks:
        passes.run(SplitTask, (prediction,), [(True, block) for block in chain.state_blocks], scoring=False)
        passes.run(RouteStatesTask, (prediction,), range(chain.partitions), scoring=False)
    passes.run(InPlaceScorer, (prediction,), list(enumerate(prediction.blocks)))


def _run_shuffled(prediction: Prediction, chain: Chain, todo: Sequence[SlicedRowGroup], passes: CountedPasses) -> None:
    """Rows to those of their key, keys from state to state, results back to where rows were."""
    parts = [(False, block) for block in prediction.blocks] + [(True, block) for block in chain.state_blocks]
    passes.run(SplitTask, (prediction,), parts, scoring=False)
    passes.run(ChainScorer, (prediction,), range(chain.partitions))
    passes.run(AssembleTask, (prediction,), todo, scoring=False)


def _stay(prediction: Prediction, chain: Chain, passes: CountedPasses, tell: Callable[[str], None]) -> bool:
    """Whether rows stay in their blocks: as noted by a run that was stopped, or as the keys tell."""
    way = read_note(chain.states, WAY)
    if way is None:
        why = why_move(prediction, chain, passes)
        way = LOCAL if why is None else SHUFFLED
        tell(STAY if why is None else MOVE + why)
        write_note(chain.states, {WAY: way})
    elif way == LOCAL:
        passes.run(LocateKeysTask, (prediction,), prediction.blocks, scoring=False)
    return bool(way == LOCAL)


def why_move(prediction: Prediction, chain: Chain, passes: CountedPasses) -> str | None:
    """What keeps rows from staying where they are; None where nothing does."""
    if any(block.fragment.rows > MOST_LOCAL_ROWS for block in prediction.blocks):
        return f"a row group has more than {MOST_LOCAL_ROWS} rows"
    keys = passes.run(LocateKeysTask, (prediction,), prediction.blocks, scoring=False)
    if not all(each["ordered"] for each in keys):
        return "those of a key do not lie in the order of their sequence_index"
    state_bytes = 4 * sum(component.numel for component in prediction.state_spec.components)
    if max(each["open"] for each in keys) * state_bytes > OPEN_BYTES:
        return "those of too many keys lie far apart in their row group"
    if len(prediction.blocks) > 1 and any(
        passes.run(KeysOverlapTask, (prediction,), range(chain.partitions), scoring=False)
    ):
        return "a key has rows in more than one row group"
    return None
