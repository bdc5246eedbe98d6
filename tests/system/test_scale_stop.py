"""More workers, fewer, none: and what is asked meanwhile is answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import psutil
import pytest

from pyworker.cli.client import Answer, Call
from pyworker.cli.deadline import Deadline
from pyworker.unix import process
from tests.support.control import ask
from tests.support.load import Load
from tests.support.pyworker import KERNEL, LONG, Pyworker, alive, kill
from tests.support.rawhttp import Client
from tests.support.sources import ASGI, WAITS, version
from tests.support.wait import wait_until


def test_scale_sets_adds_and_takes_away_without_losing_a_request(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    first = pw.pids()
    with Load(pw.port, "new", "keep") as load:
        for change, want in (("api=4", 4), ("api=+1", 5), ("api=-2", 3), ("api=1", 1), ("api=2", 2)):
            load.wait_more(20)
            pw.ok("scale", change)
            assert pw.wait_steady()["workers"]["want"] == want
            load.wait_more(20)
    assert load.lost == []
    assert pw.pids()[0] == first[0]


def test_more_workers_than_there_may_be_are_refused_with_the_limit(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1)
    pw.ok("start", "app.toml")
    for change in ("2000", "+1000", "20000"):
        refused = pw.run("scale", f"api={change}")
        assert refused.returncode == 2
        assert "1000 are the most" in refused.stderr
    assert pw.app()["workers"]["want"] == 1


def test_a_request_that_names_a_worker_to_scale_or_nothing_at_all_is_refused(pw: Pyworker) -> None:
    """The commands do not send these; others may."""
    pw.api(ASGI, workers=2)
    pw.ok("start", "app.toml")
    for request, why in (
        ({"type": "scale", "changes": {"api.2": "1"}}, "api.2 is a worker: this is done with whole apps"),
        ({"type": "scale", "changes": {"api": "many"}}, "cannot scale to 'many'"),
        ({"type": "start", "inline": {"target": 5}, "cwd": "/"}, "`target` must be text, not 5"),
        ({"type": "stack", "selectors": []}, "no app is named"),
        ({"type": "send", "selectors": [], "text": "1"}, "no app is named"),
        ({"type": "stop", "selectors": []}, "no app is named"),
    ):
        answer = ask(pw.home, request)
        assert answer is not None
        assert (answer["type"], answer["message"]) == ("refused", why)
    assert pw.app()["workers"]["want"] == 2


def test_scale_is_kept_by_a_reload_and_by_a_new_daemon(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.ok("scale", "api=3")
    pw.ok("reload", "api")
    assert pw.wait_steady()["workers"]["want"] == 3
    pw.ok("daemon", "stop", "-y")
    pw.ok("daemon", "start")
    assert pw.wait_steady()["workers"]["want"] == 3


def test_an_app_that_is_scaled_to_0_says_so_and_how_it_gets_workers(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1)
    pw.ok("start", "app.toml")
    pw.ok("scale", "api=0")
    for done in (pw.ok("start", "app.toml"), pw.ok("restart", "api"), pw.ok("ps")):
        said = done.stdout + done.stderr
        assert "scaled to 0; who connects waits: pyworker scale api=1 starts a worker" in said
        assert "when its time comes" not in said
    pw.ok("scale", "api=1")
    assert pw.app()["notes"] == []


def test_stop_finishes_the_requests_under_way(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(pw.get("/slow"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(w["in_flight"] for w in pw.app()["pool"]) == 6 or answers, LONG, "the requests to be in")
    pw.ok("stop", "api")
    for thread in threads:
        thread.join(LONG)
    assert len(answers) == 6
    assert pw.refuses()
    assert pw.app()["state"] == "stopped"
    assert pw.run("stop", "api").returncode == 3
    assert pw.run("reload", "api").returncode == 3
    for verb in ("stop", "reload"):  # those that run: whether there are any is no matter
        pw.ok(verb, "all", "-y")
        pw.ok(verb, "a*")
    pw.ok("start", "api")
    assert pw.get().startswith("one")


def test_what_is_not_waited_for_is_under_way_and_not_nothing(pw: Pyworker) -> None:
    pw.api(ASGI)
    assert pw.ok("start", "app.toml", "--no-wait").stdout == "api is starting: not waited for\n"
    pw.ok("wait", "api")
    assert pw.ok("reload", "api", "--no-wait").stdout == "api is reloading: not waited for\n"
    pw.ok("stop", "api", "--no-wait")
    pw.ok("wait", "api", "--for", "stopped")


def test_a_start_of_what_was_stopped_goes_on_under_the_next_daemon(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.ok("stop", "api")
    point = pw.arm("spawn.template", "kill")
    pw.run("start", "api", "--no-wait")
    wait_until(lambda: os.path.exists(point + ".hit"), LONG, "the daemon to be killed")
    wait_until(lambda: pw.run("ps").returncode == 0, LONG, "the next one")
    wait_until(lambda: pw.app()["state"] == "running", LONG, "the start to go on")
    assert not pw.refuses()


@pytest.mark.parametrize("command", ["start", "restart"])
def test_a_start_of_what_is_stopping_goes_on_under_the_next_daemon(pw: Pyworker, command: str) -> None:
    pw.make_failpoints()
    pw.write("app.toml", """
