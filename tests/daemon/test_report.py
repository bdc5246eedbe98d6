"""daemon/report.py: each key has its own figure, in the unit that its name says. Whole trees are in tests/system."""

from __future__ import annotations

import json
import mmap
import os
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.address import parse_bind
from pyworker.config.schema import AppConfig, ResolvedApp, TlsConfig
from pyworker.daemon.app import App, Failure, Generation, Listener
from pyworker.daemon.board import Board
from pyworker.daemon.desired import DesiredApp, InlineSource
from pyworker.daemon.drops import Drops
from pyworker.daemon.events import EventLog
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.report import app_document, changed_files, describe, ps_document, waiting_document
from pyworker.daemon.sample import Figures, Served
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import Record
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.scoreboard import SIZE, AppF, F, row_slice
from pyworker.protocol.template import Loaded
from pyworker.record import replace
from tests.support.schemas import check

NOW = 1000.0
ENV = {"PATH": "/bin", "KEY": "sesame", "DB": "postgres://me:sesame@db/shop"}
LAST_EXIT = {"code": None, "signal": 9, "after_s": 1.5, "reason": "killed", "at": "2026-01-01T00:00:00.000Z"}
FIGURES = {41: Figures(12.5, 41 << 20, 3.5, 7.25), 42: Figures(1.0, 42 << 20, 0.5, 0.5)}


@pytest.fixture
def app() -> Iterator[App]:
    """Of three slots: one serves, one of the generation before leaves, one is missing."""
    config = AppConfig("api", target="web:app", command=())
    resolved = ResolvedApp(config, 3, "/usr/bin/python3", dict(ENV), ("KEY",), None, None, (), "", 0, {"PATH": "base"})
    no: Any = None
    board = Board.create("api")
    app = App("api", InlineSource({"target": "web:app"}, "/"), board, no, generation=2, running=True, closed=False)
    app.generations = {n: Generation(n, resolved) for n in (1, 2)}
    app.workers = {
        8: WorkerHandle(WorkerId("api", 2, 2, 8), held=False, born_at=890.0, started_at=1.5, ready_at=900.04, pid=42, state=State.READY),
        7: WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=700.0, started_at=0.25, pid=41, state=State.DRAINING, leaving_because="reload"),
    }
    with mmap.mmap(board.fd, SIZE) as memory, memoryview(memory).cast("B").cast("Q") as cells:
        for serial, requests, opened, in_flight in ((7, 70, 7, 5), (8, 80, 4, 2)):
            row = row_slice(board.allocate(app.workers[serial].id)).start
            cells[row + F.REQUESTS], cells[row + F.OPEN], cells[row + F.IN_FLIGHT] = requests, opened, in_flight
            cells[row + F.STATUS_2XX], cells[row + F.STATUS_5XX] = requests - 1, 1
            cells[row + F.LATENCY_SUM_US], cells[row + F.LATENCY_0 + 10] = 1_250_000, requests
    for field, value in ((AppF.RESTARTS, 6), (AppF.RELOADS, 3), (AppF.STARTED_AT, 1_500), (AppF.REQUESTS_GONE, 1_000)):
        board.set_app(field, value)
    app.record = Record(4, (930.0, 941.0, 999.0), 1004.26)
    app.slot_restarts, app.last_exits = {2: 9}, {2: dict(LAST_EXIT)}
    app.failure = Failure("no database", "Traceback", "start it", "2026-01-01T00:00:00.000Z")
    app.drops = Drops(total=11, at=NOW)
    app.notes = ["a note"]
    sock = socket.create_server(("127.0.0.1", 0), backlog=64)
    app.listeners[0] = Listener(0, parse_bind(f"127.0.0.1:{sock.getsockname()[1]}"), sock)
    yield app
    sock.close()
    board.close()


@pytest.fixture
def brain() -> Any:
    return SimpleNamespace(loop=SimpleNamespace(clock=lambda: NOW), store=SimpleNamespace(logger_pid=1), events=EventLog(-1), home="/nowhere")


@pytest.fixture
def sampler() -> Any:
    return SimpleNamespace(
        figures=lambda pid, requests, now: FIGURES[pid],
        served=lambda name, totals, now: Served(0.001, 0.25, 0.0123456789),
        pss=lambda pid: {41: 4100, 42: 4200}[pid],
        pss_lately=lambda pids, now: {41: 4100, 42: None},
    )


