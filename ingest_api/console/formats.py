"""How figures and times are written on the pages. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

#: Stands where nothing is known.
UNKNOWN = "\N{EN DASH}"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def milliseconds(value: float | None) -> str:
    """8.4 ms, 124 ms, 2.31 s."""
    if value is None:
        return UNKNOWN
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def seconds(value: float | None) -> str:
    return UNKNOWN if value is None else milliseconds(value * 1000)


def number(value: float | None) -> str:
    """Whole where it is whole or large, else as many digits as tell it apart."""
    if value is None:
        return UNKNOWN
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def byte_count(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"


def moment(value: datetime | None) -> str:
    """2026-01-31 12:00:00.123 UTC; what a person reads and what sorts are the same."""
    return UNKNOWN if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def clock(value: datetime | None) -> str:
    """12:00:00 of today's lists; the day stands in the title beside it."""
    return UNKNOWN if value is None else value.astimezone(UTC).strftime("%H:%M:%S")


def iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds")


def words(value: Any) -> str:
    """A code or status as words: safety_rejected -> safety rejected."""
    return UNKNOWN if value in (None, "") else str(value).replace("_", " ")


def capitalize_first(text: str) -> str:
    """A sentence out of a detail; the rest stays as it is written, and so does a final stop."""
    return text[:1].upper() + text[1:].rstrip(".")


def short(text: str) -> str:
    """An id of a customer as it fits into a line: a UUID by its beginning."""
    return f"{text[:8]}\N{HORIZONTAL ELLIPSIS}" if len(text) > 24 else text


def in_path(text: str) -> str:
    """One part of a path, whatever the text holds: quoted twice, as servers unquote once before they divide it."""
    once = quote(text, safe="")
    # Browsers take these two for directions.
    once = once.replace(".", "%2E") if once in (".", "..") else once
    return quote(once, safe="")


FILTERS = {
    "in_path": in_path,
    "short": short,
    "capitalize_first": capitalize_first,
    "ms": milliseconds,
    "s": seconds,
    "number": number,
    "bytes": byte_count,
    "percent": percent,
    "moment": moment,
    "clock": clock,
    "iso": iso,
    "words": words,
}
