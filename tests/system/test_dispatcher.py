"""Connections that are handed out: who gets them, and that no process of ours can be killed so that the port is gone."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, kill
from tests.support.rawhttp import Client
from tests.support.sources import ASGI, WSGI, version
from tests.support.wait import wait_until

LEAST = 'balance = "least-connections"'

# one connection a thread, a port of its own, and what it was told of its client
SERVER = """
import http.server, os, socket, struct
VERSION = "one"
PROXIED = %r
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def setup(self):
        super().setup()
        self.client = ""
        if PROXIED:
            head = self.rfile.read(16)
            rest = self.rfile.read(struct.unpack("!H", head[14:])[0])
            self.client = f"{socket.inet_ntoa(rest[:4])}:{struct.unpack('!H', rest[8:10])[0]}"
    def do_GET(self):
        body = f"{VERSION} {os.getpid()} {self.client}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

# many connections in one thread
LIGHT_SERVER = """
import asyncio, os
async def serve(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
    except (EOFError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), backlog=2048)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def many_files() -> Iterator[int]:
    """As many open files as this process may have; the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def least(pw: Pyworker, source: str = ASGI, *, workers: int = 2, top: str = "", tables: str = "") -> None:
    pw.api(source, workers=workers, top=f"{LEAST}\n{top}", tables=tables)
    pw.ok("start", "app.toml")


def proxy(pw: Pyworker, *, workers: int = 2, proxied: bool = False, tables: str = "", server: str = "") -> None:
    pw.write("server.py", server or SERVER % proxied)
    pw.write(
        "app.toml",
        f'[app]\nname = "api"\nscript = "server.py"\nworkers = {workers}\nbind = "127.0.0.1:{pw.port}"\n'
        f'balance = "proxy"\nproxy_protocol = {str(proxied).lower()}\n{tables}\n',
    )
    pw.ok("start", "app.toml")


def ask(pw: Pyworker, client: Client, path: str = "/") -> str:
    answer = client.get(path)
    assert answer is not None
    assert answer.status == 200
    return answer.body.decode()


@pytest.mark.parametrize(("source", "threads"), [(ASGI, 1), (WSGI, 4)], ids=["asgi", "wsgi-threads"])
def test_lasting_connections_are_spread_evenly_even_in_a_burst(pw: Pyworker, source: str, threads: int) -> None:
    least(pw, source, workers=4, top=f"threads = {threads}" if threads > 1 else "")

    def are_even() -> bool:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(("127.0.0.1", pw.port), timeout=LONG)) for _ in range(40)]
            counts.append(Counter(ask(pw, client) for client in clients))
        wait_until(lambda: all(w["open_connections"] == 0 for w in pw.app()["pool"]), LONG, "them to be closed")
        return sorted(counts[-1].values()) == [10, 10, 10, 10]

    counts: list[Counter[str]] = []
    # what a worker does not take for a fifth of a second is another's: on a busy machine any may be that late
    assert any(are_even() for _ in range(5)), counts


def test_the_worker_that_has_the_fewest_gets_the_next(pw: Pyworker) -> None:
    least(pw)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(("127.0.0.1", pw.port), timeout=LONG)) for _ in range(6)]
        by_worker: dict[str, list[Client]] = {}
        for client in clients:
            by_worker.setdefault(ask(pw, client), []).append(client)
        quiet, busy = by_worker
        for client in by_worker[quiet]:
            client.sock.close()

        def open_of_quiet() -> bool:
            pool = pw.app()["pool"]
            return any(w["open_connections"] == 0 for w in pool)

        wait_until(open_of_quiet, LONG, "the worker to see that its clients have left")
        for _ in range(3):
            assert ask(pw, stack.enter_context(Client(("127.0.0.1", pw.port), timeout=LONG))) == quiet
        assert quiet != busy


def test_a_blocked_worker_keeps_no_connection_from_the_others(pw: Pyworker) -> None:
    least(pw)
    with Client(("127.0.0.1", pw.port), timeout=LONG) as stuck:
        stuck.send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n")
        pw.until_blocked()  # till then it takes what it is given
        answers = set()
        for _ in range(6):
            answers.add(pw.get(timeout=LONG))
            # as long as the free one has that connection, both have one
            wait_until(lambda: pw.app()["open_connections"] == 1, LONG, "the answered one to be closed")
        assert len(answers) == 1
        pw.write("unblock", "")
        assert stuck.recv() is not None


