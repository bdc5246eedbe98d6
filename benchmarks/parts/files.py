"""A WSGI app that answers with a file: how fast it comes, what it costs, and who answers others while many take it slowly."""

import contextlib
import socket
import time

from benchmarks.apps.hello import FILE_SIZE
from benchmarks.harness import procs
from benchmarks.harness.bench import Bench
from benchmarks.harness.load import ask
from benchmarks.harness.servers import Running, Spec

GIVE_UP = 2.0  # seconds without an answer


def run(bench: Bench) -> None:
    one, eight = Spec(kind="wsgi"), Spec(kind="wsgi", threads=8)
    contenders = {
        "pyworker": one, "pyworker 8 threads": eight, "gunicorn": one, "gunicorn gthread 8 threads": eight, "uwsgi": one,
        "granian": one, "granian 8 threads": eight,
    }  # fmt: skip
    size = f"{FILE_SIZE >> 20} MB"
    rate = bench.book.measure("files", f"WSGI: a file of {size}", "MB/s", lower_is_better=False)
    cpu = bench.book.measure("files", f"WSGI: a file of {size}, CPU of the server", "ms", lower_is_better=True)
    title = f"WSGI: another request while 64 clients do not take such a file (given up after {GIVE_UP:g} s)"
    beside = bench.book.measure("files", title, "ms", lower_is_better=True)
    with bench.running(contenders) as running:

        def one_file(name: str) -> None:
            pids = running[name].pids()
            before, began = procs.usage(pids), time.monotonic()
            take(running[name].port)
            took = time.monotonic() - began
            rate.add(name, (FILE_SIZE >> 20) / took)
            cpu.add(name, (procs.usage(pids).cpu - before.cpu) * 1000)

        bench.in_turns(list(running), bench.rounds(8), one_file)
        bench.in_turns(list(running), bench.rounds(2), lambda name: beside.add(name, wait_beside(running[name])))


def take(port: int) -> None:
    """Ask for the file and read all of it."""
    buffer = bytearray(1 << 20)
    with socket.create_connection(("127.0.0.1", port), 30) as conn:
        conn.sendall(b"GET /file HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        got = 0
        while count := conn.recv_into(buffer):
            got += count
    if got < FILE_SIZE:
        raise OSError(f"{got} bytes of {FILE_SIZE}")


def wait_beside(server: Running) -> float:
    """Return the median of ten waits in ms, while 64 clients have asked for the file and take none of it."""
    waits = []
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            conn = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
            conn.sendall(b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.0)  # by then the server has filled all that its clients' sockets hold
        for _ in range(10):
            began = time.monotonic()
            with contextlib.suppress(OSError):
                ask(server.port, timeout=GIVE_UP)
            waits.append((time.monotonic() - began) * 1000)
    return sorted(waits)[5]
