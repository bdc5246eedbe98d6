from __future__ import annotations

import errno
import json
import math
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from pyworker import __main__, __version__, exchanged
from pyworker.cli import fail
from pyworker.cli import main as cli_main
from pyworker.cli.commands import daemon as daemon_command
from pyworker.cli.homes import default_home
from pyworker.cli.main import ALIASES, COMMANDS, GROUPS, command_of
from pyworker.cli.render import look
from pyworker.cli.topics import TOPICS
from pyworker.errors import PyworkerError
from pyworker.protocol import names as files_of
from pyworker.protocol.control import Reply, Shutdown, Upgrade
from pyworker.web.__main__ import TOKEN_FILE
from tests.cli import documents, results
from tests.support.cli import environment, run
from tests.support.fake_control import HANG, FakeControl, Handler, event, refuses, replies
from tests.support.wait import wait_until


def test_alone_it_shows_examples_and_the_commands_in_groups(home: str) -> None:
    found = run(home=home)
    assert (found.code, found.err) == (0, "")
    assert found.out.count("  pyworker ") == 3
    for names in GROUPS.values():
        assert "  ".join(names) in found.out


def test_every_command_is_in_a_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    assert set(ALIASES.values()) <= set(COMMANDS)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"check", "logs"}))
def test_every_command_has_help_with_examples_and_the_common_options(name: str, home: str) -> None:
    found = run(name, "-h", home=home)
    assert found.code == 0
    assert found.out.isascii()
    if name != "daemon":
        assert f"\n  pyworker {name} " in found.out
        for option in ("--json", "--quiet", "--color", "--yes", "--timeout", "--home", "-h, --help"):
            assert option in found.out
    explained = run("help", name, home=home).out
    assert explained == found.out or (name in TOPICS and explained.startswith(found.out))


def test_the_help_of_every_command_can_be_read_on_60_columns() -> None:
    """No sentence is cut short, and no word of the usage is broken."""
    cut, broken = [], []
    for name in COMMANDS:
        found = command_of(name)
        assert found is not None
        inner = found.commands.items() if isinstance(found, click.Group) else ()
        for path, command in ((name, found), *((f"{name} {word}", one) for word, one in inner)):
            wide, narrow = (
                command.get_help(click.Context(command, info_name=path, terminal_width=columns)) for columns in (200, 60)
            )
            if wide.partition("\n\n")[0].split() != narrow.partition("\n\n")[0].split():
                broken.append(path)
            if re.search(r"[a-z]\.\.\.$", narrow, re.MULTILINE):
                cut.append(path)
    assert (cut, broken) == ([], [])


def test_words_that_are_in_no_list_have_help_too(home: str) -> None:
    assert "Empty the logs of apps" in run("help", "flush", home=home).out
    assert run("help", "list", home=home).out.startswith("Usage: pyworker ps")


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_every_topic_can_be_read_also_one_that_is_a_command(topic: str, home: str) -> None:
    assert run("help", topic, home=home).out.endswith(TOPICS[topic][1])
    assert topic in run("help", "topics", home=home).out


def test_version_and_long_help(home: str) -> None:
    assert run("--version", home=home).out == f"pyworker {__version__}\n"
    assert "Options of every command" in run("-h", home=home).out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("reloda", "did you mean `reload`?"),
        ("lst", "did you mean `ps`?"),
        ("shop.main:app", "pyworker start shop.main:app"),
        ("app.toml", "pyworker start app.toml"),
        ("jlist", "pyworker ps --json"),
        ("deploy", "pyworker reload NAME"),
        ("uvicorn", "pyworker start -- COMMAND"),
        ("xyz", "pyworker -h"),
    ],
)
def test_an_unknown_command_gets_a_suggestion(word: str, said: str, home: str) -> None:
    found = run(word, home=home)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"error: no such command `{word}`\n  = help: ")
    assert said in found.err


