"""What the shared bind does inside one process; whole workers are in tests/worker/test_script.py."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pyworker.cluster import binding
from pyworker.cluster.binding import Address, Binding, Grant
from pyworker.cluster.inbox import Inbox
from pyworker.unix.fds import close_all
from tests.cluster.helpers import open_fds
from tests.support.fake_daemon import tcp_listener
from tests.support.steps import acts_at


class Shared(Binding):
    """Gives the one listener for whatever address."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self.listener = listener

    def ask(self, address: Address) -> Grant | None:
        return Grant(fd=os.dup(self.listener.fileno()))


def test_a_program_that_shuts_down_one_listener_in_the_middle_of_an_accept_keeps_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept_now = binding._accept_now

    def is_overtaken(sock: socket.socket) -> tuple[socket.socket, object]:
        shared.shut(sock)  # by another thread
        return accept_now(sock)

    with tcp_listener() as listener, socket.socket() as sock:
        shared = Shared(listener)
        assert shared.adopt(sock, listener.getsockname())
        monkeypatch.setattr(binding, "_accept_now", is_overtaken)
        with pytest.raises(OSError, match="Invalid argument") as raised:
            shared.accept(sock)
        assert raised.value.errno == errno.EINVAL
        assert not shared.draining
        for fd in (shared._wake_reader, shared._wake_writer):
            os.close(fd)


def test_an_accept_says_that_the_handler_of_a_signal_has_closed_its_listener_in_the_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept_now = binding._accept_now

    def is_overtaken(sock: socket.socket) -> tuple[socket.socket, object]:
        try:
            return accept_now(sock)
        finally:
            sock.close()

    with tcp_listener() as listener, socket.socket() as sock:
        shared = Shared(listener)
        assert shared.adopt(sock, listener.getsockname())
        monkeypatch.setattr(binding, "_accept_now", is_overtaken)
        with pytest.raises(OSError, match="Bad file descriptor"):
            shared.accept(sock)
        for fd in (shared._wake_reader, shared._wake_writer):
            os.close(fd)


def test_twisted_hears_of_nobody_after_the_drain_and_can_unregister_what_it_has_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "twisted.internet.epollreactor", ModuleType("epollreactor"))
    with tcp_listener() as listener, socket.socket() as sock, select.epoll() as epoll:
        shared = Shared(listener)
        assert shared.adopt(sock, listener.getsockname())
        epoll.register(sock, select.EPOLLIN)
        shared.stop_accepting()
        with socket.create_connection(listener.getsockname()):
            assert epoll.poll(0) == []
        epoll.unregister(sock)
        for fd in (shared._wake_reader, shared._wake_writer):
            os.close(fd)


def test_a_program_has_a_port_once_unless_it_shares_it_or_has_closed_it() -> None:
    with tcp_listener() as listener, socket.socket() as first, socket.socket() as second, socket.socket() as sharing:
        shared, address = Shared(listener), listener.getsockname()
        assert shared.adopt(first, address)
        with pytest.raises(OSError, match="Address already in use"):
            shared.adopt(second, address)
        sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        assert shared.adopt(sharing, address)
        first.close()
        sharing.close()
        assert shared.adopt(second, address)
        with shared.exchange(second, lambda blank: blank) as wrapped, socket.socket() as third:
            with pytest.raises(OSError, match="Address already in use"):
                shared.adopt(third, address)
            shared.shut(wrapped)
            assert shared.adopt(third, address)
        for fd in (shared._wake_reader, shared._wake_writer):
            os.close(fd)


def test_the_removal_of_a_file_can_be_handed_to_another_process() -> None:
    """As by concurrent.futures.ProcessPoolExecutor().map(os.remove, paths)."""
    program = "import os, pickle, sys; from pyworker.cluster.binding import Binding; Binding().install(); "
    program += "sys.stdout.buffer.write(pickle.dumps([os.remove, os.unlink]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    assert pickle.loads(done.stdout) == [os.unlink, os.unlink]


def test_a_unix_socket_that_is_named_by_a_link_is_that_of_its_real_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with tcp_listener() as listener, socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as other:
        shared = Shared(listener)
        found = shared._question(sock, f"{tmp_path}/link/x")
        assert found is not None
        assert found.host == f"{tmp_path}/real/x"
        other.bind(f"{tmp_path}/real/x")
        shared._files[f"{tmp_path}/real/x"] = None
        assert shared.keeps(f"{tmp_path}/link/x")


@pytest.mark.parametrize("path", ["\0abstract", "/tmp/x\0y", b"/tmp/\xff"])
def test_a_unix_socket_that_no_message_can_name_is_the_programs_own(path: str | bytes) -> None:
    with tcp_listener() as listener, socket.socket(socket.AF_UNIX) as sock:
        assert Shared(listener)._question(sock, path) is None


