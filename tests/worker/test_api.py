"""What `import pyworker` offers, where there is no worker."""

from __future__ import annotations

import pyworker
from pyworker.worker.api import take_stop_callbacks


def test_outside_a_worker_nothing_happens_and_a_callback_stays_what_it_was() -> None:
    def callback() -> None:
        raise AssertionError

    pyworker.ready()
    assert pyworker.on_stop(callback) is callback
    assert take_stop_callbacks() == [callback]
    assert take_stop_callbacks() == [], "each is called once"
