"""The whole process tree, as a user has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.pyworker import Pyworker, running


@pytest.fixture
def pw() -> Iterator[Pyworker]:
    with running() as one:
        yield one
