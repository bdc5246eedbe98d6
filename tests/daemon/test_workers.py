"""daemon/workers.py: what a worker says of itself, and is answered. Whole trees are in tests/system."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from pyworker.config.schema import AppConfig, ResolvedApp, StopConfig
from pyworker.daemon import check
from pyworker.daemon.app import Failure, Generation
from pyworker.daemon.direct import Direct
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.loop import Loop
from pyworker.daemon.readiness import Readiness
from pyworker.daemon.workers import Workers
from pyworker.policy.converge import DRAIN_TIMEOUT
from pyworker.policy.lifecycle import State
from pyworker.policy.talk import AT_ONCE
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.names import DOES_NOT_END
from pyworker.protocol.wire import MAX_MESSAGE, decode, encode
from pyworker.unix import fds, process
from pyworker.unix.fds import recv_packet, socketpair
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES


@pytest.mark.parametrize(("state", "events"), [(State.READY, 1), (State.DRAINING, 0), (State.STOPPING, 0)])
def test_one_that_asks_to_be_replaced_is_said_to_be_once_and_not_if_it_leaves_already(state: State, events: int) -> None:
    said: list[Any] = []
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(clock=lambda: 1.0), readiness=None, poke=lambda app: said.append("a round"),
        emit=lambda app, kind, worker, **data: said.append((kind, worker.id.slot, data["reason"])),
    )  # fmt: skip
    app: Any = SimpleNamespace(generations={1: object()}, runs_once=False)
    handle = WorkerHandle(WorkerId("api", 1, 2, 3), held=False, born_at=0.0, state=state, pid=4242)
    for _ in range(2):
        Workers(brain)._take(app, handle, w.Recycle("max_requests 5"))
    assert said == [("worker_recycled", 2, "max_requests 5"), "a round"] * events
    assert handle.can_wait == bool(events)  # it serves well, if its successor does not


@pytest.mark.parametrize("kept", [True, False])
def test_one_that_was_killed_is_done_without_when_the_kernel_keeps_it_and_not_when_it_lives(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This daemon may not be allowed to kill it: then it serves on."""
    done: list[Any] = []
    monkeypatch.setattr(process, "is_gone", lambda pidfd: False)
    monkeypatch.setattr(process, "is_kept", lambda pid: kept)
    brain: Any = SimpleNamespace(
        store=SimpleNamespace(get=lambda name: 0), loop=SimpleNamespace(remove=lambda fd: None), remark=lambda app, text: done.append(text),
        deaths=SimpleNamespace(ended=lambda app, handle, status: done.append(status)),
    )  # fmt: skip
    handle = WorkerHandle(WorkerId("api", 1, 2, 3), held=False, born_at=0.0, state=State.KILLED, pid=42)
    Workers(brain).do_without(SimpleNamespace(), handle, 10.0)  # type: ignore[arg-type]
    assert done == ([f"worker 2 (pid 42) {DOES_NOT_END}", process.UNKNOWN] if kept else [])
    assert handle.since == (0.0 if kept else 10.0)  # asked again later


@pytest.mark.parametrize("again", [True, False])
def test_what_is_over_a_limit_and_runs_once_ends_and_is_begun_again_only_if_that_is_asked_for(again: bool) -> None:
    resolved = ResolvedApp(AppConfig("job", command=("x",), cron="0 4 * * *"), 1, "python", {}, (), None, None, (), "", 0)
    said: list[Any] = []
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(clock=lambda: 1.0), poke=lambda app: None, store=SimpleNamespace(get=lambda name: None),
        emit=lambda app, kind, slot, **data: said.append((kind, data["reason"])), fail=Failure,
    )  # fmt: skip
    handle = WorkerHandle(WorkerId("job", 1, 1, 3), held=False, born_at=0.0, state=State.READY, pid=4242)
    app: Any = SimpleNamespace(
        generations={1: Generation(1, resolved)}, runs_once=True, finished_slots=set(), last_exits={}, failure=None, hurry=False, workers={3: handle},
        stop_config=lambda number: resolved.config.stop,
    )  # fmt: skip
    for _ in range(2):
        Workers(brain).recycle(app, handle, "memory 9 MB > 5 MB", again=again)
    if again:
        assert said == [("worker_recycled", "memory 9 MB > 5 MB")]
        assert (handle.state, app.finished_slots) == (State.READY, set())
    else:
        assert said == [("worker_recycled", "memory 9 MB > 5 MB"), ("worker_draining", "memory 9 MB > 5 MB")]
        assert (handle.state, app.finished_slots) == (State.STOPPING, {1})
        assert app.failure.message == "it was ended: memory 9 MB > 5 MB"
        assert app.last_exits[1]["code"] is None  # no success, for whoever waits for its end


