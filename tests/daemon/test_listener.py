"""Listeners: their options, their failures in words, and never stealing a live socket."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.address import MAX_UNIX_PATH, Address, parse_bind
from pyworker.daemon import listener as listener_module
from pyworker.daemon import owner
from pyworker.daemon.listener import (
    ListenFailed,
    actual,
    check_asked,
    inode,
    listen_again,
    open_listener,
    queue_depth,
    shut_down,
    url,
)
from pyworker.protocol.names import GUARDIAN_TITLE
from pyworker.unix.sockdiag import listening_inode
from tests.support.addresses import has_ipv6

ANY = parse_bind("127.0.0.1:0")


@pytest.fixture(autouse=True)
def no_descriptor_stays() -> Iterator[None]:
    before = {*os.listdir("/proc/self/fd")}
    yield
    assert {*os.listdir("/proc/self/fd")} <= before  # what other tests have left may be closed by now


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with open_listener(ANY, backlog=7) as sock:
        yield sock


def at(sock: socket.socket) -> Address:
    return actual(ANY, sock)


def test_listener_has_all_its_options(listener: socket.socket) -> None:
    assert listener.getblocking() is False
    assert not os.get_inheritable(listener.fileno())
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_queue_is_measured(listener: socket.socket) -> None:
    assert queue_depth(listener) == (0, 7)
    with socket.create_connection(listener.getsockname()):
        assert queue_depth(listener) == (1, 7)


def test_url_names_where_to_find_it(listener: socket.socket) -> None:
    assert url(at(listener)) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert url(parse_bind("[::1]:8000"), tls=True) == "https://[::1]:8000"
    assert url(parse_bind("unix:/run/api.sock")) == "unix:/run/api.sock"


def test_nothing_is_imported_to_listen_which_might_fail_for_good() -> None:
    code = (
        "import sys; from pyworker.config.address import parse_bind; from pyworker.daemon.listener import open_listener;"
        "open_listener(parse_bind('127.0.0.1:0')); sys.exit('encodings.idna' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_host_name_is_resolved() -> None:
    with open_listener(parse_bind("localhost:0")) as sock:
        assert sock.getsockname()[0] in ("127.0.0.1", "::1")


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_ipv6_listener_leaves_ipv4_to_others() -> None:
    with open_listener(parse_bind("[::]:0")) as sock:
        port = sock.getsockname()[1]
        with open_listener(Address("inet", "0.0.0.0", port)):
            pass


def test_port_in_use_names_its_owner(listener: socket.socket) -> None:
    with pytest.raises(ListenFailed) as caught:
        open_listener(at(listener))
    error = caught.value
    assert error.code == "port_in_use"
    assert error.message.startswith(f"cannot listen on {at(listener)}: already in use\n  by ")
    assert f"(pid {os.getpid()}, user " in error.message
    assert f"kill {os.getpid()}" in error.hint
    assert 'bind = "127.0.0.1:' in error.hint


def test_port_in_use_by_an_overlapping_address_names_its_owner(listener: socket.socket) -> None:
    with pytest.raises(ListenFailed) as caught:
        open_listener(Address("inet", "0.0.0.0", at(listener).port))
    assert f"pid {os.getpid()}" in caught.value.message


def test_port_in_use_by_another_pyworker_is_no_reason_to_kill_its_guardian(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = owner.Owner(0, 4711, "pyworker guardian", 60.0, "/", frozenset({1}))
    monkeypatch.setattr(owner, "of_port", lambda _host, _port: found)
    with pytest.raises(ListenFailed) as caught:
        open_listener(at(listener))
    assert "kill 4711" not in caught.value.hint
    assert "of another pyworker, user root's" in caught.value.hint


def test_port_in_use_by_a_worker_of_another_pyworker_is_no_reason_to_kill_it(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # to who is not root the guardian shows no descriptors, so that a worker or template of it is found
    command = [GUARDIAN_TITLE, "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, executable=shutil.which("sh"), stdout=subprocess.PIPE) as guardian:
        assert guardian.stdout is not None
        worker = int(guardian.stdout.readline())
        found = owner.Owner(os.getuid(), worker, "pyworker worker shop.1", 60.0, "/", frozenset({1}))
        monkeypatch.setattr(owner, "of_port", lambda _host, _port: found)
        with pytest.raises(ListenFailed) as caught:
            open_listener(at(listener))
        with monkeypatch.context() as ours:
            ours.setattr(os, "getppid", lambda: guardian.pid)
            with pytest.raises(ListenFailed) as left_behind:
                open_listener(at(listener))
        os.kill(worker, signal.SIGKILL)
    assert "of another pyworker" in caught.value.hint
    assert f"kill {worker}" not in caught.value.hint
    assert f"kill {worker}" in left_behind.value.hint, "what an app of ours has left behind"


def test_port_in_use_by_a_pyworker_whose_home_was_deleted_names_what_still_ends_it(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = owner.Owner(os.getuid(), os.getpid(), "pyworker guardian", 60.0, "/", frozenset({1}))
    monkeypatch.setattr(owner, "of_port", lambda _host, _port: found)
    with open(tmp_path / "lock", "w"):
        with pytest.raises(ListenFailed, match="already in use") as there:
            open_listener(at(listener))
        os.unlink(tmp_path / "lock")
        with pytest.raises(ListenFailed, match="already in use") as gone:
            open_listener(at(listener))
    assert f"pyworker --home {tmp_path} stop NAME" in there.value.hint
    assert f"its home {tmp_path} was deleted" in gone.value.hint
    assert f"kill {os.getpid()}" in gone.value.hint


def test_port_in_use_by_an_app_of_ours_names_the_app(listener: socket.socket) -> None:
    with pytest.raises(ListenFailed) as caught:
        open_listener(at(listener), own=lambda found: "admin" if inode(listener) in found.inodes else "")
    assert "by your app admin" in caught.value.message
    assert "pyworker stop admin" in caught.value.hint


def test_owner_is_the_oldest_process_that_holds_the_socket_with_its_command_and_folder(tmp_path: Path) -> None:
    program = (
        "import os, socket, sys; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, "some\x1b[31mthing"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        found = owner.of_port("127.0.0.1", port)
        assert found is not None
        assert (found.pid, found.uid, found.cwd) == (child.pid, os.getuid(), str(tmp_path))
        assert "\x1b" not in found.command
        assert 0 <= found.age < 120
        child.communicate()


def test_owner_that_may_not_be_known_is_named_by_its_user() -> None:
    assert owner.Owner(0).sentence() == "by a process of user root (its pid is visible to root only)"
    assert "uid 4000001" in owner.Owner(4_000_001).sentence()
    words = owner.Owner(0, 38120, "gunicorn: master", 7300.0, "/srv").sentence()
    assert words == "by gunicorn: master  (pid 38120, user root, started 2h ago, in /srv)"


def test_nobody_owns_a_free_port(listener: socket.socket) -> None:
    port = at(listener).port
    listener.close()
    assert owner.of_port("127.0.0.1", port) is None


def test_address_of_another_machine_is_explained() -> None:
    with pytest.raises(ListenFailed) as caught:
        open_listener(parse_bind("192.0.2.1:0"))
    assert caught.value.code == "bad_address"
    assert "no address 192.0.2.1" in caught.value.message
    assert '"0.0.0.0:0"' in caught.value.hint


def test_the_interface_of_a_link_local_address_is_told_to_the_kernel() -> None:
    index = socket.if_nametoindex("lo")  # which has no such address to listen on
    for interface in ("lo", index):
        assert listener_module._in_full(f"fe80::1%{interface}", 8000) == ("fe80::1", 8000, 0, index)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_a_link_local_address_without_its_interface_or_of_none_is_explained() -> None:
    with pytest.raises(ListenFailed) as caught:
        open_listener(parse_bind("[fe80::1]:8000"))
    assert caught.value.code == "bad_address"
    assert 'bind = "[fe80::1%eth0]:8000"' in caught.value.hint
    with pytest.raises(ListenFailed) as caught:
        open_listener(parse_bind("[fe80::1%nosuch]:8000"))
    assert caught.value.code == "bad_address"
    assert caught.value.message.endswith("this machine has no network interface nosuch")
    with pytest.raises(ListenFailed) as caught:
        open_listener(parse_bind("[::1%lo]:8000"))
    assert caught.value.hint == 'leave that out: bind = "[::1]:8000"'


def test_unknown_host_name_is_explained() -> None:
    with pytest.raises(ListenFailed) as caught:
        open_listener(parse_bind("no-such-host.invalid:8000"))
    assert caught.value.code == "bad_address"
    assert "127.0.0.1:8000" in caught.value.hint


# ---- Unix sockets ----------------------------------------------------------------------------------
def test_unix_listener_takes_connections_and_has_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with open_listener(Address("unix", path=str(path)), mode=0o660) as sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert sock.getblocking() is False
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            # a kernel without unix_diag does not say
            assert queue_depth(sock) in (None, (1, 2048))
    assert os.listdir(tmp_path) == ["api.sock"]


def test_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    address = Address("unix", path=str(tmp_path / "api.sock"))
    open_listener(address).close()
    with open_listener(address), socket.socket(socket.AF_UNIX) as client:
        client.connect(address.path)
    assert os.listdir(tmp_path) == ["api.sock"]


def test_a_unix_socket_whose_name_takes_nearly_all_of_its_path_is_replaced_and_removed() -> None:
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as folder:
        address = Address("unix", path=f"{folder}/a.sock".ljust(MAX_UNIX_PATH, "k"))
        open_listener(address).close()
        with open_listener(address) as sock:
            with pytest.raises(ListenFailed, match="already in use"):
                open_listener(address)
            shut_down(sock, address)
        assert os.listdir(folder) == []


def test_a_unix_socket_that_is_removed_while_it_is_looked_at_leaves_its_name_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = Address("unix", path=str(tmp_path / "api.sock"))
    connect, looks = listener_module._Folder.connect, itertools.count(1)

    def look(folder: Any, probe: socket.socket) -> int:
        if next(looks) == 2:
            os.unlink(address.path)
        return connect(folder, probe)

    with open_listener(address):
        monkeypatch.setattr(listener_module._Folder, "connect", look)
        open_listener(address).close()
    assert os.path.lexists(address.path)


def test_live_unix_socket_is_never_stolen(tmp_path: Path) -> None:
    address = Address("unix", path=str(tmp_path / "api.sock"))
    with open_listener(address):
        with pytest.raises(ListenFailed) as caught:
            open_listener(address)
        assert caught.value.code == "port_in_use"
        assert f"pid {os.getpid()}" in caught.value.message
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address.path)


def test_a_unix_socket_of_one_who_has_gone_is_said_to_be_his_who_has_it_now(tmp_path: Path) -> None:
    """A daemon that was replaced: the kernel names who began to listen, and its guardian has the socket."""
    address = Address("unix", path=str(tmp_path / "api.sock"))
    program = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "if os.fork(): os._exit(0)\n"
        "print(os.getpid(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, address.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as gone:
        assert gone.stdout is not None
        holder = int(gone.stdout.readline())
        gone.wait()
        if not listening_inode(os.stat(address.path)):
            pytest.skip("this kernel has no unix_diag")
        with pytest.raises(ListenFailed) as caught:
            open_listener(address)
        with pytest.raises(ListenFailed) as ours:
            open_listener(address, own=lambda found: "admin" if found.pid == holder else "")
        gone.communicate()
    assert f"(pid {holder}, " in caught.value.message
    assert caught.value.hint == f"stop it (kill {holder}), or choose another path"
    assert "by your app admin" in ours.value.message


_OF_ANOTHER = """
import os, sys
from pyworker.config.address import parse_bind
from pyworker.daemon.listener import ListenFailed, open_listener
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    open_listener(parse_bind(f"unix:{sys.argv[1]}"))
except ListenFailed as error:
    print(error.message, error.hint, sep="\\n")
