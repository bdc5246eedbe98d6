"""Export: Kubernetes. Deployment, Service, disruption budget, autoscaler; a CronJob for an app with `cron`."""

from __future__ import annotations

import math
from typing import Any

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import LAME_DUCK, PROBE_PORT, USER_ID, Options, Plan, comment, header, plans
from pyworker.export.yamltext import dump

IN_FLIGHT = "pyworker_worker_requests_in_flight"
PER_POD = 10


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    """Return the files by name."""
    all_plans = plans(apps, run, options, contained=True)
    files: dict[str, str] = {}
    for plan in all_plans:
        more = [
            f"{plan.app.name}: restart.* is the kubelet's CrashLoopBackOff once all workers have failed; inside a pod it is pyworker's",
            f"{plan.app.name}: a restarting pod is seen by restarts, not by exit codes: look at kubectl logs -p",
        ]
        if options.autoscale == "in-flight" and not plan.app.cron:
            more.append(
                f"{plan.app.name}: {IN_FLIGHT} is no metric of Kubernetes: an adapter (prometheus-adapter, KEDA) must offer the "
                f"sum over a pod's workers from /metrics; {PER_POD} in flight per pod is a first guess, measure yours"
            )
        documents = _cron_job(plan, options) if plan.app.cron else _documents(plan, run, options)
        text = comment(header("kubernetes", [plan], tuple(more)) + _secret_help(plan))
        files[f"{plan.app.name}.yaml"] = text + "".join("---\n" + dump(d) for d in documents)
    return files


def _secret_help(plan: Plan) -> list[str]:
    name = plan.app.name
    lines: list[str] = []
    if plan.needed:
        pairs = " ".join(f"--from-literal={n}=…" for n in plan.needed)
        lines += [
            "Before it is applied (values are in no file):",
            f"  kubectl create secret generic {name}-env {pairs}",
        ]
    for path in plan.app.env_file:
        lines.append(
            f"  {path} must be in the image, or mounted: kubectl create secret generic {name}-file --from-file={path}"
        )
    return lines


def _labels(plan: Plan) -> dict[str, str]:
    return {"app.kubernetes.io/name": plan.app.name, "app.kubernetes.io/managed-by": "pyworker-export"}


def _documents(plan: Plan, run: RunConfig, options: Options) -> list[dict[str, Any]]:
    name = plan.app.name
    selector = {"app.kubernetes.io/name": name}
    replicas = max(2, plan.replicas)
    found: list[dict[str, Any]] = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": _labels(plan)},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": selector},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "minReadySeconds": math.ceil(plan.app.reload.soak),
                "progressDeadlineSeconds": max(
                    600, math.ceil(plan.app.reload.ready_timeout * 2 + plan.app.reload.soak)
                ),
                "template": {"metadata": {"labels": _labels(plan)}, "spec": _pod(plan, run, options)},
            },
        }
    ]
    if plan.ports:
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "labels": _labels(plan)},
                "spec": {
                    "selector": selector,
                    "ports": [{"name": f"p{p}", "port": p, "targetPort": p, "protocol": "TCP"} for p in plan.ports],
                },
            }
        )
    found.append(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name, "labels": _labels(plan)},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}},
        }
    )
    found.append(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name, "labels": _labels(plan)},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": replicas,
                "maxReplicas": replicas * 4,
                "metrics": [_measure(options)],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
            },
        }
    )
    return found


def _measure(options: Options) -> dict[str, Any]:
    """What the autoscaler looks at."""
    if options.autoscale == "in-flight":
        target = {"type": "AverageValue", "averageValue": str(PER_POD)}
        return {"type": "Pods", "pods": {"metric": {"name": IN_FLIGHT}, "target": target}}
    return {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
    }


def _pod(plan: Plan, run: RunConfig, options: Options) -> dict[str, Any]:
    app = plan.app
    command = list(plan.command)
    duck = 0
    if plan.ports and not run.lame_duck:
        duck = LAME_DUCK
        command += ["--lame-duck", f"{duck}s"]
    cpu = 1 if plan.workers == "auto" else int(plan.workers)
    resources: dict[str, Any] = {"requests": {"cpu": cpu}}
    if plan.memory is not None:
        megabytes = f"{math.ceil(plan.memory / 2**20)}Mi"
        resources = {"requests": {"cpu": cpu, "memory": megabytes}, "limits": {"memory": megabytes}}
    if plan.workers == "auto":
        resources.setdefault("limits", {})["cpu"] = cpu  # what "auto" counts
    probe = {"httpGet": {"path": f"/readyz/{app.name}", "port": "probe"}, "periodSeconds": 2, "timeoutSeconds": 2}
    container: dict[str, Any] = {
        "name": app.name,
        "image": options.image or f"{app.name}:latest",
        "imagePullPolicy": "IfNotPresent",
        "args": command,
        "ports": [{"name": f"p{p}", "containerPort": p} for p in plan.ports]
        + [{"name": "probe", "containerPort": PROBE_PORT}],
        "env": _env(plan),
        "resources": resources,
        "startupProbe": {**probe, "failureThreshold": max(1, math.ceil(app.reload.ready_timeout / 2))},
        "readinessProbe": {**probe, "failureThreshold": 1},
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": "probe"}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3,
        },
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }  # fmt: skip
    return {
        "terminationGracePeriodSeconds": plan.grace + duck,
        "automountServiceAccountToken": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }


def _env(plan: Plan) -> list[dict[str, Any]] | None:
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": f"{plan.app.name}-env", "key": name}}}
        for name in plan.needed
    ] or None


def _cron_job(plan: Plan, options: Options) -> list[dict[str, Any]]:
    app = plan.app
    pod = _pod(plan, RunConfig(), options)
    container = pod["containers"][0]
    for key in ("startupProbe", "readinessProbe", "livenessProbe", "ports"):
        del container[key]
    container["command"] = list(app.command) if app.command else ["python", app.script, *app.args]
    del container["args"]
    pod["restartPolicy"] = "Never"
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": app.name, "labels": _labels(plan)},
            "spec": {
                "schedule": app.cron,
                "concurrencyPolicy": "Forbid",
                "jobTemplate": {
                    "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": _labels(plan)}, "spec": pod}}
                },
            },
        }
    ]
