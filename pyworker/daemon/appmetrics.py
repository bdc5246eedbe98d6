"""Daemon: what the figures of the user's own app need ([app.metrics]): a folder for prometheus_client, names for OpenTelemetry.

prometheus_client's workers write one file each, named by pid, and any of them can add all up. The folder is the app's,
in its shared state; a worker's live gauges leave with it (what mark_process_dead does), its counters stay, and all is
removed when the app is started with nobody of it alive. Nothing here ends a start: without the folder a note says so.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from urllib.parse import quote

from pyworker.config.schema import ResolvedApp
from pyworker.daemon import state
from pyworker.protocol.names import STATE_DIR
from pyworker.unix.files import make_directory

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
OTEL_ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"
_FOLDER = "prometheus"
_DB = re.compile(r"[a-z_]+_(\d+)\.db\Z")


def environment(home: str, resolved: ResolvedApp, generation: int) -> dict[str, str]:
    """Return the variables that the app asked for; what its own environment says wins. The folder is made."""
    config, env = resolved.config, resolved.env
    found: dict[str, str] = {}
    if config.metrics.prometheus and home and MULTIPROC_DIR not in env:
        with contextlib.suppress(OSError):
            os.close(_open(home, resolved, make=True))
            found[MULTIPROC_DIR] = os.path.join(home, STATE_DIR, config.name, _FOLDER)
    if config.metrics.opentelemetry:
        own = {"service.name": config.name, "pyworker.app": config.name, "pyworker.generation": str(generation)}
        given = env.get(OTEL_ATTRIBUTES, "")
        names = {part.partition("=")[0].strip() for part in given.split(",")}
        if "OTEL_SERVICE_NAME" in env:
            names.add("service.name")
        added = [f"{name}={quote(value)}" for name, value in own.items() if name not in names]
        found[OTEL_ATTRIBUTES] = ",".join([*([given] if given else []), *added])
    return found


def process_gone(home: str, resolved: ResolvedApp, pid: int) -> None:
    """Take away the live gauges of a worker, or of a template (it has imported them), that has ended."""
    _remove(home, resolved, lambda name: name.startswith("gauge_live") and name.endswith(f"_{pid}.db"))


def begin(home: str, resolved: ResolvedApp) -> None:
    """Take away all files: the app is started anew, and nobody of it is alive."""
    _remove(home, resolved, lambda _name: True)


def _remove(home: str, resolved: ResolvedApp, unwanted: Callable[[str], bool]) -> None:
    if not (resolved.config.metrics.prometheus and home):
        return
    with contextlib.suppress(OSError):
        folder = _open(home, resolved, make=False)
        try:
            for name in os.listdir(folder):
                if _DB.match(name) and unwanted(name):
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)


def _open(home: str, resolved: ResolvedApp, *, make: bool) -> int:
    """Return the folder; no link on the way to it below the home is followed: it is in the app's own folder."""
    if make:
        state.prepare(home, resolved)
    fds = [os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for name in (STATE_DIR, resolved.config.name):
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fds[-1]))
        if not make:
            return os.open(_FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fds[-1])
        folder = make_directory(fds[-1], _FOLDER)
        if resolved.uid not in (None, os.geteuid()):
            assert resolved.uid is not None
            os.fchown(folder, resolved.uid, -1 if resolved.gid is None else resolved.gid)
        return folder
    finally:
        for fd in fds:
            os.close(fd)
