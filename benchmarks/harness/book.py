"""What was measured: samples by measure and contender, the goals of each measure, JSON in and out. Runs nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OURS = "pyworker"
Median = Callable[[str], float]


@dataclass
class Goal:
    """One sentence about a measure that is true or not."""

    text: str
    reached: bool


@dataclass
class Measure:
    """One row of figures: the same thing, done by several contenders in turns."""

    part: str
    title: str
    unit: str
    lower_is_better: bool
    command: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)

    def add(self, contender: str, value: float, note: str = "") -> None:
        self.samples.setdefault(contender, []).append(value)
        if note:
            self.notes[contender] = note

    def median(self, contender: str) -> float | None:
        values = self.samples.get(contender)
        return statistics.median(values) if values else None

    def goal(self, text: str, check: Callable[[Median], bool]) -> None:
        """Judge a goal by the medians; one that needs a contender that did not run is left out."""

        def median(contender: str) -> float:
            found = self.median(contender)
            if found is None:
                raise KeyError(contender)
            return found

        try:
            self.goals.append(Goal(text, bool(check(median))))
        except KeyError as missing:
            self.notes.setdefault("goals", f"not judged without {missing.args[0]}: {text}")


@dataclass
class Series:
    """Points of one line of a growth plot."""

    plot: str
    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    log_x: bool = False

    def add(self, line: str, x: float, y: float) -> None:
        self.lines.setdefault(line, []).append((x, y))


class Book:
    """All of one run."""

    def __init__(self) -> None:
        self.measures: dict[str, Measure] = {}
        self.plots: dict[str, Series] = {}
        self.skipped: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.about: dict[str, Any] = {}

    def measure(self, part: str, title: str, unit: str, *, lower_is_better: bool) -> Measure:
        if title not in self.measures:
            self.measures[title] = Measure(part, title, unit, lower_is_better, f'make bench PARTS="{part}"')
        return self.measures[title]

    def plot(self, plot: str, title: str, x_label: str, y_label: str, *, log_x: bool = False) -> Series:
        if plot not in self.plots:
            self.plots[plot] = Series(plot, title, x_label, y_label, log_x=log_x)
        return self.plots[plot]

    def forget(self, part: str) -> None:
        """Drop the figures of a part that is measured again."""
        self.measures = {title: m for title, m in self.measures.items() if m.part != part}
        self.skipped = {what: why for what, why in self.skipped.items() if not what.startswith(part + ":")}
        if part == "growth":
            self.plots = {}

    def describe_machine(self, versions: dict[str, str]) -> None:
        with open("/proc/cpuinfo") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        self.about = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cpus": len(os.sched_getaffinity(0)),
            "cpu": models[0] if models else platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "versions": versions,
        }

    # ---- files -----------------------------------------------------------------------------------
    def save(self, path: str) -> None:
        data = {
            "about": self.about,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "measures": [dataclasses.asdict(m) for m in self.measures.values()],
            "plots": [dataclasses.asdict(p) for p in self.plots.values()],
        }
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".new", "w") as file:
            json.dump(data, file, indent=1)
            file.write("\n")
        os.replace(path + ".new", path)

    @classmethod
    def load(cls, path: str) -> Book:
        book = cls()
        try:
            with open(path) as file:
                data = json.load(file)
        except (FileNotFoundError, ValueError):
            return book
        book.about, book.seconds, book.skipped = data["about"], data["seconds"], data["skipped"]
        for each in data["measures"]:
            each["goals"] = [Goal(**goal) for goal in each["goals"]]
            book.measures[each["title"]] = Measure(**each)
        for each in data["plots"]:
            each["lines"] = {name: [(x, y) for x, y in line] for name, line in each["lines"].items()}
            book.plots[each["plot"]] = Series(**each)
        return book
