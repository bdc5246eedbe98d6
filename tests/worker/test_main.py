"""One worker from birth to end, against a daemon that speaks the real protocol."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.schema import HooksConfig, HttpConfig, LimitsConfig, StopConfig
from pyworker.protocol.scoreboard import F
from pyworker.protocol.worker import Accepting, Check, Drain, Drained, Failed, Go, Hello, Notice, Ready, Recycle
from pyworker.unix.process import is_stopped
from tests.support.fake_daemon import FakeDaemon, Peer
from tests.support.wait import wait_until
from tests.worker.conftest import answer, get, request

pytestmark = pytest.mark.usefixtures("no_fd_is_left")
QUICK = HttpConfig(keepalive_timeout=0.2)


def born(d: FakeDaemon, *, held: bool = False) -> Peer:
    worker = d.fork(d.load(), 1, held=held, workers=3)
    worker.expect(Hello)
    worker.expect(Ready)
    return worker


def test_drain_finishes_the_request_in_flight_and_exits_zero(daemon: Any, folder: Path) -> None:
    d = daemon(http=QUICK)
    worker = born(d)
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: d.row(1)[F.IN_FLIGHT] == 1)
        worker.send(Drain(10.0, to_empty=False))
        wait_until(lambda: d.row(1)[F.LEFT_AT])
        with socket.create_connection(d.listeners[0].getsockname(), timeout=30):  # is for others
            (folder / "go").touch()
            assert answer(client) == str(worker.pid).encode()
            assert worker.expect(Drained) == Drained(requests=1, cancelled=0)
    assert d.row(1)[F.ACCEPTED] == 1
    assert d.reap(worker.pid) == 0
    assert b"app is down" in worker.read_out()  # by the lifespan, line by line


def test_the_time_to_drain_that_was_said_last_counts_also_where_both_are_read_at_once(daemon: Any) -> None:
    d = daemon(http=QUICK)
    worker = born(d)
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: d.row(1)[F.IN_FLIGHT] == 1)
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(worker.pid))
        for timeout in (300.0, 0.1):
            worker.send(Drain(timeout, to_empty=False))
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.expect(Drained).cancelled == 1
    assert d.reap(worker.pid) == 0


def test_drain_of_the_last_worker_serves_all_that_is_queued(daemon: Any) -> None:
    d = daemon(http=QUICK)
    worker = born(d, held=True)
    clients = [socket.create_connection(d.listeners[0].getsockname(), timeout=30) for _ in range(40)]
    for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    worker.send(Go())
    worker.expect(Accepting)
    worker.send(Drain(10.0, to_empty=True))
    assert {answer(client) for client in clients} == {str(worker.pid).encode()}
    for client in clients:
        client.close()
    assert worker.expect(Drained).cancelled == 0
    assert d.reap(worker.pid) == 0


def test_drain_before_go_ends_at_once(daemon: Any) -> None:
    d = daemon()
    worker = born(d, held=True)
    worker.send(Drain(10.0, to_empty=False))
    assert worker.expect(Drained) == Drained(0, 0)
    assert d.reap(worker.pid) == 0


def test_drain_before_the_app_is_up_ends_at_once(daemon: Any, folder: Path) -> None:
    (folder / "shop.py").write_text("import asyncio\nasync def app(scope, receive, send): await asyncio.sleep(600)\n")
    d = daemon()
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    worker.send(Drain(10.0, to_empty=False))
    assert worker.expect(Drained) == Drained(0, 0)
    assert d.reap(worker.pid) == 0


def test_closed_channel_means_finish_and_leave(daemon: Any, folder: Path) -> None:
    d = daemon(http=QUICK)
    worker = born(d)
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: d.row(1)[F.IN_FLIGHT] == 1)
        worker.sock.shutdown(socket.SHUT_RDWR)
        (folder / "go").touch()
        assert answer(client) == str(worker.pid).encode()
    assert d.reap(worker.pid) == 0


@pytest.mark.parametrize("name", ["TERM", "INT", "USR2"])
def test_stop_signal_drains(daemon: Any, name: str) -> None:
    d = daemon(stop=StopConfig(signal=name))
    worker = born(d)
    os.kill(worker.pid, getattr(signal, f"SIG{name}"))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0


def test_second_signal_ends_at_once_by_that_signal(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text("import pyworker\npyworker.on_stop(lambda: print('stopping'))\n" + shop)
    d = daemon()
    worker = born(d)
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        request(client)  # an open keep-alive connection keeps the drain waiting
        os.kill(worker.pid, signal.SIGTERM)
        wait_until(lambda: worker.read_out() == b"stopping\n")
        os.kill(worker.pid, signal.SIGTERM)
        assert d.reap(worker.pid) == -signal.SIGTERM


STARTS_ONE = """
import multiprocessing, os, signal, time
def work(pipe):
    os.write(pipe, b"x")
    while True:
        time.sleep(0.01)  # a handler of Python's runs between two steps
