"""Durations and sizes: text with a unit -> float seconds, int bytes, and back. Pure; a bare number is no value."""

from __future__ import annotations

import math
import re

from pyworker.errors import Hinted

_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}  # powers of 1024, as docker counts
_NUMBER = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*\Z", re.ASCII)
_MAX_SECONDS = 10 * 365 * 86400.0
_MAX_BYTES = 2**62
_MEANT = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m", "minutes": "m",
    "hr": "h", "hour": "h", "hours": "h", "day": "d", "days": "d", "msec": "ms", "millis": "ms",
    "k": "KB", "kb": "KB", "kib": "KB", "m": "MB", "mb": "MB", "mib": "MB", "g": "GB", "gb": "GB", "gib": "GB",
    "t": "TB", "tb": "TB", "tib": "TB", "b": "B", "bytes": "B",
}  # fmt: skip


class UnitError(Hinted):
    """Not a duration or size."""


def parse_duration(text: str) -> float:
    """Return seconds: "10s" "500ms" "2m" "1h" "1d"."""
    return _parse(text, _DURATIONS, "s", 'a time span such as "30s", "500ms", "2m", "1h"', _MAX_SECONDS)


def parse_size(text: str) -> int:
    """Return bytes: "512MB" "1GB" "64KB" "0B", powers of 1024."""
    return int(_parse(text, _SIZES, "MB", 'a size such as "512MB", "64KB", "1GB"', _MAX_BYTES))


def _parse(text: str, units: dict[str, float] | dict[str, int], usual: str, what: str, most: float) -> float:
    match = _NUMBER.match(text)
    if match is None:
        raise UnitError(f"must be {what}")
    number, unit = match[1], match[2]
    if unit not in units:
        meant = _MEANT.get(unit.lower(), unit.lower() if unit else usual)
        hint = f'did you mean "{number}{meant}"?' if meant in units else "units: " + " ".join(units)
        raise UnitError(f"must be {what}", hint)
    value = float(number) * units[unit]
    if value > most:
        raise UnitError(f"must be {what}; this is too large")
    return value


def bare_number_hint(value: float, unit: str) -> str:
    """Return what a number without a unit was most likely meant to be; "" for inf, nan and the like."""
    if not 0 <= value < 2**63:
        return ""
    number = _plain(value)
    if unit == "duration":
        return f'did you mean "{number}s"?' if value < 1000 else f'did you mean "{number}ms" or "{number}s"?'
    return f'did you mean "{number}MB"?' if value < 1024**2 else f'did you mean "{size_text(int(value))}"?'


def duration_text(seconds: float) -> str:
    """Return a duration as it is written in a file; parse_duration reads it back."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _DURATIONS[unit]
        if count >= 1 and math.isclose(count, round(count), rel_tol=1e-12):
            return f"{round(count)}{unit}"
    return f"{_plain(seconds * 1000)}ms" if 0 < seconds < 1 else f"{_plain(seconds)}s"


def size_text(size: int) -> str:
    """Return a size as it is written in a file."""
    for unit in ("TB", "GB", "MB", "KB"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}"
    return f"{size}B"


def _plain(number: float) -> str:
    """Return a number without an exponent and without zeros at its end."""
    return f"{number:.6f}".rstrip("0").rstrip(".")
