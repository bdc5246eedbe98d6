"""daemon/asked.py: who gives a command, without what its options hold."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon import asked
from pyworker.daemon.owner import user_name


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/usr/bin/python3", "-P", "/x/bin/pyworker", "start", "app.toml", "-e", "TOKEN=s3cret"], ": pyworker start app.toml"),
        (["python3.12", "-m", "pyworker", "reload", "api\n\x1b[2J"], ": pyworker reload api??[2J"),
        (["pyworker", "--home", "/srv/home", "-q", "--color=never", "reload", "api", "--home", "/x"], ": pyworker reload api"),
        (["python", "-c", "s3cret"], ": python"),
        (["/usr/bin/cat", "--", "s3cret"], ": cat"),
        (["a" * 200], ": " + "a" * 80),
        ([], ""),
    ],
)  # fmt: skip
def test_who_asks_is_named_without_what_its_options_hold(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], shown: str
) -> None:
    monkeypatch.setattr(asked, "read_all", lambda path: "".join(word + "\0" for word in argv).encode())
    uid = os.getuid()
    client: Any = SimpleNamespace(pid=4711, uid=uid)
    assert asked.asker(client) == f"{user_name(uid)} (uid {uid}), pid 4711{shown}"


def test_who_has_gone_or_lives_in_another_pid_namespace_is_named_as_far_as_the_kernel_knows_it() -> None:
    uid = os.getuid()
    who = f"{user_name(uid)} (uid {uid})"
    gone: Any = SimpleNamespace(pid=2**22 + 1, uid=uid)
    elsewhere: Any = SimpleNamespace(pid=0, uid=uid)
    assert (asked.asker(gone), asked.asker(elsewhere)) == (f"{who}, pid {2**22 + 1}", who)
