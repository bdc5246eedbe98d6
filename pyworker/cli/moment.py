"""CLI: points in time as people write them, for --since and --until."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from pyworker.cli.options import SECONDS, SPAN


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A point in time: "15m" (ago), "13:00" (the last one), "2026-11-23", "2026-11-23T13:00". Gives a UTC stamp."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        now = datetime.now().astimezone()
        span = SPAN.match(value)
        try:
            if span and span[2]:
                when = now - timedelta(seconds=float(span[1]) * SECONDS[span[2]])
            elif re.match(r"\d{1,2}:\d\d(:\d\d)?\Z", value):
                clock = datetime.strptime(value, "%H:%M:%S" if value.count(":") == 2 else "%H:%M").time()  # noqa: DTZ007
                when = datetime.combine(now.date(), clock).astimezone()
                if when > now:
                    when = datetime.combine(now.date() - timedelta(days=1), clock).astimezone()
            else:
                when = datetime.fromisoformat(value).astimezone()
            utc = when.astimezone(UTC).replace(tzinfo=None)
        except (ValueError, OverflowError):
            self.fail(f'{value!r} is not a time: write "15m", "13:00" or "2026-11-23T13:00"', param, ctx)
        return _stamp(utc)


def before(stamp: str, seconds: float) -> str:
    """Return the UTC stamp of so many seconds before another; "" for one that is none."""
    try:
        return _stamp(datetime.fromisoformat(stamp).replace(tzinfo=None) - timedelta(seconds=seconds))
    except (ValueError, OverflowError):
        return ""


def _stamp(utc: datetime) -> str:
    return utc.isoformat(timespec="milliseconds") + "Z"  # a year of four digits, which strftime does not give
