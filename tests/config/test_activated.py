"""What is said of a missing module, beside how to install it; what the shell has activated is in tests/cli/test_start.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyworker.config.activated import or_activated


def test_no_module_is_to_be_added_to_the_environment_of_a_tool_of_uv_which_its_next_upgrade_takes_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    hint = f"install it: uv pip install --python {tmp_path} flask"
    assert or_activated(hint, "/srv/shop") == hint
    Path(tmp_path, "uv-receipt.toml").touch()
    assert or_activated(hint, "/srv/shop").endswith(
        ": uv venv /srv/shop/.venv && uv pip install --python /srv/shop/.venv flask"
    )
    assert or_activated(hint, "").endswith(": uv venv .venv && uv pip install --python .venv flask")
    other = "install it: uv pip install --python /srv/other flask"
    assert or_activated(other, "/srv/shop") == other
