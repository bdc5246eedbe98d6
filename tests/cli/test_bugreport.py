"""`pyworker doctor --report`: what a bug report needs, and no secret in it."""

from __future__ import annotations

import json
import time

import pytest

from pyworker import __version__
from pyworker.cli.bugreport import masked
from tests.cli import documents
from tests.support.cli import run
from tests.support.fake_control import FakeControl, replies


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("API_KEY=abc def", "API_KEY=*** def"),
        ('password: "a b"; x', "password: ***; x"),
        ("postgres://u:p@h/d", "postgres://u:***@h/d"),
        ("SENTRY_DSN = https://k@s/1", "SENTRY_DSN = ***"),
        ("monkey business", "monkey business"),
        ('{"API_KEY": "abc", "x": 1}', '{"API_KEY": ***, "x": 1}'),
        ('"args": ["--token", "abc", "-v"]', '"args": ["--token", "***", "-v"]'),
        ('"args": ["--password=abc", "-v"]', '"args": ["--password=***", "-v"]'),
        ("run --api-key abc -v", "run --api-key *** -v"),
        ("redis://:p4ss@h:6379/0", "redis://:***@h:6379/0"),
        ("amqp://u:p@ss@h/v", "amqp://u:***@h/v"),
        ("Authorization: Bearer abc", "Authorization: Bearer ***"),
        ('run --token "a b" -v', "run --token *** -v"),
        (json.dumps({"message": 'no: password="a b"', "x": 'y "z"'}), r'{"message": "no: password=***", "x": "y \"z\""}'),
        (json.dumps({"m": json.dumps({"m": 'TOKEN="abc" d'})}), r'{"m": "{\"m\": \"TOKEN=*** d\"}"}'),
        (json.dumps(["--token", 'a b"c', "-v"]), '["--token", "***", "-v"]'),
        ('password="abc', "password=***"),
    ],
)
def test_secrets_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_a_log_of_nothing_but_such_names_is_looked_through_at_once() -> None:
    began = time.thread_time()  # others may have the CPU for longer than this takes
    masked("key.token-" * 600)  # the end of the log that a report has
    assert time.thread_time() - began < 20
    masked("-key" * 20_000)  # what an app says of its failure may be longer


def test_the_report_says_what_a_bug_report_needs(home: str) -> None:
    text = run("doctor", "--report", home=home).out
    assert text.startswith("pyworker ")
    assert "packages: click" in text
    assert "pyworker.log" in text


def test_of_an_environment_the_report_has_the_names_and_of_an_address_no_password(home: str) -> None:
    config = {"target": "shop:app", "env": {"GREETING": "w0rds", "API_KEY": "w0rds"}, "state": "redis://:w0rds@h/0"}
    answers = {
        "status": replies({"version": __version__, "pid": 1}),
        "ps": replies(documents.ps()),
        "config": replies({"apps": [{"name": "api", "config": config}]}),
    }
    with FakeControl(home, answers):
        text = run("doctor", "--report", home=home).out
    assert '{"api": {"target": "shop:app", "state": "redis://:***@h/0"}, "env": ["API_KEY", "GREETING"]}' in text
    assert '"name": "api", "state": ' in text
    assert "w0rds" not in text


def test_of_a_report_as_json_the_checks_are_masked_too(home: str) -> None:
    failed = {"message": "no answer of redis://:w0rds@h/0", "hint": "API_KEY=w0rds pyworker start"}
    apps = [{**app, "state": "failed", "last_failure": failed} for app in documents.ps()["apps"]]
    answers = {
        "status": replies({"version": __version__, "pid": 1}),
        "ps": replies({**documents.ps(), "apps": apps}),
        "config": replies({"apps": []}),
    }
    with FakeControl(home, answers):
        result = run("doctor", "--report", "--json", home=home).out
    assert "API_KEY=*** pyworker start" in [check["fix"] for check in json.loads(result)["checks"]]
    assert "w0rds" not in result
