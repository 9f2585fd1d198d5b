"""Chained predictions whose rows stay in their row groups: when they may, and that they give what the shuffle gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.bundle.bundle import save_bundle
from model.errors import DataError
from model.scoring.scorer import Scorer
from pipelines.predict import (
    chain_in_place as chain_local,
)
from pipelines.predict import (
    chain_locality as chain_keys,
)
from pipelines.predict import (
    chain_run,
)
from pipelines.predict import (
    chain_shuffle as chain_tasks,
)
from pipelines.predict import (
    entity_keys as keys,
)
from pipelines.predict.run import predict

NAN, SOAK = float("nan"), pytest.mark.soak
BUILT_IN = ("lstm", "gru", "gru_reset_before", "basic_rnn")
LENGTHS = [5, 0, 3, 8, 1, 4, 0, 6, 2, 7, 1, 1, 30, 9, 2, 12, 3, 0, 1, 5, 40, 2, 2, 11]
UNIQUE = [f"entity {row}" for row in range(24)]
# Of row groups of 8 rows: one with a row or two a key, interleaved; one of a single key; one with a row a key.
GROUPED = [*"abcabcad", *"eeeeeeee", *(f"f{row}" for row in range(8))]


@pytest.fixture
def bundle(make_bundle: Callable[..., Any], tmp_path: Path) -> str:
    save_bundle(tmp_path / "bundle", make_bundle(predict_probabilities=True))
    return str(tmp_path / "bundle")


@pytest.fixture
def data(make_table: Any, tmp_path: Path) -> Callable[..., Path]:
    """data(whose rows, indexes=None): 24 rows in three row groups, with a bad row."""

    def write(whose: list[str], indexes: list[int] | None = None) -> Path:
        table = make_table(lengths=LENGTHS, seed=4)
        table = table.set_column(table.column_names.index("key"), "key", pa.array(whose))
        values = table["x"].to_pylist()
        values[9] = [NAN] * LENGTHS[9]
        table = table.set_column(table.column_names.index("x"), "x", pa.array(values))
        if indexes is not None:
            table = table.append_column("sequence_index", pa.array(indexes))
        path = tmp_path / "data.parquet"
        pq.write_table(table, path, row_group_size=8)
        return path

    return write


@pytest.fixture
def run(bundle: str, tmp_path: Path) -> Callable[..., list[str]]:
    """run(data, out, **choices): predicts into `out`, leaving the bad row out; what was told."""

    def run(data: Path, out: str, **choices: Any) -> list[str]:
        told: list[str] = []
        choices = {"key": ["key"], "on_bad_rows": "skip", "tell": told.append, **choices}
        predict(bundle, str(data), str(tmp_path / out), **choices)
        return told

    return run


def states(directory: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(directory.glob("*.parquet"))).sort_by("key")


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.glob("*.parquet")}


@pytest.fixture
def initial(bundle: str, tmp_path: Path) -> Callable[[], str]:
    """initial(): states of the bundle for some of the keys, and for others that have no row."""

    def write() -> str:
        spec, random = Scorer.load(bundle).state_spec, np.random.default_rng(2)
        names = ["entity 3", "entity 20", "a", "e", "d", "f7", "nobody", "entity 9", "no one"]
        state = tuple(random.normal(size=(len(names), part.numel)).astype(np.float32) for part in spec.components)
        columns = dict(zip(spec.names, spec.to_arrow(state), strict=True))
        (tmp_path / "initial").mkdir()
        pq.write_table(pa.table({"key": names, **columns}), tmp_path / "initial" / "states.parquet", row_group_size=4)
        return str(tmp_path / "initial")

    return write


def shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_run, "why_move", lambda *_: "it is compared")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("fine", [pytest.param(False, marks=SOAK, id="whole"), pytest.param(True, id="finely cut")])
@pytest.mark.parametrize("cell", ["lstm", *(pytest.param(name, marks=SOAK) for name in BUILT_IN if name != "lstm")])
@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("whose", [UNIQUE, GROUPED], ids=["a row a key", "rows of a key in a row group"])
def test_both_ways_give_the_same_bits(
    data: Any, run: Any, initial: Any, make_bundle: Any, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest, whose: list[str], prediction: str, cell: str, fine: bool,
) -> None:  # fmt: skip
    save_bundle(bundle, make_bundle("classification", prediction, cell, predict_probabilities=True))
    if fine:
        request.getfixturevalue("finely_cut")
    path, given = data(whose), initial()
    assert run(path, "stay") == [chain_run.STAY]
    assert run(path, "stay next", state_from=given) == [chain_run.STAY]
    assert run(path, "stay only", state_from=given, states_only=True) == [chain_run.STAY]
    shuffled(monkeypatch)
    assert run(path, "move") == [f"{chain_run.MOVE}it is compared"]
    run(path, "move next", state_from=given)
    for name in ("", " next"):
        stay, move = tmp_path / f"stay{name}", tmp_path / f"move{name}"
        assert contents(stay) == contents(move)
        assert len(contents(stay)) == 3
        assert states(stay / "_states").equals(states(move / "_states"))
        assert contents(stay / "_quarantine") == contents(move / "_quarantine")
        assert not (stay / "_work").exists()
    assert states(tmp_path / "stay only").equals(states(tmp_path / "move next" / "_states"))
    assert {"nobody", "no one"} < set(states(tmp_path / "stay only")["key"].to_pylist())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("whose", "indexes", "why"),
    [
        ([*UNIQUE[:-1], "entity 7"], None, "a key has rows in more than one row group"),
        (GROUPED, [0, 0, 0, 1, 1, 1, 2, 0, *range(3, 11), *[5] * 8], None),
        (GROUPED, [0, 0, 0, 1, 1, 1, -2, 0, *range(3, 11), *[5] * 8],
         "those of a key do not lie in the order of their sequence_index"),
    ],
    ids=["two row groups", "in order", "out of order"],
)  # fmt: skip
def test_rows_are_moved_where_they_must_be(
    data: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: Any, indexes: Any, why: str | None
) -> None:
    path = data(whose, indexes)
    assert run(path, "out") == [chain_run.STAY if why is None else chain_run.MOVE + why]
    shuffled(monkeypatch)
    run(path, "moved")
    assert contents(tmp_path / "out") == contents(tmp_path / "moved")
    assert states(tmp_path / "out" / "_states").equals(states(tmp_path / "moved" / "_states"))


@pytest.mark.usefixtures("here", "finely_cut")
def test_a_tie_is_told_as_ever(data: Any, run: Any) -> None:
    path = data(GROUPED, [0, 0, 0, 1, 1, 1, 1, 0, *range(8), *range(8)])
    with pytest.raises(
        DataError, match=r"row 6, column 'sequence_index': rows of one key must differ in it, but key 'a"
    ):
        run(path, "out")


@pytest.mark.usefixtures("here", "finely_cut")
def test_what_would_take_too_much_memory_is_shuffled(data: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data(GROUPED)
    monkeypatch.setattr(chain_run, "OPEN_BYTES", 100)  # two keys of the first row group go on beyond a slice
    assert run(path, "far apart") == [f"{chain_run.MOVE}those of too many keys lie far apart in their row group"]
    monkeypatch.setattr(chain_run, "MOST_LOCAL_ROWS", 7)
    assert run(path, "large") == [f"{chain_run.MOVE}a row group has more than 7 rows"]


@pytest.mark.usefixtures("here", "finely_cut")
@pytest.mark.parametrize("distinct", [1, 3])
def test_keys_that_share_a_hash_are_not_mixed_up(
    data: Any, run: Any, initial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distinct: int
) -> None:
    path, given = data(GROUPED), initial()
    pq.write_table(pq.read_table(path), path)  # one row group: many keys of a hash, and yet none is moved
    run(path, "out", state_from=given)
    for module in (chain_keys, chain_local, chain_tasks):
        monkeypatch.setattr(module, "hashes_of", lambda names: keys.hashes_of(names) % np.uint64(distinct))
    assert run(path, "shared", state_from=given) == [chain_run.STAY]
    assert contents(tmp_path / "out") == contents(tmp_path / "shared")
    assert states(tmp_path / "out" / "_states").equals(states(tmp_path / "shared" / "_states"))


@pytest.mark.usefixtures("here")
def test_a_key_with_two_initial_states_is_refused(data: Any, run: Any, initial: Any) -> None:
    given = initial()
    file = Path(given, "states.parquet")
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table.slice(6, 1)]), file)
    with pytest.raises(DataError, match=r"row 9: a key must have one state, but key 'nobody' has another in .*row 6"):
        run(data(UNIQUE), "out", state_from=given)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray", "finely_cut")
def test_on_ray_and_after_a_stop_the_bytes_are_the_same(
    data: Any, run: Any, initial: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, out, given = data(GROUPED), tmp_path / "out", initial()
    seen: list[tuple[int, int]] = []

    def bytes_of() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in out.rglob("*.parquet")}

    assert run(path, "out", state_from=given, progress=lambda *at: seen.append(at)) == [chain_run.STAY]
    assert seen[-1][0] == seen[-1][1] == len(seen)
    first = bytes_of()
    assert run(path, "out", state_from=given, progress=lambda *at: pytest.fail("nothing is left to do")) == []
    for file in sorted(first)[::2]:
        if file.parent.name != "_quarantine":
            file.unlink()
    assert run(path, "out", state_from=given) == []
    assert bytes_of() == first
    request.getfixturevalue("here")
    run(path, "one process", state_from=given)
    assert contents(tmp_path / "one process") == contents(out)
    assert contents(tmp_path / "one process" / "_states") == contents(out / "_states")
