"""Every mistake of the user's: one line that says what must be, what is, where and what to do; exit code 2."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from model.bundle.bundle import save_bundle
from model.settings import dump_yaml
from model.settings.yaml_text import parse_yaml
from pipelines.cli.app import app
from pipelines.config import run_config

MODEL: dict[str, Any] = {
    "problem_type": "classification",
    "prediction_type": "multiple_value",
    "label": "y",
    "num_classes": 3,
    "num_units": [4],
    "columns": {"sequence": [{"type": "numeric", "name": "x"}]},
}


def invoke(*words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command line, in this process."""
    result = CliRunner().invoke(app, ["--quiet", *words], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def make_yaml(tmp_path: Path) -> Callable[..., str]:
    """make_yaml(data, **model): a run's YAML over `data`."""

    def make(data: Path | str, **model: Any) -> str:
        config = run_config(
            {
                "output": str(tmp_path / "runs"),
                "data": {"train": str(data), "validation_fraction": 0},
                "model": {**MODEL, **model},
                "train": {"steps": 2, "batch_sequences": 4},
            },
            where="test",
        )
        path = tmp_path / "run.yaml"
        path.write_text(dump_yaml(config))
        return str(path)

    return make


def write(directory: Path, table: pa.Table) -> Path:
    directory.mkdir(exist_ok=True)
    pq.write_table(table, directory / "part.parquet")
    return directory


def replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def check_one_line(outcome: tuple[int, str, str], *parts: str) -> None:
    code, _, told = outcome
    assert code == 2
    assert told.startswith("dynamic-rnn: ")
    assert told.count("\n") == 1, told
    assert "Traceback" not in told
    for part in parts:
        assert part in told


def test_a_missing_settings_file(tmp_path: Path) -> None:
    check_one_line(invoke("train", str(tmp_path / "none.yaml")), "none.yaml", "there is no such file")


def test_a_missing_path(make_yaml: Callable[..., str], tmp_path: Path) -> None:
    outcome = invoke("train", make_yaml(tmp_path / "nowhere"))
    check_one_line(outcome, f"{tmp_path / 'nowhere'}: there is no such file or directory; check the path")


def test_an_empty_directory(make_yaml: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_one_line(invoke("train", make_yaml(tmp_path / "empty")), "must hold at least one .parquet file")


def test_unknown_settings_and_values_out_of_range_are_told_together(
    make_yaml: Callable[..., str], tmp_path: Path
) -> None:
    code, _, told = invoke("train", make_yaml(tmp_path), "train.epoch=3", "train.batch_sequences=0")
    assert code == 2
    assert "train.epoch is not a setting; did you mean train.epochs?" in told
    assert "train.batch_sequences must be at least 1, but is 0" in told


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    outcome = invoke("evaluate", str(tmp_path / "none"), str(tmp_path))
    check_one_line(outcome, "must be a bundle or the directory of a run, but does not exist")


def test_a_damaged_bundle(make_bundle: Callable[..., Any], make_table: Callable[..., pa.Table], tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", make_bundle())
    weights = tmp_path / "bundle" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    data = write(tmp_path / "data", make_table())
    check_one_line(invoke("evaluate", str(tmp_path / "bundle"), str(data)), "model.safetensors is damaged")


@pytest.mark.usefixtures("local_ray")
class TestInData:
    """What only the data show."""

    def test_an_empty_data_set(
        self, make_yaml: Callable[..., str], make_table: Callable[..., pa.Table], tmp_path: Path
    ) -> None:
        data = write(tmp_path / "data", make_table(rows=0))
        check_one_line(invoke("train", make_yaml(data)), "must hold at least one row, but all its files are empty")

    def test_a_column_that_is_not_there(
        self, make_yaml: Callable[..., str], make_table: Callable[..., pa.Table], tmp_path: Path
    ) -> None:
        data = write(tmp_path / "data", make_table())
        outcome = invoke("train", make_yaml(data, label="Y"))
        check_one_line(outcome, "part.parquet, column 'Y': is not in the file; did you mean y?")

    def test_lists_of_different_lengths_in_a_row(
        self, make_yaml: Callable[..., str], make_table: Callable[..., pa.Table], tmp_path: Path
    ) -> None:
        table = make_table(lengths=[2, 3, 4])
        data = write(tmp_path / "data", replaced(table, "y", [[0, 1], [0, 1], [0, 0, 1, 1]]))
        check_one_line(invoke("train", make_yaml(data)), "part.parquet, row 1, column 'y'", "2 steps", "has 3")

    def test_a_label_outside_the_classes(
        self, make_yaml: Callable[..., str], make_table: Callable[..., pa.Table], tmp_path: Path
    ) -> None:
        table = make_table(lengths=[1, 2])
        data = write(tmp_path / "data", replaced(table, "y", [[0], [2, 7]]))
        outcome = invoke("train", make_yaml(data))
        check_one_line(outcome, "row 1, column 'y': must be one of the 3 classes (0, 1, 2), but is 7")

    def test_a_file_that_is_no_parquet(self, make_yaml: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "a.parquet").write_text("no Parquet at all")
        check_one_line(invoke("train", make_yaml(tmp_path / "data")), "a.parquet", "must be a whole Parquet file")


@pytest.mark.usefixtures("local_ray")
def test_commands_say_why_training_ended_and_what_to_type_next(
    make_yaml: Callable[..., str], make_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    data, run = str(write(tmp_path / "data", make_table(rows=12))), str(tmp_path / "runs" / "run")
    path = make_yaml(data)

    def last(*words: str) -> tuple[str, list[str]]:
        result = CliRunner().invoke(app, [*words], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.stderr.splitlines()[-1], result.stdout.splitlines()

    told, lines = last("train", path)
    assert lines[0] == "training ended: all of its 2 steps are made"
    assert told == f"next: dynamic-rnn evaluate {run} TEST_DATA"
    assert last("evaluate", run, data)[0] == f"next: dynamic-rnn predict {run} {data} OUTPUT"
    chained = ("predict", run, data, str(tmp_path / "out"), "--key", "key")
    assert last(*chained)[0] == (
        f"next: dynamic-rnn predict {run} NEXT_DATA NEXT_OUTPUT --key key --state-from {tmp_path / 'out'}"
    )
    assert last("predict", run, data, str(tmp_path / "plain"))[0] == f"next: dynamic-rnn serve {run}"
    assert "all of its 2 steps are made" in last("runs", str(tmp_path / "runs"))[1][1]
    assert last("fit-columns", path, "name=other")[0] == f"next: dynamic-rnn train {path} name=other"


def test_help_and_settings_answer_without_heavy_imports() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from pipelines.cli.app import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "assert not {'ray', 'torch', 'pandas', 'pyarrow'} & set(sys.modules), sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_command_has_help_and_every_setting_a_description() -> None:
    for command in ("train", "tune", "evaluate", "predict", "serve", "export", "import-tf", "demo", "doctor"):
        assert invoke(command, "--help")[0] == 0
    code, told, _ = invoke("settings", "--all")
    assert code == 0
    for setting in ("batch_sequences", "num_units", "max_replicas", "trials"):
        assert setting in told


def test_settings_print_a_start_that_is_a_run() -> None:
    code, told, _ = invoke("settings")
    run = run_config(parse_yaml(told, where="starter"), where="starter")
    assert (code, run.train.optimizer, run.train.learning_rate, run.model.cell_type) == (0, "Adam", 1e-3, "lstm")
    assert run.train.early_stopping is not None
    assert run.data.validation_fraction > 0
    assert len(told.splitlines()) < 45


def test_settings_print_a_section_as_it_stands_in_a_run() -> None:
    every, whole = invoke("settings", "--all")[1].splitlines(), 0
    for section in ("data", "model", "train", "resources", "tracking", "tune", "serve"):
        code, told, _ = invoke("settings", section)
        first, *rest = told.splitlines()
        assert (code, first) == (0, f"{section}:")
        assert {line.strip() for line in rest} <= {line.strip() for line in every}
        whole += len(rest)
    assert len(every) - 30 < whole < len(every)
    assert parse_yaml(invoke("settings", "train")[1], where="")["train"]["optimizer"] == "SGD"


def test_a_section_that_is_none_is_refused() -> None:
    assert invoke("settings", "trian") == (
        2,
        "",
        "dynamic-rnn: SECTION must be one of data, model, train, resources, tracking, tune, serve, but is 'trian'; "
        "did you mean train?\n",
    )


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
    assert invoke("--version") == (0, f"dynamic-rnn {project['version']}\n", "")


def test_ctrl_c_ends_with_130_and_says_what_was_kept(
    make_yaml: Callable[..., str], make_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    path = make_yaml(write(tmp_path / "data", make_table(rows=30)))
    command = [sys.executable, "-m", "pipelines", "train", path, "train.steps=1000000", "train.evaluate_every_steps=20"]
    log = tmp_path / "log"
    with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            while "step 20," not in log.read_text() and process.poll() is None:
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
    told = log.read_text()
    assert process.returncode == 130, told
    assert "stopped: the best bundle so far is" in told
    assert "--resume" in told
    assert "Traceback" not in told


PLUGIN = """
import torch
from model.cells import Cell
from model.registry import register_cell


class Leaky(Cell):
    def __init__(self, input_size, num_units):
        super().__init__(input_size, num_units)
        self.linear = torch.nn.Linear(input_size, num_units)

    def zero_state(self, rows):
        return self.linear.weight.new_zeros(rows, self.num_units)

    def step(self, x_BF, state):
        h = 0.5 * state + torch.tanh(self.linear(x_BF))
        return h, h


register_cell("leaky", Leaky)
"""


@pytest.mark.slow  # four processes, three Rays
def test_a_cell_of_the_users_trains_scores_and_serves_from_the_directory_that_holds_it(
    make_yaml: Callable[..., str], make_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    path = make_yaml(write(tmp_path / "data", make_table(rows=12)))
    (tmp_path / "my_cells.py").write_text(PLUGIN)
    bundle, data = str(tmp_path / "runs" / "run"), str(tmp_path / "data")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)

    door = str(Path(sys.executable).parent / "dynamic-rnn")
    trained = run(door, "train", path, "plugins=[my_cells]", "model.cell_type=leaky")
    assert trained.returncode == 0, trained.stderr
    assert run(door, "evaluate", bundle, data, "--plugin", "my_cells").returncode == 0
    unknown = run(door, "evaluate", bundle, data)
    assert unknown.returncode == 2
    assert "a cell of your own must be registered by a module listed under `plugins:`" in unknown.stderr
    served = (
        "from model.bundle.run_directory import resolve_bundle; from serve.config import ServeConfig; "
        f"from serve.replica import Replica; Replica(resolve_bundle({bundle!r}), ServeConfig(plugins=('my_cells',)))"
    )
    assert run(sys.executable, "-c", served).returncode == 0
