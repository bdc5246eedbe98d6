"""apps.json: what is wanted survives, secrets do not get in, and a broken file keeps nobody from starting."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.daemon.brain import Brain
from pyworker.daemon.desired import (
    Desired,
    DesiredApp,
    FileSource,
    InlineSource,
    load,
    save,
    without_env_values,
)
from pyworker.daemon.requests.start import restore
from pyworker.errors import BROKEN_DISK
from pyworker.protocol.wire import MAX_REQUEST
from tests.support.brain import brain as brain
from tests.support.channels import ends as ends


@pytest.fixture
def home(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


API = DesiredApp("api", FileSource("/srv/app.toml", "api", {"workers": 8}, ("TOKEN",)), scale=6, scale_base="auto")
MAIL = DesiredApp(
    "mail",
    InlineSource({"command": ["sleep", "9"], "workers": 2}, "/srv"),
    running=False,
    generation=7,
    stopped_slots=(2, 3),
    scale_base=4,
)


def test_first_start_wants_nothing(home: int) -> None:
    assert load(home) == (Desired(), "")


def test_what_was_saved_is_loaded(home: int, tmp_path: Path) -> None:
    wanted = Desired({"api": API, "mail": MAIL})
    save(home, wanted)
    assert load(home) == (wanted, "")
    assert (tmp_path / "apps.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["apps.json"]
    save(home, Desired({"mail": MAIL}))
    assert list(load(home)[0]) == ["mail"]


def test_what_many_requests_have_filled_is_loaded_as_well(home: int) -> None:
    wanted = Desired({"api": DesiredApp("api", InlineSource({"args": ["x" * 16 * MAX_REQUEST]}, "/srv"))})
    save(home, wanted)
    assert load(home) == (wanted, "")


def test_values_of_the_environment_are_split_off() -> None:
    table = {"target": "m:app", "env": {"TOKEN": "s3cret", "A": "b"}}
    assert without_env_values(table) == ({"target": "m:app"}, {"TOKEN": "s3cret", "A": "b"})
    assert without_env_values({"workers": 2}) == ({"workers": 2}, {})


GOOD = b'{"v":1,"apps":[{"name":"api","source":{"kind":"file","path":"/a","app":"api"}}]}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"v":2,"apps":[]}',
        b'{"v":1,"apps":{}}',
        b'{"v":1,"apps":[1]}',
        b"[" * 100_000,
        GOOD.replace(b'"api"', b'"../x"', 1),
        GOOD.replace(b'"file"', b'"web"'),
        GOOD.replace(b'"path":"/a"', b'"path":7'),
        GOOD.replace(b'"name":"api"', b'"name":"api","scale":"many"'),
        GOOD.replace(b"]}", b',{"name":"api","source":{"kind":"inline","table":{},"cwd":"/"}}]}'),
        b"\xff",
        GOOD + b"trailing",
    ],
)
def test_broken_file_is_put_aside_and_said_so(home: int, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "apps.json").write_bytes(data)
    desired, note = load(home)
    assert desired == Desired()
    (kept,) = os.listdir(tmp_path)
    assert kept.startswith("apps.json.bad-")
    assert kept in note
    assert (tmp_path / kept).read_bytes() == data
    save(home, Desired({"api": API}))
    assert load(home)[1] == ""


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_there_and_is_no_file_is_put_aside(home: int, tmp_path: Path, make: Callable[[str], None]) -> None:
    make(str(tmp_path / "apps.json"))
    before = {*os.listdir("/proc/self/fd")}
    desired, note = load(home)
    assert desired == Desired()
    assert "apps.json.bad-" in note
    assert {*os.listdir("/proc/self/fd")} <= before  # what other tests have left may be closed by now


def test_file_that_cannot_be_opened_for_want_of_a_descriptor_stays_for_the_next_daemon(home: int, tmp_path: Path) -> None:
    save(home, Desired({"api": API}))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            load(home)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE
    assert load(home) == (Desired({"api": API}), "")


@pytest.mark.parametrize("number", BROKEN_DISK)
def test_file_that_a_broken_disk_does_not_give_stays_for_the_next_daemon_unless_something_runs(
    home: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save(home, Desired({"api": API}))

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, "open", refuse)
        with pytest.raises(OSError) as caught:
            load(home)
        assert caught.value.errno == number
    assert load(home) == (Desired({"api": API}), "")
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", refuse)
        assert "apps.json.bad-" in load(home, something_runs=True)[1]


def test_failed_save_leaves_the_old_file(home: int, tmp_path: Path) -> None:
    save(home, Desired({"api": API}))
    with pytest.raises(OSError):
        save(-1, Desired())
    assert load(home)[0] == Desired({"api": API})


def test_a_file_that_is_in_place_is_saved_whatever_the_folder_says_of_it(
    home: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse(fd: int) -> None:
        if fd == home:
            raise OSError(errno.EINVAL, "as of a folder on FUSE")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    save(home, Desired({"api": API}))
    assert load(home)[0] == {"api": API}


def test_a_save_that_cannot_be_put_in_place_raises_and_leaves_nothing_beside(home: int, tmp_path: Path) -> None:
    (tmp_path / "apps.json").mkdir()
    with pytest.raises(OSError):
        save(home, Desired({"api": API}))
    assert os.listdir(tmp_path) == ["apps.json"]


@given(
    st.binary(max_size=200)
    | st.text(max_size=60).map(lambda t: GOOD.decode().replace("api", t).encode("utf-8", "replace"))
)
def test_no_content_of_the_file_raises(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("home")
    (folder / "apps.json").write_bytes(data)
    home = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        load(home)
    finally:
        os.close(home)


def test_a_stopped_app_is_wanted_after_a_boot_as_it_was_before(brain: Brain) -> None:
    """Its generation, too: or that number would come again after the next boot."""
    wanted = DesiredApp("api", InlineSource({"target": "a:b"}, "/"), running=False, generation=57, scale=3, scale_base=2)
    restore(cast("Any", SimpleNamespace(brain=brain)), wanted, {})
    app = brain.apps["api"]
    assert app.desired() == wanted
    app.board.close()
    app.ledger.close()
    for fd in brain.store.fds.values():
        os.close(fd)
