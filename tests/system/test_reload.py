"""A reload loses no request, or does not happen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker
from tests.support.rawhttp import Client
from tests.support.sources import ASGI, WAITS, WSGI, version
from tests.support.wait import wait_until


@pytest.mark.parametrize(("source", "top"), [(ASGI, ""), (ASGI, 'loop = "asyncio"'), (WSGI, "threads = 4")])
def test_reloads_under_load_lose_no_request(pw: Pyworker, source: str, top: str) -> None:
    pw.api(source, top=top)
    pw.ok("start", "app.toml")
    with Load(pw.port) as load:
        load.wait_more(50)
        for name in ("two", "three", "four"):
            pw.write("web.py", version(source, name))
            pw.ok("reload", "api")
            assert pw.get().startswith(name)
            load.wait_more(50)
        pw.wait_steady()
        load.wait_more(50)
    assert load.lost == []
    assert {body.split()[0] for body in load.bodies} >= {"one", "two", "three", "four"}


def test_a_unix_socket_whose_file_was_removed_is_shown_and_made_again_by_a_reload(pw: Pyworker) -> None:
    path = os.path.join(pw.folder, "api.sock")
    pw.write("web.py", ASGI)
    pw.write("app.toml", f'[app]\nname = "api"\ntarget = "web:app"\nbind = "unix:{path}"\n')
    pw.ok("start", "app.toml")
    os.unlink(path)
    assert "its file was removed" in pw.ok("ps").stderr
    for name in ("two", "three"):  # the second finds it where it is
        pw.write("web.py", version(ASGI, name))
        pw.ok("reload", "api")
        assert "was removed" not in pw.ok("ps").stderr
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            client.settimeout(LONG)
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert name.encode() in answer
    pw.wait_steady()  # the old generation has gone, with the listener that had no file
    assert os.path.exists(path)
    pw.ok("stop", "api")
    assert not os.path.exists(path)


def test_requests_under_way_are_finished_by_the_old_workers(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    old = set(pw.pids())
    with Load(pw.port, "new", "new", "keep", "keep", path="/slow") as load:
        load.wait_more(1)
        pw.ok("reload", "api")
        load.wait_more(8)
    assert load.lost == []
    served = {int(body.split()[1]) for body in load.bodies}
    assert served & old
    assert served - old


def test_a_reload_says_how_many_requests_were_answered_meanwhile_and_how_many_failed(pw: Pyworker) -> None:
    source = ASGI.replace('"status": 200', '"status": 500 if path == "/fail" else 200')
    pw.api(source)
    pw.ok("start", "app.toml")
    with Client(("127.0.0.1", pw.port)) as client:
        client.get("/fail")  # before it
    pw.write("web.py", WAITS + source)
    reload = pw.popen("reload", "api")
    wait_until(lambda: pw.app()["state"] == "reloading", LONG, "the reload")
    with Client(("127.0.0.1", pw.port)) as client:
        for path in ("/", "/fail", "/", "/fail", "/"):
            client.get(path)
    pw.write("go", "")
    said, _ = reload.communicate(timeout=LONG)
    assert said.splitlines()[-1].endswith(", 2 of 5 requests failed")
    events = map(json.loads, pw.ok("events", "--json").stdout.splitlines())
    (data,) = [event["data"] for event in events if event["type"] == "reload_done"]
    assert (data["requests"], data["failed"]) == (5, 2)


def test_a_broken_config_refuses_the_reload(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    before = pw.pids()
    pw.write("app.toml", '[app]\nname = "api"\ntarget = "web:app"\nworkrs = 4\n')
    done = pw.run("reload", "api")
    assert done.returncode == 78, done
    assert "workers" in done.stderr
    assert pw.pids() == before


def test_a_changed_config_comes_in_with_the_reload(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    os.utime(os.path.join(pw.folder, "app.toml"), (1, 1))
    assert pw.app()["config"]["changed"] is False  # touched, and the same
    pw.api(version(ASGI, "two"), workers=3)
    assert pw.app()["config"]["changed"] is True
    pw.ok("reload", "api")
    app = pw.wait_steady()
    assert app["workers"]["ready"] == 3
    assert app["config"]["changed"] is False
    assert pw.get().split()[0] == "two"


def test_an_env_file_that_was_changed_is_said_until_it_is_read_again(pw: Pyworker) -> None:
    pw.write(".env", "A=1\n")
    pw.api(ASGI, top='env_file = [".env", "local.env?"]')
    pw.ok("start", "app.toml")
    os.utime(os.path.join(pw.folder, ".env"), (1, 1))
    assert pw.app()["config"]["changed_files"] == []  # touched, and the same
    pw.write(".env", "B=1\n")
    assert ".env changed on disk" in pw.ok("ps").stderr
    pw.ok("reload", "api")
    assert pw.ok("ps").stderr == ""
    pw.write("local.env", "C=1\n")  # which need not have been there
    assert pw.app()["config"]["changed_files"] == [os.path.join(pw.folder, "local.env")]


def test_an_address_that_cannot_be_beside_the_old_one_is_refused_with_what_helps(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start")
    pw.api(ASGI, bind=f"0.0.0.0:{pw.port}")
    refused = pw.run("reload", "api").stderr
    assert f"cannot listen on 0.0.0.0:{pw.port}: already in use by api itself, on 127.0.0.1:{pw.port}" in refused
    assert "pyworker stop api, then start it again" in refused
    assert pw.get().startswith("one")
    pw.ok("stop", "api")
    pw.ok("start")
    assert pw.get().startswith("one")


@pytest.mark.parametrize("balance", ["round-robin", "least-connections"])
def test_the_bind_address_can_change_without_a_gap_and_the_old_one_refuses_at_once(pw: Pyworker, balance: str) -> None:
    """A roll-back could still come: until then it was open, and who connected waited for nobody, to be reset."""
    top = f'balance = "{balance}"'
    pw.api(ASGI, top=top)
    pw.ok("start", "app.toml")
    other = pw.another_port()
    pw.api(ASGI, top=top, bind=f"127.0.0.1:{other}")
    pw.ok("reload", "api")
    assert pw.get(port=other).startswith("one")
    assert pw.refuses()
    assert pw.app()["listen"] == [f"http://127.0.0.1:{other}"]
    pw.api(ASGI, top=top)
    pw.ok("reload", "api")
    assert pw.get().startswith("one")
    assert pw.refuses(other)


@pytest.mark.parametrize("balance", ["round-robin", "least-connections"])
def test_a_roll_back_listens_again_on_the_address_that_the_new_code_had_left(pw: Pyworker, balance: str) -> None:
    top = f'balance = "{balance}"'
    pw.api(ASGI, top=top)
    pw.ok("start", "app.toml")
    other = pw.another_port()
    first = "async def app(scope, receive, send):\n"
    waits = f"    if scope['type'] == 'lifespan': os.path.exists({pw.folder!r} + '/sick') and os._exit(9)\n"
    pw.api(ASGI.replace(first, first + waits), top=top, bind=f"127.0.0.1:{other}", tables="[app.restart]\nmax_restarts = 2")
    pw.ok("reload", "api")
    assert pw.refuses()
    pw.write("sick", "")
    for pid in pw.pids():
        with contextlib.suppress(ProcessLookupError):  # one that was leaving
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pw.app()["gen"] == 1, LONG, "the old code to be back")
    pw.wait_steady()
    assert pw.get().startswith("one")


def test_a_reload_of_several_apps_that_is_refused_leaves_no_new_port_open(pw: Pyworker) -> None:
    ports = [pw.another_port() for _ in range(3)]

    def write(one: int, two: int) -> None:
        binds = {"one": one, "two": two}
        pw.write("app.toml", "".join(f'[apps.{n}]\ntarget = "web:app"\nbind = "127.0.0.1:{p}"\n' for n, p in binds.items()))

    pw.write("web.py", ASGI)
    write(pw.port, ports[0])
    pw.ok("start", "app.toml")
    with socket.create_server(("127.0.0.1", ports[1])):
        write(ports[2], ports[1])
        for command in ("reload", "restart"):
            refused = pw.run(command, "all")
            assert refused.returncode != 0
            assert f"cannot listen on 127.0.0.1:{ports[1]}" in refused.stderr
            assert pw.refuses(ports[2])
    assert pw.get()
    assert pw.get(port=ports[0])


def test_a_generation_that_is_waited_for_is_the_one_that_answers(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1)
    pw.ok("start", "app.toml")
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        client.send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n")  # it cannot read that it is to leave
        wait_until(lambda: pw.app()["in_flight"] == 1, LONG, "the request to be in")
        pw.ok("reload", "api", "--no-wait")
        pw.ok("wait", "api", "--for", "gen=2")
        assert pw.app()["state"] == "running"
        pw.write("unblock", "")


def test_the_time_to_drain_that_a_reload_brings_is_that_of_the_old_workers_too(pw: Pyworker) -> None:
    source = ASGI.replace("await asyncio.sleep(1)", "await asyncio.sleep(3600)")
    pw.api(source, tables='[app.stop]\ndrain_timeout = "300s"')
    pw.ok("start", "app.toml")
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(2):  # the first one's worker drains already when the time becomes another
            client = stack.enter_context(socket.create_connection(("127.0.0.1", pw.port), timeout=LONG))
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            clients.append(client)
            wait_until(lambda: pw.app()["in_flight"] == len(clients), LONG, "the request")
            if len(clients) == 1:
                pw.ok("reload", "api")
        pw.api(source, tables='[app.stop]\ndrain_timeout = "100ms"')
        pw.ok("reload", "api")
        assert [client.recv(4096).split()[1:2] for client in clients] == [[b"503"], [b"503"]]  # not cut without a word
