"""daemon/dispatchers.py: a dispatcher that stands still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon.dispatchers import DispatcherHandle, Dispatchers
from pyworker.daemon.loop import Loop
from pyworker.protocol import dispatcher as d
from pyworker.protocol.wire import encode
from pyworker.unix.fds import send_packet, socketpair


def test_one_that_takes_no_messages_costs_one_timer_and_not_one_for_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    ours, theirs = socketpair()
    dispatchers = Dispatchers(SimpleNamespace(loop=loop))  # type: ignore[arg-type]
    monkeypatch.setattr(dispatchers, "_news", lambda app, handle: [(d.Ping(1), (), None)])
    app: Any = SimpleNamespace(dispatcher=DispatcherHandle(0.0, state="ready", channel=ours))
    with ours, theirs:
        while send_packet(ours, encode(d.Ping(0))):
            pass
        for _ in range(50):
            dispatchers.sync(app)
        assert len(loop._timers) == 1
    loop.close()
