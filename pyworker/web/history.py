"""Web: the last hour of each app, in memory and in one file of the state folder, off the daemon's path.

A ring of points in lines of JSON: added to as time goes on, rewritten by rename when it has twice as many lines as it
keeps. A damaged line costs its point. `History` itself is pure; `Ring` is the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from typing import Any

from pyworker.protocol.figures import Totals, memory_of, totals_of

STEP = 5.0  # seconds between two points
KEPT = 720  # points: an hour
FIELDS = ("cpu", "memory", "rate", "p50", "p99", "errors", "restarts", "ready")
Point = dict[str, Any]  # {"t": epoch seconds, "apps": {name: [a number or None for each of FIELDS]}}


class History:
    """Points of all apps; `feed` makes one of each document."""

    def __init__(self, points: list[Point] | None = None) -> None:
        self.points: deque[Point] = deque(points or (), maxlen=KEPT)
        self._totals: dict[str, Totals] = {}
        self._restarts: dict[str, int] = {}
        self._at = 0.0

    def feed(self, document: dict[str, Any], epoch: float, now: float) -> Point:
        """Take in a document of `ps --json`; return the new point. `now` is monotonic."""
        apps = {}
        totals: dict[str, Totals] = {}
        restarts: dict[str, int] = {}
        for app in document.get("apps") or ():
            name = app["name"]
            rate, p50, p99, errors = app.get("requests_per_s"), None, None, None
            found = totals_of(app)
            if found is not None:
                totals[name] = found
                before = self._totals.get(name)
                if before is not None and now > self._at:
                    rate, p50, p99, errors = found.since(before).over(now - self._at)
            restarts[name] = int((app.get("restarts") or {}).get("total") or 0)
            died = max(0, restarts[name] - self._restarts.get(name, restarts[name]))
            ready = (app.get("workers") or {}).get("ready")
            values = [app.get("cpu_percent"), memory_of(app), rate, p50, p99, errors, died, ready]
            apps[name] = [round(v, 6) if isinstance(v, float) else v for v in values]
        self._totals, self._restarts, self._at = totals, restarts, now
        point: Point = {"t": round(epoch, 1), "apps": apps}
        _put(self.points, point)
        return point

    def of(self, app: str) -> list[list[Any]]:
        """Return an app's points: [t, *FIELDS]."""
        return [[p["t"], *p["apps"][app]] for p in self.points if app in p["apps"]]


class Ring:
    """The file. A full disk or a missing right costs history, nothing else."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines = 0

    def load(self, since: float) -> list[Point]:
        """Return the points that are not older than `since`."""
        found: list[Point] = []
        try:
            with open(self.path, "rb") as file:
                for line in file:
                    self._lines += 1
                    point = _parse(line)
                    if point is not None and point["t"] >= since:
                        _put(found, point)
        except OSError:
            return []
        return found[-KEPT:]

    def add(self, point: Point, all_points: deque[Point]) -> None:
        with contextlib.suppress(OSError):
            if self._lines >= 2 * KEPT:
                self._rewrite(all_points)
                return
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb") as file:
                file.write(_line(point))
            self._lines += 1

    def _rewrite(self, points: deque[Point]) -> None:
        new = self.path + ".new"
        fd = os.open(new, os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.writelines(map(_line, points))
        os.replace(new, self.path)
        self._lines = len(points)


def _put(points: list[Point] | deque[Point], point: Point) -> None:
    """Add a point. What is later, the clock has been set back from: a line of it would run to and fro."""
    while points and points[-1]["t"] > point["t"]:
        points.pop()
    points.append(point)


def _line(point: Point) -> bytes:
    return json.dumps(point, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> Point | None:
    try:
        value = json.loads(line)
        good = isinstance(value["t"], (int, float)) and all(len(v) == len(FIELDS) for v in value["apps"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return value if good else None
