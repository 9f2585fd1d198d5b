"""Makes tests/fixtures/v0.1.0: what dynamic-rnn 0.1.0 writes, for the tests that later code can still use it.

    .venv/bin/python tests/make_fixtures_v0_1_0.py

takes the code of COMMIT out of git and gives its command line seeded data: ten minutes. A second call goes on after
the last stage that came to its end; remove first what the next one has left in PLACE. It need not be run again: what
was made is committed, and its worth is that it is old. tests/fixtures/README.md says what it is.

PLACE stands in what is written, since runs hold absolute paths; the tests put their own path in its place.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

COMMIT = "b129450aac67303bca4a599e134a5825fef6efb9"
ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "tests" / "fixtures" / "v0.1.0"
PLACE = Path("/tmp/dynamic-rnn-v0.1.0")
SCRATCH = PLACE / "scratch"  # what is not kept
MARK = "DYNAMIC_RNN_MARK"
KINDS, TAGS, CITIES, COUNTRIES = (
    ("view", "cart", "buy", "leave"),
    ("new", "sale", "gift"),
    ("Wien", "Graz"),
    ("at", "de"),
)

# Data -----------------------------------------------------------------------------------------------------------------


def sequences(rows: int, seed: int) -> pa.Table:
    """Rows of 0 to 8 steps with columns of every type, a label for each kind of model, keys and numbers."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 9, rows)
    steps = int(lengths.sum())
    amounts = random.gamma(2.0, 3.0, steps).round(3)
    kinds = random.choice(KINDS, steps)
    tags = [random.choice(TAGS, random.integers(0, 3)).tolist() for _ in range(steps)]
    weights = [random.uniform(0.5, 2.0, len(each)).round(3).tolist() for each in tags]
    vector = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=2 * steps).astype(np.float32)), 2)
    moods = np.where(kinds == "buy", "glad", np.where(amounts > 6, "calm", "sad"))

    def lists(values: Any) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array([0, *np.cumsum(lengths)], pa.int32()), values)

    return pa.table(
        {
            "amount": lists(pa.array(amounts, mask=random.random(steps) < 0.1)),
            "vector": lists(vector),
            "kind": lists(pa.array(kinds.tolist())),
            "tags": lists(pa.array(tags, pa.list_(pa.string()))),
            "tag_weights": lists(pa.array(weights, pa.list_(pa.float64()))),
            "code": lists(pa.array(random.integers(0, 50, steps))),
            "city": random.choice(CITIES, rows).tolist(),
            "country": random.choice(COUNTRIES, rows).tolist(),
            "age": pa.array(random.integers(18, 80, rows).astype(float), mask=random.random(rows) < 0.2),
            "weekday": random.integers(0, 7, rows),
            "weight": random.uniform(0.5, 2.0, rows).round(3),
            "mood": lists(pa.array(moods.tolist())),
            "grade": random.choice([3, 5, 9], rows),
            "later": lists(pa.array((amounts * 0.5 + random.normal(size=steps)).round(3))),
            "total": (lengths * 2.0 + random.normal(size=rows)).round(3),
            "key": [f"entity {number % 7}" for number in random.integers(0, 9, rows)],
            "row": range(rows),
        }
    )


def events(count: int, seed: int) -> pa.Table:
    """Events of eight users over ten days, in no order."""
    random = np.random.default_rng(seed)
    users = random.integers(0, 8, count)
    times = np.datetime64("2024-01-01T00:00:00", "us") + random.integers(0, 10 * 86_400, count).astype("m8[s]")
    return pa.table(
        {
            "user": [f"user {number}" for number in users],
            "time": pa.array(times, pa.timestamp("us")),
            "value": random.normal(10.0, 2.0, count).round(3),
            "kind": random.choice(KINDS, count).tolist(),
            "country": [COUNTRIES[number % 2] for number in users],
        }
    )