def no_descriptor(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_script_that_binds_while_there_is_no_descriptor_is_told_so_and_does_not_wait() -> None:
    resolved = ResolvedApp(AppConfig("scr", script="s.py"), 1, "python", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(name="scr", generations={1: Generation(1, resolved)}, listeners={})
    listening = SimpleNamespace(find=lambda app, address: None, open=no_descriptor)
    ours, theirs = socketpair()
    with ours, theirs:
        handle: Any = SimpleNamespace(
            id=SimpleNamespace(generation=1), ctl=ours, failure=None, waits_to_bind=("inet", "127.0.0.1", 8000)
        )
        assert not Workers(SimpleNamespace(listening=listening))._answer_bind(app, handle)  # type: ignore[arg-type]
        packet = recv_packet(theirs, MAX_MESSAGE, 1)
    assert handle.waits_to_bind is None
    assert packet is not None
    answer = decode(w.ToWorker, packet.data)
    assert answer == w.Bound(errno.EMFILE, f"cannot listen on 127.0.0.1:8000: {TOO_MANY_OPEN_FILES}")
    assert "raise the limit of open files" in handle.failure.hint


def test_a_script_whose_answer_cannot_be_sent_now_is_answered_as_soon_as_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait in its bind, for a port on which nobody accepts, while its reload was said to be done."""
    errors = [errno.ETOOMANYREFS, errno.ENOBUFS]
    send = fds.send_packet

    def send_packet(sock: socket.socket, data: bytes, numbers: list[int]) -> bool:
        if errors:
            raise OSError(errors[0], os.strerror(errors.pop(0)))
        return send(sock, data, numbers)

    monkeypatch.setattr(fds, "send_packet", send_packet)
    resolved = ResolvedApp(AppConfig("scr", script="s.py"), 1, "python", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(name="scr", generations={1: Generation(1, resolved)}, listeners={})
    loop = Loop()
    ours, theirs = socketpair()
    with ours, theirs:
        asked_for: list[int] = []
        listening = SimpleNamespace(
            find=lambda *_: SimpleNamespace(index=0, sock=ours), is_asked_for=lambda app, listener, number: asked_for.append(number)
        )
        handle = WorkerHandle(WorkerId("scr", 1, 1, 7), held=False, born_at=0.0, ctl=ours)
        handle.waits_to_bind = ("inet", "127.0.0.1", 8000)
        handle.failure = w.Failed("bind", "cannot listen on 127.0.0.1:80", "")  # which it has tried before
        assert Workers(SimpleNamespace(loop=loop, listening=listening))._answer_bind(app, handle)  # type: ignore[arg-type]
        assert handle.waits_to_bind is not None, "a daemon after this one would not know that it waits"
        packet = wait_until(lambda: loop.turn(0.01) or recv_packet(theirs, MAX_MESSAGE, 1), what="its answer")
    loop.close()
    assert packet is not None
    fds.close_all(packet.fds)
    assert (decode(w.ToWorker, packet.data), len(packet.fds), errors) == (w.Bound(0), 1, [])
    assert (handle.waits_to_bind, handle.failure, asked_for) == (None, None, [1])


@pytest.mark.parametrize(("held", "gone_go", "is_answered"), [(False, False, True), (True, True, True), (True, False, False)])
def test_a_script_that_the_daemon_before_could_not_answer_is_by_the_next_one_unless_it_is_held(
    monkeypatch: pytest.MonkeyPatch, held: bool, gone_go: bool, is_answered: bool
) -> None:
    resolved = ResolvedApp(AppConfig("scr", script="s.py"), 1, "python", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(name="scr", generations={1: Generation(1, resolved)}, listeners={})
    ours, theirs = socketpair()
    with ours, theirs:
        listening = SimpleNamespace(find=lambda *_: SimpleNamespace(index=0, sock=ours), is_asked_for=lambda *_: None)
        readiness = SimpleNamespace(resume=lambda app, handle: None)
        workers = Workers(SimpleNamespace(listening=listening, readiness=readiness))  # type: ignore[arg-type]
        monkeypatch.setattr(workers, "watch", lambda app, handle: None)
        handle = WorkerHandle(WorkerId("scr", 1, 1, 7), held=held, born_at=0.0, ctl=ours, gone_go=gone_go)
        handle.waits_to_bind = ("inet", "127.0.0.1", 8000)
        workers.resume(app, handle)
        packet = recv_packet(theirs, MAX_MESSAGE, 1)
        fds.close_all(packet.fds if packet else [])
    assert (packet is not None, handle.waits_to_bind is None) == (is_answered, is_answered)


def test_one_that_has_closed_its_channel_is_not_told_for_as_long_as_it_lives() -> None:
    loop = Loop()
    ours, theirs = socketpair()
    theirs.close()
    with ours:
        handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, ctl=ours)
        Workers(SimpleNamespace(loop=loop))._tell(handle, w.Go())  # type: ignore[arg-type]
        handle.ctl = None
        Workers(SimpleNamespace(loop=loop))._tell(handle, w.Go())  # type: ignore[arg-type]
    assert loop._timers == []
    loop.close()


@pytest.mark.parametrize("named", [True, False])
def test_a_script_with_a_user_gets_what_bind_names_also_by_a_host_name(named: bool) -> None:
    """It has looked the name up when it asks."""
    config = AppConfig("scr", script="s.py", bind=("localhost:8000",))
    resolved = ResolvedApp(config, 1, "python", {}, (), os.geteuid(), None, (), "", 0)
    generation = Generation(1, resolved, listeners=(0,) if named else ())
    ours, theirs = socketpair()
    with ours, theirs:
        listener = SimpleNamespace(index=0, sock=ours)
        listening = SimpleNamespace(find=lambda app, address: listener, is_asked_for=lambda *_: None)
        handle: Any = SimpleNamespace(id=SimpleNamespace(generation=1), ctl=ours, failure=None, waits_to_bind=("inet", "127.0.0.1", 8000))
        app: Any = SimpleNamespace(name="scr", generations={1: generation}, listeners={0: listener})
        Workers(SimpleNamespace(listening=listening))._answer_bind(app, handle)  # type: ignore[arg-type]
        packet = recv_packet(theirs, MAX_MESSAGE, 1)
    assert packet is not None
    for fd in packet.fds:
        os.close(fd)
    assert decode(w.ToWorker, packet.data).errno == (0 if named else errno.EACCES)


@pytest.mark.parametrize("family_host", [("inet", "localhost"), ("inet6", "localhost"), ("unix", "\0x")])
def test_no_name_that_a_script_asks_to_listen_on_is_looked_up(family_host: tuple[str, str]) -> None:
    """The resolver may take long, and the daemon is everybody's; a script of ours has looked it up itself."""
    resolved = ResolvedApp(AppConfig("scr", script="s.py"), 1, "python", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(name="scr", generations={1: Generation(1, resolved)}, listeners={})
    ours, theirs = socketpair()
    with ours, theirs:
        handle: Any = SimpleNamespace(id=SimpleNamespace(generation=1), ctl=ours, failure=None, waits_to_bind=(*family_host, 8000))
        Workers(SimpleNamespace())._answer_bind(app, handle)  # type: ignore[arg-type]
        packet = recv_packet(theirs, MAX_MESSAGE, 1)
    assert packet is not None
    assert decode(w.ToWorker, packet.data).errno == errno.EADDRNOTAVAIL
    assert handle.failure.hint in ("name one", "name a file")


@pytest.mark.parametrize(("ready", "asked"), [("auto", True), ("notify", False)])
def test_who_says_that_it_is_ready_is_not_taken_for_it_by_its_port_by_the_next_daemon(
    monkeypatch: pytest.MonkeyPatch, ready: Any, asked: bool
) -> None:
    config = AppConfig("api", command=("x",), balance="proxy", bind=("127.0.0.1:1",), ready=ready)
    resolved = ResolvedApp(config, 1, "python", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(generations={1: Generation(1, resolved)})
    handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=4242, port=20000)
    ports: list[int] = []
    monkeypatch.setattr(Readiness, "watch_port", lambda self, app, handle: ports.append(handle.port))
    Readiness(SimpleNamespace(loop=SimpleNamespace(clock=lambda: 1.0))).resume(app, handle)  # type: ignore[arg-type]
    assert bool(ports) == asked


def test_that_a_command_has_said_that_it_is_ready_is_known_to_a_daemon_that_comes_before_the_next_round() -> None:
    resolved = ResolvedApp(AppConfig("api", command=("x",), ready="notify"), 1, "python", {}, (), None, None, (), "", 0)
    handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=os.getpid())
    noted: list[State] = []
    app: Any = SimpleNamespace(
        generations={1: Generation(1, resolved)}, workers={1: handle}, write_memo=lambda: noted.append(handle.state)
    )
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(clock=lambda: 1.0), apps={"api": app}, emit=lambda *args, **data: None, poke=lambda app: None
    )
    Readiness(brain).on_notified(os.getpid(), os.geteuid(), "READY=1")
    assert noted == [State.READY]


def test_what_the_next_daemon_can_ask_again_is_written_down_with_the_round_and_not_for_each_of_a_thousand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved = ResolvedApp(AppConfig("api", command=("x",), balance="proxy"), 1, "python", {}, (), None, None, (), "", 0)
    handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=4242, port=20000)
    happened: list[str] = []
    app: Any = SimpleNamespace(generations={1: Generation(1, resolved)}, write_memo=lambda: happened.append("memo"))
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(clock=lambda: 1.0), emit=lambda *args, **data: None, poke=lambda app: happened.append("round")
    )
    monkeypatch.setattr(check, "at", lambda loop, where, config, done: done(True, ""))
    Readiness(brain).watch_port(app, handle)
    assert (handle.state, happened) == (State.READY, ["round"])


