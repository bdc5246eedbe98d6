"""daemon/adopt.py: what a daemon makes of what the one before has left. Whole trees are in tests/system."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.address import Address
from pyworker.config.schema import AppConfig, ResolvedApp
from pyworker.daemon import adopt
from pyworker.daemon.app import App, Failure, Generation, Listener
from pyworker.daemon.board import Board
from pyworker.daemon.desired import DesiredApp, InlineSource
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.ledger import Ledger
from pyworker.daemon.loop import Loop
from pyworker.policy.lifecycle import State
from pyworker.protocol.inherited import WorkerId, fd_name, worker_fd
from pyworker.protocol.store import FromDaemon, Remove
from pyworker.protocol.wire import MAX_MESSAGE, decode
from pyworker.unix import process
from pyworker.unix.fds import close_all, memfd, recv_packet, socketpair
from tests.support.channels import ends as ends
from tests.support.wait import wait_until

SOURCE = InlineSource({}, "/srv")


class Left:
    """What a daemon has left of one app, and the daemon that finds it."""

    def __init__(self, channel: socket.socket) -> None:
        self.now = 100.0
        self.loop = Loop(lambda: self.now)
        self.store = FdStore(channel)
        self.done: list[Any] = []
        self.poked: list[str] = []
        note = self.done.append
        self.brain: Any = SimpleNamespace(
            store=self.store, loop=self.loop, apps={}, fail=Failure, poke=lambda app: self.poked.append(app.name),
            listening=SimpleNamespace(close=lambda app, listener: note(("closed", listener.index))),
            templates=SimpleNamespace(
                watch=lambda app, handle: None, watch_pid=lambda app, handle, pidfd: note(("watches template", handle.pid)),
                never_told=lambda app, handle: note(("never told", handle.generation)),
            ),
            pids=SimpleNamespace(watch=lambda app, handle, pidfd: note(("watches worker", handle.pid))),
            workers=SimpleNamespace(
                resume=lambda app, handle: note(("goes on with", handle.id.serial, handle.state, handle.pid, handle.untold)),
                tell_time_to_drain=lambda app: self.poked.append(f"those of {app.name} that drain"),
            ),
            dispatchers=SimpleNamespace(adopt=lambda app, memo: self.poked.append(f"dispatcher of {app.name}")),
        )  # fmt: skip
        ledger, board = Ledger.create("api"), Board.create("api")
        self.store.put("ledger.api", ledger)
        self.store.put("board.api", os.dup(board.fd))
        self.app = App("api", SOURCE, board, Ledger(ledger), generation=1, last_generation=1, wanted=True, running=True)
        self.generation(1)

    def generation(self, number: int) -> None:
        resolved = ResolvedApp(AppConfig("api", target="a:b"), 1, "python", {}, (), None, None, (), "", 0)
        self.store.put(fd_name("env", "api", number), memfd("env", Generation(number, resolved).pack()))

    def listener(self) -> int:
        sock = socket.create_server(("127.0.0.1", 0))
        self.store.put("listen.api.0", sock.detach())
        return self.store.fds["listen.api.0"]

    def adopt(self, generation: int = 1, **desired: Any) -> tuple[adopt.Adopted, App]:
        self.app.write_memo()
        wanted = {"api": DesiredApp("api", SOURCE, generation=generation, **desired)}
        found = adopt.adopt(self.brain, wanted)
        return found, self.brain.apps.get("api")

    def close(self) -> None:
        for app in {id(app): app for app in (self.app, *self.brain.apps.values())}.values():
            for worker in app.workers.values():
                if worker.ctl is not None:
                    worker.ctl.close()
            for template in app.templates.values():
                if template.channel is not None:
                    template.channel.close()
            for listener in app.listeners.values():
                listener.sock.close()
            app.board.close()
            app.ledger.close()
        for fd in self.store.fds.values():
            os.close(fd)
        self.loop.close()


@pytest.fixture
def left(ends: tuple[socket.socket, socket.socket]) -> Iterator[Left]:
    made = Left(ends[0])
    yield made
    made.close()


def test_workers_go_on_as_the_other_daemon_knew_them_and_one_that_it_had_not_claimed_names_itself(left: Left) -> None:
    child = subprocess.Popen(["sleep", "600"])
    known, unclaimed = WorkerId("api", 1, 1, 7), WorkerId("api", 1, 2, 8)
    app = left.app
    app.workers = {
        7: WorkerHandle(known, held=False, born_at=50.0, pid=child.pid, state=State.READY, ready_at=60.0),
        8: WorkerHandle(unclaimed, held=True, born_at=51.0, pid=4711),
    }
    others = []
    for identity in (known, unclaimed):
        ours, theirs = socketpair()
        left.store.put(worker_fd("ctl", identity), ours.detach())
        others.append(theirs)
    left.store.put(worker_fd("pid", known), os.pidfd_open(child.pid))
    app.last_serial = 6  # its memo is of the round before
    try:
        found, adopted = left.adopt()
        assert (found.names, found.let_go, adopted.last_serial) == (["api"], {}, 8)
        assert left.done == [
            ("watches worker", child.pid), ("goes on with", 7, State.READY, child.pid, False), ("goes on with", 8, State.STARTING, 0, True)
        ]  # fmt: skip
        assert (adopted.workers[7].ready_at, adopted.workers[8].held) == (60.0, True)
    finally:
        child.kill()
        child.wait()
        for sock in others:
            sock.close()


def test_a_template_of_which_the_process_is_not_stored_never_came_and_that_is_no_failure(left: Left) -> None:
    child = subprocess.Popen(["sleep", "600"])
    left.generation(2)
    others = []
    for number in (1, 2):
        ours, theirs = socketpair()
        left.store.put(fd_name("template", "api", number), ours.detach())
        others.append(theirs)
    left.store.put("tpid.api.1", os.pidfd_open(child.pid))
    try:
        left.adopt()
        assert left.done == [("watches template", child.pid), ("never told", 2)]
    finally:
        child.kill()
        child.wait()
        for sock in others:
            sock.close()


@pytest.mark.parametrize(
    ("memo", "committed", "generations", "found"),
    [
        ({}, 1, [], {"generation": 1, "target": None}),
        # a reload
        ({"target": 2}, 1, [2], {"generation": 1, "target": 2}),
        ({"target": 2}, 2, [2], {"generation": 2, "target": None}),  # committed in its last moment
        ({"target": 2}, 1, [], {"generation": 1, "target": None}),  # before its descriptors were stored
        ({"generation": 2, "previous": 1}, 2, [2], {"generation": 2, "previous": 1}),
        ({"generation": 2, "previous": 0}, 2, [2], {"generation": 2, "previous": None}),
        # begun by a boot or a restart, and not written down yet
        ({"generation": 2}, 9, [2], {"generation": 2}),
        ({"generation": 2}, 1, [2], {"generation": 2}),
        ({"generation": 2}, 1, [], {"generation": 1}),  # before its descriptors were stored
        ({"generation": 2, "previous": 1}, 1, [2], {"generation": 1}),  # rolled back in its last moment
        ({"restart_to": 2}, 1, [2], {"generation": 1, "restart_to": 2}),
        ({"restart_to": 2}, 1, [], {"generation": 1, "restart_to": None}),
        ({"restart_to": 2, "running": False}, 1, [], {"generation": 1, "restart_to": 1}),  # nothing of it was to run on
    ],
)
def test_of_what_was_half_done_goes_on_what_is_there(
    left: Left, memo: dict[str, Any], committed: int, generations: list[int], found: dict[str, Any]
) -> None:
    for number in generations:
        left.generation(number)
    for name, value in memo.items():
        setattr(left.app, name, value)
    _, app = left.adopt(committed)
    assert {name: getattr(app, name) for name in found} == found
    assert not app.closed
    # a commit may have changed the time to drain; and so policy goes on from there
    assert left.poked == ["those of api that drain", "dispatcher of api", "api"]
    assert app.last_generation == max(1, *generations, 1)
    # whoever waited for it has seen the other daemon end
    assert (app.target_failure is not None) is (app.target is not None)


def test_an_upgrade_is_no_reason_to_give_up_a_reload(left: Left) -> None:
    left.generation(2)
    left.app.target = 2
    left.store.reason = "upgrade"
    _, app = left.adopt()
    assert (app.target, app.target_failure) == (2, None)


@pytest.mark.parametrize("running", [True, False])
def test_the_port_of_an_app_without_a_generation_stays_open_if_it_is_to_be_started_again(left: Left, running: bool) -> None:
    left.listener()
    left.store.remove("env.api.1")
    left.generation(3)  # about to be started, and not what apps.json says
    found, app = left.adopt(running=running)
    assert (found.names, app.closed) == (["api"], True)
    assert left.done == ([] if running else [("closed", 0)])
    assert ("env.api.3" in left.store.fds) is (3 in app.generations) is running


def test_the_port_of_an_app_whose_start_has_failed_is_closed_that_was_opened_for_another_try(left: Left) -> None:
    left.app.running, left.app.failure = False, Failure("no module")
    left.listener()
    left.store.remove("env.api.1")
    _, app = left.adopt()
    assert app.stays_failed
    assert left.done == [("closed", 0)]


@pytest.mark.parametrize("running", [True, False])
def test_an_app_whose_generation_never_came_into_the_store_does_not_run_whatever_its_memo_says(left: Left, running: bool) -> None:
    """Else a start of it waited for ever for the one that seemed to be under way."""
    left.app.starting, left.app.restart_to = True, 2
    left.store.remove("env.api.1")
    _, app = left.adopt(running=running)
    assert (app.closed, app.wanted, app.running, app.starting, app.restart_to) == (True, running, False, False, None)


@pytest.mark.parametrize("known", [True, False])
def test_a_listener_is_of_the_address_that_was_asked_for_and_is_known_by_whom(left: Left, known: bool) -> None:
    sock = socket.socket(fileno=os.dup(left.listener()))
    port = 0 if known else sock.getsockname()[1]
    if known:
        left.app.listeners = {0: Listener(0, Address("inet", "127.0.0.1", 0), sock, {9})}
    else:
        sock.close()
    _, app = left.adopt()
    assert app.listeners[0].address == Address("inet", "127.0.0.1", port)
    assert app.listeners[0].asked == ({9} if known else {1})  # not known: any that live may have been given it


@pytest.mark.parametrize(
    ("lost", "why"),
    [("ledger.api", "nothing says in which state it was"), ("board.api", "it has no scoreboard")],
)
def test_an_app_of_which_something_is_missing_is_let_go_and_one_that_nobody_wants_is_dropped(left: Left, lost: str, why: str) -> None:
    left.app.write_memo()
    left.store.remove(lost)
    before = {*os.listdir("/proc/self/fd")}
    found = adopt.adopt(left.brain, {"api": DesiredApp("api", SOURCE)})
    assert (found.names, found.let_go, left.brain.apps) == ([], {"api": why}, {})
    assert {*os.listdir("/proc/self/fd")} <= before
    found = adopt.adopt(left.brain, {})
    assert (found.names, found.let_go, left.store.fds) == ([], {}, {})


@pytest.mark.parametrize(
    ("memo", "why"),
    [
        ({"v": 99}, "a memo of version 99, and this pyworker reads up to"),
        ({"workers": {"api.1.1.7": {"state": "asleep"}}}, "'asleep' is not a valid State"),
        ({"workers": {"api.1.1.7": {}}}, "missing 'state'"),
        ({"listeners": {"0": {"colour": "blue"}}}, "colour"),
        ({"workers": ["api.1.1.7"]}, "'list' object has no attribute 'items'"),
        ({"v": 1e400}, "cannot convert float infinity to integer"),
    ],
)
def test_an_app_is_let_go_before_anything_of_it_is_acted_on_when_this_version_does_not_understand_its_memo(
    left: Left, memo: dict[str, Any], why: str
) -> None:
    left.app.write_memo()
    left.app.ledger.write(left.app.ledger.read() | memo)
    left.generation(2)
    before = {*left.store.fds}
    found = adopt.adopt(left.brain, {"api": DesiredApp("api", SOURCE)})
    assert why in found.let_go["api"]
    assert (found.names, left.brain.apps, left.done, {*left.store.fds}) == ([], {}, [], before)


def test_an_app_whose_memo_was_never_written_does_not_run_and_the_number_of_workers_is_that_of_apps_json(left: Left) -> None:
    found = adopt.adopt(left.brain, {"api": DesiredApp("api", SOURCE, generation=1, scale=5, scale_base=2)})
    app = left.brain.apps["api"]
    assert (found.names, app.closed, app.generation, app.wanted, app.running) == (["api"], True, 0, True, False)
    assert (app.scale, app.scale_base) == (5, 2)


def test_what_an_app_has_printed_that_nobody_wants_any_more_is_left_to_the_logger(left: Left, ends: tuple[socket.socket, socket.socket]) -> None:
    reads, writes = os.pipe2(os.O_CLOEXEC)
    os.close(writes)
    left.store.put("out.api.1.1.7", reads)
    adopt.adopt(left.brain, {})
    left.store.flush_blocking(5)
    removed: set[str] = set()
    while (packet := recv_packet(ends[1], MAX_MESSAGE, 253)) is not None:
        close_all(packet.fds)
        message = decode(FromDaemon, packet.data)
        removed |= set(message.names) if isinstance(message, Remove) else set()
    assert (left.store.fds, removed) == ({}, {"ledger.api", "board.api", "env.api.1"})


def test_without_apps_json_what_is_wanted_is_what_was_left(left: Left) -> None:
    left.app.scale, left.app.scale_base, left.app.stopped_slots = 5, 2, {3}
    left.app.generation = 4
    left.app.write_memo()
    found = adopt.adopt(left.brain, {}, complete=False)
    assert found.names == ["api"]
    assert found.wanted == {"api": left.app.desired()}


def test_without_apps_json_a_start_that_was_not_answered_yet_has_never_been(left: Left) -> None:
    found = adopt.adopt(left.brain, {}, complete=False)
    assert (found.names, found.wanted, found.let_go, left.store.fds) == ([], {}, {}, {})


@pytest.mark.parametrize("target", ["a:b", None])
def test_the_processes_of_an_app_that_is_let_go_leave_in_their_time_or_are_killed_with_what_they_have_left(
    left: Left, target: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, goes = "trap '' TERM; echo up; exec sleep 600", "echo up; exec sleep 600"
    commands = [stays, goes, f"({stays}) & wait"]  # the last one leaves another
    children = [subprocess.Popen(["sh", "-c", each], stdout=subprocess.PIPE, process_group=0) for each in commands]
    sent: list[int] = []
    try:
        for serial, child in enumerate(children, 7):
            assert child.stdout is not None
            child.stdout.readline()
            signals_groups = process.kill_group_of(pidfd := os.pidfd_open(child.pid), 0)  # not a kernel before 6.9
            left.store.put(worker_fd("pid", WorkerId("api", 1, 1, serial)), pidfd)
            left.store.put(worker_fd("out", WorkerId("api", 1, 1, serial)), os.dup(child.stdout.fileno()))
        left.listener()
        left.store.put("env.web.1", memfd("env", b""))  # another's
        monkeypatch.setattr(adopt, "raw_resolved", lambda brain, name: {"config": {"target": target}})
        real = adopt._signal
        monkeypatch.setattr(adopt, "_signal", lambda pidfds, number: sent.append(number) or real(pidfds, number))
        adopt.let_go(left.brain, "api")
        # its port stays open, and the logger reads on
        assert list(left.store.fds) == ["listen.api.0", "env.web.1"]
        at_once = [] if target else [signal.SIGTERM]  # our own workers see the end of their channels
        assert sent == at_once
        left.now += adopt.LEAVE_WITHIN + 0.1
        left.loop.turn(0.0)
        assert sent == [*at_once, signal.SIGTERM]
        assert children[1].wait(30) == -signal.SIGTERM
        assert children[2].wait(30) == -signal.SIGTERM
        assert (children[0].poll(), group_lives(children[2].pid)) == (None, True)
        left.now += adopt.THEN_KILLED + 0.1
        left.loop.turn(0.0)
        assert children[0].wait(30) == -signal.SIGKILL
        if signals_groups:
            wait_until(lambda: not group_lives(children[2].pid), what="the end of what it has left")
    finally:
        if group_lives(children[2].pid):
            os.killpg(children[2].pid, signal.SIGKILL)
        for child in children:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


@pytest.mark.parametrize("by", ["", "timeout 600 "])  # which gives it a process group of its own
def test_a_hook_that_the_other_daemon_has_left_running_is_ended_with_all_that_it_has_started(left: Left, by: str) -> None:
    child = subprocess.Popen(["sh", "-c", f"{by}sleep 600 & wait"], start_new_session=True)
    wait_until(lambda: child.pid in (process.sessions() if by else process.groups_with_others()), what="what it starts")
    left.store.put("hook.api.1", os.pidfd_open(child.pid))
    left.adopt()
    try:
        assert child.wait(30) == -signal.SIGKILL
        assert "hook.api.1" not in left.store.fds
        wait_until(lambda: child.pid not in process.sessions_with_others(), what="the end of its session")
    finally:
        child.kill()


def group_lives(group: int) -> bool:
    """Whether it has others than its leader; who has ended, and whom nobody has reaped, does not count."""
    return group in process.groups_with_others()
