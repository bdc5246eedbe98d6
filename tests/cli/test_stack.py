from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyworker.cli.commands import stack
from pyworker.cli.render import Look

PLAIN = Look(tty=False, color=False, ascii=False, width=0)
BEGIN = {"file": "/usr/lib/python3.13/threading.py", "line": 1012, "function": "_bootstrap"}


def thread(*frames: dict[str, object]) -> str:
    return "\n".join(stack._thread({"thread": "0x1", "frames": list(frames)}, PLAIN, everything=False))


def test_an_idle_thread_of_a_wsgi_worker_is_not_shown_to_be_where_it_began() -> None:
    ours = {"file": "/proc/self/fd/9/pyworker/worker/engines/pool.py", "line": 40, "function": "_work"}
    assert "only pyworker's own code" in thread(BEGIN, ours)
    assert "_bootstrap" not in thread(BEGIN, ours)


def test_a_thread_of_the_app_is_shown_from_its_beginning() -> None:
    assert "_bootstrap" in thread(BEGIN)


@pytest.mark.parametrize("name", ["pipe", "none", "nu\0l"])
def test_a_file_that_is_none_has_no_line_to_show(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # who reads it waits for a writer
    script = "import sys; from pyworker.cli.commands import stack; print(stack._source({'file': sys.stdin.read(), 'line': 1}))"
    argv = [sys.executable, "-c", script]
    found = subprocess.run(argv, input=f"{tmp_path}/{name}", capture_output=True, text=True, timeout=30, check=False)
    assert (found.stdout, found.stderr) == ("\n", "")
