"""Daemon: what follows from a worker's death, and what it counts for. Who has died, and how, is known in pids.py."""

from __future__ import annotations

import contextlib
import functools
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pyworker import failpoint
from pyworker.daemon import appmetrics, diagnosis
from pyworker.daemon.app import App, Failure, note_exit
from pyworker.daemon.direct import is_direct
from pyworker.daemon.events import since_birth, stamp_of
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.shortage import Shortage, Shortages, by_somebody
from pyworker.daemon.workers import signal_number
from pyworker.policy import restart
from pyworker.policy.fate import UNUSABLE
from pyworker.policy.lifecycle import LEAVING, SERVING, Happening, State
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import worker_fd
from pyworker.protocol.logs import stamp
from pyworker.protocol.scoreboard import AppF
from pyworker.unix import fds as unix_fds
from pyworker.unix import process

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain

LAST_WORDS = 1.0  # seconds before its end in which a worker that served says why it ends
AGAIN = 0.5  # seconds until an end is gone through again that could not be
LOOK_AT_SESSION = 0.05  # seconds between two looks at what a command that has been stopped has left
BURIAL_DELAY = 0.02  # leaves the cores to the successor; without any, a timer comes before the round that asks for it


class Deaths:
    """Carries out what policy says of a death."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self.shortages = Shortages(brain.loop)
        self._unburied: dict[int, tuple[App, WorkerHandle, process.ExitStatus]] = {}  # by id of the handle
        self._unfinished: dict[int, Callable[[], None]] = {}  # the same; goes again through an end that failed
        self._sessions: set[int] = set()  # that have others than their leader, when all were looked at last
        self._looked_at = -LOOK_AT_SESSION
        self._seen: dict[int, set[int]] = {}  # of each session whom its leader's group does not have
        self._seen_at = -1.0

    def ended(self, app: App, handle: WorkerHandle, status: process.ExitStatus) -> None:
        if handle.status is not None or not handle.is_alive:
            return
        handle.status = status
        handle.ended_at = self._brain.loop.clock()
        with self._told_once(app, handle, status):
            self._brain.workers.on_message(app, handle)  # its last words first
            self._has_spoken(app, handle, status)

    @contextlib.contextmanager
    def _told_once(
        self, app: App, handle: WorkerHandle, status: process.ExitStatus, before: State | None = None
    ) -> Iterator[None]:
        """Have an end finished soon, with what is known then, if anything goes wrong on the way to that: it is told once, and a
        dead worker must not count as one that serves, nor keep its slot."""
        before = before or handle.state
        try:
            yield
        except Exception:
            again = functools.partial(self.finish, app, handle, status, before)
            if self._unfinished.setdefault(id(handle), again) is again:
                self._brain.loop.call_later(AGAIN, lambda: self._unfinished.get(id(handle), lambda: None)())
            raise

    def _has_spoken(self, app: App, handle: WorkerHandle, status: process.ExitStatus) -> None:
        if self._is_explained_first(app, handle, status):
            self._brain.workers.kick_siblings(app, handle)
            self._when_written(app, handle, lambda: self.finish(app, handle, status))
        elif self._has_left_others(app, handle):
            # a shell, say, that has run a program without exec: it is the program that is to be stopped
            self.signal_rest(handle, signal_number(app.stop_config(handle.id.generation).signal))
            self._finish_alone(app, handle, status)
        else:
            self._finish_stopped(app, handle, status)

    def _has_left_others(self, app: App, handle: WorkerHandle) -> bool:
        """Whether a command or script ended by its stop signal, and others of its session, which may take their time, have not."""
        if handle.state is not State.STOPPING or app.kind not in ("script", "command"):
            return False
        now = self._brain.loop.clock()
        if now - self._looked_at >= LOOK_AT_SESSION:  # once for hundreds that are stopped together
            self._sessions, self._looked_at = process.sessions_with_others(), now
        return handle.pid in self._sessions and (handle.pid_is_reserved or self.signal_rest(handle, 0))

    @staticmethod
    def signal_rest(handle: WorkerHandle, number: int) -> bool:
        """Signal what a worker that has ended has left in its session; False: nobody is there whose number is for sure not another's."""
        if not handle.pid_is_reserved:
            return process.kill_rest_of_session(handle.pid, number, handle.alive_at)
        process.kill_session(handle.pid, number)
        return True

    def _finish_alone(self, app: App, handle: WorkerHandle, status: process.ExitStatus) -> None:
        """Have it end when its whole session has; at `stop.kill_timeout` policy has that killed."""
        with self._told_once(app, handle, status):
            if self._has_left_others(app, handle):
                self._brain.loop.call_later(LOOK_AT_SESSION, lambda: self._finish_alone(app, handle, status))
            else:
                self._finish_stopped(app, handle, status)

    def _finish_stopped(self, app: App, handle: WorkerHandle, status: process.ExitStatus) -> None:
        if app.delete_when_closed and app.delete_logs:  # its last words would make the log anew
            self._when_written(app, handle, lambda: self.finish(app, handle, status))
        else:
            self.finish(app, handle, status)

    def _is_explained_first(self, app: App, handle: WorkerHandle, status: process.ExitStatus) -> bool:
        """Whether the logger gets a moment for its last words, before what follows from them: nobody waits for it."""
        if handle.ready_at is None:
            return handle.failure is None and handle.state is State.STARTING
        served = handle.state in SERVING
        return (
            served and _may_have_said_why(status) and not self._is_replaced_at_once(app, handle, status, handle.state)
        )

    def _when_written(self, app: App, handle: WorkerHandle, then: Callable[[], None]) -> None:
        self._brain.when_written(app, (worker_fd("out", handle.id), worker_fd("err", handle.id)), then)

    def finish(self, app: App, handle: WorkerHandle, status: process.ExitStatus, before: State | None = None) -> None:
        """Carry out what follows from a death, until all of it is done; `before`: the state that the worker died in."""
        before = before or handle.state
        self._unfinished.pop(id(handle), None)
        with self._told_once(app, handle, status, before):
            self._finish(app, handle, status, before)

    def _finish(self, app: App, handle: WorkerHandle, status: process.ExitStatus, before: State) -> None:
        if app.workers.get(handle.id.serial) is not handle:
            self._brain.poke(app)  # what went wrong may have come after that
            return
        failpoint.hit("death.finish")
        now = self._brain.loop.clock()
        handle.ended_at = handle.ended_at or now
        handle.happen(Happening.EXIT, now)
        if self._is_replaced_at_once(app, handle, status, before):
            # the successor first: what there is to tell and to tidy up takes longer than a fork. But what it has left
            # behind may hold the very port that the successor of a command binds; for a whole session, all that
            # the machine runs is looked at
            (self._end_session if app.kind in ("script", "command") else self._end_group)(handle)
            app.record = restart.CLEAR
            del app.workers[handle.id.serial]
            self._brain.poke(app)
            self._brain.loop.call_soon(lambda: self._brain.workers.kick_siblings(app, handle))
            self._unburied[id(handle)] = app, handle, status
            if _may_have_said_why(status):
                self._when_written(app, handle, lambda: self._bury(app, handle, status))
            else:
                self._brain.loop.call_later(BURIAL_DELAY, lambda: self._bury(app, handle, status))
            return
        shortage = self._shortage(handle, status)
        cut = app.board.stats(handle.id.serial).in_flight if before is State.KILLED else 0
        self._release(app, handle)
        self._brain.workers.kick_siblings(app, handle)
        if before in LEAVING and handle.failure is None:
            drained = handle.drained or w.Drained(0, cut)
            took = now - handle.leaving_at if handle.leaving_at is not None else 0.0
            counts = {"requests": drained.requests, "cancelled": drained.cancelled}
            killed = before is State.KILLED
            self._brain.emit(app, "worker_stopped", handle, took_s=round(took, 3), **counts, killed=killed)
        else:
            self._died(app, handle, status, before, shortage)
        self._brain.poke(app)

    def _is_replaced_at_once(self, app: App, handle: WorkerHandle, status: process.ExitStatus, before: State) -> bool:
        """Whether nothing but a new worker follows from this death: it had proved stable, and its app just goes on."""
        return (
            before in SERVING
            and handle.id.generation == app.generation
            and app.running
            and not app.starting
            and not app.is_job
            and status.code != UNUSABLE
            and restart.wants_replacement(app.restart_config, clean=status.code == 0)
            and restart.is_stable(handle.ready_at, handle.ended_at or 0.0, app.restart_config)
        )

    def _shortage(self, handle: WorkerHandle, status: process.ExitStatus) -> Shortage:
        """Ask once, while it is not reaped, however often its end is tried: a kill that was counted explains one death."""
        if handle.shortage is None:
            handle.shortage = self.shortages.of_death(handle.pid, status) if handle.pid else Shortage()
        return handle.shortage

    def _count_restart(self, app: App, handle: WorkerHandle, *, refuses: bool = False) -> None:
        if not refuses:
            app.board.add_app(AppF.RESTARTS)
        app.slot_restarts[handle.id.slot] = app.slot_restarts.get(handle.id.slot, 0) + 1

    def _bury(self, app: App, handle: WorkerHandle, status: process.ExitStatus) -> None:
        """The rest of the end of a worker whose successor is on its way."""
        if self._unburied.pop(id(handle), None) is None:
            return  # with its app
        try:
            failpoint.hit("death.bury")
            shortage = self._shortage(handle, status)
            self._release(app, handle)
            self._tell(app, handle, status, shortage)
            self._count_restart(app, handle)  # last: a daemon that is killed before this buries it again
            self._brain.poke(app)  # which writes it down
        except Exception:
            self._unburied[id(handle)] = app, handle, status
            self._brain.loop.call_later(AGAIN, lambda: self._bury(app, handle, status))
            raise

    def bury_all(self, app: App) -> None:
        """The app is closed: its board and its serials may be another's in a moment."""
        for handle in list(app.workers.values()):
            self._unfinished.get(id(handle), lambda: None)()
        for of, handle, status in list(self._unburied.values()):
            if of is app:
                self._bury(app, handle, status)

    def _end_group(self, handle: WorkerHandle) -> None:
        """SIGKILL to what it has left behind in its process group."""
        pidfd = self._brain.store.get(worker_fd("pid", handle.id))
        if handle.pid_is_reserved:
            process.kill_group(handle.pid, signal.SIGKILL)
        elif pidfd is not None:
            process.kill_group_of(pidfd)

    def _end_session(self, handle: WorkerHandle) -> None:
        """The same in its session."""
        self._end_group(handle)
        if handle.pid_is_reserved or handle.alive_at:
            ended_at = self._brain.loop.clock() if handle.ended_at is None else handle.ended_at
            if self._seen_at <= ended_at:  # once for hundreds that have ended together
                self._seen, self._seen_at = process.sessions(), self._brain.loop.clock()
            if handle.pid in self._seen:
                self.signal_rest(handle, signal.SIGKILL)

    def _release(self, app: App, handle: WorkerHandle) -> None:
        if handle.health is not None:
            handle.health.stop()
        self._end_session(handle)
        if handle.ctl is not None:
            self._brain.loop.remove(handle.ctl.fileno())
            unix_fds.hang_up(handle.ctl)
            handle.ctl = None
        pidfd = self._brain.store.get(worker_fd("pid", handle.id))
        if pidfd is not None:
            self._brain.loop.remove(pidfd)
        # the logger still wants the pidfd and the pipes until it has read them to their end
        self._brain.store.forget(worker_fd("out", handle.id), worker_fd("err", handle.id))
        self._brain.messages.forget(app, handle)
        # at once: if a daemon is killed in between, nobody looks for what it has left
        self._brain.store.remove(*(worker_fd(kind, handle.id) for kind in ("ctl", "pid", "ipc")))
        app.board.free(handle.id.serial)
        self._brain.templates.end_left_behind(app, handle.id.generation)
        if handle.pid:
            generation = app.generations.get(handle.id.generation)
            if generation is not None:
                appmetrics.process_gone(self._brain.home, generation.resolved, handle.pid)
            if not handle.reaped:
                self._brain.pids.let_go(handle.pid)
            # a burial that is done again must not signal, nor let go, who has its number then
            handle.reaped = True
        app.workers.pop(handle.id.serial, None)

    def _tell(self, app: App, handle: WorkerHandle, status: process.ExitStatus, shortage: Shortage) -> Failure:
        """Find the cause of a death, put it into the events, and return it."""
        now = self._brain.loop.clock()
        # an exception that ends a worker of ours is told by itself: one in the log is of a request, unless it came at the end
        its_end = stamp_of((handle.ended_at or now) - LAST_WORDS, now)
        since = its_end if app.kind in ("asgi", "wsgi") and handle.ready_at is not None else ""
        born = since_birth(handle.born_at, now, handle.started_at)
        reason, traceback, hint = diagnosis.explained(
            lambda: diagnosis.of_worker(app, handle, status, self._brain.home, shortage, since, born),
            diagnosis.unexplained(status),
        )
        done = app.is_job and status.code == 0
        if done or self._has_finished(app, status):
            reason = traceback = hint = ""  # it has done its work: nothing to explain
        after = round((handle.ended_at or now) - handle.born_at, 3)
        self._brain.emit(
            app, "worker_exited", handle, code=status.code, signal=status.signal, after_s=after,
            reason=reason, traceback=traceback, hint=hint,
        )  # fmt: skip
        if not done:
            note_exit(app, handle.id.slot, status, after, reason, stamp(time.time()))
        if handle.failure is None and not shortage.reason:
            reason = diagnosis.with_code(reason, status)
        return self._brain.fail(reason, traceback, hint)

    @staticmethod
    def _has_finished(app: App, status: process.ExitStatus) -> bool:
        """Whether it may end, and has: a script or command whose policy says that a clean end is one, however soon."""
        return (
            status.code == 0
            and app.kind in ("script", "command")
            and not restart.wants_replacement(app.restart_config, clean=True)
        )

    def _died(
        self, app: App, handle: WorkerHandle, status: process.ExitStatus, before: State, shortage: Shortage
    ) -> None:
        """A worker ended by itself (or was killed for not getting ready)."""
        now = self._brain.loop.clock()
        failure = self._tell(app, handle, status, shortage)
        if handle.id.generation == app.target:
            app.target_failure = failure
            return
        if (
            handle.id.generation != app.generation
            or not app.running
            or (before in LEAVING and handle.ready_at is not None)
        ):
            return
        config = app.restart_config
        # at a boot: no process or descriptor was to be had
        never_came = not handle.pid and (handle.lost or (app.restored and app.starting))
        if never_came and not app.is_job:
            # all but those say Hello before they do anything: without a word nothing of it has run yet
            may_have_run = is_direct(app.generations[handle.id.generation], handle)
            if restart.wants_replacement(config, clean=False) or not may_have_run:
                self._lost(app, failure, now)
                return
        if (
            app.starting
            and not any(x.ready_at is not None and x.id.generation == app.generation for x in app.workers.values())
            and (status.code != 0 or (handle.ready_at is None and not self._has_finished(app, status)))
        ):
            killed = handle.failure is None and by_somebody(status, shortage)
            self.start_failed(app, failure, now, killed=killed)
            return
        # to be started again. What we could not start may be there again soon: the venv of a running app that is made anew, say
        refuses = status.code == UNUSABLE and (handle.failure is None or app.starting)
        ends_slot = app.is_job or not (refuses or self._has_predecessor(app, handle))
        if ends_slot and not restart.wants_replacement(config, clean=status.code == 0):
            app.finished_slots.add(handle.id.slot)
            if status.code != 0:
                app.failure = failure
            elif app.is_job:
                app.failure = None
            return
        self._count_restart(app, handle, refuses=refuses)
        if not refuses and restart.is_stable(handle.ready_at, handle.ended_at or now, config):
            app.record = restart.CLEAR
            return
        if app.previous is not None:
            app.soak_deaths += 1
        self.unstable(app, failure, now, permanent=refuses, asked=handle.failure is None)

    @staticmethod
    def _has_predecessor(app: App, handle: WorkerHandle) -> bool:
        """Whether the one that it was to replace (`restart api.2`) serves on: that one is not to go with it."""
        of = handle.id
        return any(
            other.id.slot == of.slot and other.id.serial < of.serial and other.state in SERVING
            for other in app.workers.values()
            if other.id.generation == of.generation
        )

    def start_failed(self, app: App, failure: Failure, now: float, *, killed: bool) -> None:
        """A first start went wrong. What somebody has `killed` says nothing of the code: it is tried once more."""
        config = app.restart_config
        again = killed and not app.record.tries and not app.is_job and config.max_restarts > 1
        if again and restart.wants_replacement(config, clean=False):
            self.unstable(app, failure, now, permanent=False)
        else:
            app.start_failure = failure

    def _lost(self, app: App, failure: Failure, now: float) -> None:
        """One that never came. It counts once, however many were to, and is no reason to give up a first start at once."""
        if now >= app.record.next_at:  # else it was lost with others: nobody has been tried since
            self.unstable(app, failure, now, permanent=False)
        if app.starting and app.record.failed and not app.restored:
            app.start_failure = failure

    def unstable(self, app: App, failure: Failure, now: float, *, permanent: bool, asked: bool = False) -> None:
        """Count it. `permanent`: exit code 78, which the app's own code has `asked` for, or ours."""
        config = app.restart_config
        had_failed = app.record.failed or app.record.permanent
        had_refused = app.record.permanent and not permanent
        if permanent:
            app.record = restart.after_refusal(app.record)
        else:
            app.record = restart.after_unstable_death(app.record, now, config, jitter=random.random())
        if had_refused and app.failure is not None:
            return  # why nothing is tried any more goes on being what is shown
        app.failure = failure
        if app.record.failed or app.record.permanent:
            words = "it asked not to be restarted (exit code 78)" if asked else "it cannot be started as it is"
            if app.record.failed:
                words = f"gave up after {config.max_restarts} restarts in {max(1, now - app.record.deaths[0]):.0f} s"
            app.failure = Failure(f"{words}: {failure.message}", failure.traceback, failure.hint, failure.at)
            if not had_failed:
                self._brain.emit_failed(app.name, app.failure, config.max_restarts, config.window)
        elif app.record.tries:
            data = {"try": app.record.tries, "max": config.max_restarts, "delay_s": round(app.record.next_at - now, 3)}
            self._brain.emit(app, "worker_backoff", None, **data)


def _may_have_said_why(status: process.ExitStatus) -> bool:
    """True for one that ended by itself, and not well."""
    return status.code not in (None, 0) or status.signal not in (None, signal.SIGKILL)