def app(environ, start_response):
    runs, pipe = os.pipe()
    started = multiprocessing.get_context("fork").Process(target=work, args=(pipe,))
    started.start()
    if environ["PATH_INFO"] == "/TERM":
        started.terminate()  # may come before it does anything
    else:
        os.read(runs, 1)
        os.kill(started.pid, signal.SIGINT)
    started.join()
    os.close(runs)
    os.close(pipe)
    body = f"{started.exitcode} {os.getpid()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_an_app_forks_is_ended_by_a_signal_and_its_worker_is_not(daemon: Any, folder: Path, loop: Any, threads: int) -> None:
    (folder / "shop.py").write_text(STARTS_ONE)
    d = daemon(loop=loop, threads=threads)
    worker = born(d)
    address = d.listeners[0].getsockname()
    # since 3.13 Python itself hangs after a KeyboardInterrupt in a process that was forked by another than the main thread
    ends = [("TERM", -signal.SIGTERM)] if threads > 1 else [("TERM", -signal.SIGTERM), ("INT", 1)]
    for name, code in ends * 3:
        assert get(address, f"/{name}") == f"{code} {worker.pid}".encode()
    assert d.row(1)[F.LEFT_AT] == 0
    assert threads > 1 or b"KeyboardInterrupt" in worker.read_err()
    os.kill(worker.pid, signal.SIGTERM)
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0


def test_what_a_wsgi_app_does_at_its_end_sees_no_loop_either(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    asks = "import asyncio, pyworker\n@pyworker.on_stop\ndef ends(): print(asyncio.run(asyncio.sleep(0, 'slept')))\n"
    (folder / "shop.py").write_text(asks + shop)
    d = daemon(target="shop:wsgi")
    worker = born(d)
    worker.send(Drain(10.0, to_empty=False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0
    assert worker.read_out() == b"slept\n"


STREAMS = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "50000000" if environ["PATH_INFO"] == "/stream" else "2")])
    return (b"x" * 500_000 for _ in range(100)) if environ["PATH_INFO"] == "/stream" else [b"ok"]
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_connections_that_come_while_the_one_thread_streams_are_left_to_others_and_taken_afterwards(
    daemon: Any, folder: Path, loop: Any
) -> None:
    (folder / "shop.py").write_text(STREAMS)
    d = daemon(loop=loop, http=HttpConfig(keepalive_timeout=600.0))
    worker = born(d)
    address = d.listeners[0].getsockname()
    with socket.create_connection(address, timeout=30) as streaming, socket.create_connection(address, timeout=30) as first:
        first.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(first) == b"ok"
        streaming.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: d.row(1)[F.IN_FLIGHT] == 1)
        first.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: d.row(1)[F.IN_FLIGHT] == 2)
        taken = d.row(1)[F.ACCEPTED]
        with socket.create_connection(address, timeout=30) as late:
            late.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            progress = d.row(1)[F.PROGRESS_AT]
            wait_until(lambda: d.row(1)[F.PROGRESS_AT] > progress)  # it looks once a second whether somebody waits
            assert d.row(1)[F.ACCEPTED] == taken
            got = 0
            while got < 50_000_000:
                got += len(streaming.recv(1 << 20))
            assert (answer(first), answer(late)) == (b"ok", b"ok")
    worker.send(Drain(10.0, to_empty=False))
    worker.expect(Drained)


def test_where_no_loop_can_take_turns_the_worker_says_so_and_serves(daemon: Any, folder: Path) -> None:
    """As where nothing is known of a process's epolls (/proc/self/fdinfo)."""
    blind = "from pyworker.worker import accept\naccept.registered = dict\naccept.waiting_for = lambda _: ()\n"
    (folder / "shop.py").write_text(blind + (folder / "shop.py").read_text())
    d = daemon(loop="uvloop")
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    assert worker.expect(Notice).text == "this uvloop cannot take turns in accepting; the asyncio loop is used instead"
    assert worker.expect(Ready).serving
    assert get(d.listeners[0].getsockname()) == str(worker.pid).encode()
    assert b"cannot take turns in accepting (no epoll of this process waits for the listener); accepting without" in worker.read_err()


