"""Daemon: a reload's outcomes: committed and complete, given up before that, or rolled back. When is policy/converge.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyworker import failpoint
from pyworker.daemon import appmetrics, state
from pyworker.daemon.app import App, Failure
from pyworker.daemon.listening import NOT_BOUND
from pyworker.daemon.shortage import step_to_write
from pyworker.policy import restart
from pyworker.protocol.scoreboard import AppF

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain

_NOT_RELOADED = "not reloaded"
TOO_LOW = "its workers are over limits.memory as soon as they run, and are replaced time and again: "


class Reloads:
    """Carries out what policy says of them."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain

    def commit(self, app: App, number: int, now: float) -> None:
        """The new generation counts from here on: that is written down, or nothing has changed."""
        failpoint.hit("reload.before_commit")
        old, old_previous = app.generation, app.previous
        config = app.generations[number].config
        app.previous = old if config.reload.soak > 0 and app.view().overlaps and old in app.generations else None
        scale = app.scale, app.scale_base
        if app.scale_base != config.workers:
            app.scale = app.scale_base = None
        app.generation, app.target = number, None
        try:
            self._brain.save()
        except OSError as error:
            app.scale, app.scale_base = scale
            app.generation, app.target, app.previous = old, number, old_previous
            app.target_failure = self._brain.fail(
                f"cannot write apps.json: {error.strerror}", hint=step_to_write(error, self._brain.home)
            )
            return
        failpoint.hit("reload.committed")
        app.soak_until = now + config.reload.soak
        app.soak_deaths, app.given_up = 0, ""
        app.scale_before = scale
        app.record = app.template_record = restart.CLEAR
        app.fill_slots()
        app.reload_from = old
        _forget_notes(app)
        self._brain.workers.tell_time_to_drain(app)
        self._brain.write_logs_spec(app)
        self._brain.emit(app, "reload_committed", None, **{"from": old, "to": number})

    def complete(self, app: App, now: float) -> None:
        """End a reload when the new serve, and none of the old accepts any more."""
        serves = app.is_open(now) or not app.slots()  # a job between its times, or scaled to 0: nobody has to accept
        if app.reload_from is None or not serves:
            return
        done = not self._brain.may_old_ones_accept(app, now)  # all of them have been told to leave
        self._brain.listening.refuse_dropped(app, at_once=done)
        if done:
            took = round(now - app.reload_started_at, 3)
            data = {"from": app.reload_from, "to": app.generation, "took_s": took, **app.answered_since_reload()}
            app.reload_from = None
            app.board.add_app(AppF.RELOADS)
            self._brain.emit(app, "reload_done", None, **data)

    def abort(self, app: App) -> None:
        """Forget the target, of which nothing has been seen outside."""
        assert app.target is not None
        failure = app.target_failure or self._brain.fail("it was given up")
        number, app.target, app.target_failure = app.target, None, None
        self.refuse(app, number, failure)
        if app.reload_why:
            self.note_not_reloaded(app, app.reload_why, failure.message)

    def refuse(self, app: App, number: int, failure: Failure) -> None:
        """A generation that was to come does not, and nothing was touched: say so to whoever waits for it."""
        app.refused[number] = failure
        self._give_state_back(app)
        why = {"reason": failure.message, "traceback": failure.traceback, "hint": failure.hint}
        self._brain.emit(app, "reload_refused", None, **{"from": app.generation, "to": number, **why})

    def roll_back(self, app: App, number: int, reason: str) -> None:
        """The generation before counts again."""
        given_up = app.generation
        app.generation, app.previous = number, None
        if app.scale is None:
            app.scale, app.scale_base = app.scale_before
        app.given_up = ""
        app.record = app.template_record = restart.CLEAR
        app.fill_slots()  # what has finished was the other's
        app.reload_from = None
        failure = self._brain.fail(
            reason + (f": {app.failure.message}" if app.failure else ""), app.failure.traceback if app.failure else ""
        )
        app.refused[given_up] = failure
        self._brain.workers.tell_time_to_drain(app)
        self._brain.write_logs_spec(app)
        self._give_state_back(app)
        self._brain.save_or_note()
        self._brain.note(app, f"generation {given_up} was rolled back: {failure.message}")
        data = {"from": number, "to": given_up, "reason": failure.message}
        self._brain.emit(app, "reload_rolled_back", None, **data)

    def note_not_reloaded(self, app: App, why: str, message: str) -> None:
        """A reload that nobody typed was refused: nobody else is told. Until one is committed."""
        app.notes = [note for note in app.notes if not note.startswith(_NOT_RELOADED)]
        self._brain.note(app, f"{_NOT_RELOADED} ({why}): {message}")

    def _give_state_back(self, app: App) -> None:
        """The generation that was given up may have been another user's: what was made that one's is today's again."""
        if app.current is not None:
            state.address(self._brain.home, app.current.resolved)
            appmetrics.prepare(self._brain.home, app.current.resolved)


def _forget_notes(app: App) -> None:
    """What was said of the generations before this one and of their workers is over: it is another's code by now."""
    of_before = ("generation ", "worker ", "a worker ", _NOT_RELOADED, TOO_LOW, NOT_BOUND)
    app.notes = [note for note in app.notes if not note.startswith(of_before)]
