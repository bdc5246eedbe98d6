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
from pyworker.export.plan import Options
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
]


@pytest.fixture
def made(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "app.toml"
    path.write_text(FILE)
    return path


def export(path: pathlib.Path, engine: str, *names: str, **options: Any) -> dict[str, str]:
    module = importlib.import_module(f"pyworker.export.{engine}")
    found: dict[str, str] = module.export(
        load(str(path), only=names).apps, run_config(str(path), {}), Options(folder="/srv/shop", **options)
    )
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: next(iter(o), "plain"))
def test_it_is_always_the_same_and_holds_no_secret(made: pathlib.Path, engine: str, options: dict[str, Any]) -> None:
    files = export(made, engine, **options)
    assert files == export(made, engine, **options)
    text = "".join(files.values())
    assert "t0ps3cret" not in text
    for name, content in files.items():
        if name != ".dockerignore":
            assert content.startswith(f"# Made by `pyworker export {engine}`.\n"), name
            assert "could" in content.lower() or "Everything was carried over" in content
            assert content.endswith("\n")
            assert not re.search(r"[ \t]+$", content, re.MULTILINE), name


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_lost_is_said(made: pathlib.Path, engine: str) -> None:
    text = "".join(export(made, engine).values())
    if engine in ("kubernetes", "compose", "nomad", "docker"):
        assert "bind unix:/run/mail.sock" in text
        assert "tls: mount" in text
        assert 'user = "mail"' in text
    assert "depends_on api" in text


def parsed(text: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return [d for d in yaml.safe_load_all(text) if d]


@pytest.mark.parametrize("version", ["1.25.0", "1.29.0", "1.32.0"])
@pytest.mark.parametrize(
    "options",
    [{}, {"replicas_from_workers": True}, {"autoscale": "in-flight"}],
    ids=["pool", "one per pod", "in flight"],
)
def test_kubernetes_takes_it_by_its_schemas(made: pathlib.Path, version: str, options: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    kinds = []
    for text in export(made, "kubernetes", **options).values():
        for document in parsed(text):
            validate.validate(document, version, strict=True)
            kinds.append(document["kind"])
    assert sorted(set(kinds)) == ["CronJob", "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service"]


def test_kubernetes_says_what_the_config_says(made: pathlib.Path) -> None:
    documents = {d["kind"]: d for d in parsed(export(made, "kubernetes", "api")["api.yaml"])}
    spec = documents["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert pod["terminationGracePeriodSeconds"] == 20 + 10 + 2 + 5
    assert container["resources"]["limits"]["memory"] == f"{4 * 256 + 128}Mi"
    assert container["args"] == ["app.toml", "--only", "api", "--probe", ":8081", "--bind", "0.0.0.0:8000"]
    secret = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"]}
    assert set(secret) == {"DATABASE_URL", "SENTRY_DSN"}
    assert secret["DATABASE_URL"] == {"name": "api-env", "key": "DATABASE_URL"}
    assert documents["Service"]["spec"]["ports"][0]["targetPort"] == 8000
    one = {d["kind"]: d for d in parsed(export(made, "kubernetes", "api", replicas_from_workers=True)["api.yaml"])}
    assert one["Deployment"]["spec"]["replicas"] == 4
    assert one["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"][-2:] == ["--workers", "1"]
    assert one["Deployment"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "384Mi"


def test_the_autoscaler_looks_at_what_it_is_told_to(made: pathlib.Path) -> None:
    def metric(**options: Any) -> dict[str, Any]:
        documents = {d["kind"]: d for d in parsed(export(made, "kubernetes", "api", **options)["api.yaml"])}
        found: dict[str, Any] = documents["HorizontalPodAutoscaler"]["spec"]["metrics"][0]
        return found

    assert metric()["resource"]["name"] == "cpu"
    assert metric(autoscale="in-flight")["pods"]["metric"]["name"] == "pyworker_worker_requests_in_flight"
    assert "an adapter" in export(made, "kubernetes", "api", autoscale="in-flight")["api.yaml"]


def test_compose_is_yaml_that_says_the_same(made: pathlib.Path) -> None:
    services = parsed(export(made, "compose")["compose.yaml"])[0]["services"]
    assert sorted(services) == ["api", "auto", "mail", "nightly"]
    api = services["api"]
    assert api["ports"] == ["8000:8000"]
    assert api["stop_grace_period"] == "37s"
    assert api["environment"]["DATABASE_URL"] == "${DATABASE_URL:?set DATABASE_URL}"
    assert api["env_file"] == ["./.env"]
    assert services["mail"]["restart"] == "on-failure"


def test_nomad_reads_its_job(made: pathlib.Path) -> None:
    hcl2 = pytest.importorskip("hcl2")
    for options in ({}, {"replicas_from_workers": True}):
        for name, text in export(made, "nomad", **options).items():  # type: ignore[arg-type]
            job = hcl2.loads(text)["job"][0]
            assert [key.strip('"') for key in job] == [name.partition(".")[0]]
            assert "auto_revert" in json.dumps(job) or "periodic" in json.dumps(job)


def test_docker_begins_with_what_changes_seldom_and_runs_as_nobody_special(made: pathlib.Path) -> None:
    text = export(made, "docker", "api")["Dockerfile"]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert words == [
        "FROM", "ENV", "WORKDIR", "COPY", "RUN", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD",
    ]  # fmt: skip
    assert json.loads(lines[-2].partition(" ")[2]) == ["pyworker", "run"]
    assert json.loads(lines[-1].partition(" ")[2])[-2:] == ["--bind", "0.0.0.0:8000"]
    assert "USER 10001:10001" in lines


def test_a_procfile_has_a_line_for_each_app(made: pathlib.Path) -> None:
    lines = [line for line in export(made, "procfile")["Procfile"].splitlines() if not line.startswith("#")]
    assert [line.partition(":")[0] for line in lines] == ["api", "auto", "mail", "nightly"]
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
    assert complaints == []


def test_systemd_quotes_what_it_would_expand(made: pathlib.Path) -> None:
    unit = export(made, "systemd", "mail", per_worker=True)["mail@.service"]
    assert 'ExecStart=node mail.js "it\'s $$5 100%%"' in unit
    assert "User=mail" in unit
    assert "UMask=0027" in unit
    assert "Type=notify" in unit


def test_yaml_keeps_every_text_a_text() -> None:
    values = [
        "yes",
        "No",
        "1",
        "1.5",
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
