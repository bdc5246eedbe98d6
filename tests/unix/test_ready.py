"""What a descriptor has at this moment, or before long."""

from __future__ import annotations

import os
import select
import threading
import time

from pyworker.unix.ready import ready


def test_a_pipe_is_ready_when_it_holds_something_and_says_its_end() -> None:
    reader, writer = os.pipe()
    assert (ready(reader, select.POLLIN), ready(writer, select.POLLOUT)) == (0, select.POLLOUT)
    os.write(writer, b"x")
    assert ready(reader, select.POLLIN) == select.POLLIN
    os.close(writer)
    assert ready(reader, select.POLLIN) == select.POLLIN | select.POLLHUP
    os.read(reader, 1)
    assert ready(reader, 0) == select.POLLHUP
    os.close(reader)


def test_it_is_waited_for_as_long_as_is_said() -> None:
    reader, writer = os.pipe()
    began = time.monotonic()
    assert ready(reader, select.POLLIN, 0.02) == 0
    assert time.monotonic() - began >= 0.02
    later = threading.Timer(0.02, os.write, (writer, b"x"))
    later.start()
    assert ready(reader, select.POLLIN, None) == select.POLLIN
    later.join()
    os.close(reader)
    os.close(writer)
