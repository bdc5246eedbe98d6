"""Contenders that serve one app behind one port: how each is started, reloaded and stopped, and who its workers are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.harness import peers, procs

PYWORKER = peers.tool("pyworker")

# A worker that dies within 10 s counts as crashing, and waits longer and longer; the benchmarks kill faster than that.
OFTEN = '[app.restart]\nmin_uptime = "0.1s"\nmax_restarts = 1000\n'


class Missing(Exception):
    """This contender is not installed here."""


@dataclass
class Spec:
    """What to serve: `app` is "hello" or "heavy", `kind` asgi or wsgi."""

    app: str = "hello"
    kind: str = "asgi"
    workers: int = 2
    threads: int = 1
    preload: bool = False
    folder: str = ""  # where the app is, when it is not in apps/
    extra: str = ""  # more lines of app.toml (pyworker only)

    @property
    def cwd(self) -> str:
        return self.folder or (os.path.join(peers.APPS, "heavy") if self.app == "heavy" else peers.APPS)

    @property
    def target(self) -> str:
        return f"heavyapp:{self.kind}" if self.app == "heavy" else f"hello:{self.kind}"


@dataclass
class Running:
    """One running contender. `root` is the process whose descendants (itself included) are all of it."""

    name: str
    spec: Spec
    port: int
    process: subprocess.Popen[bytes] | None = None
    folder: str = ""
    env: dict[str, str] = field(default_factory=dict)
    root: int = 0
    stopper: Callable[[], None] | None = None
    reloader: Callable[[], None] | None = None

    def pids(self) -> list[int]:
        return procs.tree(self.root)

    def reload(self) -> None:
        assert self.reloader is not None
        self.reloader()

    def stop(self) -> None:
        if self.stopper is not None:
            self.stopper()
        if self.process is not None:
            procs.end_tree(self.process.pid)
            self.process.wait()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def workers_seen(self, count: int, path: str = "/pid", tries: int = 4000) -> set[int]:
        """Ask until `count` different workers have answered; return their pids."""
        from benchmarks.harness.load import ask

        seen: set[int] = set()
        for _ in range(tries):
            seen.add(int(ask(self.port, path)))
            if len(seen) >= count:
                return seen
        return seen


def start(name: str, spec: Spec) -> Running:
    """Start a contender and wait until it answers."""
    port = procs.free_port()
    env = peers.environment()
    folder = tempfile.mkdtemp(prefix="pyworker-bench-")
    running = Running(name, spec, port, folder=folder, env=env)
    try:
        if name.startswith("pyworker"):
            _pyworker(running)
        elif name.startswith("pm2"):
            _pm2(running)
        else:
            _process(running)
        procs.wait_for(lambda: procs.answers(port), 60, f"{name} answers")
    except BaseException:
        running.stop()
        raise
    return running


# ---- pyworker ------------------------------------------------------------------------------------------
def pyworker_env(home: str) -> dict[str, str]:
    return {**peers.environment(), "PYWORKER_HOME": home, "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}


def pyworker(env: dict[str, str], *arguments: str, timeout: float = 120) -> str:
    done = subprocess.run([PYWORKER, *arguments], env=env, capture_output=True, text=True, timeout=timeout, check=False, cwd="/")
    if done.returncode:
        raise RuntimeError(f"pyworker {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def guardian_pid(home: str) -> int:
    """Return the pid of the guardian of a home: the one process that was started with it and is nobody's of ours."""
    for pid, parent in procs.parents().items():
        if "pyworker guardian" in procs.name(pid):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if f"PYWORKER_HOME={home}\0".encode() in file.read() + b"\0":
                        return pid
                for link in os.listdir(f"/proc/{pid}/fd"):
                    if os.readlink(f"/proc/{pid}/fd/{link}").startswith(home):
                        return pid
            except OSError:
                continue
            del parent
    raise LookupError(f"no guardian of {home}")


