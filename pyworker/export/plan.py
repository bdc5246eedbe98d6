"""Export: what every engine is told of an app, worked out once; and what an engine cannot be told, in words."""

from __future__ import annotations

import math
import os
import posixpath
import re

from pyworker.config.address import parse_bind
from pyworker.config.between import longest_stop, with_dependencies
from pyworker.config.environment import secrets
from pyworker.config.schema import AppConfig, RunConfig
from pyworker.config.timetable import parse as parse_cron
from pyworker.errors import PyworkerError
from pyworker.policy.memory import whole
from pyworker.record import field, record

PROBE_PORT = 8081  # where `[run] probe` names none
LAME_DUCK = 5  # seconds: what an endpoint controller and the proxies behind it need to notice, as a rule
MARGIN = 5  # seconds between the longest stop and the engine's SIGKILL
USER_ID = 10001
MADE_BY = "Made by `pyworker export {}`."  # how each file begins
APP_FOLDER = "/app"  # of the image
READYZ = "/readyz"  # of all apps of a container, and that is the one
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:-)([^${}]*)(\})?)?")
_NOT_DNS = re.compile(r"[^a-z0-9-]+")


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
    # kubernetes: "in-flight" is pyworker's own metric through an adapter; "none" is no autoscaler
    autoscale: str = "cpu"
    several: bool = True  # the file has several apps: which one is meant must be said
    every: tuple[AppConfig, ...] = ()  # app of the file, also those that are not exported
    named: bool = True  # the file says the app's name; else it is that of the folder, which is another one in an image
    # docker: the file of the folder that names what the app needs; "" = there is none
    requirements: str = "requirements.txt"


@record
class Plan:
    """One app as an engine sees it."""

    app: AppConfig
    name: str  # the app's, as it may stand in DNS
    command: tuple[str, ...]  # after `pyworker`; in a container after its entry point, `pyworker run`
    ports: tuple[int, ...]
    probe: int  # the port of the probes
    replicas: int
    workers: int | str  # in each replica
    grace: int  # seconds from SIGTERM to SIGKILL
    memory: int | None  # bytes of one replica
    needed: tuple[str, ...]  # variables that must come from outside
    defaults: dict[str, str]  # variables that may: ${NAME:-default}
    files: dict[str, str]  # that must come from outside: where the app looks for each, and its path beside the config
    once: tuple[str, ...]  # the command that runs a job once, for an engine that keeps its times
    lost: tuple[str, ...] = field(default=())  # what could not be carried over


def plans(apps: tuple[AppConfig, ...], run: RunConfig, options: Options, *, contained: bool) -> list[Plan]:
    """Return a plan for each app, by name. `contained`: it has a network of its own, and its port is reached from outside."""
    found: list[Plan] = []
    probe = _probe_port(apps, run)
    for app in sorted(apps, key=lambda a: a.name):
        name = dns_name(app.name)
        while any(name == other.name for other in found):
            name += "-2"
        together = with_dependencies(options.every, (app.name,))  # `--only` brings them
        stop = longest_stop([app, *(each for each in options.every if each.name in together)])
        found.append(_plan(app, name, probe, stop, run, options, contained=contained))
    return found


def dns_name(name: str) -> str:
    """Return an app's name as a DNS label that begins with a letter, which services must have."""
    name = _NOT_DNS.sub("-", name).strip("-")[:50].strip("-")
    return name if name[:1].isalpha() else f"app-{name}".strip("-")


def _probe_port(apps: tuple[AppConfig, ...], run: RunConfig) -> int:
    """Return the port of `[run] probe`, else the first from PROBE_PORT on that no app has."""
    if run.probe and (named := parse_bind(run.probe).port):
        return named
    taken = {parse_bind(text).port for app in apps for text in app.bind}
    return next(port for port in range(PROBE_PORT, 1 << 16) if port not in taken)


