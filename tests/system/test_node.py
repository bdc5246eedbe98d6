"""Unmodified Node programs behind one port: strict turns, reload and restart as for Python."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.rawhttp import Client
from tests.support.wait import wait_until

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed (apt-get install nodejs)")

SERVER = """
const http = require('http');
const server = http.createServer((request, response) => {
  const body = VERSION + ' ' + process.pid;
  response.setHeader('content-length', body.length);
  const answer = () => response.end(body);
  request.url === '/slow' ? setTimeout(answer, 1000) : answer();
});
const VERSION = 'one';
server.listen(%d);
"""


NODE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "node.md"
ANNOUNCES = NODE.read_text(encoding="utf-8").partition("// idle connections")[2]  # what is said there of a server
ANNOUNCES = ANNOUNCES.partition("```")[0].partition("\n")[2]


def start(
    pw: Pyworker, source: str = SERVER, workers: int = 3, tables: str = "", balance: str = "round-robin"
) -> None:
    pw.write("server.js", source % pw.port)
    pw.write(
        "app.toml",
        f'[app]\nname = "api"\ncommand = ["node", "server.js"]\nworkers = {workers}\nbind = "127.0.0.1:{pw.port}"\n'
        f'balance = "{balance}"\n{tables}',
    )
    pw.ok("start", "app.toml")


def test_an_unmodified_node_program_shares_one_port_in_strict_turns(pw: Pyworker) -> None:
    start(pw)
    answers = [pw.get() for _ in range(30)]
    assert sorted(Counter(answers).values()) == [10, 10, 10]
    assert answers[:3] * 10 == answers


@pytest.mark.parametrize("balance", ["round-robin", "shared"])
def test_one_that_says_itself_when_it_is_ready_is_waited_for(pw: Pyworker, balance: str) -> None:
    says = """
