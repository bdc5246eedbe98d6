"""The view on a terminal of its own: what it draws, what keys do, and that the terminal is given back whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker.cli import render
from pyworker.cli.client import DaemonAway, Lost
from pyworker.cli.commands import top as top_command
from pyworker.protocol.control import Progress, Reply
from tests.cli import documents, results
from tests.support.cli import environment, run
from tests.support.fake_control import CLOSE, HANG, FakeControl, event, replies

MODES = re.compile(r"\x1b\[\?(\d+)([hl])")


class Terminal:
    """A terminal with `pyworker top` on it. The test keeps its other end open, so what is left of its settings shows."""

    def __init__(self, home: str, *args: str, columns: int = 100, rows: int = 24, cwd: str | None = None) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.theirs)
        self.raw = ""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pyworker", "top", *args],
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, start_new_session=True, cwd=cwd,
            env=environment(home, TERM="xterm-256color"),
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def read(self, what: Callable[[str], Any], why: str) -> None:
        """Read until what was drawn since the last call is as wanted."""
        self.raw, seen = "", self.raw
        deadline = time.monotonic() + 30
        while not what(self.raw):
            assert select.select([self.ours], [], [], max(0, deadline - time.monotonic()))[0], (why, seen[-500:], self.raw)
            self.raw += os.read(self.ours, 65536).decode(errors="replace")

    def drain(self) -> None:
        while select.select([self.ours], [], [], 0)[0]:
            self.raw += os.read(self.ours, 65536).decode(errors="replace")

    def end(self) -> int:
        """Wait for the end; the terminal must be as it was."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:  # it may block while nobody reads what it draws
            assert time.monotonic() < deadline, self.raw[-500:]
            if select.select([self.ours], [], [], 0.05)[0]:
                self.raw += os.read(self.ours, 65536).decode(errors="replace")
        self.drain()
        assert termios.tcgetattr(self.theirs) == self.before
        modes = dict(MODES.findall(self.raw))
        assert {modes.get("1049"), modes.get("25"), modes.get("7")} - {None} == {"l", "h"}
        assert (modes["1049"], modes["25"], modes["7"]) == ("l", "h", "h")
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@contextlib.contextmanager
def top(home: str, *args: str, **more: Any) -> Iterator[Terminal]:
    terminal = Terminal(home, *args, **more)
    try:
        terminal.read(lambda raw: "api.1" in raw and "quit" in raw, "the first picture")
        yield terminal
    finally:
        terminal.close()


def heights(raw: str) -> list[int]:
    """How many lines each whole picture has."""
    return [part.count("\n") + 1 for part in re.findall(r"\x1b\[\?2026h(.*?)\x1b\[\?2026l", raw, re.DOTALL)]


def hang(_request: Any) -> Iterator[Any]:
    yield HANG


HANDLERS = {"ps": replies(documents.ps()), "describe": replies(documents.describe()), "follow": hang}


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("q", 0), ("\x03", 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130),
        (signal.SIGALRM, 75),  # the end of --timeout
    ],
)  # fmt: skip
def test_the_terminal_is_given_back(home: str, how: str | signal.Signals, code: int) -> None:
    with FakeControl(home, HANDLERS), top(home, "--timeout", "1h") as terminal:
        if isinstance(how, str):
            terminal.type(how)
        else:
            terminal.process.send_signal(how)
        assert terminal.end() == code


def test_a_daemon_that_refuses_ends_it_with_its_words_on_a_clean_terminal(home: str) -> None:
    answers = iter([documents.ps(), documents.ps()])

    def once(_request: Any) -> Iterator[Any]:
        document = next(answers, None)
        yield from replies(document)(None) if document else [b"no JSON\n"]

    with FakeControl(home, {"ps": once, "follow": hang}), top(home, "-i", "0.1") as terminal:
        assert terminal.end() == 69
    after = terminal.raw.rpartition("\x1b[?1049l")[2]
    assert "speaks another language" in after


def test_a_daemon_that_is_away_is_said_and_waited_for(home: str) -> None:
    count = iter(range(10**6))

    def flaky(_request: Any) -> Iterator[Any]:
        yield CLOSE if 2 <= next(count) < 8 else replies(documents.ps())(None)[0]

    with FakeControl(home, {"ps": flaky, "follow": hang}), top(home, "-i", "0.1") as terminal:
        terminal.read(lambda raw: "no answer since" in raw, "the word that it is away")
        terminal.read(lambda raw: "q quit" in raw or "\x1b[1mq\x1b[0m quit" in raw, "its return")
        terminal.type("q")
        assert terminal.end() == 0