"""


def test_a_socket_to_which_this_user_may_not_connect_is_not_said_to_be_in_use() -> None:
    """Nobody listens there: an app of another user's, say, has left it."""
    with tempfile.TemporaryDirectory(prefix="pw-") as folder:
        path = os.path.join(folder, "api.sock")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)
        os.chmod(path, 0)
        os.chmod(folder, 0o755)
        done = subprocess.run([sys.executable, "-c", _OF_ANOTHER, path], text=True, capture_output=True, timeout=60)
    assert done.stdout.splitlines() == [
        f"cannot listen on unix:{path}: there is a socket of that name, and this user may not connect to it",
        f"stop the program that listens there; if none does any more: rm {path}",
    ], done.stderr


def test_file_that_is_no_socket_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(ListenFailed, match="no socket"):
        open_listener(Address("unix", path=str(path)))
    assert path.read_text() == "precious"


@pytest.mark.parametrize("put", [os.symlink, os.link])
def test_what_was_put_in_the_place_of_a_new_unix_socket_keeps_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path, Path], None]
) -> None:
    """The folder may be the app's user's, and it is root who sets the rights of the socket."""
    precious = tmp_path / "precious"
    precious.touch(mode=0o600)
    folder = tmp_path / "run"
    folder.mkdir()
    give = listener_module._give

    def replaced(where: Any, name: str, *rights: int) -> None:
        os.unlink(folder / name)
        put(precious, folder / name)
        give(where, name, *rights)

    monkeypatch.setattr(listener_module, "_give", replaced)
    with pytest.raises(ListenFailed):
        open_listener(Address("unix", path=str(folder / "api.sock")))
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600
    assert os.listdir(folder) == []


