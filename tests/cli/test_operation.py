from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.cli import operation, savescale
from pyworker.cli.client import Lost
from pyworker.cli.commands import wait
from pyworker.cli.options import Settings
from pyworker.cli.progress import Board
from pyworker.errors import Exit, PyworkerError
from pyworker.protocol.control import Refused, Reply
from tests.cli import documents, results
from tests.support.cli import environment, run, run_on_terminal
from tests.support.fake_control import CLOSE, HANG, FakeControl, Handler, event, refuses, replies
from tests.support.wait import wait_until

RELOAD_PIPED = """\
reloading api: gen 7 → 8
api gen=8 worker=1 held 0.61s pid=101
api gen=8 worker=2 held 0.61s pid=102
api gen=8 committed
api gen=8 worker=1 replaced ready=0.61s pid=101
api gen=8 worker=2 replaced ready=0.61s pid=102
api gen=7 worker=1 stopped 0.2s pid=91 requests=4
"""
RELOAD_SCREEN = """\
Reloading api, gen 7 → 8. Ctrl-C leaves this view; the reload goes on.
  api.1  7 → 8  ✓ replaced  0.61s    pid 101   old pid 91 left after 0.2s, 4 requests
  api.2  7 → 8  ✓ replaced  0.61s    pid 102   old pid 92 drains

api reloaded: gen 7 → 8, 2/2 ready, 6.2s
"""


def half_a_reload(_request: Any) -> Iterator[Any]:
    yield from results.reload_up_to_commit()
    yield HANG


def test_reload_shows_old_and_new_of_each_worker(home: str) -> None:
    with FakeControl(home, {"reload": results.reload}):
        piped = run("reload", "api", home=home)
        shown = run_on_terminal("reload", "api", home=home)
    assert piped == (0, "api reloaded: gen 7 → 8, 2/2 ready, 6.2s\n", RELOAD_PIPED)
    assert (shown.code, shown.screen.text) == (0, RELOAD_SCREEN)


def test_rows_fit_a_terminal_without_glyphs_where_an_arrow_is_wider(home: str) -> None:
    with FakeControl(home, {"reload": results.reload}):
        shown = run_on_terminal("reload", "api", home=home, columns=76, LC_ALL="C")
    rows = [text for text in shown.screen.text.splitlines() if text.startswith("  api.")]
    assert [(text[:16], text[-1]) for text in rows] == [("  api.1  7 -> 8 ", "~"), ("  api.2  7 -> 8 ", "s")]
    assert max(map(len, rows)) < 76  # a wrapped one would be drawn again and again


def test_a_refused_reload_says_that_the_old_serve_and_why(home: str) -> None:
    reason = "importing shop.main failed"
    noted = [f"not reloaded (main.py changed): {reason}", "it is slow"]  # the first of which is said once
    failed = results.reply("failed", ok=False, gen=7, reason=reason, traceback=results.TRACEBACK, hint="fix it", notes=noted)
    with FakeControl(home, {"reload": lambda _: [failed]}):
        found = run("reload", "api", home=home)
    assert found.code == 1
    assert found.err.startswith(f"error: api was not reloaded, gen 7 goes on: {reason}\n")
    assert found.err.endswith("No module named 'redis'\n\n  = help: fix it\n  = note: it is slow\n")


def test_a_note_that_was_shown_as_it_happened_is_not_said_again_at_the_end(home: str) -> None:
    def goes_back(_request: Any) -> Iterator[Any]:
        yield event("api", None, "app_note", text="generation 8 was rolled back")
        yield results.reply("aborted", notes=["generation 8 was rolled back", "it is slow"])

    with FakeControl(home, {"abort": goes_back}):
        found = run("reload", "--abort", "api", home=home)
    assert found.err == "api: generation 8 was rolled back\napi: it is slow\n"


def test_a_scale_that_gives_up_says_that_what_was_asked_for_stays_wanted(home: str) -> None:
    more = {"state": "degraded", "workers": {"want": 6, "ready": 3}, "reason": "cannot fork", "hint": "raise the limit"}
    with FakeControl(home, {"scale": lambda _: [results.reply("failed", ok=False, **more)]}):
        found = run("scale", "api=6", home=home)
    assert found.err == "error: api has 3 of 6 workers, which stay wanted: cannot fork\n  = help: raise the limit\n"


