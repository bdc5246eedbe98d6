"""One made-up call of each command, with the daemon and the files that it meets. Golden files and schemas are held to them.

The folder has a path of a fixed length, so that what is cut on a narrow terminal is cut at the same place on every machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from pyworker import __version__
from pyworker.protocol.control import Refused, Reply
from tests.cli import documents, results
from tests.support.fake_control import CLOSE, FakeControl, Handler, event, refuses, replies

SHOWN = "/home/deploy/shop"  # what golden files say instead of the folder: as many characters
_PREFIX = "/tmp/pyw-"
CONFIG = '[app]\nname = "api"\ntarget = "shop.main:app"\nworkers = 2\nbind = "127.0.0.1:8000"\n'
SIX_MISTAKES = """\
[app]
name = "api"
targt = "shop.main:app"
workers = "many"
bind = "127.0.0.1:80000"
balance = "round-robbin"

[app.restart]
policy = "allways"

[app.helth]
path = "/healthz"
"""


class Scene(NamedTuple):
    """`name` is that of its golden file. `schema`: of its JSON ("" = has none), a line each if `lines`."""

    name: str
    args: tuple[str, ...]
    schema: str = ""
    code: int = 0
    lines: bool = False
    daemon: bool = True
    handlers: dict[str, Handler] = {}
    files: dict[str, str] = {}
    machine: bool = False  # says what the machine is like: no golden file, but all the rules
    stdin: str = ""


def _stamp(seconds_ago: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _describe(_request: Any) -> list[Any]:
    body = documents.describe()
    for seconds, happened in ((7290, body["apps"][0]["exits"][0]), (7230, body["apps"][0]["events"][0])):
        happened["time"] = _stamp(seconds)  # "2h 1m ago" for half a minute more and less
    return [Reply(True, {"v": 1, **body})]


def _failed(_request: Any) -> list[Any]:
    body = documents.describe()
    failure = documents.ps()["apps"][4]["last_failure"]
    body["apps"][0] |= {"state": "failed", "last_failure": failure, "pool": [], "exits": [], "events": [],
                        "workers": {"want": 2, "ready": 0, "total": 0}, "http": None, "queue": []}  # fmt: skip
    return [Reply(True, {"v": 1, **body})]


def _refused_reload(_request: Any) -> Iterator[Any]:
    yield event("api", None, "reload_started", **{"from": 7, "to": 8})
    yield event("api", None, "reload_refused", **{"from": 7, "to": 8}, reason="importing shop.main failed", traceback="", hint="")
    yield results.reply(
        "failed", ok=False, gen=7, reason="importing shop.main failed",
        traceback=results.TRACEBACK, hint="install it: /home/deploy/shop/.venv/bin/python -m pip install redis",
    )  # fmt: skip


def _stopping(_request: Any) -> Iterator[Any]:
    yield event("api", None, "app_stopping")
    for slot in (1, 2):
        yield event("api", slot, "worker_draining", generation=1, pid=41209 + slot, reason="stop")
        yield event("api", slot, "worker_stopped", generation=1, pid=41209 + slot, took_s=0.2, requests=4, cancelled=0, killed=False)
    yield event("api", None, "app_stopped")
    yield results.reply("stopped", state="stopped", workers={"want": 2, "ready": 0}, took_s=0.3)


def _scaling(_request: Any) -> Iterator[Any]:
    yield event("api", None, "scaled", **{"from": 2, "to": 3})
    yield event("api", 3, "worker_starting", generation=1, pid=41212)
    yield event("api", 3, "worker_ready", generation=1, pid=41212, took_s=0.2)
    yield results.reply("scaled", workers={"want": 3, "ready": 3}, took_s=0.3)


def _restarting(request: Any) -> Iterator[Any]:
    for answer in results.start(request):
        yield results.reply("restarted", gen=2) if isinstance(answer, Reply) else answer


_FRAMES = [
    {"file": "/srv/shop/shop/main.py", "line": 41, "function": "checkout"},
    {"file": "/srv/shop/shop/pay.py", "line": 88, "function": "charge"},
]
_STACK = {
    "v": 1,
    "workers": [
        {"app": "api", "worker": 1, "pid": 41210, "gen": 1, "state": "ready", "error": None, "hint": None,
         "threads": [{"thread": "0x00007f3133e7ab80", "name": "", "current": True, "frames": _FRAMES}]},
        {"app": "api", "worker": 2, "pid": 41211, "gen": 1, "state": "ready", "error": "it did not answer within 5 s",
         "hint": "is it stopped (SIGSTOP), or in a system call of the kernel's?", "threads": []},
    ],
}  # fmt: skip
_SENT = {
    "v": 1,
    "workers": [
        {"app": "api", "worker": 1, "pid": 41210, "gen": 1, "error": None},
        {"app": "api", "worker": 2, "pid": 41211, "gen": 1, "error": "its channel is full"},
    ],
}  # fmt: skip
_CHANGES: list[dict[str, Any]] = [
    {"key": "workers", "old": 4, "new": 6, "apply": "live", "secret": False},
    {"key": "env.LOG_LEVEL", "old": "info", "new": "debug", "apply": "reload", "secret": False},
    {"key": "env.STRIPE_KEY", "old": "***", "new": "***", "apply": "reload", "secret": True},
    {"key": "bind", "old": ["127.0.0.1:8000"], "new": ["0.0.0.0:8000"], "apply": "live", "secret": False},
]
_DIFF = {
    "v": 1, "same": False, "changes": [{"app": "api", **change} for change in _CHANGES],
    "apps": [{"app": "api", "gen": 7, "file": "/srv/shop/app.toml", "running": True, "overlaps": True,
              "changes": _CHANGES, "scaled": 5}],
}  # fmt: skip
_CONFIG = {
    "apps": [
        {"name": "api", "file": "/srv/shop/app.toml", "profile": "", "generation": 7, "changed": True,
         "config": {"name": "api", "target": "shop.main:app", "workers": 4},
         "origins": {"target": {"text": "app.toml:3", "kind": "file", "line": 3},
                     "workers": {"text": "app.toml:4", "kind": "file", "line": 4}}},
    ]
}  # fmt: skip
_STATUS = {
    "v": 1, "running": True, "pid": 41190, "version": __version__, "protocol": 1, "uptime_s": 3700.0, "home": f"{SHOWN}/state",
    "guardian_pid": 41189, "guardian_version": __version__, "logger_pid": 41191, "logger_version": "0.0.9", "apps": 5,
    "stop_s": 80.0,
}  # fmt: skip
_UPGRADE = {
    "changed": False, "from": __version__, "to": __version__,
    "versions": dict.fromkeys(("guardian", "daemon", "logger"), __version__),
    "pids": {"guardian": 41189, "daemon": 41190, "logger": 41191},
}  # fmt: skip
HANDLERS: dict[str, Handler] = {
    "ps": replies(documents.ps()), "describe": _describe, "start": results.start, "stop": _stopping, "reload": results.reload,
    "restart": _restarting, "scale": _scaling, "stack": replies(_STACK), "send": replies(_SENT), "diff": replies(_DIFF),
    "config": replies(_CONFIG), "status": replies(_STATUS), "upgrade": replies(_UPGRADE),
    "delete": lambda _request: [results.reply("deleted", state="stopped", workers={"want": 0, "ready": 0})],
    "follow": lambda _request: [CLOSE], "shutdown": lambda _request: [CLOSE],
}  # fmt: skip


def _logged(name: str, stream: str, *texts: str, second: int = 31) -> str:
    return "".join(f"2026-11-23T14:02:{second}.104Z {name} 41211 {stream}| {text}\n" for text in texts)


def _events(*found: tuple[str, int | None, str, dict[str, Any]]) -> str:
    lines = []
    for seq, (app, worker, kind, data) in enumerate(found, 1):
        value = {"v": 1, "time": "2020-01-01T12:00:00.000Z", "seq": seq, "app": app, "worker": worker, "type": kind}
        lines.append(json.dumps({**value, "data": data}) + "\n")
    return "".join(lines)


_EXIT = {"generation": 7, "pid": 41211, "code": 1, "signal": None, "after_s": 0.3,
         "reason": "ModuleNotFoundError: No module named 'redis'", "traceback": ""}  # fmt: skip
_HAPPENED = _events(
    ("", None, "daemon_started", {"pid": 41190, "reason": "start"}),
    ("api", None, "reload_started", {"from": 6, "to": 7, "by": "deploy (uid 1000), pid 41970: pyworker reload api"}),
    ("api", 2, "worker_exited", _EXIT),
    ("api", 2, "worker_backoff", {"try": 3, "max": 10, "delay_s": 1.6}),
)
_FILES = {
    "app.toml": CONFIG,
    "state/events.jsonl": _HAPPENED,
    "state/logs/api.log": (
        _logged("api.1", "out", "INFO GET /cart 200 4.1ms", '{"level":"warning","msg":"slow","order":8123}')
        + _logged("api.2", "err", "ERROR payment failed", "Traceback (most recent call last):", '  File "/srv/shop/pay.py", line 88, in charge',
                  "    raise Declined(code)", "shop.pay.Declined: 05, señor \x1b[2J", second=32)
    ),
}  # fmt: skip
_PROCFILE = "web: gunicorn -w 4 -b 0.0.0.0:$PORT shop.wsgi:app\nworker: celery -A shop worker\nrelease: ./migrate.sh\n"

SCENES = (
    Scene("ps", ("ps",), "ps"),
    Scene("ps-workers", ("ps", "-w"), "ps"),
    Scene("ps-nothing", ("ps",), "ps", handlers={"ps": replies({**documents.ps(), "apps": []})}),
    Scene("ps-no-daemon", ("ps",), "error", code=69, daemon=False),
    Scene("ps-no-such-app", ("ps", "apo"), "error", code=4,
          handlers={"ps": refuses("no_such_app", 4, "no app matches 'apo'; its apps: api", hint="did you mean `api`?")}),
    Scene("top-once", ("top", "--once", "-i", "0.1"), "ps"),
    Scene("describe", ("describe", "api"), "describe"),
    Scene("describe-failed", ("describe", "api"), "describe", handlers={"describe": _failed}),
    Scene("logs", ("logs",), "log", lines=True),
    Scene("logs-records", ("logs", "-i", "Declined", "--no-prefix"), "log", lines=True),
    Scene("logs-previous", ("logs", "-p", "api"), "log", lines=True),
    Scene("events", ("events",), "event", lines=True),
    Scene("stack", ("stack", "api"), "stack"),
    Scene("send", ("send", "api", '{"flush": true}'), "send", code=1),
    Scene("wait", ("wait", "jobs"), "wait", lines=True, handlers={"ps": replies({**documents.ps(), "apps": documents.ps()["apps"][2:3]})}),
    Scene("wait-failed", ("wait", "mail"), "error", code=1),
    Scene("metrics", ("metrics",), "metrics", handlers={"ps": replies({**documents.ps(), "apps": []})}),
    Scene("web-open-to-all", ("web", "--no-token", "--listen", "0.0.0.0:1"), "error", code=2),
    Scene("start", ("start",), "operation", lines=True),
    Scene("start-again", ("start",), "operation", lines=True, handlers={"start": lambda _request: [results.reply("already_running")]}),
    Scene("start-changed", ("start",), "operation", lines=True, handlers={"start": lambda _request: [results.changed()]}),
    Scene("start-dry-run", ("start", "-n"), "done", daemon=False),
    Scene("start-fails", ("start",), "operation", code=1, lines=True, handlers={"start": results.start_fails}),
    Scene("start-port-in-use", ("start",), "error", code=1,
          handlers={"start": refuses("port_in_use", 1, "cannot listen on 127.0.0.1:8000: already in use\n  by gunicorn: master [shop.main:app]"
                                     "  (pid 38120, user deploy, started 2h ago, in /srv/shop)", hint="stop it (kill 38120)")}),
    Scene("start-six-mistakes", ("start",), "error", code=78, daemon=False, files={"app.toml": SIX_MISTAKES}),
    Scene("start-nothing-here", ("start",), "error", code=2, daemon=False, files={"app.toml": ""}),
    Scene("stop", ("stop", "api"), "operation", lines=True),
    Scene("stop-what", ("stop",), "error", code=2),
    Scene("stop-all", ("stop", "all"), "error", code=2),
    Scene("restart", ("restart", "api"), "operation", lines=True),
    Scene("reload", ("reload", "api"), "operation", lines=True),
    Scene("reload-refused", ("reload", "api"), "operation", code=1, lines=True, handlers={"reload": _refused_reload}),
    Scene("reload-busy", ("reload", "api"), "error", code=75,
          handlers={"reload": lambda _request: [Refused("busy", 75, "api: another reload is under way", "wait for it: pyworker wait api")]}),
    Scene("reload-abort", ("reload", "--abort", "api"), "operation", lines=True,
          handlers={"abort": lambda _request: [results.reply("aborted", gen=7, took_s=0.4)]}),
    Scene("scale", ("scale", "api=3"), "operation", lines=True, handlers={"config": replies({"apps": []})}),
    Scene("delete", ("delete", "api"), "operation", lines=True),
    Scene("run-mistake", ("run", "app.toml"), "error", code=78, daemon=False, files={"app.toml": "[app]\nworkers = 4\n"}),
    Scene("check", ("check",), "check"),
    Scene("check-mistakes", ("check",), "check", code=78, files={"app.toml": SIX_MISTAKES}),
    Scene("init", ("init", "new"), "done", files={"new/shop.py": "from flask import Flask\n\napp = Flask(__name__)\n"}),
    Scene("import", ("import", "Procfile", "-o", "-"), "import", files={"Procfile": _PROCFILE}),
    Scene("diff", ("diff", "api"), "diff", code=1),
    Scene("config", ("config", "api", "--origin"), "config"),
    Scene("config-env", ("config", "env", "api", "--origin"), "config"),
    Scene("schema", ("schema", "-o", "app.schema.json"), "done"),
    Scene("export", ("export", "procfile"), "export"),
    Scene("daemon-status", ("daemon", "status"), "status"),
    Scene("daemon-stopped", ("daemon", "status"), "status", code=69, daemon=False),
    Scene("daemon-start", ("daemon", "start"), "daemon"),
    Scene("daemon-stop", ("daemon", "stop"), "daemon", daemon=False),
    Scene("daemon-upgrade", ("daemon", "upgrade"), "upgrade"),
    Scene("startup", ("startup", "--system", "--init", "systemd", "--print"), "startup", machine=True),
    Scene("doctor", ("doctor",), "doctor", machine=True, daemon=False),
    Scene("doctor-report", ("doctor", "--report"), "doctor", machine=True, daemon=False),
    Scene("completion", ("completion", "bash"), "completion"),
    Scene("help", (), ""),
    Scene("help-start", ("start", "-h"), ""),
    Scene("no-such-command", ("reloda",), "error", code=2),
    Scene("save", ("save",), "done"),
)  # fmt: skip


class Stage:
    """A folder with what the scene needs. `shown` puts the usual names for those of this machine."""

    def __init__(self, scene: Scene, folder: str) -> None:
        self.folder = folder
        self.home = f"{folder}/state"
        os.makedirs(self.home, mode=0o700)
        for name, text in {**_FILES, **scene.files}.items():
            if text:
                os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
                with open(f"{folder}/{name}", "w") as file:
                    file.write(text)

    def shown(self, text: str) -> str:
        text = re.sub(r"(failed +)\d+\.\ds", r"\g<1>0.0s", text)  # how long it took until it failed
        text = re.sub(r"\d{4,}d( \d+h)? ago", "AGO", text)
        return text.replace(self.folder, SHOWN).replace(sys.executable, "python3").replace(__version__, "X.Y.Z")


@contextlib.contextmanager
def stage(scene: Scene) -> Iterator[Stage]:
    """Set the scene up, its daemon too, and take it down again."""
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    assert len(folder) == len(SHOWN)
    try:
        made = Stage(scene, folder)
        with FakeControl(made.home, {**HANDLERS, **scene.handlers}) if scene.daemon else contextlib.nullcontext():
            yield made
    finally:
        shutil.rmtree(folder)


def by_name(name: str) -> Scene:
    """Return a scene."""
    return next(scene for scene in SCENES if scene.name == name)


Shown = Callable[[str], str]
