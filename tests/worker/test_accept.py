"""Strict turns, measured on real worker processes."""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  uvloop wants it for its first address, which must not be when no file can be opened
import errno
import itertools
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.schema import HttpConfig
from pyworker.protocol.scoreboard import F
from pyworker.protocol.worker import Accepting, Drain, Go, Hello, Kick, Ready
from pyworker.unix.epoll import waiting_for
from pyworker.worker.accept import AcceptLoop, NotSupported, can_loop_take_turns, new_loop
from tests.support.addresses import has_ipv6
from tests.support.fake_daemon import FakeDaemon, Peer, tcp_listener
from tests.support.steps import acts_at
from tests.support.turns import assert_turns
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES
from tests.worker.conftest import answer, get, request, spread

pytestmark = pytest.mark.usefixtures("no_fd_is_left")
LOOPS = ("asyncio", "uvloop")


def started(daemon: FakeDaemon, count: int) -> list[Peer]:
    template = daemon.load()
    workers = [daemon.fork(template, slot) for slot in range(1, count + 1)]
    for worker in workers:
        worker.expect(Hello)
        assert worker.expect(Ready).serving
    return workers


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("target", ["shop:app", "shop:wsgi"])
def test_idle_workers_take_strict_turns(daemon: Any, loop: str, target: str) -> None:
    d = daemon(target=target, loop=loop, http=HttpConfig(keepalive_timeout=600.0))
    workers = started(d, 4)
    assert d.loaded.loop == loop
    address, pids = d.listeners[0].getsockname(), [worker.pid for worker in workers]
    assert_turns(pids, lambda: get(address), 400)
    lasting: list[socket.socket] = []

    def lasts() -> bytes:
        lasting.append(socket.create_connection(address, timeout=30))
        return request(lasting[-1])

    try:
        assert_turns(pids, lasts, 64)
        assert sum(d.row(row)[F.OPEN] for row in range(1, 5)) == 64
    finally:
        for connection in lasting:
            os.close(connection.detach())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_says_nothing_keeps_no_worker_waiting_whatever_time_out_the_app_gives_its_sockets(
    daemon: Any, folder: Path, loop: str
) -> None:
    (folder / "shop.py").write_text("import socket\nsocket.setdefaulttimeout(600)\n" + (folder / "shop.py").read_text())
    d = daemon(loop=loop)
    (worker,) = started(d, 1)
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as silent:
        assert get(d.listeners[0].getsockname()) == str(worker.pid).encode()
        assert request(silent) == str(worker.pid).encode()


@pytest.mark.parametrize("loop", LOOPS)
def test_blocked_worker_of_four_delays_nobody(daemon: Any, folder: Path, loop: str) -> None:
    d = daemon(target="shop:wsgi", loop=loop)
    workers = started(d, 4)
    address = d.listeners[0].getsockname()
    with socket.create_connection(address, timeout=30) as slow:
        slow.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
        blocked = wait_until(lambda: [w for row, w in enumerate(workers, 1) if d.row(row)[F.IN_FLIGHT]])
        assert_turns([w.pid for w in workers if w not in blocked], lambda: get(address), 90)
        (folder / "go").touch()
        assert answer(slow) == str(blocked[0].pid).encode()


def test_shared_balance_serves_on_several_listeners_of_every_family(daemon: Any, folder: Path) -> None:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "s"))
    unix.listen()
    listeners = [tcp_listener(), unix]
    if has_ipv6():
        listeners.append(tcp_listener("::1"))
    for balance in ("shared", "round-robin"):
        d = daemon([each.dup() for each in listeners], balance=balance)
        workers = started(d, 2)
        for listener in listeners:
            counts = spread(listener.getsockname(), 20)
            assert set(counts) <= {str(worker.pid).encode() for worker in workers}
        for worker in workers:
            worker.send(Drain(1.0, to_empty=False))
            worker.wait_closed()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("kicked", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
def test_connection_of_a_worker_killed_between_wake_and_accept_is_served_by_a_sibling(
    daemon: Any, loop: str, kicked: bool
) -> None:
    d = daemon(loop=loop)
    first, second = started(d, 2)
    address = d.listeners[0].getsockname()
    # whose turn it is: the one that did not take the last connection
    last = int(get(address))
    turn, other = (first, second) if last == second.pid else (second, first)
    os.kill(turn.pid, signal.SIGSTOP)
    wait_until(lambda: "T" in Path(f"/proc/{turn.pid}/stat").read_text().rpartition(")")[2][:3])
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        d.kill(turn.pid)
        if kicked:
            other.send(Kick())
        assert str(other.pid).encode() in client.recv(4096)


def test_held_worker_accepts_only_after_go(daemon: Any) -> None:
    d = daemon()
    worker = d.fork(d.load(), 1, held=True)
    worker.expect(Hello)
    assert not worker.expect(Ready).serving
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        worker.send(Kick())  # must not make it accept
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        worker.send(Go())
        worker.expect(Accepting)
        client.settimeout(30)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_worker_without_a_descriptor_when_it_begins_to_accept_does_so_later_and_starts_its_app_once(
    daemon: Any, folder: Path, loop: str
) -> None:
    shop = folder / "shop.py"
    shop.write_text(
        "import resource\n"
        + shop.read_text().replace(
            "message = await receive()",
            "message = await receive(); print(message['type'], flush=True)\n"
            "            free = os.dup(0)\n"
            "            os.close(free)\n"
            "            resource.setrlimit(resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
        )
    )
    d = daemon(loop=loop)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    assert worker.expect(Ready).serving
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limits)
    assert get(d.listeners[0].getsockname()) == str(worker.pid).encode()
    assert worker.read_out() == b"lifespan.startup\n"


