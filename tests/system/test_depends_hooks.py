"""depends_on, hooks, watch and cron with real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

import pytest

from tests.support.pyworker import LONG, Pyworker, alive
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES

APP = """
import os
VERSION = "one"
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": (VERSION + os.environ.get("HOOKED", "")).encode()})
"""
SAYS_READY = """
import os, socket, time
while not os.path.exists("go"):
    time.sleep(0.01)
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
"""


def text(pw: Pyworker, name: str) -> str:
    try:
        with open(os.path.join(pw.folder, name)) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def events(pw: Pyworker) -> list[dict[str, object]]:
    return [json.loads(line) for line in pw.ok("events", "-n", "200", "--json").stdout.splitlines()]


def two(pw: Pyworker, db: str) -> None:
    pw.write("web.py", APP)
    pw.write("db.py", SAYS_READY)
    pw.write(
        "app.toml",
        f'[apps.web]\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\ndepends_on = "db"\n[apps.db]\n{db}\n',
    )


def test_an_app_starts_when_what_it_depends_on_is_ready(pw: Pyworker) -> None:
    two(pw, 'command = ["python3", "db.py"]\nready = "notify"')
    starting = pw.popen("start")
    wait_until(lambda: pw.status() and "starting" in pw.run("ps", "db", "--json").stdout, LONG, "db to start")
    assert pw.app("web")["state"] == "starting"
    assert pw.app("web")["pool"] == []
    assert starting.poll() is None
    pw.write("go", "")
    assert starting.wait(LONG) == 0, starting.communicate()
    starting.communicate()
    order = [e["app"] for e in events(pw) if e["type"] == "app_running"]
    assert order == ["db", "web"]


def test_only_brings_what_it_depends_on(pw: Pyworker) -> None:
    two(pw, 'command = ["sleep", "1000"]')
    pw.ok("start", "app.toml", "--only", "web")
    assert {a["name"] for a in pw.ps()["apps"]} == {"web", "db"}


def test_options_are_for_the_app_that_is_named_not_for_what_it_depends_on(pw: Pyworker) -> None:
    """One that does not fit a command was refused, and a secret was in the environment of both."""
    two(pw, 'command = ["sh", "-c", "echo $HOOKED > given; exec sleep 1000"]')
    pw.ok("start", "app.toml", "--only", "web", "--interface", "asgi", "-e", "HOOKED=!")
    assert pw.get() == "one!"
    assert text(pw, "given") == "\n"


def test_a_dependency_that_fails_is_named_and_the_app_starts_once_it_is_mended(pw: Pyworker) -> None:
    two(pw, 'command = ["python3", "broken.py"]\nready = "notify"')
    pw.write("broken.py", "raise SystemExit('no disk')")
    failed = pw.run("start")
    assert failed.returncode == 1
    assert "waits for db, which failed\n" in failed.stderr  # its cause is said beside it
    assert failed.stderr.count("pyworker restart db") == 1
    assert "web: waits for db, which failed; mend it" in pw.ok("ps").stderr
    assert "web: waits for db, which failed: " in pw.ok("ps", "web").stderr
    assert "web was not scaled: waits for db, which failed" in pw.run("scale", "web=2").stderr
    pw.write("broken.py", SAYS_READY)
    pw.write("go", "")
    pw.ok("start", "db")
    pw.wait_steady("web")
    assert "waits for" not in pw.ok("ps").stderr
    assert pw.get() == "one"


def test_a_start_that_begins_the_mended_dependency_too_waits_for_it(pw: Pyworker) -> None:
    two(pw, 'command = ["python3", "db.py"]\nready = "notify"')
    pw.write("go", "")
    pw.write("db.py", "raise SystemExit('no disk')")
    assert "waits for db, which failed" in pw.run("start").stderr
    pw.write("db.py", SAYS_READY)
    pw.ok("start")
    assert pw.get() == "one"


def test_what_may_end_and_has_with_code_0_is_no_failure_and_what_depends_on_it_starts(pw: Pyworker) -> None:
    two(pw, 'command = ["true"]\nrestart = "never"')
    started = pw.ok("start")
    assert "db stopped 0/0" in started.stdout
    assert pw.get() == "one"
    assert pw.app("db")["last_failure"] is None


def test_what_has_ended_with_code_0_is_waited_for_when_it_is_started_once_more(pw: Pyworker) -> None:
    two(pw, 'command = ["true"]\nrestart = "never"')
    pw.ok("start")
    pw.ok("stop", "web")
    pw.ok("start")
    assert pw.get() == "one"


def test_what_runs_once_is_waited_for_until_it_has_ended_however_long_it_takes(pw: Pyworker) -> None:
    two(pw, 'command = ["sh", "-c", "while [ ! -e go ]; do sleep 0.05; done"]\nrestart = "never"')
    starting = pw.popen("start")
    wait_until(lambda: pw.status() and any(e["type"] == "worker_ready" for e in events(pw)), LONG, "db to count as ready")
    pw.write("go", "")
    assert starting.wait(LONG) == 0, starting.communicate()
    starting.communicate()
    order = [(e["app"], e["type"]) for e in events(pw)]
    assert order.index(("db", "worker_exited")) < order.index(("web", "template_starting"))


def test_a_dependency_that_ended_with_another_code_is_named(pw: Pyworker) -> None:
    two(pw, 'command = ["sh", "-c", "echo no disk; exit 3"]\nrestart = "never"')
    failed = pw.run("start")
    assert failed.returncode == 1
    # its last words may come too late for the sentence, on a busy machine; the code does not
    assert re.search(r"db did not start: .*code 3", failed.stderr)
    assert "waits for db, which failed" in failed.stderr


@pytest.mark.parametrize(("without", "step"), [("scale db=0", "scale db=1"), ("stop db.1", "start db")])
def test_a_dependency_without_workers_is_named_and_the_app_starts_once_it_has_one(pw: Pyworker, without: str, step: str) -> None:
    two(pw, 'command = ["python3", "db.py"]\nready = "notify"')
    pw.write("go", "")
    pw.ok("start")
    pw.ok(*without.split())
    failed = pw.run("restart", "web", timeout=LONG)
    assert failed.returncode == 1
    assert "waits for db, which has no workers\n" in failed.stderr
    assert f"pyworker {step}; web starts by itself then" in failed.stderr
    pw.ok(*step.split())
    pw.wait_steady("web")
    assert pw.get() == "one"


def test_who_waits_for_one_that_loses_its_workers_is_told(pw: Pyworker) -> None:
    two(pw, 'command = ["python3", "db.py"]\nready = "notify"')
    starting = pw.popen("start")
    wait_until(lambda: pw.status() and "starting" in pw.run("ps", "db", "--json").stdout, LONG, "db to start")
    pw.ok("scale", "db=0")
    assert "web did not start: waits for db, which has no workers" in starting.communicate(timeout=LONG)[1]


def hooked(pw: Pyworker, hooks: str) -> None:
    pw.api(APP, workers=1, tables=f"[app.hooks]\n{hooks}")


def test_pre_start_runs_before_a_start_and_a_failure_starts_nothing(pw: Pyworker) -> None:
    pw.write(
        "check.sh", 'echo "$PYWORKER_HOOK $PYWORKER_GENERATION" >> ran\necho "the schema is old"\nexit $(cat code)\n'
    )
    pw.write("code", "3")
    hooked(pw, 'pre_start = "sh check.sh"')
    failed = pw.run("start")
    assert failed.returncode == 1
    assert "hooks.pre_start failed: sh: exit code 3: the schema is old" in failed.stderr
    assert failed.stderr.count("the schema is old") == 1
    notes = pw.run("ps")
    assert "the schema is old" in notes.stdout + notes.stderr
    assert "pyworker describe api" in notes.stdout + notes.stderr  # logs -p has nothing of a hook
    described = pw.run("describe", "api").stdout
    assert "the schema is old" in described
    assert "logs -p" not in described
    assert pw.refuses()
    pw.write("code", "0")
    pw.ok("start")
    assert pw.get() == "one"
    pw.write("code", "1")
    pw.write("web.py", APP.replace("one", "two"))
    refused = pw.run("reload", "api")
    assert refused.returncode == 1
    assert "hooks.pre_start failed" in refused.stderr
    assert pw.get() == "one"
    pw.write("code", "0")
    pw.ok("reload", "api")
    assert pw.get().startswith("two")
    assert [line.split()[0] for line in text(pw, "ran").splitlines()] == ["pre_start"] * 4


def test_a_module_that_a_pre_start_misses_is_to_be_installed(pw: Pyworker) -> None:
    pw.write("migrate.py", "import nowhere_else\n")
    hooked(pw, f'pre_start = "{sys.executable} migrate.py"')
    failed = pw.run("start")
    assert "ModuleNotFoundError: No module named 'nowhere_else'" in failed.stderr
    assert f"install it: {sys.executable} -m pip install nowhere_else" in failed.stderr
    assert f"try it in {os.path.realpath(pw.folder)}: {sys.executable} migrate.py" in failed.stderr


def test_of_a_pre_start_that_prints_much_the_last_whole_lines_are_shown(pw: Pyworker) -> None:
    pw.write("migrate.py", "for n in range(20_000): print('migration', n, 'of the price list')\nraise SystemExit('it is locked')\n")
    hooked(pw, f'pre_start = "{sys.executable} migrate.py"')
    failed = pw.run("start")
    assert "hooks.pre_start failed: " in failed.stderr
    shown = [line for line in failed.stderr.splitlines() if "of the price list" in line]
    assert shown
    assert [line for line in shown if not line.startswith("migration ")] == []
    assert "it is locked" in failed.stderr


def test_why_a_pre_start_failed_is_said_without_the_one_long_line_before_it(pw: Pyworker) -> None:
    """A progress bar, say, whose states are parted by no end of a line."""
    pw.write("migrate.py", "print('12% ' * 3000, flush=True)\nraise SystemExit('it is locked')\n")
    hooked(pw, f'pre_start = "{sys.executable} migrate.py"')
    assert "exit code 1: it is locked\n" in pw.run("start").stderr


def test_a_restart_whose_pre_start_fails_stops_nobody(pw: Pyworker) -> None:
    pw.write("code", "0")
    hooked(pw, 'pre_start = "sh -c \'exit $(cat code)\'"')
    pw.ok("start")
    before = pw.pids()
    pw.write("code", "3")
    refused = pw.run("restart", "api")
    assert refused.returncode == 1
    assert "api was not restarted, gen 1 goes on: hooks.pre_start failed: sh: exit code 3" in refused.stderr
    assert f"try it in {os.path.realpath(pw.folder)}: sh -c 'exit $(cat code)'" in refused.stderr  # as a shell takes it
    assert (pw.pids(), pw.get()) == (before, "one")
    pw.write("code", "0")
    pw.ok("restart", "api")
    assert (pw.app()["gen"], pw.pids() == before) == (3, False)


def hang_in_pre_start(pw: Pyworker, command: str) -> None:
    """Start an app, and have a command wait for its pre_start for as long as there is a file `hang`."""
    pw.write("check.sh", 'echo $$ >> "ran"\nif [ -e hang ]; then sleep 1000; fi\n')
    hooked(pw, 'pre_start = "sh check.sh"')
    pw.ok("start")
    pw.write("hang", "")
    pw.ok(command, "api", "--no-wait")
    wait_until(lambda: len(text(pw, "ran").splitlines()) == 2, LONG, "the second one")


def test_a_restart_that_waits_for_its_pre_start_is_over_with_a_stop(pw: Pyworker) -> None:
    hang_in_pre_start(pw, "restart")
    assert pw.get() == "one"
    os.kill(pw.role("daemon"), signal.SIGKILL)
    wait_until(lambda: len(text(pw, "ran").splitlines()) == 3, LONG, "the next daemon's hook")
    assert pw.get() == "one"
    pw.ok("stop", "api")
    assert pw.app()["state"] == "stopped"
    os.unlink(os.path.join(pw.folder, "hang"))
    pw.ok("start", "api")
    assert pw.get() == "one"


def test_a_pre_start_that_fails_leaves_a_command_without_bind_alone_too(pw: Pyworker) -> None:
    pw.write("code", "0")
    pw.write(
        "app.toml",
        '[app]\nname = "api"\ncommand = "sleep 1000"\n[app.hooks]\npre_start = ["sh", "-c", "exit $(cat code)"]\n',
    )
    pw.ok("start")
    before = pw.pids()
    pw.write("code", "1")
    assert "hooks.pre_start failed" in pw.run("reload", "api").stderr
    assert pw.pids() == before
    pw.write("code", "0")
    assert "the old workers stop before the new ones start" in pw.ok("reload", "api").stderr
    assert pw.pids() != before


def test_a_pre_start_that_hangs_ends_with_the_stop(pw: Pyworker) -> None:
    hooked(pw, "pre_start = \"sh -c 'touch ran; sleep 1000'\"")
    starting = pw.popen("start")
    wait_until(lambda: os.path.exists(os.path.join(pw.folder, "ran")), LONG, "the hook to run")
    pw.ok("stop", "api")
    assert starting.wait(LONG) == 1
    starting.communicate()
    wait_until(lambda: not any("sleep 1000" in title for title in pw.titles().values()), LONG, "the hook to be killed")


def test_what_a_start_waits_for_is_said_when_its_pre_start_takes_long(pw: Pyworker) -> None:
    pw.write("migrate.sh", "while [ ! -e go ]; do sleep 0.1; done\n")
    hooked(pw, 'pre_start = "sh migrate.sh"')
    starting = pw.popen("start")
    wait_until(lambda: pw.run("events").stdout.count("hooks.pre_start runs: sh migrate.sh") == 1, LONG, "the note")
    pw.write("go", "")
    assert "api: hooks.pre_start runs: sh migrate.sh" in starting.communicate(timeout=LONG)[1]
    assert pw.app()["notes"] == []


def test_the_next_daemon_does_not_begin_a_pre_start_again_beside_itself(pw: Pyworker) -> None:
    hooked(pw, "pre_start = \"sh -c 'echo $$ >> ran; sleep 1000; true'\"")
    pw.ok("start", "app.toml", "--no-wait")
    first = int(wait_until(lambda: text(pw, "ran"), LONG, "the hook"))
    os.kill(pw.role("daemon"), signal.SIGKILL)
    wait_until(lambda: len(text(pw, "ran").splitlines()) == 2, LONG, "the next daemon's hook")
    wait_until(lambda: not alive(first), LONG, "the first daemon's hook to be killed")
    pw.ok("stop", "api")


def test_an_upgrade_does_not_begin_a_pre_start_again_beside_itself(pw: Pyworker) -> None:
    hooked(pw, "pre_start = \"sh -c 'touch ran; sleep 1000'\"")
    pw.ok("start", "app.toml", "--no-wait")
    wait_until(lambda: os.path.exists(os.path.join(pw.folder, "ran")), LONG, "the hook")
    done = pw.run("daemon", "upgrade", "--force")
    assert done.returncode == 75
    assert "hooks.pre_start of api is under way" in done.stderr
    pw.ok("stop", "api")


def test_post_reload_post_fork_and_on_event_run(pw: Pyworker) -> None:
    pw.write("hook.py", 'import os\ndef post_fork():\n    os.environ["HOOKED"] = " forked"\n')
    hooked(
        pw,
        'post_reload = "sh -c \'echo done >> reloaded\'"\non_event = "sh -c \'cat >> said\'"\npost_fork = "hook:post_fork"',
    )
    pw.ok("start")
    assert pw.get() == "one forked"
    pw.ok("reload", "api")
    wait_until(lambda: text(pw, "reloaded") == "done\n", LONG, "post_reload")
    wait_until(lambda: '"reload_done"' in text(pw, "said"), LONG, "on_event")
    said = [json.loads(line)["seq"] for line in text(pw, "said").split("\n")[:-1]]  # the last may be under way
    assert said == sorted(said)
    pw.ok("delete", "api", "-y")
    wait_until(lambda: '"app_deleted"' in text(pw, "said"), LONG, "the last event of all")


def test_a_post_fork_that_fails_is_a_failed_start(pw: Pyworker) -> None:
    pw.write("hook.py", "def post_fork():\n    raise RuntimeError('no licence')\n")
    hooked(pw, 'post_fork = "hook:post_fork"')
    failed = pw.run("start")
    assert failed.returncode == 1
    assert "hooks.post_fork: RuntimeError: no licence" in failed.stderr


@pytest.mark.parametrize(
    ("named", "why"),
    [("hook:nope", 'module "hook" has no attribute "nope"'), ("nohook:x", 'cannot import "nohook": there is no module nohook')],
)
def test_a_post_fork_that_is_not_there_is_not_taken_for_the_target(pw: Pyworker, named: str, why: str) -> None:
    pw.write("hook.py", "def post_fork():\n    pass\n")
    hooked(pw, f'post_fork = "{named}"')
    failed = pw.run("start")
    assert failed.returncode == 1
    assert f"hooks.post_fork: {why}" in failed.stderr


def test_a_hook_that_fails_at_an_event_is_a_note_and_no_circle(pw: Pyworker) -> None:
    hooked(pw, 'on_event = "false"')
    pw.ok("start")
    wait_until(lambda: any("hooks.on_event failed" in n for n in pw.app()["notes"]), LONG, "the note")
    assert len([n for n in pw.app()["notes"] if "hooks." in n]) == 1
    assert "hooks." not in pw.run("delete", "api").stderr, "of an app that is gone"


def test_an_event_that_waits_for_a_slow_hook_is_told_to_the_one_that_a_reload_has_put_in_its_place(pw: Pyworker) -> None:
    hooked(pw, 'on_event = "sh -c \'touch begun; while [ ! -e go ]; do sleep 0.05; done\'"')
    pw.ok("start")
    wait_until(lambda: os.path.exists(os.path.join(pw.folder, "begun")), LONG, "the slow one")
    hooked(pw, 'on_event = "sh -c \'cat >> said\'"')
    pw.ok("reload")
    pw.write("go", "")
    wait_until(lambda: '"reload_done"' in text(pw, "said"), LONG, "what waited")
    assert '"app_running"' in text(pw, "said")


def test_a_daemon_that_stops_leaves_no_hook_that_hangs(pw: Pyworker) -> None:
    hangs = "echo $$ > new; mv new pid; exec sleep 3600"
    pw.write("app.toml", f"[app]\nname = 'api'\ncommand = 'sleep 3600'\nhooks.on_event = ['sh', '-c', '{hangs}']\n")
    pw.ok("start")
    wait_until(lambda: text(pw, "pid"), LONG, "the hook")
    pw.ok("daemon", "stop", "-y")
    wait_until(lambda: not alive(int(text(pw, "pid"))), LONG, "its end")


def test_watch_reloads_when_a_file_changes_and_keeps_what_works(pw: Pyworker) -> None:
    pw.api(APP, workers=1, top="watch = true")
    pw.ok("start")
    pw.write("web.py", APP.replace("one", "two"))
    wait_until(lambda: pw.get() == "two", LONG, "the reload")
    pw.write("web.py", "import no_such_module\n")
    wait_until(lambda: any(e["type"] == "reload_refused" for e in events(pw)), LONG, "the refusal")
    assert pw.get() == "two"
    assert pw.app()["notes"] == ["not reloaded (web.py changed): ModuleNotFoundError: No module named 'no_such_module'"]
    pw.write("sub/__init__.py", "")
    pw.write("sub/name.py", 'NAME = "three"')
    pw.write("web.py", APP.replace('VERSION = "one"', "from sub.name import NAME as VERSION"))
    wait_until(lambda: pw.get() == "three", LONG, "the next reload")
    assert pw.app()["notes"] == []
    pw.write("sub/name.py", 'NAME = "four"')
    wait_until(lambda: pw.get() == "four", LONG, "a new folder to be watched")


def test_a_change_that_there_is_no_descriptor_for_is_said(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.api(APP, workers=1, top="watch = true")
    pw.ok("start")
    pw.arm("start.listening", "raise:EMFILE always")
    pw.write("web.py", APP.replace("one", "two"))
    why = f"changed): {TOO_MANY_OPEN_FILES}. raise the limit of open files"
    wait_until(lambda: any(why in note for note in pw.app()["notes"]), LONG, "the cause")


def test_a_job_is_scheduled_and_survives_a_new_daemon(pw: Pyworker) -> None:
    pw.write("app.toml", '[apps.job]\ncommand = "sh -c \'echo ran >> out\'"\ncron = "0 0 29 2 *"\n')
    done = pw.ok("start")
    assert re.search(r"job\s+scheduled", done.stdout + pw.ok("ps").stdout)
    assert "scheduled already" in pw.ok("start").stdout
    assert pw.app("job")["gen"] == 1
    assert re.search(r"runs +at 0 0 29 2 \*, next \w+ 20\d\d-02-29 00:00 \S+\n", pw.ok("describe", "job").stdout)
    pw.ok("wait", "job")
    assert pw.app("job")["pool"] == []
    job = pw.app("job")
    assert job["next_run_at"] is not None
    assert job["next_reload_at"] is None
    pw.ok("reload", "job")
    pw.ok("daemon", "stop", "-y")
    pw.ok("daemon", "start")
    wait_until(lambda: pw.app("job")["state"] == "scheduled", LONG, "the job to be scheduled again")
    assert text(pw, "out") == ""


def test_a_job_waits_for_what_it_depends_on(pw: Pyworker) -> None:
    pw.write("db.py", SAYS_READY)
    pw.write(
        "app.toml",
        '[apps.clean]\ncommand = "true"\ncron = "0 4 1 1 *"\ndepends_on = "db"\n'
        '[apps.db]\ncommand = ["python3", "db.py"]\nready = "notify"\n',
    )
    pw.ok("start", "--no-wait")
    assert pw.app("clean")["state"] == "starting"
    pw.write("go", "")
    wait_until(lambda: pw.app("clean")["state"] == "scheduled", LONG, "the job to be scheduled")


def test_a_job_whose_pre_start_fails_does_not_start_and_is_not_reloaded(pw: Pyworker) -> None:
    pw.write(
        "app.toml",
        '[app]\nname = "clean"\ncommand = "true"\ncron = "0 4 1 1 *"\n'
        '[app.hooks]\npre_start = ["sh", "-c", "exit $(cat code)"]\n',
    )
    pw.write("code", "3")
    failed = pw.run("start")
    assert failed.returncode == 1
    assert "hooks.pre_start failed: sh: exit code 3" in failed.stderr
    assert pw.app("clean")["state"] == "failed"
    pw.write("code", "0")
    pw.ok("start")
    before = pw.app("clean")["gen"]
    pw.write("code", "3")
    refused = pw.run("reload", "clean")
    assert refused.returncode == 1
    assert "hooks.pre_start failed: sh: exit code 3" in refused.stderr
    app = pw.app("clean")
    assert (app["state"], app["gen"]) == ("scheduled", before)


def test_a_reload_that_replaces_another_ends_its_pre_start(pw: Pyworker) -> None:
    hang_in_pre_start(pw, "reload")
    os.unlink(os.path.join(pw.folder, "hang"))
    pw.ok("reload", "api")
    first = int(text(pw, "ran").splitlines()[1])
    wait_until(lambda: not alive(first), LONG, "the first reload's hook to be killed")