def _plan(
    app: AppConfig, name: str, probe: int, stop: float, run: RunConfig, options: Options, *, contained: bool
) -> Plan:
    ports: list[int] = []
    lost: list[str] = []
    binds: list[str] = []
    if contained and name != app.name:
        lost.append(f"the name: it is {name} here, as names in DNS have small letters, digits and - only")
    if contained and not options.named:
        lost.append(
            f'the name: the file does not say it, and the image\'s folder is {APP_FOLDER}: write name = "{app.name}"'
        )
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
    which = [*(() if contained else ("run",)), options.file, *(("--only", app.name) if options.several else ())]
    if options.profile:
        which += ["--profile", options.profile]
    if contained and app.python is not None:
        which += ["--python", "python3"]  # a virtual environment of this machine is not in the image
    command = list(which)
    if contained:
        command += ["--probe", f":{probe}"]
        for bind in dict.fromkeys(binds):
            command += ["--bind", bind]
        if options.replicas_from_workers:
            command += ["--workers", "1"]
    needed, defaults = _variables(app)
    files: dict[str, str] = {}
    for path in app.env_file:
        if not contained:
            break
        if path.endswith("?"):
            lost.append(f"env_file {path}: need not be there, and is not: its variables must come with the container")
        else:
            files[_inside(app, path)] = at_hand(app, path)
    memory = _memory(app, per_pod, lost)
    lost += _common_losses(app, options, contained=contained)
    return Plan(
        app, name, tuple(command), tuple(dict.fromkeys(ports)), probe, replicas, per_pod, math.ceil(stop + run.lame_duck + MARGIN), memory,
        needed, defaults, files, (*which, "--once"), tuple(text for text in lost if text),
    )  # fmt: skip


def _memory(app: AppConfig, per_pod: int | str, lost: list[str]) -> int | None:
    """Return the bytes of one replica; None = not known."""
    if app.limits.memory is None:
        return None
    if app.limits.memory == "auto":
        lost.append('limits.memory = "auto" is a share of what the engine allows: set the memory of the whole by hand')
        return None
    if per_pod == "auto":
        lost.append('limits.memory is per worker and workers = "auto": set the memory of the whole by hand')
        return None
    return whole(int(app.limits.memory), int(per_pod))


def _inside(app: AppConfig, path: str) -> str:
    """Return where a file of the config is looked for in the image."""
    return posixpath.normpath(posixpath.join(APP_FOLDER, app.cwd, path))


def at_hand(app: AppConfig, path: str) -> str:
    """Return where a file of the config is on this machine, seen from the config's folder."""
    return posixpath.normpath(posixpath.join(app.cwd, path.removesuffix("?")))


def _variables(app: AppConfig) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return what [env] and `state` name and do not set: what must be given from outside, and what may, with its default."""
    needed: set[str] = set()
    defaults: dict[str, str] = {}
    own: set[str] = set()
    for name, text in [*app.env.items(), ("", app.state)]:
        for match in _REFERENCE.finditer(text.replace("$$", "\0")):
            variable, has_default, default, closed = match.groups()
            if variable in own:
                continue
            if not has_default:
                needed.add(variable)
            elif closed:
                defaults.setdefault(variable, default.replace("\0", "$"))
        own.add(name)
    needed |= {n for n in app.inherit_env if not set(n) & set("*?[")}
    hidden = set(secrets(defaults))
    return tuple(sorted(needed)), {n: v for n, v in sorted(defaults.items()) if n not in needed | hidden}


def _common_losses(app: AppConfig, options: Options, *, contained: bool) -> list[str]:
    lost = []
    if app.watch is not None:
        lost.append("watch: is for development")
    if app.depends_on:
        lost.append(f"depends_on {', '.join(app.depends_on)}: {_beside(app, options, contained=contained)}")
    if contained and (literal := [n for n in secrets(app.env) if "${" not in app.env[n]]):
        lost.append(
            f"env {', '.join(literal)}: the value stands in {options.file}, and so in the image: "
            f'write {literal[0]} = "${{{literal[0]}}}" there, and it becomes a reference'
        )
    if app.state == "sqlite" and contained:
        lost.append(
            'state: each replica has one of its own, and none without a writable PYWORKER_HOME; state = "redis://…" is shared'
        )
    if app.user is not None and contained:
        lost.append(
            f'user = "{app.user}": the engine decides; remove it from the file of the image (root is needed to obey)'
        )
    if contained and os.path.isabs(app.cwd):
        lost.append(f"cwd {app.cwd}: must be in the image")
    if app.logs.named_file is not None:
        lost.append(
            f"logs.file {app.logs.file}: is written in the container; without it logs go to stdout" if contained else ""
        )
    if app.reload.cron is not None:
        lost.append("reload.cron: stays inside; each replica reloads at the same moment")
    return lost


def _beside(app: AppConfig, options: Options, *, contained: bool) -> str:
    """Where what an app depends on runs: `run --only` brings it; a unit for each worker has the command alone."""
    if not contained and has_unit_per_worker(app, options):
        return "engines start in any order; an app must wait for itself"
    taken = "" if contained else ", and finds its address taken where it has one of its own"
    apart = "to have each apart, take depends_on out of the file, and let the app wait for itself"
    return f"runs inside of this one, too{taken}; {apart}"


def has_unit_per_worker(app: AppConfig, options: Options) -> bool:
    """Whether each worker is a unit of systemd's own, which runs the command and no pyworker."""
    return options.per_worker and bool(app.command and app.bind) and app.workers != "auto"


