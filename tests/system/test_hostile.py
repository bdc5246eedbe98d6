"""Rubbish from workers and templates: a dropped peer, never a dead daemon."""

from __future__ import annotations

import json
import os
import socket
import subprocess

import pytest

from pyworker.config.address import MAX_LISTENERS
from pyworker.protocol.template import Loaded
from pyworker.protocol.wire import encode
from pyworker.unix.fds import SO_PASSRIGHTS
from tests.support.pyworker import LONG, Pyworker, alive, open_to_all
from tests.support.sources import ASGI
from tests.support.wait import wait_until
from tests.template.test_launcher import PUBLIC, needs_public, needs_root

EVIL = """
import os, socket
MESSAGES = {"/empty": b"", "/noise": bytes(range(256)), "/fds": b'{"type":"accepting"}'}

def app(environ, start_response):
    message = MESSAGES.get(environ["PATH_INFO"])
    for name in os.listdir("/proc/self/fd") if message is not None else ():
        try:
            channel = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with channel:
            if channel.type == socket.SOCK_SEQPACKET:
                try:
                    channel.send(message) if environ["PATH_INFO"] != "/fds" else socket.send_fds(channel, [message], [0, 1])
                except PermissionError:
                    start_response("403 Forbidden", [("Content-Length", "0")])
                    return []
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

SENDS_FDS = """
import json, os, socket

def app(environ, start_response):
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            channel = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with channel:
            if channel.family == socket.AF_UNIX and channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8] == bytes(4):
                try:
                    found[channel.type.name] = socket.send_fds(channel, [b" "], [0])
                except OSError as error:
                    found[channel.type.name] = type(error).__name__
    body = json.dumps(found).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("path", ["/empty", "/noise", "/fds"])
def test_a_worker_that_talks_rubbish_is_killed_and_replaced(pw: Pyworker, path: str) -> None:
    pw.api(EVIL, workers=1, tables='[app.restart]\nmin_uptime = "0s"')
    pw.ok("start", "app.toml")
    daemon = pw.role("daemon")
    before = pw.get()
    wait_until(lambda: _fails(pw, path) or pw.pids() != [int(before)], LONG, "the worker to be killed")
    pw.wait_steady()
    if path == "/fds" and refuses_fds():
        assert pw.get() == before
    else:
        assert pw.get() != before
    assert pw.role("daemon") == daemon


def refuses_fds() -> bool:
    """Whether the kernel does, for who asks it to: Linux 6.16 and later."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            return False
    return True


@needs_root
@needs_public
@pytest.mark.skipif(not refuses_fds(), reason="this kernel refuses no descriptors")
def test_no_descriptor_of_another_users_worker_comes_to_the_daemon(pw: Pyworker) -> None:
    """Whoever closes one can be held up by it for ever, beyond SIGKILL where it is a file of a FUSE mount."""
    open_to_all(pw.folder)
    pw.api(SENDS_FDS, workers=1, top=f'user = "nobody"\npython = "{PUBLIC}"')
    pw.ok("start", "app.toml")
    assert json.loads(pw.get()) == {"SOCK_SEQPACKET": "PermissionError", "SOCK_STREAM": "PermissionError"}


def _fails(pw: Pyworker, path: str) -> bool:
    """Ask for it; the answer may be cut off by the death that it causes."""
    try:
        pw.get(path)
    except (OSError, AssertionError):
        return True
    return False


FLOOD = """
import contextlib, os, socket, threading

def flood(message):
    for name in os.listdir("/proc/self/fd"):
        try:
            channel = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if channel.type == socket.SOCK_SEQPACKET:
            channel.setblocking(True)
            while True:
                channel.send(message)
"""
FLOODS = FLOOD + """
def app(environ, start_response):
    if environ["PATH_INFO"] != "/":
        kind = environ["PATH_INFO"].strip("/")
        more = {"recycle": b',"reason":"x"', "hello": b',"version":"x"'}.get(kind, b"")
        threading.Thread(target=flood, args=(b'{"type":"%s"%s}' % (kind.encode(), more),), daemon=True).start()
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("kind", ["recycle", "hello", "accepting"])
def test_a_worker_that_never_stops_talking_is_killed_and_replaced(pw: Pyworker, kind: str) -> None:
    pw.api(FLOODS, workers=1, tables='[app.restart]\nmin_uptime = "0s"')
    pw.ok("start", "app.toml")
    daemon, before = pw.role("daemon"), pw.get()
    pw.get(f"/{kind}")
    wait_until(lambda: not alive(int(before)), LONG, "the worker to be killed")
    pw.wait_steady()
    assert pw.get() != before
    assert pw.role("daemon") == daemon

    def told(kind: str) -> list[str]:
        events = [json.loads(line) for line in pw.ok("events", "--json").stdout.splitlines()]
        return [event["data"]["reason"] for event in events if event["type"] == kind]

    if kind != "recycle":  # that one may have left by itself, its successor was there first
        wait_until(lambda: "more messages than there is a use for" in str(told("worker_exited")), LONG, "why it ended")
    assert len(told("worker_recycled")) <= 1
    pw.ok("reload", "api")
    assert pw.app()["notes"] == [], "there is no worker of then any more"


