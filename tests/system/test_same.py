"""What serves after a reload, a death or an upgrade is what served before: in each kind of app, whatever was configured."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import stat
from typing import Any

import pytest

from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.wait import wait_until

# what a worker sees of itself, but for what is its own: pids, serials, the numbers of descriptors
FACE = """
import json, os, resource, sys

OWN = ("PYWORKER_ID", "PYWORKER_CHANNEL_FD", "NODE_CHANNEL_FD", "LISTEN_PID", "PORT")

def face():
    with open("/proc/self/status") as file:
        status = dict(line.rstrip().split(":", 1) for line in file)
    kept = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "NoNewPrivs", "CapEff", "Seccomp", "Cpus_allowed_list")
    return {
        "environ": {name: value for name, value in os.environ.items() if name not in OWN and not name.startswith("PYWORKER_")},
        "own": sorted(name for name in os.environ if name in OWN or name.startswith("PYWORKER_")),
        "status": {name: " ".join(status.get(name, "").split()) for name in kept},
        "limits": [resource.getrlimit(each) for each in range(16)],
        "cwd": os.getcwd(),
        "nice": os.nice(0),
        "argv": sys.argv[1:],
        "path": [each for each in sys.path if "/proc/" not in each],
        "stdin": os.readlink("/proc/self/fd/0"),
        "session": os.getsid(0) == os.getpid() or os.getpgid(0) == os.getpid(),
    }
"""
ASGI = """
import json
from face import face

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    told = {**face(), "root_path": scope["root_path"], "scheme": scope["scheme"], "client": (scope["client"] or ["unix"])[0]}
    body = json.dumps(told).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
WSGI = """
import json
from face import face

def make():
    def app(environ, start_response):
        told = {**face(), "threads": environ["wsgi.multithread"], "script_name": environ["SCRIPT_NAME"]}
        body = json.dumps(told).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    return app
"""
SERVER = """
import http.server, json, os, sys
from face import face

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(face()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT") or sys.argv[1])), Handler).serve_forever()
"""
OFTEN = 'restart = { min_uptime = "100ms", max_restarts = 1000 }'
CONFIG = """
[apps.tls]
target = "web:app"
workers = 2
bind = "127.0.0.1:{tls}"
env = {{ A = "ä", EMPTY = "" }}
env_file = "secrets.env"
umask = "0027"
limits = {{ nofile = 512 }}
http = {{ root_path = "/api", server_header = true }}
tls = {{ cert = "cert.pem", key = "key.pem" }}
{often}
[apps.least]
target = "web:app"
loop = "asyncio"
balance = "least-connections"
bind = ["127.0.0.1:{least}", "unix:least.sock"]
cwd = "sub"
{often}
[apps.threads]
target = "wsgi:make"
factory = true
threads = 3
preload = false
balance = "shared"
bind = "127.0.0.1:{threads}"
http = {{ root_path = "/shop" }}
{often}
[apps.script]
script = "server.py"
args = ["{script}", "a b"]
workers = 2
env = {{ B = "2" }}
{often}
[apps.relayed]
command = ["{python}", "server.py", "--", "c d"]
workers = 2
balance = "proxy"
bind = "127.0.0.1:{relayed}"
umask = "0077"
{often}
"""
NAMES = ("tls", "least", "threads", "script", "relayed")
MANAGERS = ("pyworker guardian", "pyworker daemon", "pyworker logger")


@pytest.fixture
def ports(pw: Pyworker) -> dict[str, int]:
    return {name: pw.another_port() for name in NAMES}


def ask(port: int, context: ssl.SSLContext | None, path: str = "") -> tuple[dict[str, Any], bytes]:
    """Return the face of whom it reaches, and the head of the answer."""
    if path:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
    else:
        connection = socket.create_connection(("127.0.0.1", port), LONG)
    with context.wrap_socket(connection) if context else connection as conn:
        conn.settimeout(LONG)
        conn.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        data = b""
        while part := conn.recv(65536):
            data += part
        certificate = conn.getpeercert(True) or b"" if isinstance(conn, ssl.SSLSocket) else b""
    head, _, body = data.partition(b"\r\n\r\n")
    assert b" 200 OK" in head, data
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"date:", b"x-request-id:"))]
    return json.loads(body), b"\n".join(lines) + certificate


def faces(pw: Pyworker, ports: dict[str, int]) -> dict[str, Any]:
    """What clients see of each app: of every worker, were there several faces."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    seen: dict[str, Any] = {}
    for name, port in ports.items():
        seen[name] = [ask(port, context if name == "tls" else None) for _ in range(4)]
        assert all(each == seen[name][0] for each in seen[name]), f"the workers of {name} are not alike"
    path = os.path.join(pw.folder, "sub", "least.sock")
    seen["unix"] = ask(0, None, path)
    found = os.stat(path)
    seen["mode"] = stat.filemode(found.st_mode), found.st_uid, found.st_gid
    return seen


def kill_what_serves(pw: Pyworker, ports: dict[str, int]) -> None:
    """kill -9 of all but the managers, and wait until others are there."""
    before = {worker for name in ports for worker in pw.pids(name)}
    for pid, title in pw.titles().items():
        if not title.startswith(MANAGERS):
            with contextlib.suppress(ProcessLookupError):  # a spare ends with its template
                kill(pid)
    for name in ports:
        pw.wait_steady(name)
        assert not before & {*pw.pids(name)}


def another(pw: Pyworker, role: str, victim: int) -> None:
    kill(victim)
    wait_until(lambda: pw.status() and pw.role(role) not in (0, victim), LONG, f"another {role}")


def test_what_comes_after_a_death_is_what_was_before(pw: Pyworker, ports: dict[str, int]) -> None:
    pw.make_certificate("same")
    for folder in ("", "sub/"):
        for name, text in (("face.py", FACE), ("web.py", ASGI), ("wsgi.py", WSGI), ("server.py", SERVER)):
            pw.write(folder + name, text)
    pw.write("secrets.env", "SECRET='s3cret # not a comment'\n")
    pw.write("app.toml", CONFIG.format(**ports, often=OFTEN, python=pw.python))
    pw.ok("start", "app.toml")
    first = faces(pw, ports)
    assert first["tls"][0][0]["environ"]["SECRET"] == "s3cret # not a comment"
    pw.ok("reload", "all")
    assert faces(pw, ports) == first, "after a reload of the same"
    for name in ("cert.pem", "key.pem", "secrets.env", "app.toml"):  # what was read at the start counts until a reload
        pw.write(name, "broken\n")
    for role in ("daemon", "guardian"):
        another(pw, role, pw.role(role))
        for name in ports:
            pw.wait_steady(name)
        assert faces(pw, ports) == first, f"after the {role}'s death"
        kill_what_serves(pw, ports)
        assert faces(pw, ports) == first, f"after the {role}'s death and that of all that serve"
    pw.ok("daemon", "upgrade")
    kill_what_serves(pw, ports)
    assert faces(pw, ports) == first, "after an upgrade"
