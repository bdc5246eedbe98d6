"""Every kind of app, each with a real one, unmodified."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, free_port, kill
from tests.support.sources import ASGI
from tests.support.wait import wait_until

FRAMEWORKS = {
    "fastapi": """
import os
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
app = FastAPI()

@app.get("/", response_class=PlainTextResponse)
async def index():
    return f"fastapi {os.getpid()}"
""",
    "flask": """
import os
from flask import Flask
app = Flask(__name__)

@app.get("/")
def index():
    return f"flask {os.getpid()}"
""",
    "django": """
import os
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["test", "localhost"], SECRET_KEY="x", DEBUG=False)
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("", lambda request: HttpResponse(f"django {os.getpid()}"))]
app = get_wsgi_application()
""",
    "django-asgi": """
import os
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["test", "localhost"], SECRET_KEY="x", DEBUG=False)
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

async def index(request):
    return HttpResponse(f"django-asgi {os.getpid()}")

urlpatterns = [path("", index)]
app = get_asgi_application()
""",
}

SCRIPTS = {
    "http.server": """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"http.server {os.getpid()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
""",
    "aiohttp": """
import os
from aiohttp import web
async def index(request):
    return web.Response(text=f"aiohttp {os.getpid()}")
app = web.Application()
app.add_routes([web.get("/", index)])
web.run_app(app, host="127.0.0.1", port=PORT)
""",
    "uvicorn": """
import os, uvicorn
async def app(scope, receive, send):
    if scope["type"] == "http":
        body = f"uvicorn {os.getpid()}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
uvicorn.run(app, host="127.0.0.1", port=PORT)
""",
    "flask": """
import os
from flask import Flask
app = Flask(__name__)

@app.get("/")
def index():
    return f"flask {os.getpid()}"

app.run(port=PORT)
""",
}

NODE = """
const http = require("http");
const server = http.createServer((request, response) => {
  response.setHeader("Connection", "close");
  response.end("node " + process.pid);
});
server.listen({ fd: 3 });
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"""


def all_pids_answer(pw: Pyworker, word: str, pids: list[int]) -> None:
    seen: set[int] = set()

    def ask() -> bool:
        name, pid = pw.get().split()
        assert name == word
        seen.add(int(pid))
        return seen >= set(pids)

    wait_until(ask, LONG, f"an answer of each of {pids}; seen {seen}")
    assert seen == set(pids)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_real_framework_is_served_unmodified(pw: Pyworker, name: str) -> None:
    pw.api(FRAMEWORKS[name])
    pw.ok("start", "app.toml")
    all_pids_answer(pw, name, pw.pids())
    assert pw.app()["kind"] == ("asgi" if name in ("fastapi", "django-asgi") else "wsgi")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_binds_for_itself_shares_its_port(pw: Pyworker, name: str) -> None:
    pw.write("server.py", SCRIPTS[name].replace("PORT", str(pw.port)))
    pw.write("app.toml", '[app]\nname = "api"\nscript = "server.py"\nworkers = 2\n')
    pw.ok_listening("start", "app.toml")
    first, second = pw.pids()
    assert pw.get().split()[0] == name
    kill(first)
    assert int(pw.get().split()[1]) != first  # the port is one
    pw.wait_steady()
    pw.ok("reload", "api")
    app = pw.wait_steady()
    assert second not in {worker["pid"] for worker in app["pool"]}
    wait_until(lambda: not alive(second), LONG, "the old worker to be gone")
    assert pw.get().split()[0] == name
    pw.ok("stop", "api")
    assert pw.refuses()


@pytest.mark.parametrize(
    ("closes", "top"),
    [("os.close(0)", ""), ("os.close(1); os.close(2)", "preload = false"), ("sys.stdout.close()", "preload = false"), ("sys.stderr.close()", "")],
)
def test_an_app_whose_import_closes_a_standard_stream_is_served(pw: Pyworker, closes: str, top: str) -> None:
    """As programs that put themselves into the background do; else a socket of the worker's would have its number."""
    pw.api(f"import os, sys\n{closes}\n{ASGI}", workers=2, top=top)
    pw.ok("start", "app.toml")
    pw.ok("reload", "api")
    assert pw.get()


