"""child_process: starting, results, events, what goes wrong, what is left."""

from __future__ import annotations

import asyncio
import errno
import grp
import itertools
import os
import pwd
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyworker import child_process
from pyworker.cluster.child_process import ChildProcess, ExecError, ExecTimeoutError, OutputTooLongError, SpawnError
from pyworker.cluster.ipc import ChannelClosedError, HandleNotDeliveredError
from tests.cluster.helpers import Inbox, asynchronous, eventually
from tests.support.children import children
from tests.support.descriptors import open_fds
from tests.support.steps import acts_at, close_lost
from tests.support.wait import wait_until

NOBODY = pwd.getpwnam("nobody")

ECHO = """
import socket, threading
from pyworker import process
ended = threading.Event()
def got(message, handle):
    if handle is None:
        process.send({"echo": message})
    elif not isinstance(handle, socket.socket):
        process.send(handle.read().decode()); handle.close()
    elif handle.type == socket.SOCK_DGRAM:
        handle.setblocking(True)
        data, sender = handle.recvfrom(100); handle.sendto(data.upper(), sender); handle.close()
    elif handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        handle.setblocking(True)
        connection, _ = handle.accept(); connection.sendall(b"accepted by the child"); connection.close(); handle.close()
    else:
        handle.sendall(b"written by the child"); handle.close()
process.on("message", got)
process.on("disconnect", ended.set)
ended.wait()
"""


@pytest.fixture
def echo(tmp_path: Path) -> str:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    return str(script)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---- spawn -------------------------------------------------------------------------------------------
@asynchronous
async def test_spawn_gives_the_three_pipes_and_tells_events_in_order() -> None:
    child = child_process.spawn("cat")
    events = child.events()
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"abc")
    child.stdin.close()
    assert await child.stdout.read() == b"abc"
    assert [event.name async for event in events] == ["spawn", "exit", "close"]
    assert (child.exit_code, child.signal_code) == (0, None)


@asynchronous
async def test_a_fork_that_the_handler_of_a_signal_has_ended_by_an_exception_leaves_no_child() -> None:
    before, others = open_fds(), children(os.getpid())  # multiprocessing's, of an earlier test
    for step in itertools.count(1):
        made: list[ChildProcess] = []
        fork = partial(child_process.fork, "60", exec_path="/bin/sleep", stdout="pipe")
        if not acts_at(step, lambda fork=fork, made=made: made.append(fork()), within="cluster/parent.py"):
            break
        close_lost(before)
        assert children(os.getpid()) == others
        assert len(asyncio.get_running_loop()._selector.get_map()) == 1, "the loop waits for nothing of it"  # type: ignore[attr-defined]
    [child] = made
    child.kill()
    await child.wait_closed()


@asynchronous
async def test_a_command_that_does_not_exist_is_an_error_event_and_named() -> None:
    child = child_process.spawn("no-such-command-here")
    told: list[Any] = []
    child.on("error", told.append)
    with pytest.raises(SpawnError, match="cannot run no-such-command-here: no such command on PATH"):
        await child.wait()
    assert isinstance(told[0], SpawnError)
    assert child.pid is None
    assert child.kill() is False


@asynchronous
async def test_a_message_to_a_child_that_could_not_be_started_is_answered_with_the_reason() -> None:
    child = child_process.fork(__file__, exec_path="/nowhere/python")
    with pytest.raises(child_process.ChannelClosedError, match="cannot run /nowhere/python"):
        child.send("hello")
    with pytest.raises(SpawnError):
        await child.wait()


@asynchronous
async def test_a_folder_that_does_not_exist_is_what_the_error_names(tmp_path: Path) -> None:
    with pytest.raises(SpawnError, match=r"the folder .*nowhere"):
        await child_process.spawn("true", cwd=str(tmp_path / "nowhere")).wait()


@asynchronous
async def test_an_error_that_nobody_asks_for_is_shown() -> None:
    shown: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: shown.append(context))
    child_process.spawn("no-such-command-here")
    await eventually(lambda: shown)
    assert "no such command" in shown[0]["message"]


