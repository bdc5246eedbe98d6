"""Two of our processes killed within a moment: either all of it is served, or nothing is and nothing stays.

`make test` runs the pairs that can end everything and a few others; `make failpoints` runs all (PYWORKER_TEST_ALL=1).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from pathlib import Path

import pytest

from pyworker.unix.process import is_stopped
from tests.support.control import ask
from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, kill, port_is_closed
from tests.support.sources import ASGI
from tests.support.wait import wait_until

ROLES = ("guardian", "daemon", "logger", "template", "worker")
OTHERS = [("worker", "worker"), ("worker", "spare"), ("spare", "template"), *(("dispatcher", role) for role in ROLES)]
ALL = [*itertools.combinations(ROLES, 2), *OTHERS]
PART = [("guardian", "daemon"), ("guardian", "logger"), ("daemon", "template"), ("daemon", "worker"), ("worker", "spare")]
PART += [("dispatcher", "daemon")]


def pids(pw: Pyworker) -> dict[str, list[int]]:
    status = pw.status()
    found = {"guardian": [status["guardian_pid"]], "daemon": [status["pid"]], "logger": [status["logger_pid"]]}
    found |= {"template": [pw.role("template")], "worker": pw.pids(), "spare": [pw.spare()]}
    return found | {"dispatcher": [pw.dispatcher()]}


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
    top = 'balance = "least-connections"' if "dispatcher" in pair else ""
    pw.api(ASGI, workers=3, top=top, tables='[app.stop]\ndrain_timeout = "3s"')
    pw.ok("start", "app.toml")
    there = pids(pw)
    first, second = there[pair[0]][0], there[pair[1]][-1]
    others = [pid for pid in there["worker"] if pid not in (first, second)]
    with Load(pw.port, "new", "keep") as load:
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
            wait_until(lambda: is_whole(pw, [first, second]), LONG, lambda: f"all of it\n{pw.daemon_log()}")
            load.wait_more(20)
            assert [pid for pid in others if not alive(pid)] == [], "a worker that was not killed"
    if pair != ("guardian", "daemon"):
        assert [lost for lost in load.lost if "refused" in lost.lower()] == []
        assert len(load.lost) <= 2 * pair.count("worker"), load.lost


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), LONG, "it to stand still")


def spare_is_stored(pw: Pyworker) -> bool:
    """Whether the guardian has a pidfd of the worker that was forked ahead of need."""
    spare, guardian = pw.spare(), pw.role("guardian")
    try:
        names = os.listdir(f"/proc/{guardian}/fdinfo")
    except PermissionError:
        pytest.skip("only root may see what a process that is not dumpable has open")
    for fd in names:
        with contextlib.suppress(OSError):  # closed meanwhile
            if f"Pid:\t{spare}\n" in Path(f"/proc/{guardian}/fdinfo/{fd}").read_text():
                return True
    return False


@pytest.mark.parametrize("killed", ["template", "template+daemon"])
def test_a_worker_ahead_of_need_that_was_stopped_does_not_outlive_its_template(pw: Pyworker, killed: str) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    workers = pw.pids()
    wait_until(lambda: spare_is_stored(pw), LONG, "the guardian to know the spare")
    spare = pw.spare()
    stop(spare)
    for pid in [pw.role(role) for role in killed.split("+")]:
        kill(pid)
    wait_until(lambda: not alive(spare), LONG, "its end")
    assert pw.spare(spare)
    assert pw.pids() == workers


def test_a_stopped_worker_that_has_its_order_does_not_outlive_its_template(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.api(ASGI, tables='[app.reload]\nready_timeout = "10s"')  # what ends the stopped one; a good one may need seconds
    pw.ok("start", "app.toml")
    spare, template = pw.spare(), pw.role("template")
    held_up = pw.arm("spare.order", "hold") + ".hit"
    kill(pw.pids()[0])
    wait_until(lambda: os.path.exists(held_up), LONG, "its order")
    stop(spare)
    kill(template)
    wait_until(lambda: not alive(spare), LONG, "its end")
    assert spare not in [w["pid"] for w in pw.wait_steady()["pool"]]


@pytest.mark.parametrize("balance", ["round-robin", "least-connections"])
def test_nothing_that_was_stopped_stays_when_guardian_and_daemon_are_gone(pw: Pyworker, balance: str) -> None:
    pw.api(ASGI, top=f'balance = "{balance}"', tables='[app.stop]\ndrain_timeout = "2s"')
    pw.ok("start", "app.toml")
    wait_until(lambda: spare_is_stored(pw), LONG, "the guardian to know the spare")
    dispatchers = [pid for pid, title in pw.titles().items() if "dispatcher" in title]
    assert len(dispatchers) == (balance == "least-connections")
    for pid in (pw.spare(), pw.role("template"), pw.pids()[0], *dispatchers):
        stop(pid)
    guardian, daemon = pw.role("guardian"), pw.role("daemon")
    stop(daemon)  # else it would become the guardian
    kill(guardian)
    kill(daemon)
    wait_until(lambda: port_is_closed(pw.port) and not pw.processes(), LONG, "all to be gone")


def test_a_stopped_template_that_was_told_to_leave_is_ended_by_the_next_daemon(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    workers, template, daemon = pw.pids(), pw.role("template"), pw.role("daemon")
    stop(template)
    stopping = pw.popen("stop", "api")
    wait_until(lambda: not any(alive(pid) for pid in workers), LONG, "the workers to leave")
    kill(daemon)
    stopping.communicate(timeout=LONG)
    wait_until(lambda: not alive(template), LONG, "its end")
    wait_until(lambda: pw.app()["state"] == "stopped", LONG, "the end of the app")


@pytest.mark.parametrize(
    ("point", "others"), [("guardian.start_logger", ()), ("guardian.start_daemon", ()), ("guardian.start_daemon", ("logger",))]
)
def test_nothing_stays_when_a_daemon_that_became_the_guardian_late_dies_before_it_has_started(
    pw: Pyworker, point: str, others: tuple[str, ...]
) -> None:
    pw.make_failpoints()
    pw.write("job.py", "import time\ntime.sleep(600)\n")  # it does not see the end of any channel
    pw.write("app.toml", '[app]\nname = "job"\nscript = "job.py"\nstop.drain_timeout = "1s"\n')
    pw.ok("start", "app.toml")
    pw.arm("guardian.adopted", "sleep:1")
    pw.arm(point, "kill")
    for pid in [pw.role(role) for role in ("guardian", *others)]:
        kill(pid)
    wait_until(lambda: not pw.processes(), LONG, lambda: f"all to be gone: {pw.titles()}")