def test_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ListenFailed) as caught:
        open_listener(Address("unix", path=str(tmp_path / "none" / "api.sock")))
    assert "mkdir -p" in caught.value.hint


def test_path_longer_than_the_kernel_takes_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    with open_listener(Address("unix", path=str(folder / "api.sock"))):
        assert stat.S_ISSOCK((folder / "api.sock").stat().st_mode)


def test_shut_down_refuses_although_somebody_holds_a_copy_and_removes_the_file(tmp_path: Path) -> None:
    address = Address("unix", path=str(tmp_path / "api.sock"))
    with open_listener(address) as sock, sock.dup():
        shut_down(sock, address)
        assert os.listdir(tmp_path) == []
    with open_listener(ANY) as sock, sock.dup():
        shut_down(sock, at(sock))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(sock.getsockname(), timeout=5)


def test_a_port_that_was_shut_twice_listens_again_and_its_connections_do_not_end_at_once(listener: socket.socket) -> None:
    address = at(listener)
    for _ in range(2):
        shut_down(listener, address)
    listen_again(listener, 8)
    with socket.create_connection(listener.getsockname(), timeout=5), listener.accept()[0] as accepted:
        accepted.setblocking(False)
        with pytest.raises(BlockingIOError):
            accepted.recv(1)


def test_shut_down_leaves_a_file_that_is_somebody_elses_by_now(tmp_path: Path) -> None:
    address = Address("unix", path=str(tmp_path / "api.sock"))
    with open_listener(address) as old:
        os.unlink(address.path)
        with open_listener(address):
            shut_down(old, address)
            assert os.listdir(tmp_path) == ["api.sock"]


