"""`pyworker logs`, run as users run it, on log files as the logger writes them. No daemon anywhere."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyworker.cli import logfiles
from pyworker.cli.logview import Entry, Joiner
from pyworker.logger.rotation import Rotation
from pyworker.protocol.logs import LogRecord, format_record
from tests.support.cli import environment, run, run_on_terminal
from tests.support.wait import wait_until


def stamp(second: int) -> str:
    return f"2026-01-02T14:{second // 60:02}:{second % 60:02}.000Z"


def record(
    second: int, msg: bytes | str, worker: int = 1, *, app: str = "api", err: bool = False, partial: bool = False
) -> bytes:
    text = msg.encode() if isinstance(msg, str) else msg
    return format_record(
        LogRecord(stamp(second), app, worker, 40 + worker, "err" if err else "out", partial, text), "text"
    )


def later(line: bytes, second: int) -> bytes:
    """Return this line as one that is printed after the test has begun."""
    return line.replace(stamp(second).encode(), b"2999-01-01T00:00:%02d.000Z" % second)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "logs").mkdir(parents=True, mode=0o700)
    (tmp_path / "home").chmod(0o700)
    return tmp_path / "home"


def log(home: Path, *records: bytes, app: str = "api", suffix: str = "") -> Path:
    path = home / "logs" / f"{app}.log{suffix}"
    with path.open("ab") as file:
        file.write(b"".join(records))
    return path


def logs(home: Path, *args: str, **env: str) -> str:
    result = run("logs", *args, home=str(home), **env)
    assert result.code == 0, result.err
    assert result.err == ""
    return result.out


def event(home: Path, second: int, seq: int, text: str, app: str = "api") -> None:
    value = {
        "v": 1,
        "time": stamp(second),
        "seq": seq,
        "app": app,
        "worker": None,
        "type": "app_note",
        "data": {"text": text},
    }
    with (home / "events.jsonl").open("a") as file:
        file.write(json.dumps(value) + "\n")


def test_logs_of_all_apps_are_merged_by_time_with_aligned_names(home: Path) -> None:
    log(home, record(1, "one"), record(3, "three", 2, err=True))
    log(home, record(2, "two", app="longer-name"), app="longer-name")
    assert logs(home) == "api.1         │ one\nlonger-name.1 │ two\napi.2         ┃ three\n"


def test_terminal_gets_colour_and_the_time(home: Path) -> None:
    log(home, record(1, "one"), record(2, "two", 2, err=True))
    shown = run_on_terminal("logs", home=str(home))
    assert shown.screen.text == "api.1 │ 14:00:01 one\napi.2 ┃ 14:00:02 two\n"
    assert "\x1b[36mapi.1 │\x1b[0m \x1b[2m14:00:01\x1b[0m one" in shown.raw
    assert "\x1b[31m┃\x1b[0m" in shown.raw


def test_timestamps_are_whole_in_a_pipe_too(home: Path) -> None:
    log(home, record(1, "one"))
    assert logs(home, "-t") == "api.1 | 2026-01-02 14:00:01.000+00:00 one\n".replace("|", "│")
    assert logs(home, "-t", "--no-prefix") == "2026-01-02 14:00:01.000+00:00 one\n"
    assert run_on_terminal("logs", "-t", home=str(home), NO_COLOR="1").screen.text == logs(home, "-t")


def test_last_lines_reach_back_into_rotated_and_compressed_files(home: Path) -> None:
    (home / "logs" / "api.log.2.gz").write_bytes(gzip.compress(b"".join(record(n, f"{n}") for n in range(100))))
    log(home, *(record(n, f"{n}") for n in range(100, 150)), suffix=".1")
    log(home, *(record(n, f"{n}") for n in range(150, 160)))
    assert logs(home, "--no-prefix").split() == [str(n) for n in range(110, 160)]
    assert logs(home, "--no-prefix", "-n", "3").split() == ["157", "158", "159"]
    assert logs(home, "--no-prefix", "-n", "155").split() == [str(n) for n in range(5, 160)]
    assert logs(home, "-n", "0") == ""
    assert logs(home, "--no-prefix", "--since", "2026-01-02T14:01:35Z").split() == [str(n) for n in range(95, 160)]


def test_names_pick_apps_workers_and_globs(home: Path) -> None:
    log(home, record(1, "a1"), record(2, "a2", 2), record(3, "at", 0))
    log(home, record(4, "m1", app="mail"), app="mail")
    plain = ("--no-prefix",)
    assert logs(home, "api", *plain).split() == ["a1", "a2", "at"]
    assert logs(home, "api.2", "mail", *plain).split() == ["a2", "m1"]
    assert logs(home, "m*", *plain).split() == ["m1"]
    assert logs(home, "api.template") == "api.template │ at\n"
    assert logs(home, "all", *plain).split() == ["a1", "a2", "at", "m1"]


def test_streams_and_times_pick_lines(home: Path) -> None:
    log(home, record(1, "o"), record(2, "e", err=True), record(200, "late"))
    assert logs(home, "--stderr", "--no-prefix").split() == ["e"]
    assert logs(home, "--stdout", "--no-prefix").split() == ["o", "late"]
    assert logs(home, "--until", "2026-01-02T14:01:00Z", "--no-prefix").split() == ["o", "e"]
    assert logs(home, "--since", "0500-01-01", "--stderr", "--no-prefix").split() == ["e"]
    assert logs(home, "--until", "0500-01-01", "--no-prefix", "-q") == ""
    assert logs(home, "--since", "2026-01-02T14:00:02Z", "--until", "2026-01-02T14:00:02Z", "--no-prefix").split() == [
        "e"
    ]


def test_events_of_the_time_that_is_asked_for_are_there_however_many_came_later(home: Path) -> None:
    log(home, record(1, "line"))
    event(home, 2, 1, "then")
    for seq in range(2, 600):
        event(home, 3, seq, "later")
    assert "then" in logs(home, "--until", "2026-01-02T14:00:02Z")
    assert "then" in logs(home, "--since", "2026-01-02T14:00:01Z")


@pytest.mark.parametrize("value", ["yesterday", "25:00", "15 m", "2026-13-01"])
def test_time_that_is_none_is_refused_with_examples(home: Path, value: str) -> None:
    result = run("logs", "--since", value, home=str(home))
    assert result.code == 2
    assert '"15m", "13:00" or "2026-11-23T13:00"' in result.err


def test_parts_of_a_line_are_one_line_again(home: Path) -> None:
    log(
        home,
        record(1, "load", partial=True),
        record(1, "other", 2),
        record(2, "ing…".encode()[:5], partial=True),
        record(3, "ing…".encode()[5:] + b" done"),
        record(4, "still", partial=True),
    )
    assert logs(home) == "api.1 │ still\n".join(["api.2 │ other\napi.1 │ loading… done\n", ""])
    assert logs(home, "-n", "2", "--no-prefix") == "loading… done\nstill\n"


def test_a_line_that_does_not_end_is_not_held_for_ever() -> None:
    part = Entry(b"", b"api.1", b"1", b"out", True, b"x" * 600_000)
    joiner = Joiner()
    assert joiner.add(part) is None
    so_far = joiner.add(part)
    assert so_far is not None
    assert (len(so_far.msg), so_far.partial, len(joiner)) == (1_200_000, False, 0)


def test_the_last_line_is_whole_also_where_others_printed_between_its_parts(home: Path) -> None:
    log(home, record(1, "before"), record(2, "loading… ", partial=True))
    log(home, *(record(3, f"{n}", 2) for n in range(30)), record(4, "50%, ", partial=True), record(5, "other", 2))
    log(home, record(6, "done"))
    assert logs(home, "-n", "1", "--no-prefix") == "loading… 50%, done\n"
    assert logs(home, "-n", "2", "--no-prefix") == "other\nloading… 50%, done\n"


def test_escapes_of_an_app_cannot_touch_the_terminal(home: Path) -> None:
    evil = b"\x1b[2J\x1b]0;owned\x07 \x9b31m \xc2\x9b31m a\rb \x00\x7f\x08\ttab" + "\u202e".encode()
    log(home, record(1, evil))
    for shown in (logs(home), run_on_terminal("logs", "--no-prefix", home=str(home)).raw):
        assert "\\x1b[2J\\x1b]0;owned\\x07 \\x9b31m \\x9b31m a" in shown
        assert not set(shown) & {"\x1b", "\x07", "\x9b", "\x00", "\x7f", "\x08", "\u202e"}
    assert "\ttab" in logs(home)


def test_raw_gives_the_apps_own_bytes(home: Path) -> None:
    log(home, record(1, b"\x1b[31mred\xff\x00"))
    done = subprocess.run(
        [sys.executable, "-m", "pyworker", "logs", "--raw"], capture_output=True, env=environment(str(home)), timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == b"\x1b[31mred\xff\x00\n"


def test_json_is_one_object_a_line(home: Path) -> None:
    log(home, record(1, "ü\x1b", 2, err=True))
    event(home, 2, 1, "not in here")
    assert [json.loads(x) for x in logs(home, "--json").splitlines()] == [
        {"v": 1, "ts": stamp(1), "app": "api", "worker": 2, "pid": 42, "stream": "stderr", "msg": "ü\x1b"}
    ]


def test_json_logs_read_like_text_logs(home: Path) -> None:
    log(home, format_record(LogRecord(stamp(1), "api", 1, 5, "out", partial=False, msg='say "hä"'.encode()), "json"))
    assert logs(home) == 'api.1 │ say "hä"\n'


def test_events_stand_between_the_lines_of_their_time(home: Path) -> None:
    event(home, 0, 1, "before all lines")
    log(home, record(1, "one"), record(3, "three"))
    event(home, 2, 2, "deployed \x1b[31m by bob")
    event(home, 4, 3, "other's", app="mail")
    assert logs(home, "api") == "api.1 │ one\n── 14:00:02  api deployed \\x1b[31m by bob ──\napi.1 │ three\n"
    assert "deployed" not in logs(home, "--raw")
    since = ("api", "--since", "2026-01-02T14:00:00Z")
    shown = logs(home, *since).splitlines()
    assert shown[0] == "── 14:00:00  api before all lines ──"
    assert logs(home, *since, "-n", "9").splitlines() == shown
    assert logs(home, *since, "-n", "1") == "api.1 │ three\n"  # and not all that has happened since
    for seq in range(5, 30):
        event(home, seq, seq, "much")
    assert logs(home, "api").count("much") == 25
    assert logs(home, "api", "-n", "2").splitlines()[2:] == [f"── 14:00:{s}  api much ──" for s in (28, 29)]


def test_log_in_another_place_is_found_through_its_link(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "var" / "x.log"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(record(2, "here"))
    elsewhere.with_name("x.log.1").write_bytes(record(1, "rotated"))
    (home / "logs" / "api.path").symlink_to(elsewhere)
    assert logs(home, "api", "--no-prefix").split() == ["rotated", "here"]


def test_what_is_no_log_of_an_app_is_not_taken_for_one(home: Path) -> None:
    folder = home / "logs"
    for name in ("api.log", "api.log.1", "web.2024", "pyworker.log", "Api.log", "notes"):
        (folder / name).touch()
    (folder / "web.path").symlink_to("/var/log/web")
    (folder / "Web.path").symlink_to("/var/log/web")
    assert logfiles.find(str(home)) == {"api": f"{folder}/api.log", "web": "/var/log/web"}


def test_unknown_app_exits_4_and_names_the_home_and_the_logs_there_are(home: Path) -> None:
    log(home, record(1, "x"))
    result = run("logs", "apl", home=str(home))
    assert result.code == 4
    assert str(home) in result.err
    assert "did you mean api?" in result.err
    assert "there are logs of: api" in result.err
    assert result.out == ""


def test_known_app_that_has_printed_nothing_is_no_error(home: Path) -> None:
    (home / "apps.json").write_text(json.dumps({"v": 1, "apps": [{"name": "quiet"}]}))
    assert run("logs", "quiet", home=str(home)) == (0, "", "There is nothing in the log of quiet.\n")
    assert logs(home, "quiet", "-q") == logs(home, "quiet", "--json") == ""
    log(home, record(1, "calm"))
    assert run("logs", "api", "-l", "error", home=str(home)).err == "There is nothing like that in the log of api.\n"
    assert run("logs", "-l", "error", home=str(home)).err == "There is nothing like that in the logs.\n"


def test_what_happened_to_an_app_that_has_printed_nothing_is_shown(home: Path) -> None:
    (home / "apps.json").write_text(json.dumps({"v": 1, "apps": [{"name": "quiet"}]}))
    event(home, 2, 1, "exited", app="quiet")
    assert "exited" in logs(home, "quiet")
    assert logs(home, "quiet", "-n", "0") == ""


def test_home_that_does_not_exist_has_no_logs_and_is_not_made(tmp_path: Path) -> None:
    found = run("logs", home=str(tmp_path / "nothing"))
    assert (found.code, found.out) == (0, "")
    assert found.err == f"Nothing has been logged in {tmp_path}/nothing yet.\n"
    assert run("logs", "api", home=str(tmp_path / "nothing")).code == 4
    assert not (tmp_path / "nothing").exists()


def test_damaged_files_are_read_as_far_as_possible(home: Path) -> None:
    log(home, b"an editor was here\n\xff\xfe\n", record(5, "fine"), b"{[[[\n", b"2026 x y out| z\n", b"torn in the mid")
    (home / "logs" / "api.log.1.gz").write_bytes(gzip.compress(record(1, "zipped"))[:-9])
    (home / "logs" / "bad.log").write_bytes(os.urandom(5000))
    (home / "events.jsonl").write_bytes(b"{\n\xff\n[]\n" + b"[" * 5000 + b"\n")
    long = b"9" * 5000  # more than Python takes for a number
    log(home, b"\n", record(6, "pid").replace(b" 41 ", b" %b " % long), record(7, "slot").replace(b"api.1", b"api.%b" % long))
    assert "api.1 │ fine\n" in logs(home)
    assert '"msg": "fine"' in logs(home, "--json")


# ---- -f ----------------------------------------------------------------------------------------------
class Follower:
    """`pyworker logs -f` and what it has printed so far."""

    def __init__(self, home: Path, *args: str, before: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *before, "-m", "pyworker", "logs", "-f", *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(str(home)), start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = b""

    def has(self, words: bytes) -> bool:
        assert self.process.stdout is not None
        while part := self.process.stdout.read():
            self.text += part
        return words in self.text

    def wait_for(self, words: bytes) -> None:
        wait_until(lambda: self.has(words), what=lambda: f"{words!r} in {self.text[-500:]!r}")

    def end(self) -> tuple[int, bytes]:
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err


@pytest.fixture
def follow(home: Path) -> Iterator[Callable[..., Follower]]:
    made: list[Follower] = []

    def start(*args: str, before: tuple[str, ...] = ()) -> Follower:
        made.append(Follower(home, *args, before=before))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        with one.process:  # closes its pipes
            pass


def test_follow_starts_with_ten_lines_goes_on_and_ends_silently_at_ctrl_c(
    home: Path, follow: Callable[..., Follower]
) -> None:
    log(home, *(record(n, f"old{n}.") for n in range(20)))
    view = follow()
    view.wait_for(b"old19.")
    assert view.text.count(b"old") == 10
    log(home, record(30, "new"))
    view.wait_for(b"api.1 \xe2\x94\x82 new\n")
    code, err = view.end()
    assert (code, err) == (130, b"")


# root opens everything, until it has lost CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
AS_ANYBODY = (
    "-c",
    "import ctypes, os, sys; prctl = ctypes.CDLL(None).prctl; prctl(24, 1); prctl(24, 2)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
)


def test_a_file_that_may_not_be_opened_hides_no_other(home: Path, follow: Callable[..., Follower]) -> None:
    log(home, record(1, "old"), app="web", suffix=".1")
    log(home, record(2, "fine"), app="web")
    log(home, record(1, "before"), suffix=".1")
    log(home, record(3, "hidden"))
    for name in ("web.log.1", "api.log"):
        (home / "logs" / name).chmod(0o200)  # the logger goes on writing
    for more in ((), ("--since", "2026-01-02"), ("-e", "x")):
        command = [sys.executable, *AS_ANYBODY, "-m", "pyworker", "logs", *more]
        done = subprocess.run(command, env=environment(str(home)), capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, messages(done.stdout)) == (1, ["before", "fine"]), done.stderr
        assert all(f"/logs/{name}: Permission denied" in done.stderr for name in ("web.log.1", "api.log"))
        assert f"ls -ld {home}/logs/" in done.stderr
    view = follow(before=AS_ANYBODY)
    view.wait_for(b"fine")
    log(home, later(record(4, "meanwhile"), 4))
    (home / "logs" / "api.log").chmod(0o600)
    view.wait_for(b"meanwhile")
    log(home, later(record(5, "and then"), 5))
    view.wait_for(b"and then")
    _, err = view.end()
    assert b"hidden" not in view.text  # what it was begun after: of a log that may be read it shows the last ten lines
    assert err.count(b"api.log: Permission denied") == 1, err


def test_follow_ends_when_nobody_reads_it_and_not_at_the_next_line(home: Path, follow: Callable[..., Follower]) -> None:
    log(home, record(1, "old"))
    view = follow()
    view.wait_for(b"old")
    assert view.process.stdout is not None
    view.process.stdout.close()
    assert view.process.wait(20) == 0


def test_follow_sees_apps_and_events_that_appear_later(home: Path, follow: Callable[..., Follower]) -> None:
    view = follow("api", "mail*", "late")
    assert view.process.wait(20) == 4
    log(home, record(1, "first"))
    view = follow()
    view.wait_for(b"first")
    log(home, record(1, "of another year", app="late"), later(record(1, "hello", app="late"), 1), app="late")
    view.wait_for(b"hello")
    assert b"of another year" not in view.text
    event(home, 3, 9, "deployed")
    view.wait_for("── 14:00:03  api deployed ──\n".encode())


def test_follow_reads_every_line_across_rotations(home: Path, follow: Callable[..., Follower]) -> None:
    path = log(home, record(0, "start"))
    view = follow("--no-prefix")
    view.wait_for(b"start")
    rotation = Rotation(str(path))
    for number in range(1, 10):  # several rotations with nothing in between to wait for
        rotation.shift(20)
        log(home, record(number, f"file{number}."))
        if number % 3 == 0:
            view.wait_for(b"file%d." % number)
    assert view.text.split() == [b"start", *(b"file%d." % n for n in range(1, 10))]


@pytest.mark.parametrize("step", [1, -1], ids=["", "the clock is set back"])
def test_follow_reads_what_was_compressed_before_it_came_to_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(logfiles, "_TURN_LINES", 3)
    path = log(home, record(0, "start"))
    followed = logfiles.Log(str(path))
    rotation = Rotation(str(path))
    expected = []
    for number in range(1, 5):
        expected += [record(number, f"{number}.{n}") for n in range(number)]
        rotation.shift(20)
        log(home, *expected[-number:])
        os.utime(path, (2e9 + step * number,) * 2)  # written at different times
        if number == 3:
            rotation._compress_all()
    found: list[bytes] = []
    wait_until(lambda: found.extend(followed.more()) or len(found) >= len(expected), what="the last line")
    followed.close()
    assert b"\n".join([*found, b""]) == b"".join(expected)


@pytest.mark.parametrize(("rotations", "missing"), [(2, False), (4, True)])
@pytest.mark.parametrize("as_json", [False, True])
def test_follow_says_what_was_rotated_away_before_it_was_read(
    home: Path, follow: Callable[..., Follower], rotations: int, missing: bool, as_json: bool
) -> None:
    path = log(home, record(0, "start"))
    view = follow(*(["--json"] if as_json else []))
    view.wait_for(b"start")
    view.process.send_signal(signal.SIGSTOP)
    rotation = Rotation(str(path))
    for number in range(1, rotations + 1):
        rotation.shift(1)
        log(home, record(number, f"file{number}."))
        moved = path.with_name("api.log.1").stat().st_ctime
        wait_until(lambda moved=moved: time.time() > moved + 0.2, what="a rotation of another time")
    view.process.send_signal(signal.SIGCONT)
    view.wait_for(b"file%d." % rotations)
    _, err = view.end()
    assert view.text.count(b"file") == 2
    if not missing:
        assert (err, b"missing" in view.text) == (b"", False)
    elif as_json:
        note = json.loads(view.text.splitlines()[1])
        assert note["msg"].startswith(f"what was printed between {stamp(0)} and {stamp(3)} is missing")
        assert (note["app"], note["worker"], note["stream"], err) == ("api", 0, "stderr", b"")
    else:
        assert err.startswith(b"api.log: what was printed between 14:00:00 and 14:00:03 is missing"), err


def test_follow_stays_with_a_file_that_logrotate_moved_until_the_logger_has_left_it(home: Path) -> None:
    path = log(home, record(0, "start"))
    followed = logfiles.Log(str(path))
    moved = path.rename(path.with_name("moved"))
    path.touch()  # logrotate's `create`; the logger does not know of it yet
    assert followed.more() == []
    with moved.open("ab") as file:
        file.write(b"last\n")
    assert followed.more() == [b"last"]
    path.write_bytes(b"first\n")
    assert followed.more() == [b"first"]
    followed.close()


def test_follow_shows_what_two_apps_printed_meanwhile_by_its_times(home: Path, follow: Callable[..., Follower]) -> None:
    log(home, record(0, "start"))
    log(home, app="web")
    view = follow("--no-prefix")
    view.wait_for(b"start")
    view.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, view.process.pid, os.WSTOPPED | os.WNOWAIT)
    log(home, record(1, "a"), record(3, "c"))
    log(home, record(2, "b", app="web"), record(4, "d", app="web"), app="web")
    view.process.send_signal(signal.SIGCONT)
    for last in (b"c\n", b"d\n"):
        view.wait_for(last)
    assert view.text.split() == [b"start", b"a", b"b", b"c", b"d"]


def test_a_filter_passes_over_what_is_no_line_of_a_log(home: Path) -> None:
    log(home, record(1, "x1"), b"stray x\n", record(2, "x2"))
    assert logs(home, "--no-prefix", "--include", "x").split() == ["x1", "x2"]


def test_follow_goes_on_at_the_start_of_a_file_that_was_cut(home: Path) -> None:
    path = log(home, record(0, "start"), b"a part")
    followed = logfiles.Log(str(path))
    assert followed.more() == []
    path.write_bytes(b"first\n")
    assert (followed.more(), followed.more()) == ([b"a part"], [b"first"])
    followed.close()


def test_a_folder_where_a_log_was_is_passed_over_until_it_is_a_file_again(home: Path) -> None:
    path = log(home, record(0, "start"))
    followed = logfiles.Log(str(path))
    path.unlink()
    path.mkdir()
    path.with_name("api.log.1").mkdir()
    assert [followed.more(), followed.more()] == [[], []]
    assert logs(home, "api", "-q") == ""
    path.rmdir()
    path.write_bytes(b"first\n")
    assert followed.more() == [b"first"]
    followed.close()


def test_follow_shows_an_unfinished_line_after_a_moment_and_then_its_rest(
    home: Path, follow: Callable[..., Follower]
) -> None:
    log(home, record(0, "x"))
    view = follow("--no-prefix")
    view.wait_for(b"x")
    log(home, record(1, "Password: ", partial=True))
    view.wait_for(b"Password: \n")
    log(home, record(1, "a", partial=True), record(1, "b"))  # at once: nor does it wait for long now
    view.wait_for(b"ab\n")


def test_line_that_is_being_written_is_shown_once_and_whole(home: Path, follow: Callable[..., Follower]) -> None:
    whole = record(2, "second half")
    path = log(home, record(1, "x"), whole[:40])
    view = follow("--no-prefix")
    view.wait_for(b"x")
    with path.open("ab") as file:
        file.write(whole[40:])
    view.wait_for(b"second half\n")
    assert view.text == b"x\nsecond half\n"


def test_reader_that_has_seen_enough_ends_it_quietly(home: Path) -> None:
    log(home, *(record(n % 3000, "x" * 100) for n in range(20_000)))
    view = subprocess.Popen(
        [sys.executable, "-m", "pyworker", "logs", "-n", "20000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(str(home)),
    )  # fmt: skip
    assert view.stdout is not None
    view.stdout.read(10)
    view.stdout.close()
    assert view.stderr is not None
    assert view.stderr.read() == b""
    view.stderr.close()
    assert view.wait(20) == 0


def test_logs_import_nothing_slow(home: Path) -> None:
    log(home, record(1, "x"))
    event(home, 2, 1, "y")
    code = (
        "import sys; from pyworker.cli.main import main; main(['logs']); "
        "print(sorted({'rich','asyncio','psutil','tomllib','uvicorn','subprocess'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(str(home)), timeout=30, check=True, text=True
    )
    assert done.stderr == "[]\n"


# ---- records ---------------------------------------------------------------------------------------
def traceback(second: int, worker: int, what: str) -> list[bytes]:
    lines = (f"ERROR {what}", "Traceback (most recent call last):", '  File "x.py", line 1', f"ValueError: {what}")
    return [record(second, text, worker, err=True) for text in lines]


def mixed(home: Path) -> None:
    """Two tracebacks whose lines are mixed, between lines of access log."""
    one, two = traceback(3, 1, "first"), traceback(3, 2, "second")
    pairs = [part for pair in zip(one, two, strict=True) for part in pair]
    log(home, record(1, "INFO GET /"), record(2, "WARNING slow"), *pairs, record(9, "INFO GET /end"))


def messages(out: str) -> list[str]:
    return [line.split(" | ", 1)[-1].split("│ ")[-1].split("┃ ")[-1] for line in out.splitlines()]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("-i", "ValueError: second"), ["ERROR second", "Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: second"]),
        (("-e", "ValueError"), ["INFO GET /", "WARNING slow", "INFO GET /end"]),
        (("-l", "warning", "-e", "ERROR"), ["WARNING slow"]),
        (("-l", "warn", "-n", "1", "-i", "first"), ["ERROR first", "Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: first"]),
        (("-l", "error", "-n", "1"), ["ERROR second", "Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: second"]),
        (("-i", "GET", "--since", "2026-01-02T14:00:05Z"), ["INFO GET /end"]),
        (("-i", "no such thing"), []), (("-i", "GET", "-n", "0"), []),
    ],
)  # fmt: skip
def test_filters_take_whole_records(home: Path, args: tuple[str, ...], expected: list[str]) -> None:
    mixed(home)
    assert messages(logs(home, *args, "-q")) == expected


def test_records_are_whole_across_windows_and_rotated_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyworker.cli import logreader
    from pyworker.cli.logview import Choice, View
    from pyworker.cli.options import settings_of
    from pyworker.cli.records import Filter
    from pyworker.cli.render import Look

    parts = [part for second in range(0, 40, 4) for part in traceback(second, second % 3 + 1, f"n{second}")]
    log(home, *parts[:14], suffix=".1")
    log(home, *parts[14:])
    view = View(Look(tty=False, color=False, ascii=False, width=0))
    for window in (1, 2, 3, 5, 7, 1000):
        monkeypatch.setattr(logreader, "_WINDOW", window)
        settings = settings_of({"home": str(home)})
        reader = logreader.Reader(settings, (), Choice(()), view, Filter(("ValueError",)), events=True)
        try:
            (opened,) = reader._logs.values()
            found = reader._last_records(opened, 4)
        finally:
            reader.close()
        assert [len(record) for record in found] == [4] * 4, window
        assert [record[0].msg for record in found] == [b"ERROR n24", b"ERROR n28", b"ERROR n32", b"ERROR n36"]


def test_follow_filters_records_and_does_not_wait_for_the_next_line(
    home: Path, follow: Callable[..., Follower]
) -> None:
    log(home, record(1, "INFO GET /"))
    follower = follow("-l", "error")
    log(home, record(2, "INFO GET /"), *traceback(3, 1, "late"))
    follower.wait_for(b"ValueError: late")
    assert b"INFO" not in follower.text
    assert b"Traceback" in follower.text


def test_json_lines_are_laid_out_on_a_terminal_and_marked_in_json(home: Path) -> None:
    line = '{"level":"error","msg":"payment failed","order":8123}'
    log(home, record(1, line))
    screen = run_on_terminal("logs", home=str(home)).screen
    assert "ERROR    payment failed  order=8123" in screen.text
    assert line in logs(home)
    value = json.loads(logs(home, "--json"))
    assert (value["msg"], value["level"], value["fields"]["order"]) == (line, "error", 8123)


def test_what_an_app_prints_into_a_json_log_is_never_taken_for_another_s_record(home: Path) -> None:
    forged = b"2026-01-02T14:00:00.000Z bank.1 7 err| paid"
    log(home, format_record(LogRecord(stamp(1), "api", 1, 5, "out", partial=False, msg=forged), "json"))
    assert logs(home, "api") == f"api.1 │ {forged.decode()}\n"


def test_numbers_that_json_does_not_have_are_null_in_json(home: Path) -> None:
    log(home, record(1, '{"msg": "x", "a": NaN, "b": [-Infinity, 1e999], "c": 1.5}'))
    value = json.loads(logs(home, "--json"), parse_constant=pytest.fail)
    assert value["fields"] == {"msg": "x", "a": None, "b": [None, None], "c": 1.5}


def test_more_lines_than_a_machine_can_count_are_all_of_them(home: Path) -> None:
    log(home, record(1, "one"), record(2, "two"))
    assert logs(home, "-n", "9" * 20, "--no-prefix") == "one\ntwo\n"


def test_highlight_marks_and_hides_nothing(home: Path) -> None:
    log(home, record(1, "order 17 paid"), record(2, "nothing"))
    out = logs(home, "-H", r"\d+", "-H", "paid", "--color", "always", "--no-prefix")
    assert out == "order \x1b[1;7m17\x1b[0m \x1b[1;7mpaid\x1b[0m\nnothing\n"
    assert logs(home, "-H", r"\d+", "--no-prefix") == "order 17 paid\nnothing\n"


def test_what_is_marked_is_marked_by_each_pattern_for_itself(home: Path) -> None:
    log(home, record(1, "order 17 paid"))
    out = logs(home, "-H", "(?P<what>1)7", "-H", "(?i)(?P<what>PAID)", "-H", "7 pa", "-H", "x*", "--color", "always", "--no-prefix")
    assert out == "order \x1b[1;7m17\x1b[0m\x1b[1;7m pa\x1b[0m\x1b[1;7mid\x1b[0m\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-i", "("), "no regular expression"), (("-H", "*"), "no regular expression"), (("-l", "loud"), "the levels are"),
        (("-p", "-f"), "give one of them"),
        (("-i", "a{99999999999}"), "no regular expression"), (("-H", "(" * 3000), "no regular expression"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_filter_that_is_none_is_refused(home: Path, args: tuple[str, ...], words: str) -> None:
    found = run("logs", *args, home=str(home))
    assert found.code == 2
    assert words in found.err


def test_a_pattern_that_may_mean_something_else_one_day_is_taken_without_a_warning(home: Path) -> None:
    log(home, record(1, "[a]"))
    for option in ("-i", "-e", "-H"):
        assert run("logs", option, "[[a]", home=str(home)).err.splitlines() == (["There is nothing like that in the logs."] if option == "-e" else [])


def ended(home: Path, seq: int, second: int, type: str, worker: int | None, **data: object) -> None:
    value = {"v": 1, "time": stamp(second), "seq": seq, "app": "api", "worker": worker, "type": type, "data": data}
    with (home / "events.jsonl").open("a") as file:
        file.write(json.dumps(value) + "\n")


def test_previous_shows_the_last_words_of_the_worker_that_died_last(home: Path) -> None:
    log(home, record(1, "of the dead", 2), record(2, "of another", 1), record(3, "of its successor", 3))
    died = {"generation": 1, "code": 1, "signal": None, "after_s": 2.0, "reason": "KeyError: 'x'", "traceback": ""}
    ended(home, 1, 1, "worker_exited", 1, pid=41, **died)
    ended(home, 2, 2, "worker_exited", 2, pid=42, **died)
    ended(home, 3, 5, "worker_stopped", 3, pid=43, generation=1, took_s=0.1, requests=0, cancelled=0, killed=False)
    found = run("logs", "-p", "api", home=str(home))
    assert (found.code, messages(found.out)) == (0, ["of the dead"])
    assert found.err.startswith("api.2 exited pid 42 with code 1 after 2.0s: KeyError: 'x', ")
    assert messages(run("logs", "-p", "api.1", "-q", home=str(home)).out) == ["of another"]
    ended(home, 6, 6, "worker_exited", 4, pid=44, **died)
    silent = run("logs", "-p", "api", home=str(home))
    assert (silent.code, silent.out) == (0, "")
    assert silent.err.endswith("\nIt has printed nothing that is still in the log.\n")


def test_previous_leaves_out_what_others_printed_that_had_the_same_pid_as_in_a_container(home: Path) -> None:
    log(home, *(record(n, msg) for n, msg in ((1, "an older one"), (10, "born"), (13, "last words"), (20, "a younger one"))))
    died = {"generation": 1, "code": 1, "signal": None, "after_s": 2.0, "reason": "", "traceback": ""}
    ended(home, 1, 0, "worker_starting", 1, generation=1, pid=41)
    ended(home, 2, 11, "worker_starting", 1, generation=1, pid=41)
    ended(home, 3, 12, "worker_starting", 1, generation=1, pid=40)
    ended(home, 4, 12, "worker_exited", 1, pid=41, **died)
    ended(home, 5, 19, "worker_starting", 1, generation=1, pid=41)
    assert messages(logs(home, "-p", "-q", "api")) == ["born", "last words"]
    assert messages(logs(home, "-p", "-q", "api", "--since", "2026-01-02T14:00:12Z")) == ["last words"]
    assert messages(logs(home, "-p", "-q", "api", "--until", "2026-01-02T14:00:12Z")) == ["born"]


@pytest.mark.parametrize("is_told", [True, False])  # or its events have been rotated away since
def test_previous_shows_what_was_printed_long_before_a_daemon_knew_of_the_worker(home: Path, is_told: bool) -> None:
    log(home, *(record(n, msg) for n, msg in ((1, "an older one"), (10, "born"), (20, "last words"))))
    if is_told:
        ended(home, 1, 0, "worker_starting", 1, generation=1, pid=41)
        ended(home, 2, 18, "worker_starting", 1, generation=1, pid=41)  # the daemon that had started it was killed
    ended(home, 3, 20, "worker_exited", 1, pid=41, generation=1, code=1, signal=None, after_s=10.5, reason="", traceback="")
    assert messages(logs(home, "-p", "-q", "api")) == ["born", "last words"]


def test_previous_of_a_template_that_could_not_import(home: Path) -> None:
    log(home, record(1, "of another pid", 0).replace(b" 40 ", b" 39 "))
    log(home, record(2, "an older one", 0), record(5, "ModuleNotFoundError", 0), record(30, "a younger one", 0))
    log(home, record(31, "of a later one", 0).replace(b" 40 ", b" 41 "))
    ended(home, 1, 6, "template_exited", None, generation=1, reason="import error")
    found = run("logs", "-p", "api", home=str(home))
    assert messages(found.out) == ["an older one", "ModuleNotFoundError", "a younger one"]  # they have one pid here


def test_previous_without_a_death_says_so(home: Path) -> None:
    log(home, record(1, "x"))
    found = run("logs", "-p", "api", home=str(home))
    assert (found.code, found.out) == (3, "")
    assert "no worker of api has ended yet" in found.err
