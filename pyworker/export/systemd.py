"""Export: systemd. One unit per app that runs the pool; or, for commands that take a socket, a socket and a template unit."""

from __future__ import annotations

import math
import posixpath

from pyworker.config.address import parse_bind
from pyworker.config.environment import secrets
from pyworker.config.schema import AppConfig, RestartConfig, RunConfig
from pyworker.export.plan import Options, Plan, comment, has_unit_per_worker, header, one_line, plans

_HARDENING = (
    "NoNewPrivileges=yes", "PrivateTmp=yes", "PrivateDevices=yes", "ProtectSystem=strict", "ProtectControlGroups=yes",
    "ProtectKernelModules=yes", "ProtectKernelTunables=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes",
)  # fmt: skip


_READ_ONLY = (
    "{}: all but its state directory and a /tmp of its own is read-only to it: add ReadWritePaths= for what it writes"
)
_BACKOFF = (
    "# longer each time, up to half a minute; systemd before 254 says that it does not know these two",
    "RestartSteps=5",
    "RestartMaxDelaySec=30s",
)


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    files: dict[str, str] = {}
    for plan in plans(apps, run, options, contained=False):
        if has_unit_per_worker(plan.app, options):
            files |= _per_worker(plan, options)
            continue
        more = []
        if options.per_worker:
            more.append(
                f"{plan.app.name}: --per-worker is for commands with bind and a number of workers; this is one unit with the pool"
            )
        files[f"{plan.app.name}.service"] = _pool(plan, options, tuple(more))
    return files


def _pool(plan: Plan, options: Options, more: tuple[str, ...]) -> str:
    app = plan.app
    folders, hidden = _written(plan, options)
    more += (*hidden, _READ_ONLY.format(app.name))
    if app.env_file:
        files = ", ".join(path.removesuffix("?") for path in app.env_file)
        who = f"user {app.user}" if app.user else "a user that systemd makes up (DynamicUser), or write User= below"
        more += (f"{app.name}: env_file {files}: must be readable by {who}",)
    lines = [
        "[Unit]",
        f"Description=pyworker: {app.name}",
        "Wants=network-online.target",
        "After=network-online.target",
        *_limit(app.restart),
        "",
        "[Service]",
        "# ready when the app is; what pyworker knows is in systemctl status",
        "Type=notify",
        "NotifyAccess=all",
        f"TimeoutStartSec={_seconds(app.reload.ready_timeout + 30)}",
        "WatchdogSec=2min",
        f"ExecStart={_words([options.pyworker, *plan.command])}",
        "ExecReload=/bin/kill -HUP $MAINPID",
        f"WorkingDirectory={_folder(options.folder)}",
        f"# as root: PYWORKER_HOME=/var/lib/pyworker/{app.name}/home pyworker ps",
        f"StateDirectory=pyworker/{app.name}",
        f"Environment=PYWORKER_HOME=%S/pyworker/{app.name}/home",
        *([f"EnvironmentFile={_environment_path(app)}"] if plan.needed else []),
        "# the guardian stops its workers by itself; what is left after the time-out is killed",
        "KillMode=mixed",
        "KillSignal=SIGTERM",
        f"TimeoutStopSec={plan.grace}",
        "Restart=" + ("on-failure" if app.restart.policy != "never" else "no"),
        "RestartSec=1",
        *_BACKOFF,
        "RestartPreventExitStatus=78",
        "OOMPolicy=continue",
        f"LimitNOFILE={app.limits.nofile or 65536}",
    ]
    lines += [*_rights(plan), *folders, "", "[Install]", "WantedBy=multi-user.target"]
    return comment([*header("systemd", [plan], more), *_help(plan, options)]) + _text(lines)


def _limit(restart: RestartConfig) -> tuple[str, ...]:
    """A database may come up minutes later: it is tried for as long as pyworker itself would."""
    if restart.retry:
        return ("# tried again and again, as restart.retry says", "StartLimitIntervalSec=0")
    return (f"StartLimitIntervalSec={_seconds(restart.window * 5)}", "StartLimitBurst=5")