def test_an_app_is_told_in_figures_of_which_each_has_its_place_and_unit(brain: Any, sampler: Any, app: App) -> None:
    port = app.listeners[0].sock.getsockname()[1]
    worker = {"cpu_percent": 12.5, "cpu_s": 7.25, "rss_bytes": 41 << 20, "requests_per_s": 3.5, "health": "ok"}
    other = {"cpu_percent": 1.0, "cpu_s": 0.5, "rss_bytes": 42 << 20, "requests_per_s": 0.5, "health": "ok"}
    assert app_document(brain, sampler, app) == {
        "name": "api", "state": "degraded", "kind": "target", "gen": 2, "target": "web:app", "balance": "round-robin",
        "listen": [f"http://127.0.0.1:{port}"], "queue": [(0, 64)],
        "workers": {"want": 3, "ready": 1, "total": 2},
        "cpu_percent": 13.5, "rss_bytes": 83 << 20, "requests_per_s": 4.0, "requests": 1150, "in_flight": 7, "open_connections": 11,
        "http": {
            "p50_s": 0.001, "p99_s": 0.25, "error_share": 0.012346,
            "status": {"1xx": 0, "2xx": 148, "3xx": 0, "4xx": 0, "5xx": 2},
            "latency_sum_s": 2.5, "latency_buckets": [0] * 10 + [150] + [0] * 21,
        },
        "restarts": {"total": 6, "window": 2, "max": 10, "window_s": 60.0},
        "backoff": {"try": 4, "max": 10, "in_s": 4.3},
        "reloads": 3, "started_at": "1970-01-01T00:00:01.500Z", "uptime_s": 100.0, "next_run_at": None, "next_reload_at": None,
        "config": {"file": None, "changed": False, "changed_files": []},
        "last_failure": {"message": "no database", "traceback": "Traceback", "hint": "start it", "at": "2026-01-01T00:00:00.000Z"},
        "notes": ["a note"], "drops": 11,
        "pool": [
            {"worker": 1, "pid": 41, "state": "draining", "gen": 1, "open_connections": 7, "in_flight": 5, "requests": 70, "restarts": 0,
             "started_at": "1970-01-01T00:00:00.250Z", "uptime_s": 300.0, "last_exit": None, "reason": "reload", **worker},
            {"worker": 2, "pid": 42, "state": "ready", "gen": 2, "open_connections": 4, "in_flight": 2, "requests": 80, "restarts": 9,
             "started_at": "1970-01-01T00:00:01.500Z", "uptime_s": 100.0, "last_exit": LAST_EXIT, "reason": "", **other},
        ],
    }  # fmt: skip


def test_what_was_not_measured_is_null_and_the_memory_of_half_the_workers_is_no_sum(brain: Any, sampler: Any, app: App) -> None:
    status = {"pid": 5, "version": "1", "uptime_s": 2.5, "more": "of status"}
    document = ps_document(brain, None, [app], status)
    assert document["daemon"] == {"pid": 5, "version": "1", "uptime_s": 2.5}
    (api,) = document["apps"]
    assert (api["cpu_percent"], api["rss_bytes"], api["requests_per_s"], api["http"]["p50_s"]) == (None,) * 4
    assert "pss_bytes" not in api
    (api,) = ps_document(brain, sampler, [app], status, pss=True)["apps"]
    assert ([w["pss_bytes"] for w in api["pool"]], api["pss_bytes"]) == ([4100, None], None)


def test_of_an_app_that_was_stopped_before_a_boot_only_its_name_and_its_past_are_known(brain: Any, sampler: Any, app: App) -> None:
    app.generations, app.workers, app.listeners, app.running = {}, {}, {}, False
    told = describe(brain, sampler, app, frozenset(), reveal=False)
    check("describe", {"v": 1, "apps": [told]})
    assert told["workers"] == {"want": None, "ready": 0, "total": 0}
    assert told["restarts"] == {"total": 6, "window": 0, "max": None, "window_s": None}
    nulls = ("balance", "cpu_percent", "rss_bytes", "requests_per_s", "http", "backoff", "started_at", "uptime_s", "limits", "python", "template")
    assert [told[name] for name in nulls] == [None] * len(nulls)
    app.scale = 3
    assert app_document(brain, sampler, app)["workers"]["want"] == 3, "that is known without its config"


