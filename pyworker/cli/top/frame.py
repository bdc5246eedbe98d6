"""CLI top: a picture of the model: exactly so many lines, none wider than the window. Pure.

What does not fit leaves in an order: the curves first (below 80 columns), then columns by their weight, then the
figures of the selected app, then events; the table of workers scrolls around the selection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyworker.cli import render
from pyworker.cli.client import MENDED
from pyworker.cli.commands.ps import trouble
from pyworker.cli.eventlog import clock, words
from pyworker.cli.health import why_unwell
from pyworker.cli.render import ANSI, Cell, Column, Look, cut, latency, line, pad, paint, plain, width
from pyworker.cli.top.model import Model, Point
from pyworker.protocol.figures import memory_of

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.:-=+*#"
_APPS = (
    Column(""),
    Column("APP", shrink=10),
    Column("STATE"),
    Column("WORKERS"),
    Column("CPU", right=True),
    Column("MEM", right=True, keep=9),
    Column("REQ/S", right=True, keep=8),
    Column("P99", right=True, keep=7),
    Column("5XX", right=True, keep=6),
    Column("ACTIVE", right=True, keep=3),
    Column("OPEN", right=True, keep=2),
    Column("QUEUE", right=True, keep=4),
    Column("RST", right=True, keep=5),
    Column("UP", keep=1),
)
_KEYS = (
    ("↑↓", "select"), ("tab", "app"), ("⏎", "logs"), ("d", "describe"), ("r", "reload"), ("R", "restart"),
    ("+ -", "scale"), ("s", "sort"), ("/", "filter"), ("?", "help"), ("q", "quit"),
)  # fmt: skip
_HELP = (
    ("↑ ↓  j k", "select a worker; past the last one comes the next app"),
    ("tab  ← →", "the next app, the one before"),
    ("⏎", "follow the log of the selected worker (q comes back)"),
    ("d", "describe the app"),
    ("r", "reload it: new code, no request lost; asks first"),
    ("R", "restart it: all stop, all start; asks first"),
    ("+  -", "one worker more, one less; + and - again for more; asks first"),
    ("s", "sort the workers: by number, CPU, memory, requests"),
    ("c  m", "sort by CPU, by memory"),
    ("/", "show only apps with this in their name; Esc shows all"),
    ("q  Ctrl-C", "leave; the apps go on"),
    ("MEM", "pages that are shared are divided (PSS); ps counts them for each"),
)


class Surroundings(NamedTuple):
    """What a frame says of the machine, and the time."""

    host: str
    load: float
    cpus: int
    clock: str
    now: float  # monotonic seconds


def frame(model: Model, around: Surroundings, how: Look, rows: int) -> list[str]:
    """Return `rows` lines, each at most `how.width` columns wide."""
    inner = how._replace(width=max(20, how.width))
    lines = _help(inner) if model.help else _body(model, inner, rows - 2)
    lines = [_title(model, around, inner), *lines][: max(0, rows - 1)]
    lines += [""] * (rows - 1 - len(lines))
    lines.append(_bottom(model, around, inner))
    return [_fit(text, how) for text in lines[-rows:]]


def spark(values: Sequence[float | None], columns: int, how: Look, *, least: float) -> str:
    """Return the last values as bars, the newest at the right. The full height is the largest, at least `least`."""
    bars = _ASCII_BARS if how.ascii else _BARS
    shown = list(values)[-columns:] if columns > 0 else []
    top = max([least, *(v for v in shown if v is not None)])
    text = "".join(" " if v is None else bars[min(7, max(0, math.ceil(8 * v / top) - 1))] for v in shown)
    return text.rjust(columns)


# ---- the parts -------------------------------------------------------------------------------------
def _title(model: Model, around: Surroundings, how: Look) -> str:
    apps = model.document.get("apps") or []
    workers = sum(len(app.get("pool") or ()) for app in apps)
    parts = [
        "pyworker top",
        line(around.host),
        f"{len(apps)} app{'s' * (len(apps) != 1)}, {workers} worker{'s' * (workers != 1)}",
        f"load {around.load:.2f} / {around.cpus} cpu{'s' * (around.cpus != 1)}",
        around.clock,
    ]
    while len(parts) > 2 and width(" — ".join(parts)) + 6 > how.width:
        del parts[1 if len(parts) == 5 else -2]
    return _rule(" — ".join(parts), how, "bold")


def _rule(title: str, how: Look, style: str = "") -> str:
    dash = "-" if how.ascii else "─"
    title = _cut(title, how.width - 5, how)
    rest = max(0, how.width - width(title) - 4)
    return f"{paint(dash, 'dim', how)} {paint(title, style, how)} {paint(dash * (rest + 1), 'dim', how)}"


def _body(model: Model, how: Look, rows: int) -> list[str]:
    apps = model.apps()
    if not apps:
        text = f"no app has {model.filter!r} in its name" if model.filter else "no apps; pyworker start app.toml"
        return ["", f"  {text}"]
    app = model.current() or apps[0]
    details = _details(model, app, how) if rows >= 14 else []
    table = _workers(model, app, how)
    least_events = 0 if rows < 12 else min(4, 1 + len(model.events)) if model.events else 0
    room = rows - len(details) - least_events
    # the apps get what they need, up to a third; the workers get the rest
    app_lines = _apps(model, apps, how)
    lines = _scrolled(
        app_lines, 1 + apps.index(app), max(3, min(len(app_lines), max(rows // 3, room - len(table) - 1)))
    )
    lines += details
    left = rows - len(lines) - least_events
    selected = next((i for i, text in enumerate(table) if i and ANSI.sub("", text)[:1] in {"▸", ">"}), 1)
    if table:
        lines.append("")
        lines += _scrolled(table, selected, min(len(table), max(2, left - 1)))
    if least_events:
        lines += _events(model, how, rows - len(lines))
    return lines


def _scrolled(table: list[str], selected: int, rows: int) -> list[str]:
    """Return the table's head and so many rows that the selected one is among them."""
    if len(table) <= rows:
        return table
    body = rows - 1
    first = max(1, min(selected - body // 2, len(table) - body))
    return [table[0], *table[first : first + body]]


def _mark(yes: bool, how: Look) -> Cell:
    return Cell((">" if how.ascii else "▸") if yes else " ", "cyan")


def _apps(model: Model, apps: list[dict[str, Any]], how: Look) -> list[str]:
    rows = []
    for app in apps:
        point = _last(model, app)
        workers, up = app.get("workers") or {}, bool((app.get("workers") or {}).get("total"))
        ready, want = workers.get("ready") or 0, workers.get("want") or 0
        more = f" +{workers['total'] - want}" if (workers.get("total") or 0) > want else ""
        counts = up and app.get("http") is not None  # commands and scripts count no requests
        errors = point.errors or 0
        waiting = [queue[0] for queue in app.get("queue") or () if queue]
        rows.append(
            [
                _mark(app["name"] == model.app, how),
                Cell(line(app["name"]), "bold"),
                render.state(app["state"], how),
                Cell(render.ready(workers) + more, "" if ready >= want else "yellow"),
                Cell(f"{render.percent(point.cpu if up else None):>6}"),
                Cell(f"{render.size(int(point.memory) if up and point.memory is not None else None):>7}"),
                Cell(f"{render.rate(point.rate if up else None):>6}"),
                Cell(f"{latency(point.p99):>6}"),
                Cell(_share(point.errors), "red" if errors >= 0.01 else "yellow" if errors else ""),
                Cell(str(app.get("in_flight", "–")) if counts else "–"),
                Cell(str(app.get("open_connections", "–")) if counts else "–"),
                Cell(str(sum(waiting)) if waiting else "–", "yellow" if sum(waiting) > 10 else ""),
                Cell(str((app.get("restarts") or {}).get("total") or 0)),
                Cell(render.span(app.get("uptime_s"))),
            ]
        )
    return render.table(_APPS, rows, how)


def _details(model: Model, app: dict[str, Any], how: Look) -> list[str]:
    """The selected app in one line of words and, from 80 columns, two of curves."""
    listen = ", ".join(line(a) for a in app.get("listen") or ())
    facts = [
        f"{line(app['name'])}",
        line(app.get("target") or app.get("kind") or ""),
        str(app.get("balance") or ""),
        listen,
        f"gen {app.get('gen', '–')}",
        f"up {render.span(app.get('uptime_s'))}",
    ]
    lines = ["", _rule(" · ".join(f for f in facts if f), how, "bold")]
    failure = app.get("last_failure")
    if failure and trouble(app):
        lines.append("  " + paint(_cut(line(failure.get("message") or ""), how.width - 2, how), "red", how))
    elif worry := why_unwell(app) or line(next(iter(app.get("notes") or ()), "")):
        lines.append("  " + paint(_cut(worry, how.width - 2, how), "yellow", how))
    points = model.points(app["name"])
    if not points:
        return lines
    if how.width < 80:
        busy = [f"  {_quality(points[-1])}", f"  {_busy(app)}"] if app.get("http") is not None else []
        return [*lines, *(_cut(text, how.width, how) for text in busy)]
    half = (how.width - 4) // 2
    last = points[-1]

    def curve(title: str, value: str, values: list[float | None], least: float, style: str) -> str:
        head = f"{title:<7}{value:>9}  "
        return head + paint(spark(values, half - width(head) - 2, how, least=least), style, how)

    def pair(left: str, right: str) -> str:
        return f"  {left}{' ' * (half - width(left))}  {right}"

    cpu = curve("CPU", render.percent(last.cpu), [p.cpu for p in points], 10, "green")
    taken = render.size(int(last.memory)) if last.memory is not None else "–"
    memory = curve("MEM", taken, [p.memory for p in points], 1, "blue")
    lines.append(pair(cpu, memory))
    if app.get("http") is not None:
        rate = curve("REQ/S", render.rate(last.rate), [p.rate for p in points], 1, "cyan")
        slow = curve("P99", latency(last.p99), [p.p99 for p in points], 0.001, "yellow")
        lines.append(pair(rate, slow))
        lines.append(f"  {_quality(last)} · {_busy(app)}")
    return lines


def _busy(app: dict[str, Any]) -> str:
    queues = [f"{queue[0]}/{queue[1]}" for queue in app.get("queue") or () if queue]
    waiting = f" · queue {', '.join(queues)}" if queues else ""
    count = app.get("open_connections", "–")
    return f"{app.get('in_flight', '–')} in flight · {count} connection{'s' * (count != 1)}{waiting}"


def _quality(point: Point) -> str:
    return f"p50 {latency(point.p50)} · p99 {latency(point.p99)} · 5xx {_share(point.errors)}"


def _workers(model: Model, app: dict[str, Any], how: Look) -> list[str]:
    bars = max(0, min(24, how.width - 82), min(60, how.width - 96))
    seconds = round(bars * model.interval)
    columns = [
        Column(""),
        Column("WORKER", shrink=10),
        Column("PID", right=True, keep=4),
        Column("STATE"),
        Column("GEN", right=True, keep=2),
        Column("CPU", right=True),
        *([Column(f"LAST {seconds} s", keep=1)] if bars >= 8 else []),
        Column("MEM", right=True, keep=9),
        Column("REQ/S", right=True, keep=8),
        Column("ACTIVE", right=True, keep=5),
        Column("OPEN", right=True, keep=6),
        Column("RST", right=True, keep=7),
        Column("UP", keep=3),
    ]
    rows = []
    counts = app.get("http") is not None
    marked = False
    for worker in model.pool(app):
        slot = worker["worker"]
        mine = not marked and app["name"] == model.app and slot == model.worker
        marked = marked or mine
        row = [
            _mark(mine, how),
            Cell(line(f"{app['name']}.{slot}"), "bold", f".{slot}"),
            Cell(str(worker.get("pid") or "–")),
            render.state(worker["state"], how),
            Cell(str(worker.get("gen", "–"))),
            Cell(f"{render.percent(worker.get('cpu_percent')):>6}"),
            Cell(f"{render.size(memory_of(worker)):>7}"),
            Cell(f"{render.rate(worker.get('requests_per_s')):>6}"),
            Cell(str(worker.get("in_flight", "–")) if counts else "–"),
            Cell(str(worker.get("open_connections", "–")) if counts else "–"),
            Cell(str(worker.get("restarts") or 0)),
            Cell(render.span(worker.get("uptime_s"))),
        ]
        if bars >= 8:
            row.insert(6, Cell(spark(model.cpu_of(app["name"], slot), bars, how, least=10), "green"))
        rows.append(row)
    return render.table(columns, rows, how) if rows else []


def _events(model: Model, how: Look, rows: int) -> list[str]:
    lines = [_rule("events", how)]
    for event in reversed(model.events):
        if len(lines) >= rows:
            break
        slot = "" if event.worker is None else f".{event.worker}"
        # what happened has to be seen
        who = _cut(line(event.app + slot) or "pyworker", max(16, how.width // 3), how, slot)
        text = _cut(f"  {clock(event.time)}  {pad(who, 10)}  {words(event)}", how.width, how)
        bad = any(word in event.type for word in ("failed", "exited", "refused"))
        wary = any(word in event.type for word in ("backoff", "unhealthy", "recycled", "rolled"))
        lines.append(paint(text, "red" if bad else "yellow" if wary else "", how))
    return lines


def _key(name: str, how: Look) -> str:
    """Return the name of a key as this terminal can show it."""
    if not how.ascii:
        return name
    return name.replace("⏎", "enter").replace("↑", "^").replace("↓", "v").replace("←", "<").replace("→", ">")


def _help(how: Look) -> list[str]:
    table = [(_key(name, how), text) for name, text in _HELP]
    names = max(width(name) for name, _ in table)
    lines = [""]
    for name, text in table:
        first, *more = render.wrap(f"  {pad(name, names)}  {text}", how.width, names + 4)
        lines += [f"  {paint(pad(name, names), 'bold', how)}{first[names + 2 :]}", *more]
    return [*lines, "", "  any key: back"]


def _bottom(model: Model, around: Surroundings, how: Look) -> str:
    if model.question is not None:
        return paint(_cut(_ask(model), how.width, how), "bold", how)
    if model.typing:
        return paint(
            _cut(f" filter: {line(model.filter)}_   {_key('⏎', how)} keeps it, Esc shows all", how.width, how),
            "bold",
            how,
        )
    if model.away_since is not None:
        seconds = around.now - model.away_since
        text = f" no answer since {seconds:.0f} s; {MENDED}"  # 80 columns hold it
        return paint(_cut(text, how.width, how), "yellow", how)
    if model.message and around.now < model.message_until:
        return paint(_cut(" " + line(model.message), how.width, how), model.message_style, how)
    shown = [(_key(name, how), what) for name, what in _KEYS]
    while shown and sum(width(k) + width(t) + 3 for k, t in shown) > how.width:
        del shown[max(0, len(shown) - 3)]  # ? and q stay to the last
    extra = f" [filter: {line(model.filter)}]" if model.filter else ""
    extra += f" [by {model.sort}]" if model.sort != "worker" else ""
    text = " ".join(f" {paint(key, 'bold', how)} {what}" for key, what in shown)
    return text + extra if width(text + extra) <= how.width else text


def _ask(model: Model) -> str:
    question = model.question
    assert question is not None
    wish = question.wish
    name = line(wish.name)
    match wish.what:
        case "scale":
            return f" Scale {name}: {question.now} → {wish.number} workers? [y/N]  + and - change the number"
        case "restart":
            return f" Restart {name}? [y/N]  All workers stop, then start: there is a gap."
        case _:
            return f" Reload {name}? [y/N]  New code and settings come in, no request is lost."


def _last(model: Model, app: dict[str, Any]) -> Point:
    points = model.points(app["name"])
    return points[-1] if points else Point(None, None, None, None, None, None)


def _share(share: float | None) -> str:
    if share is None:
        return "–"
    return "0%" if share == 0 else f"{share * 100:.2f}%" if share < 0.1 else f"{share * 100:.0f}%"


def _cut(text: str, columns: int, how: Look, end: str = "") -> str:
    return cut(plain(text, how), columns, end, how.mark)


def _fit(text: str, how: Look) -> str:
    """Cut a line that is still too wide; a wrapped one would push the rest off the screen."""
    text = plain(text, how)
    return text if width(text) <= how.width else _cut(ANSI.sub("", text), how.width, how)
