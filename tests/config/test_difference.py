"""config/difference.py: each changed key once, with what it takes to apply it."""

from __future__ import annotations

import pytest

from pyworker.config.difference import Change, applies, differences
from pyworker.config.schema import AppConfig, HealthConfig, ResolvedApp, StopConfig
from pyworker.record import fields, replace

APP = AppConfig("x", target="a:b", bind=("127.0.0.1:1",))
OLD = ResolvedApp(APP, 1, "/venv/bin/python", {"A": "1", "TOKEN": "s"}, ("TOKEN",), None, None, (), "app.toml", 1)


def config(**changes: object) -> ResolvedApp:
    return replace(OLD, config=replace(APP, **changes))  # type: ignore[arg-type]


def test_the_same_is_the_same_whenever_it_was_written() -> None:
    assert differences(OLD, replace(OLD, mtime_ns=2, crc=3)) == []


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (config(workers=4), Change("workers", 1, 4, "live")),
        (config(bind=("127.0.0.1:2",)), Change("bind", ["127.0.0.1:1"], ["127.0.0.1:2"], "reload")),
        (config(stop=StopConfig(drain_timeout=5.0)), Change("stop.drain_timeout", "30s", "5s", "live")),
        (config(user="www-data"), Change("user", None, "www-data", "reload")),
        (replace(OLD, python="/other"), Change("python", "/venv/bin/python", "/other", "reload")),
        (
            replace(OLD, uid=5),
            Change("user", "uid None, gid None, groups none", "uid 5, gid None, groups none", "reload"),
        ),
        (replace(OLD, env={"TOKEN": "s"}), Change("env.A", "1", None, "reload")),
        (replace(OLD, env={"A": "1", "TOKEN": "t"}), Change("env.TOKEN", "***", "***", "reload", True)),
    ],
)
def test_a_change_is_named_with_how_it_is_applied(new: ResolvedApp, expected: Change) -> None:
    assert differences(OLD, new) == [expected]


def test_a_whole_table_that_comes_is_shown_by_its_keys() -> None:
    keys = {c.key for c in differences(OLD, config(health=HealthConfig(path="/x")))}
    assert {"health.path", "health.interval"} <= keys


def test_a_secret_is_never_in_a_change() -> None:
    new = replace(OLD, env={"A": "1", "TOKEN": "new-secret", "DSN": "x://u:p@h"}, secrets=("TOKEN", "DSN"))
    assert "new-secret" not in repr(differences(OLD, new))
    assert "u:p" not in repr(differences(OLD, new))
    assert differences(OLD, config(state="redis://:p@h")) == [Change("state", "***", "***", "reload", True)]
    assert differences(OLD, config(state="redis://:${P}@h")) == [Change("state", "sqlite", "redis://:${P}@h", "reload")]


def test_every_key_knows_how_it_is_applied() -> None:
    assert (applies("workers"), applies("limits.memory"), applies("env.X")) == ("live", "live", "reload")


def test_a_reload_applies_every_option_of_an_app() -> None:
    """A generation has all of its own; of another name it would be another app's."""
    assert [f.name for f in fields(AppConfig) if applies(f.name) == "restart"] == ["name"]
