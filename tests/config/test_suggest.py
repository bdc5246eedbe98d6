"""The nearest word, or none."""

from __future__ import annotations

import pytest

from pyworker.config.convert import hints_of, table_class
from pyworker.config.schema import AppConfig
from pyworker.config.suggest import KNOWN_ELSEWHERE, nearest
from pyworker.record import fields

KEYS = ("workers", "bind", "env_file", "round-robin", "target")


@pytest.mark.parametrize(
    ("word", "found"),
    [("worker", "workers"), ("WORKERS", "workers"), ("env-file", "env_file"), ("round_robin", "round-robin"), ("instances", "workers"), ("ibnd", "bind"), ("zzz", None), ("", None)],
)  # fmt: skip
def test_nearest_word_is_found(word: str, found: str | None) -> None:
    assert nearest(word, KEYS) == found


def test_what_stands_for_a_word_of_another_tool_is_a_key() -> None:
    keys = set(hints_of(AppConfig)) | {"env.PYTHONPATH"}
    for table, hint in hints_of(AppConfig).items():
        if (cls := table_class(hint)) is not None:
            keys |= {f"{table}.{field.name}" for field in fields(cls)}
    assert set(KNOWN_ELSEWHERE.values()) <= keys
    assert not set(KNOWN_ELSEWHERE) & keys
