"""Logger: the time of a chunk as text, cheap enough for every chunk."""

from __future__ import annotations

import time


class Stamp:
    """UTC with milliseconds: "2026-11-23T14:02:31.104Z"."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        moment = time.time_ns() // 1_000_000
        second, milliseconds = divmod(moment, 1000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{milliseconds:03}Z"
