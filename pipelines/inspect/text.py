"""A report of `inspect` for the terminal. Knows no Ray, no torch; rich is imported when something is shown."""

from __future__ import annotations

import sys
from typing import Any

from pipelines.report.formatting import byte_count, date_text, number, several, share, shown_value

PIPE_COLUMNS = 140  # where there is no terminal to ask for its width
COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
MOST_TOP = 4
MOST_VALUE = 18


def show(report: dict[str, Any]) -> None:
    """Prints the report to standard output."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
    console.print(_head(report), markup=False, soft_wrap=True)
    console.print()
    if report["lengths"] is not None:
        console.print(_lengths(report["lengths"]))
    console.print(_columns(report))
    if report["classes"] is not None:
        console.print(_classes(report), markup=False)
    if report["estimates"] is not None:
        console.print(_estimates(report), markup=False)
    console.print()
    for finding in report["findings"]:
        console.print(_finding(finding), soft_wrap=True)
    if not report["findings"]:
        console.print("Nothing suspicious was found.")


def _head(report: dict[str, Any]) -> str:
    lines = [
        report["data"],
        f"{several(report['rows'], 'row')}, {several(len(report['columns']), 'column')} in "
        f"{several(report['files'], 'file')} and {several(report['row_groups'], 'row group')}",
    ]
    if report["damaged"]["row_groups"]:
        lost = several(report["damaged"]["rows"], "row")
        lines.append(f"{several(report['damaged']['row_groups'], 'row group')} with {lost} cannot be decoded")
    for name in ("label", "key"):
        told = report[name]
        lines.append(f"{name}: {told['column']} ({told['chosen']})" if told["column"] else f"{name}: {told['chosen']}")
    return "\n".join(lines)


def _lengths(told: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"steps a row ({told['steps']:,} in all, {told['empty']:,} rows have none)", title_justify="left"
    )
    for name in (*told["quantiles"], "mean"):
        table.add_column(name, justify="right")
    table.add_row(*(number(value) for value in (*told["quantiles"].values(), round(told["mean"], 2))))
    return table


def _columns(report: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="columns", title_justify="left")
    for name, justify in (
        *(("column", "left"), ("use", "left"), ("type", "left"), ("missing", "right"), ("distinct", "right")),
        *(("least", "right"), ("median", "right"), ("largest", "right"), ("most frequent", "left")),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for column in report["columns"]:
        values = (column["numbers"] or {}).get("quantiles") or {}
        cells = (
            column["name"],
            column["role"] + (f", {column['reads']}" if column["reads"] else ""),
            ", ".join(column["types"]),
            f"{column['missing']:,}" if column["missing"] else "",
            _distinct(column),
            *(_place(column, values[name]) if values else "" for name in ("min", "median", "max")),
            _most_frequent(column),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _place(column: dict[str, Any], value: float) -> str:
    return date_text(value) if column["numbers"]["dates"] else number(value)


def _distinct(column: dict[str, Any]) -> str:
    if column["distinct"] is None:
        return ""
    return f"{'' if column['distinct_exact'] else '≈ '}{column['distinct']:,}"


def _most_frequent(column: dict[str, Any]) -> str:
    if column["top"] is None:
        return ""
    listed = [(_short(item["value"]), item["count"]) for item in column["top"]["values"][:MOST_TOP]]
    return ", ".join(f"{value} {count:,}" for value, count in listed)


def _short(value: Any) -> str:
    text = printable(shown_value(value))
    return text if len(text) <= MOST_VALUE else text[: MOST_VALUE - 1] + "…"


def printable(text: str) -> str:
    """Text whose control signs cannot act on a terminal; letters of any script stay."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _classes(report: dict[str, Any]) -> str:
    told = report["classes"]
    shown = [
        f"{'(not shown)' if item['value'] is None else _short(item['value'])}: {share(item['count'], told['labels'])}"
        for item in told["top"][:10]
    ]
    more = ", …" if told["count"] > len(shown) else ""
    return f"{told['count']:,} classes in {told['labels']:,} labels: {', '.join(shown)}{more}"


def _estimates(report: dict[str, Any]) -> str:
    told = report["estimates"]
    bound = (
        f"{told['batch_sequences']} rows a batch"
        if told["batch_sequences"]
        else f"at most {told['batch_padded_steps']:,} padded steps a batch"
    )
    return (
        f"{bound}: {told['steps_per_epoch']:,} batches an epoch, padding {told['padding']:.3f} "
        f"({told['padding_unsorted']:.3f} if rows were not sorted by length), {byte_count(told['encoded_bytes'])} for "
        f"all rows encoded, {byte_count(told['longest_batch_bytes'])} for the inputs of the largest batch"
    )


def _finding(finding: dict[str, Any]) -> Any:
    from rich.text import Text

    text = Text(finding["severity"], style=COLOURS[finding["severity"]])
    column = f"{finding['column']}: " if finding["column"] else ""
    text.append(f"  {printable(column + finding['text'])}", style="none")
    if finding["places"]:
        place = finding["places"][0]
        text.append(f" ({printable(place['file'])}, row {place['row']})", style="dim")
    return text