BRAGGART = FLOOD.replace("while True:", "for number in range(100):").replace("send(message)", "send(message.replace(b'NUMBER', b'%d' % number))") + """
flood(LOADED)

def app(environ, start_response):
    flood(b'{"type":"notice","text":"NUMBER"}')
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_what_workers_and_templates_say_of_themselves_is_an_event_once(pw: Pyworker) -> None:
    """Said again and again, and not too fast, it drove all that had happened out of the history."""
    loaded = encode(Loaded(1, "3", "wsgi", "e", "asyncio", True, "", 0.5, code="NUMBER", newest_at=1 << 62))
    pw.api(BRAGGART.replace("LOADED", repr(loaded)), workers=1)
    pw.ok("start", "app.toml")
    pw.get()
    wait_until(lambda: pw.app()["notes"] != [], LONG, "the notice")
    pw.ok("reload", "api")
    kinds = [json.loads(line)["type"] for line in pw.ok("events", "--json", "-n", "500").stdout.splitlines()]
    assert (kinds.count("template_ready"), kinds.count("app_note")) == (2, 1)


TALKER = """
if not os.fork():
    with contextlib.suppress(OSError):
        flood(b'{"type":"parked","pid":%d}' % os.getpid())
    os._exit(0)
"""


def test_a_template_that_never_stops_talking_is_killed(pw: Pyworker) -> None:
    pw.api(FLOOD + TALKER + ASGI, workers=1)
    pw.run("start", "app.toml")
    said = "its channel said more messages than there is a use for"
    wait_until(lambda: said in pw.ok("events", "api").stdout, LONG, "the template to be killed")
    pw.ok("delete", "api", "-y")


LIAR = """
import os, socket

def lie():
    for name in os.listdir("/proc/self/fd"):
        try:
            channel = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with channel:
            if channel.type == socket.SOCK_SEQPACKET:
                for serial in range(1, 9):
                    channel.send(b'{"type":"forked","serial":%d,"pid":VICTIM}' % serial)

os.register_at_fork(before=lie)
"""


@needs_root
@needs_public
def test_a_template_cannot_have_another_users_process_taken_for_its_worker(pw: Pyworker) -> None:
    """The app's code runs in it, as the app's user; whom it names is signalled by the daemon, which is root."""
    open_to_all(pw.folder)
    with subprocess.Popen(["sleep", "1000"]) as victim:
        try:
            pw.api(LIAR.replace("VICTIM", str(victim.pid)) + ASGI, workers=1, top=f'user = "nobody"\npython = "{PUBLIC}"')
            pw.run("start", "app.toml")
            wait_until(lambda: "which is another user's" in pw.ok("events", "api").stdout, LONG, "the lie to be noticed")
            assert victim.pid not in pw.pids()
            pw.ok("delete", "api", "-y")
            assert victim.poll() is None
        finally:
            victim.kill()


def test_secrets_are_in_no_file_and_on_no_screen(pw: Pyworker) -> None:
    state = 'state = "redis://:swordfish-4711@127.0.0.1:1"'  # written there, and shown by what shows configs
    pw.api(ASGI, workers=1, top=state, tables='[app.env]\nDB_PASSWORD = "${DB_PASSWORD}"')
    pw.environ["DB_PASSWORD"] = "swordfish-4711"
    pw.ok("start", "app.toml")
    commands = ("ps --json", "describe api", "describe api --json", "config", "config api", "doctor --report")
    shown = [pw.ok(*command.split()).stdout for command in commands]
    pw.ok("reload", "api")
    for folder, _, names in os.walk(pw.home):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                with open(path, errors="replace") as file:
                    shown.append(file.read())
    assert not [text for text in shown if "swordfish-4711" in text]
    assert "swordfish-4711" in pw.ok("describe", "api", "--reveal").stdout


GREEDY = """
import socket
PORTS = {ports}
kept, refused = [], 0
for port in PORTS:
    listener = socket.socket()
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        refused += 1
    kept.append(listener)
body = f"refused {refused}".encode()
while True:
    connection, _ = kept[0].accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\nConnection: close\\r\\n\\r\\n" + body)
    connection.close()
"""


def test_a_script_cannot_have_the_daemon_open_listeners_without_end(pw: Pyworker) -> None:
    ports = [pw.port]
    while len(ports) < MAX_LISTENERS + 6:
        port = pw.another_port()
        ports += [] if port in ports else [port]  # the kernel may name one twice
    pw.write("greedy.py", GREEDY.replace("{ports}", repr(ports)))
    pw.write("app.toml", '[app]\nname = "api"\nscript = "greedy.py"\n')
    pw.ok_listening("start", "app.toml")
    assert pw.get() == "refused 6"
    assert len(pw.app()["listen"]) == MAX_LISTENERS
