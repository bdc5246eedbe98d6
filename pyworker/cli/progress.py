"""CLI: what the events of a running operation come to: a row per worker, or a line per change.

Pure: events in, text out. The live view (live.py) draws the rows; a pipe gets the lines; --json the events.
"""

from __future__ import annotations

from typing import Any

from pyworker.cli.render import Look, clean, cut, line, paint
from pyworker.protocol.events import and_why, exit_words, try_in_words
from pyworker.record import field, mutable

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_DONE = {"ready": ("✓", "green"), "replaced": ("✓", "green"), "stopped": ("○", "dim"), "failed": ("✗", "red")}
_WAITING = {"backoff": ("▲", "yellow"), "unhealthy": ("▲", "yellow"), "waiting": ("·", "dim")}


@mutable
class Row:
    """One slot of an app, as far as the events tell."""

    app: str
    worker: int
    state: str
    generation: int = 0
    old: int = 0  # the generation that is being replaced, 0 = none
    pid: int = 0
    since: float = 0.0  # when the state was entered, by the caller's clock
    took: float | None = None
    more: str = ""


@mutable
class Board:
    """Everything that is known of one operation."""

    rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)  # apps, as a whole
    importing: set[str] = field(default_factory=set)
    generations: dict[str, tuple[int, int]] = field(default_factory=dict)  # app -> from, to of its reload
    committed: set[str] = field(default_factory=set)  # apps whose reload counts: who is ready has replaced the old one
    scaled: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: set[tuple[str, str]] = field(default_factory=set)  # app, text

    def apply(self, event: dict[str, Any], now: float) -> None:
        """Take one event in. What is unknown or incomplete changes nothing."""
        app, slot, data = event.get("app"), event.get("worker"), event.get("data")
        if not isinstance(app, str) or not isinstance(data, dict):
            return
        try:
            if isinstance(slot, int):
                self._worker(str(event.get("type")), app, slot, data, now)
            else:
                self._app(str(event.get("type")), app, data, now)
        except (KeyError, TypeError, ValueError):  # a daemon of another version: its event is not shown
            return

    def _app(self, type: str, app: str, data: dict[str, Any], now: float) -> None:
        match type:
            case "app_started":
                self.started.add(app)
                for slot in range(1, min(int(data["workers"]), 1000) + 1):
                    self.rows[app, slot] = Row(app, slot, "starting", int(data["generation"]), since=now)
            case "template_starting":
                self.importing.add(app)
                for row in self._rows_of(app):
                    if row.state == "starting" and not row.pid:
                        row.state, row.since = "importing", now
            case "template_ready" | "template_exited":
                self.importing.discard(app)
                for row in self._rows_of(app):
                    if row.state == "importing":
                        row.state, row.since = "starting", now
            case "reload_started":
                self.generations[app] = (int(data["from"]), int(data["to"]))
                self.committed.discard(app)
                for row in self._rows_of(app):
                    row.state, row.old, row.generation = "waiting", int(data["from"]), int(data["to"])
            case "reload_committed":
                self.committed.add(app)
                for row in self._rows_of(app):
                    row.state = "replaced" if row.state == "ready" else row.state
            case "scaled":
                before, _ = self.scaled.get(app, (int(data["from"]), 0))  # others may scale it meanwhile, too
                self.scaled[app] = (before, int(data["to"]))
            case "app_note":
                self.notes.add((app, str(data["text"])))
            case "app_failed" | "reload_refused":
                self.fail(app, now)

    def fail(self, app: str, now: float) -> None:
        """Mark the workers of an app that were on their way as failed."""
        for row in self._rows_of(app):
            if row.state in {"starting", "importing", "backoff"}:
                row.took, row.state = now - row.since, "failed"

    def drop_unborn(self, app: str) -> None:
        """Drop rows that no worker has come for: `pyworker stop api.2` has left these slots empty."""
        for row in self._rows_of(app):
            if not row.pid and row.state in {"starting", "importing"}:
                del self.rows[row.app, row.worker]

    def _worker(self, type: str, app: str, slot: int, data: dict[str, Any], now: float) -> None:
        reloading = self.generations.get(app)
        # of a command that cannot overlap the old one's end comes first: the row is its successor's all the same
        row = self.rows.get((app, slot)) or Row(app, slot, "starting", reloading[1] if reloading else 0, since=now)
        generation = int(data.get("generation") or row.generation)
        leaving = type in {"worker_draining", "worker_stopped"}
        if leaving and ((reloading and generation == reloading[0]) or row.pid not in (0, data["pid"])):
            row.old = generation if generation != row.generation else 0
            row.more = _left(type, data)  # the one before: its successor has the row by now
            self.rows[app, slot] = row
            return
        match type:
            case "worker_starting":
                row.state, row.pid, row.since, row.took, row.more = "starting", int(data["pid"]), now, None, ""
                row.generation = generation
                if reloading:
                    row.old = reloading[0]
            case "worker_held":
                row.state, row.took, row.pid = "held", float(data["took_s"]), int(data["pid"])
                row.more = "ready, waits for the others"
            case "worker_ready":
                row.state = "replaced" if app in self.committed else "ready"
                row.took, row.pid, row.more = float(data["took_s"]), int(data["pid"]), ""
            case "worker_draining":
                row.state, row.since, row.more = "draining", now, ""
            case "worker_stopped":
                row.state, row.took, row.more = "stopped", float(data["took_s"]), "killed" if data.get("killed") else ""
            case "worker_exited":
                row.state, row.took = "failed", float(data["after_s"])
                row.more = line(data.get("reason") or exit_words(data.get("code"), data.get("signal")))
            case "worker_backoff":
                row.state, row.took = "backoff", None
                row.more = try_in_words(data["try"], data["max"], data["delay_s"])
            case "worker_unhealthy":
                row.state, row.more = "unhealthy", line(data.get("reason") or "")
            case _:
                return
        self.rows[app, slot] = row

    def _rows_of(self, app: str) -> list[Row]:
        return [row for row in self.rows.values() if row.app == app]

    def lines(self, now: float, how: Look, room: int) -> list[str]:
        """Return at most `room` lines, a row each; what is finished gives way to what is not."""
        rows = [self.rows[key] for key in sorted(self.rows)]
        hidden = 0
        if len(rows) > room:
            open_rows = [r for r in rows if r.state not in _DONE] + [r for r in rows if r.state in _DONE]
            shown = {(r.app, r.worker) for r in open_rows[: max(0, room - 1)]}
            hidden = len(rows) - len(shown)
            rows = [r for r in rows if (r.app, r.worker) in shown]
        names = max([len(f"{r.app}.{r.worker}") for r in rows], default=0)
        names = min(names, max(16, how.width // 2)) if how.width else names  # a row is cut at its end: the state stays
        frame = SPINNER[int(now * 10) % len(SPINNER)]
        lines = [_row(r, names, frame, now, how) for r in rows]
        if hidden:
            done = sum(1 for r in self.rows.values() if r.state in {"ready", "replaced"})
            lines.append(f"  … {hidden} more · {done} of {len(self.rows)} ready")
        return lines


def _row(row: Row, names: int, frame: str, now: float, how: Look) -> str:
    glyph, style = _DONE.get(row.state) or _WAITING.get(row.state) or (frame, "cyan")
    took = row.took
    if took is None and row.state not in {"waiting", "backoff"}:
        took = now - row.since
    exact = row.took is not None and row.state in {"ready", "replaced", "held"}
    seconds = "" if took is None else f"{took:.2f}s" if exact else f"{took:.1f}s"
    moved = f"{row.old} → {row.generation}  " if row.old else ""
    pid = f"pid {row.pid}" if row.pid else ""
    rest = "   ".join(part for part in (f"{seconds:<6}", pid, row.more) if part.strip())
    name = cut(f"{row.app}.{row.worker}", names, f".{row.worker}", how.mark).ljust(names)
    return f"  {name}  {moved}{paint(glyph, style, how)} {row.state:<9} {rest}".rstrip()


def _left(type: str, data: dict[str, Any]) -> str:
    if type == "worker_draining":
        return f"old pid {data['pid']} drains"
    killed = ", killed" if data.get("killed") else ""
    return f"old pid {data['pid']} left after {data['took_s']:.1f}s, {data['requests']} requests{killed}"


def plain(event: dict[str, Any], board: Board) -> str:
    """Return the line that a pipe gets for an event, "" for events that change nothing for the reader."""
    data = event.get("data")
    app, slot = line(event.get("app") or ""), event.get("worker")
    if not isinstance(data, dict):
        return ""
    who = app if slot is None else f"{app}.{slot}"
    if app in board.generations and slot is not None:
        who = f"{app} gen={data.get('generation', '-')} worker={slot}"
    try:
        match event.get("type"):
            case "template_ready":
                return f"{app} imported {data['took_s']:.2f}s" + (f" ({line(data['why'])})" if data["why"] else "")
            case "worker_held":
                return f"{who} held {data['took_s']:.2f}s pid={data['pid']}"
            case "worker_ready" if app in board.committed:
                return f"{who} replaced ready={data['took_s']:.2f}s pid={data['pid']}"
            case "worker_ready":
                return f"{who} ready {data['took_s']:.2f}s pid={data['pid']}"
            case "worker_stopped" if not data["pid"]:
                return ""  # it was never born
            case "worker_stopped":
                # those that it finished in its drain: 0 would be read as all that it ever served
                more = f" requests={data['requests']}" if data["requests"] else ""
                more += f" cancelled={data['cancelled']}" if data["cancelled"] else ""
                more += " killed" if data.get("killed") else ""
                return f"{who} stopped {data['took_s']:.1f}s pid={data['pid']}{more}"
            case "worker_exited":
                if not data["pid"]:
                    return f"{who} not born: {line(data['reason'])}"
                how = exit_words(data["code"], data["signal"])
                return f"{who} exited {how} after {data['after_s']:.1f}s{and_why(line(data['reason']), how)}"
            case "worker_backoff":
                return f"{who} backoff {try_in_words(data['try'], data['max'], data['delay_s'])}"
            case "worker_unhealthy":
                return f"{who} unhealthy: {line(data['reason'])}"
            case "reload_started":
                return f"reloading {app}: gen {data['from']} → {data['to']}"
            case "reload_committed":
                return f"{app} gen={data['to']} committed"
            case "app_note":
                return f"{app}: {clean(data['text'])}"
            case _:
                return ""
    except (KeyError, TypeError, ValueError):  # a daemon of another version
        return ""


def flat(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event as the line that --json prints: its data beside it, `generation` as `gen`."""
    data = event.get("data") if isinstance(event.get("data"), dict) else {}
    assert data is not None
    names = {"generation": "gen"}
    kept = {k: event.get(k) for k in ("v", "type", "time", "seq", "app", "worker")}
    return {**kept, "v": 1, **{names.get(k, k): v for k, v in data.items() if k not in kept}}
