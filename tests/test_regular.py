"""Files are opened, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyworker import regular
from pyworker.config import environment, load
from pyworker.config.environment import EnvironmentProblem
from pyworker.config.problem import ConfigError
from pyworker.unix.files import open_regular


def test_what_is_no_file_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root does it for other users, and to a device it can be an order: a watchdog restarts the machine."""
    opened: list[int] = []
    really_open = os.open

    def look(path: str, flags: int, *more: Any, **named: Any) -> int:
        opened.append(flags)
        return really_open(path, flags, *more, **named)

    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os, "open", look)
    for name in (str(tmp_path / "fifo"), "/dev/null"):
        with pytest.raises(EnvironmentProblem, match="cannot be read: it is not a regular file"):
            environment.add_file({}, name, ("env_file", 0), {})
        with pytest.raises(ConfigError, match="not a regular file"):
            load.load(name)
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(name)
    assert opened
    assert all(flags & os.O_PATH for flags in opened)


def test_a_file_is_read_and_a_folder_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    with open(tmp_path / "link", opener=regular.opener) as file:
        assert file.read() == "text"
        assert os.readlink(f"/proc/self/fd/{file.fileno()}") == str(tmp_path / "file")
        assert not os.get_inheritable(file.fileno())
    with pytest.raises(IsADirectoryError):
        regular.opener(str(tmp_path), os.O_RDONLY)
