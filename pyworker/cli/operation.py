"""CLI: carries one operation (start, stop, reload…) through: its progress on stderr, its result on stdout.

On a terminal one row per worker, rewritten in place; elsewhere one line per change; with --json one object per line.
Leaving the view (Ctrl-C, --timeout) never ends the operation: the daemon goes on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

from pyworker.cli import render
from pyworker.cli.client import ANSWER_TIME, Answer, Lost, apps_now, ask, guardian_said, perform, step_for
from pyworker.cli.fail import Shown
from pyworker.cli.live import Live
from pyworker.cli.options import Settings
from pyworker.cli.progress import Board, flat, plain
from pyworker.cli.render import line, note, out_json
from pyworker.cli.result import finish
from pyworker.errors import Exit, PyworkerError
from pyworker.protocol.events import workers_in_words

Header = Callable[["dict[str, Any]", bool], str]
NEVER = float("inf")
_NO_DAEMON = 60.0  # seconds for one that its guardian cannot start, before the command gives up
_TICK = 0.1  # seconds between two frames
_ASIDE = 1.0  # seconds for what is only said beside: a --timeout is over by then
_MOST_NAMED = 10  # apps in a sentence; of more it says how many are in which state


def run(
    settings: Settings, verb: str, request: dict[str, Any], header: Header | None = None, board: Board | None = None
) -> int:
    """Send the request, show what happens, say how it ended; return the exit code.

    `header(event, tty)` may turn an app_started event into the line above the workers; `board` is told what happens.
    """
    view = View(settings, header, board)
    try:
        answer = perform(settings.home, request, view.event, view.tick, settings.timeout)
        view.ended(answer)
    except TimeoutError:
        raise _timed_out(settings, verb, view.board) from None
    except Lost as lost:
        raise _lost(settings, verb, lost, view.board) from None
    except KeyboardInterrupt:
        raise left(settings, verb) from None
    return finish(settings, verb, answer, view.board)


def left(settings: Settings, verb: str) -> Shown:
    """Say that what Ctrl-C has ended is the view alone; return what ends the command."""
    if not settings.json:
        end = "; pyworker reload --abort gives it up" if verb == "reload" else ""
        where = "daemon status" if verb == "upgrade" else "ps"
        note(f"\nLeft the view; the {verb} goes on. pyworker {where} shows how far it is{end}.")
    return Shown(int(Exit.INTERRUPTED))


class View:
    """What is shown while the operation runs."""

    def __init__(self, settings: Settings, header: Header | None = None, board: Board | None = None) -> None:
        self.err = render.look(sys.stderr, settings.color)
        self.out = render.look(sys.stdout, settings.color)
        self.board = board or Board()
        self._settings = settings
        self._header = header
        self._said: set[str] = set()
        self._has_said_how_to_leave = False
        self._live: Live | None = None
        if render.can_rewrite(self.err) and not settings.is_silent:
            self._live = Live(self.board, sys.stderr, self.err)
        self.tick = _TICK if self._live else ANSWER_TIME
        self._gives_up_at = time.monotonic() + _NO_DAEMON
        self._look_at = time.monotonic() + ANSWER_TIME  # why nothing is heard; NEVER once something is
        self._has_said_why = settings.is_silent

    def event(self, event: dict[str, Any] | None) -> None:
        """Show one event; None: time passes."""
        if event is not None:
            self._look_at = NEVER
            self.board.apply(event, time.monotonic())
        elif time.monotonic() >= self._look_at:
            self._say_why_it_waits()
        if self._settings.json:
            if event is not None:
                out_json(flat(event), self.out)
        elif self._live:
            if event is not None and (text := self._above(event, tty=True)):
                self._live.say(text)
            else:
                self._live.draw()
        elif event is not None and not self._settings.quiet:
            text = self._above(event, tty=False) or plain(event, self.board)
            if text:
                note(text, self.err)

    def _say_why_it_waits(self) -> None:
        """No daemon has taken the request yet. Of one that cannot be started only its guardian's log tells."""
        self._look_at += ANSWER_TIME
        said = guardian_said(self._settings.home)
        if not said or self._answers():
            return
        if time.monotonic() >= self._gives_up_at:
            message = f"no daemon can be started. One that can be later may still carry this out.\n  {line(said)}"
            raise PyworkerError(message, hint=step_for(said), code="unavailable")
        if self._has_said_why:
            return
        self._has_said_why = True
        text = f"waiting for the daemon:\n  {line(said)}\n  = help: {step_for(said)}"
        if self._live:
            self._live.say(text)
        else:
            note(text, self.err)

    def _answers(self) -> bool:
        """True when there is a daemon: what its guardian said last may be of one before."""
        try:
            ask(self._settings.home, {"type": "status"}, _ASIDE)
        except PyworkerError:
            return False
        return True

    def ended(self, answer: Answer) -> None:
        """Take in how it ended: rows turn no more, neither of an app that failed nor of slots that stay empty."""
        for result in answer.body.get("apps") or ():
            if not isinstance(result, dict):
                continue
            workers = result.get("workers") or {}
            if not result.get("ok"):
                self.board.fail(str(result.get("app")), time.monotonic())
            elif workers.get("ready") == workers.get("want"):
                self.board.drop_unborn(str(result.get("app")))
        if self._live:
            self._live.draw()

    def _above(self, event: dict[str, Any], *, tty: bool) -> str:
        """Return the line that announces an app, once."""
        app, data = line(event.get("app") or ""), event.get("data")
        if not isinstance(data, dict):
            return ""
        match event.get("type"):
            case "app_started" if app not in self._said:
                self._said.add(app)
                return self._header(event, tty) if self._header else _starting(app, data, tty=tty)
            case "reload_started" if tty:
                leave = "" if self._has_said_how_to_leave else " Ctrl-C leaves this view; the reload goes on."
                self._has_said_how_to_leave = True
                return f"Reloading {app}, gen {data.get('from')} → {data.get('to')}.{leave}"
            case "app_note" if tty:
                return f"{app}: {line(data.get('text') or '')}"
            case _:
                return ""


