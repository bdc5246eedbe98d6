from __future__ import annotations

from typing import Any

import pytest

from tests.support.cli import run
from tests.support.fake_control import CLOSE, HANG, FakeControl


@pytest.mark.parametrize(("end", "what"), [(CLOSE, "went away before it had answered"), (HANG, "did not answer within")])
def test_a_message_whose_fate_is_not_known_is_not_sent_again(home: str, end: Any, what: str) -> None:
    with FakeControl(home, {"send": lambda _: [end]}) as daemon:
        found = run("send", "api", "1", "--timeout", "1s" if end is HANG else "60s", home=home)
    assert (found.code, len(daemon.requests)) == (69, 1)
    assert what in found.err
    assert "workers may have the message, or get it yet: send it again if it may come twice" in found.err
