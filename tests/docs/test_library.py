"""docs/library.md: the table beside Node is complete, and each test that it names exists."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEST = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)

# The headings and options of nodejs.org/docs/latest-v20.x/api/child_process.html and cluster.html
CHILD_PROCESS = """
exec execFile fork spawn execFileSync execSync spawnSync cwd env argv0 stdio detached uid gid serialization shell
windowsVerbatimArguments windowsHide signal timeout killSignal encoding maxBuffer execPath execArgv silent input
event:close event:disconnect event:error event:exit event:message event:spawn channel channel.ref channel.unref connected
disconnect exitCode kill Symbol.dispose killed pid ref send signalCode spawnargs spawnfile stderr stdin stdio stdout unref
"""
CLUSTER = """
Worker event:disconnect event:error event:exit event:listening event:message event:online worker.disconnect
worker.exitedAfterDisconnect worker.id worker.isConnected worker.isDead worker.kill worker.process worker.send
event:fork event:setup disconnect fork isMaster isPrimary isWorker schedulingPolicy settings execArgv exec args cwd
serialization silent stdio uid gid inspectPort windowsHide setupMaster setupPrimary worker workers SCHED_RR SCHED_NONE
NODE_CLUSTER_SCHED_POLICY
"""


def tables() -> dict[str, list[list[str]]]:
    """The rows below each heading that begins with "Node's"."""
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] | None = None
    for line in (ROOT / "docs" / "library.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            rows = None
        elif cells[0].startswith("Node's "):
            rows = found.setdefault(cells[0].removeprefix("Node's "), [])
        elif rows is not None and not set(line) <= set("|-"):
            rows.append(cells)
    return found


def names(rows: list[list[str]]) -> set[str]:
    """What the first column names, however it is called: `worker.kill(signal)` is worker.kill and kill."""
    found: set[str] = set()
    for cells in rows:
        event = re.search(r"event `(\w+)`", cells[0])
        if event:
            found.add(f"event:{event[1]}")
        for code in re.findall(r"`([^`]+)`", cells[0]):
            for word in re.findall(r"[\w.]+", code):
                found |= {word, word.rpartition(".")[2]}
    return found


def test_the_table_names_all_that_node_documents() -> None:
    found = tables()
    for page, wanted in (("child_process", CHILD_PROCESS), ("cluster", CLUSTER)):
        assert set(wanted.split()) - names(found[page]) == set(), page


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node (apt install nodejs)")
def test_the_table_names_all_that_node_has() -> None:
    script = (
        "const c = require('child_process'), k = require('cluster');"
        "const own = f => Object.getOwnPropertyNames(f.prototype);"
        "console.log(JSON.stringify([[...Object.keys(c), ...own(c.ChildProcess)], [...Object.keys(k), ...own(k.Worker)]]))"
    )
    done = subprocess.run(["node", "-e", script], check=True, capture_output=True, text=True, timeout=60)
    found = tables()
    for page, has in zip(("child_process", "cluster"), json.loads(done.stdout), strict=True):
        public = {name for name in has if not name.startswith("_")} - {"constructor", "ChildProcess"}
        assert public - names(found[page]) == set(), page


def test_each_line_names_a_test_that_exists_or_a_reason() -> None:
    folders = [ROOT / "tests" / folder for folder in ("cluster", "protocol", "system")]
    exist = {name for folder in folders for file in folder.glob("test_*.py") for name in TEST.findall(file.read_text())}
    lines = 0
    for rows in tables().values():
        for cells in rows:
            assert len(cells) == 3, cells
            lines += 1
            named = re.findall(r"`(test_\w+)`", cells[2])
            assert set(named) - exist == set(), cells[0]
            assert cells[2], f"neither a test nor a reason: {cells[0]}"
            assert cells[1] or not named or "said clearly" in cells[2], f"a test of what there is not: {cells[0]}"
            assert named or not cells[1] or "nothing is asked" in cells[2], f"no test: {cells[0]}"
    assert lines > 70
