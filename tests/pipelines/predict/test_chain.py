"""Chained predictions: rows of one key go on from one another, over row groups, files and days."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from model.bundle.bundle import Bundle, save_bundle
from model.errors import ConfigError, DataError, StateError
from model.scoring.scorer import Scorer
from model.storage import join
from pipelines.predict.run import predict
from pipelines.predict.state_files import FINGERPRINT

STEPS = ("x", "vector", "kind", "tags")
WHOSE = "needs to know whose states they are: name the key's column by --key"
LENGTHS = [5, 0, 3, 8, 1, 4, 0, 6, 2, 7]  # the whole history of entities 0 … 9


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Bundle], str]:
    """save(bundle): its directory."""

    def save(bundle: Bundle, name: str = "bundle") -> str:
        save_bundle(tmp_path / name, bundle)
        return str(tmp_path / name)

    return save


def history(make_table: Any, prediction: str = "multiple_value") -> pa.Table:
    """One row an entity, all its events in it."""
    table = make_table("classification", prediction, lengths=LENGTHS, seed=4)
    return replaced(table, "key", pa.array([f"entity {row}" for row in range(len(LENGTHS))]))


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def pieces(table: pa.Table, cuts: Sequence[Sequence[int]]) -> pa.Table:
    """Each row in pieces between its `cuts`, with `sequence_index`."""
    rows = []
    for row, at in zip(table.to_pylist(), cuts, strict=True):
        bounds = [0, *at, len(row["x"])]
        for index, (first, last) in enumerate(pairwise(bounds)):
            part = {name: row[name][first:last] for name in STEPS}
            rows.append({**row, **part, "sequence_index": index})
    schema = table.schema.append(pa.field("sequence_index", pa.int64()))
    return pa.Table.from_pylist(rows, schema)


def written(directory: str | Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(Path(directory).glob("*.parquet")))


def states_of(directory: str | Path) -> dict[str, np.ndarray]:
    """All components of each key's state in one vector."""
    return {
        row["key"]: np.concatenate([row[name] for name in row if name.startswith("rnn_cell_state")])
        for row in written(directory).to_pylist()
    }


def assert_states_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for key, state in found.items():
        np.testing.assert_allclose(state, expected[key], rtol=1e-6, atol=1e-6, err_msg=key)