def test_of_a_script_no_requests_are_counted_and_of_a_template_all_is_told_that_it_found(brain: Any, sampler: Any, app: App) -> None:
    app.templates[2] = TemplateHandle("api", 2, 0.0, "ready", 43, loaded=Loaded(43, "3.11.7", "asgi", "pyworker", "uvloop", True, "", 0.5))
    told = describe(brain, sampler, app, frozenset(), reveal=False)
    assert told["kind"] == "asgi"
    assert told["template"] == {
        "state": "ready", "preload": True, "why": "", "engine": "pyworker", "loop": "uvloop", "python": "3.11.7", "pid": 43,
    }  # fmt: skip
    resolved = replace(app.generations[2].resolved, config=AppConfig("api", script="/srv/run.py", cwd="/srv", user="www", cron="* * * * *"))
    app.generations = {n: Generation(n, resolved) for n in (1, 2)}
    told = describe(brain, sampler, app, frozenset(), reveal=False)
    check("describe", json.loads(json.dumps({"v": 1, "apps": [told]})))
    assert (told["kind"], told["target"], told["script"], told["cwd"], told["user"]) == ("script", "/srv/run.py", "/srv/run.py", "/srv", "www")
    assert (told["http"], [w["requests_per_s"] for w in told["pool"]]) == (None, [None, None])
    assert told["next_run_at"].endswith(":00.000Z")


def test_an_app_that_waits_for_a_descriptor_has_the_keys_of_one_that_is_there(brain: Any, sampler: Any, app: App) -> None:
    waiting = waiting_document(DesiredApp("web", InlineSource({}, "/"), generation=4), Failure("no descriptor"))
    there = ps_document(brain, sampler, [app], {"pid": 5, "version": "1", "uptime_s": 2.5}, pss=True)
    assert waiting.keys() == there["apps"][0].keys()
    there["apps"].append(waiting)
    check("ps", json.loads(json.dumps(there)))


def test_a_description_hides_secrets_unless_they_are_asked_for_and_leaves_out_an_app_that_had_the_name(
    brain: Any, sampler: Any, app: App
) -> None:
    exited = {"generation": 2, "pid": 1, "code": 1, "signal": None, "after_s": 1.5, "reason": "crash", "traceback": "", "hint": ""}
    brain.events.emit("worker_exited", "api", 1, **exited)
    brain.events.emit("app_deleted", "api")
    for slot in (1, 2, 2):
        brain.events.emit("worker_exited", "api", slot, **exited)
    told = describe(brain, sampler, app, frozenset(), reveal=False)
    check("describe", json.loads(json.dumps({"v": 1, "apps": [told]})))
    assert {each["name"]: each["value"] for each in told["env"]} == ENV | {"KEY": "***", "DB": "postgres://me:***@db/shop"}
    assert {each["name"]: each["origin"] for each in told["env"]} == {"PATH": "base", "KEY": "", "DB": ""}
    assert [each["worker"] for each in told["exits"]] == [1, 2, 2]
    assert len(told["events"]) == 5
    assert (told["pss_bytes"], told["python"], told["log_file"]) == (8300, "/usr/bin/python3", "/nowhere/logs/api.log")
    told = describe(brain, sampler, app, frozenset({2}), reveal=True)
    assert {each["name"]: each["value"] for each in told["env"]} == ENV
    assert [each["worker"] for each in told["exits"]] == [2, 2]
    assert [each["worker"] for each in told["pool"]] == [2]
    assert len(told["events"]) == 2


def test_a_file_has_changed_when_it_says_something_else_and_not_when_it_was_touched(tmp_path: Path, app: App) -> None:
    files = {name: tmp_path / name for name in ("app.toml", "local.env", "missing.env", "cert.pem")}
    for name in ("app.toml", "local.env", "cert.pem"):
        files[name].write_text(name)
    source, env, missing, cert = map(str, files.values())
    resolved = ResolvedApp(
        AppConfig("api", target="web:app", tls=TlsConfig(cert, str(tmp_path / "key.pem"))),
        1, "", {}, (), None, None, (), source, files["app.toml"].stat().st_mtime_ns,
        crc=zlib.crc32(b"app.toml"), env_files={env: zlib.crc32(b"local.env"), missing: 0},
    )  # fmt: skip
    app.generations[2] = Generation(2, resolved, tls=(b"cert.pem", b"key", b""))
    assert changed_files(app) == []
    for name in ("app.toml", "local.env", "cert.pem"):
        os.utime(files[name], (1, 1))
    assert changed_files(app) == []
    for name, at in (("app.toml", 2), ("local.env", 3), ("cert.pem", 4)):
        files[name].write_text("other")
        os.utime(files[name], (at, at))
    missing_is_there = files["missing.env"]
    missing_is_there.write_text("A=1")
    assert changed_files(app) == [source, env, missing, cert]
    files["local.env"].unlink()
    missing_is_there.unlink()
    assert changed_files(app) == [source, env, cert]
