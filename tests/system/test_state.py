"""pyworker.state under the daemon: one store for all workers of an app, which outlives each of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import psutil
import pytest

from tests.support.pyworker import LONG, Pyworker, kill, open_to_all, running
from tests.support.redis import redis_server
from tests.support.wait import wait_until

ASGI = """
import asyncio, json, os
from pyworker import state
seen = []
heard = []

async def watcher():
    async for value in state.watch("flag"):
        seen.append(value)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        app.task = asyncio.create_task(watcher())
        state.listen(heard.append)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        app.task.cancel()
        await send({"type": "lifespan.shutdown.complete"})
        return
    what = scope["path"]
    if what == "/hit":
        answer = state.incr("hits")
    elif what == "/flag":
        answer = await state.aio.set("flag", os.getpid())
    elif what == "/say":
        answer = state.broadcast(os.getpid())
    else:
        answer = {"pid": os.getpid(), "seen": seen[-1:], "heard": heard, "hits": state.get("hits"),
                  "where": os.environ["PYWORKER_STATE"]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
"""
SCRIPT = """
import http.server, os
from pyworker import state

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(state.incr("hits")).encode())

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


WATCHING = """
import http.server, json, os
from pyworker import state
seen, heard = [], []
state.watch("flag", seen.append)
state.listen(heard.append)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/tell":
            state.set("flag", os.getpid())
            state.broadcast(os.getpid())
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps([os.getpid(), seen[-1:], heard]).encode())

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


def looks(pw: Pyworker) -> dict[int, dict[str, object]]:
    """What each worker says, by its pid; round robin brings them all."""
    found = {}
    for _ in range(8):
        answer = json.loads(pw.get("/look"))
        found[answer["pid"]] = answer
    return found


def test_workers_share_what_outlives_them_all(pw: Pyworker) -> None:
    pw.api(ASGI, workers=2)
    pw.ok("start", "app.toml")
    for _ in range(10):
        pw.get("/hit")
    pw.ok("reload", "api")
    pw.get("/hit")
    kill(pw.wait_steady()["pool"][0]["pid"])
    pw.wait_steady()
    pw.get("/hit")
    kill(pw.role("daemon"))
    assert json.loads(pw.get("/hit")) == 13, "a daemon is not needed for it"
    wait_until(lambda: pw.run("ps").returncode == 0, LONG, "a daemon")
    pw.ok("stop", "api")
    pw.ok("start", "app.toml")
    assert json.loads(pw.get("/hit")) == 14


def test_every_sibling_is_told_of_a_change_and_of_a_broadcast(pw: Pyworker) -> None:
    pw.api(ASGI, workers=3)
    pw.ok("start", "app.toml")
    pw.get("/flag")
    pw.get("/say")

    def all_know() -> bool:
        workers = looks(pw)
        said = [w["heard"] for w in workers.values()]
        return (
            len(workers) == 3
            and all(w["seen"] and w["seen"][0] in workers for w in workers.values())  # type: ignore[index]
            and sorted(len(h) for h in said) == [0, 1, 1]  # type: ignore[arg-type]
        )

    wait_until(all_know, LONG, "all workers to know")
    daemon = pw.role("daemon")
    os.kill(daemon, 19)  # SIGSTOP: no daemon is there to pass anything on
    try:
        before = [w["seen"] for w in looks(pw).values()]
        wait_until(
            lambda: pw.get("/flag") and [w["seen"] for w in looks(pw).values()] != before, LONG, "a change without it"
        )
    finally:
        os.kill(daemon, 18)


def test_a_script_and_two_apps_have_each_their_own_state(pw: Pyworker) -> None:
    ports = [pw.port, pw.another_port()]
    for name, port in zip(("one", "two"), ports, strict=True):
        pw.write(f"{name}.py", SCRIPT.replace("PORT", str(port)))
    pw.write("app.toml", '[apps.one]\nscript = "one.py"\nworkers = 2\n[apps.two]\nscript = "two.py"\n')
    pw.ok_listening("start", "app.toml")
    assert [pw.get("/", ports[0]) for _ in range(3)] == ["1", "2", "3"]
    assert pw.get("/", ports[1]) == "1"


def test_an_app_may_use_its_state_while_it_is_imported_and_is_forked_all_the_same(pw: Pyworker) -> None:
    pw.api(ASGI + "\nstate.set('hits', 100)\n", workers=2)
    pw.ok("start", "app.toml")
    assert json.loads(pw.get("/hit")) == 101
    assert json.loads(pw.ok("describe", "api", "--json").stdout)["apps"][0]["template"]["preload"] is True
    assert {w["hits"] for w in looks(pw).values()} == {101}


def test_redis_named_in_the_file_is_used_and_its_password_is_shown_nowhere(pw: Pyworker) -> None:
    with redis_server() as server:
        pw.environ["REDIS_URL"] = server.url
        pw.api(ASGI, top='state = "${REDIS_URL}"', workers=2)
        pw.ok("start", "app.toml")
        assert [json.loads(pw.get("/hit")) for _ in range(3)] == [1, 2, 3]
        import redis

        with redis.Redis.from_url(server.url) as client:
            assert client.get("pyworker:api:hits") == b"3"
        for command in (("describe", "api"), ("describe", "api", "--json"), ("diff", "api"), ("ps", "--json")):
            done = pw.run(*command)
            assert "s3cret" not in done.stdout + done.stderr, command
        with open(os.path.join(pw.home, "apps.json")) as file:
            assert "s3cret" not in file.read()


def test_an_address_that_is_none_is_refused_where_it_stands(pw: Pyworker) -> None:
    pw.api(ASGI, top='state = "mysql://x"')
    done = pw.run("start", "app.toml")
    assert done.returncode == 78
    assert 'must be "sqlite" or the address of a Redis server' in done.stderr
    assert "app.toml:6" in done.stderr


@pytest.fixture
def script_of_nobody() -> Iterator[Pyworker]:
    """A script that runs as nobody, by the system's Python: ours may be where only root can go."""
    if os.geteuid() != 0:
        pytest.skip("only root can run an app as another user")
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys, sqlite3; print(sys.version_info >= (3, 11))"],
        capture_output=True, text=True, check=False,
    ) if os.path.exists("/usr/bin/python3") else None  # fmt: skip
    if version is None or version.stdout != "True\n":
        pytest.skip("no /usr/bin/python3 of version 3.11 or newer")
    with running() as pw:
        open_to_all(pw.folder)
        pw.write("web.py", SCRIPT.replace("PORT", str(pw.port)))
        top = f'[app]\nname = "api"\nscript = "web.py"\nuser = "nobody"\npython = "/usr/bin/python3"\nbind = "127.0.0.1:{pw.port}"'
        pw.write("app.toml", top)
        yield pw


