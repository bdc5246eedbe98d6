"""The raw cost of what everything is made of: fork, accept, SCM_RIGHTS, Python's start. Single process, no load."""

import os
import socket
import subprocess
import sys
import time

from benchmarks.harness import peers
from benchmarks.harness.bench import Bench

_FORKS = """
import gc, os, sys, time
ballast = [bytearray(b"x" * 4096) for _ in range(int(sys.argv[1]) * 256)]
gc.collect(); gc.freeze()
def once(double):
    began = time.perf_counter()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if double and os.fork():
            os._exit(0)
        os.write(writer, b"x")
        os._exit(0)
    os.read(reader, 1)
    took = time.perf_counter() - began
    os.close(reader); os.close(writer)
    os.waitpid(pid, 0)
    return took * 1000
for double in (0, 1):
    times = sorted(once(double) for _ in range(31))
    print(times[15])
"""


def run(bench: Bench) -> None:
    fork = bench.book.measure("limits", "Raw fork and double fork until the child runs, by memory", "ms", lower_is_better=True)
    for _ in range(bench.rounds(3)):
        for size in (1, 50, 190):
            done = subprocess.run([peers.PYTHON, "-c", _FORKS, str(size)], capture_output=True, text=True, check=True)
            single, double = map(float, done.stdout.split())
            fork.add(f"fork, {size + 11} MB", single)
            fork.add(f"double fork, {size + 11} MB", double)
    rate = bench.book.measure("limits", "Raw accept and descriptor passing, one thread", "a second", lower_is_better=False)
    for _ in range(bench.rounds(3)):
        rate.add("connect + accept + close", accepts())
        rate.add("one descriptor through SCM_RIGHTS", rights())
    start = bench.book.measure("limits", "Python until its first line", "ms", lower_is_better=True)
    for _ in range(bench.rounds(9)):
        for name, command in {
            "python -c pass": ["-c", "pass"], "python -I -c pass": ["-I", "-c", "pass"],
            "python -I -c 'import socket, json'": ["-I", "-c", "import socket, json"],
            "python -I -c 'import click'": ["-I", "-c", "import click"],
        }.items():  # fmt: skip
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True)
            start.add(name, (time.perf_counter() - began) * 1000)


def accepts(count: int = 5000) -> float:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address = listener.getsockname()
        began = time.perf_counter()
        for _ in range(count):
            client = socket.socket()
            client.connect(address)
            served, _ = listener.accept()
            served.close()
            client.close()
        return count / (time.perf_counter() - began)


def rights(count: int = 20000) -> float:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.open("/dev/null", os.O_RDONLY)
    with here, there:
        began = time.perf_counter()
        for _ in range(count):
            socket.send_fds(here, [b"x"], [fd])
            _, received, _, _ = socket.recv_fds(there, 1, 1)
            os.close(received[0])
        took = time.perf_counter() - began
    os.close(fd)
    return count / took
