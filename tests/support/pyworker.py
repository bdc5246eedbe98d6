"""A whole pyworker for one test: a home and a folder of its own, commands run as a user would, nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pyworker.cli.client import Call, ask
from pyworker.errors import PyworkerError
from tests.support import control
from tests.support.certificates import make_certificate
from tests.support.rawhttp import Client
from tests.support.wait import wait_until

LONG = 30.0  # seconds: no test waits for a length of time, so this is what a very busy machine may take
KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])  # (6, 12)
_SUBREAPER = 36


class Pyworker:
    """`run` is the command line; all the rest looks at what it made. Orphans come to the test process (subreaper)."""

    def __init__(self) -> None:
        # not pytest's tmp_path: Unix sockets live here and their paths have 107 bytes
        self.folder = tempfile.mkdtemp(prefix="pw-")
        self.home = os.path.join(self.folder, "home")
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYWORKER_", "LISTEN_", "PYTHON"))}
        self.environ.update(PYWORKER_HOME=self.home, CI="1", NO_COLOR="1", LC_ALL="C.UTF-8")
        self.python = sys.executable
        self.port = free_port()
        self._ports = [self.port]
        self._before = {child.pid for child in psutil.Process().children(recursive=True)}
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)

    # ---- making ----------------------------------------------------------------------------------------
    def another_port(self) -> int:
        port = free_port()
        self._ports.append(port)
        return port

    def until_blocked(self) -> None:
        """Wait until a worker is in the /block of tests/support/sources.py."""
        wait_until(lambda: os.path.exists(os.path.join(self.folder, "blocked")), LONG, "a worker to be blocked")

    def write(self, name: str, text: str) -> str:
        """Write a file of the app."""
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def api(self, source: str, *, top: str = "", tables: str = "", workers: int = 2, bind: str = "") -> None:
        """Write web.py and app.toml with one app, `api`."""
        self.write("web.py", source)
        bind = bind or f"127.0.0.1:{self.port}"
        self.write(
            "app.toml",
            f'[app]\nname = "api"\ntarget = "web:app"\nworkers = {workers}\nbind = "{bind}"\n{top}\n{tables}\n',
        )

    def make_certificate(self, name: str, *, valid: tuple[float, float] | None = None) -> None:
        """Write cert.pem and key.pem; see support/certificates.py."""
        make_certificate(self.folder, name, valid=valid)

    def make_failpoints(self) -> None:
        """Before the first start: make the folder that `arm` writes to."""
        self.environ["PYWORKER_FAILPOINTS"] = os.path.join(self.folder, "failpoints")
        os.mkdir(self.environ["PYWORKER_FAILPOINTS"])

    def arm(self, point: str, action: str) -> str:
        """Have something go wrong at a point; see pyworker/failpoint.py. Returns the file that arms it."""
        path = os.path.join(self.environ["PYWORKER_FAILPOINTS"], point)
        with open(path + ".new", "w") as file:
            file.write(action)
        os.rename(path + ".new", path)
        return path

    # ---- the command line --------------------------------------------------------------------------------
    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, "-m", "pyworker", *arguments],
            env=self.environ, cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        process = self.popen(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"pyworker {' '.join(arguments)} hangs\n{out}\n{err}\n{self.daemon_log()}") from None
        assert "Traceback" not in err or "pyworker/cli" not in err, err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def ok(self, *arguments: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        done = self.run(*arguments, timeout=timeout)
        assert done.returncode == 0, (
            f"{arguments} -> {done.returncode}\n{done.stdout}\n{done.stderr}{self.daemon_log()}"
        )
        return done

    def ok_listening(self, *arguments: str) -> None:
        """Start programs that bind for themselves, and wait for that: one that takes long for it counts as ready before."""
        self.ok(*arguments)
        wait_until(lambda: all(app["listen"] for app in self.ps()["apps"]), LONG, "their ports")

    # ---- what it says, asked without a process for each question: those were a fifth of the work of all tests -------
    def _ask(self, kind: str, **more: object) -> dict[str, Any]:
        return ask(self.environ["PYWORKER_HOME"], {"type": kind, **more})

    def ps(self) -> dict[str, Any]:
        return self._ask("ps", selectors=[], sample=True)

    def app(self, name: str = "api") -> dict[str, Any]:
        return next(app for app in self.ps()["apps"] if app["name"] == name)

    def pids(self, name: str = "api") -> list[int]:
        """The pids of the workers, by slot; among them, after a reload or a scale, those that are leaving."""
        return [worker["pid"] for worker in self.app(name)["pool"] if worker["pid"]]

    def status(self) -> dict[str, Any]:
        """Empty while no daemon answers."""
        try:
            return self._ask("status")
        except PyworkerError:
            return {}

    def role(self, role: str) -> int:
        """The pid of the daemon, guardian, logger, or of the template of `api`."""
        if role == "template":
            template = self.describe_template()
            assert template, "no template of api answers"
            return template
        return int(self.status()["pid" if role == "daemon" else f"{role}_pid"])

    def fds(self, *pids: int) -> list[int]:
        """How many descriptors each of these has, while the daemon holds no connection of a command."""
        with Call(self.environ["PYWORKER_HOME"], {"type": "status"}) as call:
            list(call.answers(None, None))
            closed = select.poll()
            closed.register(call, select.POLLRDHUP)
            assert closed.poll(LONG * 1000), "the daemon keeps the connection of a command that has its answer"
        return [open_fds(pid) for pid in pids]

    def wait_rest(self, *pids: int) -> None:
        """Wait for the worker ahead of need, and until each of these sleeps: it has taken in what those before it had to tell."""
        self.spare()
        for pid in pids:
            process = psutil.Process(pid)
            wait_until(lambda p=process: p.status() == psutil.STATUS_SLEEPING, LONG, f"{pid} to be done")  # type: ignore[misc]

    def spares(self, generation: int = 0) -> list[int]:
        """The workers that templates have forked ahead of need, of one generation or of all."""
        wanted = f"(generation {generation})" if generation else ""
        return [pid for pid, title in self.titles().items() if title.startswith("pyworker spare ") and wanted in title]

    def spare(self, *but: int) -> int:
        """Wait for a spare that is none of these."""
        return wait_until(lambda: next((pid for pid in self.spares() if pid not in but), 0), LONG, "a spare")

    def describe_template(self) -> int:
        """The pid of the template of `api`, 0 while there is none or nobody answers."""
        found = self._described("template")
        return int(found["pid"]) if found else 0

    def dispatcher(self) -> int:
        """The pid of the dispatcher of `api` that is ready; 0 while there is none or nobody answers."""
        found = self._described("dispatcher")
        return int(found["pid"]) if found and found["state"] == "ready" else 0

    def _described(self, key: str) -> Any:
        try:
            (app,) = self._ask("describe", selectors=["api"], reveal=False)["apps"]
        except PyworkerError:
            return None
        return app[key]

    def wait_steady(self, name: str = "api") -> dict[str, Any]:
        """Wait until the app has exactly the workers it wants, all alive, and nothing is under way; return it."""

        def steady() -> dict[str, Any] | None:
            try:
                apps = self.ps()["apps"]
            except PyworkerError:
                return None
            for app in apps:
                if app["name"] != name or app["state"] in ("starting", "reloading", "stopping"):
                    continue
                count = app["workers"]
                alike = count["want"] == count["ready"] == count["total"]
                if alike and all(alive(worker["pid"]) for worker in app["pool"]):  # a death may not be known yet
                    return app  # type: ignore[no-any-return]
            return None

        try:
            return wait_until(steady, LONG, f"{name} to be steady")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.run('ps', '-w').stdout}") from None

    def wait_restarts(self, count: int, name: str = "api") -> None:
        """Wait until this many deaths are counted and told: of a worker that had lived long enough its successor comes first."""

        def counted() -> bool:
            with contextlib.suppress(PyworkerError):
                return bool(self.app(name)["restarts"]["total"] == count)
            return False

        wait_until(counted, LONG, f"{count} restarts of {name}")

    def get(self, path: str = "/", port: int = 0, timeout: float = LONG) -> str:
        with Client(("127.0.0.1", port or self.port), timeout=timeout) as client:
            answer = client.get(path, "Connection: close")
        assert answer is not None, "closed without an answer"
        assert answer.status == 200, answer
        return answer.body.decode()

    def refuses(self, port: int = 0) -> bool:
        return port_is_closed(port or self.port)

    # ---- the end -----------------------------------------------------------------------------------------
    def daemon_log(self) -> str:
        try:
            with open(os.path.join(self.home, "logs", "pyworker.log"), errors="replace") as file:
                return file.read()[-4000:]
        except OSError:
            return ""

    def processes(self) -> list[psutil.Process]:
        """Every live process that came out of this test, by descent."""
        found = []
        for child in psutil.Process().children(recursive=True):
            if child.pid in self._before:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() == psutil.STATUS_ZOMBIE:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(child.pid, os.WNOHANG)
                else:
                    found.append(child)
        return found

    def titles(self) -> dict[int, str]:
        """The command lines of these processes, by pid, without those that have ended meanwhile."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found[process.pid] = " ".join(process.cmdline())
        return found

    def close(self) -> None:
        """Stop all; what the stop leaves is a failure of the test, and is killed."""
        try:
            with contextlib.suppress(AssertionError):  # a process less, where nothing is amiss
                home = self.environ.get("PYWORKER_HOME")  # else the command finds it
                answer = control.ask(home, {"type": "shutdown", "now": True}, 5) if home else None
                if answer is not None and answer["type"] == "reply":
                    wait_until(lambda: not self.processes(), LONG, "the end of all processes")
            stopped = self.run("daemon", "stop", "-y", "--now", "--timeout", "40s") if self.processes() else None
            try:
                wait_until(lambda: not self.processes(), LONG, "the end of all processes")
            except AssertionError:
                left = self.titles()
                said = stopped.stderr if stopped is not None else ""
                raise AssertionError(f"left over: {left}\n{said}{self.daemon_log()}") from None
            for port in self._ports:
                assert port_is_closed(port), f"port {port} is still open"
        finally:
            self._kill_all()
            ctypes.CDLL(None).prctl(_SUBREAPER, 0, 0, 0, 0)
            shutil.rmtree(self.folder)

    def _kill_all(self) -> None:
        def none_left() -> bool:
            left = self.processes()
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            return not left

        wait_until(none_left, LONG, "the killed processes to be gone")


