"""The examples are runs that can be built, and what the benchmarks share tells what it measures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks._common import Measure, at_least, at_most, race, told
from pipelines.config import load_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_is_a_run(path: Path) -> None:
    run = load_run(path, ["data.train=elsewhere.parquet", "train.seed=2"])
    assert (Path(run.data.train).name, run.train.seed) == ("elsewhere.parquet", 2)
    assert str(path.relative_to(ROOT)) in path.read_text(encoding="utf-8")  # the command names the file


@pytest.mark.parametrize("threads", [1, 2])
def test_a_race_compares_the_first_with_the_others(threads: int) -> None:
    def work(turns: int) -> None:
        sum(i * i for i in range(turns))

    found = race([lambda: work(30_000), lambda: work(10_000)], seconds=0.2, threads=threads)
    assert len(found.seconds) == 2
    assert 1.5 < found.ratios[0] < 6


def test_a_race_runs_turn_by_turn() -> None:
    order: list[str] = []

    def run(name: str) -> None:
        order.append(name)
        time.sleep(0.001)

    race([lambda: run("a"), lambda: run("b")], seconds=0.01, threads=2)
    assert order == ["a", "b"] * (len(order) // 2)
    assert len(order) >= 2 * (2 + 5)


def test_results_are_a_table_and_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = [at_least("speed", 0.98, "of its", 0.97, "why"), at_most("time", 0.4, "s", 0.3), Measure("size", 7, "B")]
    told(measures, "Title", tmp_path / "out.json")
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["measure", "value", "goal", "met", "detail"],
        ["speed", "0.98", "of", "its", "≥", "0.97", "yes", "why"],
        ["time", "0.4", "s", "≤", "0.3", "NO"],
        ["size", "7", "B"],
    ]
    lines = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    assert lines[1] == {"measure": "time", "value": 0.4, "unit": "s", "goal": "≤ 0.3", "met": False, "detail": ""}
