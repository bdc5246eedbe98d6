from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.cli import client
from pyworker.cli.commands import daemon
from pyworker.cli.deadline import Deadline
from pyworker.errors import PyworkerError
from pyworker.protocol import control
from pyworker.protocol.control import Reply
from pyworker.protocol.names import GUARDIAN_TITLE
from pyworker.protocol.store import MISSED, TICK
from tests.cli import documents
from tests.support.cli import run
from tests.support.control import crowded
from tests.support.fake_control import CLOSE, HANG, FakeControl, refuses, replies
from tests.support.wait import wait_until


def test_the_protocol_number_is_the_declared_one() -> None:
    assert client.PROTOCOL == control.PROTOCOL


def test_a_daemon_that_is_long_about_an_upgrade_is_asked_again(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_TIME", 0.1)
    with FakeControl(home, {"status": lambda _: [HANG]}):
        assert daemon._status(home) == {}
        daemon._check_there(home, {})  # it is there


def test_a_time_in_which_all_stood_still_is_no_silence_of_the_daemon(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    still = 0.0

    def monotonic() -> float:
        looks.append(time.monotonic() + still)
        return looks[-1]

    def thaw(_: object) -> list[Reply]:
        nonlocal still
        still = 70.0
        wait_until(lambda: looks[-1] - looks[0] >= still, what="a look at the clock")
        return [Reply(True, {"pid": 1})]

    monkeypatch.setattr("pyworker.cli.deadline.time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(client, "LOOK", 0.01)
    with FakeControl(home, {"status": thaw}):
        assert client.ask(home, {"type": "status"}) == {"pid": 1}


def test_what_is_done_between_two_waits_for_an_answer_is_no_time_in_which_all_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = waits = 0.0

    def settimeout(seconds: float) -> None:
        nonlocal waits
        waits = seconds

    def recv(_most: int) -> bytes:
        nonlocal now
        now += waits
        raise TimeoutError

    monkeypatch.setattr("pyworker.cli.deadline.time", SimpleNamespace(monotonic=lambda: now))
    call: Any = object.__new__(client.Call)
    call._buffer, call._sock = b"", SimpleNamespace(settimeout=settimeout, recv=recv)
    with contextlib.suppress(TimeoutError):
        for _ in itertools.islice(call.answers(client.ANSWER_TIME, Deadline(20.0)), 10):
            now += 1.5  # it asks why nothing is heard
    assert now == 20.0 + 1.5


def test_a_view_outlasts_the_time_in_which_a_daemon_that_hangs_is_replaced() -> None:
    found = (MISSED + 1) * TICK
    assert client.patience(client.Silent("/home", 5.0)) > found + client.ANSWER_TIME
    assert 0 < client.patience(client._away("/home")) < found, "of no guardian, nothing is to be expected"
    assert client.patience(client.RefusedError({"exit": 75, "code": "busy"})) == 0


@pytest.mark.parametrize(
    "args", [("ps",), ("stop", "api"), ("restart", "api"), ("reload", "api"), ("scale", "api=2"), ("delete", "api"),
             ("describe", "api"), ("events", "-f"), ("wait", "api")],
)  # fmt: skip
def test_no_daemon_is_said_with_the_home_and_none_is_started(home: str, args: tuple[str, ...], tmp_path: Path) -> None:
    found = run(*args, home=home, cwd=str(tmp_path))
    assert (found.code, found.out) == (69, "")
    assert found.err == (
        "The pyworker daemon is not running. Start an app with: pyworker start app.toml\n"
        f"  (no daemon answers at {home})\n"
    )
    assert not os.path.exists(home)
    as_json = json.loads(run(*args, "--json", home=home, cwd=str(tmp_path)).err)
    assert (as_json["v"], as_json["error"]["code"], as_json["error"]["exit"]) == (1, "unavailable", 69)
    assert as_json["error"]["hint"] == "pyworker start app.toml"


def test_no_daemon_where_apps_ran_is_said_with_what_brings_them_back(home: str) -> None:
    os.makedirs(home)
    apps = [{"name": "api", "running": True}, {"name": "off", "running": False}]
    Path(home, "apps.json").write_text(json.dumps({"v": 1, "apps": apps}))
    found = run("ps", home=home)
    assert found.code == 69
    assert found.err.endswith("\n  = help: pyworker daemon start   brings back what ran: api\n")


def test_a_stale_socket_is_no_daemon(home: str) -> None:
    os.makedirs(home)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(f"{home}/control.sock")
    assert run("ps", home=home).code == 69


def test_a_home_with_a_long_path_is_reached(tmp_path: Path) -> None:
    home = str(tmp_path / ("deep-" * 20) / ("deeper-" * 20))
    with FakeControl(home, {"ps": replies(documents.ps())}):
        assert run("ps", "-q", home=home).out.startswith("api\n")
        assert run("ps", "-q", "--home", home, home=str(tmp_path / "other")).out.startswith("api\n")


def test_one_more_than_may_wait_to_be_let_in_waits_too(home: str) -> None:
    os.makedirs(home)
    with crowded(home) as listener, ThreadPoolExecutor() as pool:
        late = pool.submit(client.connect, home)
        with pytest.raises(TimeoutError):
            late.result(0.2)
        listener.accept()[0].close()
        late.result(5).close()


def test_who_was_stopped_while_it_waited_to_be_let_in_waits_on(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not connected, and said that the daemon belongs to user 4294967295."""
    connects: list[object] = []

    class Stopped(socket.socket):
        def connect(self, address: Any) -> None:
            connects.append(address)
            if len(connects) > 1:  # Python takes it for done when SIGCONT ends the call
                super().connect(address)

    monkeypatch.setattr(socket, "socket", Stopped)
    with FakeControl(home, {"ps": replies(documents.ps())}):
        assert client.apps_now(home)
    assert len(connects) == 2


def test_a_read_is_asked_again_when_the_daemon_dies(home: str) -> None:
    answers: Iterator[Any] = iter([[b'{"type":"rep', CLOSE], [Reply(True, documents.ps())]])
    with FakeControl(home, {"ps": lambda _: next(answers)}) as daemon:
        assert run("ps", "-q", home=home).code == 0
    assert len(daemon.requests) == 2


@pytest.mark.parametrize(("timeout", "is_same"), [(None, False), (3.0, True)])
def test_a_read_that_is_asked_again_has_its_time_anew_unless_that_was_given(
    timeout: float | None, is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Deadline] = []

    def ask_once(_home: str, _request: object, _seconds: float, deadline: Deadline) -> dict[str, Any]:
        found.append(deadline)
        if len(found) == 1:
            raise client.Lost("it went away")
        return {}

    monkeypatch.setattr(client, "_ask_once", ask_once)
    assert client.ask("/home", {}, timeout) == {}
    assert (found[0] is found[1]) == is_same


def test_an_answer_that_does_not_end_is_not_kept(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER", 1000)
    with FakeControl(home, {"ps": lambda _: [b"x" * 2000, HANG]}), pytest.raises(PyworkerError, match="a line without an end"):
        client.ask(home, client.ps(), 60.0)


def test_a_daemon_that_dies_each_time_is_unavailable(home: str) -> None:
    with FakeControl(home, {"ps": lambda _: [CLOSE]}) as daemon:
        found = run("ps", home=home)
    assert (found.code, len(daemon.requests)) == (69, 2)
    assert "went away before it had answered" in found.err


def test_a_daemon_that_hangs_is_given_up_after_the_timeout(home: str) -> None:
    with FakeControl(home, {"ps": lambda _: [HANG]}):
        found = run("ps", "--timeout", "100ms", home=home)
    assert found.code == 69
    assert "did not answer within 0.1 s" in found.err
    assert "= help: give it more time: --timeout 5s, or none\n" in found.err


def test_a_guardian_that_cannot_take_over_is_said_with_its_word(home: str) -> None:
    with (
        FakeControl(home, {"ps": lambda _: [HANG]}),
        subprocess.Popen([GUARDIAN_TITLE, "60"], executable=shutil.which("sleep")) as guardian,
    ):
        line = f"2026-11-26T14:26:42Z guardian[{guardian.pid}]: cannot take over yet, trying again: [Errno 13] Permission denied"
        os.mkdir(os.path.join(home, "logs"))
        with open(os.path.join(home, "logs", "pyworker.log"), "w") as log:
            log.write(f"{line}\n")
        found = run("ps", "--timeout", "100ms", home=home)
        stop = run("daemon", "stop", "--timeout", "100ms", home=home)
        guardian.kill()
    assert found.code == 69
    assert line in found.err
    assert "mend that: the daemon is started by itself then" in found.err
    assert line in stop.err
    assert "kill" not in stop.err, "it takes no signal before it has taken over"


def test_a_daemon_that_cannot_be_started_is_said_with_the_guardians_word(home: str) -> None:
    line = "2026-11-26T14:26:42Z guardian[83]: the daemon cannot be started: Resource temporarily unavailable; trying again"
    with FakeControl(home, {"ps": lambda _: [HANG]}):
        os.mkdir(os.path.join(home, "logs"))
        with open(os.path.join(home, "logs", "pyworker.log"), "w") as log:
            log.write(f"rubbish\n{line}\n")
        found = run("ps", "--timeout", "100ms", home=home)
        assert found.code == 69
        assert line in found.err
        assert "ulimit -u" in found.err
        with open(os.path.join(home, "logs", "pyworker.log"), "a") as log:
            log.write(line.replace("the daemon", "over, after 9 times: the daemon") + "\n")
        assert line not in run("ps", "--timeout", "100ms", home=home).err
        ends = "2026-11-26T14:26:50Z guardian[83]: the daemon (pid 99) exited with code 1: starting it again"
        with open(os.path.join(home, "logs", "pyworker.log"), "a") as log:
            log.write(f"{ends}\npython3: No module named pyworker\n")
        found = run("ps", "--timeout", "100ms", home=home)
        assert f"{ends}: python3: No module named pyworker" in found.err
        assert "mend the installation" in found.err
        with open(os.path.join(home, "logs", "pyworker.log"), "a") as log:
            log.write(f"{ends}\nMemoryError\n")
        assert "ulimit -v" in run("ps", "--timeout", "100ms", home=home).err
        with open(os.path.join(home, "logs", "pyworker.log"), "a") as log:
            log.write(f"{ends}\nOSError: [Errno 24] Too many open files\n")
        assert "ulimit -u and -Hn" in run("ps", "--timeout", "100ms", home=home).err
        with open(os.path.join(home, "logs", "pyworker.log"), "a") as log:
            log.write(f"{ends}\npython3: No module named pyworker\n")
        said = run("daemon", "stop", "--timeout", "100ms", home=home).err
        assert "mend the installation" in said
        assert "kill" not in said, "that pid is no guardian's any more"
        with subprocess.Popen([GUARDIAN_TITLE, "60"], executable=shutil.which("sleep")) as guardian:
            with open(os.path.join(home, "logs", "pyworker.log"), "a") as log:
                log.write(f"{ends.replace('[83]', f'[{guardian.pid}]')}\npython3: No module named pyworker\n")
            said = run("daemon", "stop", "--timeout", "100ms", home=home).err
            guardian.kill()
        assert f"to stop all of it: kill {guardian.pid}\n" in said
        with open(os.path.join(home, "logs", "pyworker.log"), "a") as log:
            log.write("OSError: [Errno 27] File too large\n")
        assert "ulimit -f" in run("ps", "--timeout", "100ms", home=home).err


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b"{}\n",
        b'{"type":"reply","ok":true}\n',
        b'{"type":"progress","event":3}\n',
        b"[" * 9999 + b"\n",
    ],
)
def test_rubbish_from_the_daemon_is_an_error_not_a_crash(home: str, rubbish: bytes) -> None:
    with FakeControl(home, {"ps": lambda _: [rubbish]}):
        found = run("ps", home=home)
    assert found.code == 69
    assert "speaks another language than this command" in found.err
    assert "Traceback" not in found.err


def test_an_answer_with_wild_text_is_printed_somehow(home: str) -> None:
    document = documents.ps()
    document["apps"] = [documents.app("api", listen=["a\ud800b\u202ec", "\U0001f600 日本"])]
    text = json.dumps({"type": "reply", "ok": True, "body": document}).encode() + b"\n"
    with FakeControl(home, {"ps": lambda _: [text]}):
        found = run("ps", home=home)
    assert found.code == 0
    assert r"a\ud800b\u202ec" in found.out


def test_a_protocol_refusal_says_what_to_do(home: str) -> None:
    message = "this daemon (0.1.0) speaks protocol 1, the command 2"
    with FakeControl(home, {"ps": refuses("protocol", 69, message, hint="pyworker daemon stop")}):
        assert run("ps", home=home) == (69, "", f"error: {message}\n  = help: pyworker daemon stop\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every socket")
def test_a_socket_that_may_not_be_opened_names_its_owner(home: str) -> None:
    with FakeControl(home, {}):
        os.chmod(f"{home}/control.sock", 0)
        found = run("ps", home=home)
    assert found.code == 77
    assert "belongs to user" in found.err


@pytest.mark.parametrize(("me", "theirs"), [(1000, 4321), (1000, 0), (1000, 1000), (0, 4321)])
def test_a_daemon_of_another_user_is_not_spoken_to(me: int, theirs: int, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeControl(home, {"ps": replies(documents.ps())}) as control:
        monkeypatch.setattr(client, "peer", lambda _: (1, theirs))
        monkeypatch.setattr(os, "geteuid", lambda: me)
        if theirs in (0, me) or me == 0:
            client.apps_now(home)
            return
        with pytest.raises(client.PyworkerError, match="belongs to user 4321, and this is user 1000") as raised:
            client.apps_now(home)
        assert raised.value.exit == 77
        assert not control.requests


@pytest.mark.parametrize("command", ["ps", "start x:y", "logs", "logs -p", "events", "daemon stop", "doctor"])
def test_a_home_that_is_a_link_to_itself_is_said_to_be_of_no_use(command: str, home: str) -> None:
    os.symlink(home, home)
    found = run(*command.split(), home=home)
    assert found.code == 1
    assert "Too many levels of symbolic links" in found.out + found.err
    assert "--home" in found.out + found.err
    assert "bug" not in found.err


@pytest.mark.parametrize("words", [["logs"], ["logs", "-p", "api"], ["events"], ["events", "-f"]], ids=" ".join)
def test_what_reads_the_files_of_another_users_home_says_whose_it_is(home: str, words: list[str]) -> None:
    os.makedirs(f"{home}/logs")
    os.chmod(home, 0)
    code = (  # in a process of its own, which may change its user
        "import os, sys; from pyworker.cli import main\n"
        "main.main([*sys.argv[1:-1], '/no-such-home'])\n"  # imports what that user may not be able to read
        "if os.getuid() == 0: os.setuid(65534)\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words, "--home", home], capture_output=True, text=True, timeout=60)
    os.chmod(home, 0o700)
    assert done.returncode == 77, done.stderr
    assert f"error: The pyworker daemon of {home} belongs to " in done.stderr


def test_a_word_or_a_folder_that_is_no_text_is_named(home: str, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/a\xff"
    os.mkdir(folder)
    with open(folder + b"/app.toml", "w") as file:
        file.write('[app]\ncommand = "sleep 1"\nname = "api"\n')
    with FakeControl(home, {}):
        named = run("ps", "api\udcff", home=home)
        here = run("start", home=home, cwd=os.fsdecode(folder))
    for found in (named, here):
        assert found.code == 2
        assert "\\udcff" in found.err
        assert " is not UTF-8\n" in found.err
