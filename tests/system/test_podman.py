"""A real container engine: podman with runc, images from this machine's files, nothing pulled. Some minutes: make containers.

What one machine has not, and what stands in for it: a Service, its kubelets' readiness probes and the lag of its nodes are
tests/support/service.py; the Deployment controller is the test, which plays and stops the pods one by one. All pods are on
the host's network, so each has a port of its own.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import pathlib
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import image
from tests.support.fleet import Fleet, Tally
from tests.support.foreground import probe
from tests.support.podman import APP, IMAGE, Podman, podman
from tests.support.pyworker import LONG, free_port, kill
from tests.support.rawhttp import Client
from tests.support.service import Service
from tests.support.wait import wait_until

PERIOD, LAG = 2.0, 1.5  # seconds: the readiness probe of the export, and how late a node is

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def engine() -> Iterator[Podman]:
    with podman() as made:
        yield made


@pytest.fixture(autouse=True)
def _none_left(engine: Podman) -> Iterator[None]:
    yield
    engine.run("pod", "rm", "-fa", "-t", "0", check=False)
    engine.run("rm", "-fa", "-t", "0", check=False)


class Pod:
    """One pod of the exported documents, played."""

    def __init__(
        self, engine: Podman, exported: list[dict[str, Any]], name: str, version: str, *, lame_duck: bool = True
    ) -> None:
        self.port, self.probe_port = free_port(), free_port()
        self._engine = engine
        made = copy.deepcopy(exported)
        kinds = {document["kind"]: document for document in made}
        kinds["ConfigMap"]["data"]["VERSION"] = version
        kinds["Deployment"]["metadata"]["name"] = name
        spec = kinds["Deployment"]["spec"]["template"]["spec"]
        # what this engine has not: a network for each pod here, and HTTP probes without curl in the image
        spec["hostNetwork"] = True
        (container,) = spec["containers"]
        for key in ("ports", "startupProbe", "readinessProbe", "livenessProbe"):
            del container[key]
        addresses = {"0.0.0.0:8000": f"127.0.0.1:{self.port}", ":8081": f"127.0.0.1:{self.probe_port}"}
        container["args"] = [addresses.get(word, word) for word in container["args"]]
        assert container["args"][-2:] == ["--lame-duck", "5s"]
        if not lame_duck:
            container["args"][-1] = "0s"
        self.container = engine.play(f"{name}.yaml", made)
        self.grace = spec["terminationGracePeriodSeconds"]

    def stop(self) -> None:
        """End it as a kubelet does: SIGTERM, the grace time, SIGKILL; return when it has ended by itself."""
        self._engine.run("stop", "-t", str(self.grace), self.container)
        inspected = self._engine.run("inspect", self.container, "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}")
        assert inspected.split() == ["0", "false"]


def version(port: int) -> str:
    """Ask the app which one it is."""
    with Client(("127.0.0.1", port)) as client:
        answer = client.get("/")
    assert answer is not None
    return answer.headers["x-version"]


@pytest.fixture(scope="module")
def exported(engine: Podman) -> list[dict[str, Any]]:
    """What is exported for the app in the image, all of it; the secret that it asks for is there."""
    yaml = pytest.importorskip("yaml")
    engine.pw.write("app.toml", APP)
    text = engine.pw.ok("export", "kubernetes", "api", "-f", "app.toml", "--image", IMAGE).stdout
    # in the form that this engine reads variables from: it cannot read those that it has played itself
    secret = {"TOKEN": base64.b64encode(b"from-a-secret").decode()}
    engine.run("secret", "create", "api-env", engine.pw.write("secret.json", json.dumps(secret)))
    return [document for document in yaml.safe_load_all(text) if document]


def test_read_only_as_any_user_without_capabilities(engine: Podman) -> None:
    port, probe_port = free_port(), free_port()
    engine.run(
        "run", "-d", "--name", "one", "--network", "host", "--read-only", "--read-only-tmpfs=false",
        "--user", "4242:4242", "--cap-drop", "ALL", "-e", "VERSION=7", "-e", "TOKEN=x", IMAGE,
        "app.toml", "--only", "api", "--probe", f"127.0.0.1:{probe_port}", "--bind", f"127.0.0.1:{port}",
    )  # fmt: skip
    wait_until(lambda: probe(probe_port, "/readyz")[0] == 200, LONG * 2, "readiness")
    assert version(port) == "7"
    assert {worker.uids().real for worker in engine.workers("one")} == {4242}
    engine.run("stop", "-t", "45", "one")
    assert engine.run("inspect", "one", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}").split() == ["0", "false"]
    log = engine.run("logs", "one")
    assert "api stopped" in log
    assert "by SIGKILL" not in log


def test_orphans_signals_and_the_exit_code_of_process_1(engine: Podman) -> None:
    script = (
        "trap 'echo got USR1' USR1; trap 'echo got 40; exit 7' 40; for i in 1 2 3 4 5; do sh -c 'sleep 0.1 &'; done; "
        "echo waits; while :; do sleep 0.05; done"
    )
    engine.run("run", "-d", "--name", "init", "--network", "host", IMAGE, "--restart", "never", "--", "sh", "-c", script)
    wait_until(lambda: "waits" in engine.run("logs", "init"), LONG, "the script")
    wait_until(lambda: not [p for p in engine.processes("init") if p.status() == "zombie"], LONG, "no zombie")
    engine.run("kill", "-s", "USR1", "init")
    wait_until(lambda: "got USR1" in engine.run("logs", "init"), LONG, "USR1")
    engine.run("kill", "-s", "40", "init")
    assert engine.run("wait", "init").split() == ["7"]


def test_workers_auto_and_memory_auto_are_what_the_cgroup_allows(engine: Podman) -> None:
    port, probe_port = free_port(), free_port()
    small = ("run", "-d", "--network", "host", "--cpus", "1", "--memory", "300m", "-e", "TOKEN=x")
    try:
        engine.run(
            *small, "--name", "small", IMAGE, "app.toml", "--only", "api", "--workers", "auto",
            "--probe", f"127.0.0.1:{probe_port}", "--bind", f"127.0.0.1:{port}",
        )  # fmt: skip
    except AssertionError as error:
        pytest.skip(f"no limits of CPU and memory for containers here: {str(error)[-200:]}")
    wait_until(lambda: probe(probe_port, "/readyz")[0] == 200, LONG * 2, "readiness")
    assert probe(probe_port, "/readyz")[1] == "api ready 1/1\n"
    seen = engine.run("exec", "small", "python3", "-c", "from pyworker.unix import oom; print(oom.group_limit())")
    assert int(seen) == 300 * 2**20
    engine.run(*small, "--name", "fat", IMAGE, "app.toml", "--only", "fat")
    wait_until(lambda: "MB > 86 MB" in engine.run("logs", "fat"), LONG * 2, "one over its share to be replaced")


def test_the_exported_documents_serve_when_they_are_played(engine: Podman, exported: list[dict[str, Any]]) -> None:
    pod = Pod(engine, exported, "api", "1")
    wait_until(lambda: probe(pod.probe_port, "/readyz/api")[0] == 200, LONG * 2, "readiness")
    assert version(pod.port) == "1"
    for worker in engine.workers(pod.container):
        assert worker.uids().real == 10001
        assert worker.environ()["TOKEN"] == "from-a-secret"
    pod.stop()
    assert engine.pw.refuses(pod.port)


def answered(fleet: Fleet, more: int) -> None:
    goal = fleet.tally.requests + more
    wait_until(lambda: fleet.tally.requests >= goal, LONG * 2, lambda: f"{more} answers; lost: {fleet.tally.lost[:3]}")


def say(capsys: pytest.CaptureFixture[str], what: str, tally: Tally) -> None:
    """These figures are the purpose of the tests: shown also when nothing has failed."""
    counts = f"{tally.requests} requests answered, {len(tally.lost)} lost, {len(tally.refused)} refused"
    with capsys.disabled():
        print(f"\n{what}: {counts}; by version {dict(tally.versions)}; closed with a word: {tally.announced.total()}")


def test_a_rolling_update_behind_one_address_loses_nothing(
    engine: Podman, exported: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pods are replaced as a Deployment with maxSurge 1, maxUnavailable 0 does it: a new one, ready, then an old one goes."""
    with Service(period=PERIOD, lag=LAG) as service:
        old = [Pod(engine, exported, f"api-a{n}", "1") for n in (1, 2)]
        for pod in old:
            service.add(pod.port, pod.probe_port)
        # they are idle for 1.4 s at most of the 5 s that the app allows: the relay between must not be what is too late
        with Fleet(service.port, keepalive=2.0) as fleet:
            answered(fleet, 200)
            for number, leaving in enumerate(old, 1):
                coming = Pod(engine, exported, f"api-b{number}", "2")
                service.add(coming.port, coming.probe_port)
                leaving.stop()
                service.forget(leaving.port)
            answered(fleet, 200)
    say(capsys, "rolling update of 2 pods", fleet.tally)
    assert fleet.tally.lost == []
    assert fleet.tally.refused == []
    assert service.refused == 0
    assert set(fleet.tally.versions) == {"1", "2"}


