"""Daemon: what the figures of the user's own app need ([app.metrics]): a folder for prometheus_client, names for OpenTelemetry.

prometheus_client's workers write one file each, named by slot (worker/multiproc.py), and any of them can add all up. The
folder is the app's, in its shared state; a worker's live gauges leave with it (what mark_process_dead does), its counters
stay, and all is removed when the app is started with nobody of it alive. Nothing here ends a start: without the folder a
note says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from urllib.parse import quote

from pyworker.config.schema import ResolvedApp
from pyworker.daemon import state
from pyworker.protocol.multiproc import ENV_DIR, SLOTS_FILE, byte_of
from pyworker.protocol.names import STATE_DIR
from pyworker.unix.fds import close_all
from pyworker.unix.files import make_directory

OTEL_ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"
_FOLDER = "prometheus"
_MOST = 20_000  # files of it that are looked at: the app can make any number, and the daemon serves others meanwhile
_DB = re.compile(r"[a-z_]+_(w?\d+[a-z]?)\.db\Z")


def environment(home: str, resolved: ResolvedApp, generation: int) -> dict[str, str]:
    """Return the variables that the app asked for; what its own environment says wins. The folder is made."""
    config, env = resolved.config, resolved.env
    found: dict[str, str] = {}
    if prepare(home, resolved):
        found[ENV_DIR] = _path(home, resolved)
    if config.metrics.opentelemetry:
        own = {"service.name": config.name, "pyworker.app": config.name, "pyworker.generation": str(generation)}
        given = env.get(OTEL_ATTRIBUTES, "")
        names = {part.partition("=")[0].strip() for part in given.split(",")}
        if "OTEL_SERVICE_NAME" in env:
            names.add("service.name")
        added = [f"{name}={quote(value)}" for name, value in own.items() if name not in names]
        found[OTEL_ATTRIBUTES] = ",".join([*([given] if given else []), *added])
    return found


def prepare(home: str, resolved: ResolvedApp) -> bool:
    """Make the folder, owned by the user that the workers run as, if the app wants it; return whether it is there."""
    if not _is_wanted(home, resolved):
        return False
    with contextlib.suppress(OSError):
        os.close(_open(home, resolved, make=True))
        return True
    return False


def is_lost(home: str, resolved: ResolvedApp) -> bool:
    """Whether somebody has taken the folder from the user that the workers run as."""
    return _is_wanted(home, resolved) and state.is_taken(_path(home, resolved), resolved)


def _is_wanted(home: str, resolved: ResolvedApp) -> bool:
    return resolved.config.metrics.prometheus and bool(home) and ENV_DIR not in resolved.env


def _path(home: str, resolved: ResolvedApp) -> str:
    return os.path.join(home, STATE_DIR, resolved.config.name, _FOLDER)


def process_gone(home: str, resolved: ResolvedApp, pid: int) -> None:
    """Take away the live gauges of a worker, or of a template (it has imported them), that has ended."""
    for folder, file, name in _files(home, resolved):
        if file.startswith("gauge_live"):
            with _gone(folder, name, pid) as is_gone:
                if is_gone:
                    _unlink(folder, file)


def begin(home: str, resolved: ResolvedApp) -> None:
    """Take away all files: the app is started anew, and nobody of it is alive."""
    for folder, file, _ in _files(home, resolved):
        _unlink(folder, file)


@contextlib.contextmanager
def _gone(folder: int, name: str, pid: int) -> Iterator[bool]:
    """Whether a name is that of this pid, or of a slot that nobody has; nobody can take it meanwhile."""
    byte = byte_of(name)
    if byte is None:
        yield name == str(pid)
        return
    try:  # O_NONBLOCK: the folder is the app's, and what is there may be anything
        slots = os.open(SLOTS_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        yield False
        return
    try:
        is_free = True
        try:
            fcntl.lockf(slots, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError:
            is_free = False
        yield is_free
    finally:
        os.close(slots)  # lets go of the lock


def _files(home: str, resolved: ResolvedApp) -> Iterator[tuple[int, str, str]]:
    """Yield the folder's fd, a file of prometheus_client's, and whose it is; nothing where there is no folder."""
    if not (resolved.config.metrics.prometheus and home):
        return
    with contextlib.suppress(OSError):
        folder = _open(home, resolved, make=False)
        try:
            with os.scandir(folder) as entries:
                files = [entry.name for entry in itertools.islice(entries, _MOST)]
            for file in files:
                found = _DB.match(file)
                if found is not None:
                    yield folder, file, found[1]
        finally:
            os.close(folder)


def _unlink(folder: int, file: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(file, dir_fd=folder)


def _open(home: str, resolved: ResolvedApp, *, make: bool) -> int:
    """Return the folder; no link on the way to it below the home is followed: it is in the app's own folder."""
    if make:
        state.prepare(home, resolved)
    fds = [os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for name in (STATE_DIR, resolved.config.name, *(() if make else (_FOLDER,))):
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fds[-1]))
        if make:
            fds.append(make_directory(fds[-1], _FOLDER))
            state.give(fds[-1], resolved)
        return fds.pop()
    finally:
        close_all(fds)
