"""The guardian's clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.guardian.main import AHEAD, Guardian, Times


@pytest.mark.parametrize("now", [0.0, 0.2, 4.98, 4.991, 5.0, 1e6 + 0.3])
def test_the_next_tick_is_just_before_a_moment_of_the_daemon_and_never_past(now: float) -> None:
    guardian: Any = SimpleNamespace(_times=Times(tick=5.0))
    Guardian._schedule_tick(guardian, now)
    assert now < guardian._next_tick <= now + 5.0
    assert (guardian._next_tick + AHEAD) % 5.0 == pytest.approx(0.0, abs=1e-6)
