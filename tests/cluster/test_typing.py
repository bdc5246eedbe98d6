"""The library as a type checker sees it, in somebody's program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "docs" / "examples" / "library").glob("*.py"))
PROGRAM = """
import asyncio
from typing import Any

from pyworker import child_process, cluster, process, state


@process.on("message")
async def heard(message: Any, handle: Any) -> None:
    process.sned(message)  # wrong


@cluster.on("exit")
def gone(worker: cluster.Worker, code: int | None, signal: str | None) -> None:
    cluster.frok()  # wrong


async def main() -> None:
    child = child_process.fork("worker.py")

    @child.once("exit")
    def ended(code: int | None, signal: str | None) -> None:
        print(process.connected, cluster.listeners("exit"), state.incr("ends") + 1)

    child.on("exit", ended)
    ended("0", None)  # wrong
    status: child_process.ExitStatus = await child.wait()
    print(status.code)


asyncio.run(main())
"""


def test_a_program_and_the_examples_pass_a_strict_type_checker_which_finds_what_is_wrong(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=/dev/null", program, *EXAMPLES],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wrong = [number for number, text in enumerate(PROGRAM.splitlines(), 1) if text.endswith("# wrong")]
    assert [line.split(":")[:2] for line in done.stdout.splitlines()[:-1]] == [["program.py", str(n)] for n in wrong], (
        done.stdout + done.stderr
    )