def _written(plan: Plan, options: Options) -> tuple[list[str], list[str]]:
    """Return what lets the pool make its Unix sockets and its log, and in words what nothing does."""
    app = plan.app
    texts = [text for text in app.bind if parse_bind(text).family == "unix"]
    paths = {f"bind {text}": parse_bind(text).path for text in texts}
    if app.logs.named_file is not None:
        paths[f"logs.file {app.logs.file}"] = app.logs.named_file
    lines: dict[str, None] = {}
    lost = []
    for what, path in paths.items():
        folder = posixpath.dirname(posixpath.normpath(posixpath.join(options.folder, app.cwd, path)))
        below = folder.removeprefix("/var").removeprefix("/run/")
        if f"{folder}/".startswith(("/tmp/", "/var/tmp/")):
            lost.append(f"{app.name}: {what}: /tmp is the unit's own (PrivateTmp=), nobody else finds it there")
        elif folder.startswith(("/run/", "/var/run/")):
            lines[f"RuntimeDirectory={_quoted(below, expands=False)}"] = None
            if app.user:  # a folder of a DynamicUser= that is kept lies where nobody else gets to its sockets
                lines["RuntimeDirectoryPreserve=yes"] = None
        else:
            lines[f"ReadWritePaths={_quoted(f'-{folder}', expands=False)}"] = None
            lost.append(f"{app.name}: {what}: the unit's user must be able to write to {folder}")
    return list(lines), lost


def _per_worker(plan: Plan, options: Options) -> dict[str, str]:
    app = plan.app
    count = int(plan.workers)
    names = " ".join(f"{app.name}@{n}.service" for n in range(1, count + 1))
    hidden = set(secrets(app.env))
    kept = {name: text for name, text in sorted(app.env.items()) if name not in hidden and "${" not in text}
    left = [name for name in app.env if name not in kept]
    more = [
        f"{app.name}: no pyworker runs here: no pool, no reload without a gap, no health checks, no `pyworker ps`",
        f"{app.name}: a restart of one worker at a time is yours: systemctl restart {app.name}@1",
        f"{app.name}: what it prints is in the journal: journalctl -u '{app.name}@*'",
        _READ_ONLY.format(app.name),
    ]
    if left:
        more.append(f"{app.name}: env {', '.join(left)}: set it in {_environment_path(app)}")
    if app.env_file:
        files = ", ".join(path.removesuffix("?") for path in app.env_file)
        rules = "no `export`, no ${VAR}, no comment behind a value; what is set there counts more than env"
        more.append(f"{app.name}: env_file {files}: systemd reads it in its own way: {rules}")
    unknown = "systemd knows no host names: write its address in ListenStream="
    more += [f"{app.name}: bind {text}: {unknown}" for text in app.bind if _is_host_name(text)]
    head = comment([*header("systemd", [plan], tuple(more)), *_help(plan, options)])
    cwd = posixpath.normpath(posixpath.join(options.folder, app.cwd))
    listen = [f"ListenStream={_listen(cwd, text)}" for text in app.bind]
    socket = ["[Unit]", f"Description=pyworker: {app.name}, its sockets", "", "[Socket]", *listen]
    socket += [
        f"Backlog={app.backlog}",
        "NoDelay=yes",
        f"Service={app.name}@1.service",
        "",
        "[Install]",
        "WantedBy=sockets.target",
    ]
    restart = app.restart
    service = [
        "[Unit]",
        f"Description=pyworker: {app.name}, worker %i",
        f"Requires={app.name}.socket",
        f"After={app.name}.socket",
        f"PartOf={app.name}.target",
        f"StartLimitBurst={restart.max_restarts}",
        f"StartLimitIntervalSec={_seconds(restart.window)}",
        "",
        "[Service]",
        "Type=" + ("notify" if app.ready == "notify" else "exec"),
        *(["NotifyAccess=all"] if app.ready == "notify" else []),
        f"ExecStart={_words([_program(cwd, app.command[0]), *app.command[1:]])}",
        f"Sockets={app.name}.socket",
        f"WorkingDirectory={_folder(cwd)}",
        *[f"Environment={_quoted(f'{name}={_plain(text)}', expands=False)}" for name, text in kept.items()],
        *[f"EnvironmentFile={_dotenv(cwd, path)}" for path in app.env_file],
        *([f"EnvironmentFile={_environment_path(app)}"] if plan.needed or left else []),
        f"KillSignal=SIG{app.stop.signal.upper().removeprefix('SIG')}",
        f"TimeoutStopSec={plan.grace}",
        "Restart=" + {"always": "always", "on-failure": "on-failure", "never": "no"}[restart.policy],
        "RestartSec=100ms",
        *_BACKOFF,
        "RestartPreventExitStatus=78",
        f"LimitNOFILE={app.limits.nofile or 65536}",
    ]
    if isinstance(app.limits.memory, int):
        service.append(f"MemoryMax={app.limits.memory}")
    service += [line for line in _rights(plan) if not line.startswith("MemoryMax=")]
    service += ["", "[Install]", f"WantedBy={app.name}.target"]
    target = [
        "[Unit]",
        f"Description=pyworker: {app.name}",
        f"Wants={names}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return {
        f"{app.name}.socket": head + _text(socket),
        f"{app.name}@.service": head + _text(service),
        f"{app.name}.target": head + _text(target),
    }