@pytest.fixture
def waiting(home: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., operation.View]:
    """Makes the view of an operation that no daemon takes: the guardian says that it can start none."""
    logs = Path(home) / "logs"
    logs.mkdir(parents=True)
    (logs / "pyworker.log").write_text(f"2026-11-26T14:26:42Z guardian[83]: {CANNOT}\n")
    monkeypatch.setattr(operation, "ANSWER_TIME", 0.0)
    monkeypatch.setattr(operation, "_ASIDE", 0.1)
    return lambda *, quiet=False: operation.View(Settings(False, quiet, False, None, False, None, home), None, Board())


CANNOT = "the daemon cannot be started: Resource temporarily unavailable; trying again"


def test_an_operation_that_no_daemon_takes_says_the_guardians_word(
    waiting: Callable[..., operation.View], capsys: pytest.CaptureFixture[str]
) -> None:
    view = waiting()
    view.event(None)
    view.event(None)
    said = capsys.readouterr().err
    assert said.count(CANNOT) == 1
    assert "ulimit -u" in said
    heard = waiting()
    heard.event(event("api", None, "app_note", text="here it is").event)
    heard.event(None)
    assert CANNOT not in capsys.readouterr().err


@pytest.mark.parametrize("quiet", [False, True])
def test_an_operation_that_no_daemon_takes_for_a_minute_is_given_up(
    quiet: bool, waiting: Callable[..., operation.View], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = waiting(quiet=quiet)
    view.event(None)
    monkeypatch.setattr(operation, "_NO_DAEMON", 0.0)
    with pytest.raises(PyworkerError, match=CANNOT) as given_up:
        waiting(quiet=quiet).event(None)
    assert given_up.value.exit == Exit.UNAVAILABLE


def test_what_the_guardian_said_of_a_daemon_before_is_not_said_of_one_that_answers(
    home: str, waiting: Callable[..., operation.View], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operation, "_NO_DAEMON", 0.0)
    monkeypatch.setattr(operation, "_ASIDE", 10.0)
    with FakeControl(home, {"status": replies({"pid": 1})}):
        waiting().event(None)
    assert CANNOT not in capsys.readouterr().err


def test_reload_without_names_takes_the_file_here_else_all(home: str, tmp_path: Path) -> None:
    with FakeControl(home, {"reload": results.reload}) as daemon:
        run("reload", home=home, cwd=str(tmp_path))
        (tmp_path / "app.toml").write_text('[apps.web]\ntarget = "a:b"\n[apps.jobs]\ncommand = ["x"]\n')
        run("reload", home=home, cwd=str(tmp_path))
        (tmp_path / "app.toml").write_text("[app")
        assert run("reload", home=home, cwd=str(tmp_path)).code == 78
    assert [request.selectors for request in daemon.requests] == [("all",), ("web", "jobs")]


def test_busy_exits_with_75(home: str) -> None:
    with FakeControl(home, {"reload": refuses("busy", 75, "api is being reloaded")}):
        assert run("reload", "api", home=home).code == 75


@pytest.mark.parametrize(
    ("args", "action", "request_fields", "said"),
    [
        (("stop", "api", "--now", "--no-wait"), "stopped", {"selectors": ("api",), "now": True, "wait": False}, "api stopped 0.9s\n"),
        (("stop", "api.2"), "stopped", {"selectors": ("api.2",), "now": False, "wait": True}, None),
        (("reload", "--abort", "--no-wait"), "aborted", {"selectors": ("all",), "wait": False}, None),
        (("restart", "api.2", "--no-wait"), "restarted", {"selectors": ("api.2",), "wait": False}, "api restarted: gen 1, 2/2 ready, 0.9s\n"),
        (("delete", "api", "--logs"), "deleted", {"logs": True}, "api deleted\n"),
        (("rm", "api", "--no-wait"), "deleted", {"logs": False, "wait": False}, "api deleted\n"),
        (("scale", "api=8"), "scaled", {"changes": {"api": "8"}}, "api: 2 workers, 2/2 ready in 0.9s\n"),
        (("scale", "api", "-1", "w=auto"), "scaled", {"changes": {"api": "-1", "w": "auto"}}, None),
        (("scale", "api", "+2", "--no-wait"), "scaled", {"changes": {"api": "+2"}, "wait": False}, None),
    ],
)  # fmt: skip
def test_each_operation_sends_its_request_and_says_its_end(
    home: str, args: tuple[str, ...], action: str, request_fields: dict[str, Any], said: str | None
) -> None:
    kind = "abort" if "--abort" in args else {"rm": "delete"}.get(args[0], args[0])
    state = "stopped" if action == "stopped" else "running"
    beside = {"ps": replies({"apps": []}), "config": replies({"apps": []})}  # scale: what the files of its apps say
    with FakeControl(home, {kind: lambda _: [results.reply(action, state=state)], **beside}) as daemon:
        found = run(*args, home=home)
    assert (found.code, found.err) == (0, "")
    assert said is None or found.out == said
    assert {k: getattr(daemon.requests[0], k) for k in request_fields} == request_fields


def test_a_worker_cannot_be_scaled(home: str) -> None:
    found = run("scale", "w=1", "api.2=3", home=home)
    assert (found.code, found.out) == (4, "")
    assert found.err == "error: api.2 is a worker: this is done with whole apps\n  = help: name the app: api\n"


def test_a_restart_of_single_workers_names_them(home: str) -> None:
    def restart(_request: Any) -> Iterator[Any]:
        for slot in (2, 3):
            yield event("api", slot, "worker_starting", generation=1, pid=40 + slot)
            yield event("api", slot, "worker_ready", generation=1, pid=40 + slot, took_s=0.2)
        yield results.reply("restarted", workers={"want": 3, "ready": 3})

    with FakeControl(home, {"restart": restart}):
        found = run("restart", "api.2", "api.3", home=home)
    assert found.out == "api.2, api.3 restarted: gen 1, 3/3 ready, 0.9s\n"


@pytest.mark.parametrize(
    ("command", "closing"),
    [
        ("start", "Nothing was started."),
        ("reload", "Nothing was changed: what runs goes on."),
        ("restart", "Nothing was changed: what runs goes on."),
    ],
)
def test_a_mistake_in_the_config_ends_with_what_it_prevented(home: str, command: str, closing: str) -> None:
    mistakes = ({"message": "it is wrong", "file": "/srv/app.toml"},)
    with FakeControl(home, {command: lambda _: [Refused("config_invalid", 78, "it is wrong", "", mistakes)]}):
        found = run(command, "api", home=home)
    assert (found.code, found.err.splitlines()[-1]) == (78, f"app.toml has 1 error. {closing}")


def test_scale_says_from_and_to_and_what_the_file_says(home: str) -> None:
    def scale(_request: Any) -> Iterator[Any]:
        yield event("api", None, "scaled", **{"from": 4, "to": 6})
        yield results.reply("scaled", workers={"want": 6, "ready": 6}, took_s=0.7)

    runs = {"name": "api", "workers": {"want": 6}}
    written = {"name": "api", "file": "/srv/shop/app.toml", "config": {"workers": 4}}
    beside = {"ps": replies({"apps": [runs]}), "config": replies({"apps": [written]})}
    with FakeControl(home, {"scale": scale, **beside}):
        found = run("scale", "api=6", home=home)
    assert found.out == "api: 4 → 6 workers, 6/6 ready in 0.7s\n"
    assert found.err == "api: app.toml still says workers = 4; with --save it is written there\n"


def test_scale_says_what_the_file_says_and_not_what_it_said_when_it_was_read(home: str, tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[apps.api]\ncommand = "x"\nworkers = 6\n')  # by --save, which is no reading
    handlers = {
        "scale": lambda _: [results.reply("scaled", workers={"want": 6, "ready": 6}, took_s=0.7)],
        "ps": replies({"apps": [{"name": "api", "workers": {"want": 6}}]}),
        "config": replies({"apps": [{"name": "api", "file": str(file), "config": {"workers": 4}}]}),
    }
    with FakeControl(home, handlers):
        same, other = run("scale", "api=6", home=home), run("scale", "api=4", home=home)
    assert same.err == ""
    assert other.err == "api: app.toml still says workers = 6; with --save it is written there\n"


def test_no_workers_are_not_saved_for_a_file_cannot_say_that(home: str, tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nname = "api"\ncommand = "x"\nworkers = 4\n')
    handlers = {
        "scale": lambda _: [results.reply("scaled", workers={"want": 0, "ready": 0}, took_s=0.7)],
        "ps": replies({"apps": [{"name": "api", "workers": {"want": 0}}]}),
        "config": replies({"apps": [{"name": "api", "file": str(file), "config": {"workers": 4}}]}),
    }
    with FakeControl(home, handlers):
        found = run("scale", "api", "-4", "--save", home=home)
        without = run("scale", "api=0", home=home)
    assert (found.code, without.code) == (1, 0)
    assert "error: api was scaled, but not saved: a config file has at least 1 worker\n" in found.err
    assert "workers = 4\n" in file.read_text()
    assert "--save" not in without.err


def test_of_several_apps_that_one_is_not_saved_keeps_no_other_from_it(home: str, tmp_path: Path) -> None:
    file, broken = tmp_path / "app.toml", tmp_path / "broken.toml"
    file.write_text('[app]\nname = "web"\ncommand = "x"\nworkers = 4\n')
    broken.write_text("[app\n")
    apps = [{"name": name, "workers": {"want": 6}} for name in ("api", "job", "old", "web")]
    files = [
        {"name": "old", "file": str(file), "config": {"workers": 3}},
        {"name": "api", "file": "", "config": {}},
        {"name": "job", "file": str(broken), "config": {}},
        {"name": "web", "file": str(file), "config": {"workers": 4}},
    ]
    handlers = {
        "scale": lambda _: [results.reply("scaled", workers={"want": 6, "ready": 6}, took_s=0.7)],
        "ps": replies({"apps": apps}),
        "config": replies({"apps": files}),
        "saved": replies({}),
    }
    with FakeControl(home, handlers):
        found = run("scale", "*=6", "--save", home=home)
    assert "workers = 6\n" in file.read_text()
    assert found.code == 1
    assert "error: api was scaled, but not saved: it has no config file\n" in found.err
    assert "\njob was scaled, but not saved: " in found.err
    assert "\nold was scaled, but not saved: its file is of web by now\n" in found.err
    assert "Nothing was changed" not in found.err, "they were scaled"


@pytest.mark.parametrize("change", ["job=3", "job=+2"])
def test_of_a_job_that_waits_for_its_time_the_number_that_it_came_to_is_saved(
    change: str, home: str, tmp_path: Path
) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nname = "job"\ncommand = "x"\ncron = "@daily"\nworkers = 1\n')
    handlers = {
        "scale": lambda _: [
            event("job", None, "scaled", **{"from": 1, "to": 3}),
            results.reply("scaled", app="job", state="scheduled", workers={"want": 0, "ready": 0}, took_s=0.1),
        ],
        "ps": replies({"apps": [{"name": "job", "state": "scheduled", "workers": {"want": 0}}]}),
        "config": replies({"apps": [{"name": "job", "file": str(file), "config": {"workers": 1}}]}),
        "saved": replies({}),
    }
    with FakeControl(home, handlers):
        found = run("scale", change, "--save", home=home)
    assert found.code == 0
    assert file.read_text().endswith("workers = 3\n")


def test_a_number_is_saved_by_a_link_whose_name_says_what_kind_of_file_it_is(home: str, tmp_path: Path) -> None:
    (tmp_path / "shared.toml").write_text('[tool.pyworker.app]\nname = "api"\ncommand = "x"\nworkers = 4\n')
    file = tmp_path / "pyproject.toml"
    file.symlink_to("shared.toml")
    handlers = {
        "scale": lambda _: [results.reply("scaled", workers={"want": 6, "ready": 6}, took_s=0.7)],
        "ps": replies({"apps": [{"name": "api", "workers": {"want": 6}}]}),
        "config": replies({"apps": [{"name": "api", "file": str(file), "config": {"workers": 4}}]}),
        "saved": replies({}),
    }
    with FakeControl(home, handlers):
        found = run("scale", "api=6", "--save", home=home)
    assert (found.code, file.is_symlink()) == (0, True), found.err
    assert file.read_text().endswith("workers = 6\n")


def test_of_two_that_save_at_once_each_waits_for_the_other(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[apps.api]\ncommand = "x"\nworkers = 4\n[apps.web]\ncommand = "x"\nworkers = 4\n')
    os.makedirs(f"{home}/state")
    settings = Settings(False, True, False, None, False, None, home)

    def meanwhile(_seconds: float) -> None:
        file.write_text(file.read_text().replace('[apps.web]\ncommand = "x"\nworkers = 4', '[apps.web]\ncommand = "x"\nworkers = 5'))
        other.close()

    handlers = {
        "ps": replies({"apps": [{"name": "api", "workers": {"want": 6}}]}),
        "config": replies({"apps": [{"name": "api", "file": str(file), "config": {"workers": 4}}]}),
        "saved": replies({}),
    }
    with FakeControl(home, handlers), contextlib.ExitStack() as other:
        other.enter_context(savescale._alone(settings, "web"))
        monkeypatch.setattr(savescale, "time", SimpleNamespace(monotonic=time.monotonic, sleep=meanwhile))
        savescale.save_workers(settings, {"api": "6"}, {})
    assert [line for line in file.read_text().splitlines() if "workers" in line] == ["workers = 6", "workers = 5"]


@pytest.mark.parametrize("args", [("api",), ("api", "--foo"), ("api=x",), ("=4",), (), ("api=1", "api=2"), ("A B=1",)])
def test_scale_refuses_what_is_no_change(home: str, args: tuple[str, ...]) -> None:
    assert run("scale", *args, home=home).code == 2


@pytest.mark.parametrize("verb", ["stop", "restart", "delete", "describe", "wait"])
def test_a_command_without_names_lists_them(home: str, verb: str) -> None:
    with FakeControl(home, {"ps": replies(documents.ps())}):
        found = run(verb, home=home)
    assert found.code == 2
    assert f"error: {verb} what? the apps are: api, admin, jobs, hooks, mail\n" in found.err


def test_all_asks_on_a_terminal_and_refuses_without_one(home: str) -> None:
    def answer(word: str) -> Any:
        def during(process: subprocess.Popen[bytes], raw: str, fd: int) -> None:
            if raw.endswith("[y/N]: "):
                import os

                os.write(fd, word.encode() + b"\n")

        return during

    handlers = {"ps": replies(documents.ps()), "stop": lambda _: [results.reply("stopped")]}
    with FakeControl(home, handlers) as daemon:
        refused = run("stop", "all", home=home)
        assert refused.code == 2
        assert "pyworker stop all -y" in refused.err
        assert run_on_terminal("stop", "all", home=home, during=answer("n")).code == 1
        assert not any(type(request).__name__ == "Stop" for request in daemon.requests)
        assert run_on_terminal("stop", "all", home=home, during=answer("y")).code == 0
        assert run("stop", "all", "-y", home=home).code == 0
    assert sum(type(request).__name__ == "Stop" for request in daemon.requests) == 2


@pytest.mark.parametrize("words", [("delete", "all"), ("delete", "api", "*"), ("stop", "*")], ids=" ".join)
def test_what_concerns_everything_is_done_by_no_script_that_does_not_say_yes(home: str, words: tuple[str, ...]) -> None:
    with FakeControl(home, {"ps": replies(documents.ps())}) as daemon:
        found = [run(*words, home=home).code, run_on_terminal(*words, "--json", home=home).code]
    assert found == [2, 2]
    assert {type(request).__name__ for request in daemon.requests} == {"Ps"}


def test_ctrl_c_leaves_the_view_and_the_terminal_clean(home: str) -> None:
    sent: list[bool] = []

    def during(process: subprocess.Popen[bytes], raw: str, _fd: int) -> None:
        if "held" in raw and not sent:
            sent.append(True)
            process.send_signal(signal.SIGINT)

    with FakeControl(home, {"reload": half_a_reload}) as daemon:
        found = run_on_terminal("reload", "api", home=home, during=during)
        assert daemon.gone.wait(10)
    assert found.code == 130
    assert "Left the view; the reload goes on." in found.screen.text
    assert "\x1b[?" not in found.raw
    assert "Traceback" not in found.raw


def test_ctrl_c_leaves_a_daemon_that_stops_to_itself_and_says_so(home: str) -> None:
    sent: list[bool] = []

    def during(process: subprocess.Popen[bytes], raw: str, _fd: int) -> None:
        if "draining" in raw and not sent:
            sent.append(True)
            process.send_signal(signal.SIGINT)

    draining = event("api", 1, "worker_draining", generation=1, pid=77, reason="stop")
    handlers: dict[str, Handler] = {"ps": replies({"apps": []}), "status": replies({}), "shutdown": lambda _: [draining, HANG]}
    with FakeControl(home, handlers) as daemon:
        found = run_on_terminal("daemon", "stop", home=home, during=during)
        assert daemon.gone.wait(10)
    assert found.code == 130
    assert "Left the view; the stop goes on." in found.screen.text


@pytest.mark.parametrize(
    ("words", "asked", "says"),
    [
        (["daemon", "upgrade"], "upgrade", "the upgrade goes on. pyworker daemon status shows"),
        (["daemon", "stop"], "shutdown", "the stop goes on. pyworker ps shows"),
        (["scale", "api=2", "--save"], "scale", "No file was changed: --save again when it is done."),
    ],
)
def test_ctrl_c_says_what_goes_on_and_what_does_not(home: str, words: list[str], asked: str, says: str) -> None:
    was_asked = threading.Event()

    def answer(_request: Any) -> list[Any]:
        was_asked.set()
        return [Reply(True, {"apps": []})] if asked == "shutdown" else [HANG]

    handlers: dict[str, Handler] = {"ps": replies({"apps": []}), "status": replies({}), asked: answer}
    with FakeControl(home, handlers):
        argv = [sys.executable, "-m", "pyworker", *words]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, env=environment(home), text=True)
        assert was_asked.wait(30)
        if asked == "shutdown":
            assert process.stderr is not None
            assert "The apps have ended" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Left the view" in said
    assert says in said


def test_a_scale_that_takes_too_long_to_be_saved_says_so(home: str) -> None:
    with FakeControl(home, {"scale": lambda _: [HANG], "ps": replies({"apps": []})}):
        found = run("scale", "api=2", "--save", "--timeout", "0", home=home)
    assert found.code == 75
    assert "No file was changed: --save again when it is done." in found.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_whatever_ends_it_leaves_no_mode_of_the_terminal_changed(home: str, number: signal.Signals) -> None:
    sent: list[bool] = []

    def during(process: subprocess.Popen[bytes], raw: str, _fd: int) -> None:
        if "held" in raw and not sent:
            sent.append(True)
            process.send_signal(number)

    with FakeControl(home, {"reload": half_a_reload}):
        found = run_on_terminal("reload", "api", home=home, during=during)
    assert found.code == -number
    assert "\x1b[?" not in found.raw


def test_the_spinner_turns_while_nothing_happens(home: str) -> None:
    frames: set[str] = set()
    sent: list[bool] = []

    def during(process: subprocess.Popen[bytes], raw: str, _fd: int) -> None:
        frames.update(c for c in raw if c in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
        if len(frames) >= 3 and not sent:
            sent.append(True)
            process.send_signal(signal.SIGINT)

    with FakeControl(home, {"reload": half_a_reload}):
        assert run_on_terminal("reload", "api", home=home, during=during).code == 130
    assert len(frames) >= 3


@pytest.fixture
def patient(tmp_path: Path) -> dict[str, str]:
    """The environment of a command that has time for what is only said beside, however late the daemon is."""
    (tmp_path / "sitecustomize.py").write_text("from pyworker.cli import operation\noperation._ASIDE = 30.0\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_among_many_apps_it_says_once_how_to_leave_and_how_many_are_how(home: str, patient: dict[str, str]) -> None:
    names = [f"app{i:02d}" for i in range(20)]
    apps = [
        {"name": name, "state": "running" if i else "reloading", "workers": {"ready": 1, "want": 1}}
        for i, name in enumerate(names)
    ]

    def reloads(_request: Any) -> Iterator[Any]:
        for name in names:
            yield event(name, None, "reload_started", **{"from": 7, "to": 8})
        yield HANG

    with FakeControl(home, {"reload": reloads, "ps": lambda _: [Reply(True, {"apps": apps})]}):
        shown = run_on_terminal("reload", "all", "--timeout", "2s", home=home, **patient)
    assert shown.screen.text.count("Ctrl-C leaves this view") == 1
    assert "it goes on. Now: 1 reloading, 19 running\n" in shown.screen.text


def test_what_is_asked_about_before_all_is_stopped_is_known_however_short_the_timeout_is(home: str) -> None:
    with FakeControl(home, {"ps": replies(documents.ps())}):
        found = run("stop", "all", "--timeout", "0", home=home)
    assert "stop all concerns" in found.err


def test_a_timeout_exits_with_75_and_says_what_is_known(home: str, patient: dict[str, str]) -> None:
    with FakeControl(home, {"reload": half_a_reload, "ps": replies(documents.ps())}):
        found = run("reload", "api", "--timeout", "200ms", home=home, **patient)
    assert found.code == 75
    assert "error: the reload was not done within 0.2 s; it goes on. Now: api running 4/4" in found.err


def test_a_daemon_that_dies_in_the_middle_is_told_with_what_its_successor_knows(home: str, patient: dict[str, str]) -> None:
    def dies(_request: Any) -> Iterator[Any]:
        yield from results.reload_up_to_commit()
        yield CLOSE

    with FakeControl(home, {"reload": dies, "ps": replies(documents.ps())}):
        found = run("reload", "api", home=home, **patient)
        as_json = run("reload", "api", "--json", home=home, **patient)
    assert found.code == 69
    assert "went away in the middle of the reload. Now: api running 4/4\n" in found.err  # no other app
    assert json.loads(as_json.err.splitlines()[-1])["error"]["exit"] == 69


def test_events_of_another_version_do_not_hurt(home: str) -> None:
    def strange(_request: Any) -> Iterator[Any]:
        for body in (
            {"type": "worker_ready", "app": "api", "worker": 1, "data": {}},
            {"type": "app_started", "app": "api", "worker": None, "data": {"workers": "many", "generation": None}},
            {"type": "brand_new", "app": None, "data": None},
            {"type": None},
        ):
            yield json.dumps({"type": "progress", "event": body}).encode() + b"\n"
        yield Reply(True, {"apps": [results.result("restarted"), "rubbish", {"ok": True}]})

    with FakeControl(home, {"restart": strange}):
        assert run("restart", "api", home=home).code == 0
        assert run("restart", "api", "--json", home=home).code == 0
        assert run_on_terminal("restart", "api", home=home).code == 0


def test_wait_returns_when_it_is_ready_and_fails_when_it_failed(home: str) -> None:
    starting = documents.app("api", state="starting")
    answers = iter([starting, documents.app("api")])
    with FakeControl(home, {"ps": lambda _: [Reply(True, {"apps": [next(answers)]})]}) as daemon:
        found = run("wait", "api", "--json", home=home)
        assert (found.code, json.loads(found.out)["state"]) == (0, "running")
        daemon.handlers["ps"] = replies({"apps": [documents.ps()["apps"][4]]})
        failed = run("wait", "mail", home=home).err
        assert failed.startswith("error: mail has failed: gave up after 5")
        assert '\n\nFile "mail.py", line 3, in <module>\n  import redis\n\n' in failed
        assert failed.endswith("  = help: pip install redis\n  = help: pyworker describe mail   says more\n")
        assert run("wait", "mail", "--for", "stopped", home=home).code == 0
        daemon.handlers["ps"] = replies({"apps": [starting]})
        late = run("wait", "api", "--timeout", "10ms", home=home)
    assert (late.code, late.out) == (75, "")


def test_a_time_in_which_all_stood_still_is_none_that_wait_has_waited(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, still = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: real() + still)
    states = iter(["starting", "starting", "running"])

    def ps(_request: Any) -> list[Reply]:
        nonlocal still
        answer = Reply(True, {"apps": [documents.app("api", state=next(states))]})
        still = 70.0
        return [answer]

    with FakeControl(home, {"ps": ps}):
        assert wait.cmd.main(["api", "--timeout", "60s", "--home", home], standalone_mode=False) == 0


def test_wait_goes_on_while_a_worker_fails_its_health_check(home: str) -> None:
    sick = documents.worker(1, 41209, "unhealthy", health="failing", reason="GET / answered 500, expected 2xx")
    with FakeControl(home, {"ps": replies({"apps": [documents.app("api", state="degraded", pool=[sick])]})}):
        found = run("wait", "api", "--timeout", "10ms", home=home)
    assert found.code == 75
    why = "api is degraded: api.1 fails its health check: GET / answered 500, expected 2xx"
    assert found.err.startswith(f"error: not ready within 0.01 s: {why}\n")


def test_wait_says_that_the_daemon_is_gone_and_goes_on_with_the_next(home: str) -> None:
    asked = threading.Event()

    def ps(_request: Any) -> Iterator[Any]:
        yield Reply(True, {"apps": [documents.app("api", state="starting")]})
        asked.set()

    with FakeControl(home, {"ps": ps}):
        argv = [sys.executable, "-m", "pyworker", "wait", "api"]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, env=environment(home), text=True)
        assert asked.wait(30)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("The daemon went away; waiting for another, ")
    with FakeControl(home, {"ps": replies({"apps": [documents.app("api")]})}):
        assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_wait_for_a_generation_is_over_when_all_of_that_one_serves_or_of_a_later_one(home: str) -> None:
    def at(state: str, gen: int, *pool: tuple[str, int]) -> dict[str, Any]:
        workers = [documents.worker(slot, 41209, state, gen=of) for slot, (state, of) in enumerate(pool, 1)]
        return documents.app("api", state=state, gen=gen, pool=workers, workers={"want": 2, "ready": 2, "total": 2})

    looks = iter(
        [
            at("running", 6, ("ready", 6), ("ready", 6)),
            at("reloading", 8),  # committed: a command without bind, whose old workers have left
            at("reloading", 8, ("ready", 8), ("opening", 8)),
            at("reloading", 8, ("ready", 8), ("ready", 6)),
            at("reloading", 9, ("ready", 8), ("ready", 9)),
            at("running", 9, ("ready", 9), ("ready", 9)),
        ]
    )
    with FakeControl(home, {"ps": lambda _: [Reply(True, {"apps": [next(looks)]})]}):
        assert run("wait", "api", "--for", "gen=8", home=home).code == 0
        assert next(looks)["state"] == "running"
    wrong = run("wait", "api", "--for", "gen8", home=home)
    assert (wrong.code, wrong.out) == (2, "")
    assert "write ready, stopped or gen=8" in wrong.err


@pytest.mark.parametrize(
    ("goal", "app"),
    [
        ("gen=8", {"gen": 8, "pool": [documents.worker(1, 41209, "ready", gen=8), documents.worker(1, 41208, "draining", gen=7)]}),
        ("ready", {"state": "scheduled", "pool": [], "workers": {"want": 0, "ready": 0, "total": 0}}),
    ],
    ids=["whose old workers drain", "that waits for its time"],
)  # fmt: skip
def test_wait_is_over_for_an_app(goal: str, app: dict[str, Any], home: str) -> None:
    with FakeControl(home, {"ps": replies({"apps": [documents.app("api", **app)]})}):
        assert run("wait", "api", "--for", goal, "--timeout", "0", home=home).code == 0


def test_wait_for_the_stop_is_over_when_no_worker_is_left_and_none_is_to_come(home: str) -> None:
    states = (("starting", 0), ("stopping", 1), ("failed", 1), ("stopped", 0))
    looks = iter([documents.app("api", state=state, workers={"want": 2, "ready": 0, "total": n}) for state, n in states])
    with FakeControl(home, {"ps": lambda _: [Reply(True, {"apps": [next(looks)]})]}):
        assert run("wait", "api", "--for", "stopped", home=home).code == 0
    assert next(looks, None) is None


def test_wait_ends_when_for_long_there_is_no_daemon(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 50 * len(pauses))
    monkeypatch.setattr(time, "sleep", pauses.append)
    looks = iter([Reply(True, {"apps": [documents.app("api", state="starting")]}), *[CLOSE] * 4])
    with FakeControl(home, {"ps": lambda _: [next(looks)]}), pytest.raises(Lost):
        wait.cmd.main(["api", "--home", home], standalone_mode=False)
    assert len(pauses) == 2


def test_wait_goes_on_with_the_next_daemon(home: str) -> None:
    looks = iter([CLOSE] * 6 + [Reply(True, {"apps": [documents.app("api", state="running")]})])
    with FakeControl(home, {"ps": lambda _: [next(looks)]}) as daemon:
        assert run("wait", "api", home=home).code == 0
        daemon.handlers["ps"] = lambda _: [CLOSE]
        late = run("wait", "api", "--timeout", "10ms", home=home)
    assert late.code == 75
    assert "not ready within 0.01 s: The pyworker daemon" in late.err


def test_a_closed_stdout_does_not_stop_the_operation(home: str) -> None:
    with FakeControl(home, {"reload": results.reload}):
        process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", "reload", "api", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        with process.stderr as stderr:
            assert stderr.read() == b""
        wait_until(lambda: process.poll() is not None, what="the command to end")
    assert process.returncode == 0
