"""A process whose pid nobody has told is known by its birth, or by its stdout; nothing else is taken for it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, ResolvedApp
from pyworker.daemon import lost
from pyworker.daemon.app import Generation
from pyworker.daemon.direct import Direct
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.loop import Loop
from pyworker.daemon.templates import Templates
from pyworker.protocol.inherited import WorkerId, worker_fd
from pyworker.protocol.names import ENV_BIRTH
from pyworker.unix.process import spawn
from tests.support.children import none_left
from tests.support.descriptors import open_fds
from tests.support.wait import wait_until

WORKER = WorkerId("job", 1, 1, 7)
ANOTHER = WorkerId("job", 1, 1, 8)
SLEEP = ["/bin/sleep", "600"]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_CLOEXEC)
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    with none_left():
        yield fd
    os.close(fd)


def reap(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_it_is_known_by_its_birth_when_its_output_goes_elsewhere(pipe: tuple[int, int], null: int) -> None:
    pid = spawn(SLEEP, {ENV_BIRTH: str(WORKER)}, {0: null, 1: null})
    wait_until(lambda: lost.find(os.getpid(), WORKER, pipe[0]) == pid, what="its exec to be over")
    assert lost.find(os.getpid(), ANOTHER, pipe[0]) == 0
    reap(pid)
    assert lost.find(os.getpid(), WORKER, pipe[0]) == 0


def test_it_is_known_by_its_output_when_its_environment_is_overwritten(pipe: tuple[int, int], null: int) -> None:
    pid = spawn(SLEEP, {}, {0: null, 1: pipe[1]})
    assert lost.find(os.getpid(), WORKER, pipe[0]) == pid
    assert lost.find(os.getpid(), WORKER, None) == 0
    assert lost.find(os.getppid(), WORKER, pipe[0]) == 0
    reap(pid)


def test_a_child_of_a_worker_that_came_to_the_guardian_is_not_the_worker(pipe: tuple[int, int], null: int) -> None:
    pid = spawn(SLEEP, {ENV_BIRTH: str(WORKER)}, {0: null, 1: pipe[1]}, new_session=False)
    assert lost.find(os.getpid(), WORKER, pipe[0]) == 0
    reap(pid)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("is_ours", [False, True])
def test_what_another_user_has_left_here_is_known_by_its_output_only(pipe: tuple[int, int], null: int, is_ours: bool) -> None:
    become = "import os; os.setuid(65534); os.execv('/bin/sleep', ['sleep', '600'])"
    pid = spawn([sys.executable, "-I", "-c", become], {ENV_BIRTH: str(WORKER)}, {0: null, 1: pipe[1] if is_ours else null})
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", what="its exec to be over")
    found = lost.find(os.getpid(), WORKER, pipe[0])
    reap(pid)
    assert found == (pid if is_ours else 0)


def test_an_orphan_of_another_guardian_is_known_by_its_birth_and_its_output(pipe: tuple[int, int], null: int) -> None:
    guardian = spawn(SLEEP, {}, {0: null, 1: null})  # a child of ours, as the orphans are
    strangers = [spawn(SLEEP, {ENV_BIRTH: str(WORKER)}, {0: null, 1: null}), spawn(SLEEP, {}, {0: null, 1: pipe[1]})]
    wait_until(lambda: lost.find(os.getpid(), WORKER, None) == strangers[0], what="its exec to be over")
    assert lost.find(guardian, WORKER, pipe[0]) == 0
    pid = spawn(SLEEP, {ENV_BIRTH: str(WORKER)}, {0: null, 1: pipe[1]})
    wait_until(lambda: lost.find(guardian, WORKER, pipe[0]) == pid, what="its exec to be over")
    for each in (guardian, *strangers, pid):
        reap(each)


def test_only_the_one_that_was_given_up_is_ended(null: int) -> None:
    pid = spawn(SLEEP, {ENV_BIRTH: str(WORKER)}, {0: null, 1: null})
    assert not lost.end(pid, ANOTHER)
    os.kill(pid, signal.SIGTERM)  # which a SIGKILL from before would forestall
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    pid = spawn(SLEEP, {ENV_BIRTH: str(WORKER)}, {0: null, 1: null})
    wait_until(lambda: lost.end(pid, WORKER), what="its exec to be over")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("died", [True, False])
def test_one_that_is_given_up_ends_although_its_guardian_has_died_or_it_has_written_over_its_environment(
    pipe: tuple[int, int], null: int, died: bool
) -> None:
    guardian = spawn(SLEEP, {}, {0: null, 1: null})  # the next one: a child of ours, as the orphan is
    pid = spawn(SLEEP, {ENV_BIRTH: str(WORKER)} if died else {}, {0: null, 1: pipe[1]})
    pipes = {worker_fd("out", WORKER): pipe[0]}
    store = SimpleNamespace(guardian_pid=guardian if died else os.getpid(), get=pipes.get)
    brain: Any = SimpleNamespace(loop=(loop := Loop()), store=store)
    resolved = ResolvedApp(AppConfig("job", command=("true",), balance="shared"), 1, "", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(generations={1: Generation(1, resolved)})
    before = len(open_fds())
    Direct(brain).end_untold(app, WorkerHandle(WORKER, held=False, born_at=0.0))
    pipes.clear()  # they are given back at once
    found: list[int] = []

    def ended() -> bool:
        loop.turn(0.01)
        found[:] = [*found, os.waitpid(pid, os.WNOHANG)[0]]
        return pid in found

    wait_until(ended, what="its end")
    wait_until(lambda: bool(loop.turn(0.01)) or len(open_fds()) == before, what="its pipe to be closed")
    loop.close()
    reap(guardian)


def test_a_template_that_nobody_was_told_of_ends_although_its_import_hangs_and_nothing_else_does(pipe: tuple[int, int], null: int) -> None:
    guardian = spawn(SLEEP, {}, {0: null, 1: null})  # the next one: a child of ours, as the orphan is
    another = spawn(SLEEP, {}, {0: null, 1: null})
    pid = spawn(SLEEP, {}, {0: null, 1: pipe[1]})
    pipes, ended = {"tout.api.2": pipe[0]}, []
    brain: Any = SimpleNamespace(loop=(loop := Loop()), store=SimpleNamespace(guardian_pid=guardian, get=pipes.get))
    templates = Templates(brain)
    templates.gone = lambda app, handle, status: ended.append(handle.state)  # type: ignore[method-assign]
    templates.never_told(SimpleNamespace(name="api"), TemplateHandle("api", 2, 0.0))  # type: ignore[arg-type]
    pipes.clear()  # they are given back at once
    wait_until(lambda: loop.turn(0.01) or os.waitpid(pid, os.WNOHANG)[0] == pid, what="its end")
    assert ended == ["retiring"]  # which is no failure
    for each in (guardian, another):
        reap(each)
    loop.close()
