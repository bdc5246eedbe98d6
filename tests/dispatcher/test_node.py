"""Node workers: the test says what Node's cluster says on a channel."""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.dispatcher import node as module
from pyworker.protocol import dispatcher as d
from pyworker.protocol.node import MAX_RETRANSMISSIONS, Link
from pyworker.protocol.nodecluster import CMD
from tests.dispatcher.rig import LONG, Rig


class NodeWorker:
    """Its end of the channel."""

    def __init__(self, one: Rig, serial: int) -> None:
        self._one = one
        self.serial = serial
        self.channel, self._theirs = socket.socketpair()
        self.channel.settimeout(LONG)
        one.clients += [self.channel, self._theirs]
        self._lines = b""
        self.attach()

    def attach(self, *queries: str) -> None:
        self._one.tell(d.Attach(self.serial, queries), self._theirs.fileno())

    def say(self, **fields: Any) -> None:
        self.channel.sendall(json.dumps({"cmd": CMD, **fields}).encode() + b"\n")

    def listen(self, port: int, seq: int) -> None:
        self.say(act="queryServer", address=None, port=port, addressType=4, fd=-1, index=0, data=None, seq=seq)

    def hear(self) -> Any:
        """Return the next message."""
        while b"\n" not in self._lines:
            part = self.channel.recv(65536)
            assert part, "the channel has ended"
            self._lines += part
        line, _, self._lines = self._lines.partition(b"\n")
        return json.loads(line)


def test_a_port_that_was_taken_at_first_is_served_when_it_is_had_after_all(one: Rig) -> None:
    worker = NodeWorker(one, 1)
    one.tell(d.Open(1, 1, 1, "node"))
    port = one.address[1]
    worker.listen(port, 1)
    one.tell(d.Bound(one.hear(d.Wants).key, errno.EADDRINUSE))
    assert worker.hear()["errno"] == -errno.EADDRINUSE
    worker.listen(port, 2)
    one.tell(d.Bound(one.hear(d.Wants).key, 0), one.listener.fileno())
    assert worker.hear()["errno"] == 0
    one.connect()
    assert worker.hear()["msg"]["act"] == "newconn"


def test_a_listener_that_a_killed_daemon_did_not_answer_for_is_asked_of_the_next_one(one: Rig) -> None:
    worker = NodeWorker(one, 1)
    worker.listen(one.address[1], 1)
    wanted = one.hear(d.Wants)
    one.tell(d.Begin())
    worker.attach()
    one.tell(d.Settled())
    assert one.hear(d.Wants) == wanted
    one.tell(d.Bound(wanted.key, 0), one.listener.fileno())
    one.tell(d.Bound(wanted.key, 0), one.listener.fileno())  # the question before was answered after all
    assert worker.hear()["errno"] == 0
    one.tell(d.Open(1, 1, 1, "node"))
    one.connect()
    assert worker.hear()["msg"]["act"] == "newconn"


def test_a_listener_that_comes_after_all_when_nobody_waits_for_it_is_closed(one: Rig) -> None:
    worker = NodeWorker(one, 1)
    worker.listen(one.address[1], 1)
    wanted = one.hear(d.Wants)
    one.tell(d.Bound(wanted.key, errno.EMFILE))
    assert worker.hear()["errno"] == -errno.EMFILE
    one.tell(d.Bound(wanted.key, 0), one.listener.fileno())  # by the next daemon, which was asked again
    one.settle()
    one.listener.close()
    with pytest.raises(ConnectionRefusedError):
        one.connect()


def test_a_connection_that_a_worker_could_not_receive_goes_to_another(one: Rig) -> None:
    workers = NodeWorker(one, 1), NodeWorker(one, 2)
    for worker in workers:
        worker.listen(one.address[1], 1)
    one.tell(d.Bound(one.hear(d.Wants).key, 0), one.listener.fileno())
    for worker in workers:
        assert worker.hear()["errno"] == 0
        one.tell(d.Open(worker.serial, worker.serial, worker.serial, "node"))
    one.connect()
    ready = select.select([worker.channel for worker in workers], [], [], LONG)[0]
    first, other = workers if workers[0].channel in ready else workers[::-1]
    for _ in range(1 + MAX_RETRANSMISSIONS):
        assert first.hear()["msg"]["act"] == "newconn"
        first.channel.sendall(b'{"cmd":"NODE_HANDLE_NACK"}\n')
    assert other.hear()["msg"]["act"] == "newconn"


@pytest.mark.parametrize("accepted", [True, False])
def test_a_worker_that_answers_for_a_connection_before_it_has_its_descriptor_is_hung_up_on(one: Rig, accepted: bool) -> None:
    """Asked to send it again, the dispatcher would have sent what has that number by then."""
    worker = NodeWorker(one, 1)
    worker.listen(one.address[1], 1)
    one.tell(d.Bound(one.hear(d.Wants).key, 0), one.listener.fileno())
    assert worker.hear()["errno"] == 0
    one.tell(d.Open(1, 1, 1, "node"))
    one.connect()
    worker.say(ack=worker.hear()["msg"]["seq"], accepted=accepted)
    with contextlib.suppress(BrokenPipeError):
        worker.channel.sendall(b'{"cmd":"NODE_HANDLE_NACK"}\n')
    assert worker.channel.recv(1000) == b""
    other = NodeWorker(one, 2)
    other.listen(one.address[1], 1)
    assert other.hear()["errno"] == 0
    one.tell(d.Open(2, 2, 2, "node"))
    assert other.hear()["msg"]["act"] == "newconn", "it is another's"


