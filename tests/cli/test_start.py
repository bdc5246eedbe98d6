from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyworker.cli import launch, render
from pyworker.cli.commands import start
from pyworker.cli.options import Settings
from tests.cli import results
from tests.support.cli import environment, run, run_on_terminal
from tests.support.fake_control import FakeControl, refuses, replies

PIPED = """\
starting api: shop.main:app, 2 workers, round-robin on 127.0.0.1:8000
api imported 0.40s
api.1 ready 0.61s pid=41210
api.2 ready 0.62s pid=41211
"""
SCREEN = """\
Starting api — shop.main:app, 2 workers, round-robin on 127.0.0.1:8000
  api.1  ✓ ready     0.61s    pid 41210
  api.2  ✓ ready     0.62s    pid 41211

api is running: 2/2 workers ready in 0.9s → http://127.0.0.1:8000
  pyworker logs -f api · pyworker ps · pyworker reload api
"""
FAILURE = """\
error: api did not start: importing shop.main failed

File "/srv/shop/shop/main.py", line 3, in <module>
    import redis
ModuleNotFoundError: No module named 'redis'

  = help: pip install redis
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "app.toml").write_text('[app]\nname = "api"\ntarget = "shop.main:app"\nworkers = 2\n')
    (tmp_path / "many.toml").write_text('[apps.web]\ntarget = "a:b"\n[apps.jobs]\ncommand = ["sleep", "9"]\n')
    (tmp_path / "server.py").write_text("")
    return str(tmp_path)


def test_in_a_pipe_there_is_one_line_a_change_and_the_result_on_stdout(home: str, folder: str) -> None:
    with FakeControl(home, {"start": results.start}) as daemon:
        found = run("start", home=home, cwd=folder, MY_VARIABLE="here")
    assert found == (0, "api running 2/2 0.9s http://127.0.0.1:8000\n", PIPED)
    (request,) = daemon.requests
    assert request.file == f"{folder}/app.toml"
    assert (request.cwd, request.wait, request.shell_env["MY_VARIABLE"]) == (folder, True, "here")


def test_on_a_terminal_rows_are_rewritten_in_place(home: str, folder: str) -> None:
    with FakeControl(home, {"start": results.start}):
        found = run_on_terminal("start", "app.toml", home=home, cwd=folder)
    assert (found.code, found.screen.text) == (0, SCREEN)
    assert "\x1b[?" not in found.raw


def test_rows_never_wrap_and_never_fill_more_than_the_screen(home: str, folder: str) -> None:
    def many(_request: Any) -> Any:
        from tests.support.fake_control import event

        yield event("api", None, "app_started", generation=1, workers=30, scheduled=False, listen=[])
        for slot in range(1, 31):
            yield event("api", slot, "worker_exited", generation=1, pid=9, code=1, signal=None, after_s=1.0,
                        reason="ModuleNotFoundError: " + "long " * 30, traceback="", hint="")  # fmt: skip
        yield results.reply("failed", ok=False, reason="no")

    with FakeControl(home, {"start": many}):
        found = run_on_terminal("start", home=home, cwd=folder, columns=50, rows=15)
    rows = [line for line in found.screen.lines if line.startswith("  api.")]
    assert len(rows) == 10
    assert all(len(row) < 50 for row in rows)
    assert "  … 20 more · 0 of 30 ready" in found.screen.text


def test_ci_and_dumb_terminals_get_lines_instead_of_animation(home: str, folder: str) -> None:
    with FakeControl(home, {"start": results.start}):
        for env in ({"CI": "1"}, {"TERM": "dumb"}):
            found = run_on_terminal("start", home=home, cwd=folder, **env)
            assert "\x1b[1A" not in found.raw
            assert "api.1 ready 0.61s pid=41210\n" in found.screen.text


def test_json_is_one_object_a_line(home: str, folder: str) -> None:
    with FakeControl(home, {"start": results.start}):
        found = run("start", "--json", home=home, cwd=folder)
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert (found.code, found.err) == (0, "")
    assert all(line["v"] == 1 for line in lines)
    ready = next(line for line in lines if line["type"] == "worker_ready")
    assert {k: ready[k] for k in ("app", "worker", "pid", "gen", "took_s")} == {
        "app": "api", "worker": 1, "pid": 41210, "gen": 1, "took_s": 0.61,
    }  # fmt: skip
    last = lines[-1]
    assert (last["type"], last["ok"], last["workers"]) == ("result", True, {"want": 2, "ready": 2})


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_failure_shows_the_cause_once_and_the_next_step_last(home: str, folder: str, on_terminal: bool) -> None:
    with FakeControl(home, {"start": results.start_fails}):
        if on_terminal:
            shown = run_on_terminal("start", home=home, cwd=folder)
            code, text = shown.code, shown.screen.text
            assert "  api.1  ✗ failed" in text
        else:
            code, out, text = run("start", home=home, cwd=folder)
            assert out == ""
    assert code == 1
    assert text.endswith(FAILURE)
    assert text.count("ModuleNotFoundError") == 1


def test_an_app_that_runs_but_is_not_well_is_no_success(home: str, folder: str) -> None:
    why = "api.1 fails its health check: GET /healthz answered 404, expected 2xx"
    with FakeControl(home, {"start": lambda _: [results.reply("unhealthy", ok=False, reason=why)]}):
        found = run("start", home=home, cwd=folder)
    said = f"error: api runs, but {why}\n  = help: pyworker logs api   shows what it printed\n"
    assert found == (1, "", said)


def test_what_runs_already_is_no_error(home: str, folder: str) -> None:
    with FakeControl(home, {"start": lambda _: [results.reply("already_running")]}):
        found = run("start", home=home, cwd=folder)
    assert (found.code, found.out) == (0, "api running already 2/2 http://127.0.0.1:8000\n")
    assert "pyworker reload api applies" in found.err


def test_a_refusal_keeps_its_exit_code_message_and_hint(home: str, folder: str) -> None:
    message = "cannot listen on 127.0.0.1:8000: already in use\n  by gunicorn (pid 38120, user deploy)"
    with FakeControl(home, {"start": refuses("port_in_use", 1, message, hint="stop it (kill 38120)")}):
        found = run("start", home=home, cwd=folder)
        as_json = run("start", "--json", home=home, cwd=folder)
    assert found == (1, "", f"error: {message}\n  = help: stop it (kill 38120)\n")
    assert json.loads(as_json.err)["error"]["code"] == "port_in_use"


def test_a_wrong_file_starts_nothing_not_even_the_daemon(home: str, folder: str) -> None:
    Path(folder, "app.toml").write_text('[app]\ntarget = "a:b"\nworker = 4\n')
    found = run("start", home=home, cwd=folder)
    as_json = run("start", "--json", home=home, cwd=folder)
    assert (found.code, found.out) == (78, "")
    assert "did you mean `workers`?" in found.err
    error = json.loads(as_json.err)["error"]
    assert (error["exit"], error["where"]["line"], error["where"]["key"]) == (78, 3, "app.worker")
    assert not Path(home).exists()


def test_options_and_words_become_an_app_without_a_file(home: str, folder: str) -> None:
    with FakeControl(home, {"start": results.start}) as daemon:
        run("start", "shop.main:app", "-w", "4", "-b", ":8000", "-b", "unix:/tmp/x.sock", "-e", "A=1", "-e", "HOME",
            "--name", "api", "--env-file", "my.env", home=home, cwd=folder)  # fmt: skip
        run("start", "server.py", "-w", "auto", "--", "--port", "9000", home=home, cwd=folder)
        run("start", "--name", "tick", "--", "sh", "-c", "echo -- $1", "--json", home=home, cwd=folder)
    target, script, command = (request.inline for request in daemon.requests)
    assert target == {
        "name": "api", "target": "shop.main:app", "workers": 4, "bind": [":8000", "unix:/tmp/x.sock"], "cwd": folder,
        "inherit_env": ["*"], "env": {"A": "1", "HOME": str(Path(home).parent)}, "env_file": [f"{folder}/my.env"],
    }  # fmt: skip
    assert (script["script"], script["args"]) == (f"{folder}/server.py", ["--port", "9000"])
    assert script["workers"] == "auto"
    assert (command["name"], command["command"]) == ("tick", ["sh", "-c", "echo -- $1", "--json"])


def make_environment(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text("")
    return folder


def test_an_app_without_a_file_has_the_environment_that_is_activated_in_the_shell(home: str, folder: str, tmp_path: Path) -> None:
    venv, conda = make_environment(tmp_path / "venv"), make_environment(tmp_path / "conda")
    with FakeControl(home, {"start": results.start}) as daemon:

        def start(*words: str, **env: Path) -> str | None:
            run("start", *words, home=home, cwd=folder, **{name: str(path) for name, path in env.items()})
            request = daemon.requests[-1]
            python: str | None = (request.inline or request.overrides).get("python")
            return python

        assert start("server.py", VIRTUAL_ENV=venv, CONDA_PREFIX=conda) == str(venv)
        assert start("--name", "tick", "--", "python", CONDA_PREFIX=conda) == str(conda)
        assert start("server.py", "--python", "/usr/bin/python3", VIRTUAL_ENV=venv) == "/usr/bin/python3"
        assert start("server.py", VIRTUAL_ENV=tmp_path / "removed") is None
        assert start("app.toml", VIRTUAL_ENV=venv) is None  # a file says what it needs
        make_environment(Path(folder, ".venv"))
        assert start("server.py", VIRTUAL_ENV=venv) is None  # its own is taken


def test_an_app_that_lacks_a_module_is_told_of_the_environment_that_is_activated(home: str, folder: str, tmp_path: Path) -> None:
    venv = make_environment(tmp_path / "venv")
    for python, told in (("/opt/own", True), (venv, False), (f"{venv}2", True)):
        hint = f"install it: {python}/bin/python -m pip install redis"
        failed = results.reply("failed", ok=False, state="failed", reason="no redis", hint=hint)
        with FakeControl(home, {"start": lambda _, failed=failed: [failed]}):
            found = run("start", home=home, cwd=folder, VIRTUAL_ENV=str(venv))
        assert found.err.endswith(f"  = help: {hint}\n")
        assert (f'set python = "{venv}"' in found.err) is told


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("poetry.lock", "", "poetry env info --path"),
        ("pyproject.toml", "[tool.poetry]\npackage-mode = false\n", "poetry env info --path"),
        ("Pipfile", "", "pipenv --venv"),
        ("pyproject.toml", "[tool.hatch.envs.default]\n", "hatch env find"),
    ],
)
def test_an_app_that_lacks_a_module_is_told_of_the_environment_that_its_project_keeps_elsewhere(
    home: str, folder: str, file: str, content: str, says: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "the api"
    elsewhere.mkdir()
    for place in (folder, elsewhere):
        Path(place, file).write_text(content)
    told_there = f"says: cd '{elsewhere}' && {says}"
    for python, cwd, told in (
        (sys.prefix, folder, f"says: {says}"), (sys.prefix, str(elsewhere), told_there), ("/opt/own", folder, ""), (sys.prefix, "/", ""),
    ):
        hint = f"install it: {python}/bin/python -m pip install redis"
        failed = results.reply("failed", ok=False, state="failed", reason="no redis", hint=hint, cwd=cwd)
        with FakeControl(home, {"start": lambda _, failed=failed: [failed]}):
            found = run("start", home=home, cwd=folder, VIRTUAL_ENV="", CONDA_PREFIX="")
        assert found.err.endswith(f"  = help: {hint}\n")
        assert told in found.err
        assert (says in found.err) is bool(told)


def test_in_a_folder_that_is_a_link_the_app_is_started_from_the_link(home: str, folder: str, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(folder)
    elsewhere = str(tmp_path.parent)  # a PWD that is not true
    with FakeControl(home, {"start": results.start}) as daemon:
        for words in ((), ("app.toml",), ("a:b",), ("server.py",), ("a:b", "--cwd", ".")):
            run("start", *words, home=home, cwd=str(link), PWD=str(link))
        run("start", home=home, cwd=str(link), PWD=elsewhere)
    found = [request.file or request.inline["cwd"] for request in daemon.requests]
    by_link, in_folder = f"{link}/app.toml", f"{folder}/app.toml"
    assert found == [by_link, by_link, str(link), str(link), str(link), in_folder]
    assert daemon.requests[3].inline["script"] == f"{link}/server.py"


@pytest.mark.parametrize("what", [("app.toml",), ("--name", "api", "--", "sleep", "9")])
def test_a_variable_given_with_e_is_a_value_and_no_template(home: str, folder: str, what: tuple[str, ...]) -> None:
    with FakeControl(home, {"start": results.start}) as daemon:
        found = run("start", "-e", "PASSWORD=a${b", *what, home=home, cwd=folder)
    assert found.code == 0
    request = daemon.requests[0]
    assert (request.inline or request.overrides)["env"] == {"PASSWORD": "a${b"}


def test_names_start_what_the_daemon_knows(home: str, folder: str) -> None:
    with FakeControl(home, {"start": results.start}) as daemon:
        run("start", "api", "w*", home=home, cwd=folder)
        run("start", "many.toml", "--only", "web", "-w", "3", home=home, cwd=folder)
    assert daemon.requests[0].names == ("api", "w*")
    assert (daemon.requests[1].only, daemon.requests[1].overrides) == (("web",), {"workers": 3})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nope.toml",), "there is no file nope.toml"),
        (("sever.py",), "did you mean server.py?"),
        (("many.toml", "-w", "4"), "name it with --only NAME"),
        (("app.toml", "--name", "x"), "--name is for an app without a file"),
        (("api", "-w", "4"), "options do not go with the names"),
        (("api", "-w", "4"), "= help: app.toml has it: pyworker start --only api"),
        (("server", "-w", "4"), "= help: server.py is here: pyworker start server:app"),
        (("./server",), "'./server' is no config file"),
        (("npm", "--", "start"), "= help: a program stands behind it, too: pyworker start -- npm start"),
        (("python app.py",), "= help: a command: pyworker start -- python app.py"),
        (("a:b", "-k", "gthread"), "= help: ASGI and WSGI are told apart"),
        (("a:b", "--max-requests", "100"), "= help: app.toml has it, in [app]: limits.max_requests = 1000"),
        (("../shop/main.py:app",), "= help: pyworker start --cwd ../shop/ main:app"),
        (("shop.wsgi",), "stands behind a colon, like shop.wsgi:application"),
        (("shop.wsgi", "-w", "4"), "stands behind a colon, like shop.wsgi:application"),
        (("a:b", "c:d"), "one app at a time"),
        (("no-such-server", "a:b"), "= help: pyworker start a:b"),
        (("a:b", "--", "--debug"), "= help: an app gets no arguments: pyworker start a:b"),
        (("sleep", "-w", "4"), "= help: a command stands behind --: pyworker start -- sleep"),
        (("--",), "there is no command after --"),
        (("a:b", "-w", "many"), "neither a whole number nor"),
        (("a:b", "-w", "9" * 5000), "neither a whole number nor"),
        (("a:b", "-e", "NOPE_NOT_SET"), "no such variable here"),
        (("a:b", "--wrokers", "4"), "did you mean `--workers`?"),
    ],
)
def test_a_wrong_command_line_says_what_and_starts_nothing(
    home: str, folder: str, args: tuple[str, ...], message: str
) -> None:
    found = run("start", *args, home=home, cwd=folder)
    assert found.code == 2
    assert message in found.err
    assert not Path(home).exists()


@pytest.mark.parametrize(
    "words",
    [("sh", "server.py"), ("sh", "a:b"), ("sleep", "60"), ("./server",), ("server",), ("server", "-w", "4"), ("python app.py",), ("a:b", "c:d"),
     ("../shop/main.py:app",), ("shop.wsgi",), ("many.toml", "--", "x"), ("npm", "--", "start"), ("--",)],
)
def test_what_run_was_given_is_not_to_be_given_to_a_daemon(home: str, folder: str, words: tuple[str, ...]) -> None:
    found = run("run", *words, home=home, cwd=folder)
    assert found.code == 2
    assert "pyworker run" in found.err or "run takes" in found.err
    assert "start takes" not in found.err
    assert "pyworker start" not in found.err


def test_in_a_folder_that_was_removed_it_says_so(home: str, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    start = ["sh", "-c", 'rmdir ../old && exec "$@"', "sh", sys.executable, "-m", "pyworker", "start", "shop.main:app"]
    found = subprocess.run(
        start, cwd=tmp_path / "old", env=environment(home), text=True, capture_output=True, timeout=60, check=False
    )
    assert (found.returncode, found.stderr) == (
        2, "error: the folder you are in was removed\n  = help: cd to one that is there\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "typed"),
    [("server.js", "node server.js"), ("./server.js", "node ./server.js"), ("run.sh", "./run.sh"), ("shop.jar", "java -jar shop.jar"), ("shop.pyz", "python3 shop.pyz")],
)
def test_a_program_is_told_from_a_name_and_how_it_is_started(
    home: str, folder: str, name: str, typed: str
) -> None:
    Path(folder, name).write_text("")
    found = run("start", name, home=home, cwd=folder)
    assert found.code == 2
    assert f"any program: pyworker start -- {typed}\n" in found.err


@pytest.mark.parametrize(
    ("typed", "verb"),
    [("start api", "start"), ("reload api", "start"), ("restart api", "start"), ("run api", "run"), ("run api --once", "run")]
    + [(typed, "start") for typed in ("scale api=2", "diff api", "describe api")],
)
def test_an_app_of_the_file_here_that_the_daemon_does_not_know_is_not_looked_for_in_another(
    home: str, folder: str, typed: str, verb: str
) -> None:
    unknown = refuses("no_such_app", 4, "no app matches 'api'", hint="another PYWORKER_HOME?")
    with FakeControl(home, dict.fromkeys(("start", "reload", "restart", "scale", "diff", "describe"), unknown)):
        found = run(*typed.split(), home=home, cwd=folder)
    assert found.err.splitlines()[1:] == [f"  = help: app.toml has it: pyworker {verb} --only api"]


def test_a_program_that_is_no_app_of_the_daemon_is_told_where_it_stands(home: str, folder: str) -> None:
    with FakeControl(home, {"start": refuses("no_such_app", 4, "no app matches 'sleep'", hint="did you mean sheep?")}):
        found = run("start", "sleep", "60", home=home, cwd=folder)
    assert found.err.splitlines()[1:] == ["  = help: a command stands behind --: pyworker start -- sleep 60", "  = help: did you mean sheep?"]


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (("sh", "server.py"), ["a command stands behind --: pyworker start -- sh server.py"]),
        (("sh", "shop:app"), ["a command stands behind --: pyworker start -- sh shop:app", "an app needs no server: pyworker start shop:app"]),
    ],
)
def test_a_command_without_its_dashes_is_told_where_they_stand(home: str, folder: str, words: tuple[str, ...], hints: list[str]) -> None:
    Path(folder, "server.py").write_text("")
    found = run("start", *words, home=home, cwd=folder)
    assert found.code == 2
    assert found.err.splitlines() == ["error: 'sh' is a program", *(f"  = help: {hint}" for hint in hints)]


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("ecosystem.config.js", "module.exports = {apps: []}", "it is a file of pm2: pyworker import ecosystem.config.js"),
        ("./apps.json", '{"apps": [{"script": "x.js"}]}', "it is a file of pm2: pyworker import ./apps.json"),
        ("supervisord.conf", "[program:x]\n", "it is a file of supervisor: pyworker import supervisord.conf"),
        ("gunicorn.conf.py", "workers = 2\n", "it is a file of gunicorn: pyworker import gunicorn.conf.py"),
        ("Procfile", "web: ./x\n", "it is a Procfile: pyworker import Procfile"),
        ("app.yaml", "app:\n  target: a:b\n", "a config file is TOML"),
        ("gunicorn_runner.py.sh", "", "any program: pyworker start -- ./gunicorn_runner.py.sh"),
        ("vite.js", "apps", "any program: pyworker start -- node vite.js"),
    ],
)
def test_a_file_of_another_process_manager_is_known_for_one(
    home: str, folder: str, name: str, content: str, hint: str
) -> None:
    Path(folder, name).write_text(content)
    found = run("start", name, home=home, cwd=folder)
    assert (found.code, found.out) == (2, "")
    assert f"  = help: {hint}" in found.err


def test_without_anything_to_start_it_says_what_start_takes(home: str, tmp_path: Path) -> None:
    found = run("start", home=home, cwd=str(tmp_path))
    assert found.code == 2
    assert "there is no app.toml in this folder" in found.err


def test_a_folder_that_python_runs_is_started_by_its_file(home: str, folder: str) -> None:
    Path(folder, "bot").mkdir()
    for what in ("MODULE:APP", "./bot/__main__.py"):
        found = run("start", "./bot", home=home, cwd=folder)
        assert found.code == 2
        assert f"there is no app.toml in ./bot\n  = help: pyworker start {what} needs no file" in found.err
        Path(folder, "bot", "__main__.py").touch()


def test_dry_run_checks_and_starts_nothing(home: str, folder: str) -> None:
    found = run("start", "-n", home=home, cwd=folder)
    assert found == (0, "would start api: shop.main:app, 2 workers, round-robin on 127.0.0.1:8000\n", "")
    one = run("start", "-n", "--name", "tick", "--", "date", home=home, cwd=folder)
    assert one.out == "would start tick: date, 1 worker\n"
    assert not Path(home).exists()


def test_dry_run_refuses_what_start_would_refuse_all_of_it_at_once(home: str, folder: str) -> None:
    Path(folder, "wrong.toml").write_text(
        '[apps.web]\ntarget = "a:b"\nlogs.file = "none/web.log"\n'
        '[apps.jobs]\ncommand = ["sleep", "9"]\ncwd = "gone"\n[apps.key]\ncommand = "sleep 9"\nenv.A = "${NOT_SET:?}"\n'
    )
    found = run("start", "-n", "wrong.toml", home=home, cwd=folder)
    assert (found.code, found.out) == (78, "")
    assert f"`logs.file` of app `web` is in {folder}/none, which is no folder" in found.err
    assert f"`cwd` of app `jobs` names {folder}/gone, which does not exist" in found.err
    assert "NOT_SET" in found.err
    assert "wrong.toml has 3 errors. Nothing was started." in found.err
    inline = run("start", "-n", "--cwd", "gone", "--name", "tick", "--", "date", home=home, cwd=folder)
    assert (inline.code, inline.out) == (78, "")
    assert f"`cwd` of app `tick` names {folder}/gone, which does not exist" in inline.err


def test_dry_run_says_what_runs_already(home: str, folder: str) -> None:
    apps = [{"name": "web", "state": "running"}, {"name": "jobs", "state": "stopped"}]
    with FakeControl(home, {"ps": replies({"apps": apps})}):
        found = run("start", "-n", "many.toml", home=home, cwd=folder)
        as_json = run("start", "-n", "many.toml", "--json", home=home, cwd=folder)
    assert found == (0, "web runs already\nwould start jobs: sleep 9, 1 worker\n", "")
    assert json.loads(as_json.out)["would_start"] == ["jobs"]


def test_a_call_in_the_place_of_an_app_is_told_how_a_factory_is_named(home: str, folder: str) -> None:
    found = run("start", "shop.main:create_app()", home=home, cwd=folder)
    assert (found.code, found.out) == (2, "")
    assert "  = help: a function that returns it: shop.main:create_app --factory\n" in found.err


def test_on_a_terminal_it_is_said_that_the_daemon_is_being_started_until_there_is_more_to_say(
    home: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ensure_daemon(_home: str, starting: Callable[[], None] = lambda: None) -> int:
        starting()
        return 0

    monkeypatch.setattr(launch, "ensure_daemon", ensure_daemon)
    for name in ("CI", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for tty, said in ((True, "\rStarting the pyworker daemon …\r\x1b[J"), (False, "")):
        monkeypatch.setattr(render, "look", lambda *_, tty=tty: render.Look(tty, False, False, 80))
        start._launch(Settings(False, False, False, None, False, None, home))
        assert capsys.readouterr().err == said
