"""Where tasks wait: every frame between a task and what it awaits, whatever kind of coroutine each is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import pytest

from pyworker.protocol.stacks import TaskStack, parse_tasks
from pyworker.unix.fds import memfd, read_whole
from pyworker.worker import tasks


def waits(*functions: Callable[[asyncio.Event], Awaitable[Any]]) -> list[TaskStack]:
    """Return the stacks of tasks that have begun to wait."""

    async def main() -> list[TaskStack]:
        never = asyncio.Event()
        begun = [asyncio.ensure_future(function(never)) for function in functions]
        for number, task in enumerate(begun):
            task.set_name(f"task {number}")
        await asyncio.sleep(0)
        found = tasks.stacks(set(begun))
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
        return found

    return asyncio.run(main())


async def inner(never: asyncio.Event) -> None:
    await never.wait()


async def outer(never: asyncio.Event) -> None:
    await inner(never)


@types.coroutine
def of_a_generator(never: asyncio.Event) -> Generator[Any, Any, None]:
    yield from inner(never)


async def old(never: asyncio.Event) -> None:
    await of_a_generator(never)


async def items(never: asyncio.Event) -> AsyncIterator[None]:
    await inner(never)
    yield


async def loops(never: asyncio.Event) -> None:
    async for _ in items(never):
        pass


@contextlib.asynccontextmanager
async def opened(never: asyncio.Event) -> AsyncIterator[None]:
    yield
    await inner(never)


async def leaves(never: asyncio.Event) -> None:
    async with opened(never):
        pass


async def throws(never: asyncio.Event) -> None:
    steps = stubborn(never)
    await anext(steps)
    await steps.athrow(ValueError)


async def stubborn(never: asyncio.Event) -> Any:
    try:
        yield
    except ValueError:
        await inner(never)


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (outer, ["outer", "inner", "wait"]),
        (old, ["old", "of_a_generator", "inner", "wait"]),
        (loops, ["loops", "items", "inner", "wait"]),
        (leaves, ["leaves", "__aexit__", "opened", "inner", "wait"]),
        (throws, ["throws", "stubborn", "inner", "wait"]),
    ],
)
def test_each_call_that_is_waited_in_is_shown(function: Callable[[asyncio.Event], Awaitable[None]], calls: list[str]) -> None:
    (found,) = waits(function)
    assert [frame.function for frame in found.frames] == calls
    assert found.frames[0].file == __file__
    assert all(frame.line for frame in found.frames)


def test_tasks_that_wait_alike_are_one_with_the_first_of_their_names_and_what_is_most_frequent_comes_first() -> None:
    found = waits(loops, outer, outer, outer, old)
    assert [(each.name, each.count) for each in found] == [("task 1", 3), *[(each.name, 1) for each in found[1:]]]
    assert {each.name for each in found[1:]} == {"task 0", "task 4"}


def of_file(file: str, name: str) -> Callable[[asyncio.Event], Awaitable[None]]:
    """Return a coroutine function that waits, of a file that there need not be."""
    names: dict[str, Any] = {}
    exec(compile(f"async def {name}(never): await never.wait()", file, "exec"), names)
    found: Callable[[asyncio.Event], Awaitable[None]] = names[name]
    return found


def test_a_lifespan_is_shown_while_it_does_something_else_than_wait_for_the_end() -> None:
    ours = "/srv/lib/pyworker/worker/engines/lifespan.py"
    (found,) = waits(of_file(ours, "_receive"), of_file(ours, "_run"))
    assert found.frames[0].function == "_run"


def test_what_is_written_is_read_back_whatever_a_file_is_called() -> None:
    fd = memfd("stacks", b"", seal=False)

    async def main() -> None:
        task = asyncio.ensure_future(of_file("/srv/\udcff.py", "waits")(asyncio.Event()))
        await asyncio.sleep(0)
        tasks.write(fd)
        task.cancel()

    try:
        asyncio.run(main())
        found = parse_tasks(read_whole(fd).decode(), os.getpid())
    finally:
        os.close(fd)
    assert sorted(each.frames[0].function for each in found) == ["main", "waits"]
    assert {each.frames[0].file for each in found} == {__file__, "/srv/\\udcff.py"}
