"""daemon/owner.py: who somebody is, in words."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from pathlib import Path

import pytest

from pyworker.daemon import owner
from pyworker.daemon.owner import left_by, of_port, of_unix, user_name


def test_a_user_without_a_name_is_named_by_number() -> None:
    assert user_name(0) == pwd.getpwuid(0).pw_name
    assert user_name(3_999_999_999) == "uid 3999999999"


def test_no_directory_server_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pytest.fail("it was asked"))
    table = tmp_path / "passwd"
    table.write_bytes(b"root:x:0:0:root:/root:/bin/sh\n+::::::\n\n# none\ndep\xffloy\x1b:x:1000:1000::/:/bin/sh\n")
    assert [user_name(uid, str(table)) for uid in (0, 1000, 100)] == ["root", "dep\ufffdloy?", "uid 100"]
    assert user_name(0, str(tmp_path / "none")) == "uid 0"


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::ffff:0.0.0.0"])
def test_who_listens_on_an_ipv4_address_by_an_ipv6_socket_is_found(host: str) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind((host, 0))
        listener.listen()
        found = of_port("127.0.0.1", listener.getsockname()[1])
    assert found is not None
    assert found.pid == os.getpid()


def test_not_all_processes_are_looked_at_again_for_each_address_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []
    monkeypatch.setattr(owner, "all_pids", lambda: looks.append(None) or [os.getpid()])

    def holder(port: int) -> int:
        found = of_port("127.0.0.1", port)
        assert found is not None
        return found.pid

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as second:
        one, two = listener.getsockname()[1], second.getsockname()[1]
        assert {holder(port) for port in (one, two, one, two)} == {os.getpid()}
        assert len(looks) == 1
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[listener.fileno()]) as other:
            monkeypatch.setattr(owner, "all_pids", lambda: [other.pid])
            listener.close()
            assert holder(one) == other.pid
            other.communicate()


def test_who_listens_on_one_socket_file_is_remembered_when_another_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks: list[None] = []
    monkeypatch.setattr(owner, "all_pids", lambda: looks.append(None) or [os.getpid()])
    monkeypatch.chdir(tmp_path)  # a short name
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for name, listener in (("one", one), ("two", two)):
            listener.bind(name)
            listener.listen()
        for name in ("one", "two", "one", "two"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(name)
                assert of_unix(probe, os.stat(name)).pid == os.getpid()
    assert len(looks) <= 2


def test_what_an_earlier_worker_has_left_on_a_port_is_found_without_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)  # as the guardian, whose child it is by now
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        env = {"PAD": "x" * 9000, "PYWORKER_APP": "api"}
        left = subprocess.Popen(["cat"], stdin=subprocess.PIPE, env=env, pass_fds=[listener.fileno()], executable="/bin/cat")
    try:
        found = left_by("api", {1})
        assert found is not None
        assert (found[0], found[1].pid, found[1].command) == (port, left.pid, "cat")
        assert left_by("api", {left.pid}) is left_by("ap", {1}) is None
    finally:
        left.communicate()
    assert left_by("api", {1}) is None


@pytest.mark.parametrize(
    ("cgroup", "parent", "step"),
    [
        ("0::/system.slice/gunicorn.service\n", "systemd", "systemctl stop gunicorn.service"),
        ("3:cpu:/\n1:name=systemd:/system.slice/gunicorn@2.service\n", "systemd", "systemctl stop gunicorn@2.service"),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service\n",
            "systemd",
            "systemctl --user stop shop.service",
        ),
        ("0::/system.slice/a\\x2db.service\n", "systemd", "systemctl stop 'a\\x2db.service'"),
        ("0::/system.slice/supervisor.service\n", "supervisord", "kill 4711"),  # it has others, too
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "systemd", "kill 4711"),
        ("0::/user.slice/user-1000.slice/user@1000.service\n", "systemd", "kill 4711"),
        ("0::/system.slice/docker-1f.scope\n", "containerd-shim", "kill 4711"),
        ("0::/\n", "systemd", "kill 4711"),
        ("0::/system.slice/no unit\nnonsense\n", "systemd", "kill 4711"),
        ("", "", "kill 4711"),
    ],
)  # fmt: skip
def test_a_service_of_systemd_is_ended_by_systemd_which_would_start_it_again_after_a_kill(
    monkeypatch: pytest.MonkeyPatch, cgroup: str, parent: str, step: str
) -> None:
    monkeypatch.setattr(owner, "stat_number", lambda _pid, _field: 1)
    monkeypatch.setattr(owner, "_text", lambda pid, name: cgroup if (pid, name) == (4711, "cgroup") else f"{parent}\n")
    assert owner.stopped_by(4711) == step


@pytest.mark.parametrize(
    ("title", "step"),
    [
        ("PM2 v7.0.3: God Daemon (/home/deploy/.pm2)", "pm2 stop NAME"),
        ("/usr/bin/python3 /usr/bin/supervisord -n", "supervisorctl stop NAME"),
        ("/bin/bash", "kill 4711"),
    ],
)
@pytest.mark.parametrize("above", [0, 1, 2])
def test_what_pm2_or_supervisor_runs_is_ended_by_that(
    monkeypatch: pytest.MonkeyPatch, title: str, step: str, above: int
) -> None:
    """In a cluster of pm2's its daemon has the port, and with `npm start` there are two between."""
    line = {4711: 4710, 4710: 4709, 4709: 1, 1: 0}
    monkeypatch.setattr(owner, "stat_number", lambda pid, _field: line.get(pid, 0))
    monkeypatch.setattr(owner, "_text", lambda pid, _name: "")
    monkeypatch.setattr(owner, "_command", lambda pid: title if pid == 4711 - above else "node server.js")
    assert owner.stopped_by(4711) == step


def test_who_is_no_service_is_ended_by_a_kill() -> None:
    assert owner.stopped_by(2**22 + 1) == f"kill {2**22 + 1}"