def _text(lines: list[str]) -> str:
    return "".join(f"{one_line(line)}\n" for line in lines)


def _rights(plan: Plan) -> list[str]:
    app = plan.app
    lines = []
    if plan.memory is not None:
        lines.append(f"MemoryMax={plan.memory}")
    if app.umask is not None:
        lines.append(f"UMask={app.umask.removeprefix('0o').zfill(4)}")
    lines += [f"User={app.user}"] if app.user else ["DynamicUser=yes"]
    if app.group:
        lines.append(f"Group={app.group}")
    if any(p < 1024 for p in plan.ports):
        lines.append("AmbientCapabilities=CAP_NET_BIND_SERVICE")
    return lines + list(_HARDENING)


def _environment_path(app: AppConfig) -> str:
    return f"/etc/pyworker/{app.name}.env"


def _dotenv(folder: str, path: str) -> str:
    """An env_file, as systemd names one; what need not be there begins with "-"."""
    there = posixpath.normpath(posixpath.join(folder, path.removesuffix("?")))
    return ("-" if path.endswith("?") else "") + there.replace("%", "%%")


def _program(cwd: str, name: str) -> str:
    """A command's program: a path from the app's folder is none to systemd."""
    return posixpath.normpath(posixpath.join(cwd, name)) if "/" in name else name


def _is_host_name(text: str) -> bool:
    """True for a name that only a resolver knows."""
    address = parse_bind(text)
    return address.family == "inet" and address.host != "localhost" and any(c.isalpha() for c in address.host)


def _listen(cwd: str, text: str) -> str:
    """An address as systemd writes it: an absolute path, or numbers."""
    address = parse_bind(text)
    if address.family == "unix":
        return posixpath.normpath(posixpath.join(cwd, address.path)).replace("%", "%%")
    return f"127.0.0.1:{address.port}" if address.host == "localhost" else str(address)


def _help(plan: Plan, options: Options) -> list[str]:
    lines = []
    if plan.needed:
        lines.append(
            f"Set {', '.join(plan.needed)} in {_environment_path(plan.app)} (mode 0600, NAME=value in each line)"
        )
    if not plan.app.user and options.folder.startswith(("/home/", "/root")):
        lines.append(
            f"{options.folder} must be readable by a user that systemd makes up (DynamicUser); else write User= below"
        )
    return lines


def _plain(text: str) -> str:
    """A value of [env] without variables, as it is meant."""
    return text.replace("$$", "$")


def _folder(path: str) -> str:
    return path.replace("%", "%%")


def _words(argv: list[str]) -> str:
    return " ".join(_quoted(word) for word in argv)


# a carriage return ends a line, as a newline does
_ESCAPES = str.maketrans({"\\": "\\\\", "%": "%%", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _quoted(word: str, *, expands: bool = True) -> str:
    """`expands`: $ has a meaning there, as it has in ExecStart= and has not in Environment=."""
    escaped = word.translate(_ESCAPES)
    if expands:
        escaped = escaped.replace("$", "$$")
    return f'"{escaped}"' if not word or any(c in " '\";\\\n\r\t" for c in word) else escaped


def _seconds(value: float) -> int:
    return max(1, math.ceil(value))
