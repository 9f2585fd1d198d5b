"""What earlier versions have written stays usable: read, served, evaluated, gone on with, or refused in one line.

tests/fixtures/v0.1.0 holds what dynamic-rnn 0.1.0 wrote, and what it made of that itself; tests/fixtures/README.md says
how. The tests come in by the doors that people use, the command line and the public names, which no refactoring moves.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import runpy
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from model import (
    Bundle,
    DynamicRnnEstimator,
    PredictionType,
    ProblemType,
    embedding_column,
    load_bundle,
    real_valued_column,
    sparse_column_with_hash_bucket,
)
from serve.client import Client
from serve.config import ServeConfig
from serve.replica import Replica
from serve.run import run

VERSION = "v0.1.0"
MADE_AT = f"/tmp/dynamic-rnn-{VERSION}"  # where what is written says that it lies
BUNDLES = ("moods", "grades", "later", "totals")
FINISHED = ("run.yaml", "name=finished", "train.evaluate_every_steps=4")
KILLED = ("run.yaml", "name=killed", "train.steps=400", "train.evaluate_every_steps=20")
CHAIN = ("--key", "key", "--keep", "row")
PREPARE = (
    *("--key", "user", "--time", "time", "--max-length", "12", "--label", "value", "--label-shift", "1"),
    *("--time-delta", "waited", "--split-by-time", "2024-01-07"),
)
NO_PROCESS = 2**22 + 1  # more than any Linux gives


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def dynamic_rnn(*words: str) -> Ended:
    """`python -m pipelines`, in this process."""
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", ["dynamic-rnn", "--quiet", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("pipelines", run_name="__main__")
    return Ended(ended.value.code or 0, out.getvalue(), err.getvalue())


def done(*words: str) -> str:
    """What a command that ends well has to say."""
    ended = dynamic_rnn(*words)
    assert ended.code == 0, ended.err
    return ended.out


@pytest.fixture(scope="module")
def fixtures(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath / "tests" / "fixtures"


@pytest.fixture(scope="module")
def expected(fixtures: Path) -> Any:
    return json.loads((fixtures / VERSION / "expected.json").read_text())


@pytest.fixture
def old(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What an earlier version wrote, as if written here: paths are this directory's, drivers ran on this machine.

    Its name is as long as that of the place where all was made, for Ray Tune's pickles hold that.
    """
    place = Path(tempfile.mkdtemp(prefix="dynamic-rn", dir="/tmp"))
    assert len(str(place)) == len(MADE_AT)
    for path in (fixtures / VERSION).rglob("*"):
        if path.is_file():
            copy = place / path.relative_to(fixtures / VERSION)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(moved(path, str(place)))
    monkeypatch.chdir(place)
    yield place
    shutil.rmtree(place)


def moved(path: Path, place: str) -> bytes:
    """A file as it would be had it been written in `place`."""
    content, made_at, here = path.read_bytes(), MADE_AT.encode(), place.encode()
    if path.suffix == ".npz":  # an index of rows, which names the files that they lie in
        with np.load(path, allow_pickle=False) as arrays:
            parts = {name: arrays[name] for name in arrays.files}
        parts["fragments"] = np.frombuffer(parts["fragments"].tobytes().replace(made_at, here), np.uint8)
        stream = io.BytesIO()
        np.savez_compressed(stream, **parts)
        return stream.getvalue()
    if path.name == "status.json":
        return json.dumps({**json.loads(content), "host": socket.gethostname(), "process": NO_PROCESS}).encode()
    return content.replace(made_at, here).replace(made_at.hex().encode(), here.hex().encode())


def content_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def latest(run_directory: Path) -> Path:
    return run_directory / (run_directory / "latest").read_text().strip()


def check_same_weights(bundle: Path, other: Path) -> None:
    """Equal to 1e-5: another processor rounds otherwise, so that not even fingerprints of one version are equal."""
    ours, theirs = load_bundle(bundle), load_bundle(other)
    assert (ours.config, ours.columns, ours.label) == (theirs.config, theirs.columns, theirs.label)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        np.testing.assert_allclose(tensor, theirs.tensors[name], atol=1e-5, rtol=0, err_msg=name)


