"""daemon/owner.py: who somebody is, in words."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from pyworker.daemon.owner import user_name


def test_a_user_without_a_name_is_named_by_number() -> None:
    assert user_name(0) == pwd.getpwuid(0).pw_name
    assert user_name(3_999_999_999) == "uid 3999999999"


def test_no_directory_server_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pytest.fail("it was asked"))
    table = tmp_path / "passwd"
    table.write_bytes(b"root:x:0:0:root:/root:/bin/sh\n+::::::\n\n# none\ndep\xffloy\x1b:x:1000:1000::/:/bin/sh\n")
    assert [user_name(uid, str(table)) for uid in (0, 1000, 100)] == ["root", "dep\ufffdloy?", "uid 100"]
    assert user_name(0, str(tmp_path / "none")) == "uid 0"
