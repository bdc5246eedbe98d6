"""A file with many apps is loaded once for each of them, and parsed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworker.config import load, syntax
from pyworker.config.problem import ConfigError

TWO = '[apps.a]\ncommand = "sleep 1"\n\n[apps.b]\ncommand = "sleep 2"\n'


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    parse = syntax.parse
    monkeypatch.setattr(syntax, "parse", lambda data, path: (seen.append(path), parse(data, path))[1])
    return seen


def test_same_content_is_parsed_once_inside_and_again_outside(tmp_path: Path, parses: list[str]) -> None:
    path = tmp_path / "app.toml"
    path.write_text(TWO)
    with load.parsed_once():
        assert [load.load(str(path), only=(name,)).apps[0].name for name in ("a", "b")] == ["a", "b"]
        with load.parsed_once():
            load.load(str(path))
    assert len(parses) == 1
    load.load(str(path))
    load.load(str(path))
    assert len(parses) == 3


def test_what_was_written_in_between_is_seen_even_with_the_same_mtime(tmp_path: Path) -> None:
    import os

    path = tmp_path / "app.toml"
    path.write_text(TWO)
    stamp = path.stat().st_mtime_ns
    with load.parsed_once():
        load.load(str(path))
        path.write_text(TWO.replace("sleep 1", "sleep 9"))
        os.utime(path, ns=(stamp, stamp))
        assert load.load(str(path), only=("a",)).apps[0].command == ("sleep", "9")


def test_variables_and_profile_of_the_caller_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    path.write_text('[app]\nname = "a"\ntarget = "m:app"\n\n[profiles.big.app]\nworkers = 7\n')
    with load.parsed_once():
        assert load.load(str(path)).apps[0].workers != 7
        assert load.load(str(path), profile="big").apps[0].workers == 7
        assert load.load(str(path), environ={"WEB_CONCURRENCY": "5"}).apps[0].workers == 5


def test_a_mistake_is_found_each_time(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    path.write_text("[app]\nnam = 1\n")
    with load.parsed_once():
        for _ in range(2):
            with pytest.raises(ConfigError):
                load.load(str(path))
