"""Daemon: templates as it sees them: started, listened to, retired, and what their end means.

The processes themselves are template/. What they say is untrusted: out of protocol is killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
from typing import TYPE_CHECKING, assert_never

from pyworker.daemon import appmetrics, diagnosis, lost, signals
from pyworker.daemon.app import App, Failure
from pyworker.daemon.events import since_birth
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.loop import READ
from pyworker.daemon.pids import open_pidfd
from pyworker.daemon.shortage import Shortage, by_somebody, step_for, step_to_start
from pyworker.policy import restart
from pyworker.policy.converge import UNDYING
from pyworker.policy.fate import UNUSABLE
from pyworker.policy.lifecycle import State
from pyworker.protocol import template as t
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import fd_name
from pyworker.protocol.names import DOES_NOT_END, STOPPED
from pyworker.protocol.wire import MAX_MESSAGE, WireError, decode, encode
from pyworker.unix import fds as unix_fds
from pyworker.unix import process

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain

_SAY_WHERE = 0.2  # seconds for an import that hangs to print its stacks, before it is killed
UNBORN_AFTER = 0.5  # seconds in which one that a template has forked in its last moment may still say Hello


class Templates:
    """One template for each generation that may still have to fork."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain

    def start(self, app: App, number: int, now: float) -> None:
        self._brain.emit(app, "template_starting", None, generation=number)
        try:
            handle = self._brain.spawner.template(app, app.generations[number], now)
        except Exception as error:
            self._forget(app, number)
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            failure = self._brain.fail(f"cannot start a process: {why}", hint=step_to_start(error))
            if number == app.generation and app.starting and app.restored:
                self._brain.deaths.unstable(app, failure, now, permanent=False)
            else:
                self._failed(app, number, failure, now)
            if not isinstance(error, OSError):
                raise
            return
        app.templates[number] = handle
        self.watch_pid(app, handle, self._brain.store.fds[fd_name("tpid", app.name, number)])
        self.watch(app, handle)

    def watch_pid(self, app: App, handle: TemplateHandle, pidfd: int) -> None:
        self._brain.loop.add(pidfd, READ, lambda _: self._ended(app, handle, pidfd))

    def never_told(self, app: App, handle: TemplateHandle) -> None:
        """The daemon before this one died while it started it: no failure, and another one is started.

        Whether it came nobody knows. One whose import hangs would never see the end of its channel.
        """

        def end(pipe: int | None) -> bool:
            return pipe is not None and lost.end_template(self._brain.store.guardian_pid, pipe)

        lost.hunt(self._brain.loop, self._brain.store.get(fd_name("tout", app.name, handle.generation)), end)
        handle.state = "retiring"
        self.gone(app, handle, process.UNKNOWN)

    def stop(self, app: App, handle: TemplateHandle, reason: str, now: float) -> None:
        has_been_told, imports = handle.state == "retiring", handle.state == "loading"
        if reason and handle.loaded is None and process.is_stopped(handle.pid):
            reason = f"{reason}: {STOPPED}"
        handle.killed_because = reason or handle.killed_because
        handle.state, handle.since = "retiring", now
        if reason and handle.loaded is None and self._signal(app, handle, w.STACKS_SIGNAL):
            self._brain.loop.call_later(_SAY_WHERE, lambda: self._kill(app, handle))
            return
        if reason or has_been_told:
            self._kill(app, handle)
            return
        with contextlib.suppress(OSError):
            if handle.channel is not None:
                unix_fds.send_packet(handle.channel, encode(t.Retire()))
        if imports:  # it hears nothing before that is over
            self._signal(app, handle, signal.SIGTERM)

    def ping(self, handle: TemplateHandle, number: int) -> None:
        with contextlib.suppress(OSError):
            if handle.channel is not None:
                unix_fds.send_packet(handle.channel, encode(t.Ping(number)))

    def unread(self, handle: TemplateHandle) -> bool:
        """Whether something said to it has not been received yet."""
        return handle.channel is not None and unix_fds.unread(handle.channel) > 0

    def _note_other_code(self, app: App, number: int, loaded: t.Loaded) -> None:
        """A generation is one moment's code; a template that had to be rebuilt may have found another's. Said aloud."""
        if number not in app.codes:
            app.codes[number], app.codes_at[number] = loaded.code, loaded.looked_at
        first = app.codes[number]
        # an import may take other modules than the one before, of files that nobody has changed
        is_changed = loaded.newest_at > app.codes_at.get(number, 0)
        if loaded.code and first and first != loaded.code and is_changed:
            app.codes[number], app.codes_at[number] = loaded.code, loaded.looked_at
            newest = f" (last changed: {loaded.newest})" if loaded.newest else ""
            self._brain.note(
                app,
                f"generation {number} was imported again and its files were changed since{newest}: "
                f"new workers run other code than old ones; pyworker reload {app.name} makes them one",
            )

    def _kill(self, app: App, handle: TemplateHandle) -> None:
        if self._signal(app, handle, signal.SIGKILL):
            self._brain.loop.call_later(UNDYING, lambda: self._do_without(app, handle))

    def _do_without(self, app: App, handle: TemplateHandle) -> None:
        """Go on as if one that was killed had ended, if it has not."""
        pidfd = self._brain.store.get(fd_name("tpid", app.name, handle.generation))
        if handle.ended or pidfd is None or process.is_gone(pidfd) or not process.is_kept(handle.pid):
            return
        self._brain.loop.remove(pidfd)
        handle.killed_because += f"{', and it ' if handle.killed_because else 'it '}{DOES_NOT_END}"
        self.gone(app, handle, process.UNKNOWN)

    def _signal(self, app: App, handle: TemplateHandle, number: int) -> bool:
        pidfd = self._brain.store.get(fd_name("tpid", app.name, handle.generation))
        if pidfd is None or app.templates.get(handle.generation) is not handle:
            return False
        whose = f"generation {handle.generation}: its template"
        return signals.send(self._brain, app, pidfd, number, whose=whose, pid=handle.pid)

    def watch(self, app: App, handle: TemplateHandle) -> None:
        assert handle.channel is not None
        self._brain.loop.add(handle.channel.fileno(), READ, lambda _: self._on_message(app, handle))

    def _on_message(self, app: App, handle: TemplateHandle) -> None:
        channel = handle.channel
        for _ in range(64):
            if channel is None:
                return
            packet = unix_fds.peek_packet(channel, MAX_MESSAGE)  # as of a worker: workers.py
            if packet is None:
                break
            if not packet.data and not packet.pid:  # an empty message has a sender, the end has none
                self._brain.loop.remove(channel.fileno())  # its pidfd says how it ended
                break
            try:
                message: t.FromTemplate = decode(t.FromTemplate, packet.data)
                if not self._is_awaited(app, handle, message):
                    if not handle.talk.is_left(self._brain.loop.clock()):
                        raise WireError("more messages than there is a use for")
                    handle.talk.spend()
                self._take(app, handle, message)
            except (WireError, OverflowError) as error:  # ... or a pid or errno that is none
                handle.killed_because = f"its channel said {error}"
                self._kill(app, handle)
                break
            finally:
                unix_fds.drop_packet(channel)
        self._brain.poke(app)

    def _is_awaited(self, app: App, handle: TemplateHandle, message: t.FromTemplate) -> bool:
        """Whether it answers a Fork: there is one answer to each, also if the worker has said Hello, or was given up, before."""
        if not isinstance(message, t.Forked | t.ForkFailed):
            return False
        if message.serial in handle.asked:
            handle.asked.discard(message.serial)
            return True
        worker = app.workers.get(message.serial)  # the daemon before this one may have asked
        return worker is not None and worker.id.generation == handle.generation and not worker.pid

    def _take(self, app: App, handle: TemplateHandle, message: t.FromTemplate) -> None:
        now = self._brain.loop.clock()
        match message:
            case t.Loaded():
                if handle.loaded is not None:  # to the daemon before this one, or by the app: each would be an event
                    return
                handle.loaded = message
                if handle.state == "loading":
                    handle.state, handle.since, handle.ready_at = "ready", now, now
                    app.write_memo()  # said once only: a daemon after this one must know it
                self._brain.emit(
                    app, "template_ready", None,
                    generation=handle.generation, took_s=message.took, preload=message.preload, why=message.why,
                )  # fmt: skip
                self._note_other_code(app, handle.generation, message)
            case t.Pong():
                handle.unanswered = 0
            case t.LoadFailed():
                handle.failure = message
            case t.Forked(serial=serial, pid=pid):
                worker = app.workers.get(serial)
                if worker is None or worker.id.generation != handle.generation or worker.pid:
                    return
                if not self._brain.pids.claim(app, worker, pid, owner=self._owner(app, handle)):
                    self._named_a_stranger(app, handle, pid)
                    worker.failure = w.Failed("other", f"its template was killed: {handle.killed_because}", "")
            case t.Parked(pid=pid):
                with contextlib.suppress(OSError):  # it has gone, or no descriptor is left
                    pidfd = open_pidfd(pid, self._owner(app, handle))
                    if pidfd is None:
                        self._named_a_stranger(app, handle, pid)
                    else:
                        self._brain.store.put(fd_name("spare", app.name, handle.generation), pidfd)
            case t.ForkFailed(serial=serial, errno=errno):
                worker = app.workers.get(serial)
                if worker is not None and worker.is_alive and worker.id.generation == handle.generation:
                    step = step_for(errno, handle.pid)
                    worker.failure = w.Failed("other", f"cannot fork: {os.strerror(errno)}", "", step)
                    self._brain.deaths.finish(app, worker, process.UNKNOWN)
            case _:
                assert_never(message)

    def _owner(self, app: App, handle: TemplateHandle) -> int | None:
        return app.generations[handle.generation].resolved.uid

    def _named_a_stranger(self, app: App, handle: TemplateHandle, pid: int) -> None:
        """Code of the app's has run in it: of another user's process it can say nothing, or any could be killed."""
        handle.killed_because = f"it named process {pid}, which is another user's, as a worker"
        self._kill(app, handle)

    def _ended(self, app: App, handle: TemplateHandle, pidfd: int) -> None:
        self._brain.loop.remove(pidfd)
        try:
            self._on_message(app, handle)  # its last words first
        finally:
            self._brain.pids.of_helper(handle.pid, pidfd, functools.partial(self._explained, app, handle))

    def _explained(self, app: App, handle: TemplateHandle, status: process.ExitStatus, shortage: Shortage) -> None:
        handle.shortage = shortage
        if handle.loaded is None and handle.failure is None and (handle.state == "loading" or handle.killed_because):
            # it has said nothing to us: what it printed is all there is, and the logger may still be writing that
            names = fd_name("tout", app.name, handle.generation), fd_name("terr", app.name, handle.generation)
            self._brain.when_written(app, names, lambda: self.gone(app, handle, status))
        else:
            self.gone(app, handle, status)

    def gone(self, app: App, handle: TemplateHandle, status: process.ExitStatus) -> None:
        if handle.ended:
            return
        handle.ended = True
        try:
            self._clear_away(app, handle)
        finally:  # its end is told once, whatever went wrong
            self._follow(app, handle, status)

    def _clear_away(self, app: App, handle: TemplateHandle) -> None:
        number = handle.generation
        if app.templates.get(number) is handle:
            del app.templates[number]
        if handle.channel is not None:
            self._brain.loop.remove(handle.channel.fileno())
            unix_fds.hang_up(handle.channel)
        self._end_stopped_spare(app, number)
        pidfd = self._brain.store.get(fd_name("tpid", app.name, number))
        if pidfd is not None and process.kill_group_of(pidfd, 0):
            with contextlib.suppress(OSError):  # no number is free: then they stay, rather than this template's record
                app.left_behind.setdefault(number, []).append(os.dup(pidfd))
        self._forget(app, number)
        self.end_left_behind(app, number)
        if handle.pid and number in app.generations:
            appmetrics.process_gone(self._brain.home, app.generations[number].resolved, handle.pid)

    def _follow(self, app: App, handle: TemplateHandle, status: process.ExitStatus) -> None:
        """Carry out what follows from its end."""
        number, now = handle.generation, self._brain.loop.clock()
        if handle.state == "retiring" and not handle.killed_because:
            self._brain.poke(app)
            return
        since = since_birth(handle.since - self._brain.still, now)
        words, traceback, hint = diagnosis.explained(
            lambda: diagnosis.of_template(app, handle, status, self._brain.home, since), diagnosis.unexplained(status)
        )
        self._brain.emit(app, "template_exited", None, generation=number, reason=words)
        if number == app.generation and handle.ready_at is not None:
            app.template_record = restart.after_helper_death(
                app.template_record, handle.ready_at, now, app.restart_config, jitter=random.random()
            )
        killed = not handle.killed_because and by_somebody(status, handle.shortage)
        # whoever was being forked by it dies unborn
        for worker in list(app.workers.values()):
            if worker.id.generation == number and worker.state is State.STARTING and not worker.pid:
                pause = 0.0 if worker.lost else UNBORN_AFTER
                worker.lost = killed
                self._brain.loop.call_later(pause, functools.partial(self._unborn, app, worker, words))
        if number == app.generation and app.starting and status.code == UNUSABLE:
            app.unusable = True
        if handle.ready_at is None:  # else its app goes on without it, however it ended
            failure = self._brain.fail(words, traceback, hint)
            self._failed(app, number, failure, now, killed=killed)
        self._brain.poke(app)

    def end_left_behind(self, app: App, number: int) -> None:
        """End what an import has started (a helper, say), once nobody is there any more who has it from its template.

        By SIGTERM: what tidies up at the end of the others (multiprocessing's resource tracker) does not heed it.
        """
        if not any(worker.is_alive and worker.id.generation == number for worker in app.workers.values()):
            for pidfd in app.left_behind.pop(number, ()):
                process.kill_group_of(pidfd, signal.SIGTERM)
                os.close(pidfd)

    def _end_stopped_spare(self, app: App, number: int) -> None:
        """A spare leaves with its template, unless somebody has stopped it. It may have become a worker by now."""
        pidfd = self._brain.store.get(fd_name("spare", app.name, number))
        if pidfd is None:
            return
        pid = process.pidfd_pid(pidfd)
        if process.is_stopped(pid) and all(worker.pid != pid for worker in app.workers.values()):
            signals.send(self._brain, app, pidfd, signal.SIGKILL, whose=f"generation {number}: its spare", pid=pid)

    def _forget(self, app: App, number: int) -> None:
        store = self._brain.store
        store.remove(*(fd_name(kind, app.name, number) for kind in ("template", "tpid", "spare")))
        store.forget(fd_name("tout", app.name, number), fd_name("terr", app.name, number))

    def _unborn(self, app: App, handle: WorkerHandle, why: str) -> None:
        """Nobody has said a pid: the process never came."""
        if not handle.pid:
            if handle.state is State.STARTING and handle.failure is None:
                handle.failure = w.Failed("other", f"its template ended: {why}", "")
            self._brain.deaths.ended(app, handle, process.UNKNOWN)

    def _failed(self, app: App, number: int, failure: Failure, now: float, *, killed: bool = False) -> None:
        if number == app.target:
            app.target_failure = failure
        elif number == app.generation and app.starting:
            self._brain.deaths.start_failed(app, failure, now, killed=killed)
        elif number == app.generation and app.running:
            self._brain.deaths.unstable(app, failure, now, permanent=False)  # it has run: what it lacks may come back
        self._brain.poke(app)
