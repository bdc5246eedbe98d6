"""Daemon: is the version that an upgrade would bring one that starts, and that understands what runs?

Each program of it is run with --check, in a child that nothing depends on; the daemon's is given, on stdin, all that
it would have to take over. Nothing is replaced before all of them have said yes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pyworker.config.address import Address
from pyworker.daemon import desired
from pyworker.daemon.app import App, Generation
from pyworker.daemon.brain import Brain
from pyworker.daemon.handles import DispatcherHandle, TemplateHandle, WorkerHandle
from pyworker.daemon.loop import READ, Loop
from pyworker.daemon.shortage import step_for, step_for_words
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.wire import WireError
from pyworker.unix import fds as unix_fds
from pyworker.unix import process

PROGRAMS = ("guardian", "daemon", "logger", "template")
PATIENCE = 30.0  # seconds for all of them
_MAX_WORDS = 64 * 1024

# the version, "" where it is not known, why not, and what helps where that is known
Done = Callable[[str, str, str], None]


class Preflight:
    """Runs the checks; calls `done(version, "", "")` once, or `done(version, why not, step)` with that of one that starts."""

    def __init__(self, loop: Loop, python: str, content: bytes, done: Done) -> None:
        self._loop = loop
        self._python = python
        self._done = done
        self._running: dict[str, tuple[int, int, int]] = {}  # program -> pidfd, its stdout, its stderr (memfds)
        self._versions: dict[str, str] = {}
        self._over = False
        self._timer = loop.call_later(PATIENCE, self._too_slow)
        try:
            for name in PROGRAMS:
                self._start(name, content)
        except OSError as error:
            why = f"its check cannot be started: {error.strerror}"  # which names a program that is not there
            self._end("", why, step_for(error.errno))

    def _start(self, name: str, content: bytes) -> None:
        files = [unix_fds.memfd("pyworker-check", content)]
        try:
            os.lseek(files[0], 0, os.SEEK_SET)
            files.extend(os.memfd_create(f"pyworker-check-{stream}", os.MFD_CLOEXEC) for stream in ("out", "err"))
            argv = [self._python, "-I", "-m", f"pyworker.{name}", "--check"]
            _, pidfd = process.spawn_watched(argv, dict(os.environ), dict(enumerate(files)))
        except OSError:
            unix_fds.close_all(files)
            raise
        given, out, err = files
        os.close(given)
        self._running[name] = (pidfd, out, err)
        self._loop.add(pidfd, READ, lambda _: self._ended(name))

    def _ended(self, name: str) -> None:
        pidfd, out, err = self._running.pop(name)
        self._loop.remove(pidfd)
        status = process.collect(pidfd)
        said, complained = _text(out), _text(err)
        unix_fds.close_all([pidfd, out, err])
        if self._over:
            return
        if status != process.ExitStatus(0, None):
            last = _last(complained)
            self._end("", f"its {name} does not start: {last}", step_for_words(last, os.getpid()))
            return
        try:
            answer = json.loads(said)
            version, why = str(answer["version"]), str(answer.get("error", ""))
        except (ValueError, KeyError, TypeError):
            self._end("", f"its {name} knows no upgrade: it is older than 0.1, or no pyworker")
            return
        self._versions[name] = version
        if why:
            self._end(version, f"pyworker {version} cannot take over what runs: {why}")
        elif not self._running:
            different = set(self._versions.values())
            if len(different) > 1:
                self._end("", f"its parts are of different versions ({', '.join(sorted(different))})")
            else:
                self._end(version, "")

    def _too_slow(self) -> None:
        step = f"try again when this machine has less to do; if that stays, mend the installation of {self._python}"
        self._end("", f"its {', '.join(self._running)} did not start within {PATIENCE:g} s", step)

    def _end(self, version: str, why: str, step: str = "") -> None:
        if self._over:
            return
        self._over = True
        self._timer.cancel()
        for pidfd, _, _ in self._running.values():
            process.send_signal(pidfd, signal.SIGKILL)  # collected when its end is seen
        self._done(version, why, step)


def content_of(brain: Brain, apps_file: bytes) -> bytes:
    """Return what a new version would have to understand, for its `--check`."""
    memos: dict[str, Any] = {}
    generations: dict[str, str] = {}
    for app in brain.apps.values():
        if not app.closed:
            memos[app.name] = app.ledger.read()
            generations |= {f"{app.name}.{g.number}": g.pack().decode() for g in app.generations.values()}
    content = {"memos": memos, "generations": generations, "apps_file": apps_file.decode("utf-8", "replace")}
    return json.dumps(content).encode()


def why_not(content: bytes) -> str:
    """Return why this version cannot take over what another has running; "" = it can."""
    where = "what it was given"
    try:
        given = json.loads(content or b"{}")
        for where, text in given.get("generations", {}).items():
            Generation.unpack(int(where.rpartition(".")[2]), text.encode())
        for where, memo in given.get("memos", {}).items():
            check_memo(where, memo)
        if given.get("apps_file"):
            where = "apps.json"
            desired.parse(given["apps_file"].encode())
    except (WireError, ValueError, KeyError, TypeError, AttributeError) as error:
        words = f"no {error}" if isinstance(error, KeyError) else str(error)
        return f"{where}: {words}"
    return ""


def check_memo(name: str, memo: dict[str, Any]) -> None:
    """Read a ledger's content as adoption would, and raise what that would raise. Nothing is changed."""
    if memo:
        App.recall(SimpleNamespace(), memo)  # type: ignore[arg-type]  # takes attributes as they come
    if memo.get("dispatcher"):
        DispatcherHandle(0.0).recall(memo["dispatcher"])
    for address in memo.get("listeners", {}).values():
        Address(**address)
    for template in memo.get("templates", {}).values():
        TemplateHandle(name, 0, 0.0).recall(template)
    for text, worker in memo.get("workers", {}).items():
        generation, slot, serial = (int(number) for number in text.rsplit(".", 3)[1:])
        WorkerHandle(WorkerId(name, generation, slot, serial), held=False, born_at=0.0).recall(worker)


