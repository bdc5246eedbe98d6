"""Daemon: what a service manager is told (sd_notify): READY, RELOADING, STOPPING, STATUS, WATCHDOG, MAINPID,
EXTEND_TIMEOUT.

Only when it asked ($NOTIFY_SOCKET). The daemon speaks, since it knows; the guardian is the main process, and is named
again when a successor took its place. SIGHUP (passed on by the guardian) reloads every app that runs, as `pyworker
reload all` would.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from pyworker.daemon.app import App
from pyworker.daemon.requests.auto import reload_by_itself
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.shown import state_word
from pyworker.protocol.events import Event

NOTIFY = "NOTIFY_SOCKET"
_STATUS_EVERY = 2.0
_PATIENCE = 60.0  # seconds, asked for again and again while a start or reload goes on
_SETTLED = {
    "app_running", "app_failed", "app_stopped", "app_deleted", "reload_done", "reload_refused", "reload_rolled_back",
}  # fmt: skip


class ServiceManager:
    """The one that started the guardian."""

    def __init__(self, desk: Desk, address: str) -> None:
        self._desk = desk
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._status = ""
        self._is_ready = False  # the daemon before this one may not have come to say it; to hear it twice harms nobody
        usec = os.environ.get("WATCHDOG_USEC", "")
        self._watchdog = int(usec) / 1e6 if usec.isdecimal() else 0.0
        if desk.brain.store.reason != "boot":
            self.tell(f"MAINPID={desk.brain.store.guardian_pid}")
        desk.brain.events.subscribe(self._on_event)
        self._say_status()
        if self._watchdog > 0:
            self._say_alive()
        desk.brain.loop.call_soon(self._look)

    @classmethod
    def from_environment(cls, desk: Desk) -> ServiceManager | None:
        """Return it, or None when nobody asked."""
        address = os.environ.get(NOTIFY, "")
        return cls(desk, address) if address else None

    def tell(self, *lines: str) -> None:
        """Send one notification; a manager that is away or slow is its own business."""
        with contextlib.suppress(OSError):
            self._sock.sendto("\n".join(lines).encode(), self._address)

    def on_hangup(self) -> None:
        with self.reloading():
            for app in [app for app in self._desk.brain.apps.values() if app.running]:
                reload_by_itself(self._desk, app, "the service manager asked for it (SIGHUP)")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Reload in here. READY=1 again when each app has come out one way or the other."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")
        self._status = ""
        self._is_ready = False
        yield
        self._desk.brain.loop.call_soon(self._look)

    def ready(self) -> None:
        """All has come out; or has done what it was to do, which a start that ends before it was ready did not."""
        if not self._is_ready:
            self._is_ready = True
            self.tell("READY=1", f"STATUS={self._words()}")

    def stopping(self, after: float = 0.0) -> None:
        """Everything is about to end, in so many seconds. What the apps' time-outs allow is asked for: the unit knows none of them."""
        needed = after + self._desk.longest_stop()
        self.tell("STOPPING=1", "STATUS=stopping", f"EXTEND_TIMEOUT_USEC={int(needed * 1e6)}")

    def _on_event(self, event: Event) -> None:
        if event.type in _SETTLED:
            self._desk.brain.loop.call_soon(self._look)

    def _look(self) -> None:
        if self._desk.shutting_down or self._is_ready:
            return
        if all(_is_settled(app) for app in self._desk.brain.apps.values()):
            self.ready()

    def _say_status(self) -> None:
        self._desk.brain.loop.call_later(_STATUS_EVERY, self._say_status)
        words = self._words()
        if words != self._status and not self._desk.shutting_down:
            self._status = words
            self.tell(f"STATUS={words}")
        self._look()
        if not self._is_ready and not self._desk.shutting_down:  # a migration may take longer than TimeoutStartSec
            self.tell(f"EXTEND_TIMEOUT_USEC={int(_PATIENCE * 1e6)}")

    def _say_alive(self) -> None:
        loop = self._desk.brain.loop
        loop.call_at(loop.clock() + self._watchdog / 3, self._say_alive, lazy=True)  # at once after a standstill
        self.tell("WATCHDOG=1")

    def _words(self) -> str:
        apps = [app for app in self._desk.brain.apps.values() if app.wanted]
        ready, want = sum(a.ready_count() for a in apps), sum(len(a.slots()) for a in apps)
        bad = [a.name for a in apps if state_word(a) in ("failed", "degraded")]
        plural = "s" if len(apps) != 1 else ""
        return f"{len(apps)} app{plural}, {ready}/{want} workers ready" + (f"; look at {', '.join(bad)}" if bad else "")


def _is_settled(app: App) -> bool:
    """Whether a start or reload of the app has come out, or waits for something that a person must mend."""
    if not app.wanted or app.blocked is not None or app.record.failed or app.record.permanent:
        return True
    return not app.starting and app.target is None and app.reload_from is None and app.restart_to is None