@pytest.mark.parametrize(
    ("typed", "here"),
    [
        (("start", "shop:app", "--port", "8000"), "-b HOST:PORT"),
        (("start", "shop:app", "--reload"), "--watch"),
        (("start", "shop:app", "-p", "8000"), "-b HOST:PORT"),
        (("start", "app.py", "-i", "max"), "-w N, or -w auto"),
        (("logs", "shop", "--lines", "5"), "-n N"),
        (("logs", "--truncate", "shop"), "pyworker flush NAME empties the log"),
        (("stop", "shop", "-f"), "--now does not wait for open requests, -y does not ask"),
        (("reload", "shop", "--force"), "-y does not ask; a reload needs no change of a file"),
        (("web", "--port", "8701"), "--listen HOST:PORT"),
        (("web", "--bind", ":8701"), "--listen HOST:PORT"),
        (("logs", "--grep", "x"), "--include RE"),
        (("ps", "--format", "json"), "--json"),
        (("ps", "--no-color"), "--color never"),
        (("logs", "--err"), "did you mean `--stderr`?"),
    ],
)
def test_an_option_of_another_program_is_told_what_it_is_here(typed: tuple[str, ...], here: str, home: str) -> None:
    """--port was told that --color may be meant."""
    found = run(*typed, home=home)
    assert found.code == 2
    assert found.err.splitlines()[1:] == [f"  = help: {here}", f"  = help: pyworker {typed[0]} -h shows its options"]


@pytest.mark.parametrize(("word", "here"), [("kill", "pyworker daemon stop"), ("restart", "pyworker daemon upgrade --force"), ("logs", "pyworker doctor")])
def test_a_command_of_another_group_is_told_what_it_is_here(word: str, here: str, home: str) -> None:
    found = run("daemon", word, home=home)
    assert found.code == 2
    assert found.err.splitlines()[0] == f"error: no such command '{word}'"
    assert found.err.splitlines()[1].startswith(f"  = help: {here} ")
    assert found.err.splitlines()[2:] == ["  = help: pyworker daemon -h shows its commands"]


@pytest.mark.parametrize("typed", [("metrics", "--port", "9100"), ("web", "--open"), ("config", "--edit")])
def test_an_option_that_is_like_another_by_its_dashes_alone_is_not_taken_for_it(typed: tuple[str, ...], home: str) -> None:
    assert "did you mean" not in run(*typed, home=home).err.lower()


def test_an_option_without_its_value_is_told_which_command_describes_it(home: str) -> None:
    found = run("logs", "--since", home=home)
    assert found.err.splitlines()[1:] == ["  = help: pyworker logs -h shows its options"]


def test_an_option_that_the_command_does_not_have_is_not_offered(home: str) -> None:
    assert "-b HOST:PORT" not in run("ps", "--port", "8000", home=home).err


def test_the_variable_for_colours_counts_for_errors_too(home: str) -> None:
    assert "\x1b[" in run("nothing", home=home, PYWORKER_COLOR="always").err
    assert "\x1b[" not in run("nothing", home=home, PYWORKER_COLOR="never", FORCE_COLOR="1").err


def test_usage_errors_are_json_too(home: str) -> None:
    found = run("ps", "--json", "--jsno", home=home)
    assert found.code == 2
    error = json.loads(found.err)["error"]
    assert (error["code"], error["exit"]) == ("usage", 2)
    assert "--json" in error["hint"]


@pytest.mark.parametrize("command", ["ps", "events", "logs"])
def test_a_home_that_is_a_file_is_one_with_nothing_in_it(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = run(command, home=str(tmp_path / "file"))
    assert "Traceback" not in found.err
    assert not found.out


@pytest.mark.parametrize("home", ["/" + "a" * 256, "/" + "é" * 128, "/a" * 2000])
@pytest.mark.parametrize("command", ["ps", "logs"])
def test_a_home_whose_name_is_too_long_is_refused_in_words(command: str, home: str) -> None:
    found = run(command, home=home)
    assert "has too long a name" in found.err
    assert "bug" not in found.err


@pytest.mark.parametrize("command", ["start", "run", "ps"])
def test_a_home_whose_name_is_no_text_is_refused_in_words(command: str, tmp_path: Path) -> None:
    found = run(command, home=os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert "\\udcff is not UTF-8" in found.err
    assert "--home" in found.err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (("init", "my app"), "pyworker check --import 'my app/app.toml'\n"),
        (("import", "my app/x.txt"), " 'my app/x.txt'\n"),
        (("import", "my app/Procfile", "-o", "my app/a.toml"), "pyworker start 'my app/a.toml' -n\n"),
        (("export", "systemd", "my app/a.toml"), "pyworker export systemd -f 'my app/a.toml'\n"),
        (("my app/a.toml",), "pyworker start 'my app/a.toml'\n"),
        (("start", "my app/shop:make()"), "pyworker start --cwd 'my app/' 'shop:make()'\n"),
    ],
)
def test_a_path_with_a_blank_is_in_quotes_in_the_next_step(
    words: tuple[str, ...], step: str, home: str, tmp_path: Path
) -> None:
    folder = tmp_path / "my app"
    folder.mkdir()
    (folder / "x.txt").write_text("?")
    (folder / "Procfile").write_text("job: true\n")
    assert step in run(*words, home=home, cwd=str(tmp_path)).err


