"""diff, config and check --import against apps that really run."""

from __future__ import annotations

import json
import os
import pwd
import re
import threading
import tomllib
from typing import Any

import pytest

from tests.support.pyworker import LONG, Pyworker, open_to_all
from tests.support.wait import wait_until
from tests.template.test_launcher import PUBLIC, needs_public, needs_root

APP = """
import os
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": os.environ["LEVEL"].encode()})
"""


def write(pw: Pyworker, level: str, workers: int = 1) -> None:
    pw.write("web.py", APP)
    pw.write(".env", "API_KEY=first\n")
    pw.write(
        "app.toml",
        f'[apps.api]\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\nworkers = {workers}\nenv_file = ".env"\n'
        f'env.LEVEL = "{level}"\n[profiles.loud.apps.api.env]\nLEVEL = "loud"\n',
    )


def test_diff_says_what_a_reload_changes_until_it_has(pw: Pyworker) -> None:
    write(pw, "info")
    pw.ok("start")
    same = pw.ok("diff")
    assert "No difference" in same.stdout
    write(pw, "debug", workers=2)
    pw.write(".env", "API_KEY=second\n")
    changed = pw.run("diff", "api", "--json")
    assert changed.returncode == 1
    body = json.loads(changed.stdout)
    assert {(c["key"], c["apply"], c["new"]) for c in body["changes"]} == {
        ("workers", "live", 2),
        ("env.LEVEL", "reload", "debug"),
        ("env.API_KEY", "reload", "***"),
    }
    text = pw.run("diff").stdout
    assert "second" not in text
    assert "pyworker reload api" in text
    pw.ok("reload", "api")
    assert pw.ok("diff", "--json").returncode == 0
    assert pw.get().startswith("debug")


def test_diff_says_that_the_reload_of_a_command_without_a_port_has_a_gap(pw: Pyworker) -> None:
    pw.write("app.toml", '[apps.beat]\ncommand = "sleep 1000"\n')
    pw.ok("start")
    pw.write("app.toml", '[apps.beat]\ncommand = "sleep 2000"\nenv.A = "1"\n')
    text = pw.run("diff").stdout
    assert "pyworker reload beat   applies all of this: the old workers stop first" in text
    assert "restart" not in text
    pw.ok("reload", "beat")
    assert pw.app("beat")["target"] == "sleep 2000"
    assert "No difference" in pw.ok("diff").stdout


def test_diff_names_what_is_in_the_file_and_was_never_started(pw: Pyworker) -> None:
    file = pw.write("app.toml", '[apps.one]\ncommand = "sleep 1000"\n')
    pw.ok("start")
    assert json.loads(pw.ok("diff", "--json").stdout)["not_started"] == []
    pw.write("app.toml", '[apps.one]\ncommand = "sleep 1000"\n[apps.two]\ncommand = "sleep 1000"\n')
    assert json.loads(pw.ok("diff", "--json").stdout)["not_started"] == [{"app": "two", "file": file}]
    step = pw.ok("diff").stderr.rstrip().partition("has two, too, which was not started: pyworker ")[2]
    assert pw.ok("diff", "one").stderr == ""
    pw.ok(*step.split())
    assert pw.ok("diff").stderr == ""


def test_diff_with_a_mistake_in_the_file_shows_the_mistake(pw: Pyworker) -> None:
    write(pw, "info")
    pw.ok("start")
    pw.write("app.toml", "[apps.api]\ntarget = 1\n")
    wrong = pw.run("diff")
    assert wrong.returncode == 78
    assert "app.toml:2:10" in wrong.stderr


def test_what_has_come_into_the_file_or_left_it_is_told_the_next_step(pw: Pyworker) -> None:
    pw.write("app.toml", '[apps.old]\ncommand = "sleep 1000"\n')
    pw.ok("start")
    pw.write("app.toml", '[apps.new]\ncommand = "sleep 1000"\n')
    come, left, differs = pw.run("reload"), pw.run("reload", "old"), pw.run("diff")
    assert (come.returncode, left.returncode, differs.returncode) == (4, 78, 78)
    assert "= help: is it new in the file? pyworker start\n" in come.stderr
    assert "is it to go? pyworker delete old\n" in left.stderr
    assert "is it to go? pyworker delete old\n" in differs.stderr


def test_a_profile_stays_with_the_app_through_a_reload_and_a_new_daemon(pw: Pyworker) -> None:
    write(pw, "info")
    pw.ok("start", "--profile", "loud")
    assert pw.get() == "loud"
    pw.ok("reload", "api")
    assert pw.get() == "loud"
    pw.ok("daemon", "stop", "-y")
    pw.ok("daemon", "start")
    pw.wait_steady()
    assert pw.get() == "loud"
    table = tomllib.loads(pw.ok("config", "api").stdout)
    assert table["apps"]["api"]["env"] == {"LEVEL": "loud"}
    origin = pw.ok("config", "api", "--origin").stdout
    assert 'LEVEL = "loud"  # app.toml:8 (profile loud)' in origin
    env = pw.ok("config", "env", "api").stdout.splitlines()
    assert "API_KEY=***" in env
    assert "LEVEL=loud" in env