const fs = require('fs');
const look = setInterval(() => {
  if (fs.existsSync('done')) { clearInterval(look); process.send('ready'); }
}, 20);
server.on('listening', () => process.send('listens'));
"""
    done = threading.Thread(target=start, args=(pw, SERVER + says), kwargs={"balance": balance, "tables": 'ready = "notify"\n'})
    done.start()
    wait_until(lambda: pw.run("events").stdout.count('"listens"') == 3, LONG, "all to listen")
    assert pw.app()["workers"]["ready"] == 0
    pw.write("done", "")
    done.join(LONG)
    assert pw.app()["workers"]["ready"] == 3
    assert pw.get().startswith("one")


def test_long_and_odd_messages_reach_a_clustered_worker_and_come_from_it(pw: Pyworker) -> None:
    source = "process.on('message', m => { process.send(m); process.send('\\ud800' + m.length); });\n" + SERVER
    start(pw, source, workers=1)
    before = pw.dispatcher()
    long = 'é"' * 8_000  # 64,002 bytes as a line: each character of it is escaped, on our way to the dispatcher twice
    assert pw.ok("send", "api", json.dumps(long, ensure_ascii=False)).stdout == "api.1 sent\n"
    too_long = pw.run("send", "api", json.dumps("é" * 11_000, ensure_ascii=False))
    assert (too_long.returncode, "65536 are the most" in too_long.stdout) == (1, True)

    def said() -> list[dict[str, Any]]:
        events = [json.loads(line) for line in pw.ok("events", "api", "--json", "-n", "100").stdout.splitlines()]
        return [e["data"] for e in events if e["type"] == "worker_message"]

    echo, odd = wait_until(lambda: found if len(found := said()) == 2 else None, LONG, "what it says")
    assert (echo["cut"], echo["size"], echo["message"][:6]) == (True, 24_002, '"é\\"é\\')
    assert odd["message"] == "?16000"
    assert pw.dispatcher() == before, pw.daemon_log()


def test_a_clustered_worker_that_floods_is_not_heard_to_the_end_but_serves(pw: Pyworker) -> None:
    start(pw, "for (let i = 0; i < 3000; i++) process.send(i);\n" + SERVER, workers=1)
    assert pw.get().startswith("one")

    wait_until(lambda: "says more than 50 messages a second" in pw.ok("events", "api").stdout, LONG, "a word of it")
    events = [json.loads(line) for line in pw.ok("events", "api", "--json", "-n", "1000").stdout.splitlines()]
    heard = [e["data"]["message"] for e in events if e["type"] == "worker_message"]
    assert heard[:200] == list(range(200))
    assert len(heard) < 3000


@pytest.mark.parametrize("balance", ["round-robin", "shared"])
def test_reload_and_scale_lose_no_request_and_old_connections_end_by_themselves(pw: Pyworker, balance: str) -> None:
    start(pw, workers=2, balance=balance)
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client, Load(pw.port, "new", "new") as load:
        client.send(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
        load.wait_more(20)
        pw.write("server.js", SERVER.replace("'one'", "'two'") % pw.port)
        pw.ok("reload", "api")
        load.wait_more(20)
        answer = client.recv()
        assert answer is not None
        assert answer.body.startswith(b"one")
        pw.ok("scale", "api=3")
        load.wait_more(20)
        pw.ok("scale", "api=1")
        load.wait_more(20)
    assert load.lost == []
    assert pw.get().startswith("two")


@pytest.mark.parametrize("balance", ["round-robin", "shared"])
def test_a_server_that_keeps_its_idle_connections_to_their_next_answer_loses_no_request_on_them(pw: Pyworker, balance: str) -> None:
    start(pw, SERVER + ANNOUNCES, workers=2, balance=balance)
    with Load(pw.port, *["keep"] * 8) as load:
        for _ in range(3):
            load.wait_more(200)
            pw.ok("reload", "api")
            load.wait_more(200)
    assert load.lost == []


def test_a_shared_program_may_listen_on_more_than_bind_names(pw: Pyworker) -> None:
    other = pw.another_port()
    start(pw, SERVER + f"http.createServer((request, response) => response.end('other')).listen({other}, '127.0.0.1');\n", balance="shared")
    assert (pw.get()[:3], pw.get(port=other)) == ("one", "other")


def test_a_shared_worker_that_stays_alive_for_other_reasons_is_stopped_when_its_connections_have_ended(
    pw: Pyworker,
) -> None:
    start(pw, SERVER + "setInterval(() => {}, 1000);\n", workers=1, balance="shared", tables="[app.stop]\ndrain_timeout = '100s'")
    (old,) = pw.pids()
    pw.ok("reload", "api")
    wait_until(lambda: not os.path.exists(f"/proc/{old}"), LONG, "the old one to end")
    assert pw.get().startswith("one")


def test_a_version_that_does_not_start_gets_no_connection(pw: Pyworker) -> None:
    start(pw, workers=2)
    with Load(pw.port, "new") as load:
        load.wait_more(10)
        pw.write("server.js", "throw new Error('broken')")
        done = pw.run("reload", "api")
        assert done.returncode == 1
        assert "broken" in done.stdout + done.stderr
        load.wait_more(10)
    assert load.lost == []


def test_workers_and_dispatcher_are_replaced(pw: Pyworker) -> None:
    start(pw, workers=2)
    victim = pw.pids()[0]
    kill(victim)
    wait_until(lambda: victim not in pw.pids() and len(pw.pids()) == 2, LONG, "a successor")
    pw.wait_steady()
    assert len({pw.get() for _ in range(6)}) == 2
    before = pw.dispatcher()
    with Load(pw.port, "new", "new") as load:
        load.wait_more(20)
        kill(before)
        load.wait_more(20)
        wait_until(lambda: pw.dispatcher() not in (0, before), LONG, "another dispatcher")
        load.wait_more(20)
        kill(pw.role("daemon"))
        load.wait_more(20)
    assert len(load.lost) <= 1, load.lost  # what was in the dispatcher's hands
    wait_until(lambda: pw.run("ps").returncode == 0, LONG, "the next daemon")
    assert len({pw.get() for _ in range(6)}) == 2
    pids = pw.pids()
    pw.ok("stop", "api")
    assert pw.refuses()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_one_that_leaves_while_its_dispatcher_is_killed_leaves_in_order(pw: Pyworker) -> None:
    source = """
const fs = require('fs');
require('http').createServer((request, response) => {
  console.log('asked');
  const look = setInterval(() => {
    if (fs.existsSync('done')) { clearInterval(look); response.end('done'); }
  }, 20);
}).listen(%d);
process.on('exit', code => console.log('left with', code));
"""
    start(pw, source, workers=1)
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        wait_until(lambda: "asked" in pw.ok("logs", "api").stdout, LONG, "the request")
        pw.ok("reload", "api")
        before = pw.dispatcher()
        kill(before)
        wait_until(lambda: pw.dispatcher() not in (0, before), LONG, "another dispatcher")
        pw.write("done", "")
        answer = client.recv()
        assert answer is not None
    wait_until(lambda: "left with" in pw.ok("logs", "api").stdout, LONG, "its end")
    assert "left with 0" in pw.ok("logs", "api").stdout


def test_a_program_that_listens_elsewhere_gets_that_address_too(pw: Pyworker) -> None:
    other = pw.another_port()
    start(pw, SERVER + f"require('http').createServer((q, r) => r.end('other')).listen({other}, '127.0.0.1');\n")
    assert pw.get(port=other) == "other"
    assert pw.get().startswith("one")
