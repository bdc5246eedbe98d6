"""A dispatcher for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dispatcher.rig import Rig, rig


@pytest.fixture
def one() -> Iterator[Rig]:
    with rig() as made:
        yield made
