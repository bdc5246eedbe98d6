"""A disk that does not answer, of a test's own process. Who waits for it is known: no test depends on how fast others are."""

from __future__ import annotations

import threading
from typing import Any

from pyworker.unix.errand import Errand
from tests.support.wait import wait_until


class Hung:
    def __init__(self) -> None:
        self.answers = threading.Event()
        self.patience: list[float] = []  # seconds for which its askers would have waited
        self._waiting: set[threading.Thread] = set()

    def wait(self) -> None:
        self._waiting.add(threading.current_thread())
        self.answers.wait()

    def errand(self, call: Any) -> Errand[Any]:
        """In the place of Errand: one that waits for this disk is late at once, any other one never."""
        return _Errand(self, call)

    def has(self, thread: threading.Thread) -> bool:
        return thread in self._waiting and not self.answers.is_set()


class _Errand(Errand[Any]):
    def __init__(self, disk: Hung, call: Any) -> None:
        self._disk = disk
        super().__init__(call)

    def is_over(self, seconds: float = 0.0) -> bool:
        if seconds:
            wait_until(lambda: self._disk.has(self._thread) or not self._thread.is_alive(), what="an answer")
            if self._thread.is_alive():
                self._disk.patience.append(seconds)
                return False
        return super().is_over()
