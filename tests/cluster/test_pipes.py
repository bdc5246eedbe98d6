"""cluster/pipes.py: what is read of a child, wherever the handler of a signal raises."""

from __future__ import annotations

import os

from pyworker.cluster.pipes import PipeReader
from tests.cluster.helpers import asynchronous
from tests.support.steps import acts_at


@asynchronous
async def test_what_the_handler_of_a_signal_raises_in_a_read_is_not_the_end() -> None:
    for step in range(1, 1000):
        out, into = os.pipe()
        reader = PipeReader(out, lambda: None)
        os.write(into, b"one")
        has_come = acts_at(step, reader._on_readable)
        os.write(into, b"two")
        os.close(into)
        reader.resume()
        assert (await reader.read()).endswith(b"two")
        if not has_come:
            return
    raise AssertionError("a read takes more calls than that")
