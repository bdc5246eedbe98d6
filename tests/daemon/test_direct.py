"""What the launcher says of the processes that it was asked for, and what is said when it cannot."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pyworker.daemon.direct import Direct
from pyworker.daemon.handles import WorkerHandle
from pyworker.protocol.inherited import WorkerId
from pyworker.unix import process


def test_of_a_launcher_that_was_killed_it_is_said_also_when_the_end_of_the_channel_is_seen_first() -> None:
    later: list[Callable[[], None]] = []
    ended: list[process.ExitStatus] = []
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(call_later=lambda _, call: later.append(call)),
        poke=lambda app: None,
        spawner=SimpleNamespace(launcher=SimpleNamespace(last_status=process.ExitStatus(None, 9))),
        deaths=SimpleNamespace(
            finish=lambda app, handle, status: ended.append(status), ended=lambda app, handle, status: ended.append(status)
        ),
    )
    app: Any = SimpleNamespace(generations={})
    handle = WorkerHandle(WorkerId("job", 1, 1, 1), held=False, born_at=0.0)
    direct = Direct(brain)
    direct.failed(app, handle, 0)
    while later:
        direct.without_a_word(app, handle)
        assert not ended
        later.pop(0)()
    assert handle.failure is not None
    assert handle.failure.message == "cannot start a process: the launcher was killed"
    assert len(ended) == 1
    other = WorkerHandle(WorkerId("job", 1, 2, 2), held=False, born_at=0.0)
    direct.without_a_word(app, other)
    assert len(ended) == 2, "its launcher lives, and nobody else looks for it"
