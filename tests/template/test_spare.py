"""The worker that is forked ahead of need."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from pyworker.protocol.template import Fork, ForkFailed, Parked, Ping, Pong, Retire
from pyworker.protocol.worker import Hello, Ready
from pyworker.template import spare
from pyworker.template.spare import Spares
from pyworker.unix.fds import Packet, socketpair
from pyworker.unix.process import is_stopped
from tests.support.fake_daemon import spares
from tests.support.pyworker import KERNEL
from tests.support.wait import wait_until
from tests.template.test_launcher import NOBODY, PUBLIC, needs_public, needs_root
from tests.worker.conftest import get

pytestmark = pytest.mark.usefixtures("no_fd_is_left")


def the_spare(*but: int) -> int:
    return wait_until(lambda: next((pid for pid in spares() if pid not in but), 0), what="a spare")


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_who_is_asked_for_is_the_spare_and_another_one_is_made(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    template.send(Ping(1))  # which ends one that is stopped
    template.expect(Pong)
    worker = d.fork(template, 1)
    assert worker.pid == first
    worker.expect(Hello)
    worker.expect(Ready)
    assert get(d.listeners[0].getsockname())
    assert os.getsid(worker.pid) == worker.pid
    second = the_spare(first)
    assert d.fork(template, 2).pid == second


def test_the_daemon_is_told_who_is_parked(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    assert template.expect(Parked).pid == the_spare()


def test_two_at_once_are_the_spare_and_a_fork(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    workers = [d.fork(template, 1), d.fork(template, 2)]
    assert workers[0].pid == first != workers[1].pid
    for worker in workers:
        worker.expect(Hello)
        worker.expect(Ready)


def test_a_killed_spare_is_replaced_and_keeps_nobody_from_being_forked(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    os.kill(first, signal.SIGKILL)
    d.reap(first)
    worker = d.fork(template, 1)
    assert worker.pid != first
    worker.expect(Hello)
    worker.expect(Ready)
    the_spare(first, worker.pid)


def test_the_spare_is_gone_before_a_template_that_was_told_to_leave(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    template.send(Retire())
    assert d.reap(template.pid) == 0
    assert ended(first)


def test_the_spare_leaves_when_its_template_is_killed(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    d.kill(template.pid)
    wait_until(lambda: ended(first), what="the spare's end")


def test_the_more_often_a_spare_ends_by_itself_the_later_comes_the_next() -> None:
    now = 100.0
    kept = Spares(lambda: -11, wanted=True, clock=lambda: now)
    waits = []
    for _ in range(12):
        waits.append(kept.wait_ms())
        now += 60.0
        assert kept.wait_ms() == 0
        assert kept.make() is None
    assert waits == pytest.approx([100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000])
    assert kept.hand(None) == 0  # type: ignore[arg-type]  # nobody looks at it
    assert kept.wait_ms() == pytest.approx(100)  # somebody was needed: it is worth a try


def test_a_spare_that_was_needed_makes_up_for_all_that_have_ended_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socketpair()
    monkeypatch.setattr(spare, "socketpair", lambda: (ours, theirs.dup()))
    kept = Spares(os.getpid, wanted=True, clock=lambda: 100.0)
    for wait in (200, 400, 800):
        kept.ended()
        assert kept.wait_ms() == pytest.approx(wait)
    kept.make()
    assert kept.hand(Packet(b"order", [], 0, False)) == os.getpid()
    kept.ended()
    assert kept.wait_ms() == pytest.approx(200)
    theirs.close()


def test_where_the_app_is_not_imported_yet_nothing_is_forked_ahead() -> None:
    assert Spares(lambda: -11, wanted=False).wait_ms() is None


WRITES = """
memory = bytearray(8 << 20)

def wsgi(environ, start_response):
    memory[::4096] = b"x" * len(memory[::4096])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def private(pid: int) -> int:
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().split("Private_Dirty:")[1].split()
    return int(fields[0]) * 1024


@pytest.mark.skipif(KERNEL < (5, 14), reason="this kernel cannot copy them (MADV_POPULATE_WRITE: Linux 5.14)")
def test_the_spare_has_pages_copied_ahead_that_a_worker_writes_to(daemon: Any, folder: Path) -> None:
    (folder / "writes.py").write_text(WRITES)
    d = daemon(target="writes:wsgi")
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert get(d.listeners[0].getsockname()) == b"ok"
    assert private(worker.pid) > 8 << 20
    successor = the_spare(worker.pid)
    wait_until(lambda: private(successor) > 8 << 20, what="the spare to have copies of its own")
    d.kill(worker.pid)
    assert d.fork(template, 1).pid == successor
    assert get(d.listeners[0].getsockname()) == b"ok"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), what="the spare to stand still")


