"""Two of our processes killed within a moment: either all of it is served, or nothing is and nothing stays.

`make test` runs the pairs that can end everything and a few others; `make failpoints` runs all (PYWORKER_TEST_ALL=1).
"""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from tests.support.control import ask
from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, port_is_closed
from tests.support.sources import ASGI
from tests.support.wait import wait_until

ROLES = ("guardian", "daemon", "logger", "template", "worker")
ALL = [*itertools.combinations(ROLES, 2), ("worker", "worker"), ("worker", "spare"), ("spare", "template")]
PART = [("guardian", "daemon"), ("guardian", "logger"), ("daemon", "template"), ("daemon", "worker"), ("worker", "spare")]


def pids(pw: Pyworker) -> dict[str, list[int]]:
    status = pw.status()
    found = {"guardian": [status["guardian_pid"]], "daemon": [status["pid"]], "logger": [status["logger_pid"]]}
    return found | {"template": [pw.role("template")], "worker": pw.pids(), "spare": [pw.spare()]}


def is_whole(pw: Pyworker, dead: list[int]) -> bool:
    answer = ask(pw.home, {"type": "status"})
    if answer is None or answer["type"] != "reply":
        return False
    body = answer["body"]
    three = [body["pid"], body["guardian_pid"], body["logger_pid"]]
    if not all(pid and pid not in dead and alive(pid) for pid in three):
        return False
    shown = ask(pw.home, {"type": "ps"})
    if shown is None or shown["type"] != "reply":
        return False
    count = shown["body"]["apps"][0]["workers"]
    return bool(count["want"] == count["ready"] == count["total"])


@pytest.mark.parametrize("pair", ALL if os.environ.get("PYWORKER_TEST_ALL") else PART, ids="+".join)
def test_after_the_death_of_two_all_is_served_or_nothing_stays(pw: Pyworker, pair: tuple[str, str]) -> None:
    pw.api(ASGI, workers=3, tables='[app.stop]\ndrain_timeout = "3s"')
    pw.ok("start", "app.toml")
    there = pids(pw)
    first, second = there[pair[0]][0], there[pair[1]][-1]
    others = [pid for pid in there["worker"] if pid not in (first, second)]
    with Load(pw.port, "new", "keep", pause=0.005) as load:
        load.wait_more(20)
        for pid in (first, second):
            os.kill(pid, signal.SIGKILL)
        if pair == ("guardian", "daemon"):
            # the daemon may have become the guardian before it was hit; else there is nobody who could go on
            wait_until(
                lambda: is_whole(pw, [first, second]) or (port_is_closed(pw.port) and not pw.processes()),
                LONG, "all or nothing",
            )  # fmt: skip
        else:
            wait_until(lambda: is_whole(pw, [first, second]), LONG, f"all of it\n{pw.daemon_log()}")
            load.wait_more(20)
            assert [pid for pid in others if not alive(pid)] == [], "a worker that was not killed"
    if pair != ("guardian", "daemon"):
        assert [lost for lost in load.lost if "refused" in lost.lower()] == []
        assert len(load.lost) <= 2 * pair.count("worker"), load.lost
