"""The dispatcher's channel to the daemon: without descriptors, and with a daemon that does not read."""

from __future__ import annotations

import resource

from pyworker.dispatcher.channel import Channel
from pyworker.dispatcher.loop import IN, Loop
from pyworker.protocol import dispatcher as d
from pyworker.protocol.wire import MAX_MESSAGE, decode, encode
from pyworker.unix.fds import recv_packet, send_packet, socketpair
from tests.dispatcher.rig import LONG, Rig, taken
from tests.support.words import TOO_MANY_OPEN_FILES


def test_what_came_without_its_descriptors_is_asked_for_again(one: Rig) -> None:
    before = resource.prlimit(one.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    one.add_slots(1)
    one.listen()
    assert one.hear(d.Up)
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, before)
    one.tell(d.Begin())
    slot = one.slots[0]
    one.tell(d.Inbox(1), slot.writer.fileno(), slot.reader.fileno())
    one.tell(d.Open(1, 1, slot.row, "inbox"))
    one.listen()
    one.tell(d.Settled())
    one.connect(3)
    assert taken([slot], 3) == [3]


def test_a_want_of_descriptors_is_said_once_and_when_it_is_over(one: Rig) -> None:
    one.add_slots(1)
    one.listen()
    one.tell(d.Settled())
    one.connect(1)
    assert taken([one.slots[0]], 1) == [1]
    before = resource.prlimit(one.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    one.connect(1)
    trouble = one.hear(d.Trouble)
    assert TOO_MANY_OPEN_FILES in trouble.text
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, before)
    assert one.hear(d.Over).text == trouble.text
    assert taken([one.slots[0]], 1) == [1]
    assert [each for each in one.heard if isinstance(each, d.Trouble)] == []


def test_a_daemon_that_reads_again_is_told_what_it_had_no_room_for_however_often_that_happens() -> None:
    ours, theirs = socketpair()
    loop, read = Loop(), list[int]()

    def on_readable(_: int) -> None:
        while (packet := recv_packet(ours, MAX_MESSAGE, 0)) is not None:
            read.append(decode(d.FromDispatcher, packet.data).number)
        loop.running = read[-1] == 0

    with ours, theirs:
        channel = Channel(theirs, loop, lambda message, fds: None, lambda: None)
        loop.add(ours.fileno(), IN, on_readable)
        for number in (1, 2):
            while send_packet(theirs, encode(d.Pong(0))):
                pass
            channel.say(d.Pong(number))
            loop.running = True
            loop.later(LONG, lambda: setattr(loop, "running", False))
            loop.run()
            assert read[-1] == number


def test_a_daemon_that_does_not_read_costs_one_timer_and_not_one_for_each_message() -> None:
    ours, theirs = socketpair()
    loop = Loop()
    with ours, theirs:
        channel = Channel(theirs, loop, lambda message, fds: None, lambda: None)
        while send_packet(theirs, encode(d.Pong(0))):
            pass
        for number in range(50):
            channel.say(d.Pong(number))
        assert len(loop._timers) == 1
