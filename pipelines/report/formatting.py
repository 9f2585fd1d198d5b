"""Times for people: seconds since 1970 as dates, spans in the unit that reads best. Knows nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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
