"""The nearest word, or none."""

from __future__ import annotations

import pytest

from pyworker.config.suggest import nearest

KEYS = ("workers", "bind", "env_file", "round-robin", "target")


@pytest.mark.parametrize(
    ("word", "found"),
    [("worker", "workers"), ("WORKERS", "workers"), ("env-file", "env_file"), ("round_robin", "round-robin"), ("instances", "workers"), ("zzz", None), ("", None)],
)  # fmt: skip
def test_nearest_word_is_found(word: str, found: str | None) -> None:
    assert nearest(word, KEYS) == found