@asynchronous
async def test_a_child_that_is_collected_before_it_can_be_watched_is_an_error_that_says_why() -> None:
    watch = os.pidfd_open

    def too_late(pid: int, flags: int = 0) -> int:
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
        return watch(pid, flags)

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pidfd_open", too_late)
            child = child_process.spawn("true")
    finally:
        signal.signal(signal.SIGCHLD, before)
    with pytest.raises(SpawnError, match=r"cannot watch true: .* this program ignores SIGCHLD"):
        await child.wait()


@pytest.mark.parametrize("room", range(4))  # of its end, its two pipes and its channel
@asynchronous
async def test_a_child_that_the_loop_has_no_room_to_wait_for_is_ended_and_an_error(room: int) -> None:
    loop = asyncio.get_running_loop()
    add, left = loop.add_reader, room

    def refuse(fd: int, *rest: Any) -> None:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        add(fd, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "add_reader", refuse)
        child = child_process.fork("no-such-script.py", stdin="pipe", stdout="pipe", stderr="pipe")
    assert (child.pid, child.is_running, child.connected) == (None, False, False)
    with pytest.raises(SpawnError, match=f"cannot run .*python.*: {os.strerror(errno.ENOSPC)}"):
        await child.wait()


@asynchronous
async def test_an_error_that_is_awaited_is_not_shown_besides() -> None:
    shown: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: shown.append(context))
    with pytest.raises(SpawnError):
        await child_process.spawn("no-such-command-here").wait()
    child = child_process.spawn("no-such-command-here")
    found = await asyncio.gather(child.wait(), child.wait_closed(), return_exceptions=True)  # by tasks, which begin later
    assert [type(each) for each in found] == [SpawnError, SpawnError]
    await asyncio.sleep(0)
    assert shown == []


@asynchronous
async def test_kill_names_the_signal() -> None:
    child = child_process.spawn("sleep", ["60"])  # SIGINT would do nothing if this runs in a shell's background
    assert child.is_running
    assert child.kill("SIGUSR1")
    status = await child.wait()
    assert status.signal == signal.SIGUSR1
    assert child.signal_code == "SIGUSR1"
    assert child.killed
    assert child.kill() is False, "it is gone, and its pid may be another's"


@asynchronous
async def test_exit_is_told_before_close_when_a_grandchild_holds_the_pipe() -> None:
    child = child_process.spawn("sh", ["-c", "sleep 60 & echo $!"])
    assert child.stdout is not None
    grandchild = int(await child.stdout.readline())
    await child.wait()
    closed = asyncio.ensure_future(child.wait_closed())
    await asyncio.sleep(0)
    assert not closed.done()
    os.kill(grandchild, signal.SIGKILL)
    await closed


@asynchronous
async def test_output_that_nobody_reads_makes_the_child_wait_and_is_there_after_its_end() -> None:
    child = child_process.spawn(sys.executable, ["-c", "print('x' * 300_000)"])
    assert child.stdout is not None
    assert len(await child.stdout.read()) == 300_001
    assert (await child.wait()).code == 0


@asynchronous
async def test_what_the_heirs_of_a_child_write_does_not_fill_the_memory_when_nobody_reads_it() -> None:
    child = child_process.spawn("sh", ["-c", "head -c 60000000 /dev/zero & echo $! >&2; wait"])
    assert child.stdout is not None
    assert child.stderr is not None
    heir = int(await child.stderr.readline())
    reader = child.stdout
    await eventually(lambda: not reader._reading, "it is read no more: nobody takes it")
    child.kill()
    await child.wait()
    await eventually(lambda: not reader._reading, "it is read no more after the end of the child, either")
    assert is_alive(heir), "all that it had was taken into the memory"
    os.kill(heir, signal.SIGKILL)
    assert len(await reader.read()) < 60_000_000
    await child.wait_closed()


@asynchronous
async def test_a_context_leaves_nothing_behind() -> None:
    async with child_process.spawn("sleep", ["60"]) as child:
        assert child.pid is not None
    assert not is_alive(child.pid)


