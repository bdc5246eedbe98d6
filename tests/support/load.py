"""Clients that never stop asking: what they lose is counted, with the reason."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Self

from tests.support.rawhttp import Client
from tests.support.wait import wait_until


class Load:
    """Used with `with`: threads that ask `path` until the end. "new" = a connection a request, "keep" = keep-alive."""

    def __init__(self, port: int, *kinds: str, path: str = "/", pause: float = 0.005) -> None:
        self.bodies: Counter[str] = Counter()
        self.lost: list[str] = []
        self.done = 0
        self._address = ("127.0.0.1", port)
        self._path = path
        self._pause = pause  # seconds after each answer: a light load
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._client, args=(kind,)) for kind in kinds or ("new", "new", "keep", "keep")
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"

    def wait_more(self, count: int) -> None:
        """Wait until `count` more requests were answered."""
        goal = self.done + count
        wait_until(lambda: self.done >= goal or len(self.lost) > 100, 30.0, lambda: f"{count} answers; lost: {self.lost[:3]}")

    def _client(self, kind: str) -> None:
        while not self._over.is_set():
            try:
                with Client(self._address, timeout=30) as client:
                    self._ask(client, kind)
            except OSError as error:
                self._lose(f"{kind}: {type(error).__name__} {error}")

    def _ask(self, client: Client, kind: str) -> None:
        asked = 0
        while not self._over.is_set():
            answer = client.get(self._path)
            if answer is None or answer.status != 200:
                self._lose(f"{kind}: {'closed' if answer is None else answer} at request {asked}")
                return
            asked += 1
            with self._lock:
                self.done += 1
                self.bodies[answer.body.decode()] += 1
            if self._pause:
                self._over.wait(self._pause)
            if answer.closes or kind == "new":
                return

    def _lose(self, reason: str) -> None:
        with self._lock:
            self.lost.append(reason)
