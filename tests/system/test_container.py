"""`pyworker run` as process 1. The cases are those of tini's tests, written anew, in a pid namespace of our own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pyworker.protocol.run import RELOAD, STOPS, orders
from tests.support.children import children
from tests.support.foreground import Foreground, foreground
from tests.support.pyworker import LONG, Pyworker, alive
from tests.support.wait import wait_until

UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]


def unshare_works() -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=30, check=False)
    return done.returncode == 0


@pytest.fixture
def box(pw: Pyworker) -> Iterator[Pyworker]:
    """Where `pyworker run` is process 1, without a folder to write to."""
    if not unshare_works():
        pytest.skip("no pid namespaces here (unshare -rpf): not allowed in this container, or unshare is missing")
    home = pw.environ["PYWORKER_HOME"]
    pw.environ["PYWORKER_HOME"] = "/proc/nowhere/home"
    yield pw
    pw.environ["PYWORKER_HOME"] = home


def guardian(one: Foreground, pw: Pyworker) -> int:
    """The pid, from outside, of what is process 1 inside."""
    found = [pid for pid, title in pw.titles().items() if "pyworker guardian" in title]
    assert len(found) == 1, found
    with open(f"/proc/{found[0]}/status") as status:
        assert re.search(r"^NSpid:\s+\d+\s+1$", status.read(), re.MULTILINE)
    return found[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_each_wish_to_stop_is_heard_by_process_1(box: Pyworker, number: signal.Signals) -> None:
    with foreground(box, "--", "sleep", "1000", prefix=UNSHARE) as one:
        one.running()
        os.kill(guardian(one, box), number)
        assert one.ends() == 0
        assert "sleep stopped" in one.err


LISTENER = """
import os, signal
from pyworker.protocol.run import RELOAD, STOPS, orders
for number in orders(at_a_terminal=False) - STOPS - {RELOAD}:
    signal.signal(number, lambda number, _: os.write(1, b"got %d\\n" % number))
os.write(1, b"listens\\n")
while True:
    signal.pause()
"""


def test_every_signal_is_forwarded_or_has_a_meaning_and_none_ends_process_1(box: Pyworker) -> None:
    script = box.write("listener.py", LISTENER)
    with foreground(box, "--", sys.executable, script, prefix=UNSHARE) as one:
        one.wait_out("listens")
        one.running()
        pid = guardian(one, box)
        taken = orders(at_a_terminal=False)
        others = signal.valid_signals() - taken - {signal.SIGKILL, signal.SIGSTOP}
        for number in [*others, *(taken - STOPS - {RELOAD})]:
            os.kill(pid, number)  # those of faults, too: the kernel keeps them from a process 1 that has no handler
        for number in taken - STOPS - {RELOAD}:
            one.wait_out(f"got {int(number)}\n")
        os.kill(pid, RELOAD)
        one.wait_for("done in")
        os.kill(pid, signal.SIGTERM)
        assert one.ends() == 0
        for number in others:
            assert f"got {int(number)}\n" not in one.out


def test_a_program_begins_with_every_signal_as_it_should_be(box: Pyworker) -> None:
    with foreground(box, "--restart", "never", "--", "grep", "^Sig[BI]", "/proc/self/status", prefix=UNSHARE) as one:
        assert one.ends() == 0
    masks = dict(re.findall(r"(Sig\w+):\s+([0-9a-f]+)", one.out))
    libc_s_own = 7 << 31  # 32 and 33, which glibc's posix_spawn has ignored, and 34, with which musl changes the user
    assert {name: int(mask, 16) & ~libc_s_own for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0}


READ_ONLY = """
set -e
mount --make-rprivate /
for point in $(cut -d' ' -f2 /proc/mounts | grep -v '^/proc' | sort -r); do mount -o remount,bind,ro "$point" 2>/dev/null || true; done
for folder in / /tmp /var /run /dev/shm; do if touch $folder/x 2>/dev/null; then echo "$folder is writable"; exit 99; fi; done
exec unshare --user --map-user=4242 --map-group=4242 "$@"
"""


def test_a_read_only_root_without_tmp_as_a_user_that_nobody_knows(box: Pyworker) -> None:
    box.api(
        """
import os
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{os.getuid()}".encode()})
"""
    )
    prefix = [*UNSHARE, "--mount", "sh", "-c", READ_ONLY, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("no read-only root in a mount namespace here (unshare -rm, mount -o remount,ro)")
    with foreground(box, "app.toml", prefix=prefix) as one:
        one.running()
        assert box.get() == "4242"
        os.kill(guardian(one, box), signal.SIGTERM)
        assert one.ends() == 0
        assert "no control socket" in one.err


def test_orphans_are_reaped(box: Pyworker) -> None:
    # each of the 20 outlives its parent, so that process 1 gets it, and ends by itself
    script = "for i in $(seq 20); do sh -c 'sleep 0.2 &'; done; echo all; exec sleep 1000"
    with foreground(box, "--", "sh", "-c", script, prefix=UNSHARE) as one:
        one.wait_out("all")
        pid = guardian(one, box)
        one.running()
        # the daemon, the logger and the one worker; whoever else is there has ended and is on its way out
        wait_until(lambda: [alive(child) for child in children(pid)] == [True] * 3, LONG, "the orphans to be reaped")
        os.kill(pid, signal.SIGTERM)
        assert one.ends() == 0


def test_a_worker_s_children_do_not_survive_it(box: Pyworker) -> None:
    with foreground(box, "--", "sh", "-c", "sleep 1000 & echo there; wait", prefix=UNSHARE) as one:
        one.wait_out("there")
        one.running()
        os.kill(guardian(one, box), signal.SIGTERM)
        assert one.ends() == 0
        wait_until(lambda: not box.processes(), LONG, "nothing to be left")


CODES = range(256) if os.environ.get("PYWORKER_TEST_ALL") else (0, 78, 255)


@pytest.mark.parametrize("code", CODES)
def test_the_exit_code_comes_out_of_the_namespace(box: Pyworker, code: int) -> None:
    with foreground(box, "--restart", "never", "--", "sh", "-c", f"exit {code}", prefix=UNSHARE) as one:
        assert one.ends() == code


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_the_end_by_a_signal_is_128_and_its_number(box: Pyworker, name: str) -> None:
    with foreground(box, "--restart", "never", "--", "sh", "-c", f"kill -{name} $$", prefix=UNSHARE) as one:
        assert one.ends() == 128 + getattr(signal, f"SIG{name}")