def _pyworker(running: Running) -> None:
    spec = running.spec
    home = os.path.join(running.folder, "home")
    running.env = pyworker_env(home)
    path = os.path.join(running.folder, "app.toml")
    extra = spec.extra
    if running.name.endswith("shared"):
        extra += '\nbalance = "shared"'
    for way in ("least-connections", "proxy"):
        if running.name.endswith(way):
            extra += f'\nbalance = "{way}"'
    threads = f"threads = {spec.threads}\n" if spec.kind == "wsgi" and spec.threads > 1 else ""
    with open(path, "w") as file:
        file.write(
            f'[app]\nname = "bench"\ntarget = "{spec.target}"\nworkers = {spec.workers}\ncwd = "{spec.cwd}"\n'
            f'bind = "127.0.0.1:{running.port}"\npython = "{peers.PYTHON}"\n{threads}{extra}\n'
        )

    def stop() -> None:
        subprocess.run([PYWORKER, "daemon", "stop", "-y"], env=running.env, capture_output=True, timeout=60, check=False)

    running.stopper = stop
    running.reloader = lambda: void(pyworker(running.env, "reload", "bench"))
    pyworker(running.env, "start", "-q", path)
    running.root = guardian_pid(home)


def void(_: object) -> None:
    """Take a result and drop it."""


# ---- peers -----------------------------------------------------------------------------------------------
def _command(running: Running) -> list[str]:
    spec, port = running.spec, running.port
    workers, target = str(spec.workers), spec.target
    match running.name.split(" ")[0]:
        case "uvicorn":
            return [
                peers.tool("uvicorn"), target, "--workers", workers, "--port", str(port), "--host", "127.0.0.1",
                "--no-access-log", "--log-level", "warning",
            ]  # fmt: skip
        case "granian":
            threads = ["--blocking-threads", str(spec.threads)] if spec.kind == "wsgi" else []
            return [
                peers.tool("granian"), "--interface", spec.kind, "--workers", workers, "--host", "127.0.0.1", "--port", str(port),
                "--loop", "uvloop", "--no-log", "--respawn-failed-workers", *threads, target,
            ]  # fmt: skip
        case "gunicorn":
            kind = ["-k", "gthread", "--threads", str(spec.threads)] if spec.kind == "wsgi" else ["-k", "asgi"]
            if spec.kind == "wsgi" and "sync" in running.name:
                kind = ["-k", "sync"]
            preload = ["--preload"] if spec.preload else []
            return [
                peers.tool("gunicorn"), *kind, *preload, "-w", workers, "-b", f"127.0.0.1:{port}", "--log-level", "error",
                "--keep-alive", "75", "--graceful-timeout", "10", target,
            ]  # fmt: skip
        case "uwsgi":
            return [
                peers.tool("uwsgi"), "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", workers, "--module", target,
                "--disable-logging", "--logto", "/dev/null", "--need-app", "--die-on-term", "--http-keepalive",
            ]  # fmt: skip
        case "node":
            return ["node", os.path.join(peers.APPS, "server.js")]
        case "bare":
            turns = ["turns"] if running.name.endswith("turns") else []
            return [peers.PYTHON, os.path.join(peers.APPS, "bare.py"), str(port), workers, *turns]
        case "nginx":
            return [str(peers.binary("nginx")), "-p", running.folder, "-c", os.path.join(running.folder, "nginx.conf")]
        case "supervisor":
            return [peers.tool("supervisord"), "-n", "-c", os.path.join(running.folder, "supervisord.conf")]
        case "circus":
            return [peers.tool("circusd"), "--log-level", "critical", os.path.join(running.folder, "circus.ini")]
    raise Missing(running.name)


def _uvicorn_on_fd(running: Running, fd: str) -> str:
    """Return the command that a manager without a server of its own runs: uvicorn on the manager's socket."""
    return f"{peers.tool('uvicorn')} {running.spec.target} --fd {fd} --no-access-log --log-level warning"


