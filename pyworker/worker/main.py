"""Worker: one asgi or wsgi worker from birth to end: start the app, accept, answer the daemon, drain.

Runs in the process that the template forked. It listens to the daemon and to signals, and needs neither: when the
channel closes (daemon and guardian both gone) it finishes its requests and leaves.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import time
import traceback
from asyncio.events import _set_running_loop
from typing import TYPE_CHECKING, Any, Literal, assert_never

from pyworker import __version__
from pyworker.cluster import given
from pyworker.config.schema import AppConfig
from pyworker.errors import Exit
from pyworker.protocol import worker as w
from pyworker.protocol.scoreboard import F
from pyworker.unix.fds import Socket
from pyworker.worker import api, tasks
from pyworker.worker.accept import AcceptLoop, NotSupported, can_loop_take_turns, new_loop
from pyworker.worker.birth import Birth, keep_from_children, take_back
from pyworker.worker.channel import Channel, Closed, clip
from pyworker.worker.engines.lifespan import LifespanFailed
from pyworker.worker.inbox import InboxLoop
from pyworker.worker.row import Row
from pyworker.worker.say import flush, say
from pyworker.worker.target import TargetError, call_hook, load

if TYPE_CHECKING:
    import ssl

    from pyworker.worker.engines.server import Server

_TICK = 1.0  # seconds: progress is noted, and one accept is tried
_A_WHILE = 0.1  # seconds until it is looked again for how long to wait
_CRASHED = 70  # EX_SOFTWARE


def run(birth: Birth) -> int:
    """Live as this worker and return its exit code; ending.py then ends the process."""
    birth.channel.send(w.Hello(__version__))
    if birth.ipc_fd >= 0:
        given.give(birth.ipc_fd)
    server = birth.server
    try:
        if server is None:
            target = load(birth.app)
            take_back(birth.stacks_fd)
            server = new_server(birth.app, target.application, target.interface, birth.ssl_context)
        if birth.app.hooks.post_fork is not None:
            call_hook(birth.app.hooks.post_fork)
    except TargetError as error:
        birth.channel.send(
            w.Failed("import" if server is None else "other", error.message, clip(error.traceback), clip(error.hint))
        )
        say(error.traceback or error.message)
        return Exit.FAILED
    kind, runner = birth.loop, birth.runner
    while True:
        worker = _Worker(birth, server, kind)
        try:
            with runner or new_runner(kind) as runner:
                # not runner.run: it would handle SIGINT first, which worker.live() does
                return runner.get_loop().run_until_complete(worker.live())
        except NotSupported:
            # rather the slower loop than workers that do not share their connections evenly
            birth.channel.send(
                w.Notice(f"this {kind} cannot take turns in accepting; the asyncio loop is used instead")
            )
            kind, runner = "asyncio", None
            server = new_server(birth.app, server.application, server.interface, birth.ssl_context)
        except asyncio.CancelledError:
            if worker.is_leaving:
                return Exit.OK  # the app's shutdown cancels all there is
            return _ended_by_app(
                birth, "cancelled all tasks of its worker's loop, that of the worker, too (asyncio.all_tasks())"
            )
        except Exception as error:  # noqa: BLE001  our own loop code failed: the daemon will replace this worker
            if str(error).startswith("Event loop stopped before"):
                return _ended_by_app(birth, "stopped its worker's loop (loop.stop())")
            if "can't start new thread" in str(error):  # a limit, and no fault of any line
                birth.channel.send(w.Failed("other", f"no thread for its requests: {error}", "", ""))
                return Exit.FAILED
            traceback.print_exc()
            return _CRASHED


def _ended_by_app(birth: Birth, how: str) -> int:
    message = f"the app has {how}"
    birth.channel.send(w.Failed("other", message, "", "to end a worker in order: os.kill(os.getpid(), signal.SIGTERM)"))
    say(message)
    return Exit.FAILED


def new_server(
    app: AppConfig, application: Any, interface: Literal["asgi", "wsgi"], ssl_context: ssl.SSLContext | None
) -> Server:
    """Return what serves an application, ready to be started in a loop."""
    # imported by now, before the fork: this module itself must not need the libraries that the finder lends
    from pyworker.worker.engines.server import Server

    return Server(app, application, interface, ssl_context=ssl_context)


def new_runner(kind: str) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=lambda: new_loop(kind))


def can_take_turns(app: AppConfig, kind: str) -> bool:
    """Find out, once for all workers of an app, whether this kind of loop does what `AcceptLoop` asks of it. False: perhaps."""
    if kind != "uvloop" or app.balance != "round-robin":
        return False
    runner = ready_runner(app, kind)
    if runner is None:
        return False
    runner.close()
    return True


def ready_runner(app: AppConfig, kind: str) -> asyncio.Runner | None:
    """Make a loop ahead of need, in a process that will be a worker of this app; None when it has to be tried then."""
    runner = new_runner(kind)
    try:
        loop = runner.get_loop()
        if kind != "uvloop" or app.balance != "round-robin" or loop.run_until_complete(can_loop_take_turns(loop)):
            return runner
    except OSError:
        pass  # a shortage of the moment: the worker will meet it, or not
    runner.close()
    return None


class _Worker:
    def __init__(self, birth: Birth, server: Server, kind: str) -> None:
        self._birth = birth
        self._server = server
        self._kind = kind
        self._channel: Channel = birth.channel
        self._row = Row.mapped(birth.board_fd, birth.row)
        self._going = not birth.held
        self._cut_at = 0.0  # when the time to drain is over
        self._ticking: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ready = False

    @property
    def is_leaving(self) -> bool:
        return self._drain.done() and not self._drain.cancelled()

    async def live(self) -> int:
        loop = self._loop = asyncio.get_running_loop()
        birth = self._birth
        server = self._server
        exclusive = birth.app.balance == "round-robin"
        untried = self._kind == "uvloop" and exclusive and not birth.takes_turns
        if untried and not await can_loop_take_turns(loop):
            raise NotSupported
        self._drain: asyncio.Future[w.Drain] = loop.create_future()
        signals = {name: getattr(signal, f"SIG{name}") for name in ("TERM", "INT", birth.app.stop.signal)}
        for name, number in signals.items():
            loop.add_signal_handler(number, self._on_signal, name)
        ours = set(signals.values())
        if server.interface == "asgi" and birth.stacks_fd >= 0:
            loop.add_signal_handler(w.TASKS_SIGNAL, tasks.write, birth.stacks_fd)
            ours.add(w.TASKS_SIGNAL)
        keep_from_children(ours)
        loop.add_reader(self._channel.fileno(), self._on_channel)
        self._accepts: AcceptLoop | InboxLoop
        if birth.inbox_fd >= 0:  # somebody hands the connections out: the listeners are not ours to accept on
            self._accepts = InboxLoop(loop, Socket(fileno=os.dup(birth.inbox_fd)), server.serve)
        else:
            listeners = [_listener(fd) for fd in birth.listener_fds]
            self._accepts = AcceptLoop(loop, listeners, server.serve, exclusive=exclusive)
        server.on_saturation = self._accepts.hold
        self._tick()
        starting = loop.create_task(server.start(self._row, lambda reason: self._channel.send(w.Recycle(reason))))
        waits: list[asyncio.Future[Any]] = [starting, self._drain]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()  # told to leave before the app was up
            await asyncio.wait([starting])
            self._channel.send(w.Drained(0, 0))
            return Exit.OK
        try:
            starting.result()
        except LifespanFailed as error:
            self._channel.send(w.Failed("lifespan", error.message, clip(error.traceback)))
            say(error.traceback or error.message)
            return Exit.FAILED
        self._ready = True
        if not self._drain.done():
            if self._going:
                await self._begin_accepting()
                self._channel.send(w.Ready(serving=True))
            else:
                self._channel.send(w.Ready())
        order = await self._drain
        return await self._leave(order)

    async def _leave(self, order: w.Drain) -> int:
        called: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(self._call_stops, called)
        await called
        self._server.begin_drain(self._cut_at - self._loop.time(), to_empty=order.to_empty)
        await self._accepts.stop(to_empty=order.to_empty)
        self._row[F.LEFT_AT] = time.monotonic_ns()
        await self._server.drained()
        least = self._loop.time() + 1.0
        # before the app closes what they may be using; the time may become another meanwhile
        while self._tasks and (left := max(least, self._cut_at) - self._loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=min(left, _A_WHILE))
        report = await self._server.shut_down()
        if self._ticking is not None:
            self._ticking.cancel()
        self._channel.send(w.Drained(report.requests, report.cancelled))
        self._loop.remove_reader(self._channel.fileno())
        return Exit.OK

    def _call_stops(self, called: asyncio.Future[None]) -> None:
        """In no task, as requests are: `asyncio.run` of Python 3.14 refuses to work in one, with the loop hidden or not."""
        try:
            for callback in api.take_stop_callbacks():
                self._call_stop(callback)
        finally:
            called.set_result(None)  # whatever was raised: the drain waits for it

    def _call_stop(self, callback: Any) -> None:
        try:
            if self._server.interface == "wsgi":
                _set_running_loop(None)  # as for its requests
            try:
                result = callback()
            finally:
                _set_running_loop(self._loop)
            if inspect.isawaitable(result):
                task = asyncio.ensure_future(_guarded(result))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except BaseException:  # noqa: BLE001  the app's own, sys.exit() too: it must not keep the worker from draining
            traceback.print_exc()

    def _tick(self) -> None:
        # first: the handler of a signal may raise, and who ticks no more counts as hung
        self._ticking = self._loop.call_later(_TICK, self._tick)
        self._row[F.PROGRESS_AT] = time.monotonic_ns()
        self._channel.flush()
        self._accepts.try_once()

    def _begin(self, order: w.Drain) -> None:
        if not self._drain.done():
            self._cut_at = self._loop.time() + order.timeout
            self._drain.set_result(order)

    # ---- what comes in -----------------------------------------------------------------------------
    def _on_signal(self, name: str) -> None:
        if self._drain.done():
            # asked again: leave at once, by the very signal, so that the status tells the truth
            number = getattr(signal, f"SIG{name}")
            self._loop.remove_signal_handler(number)
            flush()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._begin(w.Drain(self._birth.app.stop.drain_timeout, to_empty=False))

    def _on_channel(self) -> None:
        while True:
            found = self._channel.receive()
            if found is None:
                return
            if isinstance(found, Closed):
                self._loop.remove_reader(self._channel.fileno())
                self._begin(w.Drain(self._birth.app.stop.drain_timeout, to_empty=True))
                return
            self._on_message(found.message, found.fd)

    def _on_message(self, message: Any, fd: int) -> None:
        match message:
            case w.Go():
                self._going = True
                if self._ready:
                    task = self._loop.create_task(self._accept_now())
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            case w.Kick():
                self._accepts.try_once()
            case w.Drain() if self._drain.done():
                self._cut_at = self._loop.time() + message.timeout  # it is another time now
                self._server.cut_in(message.timeout)
            case w.Drain():
                self._begin(message)
            case w.Check():
                self._serve_check(fd)
                return
            case w.Bound():
                pass  # an answer that only scripts ask for
            case _:
                assert_never(message)
        if fd >= 0:
            os.close(fd)

    async def _accept_now(self) -> None:
        await self._begin_accepting()
        self._channel.send(w.Accepting())

    async def _begin_accepting(self) -> None:
        if self._accepts.accepting or self._drain.done():
            return
        try:
            await self._accepts.start()
        except NotSupported as error:  # the self-test has passed, so this is a shortage, of fds for instance
            say(f"cannot take turns in accepting ({error}); accepting without")
            await self._accepts.start_shared()

    def _serve_check(self, fd: int) -> None:
        if fd < 0:
            return
        connection = Socket(fileno=fd)
        connection.setblocking(False)
        if not self._ready:
            connection.close()
            return
        self._server.serve(connection, unix=True, tls=False, check=True)


async def _guarded(awaitable: Any) -> None:
    try:
        await awaitable
    except (Exception, SystemExit):  # noqa: BLE001  the app's own stop callback
        traceback.print_exc()


def _listener(fd: int) -> socket.socket:
    listener = Socket(fileno=os.dup(fd))
    listener.setblocking(False)
    return listener
