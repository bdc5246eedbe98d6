"""A document as a program: its titled blocks are files, its `console` blocks are commands with what they print.

In a block of the kind `console` a line after "$ " is typed into bash; the lines below it are what has to come out, in any
order. Pids, times, sizes and columns may differ; a line "..." stands for any lines. A pid that the document names is known
from then on as the real one, so that `kill -9 11927` kills the process that was shown as 11927. Ports are exchanged for
free ones, and /srv for a folder of the test.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.pyworker import LONG, Pyworker
from tests.support.wait import wait_until

BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
FOLDER = re.compile(r"<!-- runs in (/srv/[\w-]+) -->")
PORT = re.compile(r'(?<=[:= "])(8\d{3})\b')
PID = re.compile(r'(pid[= ]|"pid": ?|guardian pid )(\d+)')
# what only looks is asked again until it shows what the document shows
LOOKS = ("pyworker ps", "pyworker events", "pyworker logs", "pyworker describe", "curl", "for i in", "cat", "pyworker top --once")
OLD_ONE_LEFT = re.compile(r"\S+ gen=\d+ worker=\d+ stopped ")  # before the end of a reload, or after it
BLURRED = (
    (re.compile(r"\b(\d+)/1m\b"), r"\1"),  # restarts: more than a minute may have gone by
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?"), "TIMESTAMP"),
    (re.compile(r"\b\d\d:\d\d:\d\d(\.\d+)?\b"), "CLOCK"),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s|m|h|d)\b"), "SPAN"),
    (re.compile(r"\b\d+(\.\d+)? ?(MB|GB|KB|M|G|K|B)\b"), "SIZE"),
    (re.compile(r"\b\d+(\.\d+)?%"), "SHARE"),
    (PID, r"\1PID"),
    (re.compile(r"kill -9 \d+"), "kill -9 PID"),
    (re.compile(r"bin/python3[.\d]*"), "bin/python"),
    (re.compile(r"─+|-{4,}"), "RULE"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Command:
    """One typed line and what the document says it prints."""

    typed: str
    prints: tuple[str, ...]


@dataclass(frozen=True)
class File:
    name: str
    text: str


def steps(text: str) -> Iterator[Command | File]:
    """The files and commands of a document, in its order."""
    for kind, info, body in BLOCK.findall(text):
        title = TITLE.search(info)
        if title:
            yield File(title[1], body)
        elif kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                lines = part.rstrip("\n").split("\n")
                typed = [lines.pop(0)]
                while typed[-1].endswith("\\"):
                    typed.append(lines.pop(0))
                yield Command("\n".join(typed), tuple(line for line in lines if line.strip()))


def blurred(line: str) -> str:
    """The line without what differs from run to run."""
    for pattern, word in BLURRED:
        line = pattern.sub(word, line)
    return line.strip()


class Run:
    """One document being carried out."""

    def __init__(self, pw: Pyworker, document: pathlib.Path) -> None:
        self._pw = pw
        text = document.read_text(encoding="utf-8")
        folder = FOLDER.search(text)
        self._folder = pw.folder + (folder[1] if folder else "/srv/app")
        os.makedirs(self._folder)
        self._ports = {port: str(pw.another_port()) for port in sorted(set(PORT.findall(text)))}
        self._pids: dict[str, str] = {}
        for name in ("PYWORKER_HOME", "CI", "XDG_STATE_HOME", "VIRTUAL_ENV"):
            pw.environ.pop(name, None)
        pw.environ["HOME"] = pw.folder
        pw.environ["PATH"] = f"{sys.prefix}/bin:{pw.environ['PATH']}"
        self.steps = list(steps(text))

    def carry_out(self) -> int:
        """Do all of it; return the number of commands."""
        commands = 0
        for step in self.steps:
            if isinstance(step, File):
                self._write(step)
            else:
                self._type(step)
                commands += 1
        return commands

    def _write(self, file: File) -> None:
        path = os.path.join(self._folder, file.name)
        self._pw.write(os.path.relpath(path, self._pw.folder), self._real(file.text))

    def _type(self, command: Command) -> None:
        typed = self._real(command.typed)
        seen = ""

        def shown() -> bool:
            nonlocal seen
            seen, code = self._bash(typed)
            return (code == 0 or "exit code" in typed) and self._compare(command.prints, seen)

        try:
            wait_until(shown, LONG if typed.startswith(LOOKS) else 0)
        except AssertionError:
            want = "\n".join(command.prints)
            raise AssertionError(f"`{typed}` should print\n{want}\nand prints\n{seen}\n{self._pw.daemon_log()}") from None

    def _bash(self, typed: str) -> tuple[str, int]:
        done = subprocess.run(
            ["bash", "-c", typed], cwd=self._folder, env=self._pw.environ, text=True, timeout=90, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        # the pages speak of a venv in the app's folder; here it is the one that runs the tests
        printed = done.stdout.replace(sys.prefix, self._folder + "/.venv").replace(self._pw.folder, "")
        return printed, done.returncode

    def _real(self, text: str) -> str:
        for told, real in self._pids.items():
            text = re.sub(rf"\b{told}\b", real, text)
        for told, real in self._ports.items():
            text = re.sub(rf'(?<=[:= "]){told}\b', real, text)
        return text

    def _compare(self, told: tuple[str, ...], output: str) -> bool:
        lines = [line for line in output.split("\n") if line.strip()]
        ports = {real: port for port, real in self._ports.items()}
        lines = [re.sub(r'(?<=[:= "])\d{4,5}\b', lambda m: ports.get(m[0], m[0]), line) for line in lines]
        want = [blurred(line) for line in told]
        lines = [line for line in lines if blurred(line) in want or not OLD_ONE_LEFT.match(line)]
        there = [blurred(line) for line in lines]
        missing = Counter(w for w in want if w != "...") - Counter(there)
        if missing or ("..." not in want and want and len(want) != len(there)):
            return False
        for line, key in zip(told, want, strict=True):
            if key in there:
                at = there.index(key)
                there[at] = ""
                for (_, pid), (_, real) in zip(PID.findall(line), PID.findall(lines[at]), strict=False):
                    self._pids.setdefault(pid, real)
        return True