def assert_steps_equal(found: Sequence[Any], expected: Sequence[Any]) -> None:
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_two_days_are_one_run_over_everything(
    make_bundle: Any, make_table: Any, save: Any, tmp_path: Path, cell: str, prediction: str
) -> None:
    bundle = save(make_bundle("classification", prediction, cell, predict_probabilities=True))
    whole = history(make_table, prediction)
    # Entities 0 to 2 have no event on the second day, 7 to 9 none on the first, and 1 and 6 none at all.
    cuts = [[length if row < 3 else 0 if row >= 7 else length // 2] for row, length in enumerate(LENGTHS)]
    days = pieces(whole, cuts)
    first = days.filter(pa.array([row["sequence_index"] == 0 and int(row["key"][-1]) < 7 for row in days.to_pylist()]))
    second = days.filter(
        pa.array([row["sequence_index"] == 1 and int(row["key"][-1]) >= 3 for row in days.to_pylist()])
    )
    for name, table in (("whole", whole), ("first", first), ("second", second)):
        pq.write_table(table.drop_columns("sequence_index") if name != "whole" else table, tmp_path / f"{name}.parquet")

    out = {name: str(tmp_path / "out" / name) for name in ("whole", "first", "second")}
    predict(bundle, str(tmp_path / "whole.parquet"), out["whole"], key=["key"])
    predict(bundle, str(tmp_path / "first.parquet"), out["first"], key=["key"])
    result = predict(bundle, str(tmp_path / "second.parquet"), out["second"], key=["key"], state_from=out["first"])

    assert (result.entities, result.states) == (10, f"{out['second']}/_states")
    before, after = states_of(f"{out['first']}/_states"), states_of(f"{out['second']}/_states")
    assert_states_equal(after, states_of(f"{out['whole']}/_states"))
    for key in ("entity 0", "entity 1", "entity 2"):
        np.testing.assert_array_equal(after[key], before[key])
    expected = {row["key"]: row for row in written(out["whole"]).to_pylist()}
    for row in written(out["second"]).to_pylist():
        steps, all_steps = row["probabilities"], expected[row["key"]]["probabilities"]
        if prediction == "multiple_value":
            assert_steps_equal(steps, all_steps[len(all_steps) - len(steps) :])
            assert row["classes"] == expected[row["key"]]["classes"][len(all_steps) - len(steps) :]
        elif steps is not None:
            assert_steps_equal(steps, all_steps)
    untouched = [name for name in after if name in before and name not in {row["key"] for row in second.to_pylist()}]
    assert untouched == ["entity 0", "entity 1", "entity 2"]


@pytest.fixture
def shuffled(make_table: Any, tmp_path: Path) -> tuple[Path, pa.Table, pa.Table]:
    """(directory, its rows in file order, the history they are pieces of): three files, several row groups."""
    whole = history(make_table)
    cuts = [sorted(np.random.default_rng(row).integers(0, length + 1, row % 5)) for row, length in enumerate(LENGTHS)]
    table = pieces(whole, cuts)
    table = table.take(pa.array(np.random.default_rng(1).permutation(table.num_rows)))
    directory = tmp_path / "shuffled"
    directory.mkdir()
    third = -(-table.num_rows // 3)
    for number in range(3):
        pq.write_table(table.slice(number * third, third), directory / f"{number}.parquet", row_group_size=4)
    return directory, table, whole


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("fine", [False, True])
def test_chains_cross_row_groups_and_files_in_the_order_of_their_index(
    request: pytest.FixtureRequest, make_bundle: Any, save: Any, shuffled: Any, tmp_path: Path, fine: bool
) -> None:
    if fine:
        request.getfixturevalue("finely_cut")
    directory, table, whole = shuffled
    bundle = make_bundle(predict_probabilities=True)
    path, out = save(bundle), str(tmp_path / "out")
    result = predict(path, str(directory), out, key=["key"])
    assert (result.rows, result.files, result.entities) == (table.num_rows, 9, 10)
    assert (len(list(Path(out, "_states").glob("*.parquet"))) > 1) == fine
    assert not Path(out, "_work").exists()

    found = written(out)
    assert found.select(["key", "sequence_index"]).equals(table.select(["key", "sequence_index"]))
    scored = Scorer(bundle).score(whole)
    for row, key in enumerate(whole["key"].to_pylist()):
        mine = sorted(
            (each for each in found.to_pylist() if each["key"] == key), key=lambda each: each["sequence_index"]
        )
        steps = [step for piece in mine for step in piece["probabilities"]]
        assert_steps_equal(steps, scored.predictions["probabilities"][row].as_py())
        np.testing.assert_allclose(mine[-1]["rnn_cell_state_3"], scored.state[3][row], atol=1e-6)
    expected = {
        key: np.concatenate([part[row] for part in scored.state]) for row, key in enumerate(whole["key"].to_pylist())
    }
    assert_states_equal(states_of(f"{out}/_states"), expected)

    only = predict(path, str(directory), str(tmp_path / "only"), key=["key"], states_only=True)
    assert (only.entities, only.files, only.states) == (10, 0, str(tmp_path / "only"))
    assert written(tmp_path / "only").equals(written(f"{out}/_states"))


@pytest.mark.usefixtures("here")
def test_without_an_index_rows_are_chained_as_they_lie(
    make_bundle: Any, save: Any, make_table: Any, tmp_path: Path
) -> None:
    whole = history(make_table)
    table = pieces(whole, [[length // 3, length // 2] for length in LENGTHS]).drop_columns("sequence_index")
    (tmp_path / "data").mkdir()
    pq.write_table(table.slice(0, 13), tmp_path / "data" / "a.parquet", row_group_size=5)
    pq.write_table(table.slice(13), tmp_path / "data" / "b.parquet")
    pq.write_table(whole, tmp_path / "whole.parquet")
    bundle = save(make_bundle())
    predict(bundle, str(tmp_path / "data"), str(tmp_path / "out"), key=["key"])
    predict(bundle, str(tmp_path / "whole.parquet"), str(tmp_path / "expected"), key=["key"])
    assert_states_equal(states_of(tmp_path / "out" / "_states"), states_of(tmp_path / "expected" / "_states"))


@pytest.mark.usefixtures("here", "finely_cut")
def test_keys_may_be_several_columns_of_any_width(make_bundle: Any, save: Any, make_table: Any, tmp_path: Path) -> None:
    table = make_table(rows=12).append_column("shop", pa.array([1, 2] * 6, pa.int32()))
    user = pa.array([f"user {row % 3}" for row in range(12)])
    (tmp_path / "data").mkdir()
    pq.write_table(replaced(table, "key", user.dictionary_encode()).slice(0, 6), tmp_path / "data" / "a.parquet")
    wide = replaced(replaced(table, "key", user), "shop", table["shop"].cast(pa.int64())).slice(6)
    pq.write_table(wide, tmp_path / "data" / "b.parquet")
    bundle = save(make_bundle())
    result = predict(bundle, str(tmp_path / "data"), str(tmp_path / "out"), key=["key", "shop"], keep=[])
    states = written(tmp_path / "out" / "_states")
    assert result.entities == 6
    assert {(row["key"], row["shop"]) for row in states.to_pylist()} == {
        (f"user {user}", shop) for user in range(3) for shop in (1, 2)
    }
    assert states.schema.field("shop").type == pa.int64()
    for user in range(6):  # rows `user` and `user + 6` are of one pair
        pair = Scorer(make_bundle()).score(table.slice(user, 1))
        expected = Scorer(make_bundle()).score(with_state(table.slice(user + 6, 1), pair.state))
        row = next(row for row in states.to_pylist() if (row["key"], row["shop"]) == (f"user {user % 3}", 1 + user % 2))
        np.testing.assert_allclose(row["rnn_cell_state_0"], expected.state[0][0], atol=1e-6)


def with_state(table: pa.Table, state: Sequence[np.ndarray]) -> pa.Table:
    for number, part in enumerate(state):
        table = table.append_column(f"rnn_cell_state_{number}", pa.array(part.tolist()))
    return table


@pytest.mark.usefixtures("local_ray")
def test_on_ray_and_after_a_stop_the_bytes_are_the_same(
    request: pytest.FixtureRequest, make_bundle: Any, save: Any, shuffled: Any, tmp_path: Path
) -> None:
    request.getfixturevalue("finely_cut")
    directory, table, _ = shuffled
    bundle = save(make_bundle())
    seen: list[tuple[int, int]] = []
    out, states = tmp_path / "out", tmp_path / "states"

    def run() -> Any:
        return predict(
            bundle, str(directory), str(out), key=["key"], states_to=str(states),
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip

    first = run()
    assert (first.rows, first.skipped_files) == (table.num_rows, 0)
    assert seen[-1][0] == seen[-1][1] == len(seen)
    bytes_of = {path: path.read_bytes() for path in [*out.glob("*.parquet"), *states.glob("*.parquet")]}
    assert {path.parent.name for path in bytes_of} == {"out", "states"}
    for path in sorted(bytes_of)[::3]:
        path.unlink()
    again = run()
    assert again.skipped_files == sum(path.parent == out for path in bytes_of) - 3
    assert {path: path.read_bytes() for path in bytes_of} == bytes_of
    request.getfixturevalue("here")
    predict(bundle, str(directory), str(tmp_path / "one process"), key=["key"], states_to=str(tmp_path / "one states"))
    assert written(tmp_path / "one process").equals(written(out))
    assert run().skipped_files == again.files


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """(URI with options, filesystem) of an empty bucket of an S3 on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/", timeout=120).close()  # the first answer may take long
    filesystem = fs.S3FileSystem(allow_bucket_creation=True, scheme="http", endpoint_override=f"{host}:{port}")
    filesystem.create_dir("days")
    yield f"s3://days?scheme=http&endpoint_override={host}:{port}", filesystem
    server.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_input_output_and_states_may_lie_in_an_object_store(
    bucket: tuple[str, Any], make_bundle: Any, save: Any, shuffled: Any, tmp_path: Path
) -> None:
    directory, _, _ = shuffled
    path = save(make_bundle())
    uri, filesystem = bucket
    for file in directory.iterdir():
        with filesystem.open_output_stream(f"days/data/{file.name}") as stream:
            stream.write(file.read_bytes())
    predict(path, join(uri, "data"), join(uri, "out"), key=["key"])
    predict(path, str(directory), str(tmp_path / "local"), key=["key"])

    def tables(where: str) -> pa.Table:
        files = [file for file in filesystem.get_file_info(fs.FileSelector(where)) if file.path.endswith(".parquet")]
        return pa.concat_tables(pq.read_table(file.path, filesystem=filesystem) for file in files)

    assert tables("days/out").equals(written(tmp_path / "local"))
    assert tables("days/out/_states").equals(written(tmp_path / "local" / "_states"))
    names = {info.base_name for info in filesystem.get_file_info(fs.FileSelector("days/out"))}
    assert {name for name in names if not name.endswith(".parquet")} == {"_SOURCE", "_states"}
    again = predict(path, join(uri, "data"), join(uri, "out"), key=["key"])
    assert again.skipped_files == again.files
    predict(path, join(uri, "data"), join(uri, "next"), key=["key"], state_from=join(uri, "out"))


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def days(make_bundle: Any, make_table: Any, save: Any, tmp_path: Path) -> Callable[..., Any]:
    """days(states, data, **choices): predicts `data` from `states`, tables each, in this process."""
    path = save(make_bundle())

    def run(states: pa.Table | None, data: pa.Table, *, bundle: str = path, **choices: Any) -> Any:
        (tmp_path / "states").mkdir(exist_ok=True)
        if states is not None:
            pq.write_table(states, tmp_path / "states" / "s.parquet", row_group_size=2)
            choices["state_from"] = str(tmp_path / "states")
        pq.write_table(data, tmp_path / "data.parquet", row_group_size=3)
        return predict(bundle, str(tmp_path / "data.parquet"), str(tmp_path / "out"), **{"key": ["key"], **choices})

    return run


def states_table(bundle: Bundle, keys: Any) -> pa.Table:
    spec = Scorer(bundle).state_spec
    columns = dict(zip(spec.names, spec.to_arrow(spec.zeros(len(keys))), strict=True))
    return pa.table({"key": keys, **columns}).replace_schema_metadata({FINGERPRINT: bundle.fingerprint})


@pytest.mark.usefixtures("here")
class TestMistakes:
    """Each is told in one line that names the place, and leaves no output behind."""

    def test_a_key_with_two_states(self, days: Any, make_bundle: Any, make_table: Any, tmp_path: Path) -> None:
        states = states_table(make_bundle(), ["a", "b", "c", "b"])
        with pytest.raises(DataError) as told:
            days(states, make_table(rows=4))
        where = tmp_path / "states" / "s.parquet"
        assert str(told.value) == (
            f"{where}, row 3: a key must have one state, but key 'b' has another in {where}, row 1; keep one of them"
        )
        assert not list((tmp_path / "out").glob("*.parquet"))

    def test_two_rows_at_one_place(self, days: Any, make_table: Any, tmp_path: Path) -> None:
        table = make_table(rows=9).append_column("sequence_index", pa.array([0, 0, 0, 0, 0, 1, 1, 1, 0]))
        with pytest.raises(DataError) as told:
            days(None, table)
        where = tmp_path / "data.parquet"
        assert str(told.value) == (
            f"{where}, row 8, column 'sequence_index': rows of one key must differ in it, but key 'entity 3' has 0 in "
            f"{where}, row 3, too"
        )

    def test_a_row_without_key(self, days: Any, make_table: Any, tmp_path: Path) -> None:
        table = replaced(make_table(rows=5), "key", pa.array(["a", "b", "c", None, "e"]))
        told = r"data\.parquet, row 3, column 'key': a key must not be null; or leave such rows out with "
        with pytest.raises(DataError, match=f"{told}--on-bad-rows skip$"):
            days(None, table)

    def test_a_state_without_key(self, days: Any, make_bundle: Any, make_table: Any) -> None:
        with pytest.raises(DataError, match=r"s\.parquet, row 2, column 'key': a key must not be null$"):
            days(states_table(make_bundle(), ["a", "b", None]), make_table(rows=4), on_bad_rows="skip")

    def test_keys_of_two_types(self, days: Any, make_bundle: Any, make_table: Any, tmp_path: Path) -> None:
        with pytest.raises(DataError) as told:
            days(states_table(make_bundle(), [1, 2]), make_table(rows=4))
        assert str(told.value) == (
            f"{tmp_path / 'states' / 's.parquet'}, column 'key': a key must have one type in data and states, but is "
            f"int64 here and string in {tmp_path / 'data.parquet'}; write one of them again"
        )

    def test_a_key_that_is_no_whole_number(self, days: Any, make_table: Any) -> None:
        problem = "a category, class or key must be a whole number or a string, but one is 7.5"
        with pytest.raises(DataError, match=rf"row 2, column 'key': {problem}"):
            days(None, replaced(make_table(rows=4), "key", pa.array([7.0, 8.0, 7.5, 7.0])))

    def test_states_of_another_model(self, days: Any, make_bundle: Any, make_table: Any) -> None:
        states = states_table(make_bundle(), ["a"]).replace_schema_metadata({FINGERPRINT: "0123456789abcdef"})
        ours = make_bundle().fingerprint[:12]
        told = rf"states must be of the model that goes on from them \({ours}\), but are of another \(0123456789ab\); "
        with pytest.raises(ConfigError, match=told + "rebuild them from the history by --states-only$"):
            days(states, make_table(rows=4))

    def test_states_of_another_width(self, days: Any, make_bundle: Any, make_table: Any) -> None:
        states = states_table(make_bundle(num_units=[5, 3]), ["a"]).replace_schema_metadata(None)
        told = r"s\.parquet, column 'rnn_cell_state_0': must hold 4 numbers, but holds 5; another model wrote it$"
        with pytest.raises(StateError, match=told):
            days(states, make_table(rows=4))
        lists = states_table(make_bundle(), ["a"])
        lists = lists.set_column(1, "rnn_cell_state_0", pa.array([[0.0] * 5]))
        with pytest.raises(StateError, match=r"s\.parquet, row 0, column 'rnn_cell_state_0': must hold 4 numbers, but"):
            days(lists, make_table(rows=4))

    def test_states_that_lack_a_component(self, days: Any, make_bundle: Any, make_table: Any) -> None:
        with pytest.raises(DataError, match=r"s\.parquet, column 'rnn_cell_state_3': is not in the file"):
            days(states_table(make_bundle(), ["a"]).drop_columns("rnn_cell_state_3"), make_table(rows=4))

    def test_states_in_chained_data(self, days: Any, make_bundle: Any, make_table: Any) -> None:
        table = with_state(make_table(rows=4), Scorer(make_bundle()).state_spec.zeros(4))
        told = "rows that are chained by a key go on from one another, so the data must have no states; name a file of "
        with pytest.raises(DataError, match=rf"column 'rnn_cell_state_0': {told}states by --state-from, or leave out"):
            days(None, table)

    def test_an_index_that_is_no_whole_number_or_not_in_all_files(
        self, days: Any, make_table: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=r"'sequence_index': must hold whole numbers, but its type is double$"):
            days(None, make_table(rows=2).append_column("sequence_index", pa.array([0.0, 1.0])))
        (tmp_path / "two").mkdir()
        table = make_table(rows=2)
        pq.write_table(table, tmp_path / "two" / "b.parquet")
        pq.write_table(table.append_column("sequence_index", pa.array([0, 1])), tmp_path / "two" / "a.parquet")
        told = r"b\.parquet, column 'sequence_index': must be in all files or in none, but is in .*a\.parquet$"
        with pytest.raises(DataError, match=told):
            predict(str(tmp_path / "bundle"), str(tmp_path / "two"), str(tmp_path / "out"), key=["key"], keep=["row"])

    @pytest.mark.parametrize(
        ("choices", "told"),
        [
            ({"state_from": "x"}, "--state-from needs to know whose states they are: name the key's column by --key"),
            ({"states_to": "x"}, "--states-to needs to know whose states they are: name the key's column by --key"),
            (
                {"states_only": True},
                "--states-only needs to know whose states they are: name the key's column by --key",
            ),
            (
                {"states_only": True, "key": ["key"], "keep": ["row"]},
                "--states-only writes states alone, into the output directory: drop --keep",
            ),
            ({"on_bad_rows": "drop"}, "on_bad_rows must be error or skip, but is 'drop'"),
        ],
    )
    def test_choices_that_do_not_fit(self, tmp_path: Path, choices: Any, told: str) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
            predict(str(tmp_path), str(tmp_path), str(tmp_path / "out"), **choices)

    def test_new_states_over_the_old_ones_or_beside_others(
        self, days: Any, make_bundle: Any, make_table: Any, tmp_path: Path
    ) -> None:
        states, where = states_table(make_bundle(), ["a"]), tmp_path / "states"
        with pytest.raises(ConfigError, match=f"^{where}: new states must not go where the initial ones are; name an"):
            days(states, make_table(rows=4), states_to=str(where))
        (tmp_path / "other").mkdir()
        pq.write_table(states, tmp_path / "other" / "mine.parquet")
        told = f"^{tmp_path / 'other'} holds Parquet files that no prediction wrote; name another directory$"
        with pytest.raises(ConfigError, match=told):
            days(None, make_table(rows=4), states_to=str(tmp_path / "other"))

    def test_other_initial_states_under_the_same_name(self, days: Any, make_bundle: Any, make_table: Any) -> None:
        days(states_table(make_bundle(), ["a"]), make_table(rows=4))
        told = "holds predictions or states made with another content of the initial states; remove it or name another"
        with pytest.raises(ConfigError, match=told):
            days(states_table(make_bundle(), ["b"]), make_table(rows=4))
