"""CLI top: what is known (documents, their history, events), what is selected, and what a key does. Pure.

The clock is a parameter, the daemon is somebody else's: a key that wants something done returns a Wish.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pyworker.protocol.events import Event, workers_in_words
from pyworker.protocol.figures import Totals, by_slot, memory_of, totals_of
from pyworker.record import field, mutable

KEPT = 240  # points of history
MOST_EVENTS = 200
SORTS = ("worker", "cpu", "mem", "req/s")
_SORTED_BY: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "cpu": lambda w: w.get("cpu_percent"), "mem": memory_of, "req/s": lambda w: w.get("requests_per_s"),
}  # fmt: skip
_SETTLE = 8.0  # seconds that a message stays


class Point(NamedTuple):
    """An app between two readings; None = not known."""

    cpu: float | None
    memory: float | None
    rate: float | None
    p50: float | None
    p99: float | None
    errors: float | None  # share of answers 5xx, 0 to 1


class Wish(NamedTuple):
    """Something that a key asks for: quit, logs, describe, reload, restart, scale."""

    what: str
    name: str = ""
    number: int = 0


@mutable
class Question:
    """Asked once before something is done. For `scale` + and - go on changing the number."""

    wish: Wish
    now: int = 0  # workers as they are


@mutable
class _Past:
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=KEPT))
    totals: Totals | None = None
    at: float = 0.0


@mutable
class Model:
    """All that a frame shows."""

    interval: float = 1.0
    document: dict[str, Any] = field(default_factory=dict)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    app: str = ""  # the selected one
    worker: int | None = None  # its selected slot
    sort: str = "worker"
    filter: str = ""
    typing: bool = False  # a filter is being typed
    help: bool = False
    question: Question | None = None
    message: str = ""
    message_style: str = ""
    message_until: float = 0.0
    away_since: float | None = None
    _read_at: float | None = None
    _apps: dict[str, _Past] = field(default_factory=dict)
    _workers: dict[tuple[str, int], deque[float | None]] = field(default_factory=dict)

    # ---- what comes in -----------------------------------------------------------------------------
    def feed(self, document: dict[str, Any], now: float) -> None:
        """Take in a document of `ps --json`."""
        self.document = document
        self.away_since = None
        # an event asks for a look between two readings; it must not bend the curves
        due = self._read_at is None or now - self._read_at >= 0.7 * self.interval
        if due:
            self._read_at = now
        names = set()
        slots = set()
        for app in document.get("apps") or ():
            names.add(app["name"])
            if due or app["name"] not in self._apps:
                self._add_point(app, now)
            for slot, pool in by_slot(app).items():
                slots.add((app["name"], slot))
                history = self._workers.setdefault((app["name"], slot), deque(maxlen=KEPT))
                if not due and history:
                    continue
                known = [w["cpu_percent"] for w in pool if w.get("cpu_percent") is not None]
                history.append(sum(known) if known else None)
        self._apps = {name: past for name, past in self._apps.items() if name in names}
        self._workers = {key: history for key, history in self._workers.items() if key in slots}
        self._keep_selection()

    def _add_point(self, app: dict[str, Any], now: float) -> None:
        past = self._apps.setdefault(app["name"], _Past())
        totals = totals_of(app)
        rate, p50, p99, errors = app.get("requests_per_s"), None, None, None
        if totals is not None:
            http = app["http"]
            p50, p99, errors = http.get("p50_s"), http.get("p99_s"), http.get("error_share")
            if past.totals is not None and now > past.at:
                rate, p50, p99, errors = totals.since(past.totals).over(now - past.at)
        past.points.append(Point(app.get("cpu_percent"), memory_of(app), rate, p50, p99, errors))
        past.totals, past.at = totals, now

    def learn(self, events: Iterable[Event]) -> None:
        """Take in events, oldest first; one that is known already is passed over."""
        last = self.events[-1].seq if self.events else 0
        for event in events:
            if event.seq > last:
                self.events.append(event)
                last = event.seq

    def away(self, now: float) -> float:
        """The daemon does not answer; return since when."""
        if self.away_since is None:
            self.away_since = now
        return self.away_since

    def say(self, text: str, now: float, style: str = "") -> None:
        self.message, self.message_style, self.message_until = text, style, now + _SETTLE

    # ---- what is shown -----------------------------------------------------------------------------
    def apps(self) -> list[dict[str, Any]]:
        found = self.document.get("apps") or []
        return [app for app in found if self.filter in app["name"]]

    def current(self) -> dict[str, Any] | None:
        return next((app for app in self.apps() if app["name"] == self.app), None)

    def points(self, app: str) -> list[Point]:
        past = self._apps.get(app)
        return list(past.points) if past else []

    def cpu_of(self, app: str, slot: int) -> list[float | None]:
        return list(self._workers.get((app, slot), ()))

    def pool(self, app: dict[str, Any]) -> list[dict[str, Any]]:
        """Return an app's workers in the order that was chosen."""
        key = _SORTED_BY.get(self.sort)
        pool: list[dict[str, Any]] = list(app.get("pool") or ())
        return sorted(pool, key=lambda w: -(key(w) or 0)) if key else pool

    # ---- keys --------------------------------------------------------------------------------------
    def key(self, key: str, now: float) -> Wish | None:
        """Do what a key says; return what somebody else has to do."""
        if self.question is not None:
            return self._answer(key, now)
        if self.typing:
            self._type(key)
            return None
        if self.help:
            self.help = False
            return None
        match key:
            case "q":
                return Wish("quit")
            case "?" | "h":
                self.help = True
            case "up" | "k":
                self._move(-1)
            case "down" | "j":
                self._move(1)
            case "tab" | "right" | "pagedown":
                self._next_app(1)
            case "backtab" | "left" | "pageup":
                self._next_app(-1)
            case "home":
                self._select_app(0)
            case "end":
                self._select_app(-1)
            case "/":
                self.typing = True
            case "esc":
                self.filter = ""
                self._keep_selection()
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
            case "c" | "m":
                self.sort = "cpu" if key == "c" else "mem"
            case _:
                return self._act(key)
        return None

    def _act(self, key: str) -> Wish | None:
        app = self.current()
        if app is None:
            return None
        name: str = app["name"]
        want = int((app.get("workers") or {}).get("want") or 0)
        match key:
            case "enter":
                return Wish("logs", name if self.worker is None else f"{name}.{self.worker}")
            case "d":
                return Wish("describe", name)
            case "r":
                self.question = Question(Wish("reload", name))
            case "R":
                self.question = Question(Wish("restart", name))
            case "+" | "=":
                self.question = Question(Wish("scale", name, want + 1), want)
            case "-":
                self.question = Question(Wish("scale", name, max(0, want - 1)), want)
            case _:
                pass
        return None

    def _answer(self, key: str, now: float) -> Wish | None:
        question = self.question
        assert question is not None
        wish = question.wish
        if wish.what == "scale" and key in {"+", "=", "-"}:
            number = min(1000, max(0, wish.number + (-1 if key == "-" else 1)))
            question.wish = wish._replace(number=number)
            return None
        self.question = None
        if key not in {"y", "Y", "enter"}:
            self.say("nothing was done", now, "dim")
            return None
        if wish.what == "scale" and wish.number == question.now:
            self.say(f"{wish.name} has {workers_in_words(question.now)} already", now, "dim")
            return None
        return wish

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "esc":
            self.typing, self.filter = False, ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key
        self._keep_selection()

    # ---- selection ---------------------------------------------------------------------------------
    def _slots(self, app: dict[str, Any]) -> list[int | None]:
        """The selectable rows of an app: its slots as shown; the app itself if it has none."""
        return list(dict.fromkeys(w["worker"] for w in self.pool(app))) or [None]

    def _move(self, by: int) -> None:
        rows = [(app["name"], slot) for app in self.apps() for slot in self._slots(app)]
        if not rows:
            return
        here = (self.app, self.worker)
        at = rows.index(here) if here in rows else 0
        self.app, self.worker = rows[max(0, min(len(rows) - 1, at + by))]

    def _next_app(self, by: int) -> None:
        names = [app["name"] for app in self.apps()]
        if names:
            self._select_app((names.index(self.app) + by) % len(names) if self.app in names else 0)

    def _select_app(self, index: int) -> None:
        apps = self.apps()
        if apps:
            self.app = apps[index]["name"]
            self.worker = self._slots(apps[index])[0]

    def _keep_selection(self) -> None:
        """After a change: the same app and worker if they are still there, else the first."""
        app = self.current()
        if app is None:
            self.app, self.worker = "", None
            self._select_app(0)
        elif self.worker not in self._slots(app):
            self.worker = self._slots(app)[0]
