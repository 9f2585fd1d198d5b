"""The list of runs: status, best metric and bundle of each, whatever became of its driver."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from pyarrow import fs
from typer.testing import CliRunner

from model.bundle.bundle import Bundle, save_bundle
from model.bundle.run_directory import point_to
from model.storage import filesystems, join, make_directory, write_bytes
from pipelines.cli.app import app
from pipelines.demo import run as demo
from pipelines.tracking.follower import Outcome
from pipelines.tracking.run_list import list_runs
from pipelines.tracking.run_status import StatusFile


def begun(directory: Path) -> StatusFile:
    directory.mkdir(parents=True)
    (directory / "run.yaml").write_text("{}\n")
    return StatusFile(str(directory))


def report(step: int, loss: float | None) -> dict[str, Any]:
    return {"step": float(step), "train_loss": 0.9, "validation_loss": loss}


def write_metrics(directory: Path, *lines: dict[str, Any]) -> None:
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


EARLY = "early stopping: validation_loss has not got better in 2 evaluations; the best was 0.25 at step 5"


@pytest.fixture
def runs(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> Path:
    """A finished run with a bundle, one that failed, one whose driver was killed, a sweep, and something else."""
    finished = begun(tmp_path / "a")
    finished.on_report(report(10, 0.5))
    write_metrics(tmp_path / "a", report(5, 0.25), report(10, 0.5))
    save_bundle(tmp_path / "a" / "bundles" / "step_00000005", make_bundle())
    point_to(tmp_path / "a", "best", "bundles/step_00000005")
    finished.close(Outcome("finished", "bundle", "abc", EARLY))
    begun(tmp_path / "b").close(Outcome(reason="step 3: the loss is nan"))
    killed = "import sys; from pipelines.tracking.run_status import StatusFile; StatusFile(sys.argv[1])"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.yaml").write_text("{}\n")
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "c")], check=True)
    (tmp_path / "d" / "tune").mkdir(parents=True)
    StatusFile(str(tmp_path / "d"), "validation_accuracy").tell("interrupted")
    (tmp_path / "something else").mkdir()
    return tmp_path


def test_runs_are_listed_with_status_best_metric_and_bundle(runs: Path) -> None:
    lines = list_runs(str(runs))
    assert [(line.name, line.kind, line.status, line.step) for line in lines] == [
        ("a", "training", "finished", 10),
        ("b", "training", "failed", None),
        ("c", "training", "stopped", None),
        ("d", "sweep", "interrupted", None),
    ]
    assert (lines[0].metric, lines[0].value) == ("validation_loss", 0.25)
    assert lines[0].bundle == str(runs / "a" / "bundles" / "step_00000005")
    assert [line.bundle for line in lines[1:]] == [None, None, None]


def test_runs_say_why_they_ended(runs: Path) -> None:
    assert [line.reason for line in list_runs(str(runs))] == [EARLY, "step 3: the loss is nan", None, None]
    told = CliRunner().invoke(app, ["runs", str(runs)]).stdout
    assert " early stopping: validation_loss has not got better in 2 eva…" in told
    assert " step 3: the loss is nan" in told


def test_a_status_of_0_1_0_knows_no_reason(runs: Path) -> None:
    status = runs / "a" / "status.json"
    told = json.loads(status.read_text())
    del told["reason"]
    status.write_text(json.dumps(told))
    assert next((line.status, line.reason) for line in list_runs(str(runs))) == ("finished", None)


@pytest.mark.parametrize(("latest", "words"), [("a", "evaluate RUN TEST_DATA"), ("d", "tune RUN/run.yaml --resume")])
def test_runs_end_with_what_to_do_with_the_latest(runs: Path, latest: str, words: str) -> None:
    (runs / "d" / "metrics.jsonl").touch()
    status = runs / latest / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "updated": 4e9}))
    told = CliRunner().invoke(app, ["runs", str(runs)]).stderr
    assert told == f"next: dynamic-rnn {words.replace('RUN', str(runs / latest), 1)}\n"


def test_runs_are_found_where_the_demo_leaves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo-run` holds data and runs; each demo has a directory of its own in `runs`, with its predictions."""
    run = demo.load(tmp_path / "demo-run", quick=True)
    for name in (run.name, "demo-sweep"):
        begun(Path(run.output, name)).close(Outcome("finished"))
    Path(run.output, "demo-sweep", "tune", "000").mkdir(parents=True)
    for place in (Path(run.output, "predictions"), tmp_path / "demo-run" / "data" / "train"):
        place.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    when = Path(run.output).name
    for searched, prefix in (("demo-run", f"runs/{when}/"), ("demo-run/runs", f"{when}/"), (run.output, "")):
        told = CliRunner().invoke(app, ["runs", searched, "--json"]).stdout.splitlines()
        assert [json.loads(line)["name"] for line in told] == [f"{prefix}demo", f"{prefix}demo-sweep"]


def test_runs_in_an_object_store_are_found_below_names_of_any_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fs._MockFileSystem()
    monkeypatch.setattr(filesystems, "resolve", lambda path: (store, unquote(str(path).removeprefix("mock://"))))
    for name in ("team/100% sure?/a", "b"):
        make_directory(join("mock://bucket", quote(name)))
        write_bytes(join("mock://bucket", quote(name), "run.yaml"), b"{}")
    assert [line.name for line in list_runs("mock://bucket")] == ["b", "team/100% sure?/a"]


