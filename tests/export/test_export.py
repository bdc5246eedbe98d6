"""Exports: every engine's own parser or schema reads them, nothing secret is in them, and they are always the same."""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import shlex
import shutil
import subprocess
from typing import Any

import pytest

from pyworker.config.load import load, run_config
from pyworker.errors import PyworkerError
from pyworker.export.plan import Options, dns_name
from pyworker.export.yamltext import dump

ENGINES = ("systemd", "compose", "kubernetes", "nomad", "docker", "procfile")
FILE = """
[apps.api]
target = "shop.main:app"
workers = 4
bind = "127.0.0.1:8000"
env_file = ".env?"
limits.memory = "256MB"
stop.drain_timeout = "20s"
env = { DEBUG = "0", DATABASE_URL = "${DATABASE_URL}", GREETING = "hi ${NAME:-you}", API_TOKEN = "t0ps3cret" }
inherit_env = ["SENTRY_DSN"]
tls = { cert = "a.pem", key = "b.pem" }

[apps.mail]
command = ["node", "mail.js", "it's $5 100%"]
bind = [":8025", "[::]:8026", "unix:/run/mail.sock"]
restart = "on-failure"
workers = 2
user = "mail"
umask = "027"
ready = "notify"
env_file = ["mail.env", "more.env?"]
env = { MODE = "a $$ b", SMTP_PASSWORD = "t0ps3cret", FROM = "${FROM}" }

[apps.once_only]
command = ["node", "move.js"]
restart = "never"
python = ".venv"

[apps.nightly]
script = "nightly.py"
cron = "0 4 * * *"

[apps.auto]
target = "shop.auto:app"
workers = "auto"
bind = "127.0.0.1:80"
limits.memory = "1GB"
depends_on = "api"
state = "redis://:${REDIS_PASSWORD}@redis:6379/0"

[run]
lame_duck = "2s"
"""
VARIANTS = [
    {},
    {"replicas_from_workers": True},
    {"per_worker": True},
    {"image": "r.example/shop:1"},
    {"profile": "prod"},
    {"autoscale": "in-flight"},
    {"autoscale": "none"},
    {"several": False, "named": False, "requirements": "pyproject.toml"},
]


# what the Compose specification has in a service, as far as it is of use here
COMPOSE_KEYS = {
    "image", "build", "command", "restart", "stop_signal", "stop_grace_period", "ports", "expose", "environment", "volumes",
    "user", "read_only", "cap_drop", "security_opt", "mem_limit", "healthcheck", "deploy",
}  # fmt: skip
# what Nomad's job specification has in each block, and its type: another block, "time", "map" (of texts) or Python's
NOMAD: dict[str, dict[str, Any]] = {
    "job": {"type": str, "periodic": "periodic", "update": "update", "group": "group"},
    "periodic": {"crons": list, "prohibit_overlap": bool},
    "update": {
        "max_parallel": int, "canary": int, "health_check": str, "min_healthy_time": "time", "healthy_deadline": "time",
        "progress_deadline": "time", "auto_revert": bool, "auto_promote": bool,
    },
    "group": {"count": int, "network": "network", "restart": "restart", "reschedule": "reschedule", "service": "service", "task": "task"},
    "network": {"port": "port"},
    "port": {"to": int},
    "restart": {"attempts": int, "interval": "time", "delay": "time", "mode": str},
    "reschedule": {"attempts": int, "unlimited": bool},
    "service": {"name": str, "port": str, "provider": str, "check": "check"},
    "check": {"type": str, "path": str, "port": str, "interval": "time", "timeout": "time"},
    "task": {
        "driver": str, "user": str, "kill_signal": str, "kill_timeout": "time", "shutdown_delay": "time", "config": "config",
        "env": "map", "resources": "resources", "template": "template",
    },
    "config": {
        "image": str, "args": list, "ports": list, "readonly_rootfs": bool, "cap_drop": list, "volumes": list,
    },
    "resources": {"cpu": int, "memory": int},
    "template": {"data": str, "destination": str, "env": bool},
}  # fmt: skip


