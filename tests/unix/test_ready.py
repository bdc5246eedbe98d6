"""What a descriptor has at this moment."""

from __future__ import annotations

import os
import select

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
