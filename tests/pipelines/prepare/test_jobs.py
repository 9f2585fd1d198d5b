"""Preparations on real Ray: the same bits on any number of workers, stopped and gone on with, in little memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from model.errors import ConfigError, DataError
from model.settings import build
from pipelines.cli.app import app
from pipelines.config import run_config
from pipelines.ingest import scan as ingest
from pipelines.prepare import workspace as prepare_work
from pipelines.prepare.run import PrepareResult, prepare
from pipelines.prepare.settings import PrepareSettings

ROOT = Path(__file__).resolve().parents[3]
GIVEN: dict[str, Any] = {
    "key": "user",
    "time": "at",
    "label": "x",
    "label_shift": 1,
    "max_length": 20,
    "gap": "2h",
    "time_delta": "since",
    "split_by_time": ["2026-01-20"],
    "task_mebibytes": 1,
}


def settings_of(**changes: Any) -> PrepareSettings:
    return build(PrepareSettings, {**GIVEN, **changes}, where="prepare")


def write_events(directory: Path, rows: int, *, files: int = 3, users: int = 300) -> Path:
    """Events of many users over a month, in an order that is not that of time."""
    random = np.random.default_rng(0)
    user = random.integers(0, users, rows)
    seconds = random.integers(0, 30 * 86400, rows) + 1_767_225_600  # 2026-01-01
    table = pa.table(
        {
            "user": pa.array([f"user {number}" for number in range(users)]).take(pa.array(user)),
            "at": pa.array(seconds, pa.timestamp("s")).cast(pa.timestamp("ms")),
            "x": random.normal(size=rows),
            "kind": pa.array(["view", "buy"]).take(pa.array(random.integers(0, 2, rows))),
            "home": pa.array(["at", "de", "fr"]).take(pa.array(user % 3)),
        }
    )
    directory.mkdir(parents=True)
    size = -(-rows // files)
    for number in range(files):
        pq.write_table(table.slice(number * size, size), directory / f"{number}.parquet", row_group_size=7000)
    return directory


@pytest.fixture(scope="session")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("prepare") / "events", 60_000)


def content(output: Path) -> dict[str, bytes]:
    """Every file but the summary, which names the directory."""
    files = [path for path in output.rglob("*") if path.is_file() and path.name != "_SUMMARY.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(files)}


@pytest.fixture(scope="session")
def wanted(events: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[PrepareResult, Path]:
    """(result, output) of a preparation that nobody stops, on three workers."""
    output = tmp_path_factory.mktemp("prepared") / "out"
    return prepare(events, output, settings_of(), workers=3), output


@pytest.mark.usefixtures("local_ray")
class TestOnRay:
    """Each call runs as tasks of a local Ray."""

    def test_any_number_of_workers_writes_the_same_bytes(
        self, events: Path, wanted: tuple[PrepareResult, Path], tmp_path: Path
    ) -> None:
        prepare(events, tmp_path / "out", settings_of(), workers=1)
        assert content(tmp_path / "out") == content(wanted[1])
        files = [name for name in content(wanted[1]) if name.endswith(".parquet")]
        assert len({name.partition("/")[0] for name in files}) == 2
        assert len(files) > 6

    def test_the_result_tells_what_was_made(self, wanted: tuple[PrepareResult, Path]) -> None:
        result, output = wanted
        tables = {split: pq.read_table(output / split) for split in ("train", "validation")}
        assert result.sequences == {split: table.num_rows for split, table in tables.items()}
        assert (result.events, result.keys, result.detected_context) == (60_000, 300, ("home",))
        assert sum(len(row) for table in tables.values() for row in table["x"]) == 60_000 - result.unlabelled_events
        assert result.lengths["train"]["longest"] == max(len(row) for row in tables["train"]["x"])
        assert result == PrepareResult.from_plain(json.loads((output / "_SUMMARY.json").read_text()))

    def test_the_trainer_takes_what_was_made(self, wanted: tuple[PrepareResult, Path]) -> None:
        model = {
            "problem_type": "linear_regression",
            "prediction_type": "multiple_value",
            "label": "x_next",
            "num_units": [4],
            "columns": {
                "sequence": [{"type": "numeric", "name": "x"}, {"type": "numeric", "name": "since"}],
                "context": [{"type": "one_hot", "source": {"type": "vocabulary", "name": "home"}}],
            },
        }
        data = {"train": str(wanted[1] / "train"), "validation": str(wanted[1] / "validation"), "key": "user"}
        taken = ingest.fit_data(run_config({"data": data, "model": model}, where="run"))
        assert taken.train.rows == wanted[0].sequences["train"]
        assert taken.train.steps + (taken.validation.steps if taken.validation else 0) == (
            60_000 - wanted[0].unlabelled_events
        )

    @pytest.mark.parametrize(("phase", "stops_at"), [("partition", 2), ("detect", 1), ("build", 3)])
    def test_a_stopped_preparation_shows_nothing_and_goes_on_where_it_was(
        self, events: Path, wanted: tuple[PrepareResult, Path], tmp_path: Path, phase: str, stops_at: int
    ) -> None:
        def stop(now: str, done: int, total: int) -> None:
            if (now, done) == (phase, stops_at):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(events, tmp_path / "out", settings_of(), workers=2, progress=stop)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_PREPARE.json", "_work"]
        begins: dict[str, int] = {}
        again = prepare(
            events,
            tmp_path / "out",
            settings_of(),
            progress=lambda now, done, total: begins.setdefault(now, done) and None,
        )
        assert begins[phase] >= stops_at
        assert content(tmp_path / "out") == content(wanted[1])
        assert again.sequences == wanted[0].sequences

    def test_a_finished_one_is_not_made_again_and_no_other_output_is_touched(
        self, events: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        first = prepare(events, out, settings_of())
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        assert prepare(events, out, settings_of(), progress=lambda *_: pytest.fail("works again")) == first
        with pytest.raises(ConfigError) as caught:
            prepare(events, out, settings_of(max_length=5))
        assert str(caught.value) == (
            f"{out} holds the sequences of other events or settings, or of events that have changed; remove it, or "
            f"name another directory"
        )
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("mine")
        with pytest.raises(ConfigError, match="mine must be a new or empty directory, but is not; name another one"):
            prepare(events, tmp_path / "mine", settings_of())
        with pytest.raises(ConfigError, match="the output must lie outside the events"):
            prepare(events, events / "out", settings_of())

    def test_unfinished_work_of_other_settings_gives_way(self, events: Path, tmp_path: Path) -> None:
        def stop(now: str, done: int, total: int) -> None:
            if (now, done) == ("build", 1):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(events, tmp_path / "out", settings_of(), progress=stop)
        result = prepare(events, tmp_path / "out", settings_of(max_length=5))
        assert result.lengths["train"]["longest"] == 5
        assert not (tmp_path / "out" / "_work").exists()

    def test_an_output_half_moved_in_is_moved_to_its_end(
        self, events: Path, wanted: tuple[PrepareResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved: list[str] = []

        def stop_midway(path: str) -> bool:  # asked before each file is moved
            moved.append(path)
            if len(moved) == 4:
                raise KeyboardInterrupt
            return Path(path).exists()

        with monkeypatch.context() as patch:
            patch.setattr(
                prepare_work, "exists", lambda path: stop_midway(path) if "/files/" in path else Path(path).exists()
            )
            with pytest.raises(KeyboardInterrupt):
                prepare(events, tmp_path / "out", settings_of())
        shown = [path for path in (tmp_path / "out").rglob("part-*.parquet") if "_work" not in path.parts]
        assert len(shown) == 3
        with pytest.raises(ConfigError, match="holds the sequences of other events or settings"):
            prepare(events, tmp_path / "out", settings_of(max_length=5))
        prepare(events, tmp_path / "out", settings_of(), progress=lambda *_: pytest.fail("works again"))
        assert content(tmp_path / "out") == content(wanted[1])

    def test_nights_in_a_row_are_the_same_bytes_on_any_number_of_workers(self, events: Path, tmp_path: Path) -> None:
        table = pq.read_table(events)
        noon = pa.scalar(1_767_225_600_000 + 15 * 86_400_000, pa.int64()).cast(pa.timestamp("ms"))
        for name, part in (("first", pc.less(table["at"], noon)), ("second", pc.greater_equal(table["at"], noon))):
            (tmp_path / name).mkdir()
            pq.write_table(table.filter(part), tmp_path / name / "0.parquet", row_group_size=5000)
        settings = settings_of(split_by_time=(), for_scoring=True, detect_context=True)
        first = prepare(tmp_path / "first", tmp_path / "out", settings)
        after = {"continue_from": tmp_path / "out"}
        second = prepare(tmp_path / "second", tmp_path / "one", settings, workers=1, **after)
        assert prepare(tmp_path / "second", tmp_path / "three", settings, workers=3, **after).events == second.events
        assert content(tmp_path / "one") == content(tmp_path / "three")
        assert any(name.startswith("_open/") for name in content(tmp_path / "one"))
        assert first.events + second.events == 60_000
        assert first.context_columns == second.context_columns == ("home",)

    def test_a_mistake_in_the_data_leaves_nothing_behind(self, events: Path, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"column 'kind': a context column must have one value a key, but key 'user"
        ):
            prepare(events, tmp_path / "out", settings_of(context=["kind"]))
        assert not (tmp_path / "out").exists()


# --- the command --------------------------------------------------------------------------------------------------


WORDS = ["--key", "user", "--time", "at", "--label", "x", "--label-shift", "1", "--max-length", "20", "--gap", "2h"]
WORDS += ["--time-delta", "since", "--split-by-time", "2026-01-20", "--task-mebibytes", "1"]


def invoke(*words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command line, in this process."""
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("local_ray")
def test_the_command_writes_the_same_and_tells_what_it_found(
    events: Path, wanted: tuple[PrepareResult, Path], tmp_path: Path
) -> None:
    code, told, notes = invoke("prepare", str(events), str(tmp_path / "out"), *WORDS)
    assert code == 0
    assert content(tmp_path / "out") == content(wanted[1])
    lines = [line.split("  ") for line in told.splitlines()]
    assert lines[0] == [f"sequences: {tmp_path / 'out'}"]
    shown = {line[1]: line[-1].strip() for line in lines[1:]}
    assert shown["events"] == "60,000 of 300 keys"
    assert shown["lists"] == "x, kind"
    assert shown["context"] == "home (detected)"
    assert "sorting events: 0 of" in notes
    assert "writing sequences: " in notes
    code, again, notes = invoke("prepare", str(events), str(tmp_path / "out"), *WORDS)
    assert (code, again) == (0, told)
    there = tmp_path / "out"
    assert notes == (f"{there} holds these sequences already\nnext: dynamic-rnn inspect {there} --write run.yaml\n")


