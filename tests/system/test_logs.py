"""What the workers print is kept, whole and with their names, whoever of ours dies."""

from __future__ import annotations

import json
import os

from pyworker.protocol.logs import JOURNAL
from tests.support.pyworker import LONG, Pyworker
from tests.support.sources import ASGI
from tests.support.wait import wait_until

PRINTS = ASGI.replace(
    '    if path == "/slow":',
    '    if path.startswith("/print"):\n        print("said " + path, flush=True)\n    elif path == "/slow":',
)


def messages(pw: Pyworker) -> list[dict[str, object]]:
    done = pw.ok("logs", "api", "-n", "100000", "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(pw: Pyworker, word: str) -> bool:
    return any(word in str(message) for message in messages(pw))


def test_lines_are_shown_with_the_worker_that_printed_them(pw: Pyworker) -> None:
    pw.api(PRINTS)
    pw.ok("start", "app.toml")
    pid = int(pw.get("/print/one").split()[1])
    wait_until(lambda: said(pw, "said /print/one"), LONG, "the line")
    slot = next(worker["worker"] for worker in pw.app()["pool"] if worker["pid"] == pid)
    found = next(message for message in messages(pw) if "said /print/one" in str(message))
    assert found["worker"] == slot
    assert found["app"] == "api"
    assert f"api.{slot}" in pw.ok("logs", "api").stdout


def test_a_start_says_that_there_is_no_journal_for_the_lines(pw: Pyworker) -> None:
    pw.api(PRINTS, tables="logs.journald = true\n")
    is_said = "logs.journald: there is no journal here" in pw.run("start").stderr
    assert is_said != os.path.exists(JOURNAL)


def test_a_log_that_is_inherited_is_a_file_under_the_daemon_and_start_says_which(pw: Pyworker) -> None:
    pw.api(PRINTS, tables='logs = "inherit"\n')
    done = pw.ok("start", "app.toml")
    assert f"here the log is {pw.home}/logs/api.log" in done.stderr
    pw.get("/print/one")
    wait_until(lambda: said(pw, "said /print/one"), LONG, "the line")


def test_the_last_words_of_a_worker_that_crashed_are_kept(pw: Pyworker) -> None:
    pw.api(PRINTS.replace("os._exit(3)", 'os.write(2, b"last words without an end"), os._exit(3)'))
    pw.ok("start", "app.toml")
    pw.run("ps")
    before = set(pw.pids())
    try:
        pw.get("/crash")
    except (AssertionError, OSError):
        pass
    wait_until(lambda: set(pw.pids()) != before, LONG, "another worker")
    wait_until(lambda: said(pw, "last words without an end"), LONG, "its last words")