def rows_in(directory: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(directory.glob("*.parquet")))


def check_same_rows(ours: pa.Table, theirs: pa.Table) -> None:
    """Equal but for the last bits of floats: |a - b| <= 1e-6 max(1, |b|); null and length for null and length."""
    assert ours.schema.equals(theirs.schema, check_metadata=True)
    for name in ours.column_names:
        one, other = ours[name].combine_chunks(), theirs[name].combine_chunks()
        while pa.types.is_nested(one.type):
            assert one.is_valid().equals(other.is_valid()), name
            assert pa.types.is_fixed_size_list(one.type) or one.value_lengths().equals(other.value_lengths()), name
            one, other = one.flatten(), other.flatten()
        if pa.types.is_floating(one.type):
            assert one.is_valid().equals(other.is_valid()), name
            np.testing.assert_allclose(one.drop_null(), other.drop_null(), rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            assert one.equals(other), name


def metrics_in(told: str) -> dict[str, float]:
    """The table that `evaluate` shows, below its title."""
    return {line.split()[0]: float(line.split()[1].replace(",", "")) for line in told.splitlines()[1:]}


# Bundles --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_predicts_and_is_as_good_as_it_was(old: Path, expected: Any, name: str) -> None:
    bundle = old / "bundles" / name
    assert load_bundle(bundle).fingerprint == json.loads((bundle / "model.json").read_text())["fingerprint"]
    done("predict", f"bundles/{name}", "data/test.parquet", "again", "--keep", "row")
    check_same_rows(rows_in(old / "again"), rows_in(old / "predictions" / name))
    metrics = metrics_in(done("evaluate", f"bundles/{name}", "data/test.parquet"))
    assert metrics == pytest.approx(expected["metrics"][name], rel=1e-5)


@pytest.mark.usefixtures("old")
def test_clients_of_its_time_are_answered_as_they_were(expected: Any) -> None:
    """By the application of a replica, without Ray."""

    async def answers() -> list[Any]:
        app = Replica("bundles/moods", ServeConfig()).__serve_build_asgi_app__()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as http:
            requests = [exchange["request"] for exchange in expected["exchange"]]
            return [(await http.post("/v1/predict", json=request)).json() for request in requests]

    assert_close(asyncio.run(answers()), [exchange["answer"] for exchange in expected["exchange"]])


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_bundle_is_served(old: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        config = ServeConfig(port=probe.getsockname()[1], ingress="default", drain_seconds=0)
    server = run("bundles/moods", config)
    try:
        with Client(server.url) as client:
            inputs = [each["name"] for each in client.model()["inputs"]]
            answer = client.predict_table(pq.read_table("data/test.parquet", columns=inputs)).drop_columns("error")
    finally:
        server.stop()
    predicted = rows_in(old / "predictions" / "moods").drop_columns("row")
    check_same_rows(answer.cast(predicted.schema), predicted)


def assert_close(ours: Any, theirs: Any) -> None:
    """Equal JSON but for the last bits of floats."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_close(ours[key], value)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)
    else:
        assert ours == (pytest.approx(theirs, abs=1e-6) if isinstance(theirs, float) else theirs)


@pytest.mark.slow
def test_a_bundle_is_exported(old: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install dynamic-rnn[onnx]")
    done("export", "bundles/moods", "exported")
    assert load_bundle(old / "exported").fingerprint == load_bundle(old / "bundles" / "moods").fingerprint


def test_an_estimator_goes_on_from_its_model_dir(old: Path) -> None:
    estimator = DynamicRnnEstimator(
        ProblemType.CLASSIFICATION,
        PredictionType.SINGLE_VALUE,
        [real_valued_column("x"), embedding_column(sparse_column_with_hash_bucket("word", 8), 2)],
        num_classes=2,
        num_units=3,
        cell_type="gru",
        optimizer="Adam",
        learning_rate=0.05,
        model_dir="estimator",
    )
    x = {"x": [[0.0, 1.0, 0.5], [1.0, 1.0], [0.25]], "word": [["a", "b", "a"], ["c", "a"], ["b"]]}
    estimator.fit(x, [1, 0, 1], steps=3)
    check_same_weights(latest(old / "estimator"), old / "expected" / "estimator")


# Runs -----------------------------------------------------------------------------------------------------------------


def test_runs_and_sweeps_are_listed_with_how_they_stand(old: Path) -> None:
    lines = [json.loads(line) for line in done("runs", "runs", "--json").splitlines()]
    assert [(line["name"], line["kind"], line["status"], line["resumable"]) for line in lines] == [
        ("finished", "training", "finished", False),
        ("killed", "training", "stopped", True),
        ("swept", "sweep", "finished", False),
        ("swept-killed", "sweep", "stopped", True),
    ]
    for line in lines[:3]:
        assert line["metric"] == "validation_loss"
        assert load_bundle(line["bundle"]).metrics["validation_loss"] == line["value"]


@pytest.mark.usefixtures("local_ray")
def test_a_run_is_evaluated_and_predicts_by_its_best_bundle(old: Path) -> None:
    best = (old / "runs" / "finished" / "best").read_text().strip()
    names = ("runs/finished", f"runs/finished/{best}")
    assert len({done("evaluate", name, "data/test.parquet").partition("\n")[2] for name in names}) == 1
    done("predict", "runs/finished", "data/test.parquet", "predicted")
    assert rows_in(old / "predicted").num_rows == 12


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_killed_run_ends_as_one_that_was_not(old: Path) -> None:
    done("train", *KILLED, "--resume")
    check_same_weights(latest(old / "runs" / "killed"), old / "expected" / "killed")


@pytest.mark.usefixtures("local_ray")
def test_a_finished_run_goes_on(old: Path) -> None:
    done("train", *FINISHED, "train.steps=20", "--resume")
    finished = old / "runs" / "finished"
    check_same_weights(latest(finished), old / "expected" / "finished")
    steps = [json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12, 16, 20]


# Sweeps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
def test_a_sweeps_best_bundle_is_evaluated(old: Path) -> None:
    metrics = metrics_in(done("evaluate", "runs/swept", "data/test.parquet"))
    assert metrics["rows"] == 12
    assert np.isfinite(metrics["loss"])


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_sweeps_best_settings_are_trained_from_the_bundle_of_a_run(old: Path) -> None:
    """A step too small to move anything shows what it began with."""
    step = ("train.steps=1", "train.optimizer=SGD", "train.learning_rate=1e-30")
    done("train", "runs/swept/best.yaml", "train.warm_start=runs/finished", *step)
    finished = old / "runs" / "finished"
    begun = load_bundle(finished / (finished / "best").read_text().strip())
    assert load_bundle(latest(old / "runs" / "swept-best")).fingerprint == begun.fingerprint


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="Ray Tune has pickled bytecode of Python 3.11")
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_killed_sweep_goes_on_or_is_refused_in_one_line(old: Path, expected: Any) -> None:
    ended = dynamic_rnn("tune", "sweep.yaml", "name=swept-killed", "--resume")
    if ended.code:
        check_refused(ended, old / "runs" / "swept-killed")
        return
    lines = (old / "runs" / "swept-killed" / "trials.jsonl").read_text().splitlines()
    for line, theirs in zip(map(json.loads, lines), expected["trials"], strict=True):
        assert (line["name"], line["status"], line["step"]) == (theirs["name"], theirs["status"], theirs["step"])
        metrics = theirs["metrics"] | {"steps_per_second": line["metrics"]["steps_per_second"]}
        assert line["metrics"] == pytest.approx(metrics, rel=1e-5)


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_whose_code_is_no_longer_there_is_refused_and_stays_as_it_is(old: Path) -> None:
    """Ray Tune has pickled a class of ours by its module: here it is one that no version has."""
    swept = old / "runs" / "swept"
    kept = swept / "tune" / "tuner.pkl"
    kept.write_bytes(kept.read_bytes().replace(b"tune.following", b"tune.fallowing"))
    before = content_of(swept)
    check_refused(dynamic_rnn("tune", "sweep.yaml", "name=swept", "--resume"), swept)
    after = content_of(swept)
    assert {name for name in before if before[name] != after.get(name)} <= {"data/signature.json"}, (
        "files have another time"
    )


def check_refused(ended: Ended, sweep: Path) -> None:
    assert ended.code == 2
    assert ended.err.startswith(
        f"dynamic-rnn: {sweep}: a sweep goes on with the code that began it, but another version"
    )
    assert ended.err.endswith("its best bundle can be read; begin a new sweep, another name=…\n")
    assert ended.err.count("\n") == 1


# States and sequences -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
def test_a_prediction_goes_on_from_states(old: Path) -> None:
    done("predict", "bundles/moods", "data/tuesday.parquet", "out", *CHAIN, "--state-from", "states/monday")
    check_same_rows(rows_in(old / "out"), rows_in(old / "expected" / "tuesday"))
    states = [rows_in(old / place / "_states").sort_by("key") for place in ("out", "expected/tuesday")]
    check_same_rows(*states)


@pytest.mark.usefixtures("local_ray")
def test_events_give_the_sequences_they_gave(old: Path) -> None:
    done("prepare", "data/events.parquet", "again", *PREPARE)
    files = sorted(path.relative_to(old / "again") for path in (old / "again").rglob("*.parquet"))
    assert files == sorted(path.relative_to(old / "sequences") for path in (old / "sequences").rglob("*.parquet"))
    for file in files:
        ours, theirs = old / "again" / file, old / "sequences" / file
        assert pq.read_table(ours).equals(pq.read_table(theirs))
        if pq.read_metadata(ours).created_by == pq.read_metadata(theirs).created_by:
            assert pages(ours) == pages(theirs), "the same pyarrow writes the same bytes before the footer"


def pages(file: Path) -> bytes:
    """A Parquet file without its footer, to which later versions have added metadata."""
    content = file.read_bytes()
    return content[: -8 - int.from_bytes(content[-8:-4], "little")]


@pytest.mark.usefixtures("local_ray")
def test_prepared_sequences_are_inspected(old: Path) -> None:
    done("inspect", "sequences/train", "--label", "value_next", "--json", "report.json", "--no-html")
    assert "value_next" in (old / "report.json").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_prepared_sequences_are_trained_on(old: Path) -> None:
    done("train", "sequences.yaml")
    check_same_weights(latest(old / "runs" / "sequences"), old / "expected" / "sequences")


# Defaults -------------------------------------------------------------------------------------------------------------


def test_no_default_of_a_bundles_settings_changes(fixtures: Path) -> None:
    """A fingerprint hashes the settings of model, columns and labels without their defaults.

    So another default would be another fingerprint: every stored bundle that has the setting at its default would be
    refused as damaged, and its states as another model's. A new setting needs a default that leaves models as they
    are, and gets its line in defaults.json.
    """
    pinned = json.loads((fixtures / "defaults.json").read_text())
    assert defaults() == pinned


def defaults() -> dict[str, Any]:
    """By class of what a bundle holds: the settings that must be given, and the defaults of the others, as JSON."""
    kinds = {kind.__name__: kind for hint in get_type_hints(Bundle).values() for kind in settings_in(hint, set())}
    fields = {name: kinds[name].model_fields for name in sorted(kinds)}
    return {
        name: {
            "required": [field for field, info in known.items() if info.is_required()],
            "defaults": {
                field: to_jsonable_python(info.get_default(call_default_factory=True))
                for field, info in known.items()
                if not info.is_required()
            },
        }
        for name, known in fields.items()
    }


def settings_in(hint: Any, seen: set[Any]) -> Iterator[type[BaseModel]]:
    """The classes of settings in a type, and those of their fields."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        if hint in seen:
            return
        seen.add(hint)
        yield hint
        parts = [info.annotation for info in hint.model_fields.values()]
    else:
        parts = list(get_args(hint))
    for part in parts:
        yield from settings_in(part, seen)


def test_what_is_kept_of_a_version_is_small_and_whole(fixtures: Path) -> None:
    files = content_of(fixtures / VERSION)
    assert sum(map(len, files.values())) < 600_000
    digest = hashlib.sha256(
        "".join(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n" for name in sorted(files)).encode()
    )
    assert digest.hexdigest() == (fixtures / f"{VERSION}.sha256").read_text().strip(), (
        "it is as it was made, or no fixture"
    )
