"""What was measured, for people: the table of the terminal, docs/performance.md, the charts of README and docs."""

from __future__ import annotations

import os
import re
import statistics

from benchmarks.harness import svg
from benchmarks.harness.book import OURS, Book, Measure

BEGIN, END = "<!-- figures: begin (make bench) -->", "<!-- figures: end -->"


def number(value: float) -> str:
    """Three significant digits, thousands as they are."""
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value else "0"


def rows(measure: Measure) -> list[tuple[str, str, str, str, str]]:
    """Return (contender, median, min–max, ratio, note), the best first."""
    found = []
    ours = measure.median(OURS)
    ordered = sorted(measure.samples, key=lambda name: measure.median(name) or 0, reverse=not measure.lower_is_better)
    for name in ordered:
        values = measure.samples[name]
        median = statistics.median(values)
        ratio = f"{median / ours:.2f}" if ours else ""
        spread = f"{number(min(values))}–{number(max(values))}" if len(values) > 1 else ""
        found.append((name, number(median), spread, ratio, measure.notes.get(name, "")))
    return found


def table(book: Book) -> str:
    """Return all figures as plain text."""
    lines = []
    for measure in book.measures.values():
        lines.append(f"{measure.title} ({measure.unit}, {'less' if measure.lower_is_better else 'more'} is better)")
        for name, median, spread, ratio, note in rows(measure):
            lines.append(f"  {name:<28}{median:>10}  {spread:<20}{ratio and 'x ' + ratio:>8}  {note}".rstrip())
        lines += [f"  {'reached' if goal.reached else 'MISSED '}  {goal.text}" for goal in measure.goals]
        if "goals" in measure.notes:
            lines.append(f"  ({measure.notes['goals']})")
        lines.append("")
    for what, why in book.skipped.items():
        lines.append(f"skipped: {what}: {why}")
    goals = [goal for measure in book.measures.values() for goal in measure.goals]
    lines.append(f"{sum(goal.reached for goal in goals)} of {len(goals)} goals reached")
    return "\n".join(lines)


def markdown(book: Book) -> str:
    """Return the figures for docs/performance.md."""
    about = book.about
    versions = ", ".join(f"{name} {version}" for name, version in sorted(about.get("versions", {}).items()))
    lines = [
        f"Measured {about.get('date', '?')} on {about.get('cpus', '?')} cores ({about.get('cpu', '?')}), Linux {about.get('kernel', '?')}, "
        f"Python {about.get('python', '?')}; {versions}. Load and servers share the cores.",
        "",
    ]
    for measure in book.measures.values():
        better = "less" if measure.lower_is_better else "more"
        lines += [f"### {measure.title}", "", f"`{measure.command}` · {measure.unit}, {better} is better", ""]
        with_note = any(name in measure.notes for name in measure.samples)
        lines.append(f"| | median | min–max | of pyworker's |{' |' if with_note else ''}")
        lines.append(f"|---|---:|---:|---:|{'---|' if with_note else ''}")
        for name, median, spread, ratio, note in rows(measure):
            shown = f"**{name}**" if name.startswith(OURS) else name
            lines.append(f"| {shown} | {median} | {spread} | {ratio} |{f' {note} |' if with_note else ''}")
        lines.append("")
        for goal in measure.goals:
            lines.append(f"- {'reached' if goal.reached else '**missed**'}: {goal.text}")
        if measure.goals:
            lines.append("")
    if book.plots:
        lines += ["### Cost as work grows", "", '`make bench PARTS="growth"`', ""]
        lines += [f"![{plot.title}](img/bench-{plot.plot}.svg)\n" for plot in book.plots.values()]
    if book.skipped:
        lines += ["### Left out in this run", ""]
        lines += [f"- {what}: {why}" for what, why in book.skipped.items()] + [""]
    return "\n".join(lines)


def render(book: Book, root: str) -> None:
    """Write the generated part of docs/performance.md and all charts."""
    images = os.path.join(root, "docs", "img")
    for plot in book.plots.values():
        _write(os.path.join(images, f"bench-{plot.plot}.svg"), svg.lines(plot))
    summary = chart_measures(book)
    if summary:
        _write(os.path.join(images, "bench.svg"), svg.bars(summary))
    _between_marks(os.path.join(root, "docs", "performance.md"), markdown(book))
    if summary:
        picture = "![pyworker beside its peers, medians of one run](docs/img/bench.svg)"
        _between_marks(os.path.join(root, "README.md"), picture)


def _between_marks(path: str, made: str) -> None:
    """Replace what stands between the two marks of a document; one without them is left alone."""
    with open(path) as file:
        text = file.read()
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    _write(path, pattern.sub(lambda _: f"{BEGIN}\n{made}\n{END}", text))


_CHARTED = (
    "ASGI keep-alive, 2 workers, 32 connections",
    "A new connection for each request, 2 workers, 32 clients",
    "kill -9 of a worker until its replacement answers, heavy app",
    "Failed requests in 50 kills at 300 requests/s",
)


def chart_measures(book: Book) -> list[Measure]:
    return [book.measures[title] for title in _CHARTED if title in book.measures]


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