[app]
name = "api"
command = ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"]
[app.stop]
kill_timeout = "4s"
""")
    pw.ok("start", "app.toml")
    [before] = pw.pids("api")
    pw.ok("stop", "api", "--no-wait")
    assert pw.app()["state"] == "stopping"
    point = pw.arm("save.after_rename", "kill")
    pw.run(command, "api", "--no-wait")
    wait_until(lambda: os.path.exists(point + ".hit"), LONG, "the daemon to be killed")
    wait_until(lambda: pw.run("ps").returncode == 0, LONG, "the next one")
    wait_until(lambda: pw.app()["state"] == "running" and pw.pids("api") != [before], LONG, "the start to go on")


def test_stop_now_waits_for_nobody(pw: Pyworker) -> None:
    pw.api(ASGI.replace("asyncio.sleep(1)", "asyncio.sleep(3600)"))
    pw.ok("start", "app.toml")
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: sum(w["in_flight"] for w in pw.app()["pool"]) == 1, LONG, "the request to be in")
        pw.ok("stop", "api", "--now")
        assert pw.refuses()
        answer = client.recv()
        assert answer is None or answer.status >= 500


def test_one_worker_is_stopped_and_started_and_restarted(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    first, second = pw.pids()
    with Load(pw.port, "new", "keep") as load:
        pw.ok("stop", "api.2")
        assert not alive(second)
        assert pw.pids() == [first]
        load.wait_more(20)
        pw.ok("restart", "api.2")
        again = pw.pids()
        assert again[0] == first
        assert again[1] != second
        pw.ok("restart", "api.2")
        assert pw.wait_steady()["pool"][0]["pid"] == first
        assert pw.pids()[1] != again[1]
        load.wait_more(20)
    assert load.lost == []


@pytest.mark.parametrize(
    ("away", "said", "back"),
    [
        (("scale", "api=0"), "api: it is scaled to 0; who connects waits: pyworker scale api=1 starts a worker", ("scale", "api=1")),
        (("stop", "api.1", "api.2"), "api: each of its workers was stopped; who connects waits: pyworker start api", ("start", "api")),
    ],
    ids=["scale", "stop"],
)
def test_who_connects_while_all_workers_are_away_waits_and_that_is_said(
    pw: Pyworker, away: tuple[str, ...], said: str, back: tuple[str, ...]
) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    assert said in pw.ok(*away).stderr
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        pw.ok(*back)
        answer = client.recv()
        assert answer is not None
        assert answer.status == 200
    assert "who connects waits" not in pw.ok("ps").stderr


def test_each_worker_that_is_named_is_restarted_and_no_other(pw: Pyworker) -> None:
    pw.api(ASGI, workers=3)
    pw.ok("start", "app.toml")
    before = pw.pids()
    assert pw.ok("restart", "api.2", "api.3").stdout.startswith("api.2, api.3 restarted: gen 1, 3/3 ready")
    pw.wait_steady()
    after = pw.pids()
    assert [pid in before for pid in after] == [True, False, False]


def test_a_slot_that_was_stopped_by_itself_is_filled_by_a_start(pw: Pyworker) -> None:
    pw.api(ASGI, workers=3)
    pw.ok("start", "app.toml")
    first = pw.pids()[0]
    assert pw.ok("stop", "api.2").stdout == "api.2 stopped; api is running: 2/2 ready\n"
    pw.ok("stop", "api.3")
    assert pw.run("start", "api.9").returncode == 4
    assert pw.ok("start", "api.2").stdout.startswith("api running 2/2 ")
    assert pw.ok("start", "api").stdout.startswith("api running 3/3 ")
    assert len(pw.pids()) == 3
    assert pw.pids()[0] == first
    pw.ok("stop", "api.3")
    assert pw.ok("start", "app.toml").stdout.startswith("api running 3/3 ")
    assert pw.ok("start", "api.3").stdout.startswith("api running already 3/3 ")


def test_a_scale_gives_as_many_as_it_says_though_a_slot_was_stopped_before_it_was_scaled_away(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.ok("stop", "api.2")
    pw.ok("scale", "api=1")
    pw.ok("scale", "api=2")
    assert len(pw.pids()) == 2


def test_restart_brings_new_code_and_new_workers(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    old = set(pw.pids())
    pw.write("web.py", version(ASGI, "two"))
    pw.ok("restart", "api")
    assert pw.get().startswith("two")
    assert not old & set(pw.pids())
    assert not any(map(alive, old))


def test_delete_forgets_the_app(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.ok("delete", "api", "-y")
    assert pw.ps()["apps"] == []
    assert pw.refuses()
    assert pw.run("start", "api").returncode == 4
    pw.ok("start", "app.toml")
    assert pw.get().startswith("one")


def start_slow(pw: Pyworker) -> None:
    """Start an app, `slow`, that ends when it is told to and there is a file `goes`: from the moment on in which it heeds that."""
    waits = "trap 'until [ -e goes ]; do sleep 0.05; done; exit' TERM; : > heeds; while :; do sleep 0.05; done"
    pw.ok("start", "--name", "slow", "--", "sh", "-c", waits)
    wait_heeds(pw)


def wait_heeds(pw: Pyworker) -> None:
    """It counts as ready when it has run for a second, whatever it has done in that."""
    heeds = Path(pw.folder, "heeds")
    wait_until(heeds.exists, LONG, "its trap")
    heeds.unlink()


def test_an_app_that_is_restarted_can_be_scaled_meanwhile(pw: Pyworker) -> None:
    start_slow(pw)
    restarting = pw.popen("restart", "slow")
    wait_until(lambda: pw.app("slow")["state"] == "starting", LONG, "the restart to begin")
    scaling = pw.popen("scale", "slow=3")
    wait_until(lambda: pw.app("slow")["workers"]["want"] == 3 or scaling.poll(), LONG, "the scale to be taken")
    pw.write("goes", "")
    assert "3/3 ready" in scaling.communicate(timeout=LONG)[0]
    restarting.communicate(timeout=LONG)
    assert restarting.returncode == 0


def test_a_command_that_another_one_overtakes_leads_to_ps_and_not_to_the_log(pw: Pyworker) -> None:
    start_slow(pw)
    restarting = pw.popen("restart", "slow")
    wait_until(lambda: pw.app("slow")["state"] == "starting", LONG, "the restart to begin")
    stopping = pw.popen("stop", "slow")
    err = restarting.communicate(timeout=LONG)[1]
    assert err.endswith("= help: pyworker ps shows how it is now\n")
    pw.write("goes", "")
    stopping.communicate(timeout=LONG)
    assert stopping.returncode == 0


def test_a_reload_does_not_take_back_a_stop_that_is_under_way(pw: Pyworker) -> None:
    start_slow(pw)
    stopping = pw.popen("stop", "slow")
    wait_until(lambda: pw.app("slow")["state"] == "stopping", LONG, "the stop to begin")
    assert pw.run("reload", "slow").returncode == 3
    pw.write("goes", "")
    assert stopping.communicate(timeout=LONG)[0].startswith("slow stopped")
    assert pw.app("slow")["state"] == "stopped"


def test_deleted_apps_are_forgotten_when_the_command_returns(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.write("app.toml", '[defaults]\ncommand = "sleep 3600"\n[apps.a]\n[apps.b]\n[apps.c]\n')
    pw.ok("start", "app.toml")
    pw.arm("save.before_rename", "sleep:0.2 always")  # as long as it takes among hundreds of apps
    pw.ok("delete", "all", "-y")
    assert pw.ps()["apps"] == []
    pw.ok("start", "app.toml")
    pw.ok("stop", "all", "-y")
    pw.ok("delete", "all", "-y")
    assert pw.ps()["apps"] == []


def test_delete_with_logs_leaves_none_that_was_rotated(pw: Pyworker) -> None:
    pw.ok("start", "--name", "talks", "--", "sh", "-c", "echo hello; exec sleep 3600")
    wait_until(lambda: "hello" in pw.run("logs", "talks").stdout, LONG, "its first line")
    for name in ("talks.log.1", "talks.log.2.gz", "talks.log.old"):
        pw.write(f"home/logs/{name}", "")
    pw.ok("delete", "talks", "--logs", "-y")
    assert [x for x in os.listdir(f"{pw.home}/logs") if x.startswith("talks")] == ["talks.log.old"]  # not ours


def test_delete_with_logs_waits_for_a_logger_that_is_behind_with_the_last_words(pw: Pyworker) -> None:
    pw.make_failpoints()
    says = "trap 'echo bye; exit' TERM; echo hello; while :; do sleep 0.05; done"
    pw.ok("start", "--name", "talks", "--", "sh", "-c", says)
    wait_until(lambda: "hello" in pw.run("logs", "talks").stdout, LONG, "its first line")
    pw.arm("logger.write", "sleep:2.1")  # by then it looks whether its file is still there
    pw.ok("delete", "talks", "--logs", "-y")
    pw.ok("daemon", "stop", "-y")  # which waits until all is written
    assert not os.path.exists(f"{pw.home}/logs/talks.log")


def test_delete_with_logs_leaves_a_pipe_and_a_log_that_another_app_has_too(pw: Pyworker) -> None:
    os.mkfifo(f"{pw.folder}/pipe")
    pw.write("says.sh", "echo hello; exec sleep 3600")
    defaults = '[defaults]\ncommand = "sh says.sh"\nlogs.file = "all.log"\n'
    pw.write("app.toml", defaults + '[apps.a]\n[apps.b]\n[apps.c]\nlogs.file = "pipe"\n')
    pw.ok("start", "app.toml")
    wait_until(lambda: "hello" in pw.run("logs", "b").stdout, LONG, "its first line")
    left = pw.ok("delete", "a", "c", "--logs", "-y").stderr
    assert "its log was not removed: it is that of b, too" in left
    assert "hello" in pw.ok("logs", "b").stdout
    assert os.path.exists(f"{pw.folder}/pipe")
    pw.ok("delete", "b", "--logs", "-y")
    assert not os.path.exists(f"{pw.folder}/all.log")


def test_an_app_that_has_failed_is_deleted_like_another(pw: Pyworker) -> None:
    assert pw.run("start", "--name", "bad", "--", "false").returncode == 1
    assert pw.ok("delete", "bad", "-y").stdout == "bad deleted\n"
    assert pw.ps()["apps"] == []


def test_delete_returns_and_says_which_log_could_not_be_removed(pw: Pyworker) -> None:
    pw.write("app.toml", '[defaults]\ncommand = "sleep 3600"\n[apps.a]\n[apps.b]\n')
    pw.ok("start", "app.toml")
    os.mkdir(f"{pw.home}/logs/a.log.1")
    assert f"Is a directory: {pw.home}/logs/a.log.1" in pw.ok("delete", "all", "--logs", "-y").stderr
    assert pw.ps()["apps"] == []


def test_globs_and_all_select_apps(pw: Pyworker) -> None:
    pw.write(
        "app.toml",
        '[defaults]\ncommand = "sleep 3600"\n[apps.web-a]\n[apps.web-b]\n[apps.jobs]\n',
    )
    pw.ok("start", "app.toml")
    pw.ok("stop", "web-*")
    assert {app["name"]: app["state"] for app in pw.ps()["apps"]} == {
        "web-a": "stopped",
        "web-b": "stopped",
        "jobs": "running",
    }
    pw.ok("stop", "all", "-y")
    assert {app["state"] for app in pw.ps()["apps"]} == {"stopped"}


def test_a_daemon_restores_what_was_wanted_and_only_that(pw: Pyworker) -> None:
    other = pw.another_port()
    pw.write("web.py", ASGI)
    pw.write(
        "app.toml",
        f'[apps.api]\ntarget = "web:app"\nworkers = 2\nbind = "127.0.0.1:{pw.port}"\n'
        f'[apps.off]\ntarget = "web:app"\nbind = "127.0.0.1:{other}"\n',
    )
    pw.ok("start", "app.toml", "--only", "api", "-e", "SECRET=do-not-write-this", "-e", "OTHER=a${b")
    pw.ok("start", "app.toml")
    pw.ok("stop", "off")
    with open(os.path.join(pw.home, "apps.json")) as file:
        text = file.read()
    assert '"api"' in text
    assert "do-not-write-this" not in text
    pw.ok("start", "--name", "tick", "--", "sleep", "3600")
    pw.ok("daemon", "stop", "-y")
    assert pw.refuses()
    assert ")\nRestoring what ran before: tick\nNot restored: api " in pw.ok("daemon", "start").stderr
    states = wait_until(
        lambda: (
            found
            if "starting" not in (found := {app["name"]: app["state"] for app in pw.ps()["apps"]}).values()
            else None
        ),
        LONG,
        "the apps to be restored",
    )
    assert states["off"] == "stopped"
    assert states["tick"] == "running"


def test_what_a_boot_could_not_start_is_tried_again(pw: Pyworker) -> None:
    other = pw.another_port()
    pw.write("web.py", ASGI)
    pw.write("database.py", "import os\nassert os.path.exists('up'), 'no database'\nfrom web import app\n")
    pw.write("up", "")
    pw.write(
        "app.toml",
        f'[defaults]\nrestart.retry = "500ms"\n[apps.code]\ntarget = "database:app"\nbind = "127.0.0.1:{pw.port}"\n'
        f'[apps.port]\ntarget = "web:app"\nbind = "127.0.0.1:{other}"\n',
    )
    pw.ok("start", "app.toml")
    pw.ok("daemon", "stop", "-y")
    os.unlink(os.path.join(pw.folder, "up"))

    def are(state: str) -> bool:
        return {app["state"] for app in pw.ps()["apps"]} == {state}

    with socket.create_server(("127.0.0.1", other)):
        pw.ok("daemon", "start")
        wait_until(lambda: are("failed"), LONG, "both to fail")
    pw.write("up", "")
    wait_until(lambda: are("running"), LONG, "both to be tried again")
    assert {app["last_failure"] for app in pw.ps()["apps"]} == {None}


def test_what_did_not_start_is_run_by_no_daemon_again(pw: Pyworker) -> None:
    """A migration that had failed was run once more when the daemon was killed or upgraded; a boot runs it, once."""
    pw.write("app.toml", '[app]\nname = "once"\ncommand = ["sh", "-c", "echo >> ran; exit 3"]\nrestart = "never"\n')
    ran = Path(pw.folder, "ran")

    def replace_daemon() -> None:
        old = pw.role("daemon")
        kill(old)
        wait_until(lambda: pw.status().get("pid", old) != old, LONG, "another daemon")

    assert pw.run("start", "app.toml").returncode == 1
    failed = pw.app("once")
    replace_daemon()
    again = pw.app("once")
    assert [again[key] for key in ("state", "gen", "last_failure")] == ["failed", 1, failed["last_failure"]]
    pw.ok("daemon", "stop", "-y")
    pw.ok("daemon", "start")
    wait_until(lambda: pw.app("once")["state"] == "failed", LONG, "it to fail again")
    replace_daemon()
    assert (pw.app("once")["gen"], len(ran.read_text())) == (2, 2)
    assert pw.run("start", "once").returncode == 1
    assert len(ran.read_text()) == 3


def test_a_command_that_ignores_the_stop_signal_is_killed_with_its_group(pw: Pyworker) -> None:
    pw.write("stubborn.sh", "trap '' TERM\nsleep 3600 &\nwhile :; do wait; done\n")
    pw.write(
        "app.toml",
        '[app]\nname = "api"\ncommand = ["sh", "stubborn.sh"]\n[app.stop]\ndrain_timeout = "100ms"\nkill_timeout = "300ms"\n',
    )
    pw.ok("start", "app.toml")
    pid = pw.pids()[0]
    child = wait_until(psutil.Process(pid).children, LONG, "its child")[0].pid
    pw.ok("stop", "api")
    assert not alive(pid)
    wait_until(lambda: not alive(child), LONG, "the group to be gone")


@pytest.mark.parametrize("by", ["", "timeout 600 "])  # which gives it a process group of its own
def test_a_program_that_a_shell_runs_without_exec_is_sent_the_stop_signal_and_waited_for(pw: Pyworker, by: str) -> None:
    pw.write("run.sh", f"{by}sh serve.sh\necho over\n")
    pw.write("serve.sh", "trap 'sleep 0.2; echo finished > done; exit' TERM\n: > up\nwhile :; do sleep 0.05; done\n")
    pw.write("app.toml", '[app]\nname = "api"\ncommand = ["sh", "run.sh"]\n')
    for step in ("stop", "delete"):
        pw.ok("start", "app.toml")
        wait_until(Path(pw.folder, "up").exists, LONG)
        pw.ok(step, "api")
        Path(pw.folder, "done").unlink()
        Path(pw.folder, "up").unlink()


@pytest.mark.parametrize("orphan", [False, True])
@pytest.mark.parametrize("step", ["stop", "kill"])
def test_a_program_that_has_left_the_group_of_its_shell_is_killed_with_it(pw: Pyworker, step: str, orphan: bool) -> None:
    pw.write("run.sh", "timeout 600 sh serve.sh\necho over\n")
    pw.write("serve.sh", "trap '' TERM\necho $$ > pid.new; mv pid.new pid\nwhile :; do sleep 0.05; done\n")
    pw.write("app.toml", '[app]\nname = "api"\ncommand = ["sh", "run.sh"]\nstop.kill_timeout = "200ms"\n')
    pw.ok("start", "app.toml")
    wait_until(Path(pw.folder, "pid").exists, LONG)
    pid = int(Path(pw.folder, "pid").read_text())
    if orphan:  # the number of the shell, and so its session's, is then free when it ends
        kill(victim := pw.role("guardian"))
        wait_until(lambda: pw.status() and pw.role("guardian") not in (0, victim), LONG, "another guardian")
    if step == "stop":
        pw.ok("stop", "api")
    else:
        kill(pw.pids()[0])
    wait_until(lambda: not alive(pid), LONG, "it to be gone")


def test_a_worker_that_had_to_be_killed_is_told_from_one_that_left(pw: Pyworker) -> None:
    pw.api(
        ASGI.replace("await asyncio.sleep(1)", "while True: pass"),
        tables='[app.stop]\ndrain_timeout = "100ms"\nkill_timeout = "100ms"',
    )
    pw.ok("start", "app.toml")
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: [w for w in pw.app()["pool"] if w["in_flight"]], LONG, "the request to be in")
        done = pw.ok("stop", "api")
    assert done.stderr.count(" cancelled=1 killed\n") == 1, done.stderr
    said = [json.loads(line) for line in pw.ok("events", "api", "--json").stdout.splitlines()]
    ends = [event["data"] for event in said if event["type"] == "worker_stopped"]
    assert sorted((end["killed"], end["cancelled"]) for end in ends) == [(False, 0), (True, 1)]
    assert all(end["took_s"] > 0.1 for end in ends if end["killed"])  # since it was told to leave


def test_who_began_it_is_in_the_events(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml", "-e", "TOKEN=s3cret")
    for command in (
        ("reload", "api"), ("restart", "api.1"), ("stop", "api.2"), ("scale", "api=1"), ("restart", "api"), ("stop", "api"),
    ):  # fmt: skip
        pw.ok(*command)
    said = [json.loads(line) for line in pw.ok("events", "api", "--json").stdout.splitlines()]
    begun = [(event["type"], event["data"]["by"].split(": ")) for event in said if "by" in event["data"]]
    assert [(kind, command) for kind, (_, command) in begun] == [
        ("app_started", "pyworker start app.toml"), ("reload_started", "pyworker reload api"),
        ("worker_stopping", "pyworker stop api.2"), ("scaled", "pyworker scale api=1"), ("app_started", "pyworker restart api"),
        ("app_stopping", "pyworker stop api"),
    ]  # fmt: skip
    assert all(f"(uid {os.getuid()}), pid " in who for _, (who, _) in begun)
    assert [event["data"]["reason"].split(": ")[1:] for event in said if event["type"] == "worker_recycled"] == [["pyworker restart api.1"]]
    assert "s3cret" not in str(said)
    shown = " ".join(pw.ok("describe", "api").stdout.split())
    assert ": pyworker stop api" in shown


NEVER_ENDS = """
import threading, time
def forever():
    while True:
        time.sleep(1000)
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        threading.Thread(target=forever).start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["path"] == "/blocks":
        print("blocks", flush=True)
        forever()
