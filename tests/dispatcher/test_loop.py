"""The dispatcher's loop: a handler that fails costs its own fd, and its words once; a number that is used again is another's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pyworker.dispatcher.loop import IN, Loop


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(5)]
    yield made
    for pair in made:
        os.close(pair[0])
        os.close(pair[1])


def test_a_mistake_that_many_connections_meet_is_said_once(
    pipes: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    loop = Loop()
    served: list[int] = []

    def fail(_: int) -> None:
        raise RuntimeError("a bug")

    def serve(_: int) -> None:
        served.append(os.read(pipes[4][0], 1)[0])
        if len(served) == 5:
            loop.running = False
        else:
            loop.later(0.0, lambda: fail(0))
            os.write(pipes[4][1], b"x")

    for reader, writer in pipes[:4]:
        loop.add(reader, IN, fail)
        os.write(writer, b"x")
    loop.add(pipes[4][0], IN, serve)
    os.write(pipes[4][1], b"x")
    loop.run()
    assert len(served) == 5
    assert not any(loop.watches(reader) for reader, _ in pipes[:4])
    assert capsys.readouterr().err.count("RuntimeError: a bug") == 1


def test_an_event_of_whoever_had_a_number_before_is_not_told_to_the_next_in_the_same_turn(pipes: list[tuple[int, int]]) -> None:
    """The error of one client cut the connection of another, or was taken for a connection to a worker."""
    loop, told = Loop(), list[str]()

    def own(_: int) -> None:
        told.append("own")
        loop.running = False

    def give_away(other: int) -> None:
        told.append("first")
        loop.remove(other)
        os.dup2(pipes[2][0], other)
        loop.add(other, IN, own)
        loop.later(0.0, lambda: os.write(pipes[2][1], b"x") and told.append("written"))

    (first, _), (second, _) = pipes[:2]
    loop.add(first, IN, lambda _: os.read(first, 1) and give_away(second))
    loop.add(second, IN, lambda _: os.read(second, 1) and give_away(first))
    for _, writer in pipes[:2]:
        os.write(writer, b"x")
    loop.run()
    assert told == ["first", "written", "own"]
