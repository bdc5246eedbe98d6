"""daemon/app.py and handles.py: what the next daemon knows of an app. Whole trees are in tests/system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, ResolvedApp, RestartConfig
from pyworker.daemon.app import App, Failure, Generation
from pyworker.daemon.desired import InlineSource
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.ledger import Ledger
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import Record
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.template import Loaded
from pyworker.record import fields

# Each field is listed once, in one of two tables: who adds one has to say whether the next daemon knows it.
RECORD = Record(3, (1.5, 2.5), 9.5, True, True)
APP: dict[str, Any] = {
    "generation": 4, "last_generation": 6, "last_serial": 17, "wanted": True, "running": True, "stopped_slots": {2},
    "finished_slots": {3}, "scale_before": (5, "auto"), "target": 5, "previous": 3, "soak_until": 7.5, "soak_deaths": 1,
    "starting": True, "started_at": 1.25, "restored": True, "hurry": True, "listening": False,
    "restart_to": 6, "delete_when_closed": True, "delete_logs": True, "record": RECORD, "template_record": RECORD,
    "dispatcher_record": RECORD, "failure": Failure("m", "t", "h", "a"), "reload_from": 3, "reload_started_at": 6.5, "reload_why": "w", "reload_base": (12, 3),
    "notes": ["a note"], "last_exits": {1: {"reason": "r"}}, "slot_restarts": {1: 2}, "codes": {4: "abc"}, "codes_at": {4: 5}, "saved": (8, 9), "unusable": True,
}  # fmt: skip
APP_FROM_ELSEWHERE = {
    "name": "apps.json", "source": "apps.json", "scale": "apps.json", "scale_base": "apps.json",
    "board": "the store", "ledger": "the store", "generations": "the store", "listeners": "the store", "workers": "the store",
    "templates": "the store", "dispatcher": "the store",
    "closed": "seen anew", "gated": "seen anew", "blocked": "seen anew", "stops_after": "seen anew", "compared": "seen anew",
    "target_failure": "a reload that was under way is given up", "start_failure": "carried out in the turn that found it",
    "given_up": "carried out in the turn that was told", "refused": "for those who wait, and they wait for this daemon",
    "drops": "the logger tells it", "given_env": "nobody, as at a boot: values are in no file",
    "left_behind": "nobody: what the import of a template that has ended had started would stay",
}  # fmt: skip
WORKER: dict[str, Any] = {
    "state": State.DRAINING, "since": 2.5, "born_at": 1.5, "started_at": 1.75, "ready_at": 2.0, "held": True, "pid": 4711, "recycle": "memory",
    "can_wait": True, "checked": False, "gone_go": True, "bound": True, "waits_to_bind": ("inet", "127.0.0.1", 80), "leaving_because": "stop",
    "leaving_at": 3.5, "queries": ["q"], "asked_by": 82, "port": 81, "version": "0.0.9",
}  # fmt: skip
WORKER_FROM_ELSEWHERE = {
    "id": "the name of its descriptors", "ctl": "the store", "health": "begins anew", "settling": "begins anew", "talk": "begins anew",
    "noted": "begins anew", "untold": "said by the adoption itself", "direct": "for its first seconds, and the next daemon asks the kernel", "lost": "its pidfd was never had",
    "launching": "the launcher dies with the daemon that has asked",
    "failure": "its last words say it, too", "drained": "counts requests of its drain, for an event", "shortage": "its pidfd tells the end",
    "status": "it has ended: the pidfd tells it again", "reaped": "found out again", "ended_at": "found out again", "alive_at": "found out again",
}  # fmt: skip
GENERATION: dict[str, Any] = {"listeners": (1, 0), "tls": (b"cert\xff", b"key", b"ca")}
GENERATION_FROM_ELSEWHERE = {
    "number": "the descriptor's name", "resolved": "compared below", "prepared": "whatever lives was prepared",
    "by": "said as it begins, by the daemon that was asked",
}  # fmt: skip
TEMPLATE: dict[str, Any] = {"since": 4.5, "state": "ready", "ready_at": 3.5, "pid": 4712, "loaded": Loaded(4712, "3.11.7", "asgi", "e", "uvloop", True, "", 0.5)}
TEMPLATE_FROM_ELSEWHERE = {
    "app": "the descriptor's name", "generation": "the descriptor's name", "channel": "the store", "failure": "it is asked again",
    "killed_because": "its pidfd tells the end", "shortage": "its pidfd tells the end", "ended": "its pidfd tells the end", "unanswered": "begins anew",
    "asked": "begins anew", "talk": "begins anew",
}  # fmt: skip


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    fd = Ledger.create("api")
    made = Ledger(fd)
    yield made
    made.close()
    os.close(fd)


def app_of(ledger: Ledger) -> App:
    board: Any = None
    return App("api", InlineSource({}, "/srv"), board, ledger)


@pytest.mark.parametrize(
    ("kind", "remembered", "elsewhere"),
    [
        (App, APP, APP_FROM_ELSEWHERE), (WorkerHandle, WORKER, WORKER_FROM_ELSEWHERE),
        (Generation, GENERATION, GENERATION_FROM_ELSEWHERE), (TemplateHandle, TEMPLATE, TEMPLATE_FROM_ELSEWHERE),
    ],
)  # fmt: skip
def test_of_each_fact_it_is_said_whether_the_next_daemon_knows_it(kind: Any, remembered: dict[str, Any], elsewhere: dict[str, str]) -> None:
    assert {field.name for field in fields(kind)} == {*remembered, *elsewhere}
    assert not {*remembered} & {*elsewhere}


def test_the_next_daemon_knows_what_this_one_knew(ledger: Ledger) -> None:
    app = app_of(ledger)
    worker = WorkerHandle(WorkerId("api", 4, 1, 17), held=False, born_at=0.0)
    template = TemplateHandle("api", 4, 0.0)
    for each, facts in ((app, APP), (worker, WORKER), (template, TEMPLATE)):
        for name, value in facts.items():
            assert getattr(each, name) != value, f"{name}: not another than its default"
            setattr(each, name, value)
    app.workers, app.templates = {17: worker}, {4: template}
    app.write_memo()
    memo = ledger.read()
    later = app_of(ledger), WorkerHandle(worker.id, held=False, born_at=0.0), TemplateHandle("api", 4, 0.0)
    later[0].recall(memo)
    later[1].recall(memo["workers"][str(worker.id)])
    later[2].recall(memo["templates"]["4"])
    for each, facts in zip(later, (APP, WORKER, TEMPLATE), strict=True):
        assert {name: getattr(each, name) for name in facts} == facts


def test_the_next_daemon_has_the_same_generation() -> None:
    resolved = ResolvedApp(AppConfig("api", target="a:b", bind=()), 2, "python", {"A": "ä"}, (), None, None, (), "", 0)
    generation = Generation(4, resolved, **GENERATION)
    assert Generation.unpack(4, generation.pack()) == generation


@pytest.mark.parametrize(
    ("changes", "listens", "once"),
    [
        ({"command": ("x",), "cron": "0 4 * * *"}, False, True),
        ({"command": ("x",), "restart": RestartConfig("never")}, False, True),
        ({"script": "/srv/x.py", "restart": RestartConfig("never")}, True, False),
        ({"target": "web:app", "restart": RestartConfig("never")}, False, False),
        ({"command": ("x",)}, False, False),
    ],
)
def test_what_is_over_a_limit_is_replaced_where_it_serves_and_else_ended_if_it_is_never_restarted(
    ledger: Ledger, changes: dict[str, Any], listens: bool, once: bool
) -> None:
    app = app_of(ledger)
    listener: Any = SimpleNamespace()
    app.generation = 1
    app.generations[1] = Generation(1, ResolvedApp(AppConfig("api", **changes), 1, "python", {}, (), None, None, (), "", 0))
    app.listeners = {0: listener} if listens else {}
    assert app.runs_once == once


def test_one_stops_that_neither_runs_nor_is_to_run_on_or_again() -> None:
    no: Any = None
    app = App("api", no, no, no, closed=False)
    assert app.is_stopping
    for name, value in (("closed", True), ("running", True), ("restart_to", 2)):
        before = getattr(app, name)
        setattr(app, name, value)
        assert not app.is_stopping, name
        setattr(app, name, before)
