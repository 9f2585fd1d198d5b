"""Self-contained HTML pages: one template, one style, charts and styles inline, nothing loaded from anywhere.

Everything a template shows is escaped, but for charts, which `pipelines.report.charts` has made. Pages hold no script,
and a policy that forbids any: what stands in the data cannot run. Knows no Ray, no torch.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipelines.report.formatting import date_text, span_text

TEMPLATES = Path(__file__).with_name("templates")
NOTHING = "\N{EN DASH}"
ABBREVIATIONS = {"rmse": "RMSE", "mae": "MAE", "r2": "R\N{SUPERSCRIPT TWO}"}


def render(template: str, **values: Any) -> str:
    """The page of a template in `templates`. Markup in the values (`chart`) goes into it unescaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "short": short,
        "whole": whole,
        "several": several,
        "share": share,
        "bytes": byte_count,
        "value": shown_value,
        "date": date_text,
        "span": span_text,
        "coded": coded,
        "metric": metric_name,
    }
    return environment.get_template(template).render(**values) + "\n"


def chart(svg: str) -> Markup:
    """An SVG of `pipelines.report.charts`, which goes into the page as it is."""
    return Markup(svg)


def number(value: Any) -> str:
    """A number for people: six digits, thousands apart."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if 1e6 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.6g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.4g}"


def short(value: float) -> str:
    """A number for people: four digits, for figures that stand alone."""
    return number(value) if float(value).is_integer() else number(float(f"{value:.4g}"))


def metric_name(name: str) -> str:
    """A metric as people write it: validation_rmse is the validation RMSE."""
    return " ".join(ABBREVIATIONS.get(word, word) for word in name.split("_"))


def coded(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def shown_value(value: Any) -> str:
    """A value of the data: strings as they are, quoted where one would not see where they begin and end."""
    if not isinstance(value, str):
        return number(value)
    return value if value and value == value.strip() else repr(value)


def whole(value: int) -> str:
    """A whole number, thousands apart."""
    return f"{value:,}"


def several(count: int, what: str) -> str:
    """How many there are of something."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def share(part: float, total: float) -> str:
    """A share in percent; what is not nothing never shows as 0 %."""
    if not total:
        return NOTHING
    percent = 100 * part / total
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.2f} %" if percent < 10 else f"{percent:.1f} %"


def byte_count(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit takes all")
