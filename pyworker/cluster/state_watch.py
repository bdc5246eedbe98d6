"""Shared state: who watches what in this process, and the one thread that looks for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pyworker.record import field, mutable

Deliver = Callable[[str | None], None]
Hear = Callable[[str, int], None]


class Watched:
    """One `watch`: what was delivered last. Compared by text, so that a value is delivered when it is another one."""

    def __init__(self, key: str, deliver: Deliver) -> None:
        self.key = key
        self.deliver = deliver
        self.last: str | None = None
        self.told = False


@mutable
class Interests:
    """What the thread looks for, and takes copies of. Any thread changes it, each time in one step that is C and needs no lock:
    the end of a watch may be called by Python's collector, in the middle of anything."""

    watched: dict[Watched, None] = field(default_factory=dict)  # in their order; thousands may come and go
    listening: dict[Hear, None] = field(default_factory=dict)
    begun: object = None  # another one with each that begins: it is still to be told what was read for others already

    def keys(self) -> list[str]:
        return sorted({w.key for w in list(self.watched)})

    def watch(self, key: str, deliver: Deliver) -> Callable[[], None]:
        one = Watched(key, deliver)
        self.watched[one] = None
        self.begun = object()
        return lambda: self.watched.pop(one, None)

    def listen(self, hear: Hear) -> Callable[[], None]:
        self.listening[hear] = None
        self.begun = object()
        return lambda: self.listening.pop(hear, None)

    def look(self, keys: list[str], found: dict[str, str]) -> None:
        """Deliver what is new of these keys, which were read just now. Called by the one thread only."""
        read = set(keys)
        for one in [w for w in list(self.watched) if w.key in read]:
            text = found.get(one.key)
            if not one.told or text != one.last:
                one.told, one.last = True, text
                one.deliver(text)

    def hear(self, text: str, missed: int) -> None:
        for each in list(self.listening):
            each(text, missed)


class Thread:
    """At most one thread, started when it is needed; `run` returns when `closed` is set, and is run again if it fails."""

    def __init__(self, run: Callable[[], None], on_error: Callable[[Exception], None]) -> None:
        self._run = run
        self._on_error = on_error
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.closed = False

    def ensure(self) -> None:
        """Have it run."""
        if self._thread is None and not self.closed:
            threading.Thread(target=self._main, name="pyworker-state", daemon=True).start()

    def join(self) -> None:
        """Wait until it has ended; `run` must have been told."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    def _main(self) -> None:
        # not noted where it is started: the handler of a signal may have ended that, and it is begun anew
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.current_thread()
        pause = 0.05
        while not self.closed:
            started = time.monotonic()
            try:
                self._run()
                return
            except Exception as error:  # noqa: BLE001  a store that is away: looked for again, whatever it said
                self._on_error(error)
            pause = 0.05 if time.monotonic() - started > 5 else min(1.0, pause * 2)
            time.sleep(pause)
