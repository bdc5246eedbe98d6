"""One log file: what is on disk when the disk does not play along."""

from __future__ import annotations

import datetime as dt
import errno
import gzip
import os
import random
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyworker.logger.file import LogFile, point_to
from pyworker.logger.rotation import Rotation, rotation_of
from pyworker.protocol.logs import LogRecord, LogsSpec, format_record
from pyworker.unix import files
from tests.logger.rig import records
from tests.support.pyworker import LONG
from tests.support.wait import wait_until

STAMP = "2026-11-23T14:02:31.104Z"


def block(first: int, count: int) -> bytes:
    return b"".join(
        format_record(LogRecord(STAMP, "api", 1, 5, "out", partial=False, msg=b"%d" % n), "text")
        for n in range(first, first + count)
    )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LogFile]:
    made = LogFile(LogsSpec(str(tmp_path / "api.log"), "text", 1_000_000, 3, compress=False), "api")
    yield made
    made.close()


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Let no file grow past `size` bytes; a write gets what fits, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_write_that_fits_only_in_part_leaves_whole_records_and_counts_the_rest(file: LogFile, tmp_path: Path) -> None:
    with disk_full_at(1000):
        file.write(block(0, 50), 0.0, STAMP)
    kept = records(tmp_path / "api.log")
    assert [r.msg for r in kept] == [b"%d" % n for n in range(len(kept))]
    assert 0 < len(kept) < 50
    assert file.lost == 50 - len(kept)
    assert file.error == "File too large"
    file.write(block(50, 2), 0.0, STAMP)
    after = records(tmp_path / "api.log")[len(kept) :]
    assert [r.msg for r in after] == [b"%d lines were lost here: File too large" % (50 - len(kept)), b"50", b"51"]
    assert file.error == ""


def test_what_a_full_disk_has_torn_and_nobody_can_cut_off_is_joined_to_no_record(
    file: LogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append_only(fd: int, size: int) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "ftruncate", append_only)
    with disk_full_at(1000):
        file.write(block(0, 50), 0.0, STAMP)
        lost = file.lost
        file.write(block(50, 2), 0.0, STAMP)
    assert file.lost == lost + 2
    file.write(block(52, 2), 0.0, STAMP)
    lines = (tmp_path / "api.log").read_bytes().split(b"\n")
    assert [line.endswith(b"| %d" % n) for n, line in enumerate(lines[: 50 - lost])] == [True] * (50 - lost)
    assert block(50 - lost, 1).startswith(lines[50 - lost])  # what was torn
    assert lines[51 - lost].endswith(b"%d lines were lost here: File too large" % (lost + 2))
    assert [line[-4:] for line in lines[52 - lost :]] == [b"| 52", b"| 53", b""]


def test_one_lost_line_is_said_as_one(file: LogFile, tmp_path: Path) -> None:
    file.unsaid = 1
    file.write(block(0, 1), 0.0, STAMP)
    note, record = records(tmp_path / "api.log")
    assert (note.msg.split(b":")[0], record.msg) == (b"1 line was lost here", b"0")


