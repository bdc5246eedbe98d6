"""A made-up minute of five apps, the same each time."""

from __future__ import annotations

import math
from typing import Any

from pyworker.cli.eventlog import parse
from pyworker.cli.top.frame import Surroundings
from pyworker.cli.top.model import Model
from tests.cli import documents

AROUND = Surroundings("web-01", 1.92, 4, "14:02:31", 60.0)
EVENTS: list[tuple[str, int | None, str, dict[str, Any]]] = [
    ("api", 3, "worker_recycled", {"generation": 7, "pid": 41212, "reason": "memory 530 MB > 512 MB"}),
    ("admin", None, "reload_started", {"from": 3, "to": 4}),
    ("mail", None, "app_failed", {"reason": "gave up after 5 restarts in 60 s: ModuleNotFoundError: redis",
                                  "traceback": "", "hint": "", "restarts": 5, "window_s": 60.0}),
]  # fmt: skip


def document(second: int) -> dict[str, Any]:
    """What ps says in this second: load comes and goes in waves."""
    found = documents.ps()
    wave = 1 + math.sin(second / 5) / 2
    for app in found["apps"]:
        if app["cpu_percent"]:
            app["cpu_percent"] = round(app["cpu_percent"] * wave, 1)
        for worker in app["pool"]:
            worker["cpu_percent"] = round((5 + worker["worker"]) * wave, 1)
    api = found["apps"][0]
    api["requests"] = 284000 + sum(int(1240 * (1 + math.sin(s / 5) / 2)) for s in range(second))
    api["http"] = documents.http(api["requests"], 57 + second // 20)
    found["apps"][1]["http"] = documents.http(9000 + 12 * second, 0)
    found["apps"][1]["requests"] = 9000 + 12 * second
    return found


def model() -> Model:
    """A model that has watched for a minute."""
    made = Model()
    for second in range(60):
        made.feed(document(second), float(second))
    for seq, (app, worker, kind, data) in enumerate(EVENTS, 1):
        value = {"v": 1, "time": "2020-01-01T12:00:00.000Z", "seq": seq, "app": app, "worker": worker, "type": kind}
        event = parse({**value, "data": data})
        assert event is not None
        made.learn([event])
    return made
