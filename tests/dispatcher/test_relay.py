"""Bytes between clients and workers' own ports: all of them, in both directions, to the very end of each."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pyworker.dispatcher import workers
from pyworker.dispatcher.loop import Loop
from pyworker.dispatcher.main import CALM, Dispatcher
from pyworker.dispatcher.relay import Pipes, Relay, header_of
from pyworker.dispatcher.workers import PortWorker
from pyworker.protocol import dispatcher as d
from pyworker.protocol.scoreboard import F, row_slice
from pyworker.protocol.wire import MAX_MESSAGE, decode
from pyworker.unix import fds as unix_fds
from tests.dispatcher.rig import LONG, Rig
from tests.support.pyworker import open_fds
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


class Worker:
    """A program with a port of its own; the test accepts for it."""

    def __init__(self, one: Rig, serial: int, *, proxy_protocol: bool = False, listens: bool = True) -> None:
        self.serial = serial
        self.listener = socket.socket()
        self.listener.settimeout(LONG)
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]  # also of one that does not listen: nobody else has it meanwhile
        if listens:
            self.listener.listen()
        self.cells = one.board[row_slice(serial)]
        self._one = one
        self._proxied = proxy_protocol
        self.open()

    def open(self) -> None:
        self._one.tell(d.Open(self.serial, self.serial, self.serial, "port", self.port, self._proxied))

    def accept(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.settimeout(LONG)
        self._one.clients.append(connection)
        return connection

    def close(self) -> None:
        self.listener.close()
        self.cells.release()


@pytest.fixture
def worker(one: Rig) -> Iterator[Worker]:
    made = Worker(one, 1)
    one.listen()
    yield made
    made.close()


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def listens(port: int) -> bool:
    """Whether anybody does; a connection to find out would have to be served."""
    return any(found.laddr[1] == port for found in psutil.net_connections("tcp4") if found.status == psutil.CONN_LISTEN)


def test_bytes_flow_both_ways_and_either_end_may_speak_first(one: Rig, worker: Worker) -> None:
    (client,) = one.connect()
    there = worker.accept()
    there.sendall(b"220 hello")
    assert receive(client, 9) == b"220 hello"
    client.sendall(b"EHLO")
    assert receive(there, 4) == b"EHLO"


def test_when_everybody_else_is_gone_it_takes_nothing_new_and_leaves_after_its_last_connection(
    one: Rig, worker: Worker
) -> None:
    (client,) = one.connect(text=b"question")
    there = worker.accept()
    one.channel.close()
    one._theirs.close()
    one.listener.close()
    wait_until(lambda: not listens(one.address[1]), LONG, "its port to be closed")
    assert receive(there, 8) == b"question"
    there.sendall(b"answer")
    there.close()
    assert receive(client, 99) == b"answer"
    client.close()
    assert one.wait_end() == 0


def test_the_end_of_one_direction_is_passed_on_and_the_other_goes_on(one: Rig, worker: Worker) -> None:
    (client,) = one.connect(text=b"question")
    there = worker.accept()
    client.shutdown(socket.SHUT_WR)
    assert receive(there, 99) == b"question"
    there.sendall(b"answer")
    there.close()
    assert receive(client, 99) == b"answer"


def test_a_reset_is_passed_on_as_a_reset(one: Rig, worker: Worker) -> None:
    (client,) = one.connect(text=b"question")
    there = worker.accept()
    assert receive(there, 8) == b"question"
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    there.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_an_answer_that_comes_before_the_end_of_an_upload_arrives(one: Rig, worker: Worker) -> None:
    def upload(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client.sendall(bytes(20_000_000))

    for _ in range(10):
        (client,) = one.connect()
        sending = threading.Thread(target=upload, args=(client,))
        sending.start()
        there = worker.accept()
        assert receive(there, 1000)
        there.sendall(b"HTTP/1.1 413 Content Too Large\r\n\r\n")
        there.close()  # with much unread: its kernel resets what still comes
        sending.join(LONG)
        assert receive(client, 34) == b"HTTP/1.1 413 Content Too Large\r\n\r\n"


def test_a_receiver_that_pauses_holds_the_sender_back_and_gets_every_byte(one: Rig, worker: Worker) -> None:
    one.settle()  # it has the listener
    before = open_fds(one.pid)
    (client,) = one.connect()
    there = worker.accept()
    content = os.urandom(1 << 20) * 24
    sent = 0
    there.setblocking(False)
    while select.select([], [there], [], 1.0)[1]:  # until every buffer on the way is full
        sent += there.send(content[sent : sent + (1 << 20)])
    assert sent < len(content), "nothing holds the sender back"
    there.setblocking(True)
    there.settimeout(LONG)
    rest = threading.Thread(target=lambda: (there.sendall(content[sent:]), there.close()))
    rest.start()
    found = hashlib.sha256()
    while part := client.recv(1 << 16):
        found.update(part)
    rest.join(LONG)
    assert found.digest() == hashlib.sha256(content).digest()
    client.close()
    wait_until(lambda: open_fds(one.pid) <= before + 2, LONG, "all but a pipe that is kept to be given back")


def test_who_reads_slowly_gets_every_byte_although_both_ends_have_said_all(one: Rig, worker: Worker) -> None:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it connects, to have a small window
    client.settimeout(LONG)
    one.clients.append(client)
    client.connect(one.address)
    there = worker.accept()
    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    assert receive(there, 99) == b"GET / HTTP/1.0\r\n\r\n"
    there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024 * 1024)
    answer = os.urandom(3 * 1024 * 1024)
    there.sendall(answer)
    there.close()  # both directions of the worker's connection have ended, and much of it is unread
    one.tell(d.Ping(1))  # it has seen that end
    one.hear(d.Pong)
    assert receive(client, len(answer) + 1) == answer


def test_connections_go_to_the_worker_with_the_fewest_and_are_counted_in_its_row(one: Rig, worker: Worker) -> None:
    other = Worker(one, 2)
    one.settle()
    one.connect(4)
    mine = [worker.accept(), worker.accept()]
    theirs = [other.accept(), other.accept()]
    assert worker.cells[F.OPEN] == other.cells[F.OPEN] == 2
    for each in theirs:
        each.close()
    for client in one.clients[:4]:
        client.settimeout(LONG)
    wait_until(lambda: _closed(one.clients[:4]) == 2, LONG, "two clients to be told")
    for client in one.clients[:4]:
        if _is_closed(client):
            client.close()
    wait_until(lambda: other.cells[F.OPEN] == 0, LONG)
    one.connect(2)
    other.accept()
    other.accept()
    assert worker.cells[F.OPEN] == 2
    assert other.cells[F.ACCEPTED] == 4
    other.close()
    del mine


def _is_closed(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def _closed(socks: list[socket.socket]) -> int:
    return sum(map(_is_closed, socks))


def test_a_worker_that_cannot_be_reached_costs_no_connection(one: Rig, worker: Worker) -> None:
    dead = Worker(one, 2, listens=False)
    one.settle()
    clients = one.connect(4, text=b"x")
    for _ in clients:
        there = worker.accept()
        assert receive(there, 1) == b"x"
        there.sendall(b"y")
    assert [receive(client, 1) for client in clients] == [b"y"] * 4
    dead.close()


def test_a_client_waits_while_no_worker_can_be_reached(one: Rig) -> None:
    dead = Worker(one, 1, listens=False)
    one.listen()
    (client,) = one.connect(text=b"x")
    one.settle()
    live = Worker(one, 2)
    there = live.accept()
    assert receive(there, 1) == b"x"
    there.sendall(b"y")
    assert receive(client, 1) == b"y"
    live.close()
    dead.close()


def test_a_worker_that_drains_gets_none_and_is_empty_when_its_last_connection_ends(one: Rig, worker: Worker) -> None:
    (first,) = one.connect()
    brief = worker.accept()
    (client,) = one.connect(text=b"x")
    there = worker.accept()
    assert receive(there, 1) == b"x"
    other = Worker(one, 2)
    one.tell(d.Shut(1))
    one.settle()
    assert not any(isinstance(m, d.Empty) and m.serial == 1 for m in one.heard)
    for _ in range(3):
        one.connect()
        other.accept()
    brief.close()
    first.close()
    wait_until(lambda: worker.cells[F.OPEN] == 1, LONG, "the end of the first")
    one.settle()
    assert not any(isinstance(m, d.Empty) and m.serial == 1 for m in one.heard)
    there.sendall(b"y")
    assert receive(client, 1) == b"y"
    there.close()
    client.close()
    assert one.hear(d.Empty).serial == 1
    other.close()


def test_a_worker_that_takes_connections_again_is_not_said_to_be_empty(one: Rig, worker: Worker) -> None:
    (client,) = one.connect()
    there = worker.accept()
    one.tell(d.Shut(1))
    worker.open()
    one.settle()
    there.close()
    client.close()
    wait_until(lambda: worker.cells[F.OPEN] == 0, LONG, "the end of the relay")
    one.settle()
    assert not any(isinstance(m, d.Empty) and m.serial == 1 for m in one.heard)


def test_a_relay_that_outlives_its_worker_leaves_the_row_to_the_next(one: Rig, worker: Worker) -> None:
    (slow,) = one.connect()
    first = worker.accept()
    one.tell(d.Gone(1))
    one.tell(d.Open(2, 2, 1, "port", worker.port))  # a successor, in the same row
    one.settle()
    (client,) = one.connect()
    second = worker.accept()
    wait_until(lambda: worker.cells[F.ACCEPTED] == 1 and worker.cells[F.OPEN] == 1, LONG, "the row to be the second's")
    first.close()
    assert slow.recv(1) == b""
    slow.close()
    client.sendall(b"x")
    assert receive(second, 1) == b"x"  # what was first is over
    assert worker.cells[F.OPEN] == 1


def test_a_relay_of_a_worker_that_a_new_daemon_does_not_mention_leaves_its_row_to_the_next(
    one: Rig, worker: Worker
) -> None:
    (client,) = one.connect()
    worker.accept().close()
    assert client.recv(1) == b""
    one.tell(d.Begin())
    one.tell(d.Listen(0), one.listener.fileno())
    one.tell(d.Settled())
    one.settle()
    worker.cells[F.OPEN] = 7  # the row is another's
    before = open_fds(one.pid)
    client.close()
    wait_until(lambda: open_fds(one.pid) < before, LONG, "the end of the relay")
    one.settle()
    assert worker.cells[F.OPEN] == 7


def test_a_worker_that_drains_is_waited_for_by_a_new_daemon(one: Rig, worker: Worker) -> None:
    one.connect()
    there = worker.accept()
    one.tell(d.Begin())
    one.tell(d.Listen(0), one.listener.fileno())
    one.tell(d.Shut(1))
    one.tell(d.Settled())
    one.settle()
    assert not any(isinstance(m, d.Empty) and m.serial == 1 for m in one.heard)
    assert worker.cells[F.OPEN] == 1
    there.close()
    one.clients[0].close()
    assert one.hear(d.Empty).serial == 1
    assert worker.cells[F.OPEN] == 0


def test_the_proxy_protocol_tells_who_the_client_is(one: Rig) -> None:
    worker = Worker(one, 1, proxy_protocol=True)
    one.listen()
    (client,) = one.connect(text=b"hello")
    there = worker.accept()
    head = receive(there, 28)
    assert head[:16] == SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 12)
    source, target, source_port, target_port = struct.unpack("!4s4sHH", head[16:])
    assert (socket.inet_ntoa(source), source_port) == client.getsockname()
    assert (socket.inet_ntoa(target), target_port) == one.address
    assert receive(there, 5) == b"hello"
    worker.close()


@pytest.mark.parametrize(
    ("family", "peer", "here", "rest"),
    [
        (socket.AF_INET6, ("fe80::1%eth0", 7, 0, 2), ("::2", 80, 0, 0),
         struct.pack("!BBH", 0x21, 0x21, 36) + b"\xfe\x80" + bytes(13) + b"\1" + bytes(15) + b"\2" + struct.pack("!HH", 7, 80)),
        (socket.AF_UNIX, "", "/run/api.sock", struct.pack("!BBH", 0x20, 0, 0)),
    ],
    ids=["IPv6", "Unix"],
)  # fmt: skip
def test_the_proxy_protocol_of_other_families(family: int, peer: object, here: object, rest: bytes) -> None:
    client: Any = SimpleNamespace(family=family, getpeername=lambda: peer, getsockname=lambda: here)
    assert header_of(client) == SIGNATURE + rest


def test_so_many_pipes_are_kept_and_no_more() -> None:
    pipes = Pipes()
    borrowed = [pipes.borrow() for _ in range(70)]
    for pipe in borrowed:
        pipes.give_back(pipe)
    kept = [os.path.exists(f"/proc/self/fd/{fd}") for pipe in borrowed for fd in pipe]
    for pipe in pipes._spare:
        pipes.destroy(pipe)
    assert sum(kept) == 2 * 64


def test_an_idle_connection_costs_two_descriptors_and_no_pipe(one: Rig, worker: Worker) -> None:
    one.connect(1)
    worker.accept()
    before = open_fds(one.pid)
    clients = one.connect(50, text=b"x")
    for _ in clients:
        there = worker.accept()
        assert receive(there, 1) == b"x"
        there.sendall(b"y")
    assert [receive(client, 1) for client in clients] == [b"y"] * 50
    assert open_fds(one.pid) - before <= 100 + 2 * 2  # two ends each, and a pipe or two that wait to be used again
    for client in one.clients:
        client.close()
    wait_until(lambda: open_fds(one.pid) <= before, LONG, "everything to be given back")


def test_it_says_once_that_no_more_can_be_relayed(one: Rig) -> None:
    ours, theirs = unix_fds.socketpair()
    dispatcher = Dispatcher(theirs, one.board)
    dispatcher.most_relays = 0
    cells = one.board[row_slice(1)]
    worker = PortWorker(1, 1, 9, False, cells, dispatcher)
    with socket.socket() as connection, ours, theirs:
        assert not worker.take(connection)
        assert not worker.take(connection)
        packet = unix_fds.recv_packet(ours, MAX_MESSAGE, 0)
        assert packet is not None
        said = decode(d.FromDispatcher, packet.data)
        assert "0 connections are relayed, the most that the limit of open files allows" in said.text
        assert unix_fds.recv_packet(ours, MAX_MESSAGE, 0) is None
    dispatcher.loop._epoll.close()
    cells.release()


def test_what_a_dispatcher_that_died_had_relayed_is_not_shown_as_open(one: Rig, worker: Worker) -> None:
    cells = one.board[row_slice(2)]
    cells[F.OPEN] = 3
    owner: Any = None
    PortWorker(2, 2, worker.port, False, cells, owner)
    assert cells[F.OPEN] == 0
    cells.release()


def test_that_no_port_is_left_to_reach_a_worker_from_is_said_once_and_when_it_is_over(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = unix_fds.socketpair()
    dispatcher = Dispatcher(theirs, one.board)
    waits: list[Callable[[], None]] = []
    monkeypatch.setattr(dispatcher.loop, "later", lambda delay, then: waits.append(then) if delay == CALM else None)
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: errno.EADDRNOTAVAIL)
    cells = one.board[row_slice(2)]
    port = PortWorker(2, 2, 9, False, cells, dispatcher)

    def said() -> list[type]:
        found = []
        while (packet := unix_fds.recv_packet(ours, MAX_MESSAGE, 0)) is not None:
            found.append(type(decode(d.FromDispatcher, packet.data)))
        return found

    with ours, theirs, socket.socket() as connection:
        for expected in ([d.Trouble], []):
            port.take(os.dup(connection.fileno()))
            assert said() == expected
        waits.pop()()  # it was so again meanwhile
        assert said() == []
        waits.pop()()
        assert (said(), waits) == ([d.Over], [])
    for waiting in dispatcher._waiting:
        os.close(waiting)
    dispatcher.loop._epoll.close()
    cells.release()


def test_where_one_relay_has_ended_there_is_room_for_another_and_that_is_said(
    worker: Worker, one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = unix_fds.socketpair()
    dispatcher = Dispatcher(theirs, one.board)
    waits: list[Callable[[], None]] = []
    monkeypatch.setattr(dispatcher.loop, "later", lambda delay, then: waits.append(then) if delay == CALM else None)
    dispatcher.most_relays = 1
    cells = one.board[row_slice(2)]
    port = PortWorker(2, 2, worker.port, False, cells, dispatcher)
    pairs = [socket.socketpair() for _ in range(3)]
    with ours, theirs:
        assert port.take(pairs[0][0].detach())
        next(iter(port._relays)).close()
        assert port.take(pairs[1][0].detach())
        assert not port.take(pairs[2][0].fileno())
        next(iter(port._relays)).close()
        assert port.take(pairs[2][0].detach())
        next(iter(port._relays)).close()
        while waits:
            waits.pop()()
        said = []
        while (packet := unix_fds.recv_packet(ours, MAX_MESSAGE, 0)) is not None:
            said.append(type(decode(d.FromDispatcher, packet.data)))
        assert said == [d.Trouble, d.Over]
    for pair in pairs:
        pair[1].close()
    dispatcher.loop._epoll.close()
    cells.release()


def test_a_client_for_whom_no_descriptor_is_left_stays_with_the_dispatcher(one: Rig) -> None:
    ours, theirs = unix_fds.socketpair()
    dispatcher = Dispatcher(theirs, one.board)
    cells = one.board[row_slice(1)]
    worker = PortWorker(1, 1, 9, False, cells, dispatcher)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client, there = socket.socketpair()
    with ours, theirs, client, there:
        gc.collect()  # or it frees one in a moment
        free = os.dup(client.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(OSError, match=TOO_MANY_OPEN_FILES):
                worker.take(client.fileno())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.collect()
        there.sendall(b"still there")
        assert client.recv(99) == b"still there"
    dispatcher.loop._epoll.close()
    cells.release()


@pytest.mark.parametrize("calls_that_go_well", [0, 1])
def test_a_client_that_cannot_be_waited_for_is_lost_by_nobody_and_had_by_one(
    worker: Worker, one: Rig, monkeypatch: pytest.MonkeyPatch, calls_that_go_well: int
) -> None:
    """It was closed with its relay, while its number was given to another worker as well."""
    ours, theirs = unix_fds.socketpair()
    dispatcher = Dispatcher(theirs, one.board)
    cells = one.board[row_slice(2)]
    port = PortWorker(2, 2, worker.port, False, cells, dispatcher)
    add, left = dispatcher.loop.add, [calls_that_go_well]

    def no_room(fd: int, mask: int, handler: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(fd, mask, handler)

    client, there = socket.socketpair()
    with ours, theirs, there:
        monkeypatch.setattr(dispatcher.loop, "add", no_room)
        dispatcher._open = [port]
        fd = client.detach()
        assert port.take(fd)
        wait_until(lambda: _turned(dispatcher.loop) and list(dispatcher._waiting) == [fd], LONG, "it to wait")
        gc.collect()
        there.sendall(b"still there")
        assert os.read(fd, 99) == b"still there"
        assert (port.load(), dispatcher.relays, dispatcher.loop.watches(fd)) == (0, 0, False)
    os.close(fd)
    dispatcher.loop._epoll.close()
    cells.release()


def _turned(loop: Loop) -> bool:
    loop.later(0.0, lambda: setattr(loop, "running", False))
    loop.running = True
    loop.run()
    return True


class Alone:
    """A relay in a loop that turns until something is so."""

    def __init__(self, worker: Worker) -> None:
        self.loop, self.again = Loop(), list[object]()
        self.client, theirs = socket.socketpair()
        theirs.setblocking(False)
        stub: Any = SimpleNamespace(port=worker.port, proxy_protocol=False, lost=self.again.append, half_ended=id)
        self.relay = Relay(self.loop, Pipes(), theirs, stub, lambda *what: self.again.append(what))
        self.relay.begin()

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONG

        def look() -> None:
            assert time.monotonic() < deadline
            self.loop.running = not is_so()
            self.loop.later(0.001, look)

        self.loop.running = True
        look()
        self.loop.run()
        self.loop._timers.clear()

    def end(self) -> None:
        self.relay.cut()
        self.client.close()
        self.loop._epoll.close()


def test_the_connect_timeout_leaves_a_relay_alone_whose_worker_has_said_all_and_reads_slowly(worker: Worker) -> None:
    alone = Alone(worker)
    there = worker.accept()
    there.shutdown(socket.SHUT_WR)
    alone.client.setblocking(False)

    def is_held() -> bool:
        with contextlib.suppress(BlockingIOError):
            alone.client.send(bytes(1 << 20))
        return bool(alone.relay._server.eof and alone.relay._server.held)

    alone.until(is_held)
    alone.relay._too_late()
    assert alone.again == []
    pipe = alone.relay._server.pipe
    assert pipe is not None
    alone.end()
    assert not any(os.path.exists(f"/proc/self/fd/{fd}") for fd in pipe)


def test_a_client_that_vanishes_without_a_word_is_found_out_by_the_kernel(worker: Worker) -> None:
    alone = Alone(worker)
    assert alone.relay._client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    alone.end()


def test_a_relay_for_which_no_pipe_is_left_ends(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pipe() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    alone = Alone(worker)
    monkeypatch.setattr(alone.relay.pipes, "borrow", no_pipe)
    alone.client.send(b"x")
    alone.until(lambda: alone.again == [alone.relay])
    with pytest.raises(ConnectionResetError):
        alone.client.recv(1)
    alone.end()


def test_a_relay_of_which_a_side_cannot_be_waited_for_again_ends(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(fd: int, mask: int, handler: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    alone = Alone(worker)
    client = alone.relay._client
    alone.until(lambda: alone.loop.watches(client.fd))
    alone.loop.remove(client.fd)  # as for one that has hung up while what it sent before waits
    monkeypatch.setattr(alone.loop, "add", no_room)
    client.mask = 0
    client.watch(select.EPOLLIN)
    assert alone.again == [alone.relay]
    alone.end()


def test_a_client_that_does_not_end_what_its_worker_has_ended_is_let_go_unless_it_sends_on(
    worker: Worker, one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ours, theirs = unix_fds.socketpair()
    dispatcher = Dispatcher(theirs, one.board)
    cells = one.board[row_slice(2)]
    port = PortWorker(2, 2, worker.port, False, cells, dispatcher)

    def until_half_ended(*relays: Relay) -> None:
        wait_until(lambda: _turned(dispatcher.loop) and list(port._half_ended) == list(relays), LONG, "an end to be seen")

    with ours, theirs, contextlib.ExitStack() as open_ones:
        clients = []
        relays: list[Relay] = []
        for _ in range(4):
            client, end = socket.socketpair()
            clients.append(open_ones.enter_context(client))
            end.setblocking(False)
            assert port.take(end.detach())
            (relay,) = port._relays - set(relays)
            relays.append(relay)
            there = open_ones.enter_context(worker.accept())
            there.shutdown(socket.SHUT_WR)
            until_half_ended(*relays)
        now[0] = workers.LINGER
        clients[0].send(b"more")
        until_half_ended(relays[1], relays[2], relays[3], relays[0])
        clients[1].close()
        until_half_ended(relays[2], relays[3], relays[0])
        # what its client sends is held back: none of its own time passes, and none of the next one's
        monkeypatch.setattr(Relay, "holds_back_client", property(lambda relay: relay is relays[2]))
        port._look()
        assert port._relays == {relays[0], relays[2]}
        relays[0].cut()
        relays[2].cut()
    dispatcher.loop._epoll.close()
    cells.release()


def test_a_relay_in_which_nothing_moves_costs_no_time(worker: Worker) -> None:
    alone = Alone(worker)
    there = worker.accept()
    alone.client.setblocking(False)
    sent = 0

    def is_held() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            sent += alone.client.send(bytes(1 << 20))
        return bool(alone.relay._server.held)

    alone.until(is_held)
    there.setblocking(False)

    def is_read() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            sent -= len(there.recv(1 << 20))
        return not sent

    alone.until(is_read)
    assert alone.loop._epoll.poll(0) == []
    alone.client.shutdown(socket.SHUT_WR)
    alone.until(lambda: alone.relay._client.eof)
    assert alone.loop._epoll.poll(0) == []
    alone.end()


def test_a_client_whose_worker_does_not_answer_in_time_is_given_to_another_once(worker: Worker) -> None:
    alone = Alone(worker)
    fd = alone.relay._server.fd
    for _ in range(2):  # also when it was refused before that
        alone.relay._too_late()
        alone.relay.cut()
    lost, (given, _) = alone.again
    assert lost is alone.relay
    assert not alone.loop.watches(fd)
    os.close(given)
    alone.end()
