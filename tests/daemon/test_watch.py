"""daemon/watch.py: which changes ask for a reload, whatever becomes of the folders meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from pyworker.config.schema import AppConfig, WatchConfig
from pyworker.daemon import watch
from pyworker.daemon.events import EventLog
from pyworker.daemon.loop import Loop
from pyworker.daemon.shortage import step_for
from pyworker.record import replace
from pyworker.unix import inotify, user
from tests.support.pyworker import open_to_all

from .test_loop import Clock


class Watched:
    """An app with a `watch` table in the folder `app`, and what a reload was asked for."""

    def __init__(
        self,
        folder: Path,
        config: WatchConfig,
        monkeypatch: pytest.MonkeyPatch,
        command: tuple[str, ...] = (),
        uid: int | None = None,
    ) -> None:
        self.folder = folder
        self.clock = Clock()
        self.loop = Loop(self.clock, pytest.fail)
        self.reloads: list[str] = []
        self.notes: list[str] = []
        rights = SimpleNamespace(uid=uid, gid=uid, groups=())
        self.app: Any = SimpleNamespace(name="api", wanted=True, current=SimpleNamespace(resolved=rights))
        target = None if command else "a:b"
        self.app.config = AppConfig("api", target=target, command=command, cwd=str(folder), watch=config)
        brain = SimpleNamespace(
            apps={"api": self.app}, loop=self.loop, events=EventLog(-1),
            note=lambda _app, text: self.notes.append(text), note_is_over=lambda _app, text: self.notes.remove(text),
        )  # fmt: skip
        self.events = brain.events
        monkeypatch.setattr(watch, "reload_by_itself", lambda _desk, _app, why: self.reloads.append(why))
        desk: Any = SimpleNamespace(brain=brain)
        watch.Watch(desk)

    def write(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def later(self) -> list[str]:
        """Let enough time pass for a folder to be looked for and for a reload; return why there were reloads."""
        for _ in range(4):
            self.clock.now += 1
            self.loop.turn(0)
        found, self.reloads[:] = list(self.reloads), []
        return found

    def close(self) -> None:
        self.app.wanted = False
        self.events.emit("app_stopped", "api", None)
        self.loop.close()


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    (tmp_path / "app" / "src").mkdir(parents=True)
    config = WatchConfig(paths=("src",), exclude=("src/made/*",))
    closed: list[int] = []
    monkeypatch.setattr(os, "close", lambda fd, close=os.close: (closed.append(fd), close(fd)))
    opened: list[int] = []
    monkeypatch.setattr(inotify, "open_inotify", lambda open_it=inotify.open_inotify: opened.append(open_it()) or opened[-1])
    watched = Watched(tmp_path / "app", config, monkeypatch)
    yield watched
    watched.close()
    assert {*opened} <= {*closed}


@pytest.mark.parametrize("held", [False, True], ids=["", "held"])
def test_a_folder_that_is_made_anew_is_watched_again(watched: Watched, held: bool) -> None:
    fd = os.open(watched.folder / "src" if held else "/", os.O_RDONLY)  # as a worker holds the folder it is in
    shutil.rmtree(watched.folder / "src")
    watched.later()
    assert watched.notes == ["watch: watch.paths names src, which is no folder now"]
    watched.write("src/a.py")
    assert watched.later() == ["src/a.py changed"]
    assert watched.notes == []
    watched.write("src/b.py")
    assert watched.later() == ["src/b.py changed"]
    os.close(fd)


@pytest.mark.parametrize(("include", "reloads"), [(None, ["app.js changed"]), (("*.rb",), [])], ids=["default", "own"])
def test_a_command_is_reloaded_for_its_javascript_unless_include_says_what_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, include: tuple[str, ...] | None, reloads: list[str]
) -> None:
    config = WatchConfig() if include is None else WatchConfig(include=include)
    target = Watched(tmp_path, config, monkeypatch)
    target.write("app.js")
    assert target.later() == []
    target.close()
    watched = Watched(tmp_path, config, monkeypatch, ("node", "app.js"))
    watched.write("app.js")
    assert watched.later() == reloads
    watched.close()


def test_a_folder_that_comes_with_what_is_excluded_is_no_change(watched: Watched) -> None:
    watched.write("made/a.py")
    watched.write("made/below/.venv/a.py")
    (watched.folder / "made").rename(watched.folder / "src/made")
    assert watched.later() == []
    watched.write("src/made/b.py")
    assert watched.later() == []


def test_another_table_is_no_change_of_the_files_and_one_that_is_not_read_yet_is_not_lost(watched: Watched) -> None:
    watched.write("lib/a.py")
    watched.app.config = replace(watched.app.config, watch=WatchConfig(paths=("src", "lib")))
    watched.events.emit("app_running", "api", None, generation=2, workers=1, took_s=0.1)
    assert watched.later() == []
    shutil.rmtree(watched.folder / "lib")
    watched.write("src/a.py")
    watched.events.emit("app_running", "api", None, generation=2, workers=1, took_s=0.1)
    assert watched.later() == ["src/a.py changed"]


def test_a_folder_that_another_takes_the_place_of_is_watched(watched: Watched) -> None:
    (watched.folder / "src").rename(watched.folder / "old")
    watched.write("src/a.py")
    assert watched.later() == ["src/a.py changed"]
    watched.write("old/a.py")
    assert watched.later() == []
    watched.write("src/a.py")
    assert watched.later() == ["src/a.py changed"]


def test_the_folder_that_a_link_leads_to_by_now_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
    current = tmp_path / "current"
    current.symlink_to("1")
    watched = Watched(tmp_path, WatchConfig(paths=("current",), exclude=("made",)), monkeypatch)
    watched.write("current/made/a.py")
    assert watched.later() == []
    current.unlink()
    current.symlink_to("2")
    assert watched.later() == []
    watched.write("current/a.py")
    assert watched.later() == ["2/a.py changed"]
    watched.close()


def test_a_link_that_leads_to_another_watched_folder_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "a.py").write_text("")
    (tmp_path / "current").symlink_to("1")
    watched = Watched(tmp_path, WatchConfig(paths=(".", "current")), monkeypatch)
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("2")
    assert watched.later() == ["2/a.py changed"]
    watched.close()


def test_a_change_is_not_forgotten_because_a_folder_goes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    watched = Watched(tmp_path, WatchConfig(paths=("a", "b"), debounce=2.5), monkeypatch)
    watched.write("a/x.py")
    watched.loop.turn(0)
    (tmp_path / "b").rmdir()
    assert watched.later() + watched.later() == ["a/x.py changed"]
    watched.close()


def test_a_folder_that_is_another_when_something_happens_to_the_app_has_changed(watched: Watched) -> None:
    (watched.folder / "src").rename(watched.folder / "old")
    watched.write("src/a.py")
    watched.events.emit("app_running", "api", None, generation=1, workers=1, took_s=0.1)
    assert watched.later() == ["src/a.py changed"]


def test_folders_that_came_while_too_much_changed_to_be_told_are_watched(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    (watched.folder / "src" / "new").mkdir()
    with monkeypatch.context() as lost:
        read = inotify.read
        lost.setattr(inotify, "read", lambda fd: [inotify.Changed(-1, inotify.OVERFLOW, "")] if read(fd) else [])
        assert watched.later() == ["many files changed"]
    watched.write("src/new/a.py")
    assert watched.later() == ["src/new/a.py changed"]


def test_a_folder_that_is_made_while_the_one_above_it_comes_to_be_watched_is_watched_too(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(fd: int, folder: str) -> int:
        if os.path.basename(folder) == "new":
            os.makedirs(os.path.join(folder, "below"), exist_ok=True)
        return watch_folder(fd, folder)

    watch_folder = inotify.watch
    monkeypatch.setattr(inotify, "watch", late)
    (watched.folder / "src" / "new").mkdir()
    watched.later()
    watched.write("src/new/below/a.py")
    assert watched.later() == ["src/new/below/a.py changed"]


def test_a_folder_that_is_moved_away_is_watched_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path / "app", WatchConfig(), monkeypatch)
    watched.write("lib/deep/a.py")
    watched.later()
    (watched.folder / "lib").rename(tmp_path / "old")
    watched.later()
    (tmp_path / "old" / "deep" / "b.py").write_text("")
    assert watched.later() == []
    (tmp_path / "old").rename(watched.folder / "lib")
    watched.later()
    watched.write("lib/deep/c.py")
    assert watched.later() == ["lib/deep/c.py changed"]
    watched.close()


@pytest.mark.parametrize("paths", [(".", "src"), ("src", ".")])
def test_a_folder_that_is_watched_twice_and_made_anew_is_one_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...]
) -> None:
    (tmp_path / "src").mkdir()
    watched = Watched(tmp_path, WatchConfig(paths=paths), monkeypatch)
    (tmp_path / "src").rename(tmp_path.parent / "away")
    watched.write("src/a.py")
    assert watched.later() + watched.later() == ["src/a.py changed"]
    watched.write("src/b.py")
    assert watched.later() == ["src/b.py changed"]
    watched.close()


def test_that_there_are_too_many_folders_is_said_once_and_not_for_each_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MAX_FOLDERS", 1)
    watched = Watched(tmp_path, WatchConfig(), monkeypatch)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        watched.loop.turn(0)
    assert watched.notes == ["watch: more than 1 folders: the rest is not watched; name some in watch.paths"]
    watched.close()
    assert watched.notes == []


def test_folders_that_are_gone_are_not_counted(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_FOLDERS", 2)
    for _ in range(3):
        (watched.folder / "src/a").mkdir()
        watched.later()
        (watched.folder / "src/a").rmdir()
        watched.later()
    assert watched.notes == []


def test_files_are_watched_once_an_inotify_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none_left = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with monkeypatch.context() as limit:
        limit.setattr(inotify, "open_inotify", Mock(side_effect=none_left))
        watched = Watched(tmp_path, WatchConfig(), monkeypatch)
        assert watched.later() == []
    said = "watch: files are not watched: Too many open files; raise fs.inotify.max_user_instances (sysctl)"
    assert watched.notes == [said]
    watched.later()
    assert watched.notes == []
    watched.write("a.py")
    assert watched.later() == ["a.py changed"]
    watched.close()


@pytest.mark.parametrize(
    ("module", "name", "number", "step"),
    [
        (inotify, "watch", errno.ENOSPC, "raise fs.inotify.max_user_watches (sysctl)"),
        (inotify, "watch", errno.ENOMEM, ""),
        (os, "scandir", errno.EMFILE, ""),
    ],
)
def test_all_folders_are_watched_once_there_is_what_that_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int, step: str
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    real, left = getattr(module, name), iter(range(2))

    def one_less(*args: Any) -> Any:
        if next(left, None) is None:
            raise OSError(number, os.strerror(number))
        return real(*args)

    with monkeypatch.context() as limit:
        limit.setattr(module, name, one_less)
        watched = Watched(tmp_path, WatchConfig(), monkeypatch)
        assert watched.later() == []
        assert watched.notes == [f"watch: not all files are watched: {step or step_for(number)}"]
    watched.later()
    assert watched.notes == []
    for name in ("a/b/x.py", "c/x.py"):
        watched.write(name)
        assert watched.later() == [f"{name} changed"]
    watched.close()


def test_a_tree_that_comes_with_more_folders_than_are_watched_is_not_walked_to_its_end(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watch, "MAX_FOLDERS", 3)
    (tmp_path / "data" / "1" / "2" / "3" / "4").mkdir(parents=True)
    (tmp_path / "data" / "1" / "2" / "3" / "4" / "x.py").write_text("")
    (tmp_path / "data").rename(watched.folder / "src" / "data")
    assert watched.later() == []
    assert len(watched.notes) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as another user")
def test_what_the_apps_user_may_not_see_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hooks are told the names of what has changed."""
    with tempfile.TemporaryDirectory() as folder:
        open_to_all(folder)
        app, closed = Path(folder, "app"), Path(folder, "closed")
        (closed / "below").mkdir(parents=True)
        app.mkdir(mode=0o755)
        closed.chmod(0o700)
        watched = Watched(app, WatchConfig(paths=(".", "../closed", "../closed/below")), monkeypatch, uid=65534)
        (closed / "secret.py").write_text("")
        (closed / "below" / "secret.py").write_text("")
        assert watched.later() == []
        assert watched.notes == [
            f"watch: {closed} is not watched: the app's user may not read it",
            "watch: watch.paths names ../closed/below, which is no folder now, or none that the app's user may see",
        ]
        watched.write("a.py")
        assert watched.later() == ["a.py changed"]
        watched.close()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])
def test_nothing_is_watched_for_a_user_that_this_root_may_not_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As in a user namespace without setgroups, or that user: its workers cannot be started, and why is said of them."""

    def setgroups(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(user, "_set_groups", setgroups)
    watched = Watched(tmp_path, WatchConfig(), monkeypatch, uid=os.geteuid() + 1)
    watched.write("a.py")
    assert watched.later() == []
    watched.close()
