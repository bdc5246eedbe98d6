"""Export: Compose."""

from __future__ import annotations

import math
from typing import Any

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import PROBE_PORT, USER_ID, Options, comment, header, plans
from pyworker.export.yamltext import dump


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    """Return the files by name."""
    all_plans = plans(apps, run, options, contained=True)
    services: dict[str, Any] = {}
    more: list[str] = []
    for plan in all_plans:
        app = plan.app
        if app.cron:
            more.append(f"{app.name}: cron: Compose has none; the service runs, and pyworker in it keeps the times")
        if len(plan.ports) and plan.replicas > 1:
            more.append(
                f"{app.name}: a published port is of one container: put a proxy before {plan.replicas} replicas"
            )
        check = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PROBE_PORT}/readyz/{app.name}', timeout=3)"
        services[app.name] = {
            "image": options.image or f"{app.name}:latest",
            "build": {"context": "."},
            "command": list(plan.command),
            "restart": {"always": "unless-stopped", "on-failure": "on-failure", "never": "no"}[app.restart.policy],
            "stop_signal": "SIGTERM",
            "stop_grace_period": f"{plan.grace}s",
            "ports": [f"{p}:{p}" for p in plan.ports] if plan.replicas == 1 else None,
            "expose": [str(p) for p in plan.ports] if plan.replicas > 1 else None,
            "environment": {name: f"${{{name}:?set {name}}}" for name in plan.needed} or None,
            "env_file": [f"./{path}".rstrip("?") for path in app.env_file] or None,
            "user": f"{USER_ID}:{USER_ID}",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "mem_limit": f"{math.ceil(plan.memory / 2**20)}m" if plan.memory is not None else None,
            "healthcheck": {
                "test": ["CMD", "python3", "-c", check],
                "interval": "10s",
                "timeout": "5s",
                "retries": 3,
                "start_period": f"{math.ceil(app.reload.ready_timeout)}s",
            },
            "deploy": {"replicas": plan.replicas} if plan.replicas > 1 else None,
        }
    head = comment(header("compose", all_plans, tuple(more)))
    return {"compose.yaml": head + dump({"services": services})}
