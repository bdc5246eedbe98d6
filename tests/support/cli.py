"""Runs the `pyworker` command as users do: in a process of its own, with pipes or on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    out: str
    err: str


def environment(home: str, **more: str) -> dict[str, str]:
    """Return a small, known environment."""
    kept = {k: v for k, v in os.environ.items() if k in {"PATH", "TMPDIR"}}
    return {**kept, "HOME": os.path.dirname(home), "PYWORKER_HOME": home, "LANG": "C.UTF-8", "TZ": "UTC", **more}


def run(*args: str, home: str, cwd: str | None = None, stdin: str = "", **env: str) -> Result:
    """Run the command with pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "pyworker", *args],
        input=stdin, capture_output=True, text=True, cwd=cwd, env=environment(home, **env), timeout=60, check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


class Screen:
    """What a terminal shows after these bytes: lines, cursor up, clear down; colours are left out."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]", text):
            if token == "\r":
                self.column = 0
            elif token == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif token.startswith("\x1b["):
                self._control(token)
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token + line[self.column + 1 :]
                self.column += 1

    def _control(self, token: str) -> None:
        match token[-1]:
            case "A":
                self.row -= int(token[2:-1] or 1)
                assert self.row >= 0, "the cursor left the screen at its top"
            case "J":
                self.lines[self.row] = self.lines[self.row][: self.column]
                del self.lines[self.row + 1 :]
            case "m":
                pass
            case _:
                raise AssertionError(f"unexpected control sequence {token!r}")

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n") + "\n"


class OnTerminal(NamedTuple):
    code: int
    raw: str
    screen: Screen


def run_on_terminal(
    *args: str,
    home: str,
    columns: int = 100,
    rows: int = 40,
    cwd: str | None = None,
    during: Callable[[subprocess.Popen[bytes], str, int], None] | None = None,
    **env: str,
) -> OnTerminal:
    """Run the command with all three streams on a terminal of this size.

    `during(process, raw so far, the terminal's fd)` is called after each piece of output.
    """
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", *args],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, start_new_session=True,
            env=environment(home, **{"TERM": "xterm-256color", **env}),
        )  # fmt: skip
    finally:
        os.close(theirs)
    raw = b""
    deadline = time.monotonic() + 60
    try:
        while True:
            assert select.select([ours], [], [], max(0, deadline - time.monotonic()))[0], raw
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: the last process has closed the terminal
                data = b""
            if not data:
                break
            raw += data
            if during:
                during(process, raw.decode(errors="replace"), ours)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = raw.decode()
    screen = Screen()
    screen.feed(text)
    return OnTerminal(code, text, screen)