def test_a_timeout_must_be_a_time(home: str) -> None:
    assert '"10s", "500ms" or "2m"' in run("ps", "--timeout", "soon", home=home).err


@pytest.mark.parametrize("time", ["999999d", "1" * 400])
def test_a_timeout_of_ages_is_waited_for_as_long_as_can_be(time: str, home: str) -> None:
    with FakeControl(home, {"ps": replies(documents.ps())}):
        found = run("ps", "--timeout", time, home=home)
    assert found.code == 0
    assert "bug" not in found.err


def test_a_bug_of_ours_is_reported_with_its_traceback(home: str) -> None:
    def nonsense(_request: object) -> list[bytes]:
        return [b'{"type":"reply","ok":true,"body":{"apps":[{"name":"x"}]}}\n']

    with FakeControl(home, {"ps": nonsense}):
        found = run("ps", home=home)
    assert found.code == 1
    assert found.err.startswith("Traceback")
    assert "this is a bug of pyworker" in found.err


@pytest.mark.parametrize(
    ("error", "began", "is_bug"),
    [
        (KeyError("x"), math.inf, True),
        (KeyError("x"), 0, False),
        (ImportError("no", name="pyworker.cli.new"), math.inf, False),
        (ImportError("no", name="other"), math.inf, True),
    ],
)
def test_an_error_in_the_middle_of_an_installation_is_no_bug(
    error: Exception, began: float, is_bug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exchanged, "BEGAN", began)
    assert fail.bug(error, False, look(sys.stderr, False)) == 1
    said = capsys.readouterr().err
    assert ("this is a bug of pyworker" in said) == is_bug
    assert said.startswith("error: the files of pyworker were exchanged while this command ran: ") != is_bug


