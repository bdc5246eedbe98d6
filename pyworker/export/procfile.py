"""Export: a Procfile, for platforms that read one."""

from __future__ import annotations

import shlex

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import Options, comment, header, one_line, plans


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    all_plans = plans(apps, run, options, contained=False)
    more: list[str] = ["a Procfile knows commands only: grace time, memory, health and restarts are the platform's"]
    lines = []
    for plan in all_plans:
        command = ["pyworker", *plan.command]
        text = shlex.join(command)
        if plan.ports:
            if len(plan.ports) > 1:
                more.append(f"{plan.app.name}: only one port, $PORT")
            text += " --bind 0.0.0.0:${PORT:-" + str(plan.ports[0]) + "}"
        if plan.needed:
            more.append(f"{plan.app.name}: set {', '.join(plan.needed)} on the platform")
        lines.append(one_line(f"{plan.app.name}: {text}") + "\n")
    return {"Procfile": comment(header("procfile", all_plans, tuple(more))) + "".join(lines)}
