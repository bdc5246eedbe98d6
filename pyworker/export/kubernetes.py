"""Export: Kubernetes. Deployment, Service, disruption budget, autoscaler; a CronJob for an app with `cron`, a Job for one
that runs once."""

from __future__ import annotations

import math
import shlex
from typing import Any

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.config.timetable import parse as parse_cron
from pyworker.export.plan import (
    LAME_DUCK,
    READYZ,
    USER_ID,
    Options,
    Plan,
    comment,
    file_keys,
    header,
    literal,
    plans,
    runs_once,
    schedule,
    secret_files,
)
from pyworker.export.yamltext import dump

IN_FLIGHT = "pyworker_worker_requests_in_flight"
QUEUE = "pyworker_listen_queue_connections"
PER_WORKER = 10  # requests at once of an async worker: a guess, and said to be one
FULL = 0.7  # of the threads of a WSGI worker


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    all_plans = plans(apps, run, options, contained=True)
    files: dict[str, str] = {}
    for plan in all_plans:
        if runs_once(plan):
            documents = [_config(plan), _job(plan, options)]
        else:
            documents = [_config(plan), *_documents(plan, run, options)]
        text = comment(header("kubernetes", [plan], tuple(_losses(plan, options))) + _secret_help(plan))
        files[f"{plan.name}.yaml"] = text + "".join("---\n" + dump(d) for d in documents if d)
    return files


def _losses(plan: Plan, options: Options) -> list[str]:
    name, app = plan.app.name, plan.app
    lost = [f"{name}: the root is read-only: an app that writes files needs a volume, an emptyDir for example"]
    if app.cron:
        if parse_cron(app.cron).last_day:
            lost.append(f"{name}: cron {app.cron}: Kubernetes has no L, the last day of the month")
        return [
            *lost,
            f"{name}: cron is in local time here; there it is the controller's, UTC as a rule (or spec.timeZone)",
        ]
    if runs_once(plan):
        return lost
    lost += [
        f"{name}: restart.* is the kubelet's CrashLoopBackOff once all workers have failed; inside a pod it is pyworker's",
        f"{name}: a restarting pod is seen by restarts, not by exit codes: look at kubectl logs -p",
    ]
    if app.restart.policy != "always":
        lost.append(
            f'{name}: restart = "{app.restart.policy}": the kubelet restarts a pod of a Deployment whatever its exit code'
        )
    if options.autoscale == "in-flight":
        lost.append(
            f"{name}: {IN_FLIGHT} and {QUEUE} are no metrics of Kubernetes: an adapter (prometheus-adapter, KEDA) must "
            "offer the sum of each over a pod from /metrics; the values are a first guess, measure yours"
        )
    if options.autoscale != "none":
        lost.append(f"{name}: replicas is left out of the Deployment, so that applying it does not undo the autoscaler")
    return lost


def _secret_help(plan: Plan) -> list[str]:
    lines: list[str] = []
    if plan.needed:
        pairs = " ".join(f"--from-literal={n}=…" for n in plan.needed)
        lines.append(f"  kubectl create secret generic {plan.name}-env {pairs}")
    if files := secret_files(plan):
        pairs = shlex.join(f"--from-file={key}={path}" for path, key in file_keys(files).items())
        lines.append(f"  kubectl create secret generic {plan.name}-files {pairs}")
    return ["Before it is applied (values of secrets are in no file):", *lines] if lines else []


def _labels(plan: Plan) -> dict[str, str]:
    return {"app.kubernetes.io/name": plan.name, "app.kubernetes.io/managed-by": "pyworker-export"}


def _head(api: str, kind: str, plan: Plan, name: str = "") -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name or plan.name, "labels": _labels(plan)}}


def _config(plan: Plan) -> dict[str, Any]:
    """What may be set from outside and need not be secret: the ${NAME:-default} of the config."""
    return {**_head("v1", "ConfigMap", plan, f"{plan.name}-env"), "data": dict(plan.defaults)} if plan.defaults else {}


def _documents(plan: Plan, run: RunConfig, options: Options) -> list[dict[str, Any]]:
    name = plan.name
    selector = {"app.kubernetes.io/name": name}
    reload = plan.app.reload
    replicas = max(2, plan.replicas)
    scaled = options.autoscale != "none"
    scrape = {"prometheus.io/scrape": "true", "prometheus.io/port": str(plan.probe), "prometheus.io/path": "/metrics"}
    pod = _pod(plan, run, options)
    pod["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector},
        }
    ]
    found: list[dict[str, Any]] = [
        {
            **_head("apps/v1", "Deployment", plan),
            "spec": {
                "replicas": None if scaled else replicas,
                "selector": {"matchLabels": selector},
                # reload.max_surge counts workers; a quarter of the pods, unless a pod is a worker
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {
                        "maxSurge": reload.max_surge if options.replicas_from_workers else "25%",
                        "maxUnavailable": 0,
                    },
                },
                "minReadySeconds": math.ceil(reload.soak),
                "progressDeadlineSeconds": max(600, math.ceil(reload.ready_timeout * 2 + reload.soak)),
                "template": {"metadata": {"labels": _labels(plan), "annotations": scrape}, "spec": pod},
            },
        }
    ]
    if plan.ports:
        ports = [{"name": f"p{p}", "port": p, "targetPort": p, "protocol": "TCP"} for p in plan.ports]
        found.append({**_head("v1", "Service", plan), "spec": {"selector": selector, "ports": ports}})
    found.append(
        {
            **_head("policy/v1", "PodDisruptionBudget", plan),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}},
        }
    )
    if scaled:
        found.append(
            {
                **_head("autoscaling/v2", "HorizontalPodAutoscaler", plan),
                "spec": {
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                    "minReplicas": replicas,
                    "maxReplicas": replicas * 4,
                    "metrics": _measures(plan, options),
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
                },
            }
        )
    return found