def test_a_command_without_a_port_is_kept_running(pw: Pyworker) -> None:
    pw.ok("start", "--name", "api", "-w", "2", "--", "sh", "-c", "while :; do date; sleep 0.2; done")
    first, second = pw.pids()
    kill(first)
    app = pw.wait_steady()
    assert second in {worker["pid"] for worker in app["pool"]}
    assert app["listen"] == []


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_a_node_server_takes_the_inherited_socket(pw: Pyworker) -> None:
    pw.write("server.js", NODE)
    pw.write(
        "app.toml",
        '[app]\nname = "api"\ncommand = ["node", "server.js"]\nbalance = "shared"\nworkers = 2\n'
        f'bind = "127.0.0.1:{pw.port}"\n',
    )
    pw.ok("start", "app.toml")
    pids = pw.pids()
    name, pid = pw.get().split()
    assert name == "node"
    assert int(pid) in pids
    kill(pids[0])
    assert pw.get().startswith("node")
    pw.wait_steady()
    pw.ok("reload", "api")
    pw.wait_steady()
    assert pw.get().startswith("node")


def test_another_environment_sees_nothing_of_ours(pw: Pyworker) -> None:
    venv = os.path.join(pw.folder, "env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    pw.api(
        """
import importlib.util, os, sys
ours = [name for name in ("psutil", "rich", "fastapi") if importlib.util.find_spec(name)]

async def app(scope, receive, send):
    if scope["type"] == "http":
        body = f"{sys.prefix} {','.join(ours) or 'nothing'}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
""",
        top='python = "env"',
    )
    pw.ok("start", "app.toml")
    assert pw.get() == f"{venv} nothing"