@pytest.mark.parametrize("kind", LOOPS)
def test_listeners_that_there_is_no_room_to_wait_for_are_accepted_on_later(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[socket.socket] = []

    class Full:
        """The loop, when this user may wait for no more."""

        def __init__(self) -> None:
            self.refusals = 2
            self.loop = asyncio.get_running_loop()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.loop, name)

        def add_reader(self, *arguments: Any) -> None:
            if self.refusals:
                self.refusals -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.loop.add_reader(*arguments)

    async def scenario() -> None:
        listener = tcp_listener()
        loop: Any = Full()
        accepts = AcceptLoop(loop, [listener], lambda connection, *_: served.append(connection), exclusive=True)
        with pytest.raises(NotSupported):
            await accepts.start()
        await accepts.start_shared()
        with socket.create_connection(listener.getsockname()):
            await settled(lambda: served)
        await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        runner.run(scenario())
    for connection in served:
        os.close(connection.detach())
    assert "cannot accept connections: fs.epoll.max_user_watches (sysctl) is reached; trying again" in capsys.readouterr().err


@pytest.mark.parametrize("kind", LOOPS)
def test_loop_can_take_turns(kind: str) -> None:
    async def check() -> bool:
        return await can_loop_take_turns(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        assert runner.run(check())


@pytest.mark.parametrize("kind", LOOPS)
def test_a_stop_that_comes_while_it_begins_to_accept_is_no_fault_of_the_loop(kind: str) -> None:
    async def scenario() -> None:
        accepts = AcceptLoop(asyncio.get_running_loop(), [tcp_listener()], lambda *_: None, exclusive=True)
        starting = asyncio.ensure_future(accepts.start())
        await asyncio.sleep(0)
        await accepts.stop(to_empty=False)
        await starting
        assert not accepts.accepting

    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        runner.run(scenario())


def test_a_worker_stays_in_the_queue_wherever_the_handler_of_a_signal_has_raised() -> None:
    async def scenario() -> None:
        listener = tcp_listener()
        accepts = AcceptLoop(asyncio.get_running_loop(), [listener], lambda *_: None, exclusive=True)
        await accepts.start()
        assert accepts._epoll is not None
        for step in itertools.count(1):
            has_come = acts_at(step, partial(accepts._rearm, listener.fileno()))
            assert listener.fileno() in waiting_for(accepts._epoll.fileno())
            if not has_come:
                break
        await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("kind", LOOPS)
def test_a_worker_that_was_held_is_back_in_the_queue_before_anybody_connects(kind: str) -> None:
    async def scenario() -> None:
        listener = tcp_listener()
        accepts = AcceptLoop(asyncio.get_running_loop(), [listener], lambda *_: None, exclusive=True)

        def takes_turns() -> bool:
            """By what the kernel says of the loop's epoll: "tfd: 7 events: 10000001 ..."."""
            assert accepts._epoll is not None
            entries = [line.split() for line in Path(f"/proc/self/fdinfo/{accepts._epoll.fileno()}").read_text().splitlines()]
            return any(e[0] == "tfd:" and int(e[1]) == listener.fileno() and int(e[3], 16) & select.EPOLLEXCLUSIVE for e in entries)

        await accepts.start()
        assert takes_turns()
        accepts.hold(True)
        await settled(lambda: not takes_turns())
        accepts.hold(False)
        await settled(takes_turns)
        await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        runner.run(scenario())


def test_the_last_worker_takes_also_what_comes_while_it_looks_whether_all_is_taken() -> None:
    async def scenario() -> None:
        listener = tcp_listener()
        address, loop = listener.getsockname(), asyncio.get_running_loop()
        clients: list[socket.socket] = []

        def connect() -> None:
            clients.append(socket.create_connection(address))

        def serve(connection: socket.SocketType, *_: object) -> None:
            connection.close()
            served.append(connection)
            if len(served) == 1:
                loop.call_soon(connect)

        served: list[socket.SocketType] = []
        accepts = AcceptLoop(loop, [listener], serve, exclusive=True)
        await accepts.start()
        connect()
        await accepts.stop(to_empty=True)
        for client in clients:
            client.close()
        assert (len(served), len(clients)) == (2, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", LOOPS)
def test_out_of_files_pauses_without_spinning_and_recovers(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    served: list[socket.socket] = []

    async def scenario() -> None:
        listener = tcp_listener()
        address = listener.getsockname()
        accepts = AcceptLoop(
            asyncio.get_running_loop(), [listener], lambda connection, *_: served.append(connection), exclusive=True
        )
        await accepts.start()
        client = socket.socket()
        client.setblocking(False)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        top = max(int(name) for name in os.listdir("/proc/self/fd"))
        fillers = [os.dup(0) for _ in range(top)]  # no hole below the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(*fillers, top) + 1, limits[1]))
        before = time.process_time()
        try:
            await asyncio.get_running_loop().sock_connect(client, address)
            await asyncio.sleep(0.35)
            assert not served
            assert time.process_time() - before < 0.2
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in fillers:
                os.close(fd)
        for _ in range(1000):
            if served:
                break
            await asyncio.sleep(0.01)
        assert len(served) == 1
        with socket.create_connection(address) as another:
            for _ in range(1000):
                if len(served) == 2:
                    break
                await asyncio.sleep(0.01)
            del another
        assert len(served) == 2
        client.close()
        await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        runner.run(scenario())
    for connection in served:
        os.close(connection.detach())
    said = capsys.readouterr().err
    assert said.count(TOO_MANY_OPEN_FILES) == 1  # however often it was tried
    assert "limits.nofile" in said


@pytest.mark.parametrize("kind", LOOPS)
def test_a_worker_that_finds_no_place_in_the_queue_again_serves_what_it_took_and_tries_once_more(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[socket.socket] = []
    rearm = AcceptLoop._rearm
    full = 0

    def fails(self: AcceptLoop, fd: int) -> None:
        nonlocal full
        if full:
            full -= 1
            assert self._epoll is not None
            self._epoll.unregister(fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rearm(self, fd)

    monkeypatch.setattr(AcceptLoop, "_rearm", fails)

    async def scenario() -> None:
        nonlocal full
        listener = tcp_listener()
        accepts = AcceptLoop(
            asyncio.get_running_loop(), [listener], lambda connection, *_: served.append(connection), exclusive=True
        )
        await accepts.start()
        await asyncio.sleep(0)  # what was queued before
        full = 2  # after the accept, and when it comes back
        for number in 1, 2, 3:
            with socket.create_connection(listener.getsockname()):
                await settled(lambda number=number: len(served) == number)
        await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        runner.run(scenario())
    for connection in served:
        os.close(connection.detach())
    assert "cannot accept connections: fs.epoll.max_user_watches (sysctl) is reached; trying again" in capsys.readouterr().err


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_that_a_worker_without_descriptors_cannot_take_are_served_by_its_sibling(
    daemon: Any, loop: str
) -> None:
    d = daemon(loop=loop)
    poor, rich = started(d, 2)
    address = d.listeners[0].getsockname()
    numbers = {int(name) for name in os.listdir(f"/proc/{poor.pid}/fd")}
    free = next(number for number in range(len(numbers) + 1) if number not in numbers)
    before = resource.prlimit(poor.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(poor.pid, resource.RLIMIT_NOFILE, (free, before[1]))
    assert spread(address, 50) == {str(rich.pid).encode(): 50}
    resource.prlimit(poor.pid, resource.RLIMIT_NOFILE, before)
    wait_until(lambda: get(address) == str(poor.pid).encode())


@pytest.mark.parametrize("to_empty", [False, True])
def test_stopping_takes_what_is_queued_and_then_no_more(to_empty: bool) -> None:
    served: list[socket.SocketType] = []

    def serve(connection: socket.SocketType, unix: bool, addresses: Any, early: bool) -> None:
        assert not early  # the loop would not turn until all of them are answered
        served.append(connection)

    async def scenario() -> None:
        listener = tcp_listener()
        kept = listener.dup()
        accepts = AcceptLoop(asyncio.get_running_loop(), [listener], serve, exclusive=True)
        await accepts.start()
        clients = [socket.create_connection(kept.getsockname()) for _ in range(30)]
        await accepts.stop(to_empty=to_empty)
        assert len(served) == (30 if to_empty else 16)
        clients.append(socket.create_connection(kept.getsockname()))
        accepts.try_once()
        await asyncio.sleep(0)
        assert len(served) == (30 if to_empty else 16)
        for client in clients:
            client.close()
        kept.close()

    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        runner.run(scenario())
    for connection in served:
        os.close(connection.detach())


def test_what_was_queued_before_is_served_outside_of_every_task() -> None:
    """A WSGI app may run a loop of its own, which Python 3.14 refuses inside of a task."""
    served: list[socket.SocketType] = []
    tasks: list[asyncio.Task[Any] | None] = []

    def serve(connection: socket.SocketType, *_: object) -> None:
        served.append(connection)
        tasks.append(asyncio.current_task())

    async def scenario() -> None:
        listener = tcp_listener()
        with socket.create_connection(listener.getsockname()):
            accepts = AcceptLoop(asyncio.get_running_loop(), [listener], serve, exclusive=False)
            await accepts.start()
            await settled(lambda: served)
            await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        runner.run(scenario())
    os.close(served[0].detach())
    assert tasks == [None]


@pytest.mark.parametrize(("host", "is_known"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_our_own_address_is_told_where_all_connections_have_the_same(host: str, is_known: bool) -> None:
    told: list[tuple[socket.SocketType, Any]] = []

    async def scenario() -> None:
        listener = tcp_listener(host)
        address = "127.0.0.1", listener.getsockname()[1]
        accepts = AcceptLoop(
            asyncio.get_running_loop(), [listener], lambda connection, _, addresses, __: told.append((connection, addresses)), exclusive=False
        )  # fmt: skip
        await accepts.start()
        with socket.create_connection(address) as client:
            await settled(lambda: told)
            assert told[0][1] == (client.getsockname(), address if is_known else None)
        await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        runner.run(scenario())
    os.close(told[0][0].detach())


@pytest.mark.parametrize("at_once", [True, False])
def test_held_back_worker_leaves_connections_to_siblings_and_comes_back(at_once: bool) -> None:
    served: list[socket.socket] = []

    async def scenario() -> None:
        listener = tcp_listener()
        address = listener.getsockname()
        accepts = AcceptLoop(
            asyncio.get_running_loop(), [listener], lambda connection, *_: served.append(connection), exclusive=True
        )
        if at_once:
            accepts.hold(True)
        await accepts.start()
        if not at_once:
            accepts.hold(True)
        client = socket.create_connection(address)
        accepts.try_once()
        accepts._resume()  # as after a pause for want of descriptors
        await asyncio.sleep(0.05)
        assert not served
        accepts.hold(False)
        for _ in range(500):
            if served:
                break
            await asyncio.sleep(0.01)
        assert len(served) == 1
        client.close()
        await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop("uvloop")) as runner:
        runner.run(scenario())
    for connection in served:
        os.close(connection.detach())


def test_a_descriptor_that_uvloop_has_closed_is_not_closed_again() -> None:
    """Between its close and ours another thread may have been given the number."""
    closed: list[int] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        listener = tcp_listener()
        taken: list[socket.SocketType] = []
        accepts = AcceptLoop(loop, [listener], lambda connection, *_: taken.append(connection), exclusive=True)
        await accepts.start()
        with socket.create_connection(listener.getsockname()) as client:
            await settled(lambda: taken)
            lost = loop.create_future()

            class Protocol(asyncio.Protocol):
                def connection_lost(self, exc: Exception | None) -> None:
                    lost.set_result(None)

            transport, _ = await loop.connect_accepted_socket(Protocol, taken[0])  # type: ignore[arg-type]
            number = taken[0].fileno()
            real = taken[0].close
            reader, writer = os.pipe()
            transport.abort()
            await lost
            assert taken[0].fileno() == -1
            os.dup2(reader, number)  # the number is another's now
            real()
            os.fstat(number)
            for fd in {reader, writer, number}:
                os.close(fd)
            assert client.recv(1) == b""
        closed.append(number)
        await accepts.stop(to_empty=False)

    with asyncio.Runner(loop_factory=lambda: new_loop("uvloop")) as runner:
        runner.run(scenario())
    assert closed


async def settled(predicate: Callable[[], object]) -> None:
    for _ in range(1000):
        if predicate():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come")
