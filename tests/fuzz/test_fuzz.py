"""A short run of both fuzzers; `make fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import live, offline
from tests.support.pyworker import running


def test_nothing_that_reads_bytes_of_others_breaks(tmp_path: Path) -> None:
    fuzz = offline.Fuzz(1, str(tmp_path))
    fuzz.run(5_000)
    assert 0 < fuzz.counts["refused"] < fuzz.counts["try_wire"]  # some is understood, some is not


def test_a_live_daemon_is_the_same_afterwards() -> None:
    with running() as pw:
        assert live.run(pw, 500, 1) == []
