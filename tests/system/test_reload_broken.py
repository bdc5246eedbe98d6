"""Broken versions, some of which start: the old one serves on, exit 1, the cause is named and the next step."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker
from tests.support.sources import ASGI, version
from tests.support.wait import wait_until

HEALTH = '[app.health]\npath = "/health"\ninterval = "200ms"\ntimeout = "5s"\nretries = 2\n'
TABLES = '[app.reload]\nsoak = "300s"\n[app.restart]\nmin_uptime = "5s"\n'
HASTY = TABLES.replace("soak", 'ready_timeout = "2s"\nsoak')  # only of what is never ready: a busy machine may hold up the others
STARTS = 'await send({"type": message["type"] + ".complete"})'
FIRST = "async def app(scope, receive, send):\n"

BROKEN = {
    "does not import": ("import no_such_module_of_ours\n", "", "No module named 'no_such_module_of_ours'", "pip install"),
    "hangs at import": ("import time\ntime.sleep(3600)\n", "", "took more than 2 s", "ready_timeout"),
    "dies at import": ("import os\nos.kill(os.getpid(), 11)\n", "", "SEGV", ""),
    "a failing lifespan": (
        ASGI.replace('message["type"] + ".complete"', '"lifespan.startup.failed", "message": "no database"'), "", "no database", "",
    ),
    "never ready": (ASGI.replace(STARTS, "await asyncio.sleep(3600)"), "", "2 s", "ready_timeout"),
    "ready, then dies": (
        ASGI.replace(STARTS, STARTS + '\n            print("no more disk", flush=True) or os._exit(9)'), "", "no more disk", "",
    ),
    "fails its health check": (
        ASGI.replace(FIRST, FIRST + '    if scope.get("path") == "/health":\n        raise RuntimeError("no database")\n'),
        HEALTH, "health check", "RuntimeError: no database",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_the_old_version_serves_on(pw: Pyworker, how: str) -> None:
    source, tables, cause, step = BROKEN[how]
    pw.api(ASGI, tables=TABLES + tables)
    pw.ok("start", "app.toml")
    before = pw.pids()
    pw.api(version(source, "two"), tables=(HASTY if how in ("never ready", "hangs at import") else TABLES) + tables)
    with Load(pw.port, "new", "keep") as load:
        load.wait_more(10)
        done = pw.run("reload", "api")
        load.wait_more(10)
    print(done.stderr)
    assert done.returncode == 1, done
    assert cause in done.stderr
    assert step in done.stderr
    assert load.lost == []
    assert {body.split()[0] for body in load.bodies} == {"one"}
    assert [worker["pid"] for worker in pw.wait_steady()["pool"]] == before


def test_what_fails_its_check_is_named_however_long_the_logger_takes_for_it(pw: Pyworker) -> None:
    pw.make_failpoints()
    source, tables, _, step = BROKEN["fails its health check"]
    pw.api(ASGI, tables=tables)
    pw.ok("start", "app.toml")
    pw.api(source, tables=tables)
    pw.arm("logger.write", "sleep:0.8")
    assert step in pw.run("reload", "api").stderr
    assert pw.get().startswith("one")


def test_one_that_dies_in_the_soak_is_rolled_back_with_its_cause(pw: Pyworker) -> None:
    """The reload has returned by then: it is `ps` and the events that say it."""
    pw.api(ASGI, tables=TABLES)
    pw.ok("start", "app.toml")
    dies = (
        'import threading\n    if scope["type"] == "http":\n        print("out of luck", flush=True)\n        os._exit(9)\n'
    )
    pw.write("web.py", version(ASGI, "two").replace(FIRST, FIRST + "    " + dies))
    pw.ok("reload", "api")

    def rolled_back() -> bool:
        try:
            return pw.get(timeout=5).split()[0] == "one"
        except (AssertionError, OSError):
            return False

    wait_until(rolled_back, LONG, "the old version")
    shown = pw.ok("events", "api").stdout
    assert "rolled back" in shown
    assert "out of luck" in shown
    assert pw.wait_steady()["gen"] == 1


def test_reload_with_soak_waits_for_it_and_says_that_it_was_rolled_back(pw: Pyworker) -> None:
    pw.api(ASGI, tables=TABLES)
    pw.ok("start", "app.toml")
    dies = """
            def look():
                if os.path.exists("now"):
                    print("out of luck", flush=True)
                    os._exit(9)
                asyncio.get_running_loop().call_later(0.02, look)
            look()"""
    pw.write("web.py", version(ASGI, "two").replace(STARTS, STARTS + dies))
    done: list[subprocess.CompletedProcess[str]] = []
    reload = threading.Thread(target=lambda: done.append(pw.run("reload", "api", "--soak")))
    reload.start()
    wait_until(lambda: pw.app()["gen"] == 2, LONG, "the commit")
    pw.write("now", "")
    reload.join(LONG)
    assert done
    assert done[0].returncode == 1, done
    assert pw.get().startswith("one")
    assert "died in the soak" in done[0].stderr
    assert "out of luck" in done[0].stderr
    assert pw.wait_steady()["gen"] == 1


def test_fewer_workers_in_the_soak_do_not_bring_the_old_code_back(pw: Pyworker) -> None:
    """One of two that died is not more than half of them, nor is it when one is enough."""
    pw.api(ASGI, tables=TABLES)
    pw.ok("start", "app.toml")
    pw.write("web.py", version(ASGI, "two"))
    pw.ok("reload", "api")
    os.kill(pw.wait_steady()["pool"][1]["pid"], signal.SIGKILL)
    pw.wait_restarts(1)
    pw.wait_steady()
    pw.ok("scale", "api=1")
    assert pw.app()["gen"] == 2


def test_reload_with_soak_is_over_with_it(pw: Pyworker) -> None:
    pw.api(ASGI, tables=TABLES.replace("300s", "500ms"))
    pw.ok("start", "app.toml")
    pw.write("web.py", version(ASGI, "two"))
    pw.ok("reload", "api", "--soak")
    assert pw.app()["gen"] == 2
    pw.write("web.py", version(ASGI, "three"))
    pw.ok("reload", "api")  # a new reload ends a soak; there is none any more
    assert pw.get().startswith("three")


def test_threads_in_the_template_are_no_failure_but_are_named(pw: Pyworker) -> None:
    """Such code is imported in each worker instead: the reload succeeds, and says what that costs."""
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    thread = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='poller').start()\n"
    pw.write("web.py", thread + version(ASGI, "two"))
    pw.ok("reload", "api")
    assert pw.get().startswith("two")
    assert "thread" in pw.ok("describe", "api").stdout
    (note,) = pw.app()["notes"]
    assert note.startswith("1 thread runs after the import: poller: each worker imports the app for itself")
    pw.write("web.py", version(ASGI, "three"))
    pw.ok("reload", "api")
    assert pw.app()["notes"] == []
