from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pyworker.cli.commands.ps import app_notes
from pyworker.cli.render import Look
from pyworker.protocol.events import PRE_START_FAILED
from tests.cli import documents
from tests.support.cli import environment, run, run_on_terminal
from tests.support.fake_control import FakeControl, refuses, replies

PIPED = """\
APP    STATE      WORKERS  CPU    MEM   REQ/S  RESTARTS  UPTIME  LISTENING-ON
api    running    4/4      38.2%  352M  1240   0         3d4h    http://127.0.0.1:8000
admin  reloading  2/2      4.1%   180M  12     0         6d1h    unix:/run/admin.sock
jobs   running    8/8      71.0%  1.1G  -      2         14h2m   -
hooks  degraded   1/2      0.4%   61M   3      5/5m      2h11m   http://0.0.0.0:8020
mail   failed     0/1      -      -     -      5/1m      -       -
"""
NOTES = """\
hooks backoff: try 3 of 10 in 4.2 s
mail failed: gave up after 5 restarts in 60 s: ModuleNotFoundError: No module named 'redis'   → pyworker logs -p mail
admin: app.toml changed on disk since it was started   → pyworker diff admin
"""
AT_100 = """\
APP    STATE        WORKERS    CPU     MEM  REQ/S  RESTARTS  UPTIME  LISTENING ON
api    ● running    4/4      38.2%  352 MB  1,240  0         3d 4h   http://127.0.0.1:8000
admin  ◐ reloading  2/2 +1    4.1%  180 MB     12  0         6d 1h   unix:/run/admin.sock
jobs   ● running    8/8      71.0%  1.1 GB      –  2         14h 2m  –
hooks  ▲ degraded   1/2       0.4%   61 MB      3  5 in 5m   2h 11m  http://0.0.0.0:8020
mail   ✖ failed     0/1          –       –      –  5 in 1m   –       –
"""
AT_60 = """\
APP    STATE        WORKERS  RESTARTS  LISTENING ON
api    ● running    4/4      0         http://127.0.0.1:8000
admin  ◐ reloading  2/2 +1   0         unix:/run/admin.sock
jobs   ● running    8/8      2         –
hooks  ▲ degraded   1/2      5 in 5m   http://0.0.0.0:8020
mail   ✖ failed     0/1      5 in 1m   –
"""
ASCII = """\
APP  STATE      WORKERS    CPU     MEM  REQ/S  RESTARTS  UPTIME  LISTENING ON
api  * running  4/4      38.2%  352 MB  1,240  0         3d 4h   http://127.0.0.1:8000
"""


def fake(home: str, document: dict[str, Any] | None = None) -> FakeControl:
    return FakeControl(home, {"ps": replies(document or documents.ps())})


def test_in_a_pipe_cells_have_no_blanks_and_notes_go_to_stderr(home: str) -> None:
    with fake(home):
        found = run("ps", home=home)
    assert (found.code, found.out, found.err) == (0, PIPED, NOTES)


def test_a_changed_file_of_many_apps_is_said_once(home: str) -> None:
    document = documents.ps()
    for app in document["apps"]:
        app["config"] = {"file": "/srv/shop/app.toml", "changed": True, "changed_files": ["/srv/shop/app.toml"]}
    with fake(home, document):
        found = run("ps", home=home)
    said = [line for line in found.err.splitlines() if "changed on disk" in line]
    assert said == ["api, admin, jobs and 2 more: app.toml changed on disk since they were started   → pyworker diff"]


@pytest.mark.parametrize(("columns", "table"), [(200, AT_100), (100, AT_100), (60, AT_60)])
def test_on_a_terminal_the_table_fits_and_has_glyphs(home: str, columns: int, table: str) -> None:
    with fake(home):
        found = run_on_terminal("ps", home=home, columns=columns)
    notes = (note if len(note) <= columns else note.replace("   → ", "\n  → ") for note in NOTES.splitlines())
    assert found.screen.text == "\n".join([table, *notes, ""])
    assert "\x1b[32m● running" in found.raw


def test_no_color_and_dumb_terminals_get_no_escapes(home: str) -> None:
    with fake(home):
        for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            assert "\x1b" not in run_on_terminal("ps", home=home, **env).raw
        assert "\x1b" in run("ps", "--color", "always", home=home).out


