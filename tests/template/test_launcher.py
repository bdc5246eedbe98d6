"""The launcher: rights dropped before anything else, then an exec; every failure is a message."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.schema import LimitsConfig
from pyworker.protocol import wire
from pyworker.protocol.template import FromTemplate, LoadFailed
from pyworker.protocol.worker import Accepting, Drain, Failed, FromWorker, Go, Hello, Ready
from tests.support import interpreters
from tests.support.fake_daemon import tcp_listener
from tests.support.wait import wait_until

pytestmark = pytest.mark.usefixtures("no_fd_is_left")
NOBODY = 65534
# an interpreter that any user may run (that of the tests may be in root's own folder), and that can load our engine
PUBLIC = interpreters.for_all_users()
needs_public = pytest.mark.skipif(not PUBLIC, reason="no Python of this version for all users")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


SHOW = """
import json, os, resource, socket
fds = [int(n) for n in os.listdir("/proc/self/fd")]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
old = os.umask(0)
print(json.dumps({
    "env": {k: v for k, v in os.environ.items() if k.startswith(("LISTEN", "PYWORKER", "NOTIFY", "X"))},
    "pid": os.getpid(), "sid": os.getsid(0), "fds": sorted(fds), "cwd": os.getcwd(), "umask": old,
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "privs": status["NoNewPrivs"].strip(),
    "caps": status["CapEff"].strip(),
    "socks": [socket.socket(fileno=os.dup(fd)).getsockname()[1] for fd in range(3, 3 + int(os.environ.get("LISTEN_FDS", 0)))],
}))
"""


def shown(worker: Any) -> Any:
    wait_until(lambda: worker.read_out().endswith(b"\n"), what=lambda: f"output {worker.read_err()!r}")
    return json.loads(worker.read_out())


def command(daemon: Any, *argv: str, listeners: Any = (), **options: Any) -> Any:
    return daemon(list(listeners), target=None, command=argv or (sys.executable, "-c", SHOW), **options)


def test_command_gets_its_listeners_by_the_convention(daemon: Any, folder: Path) -> None:
    listeners = [tcp_listener(), tcp_listener()]
    ports = [each.getsockname()[1] for each in listeners]
    d = command(daemon, listeners=listeners)
    d.env = {"X": "1", "LISTEN_FDS": "9", "NOTIFY_SOCKET": "/wrong"}
    d.notify_socket = "/right"
    worker = d.launch("command", slot=2, row=2, workers=4)
    worker.expect(Hello)
    assert worker.expect(Ready).serving
    said = shown(worker)
    assert said["socks"] == ports
    assert said["fds"] == [0, 1, 2, 3, 4, 5]  # 5 is the listing itself
    assert said["env"] == {
        "X": "1",
        "LISTEN_FDS": "2",
        "LISTEN_PID": str(said["pid"]),
        "LISTEN_FDNAMES": "listen0:listen1",
        "NOTIFY_SOCKET": "/right",
        "PYWORKER_APP": "shop",
        "PYWORKER_WORKER": "2",
        "PYWORKER_GENERATION": "1",
        "PYWORKER_WORKERS": "4",
    }
    assert said["pid"] == said["sid"] == worker.pid
    assert said["cwd"] == str(folder)
    assert d.reap(worker.pid) == 0


def test_a_command_may_have_as_few_open_files_as_can_be_asked_for(daemon: Any) -> None:
    listeners = [tcp_listener(), tcp_listener()]
    d = command(daemon, "/bin/sh", "-c", "ls /proc/self/fd", listeners=listeners, limits=LimitsConfig(nofile=16))
    worker = d.launch("command", slot=1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert d.reap(worker.pid) == 0
    assert worker.read_out().split() == [b"0", b"1", b"2", b"3", b"4", b"5"]  # the last is the listing itself


def test_a_command_for_whose_listeners_the_limit_leaves_no_room_is_told_so(daemon: Any) -> None:
    listeners = [tcp_listener() for _ in range(8)]
    d = command(daemon, "/bin/true", listeners=listeners, limits=LimitsConfig(nofile=16))
    worker = d.launch("command", slot=1)
    worker.expect(Hello)
    worker.expect(Ready)
    failed = worker.expect(Failed)
    assert (failed.message, failed.hint) == ("cannot run /bin/true: Too many open files", "Raise `limits.nofile`.")
    assert d.reap(worker.pid) == 78


@pytest.mark.parametrize("options", [{}, {"umask": "0027"}])
def test_a_command_that_is_started_directly_has_what_a_child_of_a_fork_has(
    daemon: Any, options: dict[str, Any]
) -> None:
    found = []
    for direct in (False, True):
        d = command(daemon, **options)
        d.env = {"X": "1", "LISTEN_FDS": "9"}
        d.notify_socket = "/right"
        worker = d.launch("command", slot=2, row=2, workers=4, direct=direct)
        if not direct:
            worker.expect(Hello)
            assert worker.expect(Ready).serving
        worker.wait_closed()  # and no word of it
        said = shown(worker)
        assert said.pop("pid") == said.pop("sid") == worker.pid
        assert said["fds"] == [0, 1, 2, 3]  # 3 is the listing itself
        found.append(said)
        assert d.reap(worker.pid) == 0
    assert found[0] == found[1]


def test_a_command_that_was_given_up_is_not_started_directly(daemon: Any, folder: Path) -> None:
    d = command(daemon, "/bin/sh", "-c", "echo ran")
    worker = d.launch("command", slot=1, direct=True, spoken=Drain(1.0, to_empty=False))
    assert worker.pid == 0
    worker.expect(Hello)
    worker.wait_closed()
    assert d.reap(worker.pid) == 0
    assert worker.read_out() == b""


def test_held_command_waits_for_go(daemon: Any) -> None:
    d = command(daemon, "/bin/sh", "-c", "echo ran; exit 3")
    worker = d.launch("command", slot=1, held=True)
    worker.expect(Hello)
    assert not worker.expect(Ready).serving
    assert worker.read_out() == b""
    worker.send(Go())
    worker.expect(Accepting)
    assert d.reap(worker.pid) == 3
    assert worker.read_out() == b"ran\n"
    worker = d.launch("command", slot=1, held=True)
    worker.expect(Hello)
    worker.expect(Ready)
    worker.send(Drain(1.0, to_empty=False))
    assert d.reap(worker.pid) == 0


def test_held_command_whose_daemon_is_gone_never_runs(daemon: Any) -> None:
    d = command(daemon, "/bin/sh", "-c", "echo ran")
    worker = d.launch("command", slot=1, held=True)
    worker.expect(Hello)
    worker.expect(Ready)
    worker.sock.shutdown(socket.SHUT_RDWR)
    assert d.reap(worker.pid) == 0
    assert worker.read_out() == b""


def test_command_with_notify_says_itself_when_it_is_ready(daemon: Any) -> None:
    d = command(daemon, "/bin/true", ready="notify")
    worker = d.launch("command", slot=1)
    worker.expect(Hello)
    worker.wait_closed()
    assert d.reap(worker.pid) == 0


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("no-such-command", "cannot run no-such-command: No such file or directory", "PATH"),
        ("./plain", "cannot run ./plain: Permission denied", "executable"),
        ("./text", "cannot run ./text: Exec format error", "#!/bin/sh"),
        ("./moved", "cannot run ./moved: No such file or directory", "interpreter that its first line names"),
    ],
)
@pytest.mark.parametrize("direct", [False, True])
def test_command_that_cannot_run_is_told_with_what_to_do(
    daemon: Any, folder: Path, name: str, message: str, hint: str, direct: bool
) -> None:
    (folder / "plain").write_text("x")
    (folder / "text").write_text("just text")
    (folder / "text").chmod(0o755)
    (folder / "moved").write_text("#!/no/such/venv/bin/python\n")
    (folder / "moved").chmod(0o755)
    d = command(daemon, name)
    worker = d.launch("command", slot=1, direct=direct)
    worker.expect(Hello)
    failed = worker.receive()
    if isinstance(failed, Ready):  # only the exec itself could tell
        failed = worker.receive()
    assert isinstance(failed, Failed)
    assert failed.message == message
    assert hint in failed.hint
    assert d.reap(worker.pid) == 78


def test_limits_and_umask_are_set(daemon: Any) -> None:
    d = command(daemon, umask="0027", limits=LimitsConfig(nofile=100))
    worker = d.launch("command", slot=1)
    worker.expect(Hello)
    said = shown(worker)
    assert said["umask"] == 0o027
    assert said["nofile"] == [100, 100]
    assert d.reap(worker.pid) == 0


@pytest.mark.parametrize("direct", [False, True])
def test_without_a_umask_others_may_read_what_an_app_writes_whatever_the_daemon_has(daemon: Any, direct: bool) -> None:
    old = os.umask(0o077)
    try:
        d = command(daemon)
        worker = d.launch("command", slot=1, direct=direct)
        if not direct:
            worker.expect(Hello)
        assert shown(worker)["umask"] == 0o022
        assert d.reap(worker.pid) == 0
    finally:
        assert os.umask(old) == 0o077


def test_missing_folder_is_told(daemon: Any, folder: Path) -> None:
    d = daemon()
    d.app = d.app.__class__(**{**vars(d.app), "cwd": str(folder / "gone")})
    template = d.launch("template")
    failed = template.expect(LoadFailed)
    assert failed.kind == "rights"
    assert failed.message == f"cannot enter the folder {folder}/gone: No such file or directory"
    assert failed.hint == f"It was removed under the app. To look again where `cwd` leads: pyworker reload {d.app.name}"
    assert d.reap(template.pid) == 78
    worker = d.launch("command", slot=1)
    assert worker.expect(Failed).message == failed.message
    assert d.reap(worker.pid) == 78


@pytest.mark.parametrize("was_removed", [False, True])
def test_missing_interpreter_is_told(daemon: Any, folder: Path, was_removed: bool) -> None:
    if was_removed:  # the one that the venv was made of
        (folder / "python").symlink_to(folder / "python3.11" / "bin" / "python")
    d = daemon()
    d.python = str(folder / "python")
    template = d.launch("template")
    failed = template.expect(LoadFailed)
    assert failed.kind == "exec"
    assert "No such file" in failed.message
    assert failed.hint == f"It was removed under the app. To look for one again: pyworker reload {d.app.name}"
    assert d.reap(template.pid) == 78


def test_what_is_no_interpreter_is_told(daemon: Any, folder: Path) -> None:
    (folder / "python").write_text("")
    d = daemon()
    d.python = str(folder / "python")
    template = d.launch("template")
    assert template.expect(LoadFailed).hint == "Check `python` (a venv folder or an interpreter that this user may run)."
    assert d.reap(template.pid) == 78


@needs_root
@pytest.mark.skipif(not interpreters.of_the_system(), reason="no Python for all users")
def test_rights_are_gone_before_the_app_runs(daemon: Any, public_folder: Path) -> None:
    d = command(daemon, interpreters.of_the_system(), "-c", SHOW, cwd=str(public_folder), limits=LimitsConfig(nofile=5000))
    d.uid, d.gid, d.groups = NOBODY, NOBODY, (NOBODY, 12345)
    worker = d.launch("command", slot=1)
    worker.expect(Hello)
    said = shown(worker)
    assert said["uid"] == said["gid"] == [NOBODY] * 3
    assert sorted(said["groups"]) == [12345, NOBODY]
    assert said["privs"] == "1"
    assert int(said["caps"], 16) == 0
    assert said["nofile"] == [5000, 5000]
    assert d.reap(worker.pid) == 0


@needs_root
@needs_public
def test_app_of_another_user_is_imported_and_served_as_that_user(daemon: Any, public_folder: Path) -> None:
    d = daemon(cwd=str(public_folder))
    d.python = PUBLIC
    d.uid, d.gid, d.groups = NOBODY, NOBODY, (NOBODY,)
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    for pid in (template.pid, worker.pid):
        status = dict(x.split(":", 1) for x in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(NOBODY)] * 4


@needs_root
def test_folder_that_the_user_may_not_enter_is_told(daemon: Any, folder: Path) -> None:
    folder.chmod(0o700)
    d = daemon()
    d.uid, d.gid = NOBODY, NOBODY
    template = d.launch("template")
    failed = template.expect(LoadFailed)
    assert failed.kind == "rights"
    assert "Permission denied" in failed.message
    assert failed.hint == f"Check `cwd`: user {NOBODY} may not enter {closed_to_nobody(folder)}."
    assert d.reap(template.pid) == 78


def closed_to_nobody(folder: Path) -> Path:
    """Return the first folder on the way that others may not enter: pytest's own are private, and so may be its root's."""
    return next(f for f in (*reversed(folder.parents), folder) if not f.stat().st_mode & 0o001)


@needs_root
@pytest.mark.parametrize("role", ["template", "command"])
def test_a_python_that_a_link_has_in_a_folder_closed_to_the_user_is_told_with_that_folder(
    daemon: Any, public_folder: Path, folder: Path, role: str
) -> None:
    """A virtual environment that root has made of a Python of its own."""
    real = folder / "python"
    real.write_text("")
    real.chmod(0o755)
    link, script = public_folder / "python", public_folder / "celery"
    link.symlink_to(real)
    script.write_text(f"#!{link}\n")
    script.chmod(0o755)
    d = daemon(cwd=str(public_folder)) if role == "template" else command(daemon, str(script), cwd=str(public_folder))
    d.python, d.uid, d.gid = str(link), NOBODY, NOBODY
    launched = d.launch(role, slot=int(role == "command"))
    if role == "template":
        hint = launched.expect(LoadFailed).hint
        assert f"It is {real}, and user {NOBODY} may not enter {closed_to_nobody(folder)}." in hint
    else:
        launched.expect(Hello)
        launched.expect(Ready)
        assert "the interpreter that its first line names" in launched.expect(Failed).hint
    assert d.reap(launched.pid) == 78


@pytest.mark.skipif(os.getuid() == 0, reason="root may")
def test_user_without_the_right_to_become_another_is_told(daemon: Any) -> None:
    d = daemon()
    d.uid, d.gid = NOBODY, NOBODY
    template = d.launch("template")
    assert template.expect(LoadFailed).kind == "rights"
    assert d.reap(template.pid) == 78


@pytest.mark.parametrize("role", ["template", "script"])
def test_old_python_is_refused_with_a_sentence(daemon: Any, folder: Path, role: str) -> None:
    boot = Path(__file__).parents[2] / "pyworker/template/boot.py"
    compile(boot.read_text(), "boot", "exec")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    old = f"import sys; sys.version_info = (3, 6, 1); sys.argv = ['x', {role!r}, '9', '{theirs.fileno()}']\n"
    text = old + boot.read_text()
    done = subprocess.run([sys.executable, "-c", text], pass_fds=[theirs.fileno()], check=False)
    assert done.returncode == 78
    message = wire.decode(FromTemplate if role == "template" else FromWorker, ours.recv(4096))
    assert "Python 3.6; 3.11 or newer" in message.message
    ours.close()
    theirs.close()


def test_a_launcher_that_nobody_needs_leaves_without_a_word() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-I", "-X", "dev", "-m", "pyworker.template", "--serve", str(theirs.fileno())]
        launcher = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    ours.close()
    assert launcher.communicate(timeout=60)[1] == b""
    assert launcher.returncode == 0