@pytest.mark.usefixtures("local_ray")
def test_the_command_takes_csv_and_goes_on_from_the_day_before(tmp_path: Path) -> None:
    (tmp_path / "mon.csv").write_text("shop,user,at,x\n1,ann,2026-01-01T10:00:00Z,1\n1,bob,2026-01-01T11:00:00Z,2\n")
    (tmp_path / "tue.csv").write_text("shop,user,at,x\n1,ann,2026-01-02T10:00:00Z,3\n2,ann,2026-01-02T10:00:00Z,4\n")
    words = ["--key", "shop,user", "--time", "at", "--time-delta", "since", "--label", "x", "--label-shift", "1"]
    words += ["--for-scoring", "--types", "x=float64"]
    monday = invoke("prepare", str(tmp_path / "mon.csv"), str(tmp_path / "mon"), *words)
    tuesday = invoke(
        "prepare", str(tmp_path / "tue.csv"), str(tmp_path / "tue"), *words, "--continue", str(tmp_path / "mon")
    )
    assert (monday[0], tuesday[0]) == (0, 0)
    shown = {line.strip().split("  ")[0]: line.split("  ")[-1].strip() for line in tuesday[1].splitlines()[1:]}
    assert shown["events"] == "2 of 2 keys"
    assert shown["read as"] == "shop int64, user string, at timestamp[us, tz=UTC], x double"
    assert shown["known at the end alone"] == "at_last"
    assert shown["label not known yet"] == "2 events"
    rows = pq.read_table(tmp_path / "tue").to_pylist()
    assert sorted((row["shop"], row["sequence_index"], row["x"], row["since"], row["x_next"]) for row in rows) == [
        (1, 1, [3.0], [86400.0], [None]),
        (2, 0, [4.0], [0.0], [None]),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--key", "uses", "--time", "at"],
            "--key must name a column of the events, but 'uses' is none; did you mean us",
        ),
        (
            ["--key", "user", "--time", "at", "--gap", "soon"],
            "gap must be a duration such as 90s, 30m, 12h or 7d, or a ",
        ),
        (["--key", "user", "--time", "at", "--label-shift", "1"], "label_shift needs `label`"),
    ],
)
def test_a_mistake_is_one_line_before_ray_starts(events: Path, tmp_path: Path, words: list[str], message: str) -> None:
    code, _, told = invoke("prepare", str(events), str(tmp_path / "out"), *words)
    assert code == 2
    assert told.startswith("dynamic-rnn: ")
    assert told.count("\n") == 1, told
    assert message in told
    assert not (tmp_path / "out").exists()


