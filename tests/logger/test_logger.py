"""The logger's promises, on the real program, with the test as its guardian and its workers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker import __version__
from pyworker.logger import main as module
from pyworker.logger.lines import CHUNK
from pyworker.logger.main import HOLD, MESSAGES_A_TURN, WAIT_FOR_NAMES, Logger
from pyworker.protocol import store as protocol
from pyworker.protocol import wire
from pyworker.protocol.inherited import FdName
from pyworker.protocol.logs import IN_HAND, STDOUT, LogRecord, in_hand, parse_record
from pyworker.protocol.names import ENV_FAILPOINTS
from pyworker.unix import fds
from pyworker.unix.process import is_stopped
from tests.logger.rig import Rig, lines, records, write_all
from tests.support.wait import wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def worker() -> Iterator[int]:
    process = subprocess.Popen(["/bin/sh", "-c", "read x"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.communicate()


def read(path: Path) -> bytes:
    """What is in it; nothing between two files, in a rotation."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def wait_for(path: Path, count: int) -> list[LogRecord]:
    def enough() -> list[LogRecord] | None:
        try:
            found = records(path)
        except AssertionError:
            return None  # in the middle of a write
        return found if len(found) >= count else None

    return wait_until(enough, what=f"{count} records in {path}")


def test_lines_are_stamped_with_time_worker_pid_and_stream(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.2.7", worker)
    err = rig.pipe("err.api.1.2.7")
    write_all(out, b"hello\n")
    (first,) = wait_for(path, 1)
    write_all(err, b"oh\0no\n")
    second = wait_for(path, 2)[1]
    assert (first.app, first.worker, first.pid, first.stream, first.msg) == ("api", 2, worker, "out", b"hello")
    assert (second.stream, second.pid, second.msg) == ("err", worker, b"oh\0no")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.ts)
    assert path.stat().st_mode & 0o777 == 0o600
    os.close(out)
    os.close(err)


def test_output_before_pid_and_settings_are_known_is_not_lost(rig: Rig, worker: int) -> None:
    rig.start()
    out = rig.pipe("out.api.1.1.1")
    write_all(out, b"early\n")
    path = rig.configure("api", format="json")
    rig.put("pid.api.1.1.1", os.pidfd_open(worker))
    (first,) = wait_for(path, 1)
    assert first.msg == b"early"
    assert first.pid in (worker, 0)
    os.close(out)


def test_pipe_that_nobody_explains_goes_to_the_usual_file(rig: Rig) -> None:
    rig.start()
    out = rig.pipe("tout.api.3")
    write_all(out, b"importing\n")
    (first,) = wait_for(rig.home / "logs" / "api.log", 1)
    assert (first.worker, first.pid, first.msg) == (0, 0, b"importing")
    os.close(out)


def test_while_nobody_reads_its_stdout_it_answers_and_what_it_is_told_it_does_afterwards(rig: Rig, worker: int) -> None:
    reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(reads, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writes, True)
    rig.start(stdout=writes)
    os.close(writes)
    rig.configure("api", file=STDOUT, format="plain")
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"x" * 40_000 + b"\n")
    wait_until(lambda: select.select([reads], [], [], 0)[0], what="some of it")
    for _ in range(3):
        rig.settle()
    err = rig.pipe("err.api.1.1.1")
    write_all(err, b"later\n")
    os.close(out)
    os.close(err)
    rig.settle()
    said = b""

    def all_there() -> bool:
        nonlocal said
        with contextlib.suppress(BlockingIOError):
            said += os.read(reads, 1 << 16)
        return said.count(b"\n") == 2

    wait_until(all_there, what="both lines")
    assert sorted(said.split(b"\n"), key=len) == [b"", b"later", b"x" * 40_000]
    os.close(reads)


