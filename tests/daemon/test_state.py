"""The folder of an app's shared state, and whose it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, MetricsConfig, ResolvedApp
from pyworker.daemon import appmetrics
from pyworker.daemon.state import _closed_to, _hand_over, is_lost, prepare

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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_folders_of_an_app_that_were_removed_or_given_to_another_or_closed_to_it_are_mended() -> None:
    """By rm -r, chown -R and chmod -R, as operators do; and by a reload to another user, whose prometheus files it writes on."""
    config = AppConfig("api", target="a:b", metrics=MetricsConfig(prometheus=True))
    resolved = ResolvedApp(config, 1, "/usr/bin/python3", {}, (), AFTER, AFTER, (), "", 0)
    with tempfile.TemporaryDirectory() as home:
        state, metrics = os.path.join(home, "state/api"), os.path.join(home, "state/api/prometheus")
        figures = os.path.join(metrics, "counter_w0.db")
        for step in ("none yet", "removed", "another's", "closed"):
            match step:
                case "removed":
                    shutil.rmtree(os.path.join(home, "state"))
                case "another's":
                    for path in (state, metrics, figures):
                        os.chown(path, BEFORE, -1)
                case "closed":
                    os.chmod(home, 0o700)
            assert is_lost(home, resolved), step
            assert appmetrics.is_lost(home, resolved) is (step != "closed")
            prepare(home, resolved)
            appmetrics.prepare(home, resolved)
            assert not is_lost(home, resolved), step
            assert not appmetrics.is_lost(home, resolved)
            with open(figures, "ab") as file:
                if step != "another's":
                    os.fchown(file.fileno(), AFTER, -1)
                assert os.fstat(file.fileno()).st_uid == AFTER


@pytest.mark.parametrize(
    ("mode", "uid", "groups", "passes"),
    [
        (0o700, 0, (), True), (0o077, 0, (), False), (0o710, 1, (0,), True), (0o701, 1, (0,), False),
        (0o710, 1, (), False), (0o701, 1, (), True),
    ],
)  # fmt: skip
def test_a_folder_on_the_way_to_the_home_is_open_to_who_may_pass_through_it_as_the_kernel_sees_it(
    mode: int, uid: int, groups: tuple[int, ...], passes: bool
) -> None:
    """`uid` and `groups`: 0 is the folder's own, another number is not."""
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, mode)
        found = os.stat(home)
        user: Any = SimpleNamespace(
            uid=found.st_uid + uid, gid=found.st_gid + 1, groups=tuple(found.st_gid + group for group in groups)
        )
        assert _closed_to(user, home) == ("" if passes else os.path.realpath(home))
        os.chmod(home, 0o700)