def test_a_task_loads_neither_torch_nor_ray_data() -> None:
    code = "import sys, pipelines.prepare.tasks; print(*sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# --- object stores ------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of an S3 on this machine."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    filesystem = fs.S3FileSystem(allow_bucket_creation=True, scheme="http", endpoint_override=f"{host}:{port}")
    filesystem.create_dir("events")
    yield "s3://events"
    server.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("here")  # workers of Ray would need the bucket's settings
def test_events_and_sequences_may_lie_in_an_object_store(bucket: str, events: Path, tmp_path: Path) -> None:
    from model.storage import find_files, resolve

    (tmp_path / "events").mkdir()
    table = pq.read_table(events / "0.parquet").slice(0, 3000)
    pq.write_table(table, tmp_path / "events" / "0.parquet")
    filesystem, inner = resolve(f"{bucket}/raw/0.parquet")
    filesystem.create_dir("events/raw")
    with filesystem.open_output_stream(inner) as stream:
        stream.write((tmp_path / "events" / "0.parquet").read_bytes())
    there = prepare(f"{bucket}/raw", f"{bucket}/out", settings_of())
    here = prepare(tmp_path / "events", tmp_path / "out", settings_of())
    assert there.sequences == here.sequences
    files = find_files(f"{bucket}/out")
    assert [file.removeprefix(f"{bucket}/out/") for file in files] == [
        str(path.relative_to(tmp_path / "out")) for path in sorted((tmp_path / "out").rglob("part-*"))
    ]
    for file in files:
        found = pq.read_table(resolve(file)[1], filesystem=filesystem)
        assert found.equals(pq.read_table(tmp_path / "out" / file.removeprefix(f"{bucket}/out/")))
    assert prepare(f"{bucket}/raw", f"{bucket}/out", settings_of()) == there