def test_while_nobody_reads_its_stdout_no_more_than_a_turn_s_messages_are_put_off_however_often_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = fds.socketpair()
    reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    lifeline = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(module, "STDOUT_FD", writes)
    logger = Logger(str(tmp_path), theirs, lifeline, "plain")
    try:
        for _ in range(3):
            with contextlib.suppress(BlockingIOError):
                os.write(writes, bytes(1 << 20))
            for _ in range(MESSAGES_A_TURN):
                assert fds.send_packet(ours, wire.encode(protocol.Forget(("out.api.1.1.1",))))
            reader = threading.Timer(0.05, os.read, (reads, 1 << 20))
            reader.start()
            logger._wait_for_reader()
            reader.join()
            assert len(logger._put_off) <= MESSAGES_A_TURN
    finally:
        for sock in (ours, theirs):
            sock.close()
        for fd in (reads, writes, lifeline):
            os.close(fd)


def test_unfinished_line_is_shown_after_a_moment_and_goes_on_in_the_same_line(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"loading... ")
    (first,) = wait_for(path, 1)
    assert first.partial
    write_all(out, b"done\n")
    assert lines(wait_for(path, 2)) == [b"loading... done"]
    os.close(out)


def test_a_line_that_stays_unfinished_is_shown_once_and_wakes_nobody_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        logger = Logger("", ours, -1, "short")
        shown: list[str] = []
        prompt: Any = SimpleNamespace(fd=9, name=SimpleNamespace(app="api"), holding_since=100.0)
        prompt.lines = SimpleNamespace(held=b"", part=lambda stamp, _: shown.append(stamp) or b"")
        logger._holding[9] = prompt
        assert logger._timeout(100.0) == pytest.approx(HOLD)
        for now in (100.0, 100.0 + 1.1 * HOLD, 100.0 + 1.2 * HOLD):
            logger._turn(now)
        assert len(shown) == 1
        assert logger._timeout(101.0) > 10
        assert prompt.holding_since is None


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_pipe_that_the_kernel_has_no_room_to_wait_for_keeps_its_reader(
    forgotten: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = socket.socketpair()
    reads, writes = os.pipe()
    asked: list[int] = []

    def register(fd: int, mask: int) -> None:
        asked.append(fd)
        if len(asked) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ours, theirs:
        logger = Logger("", ours, -1, "plain")
        logger._epoll = SimpleNamespace(register=register)  # type: ignore[assignment]
        logger._add_pipe(FdName("out", "api", (1, 1, 1)), reads)
        now = time.monotonic() + WAIT_FOR_NAMES
        write_all(writes, b"hello\n")
        logger._turn(now)
        if forgotten:
            logger._forget("out.api.1.1.1")
        assert logger._timeout(now) == pytest.approx(WAIT_FOR_NAMES)
        logger._turn(now + WAIT_FOR_NAMES / 2)
        assert len(asked) == 1, "it does not spin"
        logger._turn(now + WAIT_FOR_NAMES)
        assert asked == [reads] * (1 if forgotten else 2)
        assert not logger._waiting
        assert list(logger._pipes) == ([] if forgotten else [reads])
        if not forgotten:
            os.close(reads)
    os.close(writes)
    assert "out.api.1.1.1 cannot be read, trying again: fs.epoll.max_user_watches (sysctl) is reached" in capfd.readouterr().err


def test_killed_workers_line_is_ended_and_never_joined_to_the_next_workers(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    first = rig.pipe("out.api.1.1.1", worker)
    write_all(first, b"half a li")
    os.close(first)
    rig.hear_until(protocol.Closed, names=("out.api.1.1.1",))
    second = rig.pipe("out.api.1.1.2", worker)
    write_all(second, b"next\n")
    assert [(r.msg, r.partial) for r in wait_for(path, 2)] == [(b"half a li", False), (b"next", False)]
    os.close(second)


def test_busy_worker_does_not_hold_up_a_quiet_one(rig: Rig, worker: int) -> None:
    busy, quiet = rig.configure("busy", max_size=1_000_000, max_files=1), rig.configure("quiet")
    rig.start()
    loud, soft = rig.pipe("out.busy.1.1.1", worker), rig.pipe("out.quiet.1.1.1", worker)
    rig.settle()
    stop = threading.Event()

    def shout() -> None:
        block = b"x" * 99 + b"\n"
        while not stop.is_set():
            write_all(loud, block * 600)

    thread = threading.Thread(target=shout)
    thread.start()
    try:
        wait_until(busy.exists, what="the busy log")
        for number in range(1, 6):
            write_all(soft, b"%d\n" % number)
            wait_for(quiet, number)
    finally:
        stop.set()
        thread.join()
    os.close(loud)
    os.close(soft)


def test_one_line_of_twenty_megabytes_takes_no_memory_to_speak_of(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"begin ")
    for _ in range(20):
        write_all(out, b"y" * 1_000_000)
    write_all(out, b" end\n")
    os.close(out)
    rig.hear_until(protocol.Closed)
    (line,) = lines(records(path))
    assert len(line) == 20_000_010
    assert line.startswith(b"begin y")
    status = Path(f"/proc/{rig.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 60_000  # type: ignore[index]


WRITER = (
    "import os, sys\n"
    "name, count = sys.argv[1], int(sys.argv[2])\n"
    "for n in range(count):\n"
    "    data = f'{name} {n} '.encode() + b'z' * (n % 97) + b'\\n'\n"
    "    while data: data = data[os.write(1, data):]\n"
)


@pytest.mark.parametrize("compress", [False, True])
def test_rotation_under_load_of_four_writers_loses_tears_and_doubles_nothing(rig: Rig, compress: bool) -> None:
    path = rig.configure("api", max_size=100_000, max_files=500, compress=compress)
    rig.start()
    writers = []
    for number in range(1, 5):
        out = rig.pipe(f"out.api.1.{number}.{number}")
        writers.append(subprocess.Popen([sys.executable, "-S", "-c", WRITER, str(number), "3000"], stdout=out))
        os.close(out)
    for writer in writers:
        assert writer.wait(30) == 0
    wait_until(lambda: len(_closed(rig)) == 4, what="four ends")
    if compress:
        wait_until(lambda: not list(path.parent.glob("*.log.*[0-9]")), what="compression of all")
        assert list(path.parent.glob("*.compressing")) == []
    found = [r for file in _oldest_first(path) for r in _records_of(file)]
    assert len(list(path.parent.glob("*.log*"))) > 5
    for number in range(1, 5):
        mine = lines([r for r in found if r.worker == number])
        assert [line.split()[1] for line in mine] == [b"%d" % n for n in range(3000)]
    assert max(f.stat().st_size for f in path.parent.glob("*.log*")) <= 100_000


def _closed(rig: Rig) -> set[str]:
    rig.listen()
    return {name for message in rig.heard if isinstance(message, protocol.Closed) for name in message.names}


def _oldest_first(path: Path) -> list[Path]:
    def number(file: Path) -> int:
        match = re.search(r"\.log\.(\d+)", file.name)
        return int(match[1]) if match else 0

    return sorted(path.parent.glob("*.log*"), key=number, reverse=True)


def _records_of(file: Path) -> list[LogRecord]:
    if file.suffix != ".gz":
        return records(file)
    data = gzip.decompress(file.read_bytes())
    found = [parse_record(line) for line in data.splitlines()]
    assert data.endswith(b"\n")
    assert None not in found
    return [r for r in found if r is not None]


def test_only_the_configured_number_of_files_is_kept(rig: Rig, worker: int) -> None:
    path = rig.configure("api", max_size=4096, max_files=2)
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    for number in range(12):
        write_all(out, b"%d " % number + b"x" * 3000 + b"\n")
        wait_until(lambda n=number: b" %d x" % n in read(path), what="the line")
    assert {p.name for p in path.parent.glob("*.log*")} == {"api.log", "api.log.1", "api.log.2"}
    assert b"| 11 x" in path.read_bytes()
    assert b"| 10 x" in (path.parent / "api.log.1").read_bytes()
    assert b"| 9 x" in (path.parent / "api.log.2").read_bytes()
    os.close(out)


def test_file_that_logrotate_moved_away_is_opened_anew(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"0\n")
    wait_for(path, 1)
    path.rename(path.with_name("moved"))

    def writes_anew() -> bool:
        write_all(out, b"again\n")
        return path.exists()

    wait_until(writes_anew, what="a new file")
    os.close(out)
    rig.hear_until(protocol.Closed)
    assert {r.msg for r in records(path)} == {b"again"}
    assert records(path.with_name("moved"))[0].msg == b"0"


def test_settings_can_change_while_it_runs(rig: Rig, worker: int) -> None:
    first = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"text\n")
    wait_for(first, 1)
    second = rig.configure("api", file=str(rig.home / "other" / "api.jsonl"), format="json")
    rig.settle()
    write_all(out, b"json\n")
    assert wait_for(second, 1)[0].msg == b"json"
    assert second.read_bytes().startswith(b'{"ts":')
    assert (rig.home / "logs" / "api.path").readlink() == second  # for who looks for it without a daemon
    assert len(records(first)) == 1
    os.close(out)


def test_full_disk_is_told_counted_and_noted_where_the_lines_are_missing(rig: Rig, worker: int) -> None:
    path = rig.home / "logs" / "api.log"
    rig.configure("api", file="/dev/full")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"1\n2\n3\n")
    said = rig.hear_until(protocol.LogStats)
    assert (said.app, said.dropped, said.error) == ("api", 3, "No space left on device")
    rig.configure("api", file=str(path))
    rig.settle()
    write_all(out, b"4\n")
    assert wait_for(path, 1)[-1].msg == b"4"
    os.close(out)


def test_what_is_lost_in_its_last_moment_is_told_as_it_leaves(rig: Rig, worker: int) -> None:
    rig.configure("api", file="/dev/full")
    rig.start()
    assert rig.hear_until(protocol.Hello).version == __version__
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"1\n")
    rig.hear_until(protocol.LogStats, dropped=1)
    write_all(out, b"2\n3\n")
    os.close(out)
    rig.say(protocol.Stopping())
    rig.hear_until(protocol.LogStats, dropped=3)
    assert rig.wait() == 0