def write_data() -> None:
    tables = {
        "train": sequences(48, 1),
        "test": sequences(12, 2),
        "monday": sequences(16, 3),
        "tuesday": sequences(14, 4),
    }
    for name, table in (tables | {"events": events(240, 5)}).items():
        (PLACE / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, PLACE / "data" / f"{name}.parquet", row_group_size=16 if name == "train" else 1000)


# Settings -------------------------------------------------------------------------------------------------------------

AMOUNT = {"type": "numeric", "name": "amount", "normalizer": "zscore", "missing": "mean", "indicator": True}
KIND = {"type": "vocabulary", "name": "kind"}
MODELS: dict[str, dict[str, Any]] = {
    "moods": {
        "problem_type": "classification",
        "prediction_type": "multiple_value",
        "label": "mood",
        "weight": "weight",
        "cell_type": "lstm",
        "num_units": [4, 3],
        "dropout_keep_probabilities": [1.0, 0.9, 0.9],
        "predict_probabilities": True,
        "columns": {
            "sequence": [
                AMOUNT,
                {"type": "numeric", "name": "vector", "normalizer": "minmax"},
                {"type": "one_hot", "source": KIND},
                {
                    "type": "embedding",
                    "source": {"type": "vocabulary", "name": "tags"},
                    "dimension": 2,
                    "combiner": "sqrtn",
                },
                {
                    "type": "embedding",
                    "dimension": 2,
                    "source": {
                        "type": "crossed",
                        "buckets": 20,
                        "sources": [KIND, {"type": "bucketized", "source": AMOUNT, "boundaries": {"quantiles": 3}}],
                    },
                },
            ],
            "context": [{"type": "one_hot", "source": {"type": "vocabulary", "name": "country"}}],
        },
    },
    "grades": {
        "problem_type": "classification",
        "prediction_type": "single_value",
        "label": "grade",
        "class_weights": {"9": 2.0},
        "cell_type": "gru",
        "num_units": [5],
        "columns": {
            "sequence": [
                {
                    "type": "one_hot",
                    "source": {
                        "type": "weighted",
                        "source": {"type": "vocabulary", "name": "tags", "min_count": 2},
                        "weights": "tag_weights",
                    },
                },
                {
                    "type": "embedding",
                    "dimension": 3,
                    "max_norm": 1.0,
                    "source": {**KIND, "keys": ["view", "cart"], "oov_buckets": 2},
                },
            ],
            "context": [
                {"type": "numeric", "name": "age", "missing": 40.0, "indicator": True, "normalizer": "zscore"},
                {"type": "embedding", "source": {"type": "hash_bucket", "name": "city", "buckets": 10}, "dimension": 2},
                {"type": "one_hot", "source": {"type": "identity", "name": "weekday", "buckets": 7}},
            ],
        },
    },
    "later": {
        "problem_type": "linear_regression",
        "prediction_type": "multiple_value",
        "label": "later",
        "standardize_label": True,
        "cell_type": "gru_reset_before",
        "num_units": [4],
        "columns": {
            "sequence": [
                {
                    "type": "bucketized",
                    "source": {"type": "numeric", "name": "amount", "missing": "mean"},
                    "boundaries": {"quantiles": 4},
                },
                {"type": "bucketized", "source": {"type": "numeric", "name": "code"}, "boundaries": [10, 20, 30]},
                {"type": "embedding", "source": KIND, "dimension": 2, "table": "words"},
                {
                    "type": "embedding",
                    "source": {"type": "vocabulary", "name": "tags"},
                    "dimension": 2,
                    "table": "words",
                },
            ]
        },
    },
    "totals": {
        "problem_type": "linear_regression",
        "prediction_type": "single_value",
        "label": "total",
        "num_units": [3, 2],
        "columns": {"sequence": [{"type": "numeric", "name": "amount", "missing": 0.0, "normalizer": "log1p"}]},
    },
}
SMALL_MODEL = {
    "problem_type": "classification",
    "prediction_type": "multiple_value",
    "label": "mood",
    "cell_type": "lstm",
    "num_units": [3],
    "dropout_keep_probabilities": [1.0, 0.9],
    "columns": {"sequence": [AMOUNT, {"type": "embedding", "source": KIND, "dimension": 2}]},
}
TRAIN = {"optimizer": "Adam", "learning_rate": 0.02, "batch_sequences": 8, "window_batches": 4}
RUN = {
    "output": "runs",
    "data": {"train": "data/train.parquet", "validation_fraction": 0.2, "key": "key"},
    "model": SMALL_MODEL,
    "train": TRAIN,
}
FINISHED = ("train.steps=12", "train.evaluate_every_steps=4")
KILLED = ("train.steps=400", "train.evaluate_every_steps=20")
SWEEP = {
    "space": {"train.learning_rate": [0.02, 0.05, 1e-6]},
    "search": "grid",
    "steps": 60,
    "evaluate_every_steps": 10,
    "max_concurrent_trials": 1,
    "asha": {"reduction_factor": 2},
}
PREPARED = {
    "name": "sequences",
    "output": "runs",
    "data": {"train": "sequences/train", "validation": "sequences/validation"},
    "model": {
        "problem_type": "linear_regression",
        "prediction_type": "multiple_value",
        "label": "value_next",
        "standardize_label": True,
        "cell_type": "gru",
        "num_units": [3],
        "columns": {
            "sequence": [{"type": "numeric", "name": "value"}, {"type": "numeric", "name": "waited"}],
            "context": [{"type": "one_hot", "source": {"type": "vocabulary", "name": "country"}}],
        },
    },
    "train": {**TRAIN, "steps": 6},
}
PREPARE = (
    *("--key", "user", "--time", "time", "--max-length", "12", "--label", "value", "--label-shift", "1"),
    *("--time-delta", "waited", "--split-by-time", "2024-01-07"),
)