"""


@pytest.mark.parametrize("blocks", [False, True], ids=["thread", "handler"])
def test_a_stop_says_what_has_kept_a_worker_from_ending(pw: Pyworker, blocks: bool) -> None:
    source = NEVER_ENDS.replace("threading.Thread(target=forever).start()", "pass") if blocks else NEVER_ENDS
    pw.api(source, workers=1, tables='[app.stop]\ndrain_timeout = "0.5s"\nkill_timeout = "3s"\n')
    pw.ok("start", "app.toml")
    with socket.create_connection(("127.0.0.1", pw.port)) as client:
        if blocks:
            client.sendall(b"GET /blocks HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_until(lambda: "blocks" in pw.ok("logs", "api").stdout, LONG, "the request")
        said = pw.ok("stop", "api").stderr
    line = 1 + source.splitlines().index("        time.sleep(1000)")
    where = f"{os.path.realpath(pw.folder)}/web.py:{line} in forever"
    assert f"worker 1 has not ended within stop.drain_timeout (0.5 s): it is in {where}" in said


def test_a_stop_says_that_somebody_has_stopped_a_worker_by_a_signal(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1, tables='[app.stop]\ndrain_timeout = "0.5s"\nkill_timeout = "0.5s"\n')
    pw.ok("start", "app.toml")
    (pid,) = pw.pids()
    os.kill(pid, signal.SIGSTOP)
    said = pw.ok("stop", "api").stderr
    assert f"worker 1 has not ended within stop.drain_timeout (0.5 s): it was stopped by a signal, and kill -CONT {pid} " in said


def test_the_stop_signal_of_the_config_is_the_one_that_arrives(pw: Pyworker) -> None:
    pw.write("polite.sh", "trap 'echo asked > asked; exit 0' INT\n: > up\nwhile :; do sleep 0.05; done\n")
    pw.write("app.toml", '[app]\nname = "api"\ncommand = ["bash", "polite.sh"]\n[app.stop]\nsignal = "INT"\n')
    pw.ok("start", "app.toml")
    wait_until(lambda: os.path.exists(os.path.join(pw.folder, "up")), LONG, "its trap")
    pw.ok("stop", "api")
    assert os.path.exists(os.path.join(pw.folder, "asked"))


def test_an_end_that_another_command_takes_back_is_not_waited_for(pw: Pyworker) -> None:
    goes = Path(pw.folder, "goes")
    for end in (("stop", "slow"), ("delete", "-y", "slow")):
        start_slow(pw)
        ending = pw.popen(*end)
        wait_until(lambda: pw.app("slow")["state"] == "stopping", LONG, "the stop to begin")
        starting = pw.popen("start", "slow")
        ending.communicate(timeout=LONG)
        assert ending.returncode == 1
        goes.touch()
        starting.communicate(timeout=LONG)
        assert starting.returncode == 0
        goes.unlink()
        wait_heeds(pw)
        later = pw.popen("stop", "slow")
        wait_until(lambda: pw.app("slow")["state"] == "stopping", LONG, "the stop to begin")
        goes.touch()
        later.communicate(timeout=LONG)
        assert later.returncode == 0
        assert pw.app("slow")["state"] == "stopped"  # and not deleted: it was started after that
        goes.unlink()


@pytest.mark.parametrize("again", ["start", "restart"])
def test_a_delete_that_another_command_takes_back_is_not_carried_out_by_a_stop_after_it(pw: Pyworker, again: str) -> None:
    start_slow(pw)
    pw.ok("delete", "-y", "slow", "--no-wait")
    pw.ok(again, "slow", "--no-wait")
    stopping = pw.popen("stop", "slow")
    wait_until(lambda: pw.app("slow")["state"] == "stopping", LONG, "the stop to begin")
    Path(pw.folder, "goes").touch()
    stopping.communicate(timeout=LONG)
    assert stopping.returncode == 0
    assert pw.app("slow")["state"] == "stopped"


@pytest.mark.parametrize("balance", ["round-robin", "least-connections"])
def test_a_stop_that_a_start_takes_back_has_shut_the_port_already(pw: Pyworker, balance: str) -> None:
    pw.api(ASGI, workers=1, top=f'balance = "{balance}"')
    pw.ok("start", "app.toml")
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        client.send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: pw.app()["in_flight"] == 1, LONG, "the request to be in")
        pw.ok("stop", "api", "--no-wait")
        wait_until(pw.refuses, LONG, "the port to be shut")
        starting = pw.popen("start", "api")
        wait_until(lambda: pw.app()["state"] == "starting" or starting.poll(), LONG, "the start to be taken")
        pw.write("unblock", "")
        err = starting.communicate(timeout=LONG)[1]
        assert starting.returncode == 0, err
    assert pw.get().startswith("one")


def test_a_worker_that_is_being_forked_when_its_app_is_stopped_ends_with_all_that_it_starts(pw: Pyworker) -> None:
    pw.make_failpoints()
    asked = pw.arm("template.fork", "sleep:0.5") + ".hit"
    starts = 'if message["type"] == "lifespan.startup":\n                open("child", "w").write(str(subprocess.Popen(["sleep", "3600"]).pid))\n'
    pw.api("import subprocess\n" + ASGI.replace("await send({", starts + "            await send({", 1), workers=1)
    starting = pw.popen("start", "app.toml")
    wait_until(lambda: os.path.exists(asked), LONG, "a worker to be asked for")
    pw.ok("stop", "api")
    starting.communicate(timeout=LONG)
    with open(os.path.join(pw.folder, "child")) as file:
        child = int(file.read())
    wait_until(lambda: not alive(child), LONG, "the end of its child")


def test_a_scale_that_a_stop_overtakes_is_answered(pw: Pyworker) -> None:
    slow = (
        "import asyncio, os\n"
        + ASGI.replace("async def app(", "async def serve(")
        + """

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while os.path.exists("wait"):
            await asyncio.sleep(0.02)
    await serve(scope, receive, send)