@pytest.fixture
def made(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "app.toml"
    path.write_text(FILE)
    return path


def export(path: pathlib.Path, engine: str, *names: str, **options: Any) -> dict[str, str]:
    module = importlib.import_module(f"pyworker.export.{engine}")
    options.setdefault("folder", "/srv/shop")
    options.setdefault("every", load(str(path)).apps)
    found: dict[str, str] = module.export(
        load(str(path), only=names).apps, run_config(str(path), {}), Options(**options)
    )
    return found


def settings(unit: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: next(iter(o), "plain"))
def test_it_is_always_the_same_and_holds_no_secret(made: pathlib.Path, engine: str, options: dict[str, Any]) -> None:
    files = export(made, engine, **options)
    assert files == export(made, engine, **options)
    text = "".join(files.values())
    assert "t0ps3cret" not in text
    for name, content in files.items():
        assert content.startswith(f"# Made by `pyworker export {engine}`.\n"), name
        if name != ".dockerignore":
            assert "\n# Could not be carried over:\n" in content or "\n# Everything was carried over.\n" in content
        assert content.endswith("\n")
        assert not re.search(r"[ \t]+$", content, re.MULTILINE), name


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_lost_is_said(made: pathlib.Path, engine: str) -> None:
    text = "".join(export(made, engine).values())
    if engine in ("kubernetes", "compose", "nomad", "docker"):
        assert "bind unix:/run/mail.sock" in text
        assert "more.env?: need not be there" in text
        assert "env API_TOKEN: the value stands in app.toml, and so in the image" in text
        assert "the name: it is once-only here" in text
        assert ("tls: mount" in text) == (engine != "kubernetes"), "Kubernetes mounts it from a secret"
        assert 'user = "mail"' in text
    assert "depends_on api: runs inside of this one, too" in text
    assert ("its address taken" in text) == (engine in ("systemd", "procfile"))


def parsed(text: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return [d for d in yaml.safe_load_all(text) if d]


@pytest.mark.parametrize("version", ["1.25.0", "1.29.0", "1.32.0", "latest"])
@pytest.mark.parametrize(
    "options",
    [{}, {"replicas_from_workers": True}, {"autoscale": "in-flight"}, {"autoscale": "none"}],
    ids=["pool", "one per pod", "in flight", "no autoscaler"],
)
def test_kubernetes_takes_it_by_its_schemas(made: pathlib.Path, version: str, options: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    version = validate.latest_version() if version == "latest" else version
    kinds = []
    for text in export(made, "kubernetes", **options).values():
        for document in parsed(text):
            validate.validate(document, version, strict=True)
            kinds.append(document["kind"])
    scaled = options.get("autoscale") != "none"
    assert set(kinds) == {
        "ConfigMap", "CronJob", "Deployment", "Job", "PodDisruptionBudget", "Service",
        *(["HorizontalPodAutoscaler"] if scaled else []),
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["compose", "kubernetes", "nomad", "docker"])
@pytest.mark.parametrize(("more", "port"), [("", 8082), ('[run]\nprobe = "127.0.0.1:9090"', 9090)])
def test_the_probe_is_where_the_config_says_and_never_on_a_port_of_the_app(
    tmp_path: pathlib.Path, engine: str, more: str, port: int
) -> None:
    path = tmp_path / "app.toml"
    path.write_text(f'[app]\nname = "api"\ntarget = "shop:app"\nbind = ":8081"\n{more}\n')
    text = "".join(export(path, engine).values())
    assert f":{port}" in text
    assert set(re.findall(r"\b(?:8081|8082|9090)\b", text)) == {"8081", str(port)}


def test_kubernetes_says_what_the_config_says(made: pathlib.Path) -> None:
    documents = {d["kind"]: d for d in parsed(export(made, "kubernetes", "api")["api.yaml"])}
    spec = documents["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert pod["terminationGracePeriodSeconds"] == 20 + 10 + 2 + 5
    assert container["resources"]["limits"]["memory"] == f"{5 * 256 + 128}Mi"
    assert container["args"] == ["app.toml", "--only", "api", "--probe", ":8081", "--bind", "0.0.0.0:8000"]
    assert "replicas" not in spec, "that is the autoscaler's"
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": 0}
    variables = {e["name"]: e["valueFrom"] for e in container["env"]}
    assert variables == {
        "DATABASE_URL": {"secretKeyRef": {"name": "api-env", "key": "DATABASE_URL"}},
        "SENTRY_DSN": {"secretKeyRef": {"name": "api-env", "key": "SENTRY_DSN"}},
        "NAME": {"configMapKeyRef": {"name": "api-env", "key": "NAME"}},
    }
    assert documents["ConfigMap"]["data"] == {"NAME": "you"}
    assert [(m["mountPath"], m["subPath"]) for m in container["volumeMounts"]] == [
        ("/app/a.pem", "a.pem"),
        ("/app/b.pem", "b.pem"),
    ]
    text = export(made, "kubernetes", "api", image="r.example/shop:1")["api.yaml"]
    assert "generic api-env --from-literal=DATABASE_URL=… --from-literal=SENTRY_DSN=…\n" in text
    assert "\n      - name: api\n        image: \"r.example/shop:1\"\n" in text
    assert pod["volumes"][0]["secret"] == {"secretName": "api-files", "defaultMode": 0o440}
    for which in ("startupProbe", "readinessProbe"):
        assert container[which]["httpGet"] == {"path": "/readyz", "port": "probe"}
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == 60, "reload.ready_timeout"
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "probe"}
    assert container["resources"]["requests"]["cpu"] == 4
    assert container["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}, "fsGroup": 10001}
    assert (spec["minReadySeconds"], spec["progressDeadlineSeconds"]) == (10, 600)
    labels = spec["template"]["metadata"]["labels"].items()
    budget, service = documents["PodDisruptionBudget"]["spec"], documents["Service"]["spec"]
    for selector in (spec["selector"]["matchLabels"], budget["selector"]["matchLabels"], service["selector"]):
        assert selector
        assert selector.items() <= labels
    target = documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": documents["Deployment"]["metadata"]["name"]}
    assert service["ports"][0]["targetPort"] == 8000
    one = {d["kind"]: d for d in parsed(export(made, "kubernetes", "api", replicas_from_workers=True)["api.yaml"])}
    assert one["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 4
    assert one["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 1
    still = {d["kind"]: d for d in parsed(export(made, "kubernetes", "api", autoscale="none")["api.yaml"])}
    assert still["Deployment"]["spec"]["replicas"] == 2
    assert one["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"][-2:] == ["--workers", "1"]
    assert one["Deployment"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == f"{2 * 256 + 128}Mi"


@pytest.mark.parametrize(
    ("more", "duck"), [('target = "a:b"', 5), ('target = "a:b"\n[run]\nlame_duck = "7s"', 7), ('command = "x"', 0)]
)  # fmt: skip
def test_a_pod_that_goes_serves_on_until_nobody_sends_to_it_any_more(tmp_path: pathlib.Path, more: str, duck: int) -> None:
    file = tmp_path / "app.toml"
    file.write_text(f'[app]\nname = "a"\n{more}\n')
    (pod,) = [d["spec"]["template"]["spec"] for d in parsed(export(file, "kubernetes")["a.yaml"]) if d["kind"] == "Deployment"]
    assert pod["terminationGracePeriodSeconds"] == 30 + 10 + duck + 5
    # one of the file is in the image
    assert (pod["containers"][0]["args"][-2:] == ["--lame-duck", "5s"]) == (duck == 5)


def test_the_autoscaler_looks_at_what_it_is_told_to(made: pathlib.Path) -> None:
    def metrics(**options: Any) -> list[dict[str, Any]]:
        documents = {d["kind"]: d for d in parsed(export(made, "kubernetes", "api", **options)["api.yaml"])}
        found: list[dict[str, Any]] = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
        return found

    assert [m["resource"]["name"] for m in metrics()] == ["cpu"]
    own = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in metrics(autoscale="in-flight")}
    assert own == {"pyworker_worker_requests_in_flight": "40", "pyworker_listen_queue_connections": "4"}
    for more, most in (("threads = 5", "14000m"), ('interface = "wsgi"', "2800m")):
        made.write_text(FILE.replace("workers = 4", f"workers = 4\n{more}"))
        wsgi = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in metrics(autoscale="in-flight")}
        assert wsgi["pyworker_worker_requests_in_flight"] == most, "70 % of the threads"
    assert "an adapter" in export(made, "kubernetes", "api", autoscale="in-flight")["api.yaml"]


def test_a_job_is_run_once_and_passes_its_exit_code_on(made: pathlib.Path) -> None:
    for name, kind in (("nightly", "CronJob"), ("once_only", "Job")):
        (document,) = parsed(next(iter(export(made, "kubernetes", name).values())))
        assert document["kind"] == kind
        spec = document["spec"]["jobTemplate"]["spec"] if kind == "CronJob" else document["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        assert container["args"][:3] == ["app.toml", "--only", name]
        assert container["args"][-1] == "--once"
        assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
        job = next(iter(export(made, "nomad", name).values()))
        assert '"--once"' in job
        assert 'type = "batch"' in job
        assert re.search(r"reschedule \{\n +attempts = 0\n +unlimited = false\n", job)


@pytest.mark.parametrize(
    "more",
    ['target = "a:b"\nrestart = "never"', 'command = "x"\nbind = ":8000"\nrestart = "never"', 'command = "x"\nrestart = "on-failure"'],
)
def test_what_listens_is_no_job_nor_is_what_is_restarted(tmp_path: pathlib.Path, more: str) -> None:
    file = tmp_path / "app.toml"
    file.write_text(f'[app]\nname = "a"\n{more}\n')
    assert "\nkind: Deployment\n" in export(file, "kubernetes")["a.yaml"]
    job = export(file, "nomad")["a.nomad.hcl"]
    assert 'type = "service"' in job
    assert ('port "p8000"' in job) == ("reschedule" in job) == ("never" in more)


def test_a_virtual_environment_is_not_looked_for_in_an_image(made: pathlib.Path) -> None:
    assert '"--only", "once_only", "--python", "python3"' in export(made, "docker", "once_only")["Dockerfile"]


def test_a_name_that_is_the_folder_s_is_not_asked_for_in_an_image(made: pathlib.Path) -> None:
    text = export(made, "kubernetes", "api", several=False, named=False)["api.yaml"]
    assert "--only" not in text
    assert 'the name: the file does not say it, and the image\'s folder is /app: write name = "api"' in text


@pytest.mark.parametrize("engine", ENGINES)
def test_a_probe_and_words_about_a_name_are_for_what_runs_elsewhere_and_has_another_name(made: pathlib.Path, engine: str) -> None:
    is_elsewhere = engine not in ("systemd", "procfile")
    api, another = ("".join(export(made, engine, name).values()) for name in ("api", "once_only"))
    nameless = "".join(export(made, engine, "api", named=False).values())
    assert ("--probe" in api) == is_elsewhere
    assert "the name:" not in api
    assert ("the name: it is once-only here" in another) == is_elsewhere
    assert ("the name: the file does not say it" in nameless) == is_elsewhere


def test_what_an_app_depends_on_runs_beside_it_and_has_its_time_after_it(made: pathlib.Path) -> None:
    for names in (("auto",), ()):
        services = parsed(export(made, "compose", *names)["compose.yaml"])[0]["services"]
        # both with their drain (30 s, 20 s) and kill time-outs (10 s), 3 s between them, lame_duck and a margin
        assert services["auto"]["stop_grace_period"] == f"{30 + 10 + 3 + 20 + 10 + 2 + 5}s"


def test_compose_is_yaml_that_says_the_same(made: pathlib.Path) -> None:
    services = parsed(export(made, "compose")["compose.yaml"])[0]["services"]
    assert sorted(services) == ["api", "auto", "mail", "nightly", "once-only"]
    api = services["api"]
    assert api["ports"] == ["8000:8000"]
    assert api["stop_grace_period"] == "37s"
    assert api["environment"]["DATABASE_URL"] == "${DATABASE_URL:?set DATABASE_URL}"
    assert api["environment"]["NAME"] == "${NAME:-you}"
    assert services["mail"]["volumes"] == ["./mail.env:/app/mail.env:ro"]
    assert services["mail"]["restart"] == "on-failure"
    assert services["mail"]["deploy"]["restart_policy"] == {"condition": "on-failure"}
    assert api["deploy"]["update_config"]["order"] == "start-first"
    assert (api["user"], api["read_only"], api["cap_drop"]) == ("10001:10001", True, ["ALL"])
    assert api["security_opt"] == ["no-new-privileges:true"]
    assert "http://127.0.0.1:8081/readyz" in api["healthcheck"]["test"][3]
    assert (api["image"], api["mem_limit"], api["deploy"].get("replicas")) == ("api:latest", "1408m", None)
    each = parsed(export(made, "compose", "api", replicas_from_workers=True, image="r.example/shop:1")["compose.yaml"])[0]["services"]["api"]
    assert (each["image"], each["mem_limit"], each["deploy"]["replicas"]) == ("r.example/shop:1", "640m", 4)
    assert (each.get("ports"), each["expose"]) == (None, ["8000"]), "a published port is of one container"
    for service in services.values():
        assert set(service) <= COMPOSE_KEYS
        assert set(service["deploy"]) <= {"replicas", "update_config", "restart_policy"}
        assert set(service["healthcheck"]) == {"test", "interval", "timeout", "retries", "start_period"}
        assert all(re.fullmatch(r"\d+s", service["healthcheck"][k]) for k in ("interval", "timeout", "start_period"))


@pytest.mark.parametrize("options", [{}, {"replicas_from_workers": True}], ids=["pool", "one each"])
def test_nomad_reads_its_job(made: pathlib.Path, options: dict[str, Any]) -> None:
    """By the parser of its language, and by what its job specification has in each block."""
    hcl2 = pytest.importorskip("hcl2")
    for name, text in export(made, "nomad", **options).items():
        (jobs,) = hcl2.loads(text)["job"]
        ((label, job),) = jobs.items()
        assert label.strip('"') == name.partition(".")[0]
        look_through("job", job)
        assert ("update" in job) == (bare(job["type"]) == "service")


@pytest.mark.parametrize(
    "more",
    ["", 'cron = "@daily"', 'restart = "never"', 'reload.soak = "15m"', 'reload.ready_timeout = "15m"', 'restart.retry = "0s"'],
)
def test_nomad_takes_the_times_of_a_job(tmp_path: pathlib.Path, more: str) -> None:
    """It refuses to restart later what may not be restarted, and deadlines that are not one after the other."""
    path = tmp_path / "app.toml"
    path.write_text(f'[apps.a]\ncommand = "a"\n{more}\n')
    text = export(path, "nomad")["a.nomad.hcl"]
    text = re.sub(r"(reschedule|check) \{[^}]*\}", "", text)
    said = dict(re.findall(r'^ *(\w+) = "?(\w+?)s?"?$', text, re.MULTILINE))
    assert said["mode"] == ("delay" if int(said["attempts"]) and "retry" not in more else "fail")
    assert int(said["attempts"]) * int(said["delay"]) <= int(said["interval"])
    if "progress_deadline" in said:
        assert int(said["min_healthy_time"]) < int(said["healthy_deadline"]) < int(said["progress_deadline"])


def bare(value: Any) -> Any:
    return value.strip('"') if isinstance(value, str) else value


def look_through(kind: str, block: dict[str, Any]) -> None:
    """Fail for an attribute or block that Nomad's job specification does not have there, or of another type."""
    known = NOMAD[kind]
    for key, value in block.items():
        if key == "__is_block__":
            continue
        assert key in known, f"{kind} has no {key}"
        expected = known[key]
        if expected in NOMAD:
            for inner in value if isinstance(value, list) else [value]:
                labelled = expected in ("group", "task", "port")
                for body in inner.values() if labelled else [inner]:
                    if isinstance(body, dict):
                        look_through(expected, body)
        elif expected == "time":
            assert re.fullmatch(r"\d+(ms|s|m|h)", bare(value)), (kind, key, value)
        elif expected == "map":
            (table,) = value if isinstance(value, list) else [value]
            assert all(isinstance(v, str) for k, v in table.items() if k != "__is_block__")
        else:
            assert isinstance(bare(value), expected), (kind, key, value)  # type: ignore[arg-type]


def test_nomad_says_what_the_config_says(made: pathlib.Path) -> None:
    def said(name: str, **options: Any) -> dict[str, str]:
        return dict(re.findall(r'^ *(\w+) = "?(.*?)"?$', export(made, "nomad", name, **options)[f"{name}.nomad.hcl"], re.MULTILINE))

    api = said("api", image="r.example/shop:1", replicas_from_workers=True)
    assert api == {
        **api, "count": "4", "image": "r.example/shop:1", "cpu": "500", "memory": str(2 * 256 + 128), "kill_timeout": "37s",
        "shutdown_delay": "5s", "min_healthy_time": "10s", "healthy_deadline": "100s",
    }  # fmt: skip
    api = said("api")
    assert (api["count"], api["image"], api["cpu"], api["memory"]) == ("1", "api:latest", "2000", str(5 * 256 + 128))
    assert "shutdown_delay" not in said("nightly"), "nobody sends to it"
    text = export(made, "nomad", "nightly")["nightly.nomad.hcl"]
    assert "cron is in local time here" in text
    assert "network" not in text


def test_nomad_has_a_port_of_its_own_for_each_of_the_image(made: pathlib.Path) -> None:
    (text,) = export(made, "nomad", "api").values()
    assert re.findall(r'port "(\w+)" {\s+to = (\d+)\s', text) == [("p8000", "8000"), ("probe", "8081")]


def test_nomad_is_given_secrets_by_reference(made: pathlib.Path) -> None:
    text = export(made, "nomad", "mail")["mail.nomad.hcl"]
    assert 'nomadVar \\"nomad/jobs/mail\\"' in text
    assert "FROM={{ .FROM | toJSON }}" in text
    assert re.search(r'destination = "secrets/env"\n +env = true\n', text)
    assert 'volumes = ["secrets/mail.env:/app/mail.env:ro"]' in text
    assert "{{ .mail_env }}" in text
    assert "max_kill_timeout" in text
    assert "put FROM, mail_env (the content of mail.env) into the Nomad variable nomad/jobs/mail" in text


def test_docker_begins_with_what_changes_seldom_and_runs_as_nobody_special(made: pathlib.Path) -> None:
    text = export(made, "docker", "api")["Dockerfile"]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert words == [
        "FROM", "ENV", "WORKDIR", "COPY", "RUN", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD",
    ]  # fmt: skip
    assert lines[3] == "COPY requirements.txt pyworker-*.whl ./"
    assert "pip install pyworker" not in text, "that is another project"
    assert json.loads(lines[-2].partition(" ")[2]) == ["pyworker", "run"]
    assert json.loads(lines[-1].partition(" ")[2])[-2:] == ["--bind", "0.0.0.0:8000"]
    assert "USER 10001:10001" in lines


def test_an_image_of_several_apps_runs_those_with_their_profile_and_no_other(made: pathlib.Path) -> None:
    def runs(*names: str, **options: str) -> list[str]:
        text = export(made, "docker", *names, **options)["Dockerfile"]
        found: list[str] = json.loads(text.splitlines()[-1].removeprefix("CMD "))
        return found

    assert runs() == ["app.toml", "--probe", ":8081"]
    some = ["--only", "api", "--only", "mail"]
    assert runs("api", "mail", profile="prod") == ["app.toml", *some, "--profile", "prod", "--probe", ":8081"]


def test_a_procfile_has_a_line_for_each_app(made: pathlib.Path) -> None:
    lines = [line for line in export(made, "procfile")["Procfile"].splitlines() if not line.startswith("#")]
    assert [line.partition(":")[0] for line in lines] == ["api", "auto", "mail", "nightly", "once_only"]
    assert shlex.split(lines[0].partition(": ")[2])[:4] == ["pyworker", "run", "app.toml", "--only"]
    assert lines[0].endswith("--bind 0.0.0.0:${PORT:-8000}")


@pytest.mark.parametrize("per_worker", [False, True])
def test_systemd_takes_its_units(made: pathlib.Path, tmp_path: pathlib.Path, per_worker: bool) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    command = tmp_path / "pyworker"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    files = export(made, "systemd", per_worker=per_worker, pyworker=str(command))
    if per_worker:
        assert {"mail.socket", "mail@.service", "mail.target", "api.service"} <= set(files)
    folder = tmp_path / "units"
    folder.mkdir()
    for name, text in files.items():
        # the folder and the programs of the example are not on this machine
        (folder / name).write_text(
            text.replace("/srv/shop", str(tmp_path)).replace("ExecStart=node", f"ExecStart={command}")
        )
    names = [str(folder / name.replace("@.", "@1.")) for name in files]
    done = subprocess.run(
        [analyze, "verify", "--man=no", *names], capture_output=True, text=True, timeout=60,
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if str(folder) in line or "pyworker" in line]
    # they came with systemd 254; an older one ignores them, and the unit says so
    later = [line for line in complaints if "'RestartSteps'" in line or "'RestartMaxDelaySec'" in line]
    assert [line for line in complaints if line not in later] == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("api", {"TimeoutStopSec": "37", "MemoryMax": str(1408 * 2**20), "DynamicUser": "yes", "LimitNOFILE": "65536"}),
        ("mail", {"TimeoutStopSec": "47", "User": "mail", "UMask": "0027"}),
        ("once_only", {"Restart": "no"}),
    ],
)  # fmt: skip
def test_systemd_starts_and_stops_a_pool_as_the_config_says(made: pathlib.Path, name: str, says: dict[str, str]) -> None:
    said = settings(export(made, "systemd", name)[f"{name}.service"])
    always = {
        "ExecStart": f"/usr/local/bin/pyworker run app.toml --only {name}", "ExecReload": "/bin/kill -HUP $MAINPID",
        "KillMode": "mixed", "KillSignal": "SIGTERM", "TimeoutStartSec": "90", "Restart": "on-failure",
        "RestartPreventExitStatus": "78", "OOMPolicy": "continue", "NoNewPrivileges": "yes", "WantedBy": "multi-user.target",
    }  # fmt: skip
    assert said == {**said, **always, **says}


def test_systemd_starts_and_stops_each_worker_as_the_config_says(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    more = 'workers = 3\nbind = ":8000"\nuser = "www"\ngroup = "web"\nlimits.memory = "1MB"\nlimits.nofile = 99\nstop.signal = "INT"\n'
    file.write_text(f'[app]\nname = "api"\ncommand = ["serve"]\nrestart = "never"\n{more}')
    files = export(file, "systemd", per_worker=True)
    assert list(files) == ["api.socket", "api@.service", "api.target"], "and none for a pool"
    assert settings(files["api.target"])["Wants"] == "api@1.service api@2.service api@3.service"
    said = settings(files["api@.service"])
    says = {"MemoryMax": str(2**20), "User": "www", "Group": "web", "LimitNOFILE": "99", "KillSignal": "SIGINT", "Restart": "no"}
    assert said == {**said, **says}
    assert "EnvironmentFile" not in said
    file.write_text(f'{file.read_text()}env = {{ API_TOKEN = "t0ps3cret" }}\n')
    assert settings(export(file, "systemd", per_worker=True)["api@.service"])["EnvironmentFile"] == "/etc/pyworker/api.env"


@pytest.mark.parametrize("user", ["", "www"])
def test_the_pool_may_make_its_sockets_and_its_log(tmp_path: pathlib.Path, user: str) -> None:
    path = tmp_path / "app.toml"
    binds = '"unix:/run/web 1/a.sock", "unix:/var/run/web 1/b.sock", "unix:run%/c.sock", "unix:/tmp/x/d.sock", ":80"'
    path.write_text(f'[app]\nname = "web"\ntarget = "a:b"\nbind = [{binds}]\nlogs.file = "/var/log/web/web.log"\n')
    if user:
        path.write_text(path.read_text() + f'user = "{user}"\n')
    (text,) = export(path, "systemd").values()
    writable = [line for line in text.split("\n") if line.startswith(("RuntimeDirectory", "ReadWritePaths"))]
    assert writable == [
        'RuntimeDirectory="web 1"', *(["RuntimeDirectoryPreserve=yes"] if user else []),
        "ReadWritePaths=-/srv/shop/run%%", "ReadWritePaths=-/var/log/web",
    ]  # fmt: skip
    assert "bind unix:/tmp/x/d.sock: /tmp is the unit's own" in text
    assert "\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in text
    assert "logs.file /var/log/web/web.log: the unit's user must be able to write to /var/log/web" in text
    assert "read-only to it" in text


def test_systemd_gives_up_only_what_pyworker_would(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    limit = "StartLimitIntervalSec="
    for retry, line in (("1m", f"{limit}0"), ("0s", f"{limit}300\nStartLimitBurst=5")):
        file.write_text(f'[app]\nname = "api"\ntarget = "a:b"\nrestart.retry = "{retry}"\n')
        assert f"\n{line}\n" in export(file, "systemd")["api.service"]


def test_systemd_quotes_what_it_would_expand(made: pathlib.Path) -> None:
    unit = export(made, "systemd", "mail", per_worker=True)["mail@.service"]
    assert 'ExecStart=node mail.js "it\'s $$5 100%%"' in unit
    assert "User=mail" in unit
    assert "UMask=0027" in unit
    assert "Type=notify" in unit
    assert 'Environment="MODE=a $ b"' in unit, "there $ has no meaning of its own"
    assert "\nEnvironmentFile=/srv/shop/mail.env\nEnvironmentFile=-/srv/shop/more.env\n" in unit
    assert "\nEnvironmentFile=/etc/pyworker/mail.env\n" in unit
    assert "env SMTP_PASSWORD, FROM: set it in /etc/pyworker/mail.env" in unit
    assert "\nPartOf=mail.target\n" in unit


def test_systemd_is_given_no_tab_and_no_line_that_the_config_does_not_mean(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text(
        '[app]\nname = "api"\ncommand = ["echo", "a\\tb", "c\\rd"]\nbind = "127.0.0.1:8000"\n'
        'env = { A = "x\\ry", B = "x\\ty", C = "x\\ny" }\n'
    )
    unit = export(file, "systemd", per_worker=True)["api@.service"]
    assert not set(unit) & {"\t", "\r"}, "systemd splits words at the one and ends a line at the other"
    assert r'ExecStart=echo "a\tb" "c\rd"' in unit
    assert [rf'Environment="{n}=x\{c}y"' in unit for n, c in ("Ar", "Bt", "Cn")] == [True, True, True]


def test_systemd_runs_a_command_in_its_folder_and_listens_where_it_can(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text(
        '[app]\nname = "api"\ncwd = "inner"\ncommand = ["./serve", "./x"]\nenv_file = "a.env"\n'
        'bind = ["localhost:8000", "shop.internal:8001", "unix:a%b.sock", "[fd00::1]:8002"]\n'
    )
    files = export(file, "systemd", per_worker=True)
    unit, sockets = files["api@.service"], files["api.socket"]
    assert "\nExecStart=/srv/shop/inner/serve ./x\n" in unit
    assert "\nWorkingDirectory=/srv/shop/inner\n" in unit
    assert "\nEnvironmentFile=/srv/shop/inner/a.env\n" in unit
    assert "env_file a.env: systemd reads it in its own way: no `export`" in unit.replace("\n# ", " ")
    assert "\nListenStream=127.0.0.1:8000\n" in sockets
    assert "\nListenStream=/srv/shop/inner/a%%b.sock\n" in sockets
    assert "\nListenStream=[fd00::1]:8002\n" in sockets
    assert re.findall("bind (.*): systemd knows no host names", sockets) == ["shop.internal:8001"]


def test_the_pool_s_unit_says_when_it_is_ready_and_has_a_home_of_its_own(made: pathlib.Path) -> None:
    unit = export(made, "systemd", "api")["api.service"]
    assert "\nType=notify\nNotifyAccess=all\n" in unit
    # below the state directory, which is a link with DynamicUser and open to others without
    assert "\nStateDirectory=pyworker/api\nEnvironment=PYWORKER_HOME=%S/pyworker/api/home\n" in unit
    assert "\nEnvironmentFile=/etc/pyworker/api.env\n" in unit
    assert "env_file .env: must be readable by a user that systemd makes up" in unit.replace("\n# ", " ")
    assert "Set DATABASE_URL, SENTRY_DSN in /etc/pyworker/api.env" in unit
    assert "/srv/shop must be readable" not in unit
    at_home = export(made, "systemd", "auto", folder="/home/me/100%")["auto.service"]
    assert "/home/me/100% must be readable by a user" in at_home
    assert "\nWorkingDirectory=/home/me/100%%\n" in at_home
    assert "must be readable by a user" not in export(made, "systemd", "mail", folder="/home/me")["mail.service"]


@pytest.mark.parametrize(
    ("name", "expected"), [("a_b", "a-b"), ("9lives", "app-9lives"), ("x-", "x"), ("_", "app"), ("a" * 64, "a" * 50)]
)
def test_names_are_those_that_dns_allows(name: str, expected: str) -> None:
    assert dns_name(name) == expected


def test_yaml_keeps_every_text_a_text() -> None:
    values = [
        "yes",
        "No",
        "1",
        "1.5",
        ".5",
        ".Inf",
        "null",
        "~",
        "",
        " a",
        "a: b",
        "#x",
        "é",
        "a\nb",
        "0x1",
        "2020-01-01",
        "-",
        "{}",
        "12:30",
    ]
    value = {"a": values, "b": {"c": [{"d": 1, "e": [1, 2]}, {"f": True}], "empty": {}, "none": None, "l": []}}
    expected = {"a": values, "b": {"c": [{"d": 1, "e": [1, 2]}, {"f": True}], "empty": {}, "l": []}}
    assert parsed(dump(value)) == [expected]


def test_a_newline_in_a_path_ends_no_comment_and_an_absolute_path_stays_one(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nname = "a"\ncommand = "x"\ncwd = "/srv\\nRUN evil"\nenv_file = "/etc/a.env"\n')
    docker, compose = (export(file, engine)[name] for engine, name in (("docker", "Dockerfile"), ("compose", "compose.yaml")))
    assert not re.search(r"^RUN evil", docker, re.MULTILINE)
    assert "docker run -v /etc/a.env:/etc/a.env:ro" in docker
    (document,) = parsed(compose)
    assert document["services"]["a"]["volumes"] == ["/etc/a.env:/etc/a.env:ro"]


def test_what_would_be_a_line_of_its_own_is_refused_where_it_cannot_be_quoted(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nname = "a"\ncommand = "x"\nbind = ":8000"\nenv_file = "a\\nUser=root"\n')
    for engine, options in (("systemd", {"per_worker": True}), ("systemd", {"folder": "/srv/a\\"}), ("procfile", {"profile": "\n"})):
        with pytest.raises(PyworkerError, match="the format has no way to write a line break"):
            export(file, engine, **options)
    assert "a?User=root" in export(file, "docker")[".dockerignore"].splitlines()


def test_files_beside_the_app_s_folder_are_found_there_and_go_into_no_image(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text(
        '[app]\nname = "a"\ntarget = "a:b"\ncwd = "sub"\nenv_file = ["prod env", "more.env?", "/etc/x"]\n'
        'tls = { cert = "../c.pem", key = "k.pem" }\n'
    )
    docker = export(file, "docker")
    assert "docker run -v './sub/prod env:/app/sub/prod env:ro'" in docker["Dockerfile"]
    assert {"sub/prod env", "sub/more.env", "c.pem", "sub/k.pem"} <= set(docker[".dockerignore"].splitlines())
    assert "/etc/x" not in docker[".dockerignore"]
    assert "'--from-file=sub_prod_env=sub/prod env'" in export(file, "kubernetes")["a.yaml"]
    (document,) = parsed(export(file, "compose")["compose.yaml"])
    assert document["services"]["a"]["volumes"][0] == "./sub/prod env:/app/sub/prod env:ro"


def test_a_file_outside_of_the_folder_has_a_name_that_a_secret_may_have(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nname = "a"\ntarget = "a:b"\nenv_file = ["../prod.env", ".env"]\ntls = { cert = "../c.pem", key = "k.pem" }\n')
    text = export(file, "kubernetes")["a.yaml"]
    keys = dict(word.removeprefix("--from-file=").split("=") for word in text.split() if word.startswith("--from-file="))
    assert set(keys.values()) == {"../prod.env", ".env", "../c.pem", "k.pem"}
    # a key of a Secret begins with no two dots
    assert all(re.fullmatch(r"(?!\.\.)[-._A-Za-z0-9]+", key) for key in keys), keys
    (pod,) = [d["spec"]["template"]["spec"] for d in parsed(text) if d["kind"] == "Deployment"]
    assert {mount["subPath"] for mount in pod["containers"][0]["volumeMounts"]} == set(keys)


def test_no_two_files_have_one_name_in_a_secret(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nname = "a"\ntarget = "a:b"\nenv_file = ["a/b.env", "a_b.env", "a-b.env", "env"]\nenv = { X = "${ENV}" }\n')
    kubernetes = export(file, "kubernetes")["a.yaml"]
    keys = dict(word.removeprefix("--from-file=").split("=") for word in kubernetes.split() if word.startswith("--from-file="))
    assert sorted(keys.values()) == ["a-b.env", "a/b.env", "a_b.env", "env"]
    (pod,) = [d["spec"]["template"]["spec"] for d in parsed(kubernetes) if d["kind"] == "Deployment"]
    assert {m["subPath"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]} == {k: f"/app/{p}" for k, p in keys.items()}
    nomad = export(file, "nomad")["a.nomad.hcl"]
    written = re.findall(r'destination = "secrets/(.*)"', nomad)
    assert len(set(written)) == 5
    asked = re.findall(r"{{ \.(\w+) ", nomad)
    assert len(set(asked)) == 5
    assert set(re.findall(r'"secrets/([^"]*):/app/', nomad)) == set(written) - {"env"}


def test_a_share_of_the_memory_is_no_number_of_bytes(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nname = "a"\ntarget = "a:b"\nworkers = 2\nlimits.memory = "auto"\n')
    text = export(file, "kubernetes")["a.yaml"]
    assert 'a: limits.memory = "auto" is a share of what the engine allows' in text
    assert "memory:" not in text


def test_no_variable_is_found_in_a_name(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a$PORT.toml"
    file.write_text('[app]\nname = "a"\ntarget = "a:b"\nenv_file = "$HOME.env"\n')
    (document,) = parsed(export(file, "compose", file=file.name)["compose.yaml"])
    service = document["services"]["a"]
    assert (service["command"][0], service["volumes"]) == ("a$$PORT.toml", ["./$$HOME.env:/app/$$HOME.env:ro"])
    assert '"a$$PORT.toml"' in export(file, "kubernetes", file=file.name)["a.yaml"]
    assert 'args = ["a$${X}%%{Y}.toml", ' in export(file, "nomad", file="a${X}%{Y}.toml")["a.nomad.hcl"]


def test_a_dollar_of_a_default_is_the_one_that_it_is_for_the_app(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nname = "a"\ntarget = "a:b"\nenv = { A = "${B:-5$$ each}", C = "$${D:-no variable}" }\n')
    (document,) = parsed(export(file, "compose")["compose.yaml"])
    assert document["services"]["a"]["environment"] == {"B": "${B:-5$$ each}"}
    assert [d["data"] for d in parsed(export(file, "kubernetes")["a.yaml"]) if d["kind"] == "ConfigMap"] == [{"B": "5$ each"}]
    assert '"5$ each"' in export(file, "nomad")["a.nomad.hcl"]


def test_an_env_file_of_whatever_folder_goes_into_no_image(made: pathlib.Path) -> None:
    assert {"**/.env", "**/.env.*"} <= set(export(made, "docker")[".dockerignore"].splitlines())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("[prod].env", "?prod?.env"), ("!a.env", "?a.env"), ("#a.env", "?a.env"), (" a.env ", "?a.env?"), ("b\\\\c!", "b?c!")],
)  # fmt: skip
def test_a_secret_whose_name_is_no_pattern_goes_into_no_image(tmp_path: pathlib.Path, name: str, pattern: str) -> None:
    file = tmp_path / "app.toml"
    file.write_text(f'[app]\nname = "a"\ntarget = "a:b"\nenv_file = "{name}"\n')
    assert pattern in export(file, "docker")[".dockerignore"].splitlines()


@pytest.mark.parametrize(
    ("cron", "schedule"),
    [
        ("0 3 * * 7", "0 3 * * 0"), ("0 3 * * fri-mon", "0 3 * * 0,1,5,6"), ("5 4 1 nov-feb 5-0", "5 4 1 1,2,11,12 0,5,6"),
        ("@Midnight", "@daily"), ("0 3 1 * */7", "0 3 1 * */7"), ("0 0 L * *", "0 0 L * *"),
    ],
)  # fmt: skip
def test_no_engine_is_given_a_timetable_that_it_does_not_know(tmp_path: pathlib.Path, cron: str, schedule: str) -> None:
    file = tmp_path / "app.toml"
    file.write_text(f'[app]\nname = "a"\ncommand = "x"\ncron = "{cron}"\n')
    text = export(file, "kubernetes")["a.yaml"]
    assert parsed(text)[0]["spec"]["schedule"] == schedule
    assert f'crons = ["{schedule}"]' in export(file, "nomad")["a.nomad.hcl"]
    assert ("Kubernetes has no L" in text) == ("L" in cron)


@pytest.mark.parametrize("name", ["auto", "api"])
def test_a_pod_may_listen_below_1024_when_the_config_says_so(made: pathlib.Path, name: str) -> None:
    documents = parsed(export(made, "kubernetes", name)[f"{name}.yaml"])
    (pod,) = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "Deployment"]
    sysctls = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}] if name == "auto" else None
    assert pod["securityContext"].get("sysctls") == sysctls
    assert pod["containers"][0]["resources"]["limits"].get("cpu") == (1 if name == "auto" else None), 'what workers = "auto" counts'