def test_a_c_locale_gets_ascii(home: str) -> None:
    document = {**documents.ps(), "apps": documents.ps()["apps"][:1]}
    with fake(home, document):
        assert run_on_terminal("ps", home=home, LC_ALL="C").screen.text == ASCII
        assert run("ps", home=home, PYTHONIOENCODING="ascii").code == 0


def test_json_is_the_daemons_document_unchanged(home: str) -> None:
    with fake(home):
        found = run("ps", "--json", home=home)
        before = run("--json", "ps", home=home)
    assert json.loads(found.out) == documents.ps()
    assert (found.err, before.out) == ("", found.out)


def test_quiet_prints_names(home: str) -> None:
    with fake(home) as daemon:
        assert run("ps", "-q", home=home).out == "api\nadmin\njobs\nhooks\nmail\n"
        assert run("ps", "-qw", "api", home=home).out.startswith("api.1\napi.2\n")
        assert daemon.requests[1].selectors == ("api",)


def test_workers_have_a_row_each(home: str) -> None:
    with fake(home):
        piped = run("ps", "-w", home=home).out.splitlines()
        wide = run_on_terminal("ps", "-w", home=home, columns=100).screen.text.splitlines()
    assert piped[0].split() == [
        "WORKER", "PID", "STATE", "GEN", "CPU", "MEM", "REQ/S", "OPEN", "RESTARTS", "UPTIME", "LAST-EXIT",
    ]  # fmt: skip
    assert len(piped) == 8
    assert all(len(line.split()) == 11 for line in piped)
    assert wide[1] == "api.1    41210  ● ready    7  9.8%  88 MB    311     4         0  3d 4h   –"


@pytest.mark.parametrize(
    ("key", "apps"),
    [
        ("cpu", "jobs api admin hooks mail"), ("mem", "jobs api admin hooks mail"), ("req/s", "api admin hooks jobs mail"),
        ("restarts", "hooks mail jobs api admin"), ("uptime", "admin api jobs hooks mail"),
    ],
)  # fmt: skip
def test_the_largest_may_come_first(home: str, key: str, apps: str) -> None:
    with fake(home):
        assert run("ps", "-q", "--sort", key, home=home).out.split() == apps.split()
        assert run("ps", "-w", "--sort", key, home=home).code == 0


def test_a_column_goes_before_the_port_of_an_address_is_cut(home: str) -> None:
    apps = [documents.app(name, listen=["http://127.0.0.1:18000"]) for name in ("api", "clearsessions")]
    with fake(home, {**documents.ps(), "apps": apps}):
        shown = run_on_terminal("ps", home=home, columns=80).screen.text
    assert shown.count("http://127.0.0.1:18000\n") == 2


def test_check_says_whether_all_run(home: str) -> None:
    running = {**documents.ps(), "apps": documents.ps()["apps"][:3]}
    with fake(home) as daemon:
        assert run("ps", "--check", home=home).code == 3
        daemon.handlers["ps"] = replies(running)
        assert run("ps", "--check", home=home).code == 0
        daemon.handlers["ps"] = replies({**running, "apps": []})
        assert run("ps", "--check", home=home).code == 3
        daemon.handlers["ps"] = replies({**running, "apps": [documents.app("nightly", state="scheduled", pool=[])]})
        assert run("ps", "--check", home=home).code == 0


@pytest.mark.parametrize(("state", "shown"), [("scheduled", True), ("running", False)])
def test_a_job_says_that_its_last_run_failed(home: str, state: str, shown: bool) -> None:
    failure = {"message": "exited with code 3", "traceback": "", "hint": "", "at": ""}
    app = documents.app("nightly", state=state, last_failure=failure)
    with fake(home, {**documents.ps(), "apps": [app]}):
        found = run("ps", home=home).err
    said = "nightly failed at its last run: exited with code 3   → pyworker logs -p nightly\n"
    assert (said in found) is shown


def test_without_apps_it_says_how_to_start_one(home: str) -> None:
    with fake(home, {**documents.ps(), "apps": []}):
        found = run("ps", home=home)
        on_terminal = run_on_terminal("ps", home=home)
    assert (found.code, found.err) == (0, "No apps yet. Start one with: pyworker start app.toml\n")
    assert on_terminal.screen.text == found.err


