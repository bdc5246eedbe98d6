"""The primary of a cluster: starts workers, listens for them, hands connections out, replaces those that die.

Who gets the next connection is protocol/nodecluster.py, whether and when a worker is replaced is policy/restart.py: the
daemon decides by the same code. Workers are Python programs of any kind, or Node's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal as signals
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pyworker.cluster import handles
from pyworker.cluster.child import DRAIN, SUICIDE
from pyworker.cluster.emitter import Emitter
from pyworker.cluster.listening import Listeners
from pyworker.cluster.members import Worker
from pyworker.cluster.options import Scheduling, Settings, check_count, program_of, settings_of
from pyworker.cluster.parent import ChildProcess
from pyworker.config.cpus import usable_cpus
from pyworker.config.schema import RestartConfig
from pyworker.policy.restart import CLEAR, Record, after_unstable_death, is_stable, wants_replacement
from pyworker.protocol import node
from pyworker.protocol import nodecluster as nc

_FOR_ALL = ("SIGTERM", "SIGINT")  # what a terminal or a service manager sends to the whole group
_TOGETHER = 0.1  # seconds in which a signal to the whole group, which a worker died of, is seen by us as well
_NATIVE = handles.Kind("net.Native", {})
_UDP = handles.Kind("dgram.Native", {})


class Cluster(Emitter):
    """The workers of this process. One is made by the module; make another to have two sets of workers.

    Events and what a callback is given:

    setup       (settings)
    fork        (worker)
    online      (worker)                  it runs
    listening   (worker, address)         a Listening: address, port, address_type
    message     (worker, message, handle)
    disconnect  (worker)                  its channel is closed
    exit        (worker, code, signal)
    giveup      (count, window)           so many unstable deaths in so many seconds: only one try every `restart.retry`
    error       (worker, exception)
    """

    EVENTS: ClassVar[tuple[str, ...]] = (
        *("setup", "fork", "online", "listening", "message", "disconnect", "exit", "giveup", "error"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.workers: dict[int, Worker] = {}
        self._set_up = False
        self._next_id = 1
        self._record: Record = CLEAR
        self._wanted = 0  # managed workers
        self._primary = nc.Primary()
        self._listeners = Listeners(self._accepted, self._after)
        self._timers: set[asyncio.TimerHandle] = set()
        self._changed: set[asyncio.Event] = set()  # of those who wait until workers are gone

    # ---- what a program asks -------------------------------------------------------------------------
    @property
    def scheduling_policy(self) -> Scheduling:
        """How connections are handed out; set by `setup_primary`, before the first worker."""
        return self.settings.scheduling

    def setup_primary(
        self,
        exec: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
        *,
        restart: RestartConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Settings:
        """Say what workers run. Calls after the first fork change what later workers run, but not the scheduling.

        The options are the fields of `Settings`. `restart` takes the keys of a config file's [app.restart]; time spans
        are numbers of seconds.
        """
        wanted = settings_of(exec, args, restart, options)
        if self.workers and wanted.scheduling != self.settings.scheduling:
            raise RuntimeError("scheduling cannot change while there are workers")
        self.settings = wanted
        if not self.workers and not self._listeners:
            self._primary = nc.Primary(round_robin=wanted.scheduling == "round-robin", hold=True)
        self._set_up = True
        self.emit("setup", wanted)
        return wanted

    def fork(self, env: Mapping[str, str] | None = None) -> Worker:
        """Start one worker; `env` is added to its environment. It is not replaced when it ends: `start` does that."""
        return self._fork(env, managed=False)

    async def start(self, workers: int | None = None) -> list[Worker]:
        """Start the workers of the settings and keep that many running."""
        check_count(workers or 0)
        count = workers or self.settings.workers or usable_cpus()
        self._want(self._wanted + count)
        return [self._fork(None, managed=True) for _ in range(count)]

    async def disconnect(self) -> None:
        """Let all workers finish and end, then close the listeners. Nothing is replaced any more.

        Those that the program forks meanwhile (in a callback of `exit`) are not waited for.
        """
        self._want(0)
        for timer in list(self._timers):
            timer.cancel()
        self._timers.clear()
        leaving = list(self.workers.values())
        for worker in leaving:
            worker.disconnect()
        try:
            if not await self._until_gone(leaving, self.settings.drain_timeout + 1):
                for worker in leaving:
                    worker.process.kill(signals.SIGTERM)
                if not await self._until_gone(leaving, 2):
                    for worker in leaving:
                        worker.process.kill(signals.SIGKILL)
                    await self._until_gone(leaving, None)
        finally:  # it may be cancelled
            self._carry_out(self._primary.close())

    async def serve(self, exec: str | os.PathLike[str] | None = None, args: Sequence[str] = (), **options: Any) -> bool:
        """Set up, start, and run until SIGTERM or SIGINT; then let the workers finish. Stderr is told what goes wrong.

        Ends also when all workers have ended for good: False when that is because they could not be kept alive.
        """
        if exec is not None or options or not self._set_up:
            self.setup_primary(exec, args, **options)
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        for number in (signals.SIGTERM, signals.SIGINT):
            loop.add_signal_handler(number, told.set)

        def say_exit(worker: Worker, code: int | None, signal: str | None) -> None:
            def say() -> None:
                if not told.is_set():
                    self._say_exit(worker, code, signal)

            if worker.exited_after_disconnect or not self._wanted:
                return
            if signal in _FOR_ALL:
                loop.call_later(_TOGETHER, say)
            else:
                say()

        def over(*args: object) -> None:
            if self._is_over and args[-1] in _FOR_ALL:
                loop.call_later(_TOGETHER, told.set)
            elif self._is_over:
                told.set()

        self.on("exit", say_exit)
        self.on("error", self._say_error)
        self.on("exit", over)
        self.on("error", over)  # the last one could not even be started
        self.on("giveup", self._say_giveup)
        try:
            await self.start()
            await told.wait()
        finally:
            for number in (signals.SIGTERM, signals.SIGINT):
                loop.remove_signal_handler(number)
            self.off("exit", over)
            self.off("error", over)
            self.off("exit", say_exit)
            self.off("error", self._say_error)
            self.off("giveup", self._say_giveup)
            await self.disconnect()
        return not self._record.permanent

    def _say_exit(self, worker: Worker, code: int | None, signal: str | None) -> None:
        how = f"exited with code {code}" if signal is None else f"was killed by {signal}"
        sys.stderr.write(f"cluster: worker {worker.id} (pid {worker.process.pid}) {how}\n")

    def _say_error(self, worker: Worker, error: Exception) -> None:
        sys.stderr.write(f"cluster: worker {worker.id}: {error}\n")

    def _say_giveup(self, count: int, window: float) -> None:
        retry = self.settings.restart.retry
        then = f"one is tried every {retry:g} s" if retry else "none is tried any more"
        sys.stderr.write(
            f"cluster: workers died {count} times within {window:g} s: {then}. Their own words above say why; "
            "mend that, and start again\n"
        )

    # ---- workers -------------------------------------------------------------------------------------
    def _want(self, count: int) -> None:
        """Keep that many managed workers, and the listeners open for those that are to come."""
        self._wanted = count
        self._primary.expected = count > 0 and not self._record.permanent

    def _leaves(self, worker: Worker) -> None:
        """A worker ends on purpose: nobody takes its place, and its exit is no crash."""
        if worker.managed and not worker.exited_after_disconnect and not worker.announced:
            self._want(max(0, self._wanted - 1))
        worker.exited_after_disconnect = True

    def _fork(self, env: Mapping[str, str] | None, *, managed: bool) -> Worker:
        if not self._set_up:
            self.setup_primary()
        settings = self.settings
        number = self._next_id
        self._next_id += 1
        runs = program_of(settings)
        child = ChildProcess(runs.command)
        whole = {**(os.environ if settings.env is None else settings.env), **(env or {})}
        whole[DRAIN] = str(settings.drain_timeout)
        worker = Worker(self, number, child, managed=managed)
        child.on("message", lambda message, handle: self._on_message(worker, message, handle))
        child.on("disconnect", lambda: self._on_disconnect(worker))
        child.on("exit", lambda code, signal: self._on_exit(worker, code, signal))
        child.on("error", lambda error: self._on_error(worker, error))
        child.on_internal = lambda value, handle: self._on_internal(worker, value, handle)  # type: ignore[method-assign]
        # a Python worker is born with Ctrl-C held back, and lets it through when it knows what to do with it: child.py
        mask = signals.pthread_sigmask(signals.SIG_BLOCK, () if runs.is_node else (signals.SIGINT,))
        self.workers[number] = worker  # now: a handler that raises when Ctrl-C is let through leaves one that is known
        try:
            child._start(
                (settings.stdin, settings.stdout, settings.stderr),
                settings.cwd,
                whole,
                channel=True,
                python=not runs.is_node,
                unique_id=str(number),
                pass_fds=runs.pass_fds,
            )
        except BaseException:
            del self.workers[number]
            raise
        finally:
            signals.pthread_sigmask(signals.SIG_SETMASK, mask)
        asyncio.get_running_loop().call_soon(self.emit, "fork", worker)
        return worker

    def _on_message(self, worker: Worker, message: Any, handle: handles.Received | None) -> None:
        if message == SUICIDE and handle is None:
            self._announced(worker)
        told = worker.emit("message", message, handle)
        told = self.emit("message", worker, message, handle) or told
        if not told and not worker._streams and not self._streams:
            handles.close(handle)

    def _on_internal(self, worker: Worker, message: dict[str, Any], handle: node.Handle | None) -> None:
        if handle is not None:
            os.close(handle.fd)  # no message of a worker's cluster code brings one
        self._carry_out(self._primary.received(worker.id, message))

    def _on_error(self, worker: Worker, error: Exception) -> None:
        never_ran = worker.process.pid is None
        if never_ran:
            self.workers.pop(worker.id, None)
            worker.state = "dead"
            self._replace(worker, clean=False)
            self._tell_changed()
        told = worker.emit("error", error)
        told = self.emit("error", worker, error) or told
        if not told and not worker._streams and not self._streams:
            raise error

    def _on_disconnect(self, worker: Worker) -> None:
        self._carry_out(self._primary.lost(worker.id))
        if worker.state != "dead":
            worker.state = "disconnected"
            self._after(self.settings.drain_timeout + 5, lambda: worker.process.kill(signals.SIGKILL))
        worker.emit("disconnect")
        self.emit("disconnect", worker)

    def _on_exit(self, worker: Worker, code: int | None, signal: str | None) -> None:
        self._carry_out(self._primary.lost(worker.id))
        self.workers.pop(worker.id, None)
        worker.state = "dead"
        if not worker.exited_after_disconnect and not worker.announced:
            self._replace(worker, clean=code == 0)
        worker.emit("exit", code, signal)
        self.emit("exit", worker, code, signal)
        self._tell_changed()

    def _announced(self, worker: Worker) -> None:
        """A worker says that it is about to die: its successor starts now, and it has so long to end."""
        if worker.announced or worker.exited_after_disconnect:
            return
        worker.announced = True
        if worker.managed and self._wanted:
            self._primary.dying(worker.id)
        self._replace(worker, clean=False)
        self._after(self.settings.suicide_timeout, lambda: worker.process.kill(signals.SIGKILL))

    def _replace(self, worker: Worker, *, clean: bool) -> None:
        """Decide by the policy whether and when a worker's place is filled again."""
        restart = self.settings.restart
        if not worker.managed or not self._wanted:
            return
        if not wants_replacement(restart, clean=clean):
            self._want(self._wanted - 1)
            self._close_if_over()
            return
        now = asyncio.get_running_loop().time()
        if is_stable(worker.ready_at, now, restart):
            self._record = CLEAR
            self._fill()
            return
        before = self._record
        self._record = after_unstable_death(before, now, restart, jitter=random.random())
        if self._record.failed and not before.failed:
            self.emit("giveup", restart.max_restarts, restart.window)
        if not self._record.permanent:
            self._after(max(0.0, self._record.next_at - now), self._fill)
            return
        self._want(self._wanted)
        self._close_if_over()

    @property
    def _is_over(self) -> bool:
        """No worker is left, and none will come by itself."""
        return not self.workers and (not self._wanted or self._record.permanent)

    def _close_if_over(self) -> None:
        if self._is_over:
            self._carry_out(self._primary.close())

    def _fill(self) -> None:
        """Start what is missing; after a giveup one is tried."""
        missing = self._wanted - sum(map(_stays, self.workers.values()))
        for _ in range(min(missing, 1) if self._record.failed else missing):
            self._fork(None, managed=True)

    def _settled(self, worker: Worker, ready_at: float) -> None:
        """A worker has lived `min_uptime`: what went wrong before is forgotten."""
        if worker.ready_at == ready_at and worker.state in ("online", "listening"):
            self._record = CLEAR
            self._fill()

    # ---- listeners and connections -------------------------------------------------------------------
    def _carry_out(self, actions: Sequence[nc.Action]) -> None:
        for action in actions:
            match action:
                case nc.Open():
                    self._open(action)
                case nc.Close(key):
                    self._listeners.close(key)
                case nc.Watch(key, on):
                    self._listeners.watch(key, on=on)
                case nc.Say():
                    self._say(action)
                case nc.Release(connection) | nc.Drop(connection):
                    connection.close()
                case nc.Online(number):
                    self._tell(number, "online")
                case nc.Listening(number):
                    self._tell(number, "listening", action)
                case nc.Leaving(number):
                    if (worker := self.workers.get(_int(number))) is not None:
                        self._leaves(worker)

    def _tell(self, number: object, event: Literal["online", "listening"], *args: Any) -> None:
        worker = self.workers.get(_int(number))
        if worker is None:
            return
        if worker.state != event:
            # one that has no server is ready when it runs; one that has, when the first is up
            worker.ready_at = now = asyncio.get_running_loop().time()
            if not self._record.is_clear:
                self._after(self.settings.restart.min_uptime, lambda: self._settled(worker, now))
        worker.state = event
        worker.emit(event, *args)
        self.emit(event, worker, *args)

    def _open(self, action: nc.Open) -> None:
        try:
            name = self._listeners.open(action.key, action.query)
        except (OSError, TypeError, ValueError) as error:  # the last two: a text that can be no host
            number = error.errno if isinstance(error, OSError) else None
            self._carry_out(self._primary.failed(action.key, number or errno.EINVAL))
            return
        self._carry_out(self._primary.opened(action.key, *name))

    def _accepted(self, key: str, connection: socket.socket) -> None:
        self._carry_out(self._primary.accepted(key, connection))

    def _say(self, action: nc.Say) -> None:
        number = _int(action.worker)
        worker = self.workers.get(number)
        channel = worker.process._channel if worker is not None else None
        if channel is None or not channel.connected:
            return  # what was offered to it is offered again when its end is seen
        handle, kind = action.connection, _NATIVE
        if action.listener is not None:
            handle = self._listeners[action.listener]
            kind = _UDP if handle.type == socket.SOCK_DGRAM else _NATIVE
        connection = action.connection

        def told(error: Exception | None) -> None:
            if error is not None and connection is not None and channel.connected:
                self._carry_out(self._primary.refused(number, connection))

        if handle is None:
            channel.send_raw(action.message)
        else:
            channel.send_raw(action.message, handle, kind=kind, keep_open=True, callback=told)

    # ---- time ----------------------------------------------------------------------------------------
    def _after(self, delay: float, function: Callable[[], Any]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            function()

        timer = asyncio.get_running_loop().call_later(delay, run)
        self._timers.add(timer)

    def _tell_changed(self) -> None:
        for changed in self._changed:
            changed.set()

    async def _until_gone(self, workers: list[Worker], limit: float | None) -> bool:
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            async with asyncio.timeout(limit):
                while any(worker.id in self.workers for worker in workers):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            pass
        finally:
            self._changed.discard(changed)
        return not any(worker.id in self.workers for worker in workers)


def _stays(worker: Worker) -> bool:
    """Whether a worker fills one of the places that are kept filled."""
    return worker.managed and not worker.announced and not worker.exited_after_disconnect


def _int(worker: object) -> int:
    assert isinstance(worker, int)
    return worker