def test_a_script_that_was_answered_by_a_daemon_that_died_and_binds_again_is_answered_for_the_second() -> None:
    resolved = ResolvedApp(AppConfig("scr", script="s.py"), 1, "python", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(name="scr", generations={1: Generation(1, resolved)}, listeners={}, write_memo=lambda: None)
    asked: list[str] = []
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(clock=lambda: 1.0), poke=lambda app: None, emit=lambda *args, **data: None,
        listening=SimpleNamespace(find=lambda app, address: asked.append(str(address)), open=no_descriptor),
    )  # fmt: skip
    brain.readiness = Readiness(brain)
    ours, theirs = socketpair()
    with ours, theirs:
        handle = WorkerHandle(WorkerId("scr", 1, 1, 1), held=True, born_at=0.0, pid=4242, state=State.HELD, ctl=ours)
        handle.waits_to_bind, handle.bound = ("inet", "127.0.0.1", 8000), True
        theirs.send(encode(w.Bind("inet", "127.0.0.1", 8001)))
        Workers(brain).go(app, handle, 1.0)
        packet = recv_packet(theirs, MAX_MESSAGE, 1)
        assert packet is not None
        assert recv_packet(theirs, MAX_MESSAGE, 1) is None
    assert asked == ["127.0.0.1:8001"]