"""
    )
    pw.api(slow)
    pw.ok("start", "app.toml")
    pw.write("wait", "")
    scaling = pw.popen("scale", "api=3")
    wait_until(lambda: pw.app()["workers"]["want"] == 3, LONG, "the scale to begin")
    pw.ok("stop", "api", "--now")
    scaling.communicate(timeout=LONG)
    assert scaling.returncode == 1


@pytest.mark.parametrize("command", ["reload", "restart"])
def test_what_a_stop_of_the_daemon_overtakes_is_told_so(pw: Pyworker, command: str) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.write("web.py", WAITS + ASGI)
    overtaken = pw.popen(command, "api")
    wait_until(lambda: pw.app()["state"] == ("reloading" if command == "reload" else "starting"), LONG, "it to begin")
    pw.ok("daemon", "stop", "-y")
    err = overtaken.communicate(timeout=LONG)[1]
    assert overtaken.returncode == 1
    assert "it was stopped" in err


def test_a_reload_during_which_all_workers_are_taken_away_ends(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.write("web.py", "import os, time\nwhile os.path.exists('wait'):\n    time.sleep(0.02)\n" + ASGI)
    pw.write("wait", "")
    reloading = pw.popen("reload", "api")
    wait_until(lambda: pw.app()["state"] == "reloading", LONG, "the reload to begin")
    scaling = pw.popen("scale", "api=0")
    wait_until(lambda: pw.app()["workers"]["want"] == 0, LONG, "the scale to begin")
    os.unlink(os.path.join(pw.folder, "wait"))
    for command in (reloading, scaling):
        command.communicate(timeout=LONG)
        assert command.returncode == 0
    assert pw.app()["state"] == "stopped"


def test_a_refused_reload_leaves_the_number_of_workers_and_each_of_them(pw: Pyworker) -> None:
    pw.api(ASGI, workers=3)
    pw.ok("start", "app.toml")
    pw.ok("scale", "api=2")
    pw.wait_steady()  # the third may still be leaving
    before = pw.pids()
    pw.api("import nowhere_at_all\n" + ASGI, workers=1)
    assert pw.run("reload", "api").returncode == 1
    assert pw.pids() == before
    pw.api(ASGI, workers=1)
    pw.ok("reload", "api")
    assert pw.wait_steady()["workers"]["want"] == 1


def test_what_has_stopped_is_gone_and_its_home_can_be_unmounted(pw: Pyworker) -> None:
    for _ in range(5):  # the guardian's end was seen in about every second
        pw.ok("daemon", "start")
        guardian = os.pidfd_open(pw.role("guardian"))
        try:
            pw.ok("daemon", "stop", "-y")
            assert process.is_gone(guardian)
        finally:
            os.close(guardian)


def test_daemon_stop_is_asked_of_the_next_daemon_when_the_one_that_was_asked_dies_first(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    point = pw.arm("save.before_rename", "kill")
    pw.arm("daemon.restored", "sleep:3")  # of the next one; that the apps have ended was said meanwhile
    assert pw.ok("daemon", "stop", "-y", "--timeout", "60s").stderr.endswith("\nThe daemon has stopped.\n")
    assert os.path.exists(point + ".hit")
    assert pw.processes() == []
    assert pw.refuses()
    pw.ok("daemon", "start")
    pw.wait_steady()


@pytest.mark.parametrize("point", ["save.before_rename", "save.after_rename"])
def test_what_a_stop_has_decided_when_the_daemon_is_killed_over_it_holds_for_the_next_daemon_and_the_next_boot(
    pw: Pyworker, point: str
) -> None:
    pw.make_failpoints()
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    path = pw.arm(point, "kill")
    assert pw.run("stop", "api").returncode == 69
    assert os.path.exists(path + ".hit")
    wait_until(lambda: pw.app()["state"] == "stopped", LONG, "the stop to go on")
    with open(os.path.join(pw.home, "apps.json")) as file:
        assert [app["running"] for app in json.load(file)["apps"]] == [False]


def test_what_failed_and_was_stopped_stays_so_under_the_next_daemon(pw: Pyworker) -> None:
    pw.write("app.toml", """
