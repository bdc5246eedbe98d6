"""Daemon, requests Ps, Describe, Follow, Status: they change nothing."""

from __future__ import annotations

import os
from typing import Any

from pyworker import __version__
from pyworker.daemon import report
from pyworker.daemon.client import Client
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.sample import resident
from pyworker.daemon.selection import Selected, select
from pyworker.protocol import control as k
from pyworker.protocol.events import Event
from pyworker.protocol.names import CONTROL_SOCKET
from pyworker.protocol.wire import to_json


def ps(desk: Desk, client: Client, request: k.Ps) -> None:
    slots = desk.narrowed(request.selectors, whole=request.whole)
    apps = [app for app, _ in slots]
    sampler = desk.sampling() if request.sample else None
    body = report.ps_document(desk.brain, sampler, apps, status_document(desk), pss=request.pss)
    for document, (_, only) in zip(body["apps"], slots, strict=True):
        report.narrow(document, only)
    if not request.selectors:
        body["apps"] += [report.waiting_document(*each) for _, each in sorted(desk.waiting.items())]
    client.reply(True, body)


def describe(desk: Desk, client: Client, request: k.Describe) -> None:
    apps = desk.narrowed(request.selectors, whole=request.whole)
    sampler = desk.sampling()
    found = [report.describe(desk.brain, sampler, app, slots, reveal=request.reveal) for app, slots in apps]
    client.reply(True, {"v": 1, "apps": found})


def follow(desk: Desk, client: Client, request: k.Follow) -> None:
    """Events until the client leaves."""
    desk.select(request.selectors)

    def tell(event: Event) -> None:
        wanted, _ = select(request.selectors, [event.app])  # of an app that has come since, too
        if not request.selectors or Selected(event.app) in wanted or Selected(event.app, event.worker) in wanted:
            client.progress(to_json(event))

    if request.since_seq:
        for event in desk.brain.events.recent(since_seq=request.since_seq):
            tell(event)
    client.on_gone(desk.brain.events.subscribe(tell))


def status(desk: Desk, client: Client, request: k.Status) -> None:
    client.reply(True, status_document(desk))


def status_document(desk: Desk) -> dict[str, Any]:
    store = desk.brain.store
    now = desk.brain.loop.clock()
    return {
        "v": 1,
        "running": True,
        "pid": os.getpid(),
        "version": __version__,
        "protocol": k.PROTOCOL,
        "uptime_s": round(now - desk.started_at, 1),
        "home": desk.home,
        "socket": os.path.join(desk.home, CONTROL_SOCKET),
        "guardian_pid": store.guardian_pid,
        "guardian_version": store.guardian_version,
        "logger_pid": store.logger_pid,
        "logger_version": store.logger_version,
        "apps": len(desk.brain.apps),
        "stop_s": desk.longest_stop(),
        "rss_bytes": resident(os.getpid()),
    }
