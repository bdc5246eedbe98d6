"""Logs under faults: rotation at full speed while workers, daemon and guardian are killed, and a logger that is."""

from __future__ import annotations

import gzip
import os
import re
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.sources import ASGI
from tests.support.wait import wait_until

# each worker writes numbered lines as fast as is asked for, until it is told to stop; its pid is its name
WRITER = """
import os, time
line = "x" * 100
number = 0
os.set_blocking(1, True)
while not os.path.exists("enough"):
    for _ in range({burst}):
        os.write(1, b"%d %06d %s\\n" % (os.getpid(), number, line.encode()))
        number += 1
    time.sleep(0.01)
os.write(1, b"%d %06d last\\n" % (os.getpid(), number))
time.sleep(1000)
"""
RECORD = re.compile(rb"^\S+ (\S+ \d+ \w+)([|+]) (.*)$", re.MULTILINE)
LINE = re.compile(rb"(\d+) (\d{6}) (x{100}|last)\Z")


def start(pw: Pyworker, burst: int, max_size: str) -> None:
    pw.write("writer.py", WRITER.format(burst=burst))
    pw.write(
        "app.toml",
        '[app]\nname = "api"\nscript = "writer.py"\nworkers = 4\n'
        f'[app.restart]\nmin_uptime = "0s"\n[app.logs]\nmax_size = "{max_size}"\nmax_files = 1000\n',
    )
    pw.ok("start", "app.toml")


def written(pw: Pyworker, newest: int = 0) -> list[bytes]:
    """Every record's message, oldest file first; of so many files that are written to, 0: of all, when that is over."""
    folder = Path(pw.home, "logs")

    def age(path: Path) -> int:
        found = re.search(r"\.log\.(\d+)", path.name)
        return -int(found[1]) if found else 0

    out: list[bytes] = []
    begun: dict[bytes, bytes] = {}  # of lines that are in several records: a logger that leaves had only the beginning
    for path in sorted(folder.glob("api.log*"), key=age)[-newest:]:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert newest or data.endswith(b"\n") or not data  # others see a write page by page
        for whose, mark, text in RECORD.findall(data):
            begun[whose] = begun.get(whose, b"") + text
            if mark == b"|":
                out.append(begun.pop(whose))
    return out


def sequences(lines: list[bytes]) -> tuple[dict[int, list[int]], list[bytes]]:
    """Numbers by pid in the order written, and what is no whole line."""
    found: dict[int, list[int]] = defaultdict(list)
    torn = []
    for line in lines:
        match = LINE.match(line)
        if match is None:
            torn.append(line)
        else:
            found[int(match[1])].append(int(match[2]))
    return found, torn


def finish(pw: Pyworker) -> None:
    """Have all writers write their last line, and wait until it is in the log."""
    pids = pw.pids()
    pw.write("enough", "")

    def all_said() -> bool:
        try:
            lines = written(pw, newest=3)
        except FileNotFoundError:  # a rotation came in between
            return False
        last = {line.split()[0] for line in lines if line.endswith(b"last")}
        return {b"%d" % pid for pid in pids} <= last

    wait_until(all_said, LONG, "the last lines")


def test_rotation_at_full_speed_loses_tears_and_doubles_nothing_while_others_are_killed(pw: Pyworker) -> None:
    """Two rotations a second. A killed worker's own last line may be cut: it was the writer."""
    start(pw, burst=25, max_size="400KB")  # no more: on a busy machine it writes, and is looked through, for a minute
    rotated = Path(pw.home, "logs", "api.log.1")
    wait_until(rotated.exists, LONG, "a rotation")
    killed: set[int] = set()
    for role in ("worker", "daemon", "guardian", "worker", "daemon"):
        victim = pw.pids()[0] if role == "worker" else pw.role(role)
        if role == "worker":
            killed.add(victim)
        os.kill(victim, signal.SIGKILL)
        here = len(list(rotated.parent.glob("api.log*")))
        wait_until(lambda n=here: len(list(rotated.parent.glob("api.log*"))) > n, LONG, "another rotation")  # type: ignore[misc]
        wait_until(pw.status, LONG, "the daemon")
        pw.wait_steady()
    finish(pw)
    found, torn = sequences(written(pw))
    assert len(torn) <= len(killed), torn[:5]
    assert killed <= set(found)
    for pid, numbers in found.items():
        assert numbers == list(range(len(numbers))), f"{pid}: a line is missing, doubled or out of order"
    assert len(found) == 4 + len(killed)


def test_a_killed_logger_loses_one_chunk_at_most(pw: Pyworker) -> None:
    start(pw, burst=20, max_size="50MB")
    path = Path(pw.home, "logs", "api.log")
    wait_until(lambda: path.exists() and path.stat().st_size > 100_000, LONG, "output")
    kills = 3
    for _ in range(kills):
        old = pw.role("logger")
        os.kill(old, signal.SIGKILL)
        wait_until(lambda o=old: pw.status().get("logger_pid", o) not in (0, o), LONG, "another logger")  # type: ignore[misc]
        size = path.stat().st_size
        wait_until(lambda n=size: path.stat().st_size > n + 100_000, LONG, "more output")  # type: ignore[misc]
    finish(pw)
    found, torn = sequences(written(pw))
    lost = 0
    for pid, numbers in found.items():
        assert numbers == sorted(set(numbers)), f"{pid}: doubled or out of order"
        lost += numbers[-1] + 1 - len(numbers)
    a_chunk = 64 * 1024 // 100 + 1
    assert lost <= kills * a_chunk
    assert len(torn) <= kills * 4 * 2 + kills  # the ends of the chunk that was lost, and a note


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_counted_and_shown_and_stops_no_app(pw: Pyworker) -> None:
    pw.write("writer.py", WRITER.format(burst=1))
    pw.write("app.toml", '[app]\nname = "api"\nscript = "writer.py"\nworkers = 2\n[app.logs]\nfile = "/dev/full"\n')
    pw.ok("start", "app.toml")
    before = pw.pids()
    first = wait_until(lambda: pw.app()["drops"], LONG, "lost lines to be counted")
    wait_until(lambda: pw.app()["drops"] > first, LONG, "more of them")
    for command in ("ps", "describe"):
        done = pw.ok(command, "api")
        assert re.search(r"\d+ lines of its log could not be written", done.stdout + done.stderr)
        assert "log: No space left on device" in done.stdout + done.stderr
    assert pw.pids() == before
    assert pw.app()["state"] == "running"


def test_an_app_that_prints_without_a_pause_holds_up_no_other(pw: Pyworker) -> None:
    pw.write("chatty.py", "line = 'x' * 1000\nwhile True:\n    print(line)\n")
    pw.write("web.py", ASGI)
    pw.write(
        "app.toml",
        f'[apps.api]\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\nworkers = 2\n'
        '[apps.chatty]\nscript = "chatty.py"\nworkers = 2\nlogs.max_size = "1MB"\nlogs.max_files = 1\n',
    )
    pw.ok("start", "app.toml")
    logger, pids = pw.role("logger"), pw.pids()
    with Load(pw.port, "keep") as load:
        kill(pids[0])
        assert pids[1] in [w["pid"] for w in pw.wait_steady()["pool"]]
        load.wait_more(20)
    assert pw.role("logger") == logger
    assert pw.app("chatty")["workers"]["ready"] == 2
