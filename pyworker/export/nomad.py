"""Export: a Nomad job, as HCL."""

from __future__ import annotations

import json
import math
from typing import Any

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import PROBE_PORT, USER_ID, Options, Plan, comment, header, plans

Block = tuple[str, dict[str, Any]]  # 'service', or 'job "api"'; a value that is a list of Blocks is nested


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    """Return the files by name."""
    files = {}
    for plan in plans(apps, run, options, contained=True):
        more = [f"{plan.app.name}: the docker driver is assumed; podman takes the same image and args"]
        if plan.needed:
            more.append(
                f"{plan.app.name}: put {', '.join(plan.needed)} into the Nomad variable nomad/jobs/{plan.app.name}"
            )
        text = comment(header("nomad", [plan], tuple(more)))
        files[f"{plan.app.name}.nomad.hcl"] = text + hcl(job(plan, run, options))
    return files


def job(plan: Plan, run: RunConfig, options: Options) -> Block:
    """Return the job."""
    app = plan.app
    name = app.name
    ports: list[Block] = [(f'port "p{p}"', {"to": p}) for p in plan.ports] + [('port "probe"', {"to": PROBE_PORT})]
    config: dict[str, Any] = {
        "image": options.image or f"{name}:latest",
        "args": list(plan.command),
        "ports": [*(f"p{p}" for p in plan.ports), "probe"],
        "readonly_rootfs": True,
        "cap_drop": ["all"],
    }
    task: dict[str, Any] = {
        "driver": "docker",
        "user": f"{USER_ID}:{USER_ID}",
        "kill_signal": "SIGTERM",
        "kill_timeout": f"{plan.grace}s",
        "shutdown_delay": "5s" if plan.ports else None,
        "_": [("config", config), ("resources", _resources(plan)), *_variables(plan)],
    }
    check: Block = (
        "check",
        {"type": "http", "path": f"/readyz/{name}", "port": "probe", "interval": "5s", "timeout": "3s"},
    )
    group: dict[str, Any] = {
        "count": max(1, plan.replicas),
        "_": [
            ("network", {"_": ports}),
            ("restart", _restart(app)),
            (
                "service",
                {
                    "name": name,
                    "port": f"p{plan.ports[0]}" if plan.ports else "probe",
                    "provider": "nomad",
                    "_": [check],
                },
            ),
            (f'task "{name}"', task),
        ],
    }
    body: dict[str, Any] = {"type": "batch" if app.cron else "service", "_": [(f'group "{name}"', group)]}
    if app.cron:
        body["_"].insert(0, ("periodic", {"crons": [app.cron], "prohibit_overlap": True}))
    else:
        body["_"].insert(0, ("update", _update(app)))
    return f'job "{name}"', body


def _update(app: AppConfig) -> dict[str, Any]:
    ready = math.ceil(app.reload.ready_timeout)
    return {
        "max_parallel": 1,
        "canary": 1,
        "health_check": "checks",
        "min_healthy_time": f"{max(1, math.ceil(app.reload.soak))}s",
        "healthy_deadline": f"{ready + math.ceil(app.reload.soak) + 30}s",
        "progress_deadline": f"{max(600, 2 * ready + 120)}s",
        "auto_revert": True,
        "auto_promote": True,
    }


def _restart(app: AppConfig) -> dict[str, Any]:
    attempts = 0 if app.restart.policy == "never" else min(app.restart.max_restarts, 10)
    return {
        "attempts": attempts,
        "interval": f"{max(60, math.ceil(app.restart.window))}s",
        "delay": "1s",
        "mode": "delay" if app.restart.retry else "fail",
    }


def _resources(plan: Plan) -> dict[str, Any]:
    cores = 1 if plan.workers == "auto" else int(plan.workers)
    found: dict[str, Any] = {"cpu": 500 * cores}
    if plan.memory is not None:
        found["memory"] = math.ceil(plan.memory / 2**20)
    return found


def _variables(plan: Plan) -> list[Block]:
    if not plan.needed:
        return []
    lines = "".join(f"{n}={{{{ .{n} }}}}\n" for n in plan.needed)
    data = f'{{{{ with nomadVar "nomad/jobs/{plan.app.name}" }}}}\n{lines}{{{{ end }}}}\n'
    return [("template", {"data": data, "destination": "secrets/env", "env": True})]


def hcl(block: Block, indent: int = 0) -> str:
    """Return a block as HCL."""
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