def test_file_that_a_network_s_disk_has_lost_is_opened_anew(
    file: LogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write(block(0, 1), 0.0, STAMP)
    stale, close = file._fd, os.close

    def gone(fd: int) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", gone)
        patched.setattr(os, "close", gone)
        file._look(10.0)
    close(stale)
    file.write(block(1, 1), 10.0, STAMP)
    assert [r.msg for r in records(tmp_path / "api.log")] == [b"0", b"1"]


def test_link_in_the_place_of_the_log_is_never_followed(file: LogFile, tmp_path: Path) -> None:
    (tmp_path / "api.log").symlink_to("victim")
    file.write(block(0, 1), 0.0, STAMP)
    assert not (tmp_path / "victim").exists()
    assert file.lost == 1
    assert file.error == f"cannot open {tmp_path}/api.log: it is a symbolic link, and none is followed; set logs.file to what it points to"


def test_a_folder_that_is_none_is_said_as_the_kernel_says_it(tmp_path: Path) -> None:
    """It was "File exists", as of a network's disk that has gone."""
    (tmp_path / "logs").write_text("")
    file = LogFile(LogsSpec(str(tmp_path / "logs" / "api.log"), "text", 100, 3, compress=False), "api")
    file.write(block(1, 1), 0.0, STAMP)
    assert file.error == f"cannot open {tmp_path}/logs/api.log: Not a directory"


def test_record_larger_than_the_file_may_be_gets_a_file_of_its_own(tmp_path: Path) -> None:
    file = LogFile(LogsSpec(str(tmp_path / "api.log"), "text", 4096, 3, compress=False), "api")
    big = format_record(LogRecord(STAMP, "api", 1, 5, "out", partial=False, msg=b"x" * 9000), "text")
    file.write(block(0, 1) + big + block(1, 1), 0.0, STAMP)
    file.close()
    assert [r.msg[:1] for r in records(*(tmp_path / f"api.log{n}" for n in (".2", ".1", "")))] == [b"0", b"x", b"1"]


def test_rotation_that_fails_lets_the_file_grow_and_says_so(tmp_path: Path) -> None:
    file = LogFile(LogsSpec(str(tmp_path / "api.log"), "text", 4096, 1, compress=False), "api")
    (tmp_path / "api.log.1").mkdir()
    file.write(block(0, 300), 0.0, STAMP)
    assert "cannot rotate" in file.error
    (tmp_path / "api.log.1").rmdir()
    file.write(block(300, 1), 0.0, STAMP)
    assert file.error == ""
    file.close()
    assert [r.msg for r in records(tmp_path / "api.log.1")] == [b"%d" % n for n in range(300)]


def test_a_log_whose_end_cannot_be_read_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "api.log").write_bytes(block(0, 1))

    def broken(*_: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    file = LogFile(LogsSpec(str(tmp_path / "api.log"), "text", 4096, 3, compress=False), "api")
    file.write(block(1, 1), 0.0, STAMP)
    file.close()
    assert (tmp_path / "api.log").read_bytes() == block(0, 2)


def test_rotation_that_cannot_list_its_folder_takes_no_place_of_a_rotated_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LogFile(LogsSpec(str(tmp_path / "api.log"), "text", 4096, 3, compress=True), "api")
    file._rotation.compress = lambda: None  # type: ignore[method-assign]
    file.write(block(0, 100), 0.0, STAMP)

    def no_more(_: str) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", no_more)
        file.write(block(100, 100), 0.0, STAMP)
        file._rotation._compress_all()  # says nothing, and comes to an end
        assert file.error == f"cannot rotate {tmp_path}/api.log: Too many open files"
    file.close()
    assert [r.msg for r in records(tmp_path / "api.log.1", tmp_path / "api.log")] == [b"%d" % n for n in range(200)]


def test_rotation_that_always_fails_at_the_log_itself_keeps_the_rotated_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, rename = str(tmp_path / "api.log"), os.rename
    for number in (1, 2, 3):
        Path(f"{log}.{number}").write_text(f"{number}")

    def append_only(old: str, new: str) -> None:
        if old == log:
            raise OSError(errno.EPERM, "Operation not permitted")
        rename(old, new)

    file = LogFile(LogsSpec(log, "text", 4096, 4, compress=False), "api")
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", append_only)
        for n in range(5):
            file.write(block(n * 100, 100), 0.0, STAMP)
    file.write(block(500, 1), 0.0, STAMP)
    file.close()
    assert [Path(f"{log}.{number}").read_text() for number in (2, 3, 4)] == ["1", "2", "3"]
    assert [r.msg for r in records(tmp_path / "api.log.1", tmp_path / "api.log")] == [b"%d" % n for n in range(501)]


def test_rotation_goes_on_when_there_can_be_no_thread_to_compress(
    file: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    file._rotation.compress()
    file._rotation.compress()


def test_no_rotated_file_is_kept_when_none_is_wanted(tmp_path: Path) -> None:
    file = LogFile(LogsSpec(str(tmp_path / "api.log"), "text", 4096, 0, compress=False), "api")
    file.write(block(0, 300), 0.0, STAMP)
    file.close()
    assert os.listdir(tmp_path) == ["api.log"]
    assert records(tmp_path / "api.log")[-1].msg == b"299"


def test_a_file_that_others_may_have_put_there_is_not_written_to(file: LogFile, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    precious = tmp_path / "precious"
    precious.write_text("root:x\n")
    os.link(precious, tmp_path / "api.log")
    file.write(block(0, 2), 0.0, STAMP)
    assert precious.read_text() == "root:x\n"
    assert (file.lost, "it has another name elsewhere; remove this one" in file.error) == (2, True)
    (tmp_path / "api.log").unlink()
    file.write(block(2, 1), 1.0, STAMP)
    assert (file.lost, file.error) == (2, "")
    if os.geteuid() == 0:
        file.close()
        os.chown(tmp_path / "api.log", 65534, 65534)
        file.write(block(3, 1), 2.0, STAMP)
        assert file.error.endswith(
            "user 65534 has put it there, where everybody may; remove it, or log to another folder"
        )


def test_what_the_kernel_refuses_as_planted_is_said_to_be(
    file: LogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fs.protected_regular, which systemd turns on, refuses even root, and says no more than "Permission denied"."""
    tmp_path.chmod(0o1777)
    (tmp_path / "api.log").touch()
    os.link(tmp_path / "api.log", tmp_path / "another name")

    def refuse(_path: str) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files, "open_append", refuse)
    file.write(block(0, 1), 0.0, STAMP)
    assert "it has another name elsewhere; remove this one" in file.error
    (tmp_path / "another name").unlink()
    file.write(block(1, 1), 1.0, STAMP)
    assert file.error.endswith("api.log: Permission denied")


def test_what_somebody_has_put_among_the_rotated_files_is_not_read_and_holds_up_nothing(tmp_path: Path) -> None:
    """In /tmp everybody may: a pipe was waited for, and what a link led to was read by root."""
    path = tmp_path / "api.log"
    (tmp_path / "theirs").write_bytes(b"secret")
    os.mkfifo(f"{path}.9")
    os.symlink(tmp_path / "theirs", f"{path}.8")
    Path(f"{path}.1").write_bytes(b"ours\n")
    LogFile(LogsSpec(str(path), "text", 4096, 9, compress=True), "api").close()
    wait_until(lambda: not os.path.exists(f"{path}.1"), LONG, "ours to be compressed")
    assert sorted(os.listdir(tmp_path)) == ["api.log.1.gz", "api.log.8", "api.log.9", "theirs"]


def test_a_file_that_is_opened_anew_while_it_is_compressed_is_compressed_by_one_thread(tmp_path: Path) -> None:
    """As after a reload that has changed a setting of its logs: of two threads one put half a file in the place of a whole."""
    path = tmp_path / "api.log"
    content = random.Random(1).randbytes(1 << 16) * 256
    Path(f"{path}.1").write_bytes(content)
    for max_files in (3, 4):
        LogFile(LogsSpec(str(path), "text", 4096, max_files, compress=True), "api").close()
        wait_until(lambda: os.path.exists(f"{path}.compressing") or os.path.exists(f"{path}.1.gz"), LONG, "a thread to begin")
    wait_until(lambda: sorted(os.listdir(tmp_path)) == ["api.log.1.gz"], LONG, "its end")
    assert gzip.decompress(Path(f"{path}.1.gz").read_bytes()) == content
    assert rotation_of(str(path)) is rotation_of(str(path))


def test_a_rotated_file_that_somebody_removes_while_it_is_compressed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{tmp_path}/api.log.1"
    Path(name).write_bytes(b"x")
    rotation = Rotation(f"{tmp_path}/api.log")
    monkeypatch.setattr(rotation, "_rotated", lambda: [(1, name)])  # as listed a moment before
    monkeypatch.setattr(os, "utime", lambda *_, **__: os.unlink(name))
    assert rotation._compress_one(name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("year", [1960, 2110])
def test_a_file_of_a_wrong_clock_is_compressed(tmp_path: Path, year: int) -> None:
    """gzip has 32 bits for a time: what could not be told there kept all others from being compressed, too."""
    path = tmp_path / "api.log.1"
    path.write_bytes(b"x")
    written = dt.datetime(year, 1, 1, tzinfo=dt.UTC).timestamp()
    os.utime(path, (written, written))
    Rotation(f"{tmp_path}/api.log")._compress_all()
    assert os.listdir(tmp_path) == ["api.log.1.gz"]
    assert os.stat(f"{path}.gz").st_mtime == written


def test_the_link_to_a_log_elsewhere_is_made_though_a_logger_was_killed_while_it_made_one(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/api.path.new").symlink_to("/of/the/one/before")
    for file in ("/var/log/a.log", "/var/log/b.log"):
        point_to(str(tmp_path), "api", file)
        assert os.readlink(tmp_path / "logs/api.path") == file
    assert os.listdir(tmp_path / "logs") == ["api.path"]
