from __future__ import annotations

from pyworker.daemon.drops import SHOWN, Drops


def test_lines_missing_in_a_log_are_told_for_an_hour_after_the_last_one_or_while_it_cannot_be_written() -> None:
    drops = Drops()
    drops.note(10.0, 7, 3, "full")
    assert drops.lines(10.0 + 2 * SHOWN, 7) == 3, "it is full still"
    drops.note(9000.0, 7, 5, "full")
    drops.note(9001.0, 7, 5, "")
    assert [drops.lines(now, 7) for now in (9001.0, 9000.0 + SHOWN)] == [5, 0]
    drops.note(9002.0, 8, 1, "")
    assert drops.lines(9003.0, 8) == 6, "of the logger before as well"
    drops.note(9002.0 + SHOWN, 8, 3, "")
    assert drops.lines(9003.0 + SHOWN, 8) == 2, "those that are news"
