"""What `top` asks of the daemon: its requests, beside the view."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworker.cli.top.feed import Feed
from pyworker.cli.top.model import Wish
from tests.cli import results
from tests.support.fake_control import FakeControl


def test_what_a_key_wants_is_asked_for_as_it_was_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_SHELL", "yes")
    home = str(tmp_path / "home")
    handlers = {
        "scale": lambda _: [results.reply("scaled")], "reload": lambda _: [results.reply("reloaded")],
        "restart": lambda _: [results.reply("restarted")],
    }  # fmt: skip
    feed = Feed(home, (), 1.0, lambda: None)
    with FakeControl(home, handlers) as daemon:
        for wish in (Wish("scale", "api", 3), Wish("reload", "api"), Wish("restart", "web")):
            feed._carry_out(wish)
    scale, *others = daemon.requests
    assert scale.changes == {"api": "3"}
    assert [type(request).__name__ for request in others] == ["Reload", "Restart"]
    assert [request.selectors for request in others] == [("api",), ("web",)]
    assert [request.shell_env["OF_THE_SHELL"] for request in others] == ["yes", "yes"]
    assert [news.style for news in feed.take()] == ["green"] * 3