@asynchronous
async def test_writing_to_a_child_that_is_gone_is_an_error_of_drain() -> None:
    child = child_process.spawn("true")
    await child.wait()
    assert child.stdin is not None
    child.stdin.write(b"x")
    with pytest.raises(BrokenPipeError):
        await child.stdin.drain()
    await child.wait_closed()


@asynchronous
async def test_what_a_child_that_ends_has_not_read_is_an_error_of_drain() -> None:
    child = child_process.spawn("sleep", ["60"])
    assert child.stdin is not None
    child.stdin.write(bytes(300_000))
    waiting = asyncio.ensure_future(child.stdin.drain())
    child.kill("SIGSTOP")  # the other end of the pipe is open until the end of this test
    held = os.open(f"/proc/{child.pid}/fd/0", os.O_RDONLY | os.O_CLOEXEC)
    try:
        child.kill("SIGKILL")
        with pytest.raises(BrokenPipeError):
            await waiting
        await child.wait_closed()
    finally:
        os.close(held)


@asynchronous
async def test_a_callback_that_raises_harms_nobody_else() -> None:
    shown: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: shown.append(context["exception"]))
    child = child_process.spawn("true")
    told: list[Any] = []

    @child.on("exit")  # type: ignore[misc]
    def broken(code: int, sig: str) -> None:
        raise ZeroDivisionError

    @child.on("exit")  # type: ignore[misc]
    async def fine(code: int, sig: str) -> None:
        told.append(code)

    await child.wait_closed()
    await eventually(lambda: told)
    assert isinstance(shown[0], ZeroDivisionError)


def test_an_event_that_there_is_not_is_refused() -> None:
    async def ask() -> None:
        child = child_process.spawn("true")
        with pytest.raises(ValueError, match="there is no event 'finished' here; there are: spawn, message"):
            child.on("finished", print)
        await child.wait_closed()

    asyncio.run(ask())


@asynchronous
async def test_spawn_runs_a_command_where_and_how_it_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file:
        child = child_process.spawn(
            "pwd; echo $WORD; cat", shell=True, cwd=tmp_path, env={"WORD": "hi", "PATH": os.environ["PATH"]},
            stdin="ignore", stdout=file, stderr="ignore",
        )  # fmt: skip
    assert (child.stdin, child.stdout, child.stderr) == (None, None, None)
    assert (await child.wait_closed()).code == 0
    assert out.read_text() == f"{tmp_path}\nhi\n"
    with pytest.raises(ValueError, match="'pipe', 'inherit', 'ignore' or a file, not 'file'"):
        child_process.spawn("true", stdout="file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no signal 'NONSENSE'"):
        child.kill("NONSENSE")


@asynchronous
async def test_descriptors_are_inherited_only_by_name() -> None:
    reader, writer = os.pipe()
    named = child_process.spawn("sh", ["-c", f"echo here > /proc/self/fd/{writer}"], pass_fds=[writer])
    other = child_process.spawn("sh", ["-c", f"echo here > /proc/self/fd/{writer}"], stderr="ignore")
    assert (await named.wait()).code == 0
    assert (await other.wait()).code != 0
    os.close(writer)
    assert os.read(reader, 100) == b"here\n"
    os.close(reader)
    for child in (named, other):
        await child.wait_closed()


@asynchronous
async def test_a_detached_child_has_a_group_of_its_own_that_can_be_signalled() -> None:
    child = child_process.spawn("sh", ["-c", "sleep 60 & echo $!; wait"], detached=True)
    assert child.stdout is not None
    grandchild = int(await child.stdout.readline())
    assert os.getsid(grandchild) == child.pid
    assert child.kill_group("KILL")
    assert (await child.wait_closed()).signal == signal.SIGKILL
    await eventually(lambda: not is_alive(grandchild))
    assert child.kill_group() is False
    near = child_process.spawn("true")
    with pytest.raises(ValueError, match="detached=True"):
        near.kill_group()
    await near.wait_closed()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
@asynchronous
async def test_root_can_run_a_command_as_another_user() -> None:
    result = await child_process.exec("id -u; id -g", user="nobody", group=65534)
    assert result.stdout.split()[1] == "65534"
    assert result.stdout.split()[0] != "0"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