def _process(running: Running) -> None:
    spec, name = running.spec, running.name
    env, folder = running.env, running.folder
    env["PYTHONPATH"] = spec.cwd
    if name.startswith("node"):
        env.update(WORKERS=str(spec.workers), PORT=str(running.port))
        env["NODE_CLUSTER_SCHED_POLICY"] = "rr" if "round robin" in name else "none"
    elif name == "nginx":
        os.makedirs(os.path.join(folder, "www"))
        os.chmod(folder, 0o755)
        with open(os.path.join(folder, "www", "index.html"), "w") as file:
            file.write("Hello, world!\n")
        temp = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        with open(os.path.join(folder, "nginx.conf"), "w") as file:
            file.write(
                f"daemon off; worker_processes {spec.workers}; pid {folder}/pid; error_log {folder}/error.log;"
                "events { worker_connections 20000; } http { access_log off; keepalive_requests 100000000; " + temp +
                f"server {{ listen 127.0.0.1:{running.port} backlog=2048; root {folder}/www; }} }}"
            )  # fmt: skip
    elif name == "supervisor":
        with open(os.path.join(folder, "supervisord.conf"), "w") as file:
            file.write(
                f"[supervisord]\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={folder}/pid\nnodaemon=true\n"
                f"[fcgi-program:app]\nsocket=tcp://127.0.0.1:{running.port}\ncommand={_uvicorn_on_fd(running, '0')}\n"
                f"directory={spec.cwd}\nnumprocs={spec.workers}\nprocess_name=app%(process_num)s\nautorestart=true\n"
            )
    elif name == "circus":
        with open(os.path.join(folder, "circus.ini"), "w") as file:
            ports = [procs.free_port() for _ in range(3)]
            file.write(
                f"[circus]\nendpoint=tcp://127.0.0.1:{ports[0]}\npubsub_endpoint=tcp://127.0.0.1:{ports[1]}\n"
                f"[watcher:app]\ncmd={_uvicorn_on_fd(running, '$(circus.sockets.web)')}\nuse_sockets=True\ncopy_env=True\n"
                f"working_dir={spec.cwd}\nnumprocesses={spec.workers}\n[socket:web]\nhost=127.0.0.1\nport={running.port}\n"
            )
    command = _command(running)
    if not os.path.exists(command[0]) and shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not installed")
    running.process = subprocess.Popen(
        command, cwd=spec.cwd, env=env, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    running.root = running.process.pid
    running.reloader = lambda: os.kill(running.root, signal.SIGHUP)
    if name == "circus":
        endpoint = f"tcp://127.0.0.1:{ports[0]}"
        running.reloader = lambda: void(
            subprocess.run([peers.tool("circusctl"), "--endpoint", endpoint, "reload", "app"], capture_output=True, check=False)
        )


def _pm2(running: Running) -> None:
    if not os.path.exists(peers.PM2):
        raise Missing("pm2 is not installed")
    env = running.env
    env.update(PM2_HOME=os.path.join(running.folder, "pm2"), PORT=str(running.port), PM2_DISCRETE_MODE="1")
    path = os.path.join(running.folder, "ecosystem.config.js")
    with open(path, "w") as file:
        apps = [
            {
                "name": "bench", "script": os.path.join(peers.APPS, "server.js"), "instances": running.spec.workers,
                "exec_mode": "cluster", "env": {"PORT": str(running.port)},
            }
        ]  # fmt: skip
        file.write("module.exports = { apps: " + json.dumps(apps) + " }")

    def run(*arguments: str) -> None:
        subprocess.run([peers.PM2, *arguments], env=env, capture_output=True, timeout=120, check=False, cwd=running.folder)

    running.stopper = lambda: run("kill")
    running.reloader = lambda: run("reload", "bench")
    run("start", path)
    with open(os.path.join(running.folder, "pm2", "pm2.pid")) as file:
        running.root = int(file.read())


def kill_and_wait(running: Running, pids: set[int], *, limit: float = 20) -> float:
    """kill -9 these workers; return the milliseconds until a process that was none of them answers."""
    from benchmarks.harness.load import Refused, ask

    began = time.perf_counter()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while time.perf_counter() - began < limit:
        try:
            if int(ask(running.port, "/pid", timeout=limit)) not in pids:
                return (time.perf_counter() - began) * 1000
        except (Refused, OSError, ValueError):
            time.sleep(0.0002)
    raise TimeoutError(f"{running.name}: no replacement within {limit} s")
