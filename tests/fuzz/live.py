"""A live daemon and what it may be sent: by anybody who may open its sockets, and by a worker on its own channel.

    python -m tests.fuzz.live --messages 200000 --seed 1

Afterwards the daemon is the same process with the same fds and as much memory, and another app has been served throughout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from typing import Any

import psutil

from pyworker import __version__
from pyworker.protocol import control, worker
from pyworker.protocol.wire import WireError, decode_value, encode
from tests.fuzz.mutate import messages, mutate, sample
from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, open_fds, running
from tests.support.rawhttp import Client
from tests.support.sources import ASGI
from tests.support.wait import wait_until

HARMLESS = (control.Ps, control.Describe, control.Status, control.Follow, control.Stack)
GROWTH = 5.0  # MB
WARM = 20_000  # messages until the 256 patterns that fnmatch keeps and the 500 events that the daemon keeps are nearly there
EVIL = """
import os, socket

def channel():
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if found.type == socket.SOCK_SEQPACKET:
            return found
        found.close()

def app(environ, start_response):
    with channel() as found:
        found.settimeout(2)
        for packet in environ["wsgi.input"].read().split(b"\\0\\0\\0"):
            found.send(packet)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


class Live:
    """One daemon with two apps: `api`, which must not notice anything, and `evil`, whose worker says what it is told to."""

    def __init__(self, pw: Pyworker, seed: int) -> None:
        self.pw, self.chance = pw, random.Random(seed)
        self.evil_port = pw.another_port()
        pw.api(ASGI, workers=2)
        pw.write("evil.py", EVIL)
        pw.write(
            "evil.toml",
            f'[app]\nname = "evil"\ntarget = "evil:app"\nbind = "127.0.0.1:{self.evil_port}"\n'
            '[app.restart]\nmin_uptime = "0s"\n[app.http]\nkeepalive_timeout = "0s"\n',
        )
        pw.ok("start", "app.toml")
        pw.ok("start", "evil.toml")
        self._requests = messages((control.Request,), seed)
        self._said = [
            encode(sample(kind, self.chance))
            for kind in (worker.Notice, worker.Hello, worker.Accepting, worker.Drained)
        ]

    def call(self) -> bytes:
        """Return a mutated request that would do no harm if it were understood."""
        while True:
            request = self.chance.choice(self._requests)
            if self.chance.random() < 0.5:
                request = mutate(request, self.chance)
            try:
                whole = {"type": "call", "protocol": 1, "version": __version__, "request": json.loads(request)}
                data = json.dumps(whole).encode()
            except (ValueError, RecursionError):
                data = request
            if self.chance.random() < 0.5:
                data = mutate(data, self.chance)
            if not _acts(data):
                return data + b"\n"

    def ask(self) -> None:
        """One client of the control socket, polite or not."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LONG)
            client.connect(os.path.join(self.pw.home, "control.sock"))
            with contextlib.suppress(ConnectionError):
                data = self.call()
                if self.chance.random() < 0.1:
                    cut = self.chance.randrange(len(data))
                    client.sendall(data[:cut])  # and leaves
                    return
                client.sendall(data)
                if self.chance.random() < 0.2 and b'"follow"' not in data:  # who follows may hear nothing for ever
                    assert client.recv(65536)[:1] in (b"{", b"")

    def notify(self) -> None:
        """A datagram that claims to be a command's."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError, OSError):
                client.sendto(mutate(b"READY=1\nSTATUS=x", self.chance), os.path.join(self.pw.home, "notify.sock"))

    def speak(self, packets: list[bytes]) -> None:
        """Have the evil worker say this on its channel."""
        with contextlib.suppress(OSError), Client(("127.0.0.1", self.evil_port), timeout=LONG) as client:
            client.post("/", b"\0\0\0".join(packets))

    def run(self, count: int) -> int:
        """Send so many messages; return how many workers had to be killed."""
        broken = max(3, min(200, count // 1000))
        said = 0
        for number in range(count):
            if number % (count // broken) == 0:
                self.speak([mutate(self.chance.choice(self._said), self.chance).replace(b"\0\0\0", b"") or b"?"])
            elif number % 50 == 0:
                self.speak([self.chance.choice(self._said) for _ in range(20)])
                said += 19
            elif number % 5 == 0:
                self.notify()
            else:
                self.ask()
        return broken

    def figures(self) -> dict[str, Any]:
        """What must not change. Measured when all clients have been forgotten."""
        self.pw.wait_steady("evil")
        self.pw.wait_steady("api")
        wait_until(lambda: len(self.pw.spares()) == 2, LONG, "a spare of each")  # its pidfd is in all three
        status = self.pw.status()
        found = {"api": self.pw.pids("api"), "pids": [status[k] for k in ("pid", "guardian_pid", "logger_pid")]}
        counts: list[int] = []

        def same_twice() -> bool:
            now = [open_fds(pid) for pid in found["pids"]]
            counts.append(sum(now))
            found["fds"] = now
            return len(counts) > 20 and len(set(counts[-20:])) == 1

        wait_until(same_twice, LONG, "the number of fds to be steady")
        return found

    def memory(self) -> float:
        return psutil.Process(self.pw.role("daemon")).memory_info().rss / 2**20


def _acts(data: bytes) -> bool:
    """True for a request that would start, stop or change something; asked of pyworker's own decoder."""
    try:
        call = json.loads(data)
        request = decode_value(control.Request, call["request"])
    except (WireError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return not isinstance(request, HARMLESS)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended so it leaves nothing running, too
    print(f"fuzz: live, seed {options.seed}", flush=True)
    with running() as pw:
        wrong = run(pw, options.messages, options.seed)
    for text in wrong:
        print(f"  {text}")
    return int(bool(wrong))


def run(pw: Pyworker, count: int, seed: int) -> list[str]:
    """Fuzz a daemon; return what is wrong with it afterwards."""
    live = Live(pw, seed)
    live.run(min(WARM, count // 4))
    before, memory = live.figures(), live.memory()
    began = time.monotonic()
    lost: list[str] = []
    served = 0
    with Load(pw.port, "new", "keep") as load:
        killed = live.run(count)
        served, lost = load.done, load.lost
    after, grown = live.figures(), live.memory() - memory
    took = time.monotonic() - began
    print(
        f"fuzz: {count} messages in {took:.0f} s, {killed} of them broke a worker's protocol; daemon, guardian and logger "
        f"{after['pids']}, fds {after['fds']}, memory {grown:+.1f} MB; the other app answered {served} requests, {len(lost)} lost"
    )
    wrong = [f"{key}: {before[key]} became {after[key]}" for key in before if before[key] != after[key]]
    wrong += [f"lost: {text}" for text in lost[:5]]
    if grown > GROWTH:
        wrong.append(f"the daemon has grown by {grown:.1f} MB")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
