"""`dynamic-rnn inspect`: what it writes, what it refuses, and a page that loads nothing and escapes everything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from model.settings.yaml_text import parse_yaml
from pipelines.cli.app import app
from pipelines.inspect.html import where
from pipelines.report.charts import histogram, lines
from pipelines.report.formatting import byte_count, date_text, number, share, short, shown_value, span_text
from pipelines.report.page import coded

EVIL = "<script>alert('x')</script>"
NAME = "kind & <b>"


def invoke(*words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command line, in this process."""
    result = CliRunner().invoke(app, ["--quiet", "inspect", *words], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows whose names and values are hostile to pages and terminals."""
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "user_id": [f"u{row}" for row in range(120)],
            "x": [random.normal(size=3).tolist() for _ in range(120)],
            NAME: [random.choice([EVIL, "日本 語", "\x1b[31mred", "a]b[/red]"], 3).tolist() for _ in range(120)],
            "label": ["secret rare", *random.choice(["secret yes", "secret no"], 119)],
        }
    )
    path = tmp_path_factory.mktemp("hostile") / "rows & <i>.parquet"
    pq.write_table(table, path, row_group_size=50)
    return str(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers ids, references and texts."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.named: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "action", "data", "poster", "srcset"):
                self.references.append(value or "")
            if name in ("aria-labelledby", "aria-describedby"):
                self.named += (value or "").split()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.usefixtures("local_ray")
class TestCommand:
    """The command on real files."""

    def test_it_shows_writes_and_says_where(self, data: str, here: Path) -> None:
        code, told, _ = invoke(data, "--json", "report.json", "--write", "run.yaml")
        assert code == 0
        assert "120 rows, 4 columns in 1 file and 3 row groups" in told
        assert "label: label (guessed from its name)" in told
        assert "日本 語" in told
        assert "a]b[/red]" in told
        assert "\x1b" not in told
        assert f"page: {here / 'inspect.html'}" in told
        assert "train it with: dynamic-rnn train run.yaml" in told
        report = json.loads((here / "report.json").read_text())
        assert (report["format_version"], report["rows"]) == (1, 120)
        assert (here / "run.yaml").read_text() == report["proposal"]["yaml"]
        assert parse_yaml((here / "run.yaml").read_text(), where="")["data"]["key"] == "user_id"

    def test_the_page_loads_nothing_escapes_everything_and_names_its_charts(self, data: str, here: Path) -> None:
        invoke(data, "--examples", "--html", "page.html")
        text = (here / "page.html").read_text()
        page = Page(text)
        assert text.startswith("<!doctype html>")
        assert "script" not in page.tags
        assert EVIL in page.text
        assert NAME in page.text
        assert "rows & <i>.parquet" in page.text
        assert page.references
        assert all(reference.startswith("#") for reference in page.references)
        assert not re.search(r"https?://|@import|@font-face|url\((?!#)", text)
        assert len(set(page.ids)) == len(page.ids)
        assert {*page.named, *(reference[1:] for reference in page.references)} <= {*page.ids}
        assert page.tags.count("svg") == page.tags.count("title") - 1 == page.tags.count("desc") == 3
        assert "default-src 'none'" in text
        assert "prefers-color-scheme: dark" in text
        assert not re.search(r"#0102\d\d", text)

    def test_without_values_none_is_shown_or_written(self, data: str, here: Path) -> None:
        _, told, _ = invoke(data, "--no-values", "--json", "report.json", "--write", "run.yaml")
        written = [told, *(path.read_text() for path in here.iterdir())]
        assert len(written) == 4
        for text in written:
            for value in ("secret", "alert", "日本"):
                assert value not in text
        report = json.loads((here / "report.json").read_text())
        [x] = [column for column in report["columns"] if column["name"] == "x"]
        assert x["numbers"]["quantiles"] is x["numbers"]["histogram"] is x["numbers"]["lows"] is None
        assert x["numbers"]["means"]
        assert report["classes"]["count"] == 3
        assert "Values of the data are left out" in (here / "inspect.html").read_text()

    def test_a_row_is_shown_on_request_only(self, data: str, here: Path) -> None:
        invoke(data)
        without = Page((here / "inspect.html").read_text()).text
        invoke(data, "--examples")
        with_rows = Page((here / "inspect.html").read_text()).text
        assert '"u0"' not in without
        assert "It shows no row of the data." in without
        assert '"u0"' in with_rows
        assert "It shows whole rows" in with_rows

    def test_files_are_overwritten_with_force_alone_and_its_own_page_without(self, data: str, here: Path) -> None:
        (here / "run.yaml").write_text("mine")
        code, _, told = invoke(data, "--no-html", "--write", "run.yaml")
        assert (code, told) == (
            2,
            "dynamic-rnn: --write: run.yaml is there already; add --force to overwrite it, or choose another name\n",
        )
        assert (here / "run.yaml").read_text() == "mine"
        (here / "inspect.html").write_text("mine, too")
        assert invoke(data)[0] == 2
        assert (here / "inspect.html").read_text() == "mine, too"
        assert invoke(data, "--write", "run.yaml", "--force")[0] == 0
        assert "mine" not in (here / "run.yaml").read_text()
        assert invoke(data)[0] == 0

    def test_exit_codes(self, here: Path, data: str) -> None:
        bad = here / "bad.parquet"
        pq.write_table(pa.table({"x": [[1.0, float("inf")], [2.0]], "label": ["a", "b"]}), bad)
        assert invoke(str(bad), "--no-html")[0] == 0
        assert invoke(str(bad), "--no-html", "--check")[0] == 1
        assert invoke(data, "--no-html", "--check")[0] == 0
        events = here / "events.parquet"
        pq.write_table(pa.table({"a": [1, 2]}), events)
        code, _, told = invoke(str(events), "--no-html", "--write", "run.yaml")
        assert (code, told) == (
            2,
            "dynamic-rnn: --write: no run is proposed: no column holds lists: if each row is one event, make sequences "
            f"of them with `dynamic-rnn prepare {events} sequences --key COLUMN --time COLUMN`\n",
        )
        assert not (here / "run.yaml").exists()
        broken = here / "broken.parquet"
        broken.write_bytes(b"PAR1 is not enough")
        code, _, told = invoke(str(broken), "--no-html")
        assert code == 2
        assert told.startswith(f"dynamic-rnn: {broken}: must be a whole Parquet file, but its footer cannot be read")
        code, _, told = invoke(data, "--label", "lable")
        assert (code, told) == (
            2,
            "dynamic-rnn: --label must name a column, but 'lable' is none; did you mean label?; the columns are "
            f"user_id, x, {NAME}, label\n",
        )
        assert not (here / "inspect.html").exists()

    def test_a_run_is_checked_and_names_its_missing_column(self, data: str, here: Path) -> None:
        invoke(data, "--no-html", "--write", "run.yaml")
        code, told, _ = invoke(data, "--no-html", "--config", "run.yaml", "--check")
        assert code == 0
        assert "label: label (named)" in told
        text = (here / "run.yaml").read_text().replace("name: x,", "name: xx,")
        (here / "other.yaml").write_text(text)
        code, _, told = invoke(data, "--no-html", "--config", "other.yaml")
        assert code == 2
        assert "column 'xx': is not in the file" in told


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--examples", "--no-values"], "--examples shows rows and --no-values shows no value: leave one of them out"),
        (["--html", "."], "--html must name a file, but . is a directory"),
        (["--config", "none.yaml"], "none.yaml: must be a YAML file, but cannot be read: there is no such file"),
    ],
)
def test_mistakes_are_told_before_ray_starts(words: list[str], problem: str, data: str, here: Path) -> None:
    assert invoke(data, *words) == (2, "", f"dynamic-rnn: {problem}\n")


def test_a_missing_path_is_told_before_ray_starts(here: Path) -> None:
    path = here / "nowhere"
    assert invoke(str(path)) == (2, "", f"dynamic-rnn: {path}: there is no such file or directory; check the path\n")


def test_the_documentation_lists_every_finding_there_is() -> None:
    root = Path(__file__).resolve().parents[3]
    rows = re.findall(r"^\| (`.*?) \|", (root / "docs" / "inspect.md").read_text(), re.MULTILINE)
    told = {code for row in rows for code in re.findall(r"`([\w-]+)`", row)}
    code = "".join((root / "pipelines" / "inspect" / f"{part}.py").read_text() for part in ("findings", "label_leaks"))
    used = re.findall(r'(?:ERROR|WARNING|NOTE|severity|"warning"|"note"),\s*"([\w-]+)"', code)
    used += re.findall(r'^        \("\w+", "([\w-]+)", "', code, re.MULTILINE)
    assert told == {*used} - {"code", "error", "warning", "note"}


# Charts and numbers ---------------------------------------------------------------------------------------------


CHARTS: dict[str, Callable[[], str]] = {
    "bars": lambda: histogram([0, 1, 2], [3, 4], title="A <title>", x="x", y="y", marks=[("m", 1)]),
    "one bar": lambda: histogram([-0.5, 0.5], [1], title="t", x="x", y="y"),
    "no bar": lambda: histogram([0, 1], [0], title="t", x="x", y="y"),
    "lines": lambda: lines([("a", [0, 1], [1, 2]), ("b", [0, 1], [2, 1])], title="t", x="x", y="y"),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_the_same_numbers_give_the_same_chart_with_a_title_and_a_description(kind: str) -> None:
    first = CHARTS[kind]()
    assert first == CHARTS[kind]()
    page = Page(first)
    assert page.tags[:3] == ["svg", "title", "desc"]
    assert set(page.named) <= set(page.ids)
    assert "font-family" not in first
    assert re.search(r"var\(--(accent|second)\)", first) or kind == "no bar"
    assert "metadata" not in page.tags


def test_a_chart_says_in_words_what_it_shows() -> None:
    page = Page(CHARTS["bars"]())
    assert "A <title>" in page.text
    assert "y by x, from 0 to 2 in 2 bars; the tallest, from 1 to 2, holds 4 of 7." in page.text


@pytest.mark.parametrize(
    ("edges", "texts"),
    [
        ([0.0, 0.2, 0.4], ["0.0", "0.1", "0.2", "0.3", "0.4"]),
        ([-2.0, 0.0, 2.0], ["\N{MINUS SIGN}2", "\N{MINUS SIGN}1", "0", "1", "2"]),
        ([0.0, 5000.0, 10_000.0], ["0", "2k", "4k", "6k", "8k", "10k"]),
        ([1_600_000_000.0, 1_610_000_000.0], ["1.6G", "1.602G", "1.604G", "1.606G", "1.608G", "1.61G"]),
        ([1_600_000_000.0, 1_600_000_010.0], ["0", "2", "4", "6", "8", "10", "x", "+1.6e9"]),
    ],
)
def test_numbers_on_an_axis_are_short_and_large_ones_have_a_unit(edges: list[float], texts: list[str]) -> None:
    drawn = histogram(edges, [3] * (len(edges) - 1), title="t", x="x", y="y")
    assert re.findall(r"<text[^>]*>([^<]+)</text>", drawn)[: len(texts)] == texts


def test_times_are_drawn_as_dates() -> None:
    drawn = histogram([1.6e9, 1.61e9, 1.62e9], [3, 4], title="t", x="x", y="y", dates=True)
    assert "y by x, from 2020-09-13 12:26:40 to 2021-05-03 in 2 bars" in drawn
    assert "2021" in Page(drawn).text
    assert "1.6G" not in drawn


def test_low_bars_beside_a_tall_one_get_a_logarithmic_scale() -> None:
    def described(counts: list[int]) -> Any:
        return Page(histogram([0, 1, 2, 3, 4], counts, title="t", x="x", y="rows")).text

    assert "rows, logarithmic" in described([1_000_000, 3, 4, 5])
    assert "logarithmic" not in described([1000, 3000, 4, 500])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (2.0, "2"),
        (0.1 + 0.2, "0.3"),
        (1e300, "1e+300"),
        (1600000000.5, "1,600,000,000"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers_for_people(value: Any, text: str) -> None:
    assert number(value) == text


def test_shares_bytes_and_values_for_people() -> None:
    assert [share(1, 3), share(1, 10**6), share(0, 5), share(0, 0)] == ["33.3 %", "< 0.01 %", "0.00 %", "\N{EN DASH}"]
    assert [short(3.14159265), short(12345.0), short(0.3)] == ["3.142", "12,345", "0.3"]
    assert [date_text(86_400), date_text(-1.5), date_text(1e15)] == [
        "1970-01-02",
        "1969-12-31 23:59:58.500",
        "1e+15 s since 1970",
    ]
    assert [span_text(3), span_text(150), span_text(9000), span_text(1e6)] == ["3 s", "2.5 min", "2.5 h", "11.6 days"]
    assert coded("use `a: <b>` here") == "use <code>a: &lt;b&gt;</code> here"
    assert [byte_count(999), byte_count(2048), byte_count(3 * 2**40)] == ["999 bytes", "2.0 KiB", "3,072.0 GiB"]
    assert [shown_value("a"), shown_value(" a"), shown_value(""), shown_value(1.0)] == ["a", "' a'", "''", "1"]


def test_places_name_a_file_once_and_by_its_path_in_the_data() -> None:
    places = [{"file": "/data/a/x.parquet", "row": 3}, {"file": "/data/a/x.parquet", "row": 1200}]
    assert where(places, "/data") == "a/x.parquet, rows 3, 1,200"
    assert (
        where([*places[:1], {"file": "/data/b.parquet", "row": 0}], "/data/") == "a/x.parquet, row 3; b.parquet, row 0"
    )
    assert where(places[:1], "/data/a/x.parquet") == "x.parquet, row 3"
    assert where([{"file": "s3://b/d/x.parquet?region=x", "row": 0}], "s3://b/d?region=x") == "x.parquet, row 0"
