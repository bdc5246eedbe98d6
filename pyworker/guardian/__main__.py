"""Guardian: `python -I -m pyworker.guardian --home DIR [--notify-fd N] [--adopt FD [--standby FD]]`, or `--check`.

Says "ok" or why not on the notify fd, then keeps quiet: its own words go to logs/pyworker.log.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pyworker import __version__, exchanged, failpoint
from pyworker.errors import Exit, PyworkerError
from pyworker.guardian import boot, standby
from pyworker.guardian.boot import BootError
from pyworker.guardian.main import Guardian, Times
from pyworker.guardian.say import say
from pyworker.guardian.store import FdStore
from pyworker.protocol import inherited
from pyworker.protocol.names import ENV_TICK, GUARDIAN_DIED, GUARDIAN_TITLE, TAKES_OVER_LATER
from pyworker.record import record
from pyworker.unix import files, process
from pyworker.unix.leave import leave
from pyworker.unix.title import set_title

TAKE_OVER_AGAIN = 0.2  # seconds
T = TypeVar("T")


@record
class Options:
    """What a guardian is started with. The numbers are descriptors."""

    home: str
    run: int | None  # in the foreground: a memfd with the RunSpec
    notify_fd: int | None
    adopt: int | None  # a memfd that names the inherited fds of the guardian before
    standby: int | None  # the channel on which to wait until this guardian is needed
    tick: float  # seconds between pings


def main(argv: list[str], commands: dict[str, list[str]] | None = None, program: list[str] | None = None) -> int:
    """Boot, run, leave. Returns the exit code.

    Tests give `commands` of their own for daemon and logger, and `program`: how this one is started again.
    """
    if argv == ["--check"]:
        print(json.dumps({"version": __version__}))  # noqa: T201  the answer to the daemon that asks
        return 0
    options = _options(argv)
    if options.notify_fd is not None:
        os.set_inheritable(options.notify_fd, False)
    process.set_name(GUARDIAN_TITLE)
    set_title(GUARDIAN_TITLE)
    try:
        return _run(options, commands, program or [sys.executable, "-I", "-m", "pyworker.guardian"])
    except PyworkerError as error:
        _answer(options.notify_fd, {"error": error.message, "hint": error.hint, "exit": int(error.exit)})
        return int(error.exit)
    except OSError as error:
        _answer(options.notify_fd, {"error": f"the guardian could not start: {error}", "hint": "", "exit": 1})
        return int(Exit.FAILED)


def _run(options: Options, commands: dict[str, list[str]] | None, program: list[str]) -> int:
    if options.run is not None:
        return _run_in_foreground(options.run, options.tick, commands)
    path = os.path.abspath(options.home)
    taken_over: dict[str, dict[str, Any]] = {}
    if options.adopt is not None:
        store, taken_over = boot.adopted_store(options.adopt)
        if options.standby is not None and not _is_needed(options.standby):
            return 0
        home = _patiently(lambda: _take_over(path, store))
    else:
        if exchanged.is_exchanged():
            raise BootError(exchanged.MESSAGE, hint="run it again", exit=Exit.UNAVAILABLE)
        boot.check_limits()
        home = boot.open_home(path)
        store = FdStore({inherited.LOCK: boot.take_lock(home)})
        boot.open_own_log(home)
        _prepare(home, store)
    reason = "boot" if options.adopt is None else "upgrade" if taken_over else GUARDIAN_DIED
    say(f"started ({reason}), version {__version__}, {len(store)} fds")

    def make() -> Guardian:
        return Guardian(
            store,
            commands or _commands(path),
            reason=reason,
            times=Times(tick=options.tick),
            program=[*program, "--home", path, "--tick", str(options.tick)],
            taken_over=taken_over,
            before_start=lambda: boot.renew_own_log(home),
        )

    guardian = make() if options.adopt is None else _patiently(make)

    def started() -> None:
        if options.notify_fd is not None and guardian.unstarted is not None:  # a service manager would only begin again
            boot.remove_control(home, store.get(inherited.LOCK))
            raise boot.no_daemon(guardian.unstarted)
        _answer(options.notify_fd, None)

    code = guardian.run(started)
    boot.remove_control(home, store.get(inherited.LOCK))
    say("stopped")
    return code


def _is_needed(channel: int) -> bool:
    process.prctl(process.PR_SET_DUMPABLE, 0)
    process.set_name("pyworker standby")
    set_title("pyworker standby")
    needed = standby.is_needed(channel)
    process.set_name(GUARDIAN_TITLE)
    set_title(GUARDIAN_TITLE)
    return needed


def _prepare(home: int, store: FdStore) -> None:
    boot.become_guardian()
    if store.get(inherited.CONTROL) is None:
        store.put(inherited.CONTROL, boot.bind_control(home).detach())


def _take_over(path: str, store: FdStore) -> int:
    """Prepare to guard what another guardian has left, and return the home's fd."""
    failpoint.hit("guardian.adopted")
    home = boot.open_home(path, store.get(inherited.LOCK))
    try:
        files.lock_directory(home)
        with contextlib.suppress(BootError):  # stdout and stderr are the log still
            boot.open_own_log(home)
        _prepare(home, store)
    except Exception:
        os.close(home)
        raise
    return home


