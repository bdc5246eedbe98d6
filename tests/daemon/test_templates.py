"""daemon/templates.py: how much a template may say, and its end. Whole trees are in tests/system."""

from __future__ import annotations

import errno
import os
import signal
import socket
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from pyworker.daemon import diagnosis, templates
from pyworker.daemon.app import Failure
from pyworker.daemon.dispatchers import Dispatchers
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.loop import Loop
from pyworker.daemon.pids import Pids
from pyworker.daemon.templates import UNBORN_AFTER, Templates
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import Record, RestartConfig
from pyworker.protocol import template as t
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import WorkerId, fd_name
from pyworker.protocol.names import DOES_NOT_END
from pyworker.protocol.wire import MAX_MESSAGE, decode, encode
from pyworker.unix import process
from pyworker.unix.fds import pass_credentials, peek_packet, recv_packet, send_packet
from tests.support.channels import ends as ends
from tests.support.wait import wait_until

MANY = 1000


def test_no_answer_to_a_fork_is_one_too_many_and_each_other_message_may_be(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """With many at once most have said Hello before their template's word is read; some were given up unborn."""
    ours, theirs = ends
    pass_credentials(ours)
    brain: Any = SimpleNamespace(loop=SimpleNamespace(clock=lambda: 0.0), poke=lambda app: None, store={})
    handle = TemplateHandle("api", 1, 0.0, state="ready", channel=ours, asked=set(range(MANY)))
    known = {serial: SimpleNamespace(pid=10_000 + serial, id=SimpleNamespace(generation=1)) for serial in range(0, MANY, 2)}
    app: Any = SimpleNamespace(name="api", workers=known, templates={})
    templates = Templates(brain)
    for serial in range(MANY):
        assert send_packet(theirs, encode(t.Forked(serial, 10_000 + serial)))
        templates._on_message(app, handle)
    assert (handle.killed_because, handle.asked) == ("", set())
    for serial in range(MANY):
        assert send_packet(theirs, encode(t.Forked(serial, 10_000 + serial)))
        templates._on_message(app, handle)
    assert handle.killed_because == "its channel said more messages than there is a use for"


@pytest.mark.parametrize("message", [*(t.Forked(1, pid) for pid in (2**40, 1, 0, -1)), t.Parked(2**40), t.Parked(0), t.ForkFailed(1, 2**40)])
def test_a_number_that_is_no_worker_s_pid_or_no_errno_ends_the_template_that_has_said_it(
    ends: tuple[socket.socket, socket.socket], message: t.FromTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -1 all processes that the daemon may signal would be killed, with 0 its own group."""
    for kill in ("kill", "killpg"):
        monkeypatch.setattr(os, kill, lambda *_: pytest.fail("it was signalled"))
    ours, theirs = ends
    pass_credentials(ours)
    loop = SimpleNamespace(clock=lambda: 0.0, call_lazily=lambda delay, call: None)
    brain: Any = SimpleNamespace(loop=loop, poke=lambda app: None, store={})
    brain.pids = Pids(brain)
    handle = TemplateHandle("api", 1, 0.0, state="ready", channel=ours, asked={1})
    worker = SimpleNamespace(pid=0, id=SimpleNamespace(generation=1), is_alive=True)
    generation = SimpleNamespace(resolved=SimpleNamespace(uid=None))
    app: Any = SimpleNamespace(name="api", workers={1: worker}, templates={}, generations={1: generation})
    assert send_packet(theirs, encode(message))
    Templates(brain)._on_message(app, handle)
    assert handle.killed_because.startswith("its channel said ")


def test_a_template_that_sigkill_does_not_end_is_done_without_and_why_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose import reads a disk that does not answer: a reload waited for its end without end."""
    loop = Loop()
    ended: list[Any] = []
    monkeypatch.setattr(templates, "UNDYING", 0.0)
    monkeypatch.setattr(templates.signals, "send", lambda *_, **__: True)
    monkeypatch.setattr(process, "is_gone", lambda pidfd: False)
    monkeypatch.setattr(process, "is_kept", lambda pid: pid == 42)
    monkeypatch.setattr(Templates, "gone", lambda self, app, handle, status: ended.append(status))
    brain: Any = SimpleNamespace(store={fd_name("tpid", "api", 1): 0}, loop=loop)
    handle = TemplateHandle("api", 1, 0.0, state="retiring", pid=42, killed_because="the import took more than 60 s")
    app: Any = SimpleNamespace(name="api", templates={1: handle})
    Templates(brain)._kill(app, handle)
    wait_until(lambda: loop.turn(0.01) or ended, what="its end")
    assert ended == [process.UNKNOWN]
    assert handle.killed_because == f"the import took more than 60 s, and it {DOES_NOT_END}"


def test_a_template_whose_import_has_left_a_process_ends_without_a_free_descriptor_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_number(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", no_number)
    monkeypatch.setattr(process, "kill_group_of", lambda *_: True)
    poked: list[Any] = []
    store = SimpleNamespace(get={fd_name("tpid", "api", 1): 0}.get, remove=lambda *_: None, forget=lambda *_: None)
    brain: Any = SimpleNamespace(store=store, poke=poked.append, loop=SimpleNamespace(clock=lambda: 1.0))
    handle = TemplateHandle("api", 1, 0.0, state="retiring")
    app: Any = SimpleNamespace(name="api", templates={1: handle}, workers={}, generations={}, left_behind={})
    Templates(brain).gone(app, handle, process.ExitStatus(0, None))
    assert (app.templates, poked) == ({}, [app])


def test_what_follows_from_an_end_does_so_though_not_all_could_be_cleared_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("of no kind that anybody expects")

    poked: list[Any] = []
    monkeypatch.setattr(Templates, "_end_stopped_spare", fail)
    brain: Any = SimpleNamespace(poke=poked.append, loop=SimpleNamespace(clock=lambda: 1.0))
    handle = TemplateHandle("api", 1, 0.0, state="retiring")
    app: Any = SimpleNamespace(name="api", templates={1: handle})
    with pytest.raises(ValueError, match="expects"):
        Templates(brain).gone(app, handle, process.ExitStatus(0, None))
    assert (app.templates, poked) == ({}, [app])


@pytest.mark.parametrize("kind", [Templates, Dispatchers])
def test_a_failure_in_its_last_words_does_not_keep_a_helper_from_its_end(
    monkeypatch: pytest.MonkeyPatch, kind: type[Templates | Dispatchers]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    ended: list[int] = []
    monkeypatch.setattr(kind, "_on_message", fail)
    helpers = SimpleNamespace(of_helper=lambda pid, pidfd, then: ended.append(pid))
    brain: Any = SimpleNamespace(loop=SimpleNamespace(remove=lambda fd: None), pids=helpers)
    handle: Any = SimpleNamespace(pid=42)
    app: Any = None
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        kind(brain)._ended(app, handle, 3)
    assert ended == [42]


def test_one_that_may_not_be_signalled_is_not_waited_for_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an app with `user`, where the daemon is a root without CAP_KILL, as in a container."""

    def refused(pidfd: int, number: int) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(signal, "pidfd_send_signal", refused)
    monkeypatch.setattr(process, "owner", lambda pid: None)  # a process of that number may happen to be there
    noted: list[str] = []
    store = SimpleNamespace(get={fd_name("tpid", "api", 1): 0}.get)
    brain: Any = SimpleNamespace(store=store, note=lambda app, text: noted.append(text))
    handle = TemplateHandle("api", 1, 0.0, state="loading", pid=4711)
    Templates(brain).stop(SimpleNamespace(name="api", templates={1: handle}), handle, "the import took more than 3 s", 3.0)  # type: ignore[arg-type]
    assert {text.partition(": ")[2] for text in noted} == {
        "its template is another user's, and this daemon may not signal it (CAP_KILL): as root, kill -9 4711 ends it"
    }


@pytest.mark.parametrize(
    ("state", "loaded", "reason", "told"),
    [
        ("ready", True, "", [t.Retire()]),
        ("loading", False, "", ["SIGTERM", t.Retire()]),  # it hears nothing before its import is over
        ("retiring", True, "", ["SIGKILL"]),  # it has been told, and stayed
        ("retiring", False, "", ["SIGKILL"]),
        ("ready", True, "it does not answer", ["SIGKILL"]),
        ("loading", False, "the import took more than 3 s", ["where it is", "SIGKILL"]),
    ],
)
def test_who_is_to_leave_is_told_so_first_and_who_hangs_in_an_import_is_asked_where_before_it_is_killed(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, state: Any, loaded: bool, reason: str, told: list[Any]
) -> None:
    now = [100.0]
    loop = Loop(lambda: now[0])
    found: list[Any] = []
    words = {w.STACKS_SIGNAL: "where it is", signal.SIGTERM: "SIGTERM", signal.SIGKILL: "SIGKILL"}
    monkeypatch.setattr(process, "send_signal", lambda pidfd, number: found.append(words[number]) or True)
    brain: Any = SimpleNamespace(store=SimpleNamespace(get={fd_name("tpid", "api", 1): 0}.get), loop=loop)
    handle = TemplateHandle("api", 1, 0.0, state=state, channel=ends[0], pid=4711, killed_because="" if reason else "before")
    handle.loaded = t.Loaded(7, "3.11.7", "asgi", "e", "uvloop", True, "", 0.5) if loaded else None
    app: Any = SimpleNamespace(name="api", templates={1: handle})
    Templates(brain).stop(app, handle, reason, 100.0)
    if told[0] == "where it is":
        assert found == ["where it is"]  # it has a moment to say it
    now[0] += 1
    loop.turn(0.0)
    while (packet := recv_packet(ends[1], 4096, 0)) is not None:
        found.append(decode(t.ToTemplate, packet.data))
    assert found == told
    assert (handle.state, handle.since, handle.killed_because) == ("retiring", 100.0, reason or "before")
    app.templates = {1: object()}  # another one by now
    assert not Templates(brain)._signal(app, handle, signal.SIGKILL)
    loop.close()


@pytest.mark.parametrize(("pid", "generation", "claimed"), [(0, 1, True), (0, 2, False), (9, 1, False)])
def test_a_template_names_the_process_of_a_worker_of_its_own_that_has_none_yet(
    pid: int, generation: int, claimed: bool
) -> None:
    claims: list[int] = []
    pids = SimpleNamespace(claim=lambda app, worker, pid, owner: claims.append(pid) or True)
    brain: Any = SimpleNamespace(loop=SimpleNamespace(clock=lambda: 0.0), pids=pids)
    worker = WorkerHandle(WorkerId("api", generation, 1, 7), held=False, born_at=0.0, pid=pid)
    one = SimpleNamespace(resolved=SimpleNamespace(uid=None))
    app: Any = SimpleNamespace(name="api", workers={7: worker}, templates={}, generations={1: one, 2: one})
    Templates(brain)._take(app, TemplateHandle("api", 1, 0.0, state="ready"), t.Forked(7, 4711))
    assert claims == ([4711] if claimed else [])


@pytest.mark.parametrize(
    ("alive", "generation", "is_ended"), [(True, 1, False), (False, 1, True), (True, 2, True)]
)
def test_what_an_import_has_left_is_ended_when_the_last_that_has_it_from_its_template_has(
    monkeypatch: pytest.MonkeyPatch, alive: bool, generation: int, is_ended: bool
) -> None:
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(process, "kill_group_of", lambda pidfd, number: ended.append((pidfd, number)))
    pidfd = os.open("/dev/null", os.O_RDONLY)
    worker = SimpleNamespace(is_alive=alive, id=SimpleNamespace(generation=generation))
    long_gone = SimpleNamespace(is_alive=False, id=SimpleNamespace(generation=1))
    app: Any = SimpleNamespace(workers={7: worker, 8: long_gone}, left_behind={1: [pidfd]})
    Templates(SimpleNamespace()).end_left_behind(app, 1)  # type: ignore[arg-type]
    if is_ended:
        assert (ended, app.left_behind) == ([(pidfd, signal.SIGTERM)], {})
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pidfd)
    else:
        assert (ended, app.left_behind) == ([], {1: [pidfd]})
        os.close(pidfd)


@pytest.mark.parametrize(
    ("state", "ready_at", "killed_because", "number", "told", "tries", "failed"),
    [
        ("loading", None, "", 1, True, 3, True),
        ("retiring", None, "the import took more than 3 s", 1, True, 3, True),
        ("ready", 99.0, "", 1, True, 4, False),  # the app goes on: another one is made
        ("retiring", 99.0, "it did not answer", 1, True, 4, False),
        ("retiring", 50.0, "it did not answer", 1, True, 0, False),  # it had been good for long
        ("ready", 99.0, "", 2, True, 3, False),
        ("retiring", 99.0, "", 1, False, 3, False),  # as it was told
    ],
)
def test_what_the_end_of_a_template_counts_for(
    monkeypatch: pytest.MonkeyPatch, state: Any, ready_at: float | None, killed_because: str, number: int, told: bool, tries: int, failed: bool
) -> None:
    now = [100.0]
    loop = Loop(lambda: now[0])
    monkeypatch.setattr(diagnosis, "of_template", lambda *_: ("ended with code 1", "", ""))
    said: list[str] = []
    failures: list[str] = []
    unborn: list[tuple[int, bool]] = []
    closed: list[str] = []
    store = SimpleNamespace(get=lambda name: None, remove=lambda *names: closed.extend(names), forget=lambda *names: closed.extend(names))
    brain: Any = SimpleNamespace(
        still=0.0,
        store=store, loop=loop, home="/", poke=lambda app: None, emit=lambda app, kind, slot, **data: said.append(kind), fail=Failure,
        deaths=SimpleNamespace(
            unstable=lambda app, failure, now, *, permanent: failures.append(failure.message),
            ended=lambda app, handle, status: unborn.append((handle.id.serial, handle.lost)),
        ),
    )  # fmt: skip
    handle = TemplateHandle("api", number, 100.0, state=state, ready_at=ready_at, killed_because=killed_because)
    workers = {serial: WorkerHandle(WorkerId("api", number, 1, serial), False, 0.0) for serial in (5, 6, 7, 8)}
    workers[6].pid = 4711
    workers[7].state = State.STOPPING
    workers[8].id = WorkerId("api", 3, 1, 8)
    app: Any = SimpleNamespace(
        name="api", generation=1, target=None, running=True, starting=False, unusable=False, templates={number: handle}, workers=workers,
        generations={}, left_behind={}, template_record=Record(3), restart_config=RestartConfig(),
    )  # fmt: skip
    by_somebody = not killed_because and state == "ready"
    status = process.ExitStatus(None, signal.SIGKILL) if by_somebody else process.ExitStatus(78, None)
    for _ in range(2):  # by its pidfd, and by the guardian's word
        Templates(brain).gone(app, handle, status)
    assert said == (["template_exited"] if told else [])
    assert failures == (["ended with code 1"] if failed else [])
    assert app.template_record.tries == tries
    assert sorted(closed) == [f"{kind}.api.{number}" for kind in ("spare", "template", "terr", "tout", "tpid")]
    assert unborn == []  # it may say Hello yet
    now[0] += UNBORN_AFTER
    loop.turn(0.0)
    assert unborn == ([(5, by_somebody)] if told else [])
    assert not app.unusable  # it has run
    loop.close()


@pytest.mark.parametrize(("number", "code", "starting", "unusable"), [(1, 78, True, True), (1, 78, False, False), (1, 1, True, False), (2, 78, True, False)])
def test_only_a_start_is_given_up_for_what_another_try_would_not_mend(
    monkeypatch: pytest.MonkeyPatch, number: int, code: int, starting: bool, unusable: bool
) -> None:
    monkeypatch.setattr(diagnosis, "of_template", lambda *_: ("no such file", "", ""))
    monkeypatch.setattr(Templates, "_failed", lambda *_, **__: None)
    brain: Any = SimpleNamespace(
        store=SimpleNamespace(get=lambda name: None, remove=lambda *_: None, forget=lambda *_: None), loop=Loop(), home="/", still=0.0,
        poke=lambda app: None, emit=lambda *_, **__: None, fail=Failure,
    )  # fmt: skip
    app: Any = SimpleNamespace(
        name="api", generation=1, starting=starting, unusable=False, templates={}, workers={}, generations={}, left_behind={}
    )
    Templates(brain).gone(app, TemplateHandle("api", number, 100.0), process.ExitStatus(code, None))
    assert app.unusable is unusable
    brain.loop.close()


@pytest.mark.parametrize(("stopped", "worker", "killed"), [(True, 9, True), (True, 4711, False), (False, 9, False)])
def test_a_spare_that_somebody_has_stopped_is_killed_unless_it_has_become_a_worker(
    monkeypatch: pytest.MonkeyPatch, stopped: bool, worker: int, killed: bool
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(process, "pidfd_pid", lambda pidfd: 4711)
    monkeypatch.setattr(process, "is_stopped", lambda pid: stopped and pid == 4711)
    monkeypatch.setattr(process, "send_signal", lambda pidfd, number: sent.append(number) or True)
    brain: Any = SimpleNamespace(store={fd_name("spare", "api", 1): 5})
    app: Any = SimpleNamespace(name="api", workers={7: SimpleNamespace(pid=worker), 8: SimpleNamespace(pid=10)})
    Templates(brain)._end_stopped_spare(app, 1)
    assert sent == ([signal.SIGKILL] if killed else [])


@pytest.mark.parametrize(
    ("app", "follows"),
    [
        ({"generation": 0, "target": 1}, "the reload fails"),
        ({"starting": True}, "the start fails, killed: True"),
        ({"starting": True, "generation": 2}, "nothing"),
        ({}, "counted, permanent: False"),  # it has run: what is missing now may come back
        ({"running": False}, "nothing"),
        ({"generation": 2}, "nothing"),  # of a roll-back that is over
    ],
)
def test_what_a_template_that_failed_is_a_failure_of(app: dict[str, Any], follows: str) -> None:
    found: list[str] = []
    poked: list[Any] = []
    deaths = SimpleNamespace(
        start_failed=lambda app, failure, now, *, killed: found.append(f"the start fails, killed: {killed}"),
        unstable=lambda app, failure, now, *, permanent: found.append(f"counted, permanent: {permanent}"),
    )
    brain: Any = SimpleNamespace(deaths=deaths, poke=poked.append)
    of: Any = SimpleNamespace(**{"generation": 1, "target": None, "running": True, "starting": False, "target_failure": None} | app)
    Templates(brain)._failed(of, 1, Failure("why"), 1.0, killed=True)
    found += ["the reload fails"] if of.target_failure is not None else []
    assert found == ([] if follows == "nothing" else [follows])
    assert poked == [of]


@pytest.mark.parametrize(
    ("error", "starting", "restored", "is_tried_again"),
    [
        (OSError(errno.EAGAIN, "no process is left"), True, True, True),
        (OSError(errno.EAGAIN, "no process is left"), True, False, False),
        (OSError(errno.EAGAIN, "no process is left"), False, True, False),
        (ValueError("a mistake"), True, False, False),
    ],
)
def test_one_that_cannot_be_made_fails_a_start_and_is_tried_again_at_a_boot(
    monkeypatch: pytest.MonkeyPatch, error: Exception, starting: bool, restored: bool, is_tried_again: bool
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise error

    found: list[str] = []
    closed: list[str] = []
    monkeypatch.setattr(Templates, "_failed", lambda self, app, number, failure, now: found.append(failure.message))
    brain: Any = SimpleNamespace(
        spawner=SimpleNamespace(template=refuse), emit=lambda *args, **data: None, fail=Failure,
        store=SimpleNamespace(remove=lambda *names: closed.extend(names), forget=lambda *names: closed.extend(names)),
        deaths=SimpleNamespace(unstable=lambda app, failure, now, *, permanent: found.append(f"again, {permanent}: {failure.message}")),
    )  # fmt: skip
    app: Any = SimpleNamespace(name="api", generation=1, generations={1: object()}, starting=starting, restored=restored, templates={})
    if isinstance(error, OSError):
        Templates(brain).start(app, 1, 1.0)
    else:
        with pytest.raises(ValueError, match="a mistake"):  # it is told of in the daemon's log, too
            Templates(brain).start(app, 1, 1.0)
    why = f"cannot start a process: {error.args[-1]}"
    assert found == ([f"again, False: {why}"] if is_tried_again else [why])
    assert (app.templates, len(closed)) == ({}, 5)


@pytest.mark.parametrize(
    ("at", "code", "newest_at", "said"),
    [
        (100, "a", 200, False),
        (100, "b", 99, False),
        (100, "b", 200, True),
        (None, "b", 1, True),  # a daemon of before
        (100, "b", 0, False),  # a template of before
    ],
)
def test_other_code_is_what_was_changed_and_not_what_was_imported_by_chance(
    at: int | None, code: str, newest_at: int, said: bool
) -> None:
    notes: list[str] = []
    brain: Any = SimpleNamespace(note=lambda app, text: notes.append(text))
    app: Any = SimpleNamespace(name="api", codes={1: "a"}, codes_at={} if at is None else {1: at})
    loaded = t.Loaded(7, "3.11", "asgi", "e", "uvloop", True, "", 0.5, "", code, "web.py", newest_at, looked_at=300)
    for _ in range(2):  # once: it is known then
        Templates(brain)._note_other_code(app, 1, loaded)
    assert len(notes) == said


def test_that_a_template_has_loaded_stays_in_its_channel_until_it_is_written_down(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    pass_credentials(ours)
    there: list[bool] = []
    brain: Any = SimpleNamespace(loop=SimpleNamespace(clock=lambda: 0.0), poke=lambda app: None, emit=lambda *_, **__: None)
    app: Any = SimpleNamespace(codes={}, codes_at={}, write_memo=lambda: there.append(peek_packet(ours, MAX_MESSAGE) is not None))
    handle = TemplateHandle("api", 1, 0.0, channel=ours)
    assert send_packet(theirs, encode(t.Loaded(7, "3.13.1", "asgi", "uvicorn", "uvloop", True, "", 0.1)))
    Templates(brain)._on_message(app, handle)
    assert (handle.state, there, peek_packet(ours, MAX_MESSAGE)) == ("ready", [True], None)
