"""Daemon: a command that waits. What it is waiting for, app by app, and the answer once all of it is decided."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from pyworker.daemon.app import App, Failure
from pyworker.daemon.brain import Brain
from pyworker.daemon.client import Client, failed_at_this
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.loop import report_to_stderr
from pyworker.daemon.shown import addresses, all_notes, state_word
from pyworker.policy.lifecycle import SERVING, UNTOUCHED
from pyworker.protocol.events import Event
from pyworker.protocol.wire import to_json
from pyworker.record import record, replace


@record
class Outcome:
    """How it ended for one app."""

    ok: bool
    action: str  # started already_running stopped reloaded aborted restarted scaled deleted under_way unchanged failed unhealthy
    failure: Failure | None = None
    note: str = ""
    changes: tuple[dict[str, Any], ...] = ()  # what a reload would change, as `diff` tells it
    overtaken: bool = False


GO_BACK = "to go back to older code, put it back, then: pyworker reload"
_SERVES = {"started", "already_running", "restarted", "reloaded", "aborted", "scaled"}  # actions after which it runs

Goal = Callable[[App, float], Outcome | None]  # None: not decided yet


class Operations:
    """All commands that wait."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._waiting: list[_Operation] = []
        brain.on_settled = self.look

    def wait(
        self, client: Client, goals: dict[str, Goal], decided: dict[str, Outcome], *, wait: bool, since_seq: int
    ) -> None:
        """Answer the client once every goal is reached or lost; with wait=False at once.

        Events after `since_seq` are its progress: also those of its own handling.
        """
        operation = _Operation(self._brain, client, goals, decided, since_seq)
        if not wait:
            operation.leave()
        if operation.try_to_end():
            return
        self._waiting.append(operation)
        client.on_gone(lambda: self._drop(operation))
        for name in list(goals):
            app = self._brain.apps.get(name)
            if app is not None:
                self.look(app)

    def look(self, app: App) -> None:
        """Answer whoever has waited for what the app is now."""
        for operation in list(self._waiting):
            try:
                operation.look(app)
                is_over = operation.try_to_end()
            except Exception as error:  # noqa: BLE001  who waits beside it is answered, and the app has its rounds
                report_to_stderr("a command that waits failed")
                operation.fail(error)
                is_over = True
            if is_over:
                self._drop(operation)

    def under_way(self) -> list[str]:
        """The apps that commands wait for."""
        return sorted({name for operation in self._waiting for name in operation.pending})

    def _drop(self, operation: _Operation) -> None:
        operation.unsubscribe()
        if operation in self._waiting:
            self._waiting.remove(operation)


class _Operation:
    def __init__(
        self, brain: Brain, client: Client, goals: dict[str, Goal], decided: dict[str, Outcome], since_seq: int
    ) -> None:
        self._brain = brain
        self._client = client
        self._goals = goals
        self.pending = set(goals)
        self._decided = dict(decided)
        self._took: dict[str, float] = {}
        self._apps = {n: brain.apps[n] for n in [*goals, *decided] if n in brain.apps}
        self._began_at = brain.loop.clock()
        for event in brain.events.recent(since_seq=since_seq):
            self._on_event(event)
        self.unsubscribe = brain.events.subscribe(self._on_event)

    def _on_event(self, event: Event) -> None:
        if event.app in self._apps:
            self._client.progress(to_json(event))

    def look(self, app: App) -> None:
        """Decide about an app. One that serves is looked at again for as long as others are waited for: it may have died by then."""
        goal = self._goals.get(app.name)
        before = self._decided.get(app.name)
        if goal is None or (before is not None and not (before.ok and before.action in _SERVES)):
            return
        outcome = goal(app, self._brain.loop.clock())
        if before is not None and (outcome == before or (outcome and outcome.overtaken and app.wanted)):
            return
        if outcome is None:
            self.pending.add(app.name)
            self._decided.pop(app.name, None)
        else:
            self.pending.discard(app.name)
            self._decided[app.name] = outcome
            self._took[app.name] = self._brain.loop.clock() - self._began_at

    def fail(self, error: Exception) -> None:
        self._client.refuse(failed_at_this(error))

    def leave(self) -> None:
        """Wait for nothing: what is not decided yet goes on."""
        for app in self._apps.values():
            self.look(app)
        self._decided |= {name: Outcome(True, "under_way") for name in self.pending}
        self.pending.clear()

    def try_to_end(self) -> bool:
        if self.pending:
            return False
        self.unsubscribe()
        results = []
        for name, app in self._apps.items():
            outcome = self._decided.get(name, Outcome(True, "unchanged"))
            results.append(result(app, outcome, self._took.get(name, 0.0)))
        self._client.reply(all(r["ok"] for r in results), {"apps": results})
        return True


