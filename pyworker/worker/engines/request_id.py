"""Worker: a cheap unique id for each request. Not a secret: it can be guessed by who has seen another one."""

from __future__ import annotations

import itertools
import os
import re

HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[!-~]{1,128}\Z")


class RequestIds:
    """Ids of one worker: random bytes chosen once (after the fork), then a counter."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex().encode()
        self._next = itertools.count(1).__next__

    def make(self) -> bytes:
        return b"%b-%06x" % (self._prefix, self._next())


def acceptable(value: bytes) -> bool:
    """True for an id of a trusted proxy that may be passed on: visible ASCII, at most 128."""
    return _ACCEPTABLE.match(value) is not None
