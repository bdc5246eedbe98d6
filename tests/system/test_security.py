"""What a worker holds, what others can see of it, and what a hostile folder can do. The table is in docs/security.md."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys

import psutil
import pytest

from pyworker.unix.fds import refuse_fds, send_packet, socketpair
from tests.support.pyworker import LONG, Pyworker, open_to_all
from tests.support.sources import ASGI, WSGI
from tests.support.wait import wait_until

SHOWS_FDS = """
import json, os, subprocess

def links(pid):
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[name] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            pass
    return found

def app(environ, start_response):
    child = subprocess.Popen(["sh", "-c", "kill -STOP $$"], close_fds=False)
    os.waitpid(child.pid, os.WUNTRACED)  # it has loaded its libraries
    try:
        environment = {k: v for k, v in os.environ.items() if k.startswith(("PYWORKER", "LISTEN", "NOTIFY"))}
        body = json.dumps({"worker": links("self"), "child": links(child.pid), "env": environment}).encode()
    finally:
        child.kill()
        child.wait()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
ANON = ("anon_inode:[eventpoll]", "anon_inode:[io_uring]", "anon_inode:[eventfd]", "anon_inode:[timerfd]")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_worker_holds_its_own_fds_only_and_hands_on_three(pw: Pyworker, loop: str) -> None:
    pw.api(SHOWS_FDS, workers=2, top=f'loop = "{loop}"')
    pw.ok("start", "app.toml")
    found = json.loads(pw.get())
    assert sorted(found["child"]) == ["0", "1", "2"]
    assert found["child"]["0"] == "/dev/null"
    assert found["child"]["1"].startswith("pipe:")
    strange = [
        link
        for link in found["worker"].values()
        if link != "/dev/null"
        and not link.startswith(("pipe:", "socket:", "/memfd:pyworker-", "/proc/"))
        and link not in ANON
        and not os.path.basename(link).startswith("libffi.so")  # its own, open for ctypes since 3.4, closed by an exec
    ]
    assert strange == []
    home = os.path.realpath(pw.home)
    assert not [link for link in found["worker"].values() if link.startswith(home)]
    assert not [name for name in found["env"] if name.startswith(("LISTEN", "NOTIFY", "PYWORKER_HOME"))]


@pytest.mark.parametrize("command", [("daemon", "start"), ("daemon", "run"), ("run", "app.toml")])
def test_what_the_shell_has_open_is_handed_on_to_nobody(pw: Pyworker, command: tuple[str, ...]) -> None:
    """The lock of a deploy script would be held for as long as the daemon lives, and hooks of other users would have it."""
    pw.api(WSGI, workers=1)
    path = pw.write("deploy.lock", "")
    with open(path) as lock, open(os.path.join(pw.folder, "out"), "w") as out:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [pw.python, "-m", "pyworker", *command],
            env=pw.environ, cwd=pw.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=[lock.fileno()],
        )  # fmt: skip
    try:
        wait_until(lambda: pw.status().get("logger_pid"), LONG, "a daemon with its logger")
        if command == ("daemon", "start"):
            process.wait(LONG)
        with open(path) as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody has it any more
    finally:
        process.terminate()
        process.wait(LONG)


def test_secrets_are_in_no_command_line_and_in_no_environment_of_ours(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1, tables='[app.env]\nDB_PASSWORD = "${DB_PASSWORD}"')
    pw.environ["DB_PASSWORD"] = "swordfish-4711"
    pw.ok("start", "app.toml")
    pw.ok("reload", "api")
    ours = {pw.role(role) for role in ("guardian", "daemon", "logger")}
    for pid, title in pw.titles().items():
        assert "swordfish-4711" not in title
        if pid in ours:
            with contextlib.suppress(PermissionError), open(f"/proc/{pid}/environ", "rb") as file:  # not root
                assert b"swordfish-4711" not in file.read()
    for command in (("ps",), ("ps", "-w"), ("describe", "api", "-v"), ("events", "api", "--json"), ("logs", "api")):
        assert "swordfish-4711" not in pw.ok(*command).stdout


