"""The two pages in a real browser: what people see of them, on wide and narrow screens, in light and dark.

Chromium is the one that CHROMIUM names, else the first that is installed; no browser is downloaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.bundle.bundle import bundle_of, save_bundle
from model.network.network import build_network
from pipelines.config import run_config
from pipelines.ingest import scan as ingest
from pipelines.inspect import html as inspect_html
from pipelines.inspect.report import report
from pipelines.inspect.run import inspect_data
from pipelines.report.training import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDE, NARROW = 1200, 390
EVIL = "<script>window.ran = true</script>"
LONG = "amount_in_euro_including_value_added_tax_and_shipping_costs_after_rebate"
ROWS = 160

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; name one with CHROMIUM=/path/to/it"),
]


# The pages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Any], make_table: Any) -> dict[str, str]:
    """The addresses of a data report and of the reports of two trainings."""
    directory = tmp_path_factory.mktemp("pages")
    data = directory / "messy & <b>.parquet"
    pq.write_table(messy(), data, row_group_size=50)
    (directory / "data.html").write_text(inspect_html.page(report(inspect_data(str(data), sample=True))))
    found = {"data": (directory / "data.html").as_uri()}
    for problem in ("classification", "linear_regression"):
        table = make_table(problem, "single_value", rows=80, seed=1)
        model = make_config(problem, "single_value", num_classes="auto").model_dump(mode="json")
        if problem == "classification":
            names = pa.array([[EVIL, "a class with a long name, indeed", "日本語"][y] for y in table["y"].to_pylist()])
            table = table.set_column(table.column_names.index("y"), "y", names)
        else:
            model["standardize_label"] = True
        found[problem] = training_page(directory / problem, table, model)
    return found


def messy() -> pa.Table:
    """Long names, markup in names and values, times, vectors, nulls, a constant, an infinite number, long sequences."""
    random = np.random.default_rng(0)
    lengths = random.geometric(0.1, ROWS)
    lengths[3], lengths[9] = 400, 0
    steps, offsets = int(lengths.sum()), pa.array([0, *np.cumsum(lengths)], pa.int32())

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    x = random.normal(size=steps)
    x[7] = np.inf
    days = np.datetime64("2023-05-01", "us") + random.integers(0, 500, ROWS) * np.timedelta64(1, "D")
    vector = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=steps * 6)), 6)
    return pa.table(
        {
            "user_id": [f"u{row}" for row in range(ROWS)],
            LONG: lists(pa.array(np.exp(random.normal(3, 1.5, steps)), mask=random.random(steps) < 0.1)),
            EVIL: lists(pa.array(random.choice([EVIL, "日本 語", "short", "w" * 70], steps).tolist())),
            "vector": lists(vector),
            "x": lists(pa.array(x)),
            "constant": lists(pa.array(np.ones(steps))),
            "signup": pa.array(days),
            "label": random.choice(["stays", "leaves", EVIL], ROWS, p=[0.7, 0.28, 0.02]),
        }
    )


def training_page(directory: Path, table: pa.Table, model: dict[str, Any]) -> str:
    """The address of the report of a run, as if it had trained."""
    directory.mkdir()
    pq.write_table(table, directory / "data.parquet")
    run = {"train": str(directory / "data.parquet"), "validation_fraction": 0.3}
    config = run_config(
        {"output": str(directory / "runs"), "data": run, "model": model, "train": {"steps": 4}}, where="run.yaml"
    )
    prepared = ingest.fit_data(config)
    network = build_network(config.model, prepared.columns, prepared.label, 1)
    best = {"step": 40.0, "epoch": 1.2, "train_loss": 0.5, "validation_loss": 0.4, "validation_rows": 24.0}
    save_bundle(directory / "bundle", bundle_of(network, prepared.columns, prepared.label, metrics=best))
    lines = [{**best, "step": 10.0 * step, "validation_loss": 1 / step, "train_loss": 2 / step} for step in range(1, 5)]
    return Path(write_report(config, prepared, str(directory / "bundle"), lines, 4000.0, "12 MiB")).as_uri()


# The browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@dataclass
class Seen:
    """An open page, what it said on the console, and what it asked for beside itself."""

    page: Any
    told: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ask(self, script: str) -> Any:
        """The value of an expression of JavaScript; a page's own policy does not bind the debugger."""
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def see(browser: Any, pages: dict[str, str]) -> Callable[..., Seen]:
    """see(name, width, scheme): a page as it is seen on a screen; each is opened once."""

    @cache
    def open_page(name: str, width: int = WIDE, scheme: str = "light") -> Seen:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        seen = Seen(context.new_page())
        seen.page.on("console", lambda message: seen.told.append(message.text))
        seen.page.on("pageerror", lambda error: seen.told.append(str(error)))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(pages[name])
        return seen

    return open_page


PAGES = ("data", "classification", "linear_regression")
TEXTS = {
    "data": [
        "What to look at: 1 error, ",
        "holds an infinite number once",
        LONG,
        EVIL,
        "日本 語",
        "A run for these data",
    ],
    "classification": ["Training report", "Calibration", "a class with a long name, indeed", EVIL, "66.7 min"],
    "linear_regression": ["Residuals", "By length of the sequence", "Environment"],
}


