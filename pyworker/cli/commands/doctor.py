"""CLI: `pyworker doctor`: what of this machine will hurt, each with what to do about it. Changes nothing.

`--report` prints what a bug report needs: cli/bugreport.py.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from shlex import quote
from typing import Any, NamedTuple

import click

from pyworker import __version__
from pyworker.cli import bugreport
from pyworker.cli.client import DaemonAway, apps_now, ask
from pyworker.cli.commands.ps import next_step, trouble
from pyworker.cli.commands.startup import is_outdated, is_possible
from pyworker.cli.health import why_unwell
from pyworker.cli.homes import config_home, lingers, typed, user_name
from pyworker.cli.launch import check_installation, check_kernel
from pyworker.cli.options import Settings, common, option
from pyworker.cli.render import Look, line, look, note, out, paint, size
from pyworker.cli.units import OPENRC_SCRIPT, starts
from pyworker.errors import Exit, PyworkerError
from pyworker.protocol.names import APPS_FILE, BAD_APPS, CONTROL_SOCKET, EVENTS_FILE
from pyworker.unix.files import is_open_to_others

_ANOTHER_HOME = "name another: --home DIR or $PYWORKER_HOME"
_OLD = 10.0  # seconds of clock difference that are worth a word


class Found(NamedTuple):
    """One check: ok, warn or fail; `fix` says what to do."""

    id: str
    status: str
    message: str
    fix: str = ""


@click.command()
@option("--report", is_flag=True, help="Print what a bug report needs; secrets are masked.")
@common
def cmd(settings: Settings, report: bool) -> int:
    """Look at limits, versions, files, memory and CPUs, and say what will hurt. Exit 1 when something is wrong.

    \b
    pyworker doctor
    pyworker doctor --report > report.txt     for a bug report
    """
    facts = _facts(settings)
    checks = [found for check in _CHECKS for found in check(settings, facts)]
    if report:
        checks = [Found(*map(bugreport.masked, found)) for found in checks]
    is_fine = not any(c.status == "fail" for c in checks)
    text = bugreport.report(settings, facts, checks) if report else ""
    if settings.json:
        document = {"v": 1, "ok": is_fine, "checks": [c._asdict() for c in checks]}
        out(json.dumps(document | ({"report": text} if report else {})))
    elif report:
        out(text)
    else:
        how = look(sys.stdout, settings.color)
        for found in checks:
            if not settings.quiet or found.status != "ok":
                out(_words(found, how), how)
        if not settings.quiet:
            wrong = sum(c.status != "ok" for c in checks)
            note("Nothing is wrong." if not wrong else f"{wrong} thing{'s' if wrong != 1 else ''} to look at.")
    return 0 if is_fine else int(Exit.FAILED)


def _words(found: Found, how: Look) -> str:
    glyph, style = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}[found.status]
    steps = found.fix.splitlines() if found.status != "ok" else []
    return f"{paint(glyph, style, how)} {line(found.message)}" + "".join(
        f"\n    {paint('=', 'cyan', how)} {typed(line(step))}" for step in steps
    )


def _facts(settings: Settings) -> dict[str, Any]:
    """Ask the daemon, when there is one."""
    facts: dict[str, Any] = {"status": None, "apps": [], "error": None}
    try:
        facts["status"] = ask(settings.home, {"type": "status"}, settings.timeout)
        facts["apps"] = apps_now(settings.home, settings.timeout, sample=True)
        facts["configs"] = ask(settings.home, {"type": "config", "selectors": []}, settings.timeout)["apps"]
    except DaemonAway:
        pass
    except PyworkerError as error:
        facts["error"] = error
    return facts


# ---- checks --------------------------------------------------------------------------------------------
def _daemon(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    status, error = facts["status"], facts["error"]
    if error is not None:
        text = f"the daemon does not answer: {' '.join(error.message.split())}"
        yield Found("daemon", "fail", text, error.hint or "pyworker daemon stop, then pyworker daemon start")
    elif status is None:
        yield Found("daemon", "ok", f"no daemon runs here ({settings.home})")
        if os.path.exists(os.path.join(settings.home, CONTROL_SOCKET)):
            message = f"{CONTROL_SOCKET} is left over from one"
            yield Found("stale", "warn", message, "the next pyworker start replaces it")
    elif status["version"] != __version__:
        message = f"the daemon is version {status['version']}, this command is {__version__}"
        yield Found("version", "warn", message, "pyworker daemon upgrade   (no request is lost)")
    else:
        yield Found("daemon", "ok", f"the daemon answers: pid {status['pid']}, version {status['version']}")


def _home(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    home = settings.home
    try:
        info = os.stat(home)
    except FileNotFoundError:
        above = os.path.dirname(home)
        while not os.path.exists(above):
            above = os.path.dirname(above)
        if os.access(above, os.W_OK | os.X_OK):
            yield Found("home", "ok", f"the state folder {home} is made at the first start")
        else:
            message = f"the state folder {home} cannot be made: {above} cannot be written to"
            yield Found("home", "fail", message, _ANOTHER_HOME)
        return
    except OSError as error:
        yield Found("home", "fail", f"the state folder {home}: {error.strerror}", _ANOTHER_HOME)
        return
    is_ours = info.st_uid == os.geteuid()
    if not is_ours and (os.geteuid() != 0 or facts["status"] is None):  # root is answered in every home
        message = f"{home} belongs to uid {info.st_uid}, and this is {os.geteuid()}"
        yield Found("home", "fail", message, "run it as that user, or use another --home")
    elif is_open_to_others(info):
        message = f"{home} is open to others (mode {info.st_mode & 0o777:o})"
        yield Found("home", "fail", message, f"chmod 700 {quote(home)}")
    elif not os.access(home, os.W_OK | os.X_OK):
        if os.statvfs(home).f_flag & os.ST_RDONLY:
            yield Found("home", "fail", f"{home} is on a file system that can only be read", _ANOTHER_HOME)
        else:
            yield Found("home", "fail", f"{home} cannot be written to", f"chmod 700 {quote(home)}")
    else:
        whose = "yours alone" if is_ours else f"that of uid {info.st_uid} alone"
        yield Found("home", "ok", f"the state folder {home} is {whose}")
    bad = sorted(glob.glob(os.path.join(glob.escape(home), f"{BAD_APPS}*")))
    if bad:
        message = f"{len(bad)} unreadable apps.json put aside, the last {os.path.basename(bad[-1])}"
        yield Found("stale", "warn", message, f"look at it, then: rm {quote(home)}/{BAD_APPS}*")
    usage = shutil.disk_usage(home)
    if usage.free < 200 * 2**20:
        status, message = "fail" if usage.free < 20 * 2**20 else "warn", f"{size(usage.free)} left for logs in {home}"
        yield Found("disk", status, message, "free some space, or set logs.max_size and logs.max_files")
    else:
        yield Found("disk", "ok", f"{size(usage.free)} left for logs")
    inodes = os.statvfs(home)
    if inodes.f_files and inodes.f_favail < 1000:
        yield Found("disk", "warn", f"only {inodes.f_favail} inodes are left in {home}", "remove small files")


def _files(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    soft, hard = _open_files(_daemon_pid(facts))
    if hard != resource.RLIM_INFINITY and hard < 4096:
        fix = "raise it: LimitNOFILE= of the unit, or /etc/security/limits.conf"
        yield Found("nofile", "warn", f"at most {hard} open files (soft {soft})", fix)
    else:
        most = "any number" if hard == resource.RLIM_INFINITY else hard
        yield Found("nofile", "ok", f"open files: {soft}, can be raised to {most}")
    watches = _number("/proc/sys/fs/inotify/max_user_watches")
    is_wanted = any(c["config"].get("watch") is not None for c in facts.get("configs") or ())
    if watches is not None and watches < 8192 and is_wanted:
        fix = "sysctl fs.inotify.max_user_watches=65536"
        yield Found("inotify", "warn", f"only {watches} folders can be watched", fix)


def _daemon_pid(facts: dict[str, Any]) -> int:
    """Return whose limits count: the daemon's, or ours (0), which the next daemon starts with."""
    return int(facts["status"]["pid"]) if facts["status"] else 0


