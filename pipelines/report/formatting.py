"""Numbers, sizes, dates and names as people read them. Knows nothing else."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

DAY_SECONDS = 86_400
SPANS = ((DAY_SECONDS, "days"), (3600, "h"), (60, "min"), (1, "s"))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def date_text(seconds: float) -> str:
    """A time in UTC: 2024-05-31, with the time of day where it is not midnight."""
    try:
        time = EPOCH + timedelta(seconds=round(seconds, 3))
    except OverflowError:  # before the year 1 or after 9999
        return f"{seconds:.6g} s since 1970"
    text = time.replace(tzinfo=None).isoformat(" ", "milliseconds" if time.microsecond else "seconds")
    return text.removesuffix(" 00:00:00")


def span_text(seconds: float) -> str:
    """A span of time with three digits: 2.5 h."""
    for unit, name in SPANS:
        if abs(seconds) >= 2 * unit or name == "s":
            return f"{seconds / unit:.3g} {name}"
    raise AssertionError("the last unit takes all")


NOTHING = "\N{EN DASH}"


ABBREVIATIONS = {"rmse": "RMSE", "mae": "MAE", "r2": "R\N{SUPERSCRIPT TWO}"}


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
