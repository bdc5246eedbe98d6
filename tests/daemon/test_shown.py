from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from pyworker.config.address import Address
from pyworker.config.schema import AppConfig, RestartConfig
from pyworker.daemon.app import App, Failure, Listener
from pyworker.daemon.board import WorkerStats
from pyworker.daemon.shown import LONG, addresses, long_request_note, state_word
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import Record
from pyworker.protocol.inherited import WorkerId


@pytest.mark.parametrize(
    ("cron", "state", "word"),
    [
        ("* * * * *", State.STARTING, "running"), ("* * * * *", State.READY, "running"),
        ("* * * * *", None, "scheduled"), (None, State.STARTING, "degraded"),
    ],
)  # fmt: skip
def test_a_job_runs_as_soon_as_its_run_has_begun(cron: str | None, state: State | None, word: str) -> None:
    no: Any = None
    app = App("job", no, no, no, generation=1, running=True, closed=False, scale=1)
    generation: Any = SimpleNamespace(config=AppConfig("job", command=("true",), cron=cron))
    app.generations[1] = generation
    app.fill_slots()
    if state is not None:
        worker: Any = SimpleNamespace(id=WorkerId("job", 1, 1, 7), state=state)
        app.workers[7] = worker
        app.finished_slots.clear()
    assert state_word(app) == word


@pytest.mark.parametrize(
    ("codes", "word"), [({1: 0, 2: 0}, "stopped"), ({1: 0, 2: 1}, "failed"), ({1: None}, "degraded"), ({1: 0}, "running")]
)
def test_what_is_never_restarted_has_failed_where_it_has_not_ended_with_code_0(codes: dict[int, int | None], word: str) -> None:
    no: Any = None
    app = App("migrate", no, no, no, generation=1, running=True, closed=False, scale=2)
    generation: Any = SimpleNamespace(config=AppConfig("migrate", command=("true",), restart=RestartConfig("never")))
    app.generations[1] = generation
    worker: Any = SimpleNamespace(id=WorkerId("migrate", 1, 2, 7), state=State.READY, checked=True)
    app.workers = {} if 2 in codes else {7: worker}
    app.finished_slots = set(codes)
    app.last_exits = {slot: {"code": code} for slot, code in codes.items()}
    assert state_word(app) == word


@pytest.mark.parametrize(
    ("tries", "ready_at", "word"), [(1, False, "degraded"), (1, None, "degraded"), (1, 5.0, "running"), (0, False, "running")]
)
def test_an_app_whose_template_has_failed_is_degraded_until_there_is_one(tries: int, ready_at: float | Literal[False] | None, word: str) -> None:
    no: Any = None
    app = App("api", no, no, no, generation=1, running=True, closed=False, scale=1, record=Record(tries), failure=Failure("why"))
    generation: Any = SimpleNamespace(config=AppConfig("api", target="main:app"))
    worker: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 7), state=State.READY, checked=True)
    template: Any = SimpleNamespace(ready_at=ready_at)
    app.generations, app.workers = {1: generation}, {7: worker}
    app.templates = {1: template} if ready_at is not False else {}
    assert state_word(app) == word


@pytest.mark.parametrize(
    ("threads", "progress", "oldest", "waits", "note"),
    [
        (1, 42, 0, 0, "worker 1 has been in a request for 42 s: pyworker stack api.1 shows where"),
        (1, 0, 42, 1, ""),
        (2, 0, 42, 0, ""),
        (2, 0, 42, 1, "worker 1 has been in a request for 42 s, and 1 connection waits to be accepted: pyworker stack api.1 shows where"),
        (3, 0, 42, 1, ""),
        (2, 1, 1, 1, ""),
    ],
)  # fmt: skip
def test_a_worker_that_a_request_has_taken_away_is_told(threads: int, progress: float, oldest: float, waits: int, note: str) -> None:
    no: Any = None
    now = time.monotonic()
    assert LONG < 42
    stats = WorkerStats(2, 2, 0, now - progress, now - oldest if oldest else 0.0)
    board: Any = SimpleNamespace(in_flight=lambda serial: 2, stats=lambda serial: stats)
    app = App("api", no, board, no, generation=1, running=True, closed=False)
    generation: Any = SimpleNamespace(config=AppConfig("api", target="main:app", threads=threads))
    app.generations[1] = generation
    worker: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 7), state=State.READY, health=None)
    app.workers[7] = worker
    with socket.create_server(("127.0.0.1", 0)) as sock:
        app.listeners[0] = Listener(0, no, sock)
        clients = [socket.create_connection(sock.getsockname()) for _ in range(waits)]
        notes = list(long_request_note(app))
        for client in clients:
            client.close()
    assert notes == ([note] if note else [])


def test_a_unix_socket_that_a_reload_has_made_anew_is_named_once_the_one_that_can_be_reached(tmp_path: Path) -> None:
    no: Any = None
    app, path = App("api", no, no, no), str(tmp_path / "api.sock")
    with contextlib.ExitStack() as opened:
        for index in range(2):
            sock = opened.enter_context(socket.socket(socket.AF_UNIX))
            Path(path).unlink(missing_ok=True)
            sock.bind(path)
            sock.listen()
            app.listeners[index] = Listener(index, Address("unix", path=path), sock)
        assert addresses(app) == {f"unix:{path}": app.listeners[1]}
