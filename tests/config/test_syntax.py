"""A line that is no TOML is explained in no time, however it looks: the daemon reads files too, and waits for nobody."""

from __future__ import annotations

import pytest

from pyworker.config.problem import ConfigError
from pyworker.config.syntax import parse


@pytest.mark.parametrize(
    "line", ["1" * 60, "1" * 60_000, "a." * 5000, " " * 60_000 + "x", "a = " + " " * 60_000 + "#x" * 99]
)
def test_a_long_line_of_one_character_is_refused_at_once(line: str) -> None:
    """The first of these took longer than the sun will burn: a pattern that tried every way to cut it up."""
    with pytest.raises(ConfigError):
        parse(f"[app]\n{line}\n".encode(), "app.toml")


@pytest.mark.parametrize("part", ["a.", "a . ", '"a".', r'"\"".', "'.'.", '"' + "x" * 200 + '".', "'" + "x" * 200 + "'."])
@pytest.mark.parametrize("around", ["x = 1\n{}a = 1", "x = 1\n[{}a]", "x = 1\ny = [{{ {}a = 1 }}]"])
def test_a_key_of_very_many_parts_is_refused_before_it_is_read(part: str, around: str) -> None:
    """One of 40 kB took 1.5 GB, and its square was what one of 400 kB would have taken."""
    parse(around.format(part * 99).encode(), "app.toml")
    with pytest.raises(ConfigError) as caught:
        parse(around.format(part * 200).encode(), "app.toml")
    (problem,) = caught.value.problems
    assert (problem.message, problem.line) == ("nested too deeply", 2)


def test_a_table_that_is_there_twice_is_named_however_long_and_odd_its_name_is() -> None:
    deep = ".".join(["a"] * 40) + ".\"it's\""
    for name, shown in ((deep, deep), ("a.\"it')\"", "a.\"it')\""), ("a.b", "a.b")):
        with pytest.raises(ConfigError) as caught:
            parse(f"[{name}]\nx = 1\n[{name}]\n".encode(), "app.toml")
        (problem,) = caught.value.problems
        assert (problem.message, problem.line) == (f"not valid TOML: cannot declare [{shown}] twice", 3)
