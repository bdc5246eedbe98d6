"""Private directories and the sockets in them."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from pyworker.unix import files
from tests.support.control import connect
from tests.support.descriptors import open_fds


def test_home_is_made_private_with_its_parents(tmp_path: Path) -> None:
    fd = files.open_home(str(tmp_path / "a" / "b"), create=True)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_absent_home_is_not_made_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.open_home(str(tmp_path / "a"), create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o707, 0o722])
def test_home_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "my home"
    home.mkdir()
    home.chmod(mode)
    before = open_fds()
    with pytest.raises(files.UnsafeDirectory) as refused:
        files.open_home(str(home), create=True)
    assert open_fds() == before
    assert f"mode {mode:04o}" in refused.value.reason
    assert refused.value.hint == f"if nobody else needs it: chmod 700 '{home}'; else use a folder of your own"


@pytest.mark.parametrize(("mode", "owner", "is_open"), [(0o711, 0, False), (0o711, 12345, True), (0o750, 0, True), (0o702, 0, True), (0o700, 12345, False)])
def test_only_the_home_of_root_may_be_passed_through(mode: int, owner: int, is_open: bool) -> None:
    assert files.is_open_to_others(os.stat_result((mode, 0, 0, 0, owner, 0, 0, 0, 0, 0))) is is_open


def test_link_is_refused_and_its_target_named(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "home").symlink_to("real")
    with pytest.raises(files.UnsafeDirectory) as refused:
        files.open_home(str(tmp_path / "home") + "/", create=True)
    assert str(tmp_path / "real") in refused.value.hint


def test_a_link_is_followed_to_where_it_was_moved_only(tmp_path: Path) -> None:
    moved, other, link = (tmp_path / name for name in ("moved", "other", "link"))
    for folder in (moved, other):
        folder.mkdir(mode=0o700)
        (folder / "lock").touch()
    link.symlink_to("moved")
    with open(moved / "lock") as lock:
        fd = files.open_home(str(link), create=True, file=("lock", lock.fileno()))
        assert os.path.samestat(os.fstat(fd), moved.stat())
        os.close(fd)
        link.unlink()
        link.symlink_to("other")
        with pytest.raises(files.UnsafeDirectory, match="symbolic link"):
            files.open_home(str(link), create=True, file=("lock", lock.fileno()))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root to give a folder away")
def test_home_of_another_user_is_refused_for_writing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 12345, 12345)
    with pytest.raises(files.UnsafeDirectory, match="belongs to user 12345"):
        files.open_home(str(home), create=True)
    os.close(files.open_home(str(home), create=False))  # root may look


def test_socket_in_a_deep_folder_is_reached_and_replaced_without_a_gap(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / "home"
    fd = files.open_home(str(deep), create=True)
    old = files.listen_unix(fd, "control.sock")
    new = files.listen_unix(fd, "control.sock")
    assert [p.name for p in deep.iterdir()] == ["control.sock"]
    assert stat.S_IMODE((deep / "control.sock").stat().st_mode) == 0o600
    with connect(str(deep)), connect(str(deep)):
        for _ in range(2):
            new.accept()[0].close()
    with pytest.raises(BlockingIOError):
        old.accept()
    old.close()
    new.close()
    os.close(fd)


def test_log_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "api.log").symlink_to("elsewhere")
    with pytest.raises(OSError):
        files.open_append(str(tmp_path / "api.log"))
    assert not (tmp_path / "elsewhere").exists()


def test_same_file_tells_a_replaced_file(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "lock").touch()
    found = (tmp_path / "lock").stat()
    assert files.same_file(fd, "lock", found.st_dev, found.st_ino)
    (tmp_path / "new").touch()
    (tmp_path / "new").rename(tmp_path / "lock")
    assert not files.same_file(fd, "lock", found.st_dev, found.st_ino)
    os.close(fd)


def test_directory_below_the_home_is_made_or_opened_and_a_link_refused(tmp_path: Path) -> None:
    home = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2):
        os.close(files.make_directory(home, "logs"))
    (tmp_path / "link").symlink_to("logs")
    with pytest.raises(OSError):
        files.make_directory(home, "link")
    os.close(home)


def test_listening_socket_does_not_block(tmp_path: Path) -> None:
    home = files.open_home(str(tmp_path / "home"), create=True)
    listener = files.listen_unix(home, "s")
    assert not listener.getblocking()
    assert listener.type == socket.SOCK_STREAM
    listener.close()
    os.close(home)


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        files.open_regular(str(tmp_path / "fifo"))
    (tmp_path / "file").write_bytes(b"text")
    with files.open_regular(str(tmp_path / "file")) as file:
        assert file.read() == b"text"


def test_a_file_is_replaced_as_a_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    def write_until_a_person_breaks_it_off() -> None:
        with files.replacing(folder, "x") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    (tmp_path / "x").write_bytes(b"old")
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(KeyboardInterrupt):
        write_until_a_person_breaks_it_off()
    assert ((tmp_path / "x").read_bytes(), os.listdir(tmp_path)) == (b"old", ["x"])
    with files.replacing(folder, "x") as file:
        file.write(b"new")
        assert (tmp_path / "x").read_bytes() == b"old"
    assert ((tmp_path / "x").read_bytes(), os.listdir(tmp_path)) == (b"new", ["x"])
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    os.close(folder)


def test_a_file_that_finds_no_room_leaves_the_old_one_or_none(tmp_path: Path) -> None:
    old, link, new = (tmp_path / name for name in ("old", "link", "new"))
    old.write_bytes(b"old")
    old.chmod(0o646)
    link.symlink_to("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        for path, must_be_new in ((link, False), (new, False), (new, True)):
            with pytest.raises(OSError, match="File too large"):
                files.write_file(str(path), b"longer than ten bytes", new=must_be_new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (sorted(os.listdir(tmp_path)), link.read_bytes()) == (["link", "old"], b"old")
    files.write_file(str(link), b"now there is room", mask=0o022)
    assert (link.is_symlink(), old.read_bytes(), old.stat().st_mode & 0o777) == (True, b"now there is room", 0o644)
    with pytest.raises(FileExistsError):
        files.write_file(str(link), b"not this one", new=True)


@pytest.mark.parametrize(("call", "number"), [("replace", errno.EBUSY), ("fchown", errno.EPERM), ("fchown", errno.EINVAL)])
def test_a_file_that_no_other_can_take_the_place_of_is_written_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """It is a mount, or of an owner or group that this user may give nothing to."""

    def cannot(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, cannot)
    path = tmp_path / "file"
    path.write_bytes(b"longer than the new one")
    path.chmod(0o644)
    before = path.stat().st_ino
    files.write_file(str(path), b"new", mask=0o077)
    assert (path.read_bytes(), path.stat().st_mode & 0o777, os.listdir(tmp_path)) == (b"new", 0o600, ["file"])
    assert path.stat().st_ino == before


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    files.write_file(f"/proc/self/fd/{writes}", b"text")
    assert os.read(reads, 10) == b"text"
    os.close(reads)
    os.close(writes)


def test_a_file_without_a_name_is_written_to_and_gets_none(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        os.unlink(file.name)
        files.write_file(f"/proc/self/fd/{file.fileno()}", b"text")
        assert (file.read(), os.listdir(tmp_path)) == (b"text", [])


def test_what_one_that_was_killed_has_left_of_a_file_does_not_keep_it_from_being_replaced(tmp_path: Path) -> None:
    """The next one has its pid: in a container each of them has the same."""
    (tmp_path / f".x.{os.getpid()}").write_bytes(b"half of what was to be")
    folder = os.open(tmp_path, os.O_RDONLY)
    with files.replacing(folder, "x") as file:
        file.write(b"new")
    assert ((tmp_path / "x").read_bytes(), os.listdir(tmp_path)) == (b"new", ["x"])
    os.close(folder)


def test_a_file_is_on_the_disk_as_a_whole_before_it_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append((os.fstat(fd).st_size, (tmp_path / "x").exists())))
    folder = os.open(tmp_path, os.O_RDONLY)
    with files.replacing(folder, "x") as file:
        file.write(b"new")
    assert seen == [(3, False)]
    os.close(folder)


def test_a_directory_is_locked_by_one_at_a_time_for_as_long_as_that_one_has_it_open(tmp_path: Path) -> None:
    first, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert not files.is_locked(str(tmp_path))
    before = len(open_fds())
    assert files.lock_directory(first)
    assert (files.lock_directory(other), files.is_locked(str(tmp_path))) == (False, True)
    os.close(first)
    assert not files.is_locked(str(tmp_path))
    assert len(open_fds()) == before - 1
    assert files.lock_directory(other)
    os.close(other)
    assert not files.is_locked(str(tmp_path / "absent"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_no_reason_not_to_work_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert files.lock_directory(fd)
    assert not files.is_locked(str(tmp_path))
    os.close(fd)


def test_what_cannot_be_looked_at_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    fd = os.open(tmp_path, os.O_RDONLY)
    assert [files.is_missing(fd, name) for name in ("absent", "link", "link/below", "x" * 300)] == [True, False, True, False]
    os.close(fd)


def test_a_listening_socket_that_cannot_take_its_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "control.sock").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    before = open_fds()
    with pytest.raises(OSError, match="directory"):
        files.listen_unix(fd, "control.sock")
    assert open_fds() == before
    assert os.listdir(tmp_path) == ["control.sock"]
    os.close(fd)


@pytest.mark.parametrize("length", [107, 108])
def test_a_socket_whose_path_is_too_long_for_the_kernel_is_reached_all_the_same(length: int) -> None:
    with tempfile.TemporaryDirectory() as above:
        folder = Path(f"{above}/{'x' * (length - len(above) - len('//sock'))}")
        folder.mkdir()
        fd = os.open(folder, os.O_RDONLY)
        before = open_fds()
        with files.listen_unix(fd, "sock"), files.socket_path(str(folder), "sock") as path, socket.socket(socket.AF_UNIX) as client:
            assert (path == f"{folder}/sock") is (length == 107)
            client.connect(path)
        assert open_fds() == before
        os.close(fd)
