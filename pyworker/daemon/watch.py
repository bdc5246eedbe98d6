"""Daemon: `[app.watch]`: reload an app when one of its files changes. For development.

inotify, because its descriptor fits the daemon's one loop; only whether the folders of watch.paths
are the same is looked at again and again. A change counts when its name matches `include` and neither it nor a folder
above it is excluded. Reloads are the usual ones: code that does not import leaves the old workers serving, and the next
change tries again.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import itertools
import os
import re
import stat
from collections.abc import Callable

from pyworker.config.schema import WatchConfig
from pyworker.daemon.app import App
from pyworker.daemon.loop import READ, Timer
from pyworker.daemon.requests.auto import reload_by_itself
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.shortage import step_for
from pyworker.protocol.events import Event
from pyworker.unix import inotify
from pyworker.unix.user import CannotDrop, acting_as

ALWAYS_EXCLUDED = (
    ".git", ".hg", ".svn", ".venv", "venv", "env", "node_modules", "__pycache__", ".mypy_cache", ".ruff_cache",
    ".pytest_cache", ".tox", ".nox", ".idea", ".vscode", "*.egg-info", "site-packages",
)  # fmt: skip
_COMMANDS = ("*.js", "*.mjs", "*.cjs", "*.ts")  # what counts of a command, too, unless `include` says otherwise
MAX_FOLDERS = 4000  # of one app: more is somebody's home or a disk, not a project
_LOOK = 2.0  # seconds between looks whether the folders are the same: of one that a process is in no event says it
_NOT_WATCHED = "files are not watched:"
_NOT_ALL = "not all files are watched:"
_MORE_INSTANCES = "raise fs.inotify.max_user_instances (sysctl)"
_MORE_WATCHES = "raise fs.inotify.max_user_watches (sysctl)"
_GONE = (0, 0)  # the identity of no folder
Rights = tuple[int | None, int | None, tuple[int, ...]]  # uid, gid and groups of the app
Top = tuple[str, tuple[int, int] | None]  # a folder of watch.paths, its device and inode: None when it is not there
_NEWS = {"app_started", "app_running", "reload_done", "reload_rolled_back", "app_stopped", "app_failed", "app_deleted"}


class Watch:
    """One _Tree for each app that is wanted and has a `watch` table."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._trees: dict[str, _Tree] = {}
        desk.brain.events.subscribe(self._on_event)
        for app in desk.brain.apps.values():
            self._sync(app.name)

    def _on_event(self, event: Event) -> None:
        if event.type in _NEWS:
            self._sync(event.app)

    def _sync(self, name: str) -> None:
        app = self._desk.brain.apps.get(name)
        config = app.config if app is not None and app.wanted else None
        wanted = None
        if app is not None and app.current is not None and config and config.watch:
            resolved = app.current.resolved
            rights = resolved.uid, resolved.gid, resolved.groups
            # a root that may not become another user starts no worker of it either, which is said
            with contextlib.suppress(CannotDrop), acting_as(*rights):
                wanted = config.cwd, config.watch, _tops(config.cwd, config.watch), rights
        old = self._trees.get(name)
        if old is not None and old.made_of == wanted:
            return
        if old is not None:
            old.take_in()
            old.close()
            del self._trees[name]
        if wanted is None or app is None:
            return
        new = self._trees[name] = _Tree(self._desk, app, *wanted, lambda: self._sync(name))
        if old is not None and old.made_of[:2] == wanted[:2]:  # other folders: what they have brought has changed
            for folder, _ in {*new.tops} - {*old.tops}:
                if not old.tells_of(folder):
                    new.touch_if_any(folder)
            if old.changed:
                new.touch(old.changed)


