"""The four service models of "Node.js in depth", measured: synchronous, pre-forked, threaded, event-driven.

    python benchmarks/service_models.py

A request takes N seconds. One process that serves one at a time has a throughput of 1/N; M pre-forked processes M/N;
M processes of L threads M*L/N; an event loop is bound by the CPU alone. A request that waits (sleeps) shows that; one that
computes shows the limit that no model passes: the CPUs, and for threads of Python its one interpreter lock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pyworker.cluster import Cluster  # noqa: E402

SERVER = """
import asyncio, http.server, socketserver, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
model, port, seconds, work, threads = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], int(sys.argv[5])
RESPONSE = b"HTTP/1.0 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok"
def spend():
    if work == "waits":
        time.sleep(seconds)
    else:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(65536)
        spend()
        self.request.sendall(RESPONSE)
class Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 512
class Threaded(Server):
    pool = ThreadPoolExecutor(threads)
    def process_request(self, request, address):
        self.pool.submit(self.one, request, address)
    def one(self, request, address):
        try:
            self.finish_request(request, address)
        finally:
            self.shutdown_request(request)
async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    if work == "waits":
        await asyncio.sleep(seconds)
    else:
        spend()
    writer.write(RESPONSE)
    writer.close()
async def events():
    async with await asyncio.start_server(answer, "127.0.0.1", port, backlog=1024) as server:
        await server.serve_forever()
if model == "events":
    asyncio.run(events())
else:
    (Threaded if threads > 1 else Server)(("127.0.0.1", port), Handler).serve_forever()
"""


async def throughput(port: int, clients: int, seconds: float) -> float:
    """Requests per second with so many clients, each asking again when it is answered."""
    end = time.monotonic() + seconds
    done = 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                if (await reader.read()).endswith(b"ok") and time.monotonic() < end:
                    done += 1
                writer.close()

    begin = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (end - begin)


async def measure(
    script: str, model: str, processes: int, threads: int, clients: int, told: argparse.Namespace
) -> float:
    """Run a model as a cluster of that many processes, and load it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Cluster()
    args = [model, str(port), str(told.n), told.work, str(threads)]
    # one listener for all is what pre-forked servers have; nobody stands between client and worker
    made.setup_primary(script, args, workers=processes, scheduling="none", restart={"policy": "never"})
    listening = asyncio.Semaphore(0)
    made.on("listening", lambda worker, address: listening.release())
    await made.start()
    try:
        async with asyncio.timeout(30):
            for _ in range(processes):
                await listening.acquire()
        return await throughput(port, clients, told.seconds)
    finally:
        for worker in list(made.workers.values()):
            worker.kill(signal.SIGKILL)
        await made.disconnect()


async def run(told: argparse.Namespace) -> None:
    """Measure each model with work that waits and work that computes."""
    cpus = len(os.sched_getaffinity(0))
    m, threads, n = told.m, told.threads, told.n
    with tempfile.TemporaryDirectory() as folder:
        script = str(pathlib.Path(folder, "server.py"))
        pathlib.Path(script).write_text(SERVER)
        print(f"a request takes N = {n} s; M = {m} processes, L = {threads} threads, {cpus} CPUs\n")
        print(f"{'model':34}{'formula':>10}{'expected/s':>12}{'measured/s':>12}")
        for work in ("waits", "computes"):
            told.work = work
            bound = cpus / n
            rows = [
                ("synchronous, 1 process", "1/N", 1 / n, "sync", 1, 1, 8),
                ("pre-forked, M processes", "M/N", m / n, "sync", m, 1, 4 * m),
                ("threads, M processes x L", "M*L/N", m * threads / n, "threads", m, threads, 4 * m * threads),
                ("event-driven, 1 process", "CPU", told.clients / n, "events", 1, 1, told.clients),
                ("event-driven, M processes", "CPU", told.clients / n, "events", m, 1, told.clients),
            ]
            for name, formula, expected, model, processes, per, clients in rows:
                if work == "computes":
                    # a thread of Python computes only while it has its process's interpreter lock
                    formula, expected = f"<= {min(processes, cpus)}/N", min(processes / n, bound)
                elif model == "events":
                    formula = f"{told.clients}/N"
                clients = min(clients, 4 * processes) if work == "computes" else clients
                measured = await measure(script, model, processes, per, clients, told)
                print(f"{name + ', ' + work:34}{formula:>10}{expected:>12,.0f}{measured:>12,.0f}", flush=True)
            print()
    print(f"event-driven, waits: {told.clients} clients ask at once; up to the CPU's limit all are served at once")


def main() -> None:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("-n", type=float, default=0.05, help="seconds that a request takes")
    parser.add_argument("-m", type=int, default=4, help="processes")
    parser.add_argument("-l", "--threads", type=int, default=8)
    parser.add_argument("--clients", type=int, default=100, help="of the event-driven model")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
