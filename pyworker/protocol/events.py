"""What happened: one type word and data per event; the log of events, the stream, the progress lines, the tests.

On disk and on the wire an event is a JSON line: {"v":1,"time":"2026-11-23T14:02:31.104Z","seq":8123,"app":"mail",
"worker":1,"type":"worker_exited","data":{...}}. `sentence` turns it into the words that `events -f` shows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pyworker.record import field, record

# type -> the keys of `data` (all JSON values) and when it is said; every event of the program is listed here
_EVENTS = {
    "daemon_started": ("pid reason", "a daemon began; `reason`: boot, killed by KILL, hung …"),
    "daemon_stopped": ("", "it ended because it was told to"),
    "app_started": ("generation workers scheduled listen by", "an app is being started"),
    "app_running": (
        "generation workers took_s",
        "every slot accepts, and its first check (`[app.health]`) has come out",
    ),
    "app_stopping": ("by", "a stop began"),
    "app_stopped": ("", "nothing of it lives"),
    "app_deleted": ("", "it is forgotten"),
    "app_failed": ("reason traceback hint restarts window_s", "the start failed, or the limiter gave up"),
    "app_note": ("text", "something the operator should know"),
    "template_starting": ("generation", "a template begins to import"),
    "template_ready": (
        "generation took_s preload why",
        "it has imported; `preload` false and `why`: workers import for themselves",
    ),
    "template_exited": ("generation reason", "it ended unasked"),
    "dispatcher_ready": ("pid", "the process that hands out the app's connections runs"),
    "dispatcher_exited": ("pid reason", "… and ended; it is started again"),
    "worker_starting": ("generation pid", "a process is there"),
    "worker_held": ("generation pid took_s", "ready, waits for the commit"),
    "worker_ready": ("generation pid took_s", "accepts"),
    "worker_unhealthy": ("generation pid reason", "its checks fail; it will be replaced"),
    "worker_healthy": ("generation pid", "its check passes, for the first time or again"),
    "worker_stopping": ("by", "a stop of this slot alone began"),
    "worker_draining": ("generation pid reason", "told to leave"),
    "worker_stopped": (
        "generation pid took_s requests cancelled killed",
        "ended because it was told to; `killed`: by SIGKILL at `stop.kill_timeout`",
    ),
    "worker_exited": ("generation pid code signal after_s reason traceback hint", "ended by itself"),
    "worker_message": (
        "generation pid message size cut",
        "a worker sent a message (`process.send`); one of more than 4096 characters is shown as a text, `cut` and with its `size`",
    ),
    "worker_recycled": ("generation pid reason", "over a limit; it will be replaced, or is ended if it runs once"),
    "worker_backoff": ("try max delay_s", "the next try is put off"),
    "reload_started": ("from to by", "a new generation is being brought up"),
    "reload_committed": ("from to", "it counts from now on"),
    "reload_done": (
        "from to took_s requests failed",
        "all of it accepts; `requests` were answered since it was asked for, `failed` of them with 5xx (null: it counts none)",
    ),
    "reload_refused": ("from to reason traceback hint", "given up before the commit: nothing was touched"),
    "reload_rolled_back": ("from to reason", "the old generation came back in the soak"),
    "scaled": ("from to by", "the number of workers was changed"),
}
TYPES: dict[str, tuple[str, ...]] = {kind: tuple(keys.split()) for kind, (keys, _) in _EVENTS.items()}
WHEN: dict[str, str] = {kind: when for kind, (_, when) in _EVENTS.items()}  # docs/json.md is made of it
BY_ITSELF = "the daemon"  # who began it (`by`), when no command did and no timetable, no changed file


@record
class Event:
    """One thing that happened. `worker` is the slot number, None for what concerns the whole app."""

    seq: int
    time: str  # UTC, ISO 8601 with milliseconds
    app: str
    worker: int | None
    type: str
    data: dict[str, Any] = field(default_factory=dict)
    v: int = 1

    @property
    def who(self) -> str:
        """Whom it is about, as commands name it: "api", or "api.2"; "" is the daemon itself."""
        return self.app if self.worker is None else f"{self.app}.{self.worker}"


def _pid(data: dict[str, Any]) -> str:
    """The pid, once it is known: a worker may be told to stop before."""
    return f" pid {data['pid']}" if data["pid"] else ""


def _by(data: dict[str, Any]) -> str:
    """Who began it; an event of a version before does not know."""
    return f" by {data['by']}" if data.get("by") else ""


def sentence(event: Event) -> str:
    """Return the event in words, without time and name: "exited with code 1 after 0.3 s: ModuleNotFoundError…"."""
    d = event.data
    match event.type:
        case "worker_starting":
            return f"starting  gen {d['generation']} pid {d['pid']}"
        case "worker_held":
            return f"started   gen {d['generation']} pid {d['pid']} in {d['took_s']:.2f}s, waits for the commit"
        case "worker_ready":
            return f"ready     gen {d['generation']} pid {d['pid']} in {d['took_s']:.2f}s"
        case "worker_unhealthy":
            return f"unhealthy pid {d['pid']}: {d['reason']}"
        case "worker_healthy":
            return f"healthy   pid {d['pid']} passes its check"
        case "worker_draining":
            return f"draining  gen {d['generation']}{_pid(d)} ({d['reason']})"
        case "worker_stopped":
            many = "s" if d["requests"] != 1 else ""
            requests = f", finished {d['requests']} request{many}" if d["requests"] else ""
            cut = f", {d['cancelled']} cut off" if d["cancelled"] else ""
            killed = ", killed at the kill time-out" if d.get("killed") else ""
            return f"stopped   gen {d['generation']}{_pid(d)} in {d['took_s']:.1f}s{requests}{cut}{killed}"
        case "worker_exited":
            if not d["pid"]:
                return f"not born  {d['reason']}"
            how = exit_words(d["code"], d["signal"])
            return f"exited    pid {d['pid']} {how} after {d['after_s']:.1f}s{and_why(d['reason'], how)}"
        case "worker_recycled":
            return f"recycled  pid {d['pid']}: {d['reason']}"
        case "worker_message":
            shown = d["message"] if d["cut"] else json.dumps(d["message"], ensure_ascii=False)
            return f"message   {shown}" + (f"… ({d['size']} characters)" if d["cut"] else "")
        case "worker_backoff":
            return f"backoff   {try_in_words(d['try'], d['max'], d['delay_s'])}"
        case "app_started":
            where = " on " + ", ".join(d["listen"]) if d["listen"] else ""
            how = "scheduled" if d.get("scheduled") else f"starting  {workers_in_words(d['workers'])}{where}"
            return how + _by(d)
        case "app_running":
            return f"running   {workers_in_words(d['workers'])} ready in {d['took_s']:.1f}s"
        case "app_failed":
            return f"failed    {d['reason']}"
        case "app_stopping" | "worker_stopping":
            return f"stopping{_by(d)}"
        case "app_stopped" | "app_deleted" | "daemon_stopped":
            return event.type.partition("_")[2]
        case "app_note":
            return str(d["text"])
        case "template_starting":
            return f"importing gen {d['generation']}"
        case "template_ready":
            return f"imported  gen {d['generation']} in {d['took_s']:.2f}s" + (f" ({d['why']})" if d["why"] else "")
        case "dispatcher_ready":
            return f"dispatcher pid {d['pid']} hands out the connections"
        case "dispatcher_exited":
            return f"dispatcher pid {d['pid']} {d['reason']}" if d["pid"] else f"the dispatcher {d['reason']}"
        case "template_exited":
            return f"template  gen {d['generation']} ended: {d['reason']}"
        case "reload_started":
            return f"reload    gen {d['from']} → {d['to']} started{_by(d)}"
        case "reload_committed":
            return f"reload    gen {d['from']} → {d['to']} committed"
        case "reload_done":
            answered = failed_in_words(d)
            return f"reload    gen {d['from']} → {d['to']} done in {d['took_s']:.1f}s{answered and f', {answered}'}"
        case "reload_refused":
            return f"reload    gen {d['from']} → {d['to']} refused: {d['reason']}"
        case "reload_rolled_back":
            return f"reload    gen {d['to']} → {d['from']} rolled back: {d['reason']}"
        case "scaled":
            return f"scaled    {d['from']} → {workers_in_words(d['to'])}{_by(d)}"
        case "daemon_started":
            return f"daemon started, pid {d['pid']} ({d['reason']})"
        case _:
            return event.type.replace("_", " ")


def and_why(reason: str, how: str) -> str:
    """Return what a reason adds to how the process ended ("with code 3", "killed by signal 6 (ABRT)"), which it may say itself."""
    for start in ("", "exited ", "ended by itself "):
        if reason.startswith(start + how):
            return reason.removeprefix(start + how)
    return f": {reason}" if reason else ""


PRE_START_FAILED = "hooks.pre_start failed"  # a failure that begins so has with it what the hook printed; no log has


def names_in_words(names: Sequence[str]) -> str:
    """Return names to choose from, not all of hundreds."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def workers_in_words(count: object) -> str:
    return f"{count} worker" if count == 1 else f"{count} workers"


