"""`pyworker daemon upgrade`: other code for guardian, daemon and logger, and no worker or client notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support.control import ask as control_ask
from tests.support.control import connect
from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, kill, running
from tests.support.sources import ASGI, WAITS, version
from tests.support.versions import install, set_version
from tests.support.wait import wait_until


def parents(pids: list[int]) -> list[tuple[int, int]]:
    return [(pid, psutil.Process(pid).ppid()) for pid in pids]


def test_upgrade_replaces_all_but_the_workers_and_loses_no_request(pw: Pyworker) -> None:
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    old = pw.status()
    workers, template = parents(pw.pids()), pw.role("template")
    with Load(pw.port, "new", "keep") as load:
        load.wait_more(50)
        set_version(copy, "0.9.7")
        found = json.loads(pw.ok("daemon", "upgrade", "--json").stdout)
        load.wait_more(100)
        assert parents(pw.pids()) == workers
        assert pw.role("template") == template
        new = pw.status()
        assert (new["version"], new["guardian_version"], new["logger_version"]) == ("0.9.7",) * 3
        assert new["guardian_pid"] == old["guardian_pid"]
        assert new["pid"] != old["pid"]
        assert new["logger_pid"] != old["logger_pid"]
        assert (found["changed"], found["from"], found["to"]) == (True, old["version"], "0.9.7")
        assert [(p["name"], p["pid_before"], p["pid"]) for p in found["parts"]] == [
            ("guardian", old["guardian_pid"], new["guardian_pid"]),
            ("daemon", old["pid"], new["pid"]),
            ("logger", old["logger_pid"], new["logger_pid"]),
        ]
        # what is left can do all that the whole could, and a reload brings the new version to the workers
        before = json.loads(pw.ok("describe", "api", "--json").stdout)["apps"][0]
        assert before["runtime"] == [old["version"]]
        assert f"pyworker {old['version']}" in pw.ok("describe", "api").stdout
        pw.write("web.py", version(ASGI, "two"))
        pw.ok("reload", "api")
        pw.wait_steady()
        load.wait_more(50)
        assert json.loads(pw.ok("describe", "api", "--json").stdout)["apps"][0]["runtime"] == ["0.9.7"]
        os.kill(pw.pids()[0], signal.SIGKILL)
        pw.wait_restarts(1)
        assert pw.wait_steady()["pool"][0]["last_exit"]["signal"] == signal.SIGKILL
    assert [lost for lost in load.lost if "refused" in lost.lower()] == []
    assert len(load.lost) <= 2, load.lost  # what the killed worker had in its hands


def test_upgrade_to_the_same_version_changes_nothing_unless_forced(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids = [pw.role(role) for role in ("guardian", "daemon", "logger")]
    assert "--force" in pw.ok("daemon", "upgrade").stderr
    assert [pw.role(role) for role in ("guardian", "daemon", "logger")] == pids
    shown = pw.ok("daemon", "upgrade", "--force").stdout
    assert f"pid {pids[0]}, the same process" in shown
    assert [pw.role(role) for role in ("daemon", "logger")] != pids[1:]


BROKEN = {  # of a file of the new version: what it gets appended -> what the refusal names
    "guardian/main.py": ("import nowhere", "No module named 'nowhere'"),
    "daemon/brain.py": ("def broken(:", "SyntaxError"),
    "config/schema.py": ("raise SystemExit('not today')", "not today"),
    "daemon/handles.py": ("WorkerHandle.recall = lambda self, memo: memo['soul']", "cannot take over what runs"),
}


def test_version_that_does_not_start_or_does_not_understand_what_runs_changes_nothing(pw: Pyworker) -> None:
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids = [pw.role(role) for role in ("guardian", "daemon", "logger")]
    set_version(copy, "0.9.7")
    for file, (text, words) in BROKEN.items():
        path = os.path.join(copy, file)
        with open(path) as source:
            whole = source.read()
        with open(path, "a") as source:
            source.write(f"\n{text}\n")
        # not by its command: that one is of the broken version
        refused = ask(pw, {"type": "upgrade", "python": pw.python})
        assert (refused["type"], refused["code"], refused["exit"]) == ("refused", "upgrade_refused", 1)
        assert "nothing was replaced" in refused["message"]
        assert words in refused["message"]
        is_whole = words == "cannot take over what runs"  # and older, perhaps: not to be mended
        assert refused["hint"].startswith("one that is no older" if is_whole else f"mend the installation of {pw.python}")
        with open(path, "w") as source:
            source.write(whole)
    status = ask(pw, {"type": "status"})["body"]
    assert [status["guardian_pid"], status["pid"], status["logger_pid"]] == pids
    assert pw.get().startswith("one")
    pw.ok("daemon", "upgrade")
    assert pw.status()["guardian_version"] == "0.9.7"


def test_what_cannot_be_started_while_an_installer_is_at_work_says_what_is_missing_and_runs_again_after_it(
    pw: Pyworker,
) -> None:
    copy = install(pw)
    pw.write("web.py", ASGI)
    pw.write("app.toml", f"""
