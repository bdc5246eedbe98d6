"""Unmodified scripts that bind for themselves share one listener."""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import os
import signal
import socket
import ssl
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pyworker.cluster.binding import Address
from pyworker.protocol import wire
from pyworker.protocol.scoreboard import F
from pyworker.protocol.worker import (
    MAX_WORKER_MESSAGE,
    Accepting,
    Bind,
    Bound,
    Check,
    Drain,
    Drained,
    Failed,
    FromWorker,
    Hello,
    Kick,
    Ready,
)
from pyworker.unix.fds import recv_surely, send_packet, socketpair
from pyworker.worker import script
from pyworker.worker.channel import Channel
from tests.support.descriptors import open_fds
from tests.support.fake_daemon import FakeDaemon, Peer, tcp_listener
from tests.support.pyworker import free_port
from tests.support.steps import acts_at, close_lost, keeps_locks
from tests.support.wait import wait_until
from tests.support.words import ADDRESS_IN_USE
from tests.worker.conftest import get, request, spread

pytestmark = pytest.mark.usefixtures("no_fd_is_left")

HTTP_SERVER = """
import http.server, os, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if BASE is http.server.HTTPServer:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
class Threading(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
BASE = %s
BASE(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
SCRIPTS = {
    "http.server": HTTP_SERVER % "http.server.HTTPServer",
    "socketserver with threads": HTTP_SERVER % "Threading",
    "blocking accept": """
import os, socket, sys
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.settimeout(3)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen(5)
server.setblocking(True)
while True:
    client, _ = server.accept()
    with client:
        client.recv(4096)
        body = str(os.getpid()).encode()
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
""",
    "blocking accept, with green threads": "import select, threading\ndel select.epoll, select.poll\n"
    "threading._start_new_thread = lambda *_: None\n" + HTTP_SERVER % "http.server.HTTPServer",
    "asyncio": """