@pytest.mark.parametrize("asked", [("fe80::1%lo", 80), ("fe80::1", 80, 0, 1), ("fe80::1%lo", 80, 0, 1)])
def test_a_link_local_address_is_asked_for_with_its_link(asked: tuple[str, int]) -> None:
    if socket.if_indextoname(1) != "lo":
        pytest.skip("the loopback interface has another number")
    with tcp_listener() as listener, socket.socket(socket.AF_INET6) as sock:
        found = Shared(listener)._question(sock, asked)
    assert found is not None
    assert found.host == "fe80::1%lo"


def test_a_connection_is_there_for_the_next_accept_when_the_handler_of_a_signal_ends_this_one() -> None:
    answers: list[Any] = []

    def answer(token: Any, taken: bool) -> None:
        answers.append((token, taken))
        if len(answers) == 1:
            raise KeyboardInterrupt

    inbox = Inbox("name", answer)
    one, other = socket.socketpair()
    with socket.socket() as sock, one, other:
        inbox.give_end(sock.fileno())
        inbox.put(7, one)
        with pytest.raises(KeyboardInterrupt):
            inbox.take(sock)
        assert inbox.take(sock) is one
        with pytest.raises(BlockingIOError):
            inbox.take(sock)
    inbox._bell.close()
    assert answers == [(7, True), (7, True)]


def test_the_handler_of_a_signal_may_close_the_inbox_in_the_middle_of_an_accept() -> None:
    for step in range(1, 100):
        answers: list[Any] = []
        inbox = Inbox("name", lambda token, taken, answers=answers: answers.append(taken))
        one, other = socket.socketpair()
        with socket.socket() as sock, one, other, contextlib.closing(inbox._bell):
            inbox.give_end(sock.fileno())
            inbox.put(7, one)
            has_come: list[bool] = []

            def accept(sock: socket.socket = sock, inbox: Inbox = inbox) -> None:
                with contextlib.suppress(OSError):
                    inbox.take(sock)

            def run(step: int = step, inbox: Inbox = inbox, has_come: list[bool] = has_come) -> None:
                has_come.append(acts_at(step, accept, inbox.close))

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join(20)
            assert has_come, "it waits for the lock that it has"
            assert answers == [one.fileno() >= 0], "whose it is was said once"
            if not has_come[0]:
                return
    raise AssertionError("an accept takes more calls than that")


def test_a_listener_is_given_to_who_tries_again_wherever_that_was_ended_and_nothing_is_left_open() -> None:
    with tcp_listener() as listener:
        for step in itertools.count(1):
            shared = Shared(listener)
            shared._wake_reader, shared._wake_writer = os.pipe()
            before = open_fds()
            with socket.socket() as sock:
                adopt = partial(shared.adopt, sock, ("127.0.0.1", 1))
                has_come = acts_at(step, adopt, within="cluster/binding.py")
                assert sock in shared.adopted or adopt()
                assert sock.getsockname() == listener.getsockname()
            assert open_fds() == before
            close_all([shared._wake_reader, shared._wake_writer])
            if not has_come:
                break


def test_a_listener_that_was_granted_before_its_bind_and_is_given_up_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s")

    def rung(*_: object) -> None:
        raise TimeoutError

    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
        listener.bind(path)
        shared = Shared(listener)
        shared.asks_for_files = True
        assert shared.keeps(path)
        with monkeypatch.context() as patch:
            patch.setattr(shared, "_become", rung)
            with pytest.raises(TimeoutError):
                shared.adopt(sock, path)
        assert shared.adopt(sock, path)
        assert sock.getsockname() == path
        close_all([shared._wake_reader, shared._wake_writer])


def test_a_connection_that_a_signal_has_put_back_after_the_end_of_the_inbox_is_refused() -> None:
    answers: list[Any] = []

    def answer(token: Any, taken: bool) -> None:
        if taken:
            inbox.close()  # by another thread: the primary has told the worker to leave
            raise KeyboardInterrupt
        answers.append(token)

    inbox = Inbox("name", answer)
    one, other = socket.socketpair()
    with socket.socket() as sock, one, other:
        inbox.give_end(sock.fileno())
        inbox.put(7, one)
        with pytest.raises(KeyboardInterrupt):
            inbox.take(sock)
        assert one.fileno() == -1
    inbox._bell.close()
    assert answers == [7], "the primary gives it to another worker"


@pytest.mark.parametrize(("slept", "left"), [((0.02, 40.0, 0.02), 0), ((5.0, 0.5, 0.5), 0), ((0.5, 0.5, 0.5), 1)])
def test_connections_have_their_time_though_the_machine_stood_still(
    monkeypatch: pytest.MonkeyPatch, slept: tuple[float, ...], left: int
) -> None:
    clock, naps = [100.0], list(slept)

    def sleep(_: float) -> None:
        clock[0] += naps.pop(0)

    monkeypatch.setattr(binding, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    mine = Binding()
    monkeypatch.setattr(mine, "count_open", lambda: 1 if naps else 0)
    assert mine.wait_for_connections(101.0) == left
