"""Export: what every engine is told of an app, worked out once; and what an engine cannot be told, in words."""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import field

from pyworker.config.address import parse_bind
from pyworker.config.environment import SECRET_NAMES
from pyworker.config.schema import AppConfig, RunConfig
from pyworker.record import record

PROBE_PORT = 8081
LAME_DUCK = 5  # seconds: what an endpoint controller and the proxies behind it need to notice, as a rule
MARGIN = 5  # seconds between the longest stop and the engine's SIGKILL
BASE_MEMORY = 128 * 1024 * 1024  # guardian, daemon, logger, template
USER_ID = 10001
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(:-)?")


@record
class Options:
    """What the command was told beside the file."""

    file: str = "app.toml"  # its name, as it is in the image or folder
    folder: str = "/srv/app"  # where it is on this machine (systemd)
    image: str = ""  # "" = the app's name
    replicas_from_workers: bool = False  # one worker per pod
    per_worker: bool = False  # systemd: a socket and a template unit
    pyworker: str = "/usr/local/bin/pyworker"  # systemd: the command
    profile: str = ""
    autoscale: str = "cpu"  # kubernetes: or "in-flight", pyworker's own metric through an adapter


@record
class Plan:
    """One app as an engine sees it."""

    app: AppConfig
    command: tuple[str, ...]  # after `pyworker`; in a container after its entry point, `pyworker run`
    ports: tuple[int, ...]
    replicas: int
    workers: int | str  # in each replica
    grace: int  # seconds from SIGTERM to SIGKILL
    memory: int | None  # bytes of one replica
    needed: tuple[str, ...]  # variables that must come from outside
    secrets: tuple[str, ...]  # those of them that are secret by their name
    lost: tuple[str, ...] = field(default=())  # what could not be carried over


def plans(apps: tuple[AppConfig, ...], run: RunConfig, options: Options, *, contained: bool) -> list[Plan]:
    """Return a plan for each app, by name. `contained`: it has a network of its own, and its port is reached from outside."""
    return [_plan(app, run, options, contained=contained) for app in sorted(apps, key=lambda a: a.name)]


def _plan(app: AppConfig, run: RunConfig, options: Options, *, contained: bool) -> Plan:
    ports: list[int] = []
    lost: list[str] = []
    binds: list[str] = []
    for text in app.bind:
        address = parse_bind(text)
        if address.family == "unix":
            lost.append(f"bind {text}: a Unix socket is not reached from outside of a container" if contained else "")
        elif not address.port:
            lost.append(f"bind {text}: port 0 is a new one at each start")
        else:
            ports.append(address.port)
            binds.append(f"0.0.0.0:{address.port}" if address.family == "inet" else f"[::]:{address.port}")
    per_pod: int | str = app.workers
    replicas = 1
    if options.replicas_from_workers:
        if app.workers == "auto":
            lost.append('workers = "auto" says nothing about pods: replicas is 2, change it')
            replicas = 2
        else:
            replicas = int(app.workers)
        per_pod = 1
    # the entry point of an image is `pyworker run`
    command = [*(() if contained else ("run",)), options.file, "--only", app.name]
    if options.profile:
        command += ["--profile", options.profile]
    if contained:
        command += ["--probe", f":{PROBE_PORT}"]
        for bind in dict.fromkeys(binds):
            command += ["--bind", bind]
        if options.replicas_from_workers:
            command += ["--workers", "1"]
    needed, secrets = _needed(app)
    stop = app.stop.drain_timeout + app.stop.kill_timeout + run.lame_duck
    memory = app.limits.memory
    if memory is not None:
        if per_pod == "auto":
            lost.append('limits.memory is per worker and workers = "auto": set the memory of the whole by hand')
            memory = None
        else:
            memory = memory * int(per_pod) + BASE_MEMORY
    lost += _common_losses(app, contained=contained)
    return Plan(
        app, tuple(command), tuple(dict.fromkeys(ports)), replicas, per_pod, math.ceil(stop + MARGIN), memory,
        needed, secrets, tuple(text for text in lost if text),
    )  # fmt: skip


def _needed(app: AppConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the variables that must be given from outside: those that [env] and `state` name and do not set."""
    names: set[str] = set()
    own: set[str] = set()
    for name, text in app.env.items():
        names |= {m[1] for m in _REFERENCE.finditer(text) if not m[2]} - own
        own.add(name)
    names |= {m[1] for m in _REFERENCE.finditer(app.state) if not m[2]} - own
    names |= {n for n in app.inherit_env if not set(n) & set("*?[")}
    return tuple(sorted(names)), tuple(sorted(n for n in names if is_secret(n)))


def is_secret(name: str) -> bool:
    """Whether a variable's value is one, by its name."""
    return any(fnmatch.fnmatchcase(name.upper(), pattern) for pattern in SECRET_NAMES)


def _common_losses(app: AppConfig, *, contained: bool) -> list[str]:
    lost = []
    if app.tls is not None and contained:
        lost.append("tls: mount the certificate and key where the file names them, or end TLS before the app")
    if app.watch is not None:
        lost.append("watch: is for development")
    if app.depends_on:
        lost.append(f"depends_on {', '.join(app.depends_on)}: engines start in any order; an app must wait for itself")
    if app.state == "sqlite" and contained:
        lost.append(
            'state: each replica has one of its own, and none without a writable PYWORKER_HOME; state = "redis://…" is shared'
        )
    if app.user is not None and contained:
        lost.append(
            f'user = "{app.user}": the engine decides; remove it from the file of the image (root is needed to obey)'
        )
    if app.logs.file is not None:
        lost.append(
            f"logs.file {app.logs.file}: is written in the container; without it logs go to stdout" if contained else ""
        )
    if app.reload.cron is not None:
        lost.append("reload.cron: stays inside; each replica reloads at the same moment")
    return lost


def header(engine: str, plan_list: list[Plan], more: tuple[str, ...] = ()) -> list[str]:
    """Return the comment that each export begins with, without its comment sign."""
    lines = [f"Made by `pyworker export {engine}`."]
    lost = [f"{plan.app.name}: {text}" for plan in plan_list for text in plan.lost]
    lost += [text for text in more if text]
    lines.append("Could not be carried over:" if lost else "Everything was carried over.")
    lines += [f"  - {text}" for text in lost]
    return lines


def comment(lines: list[str], sign: str = "#") -> str:
    """Return lines as a comment."""
    return "".join(f"{sign} {line}".rstrip() + "\n" for line in lines)
