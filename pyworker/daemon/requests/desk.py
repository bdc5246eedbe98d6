"""Daemon: what every request needs, and the checks and words that several requests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from pyworker.config.between import longest_stop
from pyworker.daemon import operations as ops
from pyworker.daemon.app import App, Failure
from pyworker.daemon.brain import Brain
from pyworker.daemon.client import Client
from pyworker.daemon.desired import Desired, DesiredApp
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.owner import user_name
from pyworker.daemon.sample import Sampler
from pyworker.daemon.selection import Selected, nearest, select
from pyworker.daemon.shortage import step_to_write
from pyworker.protocol import control as k
from pyworker.protocol.events import names_in_words

_UNSAVED = "apps.json cannot be written:"
LEAVING = 40.0  # seconds for what comes after the apps: the last hooks, the last lines of the logs
SAVE_AGAIN = 10.0  # seconds until what could not be written down is tried again


class Desk:
    """One daemon's: handed to each request's function."""

    def __init__(self, brain: Brain, sampler: Sampler, home: str, started_at: float) -> None:
        self.brain = brain
        brain.save_or_note = self.save
        self.sampler = sampler
        self.home = home
        self.started_at = started_at
        self.operations = ops.Operations(brain)
        self.waiting: dict[str, tuple[DesiredApp, Failure]] = {}  # that a boot had no descriptors for, and tries again
        self.in_foreground = False  # `pyworker run`
        self.shutting_down = False
        self.seq = 0  # of the last event before the request that is being handled
        self.upgrading = False
        self.handing_over = False  # an upgrade: the guardian was asked, and the next daemon is about to take over
        self.before_leaving: Callable[[], None] = lambda: None  # an upgrade: answers who asked for it
        self.on_shutdown: Callable[[], None] = lambda: None  # set by main
        self.preparing: Callable[[], list[str]] = list  # apps whose pre_start runs; set by main

    def wait(
        self,
        client: Client,
        goals: dict[str, ops.Goal],
        decided: dict[str, ops.Outcome],
        *,
        wait: bool,
        since_seq: int | None = None,
    ) -> None:
        """Answer when each goal is reached or has failed; `decided`: known already. `since_seq`: what has happened since
        then is its progress; None: since the request came.
        """
        since = self.seq if since_seq is None else since_seq
        self.operations.wait(client, goals, decided, wait=wait, since_seq=since)

    def longest_stop(self) -> float:
        """Return how many seconds a stop of everything may take by the time-outs of what runs."""
        configs = (c for app in self.brain.apps.values() if not app.closed and (c := app.config) is not None)
        return longest_stop(configs) + LEAVING

    def sampling(self) -> Sampler:
        """Return the sampler, for somebody who asks now."""
        self.sampler.want({worker.pid for app in self.brain.apps.values() for worker in app.workers.values()})
        return self.sampler

    def apps(self, selectors: tuple[str, ...]) -> list[App]:
        """The apps of some selectors, each once; none given: all, by name. Refuse: one of them means a worker."""
        return [app for app, _ in self.narrowed(selectors, whole=True)]

    def narrowed(self, selectors: tuple[str, ...], *, whole: bool) -> list[tuple[App, frozenset[int]]]:
        """Like `apps`, each with the workers of it that were named, none: all. `whole`: refuse workers."""
        if not selectors:
            return [(self.brain.apps[n], frozenset()) for n in sorted(self.brain.apps)]
        found: dict[str, set[int | None]] = {}
        for selected in self.existing(selectors):
            if selected.slot is not None and whole:
                message = f"{selected.app}.{selected.slot} is a worker: this is done with whole apps"
                raise Refuse("no_such_app", message, f"name the app: {selected.app}")
            found.setdefault(selected.app, set()).add(selected.slot)
        return [
            (self.brain.apps[name], frozenset(s for s in slots if s is not None and None not in slots))
            for name, slots in found.items()
        ]

    def existing(self, selectors: tuple[str, ...]) -> list[Selected]:
        """Like `select`; Refuse also: one of them is a worker that is not there. Nothing has been done by then."""
        if not selectors:
            raise Refuse("usage", "no app is named", "name one, or all")
        found = self.select(selectors)
        for selected in found:
            if selected.slot is not None:
                self.check_slot(self.brain.apps[selected.app], selected)
        return found

    def workers(self, selectors: tuple[str, ...]) -> Iterator[tuple[App, WorkerHandle, bool]]:
        """Yield the workers that some selectors mean, and whether each was named itself ("api.2")."""
        for selected in self.existing(selectors):
            app = self.brain.apps[selected.app]
            for handle in sorted(app.workers.values(), key=lambda w: (w.id.slot, w.id.serial)):
                if selected.slot in (None, handle.id.slot):
                    yield app, handle, selected.slot is not None

    def select(self, selectors: tuple[str, ...]) -> list[Selected]:
        """What the selectors mean; Refuse: one of them means nothing."""
        names = list(self.brain.apps)
        found, unknown = select(selectors, names)
        if unknown and unknown[0] in self.waiting:
            failure = self.waiting[unknown[0]][1]
            raise Refuse("busy", f"{unknown[0]} {failure.message}", failure.hint)
        if unknown:
            meant = nearest(unknown[0], names)
            user = user_name(os.getuid())
            there = names_in_words(sorted(names)) if names else "none"
            message = f"no app matches {unknown[0]!r} in the daemon of {user} ({self.home}); its apps: {there}"
            if unknown[0].endswith(".toml"):
                hint = "name the app, or all: only pyworker start takes its file"
            elif unknown[0].isdecimal() and names:  # pm2's id
                hint = f"apps go by name here, workers by name and number: {min(names)}.1"
            elif meant:
                hint = f"did you mean {meant}?"
            else:
                hint = "is it in another user's daemon, or another PYWORKER_HOME?"
            raise Refuse("no_such_app", message, hint)
        return found

    def check_slot(self, app: App, selected: Selected) -> None:
        """Refuse a worker number that the app does not have."""
        if not app.running or selected.slot not in range(1, app.want + 1):
            there = "it has 1 only" if app.want == 1 else f"they are 1 to {app.want}" if app.want else "it has none"
            message = f"{app.name} has no worker {selected.slot}: {there if app.running else 'it is not running'}"
            raise Refuse("no_such_app", message, f"pyworker ps -w {selected.app}")

    def wanted(self) -> Desired:
        """Return all that the next daemon is to know of."""
        for name in set(self.waiting) & set(self.brain.apps):  # somebody has started it anew
            del self.waiting[name]
        waiting = {name: app for name, (app, _) in self.waiting.items()}
        return waiting | {app.name: app.desired() for app in self.brain.apps.values()}

    def save(self) -> None:
        """Write apps.json; a disk that refuses is a note, not an end. It is tried again, and the note goes then."""
        self.brain.write_memos()  # first: killed in between, the next daemon writes apps.json by them
        try:
            self.brain.save()
        except OSError as error:
            step = step_to_write(error, self.home)
            why = f"{_UNSAVED} {error.strerror}; the next daemon would restore the state before this. {step}"
            for app in self.brain.apps.values():
                self.brain.note(app, why)
            self.brain.loop.call_once("save again", SAVE_AGAIN, self._save_again)
        else:
            for app in self.brain.apps.values():
                app.notes = [note for note in app.notes if not note.startswith(_UNSAVED)]

    def _save_again(self) -> None:
        if not self.shutting_down:
            self.save()


class Refuse(Exception):
    """A request that is not carried out; nothing was changed."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.answer = k.refusal(code, message, hint)
