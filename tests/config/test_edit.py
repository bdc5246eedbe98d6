"""config/edit.py: one value changes, every other byte stays."""

from __future__ import annotations

import pytest

from pyworker.config.edit import CannotEdit, set_value


@pytest.mark.parametrize(
    ("before", "table", "after"),
    [
        (
            "# top\n[app] # one\nworkers = 2  # two\nx = 1\n",
            ("app",),
            "# top\n[app] # one\nworkers = 8  # two\nx = 1\n",
        ),
        ('[app]\nworkers="auto"\n', ("app",), "[app]\nworkers=8\n"),
        ('[app]\r\nworkers = 1 # c\r\nb = "é"\r\n', ("app",), '[app]\r\nworkers = 8 # c\r\nb = "é"\r\n'),
        ("[app]\r\nworkers = 1\nx = 1\r\n", ("app",), "[app]\r\nworkers = 8\nx = 1\r\n"),
        ("\ufeff[app]\r\nx = 1\n", ("app",), "\ufeff[app]\r\nworkers = 8\r\nx = 1\n"),
        ('[apps.web]\ntarget = "a:b"\n', ("apps", "web"), '[apps.web]\nworkers = 8\ntarget = "a:b"\n'),
        (
            '[apps.web] # c\n\n[apps.web.env]\nA = "1"\n',
            ("apps", "web"),
            '[apps.web] # c\nworkers = 8\n\n[apps.web.env]\nA = "1"\n',
        ),
        (
            'apps.web = { target = "a:b", workers = 1 }\n',
            ("apps", "web"),
            'apps.web = { target = "a:b", workers = 8 }\n',
        ),
        ("[apps]\nweb.workers = 3\n", ("apps", "web"), "[apps]\nweb.workers = 8\n"),
        ("[tool.pyworker.app]\nworkers = 3", ("tool", "pyworker", "app"), "[tool.pyworker.app]\nworkers = 8"),
        ('[app]\nenv.workers = "9"\n', ("app",), '[app]\nworkers = 8\nenv.workers = "9"\n'),
    ],
)
def test_a_value_is_replaced_or_added(before: str, table: tuple[str, ...], after: str) -> None:
    assert set_value(before, table, "workers", 8) == after


@pytest.mark.parametrize(
    "text", ['apps.web = { target = "a:b" }\n', "[apps]\nweb.threads = 1\n", "[apps.web]", '[apps]\nweb = "x"\n']
)
def test_where_there_is_no_safe_place_it_says_so(text: str) -> None:
    with pytest.raises(CannotEdit):
        set_value(text, ("apps", "web"), "workers", 8)