def test_the_state_of_an_app_with_a_user_belongs_to_that_user(script_of_nobody: Pyworker) -> None:
    pw = script_of_nobody
    pw.ok("start", "app.toml")
    assert [pw.get(), pw.get()] == ["1", "2"]
    folder = os.stat(os.path.join(pw.home, "state", "api"))
    assert folder.st_uid == psutil.Process(pw.pids()[0]).uids().real != 0
    assert folder.st_mode & 0o777 == 0o700
    assert os.stat(pw.home).st_mode & 0o777 == 0o711
    assert os.stat(os.path.join(pw.home, "logs")).st_mode & 0o777 == 0o700


def another_user(pw: Pyworker, more: str = "") -> None:
    with open(os.path.join(pw.folder, "app.toml")) as file:
        pw.write("app.toml", file.read().replace('"nobody"', '"daemon"') + more)


def test_a_refused_reload_to_another_user_leaves_the_state_whose_it_was(script_of_nobody: Pyworker) -> None:
    pw = script_of_nobody
    pw.ok("start", "app.toml")
    folder = os.path.join(pw.home, "state", "api")
    nobody = os.stat(folder).st_uid
    another_user(pw)
    pw.write("web.py", "raise SystemExit('not today')\n")
    assert pw.run("reload", "api").returncode == 1
    assert os.stat(folder).st_uid == nobody


def test_a_reload_to_another_user_takes_the_state_along_and_back(script_of_nobody: Pyworker) -> None:
    pw = script_of_nobody
    pw.ok("start", "app.toml")
    folder = os.path.join(pw.home, "state", "api")
    nobody = os.stat(folder).st_uid
    another_user(pw, '\n[app.reload]\nsoak = "10m"')
    assert pw.get() == "1"
    pw.ok("reload", "api")
    assert os.stat(folder).st_uid != nobody
    assert pw.get() == "2"
    pw.ok("reload", "api", "--abort")
    assert os.stat(folder).st_uid == nobody
    assert pw.get() == "3"


def test_workers_of_another_user_are_told_of_changes_and_broadcasts(script_of_nobody: Pyworker) -> None:
    pw = script_of_nobody
    pw.write("web.py", WATCHING.replace("PORT", str(pw.port)))
    with open(os.path.join(pw.folder, "app.toml")) as file:
        pw.write("app.toml", file.read() + "\nworkers = 2")
    pw.ok("start", "app.toml")
    teller = json.loads(pw.get("/tell"))[0]
    known: dict[int, list[object]] = {}

    def all_know() -> bool:
        pid, seen, heard = json.loads(pw.get("/"))
        known[pid] = [seen, heard]
        return len(known) == 2 and all(
            what == ([[teller], []] if pid == teller else [[teller], [teller]]) for pid, what in known.items()
        )

    wait_until(all_know, LONG, f"both to know: {known}")


def test_a_home_that_the_user_cannot_reach_is_named_to_those_who_use_it(script_of_nobody: Pyworker) -> None:
    pw = script_of_nobody
    closed = tempfile.mkdtemp(prefix="pwc-")
    pw.home = pw.environ["PYWORKER_HOME"] = os.path.join(closed, "home")
    try:
        started = pw.ok("start", "app.toml")
        assert closed + "." not in started.stderr.replace("home " + closed, ""), "most apps have no use for it"
        assert pw.get() == "", "the script has failed after its headers"
        log = wait_until(lambda: pw.ok("logs", "api").stdout, LONG, "the traceback")
        assert f"may not enter {closed}. Use a home" in log
    finally:
        pw.ok("daemon", "stop", "-y", "--now")
        shutil.rmtree(closed)
