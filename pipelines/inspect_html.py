"""A report of `inspect` as one HTML page with charts. Knows no Ray, no torch."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from pipelines.charts import histogram, lines
from pipelines.html_report import chart, number, render

MOST_CHARTS = 200  # columns beyond keep their tables


def page(report: dict[str, Any]) -> str:
    """The page of a report as `pipelines.inspect_report.report` gives it."""
    return render(
        "inspect_page.html",
        command="inspect",
        title=f"Data report: {report['data'].rsplit('/', 1)[-1]}",
        report=report,
        lengths_chart=_lengths(report["lengths"]),
        cumulative_chart=_cumulative(report["lengths"]),
        charts=[_numbers(column) if place < MOST_CHARTS else None for place, column in enumerate(report["columns"])],
    )


def _lengths(told: dict[str, Any] | None) -> Markup | None:
    if told is None:
        return None
    shown = told["histogram"]
    marks = [("median", told["quantiles"]["median"]), ("99 %", told["quantiles"]["99%"])]
    if marks[0][1] == marks[1][1]:
        marks = marks[:1]
    return chart(
        histogram(shown["edges"], shown["counts"], title="Rows by length", x="steps a row", y="rows", marks=marks)
    )


def _cumulative(told: dict[str, Any] | None) -> Markup | None:
    """The share of rows that a maximum length would leave whole: what one reads to choose it."""
    if told is None:
        return None
    edges, counts = told["histogram"]["edges"], told["histogram"]["counts"]
    total, share, shares = sum(counts), 0, [0.0]
    for count in counts:
        share += count
        shares.append(100 * share / total)
    series = [("rows", edges, shares)]
    return chart(lines(series, title="Rows that are no longer than so many steps", x="steps a row", y="% of rows"))


def _numbers(column: dict[str, Any]) -> Markup | None:
    told = column["numbers"]
    if told is None or told["histogram"] is None or column["distinct"] <= 1:
        return None
    shown = told["histogram"]
    outside = shown["below"] + shown["above"]
    x = f"value ({outside:,} of {told['count']:,} lie outside)" if outside else "value"
    title = f"Values of a column from {number(shown['edges'][0])} to {number(shown['edges'][-1])}"
    return chart(histogram(shown["edges"], shown["counts"], title=title, x=x, y="values"))
