"""Connections on their way to workers: who gets them, and that none is lost with a worker or a dispatcher."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import pytest

from pyworker.dispatcher.inbox import Inbox
from pyworker.protocol import dispatcher as d
from pyworker.protocol.scoreboard import F
from pyworker.unix.fds import recv_packet
from tests.dispatcher.rig import LONG, Rig, Slot, in_inbox, queued, taken
from tests.support.pyworker import open_fds
from tests.support.wait import wait_until


def echo(slots: list[Slot], client: socket.socket, text: bytes) -> bool:
    """Whether this client's connection is alive at one of the workers."""
    client.sendall(text)
    for slot in slots:
        for connection in slot.open:
            connection.setblocking(False)
            try:
                if connection.recv(64, socket.MSG_PEEK) == text:
                    return True
            except BlockingIOError:
                continue
    return False


def begin_again(one: Rig, slots: list[Slot]) -> None:
    """Another dispatcher after one that was killed, told as the daemon tells it."""
    one.begin()
    one.tell(d.Begin())
    one.listen()
    for slot in slots:
        one.tell(d.Inbox(slot.slot), slot.writer.fileno(), slot.reader.fileno())
    for slot in slots:
        one.tell(d.Open(slot.slot, slot.slot, slot.row, "inbox"))
        one.settle()  # it has time for whatever it would do with the first alone
    one.tell(d.Settled())


def test_a_burst_goes_out_evenly_before_any_worker_looked(one: Rig) -> None:
    slots = one.add_slots(4)
    one.listen()
    one.connect(40)
    one.settle()
    assert taken(slots, 40) == [10, 10, 10, 10]


def test_the_worker_with_the_fewest_open_connections_gets_the_next(one: Rig) -> None:
    slots = one.add_slots(3)
    one.listen()
    one.connect(9)
    assert taken(slots, 9) == [3, 3, 3]
    slots[1].end(3)
    one.connect(3)
    assert taken(slots, 3) == [0, 3, 0]


