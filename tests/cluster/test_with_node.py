"""The channel with the real node: Node forked by pyworker, Python forked by Node, messages and handles both ways."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from pyworker import child_process
from tests.cluster.helpers import Inbox, asynchronous, needs_node
from tests.cluster.test_child_process import ECHO

pytestmark = needs_node

NODE_CHILD = """
const net = require('net');
process.on('message', (message, handle) => {
  if (message === 'give') {
    const server = net.createServer(socket => process.send('connection', socket, () => {}));
    server.listen(0, '127.0.0.1', () => process.send(server.address().port));
  } else if (!handle) process.send({echo: message});
  else if (handle instanceof net.Server) handle.on('connection', s => s.end('accepted by node'));
  else if (handle instanceof net.Socket) handle.end('written by node');
  else handle.on('message', (data, from) => handle.send(data.toString().toUpperCase(), from.port, from.address));
});
"""
NODE_PARENT = """
const {fork} = require('child_process'), net = require('net'), dgram = require('dgram');
const [script, python] = process.argv.slice(2);
const child = fork(script, [], {execPath: python});
const say = line => console.log(line);
child.on('message', message => { say('message ' + JSON.stringify(message)); next(); });
child.on('disconnect', () => say('disconnect'));
child.on('exit', (code, signal) => { say('exit ' + code); process.exit(); });
const steps = [
  () => child.send({hello: 'ü'}),
  () => { const server = net.createServer(s => { child.send('socket', s); server.close(); });
          server.listen(0, '127.0.0.1', () => net.connect(server.address().port, '127.0.0.1')
            .on('data', data => { say('' + data); next(); })); },
  () => { const server = net.createServer(() => say('not by me'));
          server.listen(0, '127.0.0.1', () => { const port = server.address().port;
            child.send('server', server, () => { server.close(); net.connect(port, '127.0.0.1')
              .on('data', data => { say('' + data); next(); }); }); }); },
  () => { const socket = dgram.createSocket('udp4');
          socket.bind(0, '127.0.0.1', () => { const port = socket.address().port;
            const peer = dgram.createSocket('udp4');
            peer.on('message', data => { say('' + data); peer.close(); next(); });
            child.send('udp', socket, () => { socket.close(); peer.send('datagram', port, '127.0.0.1'); }); }); },
  () => child.disconnect(),
];
const next = () => steps.shift()();
next();
"""


@asynchronous
async def test_a_node_program_forked_by_python(tmp_path: Path) -> None:
    (tmp_path / "child.js").write_text(NODE_CHILD)
    child = child_process.fork(tmp_path / "child.js")
    inbox = Inbox(child)
    child.send({"a": [1, "ü"]})
    assert await inbox.next() == {"echo": {"a": [1, "ü"]}}

    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    await child.deliver("server", listener)
    for _ in range(2):
        with socket.create_connection(address) as client:
            assert await asyncio.to_thread(client.recv, 100) == b"accepted by node"

    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    await child.deliver("socket", accepted)
    with client:
        assert await asyncio.to_thread(client.recv, 100) == b"written by node"

    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"datagram", udp.getsockname())
        await child.deliver("udp", udp)
        assert await asyncio.to_thread(peer.recv, 100) == b"DATAGRAM"

    with tempfile.TemporaryFile() as file, pytest.raises(TypeError, match="Node has no way to take this handle"):
        child.send("file", file)

    child.send("give")
    port = await inbox.next()
    with socket.create_connection(("127.0.0.1", port)) as client:
        message, handle = await inbox.next_handle()
        assert message == "connection"
        handle.sendall(b"by python, for node")
        handle.close()
        assert await asyncio.to_thread(client.recv, 100) == b"by python, for node"
    child.kill("SIGKILL")
    await child.wait_closed()


@asynchronous
async def test_a_python_program_forked_by_node(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(ECHO)
    (tmp_path / "parent.js").write_text(NODE_PARENT)
    result = await child_process.exec_file(
        "node", [str(tmp_path / "parent.js"), str(tmp_path / "child.py"), sys.executable], timeout=40
    )
    assert result.stdout.splitlines() == [
        'message {"echo":{"hello":"ü"}}',
        "written by the child",
        "accepted by the child",
        "DATAGRAM",
        "disconnect",
        "exit 0",
    ]


@asynchronous
async def test_a_python_program_says_why_it_cannot_talk_to_a_node_that_serializes_otherwise(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "from pyworker import process\ntry:\n    process.send('x')\nexcept ConnectionError as error:\n    print(error)"
    )
    (tmp_path / "parent.js").write_text(
        "require('child_process').fork(process.argv[2], [], {execPath: process.argv[3], serialization: 'advanced'})"
    )
    result = await child_process.exec_file(
        "node", [str(tmp_path / "parent.js"), str(tmp_path / "child.py"), sys.executable], timeout=40
    )
    assert "only serialization: 'json' is understood" in result.stdout
