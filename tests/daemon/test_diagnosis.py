"""Why a process ended, by what it printed last."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, LogsConfig
from pyworker.daemon import diagnosis
from pyworker.daemon.diagnosis import (
    GO_ON,
    HELD_OPEN,
    LONGEST,
    last_lines,
    last_words,
    of_port_in_use,
    of_template,
    of_worker,
    when_written,
    with_code,
)
from pyworker.daemon.handles import TemplateHandle
from pyworker.daemon.loop import Loop
from pyworker.daemon.shortage import Shortage
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.logs import LogRecord, format_record
from pyworker.protocol.names import CLOSED_BY_APP
from pyworker.protocol.template import LoadFailed
from pyworker.protocol.worker import Failed
from pyworker.unix.process import ExitStatus
from tests.daemon.test_loop import Clock


def line(pid: int, text: bytes) -> bytes:
    return format_record(LogRecord("2026-01-01T00:00:00.000Z", "api", 1, pid, "err", partial=False, msg=text), "text")


def test_the_last_words_of_a_process_are_its_own(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(line(7, b"mine") + line(8, b"another's") + line(7, b"mine, too \x1b[2J"))
    assert last_lines(str(log), 7) == ["mine", "mine, too \\x1b[2J"]


def test_a_line_that_a_progress_bar_has_drawn_over_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(b"2026-11-23T14:02:31.104Z api.1 7 err| 10%\r20%\rKeyError: 'x'\r\n")
    assert last_lines(str(log), 7) == [r"10%\r20%\rKeyError: 'x'"]


def test_colors_do_not_hide_what_a_traceback_says(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(line(7, b"\x1b[1;35mKeyError\x1b[0m: \x1b[35m'no such thing'\x1b[0m"))
    assert last_lines(str(log), 7) == ["KeyError: 'no such thing'"]


def test_a_log_that_is_a_pipe_is_not_waited_for_and_its_reader_loses_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "api.log")
    os.mkfifo(path)
    assert last_lines(path, 7) == []
    with open(os.open(path, os.O_RDWR), "rb+", buffering=0) as both:
        both.write(line(7, b"mine"))
        assert last_lines(path, 7) == []
        assert both.read(1000) == line(7, b"mine")


def test_what_node_says_last_is_its_version_and_the_error_stands_above_the_stack() -> None:
    stack = [f"    at step{i} (node:net:{i}:1)" for i in range(30)]
    lines = [
        "listening soon",
        "Error: listen EADDRINUSE: address already in use :::8000",
        *stack,
        "",
        "Node.js v20.20.2",
    ]
    shown, said = last_words(lines)
    assert said == "Error: listen EADDRINUSE: address already in use :::8000"
    assert shown == lines[1:21]


def test_where_a_syntax_error_is_node_says_above_it() -> None:
    place = ["/srv/shop/server.js:7", "syntax error(", "       ^^^^^", ""]
    below = ["SyntaxError: Unexpected identifier 'error'", "    at wrapSafe (node:internal:1464:18)", "", "Node.js v20.20.2"]
    assert last_words(["up", *place, *below]) == ([*place, *below[:-1]], below[0])
    bundled = [place[0], "x" * 10_000, *place[2:]]
    assert last_words([*bundled, *below])[0] == [place[0], *below[:-1]]
    own = ["node:internal/modules/cjs/loader:1210", "  throw err;", "  ^", ""]
    assert last_words([*own, *below])[0] == below[:-1]


def test_the_last_line_speaks_where_there_is_no_exception() -> None:
    assert last_words(["reading", "no such file"]) == (["reading", "no such file"], "no such file")
    assert last_words(["ValueError: bad", "at exit"]) == (["ValueError: bad", "at exit"], "ValueError: bad")
    assert last_words([]) == ([], "")
    unknown = ["Unknown command: 'migrat'. Did you mean migrate?", "Type 'manage.py help' for usage."]
    assert last_words(unknown) == (unknown, unknown[0])
    assert last_words(["No module named 'shop'", ""])[1] == "No module named 'shop'"  # waitress-serve
    celery = ["Usage: celery [OPTIONS]", "Try 'celery --help' for help.", "", "Error: ", "The module shop was not found."]
    assert last_words(celery)[1] == celery[-1]
    npm = ["npm error code ENOENT", "npm error errno -2", "npm error enoent Could not read package.json", "npm error enoent", "npm error A complete log of this run can be found in: /x"]
    assert last_words(npm) == (npm, npm[2])
    assert last_words(['npm error Missing script: "start"', "npm error", "npm error To see a list of scripts, run:"])[1] == 'npm error Missing script: "start"'
    uvicorn = ["RuntimeError: no database", "", "ERROR:    Application startup failed. Exiting."]
    assert last_words(uvicorn)[1] == uvicorn[0]
    assert last_words([*uvicorn, "INFO:     Finished server process [7]"])[1] == uvicorn[0]


def test_a_heading_is_no_exception() -> None:
    jupyter = ["usage: jupyter [-h]", "", "Jupyter: Interactive Computing", "", "Jupyter command `jupyter-lab` not found.", ""]
    assert last_words(jupyter)[1] == jupyter[4]
    raised = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "shop.NotReady: no prices", "see the manual"]
    assert last_words(raised)[1] == raised[2]
    go = ["panic: no prices", "", "goroutine 1 [running]:", "main.main()"]
    assert last_words(go)[1] == go[0]


def test_a_port_that_a_program_finds_taken_has_a_next_step() -> None:
    said = "Error: listen EADDRINUSE: address already in use 127.0.0.1:3000"
    assert "bind = their address" in of_port_in_use(said, siblings=True)
    assert of_port_in_use("OSError: [Errno 98] Address already in use", siblings=False) == "who has it? ss -ltnp"
    held = of_port_in_use("OSError: [Errno 98] Address already in use", siblings=True, held=True)
    assert held.startswith("pyworker itself listens at `bind`")
    assert of_port_in_use("ValueError: the price list is empty", siblings=True) == ""


@pytest.mark.parametrize(
    "said",
    [
        "listen tcp 127.0.0.1:{}: bind: address already in use",  # Go
        "2026-11-29T01:02:03 listen tcp :{}: bind: address already in use",
        "Error: listen EADDRINUSE: address already in use :::{}",
        "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', {}): address already in use",
        "nginx: [emerg] bind() to 0.0.0.0:{} failed (98: Address already in use)",
        "java.io.IOException: Port {} is already in use",
        "error: Failed to start server. Is port {} in use?",  # Bun
        "nginx: [emerg] bind() to 0.0.0.0:{} failed (98: Address in use)",  # musl
    ],
)
def test_who_has_a_port_that_is_named_is_named(said: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = of_port_in_use(said.format(port), siblings=False)
        assert found.startswith(f"port {port} is taken by ")
        assert f"(pid {os.getpid()}, user " in found
    assert of_port_in_use(said.format(port), siblings=False) == "who has it? ss -ltnp"


@pytest.mark.parametrize(
    "after",
    [
        ["INFO:     Waiting for application shutdown.", "INFO:     Application shutdown complete."],  # uvicorn
        ["17:M 27 Nov 2026 18:17:32.705 # Failed listening on port 6379 (TCP), aborting."],  # redis
        ["nginx: [emerg] still could not bind()"],
    ],
)
def test_a_taken_port_is_the_cause_whatever_is_said_after_it(after: list[str]) -> None:
    taken = "ERROR: bind() failed: address already in use"
    assert last_words(["INFO: starting", taken, *after])[1] == taken
    traceback = ["Traceback (most recent call last):", "  there", "ValueError: the price list is empty"]
    assert last_words([taken, *after, *traceback])[1] == "ValueError: the price list is empty"


@pytest.mark.parametrize(
    "said",
    [
        "OSError: [Errno 98] Address already in use: ('127.0.0.1', 8000)",
        "Error: That port is already in use.",  # Django
        "cherrypy.process.wspbus.ChannelFailures: Timeout('Port 8000 not free on 127.0.0.1.')",
        "ERROR:robyn.logger:Port 8000 is already in use. Please use a different port.",
        "RuntimeError: Failed to bind to address 127.0.0.1:50051; set GRPC_VERBOSITY=debug environment variable to see …",
    ],
)
def test_a_script_that_binds_without_pythons_sockets_is_told_what_shares_its_port(said: str) -> None:
    handle: Any = SimpleNamespace(failure=Failed("import", said, "", ""))
    app: Any = SimpleNamespace(config=AppConfig(name="api", script="server.py"), workers={7: handle, 8: object()})
    hint = of_worker(app, handle, ExitStatus(1, None), "/nowhere", Shortage())[2]
    assert "gevent" in hint
    assert 'balance = "proxy"' in hint
    app.config = AppConfig(name="api", target="web:app")  # each of its workers starts a server of its own at import
    hint = of_worker(app, handle, ExitStatus(1, None), "/nowhere", Shortage())[2]
    assert "only one can" in hint
    assert "debugpy.listen(0)" in hint  # a debugger is no app of its own


def test_a_port_that_an_import_binds_is_said_to_be_its_old_workers_at_a_reload_and_looked_for_at_a_start() -> None:
    said = "RuntimeError: Can't listen for client connections: [Errno 98] Address already in use"  # debugpy
    template: Any = SimpleNamespace(killed_because="", failure=LoadFailed("import", said, ""), shortage=Shortage())
    app: Any = SimpleNamespace(name="api", config=AppConfig(name="api", target="web:app"), workers={7: object()})
    assert "only one can" in of_template(app, template, ExitStatus(1, None), "/nowhere")[2]
    app.workers = {}
    assert of_template(app, template, ExitStatus(1, None), "/nowhere")[2] == "who has it? ss -ltnp"
    alone: Any = SimpleNamespace(failure=Failed("import", said, "", ""), ready_at=None)  # preload = false
    app.workers = {8: alone}
    assert of_worker(app, alone, ExitStatus(1, None), "/nowhere", Shortage())[2] == "who has it? ss -ltnp"


def test_a_variable_that_is_missing_has_a_next_step_in_an_app_a_script_and_a_command(tmp_path: Path) -> None:
    said = "django.core.exceptions.ImproperlyConfigured: Set the SECRET_KEY environment variable"
    app: Any = SimpleNamespace(name="api", config=AppConfig(name="api", command=("serve",)), want=1, generations={})
    printed: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), failure=None, pid=7, ready_at=None, bound=False)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "api.log").write_bytes(line(7, said.encode()))
    for at_its_end in (printed, SimpleNamespace(id=printed.id, failure=Failed("other", said, "", ""), ready_at=None)):
        assert "set env.SECRET_KEY," in of_worker(app, at_its_end, ExitStatus(1, None), str(tmp_path), Shortage())[2]
    template: Any = SimpleNamespace(killed_because="", failure=LoadFailed("import", said, ""), shortage=Shortage())
    assert "set env.SECRET_KEY," in of_template(app, template, ExitStatus(1, None), str(tmp_path))[2]


def test_a_flask_socketio_that_refuses_werkzeug_has_a_next_step_in_a_script_and_a_command(tmp_path: Path) -> None:
    said = "RuntimeError: The Werkzeug web server is not designed to run in production. Pass allow_unsafe_werkzeug=True to the run() method to disable this error."
    app: Any = SimpleNamespace(name="chat", config=AppConfig(name="chat", script="app.py"), generations={})
    failed: Any = SimpleNamespace(id=WorkerId("chat", 1, 1, 1), failure=Failed("other", said, "", ""), ready_at=None)
    assert "gevent-websocket" in of_worker(app, failed, ExitStatus(1, None), "/nowhere", Shortage())[2]
    assert "gevent-websocket" in end_of(tmp_path / "own.log", ExitStatus(1, None), said.encode())[2]


def test_what_is_nearly_the_last_word_of_a_python_is_looked_through_once() -> None:
    assert diagnosis._NO_PYTHON.match("Fatal Python error: " + "init_" * 200_000) is None


def test_a_server_that_was_to_take_a_socket_by_its_number_is_told_where_those_are(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "api.log").write_bytes(line(7, b"OSError: [Errno 9] Bad file descriptor"))
    worker: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), failure=None, pid=7, ready_at=None, bound=False)
    for command, told in ((("gunicorn", "-b", "fd://3", "a:b"), True), (("gunicorn", "a:b"), False)):
        app: Any = SimpleNamespace(name="api", config=AppConfig(name="api", command=command), want=1, generations={})
        hint = of_worker(app, worker, ExitStatus(1, None), str(tmp_path), Shortage())[2]
        assert ("leave fd://… out" in hint) is told


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["Fatal Python error: config_init_hash_seed: it must be random", "Python runtime state: preinitialized", ""], 0),
        (["Fatal Python error: init_stdio_encoding: no codec", "LookupError: unknown encoding: none", ""], 1),
        (["Could not import runpy module", "AttributeError: module 'types' has no attribute 'ModuleType'"], 1),
    ],
)
def test_a_python_that_does_not_start_says_why_and_is_no_wrong_version(
    words: list[str], reason: int, tmp_path: Path
) -> None:
    """PYTHONHASHSEED, PYTHONIOENCODING, PYTHONHOME or PYTHONPATH in [app.env]."""
    app: Any = SimpleNamespace(name="api", config=AppConfig(name="api", command=("serve",)), want=1, generations={})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "api.log").write_bytes(b"".join(line(7, each.encode()) for each in words))
    worker: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), failure=None, pid=7, ready_at=None, bound=False)
    template: Any = SimpleNamespace(
        killed_because="", failure=None, pid=7, state="loading", generation=1, loaded=None, shortage=Shortage()
    )
    for found, _, hint in (
        of_worker(app, worker, ExitStatus(1, None), str(tmp_path), Shortage()),
        of_template(app, template, ExitStatus(1, None), str(tmp_path)),
    ):
        assert found.startswith(words[reason])
        assert hint.startswith("Python itself did not start: ")


def test_what_a_child_says_that_has_crashed_is_not_taken_for_a_python_that_did_not_start(tmp_path: Path) -> None:
    app: Any = SimpleNamespace(name="api", config=AppConfig(name="api", command=("serve",)), want=1, generations={})
    (tmp_path / "logs").mkdir()
    words = ["Fatal Python error: Segmentation fault", "", 'Current thread 0x1 (most recent call first):', '  File "a.py", line 1 in work']
    words.append("subprocess.CalledProcessError: Command 'a.py' died with <Signals.SIGSEGV: 11>.")
    (tmp_path / "logs" / "api.log").write_bytes(b"".join(line(7, each.encode()) for each in words))
    worker: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), failure=None, pid=7, ready_at=None, bound=False)
    reason, _, hint = of_worker(app, worker, ExitStatus(1, None), str(tmp_path), Shortage())
    assert (reason, hint) == (words[-1], "")


@pytest.mark.parametrize(
    "said", ["RuntimeError: can't start new thread", "sh: 1: Cannot fork", "bash: fork: retry: Resource temporarily unavailable"]
)
def test_a_program_that_could_make_no_process_or_thread_has_a_next_step(said: str, tmp_path: Path) -> None:
    app: Any = SimpleNamespace(name="api", config=AppConfig(name="api", command=("serve",)), want=1)
    failed: Any = SimpleNamespace(failure=Failed("import", said, "", ""))
    assert "ulimit -u" in of_worker(app, failed, ExitStatus(1, None), "/nowhere", Shortage())[2]
    printed: Any = SimpleNamespace(failure=None, pid=7, ready_at=3.0, bound=False)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "api.log").write_bytes(line(7, said.encode()))
    assert "ulimit -u" in of_worker(app, printed, ExitStatus(2, None), str(tmp_path), Shortage())[2]


WORK_DONE = 'had it done its work? a job that may end: restart.policy = "never"'


def test_a_script_that_ends_without_a_word_is_asked_what_it_was_to_serve_however_long_its_imports_took(
    tmp_path: Path,
) -> None:
    app: Any = SimpleNamespace(name="api", config=AppConfig(name="api", script="server.py"))
    handle: Any = SimpleNamespace(failure=None, pid=7, ready_at=3.0, bound=False)
    (tmp_path / "logs").mkdir()
    done = ExitStatus(0, None)
    assert "start server:app" in of_worker(app, handle, done, str(tmp_path), Shortage())[2]
    (tmp_path / "logs" / "api.log").write_bytes(line(7, b"42 prices read"))
    assert of_worker(app, handle, done, str(tmp_path), Shortage())[2] == WORK_DONE
    handle.bound = True
    assert of_worker(app, handle, done, str(tmp_path), Shortage())[2] == ""


def test_an_app_that_ends_without_a_word_as_it_starts_is_not_taken_for_a_command(tmp_path: Path) -> None:
    app: Any = SimpleNamespace(name="api", config=AppConfig(name="api", target="web:app"))
    handle: Any = SimpleNamespace(failure=None, pid=7, ready_at=None, bound=False)
    hint = of_worker(app, handle, ExitStatus(0, None), str(tmp_path), Shortage())[2]
    assert "os._exit()" in hint
    assert "background" not in hint


def test_a_last_line_comes_with_the_exit_code_and_an_exception_without() -> None:
    assert with_code("cannot open the queue", ExitStatus(3, None)) == "cannot open the queue (exit code 3)"
    assert with_code("giving up", ExitStatus(1, None)) == "giving up (exit code 1)"
    assert with_code("ValueError: bad", ExitStatus(1, None)) == "ValueError: bad"
    assert with_code("exited with code 3", ExitStatus(3, None)) == "exited with code 3"


class Waiting:
    """A look at one pipe of a process that has ended; `pipes` are those that the logger has not read to their end."""

    def __init__(self) -> None:
        self.clock, self.done, self.in_hand = Clock(), False, False
        self.loop = Loop(self.clock, pytest.fail)
        self.read, self.write = os.pipe()
        self.pipes = {"err": self.read}
        store: Any = self.pipes
        when_written(self.loop, store, ("out", "err"), lambda: self.in_hand, self._then)

    def _then(self) -> None:
        self.done = True

    def is_over_after(self, seconds: float) -> bool:
        until = self.clock.now + seconds
        while self.clock.now < until and not self.done:
            self.clock.now += 0.01
            self.loop.turn(0)
        return self.done


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    made = Waiting()
    yield made
    made.loop.close()
    os.close(made.read)


def test_last_words_are_waited_for_until_the_logger_has_come_to_their_end(waiting: Waiting) -> None:
    os.write(waiting.write, b"no disk")
    os.close(waiting.write)
    assert not waiting.is_over_after(1.0)
    os.read(waiting.read, 100)  # taken by the logger, and not written down yet
    assert not waiting.is_over_after(1.0)
    del waiting.pipes["err"]
    assert waiting.is_over_after(0.1)


def test_last_words_are_not_waited_for_without_end(waiting: Waiting) -> None:
    os.close(waiting.write)
    assert waiting.is_over_after(LONGEST + 0.1)


def test_a_pipe_that_a_child_holds_open_is_left_when_it_is_empty(waiting: Waiting) -> None:
    os.write(waiting.write, b"no disk")
    assert not waiting.is_over_after(1.0)
    os.read(waiting.read, 100)
    assert waiting.is_over_after(HELD_OPEN)
    os.close(waiting.write)


def test_a_pipe_that_a_child_holds_open_is_left_when_the_logger_has_written_what_it_took(waiting: Waiting) -> None:
    waiting.in_hand = True
    assert not waiting.is_over_after(HELD_OPEN + 2.0)
    waiting.in_hand = False
    assert waiting.is_over_after(HELD_OPEN)
    os.close(waiting.write)


def test_a_child_that_goes_on_printing_is_not_waited_for_without_end(waiting: Waiting) -> None:
    os.write(waiting.write, b"no disk")
    assert waiting.is_over_after(GO_ON + 0.1)
    os.close(waiting.write)


def end_of(log: Path, status: ExitStatus, said: bytes = b"no such queue", **fields: Any) -> tuple[str, str, str]:
    """What is found of a worker (pid 7, a command) that has printed a line."""
    log.write_bytes(line(7, said))
    config = AppConfig("api", command=("serve",), logs=LogsConfig(file=str(log)))
    app: Any = SimpleNamespace(name="api", workers={}, config=config, current=None, kind="command", want=1, is_job=False, generation=1, generations={})
    handle: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), pid=7, failure=None, ready_at=1.0, bound=False, **fields)
    return of_worker(app, handle, status, str(log.parent), Shortage())


def test_a_signal_is_named_and_kill_comes_with_who_it_may_have_been(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    assert end_of(log, ExitStatus(None, 11))[:2] == ("killed by signal 11 (SEGV)", "no such queue")
    killed = end_of(log, ExitStatus(None, 9))
    assert killed[:2] == ("killed by SIGKILL from outside", "")
    assert killed[2].startswith("somebody did that")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"worker: src/unix/linux.c:1455: uv__io_poll: Assertion `errno == EINTR' failed.", ExitStatus(None, 6)),
        (b"OSError: [Errno 9] Bad file descriptor", ExitStatus(70, None)),
        (CLOSED_BY_APP.encode(), ExitStatus(1, None)),
    ],
)
def test_an_app_that_has_closed_what_is_pyworker_s_has_a_next_step(tmp_path: Path, said: bytes, status: ExitStatus) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(line(7, said))
    config = AppConfig("api", target="web:app", logs=LogsConfig(file=str(log)))
    app: Any = SimpleNamespace(name="api", workers={}, config=config, want=1, generations={})
    handle: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), pid=7, failure=None, ready_at=None)
    assert "os.closerange()" in of_worker(app, handle, status, "", Shortage())[2]
    template: Any = TemplateHandle("api", 1, 0.0, pid=7)
    if status.code is not None:
        reason, _, hint = of_template(app, template, status, "")
        assert reason == said.decode()
        assert "os.closerange()" in hint


def test_an_import_that_goes_into_the_background_is_asked_whether_it_does(tmp_path: Path) -> None:
    app: Any = SimpleNamespace(name="api", workers={}, config=AppConfig("api", target="web:app"), want=1, generations={})
    template: Any = TemplateHandle("api", 1, 0.0, pid=7)
    assert "into the background" in of_template(app, template, ExitStatus(0, None), str(tmp_path))[2]
    assert "is it a Python" in of_template(app, template, ExitStatus(3, None), str(tmp_path))[2]


def test_a_crash_says_where_the_thread_was_that_crashed_and_not_where_it_was_when_it_was_asked_before(tmp_path: Path) -> None:
    dump = 'Current thread 0x1 (most recent call first):\n  File "/srv/{}.py", line 9 in view\n'
    other = 'Thread 0x2 (most recent call first):\n  File "/srv/pool.py", line 3 in wait\n'
    before, crash = dump.format("old").splitlines(), f"Fatal Python error: Aborted\n\n{other}{dump.format('shop')}\n".splitlines()
    log = tmp_path / "api.log"
    app: Any = SimpleNamespace(name="api", config=AppConfig("api", command=("serve",), logs=LogsConfig(file=str(log))))
    handle: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), pid=7, failure=None, ready_at=1.0)
    for lines, words in ((before, ""), (before + crash, ": it was in /srv/shop.py:9 in view")):
        log.write_bytes(b"".join(line(7, each.encode()) for each in lines))
        assert of_worker(app, handle, ExitStatus(None, 6), "", Shortage())[0] == "killed by signal 6 (ABRT)" + words


def test_an_exit_code_is_explained_by_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    assert end_of(log, ExitStatus(3, None))[:2] == ("no such queue", "no such queue")
    assert end_of(log, ExitStatus(0, None)) == ("ended by itself with code 0", "", WORK_DONE)


def test_a_port_that_was_taken_is_named_of_a_program_that_ends_well_nevertheless(tmp_path: Path) -> None:
    said = "2026/11/29 11:39:17 ERROR:    [Errno 98] Address already in use"  # MLflow 3 of the server it starts
    reason, _, hint = end_of(tmp_path / "api.log", ExitStatus(0, None), said=said.encode())
    assert (reason, hint) == (said, "who has it? ss -ltnp")


def test_what_a_worker_printed_long_before_its_end_is_shown_and_not_blamed(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(line(7, b"ValueError: of a request"))
    app: Any = SimpleNamespace(name="api", config=AppConfig("api", target="a:b", logs=LogsConfig(file=str(log))), generations={})
    handle: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), pid=7, failure=None, ready_at=1.0)
    found = of_worker(app, handle, ExitStatus(3, None), "", Shortage(), "2026-01-01T00:00:01.000Z")
    assert found[:2] == ("exited with code 3", "ValueError: of a request")
    assert "os._exit()" in found[2]
    assert of_worker(app, handle, ExitStatus(3, None), "", Shortage(), "2026-01-01")[0] == "ValueError: of a request"