def _open_files(pid: int) -> tuple[int, int]:
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except OSError:  # it has just ended
        return resource.getrlimit(resource.RLIMIT_NOFILE)


def _backlog(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    most = _number("/proc/sys/net/core/somaxconn")
    if most is None:
        return
    wants = max([int(c["config"].get("backlog") or 0) for c in facts.get("configs") or ()], default=0) or 2048
    if most < wants:
        message = f"the kernel queues {most} connections, and backlog asks for {wants}"
        yield Found("somaxconn", "warn", message, f"sysctl net.core.somaxconn={wants}")
    else:
        yield Found("somaxconn", "ok", f"the kernel queues up to {most} connections a socket")


def _cpus(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    from pyworker.config.cpus import usable_cpus

    cpus = usable_cpus(_daemon_pid(facts))
    workers = sum(a["workers"]["want"] for a in facts["apps"] if a["state"] in ("running", "degraded", "reloading"))
    if workers > 4 * cpus + 4:
        yield Found("cpus", "warn", f"{workers} workers share {cpus} usable CPUs", 'workers = "auto" is one for each')
    else:
        yield Found("cpus", "ok", f"{cpus} usable CPUs (affinity and cgroup), {workers} workers wanted")


def _memory(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    from pyworker.unix import oom

    limit, used = oom.group_memory(_daemon_pid(facts))
    if limit is None:
        return
    limits = 0
    for config in facts.get("configs") or ():
        app = next((a for a in facts["apps"] if a["name"] == config["name"]), None)
        text = (config["config"].get("limits") or {}).get("memory")
        if app is not None and text and text != "auto":
            from pyworker.config.units import parse_size

            limits += parse_size(text) * int(app["workers"]["want"] or 0)
    if limits > limit:
        message = f"limits.memory allows all workers {size(limits)} together, the cgroup {size(limit)}"
        yield Found("memory", "warn", message, "fewer workers, or a lower limits.memory: else the kernel kills first")
    elif used is not None and used > limit * 0.9:
        fix = "raise it, or set limits.memory so that workers are replaced before the kernel kills"
        yield Found("memory", "warn", f"{size(used)} of the cgroup's {size(limit)} are in use", fix)
    else:
        yield Found("memory", "ok", f"the cgroup allows {size(limit)}")


def _clock(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    newest = 0.0
    for path in (os.path.join(settings.home, EVENTS_FILE), os.path.join(settings.home, APPS_FILE)):
        try:
            newest = max(newest, os.stat(path).st_mtime)
        except OSError:
            continue
    if newest > time.time() + _OLD:
        message = f"the clock went back: files are {newest - time.time():.0f} s in the future"
        yield Found("clock", "warn", message, "is NTP on? timedatectl")
    elif time.time() < 1_700_000_000:
        message = f"the clock says {time.strftime('%Y-%m-%d')}"
        yield Found("clock", "fail", message, "set it: TLS and timetables need it")
    else:
        yield Found("clock", "ok", f"the clock says {time.strftime('%Y-%m-%d %H:%M %Z')}")


def _boot(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    if facts["status"] is None:
        return
    # `pyworker run` writes none: who started it starts it again
    if facts["apps"] and not os.path.exists(os.path.join(settings.home, APPS_FILE)):
        return
    unit = next((each for each in _units() if starts(each.path, settings.home)), None)
    if unit is None:
        step = "pyworker startup" if is_possible() else "neither systemd nor OpenRC runs here: pyworker run app.toml"
        yield Found("boot", "warn", "nothing starts the daemon at boot", step)
        return
    if not glob.glob(unit.enabled):
        yield Found("boot", "warn", f"{unit.path} is there, but not enabled: it starts nothing at boot", unit.enable)
        return
    if is_outdated(settings, unit.path):
        step = f"pyworker startup {'--user' if '/user/' in unit.path else '--system'}"
        message = f"{unit.path} is of another version of pyworker; this one writes it differently"
        yield Found("boot", "warn", message, step)
    else:
        yield Found("boot", "ok", f"{unit.path} starts it at boot")
    user = user_name()
    if "/user/" in unit.path and os.geteuid() != 0 and not lingers(user):
        yield Found("linger", "warn", "services of this user end when you log out", f"loginctl enable-linger {user}")


class _Unit(NamedTuple):
    """A service file, what matches something once it is enabled, and the command that does that."""

    path: str
    enabled: str
    enable: str


def _units() -> list[_Unit]:
    own = os.path.join(config_home(), "systemd/user")
    system = "/etc/systemd/system"
    name = "pyworker.service"
    return [
        _Unit(f"{system}/{name}", f"{system}/*.wants/{name}", f"systemctl enable {name}"),
        _Unit(OPENRC_SCRIPT, "/etc/runlevels/*/pyworker", "rc-update add pyworker default"),
        _Unit(f"{own}/{name}", f"{glob.escape(own)}/*.wants/{name}", f"systemctl --user enable {name}"),
    ]


def _python(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    yield Found("python", "ok", f"Python {platform.python_version()} ({sys.executable}), Linux {platform.release()}")
    for name, check in (("kernel", check_kernel), ("installation", check_installation)):
        try:
            check()
        except PyworkerError as error:
            yield Found(name, "fail", error.message, error.hint)
    on_path = shutil.which("pyworker")
    ours = os.path.join(os.path.dirname(sys.executable), "pyworker")
    if on_path is not None and os.path.exists(ours) and os.path.realpath(on_path) != os.path.realpath(ours):
        yield Found("path", "warn", f"another pyworker comes first on PATH: {on_path}", f"this one is {ours}")


def _apps(settings: Settings, facts: dict[str, Any]) -> Iterator[Found]:
    for app in facts["apps"]:
        failure = app.get("last_failure") or {}
        if app["state"] == "failed":
            message = f"{app['name']} has failed: {failure.get('message', '')}"
            yield Found("app", "fail", message, failure.get("hint") or f"pyworker describe {app['name']}")
        elif app["state"] == "degraded":
            ready = f"{app['workers']['ready']} of {app['workers']['want']} workers are ready"
            why = failure.get("message") or why_unwell(app) or ready
            yield Found("app", "warn", f"{app['name']} is degraded: {why}", f"pyworker describe {app['name']}")
        elif unwell := trouble(app):
            text = f"{app['name']} {unwell}: {failure.get('message', '')}"
            yield Found("app", "warn", text, next_step(app["name"], failure))
        if drops := app["drops"]:
            text = f"{drops} line{'s' * (drops != 1)} of {app['name']} could not be written to its log"
            why = next((n.removeprefix("log: ") for n in app.get("notes") or () if n.startswith("log: ")), "")
            hint = "mend that: what is printed meanwhile is lost" if why else "is the disk full or slow?"
            yield Found("logs", "warn", f"{text}: {why}" if why else text, hint)


_CHECKS = (_python, _daemon, _home, _files, _backlog, _cpus, _memory, _clock, _boot, _apps)


def _number(path: str) -> int | None:
    """Return the number in a file of the kernel's; None for "max" and for no file."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
