"""Export: systemd. One unit per app that runs the pool; or, for commands that take a socket, a socket and a template unit."""

from __future__ import annotations

import math

from pyworker.config.address import parse_bind
from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import Options, Plan, comment, header, plans

_HARDENING = (
    "NoNewPrivileges=yes", "PrivateTmp=yes", "PrivateDevices=yes", "ProtectSystem=strict", "ProtectControlGroups=yes",
    "ProtectKernelModules=yes", "ProtectKernelTunables=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes",
)  # fmt: skip


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    """Return the files by name."""
    files: dict[str, str] = {}
    for plan in plans(apps, run, options, contained=False):
        if options.per_worker and plan.app.command and plan.app.bind and plan.workers != "auto":
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
    lines = [
        "[Unit]",
        f"Description=pyworker: {app.name}",
        "Wants=network-online.target",
        "After=network-online.target",
        f"StartLimitIntervalSec={_seconds(app.restart.window * 5)}",
        "StartLimitBurst=5",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={_words([options.pyworker, *plan.command])}",
        "ExecReload=/bin/kill -HUP $MAINPID",
        f"WorkingDirectory={options.folder}",
        f"StateDirectory=pyworker/{app.name}",
        f"Environment=PYWORKER_HOME=%S/pyworker/{app.name}",
        "# the guardian stops its workers by itself; what is left after the time-out is killed",
        "KillMode=mixed",
        "KillSignal=SIGTERM",
        f"TimeoutStopSec={plan.grace}",
        "Restart=" + ("on-failure" if app.restart.policy != "never" else "no"),
        "RestartSec=1",
        "RestartPreventExitStatus=78",
        "OOMPolicy=continue",
        f"LimitNOFILE={app.limits.nofile or 65536}",
    ]
    lines += _rights(plan)
    lines += ["", "[Install]", "WantedBy=multi-user.target"]
    return comment([*header("systemd", [plan], more), *_env_help(plan)]) + "\n".join(lines) + "\n"


def _per_worker(plan: Plan, options: Options) -> dict[str, str]:
    app = plan.app
    count = int(plan.workers)
    names = " ".join(f"{app.name}@{n}.service" for n in range(1, count + 1))
    more = (
        f"{app.name}: no pyworker runs here: no pool, no reload without a gap, no health checks, no `pyworker ps`",
        f"{app.name}: a restart of one worker at a time is yours: systemctl restart {app.name}@1",
    )
    head = comment([*header("systemd", [plan], more), *_env_help(plan)])
    listen = []
    for text in app.bind:
        address = parse_bind(text)
        listen.append(f"ListenStream={address.path if address.family == 'unix' else address}")
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
        f"StartLimitBurst={restart.max_restarts}",
        f"StartLimitIntervalSec={_seconds(restart.window)}",
        "",
        "[Service]",
        "Type=" + ("notify" if app.ready == "notify" else "exec"),
        f"ExecStart={_words(list(app.command))}",
        f"Sockets={app.name}.socket",
        f"WorkingDirectory={options.folder}",
        *[
            f"Environment={_quoted(f'{name}={value}')}"
            for name, value in sorted(app.env.items())
            if "${" not in value and name not in plan.secrets
        ],
        f"KillSignal=SIG{app.stop.signal.upper().removeprefix('SIG')}",
        f"TimeoutStopSec={plan.grace}",
        "Restart=" + {"always": "always", "on-failure": "on-failure", "never": "no"}[restart.policy],
        "RestartSec=100ms",
        "RestartPreventExitStatus=78",
        f"LimitNOFILE={app.limits.nofile or 65536}",
    ]
    if app.limits.memory is not None:
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
        f"{app.name}.socket": head + "\n".join(socket) + "\n",
        f"{app.name}@.service": head + "\n".join(service) + "\n",
        f"{app.name}.target": head + "\n".join(target) + "\n",
    }


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


def _env_help(plan: Plan) -> list[str]:
    if not plan.needed:
        return []
    return [
        f"Set {', '.join(plan.needed)}: systemctl edit {plan.app.name}, [Service], EnvironmentFile=/etc/{plan.app.name}.env (mode 0600)"
    ]


def _words(argv: list[str]) -> str:
    return " ".join(_quoted(word) for word in argv)


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"' if not word or any(c in " '\";\\\n" for c in word) else escaped


def _seconds(value: float) -> int:
    return max(1, math.ceil(value))