def test_another_size_is_drawn_at_once(home: str) -> None:
    with FakeControl(home, HANDLERS), top(home, "-i", "60") as terminal:
        terminal.resize(60, 16)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.read(lambda raw: 16 in heights(raw), "a picture of 16 lines")
        terminal.type("q")
        assert terminal.end() == 0


def test_the_escape_key_is_known_though_the_other_keys_begin_with_its_byte(home: str) -> None:
    with FakeControl(home, HANDLERS), top(home) as terminal:
        terminal.type("/zz\r")
        terminal.read(lambda raw: "no app has 'zz' in its name" in raw, "the filter")
        terminal.type("\x1b")
        terminal.read(lambda raw: "api.1" in raw, "all apps")
        terminal.type("q")
        assert terminal.end() == 0


def test_a_reload_is_asked_for_once_confirmed_and_its_end_is_said(home: str) -> None:
    with FakeControl(home, {**HANDLERS, "reload": results.reload}) as daemon, top(home) as terminal:
        terminal.type("r")
        terminal.read(lambda raw: "Reload api? [y/N]" in raw, "the question")
        terminal.type("n")
        terminal.read(lambda raw: "nothing was done" in raw, "the refusal")
        terminal.type("ry")
        terminal.read(lambda raw: "api reloaded: gen 8" in raw, "the result")
        terminal.type("q")
        assert terminal.end() == 0
    asked = [request for request in daemon.requests if type(request).__name__ == "Reload"]
    assert [request.selectors for request in asked] == [("api",)]


def test_an_event_of_another_version_does_not_hide_how_it_ended(home: str) -> None:
    def reload(_request: Any) -> Iterator[Any]:
        yield Progress({"v": 1, "time": "", "seq": 1, "app": "api", "worker": 1, "type": "worker_ready", "data": {}})
        yield results.reply("reloaded", gen=8, took_s=6.2)

    with FakeControl(home, {**HANDLERS, "reload": reload}), top(home) as terminal:
        terminal.type("ry")
        terminal.read(lambda raw: "api reloaded: gen 8" in raw, "the result")
        assert "Traceback" not in terminal.raw
        terminal.type("q")
        assert terminal.end() == 0


def test_what_happens_is_seen_before_the_interval_is_over(home: str) -> None:
    def follow(_request: Any) -> Iterator[Any]:
        yield event("api", None, "scaled", **{"from": 4, "to": 6})
        yield HANG

    with FakeControl(home, {**HANDLERS, "follow": follow}), top(home, "-i", "60") as terminal:
        terminal.read(lambda raw: "4 → 6 workers" in raw, "the event")
        terminal.type("q")
        assert terminal.end() == 0


def write_log(home: str) -> None:
    os.makedirs(f"{home}/logs", mode=0o700)
    with open(f"{home}/logs/api.log", "w") as file:
        file.write("2026-11-23T14:02:31.104Z api.1 41210 out| hello from the log\n")


def test_the_log_is_a_program_of_its_own_and_ctrl_c_comes_back(home: str) -> None:
    write_log(home)
    with FakeControl(home, HANDLERS), top(home) as terminal:
        terminal.type("\r")
        terminal.read(lambda raw: "hello from the log" in raw, "the log")
        assert "logs of api.1   q or Ctrl-C: back" in terminal.raw
        assert "\x1b[?1049l" in terminal.raw
        terminal.type("\x03")
        terminal.read(lambda raw: "\x1b[?1049h" in raw and "api.1" in raw, "the view again")
        terminal.type("q")
        assert terminal.end() == 0


def test_q_comes_back_from_the_log_too(home: str) -> None:
    write_log(home)
    with FakeControl(home, HANDLERS), top(home) as terminal:
        terminal.type("\r")
        terminal.read(lambda raw: "hello from the log" in raw, "the log")
        terminal.type("\r")
        terminal.read(lambda raw: "\r\n" in raw, "the gap that Enter makes")
        terminal.type("q")
        terminal.read(lambda raw: "\x1b[?1049h" in raw and "api.1" in raw, "the view again")
        assert "q\x1b[?1049h" not in terminal.raw  # the shell would show it afterwards
        terminal.type("q")
        assert terminal.end() == 0


