"""CLI: `pyworker startup`: have systemd or OpenRC start the daemon at boot. Shows everything first, then asks."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from typing import NamedTuple

import click

from pyworker import __version__
from pyworker.cli import units
from pyworker.cli.asking import confirm
from pyworker.cli.client import DaemonAway, ask, other_daemon
from pyworker.cli.files import as_bytes, cannot
from pyworker.cli.homes import config_home, default_home, home_of, lingers, user_name
from pyworker.cli.options import Settings, common, option, say
from pyworker.cli.render import home as short
from pyworker.cli.render import note, out
from pyworker.errors import PyworkerError
from pyworker.protocol.names import ENV_HOME

_NAME = "pyworker.service"
_STOP_SECONDS = 90
_SYSTEMD_RUNS = "/run/systemd/system"  # sd_booted(3)


class _Plan(NamedTuple):
    """What will be done: a file, then commands."""

    path: str
    text: str
    mode: int
    commands: list[list[str]]


@click.command()
@option("--user", "scope", flag_value="user", help="For this user, without root (default for ordinary users).")
@option("--system", "scope", flag_value="system", help="For the machine (default for root).")
@option("--print", "only_print", is_flag=True, help="Print the service file; change nothing.")
@option("--remove", is_flag=True, help="Remove the service again.")
@option("--init", "init", type=click.Choice(("systemd", "openrc")), help="Default: what this machine runs.")
@common
def cmd(settings: Settings, scope: str | None, only_print: bool, remove: bool, init: str | None) -> int:
    """Start the daemon at boot; what ran before is restored then, without a `save`.

    \b
    pyworker startup            shows what it will do, and asks
    pyworker startup --print    the service file only
    pyworker startup --remove
    """
    is_user = scope == "user" or (scope is None and os.geteuid() != 0)
    kind = init or ("openrc" if _runs_openrc() else "systemd")
    if not init and not only_print and not remove and not is_possible():
        hint = (
            "in a container, or by another service manager: pyworker run app.toml\nfor a machine to be: --init systemd"
        )
        raise PyworkerError("neither systemd nor OpenRC runs here", hint=hint)
    if kind == "openrc" and is_user and scope is None:
        is_user = False
    if kind == "openrc":
        settings = settings._replace(home=_home_of_owner(settings.home))
    plan = _plan(settings, kind, is_user)
    if only_print:
        text = json.dumps({"v": 1, "path": plan.path, "text": plan.text})
        out(text if settings.json else plan.text.rstrip("\n"))
        return 0
    if not is_user and os.geteuid() != 0:
        hint = f"sudo {_command()[0]} startup --system; or for you alone: pyworker startup --user"
        raise PyworkerError("writing a system service needs root", hint=hint, code="no_permission")
    running, other = _apps(settings)
    if remove:
        return _remove(settings, kind, plan, is_user)
    replaced = units.other_home(plan.path, settings.home)
    is_active = bool(replaced or running is not None) and _is_active(kind, is_user)
    plan = plan._replace(commands=_commands(kind, is_user, start=running is None and not (replaced and is_active)))
    lines = [f"  write   {short(plan.path)}", *(f"  run     {' '.join(c)}" for c in plan.commands)]
    if replaced:
        lines.append(
            f"That file starts the daemon of {replaced} now; its apps are not started at boot then. To keep both, have\n"
            "a file of another name made of what is printed by: pyworker startup --print"
        )
    ours = map(_not_of_root, (_command()[0], sys.executable, __file__))
    if kind == "systemd" and not is_user and (whose := next(filter(None, ours), None)):
        lines.append(
            f"Root will run what {whose[1]} can change ({short(whose[0])}). Better: a pyworker of root's own, in /opt for example"
        )
    manager = "OpenRC" if kind == "openrc" else "systemd"
    if replaced and is_active:
        end = "pyworker daemon stop -y && " if running is not None else ""
        lines.append(
            f"The daemon of {replaced} goes on, and so do its apps. This one takes its place at the next boot, or at once:\n"
            f"  {end}{' '.join(_start(kind, is_user, 'restart'))}     (which stops the apps of {replaced})"
        )
    elif running is not None and kind == "systemd" and is_active:
        lines.append("The daemon that systemd has started goes on, and so do its apps")
    elif running is not None:
        again = f"pyworker daemon stop -y && {' '.join(_start(kind, is_user))}"
        if kind == "openrc" and units.openrc_keeps(settings.home):
            again = "rc-service pyworker restart"
        lines.append(
            f"A daemon runs already ({running} app{'s' if running != 1 else ''}); it and its apps go on. {manager} takes over at the next boot, or at once:\n"
            f"  {again}     (the apps are away for a moment)"
        )
    elif other and kind == "systemd" and not is_user:
        lines.append(f"It is for the apps that root starts. {other}")
    if not settings.json:
        note("This will\n" + "\n".join(lines))
    confirm(settings, "It starts the daemon at boot.", "pyworker startup")
    _carry_out(plan)
    text = f"Done. pyworker startup --remove undoes it ({short(plan.path)})."
    return say(settings, {"ok": True, "written": plan.path}, text)


def _plan(settings: Settings, kind: str, is_user: bool) -> _Plan:
    if kind == "openrc":
        if is_user:
            raise PyworkerError("OpenRC has no services of users", hint="sudo pyworker startup --system", code="usage")
        return _Plan(units.OPENRC_SCRIPT, units.openrc(_command(), settings.home, _owner()), 0o755, [])
    text = units.systemd(
        _command(), settings.home, user=is_user, stop_seconds=_STOP_SECONDS, version=_systemd_version()
    )
    folder = os.path.join(config_home(), "systemd", "user") if is_user else "/etc/systemd/system"
    return _Plan(os.path.join(folder, _NAME), text, 0o644, [])


def is_outdated(settings: Settings, path: str) -> bool:
    """Whether this service file is of another version of pyworker, and this one would write another."""
    with open(path, encoding="utf-8", errors="replace") as file:
        there = file.read()
    whose = units.written_by(there)
    if whose in ("", __version__):  # who changes it by hand knows why
        return False
    is_openrc = path == units.OPENRC_SCRIPT
    if is_openrc and f"command_user={_owner()}\n" not in there:  # it is for that user to say
        return False
    plan = _plan(settings, "openrc" if is_openrc else "systemd", "/user/" in path)
    return there != plan.text.replace(f"pyworker {__version__};", f"pyworker {whose};", 1)


def _owner() -> str:
    """Return whose daemon OpenRC starts: that of who typed `sudo`, else this user's."""
    return os.environ.get("SUDO_USER") or user_name()


