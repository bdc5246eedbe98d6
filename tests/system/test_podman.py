"""A real container engine: podman with runc, an image from this machine's files, nothing pulled. About half a minute."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import image
from tests.support.foreground import probe
from tests.support.pyworker import LONG, Pyworker, free_port
from tests.support.wait import wait_until

IMAGE = "localhost/pyworker-test:latest"
WEB = """
import os
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{os.getuid()} {os.environ.get('GREETING', '')}".encode()})
"""


class Podman:
    """With a storage and a configuration of its own."""

    def __init__(self, pw: Pyworker) -> None:
        self.pw = pw
        self.port, self.probe_port = free_port(), free_port()
        folder = pw.folder
        with open(os.path.join(folder, "containers.conf"), "w") as file:
            file.write(image.CONF)
        with open(os.path.join(folder, "storage.conf"), "w") as file:
            file.write(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/runroot"\n')
        self.environ = {
            **os.environ,
            "CONTAINERS_CONF": os.path.join(folder, "containers.conf"),
            "CONTAINERS_STORAGE_CONF": os.path.join(folder, "storage.conf"),
        }

    def run(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["podman", *arguments], env=self.environ, capture_output=True, text=True, timeout=180, check=False
        )
        assert not check or done.returncode == 0, f"podman {arguments}: {done.stderr}"
        return done.stdout + done.stderr

    def build(self) -> None:
        root = image.root_file_system()
        try:
            with open(os.path.join(root, "app/web.py"), "w") as file:
                file.write(WEB)
            with open(os.path.join(root, "app/app.toml"), "w") as file:
                file.write(f'[app]\nname = "api"\ntarget = "web:app"\nworkers = 2\nbind = "127.0.0.1:{self.port}"\n')
            archive = os.path.join(self.pw.folder, "image.tar")
            subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True, timeout=120)
            changes = ("ENV PATH=/usr/bin", 'ENTRYPOINT ["pyworker","run"]', "WORKDIR /app", "STOPSIGNAL SIGTERM")
            self.run("import", "-q", *(word for change in changes for word in ("-c", change)), archive, IMAGE)
            os.unlink(archive)
        finally:
            shutil.rmtree(root)


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    if not os.environ.get("CONTAINER_TESTS"):
        pytest.skip("takes more than a minute: make containers")
    if shutil.which("podman") is None or shutil.which("runc") is None:
        pytest.skip("podman and runc are not installed (apt install podman runc catatonit)")
    if os.geteuid() != 0:
        pytest.skip("rootless podman needs subordinate ids that a test machine seldom has")
    pw = Pyworker()
    try:
        made = Podman(pw)
        try:
            made.build()
            made.run("run", "--rm", "--network", "host", "--entrypoint", "sh", IMAGE, "-c", "exit 0")
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"podman cannot run a container here: {str(error)[-300:]}")
        yield made
    finally:
        made.run("pod", "rm", "-fa", "-t", "0", check=False)
        made.run("rm", "-fa", "-t", "0", check=False)
        made.run("rmi", "-fa", check=False)
        pw.close()


@pytest.mark.timeout(300)
def test_read_only_as_any_user_without_capabilities(podman: Podman) -> None:
    arguments = ("app.toml", "--probe", f"127.0.0.1:{podman.probe_port}")
    podman.run(
        "run", "-d", "--name", "one", "--network", "host", "--read-only", "--read-only-tmpfs=false",
        "--user", "4242:4242", "--cap-drop", "ALL", "-e", "GREETING=hello", IMAGE, *arguments,
    )  # fmt: skip
    wait_until(lambda: probe(podman.probe_port, "/readyz")[0] == 200, LONG * 2, "readiness")
    assert podman.pw.get("/", podman.port) == "4242 hello"
    podman.run("stop", "-t", "45", "one")
    assert podman.run("inspect", "one", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}").split() == [
        "0",
        "false",
    ]
    log = podman.run("logs", "one")
    assert "api stopped" in log
    assert "by SIGKILL" not in log


@pytest.mark.timeout(300)
def test_the_exported_deployment_serves_when_it_is_played(podman: Podman) -> None:
    yaml = pytest.importorskip("yaml")
    pw = podman.pw
    pw.write("app.toml", f'[app]\nname = "api"\ntarget = "web:app"\nworkers = 2\nbind = "127.0.0.1:{podman.port}"\n')
    text = pw.ok("export", "kubernetes", "-f", "app.toml", "--image", IMAGE).stdout
    deployment: dict[str, Any] = next(d for d in yaml.safe_load_all(text) if d and d["kind"] == "Deployment")
    # what this engine has not: a network of its own here, replicas, and HTTP probes without curl in the image
    deployment["spec"]["replicas"] = 1
    pod = deployment["spec"]["template"]["spec"]
    pod["hostNetwork"] = True
    container = pod["containers"][0]
    for key in ("ports", "startupProbe", "readinessProbe", "livenessProbe", "resources"):
        container.pop(key)
    container["args"] = [
        a.replace("0.0.0.0", "127.0.0.1").replace(":8081", f"127.0.0.1:{podman.probe_port}") for a in container["args"]
    ]
    path = pw.write("played.yaml", yaml.safe_dump(deployment))
    podman.run("kube", "play", "--network", "host", path)
    wait_until(lambda: probe(podman.probe_port, "/readyz/api")[0] == 200, LONG * 2, "readiness")
    assert pw.get("/", podman.port).startswith("10001")
    podman.run("kube", "down", path)
    assert pw.refuses(podman.port)
