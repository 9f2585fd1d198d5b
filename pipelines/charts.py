"""Small charts as inline SVG, drawn by matplotlib: the same numbers give the same bytes.

Colours are CSS variables of the page (`--ink`, `--muted`, `--grid`, `--accent`, `--second`), so that one picture reads
in light and dark; texts stay texts. Knows no report and no data.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

# Stand-ins that no chart would use by chance; each becomes the variable.
_COLOURS = {"#010203": "ink", "#010204": "muted", "#010205": "grid", "#010206": "accent", "#010207": "second"}
INK, MUTED, GRID, ACCENT, SECOND = _COLOURS
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dynamic-rnn",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.unicode_minus": True,
}
LOWEST_SEEN = 200  # of the tallest bar: a bar of one part in so many is still a pixel
WIDTH_INCHES, HEIGHT_INCHES = 6.4, 2.2


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    title: str,
    x: str,
    y: str,
    marks: Sequence[tuple[str, float]] = (),
) -> str:
    """Bars between `edges`, the tallest at most to the top; `marks` are named vertical lines.

    Where most bars would be too low to see beside the tallest the scale is logarithmic, and the axis says so.
    """
    held = [count for count in counts if count]
    logarithmic = bool(held) and max(held) > LOWEST_SEEN * float(np.median(held))

    def draw(axes: Any) -> None:
        sides = np.asarray(edges, np.float64)
        axes.bar(sides[:-1], counts, np.diff(sides), align="edge", color=ACCENT, linewidth=0)
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.5)
            axes.minorticks_off()
        if edges[0] % 1 == 0.5 and edges[1] % 1 == 0.5:  # bars around whole numbers
            axes.xaxis.get_major_locator().set_params(integer=True)
        for name, place in marks:
            axes.axvline(place, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                name,
                (place, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 2),
                size=8,
                color=SECOND,
                textcoords="offset points",
                va="bottom",
            )
        axes.set_xlim(sides[0], sides[-1])
        axes.margins(y=0.02)

    scale = ", logarithmic" if logarithmic else ""
    return _svg(draw, title=title, x=x, y=y + scale, description=_told(edges, counts, x, y))


def lines(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, title: str, x: str, y: str) -> str:
    """One line for each (name, x values, y values), at most two; the first is filled below."""
    assert 1 <= len(series) <= 2, "there are two colours"

    def draw(axes: Any) -> None:
        for (name, across, up), colour in zip(series, (ACCENT, SECOND), strict=False):
            axes.plot(across, up, color=colour, linewidth=1.6, label=name)
        axes.margins(x=0.01, y=0.05)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)

    ends = "; ".join(f"{name}: {up[0]:.4g} to {up[-1]:.4g}" for name, _, up in series if len(up))
    return _svg(draw, title=title, x=x, y=y, description=f"{y} over {x}. {ends}.")


def _told(edges: Sequence[float], counts: Sequence[int], x: str, y: str) -> str:
    """The chart in a sentence, for those who hear it."""
    total = sum(counts)
    if not total:
        return f"{y} by {x}: nothing."
    most = int(np.argmax(counts))
    return (
        f"{y} by {x}, from {edges[0]:.4g} to {edges[-1]:.4g} in {len(counts)} bars; the tallest, from "
        f"{edges[most]:.4g} to {edges[most + 1]:.4g}, holds {counts[most]:,} of {total:,}."
    )


def _svg(draw: Any, *, title: str, x: str, y: str, description: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

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
        draw(axes)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
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