def _home_of_owner(home: str) -> str:
    """Return the owner's state folder: where none is named, `sudo` has made it root's, which nobody else may enter."""
    user = os.environ.get("SUDO_USER")
    return home_of(user) if user and home == default_home() and not os.environ.get(ENV_HOME) else home


def _commands(kind: str, is_user: bool, *, start: bool) -> list[list[str]]:
    if kind == "openrc":
        commands = [["rc-update", "add", "pyworker", "default"]]
        return [*commands, ["rc-service", "pyworker", "start"]] if start else commands
    systemctl = _systemctl(is_user)
    commands = [[*systemctl, "daemon-reload"], [*systemctl, "enable", *(["--now"] if start else []), _NAME]]
    if is_user and not lingers(user_name()):  # one who may not turn it on may find it on
        commands.append(["loginctl", "enable-linger", user_name()])
    return commands


def _start(kind: str, is_user: bool, how: str = "start") -> list[str]:
    if kind == "openrc":
        return ["rc-service", "pyworker", how]
    return [*_systemctl(is_user), how, "pyworker"]


def _systemctl(is_user: bool) -> list[str]:
    return ["systemctl", "--user"] if is_user else ["systemctl"]


def _remove(settings: Settings, kind: str, plan: _Plan, is_user: bool) -> int:
    if not os.path.exists(plan.path):
        return say(settings, {"ok": True, "removed": None}, f"Nothing to remove: there is no {short(plan.path)}.")
    if kind == "openrc" and units.openrc_keeps(settings.home):
        message = "OpenRC keeps the daemon that runs now, and without its script it could not be told to let it go"
        hint = "rc-service pyworker stop && pyworker startup --remove -y && pyworker daemon start"
        raise PyworkerError(message, hint=hint, code="kept")
    disable = [*_systemctl(is_user), "disable", _NAME]
    first = ["rc-update", "del", "pyworker", "default"] if kind == "openrc" else disable
    other = units.other_home(plan.path, settings.home)
    whose = f"\nIt is for the daemon of {other}, not of {settings.home}." if other else ""
    if not settings.json:
        note(
            f"This will\n  run     {' '.join(first)}\n  remove  {short(plan.path)}\nA daemon that runs now goes on.{whose}"
        )
    confirm(settings, "It will not start at boot any more.", "pyworker startup --remove")
    _run(first)
    try:
        os.unlink(plan.path)
    except OSError as error:
        raise cannot("remove", plan.path, error) from None
    if kind == "systemd":
        _run([*_systemctl(is_user), "daemon-reload"])
    return say(settings, {"ok": True, "removed": plan.path}, f"Removed {short(plan.path)}.")


