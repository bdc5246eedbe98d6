"""The documents that the fake daemon of the CLI's tests answers with."""

from __future__ import annotations

import copy
from typing import Any

from pyworker import __version__


def worker(slot: int, pid: int | None, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {
        "worker": slot, "pid": pid, "state": state, "health": "ok", "gen": 7, "cpu_percent": 9.8,
        "rss_bytes": 92274688, "cpu_s": 120.5, "open_connections": 4, "in_flight": 1, "requests": 71000,
        "requests_per_s": 311.0, "restarts": 0, "reason": "",
        "started_at": "2026-11-20T09:58:01.220Z", "uptime_s": 273600.4, "last_exit": None, **more,
    }  # fmt: skip


def http(requests: int = 284000, errors: int = 57) -> dict[str, Any]:
    """Most answers within 4 ms, some within 41."""
    buckets = [0] * 32
    buckets[12], buckets[15] = requests - requests // 50, requests // 50
    return {
        "p50_s": 0.003088, "p99_s": 0.024576, "error_share": 0.0002, "latency_sum_s": 1021.25,
        "status": {"1xx": 0, "2xx": requests - errors, "3xx": 0, "4xx": 0, "5xx": errors}, "latency_buckets": buckets,
    }  # fmt: skip


def app(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "state": "running", "gen": 7, "target": "shop.main:app", "kind": "asgi", "balance": "round-robin",
        "listen": ["http://127.0.0.1:8000"], "workers": {"want": 4, "ready": 4, "total": 4}, "cpu_percent": 38.2,
        "rss_bytes": 369098752, "requests_per_s": 1240.1, "open_connections": 16,
        "restarts": {"total": 0, "window": 0, "max": 10, "window_s": 60.0}, "started_at": "2026-11-20T09:58:01.220Z",
        "uptime_s": 273600.4, "config": {"file": "/srv/shop/app.toml", "changed": False}, "last_failure": None,
        "backoff": None, "notes": [], "drops": 0, "reloads": 6, "requests": 284000, "in_flight": 4,
        "queue": [[0, 2048]], "http": http(), "pool": [worker(i, 41209 + i) for i in range(1, 5)], **more,
    }  # fmt: skip


def ps() -> dict[str, Any]:
    """The five apps of the mock-up."""
    apps = [
        app("api"),
        app(
            "admin", state="reloading", workers={"want": 2, "ready": 2, "total": 3}, cpu_percent=4.1,
            rss_bytes=188743680, requests_per_s=12.0, listen=["unix:/run/admin.sock"], uptime_s=522000.0,
            config={"file": "/srv/shop/app.toml", "changed": True, "changed_files": ["/srv/shop/app.toml"]}, pool=[worker(1, 41300), worker(2, 41301)],
        ),
        app(
            "jobs", workers={"want": 8, "ready": 8, "total": 8}, cpu_percent=71.0, rss_bytes=1181116006,
            requests_per_s=None, listen=[], uptime_s=50520.0, pool=[], kind="command", http=None, queue=[], balance="shared",
            restarts={"total": 2, "window": 0, "max": 10, "window_s": 60.0},
        ),
        app(
            "hooks", state="degraded", workers={"want": 2, "ready": 1, "total": 2}, cpu_percent=0.4,
            rss_bytes=63963136, requests_per_s=3.0, listen=["http://0.0.0.0:8020"], uptime_s=7860.0,
            restarts={"total": 9, "window": 5, "max": 10, "window_s": 300.0},
            backoff={"try": 3, "max": 10, "in_s": 4.2}, pool=[worker(1, 41400)],
        ),
        app(
            "mail", state="failed", workers={"want": 1, "ready": 0, "total": 0}, cpu_percent=0.0, rss_bytes=0,
            requests_per_s=0.0, listen=[], uptime_s=None, pool=[], queue=[], open_connections=0, in_flight=0,
            restarts={"total": 5, "window": 5, "max": 5, "window_s": 60.0},
            last_failure={
                "message": "gave up after 5 restarts in 60 s: ModuleNotFoundError: No module named 'redis'",
                "traceback": 'File "mail.py", line 3, in <module>\n  import redis', "hint": "pip install redis",
                "at": "2026-11-23T14:00:00.000Z",
            },
        ),
    ]  # fmt: skip
    daemon = {"pid": 41190, "version": __version__, "uptime_s": 613204.2}
    return copy.deepcopy({"v": 1, "daemon": daemon, "apps": apps})


def describe() -> dict[str, Any]:
    found = app(
        "api", limits={"memory": 536870912}, log_file="/srv/state/logs/api.log", script=None, command=[],
        cwd="/srv/shop", python="/srv/shop/.venv/bin/python", user="deploy",
        health={"type": "http", "path": "/healthz", "interval": 10.0},
        env=[
            {"name": "PATH", "value": "/usr/bin", "origin": "base"},
            {"name": "STRIPE_KEY", "value": "***", "origin": ".env"},
        ],
        exits=[
            {
                "v": 1, "time": "2020-01-01T00:00:00.000Z", "seq": 3, "app": "api", "worker": 3, "type": "worker_exited",
                "data": {"generation": 7, "pid": 41208, "code": None, "signal": 9, "after_s": 3.2, "reason": "out of memory",
                         "traceback": ""},
            }
        ],
        pss_bytes=200000000, restart={"policy": "always"}, stop={"drain_timeout": 30.0, "kill_timeout": 10.0, "signal": "TERM"}, reload={"cron": None},
        template={"state": "ready", "preload": True, "why": "", "engine": "uvicorn 0.54.0 (the app's)", "pid": 41209,
                  "loop": "uvloop", "python": "3.11.7"},
        dispatcher=None, runtime=[__version__], daemon_version=__version__,
        events=[
            {
                "v": 1, "time": "2020-01-01T00:00:00.000Z", "seq": 4, "app": "api", "worker": 3,
                "type": "worker_recycled", "data": {"generation": 7, "pid": 41212, "reason": "memory 530 MB > 512 MB"},
            }
        ],
    )  # fmt: skip
    for worker in found["pool"]:
        worker["pss_bytes"] = 50000000
    return {"apps": [found]}
