"""Reloads under every kind of client at once; `make reload-load` is the long version over the whole matrix."""

from __future__ import annotations

import pytest

from tests.chaos.reload_load import Cell, run_cell, verdict
from tests.support.pyworker import Pyworker


@pytest.mark.parametrize("cell", [Cell("round-robin", "asgi", "uvloop"), Cell("shared", "wsgi", "asyncio")], ids=str)
def test_no_kind_of_client_loses_anything_in_reloads(pw: Pyworker, cell: Cell) -> None:
    tally = run_cell(pw, cell, reloads=3, requests=500)
    assert verdict(tally) == []
    assert tally.announced.total() > 0
    assert set(tally.versions) >= {f"v{n}" for n in range(4)}
