"""cluster: unmodified programs behind one port, who gets what, restarts, the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pyworker import child_process, cluster
from pyworker.cluster.listening import Listeners
from pyworker.protocol.nodecluster import Query
from tests.cluster.helpers import asynchronous, eventually, get, needs_node, running
from tests.support.pyworker import free_port
from tests.support.wait import wait_until
from tests.support.words import ADDRESS_IN_USE

HTTP_SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/raise": raise_in_main()
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
ASYNCIO = """
import asyncio, os, sys
async def handle(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n%d" % os.getpid())
    writer.close()
async def main():
    async with await asyncio.start_server(handle, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""
UVICORN = """
import os, sys, uvicorn
async def app(scope, receive, send):
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
uvicorn.run(app, port=int(sys.argv[1]), loop=sys.argv[2], log_level="warning", lifespan="off")
"""
AIOHTTP = """
import os, sys
from aiohttp import web
async def hello(request): return web.Response(text=str(os.getpid()))
app = web.Application()
app.add_routes([web.get("/", hello)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
FLASK = """
import os, sys
from flask import Flask, cli
cli.show_server_banner = lambda *args: None
app = Flask("hello")
@app.get("/")
def hello(): return str(os.getpid())
import logging; logging.getLogger("werkzeug").setLevel("ERROR")
app.run(port=int(sys.argv[1]))
"""
NODE = """
require('http').createServer((request, response) => response.end('' + process.pid))
  .listen(+process.argv[2], '127.0.0.1');
"""
PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "http.server": (HTTP_SERVER, []),
    "asyncio": (ASYNCIO, []),
    "uvicorn": (UVICORN, ["asyncio"]),
    "uvicorn with uvloop": (UVICORN, ["uvloop"]),
    "aiohttp": (AIOHTTP, []),
    "flask": (FLASK, []),
}


@pytest.fixture
def server(tmp_path: Path) -> str:
    (tmp_path / "server.py").write_text(HTTP_SERVER)
    return str(tmp_path / "server.py")


@pytest.mark.parametrize("name", PROGRAMS)
@asynchronous
async def test_an_unmodified_program_takes_strict_turns(name: str, tmp_path: Path) -> None:
    source, args = PROGRAMS[name]
    (tmp_path / "program.py").write_text(source)
    port = free_port()
    async with running(tmp_path / "program.py", [str(port), *args], workers=2) as made:
        pids = [int(await get(port)) for _ in range(6)]
        assert pids[:2] == pids[2:4] == pids[4:]
        assert set(pids) == {worker.process.pid for worker in made.workers.values()}


@pytest.mark.parametrize("name", ["http.server", "uvicorn with uvloop"])
@asynchronous
async def test_an_unmodified_program_shares_the_listener(name: str, tmp_path: Path) -> None:
    source, args = PROGRAMS[name]
    (tmp_path / "program.py").write_text(source)
    port = free_port()
    async with running(tmp_path / "program.py", [str(port), *args], workers=2, scheduling="none") as made:
        pids = {int(await get(port)) for _ in range(6)}
        assert pids <= {worker.process.pid for worker in made.workers.values()}


@needs_node
@pytest.mark.parametrize("scheduling", ["round-robin", "none"])
@asynchronous
async def test_unmodified_node_workers(scheduling: str, tmp_path: Path) -> None:
    (tmp_path / "server.js").write_text(NODE)
    port = free_port()
    async with running(tmp_path / "server.js", [str(port)], workers=2, scheduling=scheduling) as made:
        pids = [int(await get(port)) for _ in range(6)]
        assert set(pids) <= {worker.process.pid for worker in made.workers.values()}
        if scheduling == "round-robin":
            assert pids[:2] == pids[2:4] == pids[4:]
        ended: list[Any] = []
        made.on("exit", lambda worker, code, sig: ended.append((code, worker.exited_after_disconnect)))
        await made.disconnect()
        assert ended == [(0, True), (0, True)], "they ended by themselves"


@needs_node
@asynchronous
async def test_a_node_primary_runs_python_workers(server: str, tmp_path: Path) -> None:
    port = free_port()
    boot = os.path.join(os.path.dirname(cluster.__file__), "boot.py")
    (tmp_path / "primary.js").write_text(
        """
        const cluster = require('cluster'), http = require('http');
        const [python, boot, script, port] = process.argv.slice(2);
        process.execPath = python;
        cluster.setupPrimary({exec: boot, args: [script, port], execArgv: []});
        let up = 0; const pids = [];
        const ask = n => n ? http.get({port, host: '127.0.0.1', agent: false}, r => r.on('data', d => pids.push('' + d))
          .on('end', () => ask(n - 1))) : (console.log(pids.join(' ')), cluster.disconnect(() => process.exit(0)));
        cluster.on('listening', () => { if (++up === 2) ask(4); });
        cluster.fork(); cluster.fork();
        """
    )
    args = [str(tmp_path / "primary.js"), sys.executable, boot, server, str(port)]
    result = await child_process.exec_file("node", args, timeout=50)
    pids = result.stdout.split()
    assert len(pids) == 4
    assert pids[:2] == pids[2:]


@needs_node
@pytest.mark.parametrize("policy", ["SCHED_RR", "SCHED_NONE"])
@pytest.mark.parametrize("gives_up", [False, True])
@asynchronous
async def test_a_python_worker_of_a_node_primary_may_bind_an_address_again(tmp_path: Path, policy: str, gives_up: bool) -> None:
    (tmp_path / "server.py").write_text(
        """
import pathlib, signal, socket, sys
def ring(*_):
    pathlib.Path(sys.argv[2]).touch()
    raise TimeoutError
signal.signal(signal.SIGALRM, ring)
address = "127.0.0.1", int(sys.argv[1])
try:
    if sys.argv[2]: signal.setitimer(signal.ITIMER_REAL, 0.1)
    with socket.socket() as first: first.bind(address)
except TimeoutError: pass
second = socket.socket()
second.bind(address)
second.listen()
with second.accept()[0] as client: client.sendall(b"served")
"""
    )
    (tmp_path / "primary.js").write_text(
        """
        const cluster = require('cluster'), net = require('net'), {existsSync} = require('fs');
        const [python, policy, boot, script, port, gaveUp] = process.argv.slice(2);
        process.execPath = python;
        cluster.schedulingPolicy = cluster[policy];
        cluster.setupPrimary({exec: boot, args: [script, port, gaveUp], execArgv: []});
        cluster.fork();
        cluster.on('online', () => { while (gaveUp && !existsSync(gaveUp)); });
        cluster.on('listening', () => net.connect(port, '127.0.0.1').on('data', data => {
          console.log('' + data); process.exit(0); }));
        """
    )
    boot = os.path.join(os.path.dirname(cluster.__file__), "boot.py")
    gave_up = str(tmp_path / "gave up") if gives_up else ""
    args = [sys.executable, policy, boot, str(tmp_path / "server.py"), str(free_port()), gave_up]
    result = await child_process.exec_file("node", [str(tmp_path / "primary.js"), *args], timeout=50)
    assert result.stdout == "served\n"


@needs_node
@asynchronous
async def test_a_python_worker_of_a_node_primary_that_serializes_otherwise_says_why_it_is_none(
    server: str, tmp_path: Path
) -> None:
    boot = os.path.join(os.path.dirname(cluster.__file__), "boot.py")
    (tmp_path / "primary.js").write_text(
        "process.execPath = process.argv[2]; const cluster = require('cluster');"
        "cluster.setupPrimary({exec: process.argv[3], args: process.argv.slice(4), execArgv: [],"
        "serialization: 'advanced'});"
        "cluster.fork().on('exit', code => console.log(code));"
    )
    args = [str(tmp_path / "primary.js"), sys.executable, boot, server, str(free_port())]
    result = await child_process.exec_file("node", args, timeout=50)
    assert result.stdout == "1\n"
    assert "only serialization: 'json' is understood" in result.stderr


@asynchronous
async def test_a_handle_for_who_iterates_is_open_and_an_error_that_nobody_hears_is_shown(tmp_path: Path) -> None:
    shown: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: shown.append(context["exception"]))
    (tmp_path / "worker.py").write_text(
        "import socket, sys\nfrom pyworker import process\nends = socket.socketpair()\n"
        "process.send('take', ends[0])\nsys.stdin.read()\n"
    )
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "worker.py", stdin="pipe")
    for source in (made, "worker"):
        worker = made.fork()
        heard = (worker if source == "worker" else made).events("message")
        event = await anext(heard)
        *_, message, handle = event.args
        assert message == "take"
        await asyncio.sleep(0)
        handle.getpeername()
        handle.close()
        del heard
        mine = socket.socketpair()
        worker.kill("SIGKILL")
        worker.send("too late", mine[0])
        await worker.process.wait_closed()
        assert [error.handle for error in shown] == [mine[0]]
        shown.clear()
        for sock in mine:
            sock.close()
    await made.disconnect()


@asynchronous
async def test_a_disconnect_that_is_given_up_leaves_no_listener_that_was_held_for_a_successor(server: str, tmp_path: Path) -> None:
    (tmp_path / "stays.py").write_text("import time\ntime.sleep(3600)\n")
    port = free_port()
    async with running(server, [str(port)], workers=1, drain_timeout=0) as made:
        (first,) = made.workers.values()
        made.setup_primary(tmp_path / "stays.py", drain_timeout=0)
        made.fork()
        first.kill("SIGKILL")
        await first.process.wait_closed()
        socket.create_connection(("127.0.0.1", port)).close()  # held
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await made.disconnect()
        assert made.workers
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@asynchronous
async def test_events_come_in_order_and_say_who(server: str) -> None:
    made = cluster.Cluster()
    port = free_port()
    told: list[str] = []
    for name in ("setup", "fork", "online", "listening", "disconnect", "exit"):
        made.on(name, lambda *args, name=name: told.append(name))
    made.setup_primary(server, [str(port)])
    worker = made.fork()
    await eventually(lambda: "listening" in told)
    assert worker.state == "listening"
    assert worker.is_connected()
    assert not worker.is_dead()
    worker.disconnect()
    await eventually(lambda: "exit" in told)
    assert told == ["setup", "fork", "online", "listening", "disconnect", "exit"]
    assert worker.is_dead()
    assert worker.exited_after_disconnect
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port)):
        pass


@asynchronous
async def test_what_a_worker_that_is_stopped_had_not_taken_goes_to_another_when_it_is_killed(server: str) -> None:
    port = free_port()
    async with running(server, [str(port)], workers=2) as made:
        first = int(await get(port))
        second = next(w for w in made.workers.values() if w.process.pid != first)
        second.process.kill("SIGSTOP")
        await eventually(lambda: second.process.pid and state(second.process.pid) == "T", "it is stopped")
        waiting = asyncio.ensure_future(get(port))  # its turn
        await eventually(lambda: made._primary._offers, "it was offered the connection")
        answers = [int(await get(port)) for _ in range(3)]
        assert answers == [first] * 3, "a worker that hangs has one connection waiting, not more"
        assert not waiting.done()
        second.process.kill("SIGKILL")
        assert int(await waiting) != second.process.pid


@pytest.mark.parametrize("again", [True, False])
@asynchronous
async def test_the_answer_to_a_bind_that_the_handler_of_a_signal_has_ended_is_no_other_ones(tmp_path: Path, again: bool) -> None:
    text = f"""
import queue, signal, socket, sys
from pyworker import process
go = queue.SimpleQueue()
process.on("message", lambda message, handle: go.put(message))
def ring(*_):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    raise TimeoutError
signal.signal(signal.SIGALRM, ring)
first, second, port, other = socket.socket(), socket.socket(), *map(int, sys.argv[1:])
try: first.bind(("127.0.0.1", port))
except TimeoutError: process.send("gave up")
if {again}: first.bind(("127.0.0.1", port)); first.listen()
else: go.get()
second.bind(("127.0.0.1", other)); second.listen()
process.send(second.getsockname()[1])
while True:
    for server in [first, second][{not again}:]:
        with server.accept()[0] as client: client.recv(999)
"""
    (tmp_path / "server.py").write_text(text)
    ports = [free_port(), free_port()]
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "server.py", [*map(str, ports)])
    worker = made.fork()
    go_on, held = worker.process.on_internal, []
    worker.process.on_internal = lambda value, handle: held.append((value, handle))
    came = worker.process.messages()
    try:
        await eventually(lambda: held and held[-1][0]["act"] == "queryServer", "it asks")
        gave_up = asyncio.ensure_future(anext(came))
        await eventually(lambda: worker.process.kill("SIGALRM") and gave_up.done(), "it gives up")
        worker.process.on_internal = go_on
        for each in held:
            go_on(*each)
        worker.send("go on, that has been answered")
        assert await anext(came) == ports[1]
        for port in ports if again else ports[1:]:
            assert await get(port) == ""
        await eventually(lambda: len(made._primary.keys) == 1 + again, "nobody listens on what was given up")
    finally:
        await made.disconnect()


@asynchronous
async def test_what_a_worker_had_not_taken_when_it_closed_its_server_goes_to_another(tmp_path: Path) -> None:
    then = "if b'/close' in request: select.select([s], [], []); s.close(); signal.pause()"
    (tmp_path / "server.py").write_text(f"import select, signal{ACCEPTS % ''}    {then}\n")
    port = free_port()
    async with running(tmp_path / "server.py", [str(port)], workers=2):
        closed = int(await get(port, "/close"))
        answers = [int(await get(port)) for _ in range(4)]
        assert closed not in answers
        assert len(set(answers)) == 1


@asynchronous
async def test_everybody_who_waits_for_the_end_of_a_cluster_is_told_of_it(server: str) -> None:
    async with running(server, [str(free_port())], workers=1, drain_timeout=300) as made:
        async with asyncio.timeout(30):
            await asyncio.gather(made.disconnect(), made.disconnect())


@asynchronous
async def test_a_cluster_ends_though_the_program_forks_another_worker_for_each_that_ends(server: str) -> None:
    async with running(server, [str(free_port())], workers=2, drain_timeout=300) as made:
        made.once("exit", lambda *_: made.fork())
        async with asyncio.timeout(30):
            await made.disconnect()
        assert [worker.id for worker in made.workers.values()] == [3]


@asynchronous
async def test_a_killed_worker_is_replaced_and_the_port_stays_open(server: str) -> None:
    port = free_port()
    async with running(server, [str(port)], workers=1) as made:
        (worker,) = made.workers.values()
        worker.process.kill("SIGKILL")
        assert int(await get(port)) != worker.process.pid, "the connection waited for the successor"


@asynchronous
async def test_a_worker_that_is_killed_on_purpose_is_not_replaced(server: str) -> None:
    port = free_port()
    async with running(server, [str(port)], workers=2) as made:
        worker = next(iter(made.workers.values()))
        worker.kill()
        await eventually(worker.is_dead)
        assert len(made.workers) == 1


@asynchronous
async def test_the_port_stays_open_while_workers_are_to_come_and_closes_when_none_is(server: str) -> None:
    port = free_port()
    async with running(server, [str(port)], workers=2) as made:
        first, second = made.workers.values()
        first.process.kill("SIGKILL")
        await eventually(first.is_dead)
        second.disconnect()  # on purpose, while the successor of the other is not there yet
        assert int(await get(port)) not in (first.process.pid, second.process.pid)
        await eventually(second.is_dead)
        (third,) = made.workers.values()
        third.process.kill("SIGKILL")
        await eventually(third.is_dead)
        assert int(await get(port))
        assert len(made.workers) == 1, "who has left on purpose is not replaced later either"
        (last,) = made.workers.values()
        last.disconnect()
        await eventually(lambda: not made.workers)
        with pytest.raises(OSError):
            await get(port)


@pytest.mark.parametrize(("ends", "code"), [("pass", 0), ("raise SystemExit(3)", 1)])
@asynchronous
async def test_a_run_ends_with_its_workers_when_none_is_replaced(ends: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(ends)
    restart = {"policy": "on-failure", "max_restarts": 2, "retry": 0}
    program = f"from pyworker import cluster; cluster.run({str(tmp_path / 'job.py')!r}, workers=2, restart={restart})"
    child = child_process.spawn(sys.executable, ["-c", program], stderr="ignore")
    assert (await child.wait_closed()).code == code


@asynchronous
async def test_a_run_whose_workers_cannot_be_started_says_so_and_ends() -> None:
    options = {"exec_path": "/nowhere/python", "workers": 2, "restart": {"max_restarts": 2, "retry": 0}}
    program = f"from pyworker import cluster; cluster.run({__file__!r}, **{options})"
    with pytest.raises(child_process.ExecError) as failed:
        await child_process.exec_file(sys.executable, ["-c", program], timeout=20)
    assert failed.value.code == 1
    assert failed.value.stderr.count("cannot run /nowhere/python") == 2
    assert "Traceback" not in failed.value.stderr


@asynchronous
async def test_the_limiter_gives_up_on_a_program_that_always_dies(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("raise SystemExit(3)")
    made = cluster.Cluster()
    gave_up: list[Any] = []
    exits: list[Any] = []
    made.on("giveup", lambda *args: gave_up.append(args))
    made.on("exit", lambda worker, code, sig: exits.append(code))
    made.setup_primary(tmp_path / "dies.py", restart={"max_restarts": 3, "retry": 0}, workers=1)
    await made.start()
    await eventually(lambda: gave_up)
    await made.disconnect()
    assert gave_up == [(3, 60.0)]
    assert exits == [3, 3, 3]


@asynchronous
async def test_a_worker_without_a_server_that_has_lived_long_enough_is_replaced_at_once(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import time; time.sleep(0.6); raise SystemExit(3)")
    made = cluster.Cluster()
    gave_up: list[Any] = []
    started: list[Any] = []
    made.on("giveup", lambda *args: gave_up.append(args))
    made.on("online", started.append)
    made.setup_primary(tmp_path / "job.py", restart={"min_uptime": 0.1, "max_restarts": 2, "retry": 0}, workers=1)
    await made.start()
    await eventually(lambda: len(started) == 4 or gave_up)
    await made.disconnect()
    assert not gave_up


@asynchronous
async def test_an_uncaught_exception_announces_the_death_and_the_successor_starts_before_it(tmp_path: Path) -> None:
    source = HTTP_SERVER.replace(
        'if self.path == "/raise": raise_in_main()',
        'if self.path == "/raise":\n            import threading\n            threading.Thread(target=lambda: 1 / 0).start()',
    )
    (tmp_path / "fails.py").write_text(source)
    port = free_port()
    async with running(tmp_path / "fails.py", [str(port)], workers=1, stderr="ignore") as made:
        order: list[tuple[str, int]] = []
        (old,) = made.workers.values()
        made.on("message", lambda worker, message, handle: order.append((str(message), worker.id)))
        made.on("fork", lambda worker: order.append(("fork", worker.id)))
        made.on("exit", lambda worker, code, sig: order.append((f"exit {code}", worker.id)))
        assert int(await get(port, "/raise")) == old.process.pid, "what was under way is answered"
        await eventually(old.is_dead)
        assert int(await get(port)) != old.process.pid
        assert order[:1] == [("{'act': 'suicide'}", old.id)]
        assert ("exit 1", old.id) in order
        assert len([o for o in order if o[0] == "fork"]) == 1, "replaced once"


@asynchronous
async def test_a_worker_that_has_announced_its_death_ends_although_nobody_takes_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import sys\nsys.stdout = open(1, 'w')\nprint('last words')\nsys.stdin.read()\n1 / 0")
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "dies.py", stdin="pipe", stdout="pipe", stderr="ignore", suicide_timeout=60)
    worker = made.fork()
    assert worker.process.stdin is not None
    assert worker.process.stdout is not None
    worker.process.stdout.close()
    worker.process.stdin.close()
    assert (await worker.process.wait_closed()).code == 1
    await made.disconnect()


@asynchronous
async def test_a_program_that_finishes_its_connections_by_itself_has_the_drain_timeout_for_it(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(
        "import signal, time\n"
        "def finish(*_):\n"
        "    time.sleep(5.5)\n"
        "    print('finished')\n"
        "    raise SystemExit(0)\n"
        "signal.signal(signal.SIGTERM, finish)\n"
        "print('up', flush=True)\n"
        # Python misses a signal that comes right before a main thread goes to sleep
        "while True:\n"
        "    time.sleep(0.1)\n"
    )
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "server.py", stdout="pipe", drain_timeout=30)
    worker = made.fork()
    assert worker.process.stdout is not None
    assert await worker.process.stdout.readline() == b"up\n"
    await made.disconnect()
    assert await worker.process.stdout.read() == b"finished\n"


UNIX = """
import asyncio, os, sys
async def handle(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n%d" % os.getpid())
    writer.close()
async def main():
    async with await asyncio.start_unix_server(handle, sys.argv[1]) as server:
        await server.serve_forever()
if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.install()
asyncio.run(main())
"""


@pytest.mark.parametrize("scheduling", ["round-robin", "none"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@asynchronous
async def test_a_unix_socket_is_there_for_all_although_each_worker_removes_what_was_left_over(
    loop: str, scheduling: str, tmp_path: Path
) -> None:
    (tmp_path / "server.py").write_text(UNIX)
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def answer() -> int:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        said = await reader.read()
        writer.close()
        return int(said.split()[-1])

    made = cluster.Cluster()
    made.setup_primary(tmp_path / "server.py", [str(path), loop], scheduling=scheduling)
    up: list[int] = []
    made.on("listening", lambda worker, address: up.append(worker.process.pid))
    await made.start(1)
    await eventually(lambda: len(up) == 1)
    assert await answer() == up[0]
    (second,) = await made.start(1)
    await eventually(lambda: len(up) == 2)
    assert {await answer() for _ in range(4)} <= set(up)
    second.process.kill("SIGKILL")
    await eventually(lambda: len(up) == 3)
    assert {await answer() for _ in range(4)} <= {up[0], up[2]}
    await made.disconnect()
    assert not path.exists()


@asynchronous
async def test_a_callback_in_the_thread_of_the_channel_is_told_that_it_cannot_bind(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(
        "import socket, threading\n"
        "from pyworker import process\n"
        "ended = threading.Event()\n"
        "@process.on('message')\n"
        "def bind(port, handle):\n"
        "    try: socket.create_server(('127.0.0.1', port))\n"
        "    except OSError as error: process.send(str(error))\n"
        "process.send('listens')\n"
        "ended.wait()\n"
    )
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "server.py")
    worker = made.fork()
    told = worker.events("message")
    assert (await anext(told)).args[0] == "listens"
    worker.send(free_port())
    assert "no callback in the thread of the channel can bind" in (await anext(told)).args[0]
    await made.disconnect()


@asynchronous
async def test_a_bind_that_fails_in_the_primary_fails_in_the_worker(server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made = cluster.Cluster()
        made.setup_primary(server, [str(taken.getsockname()[1])], stderr="pipe")
        worker = made.fork()
        assert worker.process.stderr is not None
        assert ADDRESS_IN_USE.encode() in await worker.process.stderr.read()
        await worker.process.wait_closed()
        await made.disconnect()


@asynchronous
async def test_a_host_that_there_is_not_is_what_the_worker_is_told(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("import socket\nsocket.socket().bind(('nowhere.invalid', 8000))")
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "server.py", stderr="pipe")
    worker = made.fork()
    assert worker.process.stderr is not None
    assert b"\nsocket.gaierror: " in await worker.process.stderr.read()
    await worker.process.wait_closed()
    await made.disconnect()


@asynchronous
async def test_a_text_that_can_be_no_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(
        "import socket\nfrom pyworker.cluster import child\nfrom pyworker.cluster.binding import Address\n"
        "print(child._binding.ask(Address(socket.AF_INET, socket.SOCK_STREAM, 'ä..b', 8000)).errno)"
    )
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "server.py", stdout="pipe")
    worker = made.fork()
    assert worker.process.stdout is not None
    assert await worker.process.stdout.read() == b"%d\n" % errno.EINVAL
    await worker.process.wait_closed()
    await made.disconnect()


@asynchronous
async def test_a_socket_without_a_file_is_closed_like_any_other() -> None:
    listeners = Listeners(lambda key, connection: None, lambda delay, function: None)
    listeners.open("key", Query("unix", f"\0pyworker-{uuid.uuid4()}", None, 1, ipv6_only=False))
    listeners.close("key")
    assert not listeners


@asynchronous
async def test_a_listener_that_there_is_no_room_to_wait_for_is_tried_again_unless_nobody_wants_it_any_more() -> None:
    later: list[Any] = []
    listeners = Listeners(lambda key, connection: None, lambda delay, function: later.append(function))
    listeners.open("key", Query("tcp4", "127.0.0.1", 0, 511, ipv6_only=False))
    for wanted in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            no_room = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            patch.setattr(asyncio.get_running_loop(), "add_reader", no_room)
            listeners.watch("key", on=True)
        if not wanted:
            listeners.watch("key", on=False)
        later.pop()()
        assert asyncio.get_running_loop().remove_reader(listeners["key"].fileno()) == wanted
    listeners.close("key")


@pytest.mark.parametrize("scheduling", ["round-robin", "none"])
@asynchronous
async def test_two_servers_on_one_port_are_told_apart(scheduling: str, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(
        "import socket\nheld = []\nfor host in ('127.0.0.1', '127.0.0.2'):\n held.append(socket.socket())\n"
        f" held[-1].bind((host, {free_port()}))\n held[-1].listen()\nheld[0].accept()"
    )
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "server.py", scheduling=scheduling)
    told: list[str | None] = []
    made.on("listening", lambda _, where: told.append(where.address))
    worker = made.fork()
    await eventually(lambda: len(told) == 2)
    assert told == ["127.0.0.1", "127.0.0.2"]
    worker.process.kill("SIGKILL")
    await worker.process.wait_closed()
    await made.disconnect()


@asynchronous
async def test_udp_is_shared(tmp_path: Path) -> None:
    (tmp_path / "udp.py").write_text(
        "import os, socket, sys\nfrom pyworker import process\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.bind(('127.0.0.1', int(sys.argv[1])))\nprocess.send('bound')\n"
        "while True:\n    data, sender = s.recvfrom(100)\n    s.sendto(data.upper(), sender)"
    )
    made = cluster.Cluster()
    port = free_port()
    bound: list[Any] = []
    listening: list[Any] = []
    made.on("message", lambda worker, message, handle: bound.append(message))
    made.on("listening", lambda worker, it: listening.append((it.address, it.port, it.address_type)))
    made.setup_primary(tmp_path / "udp.py", [str(port)])
    for _ in range(2):
        made.fork()
    await eventually(lambda: len(bound) == 2)
    assert listening == [("127.0.0.1", port, "udp4")] * 2
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"datagram", ("127.0.0.1", port))
        assert await asyncio.to_thread(client.recv, 100) == b"DATAGRAM"
    for worker in list(made.workers.values()):
        worker.process.kill("SIGKILL")
    await eventually(lambda: not made.workers)
    await made.disconnect()


@asynchronous
async def test_workers_end_when_their_primary_is_killed(server: str) -> None:
    port = free_port()
    child = child_process.spawn(
        sys.executable, ["-m", "pyworker.cluster", "-w", "2", server, str(port)], stdout="inherit", stderr="inherit"
    )
    pids = Counter[int]()
    for _ in range(2000):
        with contextlib.suppress(OSError, ValueError):
            pids[int(await get(port))] += 1
        if len(pids) == 2:
            break
        await asyncio.sleep(0.02)
    assert len(pids) == 2
    child.kill("SIGKILL")
    await child.wait_closed()
    for pid in pids:
        await eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}") or "Z" in state(pid))


@asynchronous
async def test_run_ends_its_workers_at_sigterm_and_exits_0(server: str) -> None:
    port = free_port()
    child = child_process.spawn(
        sys.executable, ["-c", f"from pyworker import cluster; cluster.run({server!r}, ['{port}'], workers=2)"]
    )
    await eventually_answers(port)
    child.kill("SIGTERM")
    assert (await child.wait_closed()).code == 0
    with pytest.raises(OSError):
        await get(port)


@pytest.mark.parametrize("said", ["cwd='/'", ""])
@asynchronous
async def test_a_program_that_makes_itself_a_cluster_is_found_from_another_folder(said: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import os\n"
        "from pyworker import cluster\n"
        "if cluster.is_primary: os.chdir('/')\n"
        f"cluster.run(workers=1, restart={{'policy': 'never'}}, {said})\n"
        "print('a worker in', os.getcwd())\n"
    )
    child = child_process.spawn(sys.executable, ["app.py"], cwd=tmp_path, stderr="inherit")
    assert child.stdout is not None
    assert await child.stdout.read() == b"a worker in /\n"
    assert (await child.wait()).code == 0


@asynchronous
async def test_a_program_may_make_itself_a_cluster_with_its_first_line(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "app.py").write_text(
        "from pyworker import cluster\ncluster.run(args=__import__('sys').argv[1:], workers=2)\n" + HTTP_SERVER
    )
    child = child_process.spawn(sys.executable, [str(tmp_path / "app.py"), str(port)])
    await eventually_answers(port)
    assert int(await get(port)) != child.pid
    child.kill("SIGINT")
    assert (await child.wait_closed()).code == 0


def test_a_command_line_with_fewer_workers_than_none_is_refused(server: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "pyworker.cluster", "--workers", "-1", server],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (said.returncode, said.stderr.splitlines()[-1]) == (
        2,
        "python -m pyworker.cluster: error: workers is a whole number, 0 for as many as there are CPUs, not -1",
    )


def state(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]
    return "Z"


async def eventually_answers(port: int) -> None:
    for _ in range(2000):
        with contextlib.suppress(OSError, ValueError):
            int(await get(port))
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never answered")


ACCEPTS = """
import os, socket, sys
s = socket.socket()
s.bind(("127.0.0.1", int(sys.argv[1])))
s.listen()
%s
while True:
    c, _ = s.accept()
    request = c.recv(1000)
    c.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n%%d" %% os.getpid())
    c.close()
"""


@pytest.mark.parametrize("scheduling", ["round-robin", "none"])
@pytest.mark.parametrize("how", ["s.settimeout(3600)", "s.setblocking(False); s.setblocking(True)"])
@asynchronous
async def test_a_program_may_wait_in_accept_in_any_way(how: str, scheduling: str, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(ACCEPTS % how)
    port = free_port()
    async with running(tmp_path / "server.py", [str(port)], workers=2, scheduling=scheduling):
        assert len({await get(port) for _ in range(8)}) == 2 or scheduling == "none"


@asynchronous
async def test_a_udp_socket_of_a_loop_never_blocks_it_although_it_is_shared(tmp_path: Path) -> None:
    (tmp_path / "udp.py").write_text(
        "import asyncio, os, sys\nfrom pyworker import process\n"
        "class Echo(asyncio.DatagramProtocol):\n"
        "    def connection_made(self, transport):\n        self.transport = transport\n"
        "    def datagram_received(self, data, sender):\n        self.transport.sendto(data.upper(), sender)\n"
        "async def main():\n"
        "    address = ('127.0.0.1', int(sys.argv[1]))\n"
        "    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=address)\n"
        "    process.send(os.get_blocking(transport.get_extra_info('socket').fileno()))\n"
        "    await asyncio.Event().wait()\nasyncio.run(main())"
    )
    made = cluster.Cluster()
    port = free_port()
    blocking: list[Any] = []
    made.on("message", lambda worker, message, handle: blocking.append(message))
    made.setup_primary(tmp_path / "udp.py", [str(port)])
    for _ in range(2):
        made.fork()
    await eventually(lambda: len(blocking) == 2)
    assert blocking == [False, False]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        for _ in range(20):
            client.sendto(b"datagram", ("127.0.0.1", port))
            assert await asyncio.to_thread(client.recv, 100) == b"DATAGRAM"
    await made.disconnect()


WORKER = """
import os, threading
from pyworker import cluster
worker = cluster.worker
told = threading.Event()

@worker.once("message")
def first(message, handle):
    worker.send([message, worker.id, worker.is_connected(), worker.is_dead(), cluster.is_worker, cluster.is_primary,
                 os.environ.get("EXTRA")])
    told.set()

told.wait()
worker.on("message", lambda message, handle: getattr(worker, message)())
threading.Event().wait()
"""


GREEN = "import select, threading\ndel select.epoll\nthreading._start_new_thread = lambda *_: None\n"  # as gevent does


@pytest.mark.parametrize(
    ("word", "outcome"), [("disconnect", (True, None)), ("kill", (True, "SIGTERM")), ("suicide", (False, None))]
)
@pytest.mark.parametrize("first", ["", GREEN])
@asynchronous
async def test_a_worker_knows_itself_and_may_leave_in_three_ways(
    first: str, word: str, outcome: tuple[bool, str | None], tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(first + WORKER)
    made = cluster.Cluster()
    made.setup_primary(tmp_path / "worker.py")
    worker = made.fork({"EXTRA": "yes"})
    heard: list[Any] = []
    worker.on("message", lambda message, handle: heard.append(message))
    assert made.workers == {1: worker}
    worker.send("hello")
    await eventually(lambda: heard)
    assert heard == [["hello", 1, True, False, True, False, "yes"]]
    ended: list[Any] = []
    worker.on("exit", lambda code, sig: ended.append((code, sig)))
    worker.send(word)
    await eventually(lambda: ended)
    left, signal = outcome
    assert worker.exited_after_disconnect is left
    assert ended[0][0] == (1 if word == "suicide" else None)
    assert signal is None or ended[0][1] == signal
    assert heard[1:] == ([{"act": "suicide"}] if word == "suicide" else [])
    assert made.workers == {}
    await made.disconnect()


@asynchronous
async def test_the_module_itself_is_a_cluster(server: str, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "primary.py").write_text(
        "import asyncio, sys\nfrom pyworker import cluster\n"
        "async def main():\n"
        "    told = []\n"
        "    for name in ('setup', 'fork', 'online', 'listening', 'disconnect', 'exit'):\n"
        "        cluster.on(name, lambda *args, name=name: told.append(name))\n"
        "    cluster.setup_primary(sys.argv[1], sys.argv[2:], scheduling=cluster.SCHED_NONE)\n"
        "    listening = cluster.events('listening')\n"
        "    worker = cluster.fork()\n"
        "    assert (await anext(listening)).args[1].port == int(sys.argv[2])\n"
        "    print(cluster.is_primary, cluster.worker, cluster.scheduling_policy, cluster.settings.exec == sys.argv[1])\n"
        "    print(list(cluster.workers) == [worker.id])\n"
        "    await cluster.disconnect()\n"
        "    print(*told, cluster.workers)\n"
        "asyncio.run(main())"
    )
    result = await child_process.exec_file(sys.executable, [str(tmp_path / "primary.py"), server, str(port)], timeout=50)
    assert result.stdout.splitlines() == [
        "True None none True",
        "True",
        "setup fork online listening disconnect exit {}",
    ]


@asynchronous
async def test_ctrl_c_reaches_all_and_ends_them_in_order(tmp_path: Path) -> None:
    """A terminal sends the signal to the whole group: the primary decides, the workers finish what they do."""
    port = free_port()
    (tmp_path / "server.py").write_text(
        HTTP_SERVER.replace("body = str", "import time\n        print('began', flush=True); time.sleep(0.5)\n        body = str")
    )
    child = child_process.spawn(
        sys.executable, ["-m", "pyworker.cluster", "-w", "2", str(tmp_path / "server.py"), str(port)], detached=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    waiting = await eventually_connected(port)
    assert await child.stdout.readline() == b"began\n"
    child.kill_group("SIGINT")
    assert (await waiting).isdigit(), "what was under way is answered"
    assert (await child.wait_closed()).code == 0
    assert await child.stderr.read() == b""


@asynchronous
async def test_ctrl_c_does_not_end_a_worker_that_is_just_being_born(server: str) -> None:
    port = free_port()
    made = cluster.Cluster()
    made.setup_primary(server, [str(port)])
    worker = made.fork()
    worker.process.kill("SIGINT")
    await eventually(lambda: worker.state == "listening" or worker.is_dead())
    assert int(await get(port)) == worker.process.pid
    await made.disconnect()


async def eventually_connected(port: int) -> asyncio.Future[str]:
    """Wait until somebody listens, and ask; return what the answer will be."""
    for _ in range(2000):
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            return asyncio.ensure_future(ask_on(reader, writer))
        await asyncio.sleep(0.02)
    raise AssertionError("nobody listens")


async def ask_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    text = await reader.read()
    writer.close()
    return text.partition(b"\r\n\r\n")[2].decode()


@needs_node
@asynchronous
async def test_node_workers_that_ask_for_any_port_share_one(tmp_path: Path) -> None:
    (tmp_path / "server.js").write_text(NODE)
    ports: list[int] = []
    made = cluster.Cluster()
    made.on("listening", lambda worker, address: ports.append(address.port))
    made.setup_primary(tmp_path / "server.js", ["0"])
    for _ in range(2):
        made.fork()
    await eventually(lambda: len(ports) == 2)
    assert ports[0] == ports[1] != 0
    assert len({await get(ports[0]) for _ in range(4)}) == 2
    await made.disconnect()


@asynchronous
async def test_a_program_that_cannot_be_started_is_an_error_of_its_worker(server: str) -> None:
    made = cluster.Cluster()
    made.setup_primary(server, exec_path="/nowhere/python")
    errors: list[Any] = []
    made.on("error", lambda worker, error: errors.append(("cluster", worker.id, str(error))))
    worker = made.fork()
    worker.on("error", lambda error: errors.append(("worker", str(error))))
    await eventually(lambda: len(errors) == 2)
    assert errors[0][0] == "worker"
    assert "cannot run /nowhere/python" in errors[0][1]
    assert errors[1][:2] == ("cluster", 1)
    assert made.workers == {}
    await made.disconnect()


@pytest.fixture
def one_cpu() -> Iterator[Path]:
    """A cgroup that may use one CPU, whatever the machine has."""
    folder = Path("/sys/fs/cgroup/cpu" if os.path.exists("/sys/fs/cgroup/cpu/cgroup.procs") else "/sys/fs/cgroup")
    folder /= f"pyworker-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no cgroups can be made here (that takes root and a writable /sys/fs/cgroup)")
    try:
        try:
            name, limit = ("cpu.cfs_quota_us", "100000") if "/cpu/" in str(folder) else ("cpu.max", "100000 100000")
            (folder / name).write_text(limit)
        except OSError:
            pytest.skip("the CPUs of a cgroup cannot be limited here")
        yield folder
        wait_until(lambda: not (folder / "cgroup.procs").read_text().split(), what="the group to be empty")
    finally:
        folder.rmdir()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is one CPU only, whatever a cgroup says")
@asynchronous
async def test_without_a_number_there_are_as_many_workers_as_the_cgroup_lets_use_cpus(
    one_cpu: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text("print('a worker')")
    (tmp_path / "run.py").write_text("from pyworker import cluster\ncluster.run('job.py', restart={'policy': 'never'})")
    line = f"echo $$ > {one_cpu}/cgroup.procs && exec {sys.executable} run.py"
    assert (await child_process.exec(line, cwd=tmp_path)).stdout == "a worker\n"


@asynchronous
async def test_a_module_runs_as_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "__init__.py").touch()
    (tmp_path / "served" / "__main__.py").write_text(
        HTTP_SERVER.replace("str(os.getpid())", "f'{os.getpid()} {sys.flags.dont_write_bytecode} {__name__} {sys.argv[1:]}'")
    )
    port = free_port()
    options = {"module": "served", "cwd": str(tmp_path), "exec_args": ["-B"], "exec_path": sys.executable}
    async with running(None, [str(port)], workers=2, stdout="ignore", stdin="ignore", **options):
        answers = [await get(port) for _ in range(4)]
        assert answers[:2] == answers[2:]
        assert answers[0].split(" ", 1)[1] == f"1 __main__ ['{port}']"


@asynchronous
async def test_a_signal_that_ends_a_cluster_with_its_workers_is_nothing_that_goes_wrong(tmp_path: Path) -> None:
    lines = "import os, signal; signal.signal(15, signal.SIG_DFL); os.write(1, b'here\\n'); signal.pause()"
    (tmp_path / "ends.py").write_text(lines)
    child = child_process.spawn(
        sys.executable, ["-m", "pyworker.cluster", "-w", "2", str(tmp_path / "ends.py")], detached=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    assert [await child.stdout.readline() for _ in range(2)] == [b"here\n"] * 2
    assert child.pid is not None
    os.killpg(child.pid, signal.SIGTERM)
    assert await child.stderr.read() == b""
    assert (await child.wait_closed()).code == 0


@asynchronous
async def test_a_cluster_that_is_run_says_what_goes_wrong(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os; os.kill(os.getpid(), 9)")
    child = child_process.spawn(
        sys.executable,
        ["-c", f"from pyworker import cluster; cluster.run({str(tmp_path / 'dies.py')!r}, workers=1, restart={{'max_restarts': 2}})"],
    )
    assert child.stderr is not None
    lines = [(await child.stderr.readline()).decode() for _ in range(3)]
    assert sum("was killed by SIGKILL" in line for line in lines) == 2
    assert any("workers died 2 times within 60 s: one is tried every 60 s" in line for line in lines)
    child.kill("SIGTERM")
    assert (await child.wait_closed()).code == 0
    result = child_process.exec_file(sys.executable, ["-m", "pyworker.cluster", "nowhere.py"])
    with pytest.raises(child_process.ExecError, match=r"no such script for workers to run: 'nowhere\.py'"):
        await result
