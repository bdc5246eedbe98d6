"""Who watches what."""

from __future__ import annotations

from pyworker.cluster.state_watch import Interests


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