# What is seen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_its_texts_asks_for_nothing_and_runs_nothing(name: str, see: Callable[..., Seen]) -> None:
    seen = see(name)
    assert seen.told == []
    assert seen.requests == [seen.page.url]
    assert seen.ask("window.ran") is None
    assert seen.ask("document.scripts.length") == 0
    for text in TEXTS[name]:
        assert seen.page.get_by_text(text).first.is_visible(), text


@pytest.mark.parametrize("name", PAGES)
def test_on_a_narrow_screen_nothing_is_cut_off_and_charts_are_legible(name: str, see: Callable[..., Seen]) -> None:
    seen = see(name, NARROW)
    assert seen.ask(BEYOND_THE_SCREEN) == []
    sizes = seen.ask("[...document.querySelectorAll('svg.chart')].map(chart => chart.getBoundingClientRect().toJSON())")
    assert len(sizes) >= 2
    for size in sizes:
        assert 300 <= size["width"] <= NARROW
        assert 0.3 < size["height"] / size["width"] < 0.7
    assert min(seen.ask(LETTER_SIZES)) >= 8.5


BEYOND_THE_SCREEN = """() => {
  const scrolls = element => ["auto", "scroll", "hidden"].includes(getComputedStyle(element).overflowX);
  const inBox = element => element && element !== document.documentElement
    && (scrolls(element) && element.getBoundingClientRect().right <= innerWidth || inBox(element.parentElement));
  const wide = [...document.querySelectorAll("body *")].filter(
    element => element.getBoundingClientRect().right > innerWidth + 0.5 && !inBox(element.parentElement));
  return [document.documentElement.scrollWidth > innerWidth ? "the page scrolls" : "",
          ...wide.map(element => element.outerHTML.slice(0, 200))].filter(Boolean);
}"""
LETTER_SIZES = """() => [...document.querySelectorAll("svg.chart text")].map(text => {
  const {a, b} = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
})"""


@pytest.mark.parametrize("name", PAGES)
def test_texts_of_a_chart_do_not_overlap_and_stay_inside(name: str, see: Callable[..., Seen]) -> None:
    assert see(name).ask(OVERLAPS) == []


OVERLAPS = """() => [...document.querySelectorAll("svg.chart")].flatMap(chart => {
  const whole = chart.getBoundingClientRect();
  const boxes = [...chart.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  const outside = boxes.filter(([_, b]) => b.left < whole.left - 2 || b.right > whole.right + 2
    || b.top < whole.top - 2 || b.bottom > whole.bottom + 2).map(([told]) => `${told} is cut off`);
  const over = boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([_, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4
  ).map(([other]) => `${one} over ${other}`));
  return [...outside, ...over];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_text_stands_out_from_what_lies_below_it(name: str, scheme: str, see: Callable[..., Seen]) -> None:
    """WCAG AA: a contrast of 4.5."""
    seen = see(name, WIDE, scheme)
    paper = seen.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 600) == (scheme == "light")
    assert seen.ask(FAINT) == []


FAINT = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const over = colours => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = colour => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => sum + part * linear(colour[i] / 255), 0);
  const below = element => element ? [...below(element.parentElement), getComputedStyle(element).backgroundColor] : [];
  const found = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !element.getClientRects().length || ["title", "desc", "style"].includes(element.localName)) continue;
    const style = getComputedStyle(element), ground = below(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(over(ground)), light(over([...ground, colour]))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.add(`${text.slice(0, 40)}: ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return [...found];
}"""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_heard_and_walked_through(name: str, see: Callable[..., Seen]) -> None:
    seen = see(name)
    assert seen.ask("document.documentElement.lang") == "en"
    assert seen.page.title()
    levels = seen.ask("[...document.querySelectorAll('h1, h2, h3, h4')].map(heading => Number(heading.tagName[1]))")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert seen.ask(UNNAMED) == []
    for region in seen.page.get_by_role("region").all():  # what may scroll can be scrolled by the keyboard
        assert region.evaluate("region => region.tagName === 'SECTION' || region.tabIndex === 0")
    broken = "[...document.querySelectorAll('a')].filter(a => !document.querySelector(a.hash)).map(a => a.href)"
    assert seen.ask(broken) == []


UNNAMED = """() => [
  ...[...document.querySelectorAll("svg")].filter(chart => chart.getAttribute("role") !== "img"
    || chart.getAttribute("aria-labelledby").split(" ").some(id => !document.getElementById(id)?.textContent)),
  ...[...document.querySelectorAll("table")].filter(table => !table.querySelector("th")),
  ...[...document.querySelectorAll("th")].filter(cell => !cell.scope || !cell.textContent.trim()),
].map(element => element.outerHTML.slice(0, 200))"""


def test_a_finding_leads_to_its_column(see: Callable[..., Seen]) -> None:
    seen = see("data")
    seen.page.locator(".findings").get_by_role("link", name="constant").click()
    heading = seen.page.get_by_role("heading", name="constant", exact=True)
    assert 0 <= heading.bounding_box()["y"] < 900
