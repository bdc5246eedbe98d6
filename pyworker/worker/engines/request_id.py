"""Worker: a cheap unique id for each request. Not a secret: it can be guessed by who has seen another one."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator

HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[!-~]{1,128}\Z")


def ids() -> Iterator[bytes]:
    """Return the ids of one worker: random bytes chosen once (after the fork), then a counter.

    Not a generator, which would have ended for good where the handler of a signal raises in it.
    """
    return map((os.urandom(8).hex().encode() + b"-%06x").__mod__, itertools.count())


def acceptable(value: bytes) -> bool:
    """True for an id of a trusted proxy that may be passed on: visible ASCII, at most 128."""
    return _ACCEPTABLE.match(value) is not None