class _Tree:
    """The folders of one app, seen as its user sees them, and the wait until nothing more changes."""

    def __init__(
        self,
        desk: Desk,
        app: App,
        cwd: str,
        config: WatchConfig,
        tops: tuple[Top, ...],
        rights: Rights,
        look: Callable[[], None],
    ) -> None:
        self.made_of = (cwd, config, tops, rights)
        self._rights = rights
        self._desk = desk
        self._app = app
        self._config = config
        self._look = look
        self._include = config.include
        if app.config is not None and app.config.command and config.include == WatchConfig().include:
            self._include += _COMMANDS
        self._cwd = cwd
        self._folders: dict[int, str] = {}
        self._timer: Timer | None = None
        self._look_timer = desk.brain.loop.call_lazily(_LOOK, self._look_again)
        self.changed: str = ""  # what is to be reloaded for
        self._said: list[str] = []
        self._left: set[str] = set()  # folders for which there was no watch left, or no descriptor or memory
        self._fd = -1
        self._open()

    def _open(self) -> None:
        try:
            self._fd = inotify.open_inotify()
        except OSError as error:
            step = _MORE_INSTANCES if error.errno == errno.EMFILE else step_for(error.errno)
            self._note(f"{_NOT_WATCHED} {error.strerror}; {step}".rstrip("; "))
            return
        self._is_over(_NOT_WATCHED)
        self._desk.brain.loop.add(self._fd, READ, self._on_readable)
        for path, (folder, identity) in zip(self._config.paths, self.tops, strict=True):
            if identity is not None:
                self._add(folder)
            else:
                unseen = "" if self._rights[0] is None else ", or none that the app's user may see"
                self._note(f"watch.paths names {path}, which is no folder now{unseen}")

    def close(self) -> None:
        for timer in (self._timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._is_over("")
        if self._fd >= 0:
            self._desk.brain.loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1

    @property
    def tops(self) -> tuple[Top, ...]:
        return self.made_of[2]

    def _look_again(self) -> None:
        self._look_timer = self._desk.brain.loop.call_lazily(_LOOK, self._look_again)
        if self._fd < 0:  # somebody may have closed one, or raised the limit
            self._open()
        elif self._left:
            left, self._left = self._left, set()
            self._add(*left)
            if not self._left:
                self._is_over(_NOT_ALL)
        self._look()

    def _add(self, *tops: str) -> None:
        """Watch folders and all below them; symlinks are not followed.

        A folder is watched before it is listed: what is made below it is in the list, or an event says it.
        """
        folders = [*tops]
        while folders:
            folder = folders.pop()
            if len(self._folders) >= MAX_FOLDERS:
                self._note(f"more than {MAX_FOLDERS} folders: the rest is not watched; name some in watch.paths")
                return
            try:
                # hooks are told what has changed: root must not see for them what they may not
                with acting_as(*self._rights):
                    self._folders[inotify.watch(self._fd, folder)] = folder
                    with os.scandir(folder) as entries:
                        below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError as error:
                step = _MORE_WATCHES if error.errno == errno.ENOSPC else step_for(error.errno)
                if step:
                    self._note(f"{_NOT_ALL} {step}")
                    self._left |= {folder, *folders}
                    return
                if error.errno == errno.EACCES and folder in tops:
                    self._note(f"{folder} is not watched: the app's user may not read it")
                continue  # it is gone, or not ours to see
            folders.extend(path for path in below if not self._is_excluded(path))

    def _leave(self, moved: str) -> None:
        """Watch a folder no more, nor what is below it: it is elsewhere now."""
        for number, folder in list(self._folders.items()):
            if folder == moved or folder.startswith(f"{moved}/"):
                inotify.unwatch(self._fd, number)
                del self._folders[number]

    def take_in(self) -> None:
        """Read what has changed until now."""
        if self._fd >= 0:
            self._on_readable(self._fd)

    def tells_of(self, folder: str) -> bool:
        """Whether a folder of watch.paths that is made anew is a change in the one above it, too."""
        is_known = any(top == folder for top, _ in self.tops)
        return is_known and os.path.dirname(folder) in self._folders.values() and not self._is_excluded(folder)

    def _on_readable(self, _: int) -> None:
        for change in inotify.read(self._fd):
            if change.flags & inotify.OVERFLOW:
                self.touch("many files")
                for top in self.tops:
                    self._add(top[0])  # new folders may be among what was lost
                continue
            folder = self._folders.get(change.watch)
            if folder is None:
                continue
            if change.flags & inotify.IGNORED:
                del self._folders[change.watch]
                # one that is made in its place may get its inode
                tops = tuple((top, _GONE if top == folder else identity) for top, identity in self.tops)
                self.made_of = (*self.made_of[:2], tops, self._rights)
                continue
            path = os.path.join(folder, change.name)
            if self._is_excluded(path):
                continue
            if change.is_folder:
                if change.is_moved_away:
                    self._leave(path)
                elif change.is_new:
                    self._add(path)
                    self.touch_if_any(path)
            elif self._counts(path):
                self.touch(path)

    def touch_if_any(self, folder: str) -> None:
        """A folder that came with its files in it: they were written before it was watched. No more are looked at than could be."""
        with acting_as(*self._rights):
            for where, below, files in itertools.islice(os.walk(folder), MAX_FOLDERS):
                below[:] = [name for name in below if not self._is_excluded(os.path.join(where, name))]
                for name in files:
                    if self._counts(os.path.join(where, name)):
                        self.touch(os.path.join(where, name))
                        return

    def _counts(self, path: str) -> bool:
        return _matches(path, self._cwd, self._include) and not self._is_excluded(path)

    def _is_excluded(self, path: str) -> bool:
        """Whether the last part of the path is excluded; the parts above were asked when they were added."""
        return _matches(path, self._cwd, (*ALWAYS_EXCLUDED, *self._config.exclude))

    def touch(self, path: str) -> None:
        self.changed = os.path.relpath(path, self._cwd) if os.path.isabs(path) else path
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._desk.brain.loop.call_later(self._config.debounce, self._reload)

    def _reload(self) -> None:
        changed, self.changed = self.changed, ""
        if self._desk.brain.apps.get(self._app.name) is self._app:
            reload_by_itself(self._desk, self._app, f"{changed} changed")

    def _note(self, text: str) -> None:
        if (text := f"watch: {text}") not in self._said:  # it may be so for each folder that is made
            self._said.append(text)
            with contextlib.suppress(OSError):
                self._desk.brain.note(self._app, text)

    def _is_over(self, words: str) -> None:
        """What was noted in these words is no more so."""
        for text in [text for text in self._said if text.startswith(f"watch: {words}")]:
            self._said.remove(text)
            self._desk.brain.note_is_over(self._app, text)


def _tops(cwd: str, config: WatchConfig) -> tuple[Top, ...]:
    """Return the folders to watch, and which ones those are: a link may lead to another, a folder may be made anew."""
    found: list[Top] = []
    for path in config.paths:
        folder = os.path.realpath(os.path.join(cwd, os.path.expanduser(path)))
        identity = None
        with contextlib.suppress(OSError):
            info = os.stat(folder)
            identity = (info.st_dev, info.st_ino) if stat.S_ISDIR(info.st_mode) else None
        found.append((folder, identity))
    return tuple(found)


def _matches(path: str, cwd: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name, or a path relative to the app's folder, matches one of the globs."""
    name = os.path.basename(path)
    relative = path[len(cwd) + 1 :] if path.startswith(f"{cwd}/") else os.path.relpath(path, cwd)
    matches = _expression(patterns)
    return matches(name) is not None or matches(relative) is not None


@functools.lru_cache(maxsize=100)
def _expression(patterns: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    """Return what tells whether any of the globs matches. One by one takes five times as long, for each file of a folder that comes."""
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"\Z.").match