def result(app: App, outcome: Outcome, took: float) -> dict[str, Any]:
    failure = outcome.failure or Failure("")
    current = app.current
    return {
        "app": app.name,
        "action": outcome.action,
        "ok": outcome.ok,
        "state": state_word(app),
        "gen": app.generation,
        "workers": {"want": len(app.slots()), "ready": app.ready_count()},
        "listen": [*addresses(app)],
        "took_s": round(took, 3),
        "reason": failure.message,
        "traceback": failure.traceback,
        "hint": failure.hint,
        "cwd": current.config.cwd if current is not None else "",
        **({"changes": list(outcome.changes)} if outcome.changes else {}),
        **(app.answered_since_reload() if outcome.action == "reloaded" else {}),
        # what is said of an app that is gone helps nobody
        "notes": [*(all_notes(app) if outcome.action != "deleted" else []), *([outcome.note] if outcome.note else [])],
    }


# ---- goals ---------------------------------------------------------------------------------------------
def _overtaken(why: str) -> Outcome:
    """Another command has decided: what the app has printed says nothing about it."""
    return Outcome(False, "failed", Failure(why, "", "pyworker ps shows how it is now"), overtaken=True)


def _by_another(app: App) -> Outcome:
    if app.wanted:
        return _overtaken("it was replaced by a later command")
    return _overtaken(f"it was {'deleted' if app.delete_when_closed else 'stopped'} by another command")


def _reached(app: App, now: float, action: str, *, done: bool) -> Outcome | None:
    """What ends every wait for something that runs: it is done and serves, nobody wants it any more, its limiter has given
    up or has seen as many deaths in longer time, or it waits in vain for another app."""
    if not app.wanted:
        return _by_another(app)
    if done and (app.is_job or not app.slots() or app.is_open(now)):
        return Outcome(True, action)
    if app.record.failed or app.record.permanent:
        return Outcome(False, "failed", app.failure)
    tries = app.record.tries
    if tries >= app.restart_config.max_restarts and app.failure is not None:
        words = f"still not ready after {tries} restarts, and tried on: {app.failure.message}"
        return Outcome(False, "failed", replace(app.failure, message=words))
    if app.starting and app.blocked is not None:
        return Outcome(False, "failed", app.blocked)
    return None


def started(action: str, generation: int) -> Goal:
    """The app runs with this generation and is as well as its checks can tell, or its start has failed."""

    def goal(app: App, now: float) -> Outcome | None:
        if generation in app.refused:
            return Outcome(False, "failed", app.refused[generation])
        if not app.wanted:
            return _by_another(app)
        if app.generation != generation or app.restart_to is not None:
            return None if app.restart_to == generation else _overtaken("another command came first")
        if not app.running:
            return Outcome(False, "failed", app.failure) if app.closed or app.failure else None
        if app.record.permanent or app.record.failed:
            return Outcome(False, "failed", app.failure)
        outcome = _reached(app, now, action, done=not app.starting)
        return outcome and unless_sick(app, outcome)

    return goal


def noted(goal: Goal, note: str) -> Goal:
    """The same, and this is said when it has come out."""

    def told(app: App, now: float) -> Outcome | None:
        outcome = goal(app, now)
        return replace(outcome, note=outcome.note or note) if outcome is not None else None

    return told


def unless_sick(app: App, outcome: Outcome, slots: Collection[int] | None = None) -> Outcome:
    """What has been reached (in these slots) is well, or the command says which worker is not."""
    sick = app.sick(slots) if outcome.ok else None
    if sick is None:
        return outcome
    why = f"{app.name}.{sick.id.slot} fails its health check: {_ails(sick)}"
    return replace(outcome, ok=False, action="unhealthy", failure=Failure(why))


def _ails(sick: WorkerHandle) -> str:
    return sick.health.health.reason if sick.health is not None else ""


