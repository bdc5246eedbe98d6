"""A fault that lasts is said twice: when it begins, and when it is over."""

from __future__ import annotations

from pyworker.policy.faults import CALM, Faults, place_of


def fail(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_a_fault_is_new_once_however_often_it_is_met() -> None:
    faults = Faults()
    assert [faults.is_new("no descriptors", now * 0.05) for now in range(200)] == [True] + [False] * 199
    assert faults.over(199 * 0.05 + CALM - 0.01) == []
    assert faults.over(199 * 0.05 + CALM) == ["over, after 200 times: no descriptors"]
    assert faults.over(1000.0) == []
    assert not faults


def test_faults_are_told_apart() -> None:
    faults = Faults()
    assert faults.is_new("no descriptors", 0.0)
    assert faults.is_new("no memory", 0.0)
    assert not faults.is_new("no descriptors", 5.0)
    assert faults.over(CALM) == []  # what was met once needs no end
    assert faults.over(5.0 + CALM) == ["over, after 2 times: no descriptors"]


def test_a_fault_that_comes_back_after_a_calm_is_new_also_when_nobody_has_looked() -> None:
    faults = Faults()
    assert faults.is_new("no descriptors", 0.0)
    assert faults.is_new("no descriptors", CALM)
    assert faults.over(2 * CALM) == []  # once, again


def test_the_place_of_an_error_does_not_depend_on_its_message() -> None:
    assert place_of(fail("fd 7")) == place_of(fail("fd 8")) == "ValueError in fail"
    assert place_of(ValueError("never raised")) == "ValueError"