# --- killed, and large --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("killed") / "events", 300_000)


@pytest.fixture(scope="module")
def unharmed(many_events: Path, local_ray: None) -> dict[str, bytes]:
    """What a preparation that nobody ends has written."""
    prepare(many_events, many_events.parent / "unharmed", settings_of())
    return content(many_events.parent / "unharmed")


@pytest.mark.soak
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_an_ended_command_leaves_no_output_and_the_next_one_has_the_same_bytes(
    start: Callable[..., Any], many_events: Path, unharmed: dict[str, bytes], tmp_path: Path, ended_by: int
) -> None:
    words = ["prepare", str(many_events), str(tmp_path / "out"), *WORDS]
    job, built = start(*words), tmp_path / "out" / "_work" / "results" / "build"
    job.wait_until(lambda: built.is_dir() and len(list(built.glob("*.json"))) >= 2)
    job.process.send_signal(ended_by)
    assert job.exit_code() == (130 if ended_by == signal.SIGINT else -signal.SIGKILL), job.told
    job.wait_until_gone()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_PREPARE.json", "_work"]
    if ended_by == signal.SIGINT:
        assert f"stopped: nothing is in {tmp_path / 'out'} yet; the same command goes on" in job.told
    done = start(*words)
    assert done.exit_code() == 0, done.told
    assert "sorting events: 0 of" not in done.told  # all of that was kept
    assert content(tmp_path / "out") == unharmed