def runs_once(plan: Plan) -> bool:
    """Whether it ends by itself and is not begun again: a run of a job, a script or command that is never restarted."""
    app = plan.app
    return app.cron is not None or (app.restart.policy == "never" and not plan.ports and app.target is None)


def tls_loss(plan: Plan) -> list[str]:
    """What is to be said of certificates where the engine is not told to bring them."""
    if plan.app.tls is None:
        return []
    return [f"{plan.app.name}: tls: mount the certificate and key where the file names them, or end TLS before the app"]


def literal(text: str) -> str:
    """Return a text in which Compose and Kubernetes find no variable."""
    return text.replace("$", "$$")


def schedule(cron: str) -> str:
    """Return a timetable as engines read it: there Sunday is not 7, and no range goes on into the next week or year."""
    if cron.startswith("@"):
        return cron.lower().replace("@midnight", "@daily")  # which Nomad does not know
    table = parse_cron(cron)
    *fields, month, weekday = cron.split()
    return " ".join((*fields, _listed(month, table.months), _listed(weekday, table.weekdays)))


def _listed(field: str, numbers: frozenset[int]) -> str:
    return field if field.startswith("*") else ",".join(map(str, sorted(numbers)))


def beside(path: str) -> str:
    """Return the path of a file as `docker run -v` and Compose take it: without a ./ a word is the name of a volume."""
    return path if posixpath.isabs(path) else f"./{path}"


def secret_files(plan: Plan) -> dict[str, str]:
    """Return all files that hold secrets, those of TLS as well: where the app looks for each, and its path beside the config."""
    tls = plan.app.tls
    paths = [path for path in (tls.cert, tls.key, tls.ca) if path] if tls is not None else []
    return {**plan.files, **{_inside(plan.app, path): at_hand(plan.app, path) for path in paths}}


def file_keys(files: dict[str, str], taken: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the name that each of these files has in a secret, by its path: as a `word`, too, no other has it."""
    found: dict[str, str] = {}
    for path in dict.fromkeys(files.values()):
        key = re.sub(r"[^A-Za-z0-9._-]+", "_", path).lstrip("_")
        if key.startswith(".."):  # which is none for Kubernetes
            key = f"_{key}"
        while word(key) in map(word, (*taken, *found.values())):
            key += "-2"
        found[path] = key
    return found


def word(key: str) -> str:
    """Return the name that a file has where only words are names."""
    return re.sub(r"\W", "_", key, flags=re.ASCII)


def header(engine: str, plan_list: list[Plan], more: tuple[str, ...] = ()) -> list[str]:
    """Return the comment that each export begins with, without its comment sign."""
    lines = [MADE_BY.format(engine)]
    lost = [f"{plan.app.name}: {text}" for plan in plan_list for text in plan.lost]
    lost += [text for text in more if text]
    lines.append("Could not be carried over:" if lost else "Everything was carried over.")
    lines += [f"  - {text}" for text in lost]
    return lines


def one_line(line: str) -> str:
    """Return it, for a format that has no way to write what would make the next line another one."""
    if set(line) & {"\n", "\r"} or line.endswith("\\"):
        message = f"{line!r}: the format has no way to write a line break, or a backslash at the end of a line"
        raise PyworkerError(message, hint="rename the file or folder that has it in its name")
    return line


def comment(lines: list[str]) -> str:
    """Return lines as a comment, which a newline in a path does not end."""
    plain = ("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    return "".join(f"# {line}".rstrip() + "\n" for line in plain)