def _carry_out(plan: _Plan) -> None:
    text = as_bytes(plan.text)
    try:
        os.makedirs(os.path.dirname(plan.path), exist_ok=True)
        temporary = plan.path + ".new"
        with open(temporary, "wb") as file:
            file.write(text)
            os.fchmod(file.fileno(), plan.mode)
        os.replace(temporary, plan.path)
    except OSError as error:
        raise cannot("write", plan.path, error, "what it would be: pyworker startup --print") from None
    for command in plan.commands:
        if failure := _run(command):
            raise PyworkerError(f"{' '.join(command)}: {failure}", hint=_way_on(command))


def _run(command: list[str]) -> str:
    """Return why it failed, "" if it did not."""
    try:
        done = subprocess.run(
            command, env={**os.environ, "XDG_RUNTIME_DIR": _runtime()},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def _way_on(command: list[str]) -> str:
    """Return what to do after a command that failed."""
    if command[0] == "loginctl":
        return f"the service is there, and ends with your last login; as root: {' '.join(command)}"
    if "--user" in command and not os.path.exists(f"{_runtime()}/bus"):
        user = user_name()
        return (
            f"systemd runs nothing of {user} now, for this is no login of {user}'s (su and sudo are none). "
            f"As root: loginctl enable-linger {user}. Then once more: pyworker startup --user"
        )
    return "the service file is written; run the rest by hand, or: pyworker startup --remove"


def _runtime() -> str:
    """Return where the bus of this user is; su and sudo do not say so."""
    return os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"


def _command() -> list[str]:
    """Return how this command is found again at boot: the script of this environment, else the interpreter."""
    script = os.path.join(os.path.dirname(sys.executable), "pyworker")
    return [script] if os.access(script, os.X_OK) else [sys.executable, "-m", "pyworker"]


def _not_of_root(program: str) -> tuple[str, str] | None:
    """Return the file or folder by which somebody else can change a program, and who that is."""
    path = os.path.realpath(program)
    while True:
        found = os.stat(path)
        if found.st_uid:
            return path, f"user {found.st_uid}"
        if not found.st_mode & stat.S_ISVTX:
            if found.st_mode & stat.S_IWOTH:
                return path, "everyone"
            if found.st_mode & stat.S_IWGRP and found.st_gid:
                return path, f"group {found.st_gid}"
        if path == "/":
            return None
        path = os.path.dirname(path)


def is_possible() -> bool:
    """True when systemd or OpenRC runs here."""
    return _runs_openrc() or os.path.isdir(_SYSTEMD_RUNS)


def _runs_openrc() -> bool:
    return os.path.isdir("/run/openrc") or (not os.path.isdir(_SYSTEMD_RUNS) and shutil.which("openrc-run") is not None)


def _is_active(kind: str, is_user: bool) -> bool:
    if kind == "openrc":
        return os.path.lexists(units.OPENRC_STARTED)
    return not _run([*_systemctl(is_user), "is-active", "--quiet", _NAME])


def _systemd_version() -> int:
    """Return the number of systemd's version; a recent one when there is none to ask."""
    try:
        done = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False, timeout=10)
        return int(done.stdout.split()[1])
    except (OSError, IndexError, ValueError, subprocess.TimeoutExpired):
        return 255


def _apps(settings: Settings) -> tuple[int | None, str]:
    """Return how many apps the daemon has; None when none runs, and whose other daemon may be meant then."""
    try:
        return int(ask(settings.home, {"type": "status"}, settings.timeout)["apps"]), ""
    except DaemonAway:
        return None, other_daemon(settings.home)
