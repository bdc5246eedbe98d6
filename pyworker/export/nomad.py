"""Export: a Nomad job, as HCL."""

from __future__ import annotations

import json
import math
from typing import Any

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import (
    LAME_DUCK,
    READYZ,
    USER_ID,
    Options,
    Plan,
    comment,
    file_keys,
    header,
    plans,
    runs_once,
    schedule,
    tls_loss,
    word,
)

Block = tuple[str, dict[str, Any]]  # 'service', or 'job "api"'; a value that is a list of Blocks is nested
_CLIENTS_MOST = 30  # seconds: max_kill_timeout of a client that says nothing


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    files = {}
    for plan in plans(apps, run, options, contained=True):
        name = plan.app.name
        more = [
            f"{name}: the docker driver is assumed; podman takes the same image and args",
            f"{name}: the root is read-only: an app that writes files needs a volume, or writes to /alloc and /local",
            *tls_loss(plan),
        ]
        if plan.grace > _CLIENTS_MOST:
            more.append(
                f"{name}: kill_timeout {plan.grace}s: a client allows {_CLIENTS_MOST}s unless its max_kill_timeout says more"
            )
        if plan.app.cron:
            more.append(f"{name}: cron is in local time here; there it is UTC (or periodic.time_zone)")
        wanted = [*plan.needed, *(f"{word(key)} (the content of {path})" for path, key in _keys(plan).items())]
        if wanted:
            more.append(f"{name}: put {', '.join(wanted)} into the Nomad variable nomad/jobs/{plan.name}")
        text = comment(header("nomad", [plan], tuple(more)))
        files[f"{plan.name}.nomad.hcl"] = text + hcl(job(plan, options))
    return files


def job(plan: Plan, options: Options) -> Block:
    app, name = plan.app, plan.name
    ends = runs_once(plan)
    ports: list[Block] = [(f'port "p{p}"', {"to": p}) for p in plan.ports] + [('port "probe"', {"to": plan.probe})]
    config: dict[str, Any] = {
        "image": options.image or f"{name}:latest",
        "args": list(plan.once if ends else plan.command),
        "ports": None if ends else [*(f"p{p}" for p in plan.ports), "probe"],
        "readonly_rootfs": True,
        "cap_drop": ["all"],
        "volumes": [f"secrets/{_keys(plan)[path]}:{inside}:ro" for inside, path in plan.files.items()] or None,
    }
    task: dict[str, Any] = {
        "driver": "docker",
        "user": f"{USER_ID}:{USER_ID}",
        "kill_signal": "SIGTERM",
        "kill_timeout": f"{plan.grace}s",
        "shutdown_delay": f"{LAME_DUCK}s" if plan.ports and not ends else None,
        "_": [
            ("config", config),
            *([("env", dict(plan.defaults))] if plan.defaults else []),
            ("resources", _resources(plan)),
            *_templates(plan),
        ],
    }
    check: Block = ("check", {"type": "http", "path": READYZ, "port": "probe", "interval": "5s", "timeout": "3s"})
    service = {"name": name, "port": f"p{plan.ports[0]}" if plan.ports else "probe", "provider": "nomad", "_": [check]}
    group: dict[str, Any] = {
        "count": max(1, plan.replicas),
        "_": [
            *([] if ends else [("network", {"_": ports})]),
            ("restart", _restart(app)),
            # what fails is placed anew unless this is said
            *([("reschedule", {"attempts": 0, "unlimited": False})] if ends or app.restart.policy == "never" else []),
            *([] if ends else [("service", service)]),
            (f'task "{name}"', task),
        ],
    }
    body: dict[str, Any] = {"type": "batch" if ends else "service", "_": [(f'group "{name}"', group)]}
    if app.cron:
        body["_"].insert(0, ("periodic", {"crons": [schedule(app.cron)], "prohibit_overlap": True}))
    elif not ends:
        body["_"].insert(0, ("update", _update(app)))
    return f'job "{name}"', body


def _update(app: AppConfig) -> dict[str, Any]:
    healthy = math.ceil(app.reload.ready_timeout) + math.ceil(app.reload.soak) + 30
    return {
        "max_parallel": 1,
        "canary": 1,
        "health_check": "checks",
        "min_healthy_time": f"{max(1, math.ceil(app.reload.soak))}s",
        "healthy_deadline": f"{healthy}s",
        "progress_deadline": f"{max(600, 2 * healthy)}s",
        "auto_revert": True,
        "auto_promote": True,
    }


def _restart(app: AppConfig) -> dict[str, Any]:
    attempts = 0 if app.restart.policy == "never" or app.cron else min(app.restart.max_restarts, 10)
    return {
        "attempts": attempts,
        "interval": f"{max(60, math.ceil(app.restart.window))}s",
        "delay": "1s",
        # "delay" with no attempts is refused
        "mode": "delay" if app.restart.retry and attempts else "fail",
    }


def _resources(plan: Plan) -> dict[str, Any]:
    cores = 1 if plan.workers == "auto" else int(plan.workers)
    found: dict[str, Any] = {"cpu": 500 * cores}
    if plan.memory is not None:
        found["memory"] = math.ceil(plan.memory / 2**20)
    return found


def _templates(plan: Plan) -> list[Block]:
    """The variables and files that come from outside, out of the job's own Nomad variable."""

    def template(content: str, **rest: Any) -> Block:
        data = f'{{{{ with nomadVar "nomad/jobs/{plan.name}" }}}}{content}{{{{ end }}}}\n'
        return "template", {"data": data, **rest}

    found = []
    if plan.needed:
        lines = "".join(f"{n}={{{{ .{n} | toJSON }}}}\n" for n in plan.needed)
        found.append(template(f"\n{lines}", destination="secrets/env", env=True))
    # a template can ask for words only
    files = [template(f"{{{{ .{word(key)} }}}}", destination=f"secrets/{key}") for key in _keys(plan).values()]
    return [*found, *files]


def _keys(plan: Plan) -> dict[str, str]:
    """The name of each file, beside those of the variables and of the file that they are written to."""
    return file_keys(plan.files, ("env", *plan.needed))


def hcl(block: Block, indent: int = 0) -> str:
    pad = "  " * indent
    name, values = block
    lines = [f"{pad}{name} {{\n"]
    for key, value in values.items():
        if key != "_" and value is not None:
            lines.append(f"{pad}  {key} = {_value(value)}\n")
    lines += [hcl(inner, indent + 1) for inner in values.get("_", ())]
    return "".join([*lines, f"{pad}}}\n"])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")
