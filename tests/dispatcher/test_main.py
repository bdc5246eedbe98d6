"""dispatcher/main.py: what it says of want. What it does with connections is in test_inbox.py and test_relay.py."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable

import pytest

from pyworker.dispatcher.main import CALM, Dispatcher
from pyworker.protocol import dispatcher as d
from pyworker.protocol.scoreboard import SIZE
from pyworker.protocol.wire import MAX_MESSAGE, decode
from pyworker.unix.fds import recv_packet, socketpair


def test_a_want_of_descriptors_that_comes_and_goes_is_one_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socketpair()
    with ours, theirs:
        dispatcher = Dispatcher(theirs, memoryview(mmap.mmap(-1, SIZE)).cast("Q"))
        waits: list[Callable[[], None]] = []

        def later(delay: float, callback: Callable[[], None]) -> None:
            if delay == CALM:
                waits.append(callback)

        monkeypatch.setattr(dispatcher.loop, "later", later)

        def said() -> list[type]:
            found = []
            while (packet := recv_packet(ours, MAX_MESSAGE, 0)) is not None:
                found.append(type(decode(d.FromDispatcher, packet.data)))
            return found

        for _ in range(2):
            dispatcher.out_of_files(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            dispatcher._resume()
            dispatcher.files_again()
            dispatcher.files_again()
        assert (said(), len(waits)) == ([d.Trouble], 1)
        waits.pop()()  # it has failed again meanwhile
        assert said() == []
        dispatcher.files_again()
        waits.pop()()
        assert said() == [d.Over]
        assert waits == []