def test_a_reload_never_goes_on_with_another_python_because_the_venv_is_gone(
    pw: Pyworker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy took ./.venv away. pyworker's own Python has nothing of what the app needs."""
    monkeypatch.setattr(pw, "folder", os.path.join(pw.folder, "my app"))
    os.mkdir(pw.folder)
    where = os.path.join(pw.folder, ".venv")
    make = [sys.executable, "-m", "venv", "--without-pip", where]
    subprocess.run(make, check=True, timeout=60)
    pw.write("job.py", "import signal, sys\nprint(sys.prefix, flush=True)\nsignal.pause()\n")
    pw.ok("start", "job.py")
    pids = pw.pids("job")
    os.rename(where, where + "-gone")
    for command in ("reload", "restart", "diff"):
        done = pw.run(command, "job")
        assert done.returncode == 78, done
        assert f"the app runs with {where}/bin/python, and {where} is not there any more" in done.stderr
        assert f"make it again: python3 -m venv '{where}'; or name another: python = …" in done.stderr
    assert pw.pids("job") == pids
    os.rename(where + "-gone", where)
    pw.ok("reload", "job")
    shutil.rmtree(where)
    pw.ok("stop", "job")
    # a start is a new beginning, as that of an app nobody knew
    assert f"is gone: now it has ours. Again: python3 -m venv '{where}'" in pw.ok("start", "job").stderr
    wait_until(lambda: pw.ok("logs", "job", "--no-prefix").stdout.splitlines()[-1] == sys.prefix, LONG, "its line")


def test_a_script_that_binds_nothing_is_told_to_end_at_once(pw: Pyworker) -> None:
    """It reads no channel: a drain would be waited for until its time-out."""
    pw.write("job.py", "import time\nwhile True:\n    time.sleep(1)\n")
    pw.write("app.toml", '[app]\nname = "api"\nscript = "job.py"\n[app.stop]\ndrain_timeout = "1h"\n')
    pw.ok("start", "app.toml")
    pw.ok("reload", "api")
    pw.ok("stop", "api", "--timeout", "60s")
    assert pw.app()["state"] == "stopped"


LATE = """
import os, socket, time
while not os.path.exists("go"):
    time.sleep(0.1)
server = socket.create_server(("127.0.0.1", %d))
while True:
    time.sleep(1)
"""


def test_an_address_of_bind_that_a_script_leaves_alone_is_said_until_it_binds_it(pw: Pyworker) -> None:
    """Who connects there waits for an answer, and the app is running by all that is seen."""
    pw.write("late.py", LATE % pw.port)
    pw.write("app.toml", f'[app]\nname = "api"\nscript = "late.py"\nbind = "127.0.0.1:{pw.port}"\n')
    said = f"no worker has bound 127.0.0.1:{pw.port}, which `bind` names"
    assert said in pw.ok("start", "app.toml").stderr
    assert said not in pw.ok("stop", "api").stderr
    assert pw.app()["notes"] == []
    assert said in pw.ok("start", "api").stderr
    pw.write("go", "")
    wait_until(lambda: said not in pw.ok("ps").stderr, what="the end of the note")


@pytest.mark.parametrize("kind", ["script", "node", "round-robin"])
def test_a_program_that_listens_at_another_port_than_bind_is_said_to(pw: Pyworker, kind: str) -> None:
    if kind != "script" and shutil.which("node") is None:
        pytest.skip("node is not installed (apt-get install nodejs)")
    pw.write("server.py", SERVER % ('answer = lambda: b"script"', pw.port))
    pw.write("server.js", FIXED_NODE % f"{pw.port}, '127.0.0.1'")
    other = free_port()
    what = 'script = "server.py"' if kind == "script" else 'command = ["node", "server.js"]'
    if kind == "round-robin":
        what += '\nbalance = "round-robin"'
    pw.write("app.toml", f'[app]\nname = "api"\n{what}\nbind = "127.0.0.1:{other}"\n')
    pw.ok("start", "app.toml")
    said = f"no worker has bound 127.0.0.1:{other}, which `bind` names"
    wait_until(lambda: said in pw.ok("ps").stderr, what="the note")
    pw.write("app.toml", f'[app]\nname = "api"\n{what}\nbind = "127.0.0.1:{pw.port}"\n')
    pw.ok("reload", "api")
    assert "has bound" not in pw.ok("ps").stderr


SERVER = """
import http.server, os, socket
%s
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = answer()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", %d), Handler).serve_forever()
"""
FIXED_NODE = "require('http').createServer((q, r) => { r.setHeader('content-length', 4); r.end('node'); }).listen(%s);\n"


@pytest.mark.parametrize("kind", ["target", "preload = false", "script"])
def test_code_that_changes_in_the_second_in_which_it_was_compiled_comes_with_the_reload(pw: Pyworker, kind: str) -> None:
    def changed(path: str, milliseconds: int) -> None:
        at = (1_700_000_000 * 1000 + milliseconds) * 10**6
        os.utime(path, ns=(at, at))

    changed(pw.write("words.py", 'VERSION = "one"\n'), 100)
    if kind == "script":
        pw.write("web.py", SERVER % ("from words import VERSION\nanswer = lambda: VERSION.encode()", pw.port))
        pw.write("app.toml", '[app]\nname = "api"\nscript = "web.py"\n')
    else:
        pw.api(ASGI.replace('VERSION = "one"', "from words import VERSION"), top=kind if "=" in kind else "")
    pw.ok_listening("start", "app.toml")
    assert pw.get().startswith("one")
    [compiled] = Path(pw.folder, "__pycache__").glob("words.*")
    changed(str(compiled), 200)
    changed(pw.write("words.py", 'VERSION = "two"\n'), 300)
    pw.ok("reload", "api")
    assert pw.get().startswith("two")


@pytest.mark.parametrize("point", ["reload.committed", "reload.go"])
def test_a_script_that_waits_in_its_bind_is_answered_by_the_next_daemon(pw: Pyworker, point: str) -> None:
    pw.make_failpoints()
    pw.write("server.py", SERVER % ("answer = lambda: str(os.getpid()).encode()", pw.port))
    pw.write("app.toml", '[app]\nname = "api"\nscript = "server.py"\n')
    pw.ok_listening("start", "app.toml")
    old = pw.pids()
    passed = pw.arm(point, "kill") + ".hit"
    pw.run("reload", "api")  # loses the daemon that it asked
    assert os.path.exists(passed)
    app = pw.wait_steady()
    wait_until(lambda: not alive(old[0]), LONG, "the old worker to be gone")
    assert [worker["pid"] for worker in app["pool"]] != old
    assert int(pw.get()) == pw.pids()[0]


BINDS_ANOTHER = """
def answer():
    with socket.socket() as other:
        other.bind(("127.0.0.1", %d))
        return str(other.getsockname()[1]).encode()
"""


def test_a_script_that_a_dying_daemon_has_answered_is_not_answered_again(pw: Pyworker) -> None:
    pw.make_failpoints()
    other = pw.another_port()
    pw.write("server.py", SERVER % (BINDS_ANOTHER % other, pw.port))
    pw.write("app.toml", '[app]\nname = "api"\nscript = "server.py"\n')
    pw.ok_listening("start", "app.toml")
    old = pw.pids()
    passed = pw.arm("reload.drain", "kill") + ".hit"
    pw.run("reload", "api")  # loses the daemon that it asked
    assert os.path.exists(passed)
    pw.wait_steady()
    wait_until(lambda: not alive(old[0]), LONG, "the old worker to be gone")
    assert int(pw.get()) == other  # not the answer to its first bind, left over


@pytest.mark.parametrize(("kind", "the_daemon_dies"), [("script", False), ("script", True), ("node", True)])
def test_a_port_that_new_code_does_not_bind_is_closed(pw: Pyworker, kind: str, the_daemon_dies: bool) -> None:
    if kind == "node" and shutil.which("node") is None:
        pytest.skip("node is not installed (apt-get install nodejs)")
    other = pw.another_port()

    def write(port: int) -> None:
        pw.write("server.py", SERVER % ('answer = lambda: b"script"', port))
        pw.write("server.js", FIXED_NODE % f"{port}, '127.0.0.1'")

    write(pw.port)
    lines = 'script = "server.py"' if kind == "script" else 'command = ["node", "server.js"]\nbalance = "round-robin"'
    pw.write("app.toml", f'[app]\nname = "api"\n{lines}\nworkers = 2\n[app.reload]\nready_timeout = "8s"\nsoak = "0s"\n')
    pw.ok_listening("start", "app.toml")
    write(other)
    pw.ok("reload", "api")
    with Load(other, "new") as load:
        if the_daemon_dies:
            kill(pw.role("daemon"))
        kill(next(worker["pid"] for worker in pw.app()["pool"] if worker["gen"] == 2))  # old ones may still be leaving
        wait_until(lambda: pw.refuses(), LONG, "the old port to be closed")
        load.wait_more(10)
    assert len(load.lost) <= 1, load.lost  # what the killed one had in hand
    pw.wait_steady()
    assert pw.app()["listen"] == [f"http://127.0.0.1:{other}"]


@pytest.mark.parametrize("caught", [False, True])  # True: as Flask does
def test_a_script_whose_port_is_taken_does_not_start_and_is_told_whose_it_is(pw: Pyworker, caught: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = SERVER % ('answer = lambda: b"script"', taken.getsockname()[1])
        if caught:
            body = "".join(f"    {line}\n" for line in server.splitlines())
            server = f"import sys\ntry:\n{body}except OSError as error:\n    print(error)\n    sys.exit(1)\n"
        pw.write("server.py", server)
        done = pw.run("start", "server.py")
    assert done.returncode == 1
    assert f"stop it (kill {os.getpid()})" in done.stderr


def test_a_script_that_comes_late_to_a_taken_port_and_takes_a_moment_to_end_does_not_start(pw: Pyworker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"socket.create_server(('127.0.0.1', {taken.getsockname()[1]}))"
        pw.write("server.py", f"import socket, time\ntime.sleep(2.5)\ntry: {bind}\nfinally: time.sleep(2)\n")
        done = pw.run("start", "server.py")
    assert done.returncode == 1
    assert f"stop it (kill {os.getpid()})" in done.stderr


def test_a_script_that_goes_on_to_another_port_when_one_is_taken_is_up_there(pw: Pyworker) -> None:
    server = SERVER % ('answer = lambda: b"script"', pw.port)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tries = f"import socket\ntry: socket.create_server(('127.0.0.1', {taken.getsockname()[1]}))\nexcept OSError: pass\n"
        pw.write("server.py", tries + server)
        pw.ok("start", "server.py")
    assert pw.get() == "script"
    kill(*pw.pids("server"))
    wait_until(lambda: "killed by SIGKILL from outside" in pw.ok("events").stdout, what="why it ended")


def test_new_code_of_a_script_that_cannot_listen_is_refused_and_the_old_serves(pw: Pyworker) -> None:
    server = SERVER % ('answer = lambda: b"script"', pw.port)
    pw.write("server.py", server)
    pw.write("app.toml", '[app]\nname = "api"\nscript = "server.py"\n')
    pw.ok_listening("start", "app.toml")
    pids = pw.pids()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for new in (server.replace("127.0.0.1", "0.0.0.0"), server.replace(str(pw.port), str(taken.getsockname()[1]))):
            pw.write("server.py", new)
            done = pw.run("reload", "api")
            assert done.returncode == 1
            assert "already in use" in done.stderr
            assert (pw.pids(), pw.get()) == (pids, "script")


UNIX_SERVER = """
import asyncio, os

async def handle(reader, writer):
    await reader.readline()
    writer.write(str(os.getpid()).encode())
    writer.close()

async def main():
    path = "run/x.sock"  # by a link, as of /var/run
    if os.path.exists(path):
        os.remove(path)  # as one that was left over; start_unix_server does so, too
    assert %s, "this code does not serve"
    server = await asyncio.start_unix_server(handle, path)
    await server.serve_forever()

asyncio.run(main())
"""


def test_a_script_that_removes_the_file_of_its_unix_socket_before_it_binds_leaves_it_to_the_others(pw: Pyworker) -> None:
    def answer() -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{pw.folder}/x.sock")
            client.sendall(b"who?\n")
            return int(client.recv(100))

    os.symlink(pw.folder, f"{pw.folder}/run")
    pw.write("server.py", UNIX_SERVER % True)
    pw.write("app.toml", '[app]\nname = "api"\nscript = "server.py"\nworkers = 2\nbind = "unix:run/x.sock"\n')
    pw.ok("start", "app.toml")
    pids = pw.pids()
    seen: set[int] = set()
    wait_until(lambda: seen.add(answer()) or seen == set(pids), LONG, "an answer of both")
    pw.write("server.py", UNIX_SERVER % False)
    assert pw.run("reload", "api").returncode == 1
    assert answer() in pids, "new code that does not serve took the socket from the old"
    pw.write("server.py", UNIX_SERVER % True)
    pw.ok("reload", "api")
    assert answer() in pw.pids()


@pytest.mark.parametrize("kind", ["script", "node"])
def test_a_restart_may_listen_on_all_addresses_where_it_was_one(pw: Pyworker, kind: str) -> None:
    if kind == "node" and shutil.which("node") is None:
        pytest.skip("node is not installed (apt-get install nodejs)")
    server = SERVER % ('answer = lambda: b"script"', pw.port)
    pw.write("server.py", server)
    pw.write("server.js", FIXED_NODE % f"{pw.port}, '127.0.0.1'")
    lines = 'script = "server.py"' if kind == "script" else 'command = ["node", "server.js"]\nbalance = "round-robin"'
    pw.write("app.toml", f'[app]\nname = "api"\n{lines}\n')
    pw.ok_listening("start", "app.toml")
    pw.write("server.py", server.replace("127.0.0.1", "0.0.0.0"))
    pw.write("server.js", FIXED_NODE % pw.port)
    pw.ok_listening("restart", "api")
    assert pw.app()["listen"] == [f"http://0.0.0.0:{pw.port}"]


def test_a_reload_may_make_another_kind_of_app_of_it_without_losing_a_request(pw: Pyworker) -> None:
    pw.api(ASGI, workers=2)
    pw.write("server.py", SERVER % ('answer = lambda: b"script"', pw.port))
    pw.write("server.js", FIXED_NODE % pw.port)
    pw.write("proxied.js", FIXED_NODE % "process.env.PORT, '127.0.0.1'")
    pw.ok("start", "app.toml")
    with open(os.path.join(pw.folder, "app.toml")) as file:
        asgi = file.read()
    target = next(line for line in asgi.splitlines() if line.startswith("target"))
    node = 'command = ["node", "server.js"]\n'
    kinds = [('script = "server.py"', "script"), (target, "one")]
    if shutil.which("node") is not None:
        kinds += [
            (node + 'balance = "shared"', "node"),
            (node + 'balance = "round-robin"', "node"),
            (node + 'balance = "shared"', "node"),
            ('command = ["node", "proxied.js"]\nbalance = "proxy"', "node"),
            (target + '\nbalance = "least-connections"', "one"),
        ]
    with Load(pw.port, "new", "new") as load:
        for lines, answer in kinds:
            load.wait_more(10)
            pw.write("app.toml", asgi.replace(target, lines))
            pw.ok("reload", "api")
            load.wait_more(10)
            wait_until(lambda answer=answer: pw.get().startswith(answer), LONG, f"{lines} to serve")  # type: ignore[misc]
    assert load.lost == []


def test_a_script_may_be_a_cluster_itself(pw: Pyworker) -> None:
    """Its workers are children of the worker, with the library out of the daemon's archive."""
    pw.write("server.py", "from pyworker import cluster\ncluster.run(workers=2)\n" + SERVER % ("answer = lambda: str(os.getpid()).encode()", pw.port))
    pw.write("app.toml", '[app]\nname = "api"\nscript = "server.py"\n')
    pw.ok_listening("start", "app.toml")
    (worker,) = pw.pids()
    seen: set[int] = set()
    wait_until(lambda: seen.add(int(pw.get())) or len(seen) == 2, LONG, "an answer of both")  # it serves since the first listens
    assert worker not in seen
    with Load(pw.port, "new") as load:
        load.wait_more(10)
        pw.ok("reload", "api")
        load.wait_more(10)
    assert load.lost == []
    pw.ok("stop", "api")
    wait_until(lambda: not any(alive(pid) for pid in seen), LONG, "its workers to end with it")