def write_settings() -> None:
    settings: dict[str, Mapping[str, Any]] = {"run": RUN, "sweep": {**RUN, "tune": SWEEP}, "sequences": PREPARED}
    for name, each in settings.items():
        (PLACE / f"{name}.yaml").write_text(yaml.safe_dump(each, sort_keys=False))


# The command line of that commit --------------------------------------------------------------------------------------


class CommandLine:
    """`python -m pipelines` of a commit's code, run in PLACE."""

    def __init__(self, code: Path) -> None:
        archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", str(code)], input=archive.stdout, check=True)
        self.environment = {**os.environ, "PYTHONPATH": str(code), "RAY_AUTH_MODE": "disabled"}

    def start(self, *words: str, mark: str = "") -> subprocess.Popen[str]:
        print("dynamic-rnn", *words, flush=True)
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *words],
            cwd=PLACE,
            env={**self.environment, MARK: mark},
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str) -> str:
        """What it writes to its standard output, once it has ended well."""
        process = self.start(*words)
        written, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"dynamic-rnn {' '.join(words)} ended with {process.returncode}")
        return written

    def killed_when(self, happened: Callable[[], bool], *words: str) -> None:
        """Starts a command, and kills it when something has happened; waits for all its processes to notice."""
        mark = str(uuid.uuid4())
        process = self.start(*words, mark=mark)
        while not happened():
            if process.poll() is not None:
                raise SystemExit(f"dynamic-rnn {' '.join(words)} has ended before it could be killed")
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        while any((each.info["environ"] or {}).get(MARK) == mark for each in psutil.process_iter(["environ"])):
            time.sleep(0.2)


def last_step(metrics: Path, trial: str | None = None) -> int:
    """The last step that a run (or a trial of a sweep) has told of."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return max((line["step"] for line in lines if line.get("trial") == trial), default=0)


def keep_bundle(run: Path, pointer: str, name: str) -> None:
    """Copies a run's best or latest bundle."""
    shutil.copytree(run / (run / pointer).read_text().strip(), PLACE / name)


