"""64 lasting connections over 4 workers: how even is it."""

from collections import Counter

from benchmarks.harness.bench import Bench
from benchmarks.harness.load import ask
from benchmarks.harness.servers import Running, Spec, start


def spread(running: Running, connections: int) -> list[int]:
    """Open connections one after another, keep them, and count them by the process that answers on each."""
    import socket

    owners: Counter[int] = Counter()
    opened = []
    try:
        for _ in range(connections):
            conn = socket.create_connection(("127.0.0.1", running.port), 5)
            opened.append(conn)
            conn.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
            data = b""
            while not data.partition(b"\r\n\r\n")[2].isdigit():
                part = conn.recv(4096)
                if not part:
                    raise OSError("closed")
                data += part
            owners[int(data.partition(b"\r\n\r\n")[2])] += 1
    finally:
        for conn in opened:
            conn.close()
    return sorted(owners.values(), reverse=True)


def run(bench: Bench) -> None:
    measure = bench.book.measure("lasting", "64 lasting connections over 4 workers: most on one worker", "connections", lower_is_better=True)
    asgi = Spec(workers=4)
    contenders = {
        "pyworker": asgi, "uvicorn": asgi, "granian": asgi, "gunicorn gthread": Spec(kind="wsgi", workers=4, threads=32),
        "node (round robin)": asgi, "pm2": asgi,
    }  # fmt: skip
    for name, spec in contenders.items():
        with bench.attempt(name):
            running = start(name, spec)
            try:
                running.workers_seen(4, tries=400)
                ask(running.port)
                for _ in range(bench.rounds(3)):
                    counts = spread(running, 64)
                    measure.add(name, counts[0], "/".join(map(str, [*counts, 0, 0, 0][:4])))
            finally:
                running.stop()
    measure.goal("16/16/16/16", lambda m: m("pyworker") == 16)
