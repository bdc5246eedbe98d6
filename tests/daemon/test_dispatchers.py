"""daemon/dispatchers.py: a dispatcher that stands still, and one that cannot be made."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from pyworker.config.schema import AppConfig, ResolvedApp, RestartConfig
from pyworker.daemon.app import Failure, Generation
from pyworker.daemon.brain import LONGEST_NOTE, Brain
from pyworker.daemon.dispatchers import Dispatchers, dispatches, has_read, make_inbox
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import DispatcherHandle, WorkerHandle
from pyworker.daemon.loop import Loop
from pyworker.daemon.nodeshared import is_node
from pyworker.daemon.shortage import Shortage
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR
from pyworker.protocol import dispatcher as d
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.wire import decode, encode
from pyworker.unix import fds, process
from pyworker.unix.fds import send_packet, socketpair
from pyworker.unix.process import ExitStatus
from tests.support.channels import ends as ends
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES


def test_one_that_takes_no_messages_costs_one_timer_and_not_one_for_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    ours, theirs = socketpair()
    dispatchers = Dispatchers(SimpleNamespace(loop=loop))  # type: ignore[arg-type]
    monkeypatch.setattr(dispatchers, "_news", lambda app, handle: [(d.Ping(1), (), None)])
    app: Any = SimpleNamespace(dispatcher=DispatcherHandle(0.0, state="ready", channel=ours))
    with ours, theirs:
        while send_packet(ours, encode(d.Ping(0))):
            pass
        for _ in range(50):
            dispatchers.sync(app)
        assert len(loop._timers) == 1
        for _ in range(2):  # again, for as long as there is no room
            wait_until(lambda: loop.turn(0.01) or loop._once, what="another try")
        while fds.recv_packet(theirs, 4096, 0) is not None:
            pass
        wait_until(lambda: loop.turn(0.01) or fds.recv_packet(theirs, 4096, 0), what="what there was no room for")
    loop.close()


def test_a_worker_that_has_gone_is_said_to_be_so_once_whatever_was_told_of_it(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    store: Any = SimpleNamespace(names=lambda kind, app: [])
    brain: Any = SimpleNamespace(store=store)
    handle = DispatcherHandle(0.0, state="ready", channel=ends[0])
    handle.told = {"begun", "settled", ("shut", 7), ("open", 8), ("attach", 8), ("open", 9)}  # 7: told to leave while it started
    app: Any = SimpleNamespace(name="api", dispatcher=handle, is_stopping=False, current=None, generations={})
    app.workers = {9: SimpleNamespace(id=SimpleNamespace(serial=9, generation=1))}
    Dispatchers(brain).sync(app)
    said = []
    while (packet := fds.recv_packet(ends[1], 4096, 0)) is not None:
        said.append(decode(d.ToDispatcher, packet.data))
    assert said == [d.Gone(7), d.Gone(8)]
    assert handle.told == {"begun", "settled", ("open", 9)}


class Handed:
    """An app whose connections are handed out through inboxes, and its dispatcher, which hears nothing but us."""

    def __init__(self, ends: tuple[socket.socket, socket.socket]) -> None:
        self._ends = ends
        self.store = {f"{kind}.api.{slot}": end.fileno() for slot in (1, 2) for kind, end in zip(("feed", "inbox"), ends, strict=True)}
        names = lambda kind, app: [SimpleNamespace(numbers=(slot,)) for slot in (1, 2) if f"{kind}.api.{slot}" in self.store]  # noqa: E731
        store = SimpleNamespace(names=names, get=self.store.get, remove=lambda *names: [self.store.pop(name) for name in names])
        self.refused: list[int] = []
        listening = SimpleNamespace(refuse=lambda app, index: self.refused.append(index))
        generation: Any = SimpleNamespace(config=AppConfig("api", target="a:b", balance="least-connections"), listeners=(0, 1, 2))
        self.wanted = [1, 2]
        self.app: Any = SimpleNamespace(
            name="api", is_stopping=False, listening=True, current=generation,
            generations={1: generation}, slots=lambda: self.wanted, workers={},
            listeners={index: SimpleNamespace(sock=ends[0]) for index in (0, 1)},
            dispatcher=DispatcherHandle(0.0, state="ready", channel=ends[0]),
            board=SimpleNamespace(row_of=lambda serial: serial),
        )  # fmt: skip
        self.dependents: tuple[str, ...] = ()
        brain: Any = SimpleNamespace(store=store, listening=listening, stops_after=lambda app: self.dependents)
        self.dispatchers = Dispatchers(brain)

    def worker(self, serial: int, slot: int, state: State, ready_at: float | None = 1.0) -> None:
        handle = WorkerHandle(WorkerId("api", 1, slot, serial), False, 0.0, state=state, ready_at=ready_at)
        self.app.workers[serial] = handle

    def said(self) -> list[Any]:
        self.dispatchers.sync(self.app)
        said = []
        while (packet := fds.recv_packet(self._ends[1], 4096, 2)) is not None:
            fds.close_all(packet.fds)
            said.append(decode(d.ToDispatcher, packet.data))
        return said


def test_a_dispatcher_is_told_all_that_is_so_and_from_then_on_what_changes(ends: tuple[socket.socket, socket.socket]) -> None:
    handed = Handed(ends)
    handed.worker(5, 1, State.STOPPED)
    handed.worker(6, 1, State.DRAINING)
    handed.worker(7, 1, State.READY)
    handed.worker(8, 2, State.STARTING, ready_at=None)
    handed.worker(9, 2, State.HELD)
    at_once = [
        d.Begin(), d.Listen(0), d.Listen(1), d.Inbox(1), d.Inbox(2), d.Shut(6), d.Open(7, 1, 7, "inbox", 0, False), d.Settled()
    ]  # fmt: skip
    assert handed.said() == at_once
    assert handed.said() == []
    handed.app.workers[9].state = State.OPENING
    assert handed.said() == [d.Open(9, 2, 9, "inbox", 0, False)]
    handed.app.workers[7].state = State.DRAINING
    assert handed.said() == [d.Shut(7)]
    del handed.app.workers[6], handed.app.workers[7]
    handed.app.current.listeners = (1,)
    handed.wanted = [2]
    del handed.app.workers[5]
    assert handed.said() == [d.Gone(6), d.Gone(7), d.CloseInbox(1), d.Unlisten(0)]
    assert (sorted(handed.store), handed.refused) == (["feed.api.2", "inbox.api.2"], [0])
    handed.wanted = []  # scaled down: who starts, or serves, in a slot reads its inbox yet
    assert handed.said() == []
    del handed.app.workers[8]
    handed.app.workers[9].state = State.DRAINING
    assert handed.said() == [d.Shut(9), d.CloseInbox(2)]
    assert (handed.said(), handed.store) == ([], {})


def test_half_of_a_pair_that_a_killed_daemon_has_left_is_dropped_with_its_slot(ends: tuple[socket.socket, socket.socket]) -> None:
    handed = Handed(ends)
    del handed.store["feed.api.1"], handed.store["feed.api.2"]
    handed.wanted = [2]
    assert handed.said() == [d.Begin(), d.Listen(0), d.Listen(1), d.Settled()]
    assert sorted(handed.store) == ["inbox.api.2"]


def test_one_that_could_not_take_what_it_was_told_is_told_all_of_it_again(ends: tuple[socket.socket, socket.socket]) -> None:
    """For want of descriptors: it says that it is up, again."""
    handed = Handed(ends)
    handed.app.is_stopping = True
    first = handed.said()
    assert first[-1] == d.Finish()
    handed.dispatchers._brain.loop = SimpleNamespace(clock=lambda: 1.0)  # type: ignore[assignment]
    handed.dispatchers._take(handed.app, handed.app.dispatcher, d.Up("0.1.0"))
    assert handed.said() == first


def test_that_a_dispatcher_is_up_is_written_down_while_its_word_is_still_in_its_channel(ends: tuple[socket.socket, socket.socket]) -> None:
    handed, there = Handed(ends), []
    dispatcher = handed.app.dispatcher
    dispatcher.state = "starting"
    handed.app.write_memo = lambda: there.append((dispatcher.state, fds.peek_packet(ends[0], 4096) is not None))
    brain: Any = handed.dispatchers._brain
    brain.loop, brain.emit, brain.poke = SimpleNamespace(clock=lambda: 1.0), lambda *_, **__: None, lambda app: None
    assert fds.send_packet(ends[1], encode(d.Up("0.1.0")))
    handed.dispatchers._on_message(handed.app, dispatcher)
    assert there == [("ready", True)]
    assert fds.peek_packet(ends[0], 4096) is None


def test_a_message_is_for_a_node_worker_whose_channel_the_dispatcher_has(ends: tuple[socket.socket, socket.socket]) -> None:
    handed = Handed(ends)
    handed.said()
    tell = handed.dispatchers.tell
    assert not tell(handed.app, 7, "{}")
    handed.app.dispatcher.told.add(("attach", 7))
    dispatcher = tell(handed.app, 7, "{}")
    assert dispatcher is handed.app.dispatcher
    assert has_read(dispatcher) is False
    assert handed.said() == [d.Tell(7, "{}"), d.Gone(7)]
    assert has_read(dispatcher) is True
    handed.app.dispatcher.state = "stopping"
    assert not tell(handed.app, 7, "{}")
    handed.app.dispatcher = None
    assert not tell(handed.app, 7, "{}")


def test_a_message_to_a_dispatcher_that_has_died_is_not_said_to_be_passed_on(ends: tuple[socket.socket, socket.socket]) -> None:
    handed = Handed(ends)
    dispatcher = handed.app.dispatcher
    dispatcher.told.add(("attach", 7))
    assert handed.dispatchers.tell(handed.app, 7, "{}")
    ends[1].close()  # it was killed before it had read that, and the daemon does not know it yet
    assert has_read(dispatcher) is None
    assert handed.dispatchers.tell(handed.app, 7, "{}") is None
    dispatcher.ended = True
    assert has_read(dispatcher) is None


def test_a_worker_may_be_given_connections_until_the_dispatcher_has_read_that_it_is_not_to(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    handed = Handed(ends)
    handed.worker(7, 1, State.READY)
    worker = handed.app.workers[7]
    handed.said()
    may = handed.dispatchers.may_give_to
    assert may(handed.app, worker)
    worker.state = State.DRAINING
    handed.dispatchers.sync(handed.app)
    assert may(handed.app, worker)  # it is said, and not read
    assert handed.said() == [d.Shut(7)]
    assert not may(handed.app, worker)
    handed.app.dispatcher.told.clear()
    handed.app.dispatcher.ended = True
    assert not may(handed.app, worker)


def test_a_slot_has_one_inbox_whoever_its_worker_is(ends: tuple[socket.socket, socket.socket]) -> None:
    store = FdStore(ends[0])
    reader = make_inbox(store, "api", 1)
    assert make_inbox(store, "api", 1) == reader
    assert store.fds == {"inbox.api.1": reader, "feed.api.1": store.fds["feed.api.1"]}
    os.write(store.fds["feed.api.1"], b"a connection")
    assert os.read(reader, 100) == b"a connection"
    store.remove("feed.api.1")  # half of it is of no use
    with pytest.raises(BlockingIOError):
        os.read(make_inbox(store, "api", 1), 100)
    for fd in store.fds.values():
        os.close(fd)


def test_before_the_app_has_a_port_and_after_it_was_closed_there_is_none_to_accept_from(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    handed = Handed(ends)
    handed.app.listening = False
    assert handed.said() == [d.Begin(), d.Inbox(1), d.Inbox(2), d.Settled()]
    handed.app.listening = True
    assert handed.said() == [d.Listen(0), d.Listen(1)]
    handed.app.current = None
    assert handed.said() == [d.Unlisten(0), d.Unlisten(1)]


@pytest.mark.parametrize(("stopping", "dependents", "stops"), [(True, (), True), (False, (), False), (True, ("web",), False)])
def test_at_a_stop_what_was_accepted_is_handed_out_to_the_end(
    ends: tuple[socket.socket, socket.socket], stopping: bool, dependents: tuple[str, ...], stops: bool
) -> None:
    """By the workers that leave: they read their inboxes empty."""
    handed = Handed(ends)
    handed.worker(7, 1, State.READY)
    assert handed.said()[-1] == d.Settled()
    handed.app.is_stopping, handed.dependents = stopping, dependents
    handed.app.current, handed.wanted = None, []
    handed.app.workers[7].state = State.DRAINING
    assert (handed.said()[-1] == d.Finish()) is stops
    assert handed.said() == []
    assert (("shut", 7) in handed.app.dispatcher.told) is not stops
    assert (("inbox", 1) in handed.app.dispatcher.told) is stops
    assert (("listen", 0) in handed.app.dispatcher.told) is stops


def test_one_that_was_being_made_when_the_daemon_before_died_is_made_again_and_no_failure(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    store = FdStore(ends[0])
    reader, writer = socketpair()
    store.put("dispatcher.api", writer.detach())
    loop = Loop()
    brain: Any = SimpleNamespace(store=store, loop=loop, poke=lambda app: None)
    app: Any = SimpleNamespace(name="api", starting=True, restored=False, start_failure=None, dispatcher_record=CLEAR)
    Dispatchers(brain).adopt(app, None)
    assert (app.dispatcher, app.start_failure, app.dispatcher_record) == (None, None, CLEAR)
    assert store.names("dispatcher", "api") == [], "its channel ends, and it leaves"
    reader.close()
    loop.close()


@pytest.mark.parametrize(
    ("config", "node", "handed_out"),
    [
        (AppConfig("api", target="a:b", balance="round-robin"), False, False),
        (AppConfig("api", target="a:b", balance="least-connections"), False, True),
        (AppConfig("api", command=("node", "a.js"), balance="round-robin"), True, True),
        (AppConfig("api", command=("node", "a.js"), balance="shared"), False, False),
        (AppConfig("api", command=("serve",), balance="proxy"), False, True),
    ],
)
def test_connections_are_handed_out_to_those_that_do_not_accept_by_themselves(
    config: AppConfig, node: bool, handed_out: bool
) -> None:
    generation: Any = SimpleNamespace(config=config)
    assert (is_node(config), dispatches(generation)) == (node, handed_out)


def test_a_node_worker_is_asked_to_leave_by_one_dispatcher(ends: tuple[socket.socket, socket.socket]) -> None:
    """Asked twice, Node ends with an error when its connections have ended."""
    store: Any = SimpleNamespace(names=lambda kind, app: [], get=lambda name: ends[0].fileno())
    dispatchers = Dispatchers(SimpleNamespace(store=store, loop=SimpleNamespace(clock=lambda: 0.0)))  # type: ignore[arg-type]
    worker = WorkerHandle(WorkerId("api", 1, 1, 7), False, 0.0, state=State.DRAINING)
    generation: Any = SimpleNamespace(config=AppConfig("api", command=("node", "a.js"), balance="round-robin"))
    app: Any = SimpleNamespace(name="api", is_stopping=False, current=None, generations={1: generation}, workers={7: worker})

    def told(handle: DispatcherHandle) -> list[Any]:
        app.dispatcher = handle
        dispatchers.sync(app)
        said = []
        while (packet := fds.recv_packet(ends[1], 4096, 1)) is not None:
            fds.close_all(packet.fds)
            said.append(decode(d.ToDispatcher, packet.data))
        return said

    def new(pid: int) -> DispatcherHandle:
        return DispatcherHandle(0.0, state="ready", pid=pid, channel=ends[0], told={"begun", "settled"})

    first = new(41)
    assert told(first) == told(new(42)) == [d.Attach(7, ()), d.Shut(7)]
    dispatchers._take(app, first, d.Empty(7))
    assert told(new(41)) == [d.Attach(7, ()), d.Shut(7)], "another daemon's"
    assert told(new(42)) == []
    assert not dispatchers.may_give_to(app, worker)


@pytest.mark.parametrize("refused", ["socketpair", "memfd"])
def test_one_for_which_there_is_no_descriptor_counts_as_one_that_died_and_is_tried_again(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    loop, store = Loop(), FdStore(ends[0])
    said: list[dict[str, Any]] = []
    poked: list[str] = []
    brain: Any = SimpleNamespace(
        loop=loop, store=store, poke=lambda app: poked.append(app.name), emit=lambda *_, **data: said.append(data)
    )
    resolved = ResolvedApp(AppConfig("api", target="a:b"), 1, sys.executable, {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(
        name="api", target=None, generations={}, current=Generation(1, resolved), starting=False, restored=False, dispatcher=None,
        dispatcher_record=CLEAR, restart_config=RestartConfig(), board=SimpleNamespace(fd=0),
    )  # fmt: skip
    monkeypatch.setattr(fds, refused, refuse)
    Dispatchers(brain).start(app, 0.0)
    assert app.dispatcher is None
    assert app.dispatcher_record.tries == 1
    assert poked == ["api"]
    assert [data["reason"] for data in said] == [f"cannot start a process: {TOO_MANY_OPEN_FILES}"]
    assert store.fds == {}
    loop.close()


@pytest.mark.parametrize("restored", [False, True])
def test_one_that_cannot_be_made_fails_a_start_with_the_next_step_and_is_tried_again_at_a_boot(
    monkeypatch: pytest.MonkeyPatch, restored: bool
) -> None:
    loop = Loop()
    kept: list[int] = []
    store = SimpleNamespace(put=lambda name, fd: kept.append(fd), remove=lambda *names: [os.close(fd) for fd in kept])
    brain: Any = SimpleNamespace(
        loop=loop, store=store, home="/", poke=lambda app: None, emit=lambda *args, **data: None,
        fail=lambda message, hint: Failure(message, hint=hint),
    )  # fmt: skip
    dispatchers = Dispatchers(brain)

    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(dispatchers, "_spawn", refuse)
    app: Any = SimpleNamespace(
        name="api", target=None, generations={}, current=object(), starting=True, restored=restored, start_failure=None,
        restart_config=RestartConfig(), dispatcher_record=CLEAR,
    )  # fmt: skip
    dispatchers.start(app, loop.clock())
    assert app.dispatcher is None
    assert app.dispatcher_record.tries == 1
    if restored:
        assert app.start_failure is None
    else:
        assert "cannot start a process" in app.start_failure.message
        assert "ulimit -u" in app.start_failure.hint
    loop.close()


def test_one_that_somebody_kills_in_a_start_is_tried_once_more(ends: tuple[socket.socket, socket.socket]) -> None:
    loop = Loop()
    brain: Any = SimpleNamespace(
        loop=loop, store=FdStore(ends[0]), home="/", poke=lambda app: None, emit=lambda *args, **data: None,
        fail=lambda message, hint: Failure(message, hint=hint),
    )  # fmt: skip
    app: Any = SimpleNamespace(
        name="api", starting=True, restored=False, start_failure=None, dispatcher_record=CLEAR, restart_config=RestartConfig()
    )
    killed = ExitStatus(None, signal.SIGKILL)
    Dispatchers(brain).gone(app, DispatcherHandle(2), killed, Shortage())
    assert app.start_failure is None
    Dispatchers(brain).gone(app, DispatcherHandle(3), killed, Shortage())
    assert "KILL" in app.start_failure.message
    loop.close()


@pytest.mark.parametrize("text", ["no file is left", "no file is left " * 40])
def test_a_trouble_is_a_note_until_it_is_over(text: str) -> None:
    clock = SimpleNamespace(clock=lambda: 0.0)
    brain: Any = SimpleNamespace(loop=clock, remark=lambda app, text: None, poke=lambda app: None)
    brain.note = lambda app, text: Brain.note(brain, app, text)
    brain.note_is_over = lambda app, text: Brain.note_is_over(brain, app, text)
    app: Any = SimpleNamespace(notes=[], workers={})
    dispatchers, handle = Dispatchers(brain), DispatcherHandle(0.0, state="ready")
    dispatchers._take(app, handle, d.Trouble(text))
    app.notes.append("another")
    assert app.notes == [text[:LONGEST_NOTE], "another"]
    dispatchers._take(app, handle, d.Over(text))
    assert app.notes == ["another"]


def test_what_one_has_said_of_itself_ends_with_it_also_under_the_next_daemon(ends: tuple[socket.socket, socket.socket]) -> None:
    brain: Any = SimpleNamespace(
        store=FdStore(ends[0]), remark=lambda app, text: None, poke=lambda app: None, loop=SimpleNamespace(clock=lambda: 0.0)
    )
    brain.note = lambda app, text: Brain.note(brain, app, text)
    brain.note_is_over = lambda app, text: Brain.note_is_over(brain, app, text)
    app: Any = SimpleNamespace(name="api", notes=["another"], workers={})
    dispatchers, handle = Dispatchers(brain), DispatcherHandle(0.0, state="ready")
    for text in ("no file is left", "no port is left", "no port is left"):
        dispatchers._take(app, handle, d.Trouble(text))
    dispatchers._take(app, handle, d.Over("no port is left"))
    adopted = DispatcherHandle(0.0)
    adopted.recall(handle.memo())
    adopted.state = "stopping"
    dispatchers.gone(app, adopted, process.UNKNOWN, Shortage())
    assert app.notes == ["another"]


def test_one_that_does_not_answer_and_may_not_be_signalled_is_noted_and_keeps_nothing_else_from_being_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an app with `user`, where the daemon is a root without CAP_KILL: each round of the app ended there."""

    def refused(pidfd: int, number: int) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(process, "send_signal", refused)
    noted: list[str] = []
    brain: Any = SimpleNamespace(store=SimpleNamespace(get=lambda name: 99), note=lambda app, text: noted.append(text))
    handle = DispatcherHandle(0.0, state="ready", pid=os.getpid())
    app: Any = SimpleNamespace(name="api", generation=3, dispatcher=handle)
    Dispatchers(brain).stop(app, "did not answer", 5.0)
    assert (handle.state, handle.since) == ("stopping", 5.0)
    (text,) = noted
    assert text.startswith("generation 3: its dispatcher runs as ")
    assert text.endswith(f"may not signal it (CAP_KILL): as root, kill -9 {os.getpid()} ends it")