import asyncio, os, sys
async def handle(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    body = str(os.getpid()).encode()
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
""",
    "aiohttp": """
import os, sys
from aiohttp import web
async def show(request): return web.Response(text=str(os.getpid()))
app = web.Application()
app.router.add_get("/", show)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
""",
    "uvicorn": """
import sys, uvicorn
from shop import app
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", log_level="warning")
""",
    "flask": """
import os, sys
from flask import Flask
app = Flask(__name__)
@app.get("/")
def show(): return str(os.getpid())
app.run(port=int(sys.argv[1]))
""",
}


def launch(daemon: Any, folder: Path, text: str, count: int = 1) -> tuple[FakeDaemon, list[Peer]]:
    (folder / "server.py").write_text(text)
    listener = tcp_listener()
    d = daemon([listener], script=str(folder / "server.py"), args=(str(listener.getsockname()[1]),))
    workers = [d.launch("script", slot=slot, row=slot, workers=count) for slot in range(1, count + 1)]
    for worker in workers:
        worker.expect(Hello)
    return d, workers


def serving(daemon: Any, folder: Path, text: str) -> tuple[FakeDaemon, Peer]:
    """Launch one worker that is given the listener and accepts on it."""
    d, [worker] = launch(daemon, folder, text)
    d.answer_bind(worker)
    worker.expect(Ready)
    worker.expect(Accepting)
    return d, worker



def test_a_script_that_closes_all_descriptors_binds_for_itself(daemon: Any, folder: Path) -> None:
    """As programs do that put themselves into the background (python-daemon): one of its own has the number of our channel then."""
    address = "127.0.0.1", free_port()
    text = "import os\nos.closerange(3, 256)\n" + HTTP_SERVER % "http.server.HTTPServer"
    (folder / "server.py").write_text(text)
    d = daemon([], script=str(folder / "server.py"), args=(str(address[1]),))
    worker = d.launch("script", slot=1, row=1, workers=1)
    worker.expect(Hello)
    worker.wait_closed()
    wait_until(lambda: b"it binds for itself" in worker.read_err())
    wait_until(lambda: _answers(address), what="an answer")
    assert get(address) == str(worker.pid).encode()
    os.kill(worker.pid, signal.SIGTERM)
    assert d.reap(worker.pid) == -signal.SIGTERM


def test_a_script_that_closes_our_channel_once_it_has_bound_serves_on(daemon: Any, folder: Path) -> None:
    closed = "\nos.closerange(3, server.fileno())\nos.closerange(server.fileno() + 1, 256)\nserver.serve_forever()"
    text = (HTTP_SERVER % "http.server.HTTPServer").replace("BASE((", "server = BASE((").replace(".serve_forever()", closed)
    d, worker = serving(daemon, folder, text)
    assert get(d.listeners[0].getsockname()) == str(worker.pid).encode()
    with contextlib.suppress(BrokenPipeError):  # our thread may have seen it
        worker.send(Kick())
    worker.wait_closed()
    assert get(d.listeners[0].getsockname()) == str(worker.pid).encode()
    os.kill(worker.pid, signal.SIGTERM)
    assert d.reap(worker.pid) == -signal.SIGTERM


def _answers(address: Any) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address):
        return True
    return False


@pytest.mark.parametrize("name", SCRIPTS)
def test_unmodified_server_shares_the_port_and_drains(daemon: Any, folder: Path, name: str) -> None:
    d, workers = launch(daemon, folder, SCRIPTS[name], 2)
    address = d.listeners[0].getsockname()
    for worker in workers:
        assert d.answer_bind(worker) == Bind("inet", "127.0.0.1", address[1])
        assert not worker.expect(Ready).serving
        worker.expect(Accepting)
    pids = {str(worker.pid).encode() for worker in workers}
    wait_until(lambda: set(spread(address, 20)) == pids, what="both workers to serve")
    workers[0].send(Drain(5.0, to_empty=False))
    workers[0].expect(Drained)
    assert d.reap(workers[0].pid) in (-signal.SIGTERM, 0)
    assert set(spread(address, 20)) == {str(workers[1].pid).encode()}


def test_script_is_held_inside_bind_and_sees_what_python_would_show(daemon: Any, folder: Path) -> None:
    d, [worker] = launch(
        daemon,
        folder,
        "import sys, os\nprint(__name__, __file__, sys.argv[0], sys.path[0], __spec__)\n" + SCRIPTS["http.server"],
    )
    asked = worker.expect(Bind)
    worker.expect(Ready)
    path = str(folder / "server.py")
    assert wait_until(worker.read_out).split() == [
        b"__main__",
        path.encode(),
        path.encode(),
        str(folder).encode(),
        b"None",
    ]
    client = socket.create_connection(d.listeners[0].getsockname(), timeout=30)
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(30)
    worker.send(Bound(0), d.listeners[0].fileno())
    worker.expect(Accepting)
    assert b"200" in client.recv(100)
    client.close()
    assert asked.port == d.listeners[0].getsockname()[1]


def test_script_is_compiled_and_started_again_as_python_would_do_it(daemon: Any, folder: Path) -> None:
    d, [worker] = launch(
        daemon,
        folder,
        "import sys\ndef f(x: int): pass\nprint(f.__annotations__['x'] is int, sys.orig_argv == [sys.executable, *sys.argv])\n"
        "print(type(__loader__).__name__, __loader__.get_filename() == __file__, __cached__, __spec__)",
    )
    assert d.reap(worker.pid) == 0
    assert worker.read_out() == b"True True\nSourceFileLoader True None None\n"


def test_what_a_script_starts_inherits_none_of_our_descriptors(daemon: Any, folder: Path) -> None:
    d, [worker] = launch(daemon, folder, "import subprocess\nsubprocess.run(['ls', '/proc/self/fd'], close_fds=False)")
    assert d.reap(worker.pid) == 0
    assert worker.read_out().split() == [b"0", b"1", b"2", b"3"]  # the last one is that of the listing


def test_looking_for_a_module_that_will_be_taught_is_not_its_import(daemon: Any, folder: Path) -> None:
    d, [worker] = launch(
        daemon,
        folder,
        """
import importlib.util
for _ in range(2): assert importlib.util.find_spec("uvloop").name == "uvloop"
import uvloop
print(uvloop.Loop.create_server.__module__)
""",
    )
    assert d.reap(worker.pid) == 0
    assert worker.read_out() == b"pyworker.cluster.uvloop_servers\n"


PREFORKING = """
import os, socket, sys
server = socket.socket()
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen()
if os.fork():
    os.wait()
while True:
    client, _ = server.accept()
    client.recv(4096)
    body = str(os.getpid()).encode()
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
    client.close()
"""


def test_what_a_script_has_forked_to_accept_stops_with_it(daemon: Any, folder: Path) -> None:
    d, worker = serving(daemon, folder, PREFORKING)
    listener = d.listeners[0]
    child = int(get(listener.getsockname()))
    wait_until(lambda: sleeps(child), what="its wait")
    worker.send(Drain(5.0, to_empty=False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == -signal.SIGTERM
    wait_until(lambda: sleeps(child), what="it to rest: it turned round and round")
    with socket.create_connection(listener.getsockname(), timeout=30):
        wait_until(lambda: taken(listener), what="the connection, which is for other workers")
    os.kill(child, signal.SIGKILL)
    d.reap(child)


def test_what_a_script_has_forked_to_accept_does_not_fail_over_a_listener_that_is_shut_down(
    daemon: Any, folder: Path
) -> None:
    waits = "    import select; select.select([server], [], [])\n    client, _"
    d, worker = serving(daemon, folder, PREFORKING.replace("    client, _", waits))
    listener = d.listeners[0]
    child = int(get(listener.getsockname()))
    listener.shutdown(socket.SHUT_RD)  # as at the end of the app
    wait_until(lambda: not holds(child, listener), what="it to let go")
    wait_until(lambda: sleeps(child), what="it to rest: it turned round and round")
    os.kill(child, signal.SIGKILL)
    worker.send(Drain(5.0, to_empty=False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == -signal.SIGTERM
    d.reap(child)
    assert b"Traceback" not in worker.read_err()  # Python 3.12 warns of a fork beside threads: ours


def holds(pid: int, sock: socket.socket) -> bool:
    inode = os.fstat(sock.fileno()).st_ino
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            if os.stat(fd).st_ino == inode:
                return True
    return False


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def taken(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_script_that_takes_its_stop_signal_and_is_held_inside_bind_leaves(daemon: Any, folder: Path) -> None:
    takes = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('asked to stop'))\n"
    d, [worker] = launch(daemon, folder, takes + SCRIPTS["blocking accept"])
    worker.expect(Bind)
    worker.expect(Ready)
    worker.send(Drain(5.0, to_empty=False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 1
    assert worker.read_out() == b"asked to stop\n"
    assert b"told to stop" in worker.read_err()


def test_script_that_tries_its_bind_again_when_it_is_told_to_stop_is_told_each_time(daemon: Any, folder: Path) -> None:
    tries = """
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: None)
for _ in range(3):
    try:
        socket.socket().bind(("127.0.0.1", int(sys.argv[1])))
    except OSError as error:
        print(error.errno)
