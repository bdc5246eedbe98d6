"""Health: what one more result of a check means for a worker. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyworker.config.schema import HealthConfig

Verdict = Literal["well", "sick", "wait"]


@dataclass(frozen=True)
class HealthRecord:
    """The results so far of one worker."""

    passed: bool = False  # at least once
    failures: int = 0  # in a row


def after_check(record: HealthRecord, ok: bool, age: float, config: HealthConfig) -> tuple[HealthRecord, Verdict]:
    """Count one result. `age` is the worker's, in seconds: failures before its start period is over do not count."""
    if ok:
        return HealthRecord(True, 0), "well"
    if not record.passed and age < config.start_period:
        return record, "wait"
    failures = record.failures + 1
    return HealthRecord(record.passed, failures), "sick" if failures >= config.retries else "wait"


def expects(expect: str, status: int) -> bool:
    """Whether an HTTP status is one of "2xx,301"."""
    for part in expect.split(","):
        word = part.strip().lower()
        if word == str(status) or (len(word) == 3 and word.endswith("xx") and word[0] == str(status)[:1]):
            return True
    return False
