"""Daemon: when a worker counts as ready: by its own word, or for one that says none by its port, its check, or time.

And its health from then on. What a worker says comes through workers.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyworker.config.schema import AppConfig, HealthConfig
from pyworker.daemon import check, diagnosis
from pyworker.daemon.app import App, Generation
from pyworker.daemon.events import since_birth
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.health import HealthWatch, check_of, where_to_ask
from pyworker.daemon.listening import asks, not_bound
from pyworker.daemon.nodeshared import is_node, shares
from pyworker.daemon.shown import not_passed_yet
from pyworker.policy.health import Verdict
from pyworker.policy.lifecycle import SERVING, UNTOUCHED, Happening, State
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import worker_fd
from pyworker.unix import process

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain

COMMAND_SETTLE = 1.0  # a command without any way to say so counts as ready after this
SCRIPT_SETTLE = 3.0  # ... and a script that has bound no port after this, unless the one that it replaces has
PORT_TRIES = 0.05  # seconds between tries to reach the port of a worker that starts
EARLY = 10.0  # seconds for which READY=1 of a command whose pid nobody has told yet is remembered
MAX_EARLY = 1000
LEAST_WAIT = 0.1  # seconds without a CPU that are not worth a second look
_TRY = HealthConfig(type="tcp", timeout=2.0)


def is_known_by_its_port(config: AppConfig, handle: WorkerHandle) -> bool:
    """Whether nothing but an answer at its own port says that a worker is up."""
    return bool(handle.port) and config.health is None and config.ready != "notify"


class Readiness:
    """Of all workers."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._early: dict[int, float] = {}  # session of a command that was ready before its pid was told -> when

    def resume(self, app: App, handle: WorkerHandle) -> None:
        """Go on with a worker of the daemon before this one: the timers that died with it are set again."""
        generation = app.generations.get(handle.id.generation)
        if handle.ready_at is not None:
            self.watch_health(app, handle)
        elif generation is not None and handle.state is State.STARTING and generation.config.target is None:
            if is_known_by_its_port(generation.config, handle):
                self.watch_port(app, handle)
            elif generation.config.script is not None and not handle.port:
                self.await_script(app, handle)
            elif handle.pid:
                self.is_ready(app, handle, generation, serving=True)

    def is_ready(self, app: App, handle: WorkerHandle, generation: Generation, serving: bool) -> None:
        now = self._brain.loop.clock()
        config = generation.config
        if config.target is not None:
            if handle.held and not serving:
                self.is_held(app, handle, now)
            else:
                self.accepts(app, handle)
        elif is_node(config):
            # it says so when it listens; one that never does has come up all the same
            self._when_settled(handle, generation, SCRIPT_SETTLE, lambda: self.listens(app, handle))
        elif config.balance == "proxy":
            if config.health is not None:
                self.watch_health(app, handle)
        elif config.script is not None:
            if serving and not handle.bound:  # it called pyworker.ready(); what binds says so by that
                self._script_is_up(app, handle)
        elif config.health is not None:
            self.watch_health(app, handle)
        elif config.ready != "notify":
            # it has been exec'd this moment; a command that cannot run is gone before this, a Node program says it listens
            settle = SCRIPT_SETTLE if shares(config) else COMMAND_SETTLE
            self._when_settled(handle, generation, settle, lambda: self._settled(app, handle))

    def _when_settled(
        self, handle: WorkerHandle, generation: Generation, seconds: float, then: Callable[[], None]
    ) -> None:
        """Call back when it has had `seconds` in which to end or to say more, in place of what was asked for before.

        On a busy machine those in which it waited for a CPU do not count: one that is about to end would be taken for
        one that runs. Half of reload.ready_timeout is the longest: something that computes has come up, too.
        """
        before = process.time_without_cpu(handle.pid)
        longest = self._brain.loop.clock() + max(seconds, generation.config.reload.ready_timeout / 2)

        def passed() -> None:
            nonlocal before
            waited = process.time_without_cpu(handle.pid)
            more = min(waited - before, longest - self._brain.loop.clock())
            if more > LEAST_WAIT:
                before = waited
                handle.settling = self._brain.loop.call_later(more, passed)
            else:
                handle.settling = None
                then()

        if handle.settling is not None:
            handle.settling.cancel()
        handle.settling = self._brain.loop.call_later(seconds, passed)

    def watch_port(self, app: App, handle: WorkerHandle) -> None:
        """Try the port of a worker that says nothing by itself, until somebody answers there."""

        def tried(ok: bool | None, reason: str) -> None:
            if handle.state is not State.STARTING or handle.ended_at is not None:
                return
            if ok:
                self._comes_up(app, handle)
                self._brain.poke(app)
            else:
                self._brain.loop.call_later(PORT_TRIES, lambda: self.watch_port(app, handle))

        if handle.state is State.STARTING and handle.ended_at is None:
            try:
                check.at(self._brain.loop, ("127.0.0.1", handle.port), _TRY, tried)
            except OSError as error:  # out of fds: again
                tried(False, str(error))

    def _comes_up(self, app: App, handle: WorkerHandle) -> None:
        """A worker that serves on a port of its own can; before the commit of a reload nobody comes there."""
        if not handle.pid:
            # nobody has told it yet, or it has to be looked for: who waits for a worker is shown a process
            self._brain.loop.call_later(PORT_TRIES, lambda: self.says_ready(app, handle))
            return
        generation = app.generations.get(handle.id.generation)
        silent = handle.port or (generation is not None and is_node(generation.config))
        if silent and handle.held and not handle.gone_go:
            self.is_held(app, handle, self._brain.loop.clock())
        else:
            self.accepts(app, handle)

    def _settled(self, app: App, handle: WorkerHandle) -> None:
        if handle.state is State.STARTING and handle.ended_at is None:
            self.accepts(app, handle)
            self._brain.poke(app)

    def await_script(self, app: App, handle: WorkerHandle) -> None:
        """Give a script the time to bind a port; one that never does says nothing more."""
        generation = app.generations[handle.id.generation]
        self._when_settled(handle, generation, SCRIPT_SETTLE, lambda: self._script_settled(app, handle))

    def _script_settled(self, app: App, handle: WorkerHandle) -> None:
        if handle.state is State.STARTING and self.is_to_bind(app, handle):
            self.await_script(app, handle)
        else:
            self._script_is_up(app, handle)

    def is_to_bind(self, app: App, handle: WorkerHandle) -> bool:
        """Whether a script has not come up before it binds a port: the one that it is to replace has."""
        generation = app.generations.get(handle.id.generation)
        if generation is None or generation.config.script is None or handle.bound:
            return False
        return any(w.bound and w.state in SERVING and w.id.slot == handle.id.slot for w in app.workers.values())

    def _script_is_up(self, app: App, handle: WorkerHandle) -> None:
        if handle.state is State.STARTING and handle.ended_at is None and not handle.bound:
            handle.failure = None  # it does without the port that it could not have
            if handle.held:
                self.is_held(app, handle, self._brain.loop.clock())
            else:
                self.accepts(app, handle)
            self._brain.poke(app)

    def on_notified(self, pid: int, uid: int, text: str) -> None:
        """A datagram on the notify socket, its sender by the kernel's word."""
        session, is_ready = pid, "READY=1" in text.splitlines()
        try:
            session = os.getsid(pid)
        except ProcessLookupError:
            if is_ready:
                self._ready_by_one_that_is_gone(uid)
        for app in self._brain.apps.values():
            for handle in app.workers.values():
                if handle.pid and handle.pid in (pid, session) and handle.is_alive:
                    if is_ready and handle.state is State.STARTING:
                        self._comes_up(app, handle)
                        app.write_memo()  # said once only: as in workers.py
                    self._brain.poke(app)
                    return
        # a command that was started directly runs before the launcher, or a search, can tell its pid; it has our rights
        if is_ready and process.owner(session) == os.geteuid():
            now = self._brain.loop.clock()
            self._early = {pid: at for pid, at in self._early.items() if now - at < EARLY}
            if len(self._early) < MAX_EARLY:
                self._early[session] = now

    def _ready_by_one_that_is_gone(self, uid: int) -> None:
        """A command's helper had ended before we came to read it, and nobody knows whose it was: only one may be meant."""
        meant = []
        for app in self._brain.apps.values():
            for handle in app.workers.values():
                generation = app.generations.get(handle.id.generation)
                if generation is None or generation.config.ready != "notify" or handle.state is not State.STARTING:
                    continue
                if uid == (os.geteuid() if generation.resolved.uid is None else generation.resolved.uid):
                    meant.append((app, handle))
        if len(meant) == 1:
            self.says_ready(*meant[0])

    def was_early(self, pid: int) -> bool:
        """Whether a command had said that it is ready before anybody told its pid."""
        at = self._early.pop(pid, None)
        return at is not None and self._brain.loop.clock() - at < EARLY

    def listens(self, app: App, handle: WorkerHandle) -> None:
        """A Node program listens, by its dispatcher's word: it is ready then, if it does not say so itself."""
        generation = app.generations.get(handle.id.generation)
        if generation is not None and generation.config.ready != "notify":
            self.says_ready(app, handle)

    def says_ready(self, app: App, handle: WorkerHandle) -> None:
        """A command with ready = "notify" said so over its message channel; of others this is known in another way."""
        if handle.state is State.STARTING and handle.ended_at is None:
            self._comes_up(app, handle)
            app.write_memo()  # as above
            self._brain.poke(app)

    def watch_health(self, app: App, handle: WorkerHandle) -> None:
        """Begin to check a worker that says it is ready; goes on until it leaves."""
        generation = app.generations.get(handle.id.generation)
        if generation is None or generation.config.health is None or handle.health is not None:
            return
        health = generation.config.health
        first = next((app.listeners[i] for i in generation.listeners if i in app.listeners), None)
        begin_check = check_of(
            self._brain.loop,
            generation.resolved,
            lambda sock: self._brain.workers.send(handle, w.Check(), sock.fileno()),
            where_to_ask(health, handle.port, (first.address, first.sock) if first is not None else None),
        )
        handle.health = HealthWatch(
            self._brain.loop,
            health,
            begin_check,
            lambda verdict, reason: self._on_verdict(app, handle, verdict, reason),
        )

    def _on_verdict(self, app: App, handle: WorkerHandle, verdict: Verdict, reason: str) -> None:
        now = self._brain.loop.clock()
        if handle.state not in UNTOUCHED:
            return
        if verdict == "ok":
            handle.checked = True
            if handle.state is State.STARTING:  # a command that is ready when its check passes
                self._comes_up(app, handle)
            else:
                handle.happen(Happening.WELL, now)
                self._brain.emit(app, "worker_healthy", handle)
        elif verdict == "failing" and handle.state is not State.STARTING:
            self._sick(app, handle, reason, now)
        elif not self._is_another_late(app, handle):
            self._brain.remark(app, not_passed_yet(handle.id.slot, reason))
        self._brain.poke(app)

    def _is_another_late(self, app: App, handle: WorkerHandle) -> bool:
        """Whether it is said of another one already: what ails one mostly ails all."""
        others = (w.health for w in app.workers.values() if w is not handle and w.id.generation == handle.id.generation)
        return any(watch is not None and watch.health.verdict in ("late", "failing") for watch in others)

    def _sick(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        if handle.id.generation == app.target:
            handle.checked = False  # no commit while the logger has a moment for what it printed
            names = worker_fd("out", handle.id), worker_fd("err", handle.id)
            self._brain.when_written(app, names, lambda: self._is_refused(app, handle, reason))
        elif handle.happen(Happening.SICK, now) is State.UNHEALTHY and handle.since == now:
            self._brain.emit(app, "worker_unhealthy", handle, reason=reason)

    def _is_refused(self, app: App, handle: WorkerHandle, reason: str) -> None:
        if handle.state in UNTOUCHED and not handle.checked and handle.id.generation == app.target:
            born = since_birth(handle.born_at, self._brain.loop.clock(), handle.started_at)
            said = diagnosis.last_lines(diagnosis.log_file(app, self._brain.home), handle.pid, since=born)
            app.target_failure = self._brain.fail(f"a new worker fails its health check: {reason}", "\n".join(said))
            self._brain.poke(app)

    def is_held(self, app: App, handle: WorkerHandle, now: float) -> None:
        if handle.state is State.STARTING:
            handle.happen(Happening.IS_READY, now)
            self._note_ready(app, handle, now)
            self._brain.emit(app, "worker_held", handle, took_s=round(now - handle.born_at, 3))

    def accepts(self, app: App, handle: WorkerHandle) -> None:
        now = self._brain.loop.clock()
        before = handle.state
        if handle.happen(Happening.ACCEPTS, now) is State.READY and before is not State.READY:
            if handle.ready_at is None:
                self._note_ready(app, handle, now)
            took = round(handle.ready_at - handle.born_at, 3) if handle.ready_at else 0.0
            self._brain.emit(app, "worker_ready", handle, took_s=took)
            generation = app.generations.get(handle.id.generation)
            if generation is None or handle.port or not generation.listeners or not asks(generation.config):
                return
            if generation.config.script is not None and not handle.bound:
                self._look_at_bind(app, generation)
            else:  # it may be about to bind more
                self._brain.loop.call_later(SCRIPT_SETTLE, lambda: self._look_at_bind(app, generation))

    def _look_at_bind(self, app: App, generation: Generation) -> None:
        """Say which address of `bind` a script or Node program leaves alone: it is open, so that who connects there waits."""
        if generation.number == app.generation and app.running:
            for listener in (app.listeners[i] for i in generation.listeners if i in app.listeners):
                if generation.number not in listener.asked:
                    self._brain.note(app, not_bound(listener.address))

    def _note_ready(self, app: App, handle: WorkerHandle, now: float) -> None:
        handle.ready_at = now
        self.watch_health(app, handle)
