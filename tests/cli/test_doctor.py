"""`pyworker doctor`: each thing that is wrong has what to do about it; a report has no secret in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyworker.cli.commands.doctor import masked
from tests.support.cli import run


def test_a_machine_without_a_daemon_is_fine(home: str) -> None:
    done = run("doctor", "--json", home=home)
    body = json.loads(done.out)
    assert (done.code, body["ok"]) == (0, True)
    assert {c["id"] for c in body["checks"]} >= {"python", "daemon", "home", "nofile", "cpus", "clock"}
    assert not Path(home).exists()


def test_a_folder_that_others_can_read_is_a_failure_with_its_remedy(home: str) -> None:
    Path(home).mkdir(mode=0o755)
    Path(home).chmod(0o755)
    (Path(home) / "apps.json.bad-1").write_text("x")
    done = run("doctor", home=home)
    assert done.code == 1
    assert f"chmod 700 {home}" in done.out
    assert "rm " in done.out
    assert "to look at" in done.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("API_KEY=abc def", "API_KEY=*** def"),
        ('password: "a b"; x', "password: ***; x"),
        ("postgres://u:p@h/d", "postgres://u:***@h/d"),
        ("SENTRY_DSN = https://k@s/1", "SENTRY_DSN = ***"),
        ("monkey business", "monkey business"),
    ],
)
def test_secrets_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_the_report_says_what_a_bug_report_needs(home: str) -> None:
    text = run("doctor", "--report", home=home).out
    assert text.startswith("pyworker ")
    assert "packages: click" in text
    assert "pyworker.log" in text
