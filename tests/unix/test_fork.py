"""A fork that Python is not told of."""

from __future__ import annotations

import subprocess
import sys

HOOKS = """
import os
outer = os.getpid()
from pyworker.unix.fork import bare_fork
os.register_at_fork(before=lambda: os.write(1, b"before "), after_in_child=lambda: os.write(1, b"child "),
                    after_in_parent=lambda: os.write(1, b"parent "))
middle = bare_fork()
if middle == 0:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os.write(1, b"%d" % (os.getppid() == outer))
    os._exit(0)
os.waitpid(middle, 0)
"""


TOLD = """
import os
from pyworker.unix.fork import bare_fork
pid = bare_fork()
if pid == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""


def test_the_child_is_told_0_and_the_parent_its_pid() -> None:
    # not in here: a test runner has threads, and one of them can hold Python itself at the fork
    subprocess.run([sys.executable, "-c", TOLD], timeout=60, check=True)


def test_what_is_registered_for_forks_runs_for_the_second_of_two_only() -> None:
    done = subprocess.run([sys.executable, "-c", HOOKS], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.split()) == ["1", "before", "child", "parent"]


def test_a_fork_that_the_kernel_refuses_is_an_errno() -> None:
    code = """
import errno, os, resource
from pyworker.unix.fork import bare_fork
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.getuid() == 0:  # who may do anything
    os.setuid(65534)
assert bare_fork() == -errno.EAGAIN
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
