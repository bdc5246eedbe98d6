"""Whether whoever asks for a sign of life has stood still itself."""

from __future__ import annotations

from pyworker.policy.pulse import stood_still


def test_half_a_tick_late_is_frozen() -> None:
    assert stood_still(5.6, 11.0)
    assert not stood_still(5.4, 11.0)


def test_a_busy_machine_may_make_a_short_tick_late() -> None:
    assert not stood_still(0.9, 0.1)
    assert stood_still(1.1, 0.1)