# What is made ---------------------------------------------------------------------------------------------------------


def make_bundle(dynamic_rnn: CommandLine, name: str) -> dict[str, float]:
    """A bundle, what it predicts of data/test.parquet (predictions/), and its metrics there."""
    run = {**RUN, "name": name, "output": "scratch", "model": MODELS[name], "train": {**TRAIN, "steps": 12}}
    (SCRATCH / f"{name}.yaml").write_text(yaml.safe_dump({**run, "tracking": {"report": False}}))
    dynamic_rnn("train", f"scratch/{name}.yaml")
    keep_bundle(SCRATCH / name, "best", f"bundles/{name}")
    dynamic_rnn("predict", f"bundles/{name}", "data/test.parquet", f"predictions/{name}", "--keep", "row")
    lines = dynamic_rnn("evaluate", f"bundles/{name}", "data/test.parquet").splitlines()[1:]
    return {line.split()[0]: float(line.split()[1].replace(",", "")) for line in lines}


def make_states(dynamic_rnn: CommandLine) -> None:
    """The states of monday's entities, and what tuesday's rows give from there."""
    chain = ("--key", "key", "--keep", "row")
    dynamic_rnn("predict", "bundles/moods", "data/monday.parquet", "states/monday", *chain)
    tuesday = ("bundles/moods", "data/tuesday.parquet", "expected/tuesday", *chain)
    dynamic_rnn("predict", *tuesday, "--state-from", "states/monday")


def make_finished(dynamic_rnn: CommandLine) -> None:
    """A finished run, and what it becomes when it goes on."""
    finished = PLACE / "runs" / "finished"
    dynamic_rnn("train", "run.yaml", "name=finished", *FINISHED)
    shutil.copytree(finished, SCRATCH / "finished")
    dynamic_rnn("train", "run.yaml", "name=finished", *FINISHED, "train.steps=20", "--resume")
    keep_bundle(finished, "latest", "expected/finished")
    shutil.rmtree(finished)
    shutil.copytree(SCRATCH / "finished", finished)


def make_killed(dynamic_rnn: CommandLine) -> None:
    """A killed run."""
    metrics = PLACE / "runs" / "killed" / "metrics.jsonl"
    dynamic_rnn.killed_when(lambda: last_step(metrics) >= 100, "train", "run.yaml", "name=killed", *KILLED)


def make_unharmed(dynamic_rnn: CommandLine) -> None:
    """What the killed run would have become."""
    dynamic_rnn("train", "run.yaml", "name=unharmed", "output=scratch", *KILLED)
    keep_bundle(SCRATCH / "unharmed", "latest", "expected/killed")


