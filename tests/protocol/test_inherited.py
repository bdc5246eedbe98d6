"""fd names say what exists, and only that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.protocol.inherited import KINDS, WorkerId, fd_name, parse_fd_name, worker_fd


@given(
    st.sampled_from(sorted(KINDS)),
    st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True),
    st.lists(st.integers(0, 10**9), min_size=3, max_size=3),
)
def test_names_are_read_as_they_were_made(kind: str, app: str, numbers: list[int]) -> None:
    used = numbers[: KINDS[kind]]
    parsed = parse_fd_name(fd_name(kind, app, *used))
    assert parsed is not None
    assert (parsed.kind, parsed.app, parsed.numbers) == (kind, app, tuple(used))


def test_a_worker_is_known_by_its_name() -> None:
    worker = WorkerId("api", 3, 2, 41)
    parsed = parse_fd_name(worker_fd("ctl", worker))
    assert parsed is not None
    assert parsed.worker == worker


@pytest.mark.parametrize(
    "name", ["", "lock", "control", "ctl", "ctl.api", "ctl.api.1.2", "ctl.api.1.2.x", "ctl.API.1.2.3", "ctl..1.2.3", "listen.api.-1", "listen.api.١"]
)
def test_what_is_no_such_name_is_none(name: str) -> None:
    assert parse_fd_name(name) is None