def test_a_worker_that_lies_about_its_load_hurts_no_other_app_and_no_process(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    slots[0].cells[F.OPEN] = 2**64 - 1000
    slots[1].cells[F.ACCEPTED] = 2**63
    one.connect(20)
    assert sum(taken(slots, 20)) == 20


def test_what_a_dead_worker_left_unread_goes_to_its_successor(one: Rig) -> None:
    (slot,) = one.add_slots(1)
    one.listen()
    clients = one.connect(3)
    wait_until(lambda: in_inbox(slot), LONG)
    one.tell(d.Gone(1))
    one.tell(d.Open(2, 1, 9, "inbox"))
    assert taken([slot], 3) == [3]
    assert all(echo([slot], client, b"still here") for client in clients)


def test_without_a_successor_it_goes_to_the_others(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    one.connect(6)
    wait_until(lambda: all(map(in_inbox, slots)), LONG)
    one.tell(d.Gone(1))
    one.settle()
    assert taken(slots, 6) == [0, 6]


def test_what_waited_while_nobody_served_goes_to_the_first_who_does(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    clients = one.connect(6)
    wait_until(lambda: all(map(in_inbox, slots)), LONG)
    one.tell(d.Gone(1))
    one.tell(d.Gone(2))
    one.settle()
    assert sum(map(queued, slots)) == 6
    one.tell(d.Open(3, 1, 9, "inbox"))
    assert taken(slots[:1], 6) == [6]
    assert all(echo(slots, client, b"still here") for client in clients)


def test_a_slot_that_is_scaled_away_gives_its_connections_back(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    one.connect(6)
    wait_until(lambda: all(map(in_inbox, slots)), LONG)
    one.tell(d.Shut(2))
    one.tell(d.CloseInbox(2))
    assert one.hear(d.Empty).serial == 2
    assert taken(slots[:1], 6) == [6]


def test_one_that_is_not_known_any_more_has_nothing_left(one: Rig) -> None:
    one.tell(d.Shut(7))
    assert one.hear(d.Empty).serial == 7


def test_a_slot_that_is_scaled_away_while_nobody_serves_loses_nothing(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    clients = one.connect(6)
    wait_until(lambda: all(map(in_inbox, slots)), LONG)
    one.tell(d.Gone(1))
    one.tell(d.Shut(2))
    one.tell(d.CloseInbox(2))
    one.settle()
    assert not in_inbox(slots[0])
    one.tell(d.Open(3, 1, 9, "inbox"))
    assert taken(slots[:1], 6) == [6]
    assert all(echo(slots, client, b"still here") for client in clients)


def test_what_the_others_cannot_take_stays_in_the_inbox_of_the_dead_worker(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    clients = one.connect(400)
    wait_until(lambda: sum(map(queued, slots)) == 400, LONG)
    one.tell(d.Gone(1))
    one.settle()
    one.kill_while(lambda: sum(map(queued, slots)) == 400)  # every 10 ms it has one in its hands, to try it again
    begin_again(one, slots)
    taken(slots, 400)
    assert all(echo(slots, client, b"%d" % at) for at, client in enumerate(clients[::40]))


def test_what_stays_there_goes_to_the_others_when_they_have_room(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    one.connect(400)
    wait_until(lambda: sum(map(queued, slots)) == 400, LONG)
    one.tell(d.Gone(1))
    assert taken(slots[1:], 400) == [400]


def test_a_worker_that_stands_still_keeps_no_connection_from_the_others(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    one.connect(8)
    assert taken(slots[:1], 8) == [8]  # the second never looks: its four come over as well
    one.connect(2)
    assert taken(slots[:1], 2) == [2]


def test_a_worker_that_goes_on_is_given_connections_again(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    one.connect(4)
    assert taken(slots[:1], 4) == [4]
    slots[0].end(4)
    one.connect(1)
    taken(slots, 1)
    slots[1].cells[F.ACCEPTED] += 1  # a sign of life: it has taken one after all
    slots[1].cells[F.OPEN] += 1
    seen = [0, 0]

    def look() -> bool:
        one.connect(1)
        for at, got in enumerate(taken(slots, 1)):
            seen[at] += got
            slots[at].end(got)
        return seen[1] > 0

    wait_until(look, LONG, "the second worker's turn")


def test_where_all_stand_still_the_one_with_the_fewest_is_given_connections_again(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    one.connect(2)
    assert taken(slots[1:], 2) == [2]  # what the first was given came over; then neither looks

    def look() -> bool:
        one.connect(1)
        return in_inbox(slots[0])

    wait_until(look, LONG, "one for the first worker: it would stand still for ever")


def test_nothing_is_accepted_while_nobody_takes_connections(one: Rig) -> None:
    (slot,) = one.add_slots(1)
    one.listen()
    one.tell(d.Shut(1))
    one.hear(d.Empty)
    one.connect(3)
    one.settle()
    assert not in_inbox(slot)
    one.listener.accept()[0].close()  # they wait where every program could take them
    one.tell(d.Open(1, 1, 1, "inbox"))
    assert taken([slot], 2) == [2]


def test_a_killed_dispatcher_loses_no_connection_and_refuses_none(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    clients = one.connect(4)
    wait_until(lambda: [*map(queued, slots)] == [2, 2], LONG)
    one.kill()
    clients += one.connect(4)
    begin_again(one, slots)
    assert taken(slots, 8) == [4, 4]
    assert all(echo(slots, client, b"%d" % at) for at, client in enumerate(clients))


def test_what_waits_for_each_worker_still_does_after_a_dispatcher_was_killed(one: Rig) -> None:
    slots = one.add_slots(4)
    one.listen()
    one.connect(8)
    wait_until(lambda: [*map(queued, slots)] == [2] * 4, LONG)
    one.kill()
    begin_again(one, slots)
    one.settle()
    assert [*map(queued, slots)] == [2] * 4


def test_what_a_new_daemon_does_not_mention_is_over(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    other = socket.create_server(("127.0.0.1", 0))
    one.tell(d.Listen(1), other.fileno())
    one.settle()
    other_address = other.getsockname()
    other.close()
    one.tell(d.Begin())
    one.tell(d.Inbox(1), slots[0].writer.fileno(), slots[0].reader.fileno())
    one.tell(d.Open(1, 1, 1, "inbox"))
    one.tell(d.Listen(0), one.listener.fileno())
    one.tell(d.Settled())
    one.connect(3)
    assert taken(slots, 3) == [3, 0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(other_address)


def test_what_a_new_daemon_says_again_costs_no_descriptors(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    one.settle()
    before = open_fds(one.pid)
    one.tell(d.Begin())
    one.listen()
    for slot in slots:
        one.tell(d.Inbox(slot.slot), slot.writer.fileno(), slot.reader.fileno())
        one.tell(d.Open(slot.slot, slot.slot, slot.row, "inbox"))
    one.tell(d.Settled())
    one.settle()
    assert open_fds(one.pid) == before


def test_connections_go_on_to_workers_also_if_a_new_daemon_does_not_come_to_its_end(one: Rig) -> None:
    slots = one.add_slots(2)
    one.listen()
    one.tell(d.Begin())
    one.tell(d.Open(1, 1, slots[0].row, "inbox"))
    one.connect(4)
    assert taken(slots, 4) == [2, 2]


def test_at_the_end_all_that_waits_is_handed_out_and_then_said_to_be_all(one: Rig) -> None:
    (slot,) = one.add_slots(1)
    one.connect(5)
    one.listen()
    one.tell(d.Finish())
    one.settle()
    assert [slot.take() for _ in range(5)] == [True] * 5
    last = recv_packet(slot.reader, 16, 1)
    assert last is not None
    assert (last.data, last.fds) == (d.LAST, [])
    one.connect(1)
    one.settle()
    assert not slot.take()
    assert len(slot.open) == 5


def test_an_inbox_without_room_for_the_word_that_nothing_follows_ends_no_dispatcher(one: Rig) -> None:
    slots = one.add_slots(2)
    one.settle()
    with contextlib.suppress(BlockingIOError):
        while True:
            slots[0].writer.send(b".", socket.MSG_DONTWAIT)
    one.tell(d.Finish())
    one.settle()
    last = recv_packet(slots[1].reader, 16, 1)
    assert last is not None
    assert last.data == d.LAST


def test_more_connections_than_an_inbox_holds_wait_and_arrive(one: Rig) -> None:
    (slot,) = one.add_slots(1)
    one.listen()
    one.connect(400)  # about 280 fit
    assert taken([slot], 400) == [400]


def test_a_port_that_is_taken_away_is_closed_and_may_be_given_again(one: Rig) -> None:
    (slot,) = one.add_slots(1)
    one.listen()
    copy = one.listener.dup()
    try:
        one.tell(d.Unlisten(0))
        one.listener.close()
        one.settle()
        one.connect(1)  # it waits: the test's copy is still there
        assert not slot.take()
        one.tell(d.Listen(0), copy.fileno())
        assert taken([slot], 1) == [1]
        one.tell(d.Unlisten(0))
        one.settle()
    finally:
        copy.close()
    with pytest.raises(ConnectionRefusedError):
        one.connect(1)


def test_it_leaves_when_it_is_told_to_and_when_everybody_else_is_gone(one: Rig) -> None:
    one.tell(d.Leave())
    assert one.wait_end() == 0
    one.begin()
    one.channel.close()
    one._theirs.close()
    assert one.wait_end() == 0


def test_words_that_are_no_message_are_ignored(one: Rig) -> None:
    (slot,) = one.add_slots(1)
    one.channel.send(b'{"type":"nonsense"}')
    one.channel.send(b"\xff\xfe")
    one.listen()
    one.connect(1)
    assert taken([slot], 1) == [1]


def test_an_inbox_is_taken_also_when_it_has_taken_the_last_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_number(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", no_number)
    inbox = Inbox(1, *socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    assert (inbox.put(0), inbox.queued()) == (True, 1)
    inbox.close()
