"""`check --import`: what is left of the app when it has been tried. The rest is in tests/system/test_config_commands.py."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyworker.cli import tryimport
from tests.support.cli import run


def test_a_link_that_cannot_be_removed_from_its_state_leaves_what_it_leads_to_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another user's folder, and root removes it. Python's TemporaryDirectory opens what it has no right to remove."""
    theirs = tmp_path / "theirs"
    theirs.touch(mode=0o600)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with monkeypatch.context() as patch, tryimport._empty_state(None) as state:
        folder = state.removeprefix("sqlite:")
        os.symlink(theirs, f"{folder}/link")

        def denied(path: str, **_: object) -> None:
            raise PermissionError(1, "not yours", path)

        patch.setattr(os, "unlink", denied)
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o600


def test_what_an_import_has_used_as_its_state_is_removed() -> None:
    with tryimport._empty_state(None) as state:
        folder = state.removeprefix("sqlite:")
        Path(folder, "some").mkdir()
    assert not os.path.exists(folder)


def test_an_import_that_crashes_shows_where(home: str, tmp_path: Path) -> None:
    (tmp_path / "web.py").write_text("import ctypes\ndef load():\n    ctypes.string_at(0)\nload()\n")
    (tmp_path / "app.toml").write_text('[app]\nname = "api"\ntarget = "web:app"\n')
    found = run("check", "--import", home=home, cwd=str(tmp_path))
    assert found.code == 1
    assert "web.py\", line 3 in load" in found.err
    assert "importing web:app ended the process (killed by signal 11 (SEGV))" in found.err


def test_an_import_that_is_ended_by_a_signal_without_a_name_is_said_as_any_other(home: str, tmp_path: Path) -> None:
    (tmp_path / "web.py").write_text("import os\nos.kill(os.getpid(), 35)\n")
    (tmp_path / "app.toml").write_text('[app]\nname = "api"\ntarget = "web:app"\n')
    found = run("check", "--import", home=home, cwd=str(tmp_path))
    assert found.code == 1
    assert "importing web:app ended the process (killed by signal 35)" in found.err
