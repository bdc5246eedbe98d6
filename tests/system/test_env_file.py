"""An env_file that changes or vanishes after the start: what runs keeps what it began with, and who asks for more is told."""

from __future__ import annotations

import os

import pytest

from tests.support.control import ask
from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.wait import wait_until

APP = """
import os
def app(environ, start_response):
    start_response("200 OK", [])
    return [os.environ["GREETING"].encode()]
"""


@pytest.fixture
def greeting(pw: Pyworker) -> str:
    """Start an app that says what its env_file says; return the file's path."""
    pw.write(".env", "GREETING=hello\n")
    pw.api(APP, top='env_file = ".env"')
    pw.ok("start", "app.toml")
    assert pw.get() == "hello"
    return os.path.join(pw.folder, ".env")


@pytest.mark.parametrize(
    ("content", "cause"),
    [(None, "which does not exist"), ("no assignment\n", "whose line 1 is not NAME=value"), ("\0", "whose line 1 is not")],
    ids=["gone", "malformed", "zeros"],
)
def test_a_reload_with_an_env_file_that_cannot_be_used_does_not_happen(
    pw: Pyworker, greeting: str, content: str | None, cause: str
) -> None:
    pids = pw.pids()
    os.unlink(greeting)
    if content is not None:
        pw.write(".env", content)
    for command in ("reload", "restart"):
        done = pw.run(command, "api")
        assert done.returncode != 0
        assert "names .env" in done.stderr
        assert cause in done.stderr
    assert pw.pids() == pids
    assert pw.get() == "hello"
    pw.write(".env", "GREETING=again\n")
    pw.ok("reload", "api")
    assert pw.get().startswith("again")


@pytest.mark.parametrize("killed", ["template+worker", "daemon+worker", "guardian"])
def test_what_is_made_again_of_a_generation_has_the_values_that_it_began_with(
    pw: Pyworker, greeting: str, killed: str
) -> None:
    pids = pw.pids()
    os.unlink(greeting)
    for role in killed.split("+"):
        kill(pids[0] if role == "worker" else pw.role(role))
    wait_until(lambda: pw.status() != {}, LONG, "a daemon")
    pool = [w["pid"] for w in pw.wait_steady()["pool"]]
    assert (pids[0] in pool) == ("worker" not in killed)
    assert pids[1] in pool
    kill(pids[1])  # now each worker is one that was made after the file had gone
    pw.wait_steady()
    assert {pw.get() for _ in range(8)} == {"hello"}


def test_a_boot_without_the_env_file_says_which_one_it_misses_and_starts_once_it_is_there(pw: Pyworker, greeting: str) -> None:
    os.unlink(greeting)
    pw.ok("daemon", "stop", "-y")
    pw.ok("daemon", "start")
    assert pw.app()["state"] == "failed"
    assert "names .env, which does not exist" in pw.ok("describe", "api").stdout
    pw.write(".env", "GREETING=back\n")
    wait_until(lambda: pw.app()["state"] == "running", LONG, "the app")
    assert pw.get() == "back"


@pytest.mark.parametrize("file", [True, False], ids=["inherit_env", "without a file"])
def test_what_a_shell_gave_stays_where_a_change_comes_from_no_shell(pw: Pyworker, file: bool) -> None:
    pw.environ["XDG_RUNTIME_DIR"] = "/where/the/daemon/was/started"
    pw.ok("daemon", "start")
    del pw.environ["XDG_RUNTIME_DIR"]
    pw.environ["GREETING"] = "hello"
    pw.api(APP, top='inherit_env = "GREETING"')
    pw.ok("start", *(["app.toml"] if file else ["web:app", "--name", "api", "-b", f"127.0.0.1:{pw.port}"]))
    for what, names in (("reload", "selectors"), ("restart", "selectors"), ("stop", "selectors"), ("start", "names")):
        reply = ask(pw.home, {"type": what, names: ["api"], "wait": True}, LONG)  # as the dashboard asks
        assert reply
        assert reply["ok"], reply
        assert what == "stop" or pw.get() == "hello"
    reply = ask(pw.home, {"type": "diff", "selectors": ["api"]}, LONG)
    assert reply
    assert reply["body"]["same"], reply
    assert "XDG_RUNTIME_DIR" not in pw.ok("config", "env", "api").stdout


def test_a_start_that_starts_the_daemon_gives_what_that_brings_back_what_its_shell_has(pw: Pyworker) -> None:
    """It was told of its success, and the app went on as the boot had begun it: with nothing of a shell's."""
    pw.environ["GREETING"] = "hello"
    pw.api(APP, top='inherit_env = "GREETING"')
    pw.ok("start", "app.toml")
    pw.ok("daemon", "stop", "-y")
    pw.environ["GREETING"] = "hello again"
    pw.ok("start", "app.toml")
    assert pw.get() == "hello again"
    assert pw.app()["gen"] == 3


def test_a_value_of_e_that_what_runs_does_not_have_is_told(pw: Pyworker) -> None:
    pw.api(APP)
    pw.ok("start", "app.toml")
    assert "it runs with other values of -e" in pw.ok("start", "app.toml", "-e", "GREETING=a$b").stderr
    pw.ok("stop", "api")
    pw.ok("start", "app.toml", "-e", "GREETING=a$b")
    assert pw.get() == "a$b"
    assert "other values" not in pw.ok("start", "app.toml", "-e", "GREETING=a$b").stderr


def test_what_a_shell_filled_in_stays_where_a_change_comes_from_no_shell(pw: Pyworker) -> None:
    pw.ok("daemon", "start")
    pw.environ["HELLO"] = "hello"
    pw.api(APP, tables='[app.env]\nGREETING = "${HELLO:-nobody is there}"')
    pw.ok("start", "app.toml")
    for what in ("reload", "restart"):
        reply = ask(pw.home, {"type": what, "selectors": ["api"], "wait": True}, LONG)
        assert reply
        assert reply["ok"], reply
        assert pw.get() == "hello"
    del pw.environ["HELLO"]
    pw.ok("reload", "api")
    assert pw.get().startswith("nobody is there")
