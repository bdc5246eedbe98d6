"""CLI top: threads that ask the daemon, so that the view never waits for it. They hand over by a queue and wake the view.

Everything here may be left hanging when the view ends: the threads hold no lock and end with the program.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pyworker.cli import render
from pyworker.cli.client import Answer, Call, ask, figures, perform, shell_env
from pyworker.cli.eventlog import parse, words
from pyworker.cli.top.model import Wish
from pyworker.errors import PyworkerError
from pyworker.protocol.events import Event

_AGAIN = 0.5  # seconds until the next try when the daemon does not answer
_LEAST = 0.2  # seconds between two readings, whatever happens


class News(NamedTuple):
    """What a thread has to tell: one of these is set. `at`: when it was so, of a document; it may wait for its reader."""

    document: dict[str, Any] | None = None
    at: float = 0.0
    event: Event | None = None
    away: PyworkerError | None = None
    message: str = ""
    style: str = ""


class Feed:
    """`take` returns what has come in; `wake` is called, from another thread, whenever something has."""

    def __init__(self, home: str, names: tuple[str, ...], interval: float, wake: Callable[[], None]) -> None:
        self._home = home
        self._names = names
        self._interval = interval
        self._wake = wake
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._now = threading.Event()
        self._ended = False

    def start(self, since_seq: int) -> None:
        for target, args in ((self._poll, ()), (self._follow, (since_seq,))):
            threading.Thread(target=target, args=args, daemon=True).start()

    def end(self) -> None:
        self._ended = True
        self._now.set()

    def take(self) -> list[News]:
        found = []
        while True:
            try:
                found.append(self._news.get_nowait())
            except queue.Empty:
                return found

    def carry_out(self, wish: Wish) -> None:
        """Ask for a reload, restart or scale and tell how it went."""
        threading.Thread(target=self._carry_out, args=(wish,), daemon=True).start()

    def _tell(self, news: News) -> None:
        if not self._ended:
            self._news.put(news)
            self._wake()

    def _poll(self) -> None:
        while not self._ended:
            began = time.monotonic()
            try:
                document = ask(self._home, figures(self._names))
                self._tell(News(document=document, at=time.monotonic()))
                pause = self._interval
            except (PyworkerError, OSError) as error:
                if not isinstance(error, PyworkerError):
                    error = PyworkerError(str(error), hint="pyworker doctor")
                self._tell(News(away=error))
                pause = _AGAIN
            self._now.wait(max(0.05, began + pause - time.monotonic()))
            time.sleep(max(0.0, began + min(_LEAST, pause) - time.monotonic()))  # many events are one look
            self._now.clear()

    def _follow(self, seq: int) -> None:
        while not self._ended:
            try:
                request = {"type": "follow", "selectors": list(self._names), "since_seq": seq}
                with Call(self._home, request) as call:
                    for answer in call.answers(None, None):
                        event = None if isinstance(answer, Answer) else parse(answer)
                        if event is not None and event.seq > seq:
                            seq = event.seq
                            self._tell(News(event=event))
                            self._now.set()  # what has happened is seen at once
            except (PyworkerError, OSError):  # the polling thread says that it is away
                time.sleep(_AGAIN)

    def _carry_out(self, wish: Wish) -> None:
        request: dict[str, Any] = {"type": wish.what, "wait": True}
        if wish.what == "scale":
            request["changes"] = {wish.name: str(wish.number)}
        else:
            request |= {"selectors": [wish.name], "shell_env": shell_env()}

        def on_event(raw: dict[str, Any] | None) -> None:
            event = parse(raw)
            if event is not None:
                self._tell(News(message=f"{wish.what} of {wish.name}: {' '.join(words(event).split())}"))

        try:
            answer = perform(self._home, request, on_event, None, None)
            self._tell(_outcome(wish, answer))
        except (PyworkerError, OSError) as error:
            text = error.message if isinstance(error, PyworkerError) else str(error)
            self._tell(News(message=f"{wish.what} of {wish.name}: {text}", style="red"))
        self._now.set()


def _outcome(wish: Wish, answer: Answer) -> News:
    for result in answer.body.get("apps") or ():
        if not result.get("ok"):
            reason = result.get("reason") or "failed"
            return News(message=f"{wish.what} of {wish.name} failed: {reason}", style="red")
        count = f"{render.ready(result.get('workers') or {})} workers ready"
        text = f"{result.get('app')} {result.get('action')}: gen {result.get('gen')}, {count}"
        return News(message=f"{text}, {result.get('took_s', 0):.1f}s", style="green")
    return News(message=f"{wish.what} of {wish.name}: done", style="green")