@pytest.mark.parametrize("killed", [False, True])
def test_the_next_logger_says_what_a_full_disk_has_cost_the_one_before(rig: Rig, worker: int, killed: bool) -> None:
    blocked = rig.home / "blocked"
    blocked.write_text("a file where the folder should be")
    path = rig.configure("api", file=str(blocked / "api.log"))
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"1\n2\n3\n")
    assert rig.hear_until(protocol.LogStats).dropped == 3
    if killed:
        rig.kill()
    else:
        rig.say(protocol.Leave())
        rig.wait()
    blocked.unlink()
    rig.start()
    write_all(out, b"4\n")
    said, last = wait_for(path, 2)
    assert (said.msg, last.msg) == (b"3 lines were lost here: the logger before this one could not write them", b"4")
    os.close(out)


def test_folder_that_cannot_be_written_is_told_and_used_once_it_can(rig: Rig, worker: int) -> None:
    blocked = rig.home / "blocked"
    blocked.write_text("a file where the folder should be")
    path = rig.configure("api", file=str(blocked / "api.log"))
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"lost\n")
    assert "cannot open" in rig.hear_until(protocol.LogStats).error
    rig.say(protocol.DaemonState(os.getpid()))  # another daemon, which is to know it, too
    assert "cannot open" in rig.hear_until(protocol.LogStats).error
    blocked.unlink()

    def goes_on() -> bool:
        write_all(out, b"on\n")
        return path.exists()

    wait_until(goes_on, what="the log to be opened")
    first = wait_for(path, 2)[0]
    assert re.fullmatch(rb"\d+ lines? w(as|ere) lost here: cannot open .*", first.msg)
    assert (first.worker, first.stream) == (0, "err")
    assert rig.hear_until(protocol.LogStats, error="").dropped >= 1
    os.close(out)