"""
    d, [worker] = launch(daemon, folder, tries)
    worker.expect(Bind)
    worker.expect(Ready)
    worker.send(Drain(5.0, to_empty=False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0
    assert worker.read_out() == b"125\n" * 3


def test_refused_address_is_an_error_of_bind(daemon: Any, folder: Path) -> None:
    d, [worker] = launch(daemon, folder, SCRIPTS["blocking accept"])
    d.answer_bind(worker, errno=errno.EACCES)
    worker.expect(Ready)
    failed = worker.expect(Failed)
    assert failed.message.startswith("PermissionError")
    assert failed.traceback.split("File ")[1].startswith(f'"{folder}/server.py"')
    assert d.reap(worker.pid) == 1


def test_a_script_that_is_not_where_it_was_has_a_next_step(daemon: Any, folder: Path) -> None:
    d = daemon(script=str(folder / "gone.py"))
    worker = d.launch("script", slot=1, row=1, workers=1)
    worker.expect(Hello)
    failed = worker.expect(Failed)
    assert failed.message.startswith("FileNotFoundError")
    assert failed.hint == f"It was removed under the app. To look again where `script` leads: pyworker reload {d.app.name}"
    assert d.reap(worker.pid) == 1


def test_an_archive_that_python_runs_is_told_to_be_a_command(daemon: Any, folder: Path) -> None:
    (folder / "zipfile.py").write_text("raise SystemExit('a file of the app')")
    with zipfile.ZipFile(folder / "server.pyz", "w") as archive:
        archive.writestr("__main__.py", "print('served')")
    d = daemon(script=str(folder / "server.pyz"))
    worker = d.launch("script", slot=1, row=1, workers=1)
    worker.expect(Hello)
    assert worker.expect(Failed).hint.endswith(f'command = ["python", "{folder}/server.pyz"]')
    assert d.reap(worker.pid) == 1


def wait_read(worker: Peer) -> None:
    """Wait until it has read what was sent before."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker.send(Check(), theirs.fileno())
        theirs.close()
        ours.settimeout(30)
        assert ours.recv(1) == b""