def test_ctrl_z_in_the_log_gives_the_log_back(home: str) -> None:
    os.makedirs(f"{home}/logs", mode=0o700)
    with FakeControl(home, HANDLERS), top(home) as terminal:
        terminal.type("\r")
        terminal.read(lambda raw: "Ctrl-C: back" in raw, "the log")
        with open(f"{home}/logs/api.log", "w") as file:
            file.write("2026-11-23T14:02:31.104Z api.1 41210 out| before\n")
        terminal.read(lambda raw: "before" in raw, "a line of the log")
        terminal.type("\x1a")  # nobody would wake it up, so the kernel lets it run on: it is as after `fg` at once
        terminal.read(lambda raw: "^Z" in raw, "the terminal's echo")
        seen = terminal.raw
        with open(f"{home}/logs/api.log", "a") as file:
            file.write("2026-11-23T14:02:32.104Z api.1 41210 out| after\n")
        terminal.read(lambda raw: "after" in raw, "one more line")
        assert "\x1b[?1049h" not in seen + terminal.raw
        terminal.type("q")
        terminal.read(lambda raw: "\x1b[?1049h" in raw and "api.1" in raw, "the view again")
        terminal.type("q")
        assert terminal.end() == 0


@pytest.mark.parametrize(("key", "says"), [("d", "shop.main:app"), ("\r", "no logs of an app named 'api.1'")])
def test_the_description_and_why_there_is_no_log_stay_until_any_key(home: str, key: str, says: str) -> None:
    write_log(home)
    os.rename(f"{home}/logs/api.log", f"{home}/logs/other.log")
    with FakeControl(home, HANDLERS), top(home) as terminal:
        terminal.type(key)
        terminal.read(lambda raw: says in raw and "any key: back" in raw, "the end of what is said")
        terminal.type("x")
        terminal.read(lambda raw: "\x1b[?1049h" in raw and "api.1" in raw, "the view again")
        terminal.type("q")
        assert terminal.end() == 0


# ---- without a terminal ----------------------------------------------------------------------------
def test_in_a_pipe_it_is_the_table_of_workers_once(home: str) -> None:
    with FakeControl(home, HANDLERS):
        found = run("top", "-i", "0.1", home=home)
        table = run("ps", "-w", home=home)
    assert (found.code, found.out, found.err) == (0, table.out, "")


def test_json_is_a_document_a_line(home: str) -> None:
    with FakeControl(home, HANDLERS):
        process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", "top", "--json", "-i", "0.1"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home), text=True,
        )  # fmt: skip
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        once = run("top", "--json", "--once", home=home)
    assert process.returncode == 130
    assert lines == [documents.ps()] * 3
    assert json.loads(once.out) == documents.ps()


def test_json_goes_on_with_the_next_daemon_and_ends_when_for_long_there_is_none(
    home: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 50 * len(pauses))
    monkeypatch.setattr(render, "pause", pauses.append)
    gone = [CLOSE] * 2  # each is asked once more
    looks = iter([Reply(True, documents.ps()), *gone, Reply(True, documents.ps()), *gone, *gone])
    with FakeControl(home, {"ps": lambda _: [next(looks)]}), pytest.raises(Lost):
        top_command.cmd.main(["--json", "--home", home], standalone_mode=False)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [documents.ps()] * 2
    assert len(pauses) == 4


def test_json_does_not_wait_for_a_daemon_that_was_never_there(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "pause", lambda _seconds: pytest.fail("it waits"))
    with pytest.raises(DaemonAway):
        top_command.cmd.main(["--json", "--home", home], standalone_mode=False)


def test_an_interval_of_a_month_waits_and_ends_with_its_reader(home: str) -> None:
    with FakeControl(home, HANDLERS):
        process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", "top", "--json", "-i", "30d"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home), text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        with process.stderr as said:
            assert said.read() == ""
    assert process.wait(30) == 0


def test_without_a_daemon_it_is_an_error_before_the_screen_is_taken(home: str) -> None:
    found = run("top", home=home)
    assert (found.code, found.out) == (69, "")
    assert "not running" in found.err


def test_monit_is_top(home: str) -> None:
    with FakeControl(home, HANDLERS):
        assert run("monit", "--once", "-i", "0.1", home=home).code == 0


def test_nothing_is_imported_from_the_folder_that_it_is_typed_in(home: str, tmp_path: Path) -> None:
    (tmp_path / "pyworker.py").write_text("raise SystemExit('this is another program')\n")
    with FakeControl(home, HANDLERS), top(home, cwd=str(tmp_path)) as terminal:
        terminal.type("d")
        terminal.read(lambda raw: "any key: back" in raw, "the end of the description")
        assert "another program" not in terminal.raw
        assert "workers ready" in terminal.raw
        terminal.type("x")
        terminal.read(lambda raw: "\x1b[?1049h" in raw and "api.1" in raw, "the view again")
        terminal.type("q")
        assert terminal.end() == 0
