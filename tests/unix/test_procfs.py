"""Files of the kernel's are read to their end, and nothing of them stays open."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworker.unix.procfs import read_all
from tests.support.descriptors import open_fds


def test_a_file_is_read_to_its_end_however_long_it_is(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"line\n" * 100_000)
    before = open_fds()
    assert read_all(str(tmp_path / "long")) == b"line\n" * 100_000
    assert read_all("/proc/self/status").startswith(b"Name:")
    with pytest.raises(FileNotFoundError):
        read_all(str(tmp_path / "none"))
    with pytest.raises(IsADirectoryError):
        read_all(str(tmp_path))
    assert open_fds() == before