def test_answer_that_is_said_twice_is_not_taken_for_one_to_the_next_bind(daemon: Any, folder: Path) -> None:
    text = """
import socket, sys
first, second = socket.socket(), socket.socket()
first.bind(("127.0.0.1", int(sys.argv[1])))
first.listen()
first.accept()
second.bind(("127.0.0.1", 1))
"""
    d, worker = serving(daemon, folder, text)
    worker.send(Bound(0), d.listeners[0].fileno())
    wait_read(worker)
    with socket.create_connection(d.listeners[0].getsockname()):
        d.answer_bind(worker, errno=errno.EADDRINUSE)
        assert d.reap(worker.pid) == 1
    assert ADDRESS_IN_USE.encode() in worker.read_err()


def test_answer_that_is_said_twice_is_not_taken_for_the_one_to_another_bind(daemon: Any, folder: Path) -> None:
    text = """
import socket, sys
first, second = socket.socket(), socket.socket()
first.bind(("127.0.0.1", int(sys.argv[1])))
second.bind(("127.0.0.1", int(sys.argv[2])))
print(second.getsockname()[1])
"""
    (folder / "server.py").write_text(text)
    listeners = [tcp_listener(), tcp_listener()]
    ports = [listener.getsockname()[1] for listener in listeners]
    d = daemon(listeners, script=str(folder / "server.py"), args=tuple(map(str, ports)))
    worker = d.launch("script", slot=1, row=1, workers=1)
    worker.expect(Hello)
    d.answer_bind(worker)
    worker.expect(Ready)
    worker.expect(Accepting)
    assert worker.expect(Bind).port == ports[1]
    for listener in listeners:  # the first one again: by a daemon after one that was killed over it
        worker.send(Bound(0), listener.fileno())
    assert d.reap(worker.pid) == 0
    assert worker.read_out() == b"%d\n" % ports[1]


def test_answer_to_a_bind_that_the_handler_of_a_signal_has_ended_is_not_taken_for_the_one_to_another(
    daemon: Any, folder: Path
) -> None:
    text = """
import signal, socket, sys
def ring(*_):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    raise TimeoutError
signal.signal(signal.SIGALRM, ring)
first, second = socket.socket(), socket.socket()
try:
    first.bind(("127.0.0.1", int(sys.argv[1])))
except TimeoutError:
    print("gave up", flush=True)
signal.sigwait([signal.SIGUSR1])
second.bind(("127.0.0.1", 1))
"""
    text = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n" + text
    d, [worker] = launch(daemon, folder, text)
    worker.expect(Bind)
    worker.expect(Ready)  # the thread that asks may be in the middle of saying so
    wait_until(lambda: os.kill(worker.pid, signal.SIGALRM) or worker.read_out() == b"gave up\n", 30, "it to give up")
    worker.send(Bound(0), d.listeners[0].fileno())
    wait_read(worker)
    os.kill(worker.pid, signal.SIGUSR1)
    d.answer_bind(worker, errno=errno.EADDRINUSE)
    assert d.reap(worker.pid) == 1
    assert ADDRESS_IN_USE.encode() in worker.read_err()


