"""Where sd_notify of commands arrives."""

from __future__ import annotations

import os
from pathlib import Path

from pyworker.daemon.notify import _bound


def test_a_folder_with_the_name_of_the_socket_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    """Docker makes one of a file to be mounted that is not there."""
    (tmp_path / "notify.sock").mkdir()
    home = os.open(tmp_path, os.O_RDONLY)
    try:
        with _bound(home) as sock:
            assert sock.getsockname().startswith(b"\0")
    finally:
        os.close(home)
    assert os.listdir(tmp_path) == ["notify.sock"]