def test_what_says_nothing_is_up_when_it_has_run_that_long_however_busy_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = ResolvedApp(AppConfig("job", command=("x",), balance="shared"), 1, "python", {}, (), None, None, (), "", 0)
    now, waited = 0.0, 0.0
    monkeypatch.setattr(process, "time_without_cpu", lambda pid: waited)
    loop = Loop(lambda: now)
    brain: Any = SimpleNamespace(loop=loop, emit=lambda *args, **data: None, poke=lambda app: None)
    app: Any = SimpleNamespace(generations={1: Generation(1, resolved)}, workers={})

    def states(waits: list[float]) -> list[State]:
        nonlocal now, waited
        handle = WorkerHandle(WorkerId("job", 1, 1, 1), held=False, born_at=now, pid=4242)
        Readiness(brain).is_ready(app, handle, app.generations[1], serving=True)
        found = []
        for wait in waits:  # of each second
            now, waited = now + 1.0, waited + wait
            loop.turn(0)
            found.append(handle.state)
        return found

    up, not_yet = State.READY, State.STARTING
    assert states([0.0]) == [up]
    assert states([0.5, 0.0]) == [not_yet, up]
    assert states([0.9, 0.9, 0.9, 0.0]) == [not_yet, not_yet, not_yet, up]
    assert states([1.0] * 31) == [not_yet] * 29 + [up] * 2  # half of reload.ready_timeout: it may compute


def test_a_script_whose_bind_was_refused_has_its_time_from_then_on() -> None:
    resolved = ResolvedApp(AppConfig("scr", script="s.py"), 1, "python", {}, (), None, None, (), "", 0)
    now = 0.0
    loop = Loop(lambda: now)
    brain: Any = SimpleNamespace(loop=loop, emit=lambda *args, **data: None, poke=lambda app: None)
    app: Any = SimpleNamespace(generations={1: Generation(1, resolved)}, workers={})
    handle = WorkerHandle(WorkerId("scr", 1, 1, 1), held=False, born_at=0.0)
    readiness = Readiness(brain)
    readiness.await_script(app, handle)  # it has said Hello
    for seconds, state in ((2.75, State.STARTING), (2.75, State.STARTING), (0.25, State.READY)):
        now += seconds
        loop.turn(0)
        assert handle.state is state
        if now == 2.75:
            readiness.await_script(app, handle)  # it is told that the port is taken


def test_who_is_not_ready_in_time_because_somebody_has_stopped_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "_kill_now", lambda self, app, handle: None)
    with subprocess.Popen(["sleep", "60"]) as program:
        program.send_signal(signal.SIGSTOP)
        wait_until(lambda: process.is_stopped(program.pid), what="the stop")
        handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=program.pid)
        Workers(SimpleNamespace()).kill(SimpleNamespace(kind="command"), handle, "not ready within 2 s", 2.0)  # type: ignore[arg-type]
        program.kill()
    assert handle.failure is not None
    assert handle.failure.message == "not ready within 2 s: it was stopped by a signal"
    assert "SIGSTOP" in handle.failure.hint