@pytest.mark.parametrize("victim", ["dispatcher", "daemon"])
def test_no_connection_is_refused_or_lost_when_one_of_our_processes_is_killed(pw: Pyworker, victim: str) -> None:
    least(pw)
    before = pw.dispatcher()
    with Load(pw.port, "new", "new", "keep") as load:
        load.wait_more(50)
        kill(before if victim == "dispatcher" else pw.role(victim))
        load.wait_more(50)
        wait_until(lambda: pw.run("ps").returncode == 0, LONG, "a daemon that answers")
        after = wait_until(lambda: pw.dispatcher(), LONG, "a dispatcher")
        load.wait_more(50)
    assert load.lost == [] or (victim == "dispatcher" and len(load.lost) <= 1), load.lost  # the one in its hands
    assert (after == before) == (victim != "dispatcher")


def test_a_stopped_dispatcher_is_replaced_and_nobody_is_refused(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = "1"
    least(pw)
    before, pids = pw.dispatcher(), pw.pids()
    with Load(pw.port, "new", "keep") as load:
        load.wait_more(20)
        os.kill(before, signal.SIGSTOP)
        wait_until(lambda: not alive(before), LONG, lambda: f"the stopped dispatcher to be ended\n{pw.daemon_log()}")
        wait_until(lambda: pw.dispatcher() not in (0, before), LONG, "another dispatcher")
        load.wait_more(20)
    assert len(load.lost) <= 1, load.lost  # the one in its hands
    assert pw.pids() == pids
    assert f"dispatcher pid {before} did not answer" in pw.ok("events", "api").stdout


def test_a_killed_worker_loses_nothing_but_what_was_in_it(pw: Pyworker) -> None:
    least(pw, workers=1)
    os.kill(pw.pids()[0], signal.SIGSTOP)
    clients = [Client(("127.0.0.1", pw.port), timeout=LONG) for _ in range(20)]
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    kill(pw.pids()[0])
    for client in clients:  # they waited in the inbox of the slot: its next worker took it over
        answer = client.recv()
        assert answer is not None
        assert answer.status == 200
        client.sock.close()


def test_reload_scale_and_a_new_balance_lose_no_request(pw: Pyworker) -> None:
    least(pw)
    with Load(pw.port) as load:
        load.wait_more(30)
        pw.write("web.py", version(ASGI, "two"))
        pw.ok("reload", "api")
        load.wait_more(30)
        pw.ok("scale", "api=4")
        load.wait_more(30)
        pw.ok("scale", "api=1")
        load.wait_more(30)
        with open(os.path.join(pw.folder, "app.toml")) as file:
            text = file.read()
        pw.write("app.toml", text.replace(LEAST, 'balance = "round-robin"'))
        pw.ok("reload", "api")
        load.wait_more(30)
        wait_until(lambda: not pw.dispatcher(), LONG, "the dispatcher to leave")
        pw.write("app.toml", text)
        pw.ok("reload", "api")
        load.wait_more(30)
    assert load.lost == []
    assert any(body.startswith("two") for body in load.bodies)
    assert pw.dispatcher()


def test_stop_answers_what_has_come_and_closes_the_port(pw: Pyworker) -> None:
    least(pw, ASGI.replace("await asyncio.sleep(1)", "while not os.path.exists('go'): await asyncio.sleep(0.01)"))
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: sum(w["in_flight"] for w in pw.app()["pool"]), LONG, "the request to run")
        pw.ok("stop", "api", "--no-wait")
        wait_until(pw.refuses, LONG, "the port to be closed")
        pw.write("go", "")
        answer = client.recv()
        assert answer is not None
        assert answer.status == 200
    pw.ok("wait", "api", "--for", "stopped")
    assert pw.refuses()
    pw.ok("start", "api")
    assert pw.get()


