"""Ten things that go wrong for somebody new: each ends with what to do next, in words, and nothing half started."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import documents
from tests.support.fake_control import FakeControl, refuses, replies
from tests.support.pyworker import LONG, Pyworker, kill, running
from tests.support.sources import ASGI
from tests.support.wait import wait_until

HELP = "  = help: "


def said(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The message of a command that failed: stdout is empty, the cause comes first, the last line is the next step."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert any(line.startswith("error: ") for line in lines), done.stderr
    assert lines[-1].startswith((HELP, "           ")), done.stderr
    assert "pyworker/cli" not in done.stderr
    return done.stderr


def run_in(pw: Pyworker, folder: str, *args: str) -> subprocess.CompletedProcess[str]:
    here, pw.folder = pw.folder, os.path.join(pw.folder, folder)
    try:
        return pw.run(*args)
    finally:
        pw.folder = here


# ---- 1 the wrong directory -------------------------------------------------------------------------
def test_in_a_folder_beside_or_below_the_right_one_it_says_where_the_file_is(pw: Pyworker) -> None:
    pw.write("shop/app.toml", '[app]\ntarget = "shop.main:app"\n')
    pw.write("shop/docs/readme", "")
    assert f"{HELP}there is one in another folder: cd shop" in said(pw.run("start"), 2)
    assert f"{HELP}there is one in another folder: cd .." in said(run_in(pw, "shop/docs", "start"), 2)
    assert "cd shop" in pw.run("check").stderr
    assert not pw.processes()


def test_a_module_that_is_in_the_folder_above_is_found_there(pw: Pyworker) -> None:
    pw.write("shop/__init__.py", "")
    pw.write("shop/main.py", ASGI)
    error = said(run_in(pw, "shop", "start", "shop.main:app", "-b", f"127.0.0.1:{pw.port}", "--name", "shop"))
    assert f"there is a shop in {pw.folder}, above this folder" in error


# ---- 2 no virtual environment, 7 a missing module ---------------------------------------------------
def test_a_module_that_is_not_installed_comes_with_the_command_that_installs_it(pw: Pyworker) -> None:
    pw.api("import no_such_framework\n", workers=4)
    error = said(pw.run("start"))
    assert "ModuleNotFoundError: No module named 'no_such_framework'" in error
    assert 'web.py", line 1' in error
    assert error.count("Traceback") == 1, error
    assert "importlib" not in error
    assert f"{HELP}install it: {sys.executable} -m pip install no_such_framework" in error
    assert (pw.app()["state"], pw.pids()) == ("failed", [])
    assert pw.refuses()


@pytest.mark.parametrize("what", [("app.py", "--name", "api"), ("--name", "api", "--", sys.executable, "app.py")])
def test_so_does_one_that_a_script_or_a_command_has_not_found(pw: Pyworker, what: tuple[str, ...]) -> None:
    pw.write("app.py", "import no_such_framework\n")
    assert f"{HELP}install it: {sys.executable} -m pip install no_such_framework" in said(pw.run("start", *what))


def test_a_virtual_environment_beside_the_app_that_is_not_used_is_pointed_out(pw: Pyworker) -> None:
    venv.create(os.path.join(pw.folder, "env"), with_pip=False, symlinks=True)
    pw.api("import no_such_framework\n")
    assert f'{HELP}there is a virtual environment in env: set python = "env"' in said(pw.run("start"))


# ---- 3 the port is taken ----------------------------------------------------------------------------
def test_a_port_that_is_taken_names_its_owner_and_two_ways_out(pw: Pyworker) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", pw.port))
        taken.listen()
        pw.api(ASGI)
        error = said(pw.run("start"))
    assert f"cannot listen on 127.0.0.1:{pw.port}: already in use" in error
    assert f"(pid {os.getpid()}, " in error
    assert f"kill {os.getpid()}" in error
    assert "another address" in error
    assert f"{HELP}`bind` is in app.toml:" in error


# ---- 4 a typo in the target -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "meant"),
    [("web:ap", 'did you mean "web:app"?'), ("wep:app", 'did you mean "web"?'), ("web.app", 'did you mean "web:app"?'), ("web:", 'did you mean "web:app"?')],
)
def test_a_typo_in_the_target_gets_a_suggestion(pw: Pyworker, target: str, meant: str) -> None:
    pw.write("web.py", ASGI)
    pw.write("app.toml", f'[app]\nname = "api"\ntarget = "{target}"\nbind = "127.0.0.1:{pw.port}"\n')
    done = pw.run("start")
    assert done.returncode in (1, 78)
    assert meant in done.stderr
    assert pw.refuses()


def test_a_file_where_an_app_is_to_be_named_is_not_looked_for_in_another_daemon(pw: Pyworker) -> None:
    pw.write("web.py", ASGI)
    pw.write("app.toml", f'[app]\nname = "api"\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\n')
    pw.ok("start", "app.toml")
    done = pw.run("reload", "app.toml")
    assert done.returncode == 4
    assert "name the app, or all: only pyworker start takes its file" in done.stderr
    done = pw.run("stop", "0")  # the first one, for pm2
    assert done.returncode == 4
    assert "apps go by name here, workers by name and number: api.1" in done.stderr
    done = pw.run("export", "systemd", "app.toml")
    assert done.returncode == 2
    assert "pyworker export systemd -f app.toml" in done.stderr


# ---- 5 an app that puts itself into the background -------------------------------------------------
DAEMONIZES = """\
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open("pid", "w") as file:
    file.write(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize("what", [f'command = ["{sys.executable}", "server.py"]', 'script = "server.py"'])
def test_what_goes_to_the_background_is_told_to_stay(pw: Pyworker, what: str) -> None:
    pw.write("server.py", DAEMONIZES)
    pw.write("app.toml", f'[app]\nname = "server"\n{what}\n[app.restart]\nmax_restarts = 1\n')
    error = said(pw.run("start"))
    assert "exited with code 0" in error
    assert "background" in error
    assert "keep it in the foreground" in error
    told = Path(pw.folder, "pid")
    wait_until(lambda: told.exists() and told.read_text(), LONG, "the one in the background")
    kill(int(told.read_text()))  # nobody else does: it has left its session


def test_the_name_of_a_module_is_told_how_its_app_is_named(pw: Pyworker) -> None:
    pw.write("main.py", ASGI)
    assert "main.py is here: pyworker start main:app" in said(pw.run("start", "main"), 4)


def test_a_module_that_only_makes_a_web_app_is_told_how_it_is_started(pw: Pyworker) -> None:
    pw.write("main.py", "def app(environ, start_response):\n    return []\n")
    error = said(pw.run("start", "main.py"))
    assert "start main:app, not main.py" in error
    assert "restart.policy" in error
    helps = [line for line in pw.run("run", "main.py").stderr.splitlines() if "= help: " in line]
    assert len(helps) == 3


# ---- 6 permissions ----------------------------------------------------------------------------------
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make what others may not use")
def test_root_makes_nothing_of_anothers_home(pw: Pyworker) -> None:
    os.mkdir(pw.home, 0o700)
    os.chown(pw.home, 65534, 65534)
    pw.api(ASGI)
    error = said(pw.run("start"), 77)
    assert "belongs to user 65534" in error
    assert f"chown 0 {pw.home}" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do this")
def test_a_port_below_1024_says_who_may_have_it(pw: Pyworker) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("everybody may listen on port 80 here")
    pw.api(ASGI, bind="127.0.0.1:80")
    error = said(pw.run("start"), 77)
    assert "ip_unprivileged_port_start" in error or "1024" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(pw: Pyworker) -> None:
    pw.api(ASGI)
    os.chmod(os.path.join(pw.folder, "app.toml"), 0)
    done = pw.run("start")
    assert done.returncode == 78, done
    assert done.stdout == ""
    assert f"{HELP}let this user read {pw.folder}/app.toml" in done.stderr  # what follows it sums up, as for every config


# ---- 8 the wrong Python -----------------------------------------------------------------------------
def fake_python(pw: Pyworker, name: str, text: str) -> str:
    path = pw.write(name, text)
    os.chmod(path, 0o755)
    return path


@pytest.mark.parametrize(
    ("python", "words"),
    [("missing-venv", "missing-venv"), ("/bin/cat", "/bin/cat -V"), ("old", "python3.9 -V")],
)
def test_an_interpreter_that_cannot_be_used_is_named_with_what_is_needed(pw: Pyworker, python: str, words: str) -> None:
    if python == "old":
        python = fake_python(pw, "python3.9", '#!/bin/sh\necho "SyntaxError: invalid syntax (Python 3.5)" >&2\nexit 1\n')
    pw.api(ASGI, top=f'python = "{python}"')
    done = pw.run("start")
    assert done.returncode in (1, 78), done.stderr
    assert words in done.stderr
    if "3.9" in python:  # its own words are shown where they are there in time, and can be read afterwards
        wait_until(lambda: "invalid syntax (Python 3.5)" in pw.run("logs", "-p", "api").stdout, LONG, "its words")
    assert "help:" in done.stderr.splitlines()[-1] or "Nothing was started" in done.stderr
    assert pw.refuses()


def test_an_app_that_cannot_have_another_template_is_degraded_though_all_its_workers_serve(pw: Pyworker) -> None:
    """A virtual environment that is removed while it serves: the next worker that dies would not be replaced."""
    python = fake_python(pw, "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    pw.api(ASGI, workers=2, top=f'python = "{python}"')
    pw.ok("start")
    os.unlink(python)
    kill(pw.role("template"))
    wait_until(lambda: pw.app()["state"] == "degraded", LONG, "the app to be degraded")
    assert pw.app()["workers"]["ready"] == 2
    said_by_ps = pw.run("ps").stderr
    assert "api degraded: a worker that dies cannot be replaced: " in said_by_ps
    assert f"cannot run the interpreter {python}" in said_by_ps
    fake_python(pw, "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    pw.ok("reload", "api")
    assert pw.app()["state"] == "running"


# ---- 9 a daemon of another version ------------------------------------------------------------------
def test_a_daemon_of_another_version_is_said_with_the_command_that_mends_it(pw: Pyworker) -> None:
    os.mkdir(pw.home, 0o700)
    message = "this daemon speaks protocol 1, the command speaks 2"
    with FakeControl(pw.home, {"ps": refuses("protocol", 1, message, hint="pyworker daemon upgrade   no request is lost")}):
        assert "pyworker daemon upgrade" in said(pw.run("ps"))
    document = documents.ps()
    document["daemon"]["version"] = "0.0.1"
    with FakeControl(pw.home, {"ps": replies(document)}):
        assert "daemon 0.0.1, this command" in pw.ok("ps").stderr
        assert "→ pyworker daemon upgrade" in pw.ok("ps").stderr


# ---- 10 a full disk ---------------------------------------------------------------------------------
@pytest.fixture
def full() -> Iterator[Pyworker]:
    """A pyworker whose home is on a disk of 1 MB, which is full."""
    with running() as pw:
        os.mkdir(pw.home, 0o700)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", pw.home]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        try:
            with contextlib.suppress(OSError), open(os.path.join(pw.home, "fill"), "wb", buffering=0) as fill:
                while True:
                    fill.write(b"x" * 4096)
            yield pw
            pw.run("daemon", "stop", "-y", "--now")
            wait_until(lambda: not pw.processes(), LONG, "the end")
        finally:
            subprocess.run(["umount", "-l", pw.home], check=True)


def test_on_a_full_disk_it_serves_and_says_what_is_not_kept_and_what_to_do(full: Pyworker) -> None:
    full.api(ASGI.replace("async def app", "print('hello', flush=True)\nasync def app"))
    done = full.ok("start")
    assert full.get()
    assert "apps.json cannot be written: No space left on device" in done.stderr
    assert f"Free some space: df -h {full.home}" in done.stderr
    doctor = full.run("doctor")
    assert doctor.returncode == 1
    assert "left for logs" in doctor.stdout
    assert "free some space" in doctor.stdout
    os.unlink(os.path.join(full.home, "fill"))
    assert "apps.json" not in full.ok("scale", "api=3").stderr  # and then it is kept