MEASURED = """
import json, sys, threading, time
import psutil
from pipelines.cluster import ray_session
from pipelines.prepare import prepare
from pipelines.prepare_settings import PrepareSettings

peak = 0
def watch():
    global peak
    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                if "Recorded" in " ".join(process.cmdline()) or process.name().startswith("ray::"):
                    peak = max(peak, process.memory_full_info().uss)
            except psutil.Error:
                pass  # it has ended
        time.sleep(0.05)

with ray_session(logical_cpus=4, object_store_bytes=80 * 2**20):
    threading.Thread(target=watch, daemon=True).start()
    for events, output in zip(sys.argv[1::2], sys.argv[2::2]):
        peak = 0
        settings = PrepareSettings(key="key", time="time", max_length=1000, task_mebibytes=16)
        result = prepare(events, output, settings, workers=2)
        print(json.dumps({"events": result.events, "sequences": result.sequences[""], "peak": peak}), flush=True)
"""


@pytest.mark.soak
def test_one_key_larger_than_the_object_store_takes_no_more_memory_than_a_small_table(tmp_path: Path) -> None:
    sizes = [1_500_000, 6_000_000]  # 60 MB and 240 MB in memory; a task's share is 16 MiB
    words: list[str] = []
    for size in sizes:
        directory = tmp_path / f"events-{size}"
        directory.mkdir()
        random = np.random.default_rng(0)
        times = random.permutation(size)  # as far from the order of time as can be
        table = pa.table({"key": np.zeros(size, np.int64), "time": times, "x": times.astype(np.float64)})
        pq.write_table(table, directory / "0.parquet", row_group_size=size)  # and in a single row group
        words += [str(directory), str(tmp_path / f"out-{size}")]
    command = [sys.executable, "-c", MEASURED, *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    assert (large["events"], large["sequences"]) == (6_000_000, 6_000)
    assert large["peak"] < 1.2 * small["peak"], (small, large)
    for file in sorted((tmp_path / f"out-{sizes[1]}").glob("part-*.parquet")):
        table = pq.read_table(file)
        x = np.concatenate([chunk.flatten().to_numpy() for chunk in table["x"].chunks])
        np.testing.assert_array_equal(x, np.arange(6_000_000))
        assert table["sequence_index"].to_pylist() == list(range(6_000))


# --- the example --------------------------------------------------------------------------------------------------


def words_of(command: str) -> list[str]:
    """The words of one of the example's commands, as its first lines give it."""
    text = (ROOT / "examples" / "etth1.yaml").read_text(encoding="utf-8").replace(" \\\n#", "")
    (line,) = (line for line in text.splitlines() if line.startswith(f"#   dynamic-rnn {command} "))
    return line.split()[2:]


@pytest.mark.slow
@pytest.mark.skipif("ETTH1_EVENTS" not in os.environ, reason="ETTh1 is not ours to ship: name it in ETTH1_EVENTS")
def test_the_example_predicts_the_next_hour_better_than_it_staying_as_it_is(tmp_path: Path) -> None:
    from benchmarks.prepare import persistence_error

    for command in ("prepare", "train", "evaluate"):
        words = [word.replace("PATH/etth1_events.parquet", os.environ["ETTH1_EVENTS"]) for word in words_of(command)]
        words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "pipelines", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    shown = dict(line.split() for line in done.stdout.splitlines()[1:])
    error, steps = persistence_error(tmp_path / "etth1" / "test", "OT_change")
    assert (steps, float(shown["rmse"]) ** 2 < error) == (5707, True), (shown, error)
