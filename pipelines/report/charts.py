"""Small charts as inline SVG, drawn by matplotlib: the same numbers give the same bytes.

Colours are CSS variables of the page (`--ink`, `--muted`, `--grid`, `--accent`, `--second`), so that one picture reads
in light and dark; texts stay texts. Drawn as narrow as the narrowest screen, so that their letters stay legible there.
Knows no report and no data.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from pipelines.report.formatting import DAY_SECONDS, date_text

# Stand-ins that no chart would use by chance; each becomes the variable.
_COLOURS = {"#010203": "ink", "#010204": "muted", "#010205": "grid", "#010206": "accent", "#010207": "second"}
INK, MUTED, GRID, ACCENT, SECOND = _COLOURS
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dynamic-rnn",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.unicode_minus": True,
}
LOWEST_SEEN = 200  # of the tallest bar: a bar of one part in so many is still a pixel
WIDTH_INCHES, HEIGHT_INCHES = 4.6, 2.2
CLOSE = 0.3  # of the width: names of lines that stand nearer are written one above the other
UNITS_FROM = 1e4  # numbers of this size and more are written with k, M or G
NARROW = 1e-3  # a range of such a part of its numbers: the six digits of a number with a unit do not tell them apart


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    title: str,
    x: str,
    y: str,
    marks: Sequence[tuple[str, float]] = (),
    dates: bool = False,
) -> str:
    """Bars between `edges`, the tallest at most to the top; `marks` are named vertical lines, from left to right.

    Where most bars would be too low to see beside the tallest the scale is logarithmic, and the axis says so. `dates`:
    the edges are seconds since 1970.
    """
    held = [count for count in counts if count]
    logarithmic = bool(held) and max(held) > LOWEST_SEEN * float(np.median(held))

    def draw(axes: Any) -> None:
        sides = np.asarray(edges, np.float64) / (DAY_SECONDS if dates else 1)
        axes.bar(sides[:-1], counts, np.diff(sides), align="edge", color=ACCENT, linewidth=0)
        axes.set_xlim(sides[0], sides[-1])
        axes.margins(y=0.02)
        if dates:
            _date_axis(axes)
        else:
            _number_axis(axes.xaxis, whole=edges[0] % 1 == 0.5 and edges[1] % 1 == 0.5)  # bars around whole numbers
        _number_axis(axes.yaxis)
        if logarithmic:
            _logarithmic_axis(axes)
        _draw_marks(axes, marks)

    scale = ", logarithmic" if logarithmic else ""
    return _svg(draw, title=title, x=x, y=y + scale, description=_description(edges, counts, x, y, dates=dates))


def _draw_marks(axes: Any, marks: Sequence[tuple[str, float]]) -> None:
    """Names stand above the chart, inside its width."""
    low, high = axes.get_xlim()
    shares = [(place - low) / (high - low) for _, place in marks]
    for number, (name, place) in enumerate(marks):
        axes.axvline(place, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
        left = shares[number] > 1 - CLOSE
        raised = sum(0 <= shares[number] - share < CLOSE for share in shares[:number])
        axes.annotate(
            name,
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if left else 3, 2 + 11 * raised),
            size=9,
            color=SECOND,
            textcoords="offset points",
            va="bottom",
            ha="right" if left else "left",
        )


def lines(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, title: str, x: str, y: str) -> str:
    """One line for each (name, x values, y values), at most two."""
    assert 1 <= len(series) <= 2, "there are two colours"

    def draw(axes: Any) -> None:
        for (name, across, up), colour in zip(series, (ACCENT, SECOND), strict=False):
            dot = "." if len(across) == 1 else None  # a line of one place would not be seen
            axes.plot(across, up, color=colour, linewidth=1.6, label=name, marker=dot)
        axes.margins(x=0.01, y=0.05)
        _number_axis(axes.xaxis, whole=all(place % 1 == 0 for _, across, _ in series for place in across))
        _number_axis(axes.yaxis)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)

    ends = "; ".join(f"{name}: {up[0]:.4g} to {up[-1]:.4g}" for name, _, up in series if len(up))
    return _svg(draw, title=title, x=x, y=y, description=f"{y} over {x}. {ends}.")


def _description(edges: Sequence[float], counts: Sequence[int], x: str, y: str, *, dates: bool) -> str:
    """The chart in a sentence, for those who hear it."""
    total = sum(counts)
    if not total:
        return f"{y} by {x}: nothing."
    most = int(np.argmax(counts))
    first, last, low, high = (
        date_text(place) if dates else f"{place:.4g}" for place in (edges[0], edges[-1], edges[most], edges[most + 1])
    )
    return (
        f"{y} by {x}, from {first} to {last} in {len(counts)} bars; the tallest, from {low} to {high}, holds "
        f"{counts[most]:,} of {total:,}."
    )


# Axes -----------------------------------------------------------------------------------------------------------


def _number_axis(axis: Any, *, whole: bool = False) -> None:
    """Few numbers on an axis, large ones in units; whole ones where the places are. Its limits must be known."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter

    low, high = axis.get_view_interval()
    largest = max(abs(low), abs(high))
    in_units = largest >= UNITS_FROM and high - low > NARROW * largest
    axis.set_major_locator(MaxNLocator(6, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(EngFormatter(sep="") if in_units else ScalarFormatter())


def _logarithmic_axis(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _date_axis(axes: Any) -> None:
    """Days since 1970 as dates, UTC."""
    from matplotlib.dates import UTC, AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(maxticks=6, minticks=2, tz=UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))


def _svg(draw: Any, *, title: str, x: str, y: str, description: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", pad=6)  # clear of the lowest number of the other axis
        draw(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(stream.getvalue(), title, description)


def _inline(text: str, title: str, description: str) -> str:
    """A whole SVG file as an element of a page: named, coloured by the page, its ids its own."""
    body = text[text.index("<svg") :].strip()
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    own = "c" + hashlib.sha256((title + description + body).encode()).hexdigest()[:8]
    body = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{own}-\1"', body)
    for stand_in, variable in _COLOURS.items():
        body = body.replace(stand_in, f"var(--{variable})")
    body = re.sub(r"font: (\d+)px [^;\"]+", r"font-size: \1px", body)
    body = re.sub(r"font-family: [^;\"]+;?", "", body)
    opened = re.compile(r"<svg[^>]*viewBox=\"([^\"]+)\"[^>]*>").match(body)
    assert opened is not None, "matplotlib writes a view box"
    head = (
        f'<svg class="chart" viewBox="{opened[1]}" role="img" aria-labelledby="{own}-title {own}-desc">'
        f'<title id="{own}-title">{escape(title)}</title><desc id="{own}-desc">{escape(description)}</desc>'
    )
    return head + body[opened.end() :]