[app]
name = "api"
command = ["false"]
""")
    assert pw.run("start", "app.toml").returncode == 1
    pw.ok("stop", "api")
    kill(pw.role("daemon"))
    wait_until(lambda: pw.run("ps").returncode == 0, LONG, "the next one")
    assert pw.app()["state"] == "stopped"
    pw.write("other.toml", '[app]\nname = "other"\ncommand = ["sleep", "1000"]\n')
    pw.ok("start", "other.toml")  # which writes apps.json
    with open(os.path.join(pw.home, "apps.json")) as file:
        assert {app["name"]: app["running"] for app in json.load(file)["apps"]} == {"api": False, "other": True}


def test_the_daemon_answers_a_shutdown_when_the_apps_have_ended(pw: Pyworker) -> None:
    """`daemon stop` says by it what it still waits for."""
    start_slow(pw)
    with Call(pw.home, {"type": "shutdown", "now": False}) as call:
        wait_until(lambda: pw.app("slow")["state"] == "stopping", LONG, "the stop to begin")
        refused = pw.run("reload", "slow").stderr
        pw.write("goes", "")
        *_, answer = call.answers(None, Deadline(LONG))
    assert isinstance(answer, Answer)
    assert answer.ok, answer.body
    wait_until(lambda: pw.processes() == [], LONG, "the rest to end")
    assert "pyworker daemon start" in refused


@pytest.mark.skipif(KERNEL < (6, 9), reason="this kernel has no signal for the group of a process that has ended")
@pytest.mark.parametrize(
    "thread", ["", "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()\n"]
)
def test_what_an_import_has_started_ends_with_the_workers_that_have_it(pw: Pyworker, thread: str) -> None:
    """With a thread each worker imports for itself, and the template is replaced by one that has not."""
    starts = "import subprocess\nwith open('helpers', 'a') as f: f.write(f\"{subprocess.Popen(['sleep', '1000']).pid}\\n\")\n"
    pw.api(starts + thread + ASGI)
    pw.ok("start", "app.toml")
    pw.ok("reload", "api")
    pw.ok("stop", "api")
    with open(os.path.join(pw.folder, "helpers")) as file:
        pids = [int(line) for line in file]
    assert len(pids) >= 2
    wait_until(lambda: not any(map(alive, pids)), what="the helpers to end")


def test_what_an_import_keeps_starting_again_is_not_started_again_by_a_template_that_each_worker_does_without(
    pw: Pyworker,
) -> None:
    """As a thread of multiprocessing's Pool does: when the helpers of the import are ended, it is there still, to start others."""
    pw.api(
        "import subprocess, sys, threading\n"
        "sys.setswitchinterval(1e-6)\n"
        "def keep():\n"
        "    while True: subprocess.run(['sh', '-c', 'echo $$ >> helpers; exec sleep 1000'])\n"
        "for _ in range(5): threading.Thread(target=keep, daemon=True).start()\n" + ASGI
    )
    pw.ok("start", "app.toml")

    def helpers() -> int:
        with open(os.path.join(pw.folder, "helpers")) as file:
            return sum(alive(int(line)) for line in file)

    wait_until(lambda: helpers() == 5 * pw.app()["workers"]["want"], LONG, "those of the workers, and no others")
    pw.ok("stop", "api")
    wait_until(lambda: not helpers(), what="the helpers to end")
