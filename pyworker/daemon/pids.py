"""Daemon: which process is which worker, and how each ended.

A worker is the guardian's child: it stays a zombie, and its pid reserved, until it is `let_go` here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyworker import failpoint
from pyworker.daemon.loop import READ
from pyworker.daemon.shortage import Shortage, step_for
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import worker_fd
from pyworker.unix import process

if TYPE_CHECKING:
    from pyworker.daemon.app import App
    from pyworker.daemon.brain import Brain
    from pyworker.daemon.handles import WorkerHandle
    from pyworker.protocol.store import Exited

STATUS_PATIENCE = 0.5  # how long the guardian's word on an exit status is waited for once a pidfd says "ended"
MOST_WAITS = 10  # ... again while the process is a child of the guardian's, which has had no processor time meanwhile
YOUNG = 1.0  # seconds after its birth in which a direct command may be the launcher's yet, and is the guardian's in a moment
STRANGER_PATIENCE = 10.0  # how long an exit that nobody claims keeps its pid reserved


class Pids:
    """Says of each end once, to `deaths`, whose it was."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self.unclaimed: dict[int, process.ExitStatus] = {}  # exits of pids that nobody has named yet
        # pids whose end was seen here first, the guardian's word is still to come: whether nothing is left to do for them
        self._known: dict[int, bool] = {}

    def claim(self, app: App, handle: WorkerHandle, pid: int, *, owner: int | None = None) -> bool:
        """This process is that worker. The pid is the guardian's child and stays reserved until `collected`.

        False: it was named by one whose word counts for processes of `owner` only, and is another user's.
        """
        try:
            failpoint.hit("spawn.claim")
            pidfd = open_pidfd(pid, owner)
        except OSError as error:
            pidfd = -1
            if error.errno != errno.ESRCH:  # no descriptor left: nobody could watch or stop it
                words = f"it could not be watched: {error.strerror}"
                handle.failure = handle.failure or w.Failed("other", words, "", step_for(error.errno))
            if error.errno != errno.ESRCH and owner is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # it may not lead a group yet
                process.kill_group(pid, signal.SIGKILL)
        if pidfd is None:
            return False
        handle.pid = pid
        known = self.unclaimed.pop(pid, None)
        self._known.pop(pid, None)
        if pidfd < 0:
            self._brain.deaths.ended(app, handle, known or process.UNKNOWN)
            return True
        self._brain.store.put(worker_fd("pid", handle.id), pidfd)
        self._brain.emit(app, "worker_starting", handle)
        if known is not None:
            self._brain.deaths.ended(app, handle, known)
        else:
            self.watch(app, handle, pidfd)
        return True

    def watch(self, app: App, handle: WorkerHandle, pidfd: int) -> None:
        handle.alive_at = process.alive_at(pidfd)

        def ended(_: int) -> None:
            self._brain.loop.remove(pidfd)
            if handle.status is None:
                handle.ended_at = self._brain.loop.clock()
                is_told = False
                try:
                    is_told = self._ask_kernel(app, handle, pidfd) or self._look_at_zombie(app, handle, pidfd)
                finally:
                    if not is_told:
                        self._brain.loop.call_later(STATUS_PATIENCE, without_word)

        def without_word(waits: int = MOST_WAITS) -> None:
            # the guardian has not said a word: an orphan of a dead guardian, which somebody else reaps, or the launcher's
            # yet; or it is late, and /proc has not told of an end with 0
            if handle.status is not None or not handle.is_alive:
                return
            is_told = is_late = False
            try:
                is_told = self._ask_kernel(app, handle, pidfd) or self._look_at_zombie(app, handle, pidfd, at_last=True)
                is_late = not is_told and waits > 0 and self._is_guardians(handle.pid, pidfd)
            finally:
                if is_late:
                    self._brain.loop.call_later(STATUS_PATIENCE, lambda: without_word(waits - 1))
                elif not is_told:
                    self._brain.deaths.ended(app, handle, process.UNKNOWN)

        self._brain.loop.add(pidfd, READ, ended)

    def _ask_kernel(self, app: App, handle: WorkerHandle, pidfd: int) -> bool:
        status = process.last_status(pidfd)
        if status is None:
            return False
        handle.reaped = True  # by somebody else: its pid may be used again
        self._brain.deaths.ended(app, handle, status)
        return True

    def _is_guardians(self, pid: int, pidfd: int) -> bool:
        """Whether the guardian, and nobody else, can say how it ended, and may in a moment: one that is stopped does not."""
        parent = process.stat_number(pid, 4)
        if parent == 0 or parent != self._brain.store.guardian_pid or process.is_stopped(parent):
            return False
        return process.pidfd_pid(pidfd) == pid

    def _look_at_zombie(self, app: App, handle: WorkerHandle, pidfd: int, *, at_last: bool = False) -> bool:
        """Read how it ended before the guardian has said it: a wake-up less between a death and its successor."""
        found = process.zombie_status(handle.pid, pidfd)
        if found is None or not handle.is_alive:
            return False
        status, parent = found
        if parent == self._brain.store.guardian_pid:
            self._known[handle.pid] = False
        elif not at_last and handle.direct and self._brain.loop.clock() - handle.born_at < YOUNG:
            return False
        else:
            handle.reaped = True  # any moment, by somebody else: an orphan of a guardian that is gone
        self._brain.deaths.ended(app, handle, status)
        return True

    def on_exited(self, message: Exited) -> None:
        """The guardian says how one of its children ended."""
        released = self._known.pop(message.pid, None)
        if released is not None:
            if released:  # else its pid is still needed, for its group, and let go then
                self._brain.store.collected(message.pid)
            return
        status = process.ExitStatus(message.code, message.signal, message.core)
        for app in self._brain.apps.values():
            for handle in app.workers.values():
                if handle.pid == message.pid and handle.is_alive:
                    # it may have been another's for a moment, as it seemed when its end was seen: the launcher's
                    handle.reaped = False
                    self._brain.deaths.ended(app, handle, status)
                    return
        pid = message.pid
        if not self._may_be_claimed(pid):
            self._brain.store.collected(pid)  # a spare, or an orphan of an app
            return
        self.unclaimed[pid] = status

        def forget() -> None:
            self._take_unclaimed(pid)

        self._brain.loop.call_later(STRANGER_PATIENCE, forget)

    def _take_unclaimed(self, pid: int) -> process.ExitStatus:
        """Return what the guardian has said of a pid, which is then anybody's; once, as it may soon be another process's."""
        status = self.unclaimed.pop(pid, None)
        if status is not None:
            self._brain.store.collected(pid)
        return status or process.UNKNOWN

    def of_helper(self, pid: int, pidfd: int, then: Callable[[process.ExitStatus, Shortage], None]) -> None:
        """Call back with how a template or dispatcher ended: our child, or, as the daemon before this one started it, the guardian's."""
        status, shortage = process.UNKNOWN, Shortage()
        try:
            status = process.collect(pidfd, reap=False) or process.UNKNOWN
            found = process.zombie_status(pid, pidfd) if status == process.UNKNOWN else None
            if found is not None:
                status = found[0]
            if pid in self.unclaimed:
                status = self._take_unclaimed(pid)
            shortage = self._brain.deaths.shortages.of_death(pid, status)  # while it is not reaped
            process.collect(pidfd)
        finally:  # it is told once, whatever went wrong
            if status != process.UNKNOWN:
                then(status, shortage)
            else:
                self._brain.loop.call_later(STATUS_PATIENCE, lambda: then(self._take_unclaimed(pid), shortage))

    def _may_be_claimed(self, pid: int) -> bool:
        """Whether this may yet turn out to be one of ours: a worker whose pid has not been said, a template, a dispatcher."""
        return any(
            any(worker.is_alive and not worker.pid for worker in app.workers.values())
            or any(template.pid in (0, pid) for template in app.templates.values())
            or (app.dispatcher is not None and app.dispatcher.pid in (0, pid))
            for app in self._brain.apps.values()
        )

    def channel_closed(self, app: App, handle: WorkerHandle) -> None:
        """End-of-file: normal for a command (it is exec'd); else the process is gone or about to be."""
        if not handle.pid and handle.is_alive:
            self._brain.loop.call_later(STATUS_PATIENCE, lambda: self._brain.direct.without_a_word(app, handle))

    def let_go(self, pid: int) -> None:
        """All is done that an ended worker's number is needed for: it may be another process's."""
        if pid in self._known:  # the guardian does not know it as ended, and would ignore us
            self._known[pid] = True
        else:
            self._brain.store.collected(pid)


def open_pidfd(pid: int, owner: int | None) -> int | None:
    """Return a pidfd; None when the process is not the `owner`'s. OSError: it has gone, or no descriptor is left.

    OverflowError: that is no pid of a worker's.
    """
    if pid <= 1:  # 0 and -1 stand for many processes where one is signalled
        raise OverflowError(f"{pid} as a pid")
    pidfd = os.pidfd_open(pid)
    if owner is None:
        return pidfd
    found = process.owner(pid)
    try:
        gone = process.pidfd_pid(pidfd) != pid  # reaped meanwhile: what was found may be of another process
    except OSError:
        os.close(pidfd)
        raise
    if not gone and found == owner:
        return pidfd
    os.close(pidfd)
    if gone:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return None