def _patiently(step: Callable[[], T]) -> T:
    """Do a step of taking over: nobody else holds what there is, so giving up would close every port."""
    said = ""
    while True:
        try:
            return step()
        except Exception as error:  # noqa: BLE001  a full disk, a home without rights: all of it passes
            if str(error) != said:
                said = str(error)
                say(f"{TAKES_OVER_LATER}: {said}")
            time.sleep(TAKE_OVER_AGAIN)


def _run_in_foreground(run: int, tick: float, commands: dict[str, list[str]] | None) -> int:
    """Be what a container or a service manager started: no file but what the home offers, and the apps' fate as ours."""
    spec = boot.run_spec(run)
    boot.check_limits()
    boot.become_guardian()
    store = FdStore({inherited.RUN: run})
    home = boot.foreground_home(spec.home, store)
    path = spec.home if home >= 0 else ""
    if commands is None:
        commands = _commands(path)
        commands["logger"] += ["--stdout", spec.logs]
    # whoever started us was told what a stop may take, and kills 5 s after it
    guardian = Guardian(store, commands, times=Times(tick=tick, logger_end=5.0), foreground=True)
    code = guardian.run(started=lambda: None)
    if home >= 0:
        boot.remove_control(home, store.get(inherited.LOCK))
    return code


def _options(argv: list[str]) -> Options:
    words = process.given(argv, "--home", "--run", "--notify-fd", "--adopt", "--standby", "--tick")

    def fd(name: str) -> int | None:
        return int(words[name]) if name in words else None

    tick = float(words.get("--tick") or os.environ.get(ENV_TICK) or Times.tick)
    return Options(words.get("--home", ""), fd("--run"), fd("--notify-fd"), fd("--adopt"), fd("--standby"), tick)


def _answer(notify_fd: int | None, failure: dict[str, object] | None) -> None:
    """Tell who started us; None is success. Without a notify fd a failure goes to stderr."""
    if notify_fd is None:
        if failure is not None:
            hint = f" ({failure['hint']})" if failure["hint"] else ""
            print(f"pyworker guardian: {failure['error']}{hint}", file=sys.stderr)  # noqa: T201  no logger exists yet
        return
    text = "ok" if failure is None else json.dumps(failure)
    with contextlib.suppress(OSError):  # who started us may be gone: no reason to stop
        os.write(notify_fd, text.encode() + b"\n")
    with contextlib.suppress(OSError):
        os.close(notify_fd)


def _commands(home: str) -> dict[str, list[str]]:
    python = [sys.executable, "-I", "-m"]
    return {name: [*python, f"pyworker.{name}", "--home", home] for name in ("daemon", "logger")}


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
