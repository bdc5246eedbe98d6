"""Daemon: commands that are started directly (template/direct.py): they say no Hello, it is the launcher that tells their pid.

Where it could not, as it or the daemon before this one died over it, they are looked for: lost.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyworker import __version__
from pyworker.daemon import lost
from pyworker.daemon.app import App, Generation
from pyworker.daemon.dispatchers import dispatcher_holds
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.lost import AT_LAST, LAUNCHER_LEAVES
from pyworker.daemon.shortage import INSTALLATION, step_for
from pyworker.policy.lifecycle import LEAVING
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import WorkerId, worker_fd
from pyworker.unix import process

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain


def is_direct(generation: Generation, handle: WorkerHandle) -> bool:
    """Whether it is a command in whose process nothing need be done before its exec."""
    resolved, config = generation.resolved, generation.config
    if config.target is not None or (config.script is not None and config.balance != "proxy"):
        return False
    own_rights = resolved.uid is None and resolved.gid is None and config.limits.nofile is None
    # a dispatcher has the listeners, too
    return own_rights and (dispatcher_holds(config) or not (handle.held or generation.listeners))


class Direct:
    """What the launcher says of the processes that it was asked for."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._in_doubt: set[WorkerId] = set()  # handed to a launcher that died: they are looked for

    def started(self, app: App, handle: WorkerHandle, pid: int) -> None:
        """This process is that worker; 0: one that says so itself."""
        handle.launching = False
        if pid and handle.pid:
            return
        generation = app.generations.get(handle.id.generation)
        if handle.state in LEAVING and generation is not None and is_direct(generation, handle):
            if pid:
                handle.direct = True
                self._brain.pids.claim(app, handle, pid)
            self._brain.workers.leave_at_last(app, handle)
            self._brain.poke(app)
            return
        if not pid:
            return
        if generation is not None and not is_direct(generation, handle):
            if handle.is_alive:  # its Hello is on the way; without one at least its end is told
                self._brain.pids.claim(app, handle, pid)
                self._brain.poke(app)
            return
        if not handle.is_alive or generation is None:
            self._end(handle, pid)
            return
        if generation.config.balance == "proxy" and not handle.port:
            handle.lost = True  # it serves, and where died with the daemon before this one
            self._end(handle, pid)
            self._give_up(app, handle, "the daemon was killed over it")
            return
        handle.version, handle.direct = __version__, True
        self._brain.pids.claim(app, handle, pid)
        if generation.config.ready != "notify":
            self._brain.readiness.is_ready(app, handle, generation, serving=True)
        elif self._brain.readiness.was_early(pid):
            self._brain.readiness.says_ready(app, handle)
        self._brain.poke(app)

    def failed(self, app: App, handle: WorkerHandle, errno: int) -> None:
        """A process was not started, direct or not; 0: the launcher died, and nobody knows how far it had come."""
        if errno:
            self._give_up(app, handle, os.strerror(errno), step_for(errno))
            return

        def look_in(pause: float) -> None:
            self._in_doubt.add(handle.id)
            self._brain.loop.call_later(pause, lambda: look(pause))

        def look(pause: float) -> None:
            self._in_doubt.discard(handle.id)
            self.find(app, handle, lambda: not_found(pause))

        def not_found(pause: float) -> None:
            if pause < AT_LAST:
                look_in(pause * 2)
            elif code := self._brain.spawner.launcher.last_status.code:
                self._give_up(app, handle, f"the launcher ended with exit code {code}", INSTALLATION)
            else:
                self._give_up(app, handle, "the launcher was killed")

        look_in(LAUNCHER_LEAVES)

    def without_a_word(self, app: App, handle: WorkerHandle) -> None:
        """Its channel has ended, and nobody has told its pid. When the launcher died over it, `failed` knows more to say."""
        if handle.id not in self._in_doubt:
            self.find(app, handle, lambda: self._brain.deaths.ended(app, handle, process.UNKNOWN))

    def find(self, app: App, handle: WorkerHandle, otherwise: Callable[[], None]) -> None:
        """Look for a worker whose pid nobody has told. One that says Hello is waited for or ends, and is never looked for."""
        if handle.pid:
            return
        generation = app.generations.get(handle.id.generation)
        pid = 0
        if generation is not None and is_direct(generation, handle):
            store = self._brain.store
            pid = lost.find(store.guardian_pid, handle.id, store.get(worker_fd("out", handle.id)))
        if generation is not None and (generation.config.target is None or handle.untold):
            handle.lost = not pid
        if pid:
            self.started(app, handle, pid)
        else:
            otherwise()

    def end_untold(self, app: App, handle: WorkerHandle) -> None:
        """One is given up that the daemon before this one had asked for, and that may run: its pid was told to that one.

        Asked before its descriptors are given back: it is known by its stdout, if the guardian had died, too.
        """
        generation = app.generations.get(handle.id.generation)
        if generation is None or not is_direct(generation, handle):
            return

        def end(pipe: int | None) -> bool:
            pid = lost.find(self._brain.store.guardian_pid, handle.id, pipe)
            if pid:
                process.kill_group(pid, signal.SIGKILL)
            return bool(pid)

        lost.hunt(self._brain.loop, self._brain.store.get(worker_fd("out", handle.id)), end)

    def _give_up(self, app: App, handle: WorkerHandle, why: str, step: str = "") -> None:
        handle.launching = False
        if handle.pid or not handle.is_alive:
            return
        if handle.state not in LEAVING:
            handle.failure = handle.failure or w.Failed("other", f"cannot start a process: {why}", "", step)
        self._brain.deaths.finish(app, handle, process.UNKNOWN)
        self._brain.poke(app)

    def _end(self, handle: WorkerHandle, pid: int, tries: int = 20) -> None:
        """It was given up meanwhile. In the first moment of its exec a process does not show what it was born as."""
        if not lost.end(pid, handle.id) and tries:
            self._brain.loop.call_later(LAUNCHER_LEAVES, lambda: self._end(handle, pid, tries - 1))