def test_one_that_asks_for_udp_is_told_that_there_is_none(one: Rig) -> None:
    worker = NodeWorker(one, 1)
    worker.say(act="queryServer", address=None, port=0, addressType="udp4", fd=None, index=0, data=None, seq=1)
    assert worker.hear()["errno"] == -errno.EOPNOTSUPP


@pytest.mark.parametrize("old_has_one", [False, True])
def test_between_the_last_old_worker_and_the_first_new_one_connections_wait(one: Rig, old_has_one: bool) -> None:
    old, new = NodeWorker(one, 1), NodeWorker(one, 2)
    old.listen(one.address[1], 1)
    one.tell(d.Bound(one.hear(d.Wants).key, 0), one.listener.fileno())
    one.tell(d.Open(1, 1, 1, "node"))
    new.listen(one.address[1], 1)
    assert (old.hear()["errno"], new.hear()["errno"]) == (0, 0)
    if old_has_one:  # and will die without having taken it
        one.connect()
        assert old.hear()["msg"]["act"] == "newconn"
    one.tell(d.Shut(1))
    one.settle()
    one.connect()
    old.channel.close()
    one.settle()
    assert not select.select(one.clients[4:], [], [], 0.1)[0], "it was closed"
    one.tell(d.Open(2, 2, 2, "node"))
    for _ in range(1 + old_has_one):
        given = new.hear()
        assert given["msg"]["act"] == "newconn"
        new.channel.sendall(b'{"cmd":"NODE_HANDLE_ACK"}\n')
        new.say(ack=given["msg"]["seq"], accepted=True)


def test_that_a_worker_is_asked_to_leave_is_said_when_its_channel_has_taken_it(one: Rig) -> None:
    worker = NodeWorker(one, 1)
    worker.listen(one.address[1], 1)
    one.tell(d.Bound(one.hear(d.Wants).key, 0), one.listener.fileno())
    one.tell(d.Open(1, 1, 1, "node"))
    assert worker.hear()["errno"] == 0
    one.connect()
    assert worker.hear()["msg"]["act"] == "newconn"
    one.tell(d.Shut(1))
    one.settle()
    assert d.Empty(1) not in one.heard, "it waits behind the connection"
    worker.channel.sendall(b'{"cmd":"NODE_HANDLE_ACK"}\n')
    one.hear(d.Empty)
    assert worker.hear()["act"] == "disconnect"
    one.tell(d.Shut(1))  # by another daemon
    one.hear(d.Empty)
    worker.channel.setblocking(False)
    with pytest.raises(BlockingIOError):
        worker.hear()


def test_what_a_worker_says_that_is_no_message_is_said_once(one: Rig) -> None:
    worker = NodeWorker(one, 1)
    worker.channel.sendall(b"x" * 70_000 + b"\nno JSON\n" + b'"well"\n')
    one.hear(d.Said)
    assert one.heard == [d.Trouble("a worker said what is no message: a message of more than 65536 bytes")]


def test_a_worker_that_reads_nothing_is_not_kept_any_number_of_messages(one: Rig) -> None:
    worker = NodeWorker(one, 1)
    text = json.dumps("x" * 60_000)
    for _ in range(30):
        one.tell(d.Tell(1, text))
        one.settle()
    assert one.heard
    assert set(one.heard) == {d.Trouble("a worker does not read its messages: what is sent to it is dropped")}
    kept = 30 - len(one.heard)
    assert [worker.hear() for _ in range(kept)] == ["x" * 60_000] * kept
    one.tell(d.Tell(1, '"again"'))
    assert worker.hear() == "again"


def test_a_worker_that_asks_without_end_is_not_answered_without_end(one: Rig) -> None:
    worker = NodeWorker(one, 1)
    for seq in range(1000):
        worker.say(act="queryServer", address=None, port=-2, addressType=4, fd=7, index=seq, data=None, seq=seq)
    worker.channel.sendall(b'"that was all"\n')
    one.hear(d.Said)
    worker.channel.setblocking(False)
    answers = 0
    with contextlib.suppress(BlockingIOError):
        while worker.hear():
            answers += 1
    assert 200 <= answers < 1000


def test_of_what_is_read_there_is_no_half_message_that_a_killed_dispatcher_would_take_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_READS", 1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"123456\n" * 15_000)
        member: Any = SimpleNamespace(serial=1, sock=ours, link=Link())
        dispatcher: Any = SimpleNamespace(_members={1: member}, _take=lambda *_: None, _flush=lambda _: None)
        module.NodeCluster._on_readable(dispatcher, member)
        assert not member.link.is_within_line
        assert 0 < member.link.offset < 105_000
