"""The README's commands and code are run as they stand; cloud commands are only parsed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(holding: str = "") -> list[str]:
    """Commands of the console blocks (of those with `holding`) without their comments.

    A line that is no `$ …` goes on with the one before.
    """
    found: list[str] = []
    for line in "".join(block for block in blocks("console") if holding in block).splitlines():
        if line.startswith("$ "):
            found.append(line.removeprefix("$ "))
        else:
            found[-1] += "\n" + line
    return [re.sub(r"\s+# .*$", "", command) for command in found]


def run(
    command: list[str], directory: Path, seconds: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=directory,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_every_command_of_the_readme_is_known_to_this_test() -> None:
    known = ("make demo", "make test", "source ", "dynamic-rnn ", "curl ", "ray ")
    assert [command for command in commands() if not command.startswith(known)] == []
    assert len(commands()) >= 14


def test_the_makefile_has_the_targets_the_readme_names() -> None:
    for target in ("demo", "test", "test-slow", "test-soak", "test-latest", "lock"):
        assert run(["make", "--dry-run", target], ROOT).returncode == 0


def test_the_five_lines_run(tmp_path: Path) -> None:
    lines = blocks("python")[0]
    assert len([line for line in lines.splitlines() if line]) == 5
    result = run([sys.executable, "-W", "error", "-c", lines], tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"\[.*[01].*\]", result.stdout)


def test_cloud_commands_parse() -> None:
    cloud = [shlex.split(command) for command in commands() if command.startswith("ray ")]
    assert [words[1] for words in cloud] == ["up", "dashboard", "job", "down"]
    submitted = next(words for words in cloud if words[1] == "job")
    assert submitted[submitted.index("--") + 1 :] == ["python", "-m", "pipelines", "train", "run.yaml"]
    for words in cloud:
        name = words[1:3] if words[1] == "job" else words[1:2]
        help_text = run(["ray", *name, "--help"], ROOT).stdout
        for option in (word for word in words[: words.index("--") if "--" in words else None] if word.startswith("--")):
            assert option in help_text, f"{' '.join(words)}: {option}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `dynamic-rnn demo --quick` printed, in a fresh directory."""
    directory = tmp_path_factory.mktemp("fresh")
    mark = f"demo-{uuid.uuid4()}"
    result = run(["dynamic-rnn", "demo", "--quick"], directory, seconds=400, DYNAMIC_RNN_TEST=mark)
    assert result.returncode == 0, result.stdout + result.stderr
    assert processes_with(mark) == [], "the demo left processes behind"
    return directory, result.stdout


def processes_with(mark: str) -> list[str]:
    """Command lines of the living processes that inherited DYNAMIC_RNN_TEST=mark."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        if (process.info["environ"] or {}).get("DYNAMIC_RNN_TEST") == mark:
            found.append(" ".join(process.info["cmdline"] or ["?"]))
    return found


def test_the_quick_demo_goes_through_every_stage_and_proves_its_scores(demo: tuple[Path, str]) -> None:
    directory, printed = demo
    stages = re.findall(r"^── \d\. (\w+):", printed, re.MULTILINE)
    assert stages == ["data", "train", "tune", "evaluate", "predict", "serve"]
    difference = re.search(r"scores differ by at most ([\d.e+-]+)", printed)
    assert difference is not None
    assert float(difference.group(1)) <= 1e-5
    for line in ("order-0 counts", "order-2 counts", "this model", "lzma -9e", "try next:"):
        assert line in printed
    assert list(directory.glob("demo-run/runs/*/demo/best"))
    assert list(directory.glob("demo-run/runs/*/demo-sweep/best"))
    assert list(directory.glob("demo-run/runs/*/predictions/*.parquet"))


def test_the_commands_from_parquet_to_a_service_run_as_written(demo: tuple[Path, str]) -> None:
    directory, _ = demo
    (directory / "pipelines").symlink_to(ROOT / "pipelines")
    mine = [shlex.split(command) for command in commands("demo-data")[1:]]
    small = {"demo-data": ["--max-bytes=100000"], "train": ["train.steps=4", "model.num_units=[16]"]}
    small["tune"] = ["train.steps=4", "train.evaluate_every_steps=2", "tune.trials=2"]
    served = None
    for words in mine:
        words = [*words, *small.get(words[1], [])]
        if words[1] == "serve":
            served = words
            continue
        result = run(words, directory)
        assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}{result.stderr}"
    assert served is not None
    serve_and_ask(served, directory)


@pytest.mark.slow
def test_the_commands_for_data_of_ones_own_run_as_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    counts = random.integers(3, 30, 60)
    start = np.datetime64("2024-01-01T00:00", "ms")
    times = np.concatenate([start + np.arange(count) * np.timedelta64(60_000, "ms") for count in counts])
    events = pa.table(
        {
            "user_id": np.repeat(np.arange(60), counts),
            "ts": times,
            "amount": random.normal(50, 10, len(times)),
            "kind": random.choice(["view", "buy"], len(times)),
        }
    )
    pq.write_table(events, tmp_path / "events.parquet")
    for command in commands("fit-columns"):
        words = shlex.split(command)
        if words[1] == "predict" and not (tmp_path / words[3]).exists():
            shutil.copytree(tmp_path / "sequences", tmp_path / words[3])
        result = run([*words, *(["train.steps=4"] if words[1] == "train" else [])], tmp_path)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    assert (tmp_path / "runs" / "sequences" / "report.html").exists()
    days = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*/*.parquet"))]
    assert [day.num_rows for day in days] == [60, 60]
    assert days[0]["rnn_cell_state_0"] != days[1]["rnn_cell_state_0"]  # Tuesday went on from Monday's states


def serve_and_ask(command: list[str], directory: Path) -> None:
    """Starts the server as the README says, sends its request and runs its client code, ends it with Ctrl-C."""
    port = free_port()
    with subprocess.Popen(
        [*command, f"serve.port={port}"], cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert f"http://127.0.0.1:{port}" in server.stdout.readline()
            request = next(command for command in commands() if command.startswith("curl "))
            body = json.loads(re.search(r"-d '(.*)'", request, re.DOTALL).group(1))  # type: ignore[union-attr]
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/predict", json=body, timeout=60).json()
            assert set(answer["predictions"][0]["state"]) == {"rnn_cell_state_0", "rnn_cell_state_1"}
            client = blocks("python")[1].replace(":8000", f":{port}")
            result = run([sys.executable, "-W", "error", "-c", f"{client}\nprint(prediction['classes'])"], directory)
            assert result.returncode == 0, result.stderr
        finally:
            server.send_signal(signal.SIGINT)
            deadline = time.monotonic() + 60
            while server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            if server.poll() is None:
                server.kill()
        assert server.returncode == 0


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