def reloaded(brain: Brain, generation: int, *, soak: bool = False) -> Goal:
    """The generation accepts everywhere (and has come through its soak), or was given up and accepts nothing."""
    given_up: list[Failure] = []

    def goal(app: App, now: float) -> Outcome | None:
        if generation in app.refused:
            given_up.append(app.refused[generation])
        if given_up:
            accepts = any(w.id.generation == generation and w.state in SERVING for w in app.workers.values())
            goes_on = app.running and not (app.record.failed or app.record.permanent)
            waits = soak and goes_on and (accepts or brain.may_old_ones_accept(app, now))
            return None if waits else Outcome(False, "failed", given_up[0])
        if app.generation == generation:
            done = app.reload_from is None and not (soak and app.previous is not None)
            return _reached(app, now, "reloaded", done=done)
        if app.target == generation:
            return None
        return _by_another(app)

    return goal


def aborted(brain: Brain, generation: int) -> Goal:
    """The generation was given up, and the one before it serves."""

    def goal(app: App, now: float) -> Outcome | None:
        if app.target == generation:
            return None
        if app.generation == generation:
            if app.previous is not None:
                return None
            if not app.wanted or app.target is not None or app.restart_to is not None:
                return _by_another(app)
            return Outcome(False, "failed", Failure("its soak was over before", hint=GO_BACK))
        return _reached(app, now, "aborted", done=not brain.may_old_ones_accept(app, now))

    return goal


def stopped(slots: frozenset[int] | None) -> Goal:
    """Nothing of the app (or of these slots) lives any more."""

    def goal(app: App, now: float) -> Outcome | None:
        if slots is None:
            return Outcome(True, "stopped") if app.closed else _wanted_again(app)
        if not any(w.id.slot in slots for w in app.workers.values() if w.is_alive):
            return Outcome(True, "stopped")
        return _wanted_again(app) if app.running and not slots <= app.stopped_slots else None

    return goal


def ended() -> Goal:
    """Nothing of the app lives any more; it may well be wanted, of a later daemon."""
    return lambda app, _now: Outcome(True, "stopped") if app.closed else None


def deleted(brain: Brain) -> Goal:
    """Nothing of the app lives any more, and it is forgotten."""

    def goal(app: App, now: float) -> Outcome | None:
        return Outcome(True, "deleted") if brain.apps.get(app.name) is not app else _wanted_again(app)

    return goal


def _wanted_again(app: App) -> Outcome | None:
    """What ends a wait for an end: it will not come, as another command has started it again."""
    return _overtaken("it was started again by another command") if app.wanted else None


def scaled(brain: Brain, new: Collection[int], count: int | None) -> Goal:
    """Every wanted slot serves, those that are new are well, and no other accepts. A reload has the number, and is not waited for.

    `count`: the number that was asked for; None for "+1", which another command may add to.
    """

    def goal(app: App, now: float) -> Outcome | None:
        if app.wanted and count is not None and app.want != count:
            return _overtaken(f"the number was changed again meanwhile, to {app.want}")
        surplus = any(w.id.slot > app.want and w.state in UNTOUCHED for w in app.workers.values())
        on_the_way = surplus or app.restart_to is not None
        done = not on_the_way and not brain.may_old_ones_accept(app, now) and app.has_been_checked(new)
        outcome = _reached(app, now, "scaled", done=done)
        return outcome and unless_sick(app, outcome, new)

    return goal


def filled(slots: Collection[int]) -> Goal:
    """These slots, which were stopped by themselves, serve again and are well."""

    def goal(app: App, now: float) -> Outcome | None:
        outcome = _reached(app, now, "started", done=app.has_been_checked(slots))
        return outcome and unless_sick(app, outcome, slots)

    return goal


def replaced(brain: Brain, slots: Collection[int], serials: Collection[int]) -> Goal:
    """These workers of these slots accept no more and their slots serve again, and are well."""

    def goal(app: App, now: float) -> Outcome | None:
        left = any(s in app.workers and app.workers[s].state in UNTOUCHED for s in serials)
        new = (w for w in app.workers.values() if w.id.slot in slots and w.id.serial not in serials)
        sick = next((w for w in new if w.health is not None and w.health.health.verdict == "failing"), None)
        if left and sick is not None:
            why = f"the new {app.name}.{sick.id.slot} fails its health check: {_ails(sick)}"
            hint = f"the old one stays until another passes: pyworker events {app.name}   says when"
            return Outcome(False, "failed", Failure(why, hint=hint))
        done = not left and not brain.may_old_ones_accept(app, now) and app.has_been_checked(slots)
        outcome = _reached(app, now, "restarted", done=done)
        return outcome and unless_sick(app, outcome, slots)

    return goal