def test_check_is_served_before_go_and_not_counted(daemon: Any) -> None:
    d = daemon()
    worker = born(d, held=True)
    ours, theirs = socket.socketpair()
    worker.send(Check(), theirs.fileno())
    theirs.close()
    ours.settimeout(30)
    ours.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Pyworker-Check: 1\r\nConnection: close\r\n\r\n")
    assert answer(ours) == str(worker.pid).encode()
    ours.close()
    assert d.row(1)[F.REQUESTS] == 0


def test_progress_is_noted_in_the_row(daemon: Any) -> None:
    d = daemon()
    born(d)
    first = d.row(1)[F.PROGRESS_AT]
    assert first
    wait_until(lambda: d.row(1)[F.PROGRESS_AT] > first)


RINGS = """
import sys
from pyworker.worker.channel import Channel
from tests.support.apps.hello import asgi as app

def flush(channel, real=Channel.flush, ticks=[]):
    ticks += ["_tick"] * (sys._getframe(1).f_code.co_name == "_tick")
    if len(ticks) == 2:
        ticks += ["rung"]
        raise TimeoutError
    real(channel)

Channel.flush = flush
"""


def test_progress_is_noted_after_the_handler_of_a_signal_has_raised_in_the_midst_of_that(daemon: Any, folder: Path) -> None:
    (folder / "shop.py").write_text(RINGS)
    d = daemon()
    worker = born(d)
    wait_until(lambda: b"TimeoutError" in worker.read_err())
    rung = time.monotonic_ns()
    wait_until(lambda: d.row(1)[F.PROGRESS_AT] > rung)


def test_rubbish_from_the_channel_is_reported_and_skipped(daemon: Any) -> None:
    d = daemon()
    worker = born(d)
    for rubbish in (b"\xff", b"[" * 4000, b'{"type":"go","x":1}', b'{"type":"wings"}'):
        worker.sock.send(rubbish)
    assert get(d.listeners[0].getsockname()) == str(worker.pid).encode()
    assert b"ignored a message" in wait_until(worker.read_err)


def test_failing_lifespan_is_told_with_its_traceback(daemon: Any, folder: Path) -> None:
    (folder / "shop.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'lifespan':\n"
        "        await receive()\n"
        "        await send({'type': 'lifespan.startup.failed', 'message': 'no database'})\n"
    )
    d = daemon()
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    failed = worker.expect(Failed)
    assert failed.kind == "lifespan"
    assert "no database" in failed.message
    assert d.reap(worker.pid) == 1


