"""Made-up courses of operations: events and the reply at their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyworker.protocol.control import Reply
from tests.support.fake_control import event

TRACEBACK = """\
File "/srv/shop/shop/main.py", line 3, in <module>
    import redis
ModuleNotFoundError: No module named 'redis'"""


def result(action: str, **more: Any) -> dict[str, Any]:
    return {
        "app": "api", "action": action, "ok": True, "state": "running", "gen": 1, "workers": {"want": 2, "ready": 2},
        "listen": ["http://127.0.0.1:8000"], "took_s": 0.9, "reason": "", "traceback": "", "hint": "", "notes": [],
        **more,
    }  # fmt: skip


def reply(action: str, **more: Any) -> Reply:
    found = result(action, **more)
    return Reply(bool(found["ok"]), {"apps": [found]})


def changed() -> Reply:
    note = "app.toml changed on disk since it was started"
    changes = [
        {"key": "workers", "old": 2, "new": 3, "apply": "live", "secret": False},
        *({"key": f"env.V{n}", "old": None, "new": "1", "apply": "reload", "secret": False} for n in range(12)),
    ]
    return reply("already_running", notes=[note], changes=changes)


def starting() -> Iterator[Any]:
    yield event("api", None, "app_started", generation=1, workers=2, scheduled=False, listen=["http://127.0.0.1:8000"])
    yield event("api", None, "template_starting", generation=1)
    yield event("api", None, "template_ready", generation=1, took_s=0.4, preload="auto", why="")
    for slot in (1, 2):
        yield event("api", slot, "worker_starting", generation=1, pid=41209 + slot)


def start(_request: Any) -> Iterator[Any]:
    yield from starting()
    for slot in (1, 2):
        yield event("api", slot, "worker_ready", generation=1, pid=41209 + slot, took_s=0.6 + slot / 100)
    yield event("api", None, "app_running", generation=1, workers=2, took_s=0.9)
    yield reply("started")


def start_fails(_request: Any) -> Iterator[Any]:
    yield event("api", None, "app_started", generation=1, workers=2, scheduled=False, listen=["http://127.0.0.1:8000"])
    yield event("api", None, "template_starting", generation=1)
    yield event("api", None, "template_exited", generation=1, reason="import error")
    yield reply(
        "failed", ok=False, state="failed", reason="importing shop.main failed", traceback=TRACEBACK,
        hint="pip install redis",
    )  # fmt: skip


def reload_up_to_commit() -> Iterator[Any]:
    yield event("api", None, "reload_started", **{"from": 7, "to": 8})
    for slot in (1, 2):
        yield event("api", slot, "worker_starting", generation=8, pid=100 + slot)
        yield event("api", slot, "worker_held", generation=8, pid=100 + slot, took_s=0.61)


def reload(_request: Any) -> Iterator[Any]:
    yield from reload_up_to_commit()
    yield event("api", None, "reload_committed", **{"from": 7, "to": 8})
    for slot in (1, 2):
        yield event("api", slot, "worker_ready", generation=8, pid=100 + slot, took_s=0.61)
        yield event("api", slot, "worker_draining", generation=7, pid=90 + slot, reason="reload")
    yield event("api", 1, "worker_stopped", generation=7, pid=91, took_s=0.2, requests=4, cancelled=0, killed=False)
    yield reply("reloaded", gen=8, took_s=6.2)