def test_a_start_of_what_runs_says_what_it_does_not_take_over(pw: Pyworker) -> None:
    write(pw, "info")
    pw.ok("start")
    assert "pyworker stop" not in pw.ok("start").stderr
    for option, what in ((("--profile", "loud"), "without a profile"), (("-w", "3"), "with other options")):
        again = pw.ok("start", *option)
        assert again.stdout.startswith("api running already 1/1")
        assert f"api: it runs {what}, and a reload keeps that; to change it: pyworker stop api" in again.stderr
    pw.ok("daemon", "stop", "-y")
    assert "api: it runs without a profile" in pw.ok("start", "--profile", "loud").stderr, "restored by the daemon that it started"
    pw.ok("stop", "api")
    pw.ok("start", "--profile", "loud")
    assert pw.get() == "loud"


def test_check_import_finds_what_a_start_would(pw: Pyworker) -> None:
    write(pw, "info")
    pw.environ["PYTHONWARNINGS"] = "always::ResourceWarning"
    fine = pw.ok("check", "--import")
    assert fine.stdout.startswith("app.toml is fine")
    assert "ResourceWarning" not in fine.stderr
    pw.write("web.py", "import no_such_module\n")
    failed = pw.run("check", "--import")
    assert failed.returncode == 1
    assert "No module named 'no_such_module'" in failed.stderr
    assert "app.toml:2:10" in failed.stderr
    assert "pip install no_such_module" in failed.stderr
    pw.write("web.py", "import os\nos.environ['KEY_OF_NOBODY']\n")
    assert "set env.KEY_OF_NOBODY," in pw.run("check", "--import").stderr
    pw.write("web.py", "import os\nos._exit(7)\n")
    failed = pw.run("check", "--import")
    assert "ended the process (exit code 7)" in failed.stderr
    assert pw.ok("check").returncode == 0


def test_check_import_gives_the_import_no_terminal_and_does_not_wait_for_what_it_has_started(pw: Pyworker) -> None:
    """Root may check the app of another user."""
    write(pw, "info")
    end = os.path.join(pw.folder, "end")
    pw.write(
        "web.py",
        "import os, time\nprint(end='\\x1b]0;mine\\x07')\nreader, writer = os.pipe()\n"
        "if not os.fork():\n    os.setsid()\n    os.write(writer, b'.')\n"
        f"    while not os.path.exists({end!r}):\n        time.sleep(0.01)\n    os.unlink({end!r})\n    os._exit(0)\n"
        "os.read(reader, 1)\nfrom inner import app\n",
    )
    pw.write("inner.py", APP)
    found: list[Any] = []
    command = threading.Thread(target=lambda: found.append(pw.run("check", "--import")))
    command.start()
    try:
        wait_until(lambda: found, LONG, "the command to end before what the import has started")
    finally:
        pw.write("end", "")
        command.join()
    wait_until(lambda: not os.path.exists(end), LONG, "what the import has started to end")
    assert found[0].stdout.startswith("app.toml is fine: 1 app")
    assert "\\x1b]0;mine\\x07" in found[0].stderr
    assert "\x1b" not in found[0].stderr


@pytest.mark.parametrize("answer", ["[", "[]", '{"message": 1}', "[" * 100_000, ""])
def test_an_import_that_answers_in_the_place_of_ours_has_ended_the_process(pw: Pyworker, answer: str) -> None:
    write(pw, "info")
    pw.write("web.py", f"""
import os, sys
command_line = open("/proc/self/cmdline").read().split("\\0")
os.write(int(command_line[4]), {answer!r}.encode())
os._exit(7)
""")
    found = pw.run("check", "--import")
    assert found.returncode == 1
    assert "importing web:app ended the process (exit code 7)" in found.stderr


@needs_root
@needs_public
def test_check_import_gives_up_the_rights_of_root_as_a_start_does(pw: Pyworker) -> None:
    open_to_all(pw.folder)
    pw.write("web.py", "print(open('/proc/self/status').read())\nasync def app(scope, receive, send): ...\n")
    pw.write("app.toml", f'[app]\nname = "api"\ntarget = "web:app"\nuser = "nobody"\npython = "{PUBLIC}"\n')
    said = pw.ok("check", "--import").stderr
    nobody = pwd.getpwnam("nobody").pw_uid
    assert f"Uid:\t{nobody}\t{nobody}\t{nobody}\t{nobody}\n" in said
    assert "NoNewPrivs:\t1\n" in said


def test_check_import_gives_the_app_a_state_and_warns_where_its_client_is_missing(pw: Pyworker) -> None:
    write(pw, "info")
    pw.write("web.py", "from pyworker import state\nassert state.get('k') is None\nstate.set('k', 1)\nfrom inner import app\n")
    pw.write("inner.py", APP)
    assert pw.ok("check", "--import").stdout.startswith("app.toml is fine: 1 app")
    pw.write("redis.py", "raise ImportError\n")
    pw.write("web.py", APP)
    pw.write("app.toml", '[apps.api]\ntarget = "web:app"\nstate = "redis://127.0.0.1:1"\nenv.LEVEL = "info"\n')
    found = pw.ok("check", "--import")
    assert found.stdout.startswith("app.toml is fine but for 1 warning")
    assert "needs the Redis client, which is not in the app's environment\n  = help: install it: " in found.stderr


