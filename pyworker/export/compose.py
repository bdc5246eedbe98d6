"""Export: Compose."""

from __future__ import annotations

import math
from typing import Any

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import READYZ, USER_ID, Options, Plan, beside, comment, header, literal, plans, tls_loss
from pyworker.export.yamltext import dump

_CONDITIONS = {"always": "any", "on-failure": "on-failure", "never": "none"}


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    all_plans = plans(apps, run, options, contained=True)
    more: list[str] = []
    for plan in all_plans:
        app = plan.app
        if app.cron:
            more.append(f"{app.name}: cron: Compose has none; the service runs, and pyworker in it keeps the times")
        if len(plan.ports) and plan.replicas > 1:
            more.append(
                f"{app.name}: a published port is of one container: put a proxy before {plan.replicas} replicas"
            )
        more += tls_loss(plan)
        if plan.files:
            more.append(f"{app.name}: {', '.join(plan.files.values())}: user {USER_ID} must be able to read it")
    more.append(
        "reload.*: `docker compose up` replaces a container by stopping it first; only Swarm looks at update_config"
    )
    services = {plan.name: _service(plan, options) for plan in all_plans}
    head = comment(header("compose", all_plans, tuple(more)))
    return {"compose.yaml": head + dump({"services": services})}


def _service(plan: Plan, options: Options) -> dict[str, Any]:
    app = plan.app
    check = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{plan.probe}{READYZ}', timeout=3)"
    environment = {name: f"${{{name}:?set {name}}}" for name in plan.needed}
    environment |= {name: f"${{{name}:-{literal(text)}}}" for name, text in plan.defaults.items()}
    condition = _CONDITIONS[app.restart.policy]
    deploy: dict[str, Any] = {
        "replicas": plan.replicas if plan.replicas > 1 else None,
        "update_config": {
            "parallelism": 1,
            "order": "start-first",
            "failure_action": "rollback",
            "monitor": f"{max(1, math.ceil(app.reload.soak))}s",
        },
        # "restart" below says the same to all but Swarm
        "restart_policy": {"condition": condition} if condition != "any" else None,
    }
    return {
        "image": options.image or f"{plan.name}:latest",
        "build": {"context": "."},
        "command": [literal(word) for word in plan.command],
        "restart": {"any": "unless-stopped", "on-failure": "on-failure", "none": "no"}[condition],
        "stop_signal": "SIGTERM",
        "stop_grace_period": f"{plan.grace}s",
        "ports": [f"{p}:{p}" for p in plan.ports] if plan.replicas == 1 else None,
        "expose": [str(p) for p in plan.ports] if plan.replicas > 1 else None,
        "environment": environment or None,
        "volumes": [literal(f"{beside(path)}:{inside}:ro") for inside, path in plan.files.items()] or None,
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
        "deploy": deploy,
    }