@pytest.mark.parametrize(
    ("user", "group", "groups"),
    [
        ("nobody", None, str(NOBODY.pw_gid)),
        (NOBODY.pw_uid, None, str(NOBODY.pw_gid)),
        ("nobody", 2, "2"),
        (54321, 2, "2"),
        (None, 2, "2"),
        (None, grp.getgrgid(NOBODY.pw_gid).gr_name, str(NOBODY.pw_gid)),
    ],
)
@asynchronous
async def test_a_command_of_another_user_has_none_of_roots_groups(
    user: str | int | None, group: str | int | None, groups: str
) -> None:
    before = os.getgroups()
    os.setgroups([0, 4])
    try:
        child = child_process.spawn("id", ["-G"], user=user, group=group)
    finally:
        os.setgroups(before)
    assert child.stdout is not None
    assert (await child.stdout.read()).decode().split() == [groups]
    await child.wait_closed()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
@asynchronous
async def test_a_user_whose_group_nobody_knows_needs_one() -> None:
    with pytest.raises(SpawnError, match="cannot run true: user 54321 has no entry in the user database: say its group, too"):
        await child_process.spawn("true", user=54321).wait()


@asynchronous
async def test_a_user_or_group_that_there_is_not_or_may_not_be_taken_is_what_the_error_names() -> None:
    with pytest.raises(SpawnError, match="cannot run true: there is no user 'no-such-user'"):
        await child_process.spawn("true", user="no-such-user").wait()
    with pytest.raises(SpawnError, match="cannot run true: there is no group 'no-such-group'"):
        await child_process.spawn("true", user=0, group="no-such-group").wait()
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        child = child_process.spawn("true", user=1, cwd="/")
    finally:
        os.seteuid(before)
    with pytest.raises(SpawnError, match="only root may run it as another user or group"):
        await child.wait()


@asynchronous
async def test_what_makes_no_sense_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="there is no signal 'SIGNOPE'"):
        child_process.exec("sleep 60", timeout=5, kill_signal="SIGNOPE")
    with pytest.raises(ValueError, match="there is no signal 999"):
        child_process.exec("sleep 60", timeout=5, kill_signal=999)
    for timeout in (-1, float("nan"), "5"):
        with pytest.raises(ValueError, match=f"timeout is a number of seconds, not {timeout!r}"):
            child_process.exec("sleep 60", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_buffer is a whole number of bytes, not None"):
        child_process.exec_file("sleep", ["60"], max_buffer=None)  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="unknown encoding"):
        child_process.exec("sleep 60", encoding="no-such-encoding")
    with pytest.raises(TypeError, match="arguments are a list of texts, not one text: \\['60'\\]"):
        child_process.spawn("sleep", "60")
    for nothing in (subprocess.PIPE, None, asyncio.StreamReader()):
        with pytest.raises(ValueError, match="stdin, stdout and stderr are 'pipe'"):
            child_process.spawn("sleep", ["60"], stdin=nothing)  # type: ignore[arg-type]


# ---- exec and exec_file ------------------------------------------------------------------------------
@asynchronous
async def test_exec_returns_what_a_command_line_has_printed() -> None:
    result = await child_process.exec("echo out; echo err >&2; cat", input="in")
    assert result == (0, None, "out\nin", "err\n")


@asynchronous
async def test_exec_raises_with_code_and_output_when_a_command_fails() -> None:
    with pytest.raises(ExecError, match="exit code 3: it broke") as caught:
        await child_process.exec("echo out; echo it broke >&2; exit 3")
    assert (caught.value.code, caught.value.signal, caught.value.stdout) == (3, None, "out\n")
    assert not caught.value.killed


@asynchronous
async def test_exec_names_the_signal_that_ended_a_command() -> None:
    with pytest.raises(ExecError, match="killed by SIGUSR1") as caught:
        await child_process.exec("kill -USR1 $$")
    assert caught.value.signal == "SIGUSR1"


async def timed_out(command: str, **options: Any) -> ExecTimeoutError:
    """Run a command that never ends and has begun when it has printed something: a busy machine may need longer for that."""
    for timeout in (0.3, 3.0, 20.0):
        with pytest.raises(ExecTimeoutError, match=f"took more than {timeout:g} s") as caught:
            await child_process.exec(command, timeout=timeout, **options)
        if caught.value.stdout:
            break
    return caught.value


