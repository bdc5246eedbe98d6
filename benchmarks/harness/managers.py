"""Managers with many small apps (`sleep`): pyworker, circus, supervisor, pm2. How each is started, listed and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from typing import Self

from benchmarks.harness import peers, procs
from benchmarks.harness.servers import PYWORKER, Missing, guardian_pid, pyworker_env

NAMES = ("pyworker", "circus", "supervisor", "pm2")
SLEEP = "1000"


class Manager:
    """One manager with `count` apps of one process each. `started` = seconds until all processes were there."""

    def __init__(self, name: str, count: int, command: list[str] | None = None) -> None:
        self.name, self.count = name, count
        self.command = command or ["/bin/sleep", SLEEP]
        self.mark = self.command[0] if command is None else command[1]
        self.folder = tempfile.mkdtemp(prefix="pyworker-bench-")
        self.home = os.path.join(self.folder, "home")
        self.env = pyworker_env(self.home) if name == "pyworker" else peers.environment()
        self.process: subprocess.Popen[bytes] | None = None
        self.root = 0
        self.listing: list[str] = []
        self.started = 0.0
        try:
            getattr(self, f"_{name}")()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- each manager ------------------------------------------------------------------------------------
    def _pyworker(self) -> None:
        self.listing = [PYWORKER, "ps"]
        path = os.path.join(self.folder, "app.toml")
        with open(path, "w") as file:
            file.writelines(f'[apps.app{number:03d}]\ncommand = {json.dumps(self.command)}\n\n' for number in range(self.count))
        self._run([PYWORKER, "daemon", "start"], check=False)  # the peers' daemons have begun when their clocks do, too
        began = time.perf_counter()
        self.root = guardian_pid(self.home)
        with subprocess.Popen([PYWORKER, "start", "-q", path], env=self.env, stderr=subprocess.PIPE, text=True, cwd="/") as start:
            self._wait()  # as for the peers: all processes are there. The command waits a second longer: do they live?
            self.started = time.perf_counter() - began
            _, told = start.communicate(timeout=180)
        if start.returncode:
            raise RuntimeError(told[-300:])

    def _circus(self) -> None:
        ports = [procs.free_port() for _ in range(3)]
        path = os.path.join(self.folder, "circus.ini")
        with open(path, "w") as file:
            file.write(f"[circus]\nendpoint=tcp://127.0.0.1:{ports[0]}\npubsub_endpoint=tcp://127.0.0.1:{ports[1]}\n")
            for number in range(self.count):
                out = ""
                if self.command[0] != "/bin/sleep":
                    log = os.path.join(self.folder, f"app{number}.log")
                    out = f"stdout_stream.class=FileStream\nstdout_stream.filename={log}\n"
                file.write(f"[watcher:app{number:03d}]\ncmd={' '.join(self.command)}\n{out}")
        self.listing = [peers.tool("circusctl"), "--endpoint", f"tcp://127.0.0.1:{ports[0]}", "status"]
        self._daemon([peers.tool("circusd"), "--log-level", "critical", path])

    def _supervisor(self) -> None:
        path = os.path.join(self.folder, "supervisord.conf")
        sock = os.path.join(self.folder, "sock")
        with open(path, "w") as file:
            file.write(
                f"[supervisord]\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={self.folder}/pid\nnodaemon=true\nminfds=4096\n"
                f"childlogdir={self.folder}\n[unix_http_server]\nfile={sock}\n[supervisorctl]\nserverurl=unix://{sock}\n"
                "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            )
            for number in range(self.count):
                log = os.path.join(self.folder, f"app{number}.log")
                file.write(
                    f"[program:app{number:03d}]\ncommand={' '.join(self.command)}\nstdout_logfile={log}\n"
                    "stdout_logfile_maxbytes=0\nredirect_stderr=true\n"
                )
        self.listing = [peers.tool("supervisorctl"), "-c", path, "status"]
        self._daemon([peers.tool("supervisord"), "-c", path])

    def _pm2(self) -> None:
        if not os.path.exists(peers.PM2):
            raise Missing("pm2 is not installed")
        self.env.update(PM2_HOME=os.path.join(self.folder, "pm2"), PM2_DISCRETE_MODE="1")
        self.listing = [peers.PM2, "ls"]
        path = os.path.join(self.folder, "ecosystem.config.js")
        apps = [
            {"name": f"app{n:03d}", "script": self.command[0], "args": self.command[1:], "interpreter": "none"}
            for n in range(self.count)
        ]
        with open(path, "w") as file:
            file.write("module.exports = { apps: " + json.dumps(apps) + " }")
        self._run([peers.PM2, "ping"], check=False)
        with open(os.path.join(self.folder, "pm2", "pm2.pid")) as file:
            self.root = int(file.read())
        began = time.perf_counter()
        self._run([peers.PM2, "start", path], check=False)
        self.started = time.perf_counter() - began
        self._wait()

    # ---- all -----------------------------------------------------------------------------------------------
    def _run(self, argv: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=180, check=check, cwd="/")

    def _daemon(self, argv: list[str]) -> None:
        if not os.path.exists(argv[0]):
            raise Missing(f"{argv[0]} is not installed")
        began = time.perf_counter()
        self.process = subprocess.Popen(
            argv, env=self.env, start_new_session=True, stdin=subprocess.DEVNULL, cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.root = self.process.pid
        self._wait()
        self.started = time.perf_counter() - began

    def _wait(self) -> None:
        procs.wait_for(lambda: len(self.apps()) >= self.count, 120, f"{self.name} starts {self.count} apps", 0.02)

    def apps(self) -> list[int]:
        """Return the pids of the apps' processes."""
        return [pid for pid in procs.tree(self.root) if self.mark in procs.name(pid).split(" ")[:2] and pid != self.root]

    def own(self) -> list[int]:
        """Return the pids of the manager's own processes."""
        apps = set(self.apps())
        return [pid for pid in procs.tree(self.root) if pid not in apps]

    def log_files(self) -> list[str]:
        folder = {"pyworker": "home/logs", "pm2": "pm2/logs"}.get(self.name, "")
        base = os.path.join(self.folder, folder)
        return [
            os.path.join(base, each) for each in os.listdir(base) if "app000" in each.replace("app0.", "app000.")
            and ".err" not in each and "error" not in each
        ]  # fmt: skip

    def stop(self) -> None:
        if self.name == "pyworker":
            self._run([PYWORKER, "daemon", "stop", "-y"], check=False)
            with contextlib.suppress(LookupError):  # it may have been told while its daemon was being started again
                procs.end_tree(guardian_pid(self.home))
        elif self.name == "pm2":
            self._run([peers.PM2, "kill"], check=False)
        if self.process is not None:
            procs.end_tree(self.process.pid)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
