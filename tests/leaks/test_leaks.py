"""A short run; `make leaks` is the long one."""

from __future__ import annotations

from tests.leaks import leaks
from tests.support.pyworker import running


def test_nothing_grows() -> None:
    with running() as pw:
        assert leaks.run(pw, {"restarts": 16, "commands": 4, "reloads": 3}) == []