def test_a_stopped_spare_is_not_asked_but_ended(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    stop(first)
    worker = d.fork(template, 1)
    assert worker.pid != first
    worker.expect(Hello)
    worker.expect(Ready)
    assert d.reap(first) == -signal.SIGKILL
    second = the_spare(first, worker.pid)
    assert d.fork(template, 2).pid == second


def test_a_stopped_spare_is_found_when_the_template_is_asked_for_a_sign_of_life(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    stop(first)
    template.send(Ping(7))
    assert template.expect(Pong).number == 7
    assert d.reap(first) == -signal.SIGKILL
    the_spare(first)


def test_a_stopped_spare_does_not_outlive_a_template_that_was_told_to_leave(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    stop(first)
    template.send(Retire())
    assert d.reap(template.pid) == 0
    assert d.reap(first) == -signal.SIGKILL


def links(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_worker_that_was_a_spare_holds_what_any_worker_holds(daemon: Any, loop: str) -> None:
    d = daemon(loop=loop)
    template = d.load()
    first = the_spare()
    channel = os.readlink(f"/proc/{template.pid}/fd/10")  # to the daemon
    wait_until(lambda: channel not in links(first), what="the spare to let go of its template's channel")
    workers = [d.fork(template, 1), d.fork(template, 2)]
    assert workers[0].pid == first != workers[1].pid
    for worker in workers:
        worker.expect(Hello)
        worker.expect(Ready)
    kinds = [lambda w=w: sorted(link.partition(":[")[0] for link in links(w.pid)) for w in workers]  # type: ignore[misc]
    wait_until(lambda: kinds[0]() == kinds[1](), what="the same descriptors")  # a file may be read just now
    assert [os.getsid(worker.pid) for worker in workers] == [worker.pid for worker in workers]


@needs_root
@needs_public
def test_the_spare_of_another_user_has_that_users_rights_and_obeys_its_template(daemon: Any, public_folder: Path) -> None:
    d = daemon(cwd=str(public_folder))
    d.python = PUBLIC
    d.uid, d.gid, d.groups = NOBODY, NOBODY, (NOBODY,)
    template = d.load()
    first = the_spare()
    status = dict(x.split(":", 1) for x in Path(f"/proc/{first}/status").read_text().splitlines())
    assert status["Uid"].split() == status["Gid"].split() == [str(NOBODY)] * 4
    assert status["NoNewPrivs"].strip() == "1"
    worker = d.fork(template, 1)
    assert worker.pid == first
    worker.expect(Hello)
    worker.expect(Ready)
    second = the_spare(first)
    stop(second)
    template.send(Ping(1))
    template.expect(Pong)
    assert d.reap(second) == -signal.SIGKILL


@pytest.mark.parametrize("room", [0, 1, 3, 4])  # for nothing; some of what comes with the order; all of it; half of a pipe
def test_a_template_without_a_free_descriptor_says_so_and_lives(daemon: Any, room: int) -> None:
    d = daemon(preload=False)  # and so without a spare
    template = d.load()
    before = resource.prlimit(template.pid, resource.RLIMIT_NOFILE)
    used = {int(fd) for fd in os.listdir(f"/proc/{template.pid}/fd")}
    free = [number for number in range(len(used) + 50) if number not in used]
    resource.prlimit(template.pid, resource.RLIMIT_NOFILE, (free[room], before[1]))
    with open(os.devnull) as any_file:
        template.send(Fork(1, 99, 1, False, 1), *[any_file.fileno()] * 3)
    assert template.expect(ForkFailed) == ForkFailed(99, errno.EMFILE)
    resource.prlimit(template.pid, resource.RLIMIT_NOFILE, before)
    d.fork(template, 2).expect(Hello)
    left = f"/proc/{template.pid}/fd"
    wait_until(lambda: {int(fd) for fd in os.listdir(left)} == used, what="what came with the order to be closed")


@pytest.mark.parametrize("call", ["socketpair", "pidfd_open"])
def test_without_a_descriptor_there_is_no_spare_for_now(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    now = 100.0
    kept = Spares(lambda: os.getppid(), wanted=True, clock=lambda: now)
    with monkeypatch.context() as patch:
        patch.setattr(*((spare, call) if call == "socketpair" else (os, call)), none_left)
        assert kept.make() is None
    assert kept.fileno() == -1
    assert kept.wait_ms() == pytest.approx(200)


def test_a_spare_that_ends_before_it_is_known_is_none() -> None:
    """Its number may be another process's by then, as here."""
    kept = Spares(os.getpid, wanted=True)
    assert kept.make() is None
    assert kept.fileno() == -1


def test_a_spare_that_has_died_just_now_is_not_the_one_that_is_needed() -> None:
    def wait_for_a_signal() -> int:
        if pid := os.fork():
            return pid
        signal.pause()
        os._exit(0)

    kept = Spares(wait_for_a_signal, wanted=True)
    kept.make()
    os.kill(kept.pid, signal.SIGKILL)
    os.waitpid(kept.pid, 0)
    assert kept.hand(Packet(b"the order", [], 0, False)) == 0
    assert kept.fileno() == -1


def test_a_spare_whose_template_is_gone_just_leaves() -> None:
    ours, theirs = socketpair()
    ours.close()
    assert spare.park(theirs, 0) is None
