"""When `pyworker send` is answered of Node workers, whose messages a dispatcher passes on."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon.handles import DispatcherHandle, WorkerHandle
from pyworker.daemon.requests import send as module
from pyworker.policy.lifecycle import State
from pyworker.protocol import control as k
from pyworker.protocol.inherited import WorkerId
from tests.support.channels import ends as ends

NOT_YET = "the dispatcher, which has its channel, has not read it yet: it may come later"
ENDED = "the dispatcher that was to pass it on has ended: it may not have come"


class Sent:
    """A message to a worker, for whose dispatcher at `ends[1]` it waits."""

    def __init__(self, ends: tuple[socket.socket, socket.socket]) -> None:
        app: Any = SimpleNamespace(name="api")
        worker = WorkerHandle(WorkerId("api", 1, 1, 7), False, 0.0, state=State.READY, pid=123)
        ends[0].send(b"a message")
        dispatcher = DispatcherHandle(0.0, "ready", channel=ends[0])
        self.later: list[Any] = []
        self.replies: list[Any] = []
        loop = SimpleNamespace(call_later=lambda seconds, callback: self.later.append(callback))
        brain = SimpleNamespace(loop=loop, messages=SimpleNamespace(send=lambda *_: dispatcher))
        desk: Any = SimpleNamespace(workers=lambda names: [(app, worker, False)], brain=brain)
        client: Any = SimpleNamespace(reply=lambda ok, body: self.replies.append((ok, body["workers"][0]["error"])))
        module.send(desk, client, k.Send(("api",), "1"))

    def look(self) -> list[Any]:
        self.later.pop()()
        return self.replies


def test_a_message_is_sent_when_the_dispatcher_has_read_it(ends: tuple[socket.socket, socket.socket]) -> None:
    sent = Sent(ends)
    assert sent.look() == []
    ends[1].recv(100)
    assert sent.look() == [(True, None)]


def test_a_dispatcher_that_ends_before_it_has_read_a_message_has_lost_it(ends: tuple[socket.socket, socket.socket]) -> None:
    sent = Sent(ends)
    ends[1].close()
    assert sent.look() == [(False, ENDED)]


def test_a_dispatcher_that_stands_still_is_not_waited_for_without_end(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOKS", 2)
    sent = Sent(ends)
    assert sent.look() == []
    assert sent.look() == [(False, NOT_YET)]
    assert sent.later == []
