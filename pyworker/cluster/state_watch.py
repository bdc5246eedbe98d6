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
    """What the thread looks for. Changed by any thread under `lock`; the thread takes copies."""

    watched: dict[Watched, None] = field(default_factory=dict)  # in their order; thousands may come and go
    listening: list[Hear] = field(default_factory=list)
    begun: int = 0  # watches so far: each is still to be told what is there, also when its key was read for another
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keys(self) -> list[str]:
        with self.lock:
            return sorted({w.key for w in self.watched})

    def watch(self, key: str, deliver: Deliver) -> Callable[[], None]:
        one = Watched(key, deliver)
        with self.lock:
            self.watched[one] = None
            self.begun += 1

        def end() -> None:
            with self.lock:
                self.watched.pop(one, None)

        return end

    def listen(self, hear: Hear) -> Callable[[], None]:
        with self.lock:
            self.listening.append(hear)

        def end() -> None:
            with self.lock:
                if hear in self.listening:
                    self.listening.remove(hear)

        return end

    def look(self, keys: list[str], found: dict[str, str]) -> None:
        """Deliver what is new of these keys, which were read just now. Called by the one thread only."""
        read = set(keys)
        with self.lock:
            todo = [w for w in self.watched if w.key in read]
        for one in todo:
            text = found.get(one.key)
            if not one.told or text != one.last:
                one.told, one.last = True, text
                one.deliver(text)

    def hear(self, text: str, missed: int) -> None:
        with self.lock:
            todo = list(self.listening)
        for each in todo:
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
        with self._lock:
            if self._thread is None and not self.closed:
                thread = threading.Thread(target=self._main, name="pyworker-state", daemon=True)
                thread.start()
                self._thread = thread  # not before: one that cannot be started now is tried again

    def join(self) -> None:
        """Wait until it has ended; `run` must have been told."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    def _main(self) -> None:
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
