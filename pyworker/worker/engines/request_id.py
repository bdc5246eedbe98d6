"""Worker: a cheap unique id for each request. Not a secret: it can be guessed by who has seen another one."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from operator import attrgetter

HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[!-~]{1,128}\Z")
# to format a number costs more than all else that is done for an id
_LAST = [b"%02x" % n for n in range(256)]


def ids() -> Iterator[bytes]:
    """Return the ids of one worker: random bytes chosen once (after the fork), then a counter.

    All of it is C: a generator would have ended for good where the handler of a signal raises in it.
    """
    firsts = map((os.urandom(8).hex().encode() + b"-%04x").__mod__, itertools.count())
    return itertools.chain.from_iterable(map(map, map(attrgetter("__add__"), firsts), itertools.repeat(_LAST)))


def acceptable(value: bytes) -> bool:
    """True for an id of a trusted proxy that may be passed on: visible ASCII, at most 128."""
    return _ACCEPTABLE.match(value) is not None
