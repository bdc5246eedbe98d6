"""What may be stored and removed, by whose word."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyworker.guardian import keep
from pyworker.guardian.store import FdStore
from pyworker.protocol import inherited
from pyworker.protocol.wire import WireError
from pyworker.unix.files import is_locked


def null() -> int:
    return os.open(os.devnull, os.O_RDONLY)


@pytest.fixture
def store() -> Iterator[FdStore]:
    made = FdStore({inherited.LOCK: null(), inherited.LIFELINE: null(), "board.api": null()})
    yield made
    for name in made:
        made.remove(name)


def inode(store: FdStore, name: str) -> int:
    fd = store.get(name)
    assert fd is not None
    return os.fstat(fd).st_ino


@pytest.mark.parametrize("name", [inherited.LOCK, inherited.LIFELINE, inherited.RUN, "no name"])
def test_what_is_the_guardians_own_or_no_name_at_all_is_not_stored_nor_what_came_with_it(store: FdStore, name: str) -> None:
    received, before = [null(), null()], list(store)
    with pytest.raises(WireError, match="not a name that can be stored"):
        keep.put(store, ("listen.api.0", name), list(received))
    assert list(store) == before
    for fd in received:  # the caller closes what nobody took
        os.close(fd)


def test_each_name_comes_with_a_descriptor_or_none_is_stored(store: FdStore) -> None:
    fd, before = null(), list(store)
    with pytest.raises(WireError, match="2 names with 1 fds"):
        keep.put(store, ("listen.api.0", "listen.api.1"), [fd])
    assert list(store) == before
    os.close(fd)


def test_what_is_stored_again_takes_the_place_of_what_was_there(store: FdStore) -> None:
    before = store.get("board.api")
    assert before is not None
    reader, writer = os.pipe()
    received = [reader, writer]
    keep.put(store, ("board.api", "listen.api.0"), received)
    assert (received, store.get("board.api"), store.get("listen.api.0")) == ([], reader, writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(before)


def test_the_guardians_own_is_not_removed(store: FdStore) -> None:
    assert keep.drop(store, (inherited.LOCK, "listen.api.0", "board.api", inherited.LIFELINE)) == ["board.api"]
    assert list(store) == [inherited.LOCK, inherited.LIFELINE]


def test_by_the_loggers_word_a_pipe_at_its_end_is_dropped_and_nothing_else(store: FdStore) -> None:
    ended, writer = os.pipe()
    os.close(writer)
    goes_on, others = os.pipe()
    listens = socket.socket()  # what polls as hung up, and is no pipe of the logger's
    for name, fd in (("out.api.1.1.7", ended), ("err.api.1.1.7", goes_on), ("listen.api.0", listens.detach())):
        store.put(name, fd)
    said = ("out.api.1.1.7", "err.api.1.1.7", "listen.api.0", "out.api.1.1.8", inherited.LOCK)
    assert keep.drop_closed(store, said) == ("out.api.1.1.7",)
    assert store.get("out.api.1.1.7") is None
    assert store.get("err.api.1.1.7") == goes_on
    assert store.get("listen.api.0") is not None
    os.close(others)


def test_the_logger_is_handed_what_it_reads_and_what_tells_it_who_lives() -> None:
    names = ["out.api.1.1.7", "err.api.1.1.7", "pid.api.1.1.7", "tout.api.1", "terr.api.1", "logs.api"]
    others = ["ctl.api.1.1.7", "listen.api.0", "env.api.1", "ledger.api", "board.api", inherited.LOCK, inherited.CONTROL, "no name"]
    assert list(filter(keep.is_for_logger, [*names, *others])) == names


def test_what_is_kept_is_nobody_elses(store: FdStore) -> None:
    """After an exec all that was passed on is inheritable: whoever is started next would hold every port open."""
    fd = null()
    os.set_inheritable(fd, True)
    adopted = FdStore({"listen.api.0": fd})
    assert not os.get_inheritable(fd)
    assert adopted.held(["listen.api.0", "listen.api.1"]) == {"listen.api.0": fd}
    assert (adopted.remove("listen.api.0"), adopted.remove("listen.api.0")) == (True, False)


def test_lock_and_ports_are_free_though_one_that_never_ends_has_copies_and_nothing_else_is_ended(tmp_path: Path) -> None:
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    ours, theirs = socket.socketpair()
    store = FdStore({"listen.api.0": listener.detach(), "ctl.api.1.1.7": ours.detach(), inherited.LOCK: lock, inherited.LIFELINE: null()})
    copies = [os.dup(fd) for fd in store.held(store).values()]
    try:
        keep.free(store)
        assert not is_locked(str(tmp_path))
        socket.create_server(address).close()
        with theirs:
            theirs.send(b"x")  # somebody still reads what is said here
    finally:
        for fd in copies:
            os.close(fd)
        for name in store:
            store.remove(name)
