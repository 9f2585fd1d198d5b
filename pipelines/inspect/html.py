"""A report of `inspect` as one HTML page with charts. Knows no Ray, no torch."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from pipelines.report.charts import histogram, lines
from pipelines.report.formatting import date_text, number, span_text
from pipelines.report.page import chart, render

MOST_CHARTS = 200  # columns beyond keep their tables


def page(report: dict[str, Any]) -> str:
    """The page of a report as `pipelines.inspect.report.report` gives it."""
    columns = report["columns"]
    return render(
        "inspect.html",
        command="inspect",
        title=f"Data report: {data_name(report)}",
        name=data_name(report),
        report=report,
        anchors={column["name"]: f"column-{place}" for place, column in enumerate(columns, 1)},
        where=lambda places: where(places, report["data"]),
        lengths_chart=_lengths(report["lengths"]),
        cumulative_chart=_cumulative(report["lengths"]),
        charts=[_numbers(column) if place < MOST_CHARTS else None for place, column in enumerate(columns)],
        spread=_spread,
        quantiles=_quantiles,
    )


def data_name(report: dict[str, Any]) -> str:
    """What the data are called: the last part of their path."""
    path = _path(report["data"])
    return path.rsplit("/", 1)[-1] or path


def _path(address: str) -> str:
    """A path, or a URI without its options."""
    return address.partition("?")[0] if "://" in address else address


def where(places: list[dict[str, Any]], data: str) -> str:
    """Rows by their file, each file named once and by its path from `data` on; "" for no place."""
    files: dict[str, list[str]] = {}
    for place in places:
        files.setdefault(_path(place["file"]), []).append(f"{place['row']:,}")
    root = _path(data).rstrip("/")
    told = []
    for file, rows in files.items():
        name = file.rsplit("/", 1)[-1] if file == root else file.removeprefix(f"{root}/")
        told.append(f"{name}, {'row' if len(rows) == 1 else 'rows'} {', '.join(rows)}")
    return "; ".join(told)


def _lengths(told: dict[str, Any] | None) -> Markup | None:
    if told is None:
        return None
    shown = told["histogram"]
    marks = [("median", told["quantiles"]["median"]), ("99 %", told["quantiles"]["99%"])]
    if marks[0][1] == marks[1][1]:
        marks = marks[:1]
    x = f"steps a row{_outside(shown, sum(shown['counts']))}"
    return chart(histogram(shown["edges"], shown["counts"], title="Rows by length", x=x, y="rows", marks=marks))


def _outside(shown: dict[str, Any], inside: int) -> str:
    outside = shown["below"] + shown["above"]
    return f" ({outside:,} of {inside + outside:,} lie outside)" if outside else ""


def _cumulative(told: dict[str, Any] | None) -> Markup | None:
    """The share of rows that a maximum length would leave whole: what one reads to choose it."""
    if told is None:
        return None
    shown = told["histogram"]
    edges, share = shown["edges"], shown["below"]
    total = shown["below"] + sum(shown["counts"]) + shown["above"]
    shares = [100 * share / total]
    for count in shown["counts"]:
        share += count
        shares.append(100 * share / total)
    series = [("rows", edges, shares)]
    return chart(lines(series, title="Rows that are no longer than so many steps", x="steps a row", y="% of rows"))


def _numbers(column: dict[str, Any]) -> Markup | None:
    told = column["numbers"]
    if told is None or told["histogram"] is None or column["distinct"] <= 1:
        return None
    shown = told["histogram"]
    low, high = (_place(column, shown["edges"][end]) for end in (0, -1))
    title = f"Values of {column['name']} from {low} to {high}"
    x = f"{'date' if told['dates'] else 'value'}{_outside(shown, sum(shown['counts']))}"
    return chart(histogram(shown["edges"], shown["counts"], title=title, x=x, y="values", dates=told["dates"]))


def _place(column: dict[str, Any], value: float) -> str:
    return date_text(value) if column["numbers"]["dates"] else number(value)


def _quantiles(column: dict[str, Any]) -> dict[str, str]:
    """The quantiles of a column's numbers, as they are shown."""
    return {name: _place(column, value) for name, value in column["numbers"]["quantiles"].items()}


def _spread(column: dict[str, Any]) -> str:
    """Mean and standard deviation of a column with one number a step."""
    told = column["numbers"]
    deviation = told["deviations"][0]
    spread = span_text(deviation) if told["dates"] else number(deviation)
    return f"mean {_place(column, told['means'][0])}, standard deviation {spread}"