def test_a_command_that_cannot_be_imported_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(os.path.dirname(__main__.__file__), tmp_path / "pyworker", ignore=shutil.ignore_patterns("web", "cluster", "__pycache__"))
    os.unlink(tmp_path / "pyworker" / "cli" / "render.py")
    done = subprocess.run([sys.executable, "-m", "pyworker", "ps"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.splitlines()) == (1, [
        "error: pyworker's files are not all there: No module named 'pyworker.cli.render'",
        "  = help: run it again when an upgrade of pyworker is done; if it stays so, install pyworker anew",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "message", "step"),
    [
        (MemoryError(), "no memory is left for this command", "ulimit -v"),
        (OSError(errno.ENOBUFS, "?"), "no memory is left for this command", "ulimit -v"),
        (OSError(errno.EIO, "?", "/h/events.jsonl"), "/h/events.jsonl cannot be read: Input/output error", "dmesg"),
        (OSError(errno.EACCES, "Permission denied", "/h/api.log"), "cannot open /h/api.log: Permission denied", "ls -ld /h"),
        (OSError(errno.ESTALE, "?"), "a file that this command needs cannot be read: Stale file handle", "dmesg"),
    ],
)
def test_a_want_of_memory_or_of_a_disk_that_is_well_is_no_bug_of_ours(
    wanted: Exception, message: str, step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def want(*_: object) -> object:
        raise wanted

    monkeypatch.setattr(cli_main, "_group", want)
    assert cli_main.main(["ps"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}\n  = help: ")
    assert step in said


@pytest.mark.parametrize(
    ("number", "said_of_it"), [(errno.ENFILE, ("no descriptor", "-n")), (errno.ENOMEM, ("no memory", "-v"))]
)
@pytest.mark.parametrize("home", ["/short", "/" + "long" * 30], ids=["no socket", "no folder of a home with a long name"])
def test_a_want_of_descriptors_or_memory_is_no_fault_of_the_home(
    home: str, number: int, said_of_it: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def want(*_: object) -> object:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if len(home) > 100 else socket.socket, "open" if len(home) > 100 else "connect", want)
    assert cli_main.main(["ps", "--home", home]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {said_of_it[0]} is left for this command")
    assert f"ulimit {said_of_it[1]}" in said


def test_daemon_stop_says_what_it_waits_for_when_the_apps_have_ended(home: str) -> None:
    handlers = {"ps": replies({"apps": []}), "status": replies({"logger_pid": 1234}), "shutdown": replies({"apps": []})}
    with FakeControl(home, handlers):
        argv = [sys.executable, "-m", "pyworker", "daemon", "stop"]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, env=environment(home), text=True)
        assert process.stderr is not None
        assert "its logger (pid 1234) has still to write what they printed" in process.stderr.readline()
    assert process.communicate(timeout=30)[1] == "The daemon has stopped.\n"
    assert process.returncode == 0


def test_daemon_stop_waits_for_as_long_as_the_apps_may_take() -> None:
    assert daemon_command._patience({}) == daemon_command._patience({"stop_s": 80.0}) == 120
    assert daemon_command._patience({"stop_s": 600.0}) == 600


def test_daemon_stop_shows_how_far_it_is(home: str) -> None:
    stopped = event("api", 1, "worker_stopped", generation=1, pid=77, took_s=61.5, requests=3, cancelled=0, killed=False)
    handlers: dict[str, Handler] = {
        "ps": replies({"apps": []}),
        "status": replies({}),
        "shutdown": lambda _request: [stopped, Reply(True, {"apps": []})],
    }
    with FakeControl(home, handlers):
        argv = [sys.executable, "-m", "pyworker", "daemon", "stop"]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, env=environment(home), text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == "api.1 stopped 61.5s pid=77 requests=3\n"
    assert process.communicate(timeout=30)[1].endswith("The daemon has stopped.\n")


@pytest.mark.parametrize(("command", "asked"), [("stop", Shutdown), ("upgrade", Upgrade)])
def test_daemon_stop_and_upgrade_with_no_time_to_wait_are_told_and_not_waited_for(
    home: str, command: str, asked: type
) -> None:
    hangs = lambda _request: [HANG]  # noqa: E731
    handlers = {"ps": replies({"apps": []}), "status": replies({"version": "1"}), "shutdown": hangs, "upgrade": hangs}
    with FakeControl(home, handlers) as there:
        done = run("daemon", command, "--timeout", "0", home=home)
        wait_until(lambda: any(isinstance(request, asked) for request in there.requests))
    assert done.code == 75
    assert " after 0 s" in done.err


def test_options_of_every_command_stand_between_daemon_and_its_command_too(tmp_path: Path, home: str) -> None:
    assert run("daemon", "--json", "status", home=home).out == '{"v": 1, "running": false}\n'
    elsewhere = run("daemon", "--home", str(tmp_path / "b"), "status", home=home)
    assert (elsewhere.code, str(tmp_path / "b") in elsewhere.err) == (69, True)


def test_daemon_status_and_stop_without_a_daemon(home: str) -> None:
    assert run("daemon", "status", home=home).code == 69
    as_json = run("daemon", "status", "--json", home=home)
    assert (as_json.code, json.loads(as_json.out)) == (69, {"v": 1, "running": False})
    assert run("daemon", "stop", home=home) == (0, "", "The daemon is not running.\n")
    assert not Path(home).exists()


def test_daemon_status_says_where_it_is(home: str) -> None:
    from tests.support.fake_control import replies

    body = {
        "pid": 7, "version": __version__, "protocol": 1, "uptime_s": 3700.0, "home": home, "guardian_pid": 5,
        "logger_pid": 6, "apps": 3,
    }  # fmt: skip
    with FakeControl(home, {"status": replies(body)}):
        found = json.loads(run("daemon", "status", "--json", home=home).out)
        assert found == {"v": 1, "running": True, **body, "socket": f"{home}/control.sock"}
        assert "pid 7, since 1h 1m" in run("daemon", "status", home=home).out


def test_the_home_is_found_as_documented(tmp_path: Path) -> None:
    def is_asked(home: str, HOME: str = "/h", **env: str) -> bool:
        # it names the home that it has looked into, whether a daemon runs there or not
        return home in re.split(r"[\s();]+", run("logs", "no-such-app", home="", HOME=HOME, **env).err)

    assert is_asked("/h/.local/state/pyworker")
    assert is_asked("/s/pyworker", XDG_STATE_HOME="/s")
    assert is_asked("/h/.local/state/pyworker", XDG_STATE_HOME="relative")
    assert is_asked("/p", PYWORKER_HOME="/p")
    of_user = os.path.join(pwd.getpwuid(os.getuid()).pw_dir, ".local/state/pyworker")
    assert is_asked(of_user, HOME="")
    assert is_asked(of_user, HOME="relative")
    assert run("--home", "/first", "ps", "--home", "/last", home="/p").err.rstrip().endswith("/last)")


@pytest.mark.parametrize("word", ["save", "resurrect", "flush", "kill"])
def test_words_of_pm2_that_mean_the_same_work(word: str, home: str) -> None:
    found = run(word, "-h", home=home)
    assert found.code == 0
    assert found.out.startswith(f"Usage: pyworker {word} ")


def test_the_options_of_pm2s_words_reach_the_command_that_they_stand_for(home: str, tmp_path: Path) -> None:
    ps = {"v": 1, "apps": [{"name": "api", "state": "running"}]}
    handlers = {"ps": replies(ps), "status": replies({}), "shutdown": refuses("busy", 75, "not now")}
    with FakeControl(home, handlers):
        asked = run("kill", "--home", home, home=str(tmp_path / "another"))
        sure = run("kill", "-y", "--home", home, home=str(tmp_path / "another"))
    assert "This stops api" in asked.err
    assert (sure.code, "not now" in sure.err) == (75, True)


def test_kill_with_a_name_is_told_how_that_app_is_stopped(home: str) -> None:
    found = run("kill", "shop", home=home)
    assert found.code == 2
    assert found.err.splitlines()[1:] == ["  = help: pyworker stop shop"]


def test_save_has_nothing_to_do_and_says_why(home: str) -> None:
    found = run("save", home=home)
    assert (found.code, found.out) == (0, "")
    assert "saved at every change" in found.err


def test_help_has_topics_and_says_which(home: str) -> None:
    from pyworker.cli.topics import TOPICS

    listed = run("help", "topics", home=home).out
    assert all(topic in listed for topic in TOPICS)
    assert run("help", "states", home=home).out == TOPICS["states"][1]
    wrong = run("help", "sttes", home=home)
    assert wrong.code == 2
    assert "pyworker help states" in wrong.err


def test_the_files_of_the_home_are_all_named(home: str) -> None:
    named = [line.split()[0] for line in run("help", "files", home=home).out.splitlines()]
    files = [
        *(files_of.APPS_FILE, files_of.EVENTS_FILE, files_of.LOCK_FILE),
        *(files_of.CONTROL_SOCKET, files_of.NOTIFY_SOCKET, TOKEN_FILE),
    ]
    assert set(files) <= set(named)


def test_every_line_of_a_topic_fits_a_terminal() -> None:
    from pyworker.cli.topics import TOPICS

    assert max(len(line) for _, text in TOPICS.values() for line in text.splitlines()) <= 120


def test_the_manual_page_is_what_man_reads(home: str, tmp_path: Path) -> None:
    page = tmp_path / "pyworker.1"
    page.write_text(run("help", "man", home=home).out)
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    done = subprocess.run([groff, "-man", "-ww", "-Tutf8", "-z", str(page)], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("handler", "code"), [(replies(documents.ps()), 0), (refuses("no_such_app", 4, "no app"), 4)])
def test_a_stream_that_the_caller_has_closed_changes_nothing(
    home: str, closed: str, handler: Handler, code: int
) -> None:
    with FakeControl(home, {"ps": handler}):
        done = subprocess.run(
            ["sh", "-c", f'"$0" -m pyworker ps {closed}', sys.executable],
            env=environment(home), timeout=60, check=False, capture_output=True,
        )  # fmt: skip
    assert done.returncode == code


@pytest.mark.parametrize("value", ["", "here"])
def test_a_home_that_is_no_absolute_path_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    found: list[str] = []
    monkeypatch.setattr("pyworker.cli.main.main", lambda _: found.append(default_home()))
    monkeypatch.setattr("pyworker.unix.leave.leave", sys.exit)
    for name in ("HOME", "XDG_STATE_HOME", "PYWORKER_HOME"):
        monkeypatch.setenv(name, value if name != "PYWORKER_HOME" else "")
    with pytest.raises(SystemExit):
        __main__.main()
    assert found == [f"{pwd.getpwuid(os.geteuid()).pw_dir}/.local/state/pyworker"]


def test_a_user_without_a_home_or_a_name_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "PYWORKER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is for a user without an entry
    with pytest.raises(PyworkerError, match="nothing says where the state folder is") as told:
        default_home()
    assert "--home FOLDER" in told.value.hint


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", ["--version", "completion bash", "schema"])
def test_a_full_disk_behind_stdout_is_said(home: str, command: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pyworker", *command.split()],
            env=environment(home), timeout=60, check=False, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output cannot be written: No space left on device\n  = help: ")
    assert done.stderr.count("\n") == 2


def test_a_terminal_that_was_closed_behind_stdout_is_said(home: str) -> None:
    terminal, closed = os.openpty()
    os.close(terminal)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pyworker", "--version"],
            env=environment(home), timeout=60, check=False, stdout=closed, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        os.close(closed)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output cannot be written: Input/output error\n  = help: ")
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(("command", "code"), [("reload api", 0), ("nothing", 2), ("ps", 0)])
@pytest.mark.parametrize("where", ["/dev/full", "a pipe that nobody reads"])
def test_a_stderr_that_cannot_be_written_to_changes_neither_what_is_done_nor_the_exit_code(
    home: str, command: str, code: int, where: str
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    if where == "/dev/full":
        full = os.open(where, os.O_WRONLY)
    else:
        reads, full = os.pipe()
        os.close(reads)
    empty = replies({**documents.ps(), "apps": []})
    try:
        with FakeControl(home, {"ps": empty, "reload": results.reload}):
            done = subprocess.run(
                [sys.executable, "-m", "pyworker", *command.split()],
                env=environment(home), timeout=60, check=False, stdout=subprocess.PIPE, stderr=full, text=True,
            )  # fmt: skip
    finally:
        os.close(full)
    assert done.returncode == code
    assert ("api reloaded: gen 7 → 8" in done.stdout) == (command == "reload api")


def test_a_group_of_commands_alone_shows_them_and_a_wrong_one_is_named(home: str) -> None:
    alone = run("daemon", home=home)
    assert (alone.code, alone.err) == (0, "")
    assert alone.out == run("daemon", "-h", home=home).out
    wrong = run("daemon", "strat", home=home)
    assert wrong.code == 2
    assert wrong.err.startswith("error: no such command 'strat'\n")


def test_the_choices_of_an_argument_are_said_once(home: str) -> None:
    assert run("export", home=home).err.count("kubernetes") == 1


@pytest.mark.parametrize("address", ["127.0.0.1:²", "nothing", "127.0.0.1:70000", ":" + "9" * 5000, "a\udcff:8700"], ids=range(5))
def test_an_address_of_the_dashboard_that_is_none_is_refused_in_words(address: str, home: str) -> None:
    found = run("web", "--listen", address, home=home)
    assert found.code == 2
    assert "is no address: write 127.0.0.1:8700" in found.err


def test_waiting_in_vain_for_an_app_that_is_stopped_is_told_how_it_is_started(home: str) -> None:
    apps = documents.ps()["apps"]
    stopped = {**apps[0], "state": "stopped", "started_at": None, "pool": [], "workers": {"want": 0, "ready": 0, "total": 0}}
    with FakeControl(home, {"ps": replies({**documents.ps(), "apps": [stopped]})}):
        found = run("wait", stopped["name"], "--timeout", "0.1s", home=home)
    assert found.code == 75
    assert found.err.endswith(
        f"error: not ready within 0.1 s: {stopped['name']} is stopped\n  = help: pyworker start {stopped['name']}\n"
    )


def test_who_waits_for_an_app_that_is_stopped_is_told_once_that_nothing_starts_it(home: str) -> None:
    app = documents.ps()["apps"][0]
    stopped = {**app, "state": "stopped", "started_at": None, "pool": [], "workers": {"want": 0, "ready": 0, "total": 0}}
    note = f"{app['name']} is stopped; waiting for a start: pyworker start {app['name']}\n"
    for options, said in (((), note), (("--quiet",), ""), (("--json",), "")):
        looks = iter([[stopped], [stopped], [app]])

        def ps(_request: Any, looks: Iterator[Any] = looks) -> list[Any]:
            return [Reply(True, {**documents.ps(), "apps": next(looks)})]

        with FakeControl(home, {"ps": ps}):
            found = run("wait", app["name"], *options, home=home)
        assert (found.code, found.err) == (0, said)


@pytest.mark.parametrize(
    "view", ["events -f", "events -f --json", "logs -f", "logs -f --json", "top --json", "top --once -i 9s"]
)
def test_a_view_that_follows_ends_when_the_time_that_it_was_given_is_over(view: str, home: str) -> None:
    with FakeControl(home, {"ps": replies(documents.ps()), "follow": lambda _: [HANG]}):
        found = run(*view.split(), "--timeout", "0.5s", home=home)
    assert found.code == 75
    said = json.loads(found.err)["error"]["message"] if "--json" in view else found.err
    assert said.removeprefix("error: ").partition("\n")[0] == "the time of --timeout is over"


def test_ctrl_c_while_the_command_is_still_imported_is_no_traceback(home: str) -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted)\n"
        "from pyworker.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(home), timeout=60, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_schema_says_the_path_that_an_editor_finds(home: str, tmp_path: Path) -> None:
    assert run("schema", "-o", f"{tmp_path}/s.json", home=home).err.endswith(f"#:schema {tmp_path}/s.json\n")
    assert run("schema", "-o", "s.json", home=home, cwd=str(tmp_path)).err.endswith("#:schema ./s.json\n")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("start", "a:b", "--drain-timeout", "9s"), 'app.toml has it, in [app]: stop.drain_timeout = "30s"'),
        (("run", "a:b", "--harakiri", "9"), 'app.toml has it, in [app]: limits.request_timeout = "60s"'),
        (("reload", "api", "--surge=2"), "app.toml has it, in [app]: reload.max_surge = 1"),
        (("start", "a:b", "--app-dir", "src"), "--cwd DIR"),
        (("ps", "--state", "running"), "pyworker ps -h shows its options"),
    ],
)
def test_an_option_that_app_toml_has_is_answered_with_its_key(typed: tuple[str, ...], said: str, home: str) -> None:
    assert run(*typed, home=home).err.splitlines()[1] == f"  = help: {said}"


def test_a_command_that_is_said_names_the_home_that_was_named(home: str, tmp_path: Path) -> None:
    other = f"{tmp_path}/the other"
    assert "Start an app with: pyworker start app.toml\n" in run("reload", "api", home=home).err
    said = run("--home", other, "reload", "api", home=home, HOME="/nowhere").err
    assert said.startswith(f"The pyworker daemon is not running. Start an app with: pyworker --home '{other}' start app.toml\n")
    with FakeControl(other, {"ps": replies(documents.ps())}):
        said = run("ps", "--home", other, home=home, HOME="/nowhere").err
    assert f"   → pyworker --home '{other}' logs -p mail\n" in said
    quoted = f'{tmp_path}/"'
    assert "--home" not in json.loads(run("--home", quoted, "reload", "api", "--json", home=home).err)["error"]["hint"]


def test_who_waits_for_an_app_that_is_to_have_no_worker_is_told_so(home: str) -> None:
    note = "it is scaled to 0: pyworker scale api=1 starts a worker"
    idle = documents.app("api", state="stopped", pool=[], notes=[note], workers={"want": 0, "ready": 0, "total": 0})
    looks = iter([idle, idle, documents.app("api")])
    with FakeControl(home, {"ps": lambda _: [Reply(True, {"apps": [next(looks)]})]}) as daemon:
        assert run("wait", "api", home=home).err == f"api is stopped: {note}\n"
        daemon.handlers["ps"] = replies({"apps": [idle]})
        found = run("wait", "api", "--timeout", "0", home=home)
    assert found.err.startswith(f"error: not ready within 0 s: api is stopped: {note}\n")


def test_who_waits_for_all_of_no_apps_is_told_that_there_are_none(home: str) -> None:
    with FakeControl(home, {"ps": replies({"apps": []})}):
        found = run("wait", "all", home=home)
    assert (found.code, found.err) == (0, "No app is known here.\n")