def test_on_stop_callbacks_run_when_the_drain_starts(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text(
        "import pyworker\n"
        "pyworker.ready()\n"
        "@pyworker.on_stop\ndef one(): print('one')\n"
        "@pyworker.on_stop\ndef bad(): 1 / 0\n"
        "@pyworker.on_stop\ndef given_up(): import asyncio; raise asyncio.CancelledError('given up')\n"
        "@pyworker.on_stop\ndef leaves(): raise SystemExit(3)\n"
        "@pyworker.on_stop\nasync def leaves_later(): raise SystemExit(4)\n"
        "@pyworker.on_stop\nasync def two(): await asyncio.sleep(0.1); print('two')\n" + shop
    )
    d = daemon()
    worker = born(d)
    worker.send(Drain(1.0, to_empty=False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0
    assert worker.read_out().split() == [b"one", b"two", b"app", b"is", b"down"]
    said = worker.read_err()
    assert b"ZeroDivisionError" in said
    assert b"SystemExit: 3" in said
    assert b"SystemExit: 4" in said


def test_the_last_word_on_the_time_to_drain_holds_for_all_that_is_waited_for(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text("import pyworker\n@pyworker.on_stop\nasync def tidy(): await asyncio.sleep(3600)\n" + shop)
    d = daemon(http=QUICK)
    worker = born(d)
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: d.row(1)[F.IN_FLIGHT] == 1)
        os.kill(worker.pid, signal.SIGSTOP)  # so that it hears both at once
        worker.send(Drain(3600.0, to_empty=False))
        worker.send(Drain(0.0, to_empty=False))
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.expect(Drained).cancelled == 1
        assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
    assert d.reap(worker.pid) == 0


def test_the_time_to_drain_may_change_while_what_an_app_does_at_its_stop_is_all_that_is_waited_for(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text("import pyworker\n@pyworker.on_stop\nasync def tidy(): await asyncio.sleep(3600)\n" + shop)
    d = daemon()
    worker = born(d)
    worker.send(Drain(3600.0, to_empty=False))
    wait_until(lambda: d.row(1)[F.LEFT_AT])
    worker.send(Drain(0.0, to_empty=False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0
    assert b"app is down" in worker.read_out()


def test_worker_knows_who_it_is_and_its_children_inherit_nothing(daemon: Any, folder: Path) -> None:
    (folder / "shop.py").write_text("""
import json, os, subprocess, sys, pyworker.worker
def app(environ, start_response):
    child = subprocess.run([sys.executable, "-c", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"], capture_output=True, text=True).stdout
    w = pyworker.worker
    body = json.dumps({
        "env": {k: v for k, v in os.environ.items() if k.startswith("PYWORKER_")},
        "api": [w.app, w.id, w.generation], "child": json.loads(child), "sid": os.getsid(0) == os.getpid(),
        "argv": sys.argv, "path0": sys.path[0], "main": hasattr(sys.modules["__main__"], "__file__"),
        "pyworker": pyworker.__file__, "title": open("/proc/self/cmdline").read().strip(chr(0)),
        "zip_on_path": any("/proc/self/fd" in p for p in sys.path),
    }).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
""")
    d = daemon()
    born(d)
    said = json.loads(get(d.listeners[0].getsockname()))
    assert said["env"] == {
        "PYWORKER_APP": "shop",
        "PYWORKER_WORKER": "1",
        "PYWORKER_GENERATION": "1",
        "PYWORKER_WORKERS": "3",
    }
    assert said["api"] == ["shop", 1, 1]
    assert said["sid"]
    assert said["child"] == [0, 1, 2, 3]  # 3 is the listing itself
    assert said["path0"] == str(folder)
    assert not said["main"]
    assert "/proc/self/fd/" in said["pyworker"]
    assert not said["zip_on_path"]
    assert said["title"] == "pyworker worker shop.1"


def test_worker_that_imports_for_itself_reports_its_failure(daemon: Any, folder: Path) -> None:
    marker = folder / "broken"
    (folder / "shop.py").write_text(
        f"import os\nif os.path.exists({str(marker)!r}): import no_such_thing\n" + (folder / "shop.py").read_text()
    )
    d = daemon(preload=False)
    template = d.load()
    assert d.loaded.why == "preload = false"
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    marker.touch()
    worker = d.fork(template, 2)
    worker.expect(Hello)
    failed = worker.expect(Failed)
    assert failed.kind == "import"
    assert failed.message == "ModuleNotFoundError: No module named 'no_such_thing'"
    assert d.reap(worker.pid) == 1


CANCEL_ALL = "for task in asyncio.all_tasks(): task.cancel()"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(("ends", "how"), [("asyncio.get_running_loop().stop()", "loop.stop()"), (CANCEL_ALL, "all_tasks()")])
def test_an_app_that_ends_the_loop_of_its_worker_is_told_so(
    daemon: Any, folder: Path, loop: str, ends: str, how: str
) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text(shop.replace("    body = ", f"    if scope['path'] == '/end':\n        {ends}\n    body = ", 1))
    d = daemon(loop=loop)
    worker = born(d)
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        client.sendall(b"GET /end HTTP/1.1\r\nHost: x\r\n\r\n")
        assert how in worker.expect(Failed).message
    assert d.reap(worker.pid) == 1


def test_an_app_may_cancel_all_tasks_when_it_shuts_down(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    at_shutdown = f"            if message['type'] == 'lifespan.shutdown':\n                {CANCEL_ALL}\n"
    answers = "            await send("
    (folder / "shop.py").write_text(shop.replace(answers, at_shutdown + answers, 1))
    d = daemon()
    worker = born(d)
    worker.send(Drain(10.0, to_empty=False))
    assert d.reap(worker.pid) == 0
    assert b"Traceback" not in worker.read_err()


def test_a_post_fork_that_fails_is_told_and_is_no_failed_import(daemon: Any, folder: Path) -> None:
    shop = folder / "shop.py"
    shop.write_text(shop.read_text() + "def hook(): raise ValueError('no')\n")
    d = daemon(hooks=HooksConfig(post_fork="shop:hook"))
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    failed = worker.expect(Failed)
    assert (failed.kind, failed.message) == ("other", "hooks.post_fork: ValueError: no")
    assert d.reap(worker.pid) == 1


def test_worker_asks_to_be_replaced_after_max_requests(daemon: Any) -> None:
    d = daemon(limits=LimitsConfig(max_requests=3))
    worker = born(d)
    for _ in range(4):
        get(d.listeners[0].getsockname())
    assert "max_requests" in worker.expect(Recycle).reason


def test_abort_dumps_the_stacks_of_all_threads(daemon: Any) -> None:
    d = daemon()
    worker = born(d)
    os.kill(worker.pid, signal.SIGABRT)
    assert d.reap(worker.pid) == -signal.SIGABRT
    assert b"Current thread" in worker.read_err()