def code_on_disk() -> int:
    """Return a number that changes when the files that a guardian is made of do (an installer at work)."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found: list[tuple[str, int, int, int]] = []
    for part in ("", "guardian", "protocol", "unix"):
        with contextlib.suppress(OSError), os.scandir(os.path.join(folder, part)) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    status = entry.stat()
                    found.append((entry.path, status.st_mtime_ns, status.st_size, status.st_ino))
    return hash(tuple(sorted(found)))


def why_no_guardian() -> str:
    """Return why the guardian that is on disk now would not start, "" if it would. Blocks: only for want of a guardian."""
    with open(os.devnull, "rb") as null, open(os.memfd_create("pyworker-check-err", os.MFD_CLOEXEC), "w+b") as err:
        argv = [sys.executable, "-I", "-m", "pyworker.guardian", "--check"]
        table = {0: null.fileno(), 1: err.fileno(), 2: err.fileno()}
        _, pidfd = process.spawn_watched(argv, dict(os.environ), table)
        try:
            if not process.is_gone(pidfd, PATIENCE):
                process.send_signal(pidfd, signal.SIGKILL)
                process.is_gone(pidfd, None)
            if process.collect(pidfd) == process.ExitStatus(0, None):
                return ""
        finally:
            os.close(pidfd)
        return _last(_text(err.fileno()))


def _text(fd: int) -> str:
    return unix_fds.read_whole(fd)[:_MAX_WORDS].decode("utf-8", "replace")


def _last(complained: str) -> str:
    return (complained.strip().splitlines() or ["it said nothing"])[-1]


def check() -> int:
    """`--check`: say who this is, and whether it can take over what comes on stdin."""
    from pyworker import __version__
    from pyworker.daemon.bundle import runtime_zip

    answer = {"version": __version__}
    with contextlib.suppress(OSError):
        why = why_not(sys.stdin.buffer.read())
        if why:
            answer["error"] = why
    import uvicorn  # noqa: F401  what Spawner needs

    runtime_zip()
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0
