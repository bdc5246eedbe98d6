"""`pyworker run`: the foreground, without a file. Nothing here has a home unless a test makes one."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pyworker.unix import oom
from tests.support.foreground import Foreground, foreground, probe
from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES

WEB = """
import asyncio, os
print("imported", VERSION)
async def app(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/slow":
        print("begins", flush=True)
        await asyncio.sleep(1.5)
    print("asked", scope["path"], flush=True)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{VERSION} {os.environ.get('GREETING', '')}".encode()})
"""


@pytest.fixture
def homeless(pw: Pyworker) -> Iterator[Pyworker]:
    """No folder can be made: as on a read-only root."""
    home = pw.environ["PYWORKER_HOME"]
    pw.environ["PYWORKER_HOME"] = "/proc/nowhere/home"
    yield pw
    pw.environ["PYWORKER_HOME"] = home


def web(pw: Pyworker, version: int = 1, **more: str) -> None:
    pw.api(WEB.replace("VERSION", str(version)), **more)  # type: ignore[arg-type]


def test_it_serves_prints_and_drains_without_any_folder(homeless: Pyworker) -> None:
    pw = homeless
    pw.environ["GREETING"] = "from the shell"
    pw.environ.pop("INVOCATION_ID", None)
    web(pw)
    before = set(os.listdir(pw.folder))
    with foreground(pw, "app.toml") as one:
        one.running()
        assert pw.get("/a") == "1 from the shell"
        one.wait_out("asked /a")
        assert "api.1 | asked /a" in one.out or "api.2 | asked /a" in one.out
        assert one.stop() == 0
        assert "a stop takes up to 40 s; give docker --stop-timeout 45" in one.err
    assert pw.refuses()
    assert set(os.listdir(pw.folder)) - before <= {"run.out", "run.err", "__pycache__"}
    assert not os.path.exists(pw.home)


@pytest.mark.parametrize("environment", [{}, {"INVOCATION_ID": "0" * 32}], ids=["a container's", "systemd's"])
def test_who_may_kill_it_too_soon_is_told_how_long_a_stop_takes(homeless: Pyworker, environment: dict[str, str]) -> None:
    homeless.environ.pop("INVOCATION_ID", None)
    homeless.environ.update(environment)
    with foreground(homeless, "--once", "--", "true") as one:
        assert one.ends() == 0
        assert ("stop takes up to" in one.err) is (not environment)


def test_how_long_a_stop_takes_counts_what_stops_one_after_another(homeless: Pyworker) -> None:
    homeless.environ.pop("INVOCATION_ID", None)
    text = '[apps.db]\ncommand = ["sleep", "100"]\n[apps.job]\ncommand = ["true"]\nrestart = "never"\ndepends_on = "db"\nstop.drain_timeout = "29.5s"\n'
    homeless.write("app.toml", text)
    with foreground(homeless, "app.toml", "--only", "job", "--once") as one:
        assert one.ends() == 0
        # 30 + 10, 29.5 + 10, and 3 between them; docker takes whole seconds
        assert "a stop takes up to 82.5 s; give docker --stop-timeout 88, or" in one.err


def test_a_stdout_that_nobody_reads_keeps_no_stop_from_its_end_in_time(homeless: Pyworker) -> None:
    pw = homeless
    path = os.path.join(pw.folder, "unread")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR)
    try:
        with foreground(pw, "--", "yes", prefix=("sh", "-c", f'exec "$@" > {path}', "sh")) as one:
            one.running()
            wait_until(lambda: not select.select([], [reader], [], 0)[1], LONG, "it to be full")
            one.signal(signal.SIGTERM)
            one.wait_for("yes stopped")
            assert one.process.wait(15) == 0  # what started it was told to kill it after some 5 s
    finally:
        os.close(reader)


def test_a_stderr_that_nobody_reads_keeps_no_worker_from_being_replaced(homeless: Pyworker) -> None:
    pw = homeless
    web(pw, workers=1)  # type: ignore[arg-type]
    path = os.path.join(pw.folder, "unread")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        with foreground(pw, "app.toml", prefix=("sh", "-c", f'exec "$@" 2> {path}', "sh")) as one:
            wait_until(lambda: not pw.refuses(), LONG, "it to listen")
            with contextlib.suppress(BlockingIOError):
                while os.write(reader, b"full" * 1024):
                    pass
            for _ in range(3):
                kill(wait_until(lambda: one.children().get("pyworker worker api.1"), LONG, "a worker"))
                assert pw.get("/a").startswith("1")
            assert one.stop() == 0
    finally:
        os.close(reader)


def test_a_stop_goes_on_when_the_daemon_dies_over_it(homeless: Pyworker) -> None:
    """The next one ran the apps again, and `docker stop` waited until it killed all of it."""
    pw = homeless
    pw.write("ends.sh", "trap 'sleep 1; exit' TERM\nwhile :; do sleep 0.1; done\n")
    pw.write("app.toml", '[app]\nname = "tick"\ncommand = "/bin/sh ends.sh"\n')
    with foreground(pw, "app.toml") as one:
        one.running()
        one.signal(signal.SIGTERM)
        one.wait_for("tick stopping")
        kill(one.children()["pyworker daemon"])
        assert one.ends() == 0
        assert not pw.processes()


def test_what_did_not_start_is_not_run_again_when_the_daemon_dies(homeless: Pyworker) -> None:
    pw = homeless
    pw.write("app.toml", """
        [apps.once]
        command = ["sh", "-c", "echo >> ran; exit 3"]
        restart = "never"
        [apps.tick]
        command = ["sh", "-c", "echo up; exec sleep 3600"]
    """)
    with foreground(pw, "app.toml") as one:
        one.wait_for("once failed")
        one.wait_out("up")
        kill(one.children()["pyworker daemon"])
        kill(one.children()["sleep 3600"])
        wait_until(lambda: one.out.count("up") == 2, LONG, "the next daemon to do its work")
        one.signal(signal.SIGTERM)
        one.ends()
        assert "Error" not in one.err
    assert os.path.getsize(os.path.join(pw.folder, "ran")) == 1


def test_a_request_under_way_is_answered_before_it_ends(homeless: Pyworker) -> None:
    pw = homeless
    web(pw, workers=1)  # type: ignore[arg-type]
    with foreground(pw, "app.toml") as one:
        one.running()
        answers: list[str] = []
        asking = threading.Thread(target=lambda: answers.append(pw.get("/slow")))
        asking.start()
        one.wait_out("begins")
        one.signal(signal.SIGTERM)
        asking.join(LONG)
        assert answers == ["1 "]
        assert one.ends() == 0


def test_it_drains_and_ends_when_its_terminal_is_closed(homeless: Pyworker) -> None:
    """It lived on with the port, and reloaded: SIGHUP. The kernel sends that, and so does the shell."""
    pw = homeless
    web(pw, workers=1)  # type: ignore[arg-type]
    ours, theirs = pty.openpty()
    with foreground(pw, "app.toml", prefix=("sh", "-c", f'exec "$@" < {os.ttyname(theirs)}', "sh")) as one:
        one.running()
        os.close(theirs)
        answers: list[str] = []
        asking = threading.Thread(target=lambda: answers.append(pw.get("/slow")))
        asking.start()
        one.wait_out("begins")
        os.close(ours)
        one.signal(signal.SIGHUP)
        one.wait_for("stopping")
        one.signal(signal.SIGHUP)
        asking.join(LONG)
        assert answers == ["1 "]
        assert one.ends() == 0


@pytest.mark.parametrize("as_json", [("--logs", "json"), ("--json",)], ids=" ".join)
def test_logs_as_json(homeless: Pyworker, as_json: tuple[str, ...]) -> None:
    pw = homeless
    web(pw)
    with foreground(pw, "app.toml", *as_json) as one:
        one.running()
        pw.get("/a")
        one.wait_out("asked /a")
        lines = [json.loads(line) for line in one.out.splitlines()]
        assert {line["app"] for line in lines} == {"api"}
        assert [line["msg"] for line in lines if line["worker"]] == ["asked /a"]
        one.stop()


def test_logs_as_printed(homeless: Pyworker) -> None:
    pw = homeless
    web(pw)
    with foreground(pw, "app.toml", "--logs", "plain") as one:
        one.running()
        pw.get("/b")
        one.wait_out("asked /b")
        assert "asked /b" in one.out.splitlines()


def test_an_app_whose_log_is_inherited_prints_where_others_have_a_file(homeless: Pyworker) -> None:
    pw = homeless
    web(pw, workers=1, tables='logs = "inherit"\n[defaults]\nlogs.file = "all.log"\n')  # type: ignore[arg-type]
    with foreground(pw, "app.toml") as one:
        one.running()
        pw.get("/a")
        one.wait_out("api.1 | asked /a")
    assert not os.path.exists(os.path.join(pw.folder, "all.log"))


def test_a_reload_on_hup_and_one_that_is_refused(homeless: Pyworker) -> None:
    pw = homeless
    pw.make_failpoints()
    web(pw)
    with foreground(pw, "app.toml") as one:
        one.running()
        web(pw, 2)
        path = pw.arm("start.listening", "raise:EMFILE always")
        one.signal(signal.SIGHUP)
        one.wait_for(f"nothing was reloaded: {TOO_MANY_OPEN_FILES}. raise the limit")
        os.unlink(path)
        one.signal(signal.SIGHUP)
        one.wait_for("done in")
        assert pw.get().startswith("2 ")
        pw.write("web.py", "import nothing_like_it\n")
        one.signal(signal.SIGHUP)
        one.wait_for("refused")
        assert "ModuleNotFoundError" in one.err
        one.wait_for("api not reloaded (SIGHUP): ModuleNotFoundError")  # a note: until a reload is done, ps and /metrics say so
        assert pw.get() == "2 "
        pw.write("app.toml", "[app\n")
        one.signal(signal.SIGHUP)
        one.wait_for("nothing was reloaded")
        one.wait_for("api not reloaded (SIGHUP): not valid TOML")
        assert pw.get() == "2 "
        assert one.stop() == 0


def test_a_hup_takes_no_stop_back(homeless: Pyworker) -> None:
    with foreground(homeless, "--", "sh", "-c", 'trap "" TERM; echo begins; while :; do sleep 0.1; done') as one:
        one.wait_out("begins")
        one.signal(signal.SIGTERM)
        one.wait_for("stopping")
        one.signal(signal.SIGHUP)
        one.wait_for("nothing is reloaded: it is stopping")
        one.signal(signal.SIGTERM)
        assert one.ends() == 0


def test_without_descriptors_it_ends_with_the_next_step(homeless: Pyworker) -> None:
    pw = homeless
    pw.make_failpoints()
    web(pw)
    pw.arm("start.listening", "raise:EMFILE always")
    with foreground(pw, "app.toml") as one:
        assert one.ends() == 1
        assert f"api cannot be started: {TOO_MANY_OPEN_FILES}. raise the limit of open files: prlimit" in one.err
        assert "Traceback" not in one.err


def test_a_killed_daemon_logger_template_or_worker_never_closes_the_port(homeless: Pyworker) -> None:
    pw = homeless
    port = pw.another_port()
    web(pw, tables=f'[run]\nprobe = "127.0.0.1:{port}"')
    with foreground(pw, "app.toml") as one:
        one.running()
        for role in ("daemon", "logger", "template", "worker"):
            kill(next(pid for pid, title in pw.titles().items() if f"pyworker {role}" in title))
            assert pw.get() == "1 "
            wait_until(lambda: probe(port, "/readyz")[0] == 200, LONG, f"readiness after the end of the {role}")
        pw.get("/after")
        one.wait_out("asked /after")
        assert one.stop() == 0


def test_when_the_guardian_is_killed_all_of_it_leaves(homeless: Pyworker) -> None:
    pw = homeless
    web(pw)
    with foreground(pw, "app.toml") as one:
        one.running()
        one.process.kill()
        assert one.ends() == -9
        wait_until(lambda: not pw.processes(), LONG, "all to be gone")


def test_probes_say_what_is_and_lame_duck_says_no_until_it_stops_or_is_told_again(homeless: Pyworker) -> None:
    pw = homeless
    port = pw.another_port()
    web(pw, tables=f'[run]\nprobe = "127.0.0.1:{port}"\nlame_duck = "10m"')
    with foreground(pw, "app.toml") as one:
        one.running()
        assert probe(port, "/livez") == (200, "ok\n")
        assert probe(port, "/readyz") == (200, "api ready 2/2\n")
        assert probe(port, "/readyz/api")[0] == 200
        assert probe(port, "/readyz/other")[0] == 503
        assert 'pyworker_app_workers_ready{app="api"} 2' in probe(port, "/metrics")[1]
        one.signal(signal.SIGTERM)
        one.wait_for("serves on for 600 s")
        assert probe(port, "/readyz")[0] == 503
        assert probe(port, "/livez")[0] == 200
        assert pw.get() == "1 ", "it says no and serves on"
        one.signal(signal.SIGINT)
        assert one.ends() == 0


@contextlib.contextmanager
def no_daemon(one: Foreground, pw: Pyworker) -> Iterator[None]:
    """Its daemon is dead, and no other can be started. The guardian has all: a worker whose channel nobody has leaves."""
    template, daemon = (next(pid for pid, title in pw.titles().items() if f"pyworker {role}" in title) for role in ("template", "daemon"))
    pw.wait_rest(template, daemon, one.pid)
    before = resource.prlimit(one.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        kill(daemon)
        one.wait_for("the daemon cannot be started")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(one.pid, resource.RLIMIT_NOFILE, before)


def test_a_second_signal_is_heard_also_when_no_daemon_can_be_started(homeless: Pyworker) -> None:
    web(homeless)
    with foreground(homeless, "app.toml") as one:
        one.running()
        with no_daemon(one, homeless):
            assert homeless.get() == "1 "
            one.signal(signal.SIGINT)
            one.signal(signal.SIGTERM)
            assert one.ends() == 0
        wait_until(lambda: not homeless.processes(), LONG, "all to be gone")


def test_told_to_stop_before_a_daemon_could_be_started_it_leaves(homeless: Pyworker) -> None:
    web(homeless)
    homeless.make_failpoints()
    homeless.arm("guardian.start_daemon", "raise:EAGAIN always")
    homeless.arm("guardian.start_logger", "raise:EAGAIN always")
    with foreground(homeless, "app.toml") as one:
        one.wait_for("a turn failed")
        one.signal(signal.SIGTERM)
        assert one.ends() == 0
        assert "told to stop before a daemon could be started" in one.err


def test_a_signal_that_comes_while_there_is_no_daemon_is_for_the_next_one(homeless: Pyworker) -> None:
    web(homeless)
    with foreground(homeless, "app.toml") as one:
        one.running()
        with no_daemon(one, homeless):
            one.signal(signal.SIGTERM)
        assert one.ends() == 0
        assert "told to stop again" not in one.err


def test_too_low_a_limit_of_open_files_is_said(homeless: Pyworker) -> None:
    web(homeless)
    with foreground(homeless, "app.toml", prefix=("sh", "-c", 'ulimit -n 20; exec "$@"', "sh")) as one:
        assert one.ends() == 1
        assert "only 20 files may be open at once" in one.err


def test_a_lame_duck_ends_by_itself(homeless: Pyworker) -> None:
    web(homeless, tables='[run]\nlame_duck = "100ms"')
    with foreground(homeless, "app.toml") as one:
        one.running()
        one.signal(signal.SIGINT)
        one.wait_for("serves on for 0.1 s")
        assert one.ends() == 0


def test_a_lame_duck_that_nothing_serves_is_over(homeless: Pyworker) -> None:
    os.mkfifo(go := os.path.join(homeless.folder, "go"))
    with foreground(homeless, "--once", "--lame-duck", "10m", "--", "sh", "-c", f"echo begins; cat {go}") as one:
        one.wait_out("begins")
        one.signal(signal.SIGTERM)
        one.wait_for("serves on for 600 s")
        os.close(os.open(go, os.O_WRONLY))
        assert one.ends() == 0


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137)])
def test_a_job_s_exit_code_is_its_own(homeless: Pyworker, script: str, code: int) -> None:
    with foreground(homeless, "--restart", "never", "--", "sh", "-c", f"echo begins; {script}") as one:
        assert one.ends() == code
        assert "sh.1 | begins" in one.out


def test_a_program_that_has_said_why_on_stdout_is_not_said_to_have_printed_nothing(homeless: Pyworker) -> None:
    done = homeless.run("run", "--", "sh", "-c", "echo no disk; exit 3")
    assert done.returncode == 1
    assert "sh.1 | no disk" in done.stdout
    assert "exited with code 3" in done.stderr
    assert "printed nothing" not in done.stderr


def test_once_runs_a_job_now_and_passes_its_exit_code_on(homeless: Pyworker) -> None:
    pw = homeless
    pw.write("app.toml", """
[apps.nightly]
command = ["sh", "-c", "echo at work; exit 9"]
cron = "0 4 1 1 *"

[apps.other]
command = "sleep 1000"
""")
    with foreground(pw, "app.toml", "--only", "nightly", "--once") as one:
        assert one.ends() == 9
        assert "nightly.1 | at work" in one.out


def test_once_ends_with_its_job_whatever_that_depends_on(homeless: Pyworker) -> None:
    db = '[apps.db]\ncommand = "sleep 1000"\n'
    job = '[apps.nightly]\ncommand = ["sh", "-c", "exit 9"]\ncron = "0 4 1 1 *"\ndepends_on = "db"\n'
    homeless.write("app.toml", db + job)
    with foreground(homeless, "app.toml", "--only", "nightly", "--once") as one:
        assert one.ends() == 9


def test_once_is_once_also_for_a_job_that_is_over_a_limit(homeless: Pyworker) -> None:
    pw = homeless
    pw.write("work.py", "import time\nprint('at work', flush=True)\ntime.sleep(600)\n")
    pw.write("app.toml", '[app]\nname = "nightly"\nscript = "work.py"\ncron = "0 4 1 1 *"\nlimits.memory = "2MB"\n')
    with foreground(pw, "app.toml", "--once") as one:
        assert one.ends() == 1
        assert one.out.count("at work") == 1
        assert "> 2 MB" in one.err


def test_limits_that_the_cgroup_does_not_allow_are_said(homeless: Pyworker) -> None:
    limit = oom.group_limit()
    if limit is None:
        pytest.skip("no memory limit of a cgroup here")
    size = f"{limit // 2**20 + 1024}MB"
    pw = homeless
    big = f'[apps.big]\ncommand = "sleep 1000"\nlimits.memory = "{size}"\n'
    pw.write("app.toml", f'{big}[apps.small]\ncommand = "sleep 1000"\ndepends_on = "big"\n')
    with foreground(pw, "app.toml", "--only", "small") as one:
        one.running()
        assert "the kernel may kill first" in one.err
        assert one.stop() == 0


def test_a_service_manager_is_told_ready_reloading_and_stopping(homeless: Pyworker) -> None:
    pw = homeless
    web(pw)
    path = os.path.join(pw.folder, "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(LONG)
        pw.environ["NOTIFY_SOCKET"] = path
        try:
            with foreground(pw, "app.toml") as one:
                del pw.environ["NOTIFY_SOCKET"]

                def told(word: str) -> None:
                    while word not in manager.recv(4096).decode().split("\n"):
                        pass

                told("READY=1")
                assert pw.get() == "1 "
                web(pw, 2)
                one.signal(signal.SIGHUP)
                told("RELOADING=1")
                told("READY=1")
                assert pw.get().startswith("2 ")
                one.signal(signal.SIGTERM)
                told("STOPPING=1")
                assert one.ends() == 0
        finally:
            pw.environ.pop("NOTIFY_SOCKET", None)


@pytest.mark.parametrize(("program", "code"), [("true", 0), ("false", 1)])
def test_a_service_manager_is_told_ready_by_what_has_ended_well_before_it_was(
    homeless: Pyworker, program: str, code: int
) -> None:
    pw = homeless
    pw.write("app.toml", f'[app]\ncommand = "{program}"\nrestart = "never"\n')
    path = os.path.join(pw.folder, "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        pw.environ["NOTIFY_SOCKET"] = path
        try:
            with foreground(pw, "app.toml") as one:
                assert one.ends() == code
        finally:
            del pw.environ["NOTIFY_SOCKET"]
        said = []
        with contextlib.suppress(BlockingIOError):
            while True:
                said += manager.recv(4096, socket.MSG_DONTWAIT).decode().split("\n")
    assert ("READY=1" in said) == (code == 0)


def test_an_app_that_does_not_start_is_1_with_its_traceback(homeless: Pyworker) -> None:
    homeless.write("bad.py", "import nothing_like_it\n")
    homeless.write("poetry.lock", "")
    none_activated = ("env", "-u", "VIRTUAL_ENV", "-u", "CONDA_PREFIX")
    with foreground(homeless, "bad:app", "-b", f"127.0.0.1:{homeless.port}", prefix=none_activated) as one:
        assert one.ends() == 1
        assert "ModuleNotFoundError: No module named 'nothing_like_it'" in one.err
        assert f"set python to what this says: cd {homeless.folder} && poetry env info --path" in one.err


def test_an_address_in_use_is_1_for_another_try_may_find_it_free(homeless: Pyworker) -> None:
    homeless.write("web.py", WEB.replace("VERSION", "1"))
    with (
        socket.create_server(("127.0.0.1", homeless.port)),
        foreground(homeless, "web:app", "-b", f"127.0.0.1:{homeless.port}") as one,
    ):
        assert one.ends() == 1
        assert f"cannot listen on 127.0.0.1:{homeless.port}: already in use" in one.err


def test_a_probe_at_the_address_of_an_app_is_refused(homeless: Pyworker) -> None:
    homeless.write("web.py", WEB.replace("VERSION", "1"))
    port = homeless.port
    with foreground(homeless, "web:app", "-b", f":{port}", "--probe", f"127.0.0.1:{port}") as one:
        assert one.ends() == 78
        assert f"app `web` listens on :{port}, and the probe is to do so, too (127.0.0.1:{port})" in one.err


@pytest.mark.parametrize("what", ["target", "config", "exit"])
def test_what_cannot_start_as_it_is_is_78(homeless: Pyworker, what: str) -> None:
    pw = homeless
    pw.write("web.py", "x = 1\n")
    if what == "config":
        pw.write("app.toml", '[app]\ntarget = "web:x"\nworker = 2\n')
        arguments = ("app.toml",)
    elif what == "target":
        arguments = ("web:app", "-b", f"127.0.0.1:{pw.port}")  # type: ignore[assignment]
    else:
        arguments = ("--", "sh", "-c", "exit 78")  # type: ignore[assignment]
    with foreground(pw, *arguments) as one:
        assert one.ends() == 78, one.err


def test_one_failed_app_among_others_is_not_the_end(homeless: Pyworker) -> None:
    pw = homeless
    port = pw.another_port()
    web(pw)
    with open(os.path.join(pw.folder, "app.toml")) as file:
        table = file.read().replace("[app]", "[apps.api]").replace('name = "api"\n', "")
    bad = '[apps.bad]\nrestart.retry = "500ms"\ncommand = ["sh", "-c", "test -e up && exec sleep 1000"]\n'
    once = '[apps.once]\ncommand = ["sh", "-c", "while [ ! -e up ]; do sleep 0.1; done; exit 3"]\nrestart = "never"\n'
    taken = socket.create_server(("127.0.0.1", pw.another_port()))
    late = f'[apps.late]\ntarget = "web:app"\nbind = "127.0.0.1:{taken.getsockname()[1]}"\n'
    pw.write("app.toml", f'{table}\n{bad}{once}{late}[run]\nprobe = "127.0.0.1:{port}"\n')
    with taken, foreground(pw, "app.toml") as one:
        one.wait_for("bad failed")
        one.wait_for("late failed")
        one.running()
        assert pw.get() == "1 "
        assert probe(port, "/readyz")[0] == 503
        assert probe(port, "/readyz/api")[0] == 200
        assert probe(port, "/readyz/late")[0] == 503
        one.wait_for("once running")
        assert probe(port, "/readyz/once")[0] == 200
        taken.close()
        pw.write("up", "")
        wait_until(lambda: probe(port, "/readyz/bad")[0] == 200, LONG, "it to be tried again")
        wait_until(lambda: probe(port, "/readyz/late")[0] == 200, LONG, "its address to be tried again")
        wait_until(lambda: probe(port, "/readyz/once") == (503, "once not ready 0/0\n"), LONG, "what has failed as it ended")
        assert one.stop() == 0


def test_an_app_whose_address_was_taken_has_the_variables_that_were_given_when_it_is_tried_again(homeless: Pyworker) -> None:
    pw = homeless
    pw.write("web.py", WEB.replace("VERSION", "1"))
    taken = socket.create_server(("127.0.0.1", pw.port))
    table = f'[apps.late]\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\ndepends_on = "db"\n'
    pw.write("app.toml", f'{table}[apps.db]\ncommand = ["sleep", "1000"]\n')
    with taken, foreground(pw, "app.toml", "--only", "late", "-e", "GREETING=given") as one:
        one.wait_for("late failed")
        one.wait_for("db running")
        taken.close()
        one.signal(signal.SIGHUP)
        one.wait_for("late running")
        assert pw.get() == "1 given"
        assert one.stop() == 0


def test_a_probe_that_cannot_listen_is_said(homeless: Pyworker) -> None:
    web(homeless)
    address = ("127.0.0.1", homeless.another_port())
    with (
        socket.create_server(address),
        foreground(homeless, "app.toml", "--probe", f"{address[0]}:{address[1]}") as one,
    ):
        assert one.ends() == 1
        assert "the probe cannot listen" in one.err


def test_with_a_home_the_other_commands_find_it(pw: Pyworker) -> None:
    web(pw)
    with foreground(pw, "app.toml") as one:
        one.running()
        assert pw.app()["workers"]["ready"] == 2
        pw.ok("scale", "api=3")
        pw.ok("reload", "api")
        assert pw.get() == "1 "
        assert "restart its container or service" in pw.run("daemon", "upgrade", "--force").stderr
        assert not os.path.exists(os.path.join(pw.home, "apps.json"))
        for names in (), ("api",), ("api.2", "-f"):
            logs = pw.run("logs", *names)
            assert logs.returncode == 1
            assert "the output of api goes to that of pyworker run" in logs.stderr
        assert one.stop() == 0
    assert pw.run("ps").returncode != 0 or not pw.ps()["apps"]


@pytest.mark.parametrize("words", [("reload", "api"), ("restart", "api")], ids=lambda words: words[0])
def test_a_command_typed_elsewhere_leaves_it_the_environment_that_it_has(pw: Pyworker, words: tuple[str, ...]) -> None:
    """What a unit or a container's entry point had set was gone, and what the other shell had was there."""
    pw.environ["GREETING"] = "of the service"
    web(pw)
    with foreground(pw, "app.toml") as one:
        one.running()
        pw.environ["GREETING"] = "of root's shell"
        pw.ok("diff", "api")
        pw.ok(*words)
        assert {pw.get("/") for _ in range(4)} == {"1 of the service"}


def test_what_was_stopped_or_deleted_stays_so_when_the_daemon_dies_or_all_is_reloaded(pw: Pyworker) -> None:
    """The next daemon began with the file once more: it started both, and ended all where that file was not to be read."""
    names = ("kept", "stopped", "deleted")
    text = "".join(f'[apps.{name}]\ncommand = ["sleep", "3600"]\n' for name in names)
    pw.write("app.toml", text)
    with foreground(pw, "app.toml") as one:
        for name in names:
            one.wait_for(f"{name} running")
        pw.ok("stop", "stopped")
        pw.ok("delete", "-y", "deleted")
        pw.write("app.toml", "[half")
        kill(one.children()["pyworker daemon"])
        one.wait_for("starting it again")
        states = {app["name"]: app["state"] for app in pw.ps()["apps"]}
        assert states == {"kept": "running", "stopped": "stopped"}
        pw.write("app.toml", text)
        one.signal(signal.SIGHUP)
        one.wait_for("kept reload", 3)
        assert pw.app("stopped")["state"] == "stopped"
        assert one.stop() == 0


def test_a_home_below_a_folder_of_systemd_s_is_taken(pw: Pyworker) -> None:
    """As the exported unit has it: StateDirectory= is open to others, and a link with DynamicUser=."""
    os.makedirs(os.path.join(pw.folder, "private"), 0o755)
    os.symlink("private", os.path.join(pw.folder, "state"))
    before, pw.environ["PYWORKER_HOME"] = pw.home, os.path.join(pw.folder, "state", "home")
    web(pw)
    try:
        with foreground(pw, "app.toml") as one:
            one.running()
            assert "no control socket" not in one.err
            assert pw.app()["workers"]["ready"] == 2
            assert one.stop() == 0
    finally:
        pw.environ["PYWORKER_HOME"] = before


def test_a_home_that_another_daemon_has_is_left_to_it(pw: Pyworker) -> None:
    pw.ok("daemon", "start")
    web(pw)
    with foreground(pw, "app.toml") as one:
        one.running()
        assert "no control socket" in one.err
        assert pw.ps()["apps"] == []
        assert pw.get() == "1 "


def test_user_signals_reach_programs_of_others_and_never_our_workers(homeless: Pyworker) -> None:
    pw = homeless
    web(pw)
    with open(os.path.join(pw.folder, "app.toml")) as file:
        table = file.read().replace("[app]", "[apps.api]").replace('name = "api"\n', "")
    shell = "trap 'echo got it' USR1; echo waits; while :; do sleep 0.05; done"
    pw.write("app.toml", f'{table}\n[apps.sh]\ncommand = ["sh", "-c", "{shell}"]\n')
    with foreground(pw, "app.toml") as one:
        one.wait_for("running", 2)
        one.wait_out("sh.1 | waits")
        one.signal(signal.SIGUSR1)
        one.wait_out("sh.1 | got it")
        assert pw.get() == "1 "
        assert one.stop() == 0
        assert "exited" not in one.err


def test_a_term_that_comes_while_it_starts_is_not_lost(homeless: Pyworker) -> None:
    web(homeless)
    with foreground(homeless, "app.toml") as one:
        one.wait_for("a stop takes")  # the command itself: the guardian and the daemon are still to come
        assert one.stop() == 0
    assert homeless.refuses()


def test_a_script_that_serves_nothing_is_told_so_at_its_first_end(homeless: Pyworker) -> None:
    """One that takes longer than 3 s to make its app counts as ready: it was said when the limiter gave up, a minute later."""
    homeless.write("shop.py", "import pyworker\npyworker.ready()\n")
    with foreground(homeless, "shop.py") as one:
        one.wait_for("start shop:app, not shop.py")
        assert "gave up" not in one.err
        assert one.stop() == 0


@pytest.mark.parametrize("restart", ['restart = "never"', 'restart.retry = "0s"'])
def test_it_ends_when_all_wait_in_vain_for_what_has_failed_and_is_not_tried_again(homeless: Pyworker, restart: str) -> None:
    jobs = f'[apps.db]\ncommand = ["sh", "-c", "exit 3"]\n{restart}\n'
    homeless.write("app.toml", jobs + '[apps.web]\ncommand = "sleep 3600"\ndepends_on = "db"\n')
    with foreground(homeless, "app.toml") as one:
        assert one.ends() == 1
        assert "web waits for db, which failed: " in one.err


def test_it_ends_soon_after_its_app(homeless: Pyworker) -> None:
    """Not a measurement (benchmarks do that): a drain time-out or a patience of ours must not be waited out."""
    with foreground(homeless, "--restart", "never", "--", "sh", "-c", "exit 3") as one:
        one.wait_for("nothing is left to run")
        before = time.monotonic()
        assert one.ends() == 3
        assert time.monotonic() - before < 8