def test_of_an_app_that_was_stopped_before_a_boot_it_is_said_that_its_config_was_not_read(pw: Pyworker) -> None:
    pw.api(APP)
    pw.ok("start")
    pw.ok("stop", "api")
    pw.ok("daemon", "stop", "-y")
    pw.ok("daemon", "start")
    for words in (("diff", "api"), ("config", "api"), ("config", "env", "api")):
        found = pw.run(*words)
        assert (found.returncode, found.stdout) == (3, "")
        assert "error: api is stopped, and has not been started" in found.stderr
    assert (pw.app()["restarts"]["max"], pw.app()["restarts"]["window_s"]) == (None, None)
    assert "restarts    0 total\n" in pw.ok("describe", "api").stdout
    assert pw.app()["workers"] == {"want": None, "ready": 0, "total": 0}
    assert pw.ok("ps").stdout.splitlines()[1].split()[:3] == ["api", "stopped", "0/-"]


def test_of_an_app_that_a_boot_could_not_read_diff_says_what_is_wrong_with_it(pw: Pyworker) -> None:
    pw.api(APP, tables='[app.env]\nLEVEL = "info"')
    pw.ok("start")
    pw.ok("daemon", "stop", "-y")
    pw.write("app.toml", "workrs = 1\n")
    pw.ok("daemon", "start")
    assert pw.app()["state"] == "failed"
    for words in (("diff",), ("diff", "api")):
        found = pw.run(*words)
        assert (found.returncode, found.stdout) == (78, "")
        assert "unknown key `workrs`" in found.stderr
    found = pw.run("config", "api")
    assert found.returncode == 3
    assert "error: api has failed, and has not been started since the daemon was" in found.stderr


def test_scale_save_changes_the_one_number_in_the_file(pw: Pyworker) -> None:
    pw.write("web.py", APP)
    text = f'# my app\n[app]\nname = "api"\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\nworkers = 1  # small\nenv.LEVEL = "x"\n'
    path = pw.write("app.toml", text)
    os.chmod(path, 0o640)
    pw.ok("start")
    assert "app.toml still says workers = 1" in pw.ok("scale", "api=3").stderr
    assert re.search(r"^workers += 3 +# the command line$", pw.ok("config", "api", "--origin").stdout, re.MULTILINE)
    assert "still says" not in pw.ok("scale", "api=1").stderr
    done = pw.ok("scale", "api", "+1", "--save")
    assert "app.toml now says workers = 2" in done.stderr
    with open(path) as file:
        assert file.read() == text.replace("workers = 1  # small", "workers = 2  # small")
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert pw.ok("ps").stderr == "", "what runs is what is written"
    assert "No difference" in pw.ok("diff", "api").stdout
    pw.write("app.toml", text.replace("workers = 1", "workers = 2").replace('"x"', '"y"'))
    assert "was scaled" not in pw.run("diff", "api").stdout, "it has what the file says"
    pw.write("app.toml", text.replace("workers = 1", "workers = 3"))
    assert "app.toml changed on disk" in pw.ok("ps").stderr
    assert "was scaled to 2" in pw.run("diff", "api").stdout
    assert pw.run("diff", "api").returncode == 1
    assert "api: app.toml changed on disk" in pw.ok("start").stderr
    assert json.loads(pw.ok("start", "--json").stdout)["notes"]
    pw.ok("scale", "api=2", "--save")
    pw.ok("reload", "api")
    assert pw.wait_steady()["workers"]["want"] == 2


def test_scale_save_without_a_change_saves_the_number_that_is_wanted_whoever_of_them_runs_now(pw: Pyworker) -> None:
    text = '[apps.job]\ncommand = "true"\ncron = "@yearly"\n[apps.loop]\ncommand = "sleep 1000"\nworkers = 3\n'
    path = pw.write("app.toml", text)
    pw.ok("start")
    pw.ok("stop", "loop.3")
    assert pw.ok("scale", "job=+0", "loop=+0", "--save").stdout.startswith("job: 1 worker, ")
    with open(path, "rb") as file:
        written = tomllib.load(file)["apps"]
    assert [written[app]["workers"] for app in ("job", "loop")] == [1, 3]


def test_check_import_needs_no_folder_that_can_be_written(pw: Pyworker, monkeypatch: pytest.MonkeyPatch) -> None:
    write(pw, "info")
    none = "import tempfile\ndef gettempdir():\n    raise FileNotFoundError(2, 'No usable temporary directory found')\ntempfile.gettempdir = gettempdir\n"
    pw.write("without/sitecustomize.py", none)
    monkeypatch.setitem(pw.environ, "PYTHONPATH", os.path.join(pw.folder, "without"))
    assert pw.ok("check", "--import").stdout.startswith("app.toml is fine: 1 app")