def make_sweep(dynamic_rnn: CommandLine) -> list[Any]:
    """A finished sweep; its trials."""
    dynamic_rnn("tune", "sweep.yaml", "name=swept")
    lines = (PLACE / "runs" / "swept" / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def make_killed_sweep(dynamic_rnn: CommandLine) -> None:
    """The same sweep, killed in its second trial."""
    metrics = PLACE / "runs" / "swept-killed" / "metrics.jsonl"
    dynamic_rnn.killed_when(lambda: last_step(metrics, "001") >= 20, "tune", "sweep.yaml", "name=swept-killed")


def make_sequences(dynamic_rnn: CommandLine) -> None:
    """Sequences of an event table, and a training on them."""
    dynamic_rnn("prepare", "data/events.parquet", "sequences", *PREPARE)
    dynamic_rnn("train", "sequences.yaml", "output=scratch")
    keep_bundle(SCRATCH / "sequences", "latest", "expected/sequences")


def make_exchange(dynamic_rnn: CommandLine) -> list[Any]:
    """What the service answers to a client of that time: two events, one after the other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = dynamic_rnn.start("serve", "bundles/moods", f"serve.port={port}", "serve.ingress=default")
    assert server.stdout is not None
    server.stdout.readline()  # that it serves
    (row,) = (row for row in pq.read_table(PLACE / "data" / "test.parquet").to_pylist() if row["row"] == 1)
    steps, context = ("amount", "vector", "kind", "tags"), {"country": row["country"]}
    exchange: list[Any] = []
    for step in range(2):
        features = context | {name: row[name][step : step + 1] for name in steps}
        state = exchange[-1]["answer"]["predictions"][0]["state"] if exchange else None
        request = {"sequences": [{"features": features, "state": state}]}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/predict", json=request, trust_env=False, timeout=60)
        exchange.append({"request": request, "answer": answer.raise_for_status().json()})
    server.send_signal(signal.SIGINT)
    server.wait()
    return exchange


ESTIMATOR = """
from model import DynamicRnnEstimator, load_bundle, save_bundle
from model import PredictionType, ProblemType, embedding_column, real_valued_column, sparse_column_with_hash_bucket

columns = [real_valued_column("x"), embedding_column(sparse_column_with_hash_bucket("word", 8), 2)]
task = (ProblemType.CLASSIFICATION, PredictionType.SINGLE_VALUE)
options = {"num_classes": 2, "num_units": 3, "cell_type": "gru", "optimizer": "Adam", "learning_rate": 0.05}
x = {"x": [[0.0, 1.0, 0.5], [1.0, 1.0], [0.25]], "word": [["a", "b", "a"], ["c", "a"], ["b"]]}
y = [1, 0, 1]


def fitted(steps):
    return DynamicRnnEstimator(*task, columns, **options, model_dir="estimator").fit(x, y, steps=steps)
"""


def make_estimator(dynamic_rnn: CommandLine) -> None:
    """An estimator's model_dir, and what it becomes when it is fitted further."""
    run = [sys.executable, "-c"]
    go_on = "fitted(3)\nsave_bundle('expected/estimator', load_bundle('estimator/checkpoint-00000006'))"
    for last in ("fitted(3)", go_on):
        subprocess.run([*run, f"{ESTIMATOR}\n{last}"], cwd=PLACE, env=dynamic_rnn.environment, check=True)
        if last == "fitted(3)":
            shutil.copytree(PLACE / "estimator", SCRATCH / "estimator")
    shutil.rmtree(PLACE / "estimator")
    shutil.copytree(SCRATCH / "estimator", PLACE / "estimator")


def stage(name: str, make: Callable[[], Any]) -> Any:
    """What a stage gives; a stage that has come to its end is not made again, for Ray may fail to start in time."""
    kept = SCRATCH / f"{name}.json"
    if not kept.exists():
        kept.write_text(json.dumps(make()))
    return json.loads(kept.read_text())


def main() -> None:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    stage("data", write_data)
    write_settings()
    with tempfile.TemporaryDirectory() as code:
        dynamic_rnn = CommandLine(Path(code))
        told: dict[str, Any] = {"commit": COMMIT, "python": platform.python_version()}
        told |= {name: version(name) for name in ("numpy", "pyarrow", "ray", "torch")}
        told["metrics"] = {name: stage(f"bundle-{name}", partial(make_bundle, dynamic_rnn, name)) for name in MODELS}
        for make in (make_states, make_finished, make_killed, make_unharmed, make_killed_sweep):
            stage(make.__name__, partial(make, dynamic_rnn))
        told["trials"] = stage("make_sweep", partial(make_sweep, dynamic_rnn))
        for make in (make_sequences, make_estimator):
            stage(make.__name__, partial(make, dynamic_rnn))
        told["exchange"] = stage("make_exchange", partial(make_exchange, dynamic_rnn))
    (PLACE / "expected.json").write_text(json.dumps(told, indent=1) + "\n")
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.copytree(PLACE, TARGET, ignore=shutil.ignore_patterns(SCRATCH.name))


if __name__ == "__main__":
    main()
