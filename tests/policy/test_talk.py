"""How much a worker may say."""

from __future__ import annotations

from pyworker.policy.talk import A_SECOND, AT_ONCE, Allowance


def test_many_may_be_said_at_once_and_then_so_many_a_second() -> None:
    one = Allowance(10.0)
    for _ in range(int(AT_ONCE)):
        assert one.is_left(10.0)
        one.spend()
    assert not one.is_left(10.0)
    for _ in range(int(A_SECOND)):
        assert one.is_left(11.0)
        one.spend()
    assert not one.is_left(11.0)


def test_silence_is_not_saved_up_without_end() -> None:
    one = Allowance(0.0)
    assert one.is_left(1e6)
    assert one.left == AT_ONCE
