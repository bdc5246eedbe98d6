"""A stderr that takes nothing is no reason to fail."""

from __future__ import annotations

import sys

import pytest

from pyworker.unix import stderr


def test_a_full_disk_or_a_closed_one_costs_the_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    stderr.write("a line\n")
    stderr.say("daemon", "a line")
    with pytest.raises(OSError, match="No space"):
        full.close()
    stderr.write("a line\n")


def test_a_line_says_when_and_who(capsys: pytest.CaptureFixture[str]) -> None:
    stderr.say("daemon", "does not answer")
    assert "Z daemon[" in capsys.readouterr().err