[apps.api]
target = "web:app"
bind = "127.0.0.1:{pw.port}"
limits.nofile = 1000  # which the launcher sets
[apps.light]
target = "web:app"
bind = "unix:light.sock"
[apps.tick]
command = "sleep 1000"
""")
    pw.ok("start", "app.toml")
    part = os.path.join(copy, "template")
    os.rename(part, f"{part}.away")
    kill(pw.pids("tick")[0])

    def failure() -> Any:
        return pw.app("tick")["last_failure"] or {"message": ""}  # told with its successor, if it had lived for min_uptime

    wait_until(lambda: failure()["message"] == "cannot start a process: the launcher ended with exit code 1", LONG, "it")
    assert failure()["hint"].startswith(f"mend the installation of {pw.python}")
    refused = ask(pw, {"type": "reload", "selectors": ["api"]})["body"]["apps"][0]
    assert refused["reason"] == "the launcher ended with exit code 1"
    assert "No module named pyworker.template" in refused["traceback"]
    assert refused["hint"] == failure()["hint"]
    light = ask(pw, {"type": "reload", "selectors": ["light"]})["body"]["apps"][0]
    assert light["ok"], light  # what it needs of ours its daemon has read before
    os.rename(pw.python, f"{pw.python}.away")
    refused = ask(pw, {"type": "reload", "selectors": ["api"]})["body"]["apps"][0]
    os.rename(f"{pw.python}.away", pw.python)
    os.rename(f"{part}.away", part)
    assert refused["reason"] == f"cannot start a process: {pw.python}: No such file or directory"
    assert refused["hint"] == failure()["hint"]
    pw.wait_steady("tick")
    assert pw.get().startswith("one")


def ask(pw: Pyworker, request: dict[str, object]) -> dict[str, Any]:
    """Ask as a command of the daemon's own version would."""
    from pyworker import __version__
    from pyworker.protocol.control import PROTOCOL

    with connect(pw.home, LONG) as sock:
        line = json.dumps({"type": "call", "protocol": PROTOCOL, "version": __version__, "request": request})
        sock.sendall(line.encode() + b"\n")
        with sock.makefile() as answers:
            return json.loads(list(answers)[-1])  # type: ignore[no-any-return]


