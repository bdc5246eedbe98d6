from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyworker.guardian.boot import BootError, take_lock


def test_a_lock_that_cannot_be_opened_is_not_blamed_on_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()  # a read-only file system fails in the same call
    home = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BootError) as caught:
        take_lock(home)
    os.close(home)
    assert "a folder that can be written" in caught.value.hint
