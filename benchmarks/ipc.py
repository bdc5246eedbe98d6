"""Messages/s and handles/s over the channel, pyworker's beside node's, on this machine in this run.

    python benchmarks/ipc.py [--seconds 3]

One echo at a time (round trips), a stream of one-way messages of 100 bytes, and connections handed to the child one by
one, each acknowledged. Best of three. Python's child is read by a thread; its parent is asyncio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pyworker import child_process  # noqa: E402

PYTHON_CHILD = """
import sys, threading
from pyworker import process
count = 0
ended = threading.Event()
def got(message, handle):
    global count
    if handle is not None:
        handle.close()
        count += 1
    elif message == "echo":
        process.send(message)
    elif message == "count":
        process.send(count)
        count = 0
    else:
        count += 1
process.on("message", got)
process.on("disconnect", ended.set)
ended.wait()
"""
NODE_CHILD = """
let count = 0;
process.on('message', (message, handle) => {
  if (handle) { handle.close ? handle.close() : handle.destroy(); count++; }
  else if (message === 'echo') process.send(message);
  else if (message === 'count') { process.send(count); count = 0; }
  else count++;
});
"""
NODE_PARENT = """
const {fork} = require('child_process'), net = require('net');
const [child_path, seconds] = process.argv.slice(2);
const child = fork(child_path), end = +seconds * 1000;
const answer = () => new Promise(done => child.once('message', done));
const sent = (message, handle) => new Promise(done => child.send(message, handle, done));
(async () => {
  child.send('echo'); await answer();
  let begin = Date.now(), n = 0;
  while (Date.now() - begin < end) { child.send('echo'); await answer(); n++; }
  const trips = n * 1000 / (Date.now() - begin);
  const text = 'x'.repeat(100);
  begin = Date.now(); n = 0;
  while (Date.now() - begin < end) { for (let i = 0; i < 200; i++) child.send(text); await sent(text); n += 201; }
  child.send('count'); await answer();
  const messages = n * 1000 / (Date.now() - begin);
  const server = net.createServer(); await new Promise(done => server.listen(0, '127.0.0.1', done));
  begin = Date.now(); n = 0;
  while (Date.now() - begin < end) { await sent('take', server); n++; }
  child.send('count'); await answer();
  console.log(JSON.stringify({trips, messages, handles: n * 1000 / (Date.now() - begin)}));
  server.close(); child.disconnect();
})();
"""


async def python(child_path: str, seconds: float) -> dict[str, float]:
    """The same three measurements with pyworker."""
    child = child_process.fork(child_path)
    answers = child.messages()
    child.send("echo")
    await anext(answers)
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        child.send("echo")
        await anext(answers)
        count += 1
    trips = count / (time.monotonic() - begin)
    text = "x" * 100
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        for _ in range(200):
            child.send(text)
        await child.drain()
        count += 200
    child.send("count")
    assert await anext(answers) == count
    messages = count / (time.monotonic() - begin)
    begin, count = time.monotonic(), 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        while time.monotonic() - begin < seconds:
            await child.deliver("take", server, keep_open=True)
            count += 1
        child.send("count")
        assert await anext(answers) == count
    handles = count / (time.monotonic() - begin)
    child.disconnect()
    await child.wait_closed()
    return {"trips": trips, "messages": messages, "handles": handles}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each of the measurements")
    seconds = parser.parse_args().seconds
    node = shutil.which("node")
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, text in (("child.py", PYTHON_CHILD), ("child.js", NODE_CHILD), ("parent.js", NODE_PARENT)):
            paths[name] = str(pathlib.Path(folder, name))
            pathlib.Path(paths[name]).write_text(text)
        rows = {"pyworker -> pyworker": best([asyncio.run(python(paths["child.py"], seconds)) for _ in range(3)])}
        if node is not None:
            rows["pyworker -> node"] = best([asyncio.run(python(paths["child.js"], seconds)) for _ in range(3)])
            command = [node, paths["parent.js"], paths["child.js"], str(seconds)]
            runs = [subprocess.run(command, check=True, capture_output=True, timeout=60).stdout for _ in range(3)]
            rows["node -> node"] = best([json.loads(run) for run in runs])
    print(f"{'':22}{'round trips/s':>16}{'messages/s':>14}{'handles/s':>13}")
    for name, row in rows.items():
        print(f"{name:22}{row['trips']:>16,.0f}{row['messages']:>14,.0f}{row['handles']:>13,.0f}")
    if node is None:
        print("node is not installed: its figures are left out")


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the best of each figure."""
    return {name: max(run[name] for run in runs) for name in runs[0]}


if __name__ == "__main__":
    main()
