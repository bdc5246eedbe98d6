"""Events: who is called how often, and what is kept for whom."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, ClassVar

import pytest

from pyworker.cluster.emitter import Emitter
from tests.cluster.helpers import asynchronous


class Bell(Emitter):
    EVENTS: ClassVar[tuple[str, ...]] = ("ring", "end")
    LAST: ClassVar[str] = "end"


def test_callbacks_are_called_in_the_order_in_which_they_came() -> None:
    bell, told = Bell(), []
    bell.on("ring", lambda x: told.append(("first", x)))
    bell.once("ring", lambda x: told.append(("once", x)))
    bell.on("ring")(lambda x: told.append(("decorated", x)))
    assert bell.emit("ring", 1) is True
    assert bell.emit("ring", 2) is True
    assert bell.emit("end") is False
    assert told == [("first", 1), ("once", 1), ("decorated", 1), ("first", 2), ("decorated", 2)]


def test_once_is_once_even_if_the_event_comes_again_inside_of_it() -> None:
    bell, told = Bell(), []
    bell.on("ring", lambda depth: bell.emit("ring", depth + 1) if depth < 3 else None)
    bell.once("ring", told.append)
    bell.emit("ring", 0)
    assert told == [3], "the innermost was the first to get there"
    assert bell.listeners("ring") == 1


def test_a_callback_may_take_away_itself_and_others() -> None:
    bell, told = Bell(), []

    def first() -> None:
        bell.off("ring", first)
        bell.off("ring", second)
        bell.off("ring", print)  # was never there

    def second() -> None:
        told.append("second")

    bell.on("ring", first)
    bell.once("ring", second)
    bell.on("ring", lambda: told.append("third"))
    bell.emit("ring")
    bell.emit("ring")
    assert told in (["second", "third", "third"], ["third", "third"])
    assert bell.listeners("ring") == 1


def test_a_method_is_forgotten_although_it_is_another_object_each_time() -> None:
    bell, told = Bell(), []
    bell.on("ring", told.append)
    bell.off("ring", told.append)
    bell.emit("ring", 1)
    assert told == []


@asynchronous
async def test_an_iterator_has_all_events_from_its_call_on_up_to_the_last() -> None:
    bell = Bell()
    bell.emit("ring", "before")
    everything, some = bell.events(), bell.events("ring")
    for number in range(3):
        bell.emit("ring", number)
    bell.emit("end")
    assert [(e.name, e.args) async for e in everything] == [("ring", (0,)), ("ring", (1,)), ("ring", (2,)), ("end", ())]
    assert [e.args async for e in some] == [(0,), (1,), (2,)]
    assert [e async for e in bell.events()] == [], "it is over"
    with pytest.raises(ValueError, match="there is no event 'rang' here"):
        bell.events("rang")


@asynchronous
async def test_an_iterator_goes_on_after_a_wait_in_vain() -> None:
    bell = Bell()
    rings = bell.events("ring")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(rings), 0)
    waiting = asyncio.ensure_future(anext(rings))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bell.emit("ring", 1)
    bell.emit("end")
    assert [e.args async for e in rings] == [(1,)]
    assert [e.args async for e in rings] == []


@asynchronous
async def test_nothing_is_kept_for_an_iterator_that_nobody_has_any_more() -> None:
    bell = Bell()
    begun = bell.events()
    bell.emit("ring", 1)
    assert (await anext(begun)).args == (1,)
    del begun
    bell.events()  # never begun
    gc.collect()
    await eventually_none(bell)
    assert bell.emit("ring", 2) is False


async def eventually_none(bell: Bell) -> None:
    for _ in range(100):
        if not bell._streams:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it is still fed")


@asynchronous
async def test_a_coroutine_function_runs_as_a_task_and_its_failure_is_shown() -> None:
    bell, told = Bell(), []
    shown: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: shown.append(context))

    async def slow(x: int) -> None:
        await asyncio.sleep(0)
        told.append(x)
        raise ZeroDivisionError

    bell.on("ring", slow)
    bell.emit("ring", 1)
    assert told == []
    while not shown:
        await asyncio.sleep(0)
    assert told == [1]
    assert isinstance(shown[0]["exception"], ZeroDivisionError)