def test_one_that_may_not_be_signalled_is_not_waited_for_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """`command = "sudo …"` of a daemon that is not root's; a root's without CAP_KILL (a container's) and an app with `user`."""

    def refused(pidfd: int, number: int) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(process, "send_signal", refused)
    noted: list[str] = []
    brain: Any = SimpleNamespace(store=SimpleNamespace(get=lambda name: 99), note=lambda app, text: noted.append(text))
    handle = WorkerHandle(WorkerId("api", 1, 2, 3), held=False, born_at=0.0, pid=os.getpid())
    Workers(brain).signal(SimpleNamespace(name="api"), handle, signal.SIGTERM)  # type: ignore[arg-type]
    (text,) = noted
    assert text.startswith("worker 2 runs as ")
    assert text.endswith(f"may not signal it (CAP_KILL): as root, kill {os.getpid()} ends it")


class Asked:
    """The Workers of a daemon, and what they have asked of one worker: by its channel, by a signal, by its stacks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: AppConfig, state: State, *, hears: bool = True) -> None:
        self.asked: list[Any] = []
        self.said: list[str] = []
        brain: Any = SimpleNamespace(
            loop=SimpleNamespace(clock=lambda: 1.0), emit=lambda app, kind, worker, **data: self.said.append(kind),
            remark=lambda app, text: self.said.append(text),
            stacks=SimpleNamespace(take=lambda app, handle, then: self.asked.append(then)),
            messages=SimpleNamespace(disconnect=lambda app, handle: bool(config.env.get("CHANNEL"))),
            listening=SimpleNamespace(drops=lambda app, number: set()), direct=SimpleNamespace(end_untold=lambda app, handle: self.asked.append("end untold")),
            deaths=SimpleNamespace(ended=lambda app, handle, status: self.asked.append("ended")),
        )  # fmt: skip
        brain.readiness = Readiness(brain)
        self.workers = Workers(brain)
        self.handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=4242, state=state)
        sibling = WorkerHandle(WorkerId("api", 1, 2, 2), held=False, born_at=0.0, pid=4243, state=State.READY)
        unready = WorkerHandle(WorkerId("api", 1, 3, 3), held=False, born_at=0.0, pid=4244, state=State.HELD)
        resolved = ResolvedApp(config, 1, "python", {}, (), None, None, (), "", 0)
        workers = {1: self.handle, 2: sibling, 3: unready}
        self.app: Any = SimpleNamespace(
            name="api", kind="asgi" if config.target else "command", hurry=False, generations={1: Generation(1, resolved)}, workers=workers, templates={},
            stop_config=lambda number: config.stop,
        )
        self.kicked: list[int] = []
        self.stopped: set[int] = set()

        def send(handle: WorkerHandle, message: Any, fd: int | None = None) -> bool:
            if isinstance(message, w.Kick):
                self.kicked.append(handle.id.slot)
            else:
                self.asked.append(message)
            return hears

        monkeypatch.setattr(self.workers, "send", send)
        monkeypatch.setattr(self.workers, "signal", lambda app, handle, number: self.asked.append(signal.Signals(number).name))
        monkeypatch.setattr(process, "is_stopped", self.stopped.__contains__)
        monkeypatch.setattr(process, "kill_group", lambda pid, number: self.asked.append(f"end of group {pid}"))


ASGI = AppConfig("api", target="a:b")
COMMAND = AppConfig("api", command=("x",), balance="shared")


@pytest.mark.parametrize(
    ("config", "hears", "asked", "kicks"),
    [
        (ASGI, True, [w.Drain(30.0, to_empty=False)], [2]),
        (ASGI, False, [w.Drain(30.0, to_empty=False), "SIGTERM"], [2]),  # its channel is full, or has ended
        (AppConfig("api", command=("x",), balance="proxy"), True, [], []),  # it is the dispatcher that gives it no more
        (AppConfig("api", command=("x",), balance="round-robin"), True, [], []),
        (AppConfig("api", command=("x",), balance="shared", env={"CHANNEL": "1"}), True, [], []),
        (COMMAND, False, [w.Drain(30.0, to_empty=False), "SIGTERM"], [2]),
        (AppConfig("api", target="a:b", env={"CHANNEL": "1"}), True, [w.Drain(30.0, to_empty=False)], [2]),
    ],
)
def test_who_drains_is_told_so_in_a_way_that_it_hears(
    monkeypatch: pytest.MonkeyPatch, config: AppConfig, hears: bool, asked: list[Any], kicks: list[int]
) -> None:
    draining = Asked(monkeypatch, config, State.READY, hears=hears)
    draining.workers.drain(draining.app, draining.handle, to_empty=False, reason="stop", now=1.0)
    assert (draining.asked, draining.kicked, draining.handle.state) == (asked, kicks, State.DRAINING)
    assert draining.said == ["worker_draining"]
    assert draining.handle.leaving_because == "stop"


@pytest.mark.parametrize(
    ("config", "is_told"),
    [(ASGI, True), (AppConfig("api", script="x.py"), True), (AppConfig("api", script="x.py", balance="proxy"), False), (COMMAND, False)],
)
def test_who_drains_and_hears_it_is_told_another_time_out(monkeypatch: pytest.MonkeyPatch, config: AppConfig, is_told: bool) -> None:
    draining = Asked(monkeypatch, config, State.DRAINING)
    draining.workers.tell_time_to_drain(draining.app)
    left = config.stop.drain_timeout - 1.0
    assert draining.asked == ([w.Drain(left, to_empty=False)] if is_told else [])


@pytest.mark.parametrize(("to_empty", "dropped"), [(True, set()), (False, {1})])
def test_who_drains_takes_all_that_waits_at_a_listener_that_will_be_nobodys(
    monkeypatch: pytest.MonkeyPatch, to_empty: bool, dropped: set[int]
) -> None:
    draining = Asked(monkeypatch, ASGI, State.READY)
    monkeypatch.setattr(draining.workers._brain.listening, "drops", lambda app, number: dropped)
    draining.workers.drain(draining.app, draining.handle, to_empty=to_empty, reason="reload", now=1.0)
    assert draining.asked == [w.Drain(30.0, to_empty=True)]


@pytest.mark.parametrize(
    ("config", "state", "hurry", "hears", "asked"),
    [
        (ASGI, State.READY, False, True, ["SIGTERM"]),
        (ASGI, State.READY, True, True, [w.Drain(0.0, to_empty=False)]),  # it would take a signal for a wish to drain
        (ASGI, State.READY, True, False, [w.Drain(0.0, to_empty=False), "SIGTERM"]),
        (ASGI, State.DRAINING, True, True, ["SIGTERM"]),
        (ASGI, State.STARTING, True, True, ["SIGTERM"]),
        (COMMAND, State.READY, True, True, ["SIGTERM"]),
    ],
)
def test_who_is_to_stop_is_told_by_the_stop_signal_unless_that_would_let_it_take_its_time(
    monkeypatch: pytest.MonkeyPatch, config: AppConfig, state: State, hurry: bool, hears: bool, asked: list[Any]
) -> None:
    stopping = Asked(monkeypatch, config, state, hears=hears)
    stopping.app.hurry = hurry
    stopping.workers.stop(stopping.app, stopping.handle, "stop", 1.0)
    assert (stopping.asked, stopping.handle.state) == (asked, State.STOPPING)
    assert stopping.handle.leaving_because == ("" if state is State.DRAINING else "stop")  # else it has been said before
    if asked == ["SIGTERM"]:
        assert stopping.kicked == [2]  # it may have been woken for a connection


@pytest.mark.parametrize(
    ("config", "hurry", "is_stopped", "is_asked"),
    [(ASGI, False, False, True), (ASGI, False, True, False), (ASGI, True, False, False), (COMMAND, False, False, False)],
)
def test_who_has_not_ended_within_its_time_to_drain_is_asked_where_it_is_before_it_gets_the_signal(
    monkeypatch: pytest.MonkeyPatch, config: AppConfig, hurry: bool, is_stopped: bool, is_asked: bool
) -> None:
    late = Asked(monkeypatch, config, State.DRAINING)
    late.app.hurry = hurry
    late.stopped |= {4242} if is_stopped else set()
    late.workers.stop(late.app, late.handle, DRAIN_TIMEOUT, 1.0)
    if is_asked:
        (answered,) = late.asked
        answered("")
        assert late.asked == [answered, "SIGTERM"]
        late.handle.ended_at = 2.0
        answered("")
        assert late.asked == [answered, "SIGTERM"]  # its number may be another's
    else:
        assert late.asked == ["SIGTERM"]
    if is_asked or is_stopped:
        how = ": it was stopped by a signal, and kill -CONT 4242 lets it go on" if is_stopped else ""
        assert late.said == [f"worker 1 has not ended within stop.drain_timeout (30 s){how}"]


@pytest.mark.parametrize(
    ("config", "state", "failed", "is_asked"),
    [
        (ASGI, State.STARTING, False, True),
        (ASGI, State.OPENING, False, True),
        (ASGI, State.STARTING, True, False),  # it has said why
        (ASGI, State.DRAINING, False, False),
        (COMMAND, State.STARTING, False, False),
    ],
)
def test_who_is_to_be_killed_for_not_being_ready_is_asked_where_it_is_before(
    monkeypatch: pytest.MonkeyPatch, config: AppConfig, state: State, failed: bool, is_asked: bool
) -> None:
    stuck = Asked(monkeypatch, config, state)
    stuck.handle.failure = w.Failed("other", "it said why", "") if failed else None
    stuck.handle.leaving_because = "stop" if state is State.DRAINING else ""
    stuck.workers.kill(stuck.app, stuck.handle, "not ready", 1.0)
    assert stuck.handle.state is State.KILLED
    assert stuck.handle.leaving_because == ("stop" if state is State.DRAINING else "not ready")
    if is_asked:
        (answered,) = stuck.asked
        answered("")
        assert stuck.asked == [answered, "SIGKILL", "end of group 4242"]
        stuck.handle.ended_at = 2.0
        answered("")
        assert stuck.asked == [answered, "SIGKILL", "end of group 4242"]
    else:
        assert stuck.asked == ["SIGKILL", "end of group 4242"]


@pytest.mark.parametrize(
    ("asked_of_template", "untold", "at_last", "follows"),
    [
        (True, False, False, []),  # it is about to say the pid
        (True, False, True, ["ended"]),
        (False, False, False, ["ended"]),
        (False, True, False, ["end untold", "ended"]),
    ],
)
def test_one_whose_pid_nobody_has_said_ends_by_the_end_of_its_channel_and_no_process_is_signalled(
    monkeypatch: pytest.MonkeyPatch, asked_of_template: bool, untold: bool, at_last: bool, follows: list[str]
) -> None:
    unborn = Asked(monkeypatch, ASGI, State.STARTING)
    unborn.handle.pid, unborn.handle.untold = 0, untold
    unborn.app.templates = {1: SimpleNamespace(asked={1} if asked_of_template else {9})}
    if at_last:
        unborn.workers.kill(unborn.app, unborn.handle, "not ready", 1.0)
    else:
        unborn.workers.stop(unborn.app, unborn.handle, "stop", 1.0)
    assert unborn.asked == [w.Drain(0.0, to_empty=False), *follows]


@pytest.mark.parametrize(("ends", "signalled"), [("stop", "SIGINT"), ("kill", "SIGKILL")])
def test_one_that_the_launcher_may_have_started_is_signalled_when_its_pid_is_told_or_has_ended_when_none_is(
    monkeypatch: pytest.MonkeyPatch, ends: str, signalled: str
) -> None:
    for pid, follows in ((4242, [signalled]), (0, [w.Drain(0.0, to_empty=False), "ended"])):
        launched = Asked(monkeypatch, COMMAND, State.STARTING)
        launched.handle.pid, launched.handle.launching = 0, True
        launched.app.stop_config = lambda number: StopConfig(signal="INT")  # of a reload since then
        getattr(launched.workers, ends)(launched.app, launched.handle, "why", 1.0)
        assert launched.asked == [w.Drain(0.0, to_empty=False)], "it runs, maybe"
        brain: Any = launched.workers._brain
        brain.pids = SimpleNamespace(claim=lambda app, handle, pid: setattr(handle, "pid", pid))
        brain.workers, brain.poke = launched.workers, lambda app: None
        Direct(brain).started(launched.app, launched.handle, pid)
        assert launched.asked[1:] == follows


def test_one_that_has_said_its_first_word_by_now_is_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    born = Asked(monkeypatch, ASGI, State.STARTING)
    born.handle.pid = 0
    monkeypatch.setattr(born.workers, "on_message", lambda app, handle: setattr(handle, "pid", 4242))
    born.workers.stop(born.app, born.handle, "stop", 1.0)
    assert born.asked == ["SIGTERM"]


def test_a_round_follows_each_word_and_a_state_that_is_said_once_is_written_down_before() -> None:
    done: list[str] = []
    ours, theirs = socketpair()
    fds.pass_credentials(ours)
    resolved = ResolvedApp(ASGI, 1, "python", {}, (), None, None, (), "", 0)
    brain: Any = SimpleNamespace(loop=SimpleNamespace(clock=lambda: 1.0), poke=lambda app: done.append("round"))
    brain.readiness = SimpleNamespace(is_ready=lambda app, handle, generation, serving: setattr(handle, "state", State.READY))
    app: Any = SimpleNamespace(generations={1: Generation(1, resolved)}, write_memo=lambda: done.append("memo"))
    handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=os.getpid(), ctl=ours)
    with ours, theirs:
        for message in (w.Ready(True), w.Drained(0, 0)):
            fds.send_packet(theirs, encode(message))
        Workers(brain).on_message(app, handle)
    assert done == ["memo", "round", "round"]
    assert handle.talk.left == AT_ONCE - 2


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (ASGI, [w.Go()]),
        (AppConfig("api", command=("x",), balance="proxy"), ["accepts"]),  # it does already
        (AppConfig("api", command=("x",), balance="round-robin"), ["accepts"]),
        (AppConfig("api", script="s.py"), ["bound", "accepts"]),
    ],
)
def test_who_was_held_is_told_to_go_or_counts_as_gone(
    monkeypatch: pytest.MonkeyPatch, config: AppConfig, asked: list[Any]
) -> None:
    held = Asked(monkeypatch, config, State.HELD)
    monkeypatch.setattr(Readiness, "accepts", lambda self, app, handle: held.asked.append("accepts"))
    monkeypatch.setattr(Workers, "_answer_bind", lambda self, app, handle: held.asked.append("bound"))
    held.workers.go(held.app, held.handle, 1.0)
    assert held.asked == asked
    assert (held.handle.state, held.handle.gone_go) == (State.OPENING, True)


@pytest.mark.parametrize("pid", [0, 4242])
def test_what_a_worker_says_once_stays_in_its_channel_until_what_follows_from_it_is_written_down(pid: int) -> None:
    """A daemon that is killed over it would leave one that is never ready, or a script that waits for its port for ever."""
    there: list[str] = []
    ours, theirs = socketpair()
    with ours, theirs:
        fds.pass_credentials(ours)
        handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, ctl=ours, pid=pid)

        def note(what: str) -> None:
            there.append(what if fds.peek_packet(ours, MAX_MESSAGE) else f"{what} too late")

        def claim(app: Any, handle: WorkerHandle, pid: int) -> None:
            handle.pid = pid
            note("claimed")

        def is_ready(app: Any, handle: WorkerHandle, generation: object, serving: bool) -> None:
            handle.state = State.READY

        brain: Any = SimpleNamespace(
            loop=Loop(), poke=lambda app: None, pids=SimpleNamespace(claim=claim), readiness=SimpleNamespace(is_ready=is_ready)
        )
        app: Any = SimpleNamespace(generations={1: object()}, write_memo=lambda: note("written down"))
        assert fds.send_packet(theirs, encode(w.Ready(serving=True)))
        Workers(brain).on_message(app, handle)
        assert there == ["claimed"] * (not pid) + ["written down"]
        assert fds.peek_packet(ours, MAX_MESSAGE) is None
        brain.loop.close()


@pytest.mark.parametrize("pid", [0, 4242])
def test_what_cannot_be_done_of_what_a_worker_says_is_not_tried_again_and_again(pid: int) -> None:
    ours, theirs = socketpair()
    with ours, theirs:
        fds.pass_credentials(ours)
        loop = Loop()
        handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, ctl=ours, pid=pid)
        app: Any = SimpleNamespace(generations={1: object()})
        brain: Any = SimpleNamespace(
            loop=loop, poke=lambda app: None, readiness=SimpleNamespace(is_ready=no_descriptor), pids=SimpleNamespace(claim=no_descriptor)
        )
        assert fds.send_packet(theirs, encode(w.Ready(serving=True)))
        with pytest.raises(OSError, match=TOO_MANY_OPEN_FILES):
            Workers(brain).on_message(app, handle)
        assert fds.peek_packet(ours, MAX_MESSAGE) is None
        loop.close()


@pytest.mark.parametrize(
    ("data", "given", "why"),
    [
        (encode(w.Notice("x" * w.MAX_WORKER_MESSAGE)), (), f"at most {w.MAX_WORKER_MESSAGE} are taken"),
        (encode(w.Drained(0, 0)) + b" " * w.MAX_WORKER_MESSAGE, (), f"at most {w.MAX_WORKER_MESSAGE} are taken"),
        (encode(w.Drained(0, 0)), (0,), "a message with fds"),
    ],
)
def test_who_says_what_no_worker_of_ours_says_is_killed_and_it_is_said_what_that_was(
    data: bytes, given: tuple[int, ...], why: str
) -> None:
    notes: list[str] = []
    ours, theirs = socketpair()
    with ours, theirs:
        fds.pass_credentials(ours)
        loop = Loop()
        handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, ctl=ours, pid=4242)
        app: Any = SimpleNamespace(generations={1: object()})
        brain: Any = SimpleNamespace(loop=loop, poke=lambda app: None, note=lambda app, text: notes.append(text))
        workers = Workers(brain)
        workers.signal = lambda app, handle, number: notes.append(str(number))  # type: ignore[method-assign]
        assert fds.send_packet(theirs, data, given)
        workers.on_message(app, handle)
        assert fds.peek_packet(ours, MAX_MESSAGE) is None
        loop.close()
    assert notes[0].endswith(why)
    assert notes[1:] == [str(signal.SIGKILL.value)]
    assert handle.failure is not None
    assert handle.drained is None
