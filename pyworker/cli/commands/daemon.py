"""CLI: `pyworker daemon status|start|stop|upgrade`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from pyworker.cli import client, render
from pyworker.cli.asking import confirm
from pyworker.cli.client import ANSWER_TIME, DaemonAway, Lost, Silent, apps_now, ask, connect, perform
from pyworker.cli.deadline import TURN, Deadline
from pyworker.cli.options import Settings, common, option, say
from pyworker.cli.units import openrc_keeps
from pyworker.errors import Exit, PyworkerError
from pyworker.protocol.events import workers_in_words
from pyworker.protocol.names import CONTROL_SOCKET
from pyworker.unix import process

_HELP = {"help_option_names": ["-h", "--help"]}
_UPGRADE_TIME = 60.0  # seconds for check, guardian, daemon and logger together
_PAUSE = 0.02  # seconds between two looks
_END_TIME = 2.0  # for a guardian that answers no more
_PARTS = ("guardian", "daemon", "logger")
_LOOK = 0.5  # seconds for an answer of whoever may be there
_SAY = 2.0  # seconds after the end of the apps until it is said why the end of the rest is waited for
_STOP_TIME = 120.0  # seconds for a stop whose apps need no more


@click.group(invoke_without_command=True, subcommand_metavar="COMMAND [ARGS]...")
@common
def cmd(settings: Settings) -> None:
    """The daemon that keeps the apps running. `start` starts it when none runs; after a boot `startup` does.

    \b
    pyworker daemon status     whether it runs, and where
    pyworker daemon upgrade    to the installed version; no request is lost
    pyworker daemon stop       the apps, too; `daemon start` brings back what ran
    """
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is None:
        render.out(ctx.get_help())


@cmd.command(context_settings=_HELP)
@common
def status(settings: Settings) -> int:
    """Say whether it runs, and where. Exit 69 when it does not."""
    try:
        body = ask(settings.home, {"type": "status"}, settings.timeout)
    except DaemonAway:
        if not settings.json:
            raise
        render.out(json.dumps({"v": 1, "running": False}))
        return int(Exit.UNAVAILABLE)
    body["socket"] = os.path.join(str(body.get("home")), CONTROL_SOCKET)
    how = render.look(sys.stdout, settings.color)
    if settings.json:
        render.out(json.dumps({"v": 1, "running": True, **body}), how)
        return 0
    lines = [
        f"running     pid {body.get('pid')}, since {render.span(body.get('uptime_s'))}, version {body.get('version')}",
        f"home        {render.home(str(body.get('home')))}",
        f"guardian    pid {body.get('guardian_pid')}{_other(body, 'guardian')}",
        f"logger      pid {body.get('logger_pid')}{_other(body, 'logger')}",
        f"apps        {body.get('apps')}",
    ]
    render.out("\n".join(map(render.clean, lines)), how)
    return 0


@cmd.command(context_settings=_HELP)
@common
def start(settings: Settings) -> int:
    """Start it; what ran before is restored. Does nothing when it runs."""
    from pyworker.cli.launch import ensure_daemon, started_in_words

    pid = ensure_daemon(settings.home)
    if settings.json:
        render.out(json.dumps({"v": 1, "running": True, "started": bool(pid), "guardian_pid": pid or None}))
    elif not settings.quiet:
        render.note(started_in_words(settings.home, pid) if pid else "It runs already.")
    return 0


@cmd.command(short_help="Be the daemon, in the foreground.", context_settings=_HELP)
@option("--wait", is_flag=True, help="Where a daemon runs already, wait for its end, then take its place.")
@common
def run(settings: Settings, wait: bool) -> NoReturn:
    """Be the daemon, in the foreground: what a service manager starts. What ran before is restored.

    --wait is for managers that know only the process that they have started (OpenRC, runit, s6): when that is killed,
    the daemon goes on as another process, and the one that they start instead has to wait.

    With $NOTIFY_SOCKET it says READY, RELOADING, STOPPING, STATUS and WATCHDOG (systemd's Type=notify-reload); SIGHUP
    reloads every app.
    """
    from pyworker.cli.launch import become_daemon, wait_for_the_end

    if wait:
        wait_for_the_end(settings.home)
    become_daemon(settings.home)


@cmd.command(context_settings=_HELP)
@option("--now", is_flag=True, help="Do not wait for open requests.")
@common
def stop(settings: Settings, now: bool) -> int:
    """Stop every app, then the daemon. The next `daemon start` restores what ran."""
    try:
        # of a --timeout of next to nothing the daemon is to be told, too
        apps = apps_now(settings.home, None if settings.timeout is None else max(settings.timeout, _LOOK))
    except DaemonAway:
        return say(settings, {"running": False}, "The daemon is not running.")
    except PyworkerError as error:
        if pid := client.guardian_without_daemon(settings.home):
            error.hint += f"\nto stop all of it: kill {pid}"
        raise
    if openrc_keeps(settings.home):
        hint = f"{'' if os.geteuid() == 0 else 'sudo '}rc-service pyworker stop"
        raise PyworkerError("OpenRC keeps this daemon, and would start it again", hint=hint, code="kept")
    running = [render.line(a["name"]) for a in apps if a["state"] not in {"stopped", "failed"}]
    if running:
        confirm(settings, f"This stops {', '.join(running)}.", "pyworker daemon stop")
    status = _status(settings.home)
    guardian = status.get("guardian_pid")
    pidfd = _watched(guardian)
    timeout = _patience(status) if settings.timeout is None else settings.timeout
    with _may_be_left(settings, "stop"):
        _end(settings, now, status, timeout)
    if pidfd is not None:  # in a container its pid may be another's here
        process.is_gone(pidfd, _END_TIME)  # its socket is closed a moment before its files
        os.close(pidfd)
    return say(settings, {"running": False}, "The daemon has stopped.")


@cmd.command(short_help="Replace all but the workers by this pyworker.", context_settings=_HELP)
@option("--force", is_flag=True, help="Replace them even if the version is the same.")
@common
def upgrade(settings: Settings, force: bool) -> int:
    """Replace guardian, daemon and logger by this pyworker. No worker is touched, no request lost.

    The new version is tried first: one that does not start, or does not understand what runs, changes nothing. The
    workers become the new version at the next reload of their app.
    """
    before = ask(settings.home, {"type": "status"})
    with _may_be_left(settings, "upgrade"):
        return _carry_out(settings, force, before)


def _carry_out(settings: Settings, force: bool, before: dict[str, Any]) -> int:
    from pyworker.cli.launch import own_python

    seconds = _UPGRADE_TIME if settings.timeout is None else settings.timeout
    deadline = Deadline(seconds, TURN)
    request = {"type": "upgrade", "python": own_python(), "force": force}
    body: dict[str, Any] = {}
    lost = False
    while not body:
        try:
            body = perform(settings.home, request, _nothing, None, deadline).body
        except (Lost, DaemonAway):  # killed over it: the next daemon knows nothing of an upgrade that had not begun
            lost = True
            time.sleep(_PAUSE)
            _check_there(settings.home, _status(settings.home))
        except TimeoutError:
            raise _not_upgraded(before, str(before.get("version")), seconds) from None
    to = str(body.get("to"))
    if lost and set(_of_parts(before, "version").values()) != {to}:  # all of it is new by now, perhaps
        body |= {
            "changed": True,
            "from": before.get("version"),
            "versions": _of_parts(before, "version"),
            "pids": _of_parts(before, "pid"),
        }
    if not body.get("changed"):
        return _upgraded(settings, body, before, f"All of it runs {to} already. Replace it all the same: --force")
    old = {name: pid for name, pid in dict(body["pids"]).items() if name != "guardian"}  # which keeps its pid
    while True:
        now = _status(settings.home)
        pids = _of_parts(now, "pid")
        if set(_of_parts(now, "version").values()) == {to} and all(
            pids[name] not in (None, pid) for name, pid in old.items()
        ):
            break
        _check_there(settings.home, now)
        if deadline.left() < 0:
            raise _not_upgraded(now or before, to, seconds)
        time.sleep(_PAUSE)
    left = max(ANSWER_TIME, deadline.left())
    workers = sum(app["workers"]["total"] for app in apps_now(settings.home, left))
    words = ""
    if workers:
        words = f"{workers_in_words(workers)} went on undisturbed; the new version reaches them by: pyworker reload all"
    return _upgraded(settings, body, now, words)


def _upgraded(settings: Settings, body: dict[str, Any], now: dict[str, Any], words: str) -> int:
    versions, pids = _of_parts(now, "version"), _of_parts(now, "pid")
    parts = [
        {
            "name": name,
            "from": body["versions"].get(name) or None,
            "to": versions[name],
            "pid_before": body["pids"].get(name),
            "pid": pids[name],
        }
        for name in _PARTS
    ]
    if settings.json:
        document = {"v": 1, "changed": body["changed"], "from": body["from"], "to": body["to"], "parts": parts}
        render.out(json.dumps(document))
        return 0
    how = render.look(sys.stdout, settings.color)
    lines = [f"pyworker {body['from']} -> {body['to']}"] if body["changed"] else []
    for part in parts if body["changed"] else []:
        same = part["pid"] == part["pid_before"]
        pid = f"pid {part['pid']}, the same process" if same else f"pid {part['pid_before']} -> {part['pid']}"
        lines.append(f"  {part['name']:<9} {part['from'] or '?'} -> {part['to']}  ({pid})")
    if lines:
        render.out("\n".join(map(render.clean, lines)), how)
    if words and not settings.quiet:
        render.note(words)
    return 0


def _status(home: str) -> dict[str, Any]:
    """Return who is there; {} while the daemon changes places, or is long about it."""
    try:
        return ask(home, {"type": "status"})
    except (DaemonAway, Lost, Silent):
        return {}


def _check_there(home: str, status: dict[str, Any]) -> None:
    if not status and not _answers(home):
        raise PyworkerError("The daemon was stopped meanwhile.", hint="pyworker daemon start")


def _of_parts(status: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the `version` or `pid` of each part."""
    return {part: status.get(what if part == "daemon" else f"{part}_{what}") for part in _PARTS}


def _not_upgraded(now: dict[str, Any], to: str, seconds: float) -> PyworkerError:
    there = ", ".join(
        f"{part} {version or 'of unknown version'}" for part, version in _of_parts(now, "version").items()
    )
    message = f"The upgrade to {to} is not complete after {seconds:g} s: {there}. The workers serve on."
    hint = "pyworker daemon status shows how far it is; pyworker daemon upgrade tries again"
    return PyworkerError(message, hint=hint, code="timeout")


def _other(body: dict[str, Any], part: str) -> str:
    """Name the version of a part that is not the daemon's."""
    version = body.get(f"{part}_version")
    return f", version {version} (pyworker daemon upgrade)" if version and version != body.get("version") else ""


def _patience(status: dict[str, Any]) -> float:
    """Return how long a stop is waited for: the time-outs of apps that stop one after another add up."""
    return max(_STOP_TIME, float(status.get("stop_s") or 0))


def _end(settings: Settings, now: bool, status: dict[str, Any], timeout: float) -> None:
    """Have it stop, and wait until nobody answers."""
    deadline = Deadline(timeout, TURN)
    guardian = status.get("guardian_pid")
    told = status.get("pid")
    have_ended = _shut_down(settings, now, deadline, timeout)
    say_at = time.monotonic() + _SAY
    has_said = settings.is_silent
    while _answers(settings.home):
        there = _daemon(settings.home)
        # another one: that which was told had died first, and this one knows nothing of it
        if there not in (None, told):
            told = there
            have_ended = _shut_down(settings, now, deadline, timeout)
            say_at = time.monotonic() + _SAY
        if have_ended and not has_said and time.monotonic() > say_at:
            has_said = True
            words = f"its logger (pid {status.get('logger_pid')}) has still to write what they printed, 30 s at most"
            if _is_stopped(guardian):
                words = f"its guardian (pid {guardian}) is stopped (SIGSTOP): kill -CONT {guardian} lets it end"
            render.note(f"The apps have ended; {words}.")
        if deadline.left() < 0:
            raise _guardian_hangs(settings, guardian) if _is_stopped(guardian) else _still_there(settings, timeout)
        time.sleep(_PAUSE)


def _shut_down(settings: Settings, now: bool, deadline: Deadline, timeout: float) -> bool:
    """Have the daemon stop all; return whether it has said that the apps have ended."""
    from pyworker.cli.operation import View

    view = View(settings)
    show = _nothing if settings.json else view.event
    try:
        view.ended(perform(settings.home, {"type": "shutdown", "now": now}, show, view.tick, deadline))
    except (Lost, DaemonAway):
        return False  # it may be gone before its answer was written; what counts is who is there then
    except TimeoutError:
        raise _still_there(settings, timeout) from None
    return True


@contextlib.contextmanager
def _may_be_left(settings: Settings, verb: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        from pyworker.cli.operation import left

        raise left(settings, verb) from None


def _daemon(home: str) -> int | None:
    """Return the pid of the daemon that answers; None while none does: it has ended, or the next is not ready."""
    try:
        pid = ask(home, {"type": "status"}, _LOOK).get("pid")
    except PyworkerError:
        return None
    return pid if isinstance(pid, int) else None


def _answers(home: str) -> bool:
    try:
        connect(home).close()
    except DaemonAway:
        return False
    except PyworkerError:
        return True
    return True


def _still_there(settings: Settings, timeout: float) -> PyworkerError:
    message = f"The daemon (home {settings.home}) is still stopping after {timeout:g} s; it goes on."
    hint = "pyworker ps shows what it waits for; pyworker daemon stop --now cuts open requests"
    return PyworkerError(message, hint=hint, code="timeout")


def _watched(guardian: int | None) -> int | None:
    """Return a pidfd (the caller's), None where there is nothing to watch."""
    try:
        return os.pidfd_open(guardian) if guardian else None
    except OSError:
        return None


def _is_stopped(guardian: int | None) -> bool:
    return guardian is not None and process.is_stopped(guardian)


def _guardian_hangs(settings: Settings, guardian: int | None) -> PyworkerError:
    return PyworkerError(
        f"The daemon (home {settings.home}) and its apps have ended, but its guardian (pid {guardian}) is stopped (SIGSTOP) and keeps "
        "their addresses open.",
        hint=f"kill -CONT {guardian} lets it end",
        code="timeout",
    )


def _nothing(_event: dict[str, Any] | None) -> None:
    """Take no notice of the events: the end is what counts."""
