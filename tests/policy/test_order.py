"""Who ends first of those that are stopped together."""

from __future__ import annotations

import pytest

from pyworker.policy.order import stops_after

CHAIN = {"web": ("cache",), "cache": ("db",), "db": (), "other": ()}
CIRCLE = {"a": ("b",), "b": ("c",), "c": ("a",), "web": ("a",)}


@pytest.mark.parametrize(
    ("depends_on", "stopping", "waits"),
    [
        (CHAIN, {"web", "cache", "db", "other"}, {"db": ("cache", "web"), "cache": ("web",)}),
        (CHAIN, {"web", "db"}, {"db": ("web",)}),  # over one that goes on
        (CHAIN, {"db"}, {}),  # those that go on hold nobody
        (CHAIN, {"web", "cache"}, {"cache": ("web",)}),
        (CHAIN, set(), {}),
        ({"web": ("db", "db", "gone"), "db": ()}, {"web", "db"}, {"db": ("web",)}),
        ({"web": ("db",)}, {"web", "db"}, {"db": ("web",)}),  # of whose config nothing is known
        # each half of a circle is the config of another time: none of it waits for the rest, all for who depends on it
        (CIRCLE, {"a", "b", "c"}, {}),
        (CIRCLE, {"a", "b", "c", "web"}, {"a": ("web",), "b": ("web",), "c": ("web",)}),
        ({"a": ("a",)}, {"a"}, {}),
    ],
)
def test_who_depends_on_another_ends_first(
    depends_on: dict[str, tuple[str, ...]], stopping: set[str], waits: dict[str, tuple[str, ...]]
) -> None:
    assert {n: found for n in stopping if (found := stops_after(n, depends_on, stopping))} == waits


def test_somebody_can_always_go_next() -> None:
    """However the dependencies lie: nobody waits for ever."""
    names = "abcd"
    for number in range(1 << 12):
        pairs = [(x, y) for x in names for y in names if x != y]
        chosen = [pair for bit, pair in enumerate(pairs) if number >> bit & 1]
        depends_on = {x: [b for a, b in chosen if a == x] for x in names}
        left = set(names)
        while left:
            free = {n for n in left if not stops_after(n, depends_on, left)}
            assert free, depends_on
            left -= free
