"""Daemon: `depends_on`: an app whose dependencies are not ready yet is held back, and goes on by itself when they are;
one that is stopped together with those that depend on it serves on until these have gone.
One that may end (restart.policy) and has, with code 0, is as good as ready; one that runs once is ready by nothing else: a
migration before the site.

Level-triggered like all of it: the gate is asked in each round, and an app that waits has a round whenever something
happened to what it waits for. Only a start and a stop wait; an app that runs is not touched when a dependency dies.
"""

from __future__ import annotations

from pyworker.daemon.app import App, Failure
from pyworker.daemon.brain import Brain
from pyworker.policy import order
from pyworker.policy.lifecycle import UNTOUCHED
from pyworker.protocol.events import Event

_NEWS = {
    "app_started", "app_running", "app_failed", "app_stopped", "app_deleted", "reload_done", "worker_ready",
    "worker_healthy", "worker_exited", "worker_stopping", "scaled",
}  # fmt: skip


class Depends:
    """Watches the events of dependencies for those that wait."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._waiting: dict[str, tuple[str, ...]] = {}  # who had to wait when it was asked last -> for whom
        brain.events.subscribe(self._on_event)

    def gate(self, app: App) -> frozenset[int]:
        """Return the generation that may not start yet, and note on the app what it waits for in vain."""
        before, app.blocked = app.blocked, None
        gated = self._gated(app)
        if _step(app.blocked) != _step(before):  # not the whole text: in a circle it would grow without end
            self._look_again(app.name)  # who waits for it waits in vain now, too, or no more, or for something else
        return gated

    def stops_after(self, app: App) -> tuple[str, ...]:
        """Return those that depend on an app and leave as it does, as long as somebody of it may still serve them."""
        if not app.is_stopping or app.hurry or not any(w.state in UNTOUCHED for w in app.workers.values()):
            return ()
        apps = self._brain.apps
        depends_on = {n: c.depends_on for n, a in apps.items() if (c := a.config) is not None and c.depends_on}
        leaving = {n for n in depends_on if apps[n].is_stopping and not apps[n].is_job and not apps[n].is_empty()}
        names = order.stops_after(app.name, depends_on, leaving)
        if names:
            self._waiting[app.name] = names
        return names

    def _gated(self, app: App) -> frozenset[int]:
        self._waiting.pop(app.name, None)
        config = app.config
        if config is None or not app.running or not app.starting or not config.depends_on or not app.is_empty():
            return frozenset()
        missing = [name for name in config.depends_on if not self._is_ready(name)]
        if not missing:
            return frozenset()
        self._waiting[app.name] = config.depends_on
        for name in missing:
            why, hint = self._in_vain(name)
            if why:
                app.blocked = Failure(
                    f"waits for {name}, which {why}", hint=f"{hint}; {app.name} starts by itself then"
                )
        return frozenset({app.generation})

    def _is_ready(self, name: str) -> bool:
        other = self._brain.apps.get(name)
        if other is None or not other.running:
            return False
        if _has_ended(other):
            return not other.has_ended_badly()
        return not other.starting and not _has_to_end(other) and bool(other.well_slots())

    def _in_vain(self, name: str) -> tuple[str, str]:
        """Return why nothing will come of waiting unless somebody does something, and what; ("", "") = just wait."""
        other = self._brain.apps.get(name)
        if other is None:
            return "is not known here", f"pyworker start --only {name}"
        if other.restart_to is not None:  # how it ended before says nothing
            return "", ""
        if other.failure is not None and (not other.running or other.record.failed or other.record.permanent):
            return f"failed: {other.failure.message}", f"mend it, then: pyworker restart {name}"
        if other.blocked is not None:
            return other.blocked.message, other.blocked.hint.partition(";")[0]
        if not other.wanted:
            return "is stopped", f"pyworker start {name}"
        if _has_ended(other):
            return "has ended, and not with code 0", f"mend it, then: pyworker restart {name}"
        if other.running and not other.slots() and not other.is_job:
            return "has no workers", f"pyworker start {name}" if other.want else f"pyworker scale {name}=1"
        if not other.starting and other.sick() is not None:
            return "fails its health check", f"pyworker ps {name}   says how"
        return "", ""

    def _on_event(self, event: Event) -> None:
        if event.type in _NEWS:
            self._look_again(event.app)

    def _look_again(self, changed: str) -> None:
        """Something happened to an app: only those that wait for it have a round, or hundreds would with each that starts."""
        for name in [name for name, others in self._waiting.items() if changed in others]:
            app = self._brain.apps.get(name)
            if app is None:
                del self._waiting[name]
            else:
                self._brain.poke(app)


def _step(blocked: Failure | None) -> str:
    return blocked.hint if blocked is not None else ""


def _has_ended(app: App) -> bool:
    """Whether all of it has ended by itself, and its policy says that this is that."""
    return bool(app.finished_slots) and not app.slots() and not app.is_job


def _has_to_end(app: App) -> bool:
    """Whether its work is done at its end only: it is never begun again, and would say in no way that it serves."""
    config = app.config
    return app.runs_once and config is not None and config.health is None and config.ready != "notify"