def test_a_proxied_program_needs_nothing_but_its_port(pw: Pyworker) -> None:
    proxy(pw, workers=3)
    assert len({pw.get().split()[1] for _ in range(6)}) == 3
    with Load(pw.port, "new", "new", "keep") as load:
        load.wait_more(20)
        pw.write("server.py", (SERVER % False).replace('"one"', '"two"'))
        pw.ok("reload", "api")
        load.wait_more(20)
        pw.ok("scale", "api=1")
        load.wait_more(20)
    assert load.lost == []
    assert any(body.startswith("two") for body in load.bodies)
    pw.ok("stop", "api")
    assert pw.refuses()


def test_a_reload_keeps_the_connections_of_the_old_program_until_they_end(pw: Pyworker) -> None:
    proxy(pw)
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        assert ask(pw, client).startswith("one")
        pw.write("server.py", (SERVER % False).replace('"one"', '"two"'))
        pw.ok("reload", "api")
        assert pw.get().startswith("two")
        assert ask(pw, client).startswith("one")
    wait_until(lambda: len(pw.app()["pool"]) == 2, LONG, "the old program to end")


def test_a_new_program_that_never_listens_gets_no_client_and_is_refused(pw: Pyworker) -> None:
    proxy(pw)
    with open(os.path.join(pw.folder, "app.toml"), "a") as file:  # not of the good code, which a busy machine may hold up
        file.write('[app.reload]\nready_timeout = "2s"\n')
    pw.write("server.py", "import time\ntime.sleep(1000)\n")
    done = pw.run("reload", "api")
    assert done.returncode == 1
    assert "not ready within 2 s" in done.stdout + done.stderr
    assert pw.get().startswith("one")


def test_a_proxied_program_is_told_its_client(pw: Pyworker) -> None:
    proxy(pw, proxied=True)
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        here = client.sock.getsockname()
        assert ask(pw, client).split()[2] == f"{here[0]}:{here[1]}"


def test_a_proxied_worker_that_is_sick_is_replaced(pw: Pyworker) -> None:
    proxy(pw, workers=1, tables='[app.health]\npath = "/"\ninterval = "200ms"\ntimeout = "500ms"\nretries = 2')
    pid = pw.pids()[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        serving = ("ready", "unhealthy")

        def replaced() -> bool:
            pids = [w["pid"] for w in pw.app()["pool"] if w["state"] in serving]
            return len(pids) == 1 and pids != [pid]

        wait_until(replaced, LONG, "its successor to serve alone")
        assert pw.get().startswith("one")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("kind", ["least-connections", "proxy"])
def test_ten_thousand_idle_and_slow_connections_are_held_and_disturb_nobody(
    pw: Pyworker, kind: str, many_files: int
) -> None:
    """As many as the limit of open files allows, if that is less: it holds for this process, too, which has the clients."""
    count = min(10_000, many_files - 500)
    tables = '[app.limits]\nnofile = 7000'
    if kind == "proxy":
        proxy(pw, server=LIGHT_SERVER, tables=tables)
        count = min(count, (resource.prlimit(pw.dispatcher(), resource.RLIMIT_NOFILE)[0] - 512) // 2 - 10)
    else:
        least(pw, tables='[app.http]\nheader_timeout = "300s"\n' + tables)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(("127.0.0.1", pw.port), timeout=LONG)) for _ in range(count)]
        slow = clients[::2]
        for client in slow:
            client.send(b"GET / HT")
        gone = socket.create_connection(("127.0.0.1", pw.port))
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()  # a client that resets before anybody has looked at it

        def open_connections() -> int:
            return sum(w["open_connections"] for w in pw.app()["pool"])

        wait_until(lambda: open_connections() == count, LONG, f"all {count} to be with the workers")
        assert pw.get()
        for byte in b"TP/1.1\r\nHost: test\r\n\r\n":
            for client in slow[::100]:
                client.send(bytes([byte]))
        for client in slow[::100]:
            answer = client.recv()
            assert answer is not None
            assert answer.status == 200
        closed = select.poll()
        for client in clients:
            closed.register(client.sock, select.POLLIN)
        assert closed.poll(0) == []
        assert open_connections() == count