def first_port_for_all() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())


@pytest.mark.skipif(os.getuid() == 0 or first_port_for_all() <= 81, reason="this user may listen on every port")
def test_port_of_root_is_explained() -> None:
    with pytest.raises(ListenFailed) as caught:
        open_listener(parse_bind("127.0.0.1:81"))
    assert (caught.value.code, caught.value.exit) == ("no_permission", 77)
    assert f"below {first_port_for_all()}" in caught.value.message
    assert "127.0.0.1:8000" in caught.value.hint


@pytest.mark.parametrize("port", [-1, 65536, 2**64])
@pytest.mark.parametrize("family", ["inet", "inet6", "unix"])
def test_a_worker_that_asks_for_a_port_that_there_is_not_is_told_so(family: Any, port: int) -> None:
    with pytest.raises(ListenFailed, match="no port has that number"):
        check_asked(Address(family, "127.0.0.1" if family == "inet" else "", port))


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EROFS, "/run/shop can only be read: Read-only file system"), (errno.EACCES, "no right to make a socket in /run/shop")],
)
def test_a_file_system_that_can_only_be_read_is_no_want_of_rights(number: int, said: str) -> None:
    failed = listener_module._explain_unix(Address("unix", path="/run/shop/web.sock"), OSError(number, os.strerror(number)))
    assert said in failed.message
