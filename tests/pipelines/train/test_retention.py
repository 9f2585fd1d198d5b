"""What a run keeps: the best bundles, each step's metrics once, and checkpoints that are whole or do not count."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.bundle.bundle import Bundle, TrainingState, load_bundle, save_bundle
from model.bundle.run_directory import pointed, resolve_bundle
from model.errors import CheckpointError
from model.storage import list_names
from pipelines.config import RunTrainConfig
from pipelines.train import retention
from pipelines.train.checkpoints import newest_whole
from pipelines.train.job import Report

ROOT = Path(__file__).resolve().parents[3]


def report(bundle: Bundle, step: int, loss: float, ended: str = "", **metrics: float) -> Report:
    told = {"step": float(step), "train_loss": 9.0, "validation_loss": loss, **metrics}
    return Report(step, told, bundle, TrainingState({}, {}), bool(ended), ended)


def kept(directory: Path) -> tuple[list[str], str | None, str | None]:
    bundles = [name.removeprefix("step_").lstrip("0") for name in list_names(directory / "bundles")]
    best, latest = (pointed(directory, pointer) for pointer in ("best", "latest"))
    return bundles, best, latest


@pytest.mark.parametrize(("keep_best", "expected"), [(1, ["2", "4"]), (2, ["2", "3", "4"]), (9, ["1", "2", "3", "4"])])
def test_the_best_bundles_are_kept_beside_the_latest(
    tmp_path: Path, make_bundle: Any, keep_best: int, expected: list[str]
) -> None:
    settings = RunTrainConfig(keep_best=keep_best)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, math.nan)):
        retention.retain(str(tmp_path), report(make_bundle(), step, loss), settings)
    assert kept(tmp_path) == (expected, "bundles/step_00000002", "bundles/step_00000004")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_loss"] for line in lines] == [3.0, 1.0, 2.0, None]


def test_a_step_that_is_computed_again_stands_once_and_is_judged_anew(tmp_path: Path, make_bundle: Any) -> None:
    settings, bundle = RunTrainConfig(), make_bundle()
    for step, loss in ((5, 3.0), (10, 1.0), (10, 2.0), (15, 1.5)):
        retention.retain(str(tmp_path), report(bundle, step, loss), settings)
    assert [line["step"] for line in retention.read_metrics(str(tmp_path))] == [5, 10, 15]
    assert [line["validation_loss"] for line in retention.read_metrics(str(tmp_path))] == [3.0, 2.0, 1.5]
    assert kept(tmp_path) == (["15"], "bundles/step_00000015", "bundles/step_00000015")


def test_the_best_is_best_by_what_early_stopping_watches(tmp_path: Path, make_bundle: Any) -> None:
    settings = RunTrainConfig(early_stopping={"metric": "validation_accuracy"})
    for step, loss, accuracy in ((1, 3.0, 0.5), (2, 2.0, 0.75), (3, 1.0, 0.25)):
        retention.retain(str(tmp_path), report(make_bundle(), step, loss, validation_accuracy=accuracy), settings)
    assert kept(tmp_path)[1] == "bundles/step_00000002"


def test_without_restoring_the_best_the_run_stands_for_its_end(tmp_path: Path, make_bundle: Any) -> None:
    settings = RunTrainConfig(early_stopping={"restore_best": False})
    bundles = [make_bundle(seed=seed) for seed in range(3)]
    for step, (bundle, loss) in enumerate(zip(bundles, (2.0, 1.0, 3.0), strict=True), 1):
        retention.retain(str(tmp_path), report(bundle, step, loss, "told" if step == 3 else ""), settings)
    assert kept(tmp_path) == (["2", "3"], "bundles/step_00000003", "bundles/step_00000003")
    assert load_bundle(resolve_bundle(tmp_path)).fingerprint == bundles[2].fingerprint
    assert retention.why_ended(str(tmp_path)) == "told"


# Checkpoints --------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import model.bundle.bundle
from model.storage import write_bytes

directory, bundle, training = sys.argv[1], model.bundle.bundle.load_bundle(sys.argv[2]), {"step": 2}
ends = []
for files in range(6):
    if child := os.fork():
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue

    def write_some(path, content, left=[files]):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        write_bytes(path, content)

    model.bundle.bundle.write_bytes = write_some
    path = f"{directory}/checkpoint_2_{files}"
    model.bundle.bundle.save_bundle(path, bundle, model.bundle.bundle.TrainingState(training, {}))
    os._exit(0)
print(ends)
"""


def test_a_checkpoint_that_a_kill_cut_short_is_never_loaded(tmp_path: Path, make_bundle: Any) -> None:
    """Killed before each of its five files, the one before it is taken; written to its end, it counts."""
    first, second = make_bundle(seed=1), make_bundle(seed=2)
    save_bundle(tmp_path / "second", second)
    directory = tmp_path / "train"
    save_bundle(directory / "checkpoint_1", first, TrainingState({"step": 1}, {}))
    words = [sys.executable, "-c", KILLED, str(directory), str(tmp_path / "second")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == "[-9, -9, -9, -9, -9, 0]"
    for files in range(5):
        name = f"checkpoint_2_{files}"
        with pytest.raises(CheckpointError, match=r"no MANIFEST\.json|there is no such bundle"):
            load_bundle(directory / name)
        bundle, training = newest_whole(str(directory), name)
        assert (bundle.fingerprint, training.numbers["step"]) == (first.fingerprint, 1)
    bundle, training = newest_whole(str(directory), "checkpoint_2_5")
    assert (bundle.fingerprint, training.numbers["step"]) == (second.fingerprint, 2)


def test_a_damaged_checkpoint_gives_way_to_the_newest_whole_one_before_it(tmp_path: Path, make_bundle: Any) -> None:
    for step in (1, 2, 3, 4):
        save_bundle(tmp_path / f"checkpoint_{step}", make_bundle(), TrainingState({"step": step}, {}))
    for step in (2, 3):
        tensors = tmp_path / f"checkpoint_{step}" / "model.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    assert newest_whole(str(tmp_path), "checkpoint_3")[1].numbers["step"] == 1, "not 4: it is newer than what is known"
    tensors = tmp_path / "checkpoint_1" / "training" / "state.json"
    tensors.unlink()
    with pytest.raises(CheckpointError) as raised:
        newest_whole(str(tmp_path), "checkpoint_3")
    assert str(raised.value).startswith(
        f"{tmp_path}: a checkpoint to go on from must be whole, but {tmp_path}/checkpoint_3: "
    )
    assert str(raised.value).endswith("; restore one of them, or start a new run under another name")