def failed_in_words(data: dict[str, Any]) -> str:
    """Return what became of requests, by `requests` and `failed`: "0 of 7,811 requests failed"; "" when none is known of."""
    count = data.get("requests")
    return f"{data.get('failed') or 0:,} of {count:,} request{'s' if count != 1 else ''} failed" if count else ""


def try_in_words(count: int, most: int, delay: float) -> str:
    """Return which try comes when, or is under way. Slow deaths never are `most` in the window: then there is no limit to name."""
    when = f"in {delay:.1f} s" if delay else "now"
    return f"try {count} of {most} {when}" if count <= most else f"try {count} {when}"


def exit_words(code: int | None, signal: int | None) -> str:
    """Return how a process ended, in words."""
    if signal is not None:
        return f"killed by signal {signal}{_SIGNALS.get(signal, '')}"
    return "status unknown" if code is None else f"with code {code}"


_SIGNALS = {
    1: " (HUP)", 2: " (INT)", 3: " (QUIT)", 4: " (ILL)", 6: " (ABRT)", 7: " (BUS)", 8: " (FPE)", 9: " (KILL)",
    11: " (SEGV)", 13: " (PIPE)", 14: " (ALRM)", 15: " (TERM)", 24: " (XCPU: CPU time limit)",
    25: " (XFSZ: file size limit)", 31: " (SYS: forbidden system call)",
}  # fmt: skip