def test_an_unknown_name_exits_with_4(home: str) -> None:
    with FakeControl(home, {"ps": refuses("no_such_app", 4, "no app `apo`", hint="did you mean `api`?")}):
        found = run("ps", "apo", home=home)
    assert (found.code, found.out) == (4, "")
    assert found.err == "error: no app `apo`\n  = help: did you mean `api`?\n"


def test_another_version_of_the_daemon_is_mentioned(home: str) -> None:
    document = documents.ps()
    document["daemon"]["version"] = "99.0"
    with fake(home, document):
        assert "daemon 99.0, this command" in run("ps", home=home).err


def test_what_apps_say_cannot_steer_the_terminal(home: str) -> None:
    document = documents.ps()
    mail = document["apps"][4]
    mail["last_failure"]["message"] = "boom\x1b]0;title\x07\x1b[2J\x9b31m"
    mail["listen"] = ["http://\x1b[5mx"]
    with fake(home, document):
        raw = run_on_terminal("ps", home=home, NO_COLOR="1").raw
    assert "\x1b" not in raw
    assert "\x9b" not in raw
    assert r"boom\x1b]0;title\x07\x1b[2J\x9b31m" in raw


def test_a_reader_that_leaves_early_is_no_error(home: str) -> None:
    document = documents.ps()
    document["apps"] = [documents.app(f"app-{i}") for i in range(1200)]
    with fake(home, document):
        command = f"{sys.executable} -m pyworker ps | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", command], env=environment(home), capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout.splitlines()[1] == "0"
    assert "Broken" not in done.stderr


def test_ps_imports_next_to_nothing(home: str) -> None:
    forbidden = {
        "rich", "psutil", "asyncio", "tomllib", "pydantic", "dataclasses", "logging", "subprocess", "importlib.metadata",
        "textual", "ctypes", "ssl", "pyworker.config", "pyworker.protocol.control", "pyworker.daemon",
    }  # fmt: skip
    # -I -S with the path by hand: what is loaded for the environment is not ours to answer for
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; from pyworker.cli.main import main; "
        "code = main(['ps']); print('\\n'.join(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    with fake(home):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code],
            env=environment(home), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    imported = set(done.stderr.splitlines())
    assert done.stdout == PIPED
    assert "pyworker.cli.commands.ps" in imported
    assert imported & forbidden == set()


@pytest.mark.parametrize(
    ("failure", "step"),
    [
        ({"message": "exit code 1", "traceback": "", "hint": ""}, "pyworker logs -p api"),
        ({"message": f"{PRE_START_FAILED}: exit code 1", "traceback": "no such table", "hint": "x"}, "pyworker describe api"),
        ({"message": "hooks.post_fork: NameError: x", "traceback": "Traceback", "hint": ""}, "pyworker logs -p api"),
        ({"message": "no redis", "traceback": "ModuleNotFoundError", "hint": "pip install redis"}, "pyworker logs -p api"),
        ({"message": "names .env, which does not exist", "traceback": "", "hint": "make it"}, "pyworker describe api"),
    ],
)
def test_a_failure_of_which_nothing_was_printed_leads_to_its_hint(failure: dict[str, str], step: str) -> None:
    (note,) = app_notes(documents.app("api", state="failed", last_failure=failure), Look(False, False, 0, False))
    assert note.endswith(f"→ {step}")


@pytest.mark.parametrize(
    ("reason", "kind", "step"),
    [
        ("GET / answered 500, expected 2xx", "asgi", "pyworker logs api"), ("no answer within 3 s", "asgi", "pyworker stack api.2"),
        ("no answer within 3 s", "command", "pyworker logs api"),
    ],
)  # fmt: skip
def test_a_failed_check_leads_to_what_says_why(reason: str, kind: str, step: str) -> None:
    sick = documents.worker(2, 41209, "unhealthy", health="failing", reason=reason)
    (note,) = app_notes(documents.app("api", state="degraded", kind=kind, pool=[sick]), Look(False, False, 0, False))
    assert note.endswith(f"→ {step}")
