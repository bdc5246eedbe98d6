"""The folder of an app's shared state, and whose it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyworker.daemon.state import _hand_over

BEFORE, AFTER = 65534, 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_only_files_of_the_user_before_go_to_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for name in ("state/own", "state/roots", "elsewhere"):
        (tmp_path / name).touch()
    os.link(tmp_path / "elsewhere", tmp_path / "state" / "linked")
    (tmp_path / "state" / "link").symlink_to("own")
    for name in ("state/own", "elsewhere"):
        os.chown(tmp_path / name, BEFORE, -1)
    folder = os.open(tmp_path / "state", os.O_RDONLY)
    try:
        _hand_over(folder, BEFORE, AFTER, -1)
    finally:
        os.close(folder)
    owners = {path.name: path.lstat().st_uid for path in (tmp_path / "state").iterdir()}
    assert owners == {"own": AFTER, "roots": 0, "linked": BEFORE, "link": 0}
