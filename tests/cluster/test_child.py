"""cluster/child.py: what a worker asks its primary, one question at a time."""

from __future__ import annotations

import os
import queue
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.cluster import child
from pyworker.cluster.binding import Address
from pyworker.protocol.nodecluster import CMD
from tests.support.wait import wait_until

ADDRESS = Address(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", 1)


class Rings(queue.SimpleQueue[None]):
    """Where a signal's handler ends the wait by an exception."""

    def get(self, *_: Any, **__: Any) -> None:
        raise TimeoutError


@pytest.mark.parametrize("asked_again", ["before the answer", "while that is given back"])
def test_what_was_left_is_given_back_before_the_same_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, asked_again: str) -> None:
    """However long the primary takes: Node's breaks off at a worker that asks for what it has."""
    said: list[str] = []
    closing, go_on = threading.Event(), threading.Event()

    def say(fields: dict[str, Any], seq: int | None = None) -> None:
        if fields["act"] == "close":
            closing.set()
            assert go_on.wait(30)
        said.append(fields["act"])

    channel = SimpleNamespace(connected=True, files=False, is_here=False)
    monkeypatch.setattr(child, "process", SimpleNamespace(_process=SimpleNamespace(channel=channel, start=lambda: None)))
    monkeypatch.setattr(child, "_say", say)
    monkeypatch.setattr(child, "_PATIENCE", 0.0)
    binding = child._ClusterBinding()
    with monkeypatch.context() as patch:
        patch.setattr(child, "queue", SimpleNamespace(SimpleQueue=Rings))
        with pytest.raises(TimeoutError):
            binding.ask(ADDRESS)
    left: Any = binding._last
    left.answered = queue.SimpleQueue()
    answer = {"cmd": CMD, "ack": left.seq, "key": "of the listener"}
    listener: Any = SimpleNamespace(fd=os.dup(0))
    asking = threading.Thread(target=binding.ask, args=(ADDRESS,), daemon=True)
    answering = threading.Thread(target=binding.received, args=(answer, listener), daemon=True)
    for thread in (asking, answering) if asked_again == "before the answer" else (answering, asking):
        thread.start()
        thread.join(0.1)
    assert closing.wait(30)
    assert said == ["queryServer"]
    go_on.set()
    answering.join()
    wait_until(lambda: said == ["queryServer", "close", "queryServer"], what=lambda: str(said))
    binding.at_end()
    asking.join()


def test_a_listener_that_is_given_up_is_given_back_whatever_was_asked_for_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []

    def say(fields: dict[str, Any], seq: int | None = None) -> None:
        if fields["act"] == "close":
            closed.append(fields["key"])
        else:
            listener: Any = SimpleNamespace(fd=os.dup(0))
            binding.received({"cmd": CMD, "ack": seq, "key": f"of {fields['port']}"}, listener)

    channel = SimpleNamespace(connected=True, files=True, is_here=False)
    monkeypatch.setattr(child, "process", SimpleNamespace(_process=SimpleNamespace(channel=channel, start=lambda: None)))
    monkeypatch.setattr(child, "_say", say)
    binding = child._ClusterBinding()
    first, second = binding.ask(ADDRESS), binding.ask(ADDRESS._replace(port=2))
    assert first is not None
    assert second is not None
    binding.give_up(first)
    assert closed == ["of 1"]
    binding.give_up(second)
