"""logger/sweep.py: the end of what guardian and daemon have left, on a clock of ours."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from pyworker.logger.pipe import Life
from pyworker.logger.sweep import PATIENCE, PIPES_LEFT, SPARE, Sweep
from pyworker.protocol.logs import LogsSpec
from pyworker.unix import process
from tests.support.wait import wait_until

KEY = ("pid", "api", (1, 1, 7))


class Shell:
    """A shell in a group of its own that has run a program without exec, which ends by SIGTERM, or does not.

    `by`: what gives the program a group of its own.
    """

    def __init__(self, heeds: bool, by: str) -> None:
        trap = "" if heeds else "trap '' TERM; "
        command = f"{by}sh -c \"{trap}echo up; exec sleep 600\" & wait"
        self._shell = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True)
        assert self._shell.stdout is not None
        self._shell.stdout.readline()
        self.life = Life(os.pidfd_open(self._shell.pid))

    def end_of_shell(self) -> None:
        wait_until(lambda: process.is_gone(self.life.fd), what="its end")
        self._shell.wait()

    def has_left(self) -> bool:
        return self.life.pid in process.sessions_with_others()

    def close(self) -> None:
        if self.has_left():
            self.life.signal(signal.SIGKILL, group=True)
        process.kill_group_of(self.life.fd)
        self._shell.kill()
        self._shell.wait()
        assert self._shell.stdout is not None
        self._shell.stdout.close()
        os.close(self.life.fd)


@pytest.fixture
def by() -> str:
    return ""


@pytest.fixture
def shell(heeds: bool, by: str) -> Iterator[Shell]:
    made = Shell(heeds, by)
    if not process.kill_group_of(made.life.fd, 0):
        made.close()
        pytest.skip("a kernel before 6.9 does not signal a group by pidfd")
    yield made
    made.close()


@pytest.mark.parametrize("by", ["", "timeout 600 "])
@pytest.mark.parametrize("heeds", [True, False])
def test_what_a_command_has_started_and_left_is_stopped_and_at_last_killed(shell: Shell, heeds: bool) -> None:
    specs = {"api": LogsSpec("", "text", 0, 0, compress=False, drain_timeout=10.0)}
    sweep, lives = Sweep(100.0), {KEY: shell.life}
    sweep.turn(100.0 + PATIENCE - 0.1, lives, specs)
    assert not process.is_gone(shell.life.fd)
    sweep.turn(100.0 + PATIENCE, lives, specs)
    shell.end_of_shell()
    assert shell.has_left()
    assert not sweep.all_gone(lives)
    sweep.turn(100.0 + PATIENCE + 1, lives, specs)
    if heeds:
        wait_until(lambda: not shell.has_left(), what="the end of its group")
    sweep.turn(100.0 + PATIENCE + 9.9, lives, specs)
    assert shell.has_left() is not heeds
    sweep.turn(100.0 + PATIENCE + 10, lives, specs)
    wait_until(lambda: not shell.has_left(), what="the end of its group")
    assert sweep.all_gone(lives)


@pytest.mark.parametrize("heeds", [True])
def test_a_worker_that_drains_alone_is_not_asked_and_what_it_has_left_is(shell: Shell) -> None:
    specs = {"api": LogsSpec("", "text", 0, 0, compress=False, drain_timeout=10.0, drains_alone=True)}
    sweep, lives = Sweep(100.0), {KEY: shell.life}
    sweep.turn(100.0 + PATIENCE + 10, lives, specs)
    assert not process.is_gone(shell.life.fd)
    os.kill(shell.life.pid, signal.SIGTERM)
    shell.end_of_shell()
    sweep.turn(100.0 + PATIENCE + 11, lives, specs)
    wait_until(lambda: not shell.has_left(), what="the end of its group")


@pytest.mark.parametrize("heeds", [True])
def test_a_worker_that_does_not_leave_is_killed_with_its_group_and_pipes_of_others_are_left_then(shell: Shell) -> None:
    specs = {"api": LogsSpec("", "text", 0, 0, compress=False, drain_timeout=10.0, drains_alone=True)}
    sweep, lives = Sweep(100.0), {KEY: shell.life}
    end = 100.0 + PATIENCE + 10 + SPARE
    sweep.turn(end, lives, specs)
    shell.end_of_shell()
    wait_until(lambda: not shell.has_left(), what="the end of its group")
    assert not sweep.is_over(end + 60)  # nobody has looked yet
    sweep.turn(end + 1, lives, specs)
    assert [sweep.is_over(now) for now in (end + PIPES_LEFT + 0.9, end + PIPES_LEFT + 1)] == [False, True]


@pytest.mark.parametrize("heeds", [False])
def test_what_a_template_has_left_is_there_for_its_workers_until_their_time_is_over(shell: Shell) -> None:
    specs = {"api": LogsSpec("", "text", 0, 0, compress=False, drain_timeout=10.0)}
    sweep, lives = Sweep(100.0), {("tpid", "api", (1,)): shell.life}
    os.kill(shell.life.pid, signal.SIGTERM)
    shell.end_of_shell()
    sweep.turn(100.0 + PATIENCE + 9, lives, specs)
    assert shell.has_left()
    sweep.turn(100.0 + PATIENCE + 10, lives, specs)
    wait_until(lambda: not shell.has_left(), what="the end of its group")