def test_without_a_lame_duck_the_same_update_loses_requests(
    engine: Podman, exported: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the test above is known to see a loss: the port is closed before the Service has heard of it."""
    with Service(period=PERIOD, lag=LAG) as service:
        leaving, staying = (Pod(engine, exported, f"api-{name}", "1", lame_duck=False) for name in ("c", "d"))
        for pod in (leaving, staying):
            service.add(pod.port, pod.probe_port)
        with Fleet(service.port) as fleet:
            answered(fleet, 200)
            leaving.stop()
            service.forget(leaving.port)
            answered(fleet, 200)
    say(capsys, "one pod goes without a lame duck", fleet.tally)
    assert fleet.tally.lost
    assert service.refused > 0


def test_kill_9_of_a_pod_s_worker_costs_what_it_had_in_hand_and_nothing_else(
    engine: Podman, exported: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[tuple[int, float]] = []  # inside, when
    pod = Pod(engine, exported, "api", "1")
    wait_until(lambda: probe(pod.probe_port, "/readyz")[0] == 200, LONG * 2, "readiness")
    with Fleet(pod.port) as fleet:
        for number in range(10):
            answered(fleet, 100)
            both = wait_until(lambda: found if len(found := engine.workers(pod.container)) == 2 else [], LONG, "two workers")
            victim = both[number % 2].pid
            with open(f"/proc/{victim}/status") as status:
                inside = next(int(line.split()[-1]) for line in status if line.startswith("NSpid:"))
            killed.append((inside, time.monotonic()))  # before: on a busy machine its end is seen later than its clients do
            kill(victim)
            wait_until(lambda: "ready 2/2" in probe(pod.probe_port, "/readyz")[1], LONG, "two workers")
        answered(fleet, 100)
    say(capsys, "10 x kill -9 of a worker", fleet.tally)
    assert fleet.tally.refused == []
    assert fleet.tally.unexplained(killed) == []
    assert fleet.tally.lost, "11 clients, and ten workers were killed with connections open"
    assert engine.run("inspect", pod.container, "--format", "{{.RestartCount}}").strip() == "0"


def test_kill_9_of_process_1_has_the_engine_start_the_pod_again(engine: Podman, exported: list[dict[str, Any]]) -> None:
    pod = Pod(engine, exported, "api", "1")
    wait_until(lambda: probe(pod.probe_port, "/readyz")[0] == 200, LONG * 2, "readiness")
    kill(engine.processes(pod.container)[0].pid)
    wait_until(lambda: probe(pod.probe_port, "/readyz")[0] == 0, LONG, "the end of it")
    wait_until(lambda: probe(pod.probe_port, "/readyz")[0] == 200, LONG * 2, "another start")
    assert version(pod.port) == "1"


def test_the_exported_dockerfile_builds_an_image_that_serves(engine: Podman, tmp_path: pathlib.Path) -> None:
    """Its base is made here, of this machine's Python with pip, under the name that the Dockerfile asks for."""
    folder = str(tmp_path)
    wheel = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, image.ROOT],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    if wheel.returncode != 0:
        pytest.skip(f"pip cannot make a wheel here: {wheel.stderr[-300:]}")
    with zipfile.ZipFile(os.path.join(folder, "greeting-1.0-py3-none-any.whl"), "w") as archive:
        archive.writestr("greeting.py", "HELLO = 'hello from a requirement'\n")
        archive.writestr("greeting-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        archive.writestr(
            "greeting-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("greeting-1.0.dist-info/RECORD", "")
    pages = {
        "web.py": "import greeting, os\ndef app(environ, start_response):\n    start_response('200 OK', [])\n"
        "    return [f'{os.getuid()} {greeting.HELLO}'.encode()]\n",
        "app.toml": '[app]\nname = "api"\ntarget = "web:app"\nbind = "127.0.0.1:8000"\npython = ".venv"\n',
        "requirements.txt": "greeting==1.0\n",
        ".env": "PASSWORD=must-not-be-in-the-image\n",
    }
    for name, text in pages.items():
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)
    done = subprocess.run(
        [sys.executable, "-m", "pyworker", "export", "docker", "-o", "."],
        cwd=folder, env=engine.pw.environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(os.path.join(folder, "Dockerfile")) as file:
        base = next(line.split()[1] for line in file if line.startswith("FROM "))
    changes = (
        f"ENV PATH={os.path.realpath(sys.base_prefix)}/bin:/usr/bin",
        "ENV PIP_NO_INDEX=1",
        "ENV PIP_FIND_LINKS=/wheels",
        "ENV PIP_ROOT_USER_ACTION=ignore",
    )
    greeting = os.path.join(folder, "greeting-1.0-py3-none-any.whl")
    with open(greeting, "rb") as file:
        content = file.read()
    os.unlink(greeting)
    engine.build(base, {"wheels/greeting-1.0-py3-none-any.whl": content}, changes, base_only=True)
    built = "localhost/pyworker-built:latest"
    engine.run("build", "--pull=never", "--layers=false", "--network", "host", "-t", built, folder)
    inspected = engine.run("inspect", built, "--format", "{{.Config.Entrypoint}} {{.Config.Cmd}} {{.Config.User}} {{.Config.StopSignal}}")
    command = "app.toml --python python3 --probe :8081 --bind 0.0.0.0:8000"
    assert inspected.strip() == f"[pyworker run] [{command}] 10001:10001 SIGTERM"
    port, probe_port = free_port(), free_port()
    engine.run(
        "run", "-d", "--name", "built", "--network", "host", "--read-only", built, "app.toml", "--python", "python3",
        "--probe", f"127.0.0.1:{probe_port}", "--bind", f"127.0.0.1:{port}",
    )  # fmt: skip
    wait_until(lambda: probe(probe_port, "/readyz")[0] == 200, LONG * 2, "readiness")
    assert engine.pw.get("/", port) == "10001 hello from a requirement"
    assert "must-not-be" not in engine.run("exec", "built", "python3", "-c", "import os; print(os.listdir('/app'))")
    assert ".env" not in engine.run("exec", "built", "python3", "-c", "import os; print(os.listdir('/app'))")
    engine.run("stop", "-t", "45", "built")


def test_the_exported_compose_file_comes_up_and_serves(engine: Podman) -> None:
    pytest.importorskip("podman_compose", reason="podman-compose is not installed (pip install podman-compose)")
    yaml = pytest.importorskip("yaml")
    pw = engine.pw
    pw.write("app.toml", APP)
    text = pw.ok("export", "compose", "api", "-f", "app.toml", "--image", IMAGE).stdout
    service = yaml.safe_load(text)["services"]["api"]
    port, probe_port = free_port(), free_port()
    # what this machine has not: a network for each container, and a systemd whose timers ask for health
    del service["ports"], service["build"]
    service["network_mode"] = "host"
    health = service["healthcheck"]["test"] = [
        word.replace("127.0.0.1:8081", f"127.0.0.1:{probe_port}") for word in service["healthcheck"]["test"]
    ]
    addresses = {"0.0.0.0:8000": f"127.0.0.1:{port}", ":8081": f"127.0.0.1:{probe_port}"}
    service["command"] = [addresses.get(word, word) for word in service["command"]]
    pw.write("compose.yaml", yaml.safe_dump({"services": {"api": service}}))
    with pytest.raises(AssertionError, match="set TOKEN"):
        engine.compose("up", "-d")
    pw.write(".env", "TOKEN=from-the-shell\n")  # where Compose looks for variables
    engine.compose("up", "-d")
    try:
        wait_until(lambda: probe(probe_port, "/readyz")[0] == 200, LONG * 2, "readiness")
        assert version(port) == "none"
        container = engine.run("ps", "--format", "{{.ID}}").split()[0]
        for worker in engine.workers(container):
            assert worker.uids().real == 10001
            assert worker.environ()["TOKEN"] == "from-the-shell"
        engine.run("exec", container, *health[1:])  # it exits 0 while the app is ready
        with pytest.raises(AssertionError):
            engine.run("exec", container, *(word.replace("/readyz", "/nothing") for word in health[1:]))
    finally:
        engine.compose("down", "-t", "45")
    assert pw.refuses(port)