def who_starts(data: dict[str, Any]) -> str:
    """Return how many workers an app starts with; a job has none until its time."""
    return "when its time comes" if data.get("scheduled") else workers_in_words(data.get("workers"))


def _starting(app: str, data: dict[str, Any], *, tty: bool) -> str:
    listen = ", ".join(line(a) for a in data.get("listen") or ())
    what = who_starts(data) + (f" on {listen}" if listen else "")
    return f"Starting {app} — {what}" if tty else f"starting {app}: {what}"


def _timed_out(settings: Settings, verb: str, board: Board) -> PyworkerError:
    message = f"the {verb} was not done within {settings.timeout:g} s; it goes on{_known(settings, board)}"
    return PyworkerError(message, hint="pyworker ps shows how far it is", code="timeout")


def _lost(settings: Settings, verb: str, lost: Lost, board: Board) -> PyworkerError:
    return PyworkerError(
        f"The pyworker daemon (home {settings.home}) went away in the middle of the {verb}{_known(settings, board)}",
        hint=f"{lost.hint}\nthe {verb} may be done or not: give the command again when ps is not as you want it",
        code=lost.code,
        exit=lost.exit,
    )


def _known(settings: Settings, board: Board) -> str:
    """Return what the daemon (or its successor) says now of the apps that this is about, for the end of a sentence."""
    with contextlib.suppress(PyworkerError, OSError, KeyError, TypeError):
        apps = apps_now(settings.home, _ASIDE)
        about = {*board.started, *board.generations, *board.scaled, *(name for name, _ in board.rows)}
        apps = [a for a in apps if a["name"] in about] or apps  # all of them: nothing has been heard yet
        states = [f"{a['name']} {a['state']} {a['workers']['ready']}/{a['workers']['want'] or 0}" for a in apps]
        if len(states) > _MOST_NAMED:
            words = [str(a["state"]) for a in apps]
            states = [f"{words.count(word)} {word}" for word in sorted({*words})]
        return f". Now: {line(', '.join(states))}" if states else ". Now: no apps"
    return ""
