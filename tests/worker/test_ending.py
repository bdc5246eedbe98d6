"""What a worker still does at its end, and what it leaves to the operating system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyworker.protocol.worker import Drain, Drained, Hello, Ready
from tests.worker.conftest import get

pytestmark = pytest.mark.usefixtures("no_fd_is_left")

SHOP = """
import atexit, io, threading

class Odd(io.TextIOWrapper):
    def flush(self):
        raise RuntimeError("its owner has a bug")

odd = Odd(open("odd", "wb"))
early = open("early", "w")
closed = open("closed", "w")
dropped = open("dropped", "w")
binary = open("binary", "wb")
atexit.register(print, "at exit")
over = threading.Event()
atexit.register(over.set)
threading._register_atexit(print, "threads are asked to end")

def wsgi(environ, start_response):
    global late, dropped
    late = open("late", "w")
    late.write("written late")
    early.write("written early")
    binary.write(b"bytes")
    closed.close()
    del dropped
    threading.Thread(target=lambda: (early.write(", and by a thread"), print("thread"))).start()
    threading.Thread(target=over.wait, daemon=True).start()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.parametrize("preload", ["auto", False])
def test_threads_end_what_is_registered_runs_and_open_files_are_written(daemon: Any, folder: Path, preload: Any) -> None:
    (folder / "shop.py").write_text(SHOP)
    d = daemon(target="shop:wsgi", preload=preload)
    template = d.load()
    assert d.loaded.preload is (preload == "auto")
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert get(d.listeners[0].getsockname()) == b"ok"
    worker.send(Drain(5.0, False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0
    *first, last = worker.read_out().decode().splitlines()
    assert sorted(first) == ["thread", "threads are asked to end"]
    assert last == "at exit"
    assert worker.read_err() == b""
    written = {path.name: path.read_text() for path in folder.iterdir() if path.suffix == "" and path.is_file()}
    assert written == {
        "early": "written early, and by a thread",
        "late": "written late",
        "binary": "bytes",
        "closed": "",
        "dropped": "",
        "odd": "",
    }


def test_what_raises_as_threads_are_asked_to_end_is_told_and_all_else_ends_in_order(daemon: Any, folder: Path) -> None:
    (folder / "late.py").write_text(
        "import atexit, threading\n"
        "from shop import app\n"
        "threading._register_atexit(lambda: 1 / 0)\n"
        'atexit.register(print, "at exit")\n'
    )
    d = daemon(target="late:app")
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    worker.expect(Ready)
    worker.send(Drain(5.0, False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0
    assert worker.read_out().endswith(b"at exit\n")
    assert worker.read_err().endswith(b"ZeroDivisionError: division by zero\n")


def test_the_memory_that_a_worker_shares_is_not_copied_at_its_end(daemon: Any, folder: Path) -> None:
    (folder / "large.py").write_text("from shop import app\n\nmemory = [[number] for number in range(500_000)]\n")
    d = daemon(target="large:app")
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    before = int(Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[7])  # minor faults
    worker.send(Drain(5.0, False))
    worker.expect(Drained)
    _, status, usage = os.wait4(worker.pid, 0)
    d.pids.discard(worker.pid)
    assert status == 0
    assert usage.ru_minflt - before < 4000  # of some 12,000 pages