def test_a_bind_that_the_handler_of_a_signal_has_ended_anywhere_is_granted_when_it_is_tried_again() -> None:
    if keeps_locks():
        pytest.skip("this Python leaves a lock locked where a handler raises: docs/reliability.md")
    before = open_fds()
    for step in itertools.count(1):
        listener, (ours, theirs) = tcp_listener(), socketpair()
        said: list[Any] = []

        def answer(ours: socket.socket = ours, said: list[Any] = said, listener: socket.socket = listener) -> None:
            while (packet := recv_surely(ours, MAX_WORKER_MESSAGE, 0)).data:
                said.append(wire.decode(FromWorker, packet.data))
                if isinstance(said[-1], Bind):
                    send_packet(ours, wire.encode(Bound(0)), [listener.fileno()])

        thread = threading.Thread(target=answer)
        thread.start()
        runtime = script.Runtime(Channel(theirs), collections.defaultdict(int), "CONT")  # type: ignore[arg-type]
        address = Address(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", 0)
        has_come = acts_at(step, lambda ask=runtime.ask, address=address: os.close(ask(address).fd), within="pyworker/worker/")
        grant = runtime.ask(address)
        assert grant is not None
        os.close(grant.fd)
        wait_until(lambda said=said: {Ready, Accepting} <= {type(message) for message in said}, what=lambda said=said: str(said))
        ours.shutdown(socket.SHUT_RDWR)
        wait_until(lambda runtime=runtime: runtime._told_to_stop)
        thread.join()
        for sock in (listener, ours, theirs):
            sock.close()
        close_lost(before)
        if not has_come:
            break


def test_script_that_raises_is_told_with_its_own_frames(daemon: Any, folder: Path) -> None:
    d, [worker] = launch(daemon, folder, "def f():\n    import no_such_thing\nf()\n")
    failed = worker.expect(Failed)
    assert failed.message == "ModuleNotFoundError: No module named 'no_such_thing'"
    assert failed.traceback.count("File ") == 2
    assert d.reap(worker.pid) == 1
    assert worker.read_err().count(b"File ") == 2


def test_other_sockets_are_left_alone(daemon: Any, folder: Path) -> None:
    d, [worker] = launch(
        daemon,
        folder,
        """
import socket, threading
free = socket.socket(); free.bind(("127.0.0.1", 0)); free.listen()
client = socket.create_connection(free.getsockname(), source_address=("127.0.0.1", 0))
free.settimeout(30); peer, _ = free.accept(); peer.sendall(b"x"); assert client.recv(1) == b"x"
free.setblocking(False)
try: free.accept()
except BlockingIOError: pass
udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0pyworker-test-%d" % id(udp))
import multiprocessing.connection  # whose forkserver (Python 3.14's default) listens for itself
with multiprocessing.connection.Listener(family="AF_UNIX"): pass
assert threading.active_count() == 1
import pyworker
pyworker.ready()
print("fine")
""",
    )
    assert worker.expect(Ready).serving
    assert d.reap(worker.pid) == 0
    assert worker.read_out() == b"fine\n"


def test_blocking_script_never_makes_the_shared_listener_block(daemon: Any, folder: Path) -> None:
    d, _ = serving(daemon, folder, SCRIPTS["blocking accept"])
    get(d.listeners[0].getsockname())
    assert not os.get_blocking(d.listeners[0].fileno())


THREADS = """
import os, pyworker, socket, sys, threading
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
server.settimeout(60)
pyworker.on_stop(lambda: print("stopping", flush=True))
def serve(client):
    while client.recv(4096): client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
    client.close()
while True: threading.Thread(target=serve, args=(server.accept()[0],)).start()
"""


def test_script_that_waits_in_accept_with_a_time_out_takes_none_while_it_drains(daemon: Any, folder: Path) -> None:
    d, worker = serving(daemon, folder, THREADS)
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as early:
        request(early)
        worker.send(Drain(10.0, to_empty=False))
        assert wait_until(worker.read_out) == b"stopping\n"
        with socket.create_connection(d.listeners[0].getsockname(), timeout=0.5) as late:
            late.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                late.recv(1)
    assert worker.expect(Drained) == Drained(0, 0)
    d.reap(worker.pid)


def test_script_ends_whatever_its_stop_callback_does(daemon: Any, folder: Path) -> None:
    d, worker = serving(daemon, folder, "import pyworker, sys\npyworker.on_stop(sys.exit)\n" + SCRIPTS["http.server"])
    worker.send(Drain(10.0, to_empty=False))
    assert worker.expect(Drained) == Drained(0, 0)
    assert d.reap(worker.pid) == -signal.SIGTERM
    assert worker.read_err() == b"pyworker: on_stop: SystemExit: \n"


def test_script_that_shuts_its_listener_down_leaves_the_port_to_the_others(daemon: Any, folder: Path) -> None:
    stops = "import signal, socket\nsignal.signal(signal.SIGUSR1, lambda *_: server.shutdown(socket.SHUT_RDWR))\n"
    d, workers = launch(daemon, folder, stops + SCRIPTS["blocking accept"], 2)
    for worker in workers:
        d.answer_bind(worker)
        worker.expect(Ready)
        worker.expect(Accepting)
    wait_until(lambda: len(spread(d.listeners[0].getsockname(), 20)) == 2, what="both workers to serve")
    os.kill(workers[0].pid, signal.SIGUSR1)
    assert d.reap(workers[0].pid) == 1
    assert b"OSError: [Errno 22] Invalid argument" in workers[0].read_err()
    assert set(spread(d.listeners[0].getsockname(), 20)) == {str(workers[1].pid).encode()}


ANONYMOUS = "AECDH:@SECLEVEL=0"  # TLS without a certificate
WRAPPED = SCRIPTS["socketserver with threads"].replace(").serve_forever()", ")").replace("BASE((", "server = BASE((") + f"""
import ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.maximum_version = ssl.TLSVersion.TLSv1_2
context.set_ciphers("{ANONYMOUS}")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def test_script_that_wraps_its_listener_in_tls_drains_as_others_do(daemon: Any, folder: Path) -> None:
    d, worker = serving(daemon, folder, WRAPPED)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(ANONYMOUS)
    address = d.listeners[0].getsockname()
    with context.wrap_socket(socket.create_connection(address, timeout=30)) as client:
        assert request(client) == str(worker.pid).encode()
        assert not os.get_blocking(d.listeners[0].fileno())
        worker.send(Drain(0.3, to_empty=False))
        assert worker.expect(Drained) == Drained(0, 1)
    assert d.reap(worker.pid) == -signal.SIGTERM


def test_drain_waits_for_open_connections_until_its_time_out(daemon: Any, folder: Path) -> None:
    d, worker = serving(daemon, folder, SCRIPTS["socketserver with threads"])
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        request(client)
        assert d.row(1)[F.OPEN] == 1
        worker.send(Drain(0.3, to_empty=False))
        assert worker.expect(Drained) == Drained(0, 1)
    assert d.reap(worker.pid) == -signal.SIGTERM


def test_a_script_that_drains_is_told_another_time_out(daemon: Any, folder: Path) -> None:
    d, worker = serving(daemon, folder, SCRIPTS["socketserver with threads"])
    with socket.create_connection(d.listeners[0].getsockname(), timeout=30) as client:
        request(client)
        worker.send(Drain(3600.0, to_empty=False))
        worker.send(Check(), d.listeners[0].fileno())  # an fd with it is closed
        worker.send(Drain(0.0, to_empty=False))
        assert worker.expect(Drained) == Drained(0, 1)
    assert d.reap(worker.pid) == -signal.SIGTERM


def test_closed_channel_ends_the_script(daemon: Any, folder: Path) -> None:
    d, worker = serving(daemon, folder, SCRIPTS["asyncio"])
    worker.sock.shutdown(socket.SHUT_RDWR)
    assert d.reap(worker.pid) == -signal.SIGTERM


def test_forked_child_of_a_script_binds_for_itself(daemon: Any, folder: Path) -> None:
    d, [worker] = launch(
        daemon,
        folder,
        """
import os, socket, sys
pid = os.fork()
if pid == 0:
    try:
        socket.socket().bind(("127.0.0.1", int(sys.argv[1])))
    except OSError as error:
        os._exit(error.errno)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""",
    )
    assert d.reap(worker.pid) == 0
    assert int(worker.read_out()) == errno.EADDRINUSE
