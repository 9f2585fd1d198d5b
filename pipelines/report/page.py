"""Self-contained HTML pages: one template, one style, charts and styles inline, nothing loaded from anywhere.

Everything a template shows is escaped, but for charts, which `pipelines.report.charts` has made. Pages hold no script,
and a policy that forbids any: what stands in the data cannot run. Knows no Ray, no torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipelines.report.formatting import (
    byte_count,
    date_text,
    metric_name,
    number,
    several,
    share,
    short,
    shown_value,
    span_text,
    whole,
)

TEMPLATES = Path(__file__).with_name("templates")


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


def coded(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
