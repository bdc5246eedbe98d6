"""worker/engines/body.py: where an upload is kept until the app reads it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pyworker.worker.engines.body import IN_MEMORY, Body


def test_an_upload_is_taken_after_the_folder_for_temporary_files_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "of-a-login"))
    body = Body()
    for part in (b"a" * IN_MEMORY, b"bc"):
        body.append(part)
    assert body.rewound().read() == b"a" * IN_MEMORY + b"bc"
    body.close()