def test_upgrade_is_refused_while_a_command_waits(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.write("web.py", WAITS + version(ASGI, "two"))
    reload = pw.popen("reload", "api")
    wait_until(lambda: pw.app()["state"] == "reloading", LONG, "the reload to begin")
    done = pw.run("daemon", "upgrade", "--force")
    assert done.returncode == 75
    assert "a command on api is under way" in done.stderr
    pw.write("go", "")
    reload.communicate(timeout=60)
    assert reload.returncode == 0
    pw.ok("daemon", "upgrade", "--force")


def upgrade_that_is_still_tried(pw: Pyworker, copy: str) -> subprocess.Popen[str]:
    """Begin an upgrade to a copy whose logger does not come up before there is a file `go`."""
    go, tried = os.path.join(pw.folder, "go"), os.path.join(pw.folder, "tried")
    with open(os.path.join(copy, "logger", "lines.py"), "a") as file:
        file.write(f"\nimport os, time\nopen({tried!r}, 'w')\nwhile not os.path.exists({go!r}):\n    time.sleep(0.01)\n")
    upgrade = pw.popen("daemon", "upgrade", "--force")
    wait_until(lambda: os.path.exists(tried), LONG, "its logger to be tried")
    return upgrade


def test_an_upgrade_ends_with_the_daemon_that_is_stopped_while_the_new_version_is_tried(pw: Pyworker) -> None:
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    upgrade = upgrade_that_is_still_tried(pw, copy)
    pw.ok("daemon", "stop", "-y")
    said = upgrade.communicate(timeout=LONG)[1]
    pw.write("go", "")
    assert upgrade.returncode == 1
    assert "The daemon was stopped meanwhile" in said


def test_an_upgrade_whose_daemon_is_killed_while_the_new_version_is_tried_is_done_by_the_next(pw: Pyworker) -> None:
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    workers, logger = pw.pids(), pw.role("logger")
    upgrade = upgrade_that_is_still_tried(pw, copy)
    kill(pw.role("daemon"))
    pw.write("go", "")
    assert upgrade.wait(LONG) == 0, upgrade.communicate()
    upgrade.communicate()
    assert pw.role("logger") != logger
    assert pw.pids() == workers


@pytest.mark.parametrize("how", ["upgrade", "kill"])
def test_a_reload_that_nobody_waits_for_goes_on_after_an_upgrade_and_is_refused_aloud_after_a_kill(
    pw: Pyworker, how: str
) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.write("web.py", WAITS + version(ASGI, "two"))
    pw.ok("reload", "api", "--no-wait")
    if how == "upgrade":
        pw.ok("daemon", "upgrade", "--force")
        assert pw.app()["state"] == "reloading"
        pw.write("go", "")
        pw.ok("wait", "api", "--for", "gen=2", "--timeout", "30s")
        assert pw.get().startswith("two")
        wait_until(lambda: pw.app()["reloads"] == 1, LONG, "the reload to count")
    else:
        kill(pw.role("daemon"))
        wait_until(lambda: "the daemon ended before the commit" in pw.run("events").stdout, LONG, "it to be said")
        assert pw.wait_steady()["gen"] == 1
        assert pw.get().startswith("one")


def is_whole(pw: Pyworker) -> bool:
    """Whether there is one of each of ours, and all of them know of one another."""
    titles = [title.strip() for title in pw.titles().values()]
    if [titles.count(f"pyworker {name}") for name in ("guardian", "daemon", "logger", "standby")] != [1, 1, 1, 0]:
        return False
    answer = control_ask(pw.home, {"type": "ps"})
    apps = answer["body"]["apps"] if answer is not None and answer["type"] == "reply" else []
    return [(app["state"], app["workers"]["ready"], app["workers"]["total"]) for app in apps] == [("running", 2, 2)]


KILLED = [
    "guardian.exec", "guardian.execed", "guardian.adopted", "guardian.leave", "guardian.stands_by", "guardian.start_daemon",
    "guardian.daemon_started", "guardian.start_logger", "daemon.leave", "daemon.restored", "daemon.adopt_app",
    "daemon.adopted", "daemon.serving", "logger.leave",
]  # fmt: skip


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pyworker]:
    """One tree for many upgrades: each kill leaves it whole, with the workers that it had."""
    with running() as pw:
        pw.make_failpoints()
        pw.api(ASGI)
        pw.ok("start", "app.toml")
        yield pw


@pytest.mark.parametrize("point", KILLED)
def test_kill_anywhere_in_an_upgrade_refuses_nobody_and_touches_no_worker(lasting: Pyworker, point: str) -> None:
    pw = lasting
    wait_until(lambda: is_whole(pw), LONG, "all of it")
    workers = pw.pids()
    passed = pw.arm(point, "kill") + ".hit"
    with Load(pw.port, "new", "keep", pause=0.01) as load:
        pw.run("daemon", "upgrade", "--force")  # it may have lost the daemon that it asked
        wait_until(lambda: os.path.exists(passed), LONG, lambda: f"{point} to be passed\n{pw.daemon_log()}")
        wait_until(lambda: is_whole(pw), LONG, lambda: f"all of it\n{pw.titles()}\n{pw.daemon_log()}")
        load.wait_more(20)
    os.unlink(passed)
    assert load.lost == []
    assert pw.pids() == workers


@pytest.mark.parametrize(
    ("who", "point"),
    [
        ("standby", "guardian.daemon_started"),
        ("guardian", "guardian.daemon_started"),
        ("guardian", "guardian.stands_by"),
        ("guardian", "daemon.leave"),
        ("guardian", "daemon.restored"),
    ],
)
def test_kill_of_one_while_another_is_at_a_place_of_an_upgrade_refuses_nobody(lasting: Pyworker, who: str, point: str) -> None:
    pw = lasting
    wait_until(lambda: is_whole(pw), LONG, "all of it")
    workers, guardian = pw.pids(), pw.role("guardian")
    held_up = pw.arm(point, "hold") + ".hit"
    with Load(pw.port, "new", "keep", pause=0.01) as load:
        upgrade = pw.popen("daemon", "upgrade", "--force")
        wait_until(lambda: os.path.exists(held_up), LONG, f"{point} to be passed")
        kill(guardian if who == "guardian" else next(p for p, title in pw.titles().items() if f"pyworker {who}" in title))
        os.unlink(held_up)
        upgrade.communicate(timeout=60)
        wait_until(lambda: is_whole(pw), LONG, lambda: f"all of it\n{pw.titles()}\n{pw.daemon_log()}")
        load.wait_more(20)
    assert load.lost == []
    assert pw.pids() == workers
