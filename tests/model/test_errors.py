"""Errors are read by people: short lines that begin with what is wrong and end with what to do."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import MOST_CHARACTERS, ConfigError, DataError, listed
from model.tables.parquet import find_fragments


@pytest.mark.parametrize("error", [ConfigError, DataError])
def test_the_middle_of_a_long_line_is_left_out(error: type[ConfigError | DataError]) -> None:
    told = error("must be short, but holds " + "many names, " * 200 + "; write it again")
    assert len(str(told)) == MOST_CHARACTERS
    assert str(told).startswith("must be short, but holds many names, ")
    assert " … " in str(told)
    assert str(told).endswith("many names, ; write it again")


def test_short_lines_stay_however_many_they_are() -> None:
    lines = "\n".join(["a fault " * 10] * 30)
    assert str(ConfigError(lines)) == lines
    long = "x" * 700
    assert str(ConfigError(f"{lines}\n{long}")).split("\n")[:-1] == lines.split("\n")


def test_of_many_names_the_first_are_listed() -> None:
    assert listed("abc") == "a, b, c"
    assert listed(range(5), most=3) == "0, 1, 2 and 2 more"
    assert listed([]) == ""


def test_a_missing_column_is_told_in_a_short_line(tmp_path: Path) -> None:
    path = tmp_path / "wide.parquet"
    pq.write_table(pa.table({f"column number {number}": [1] for number in range(300)}), path)
    with pytest.raises(DataError) as raised:
        find_fragments(path, ["y"])
    names = ", ".join(f"column number {number}" for number in range(20))
    assert str(raised.value) == f"{path}, column 'y': is not in the file; its columns are {names} and 280 more"
