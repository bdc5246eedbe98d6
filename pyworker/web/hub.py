"""Web: asks the daemon in turns, keeps the last answer, and tells all who look. Asks rarely while nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from pyworker.protocol import control as k
from pyworker.protocol.events import Event, sentence
from pyworker.protocol.names import STATE_DIR
from pyworker.protocol.wire import WireError, from_json
from pyworker.web.control import Away, Declined, answers, ask
from pyworker.web.history import STEP, History, Ring

LOOK = 1.0  # seconds between two looks while somebody looks
_AGAIN = 1.0
_EVENTS = 200
_MOST_WAITING = 50  # messages that a browser may leave unread
HISTORY_FILE = "web-history.jsonl"
Message = tuple[str, Any]


class _Looker(asyncio.Queue[Message | None]):
    """What a browser has not been sent yet, None at the end. A look is made when it is sent: the newest is all that counts."""

    has_look = False  # one of the messages is


class Hub:
    """What is known, and who wants to know."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.document: dict[str, Any] | None = None
        self.away = "not asked yet"
        self.events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        folder = os.path.join(home, STATE_DIR)
        with contextlib.suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        self._ring = Ring(os.path.join(folder, HISTORY_FILE))
        self.history = History(self._ring.load(time.time() - 3600))
        self._lookers: set[_Looker] = set()
        self._wake = asyncio.Event()
        self._seq = 0
        self._time = ""
        self._next_point = 0.0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll())
            group.create_task(self._follow())

    def end(self) -> None:
        """End all streams: the server waits for them."""
        for looker in self._lookers:
            with contextlib.suppress(asyncio.QueueFull):
                looker.put_nowait(None)

    def state(self) -> dict[str, Any]:
        """Return what a page starts with."""
        return {**self._seen(), "events": list(self.events)}

    def _seen(self) -> dict[str, Any]:
        return {"v": 1, "now": time.time(), "document": self.document, "away": self.away}

    def refresh(self) -> None:
        self._wake.set()

    async def stream(self) -> AsyncIterator[Message]:
        """Yield what a page starts with, then what is new. A reader that is too slow is dropped (and comes back)."""
        looker = _Looker(_MOST_WAITING)
        self._lookers.add(looker)
        self._wake.set()
        try:
            yield "state", self.state()
            while (message := await looker.get()) is not None:
                if message[0] == "look":
                    looker.has_look = False
                    message = ("look", self._seen())
                yield message
        finally:
            self._lookers.discard(looker)

    def _tell(self, kind: str, value: Any = None) -> None:
        for looker in list(self._lookers):
            if kind == "look" and looker.has_look:
                continue
            try:
                looker.put_nowait((kind, value))
                looker.has_look |= kind == "look"
            except asyncio.QueueFull:
                self._lookers.discard(looker)
                while not looker.empty():
                    looker.get_nowait()
                looker.put_nowait(None)

    async def _poll(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self.document = (await ask(self.home, k.Ps((), pss=True))).body
                self.away = ""
            except (Away, Declined) as error:
                self.document, self.away = None, str(error)
            if self.document is not None and began >= self._next_point:
                self._next_point = began + STEP - 0.1
                point = self.history.feed(self.document, time.time(), time.monotonic())
                self._ring.add(point, self.history.points)
                self._tell("point", point)
            self._tell("look")
            pause = began + (LOOK if self._lookers else STEP) - time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.05, pause))
                await asyncio.sleep(0.2)  # several events are one look
            self._wake.clear()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(Away, Declined):
                # 0 would ask for none of the past
                async for answer in answers(self.home, k.Follow((), max(1, self._seq))):
                    if isinstance(answer, k.Reply):
                        break
                    self._add_event(answer)
            await asyncio.sleep(_AGAIN)

    def _add_event(self, raw: dict[str, Any]) -> None:
        try:
            event = from_json(Event, raw, "event")
            words = " ".join(sentence(event).split())
        except (WireError, KeyError, TypeError, ValueError):
            return
        if event.seq <= self._seq and event.time <= self._time:  # a later one of a lower number: the home is a new one
            return
        self._seq, self._time = event.seq, event.time
        shown = {
            "seq": event.seq, "time": event.time, "app": event.app, "worker": event.worker, "type": event.type,
            "words": words,
        }  # fmt: skip
        self.events.append(shown)
        self._tell("event", shown)
        if self._lookers:  # else an app that dies again and again would have all memory counted several times a second
            self._wake.set()