def test_logger_killed_again_and_again_loses_few_lines_and_joins_none(rig: Rig, worker: int) -> None:
    """What a kill can cost is the chunk in its hands; a write cut by it is one torn record, ended by its successor."""
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    total, kills, number = 4000, 4, 0
    for turn in range(kills + 1):
        for _ in range(total // (kills + 1)):
            write_all(out, b"%06d end\n" % number)
            number += 1
        if turn < kills:
            wait_until(lambda: path.exists() and path.stat().st_size > 0, what="something written")
            rig.kill()
            rig.start()
    os.close(out)
    rig.hear_until(protocol.Closed)
    data = path.read_bytes()
    whole = re.findall(rb"^[0-9TZ:.-]{24} api\.1 \d+ out\| (\d{6}) end$", data, re.MULTILINE)
    found = [int(text) for text in whole]
    assert found == sorted(set(found))
    assert found[-1] == total - 1
    torn = len(data.splitlines()) - len(whole)
    # a torn record, the rest of a line whose beginning was in the hands of the killed, and the note about that
    assert torn <= 3 * kills
    missing = total - len(found)
    noted = sum(map(int, re.findall(rb"(\d+) lines? w(?:as|ere) lost here: the logger was killed", data)))
    assert missing <= noted or b"(or more: it had not counted the last)" in data


def test_a_line_that_a_killed_logger_knew_the_beginning_of_is_counted_as_lost(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"before\nbeg")
    wait_for(path, 1)
    notes = rig.home / "logs" / IN_HAND  # the first line is still among them for a moment
    wait_until(lambda: in_hand(notes.read_bytes()) in ({"api": 1}, {}), what="what it holds")
    rig.kill()
    rig.start()
    write_all(out, b"un\n")
    os.close(out)
    rig.hear_until(protocol.Closed)
    data = path.read_bytes()
    assert b"1 line was lost here" in data or b"out+ beg\n" in data


def test_a_logger_that_is_killed_with_many_pipes_full_loses_one_chunk(
    rig: Rig, worker: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_FAILPOINTS, str(tmp_path))
    (tmp_path / "logger.write").write_text("kill")
    path = rig.configure("api")
    outs = [rig.pipe(f"out.api.1.{number}.{number}", worker) for number in range(1, 5)]
    for out in outs:
        write_all(out, (b"x" * 99 + b"\n") * 500)
    rig.start()
    rig.wait()
    rig.start()
    for out in outs:
        os.close(out)
    wait_until(lambda: len(_closed(rig)) == 4, what="four ends")
    assert 4 * 500 - len(lines([r for r in records(path) if r.stream == "out"])) <= CHUNK // 100 + 1


def test_log_torn_by_a_kill_is_mended_before_the_next_record(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    path.parent.mkdir()
    path.write_bytes(b"2026-11-23T14:02:31.104Z api.1 5 out| torn in the mid")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"next\n")
    assert [r.msg for r in wait_for(path, 2)] == [b"torn in the mid", b"next"]
    os.close(out)


def test_forgotten_pipe_is_read_to_what_is_in_it_and_closed(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    rig.settle()
    write_all(out, b"last words\nunfini")
    os.close(rig.store.pop("out.api.1.1.1"))
    rig.say(protocol.Forget(("out.api.1.1.1", "pid.api.1.1.1", "logs.nobody", "never.was")))
    assert [r.msg for r in wait_for(path, 2)] == [b"last words", b"unfini"]
    with pytest.raises(BrokenPipeError):
        wait_until(lambda: os.write(out, b"x") == 0, what="a broken pipe")
    os.close(out)


def test_what_an_app_has_printed_that_is_forgotten_by_now_is_written_where_its_log_is(rig: Rig, worker: int) -> None:
    path = rig.configure("api", file=rig.home / "elsewhere.log", format="json")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"first\n")
    wait_for(path, 1)
    os.kill(rig.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(rig.pid), what="the logger to stop")
    rig.say(protocol.Forget(("logs.api",)))
    text = b"x" * (CHUNK - 1) + b"\n"
    write_all(out, text)
    os.kill(rig.pid, signal.SIGCONT)
    write_all(out, b"last\n")
    os.close(out)
    rig.hear_until(protocol.Closed)
    assert lines(records(path)) == [b"first", text[:-1], b"last"]
    assert not (rig.home / "logs" / "api.log").exists()


def test_new_pipe_of_an_old_name_does_not_lose_the_rest_of_the_old_one(rig: Rig) -> None:
    path = rig.configure("api")
    rig.start()
    first = rig.pipe("tout.api.1", os.getpid())
    second = rig.pipe("tout.api.1")
    write_all(second, b"second\n")
    write_all(first, b"first\n")
    wait_for(path, 2)
    os.close(first)
    os.close(second)
    assert rig.hear_until(protocol.Closed).names == ("tout.api.1",)
    rig.settle()
    assert not any(isinstance(m, protocol.Closed) for m in rig.heard)


def test_a_pipe_that_is_handed_over_again_has_one_reader(rig: Rig, worker: int) -> None:
    rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    rig.settle()
    before = os.listdir(f"/proc/{rig.pid}/fd")
    rig.say(protocol.Restore(("out.api.1.1.1",)), [rig.store["out.api.1.1.1"]])
    rig.settle()
    assert os.listdir(f"/proc/{rig.pid}/fd") == before
    os.close(out)


def test_rubbish_from_the_guardian_is_ignored(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    for rubbish in (
        b"\xff",
        b"[" * 3000,
        b'{"type":"restore","names":["out.api.1.1.1"]}',
        b'{"type":"stopping","x":1}',
    ):
        rig.channel.send(rubbish)
    null = os.open(os.devnull, os.O_RDONLY)
    regular = os.open(__file__, os.O_RDONLY)
    rig.say(
        protocol.Restore(("out.odd.1.1.1", "out.odd.1.1.2", "logs.odd", "pid.odd.1.1.1", "rubbish")),
        [null, regular, null, null, null],
    )
    os.close(null)
    os.close(regular)
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"fine\n")
    assert wait_for(path, 1)[0].msg == b"fine"
    os.close(out)


def test_stopping_reads_the_pipes_to_their_end_and_exits(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"last\n")
    os.close(out)
    rig.say(protocol.Stopping())
    assert rig.wait() == 0
    assert [r.msg for r in records(path)] == [b"last"]


def test_stopping_does_not_wait_for_a_pipe_that_somebody_keeps_open(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    rig.settle()
    write_all(out, b"unfinished")
    rig.say(protocol.Stopping())
    assert rig.wait() == 0
    assert lines(records(path)) == [b"unfinished"]
    assert not records(path)[-1].partial, "nobody goes on with it"
    os.close(out)


def test_orphaned_logger_leaves_room_for_the_next_one_without_losing_a_byte(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    rig.settle()
    old, rig.pid = rig.pid, 0
    rig.channel.close()  # its guardian dies; the daemon becomes the guardian and starts another logger at once
    write_all(out, b"one\ntw")
    rig.start()
    rig.relieve()
    write_all(out, b"o\nthree\n")
    _, status = os.waitpid(old, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(out)
    rig.hear_until(protocol.Closed)
    assert lines(records(path)) == [b"one", b"two", b"three"]


def test_a_line_goes_on_with_the_next_logger_also_where_the_one_before_had_half_a_character(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    write_all(out, b"caf\xc3")
    wait_for(path, 1)
    rig.say(protocol.Leave())
    assert rig.wait() == 0
    rig.start()
    write_all(out, b"\xa9\n")
    wait_for(path, 3)
    assert lines(records(path)) == ["café".encode()]
    os.close(out)


def test_a_character_of_a_json_log_is_whole_though_a_logger_has_left_in_the_middle_of_it(rig: Rig, worker: int) -> None:
    path = rig.configure("api", format="json")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    text = ("x" + "é" * (CHUNK // 2)).encode()  # a chunk ends in the middle of one
    write_all(out, b"first\n")
    wait_for(path, 1)
    os.kill(rig.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(rig.pid), what="the logger to stop")
    rig.say(protocol.Leave())
    write_all(out, text + b"\n")
    os.kill(rig.pid, signal.SIGCONT)
    assert rig.wait() == 0
    rig.start()
    os.close(out)
    rig.hear_until(protocol.Closed)
    assert lines(records(path)) == [b"first", text]


def reads_on_until_relieved(rig: Rig, out: int, path: Path) -> None:
    rig.channel.close()  # its guardian dies
    number, end = 0, time.monotonic() + 1.0
    while time.monotonic() < end:
        number += 1
        write_all(out, b"line\n")
        wait_for(path, number)
    rig.relieve()
    assert rig.wait() == 0


def test_the_logger_of_a_dead_guardian_reads_on_until_the_next_one_has_a_logger(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    rig.settle()
    reads_on_until_relieved(rig, out, path)
    os.close(out)


def test_of_a_guardian_that_died_while_it_stood_still_it_learns_before_it_reads_beside_the_next_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that a program prints in pieces came out as two halves of two lines."""
    monkeypatch.setattr(module, "STOOD_STILL", 0.0)
    monkeypatch.setattr(module, "WAIT_FOR_NAMES", 0.0)
    ours, theirs = fds.socketpair()
    lifeline, word = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    logger = Logger(str(tmp_path), theirs, lifeline)
    pipes = [os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(2)]
    for number, (reads, writes) in enumerate(pipes, 1):
        logger._add_pipe(FdName("out", "api", (1, number, number)), reads)
        write_all(writes, b"x" * (CHUNK - 1) + b"\n")
    write = logger._output.write

    def hang() -> None:
        if logger._output.is_full:
            ours.close()
            os.write(word, b"\n")
        write()

    monkeypatch.setattr(logger._output, "write", hang)
    try:
        assert logger.run() == 0
        assert len(select.select([reads for reads, _ in pipes], [], [], 0)[0]) == 1
    finally:
        theirs.close()
        for fd in (lifeline, word, *(fd for pair in pipes for fd in pair)):
            os.close(fd)


def test_a_logger_whose_guardian_lives_is_not_relieved(rig: Rig, worker: int) -> None:
    rig.configure("api")
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    rig.relieve()  # the one before it has died, and it reads what was meant for that one
    rig.settle()
    rig.settle()
    os.close(out)


def test_a_word_that_the_logger_before_has_not_read_is_not_taken_for_ones_own(rig: Rig, worker: int) -> None:
    path = rig.configure("api")
    rig.relieve()  # guardian and logger were killed at once, so nobody has read it
    rig.start()
    out = rig.pipe("out.api.1.1.1", worker)
    rig.settle()
    reads_on_until_relieved(rig, out, path)
    os.close(out)


def test_logger_of_a_dead_guardian_and_daemon_stops_what_is_left(rig: Rig) -> None:
    path = rig.configure("api", drain_timeout=2.0)
    stubborn = "import signal,time\nsignal.signal(15, lambda *_: print('TERM', flush=True))\nprint('up', flush=True)\nwhile True: time.sleep(60)"
    rig.start()
    out = rig.pipe("out.api.1.1.1")
    process = subprocess.Popen([sys.executable, "-S", "-c", stubborn], stdout=out, start_new_session=True)
    os.close(out)
    rig.put("pid.api.1.1.1", os.pidfd_open(process.pid))
    wait_for(path, 1)
    rig.settle()
    rig.channel.close()
    os.close(rig.life_writes)
    rig.life_writes = -1
    assert rig.wait() == 0
    assert process.wait(30) == -signal.SIGKILL
    assert [r.msg for r in records(path)] == [b"up", b"TERM"]


def test_the_event_of_a_pipe_that_was_closed_in_the_same_turn_is_not_taken_for_one_of_the_next_with_its_number(
    rig: Rig, worker: int
) -> None:
    path = rig.configure("api")
    rig.start()
    old = rig.pipe("out.api.1.1.1", worker)
    write_all(old, b"old\n")
    wait_for(path, 1)
    os.kill(rig.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(rig.pid), what="the logger to stop")
    rig.say(protocol.Forget(("out.api.1.1.1",)))
    new = rig.pipe("out.api.1.2.2")
    write_all(new, b"new\n")
    write_all(old, b"late\n")
    os.kill(rig.pid, signal.SIGCONT)
    rig.settle()
    rig.put("pid.api.1.2.2", os.pidfd_open(worker))
    assert [(r.msg, r.pid) for r in wait_for(path, 3)] == [(b"old", worker), (b"late", worker), (b"new", worker)]
    os.close(old)
    os.close(new)
