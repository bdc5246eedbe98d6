"""Who watches what."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pyworker.cluster.state_watch import Interests, Thread


def test_thousands_of_watches_are_not_each_compared_with_each() -> None:
    compared = 0

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return super().__eq__(other)

    interests, told = Interests(), list[str | None]()
    ends = [interests.watch(Key(number), told.append) for number in range(1000)]
    interests.look(interests.keys(), {"7": "seven"})
    assert sorted(filter(None, told)) == ["seven"]
    for end in reversed(ends):
        end()
    assert len(told) == 1000
    assert not interests.keys()
    assert compared < 10_000


def test_a_watch_may_end_while_the_watches_are_looked_through() -> None:
    """As by Python's collector, in whatever thread and moment."""
    interests, ends = Interests(), list[Callable[[], None]]()

    class Key(str):
        def __hash__(self) -> int:
            for end in ends:
                end()
            return super().__hash__()

    for number in range(3):
        ends.append(interests.watch(Key(number), lambda _: None))
    ends.append(interests.listen(lambda *_: None))
    looking = threading.Thread(target=interests.keys, daemon=True)
    looking.start()
    looking.join(30)
    assert not looking.is_alive()
    assert not interests.watched
    assert not interests.listening


def test_a_thread_that_could_not_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ran = threading.Event()
    thread = Thread(ran.set, lambda error: None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError):
            thread.ensure()
    thread.ensure()
    assert ran.wait(10)
    thread.join()
