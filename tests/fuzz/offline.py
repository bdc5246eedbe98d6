"""Everything that reads bytes of others, without a process: nothing but the errors that are meant to be raised.

python -m tests.fuzz.offline --messages 1000000 --seed 1
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable

from pyworker.config.load import load
from pyworker.config.problem import ConfigError
from pyworker.logger.lines import CHUNK, Lines, Source
from pyworker.protocol import control, dispatcher, node, nodecluster, store, template, worker
from pyworker.protocol.inherited import app_of, parse_fd_name
from pyworker.protocol.logs import LogRecord, format_record, parse_record
from pyworker.protocol.stacks import parse as parse_stacks
from pyworker.protocol.wire import WireError, decode, encode, parse_json
from tests.fuzz.mutate import TRAPS, messages, mutate

UNIONS = (
    worker.FromWorker, worker.ToWorker, control.Request, control.Answer, store.ToDaemon, store.FromDaemon,
    store.ToLogger, store.FromLogger, template.ToTemplate, template.FromTemplate,
)  # fmt: skip
NODE = (
    b'{"cmd":"NODE_CLUSTER","act":"queryServer","address":null,"port":80,"addressType":4,"fd":-1,"index":0,"data":null,"seq":1}',
    b'{"cmd":"NODE_CLUSTER","act":"queryServer","port":80,"addressType":4,"seq":1,"data":"' + 30_000 * "é".encode() + b'"}',
    b'{"cmd":"NODE_CLUSTER","act":"queryServer","address":"/a","port":-1,"addressType":-1,"seq":2}',
    b'{"cmd":"NODE_CLUSTER","act":"close","key":"null:80:4:-1:0","seq":3}',
    b'{"cmd":"NODE_CLUSTER","act":"listening","address":"a","port":1,"addressType":4,"fd":1,"seq":4}',
    b'{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":5}',
    b'{"cmd":"NODE_CLUSTER","ack":1,"accepted":true,"seq":6}',
    b'{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"x"}', b'{"cmd":"NODE_HANDLE_ACK"}', b'{"cmd":"NODE_HANDLE_NACK"}', b'"ready"',
)  # fmt: skip
STAMP = "2026-11-23T11:43:35.511Z"
CONFIG = b"""
[defaults]
workers = 2
env = { A = "1", B = "${HOME:-x}" }
[apps.api]
target = "shop.main:app"
bind = ["127.0.0.1:8000", "unix:/tmp/x.sock"]
restart = { policy = "on-failure", window = "60s" }
limits = { memory = "512MB", max_requests = 1000 }
health = "/healthz"
[apps.jobs]
command = ["celery", "-A", "shop", "worker"]
stop.drain_timeout = "2m"
"""


class Fuzz:
    """One run; every `try_…` takes one mutated input and raises only when something is wrong."""

    def __init__(self, seed: int, folder: str) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._corpora = [(union, messages((union,), seed)) for union in UNIONS]
        record = LogRecord(STAMP, "api", 2, 4711, "out", partial=False, msg=b"hello \xc3\xa9 \x1b[31m")
        self._records = [format_record(record, "text"), format_record(record, "json")]
        self._config = os.path.join(folder, "app.toml")
        self._kinds: list[tuple[float, Callable[[], None]]] = [
            (0.72, self.try_wire), (0.04, self.try_node), (0.08, self.try_record), (0.08, self.try_lines), (0.04, self.try_names), (0.04, self.try_toml),
        ]  # fmt: skip

    def run(self, count: int) -> None:
        weights, kinds = zip(*self._kinds, strict=True)
        for kind in self.chance.choices(kinds, weights, k=count):
            kind()
            self.counts[kind.__name__] += 1

    def try_wire(self) -> None:
        union, corpus = self.chance.choice(self._corpora)
        data = mutate(self.chance.choice(corpus), self.chance)
        try:
            message = decode(union, data)
        except WireError as error:
            str(error).encode()  # it is shown: no lone surrogate may be in it
            self.counts["refused"] += 1
            return
        assert decode(union, encode(message)) == message

    def try_record(self) -> None:
        line = mutate(self.chance.choice(self._records), self.chance)
        record = parse_record(line)
        if record is not None:
            assert isinstance(record.msg, bytes)
            assert record.stream in ("out", "err")

    def try_lines(self) -> None:
        """However output is cut into chunks and parts, its bytes come out again, and every record is one line."""
        text = self.chance.randbytes(self.chance.choice((10, 100, 5000))).replace(b"\n", b"?")
        text = b"".join(b"\n" if self.chance.random() < 0.05 else text[i : i + 1] for i in range(len(text)))
        lines = Lines(Source("api", 1, "out", 7))
        out = b""
        rest = text
        while rest:
            size = self.chance.randrange(1, min(CHUNK, len(rest)) + 1)
            out += lines.feed(rest[:size], STAMP, "text")
            rest = rest[size:]
            if self.chance.random() < 0.3:
                out += lines.part(STAMP, "text")
        out += lines.finish(STAMP, "text")
        back = b""
        for line in out.split(b"\n")[:-1]:
            record = parse_record(line + b"\n")
            assert record is not None
            back += record.msg + (b"" if record.partial else b"\n")
        assert back in (text, text + b"\n")

    def try_node(self) -> None:
        """What a worker says on its message channel, to a dispatcher."""
        link, primary = node.Link(max_line=node.MAX_TEXT), nodecluster.Primary(hold=True)
        for _ in range(20):
            said = self.chance.choice(NODE)
            said = mutate(said, self.chance) if self.chance.random() < 0.5 else said
            came = [7] if self.chance.random() < 0.2 else []
            for event in link.feed(said + b"\n" * self.chance.choice((0, 1, 1, 1)), came):
                match event:
                    case node.Internal(value=value):
                        self._perform(primary, primary.received("api", value), link)
                    case node.Message(value=value):
                        encode(dispatcher.Said(1, *node.shown(value)))
                    case node.NotReceived(token=token):
                        self._perform(primary, primary.refused("api", token), link)
            if primary.keys and self.chance.random() < 0.2:
                self._perform(primary, primary.accepted(self.chance.choice(primary.keys), object()), link)
            while self.chance.random() < 0.9 and (frame := link.to_write()) is not None:
                link.written(len(frame.data))

    def _perform(self, primary: nodecluster.Primary, actions: list[nodecluster.Action], link: node.Link) -> None:
        for action in actions:
            match action:
                case nodecluster.Say(message=message, connection=None):
                    link.send(message)
                case nodecluster.Say(message=message, connection=connection):
                    link.send_handle(message, "net.Native", 8, connection)
                case nodecluster.Open(key=key, query=query):
                    encode(dispatcher.Wants(key, query.kind, query.address or "", query.port or 0))
                    if self.chance.random() < 0.5:
                        self._perform(primary, primary.opened(key, "127.0.0.1", 80, "IPv4"), link)
                    else:
                        self._perform(primary, primary.failed(key, 98), link)

    def try_names(self) -> None:
        text = mutate(b"ctl.api.3.2.17", self.chance).decode("latin-1")
        name = parse_fd_name(text)
        assert name is None or name.app
        assert name is None or app_of(text) == name.app
        parse_stacks(
            mutate(b'Thread 0x01 (most recent call first):\n  File "a", line 1 in f\n', self.chance).decode("latin-1")
        )
        data = self.chance.choice(TRAPS)
        try:
            parse_json(data)
        except WireError:
            pass

    def try_toml(self) -> None:
        with open(self._config, "wb") as file:
            file.write(mutate(CONFIG, self.chance))
        try:
            load(self._config, environ={"HOME": "/nowhere"})
        except ConfigError as error:
            str(error.message).encode()
            self.counts["configs refused"] += 1


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args(argv)
    print(f"fuzz: offline, seed {options.seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(options.seed, folder)
        fuzz.run(options.messages)
    took = time.monotonic() - began
    print(f"fuzz: {options.messages} inputs in {took:.0f} s, nothing broke: {dict(fuzz.counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
