"""podman for one test run: a storage and a configuration of its own, images of this machine's files, nothing pulled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support import image
from tests.support.pyworker import Pyworker

IMAGE = "localhost/pyworker-test:latest"


class Podman:
    """`run` is the command. What it has made is gone at the end."""

    def __init__(self, pw: Pyworker) -> None:
        self.pw = pw
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

    def run(self, *arguments: str, check: bool = True, cwd: str | None = None) -> str:
        done = subprocess.run(
            ["podman", *arguments], env=self.environ, capture_output=True, text=True, timeout=280, check=False, cwd=cwd
        )
        assert not check or done.returncode == 0, f"podman {arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def compose(self, *arguments: str) -> None:
        """Run podman-compose on the compose.yaml of the test's folder."""
        done = subprocess.run(
            [sys.executable, "-m", "podman_compose", "-f", "compose.yaml", *arguments],
            env={**self.environ, "DISABLE_HC_SYSTEMD": "true"}, cwd=self.pw.folder,
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"podman-compose {arguments}: {done.stdout}{done.stderr}"

    def build(self, name: str, files: dict[str, bytes], changes: tuple[str, ...], *, base_only: bool = False) -> None:
        """Make an image with these files. `base_only`: Python and pip are there, pyworker is not."""
        root = image.root_file_system(base_only=base_only)
        try:
            for path, content in files.items():
                os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
                with open(os.path.join(root, path), "wb") as file:
                    file.write(content)
            archive = os.path.join(self.pw.folder, "image.tar")
            subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True, timeout=120)
            self.run("import", "-q", *(word for change in changes for word in ("-c", change)), archive, name)
            os.unlink(archive)
        finally:
            shutil.rmtree(root)

    def play(self, name: str, documents: list[dict[str, Any]]) -> str:
        """Play Kubernetes documents; return the id of their container, if there is one."""
        yaml = pytest.importorskip("yaml")
        said = self.run("kube", "play", "--network", "host", self.pw.write(name, yaml.safe_dump_all(documents)))
        return said.partition("Container:\n")[2].partition("\n")[0]

    def processes(self, container: str) -> list[psutil.Process]:
        """Process 1 of a container as it is known outside, and all below it."""
        first = psutil.Process(int(self.run("inspect", container, "--format", "{{.State.Pid}}")))
        return [first, *first.children(recursive=True)]

    def workers(self, container: str) -> list[psutil.Process]:
        found = []
        for process in self.processes(container):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile, and may be a zombie
                if " ".join(process.cmdline()).startswith("pyworker worker"):
                    found.append(process)
        return found


@contextlib.contextmanager
def podman() -> Iterator[Podman]:
    """Yield it, or skip with the reason: nothing about pyworker is known where no container can run."""
    if not os.environ.get("CONTAINER_TESTS"):
        pytest.skip("takes minutes: make containers")
    if shutil.which("podman") is None or shutil.which("runc") is None:
        pytest.skip("podman and runc are not installed (apt install podman runc catatonit)")
    if os.geteuid() != 0:
        pytest.skip("rootless podman needs subordinate ids that a test machine seldom has")
    pw = Pyworker()
    try:
        made = Podman(pw)
        try:
            with open(os.path.join(image.ROOT, "tests/chaos/app.py"), "rb") as file:
                web = file.read()
            files = {"app/web.py": web, "app/version.py": VERSION.encode(), "app/app.toml": APP.encode()}
            changes = ("ENV PATH=/usr/bin", 'ENTRYPOINT ["pyworker","run"]', "WORKDIR /app", "STOPSIGNAL SIGTERM")
            made.build(IMAGE, files, changes)
            made.run("run", "--rm", "--network", "host", "--entrypoint", "sh", IMAGE, "-c", "exit 0")
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"podman cannot run a container here: {str(error)[-300:]}")
        yield made
    finally:
        made.run("pod", "rm", "-fa", "-t", "0", check=False)
        made.run("rm", "-fa", "-t", "0", check=False)
        made.run("rmi", "-fa", check=False)
        pw.close()


VERSION = "import os\nVERSION = os.environ.get('VERSION', 'none')\n"
APP = """
[apps.api]
target = "web:app"
workers = 2
bind = "127.0.0.1:8000"
env = { VERSION = "${VERSION:-none}", TOKEN = "${TOKEN}" }

[apps.fat]
command = ["python3", "-c", "import time; x = b'x' * (95 * 2**20); time.sleep(1000)"]
limits.memory = "auto"
"""