def test_nothing_is_looked_for_in_runs_in_hidden_directories_and_too_deep(tmp_path: Path) -> None:
    begun(tmp_path / "a" / "b")
    begun(tmp_path / "a" / "b" / "copy of a run")
    for hidden in (".trash", "_old"):
        begun(tmp_path / hidden / "c")
    begun(tmp_path / "1" / "2" / "3" / "4")
    begun(tmp_path / "1" / "2" / "3" / "four" / "5")
    (tmp_path / "run.yaml").write_text("{}\n")  # what somebody trains with
    (tmp_path / "a" / "file").touch()
    assert [line.name for line in list_runs(str(tmp_path))] == ["1/2/3/4", "a/b"]


def test_a_run_whose_driver_lives_is_running(tmp_path: Path) -> None:
    follower = begun(tmp_path / "a")
    follower.on_report(report(3, None))
    write_metrics(tmp_path / "a", report(3, None))
    point_to(tmp_path / "a", "best", "bundles/step_00000003")
    (line,) = list_runs(str(tmp_path))
    assert (line.status, line.step, line.metric, line.value) == ("running", 3, "train_loss", 0.9)


def test_the_value_is_that_of_the_best_bundle_in_what_it_is_best_in(tmp_path: Path) -> None:
    """Another has a lower loss; of a sweep, another trial has the same step."""
    trials: dict[str, dict[str, Any]] = {"run": {}, "sweep": {"trial": "001"}}
    for name, trial in trials.items():
        begun(tmp_path / name)
        StatusFile(str(tmp_path / name), "validation_accuracy").tell("finished")
        best = {**report(5, 0.5), **trial, "validation_accuracy": 0.75}
        other = {**report(10, 0.25), **trial, "validation_accuracy": 0.5}
        write_metrics(tmp_path / name, {**other, "step": 5.0, "trial": "000"}, best, other)
    (tmp_path / "sweep" / "tune").mkdir()
    point_to(tmp_path / "run", "best", "bundles/step_00000005")
    point_to(tmp_path / "sweep", "best", "bundles/trial_001_step_00000005")
    for line in list_runs(str(tmp_path)):
        assert (line.metric, line.value) == ("validation_accuracy", 0.75), line.name


def test_what_can_be_resumed_is_told(runs: Path) -> None:
    """What was stopped with a checkpoint or a validation; sweeps with trials left. Not what has ended or runs."""
    assert [line.name for line in list_runs(str(runs)) if line.resumable] == []
    (runs / "c" / "train").mkdir()
    (runs / "c" / "train" / "checkpoint_manager_snapshot.json").touch()
    assert [line.name for line in list_runs(str(runs)) if line.resumable] == []
    (runs / "c" / "train" / "checkpoint_00000010_abc").mkdir()
    write_metrics(runs / "b", report(5, 0.25))
    write_metrics(runs / "d", {"trial": "000", **report(5, 0.25)})
    running = begun(runs / "e")
    write_metrics(runs / "e", report(5, 0.25))
    (runs / "f" / "tune").mkdir(parents=True)
    StatusFile(str(runs / "f"))
    write_metrics(runs / "f", {"trial": "000", **report(5, 0.25)})
    assert [line.name for line in list_runs(str(runs)) if line.resumable] == ["b", "c", "d"]
    running.close(Outcome("interrupted"))
    (runs / "d" / "trials.jsonl").write_text('{"status": "finished"}\n{"status": "failed"}\n')
    assert [line.name for line in list_runs(str(runs)) if line.resumable] == ["b", "c", "e"]
    (runs / "d" / "trials.jsonl").write_text('{"status": "finished"}\n{"status": "not started"}\n')
    assert [line.name for line in list_runs(str(runs)) if line.resumable] == ["b", "c", "d", "e"]
    table = CliRunner().invoke(app, ["runs", str(runs)]).stdout.splitlines()
    assert [line.split()[0] for line in table if " yes" in line] == ["b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("file", "text"),
    [("status.json", '{"status": "run'), ("status.json", "{}"), ("metrics.jsonl", '{"step": 1}\n{"st')],
)
def test_a_run_that_cannot_be_read_is_listed_as_such_beside_the_others(runs: Path, file: str, text: str) -> None:
    (runs / "a" / file).write_text(text)
    lines = {line.name: line.status for line in list_runs(str(runs))}
    assert lines.pop("a").startswith("unreadable: ")
    assert lines == {"b": "failed", "c": "stopped", "d": "interrupted"}


def test_two_hundred_runs_are_listed_in_seconds(tmp_path: Path) -> None:
    for number in range(200):
        begun(tmp_path / f"{number:03d}").close(Outcome("finished"))
        write_metrics(tmp_path / f"{number:03d}", *(report(step, 1 / (step + number)) for step in range(1, 501)))
        point_to(tmp_path / f"{number:03d}", "best", "bundles/step_00000500")
    began = time.monotonic()
    lines = list_runs(str(tmp_path))
    assert time.monotonic() - began < 20  # half a second on an idle machine
    assert [line.value for line in lines] == [1 / (500 + number) for number in range(200)]


def test_the_command_prints_a_table_or_json(runs: Path) -> None:
    table = CliRunner().invoke(app, ["runs", str(runs)])
    assert table.exit_code == 0
    first = table.stdout.splitlines()[1]
    assert first.split()[:6] == ["a", "training", "finished", "10", "validation_loss", "0.2500"]
    told = CliRunner().invoke(app, ["runs", str(runs), "--json"]).stdout.splitlines()
    assert [json.loads(line)["name"] for line in told] == ["a", "b", "c", "d"]
    nothing = CliRunner().invoke(app, ["runs", str(runs / "something else")])
    assert nothing.stdout == (
        f"no runs in {runs / 'something else'}: none of its directories, 4 levels deep, holds run.yaml (a run's) or "
        "tune/ (a sweep's)\n"
    )
