"""Daemon: signs of life. Of the guardian, of templates and dispatchers, of workers that cannot answer for themselves.

All of it is counted in our own ticks: a machine that was frozen as a whole (a paused VM, SIGSTOP for all) has missed
nothing when it goes on. A hang is ended by SIGKILL or by a replacement; what follows is what follows any death.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque

from pyworker.daemon.app import App
from pyworker.daemon.brain import Brain
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.loop import EARLY, Loop, report_what_is_over
from pyworker.policy.lifecycle import UNTOUCHED
from pyworker.policy.pulse import NOTICED, stood_still
from pyworker.protocol.store import MISSED, TICK, Ping
from pyworker.unix import process, stderr

# it asks by itself just before each of our ticks: the first that it has missed is counted at once
MISSED_BY_GUARDIAN = 3
SELDOM = 4  # ticks between questions to a template that nobody needs: two processes wake up for each
STALLED = 5.0  # a worker notes its progress every second; less than this is no stall, however short the ticks are


class Pulse:
    """Asks, every tick, everybody who may hang."""

    def __init__(
        self, loop: Loop, brain: Brain, store: FdStore, tick: float = TICK, *, foreground: bool = False
    ) -> None:
        self._loop = loop
        self._brain = brain
        self._store = store
        self._tick = tick
        self._foreground = foreground
        self._asked = 0
        # worker: looks without a sign of life, last progress, whether it is the guardian's child
        self._seen: dict[tuple[str, int], tuple[int, float, bool]] = {}
        self._call_again()

    def _call_again(self) -> None:
        # just after the guardian's ticks, and with all other lazy calls: few wake-ups of a machine that idles
        self._next = ((self._loop.clock() + EARLY) // self._tick + 1) * self._tick
        self._loop.call_at(self._next, self._beat, lazy=True)

    def _beat(self) -> None:
        frozen = stood_still(self._loop.clock() - self._next, self._tick)
        self._call_again()
        report_what_is_over()
        if frozen:
            return
        self._asked += 1
        self._ask_guardian()
        for app in self._brain.apps.values():
            for template in list(app.templates.values()):
                self._ask_template(app, template)
            self._ask_dispatcher(app)
        self._look_at_workers()

    def _ask_guardian(self) -> None:
        store = self._store
        if self._foreground and process.is_stopped(store.guardian_pid):
            # by Ctrl-Z: whoever did it lets it go on, and its death would be the end of all that runs
            store.unanswered = 0
            return
        # while it is our parent its pid is nobody else's
        if store.unanswered >= MISSED_BY_GUARDIAN and store.guardian_pid == os.getppid() > 1:
            if store.unanswered == MISSED_BY_GUARDIAN:  # not at each tick until the kill has happened
                text = f"the guardian (pid {store.guardian_pid}) does not answer: killed, this daemon takes its place"
                stderr.say("daemon", text)
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(store.guardian_pid)
                process.send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
        store.unanswered += 1
        if store.unanswered > 1:  # its own pings are a sign of life, too
            store.send(Ping(self._asked))

    def _ask_template(self, app: App, template: TemplateHandle) -> None:
        if template.state != "ready":
            return
        if template.unanswered >= MISSED:
            _say_killed("template", app, template.pid)
            self._brain.templates.stop(app, template, "it did not answer", self._loop.clock())
        elif template.unanswered or self._asked % SELDOM == 0 or self._may_hang(app, template):
            template.unanswered += 1
            self._brain.templates.ping(template, self._asked)

    def _may_hang(self, app: App, template: TemplateHandle) -> bool:
        """Whether a template does anything but wait for an order: it is stopped, runs, or has one that it has not carried out."""
        unborn = any(w.id.generation == template.generation and not w.pid and w.is_alive for w in app.workers.values())
        return unborn or process.state(template.pid) != "S" or self._brain.templates.unread(template)

    def _ask_dispatcher(self, app: App) -> None:
        dispatcher = app.dispatcher
        if dispatcher is None or dispatcher.state != "ready":
            return
        if dispatcher.unanswered >= MISSED:
            _say_killed("dispatcher", app, dispatcher.pid)
            self._brain.dispatchers.stop(app, "did not answer", self._loop.clock())
        else:
            self._brain.dispatchers.ping(app, dispatcher, self._asked)

    def _look_at_workers(self) -> None:
        now = self._loop.clock()
        guardian = self._store.guardian_pid
        # its word is of this moment: it asks just before each of our ticks. To look at each costs 30 µs
        may_be_stopped, self._store.may_be_stopped = self._store.may_be_stopped, True
        seen: dict[tuple[str, int], tuple[int, float, bool]] = {}
        for app in self._brain.apps.values():
            busy = app.target is not None or any(w.recycle for w in app.workers.values())
            for w in list(app.workers.values()):
                if w.state not in UNTOUCHED or w.ready_at is None or not w.pid or w.recycle:
                    continue
                key = (app.name, w.id.serial)
                # a guardian that died has left its children to init
                before, progress, is_child = self._seen.get(key) or (0, -1.0, process.stat_number(w.pid, 4) == guardian)
                reason, at = self._lives(app, w, progress, now, look=may_be_stopped or not is_child)
                seen[key] = (before + 1 if reason else 0, at, is_child)
                if reason and before + 1 >= MISSED and not busy:
                    busy = True  # one of an app at a time
                    self._brain.workers.recycle(app, w, reason)
        self._seen = seen

    def _lives(self, app: App, w: WorkerHandle, progress: float, now: float, *, look: bool) -> tuple[str, float]:
        """Return why it may be stuck ("" = it lives), and when its loop last made progress. `look`: it may be stopped.

        With a request in flight a loop may stand still for as long as `limits.request_timeout` says: not judged here.
        """
        at = app.board.progress_at(w.id.serial)
        if look and process.is_stopped(w.pid):
            return "stopped (SIGSTOP), and nobody continued it", at
        stands = 0 < at == progress and now - at > STALLED and app.board.stats(w.id.serial).in_flight == 0
        return "its event loop stands still and serves nothing" if stands else "", at


def _say_killed(what: str, app: App, pid: int) -> None:
    stderr.say("daemon", f"the {what} of {app.name} (pid {pid}) does not answer: killed, to be started again")


class OwnTime:
    """Ages without the time in which we stood still, and with us perhaps the whole machine."""

    def __init__(self) -> None:
        self._due = self._every = self._since = 0.0
        self._still: deque[tuple[float, float]] = deque(maxlen=20)  # (when it went on, for how long it had not)

    def look(self, now: float, every: float) -> None:
        """To be called again in `every` seconds: a call that comes much later is how we notice."""
        if self._due and now - self._due > NOTICED:
            self._still.append((now, now - self._due))
        if self._every > NOTICED:
            self._since = now  # before, we may have stood still between two looks, and not noticed
        self._due, self._every = now + every, every

    def age(self, since: float, now: float) -> float:
        """Return how old something is that began at `since`; what was before we looked often does not count."""
        since = max(since, self._since)
        return now - since - sum(min(length, went_on - since) for went_on, length in self._still if went_on > since)