def open_fds(pid: int) -> int:
    """How many descriptors it has. Only root may list those of ours (not dumpable); Linux 6.2 tells all how many."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        count = os.stat(f"/proc/{pid}/fd").st_size
        if not count:
            pytest.skip("before Linux 6.2 only root may count the descriptors of a process that is not dumpable")
        return count


def alive(pid: int) -> bool:
    """Whether this process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def has_zombies(pid: int) -> bool:
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # collected between the two looks
            if child.status() == psutil.STATUS_ZOMBIE:
                return True
    return False


def kill(pid: int) -> None:
    """kill -9, and wait until it has happened."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), LONG, f"{pid} to die")


def open_to_all(folder: str) -> None:
    """Let every user enter; the test is skipped where they do not come that far, as in a TMPDIR of root's own."""
    os.chmod(folder, 0o755)
    closed = [str(above) for above in Path(folder).parents if not above.stat().st_mode & 0o001]
    if closed:
        pytest.skip(f"other users may not enter {closed[0]}")


def _claim_ports() -> tuple[socket.socket, Iterator[int]]:
    """Claim 250 ports for this process: no other one that tests, of this run or of another, takes one of them."""
    for first in range(20_000, 32_000, 250):
        claim = socket.socket(socket.AF_UNIX)  # held until the process ends
        try:
            claim.bind(f"\0pyworker-tests-ports-{first}")
        except OSError:
            claim.close()
            continue
        return claim, itertools.cycle(range(first, first + 250))
    raise AssertionError("48 processes that test have claimed all ports")


_claim, _ports = _claim_ports()  # now, not in a test: it would have to give the socket back


def free_port() -> int:
    """Return a port that is free, and that neither the kernel nor another test gives to somebody meanwhile.

    The kernel hands out those from 32768 on, to every client and server that does not care: also the one that this test will
    bind in a moment.
    """
    for port in itertools.islice(_ports, 250):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("none of 250 ports is free")


def port_is_closed(port: int) -> bool:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            continue  # it was closed while this connection waited there
        return False


@contextlib.contextmanager
def running() -> Iterator[Pyworker]:
    """A Pyworker that is closed at the end; a failure of the test is not hidden by one of the closing."""
    pw = Pyworker()
    try:
        yield pw
    finally:
        pw.close()
