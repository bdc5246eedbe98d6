"""The whole process tree, as a user has it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support.pyworker import Pyworker, running


@pytest.fixture(autouse=True, scope="session")
def _orderly_end() -> Iterator[None]:
    """A test run that is told to end takes its process trees with it."""

    def end(*_: object) -> None:
        pytest.exit("terminated", 143)

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def pw() -> Iterator[Pyworker]:
    with running() as one:
        yield one