def test_a_hostile_folder_has_nothing_imported_by_our_own_processes(pw: Pyworker) -> None:
    """`json.py` beside the config is the app's business at most, never guardian's, daemon's or logger's."""
    for name in ("json", "socket", "select", "selectors", "uvicorn", "psutil", "tomllib"):
        pw.write(f"{name}.py", f"import os\nopen(os.path.join({pw.folder!r}, 'was-imported'), 'a').write('{name} ')\n")
    os.mkdir(os.path.join(pw.folder, "site"))
    pw.write("site/web.py", ASGI)
    pw.write("app.toml", f'[app]\nname = "api"\ncwd = "site"\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\n')
    pw.environ["PYTHONPATH"] = pw.folder
    # -I is what the installed command comes to: neither the folder nor PYTHONPATH is searched
    done = subprocess.run(
        [sys.executable, "-I", "-m", "pyworker", "start", "app.toml"],
        env=pw.environ, cwd=pw.folder, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    del pw.environ["PYTHONPATH"]
    assert done.returncode == 0, done.stderr
    assert pw.get().startswith("one")
    assert not os.path.exists(os.path.join(pw.folder, "was-imported"))
    for name in ("json", "socket", "select", "selectors", "uvicorn", "psutil", "tomllib"):
        os.unlink(os.path.join(pw.folder, f"{name}.py"))


def test_nothing_of_ours_listens_on_the_network(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1)
    pw.ok("start", "app.toml")
    listening = set()
    for process in pw.processes():
        with contextlib.suppress(psutil.Error):  # it has gone, or does not let an ordinary user look
            listening |= {c.laddr.port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {pw.port}


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
REASONS = {"0777": "open to other users (mode 0777)", "a symbolic link": "is a symbolic link", "another user's": "belongs to user 65534"}


@pytest.mark.parametrize("how", ["0777", "a symbolic link", pytest.param("another user's", marks=ROOT_ONLY)])
def test_a_home_that_is_not_ours_alone_is_refused_with_the_reason(pw: Pyworker, how: str) -> None:
    pw.api(ASGI, workers=1)
    os.mkdir(os.path.join(pw.folder, "real"))
    if how == "a symbolic link":
        os.symlink("real", pw.home)
    else:
        os.mkdir(pw.home)
    if how == "0777":
        os.chmod(pw.home, 0o777)
    elif how == "another user's":
        os.chown(pw.home, 65534, 65534)
    done = pw.run("start", "app.toml")
    assert done.returncode == 77
    assert REASONS[how] in done.stderr
    assert "help:" in done.stderr
    assert pw.refuses()
    if how == "0777":
        os.chmod(pw.home, 0o700)
    elif how == "another user's":
        os.chown(pw.home, 0, 0)
    else:
        os.unlink(pw.home)


def test_what_our_own_processes_hold_is_nobody_elses_to_read(pw: Pyworker) -> None:
    """Not dumpable: /proc/PID/environ, fd and mem are closed to processes of the same user, too."""
    look: list[str] = []
    if os.geteuid() == 0:  # root without the right to look at everybody
        look = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
        if shutil.which("setpriv") is None or subprocess.run([*look, "true"], check=False).returncode:
            pytest.skip("setpriv cannot give CAP_SYS_PTRACE away here")
        pw.python = pw.write("python", f'#!/bin/sh\nexec {" ".join(look)} {sys.executable} "$@"\n')
        os.chmod(pw.python, 0o755)
    pw.api(ASGI, workers=1)
    pw.ok("start", "app.toml")

    def is_readable(pid: int) -> bool:
        return subprocess.run([*look, "readlink", f"/proc/{pid}/fd/0"], capture_output=True, check=False).returncode == 0

    assert is_readable(pw.pids()[0])
    assert [role for role in ("guardian", "daemon") if is_readable(pw.role(role))] == []


def test_a_unix_socket_is_open_to_all_but_whom_umask_keeps_out(pw: Pyworker) -> None:
    pw.write("web.py", WSGI)
    for name, umask, rights in (("open", "", 0o666), ("closed", 'umask = "0007"\n', 0o660)):
        path = os.path.join(pw.folder, f"{name}.sock")
        pw.write(f"{name}.toml", f'[app]\nname = "{name}"\ntarget = "web:app"\nbind = "unix:{path}"\n{umask}')
        pw.ok("start", f"{name}.toml")
        assert stat.S_IMODE(os.stat(path).st_mode) == rights


def kernel_can_refuse_fds() -> bool:
    """Since Linux 6.16."""
    ours, theirs = socketpair()
    refuse_fds(ours)
    with ours, theirs, contextlib.suppress(PermissionError):
        send_packet(theirs, b"x", [theirs.fileno()])
        return False
    return True


@pytest.mark.skipif(not kernel_can_refuse_fds(), reason="this kernel hands on every descriptor")
def test_no_client_of_a_unix_socket_can_send_descriptors_to_be_closed(pw: Pyworker) -> None:
    path = os.path.join(pw.folder, "web.sock")
    pw.write("web.py", WSGI)
    pw.write("app.toml", f'[app]\nname = "web"\ntarget = "web:app"\nbind = "unix:{path}"\n')
    pw.ok("start", "app.toml")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LONG)
        client.connect(path)
        with pytest.raises(PermissionError):
            socket.send_fds(client, [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], [client.fileno()])
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("meanwhile", ["another folder", "another server"])
def test_the_end_of_an_app_removes_its_own_unix_socket_and_nothing_that_came_into_its_place(
    pw: Pyworker, meanwhile: str
) -> None:
    run, other = os.path.join(pw.folder, "run"), os.path.join(pw.folder, "other")
    os.mkdir(run)
    pw.write("web.py", WSGI)
    pw.write("app.toml", f'[app]\nname = "web"\ntarget = "web:app"\nbind = "unix:{run}/web.sock"\n')
    pw.ok("start", "app.toml")
    with socket.socket(socket.AF_UNIX) as server:
        if meanwhile == "another folder":
            os.mkdir(other)
            pw.write("other/web.sock", "precious")
            os.rename(run, os.path.join(pw.folder, "moved"))
            os.symlink(other, run)
        else:
            os.unlink(os.path.join(run, "web.sock"))
            server.bind(os.path.join(run, "web.sock"))
            server.listen()
        pw.ok("stop", "web")
    assert os.listdir(run) == ["web.sock"]


@ROOT_ONLY
def test_a_unix_socket_belongs_to_the_user_of_its_app(pw: Pyworker) -> None:
    """So that `group` and `umask` together let in a proxy and nobody else."""
    app = '[app]\nname = "tick"\ncommand = "sleep 1000"\nuser = "nobody"\ncwd = "/"\n'
    pw.write("app.toml", f'{app}bind = "unix:{pw.folder}/t.sock"\n')
    pw.ok("start")
    assert os.stat(os.path.join(pw.folder, "t.sock")).st_uid == pwd.getpwnam("nobody").pw_uid


@ROOT_ONLY
def test_a_config_file_of_the_apps_user_gets_no_unix_socket_where_that_user_may_make_none(pw: Pyworker) -> None:
    """Root would make it, or put it in the place of one that nobody listens on, in whatever folder the file says."""
    open_to_all(pw.folder)
    app = '[app]\nname = "tick"\ncommand = "sleep 1000"\nuser = "nobody"\ncwd = "/"\n'
    own = os.path.join(pw.folder, "own")
    os.mkdir(own)
    nobody = pwd.getpwnam("nobody")
    for folder in (pw.folder, own):
        os.chown(pw.write("app.toml", f'{app}bind = "unix:{folder}/t.sock"\n'), nobody.pw_uid, -1)
        os.chown(own, nobody.pw_uid, nobody.pw_gid)
        done = pw.run("start")
        assert os.path.exists(os.path.join(folder, "t.sock")) == (folder == own), done.stderr
    assert os.stat(os.path.join(own, "t.sock")).st_gid == nobody.pw_gid
    pw.write("app.toml", f'{app}bind = "unix:{pw.folder}/t.sock"\n')
    os.chown(os.path.join(pw.folder, "app.toml"), nobody.pw_uid, -1)
    done = pw.run("reload")
    assert f"no right to make a socket in {pw.folder}" in done.stderr
    assert "choose a folder that nobody may write to, or give the config file and its folder to root" in done.stderr


@ROOT_ONLY
def test_a_config_file_of_another_user_does_not_say_where_root_makes_the_socket_of_its_probe(pw: Pyworker) -> None:
    open_to_all(pw.folder)
    probe = f"{pw.folder}/p.sock"
    app = '[app]\nname = "tick"\ncommand = "true"\nuser = "nobody"\ncwd = "/"\nrestart.policy = "never"\n'
    file = pw.write("app.toml", f'{app}[run]\nprobe = "unix:{probe}"\n')
    os.chown(file, pwd.getpwnam("nobody").pw_uid, -1)
    done = pw.run("run", "app.toml")
    assert done.returncode == 78, done.stderr
    assert f"root does not make the socket {probe} for {file}: it belongs to nobody" in done.stderr
    assert f"chown root {file}, or name it yourself: --probe unix:{probe}" in done.stderr
    assert not os.path.lexists(probe)
    assert pw.run("run", "app.toml", "--probe", f"unix:{probe}").returncode == 0
    os.chown(file, 0, -1)
    assert pw.run("run", "app.toml").returncode == 0
