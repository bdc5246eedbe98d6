"""Ages without the time in which the daemon, and perhaps the whole machine, stood still."""

from __future__ import annotations

from pyworker.daemon.pulse import OwnTime


def test_time_in_which_we_stood_still_does_not_count() -> None:
    own = OwnTime()
    for now in (10.0, 10.5, 11.0, 15.0, 15.5):  # frozen from 11 to 15
        own.look(now, 0.5)
    assert own.age(10.5, 15.5) == 1.5
    assert own.age(15.1, 15.5) < 0.5


def test_a_busy_machine_is_not_taken_for_one_that_stood_still() -> None:
    own = OwnTime()
    for now in (10.0, 10.5, 11.9):
        own.look(now, 0.5)
    assert round(own.age(10.0, 12.0), 3) == 2.0


def test_what_was_before_we_looked_often_does_not_count() -> None:
    own = OwnTime()
    own.look(0.0, 8.0)  # no app had a limit
    own.look(8.0, 0.5)  # a standstill from 3 to 7 would not have been noticed
    own.look(8.5, 0.5)
    assert own.age(2.9, 8.5) == 0.5
    assert own.age(8.1, 8.5) < 0.5
