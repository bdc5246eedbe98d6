"""`pyworker reload --abort`: back to the workers from before, as long as that is possible, and no request is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker
from tests.support.sources import ASGI, version
from tests.support.wait import wait_until

STARTS = 'await send({"type": message["type"] + ".complete"})'
TABLES = '[app.reload]\nready_timeout = "300s"\nsoak = "300s"\n'


def test_before_the_commit_the_old_workers_are_not_touched(pw: Pyworker) -> None:
    pw.api(ASGI, tables=TABLES)
    pw.ok("start", "app.toml")
    before = pw.pids()
    pw.write("web.py", version(ASGI.replace(STARTS, "await asyncio.sleep(3600)"), "two"))
    done: list[subprocess.CompletedProcess[str]] = []
    reload = threading.Thread(target=lambda: done.append(pw.run("reload", "api")))
    reload.start()
    with Load(pw.port, "new", "keep") as load:
        wait_until(lambda: any(w["gen"] == 2 for w in pw.app()["pool"]), LONG, "a new worker that does not get ready")
        shown = pw.ok("reload", "--abort", "api").stdout
        load.wait_more(10)
    reload.join(LONG)
    assert "api: the reload was given up, gen 1 goes on, 2/2 ready" in shown
    assert done[0].returncode == 1
    assert "gen 1 goes on: it was given up (--abort) by " in done[0].stderr
    assert load.lost == []
    assert {body.split()[0] for body in load.bodies} == {"one"}
    assert [worker["pid"] for worker in pw.wait_steady()["pool"]] == before


def test_a_reload_that_a_stop_ends_says_so(pw: Pyworker) -> None:
    pw.api(ASGI, tables=TABLES)
    pw.ok("start", "app.toml")
    pw.write("web.py", version(ASGI.replace(STARTS, "await asyncio.sleep(3600)"), "two"))
    done: list[subprocess.CompletedProcess[str]] = []
    reload = threading.Thread(target=lambda: done.append(pw.run("reload", "api")))
    reload.start()
    wait_until(lambda: any(w["gen"] == 2 for w in pw.app()["pool"]), LONG, "a new worker that does not get ready")
    pw.ok("stop", "api")
    reload.join(LONG)
    assert done[0].returncode == 1
    assert "error: api was not reloaded: it was stopped by another command" in done[0].stderr


def test_in_the_soak_the_old_code_comes_back_and_no_request_is_lost(pw: Pyworker) -> None:
    pw.api(ASGI, tables=TABLES)
    pw.ok("start", "app.toml")
    pw.write("web.py", version(ASGI, "two"))
    with Load(pw.port, "new", "keep") as load:
        pw.ok("reload", "api")
        assert pw.get().startswith("two")
        shown = pw.ok("reload", "--abort").stdout
        assert pw.get().startswith("one")
        wait_until(lambda: len(pw.app()["pool"]) == 2, LONG, "the given up workers to leave")
        load.wait_more(10)
    assert "gen 1 goes on, 2/2 ready" in shown
    assert pw.get().split()[0] == "one"
    assert load.lost == []
    assert "it was given up (--abort) by " in pw.ok("events", "api").stdout


def test_the_log_is_written_as_before_when_the_old_code_has_come_back(pw: Pyworker) -> None:
    printing = ASGI.replace("    body =", '    print("asked for", path, flush=True)\n    body =')
    pw.api(printing, tables=TABLES)
    pw.ok("start", "app.toml")
    pw.api(printing, tables=f'{TABLES}[app.logs]\nformat = "json"\n')
    pw.ok("reload", "api")
    pw.ok("reload", "--abort")

    def written() -> list[str]:
        pw.get("/here")
        log = os.path.join(pw.home, "logs", "api.log")
        if not os.path.exists(log):
            return []
        with open(log) as file:
            return [line for line in file if "asked for /here" in line and not line.startswith("{")]

    wait_until(written, LONG, "a line as before")


def test_without_a_reload_there_is_nothing_to_give_up(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    before = pw.pids()
    done = pw.run("reload", "--abort", "api")
    assert done.returncode == 1
    assert "api: no reload is under way, and none can be taken back" in done.stderr
    assert pw.run("reload", "--abort", "--soak").returncode == 2
    assert pw.pids() == before


def test_what_was_scaled_is_back_when_a_reload_with_another_number_of_workers_is_given_up(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1, tables=TABLES)
    pw.ok("start", "app.toml")
    pw.ok("scale", "api=3")
    pw.api(ASGI, workers=2, tables=TABLES)
    pw.ok("reload", "api")
    assert pw.wait_steady()["workers"]["want"] == 2
    os.kill(pw.role("daemon"), signal.SIGKILL)  # the next one knows it, too
    pw.ok("reload", "--abort", "api")
    assert pw.wait_steady()["workers"]["want"] == 3