@asynchronous
async def test_a_time_out_kills_the_whole_group() -> None:
    error = await timed_out("sleep 60 & echo $!; sleep 60")
    assert error.killed
    grandchild = int(error.stdout)
    await eventually(lambda: not is_alive(grandchild), "the grandchild is gone")


@asynchronous
async def test_a_command_that_ignores_the_signal_is_killed_after_its_grace() -> None:
    error = await timed_out("trap '' TERM; echo on; while :; do sleep 60; done", kill_grace=0.1)
    assert error.signal == "SIGKILL"


@asynchronous
async def test_one_that_left_the_group_does_not_hold_up_the_result() -> None:
    error = await timed_out("setsid sh -c 'echo $$; exec sleep 60' & wait", kill_grace=0.1)
    os.kill(int(error.stdout), signal.SIGKILL)


@asynchronous
async def test_too_much_output_kills_the_command_and_keeps_the_first_part() -> None:
    with pytest.raises(OutputTooLongError, match="max_buffer = 1000 bytes") as caught:
        await child_process.exec("yes", max_buffer=1000)
    assert caught.value.stdout == "y\n" * 500


@asynchronous
async def test_a_cancelled_exec_leaves_no_process(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    task = asyncio.ensure_future(none(child_process.exec(f"sleep 60 & echo $! > {told}; wait")))
    await asyncio.sleep(0)  # the task has begun to wait
    await eventually(lambda: told.exists() and told.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    grandchild = int(told.read_text())
    await eventually(lambda: not is_alive(grandchild), "the grandchild is gone")


@asynchronous
async def test_an_exec_that_is_cancelled_while_its_command_has_time_to_end_leaves_no_process(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    child = child_process.exec(f"echo $$ > {told}; sleep 60", timeout=0.1, kill_signal="CONT", kill_grace=60)
    task = asyncio.ensure_future(none(child))
    await eventually(lambda: child.killed and told.exists() and told.read_text(), "its time is over, and it goes on")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int(told.read_text())
    await eventually(lambda: not is_alive(pid), "the command is gone")


async def none(awaitable: Any) -> Any:
    return await awaitable


@asynchronous
async def test_exec_file_has_no_shell() -> None:
    assert (await child_process.exec_file("echo", ["$HOME; *"])).stdout == "$HOME; *\n"
    assert (await child_process.exec_file("printf", [r"\377"], encoding=None)).stdout == b"\xff"


@asynchronous
async def test_exec_file_of_something_that_is_no_program_says_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(SpawnError, match="Permission denied"):
        await child_process.exec_file(tmp_path / "text")


# ---- fork --------------------------------------------------------------------------------------------
@asynchronous
async def test_fork_runs_a_script_by_the_interpreter_and_options_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import os, sys\nfrom pyworker import process\n"
        "process.send([sys.argv[1:], sys.flags.dont_write_bytecode, os.getcwd(), 'NODE_CHANNEL_FD' in os.environ])"
    )
    child = child_process.fork(
        "child.py", ["a", "b"], exec_path=sys.executable, exec_args=["-B"], cwd=tmp_path, stdout="pipe"
    )
    assert child.args == [sys.executable, "-B", "child.py", "a", "b"]
    assert await anext(child.messages()) == [["a", "b"], 1, str(tmp_path), False]
    assert child.stdout is not None
    assert await child.stdout.read() == b""
    await child.wait_closed()


@asynchronous
async def test_messages_go_both_ways_and_the_end_is_told(echo: str) -> None:
    child = child_process.fork(echo)
    inbox = Inbox(child)
    events = child.events("disconnect", "exit", "close")
    for value in ({"a": [1, None, "ü\u2028"]}, "text", 0, None, [], "x" * 300_000):
        child.send(value)
        assert await inbox.next() == {"echo": value}
    child.disconnect()
    assert [event.name async for event in events] == ["disconnect", "exit", "close"]
    assert child.exit_code == 0
    with pytest.raises(ChannelClosedError):
        child.send(1)


@asynchronous
async def test_each_kind_of_handle_arrives_and_is_closed_here(echo: str) -> None:
    child = child_process.fork(echo)
    inbox = Inbox(child)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    await child.deliver("listener", listener)
    assert listener.fileno() == -1
    with socket.create_connection(address) as client:
        assert await asyncio.to_thread(client.recv, 100) == b"accepted by the child"

    ours, theirs = socket.socketpair()
    await child.deliver("unix connection", theirs)
    assert theirs.fileno() == -1
    with ours:
        assert await asyncio.to_thread(ours.recv, 100) == b"written by the child"

    with socket.create_server(("127.0.0.1", 0)) as tcp:
        client = socket.create_connection(tcp.getsockname())
        accepted, _ = tcp.accept()
    await child.deliver("tcp connection", accepted, keep_open=True)
    assert accepted.fileno() >= 0, "keep_open"
    accepted.close()
    with client:
        assert await asyncio.to_thread(client.recv, 100) == b"written by the child"

    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"datagram", udp.getsockname())
        await child.deliver("udp", udp)
        assert await asyncio.to_thread(peer.recv, 100) == b"DATAGRAM"

    with tempfile.TemporaryFile() as file:
        file.write(b"of a file")
        file.seek(0)
        await child.deliver("file", file)
        assert file.closed
    assert await inbox.next() == "of a file"
    child.disconnect()
    await child.wait_closed()


@asynchronous
async def test_messages_and_handles_keep_their_order(echo: str) -> None:
    child = child_process.fork(echo)
    inbox = Inbox(child)
    for number in range(50):
        child.send(number)
        with tempfile.TemporaryFile() as file:
            file.write(b"%d" % number)
            file.seek(0)
            child.send("file", os.fdopen(os.dup(file.fileno()), "rb"))
    got = [await inbox.next() for _ in range(100)]
    assert got == [value for number in range(50) for value in ({"echo": number}, str(number))]
    child.disconnect()
    await child.wait_closed()


@asynchronous
async def test_a_handle_whose_receiver_died_first_is_reported_and_still_open(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os, sys; sys.stdin.read(); os._exit(1)")
    child = child_process.fork(str(tmp_path / "dies.py"), stdin="pipe")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        delivery = asyncio.ensure_future(child.deliver("take it", theirs))
        await asyncio.sleep(0)
        assert child.stdin is not None
        child.stdin.close()
        with pytest.raises(HandleNotDeliveredError) as caught:
            await delivery
        assert caught.value.handle is theirs
        assert theirs.fileno() >= 0, "it can be sent to another"
    await child.wait_closed()


@asynchronous
async def test_a_child_that_does_not_read_slows_its_sender_down(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(
        "import sys\nfrom pyworker import process\nsys.stdin.read()\nprocess.on('message', lambda m, h: None)\n"
        "process.on('disconnect', lambda: None)\nimport threading; threading.Event().wait()"
    )
    child = child_process.fork(str(tmp_path / "deaf.py"), stdin="pipe")
    sent = 0
    while child.send("x" * 10_000):
        sent += 1
        assert sent < 1000, "send never said that it is enough"
    calm = asyncio.ensure_future(child.drain())
    await asyncio.sleep(0)
    assert not calm.done()
    assert child.stdin is not None
    child.stdin.close()
    await calm
    child.kill("SIGKILL")
    await child.wait_closed()


@asynchronous
async def test_what_cannot_be_sent_is_said_at_once(echo: str) -> None:
    child = child_process.fork(echo)
    with pytest.raises(ValueError, match="cannot be sent as JSON"):
        child.send({1, 2})
    with pytest.raises(ValueError, match="may not start with NODE_"):
        child.send({"cmd": "NODE_HANDLE"})
    with pytest.raises(TypeError, match="a dict cannot be sent: only sockets and open files can"):
        child.send("x", {"a": 1})
    ours, theirs = socket.socketpair()
    tls = ssl.create_default_context().wrap_socket(ours, server_hostname="x", do_handshake_on_connect=False)
    with theirs, tls, pytest.raises(TypeError, match="a TLS connection cannot be sent"):
        child.send("x", tls)
    child.disconnect()
    await child.wait_closed()
    with pytest.raises(ChannelClosedError, match="only fork"):
        child_process.ChildProcess(["x"]).send("x")


@asynchronous
async def test_a_grandchild_knows_nothing_of_the_channel(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(
        "import os, subprocess, sys\nfrom pyworker import process\n"
        "code = \"import os; print([k for k in os.environ if k.startswith(('NODE_CH', 'NODE_UN'))], len(os.listdir('/proc/self/fd')))\"\n"
        "process.send(subprocess.run([sys.executable, '-c', code], stdout=-1, close_fds=False, text=True).stdout)\n"
        "pid = os.fork()\n"
        "if not pid:\n    os._exit(7 if not process.connected else 1)\n"
        "process.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    child = child_process.fork(str(tmp_path / "parent.py"))
    inbox = Inbox(child)
    assert await inbox.next() == "[] 4\n", "three standard ones and the listing's own"
    assert await inbox.next() == 7, "nor does one that was forked"
    await child.wait_closed()


@asynchronous
async def test_a_child_whose_parent_is_gone_is_told(tmp_path: Path, echo: str) -> None:
    told = tmp_path / "pid"
    (tmp_path / "parent.py").write_text(
        "import asyncio, os\nfrom pyworker import child_process\n"
        f"async def main():\n    child = child_process.fork({echo!r})\n"
        "    got = asyncio.Event()\n    child.on('message', lambda m, h: got.set())\n"
        "    child.send(1)\n    await got.wait()\n"
        f"    open({str(told)!r}, 'w').write(str(child.pid))\n    os.kill(os.getpid(), 9)\nasyncio.run(main())"
    )
    parent = child_process.spawn(sys.executable, [str(tmp_path / "parent.py")])
    await parent.wait()
    pid = int(told.read_text())
    await eventually(lambda: not is_alive(pid), "the child has ended by itself")
    await parent.wait_closed()  # its child had the pipes, too


@asynchronous
async def test_a_callback_that_raises_harms_nobody_else_although_stderr_is_gone(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import os, threading\n"
        "from pyworker import process\n"
        "ended = threading.Event()\n"
        "def got(message, handle):\n"
        "    process.send(100 / message)\n"
        "process.on('message', got)\n"
        "process.on('disconnect', ended.set)\n"
        "ended.wait()\n"
    )
    child = child_process.fork(tmp_path / "child.py", stderr="pipe")
    assert child.stderr is not None
    child.stderr.close()
    inbox = Inbox(child)
    for number in (0, 4):
        child.send(number)
    assert await inbox.next() == 25
    child.disconnect()
    assert (await child.wait_closed()).code in (0, 120)  # 120: Python could not write what was left for stderr


@asynchronous
async def test_a_disconnect_that_has_happened_is_told_to_those_who_ask_late(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import sys, threading\nfrom pyworker import process\nfirst = threading.Event()\n"
        "process.on('disconnect', first.set)\nfirst.wait()\nprocess.on('disconnect', lambda: print('told'))"
    )
    child = child_process.fork(str(tmp_path / "late.py"), stdout="pipe")
    child.disconnect()
    assert child.stdout is not None
    assert await child.stdout.read() == b"told\n"
    await child.wait_closed()


def test_without_a_parent_a_program_has_no_channel() -> None:
    from pyworker import process

    assert process.connected is False
    with pytest.raises(ChannelClosedError, match="not started by fork"):
        process.send("x")


@asynchronous
async def test_a_malformed_line_of_a_child_is_reported_and_the_channel_goes_on(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import os\nfd = int(os.environ['NODE_CHANNEL_FD'])\nos.write(fd, b'nonsense\\n\"fine\"\\n')\nos.read(fd, 1)"
    )
    child = child_process.fork(str(tmp_path / "bad.py"))
    inbox = Inbox(child)
    errors: list[Any] = []
    child.on("error", errors.append)
    assert await inbox.next() == "fine"
    assert "no JSON" in str(errors[0])
    child.disconnect()
    await child.wait_closed()