def _measures(plan: Plan, options: Options) -> list[dict[str, Any]]:
    """What the autoscaler looks at; of several it obeys the one that wants most pods."""
    if options.autoscale == "cpu":
        target: dict[str, Any] = {"type": "Utilization", "averageUtilization": 70}
        return [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    workers = 1 if plan.workers == "auto" else int(plan.workers)
    # a WSGI worker cannot have more requests than threads: what is more waits in the queue
    wsgi = plan.app.interface == "wsgi" or plan.app.threads > 1
    in_flight = f"{round(1000 * FULL * workers * plan.app.threads)}m" if wsgi else str(PER_WORKER * workers)
    return [
        {"type": "Pods", "pods": {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": value}}}
        for name, value in ((IN_FLIGHT, in_flight), (QUEUE, str(workers)))
    ]


def _pod(plan: Plan, run: RunConfig, options: Options) -> dict[str, Any]:
    app = plan.app
    duck = LAME_DUCK if plan.ports and not run.lame_duck else 0
    probe = {"httpGet": {"path": READYZ, "port": "probe"}, "periodSeconds": 2, "timeoutSeconds": 2}
    spec = _bare_pod(plan, options)
    spec["terminationGracePeriodSeconds"] = plan.grace + duck
    (container,) = spec["containers"]
    container["args"] = [*map(literal, plan.command), *(("--lame-duck", f"{duck}s") if duck else ())]
    container["ports"] = [
        *({"name": f"p{p}", "containerPort": p} for p in plan.ports),
        {"name": "probe", "containerPort": plan.probe},
    ]
    container["startupProbe"] = {**probe, "failureThreshold": max(1, math.ceil(app.reload.ready_timeout / 2))}
    container["readinessProbe"] = {**probe, "failureThreshold": 1}
    container["livenessProbe"] = {
        "httpGet": {"path": "/livez", "port": "probe"}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3,
    }  # fmt: skip
    return spec


def _bare_pod(plan: Plan, options: Options) -> dict[str, Any]:
    """What the pods of a service and of a job have in common."""
    cpu = 1 if plan.workers == "auto" else int(plan.workers)
    resources: dict[str, Any] = {"requests": {"cpu": cpu}}
    if plan.memory is not None:
        megabytes = f"{math.ceil(plan.memory / 2**20)}Mi"
        resources = {"requests": {"cpu": cpu, "memory": megabytes}, "limits": {"memory": megabytes}}
    if plan.workers == "auto":
        resources.setdefault("limits", {})["cpu"] = cpu  # what "auto" counts
    files = secret_files(plan)
    keys = file_keys(files)
    mounts = [
        {"name": "files", "mountPath": inside, "subPath": keys[path], "readOnly": True}
        for inside, path in files.items()
    ]
    # a key that everybody may read is refused: the group is the pod's own
    volumes = (
        [{"name": "files", "secret": {"secretName": f"{plan.name}-files", "defaultMode": 0o440}}] if files else None
    )
    context: dict[str, Any] = {"seccompProfile": {"type": "RuntimeDefault"}}
    if files:
        context["fsGroup"] = USER_ID
    if any(port < 1024 for port in plan.ports):  # without it some runtimes keep them for root
        context["sysctls"] = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    return {
        "terminationGracePeriodSeconds": plan.grace,
        "automountServiceAccountToken": False,
        "securityContext": context,
        "containers": [
            {
                "name": plan.name,
                "image": options.image or f"{plan.name}:latest",
                "imagePullPolicy": "IfNotPresent",
                "args": None,
                "ports": None,
                "env": _env(plan),
                "resources": resources,
                "volumeMounts": mounts or None,
                "startupProbe": None,
                "readinessProbe": None,
                "livenessProbe": None,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": USER_ID,
                    "readOnlyRootFilesystem": True,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
        "volumes": volumes,
    }


def _env(plan: Plan) -> list[dict[str, Any]] | None:
    name = f"{plan.name}-env"
    secret = [{"name": n, "valueFrom": {"secretKeyRef": {"name": name, "key": n}}} for n in plan.needed]
    plain = [{"name": n, "valueFrom": {"configMapKeyRef": {"name": name, "key": n}}} for n in plan.defaults]
    return [*secret, *plain] or None


def _job(plan: Plan, options: Options) -> dict[str, Any]:
    """A run of an app that ends by itself: at its times, or once. pyworker passes its exit code on."""
    pod = _bare_pod(plan, options)
    pod["restartPolicy"] = "Never"
    pod["containers"][0]["args"] = [*map(literal, plan.once)]
    template = {"metadata": {"labels": _labels(plan)}, "spec": pod}
    if not plan.app.cron:
        return {**_head("batch/v1", "Job", plan), "spec": {"backoffLimit": 0, "template": template}}
    return {
        **_head("batch/v1", "CronJob", plan),
        "spec": {
            "schedule": schedule(plan.app.cron),
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"backoffLimit": 0, "template": template}},
        },
    }
