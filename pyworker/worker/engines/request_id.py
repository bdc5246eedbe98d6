"""Worker: a cheap unique id for each request. Not a secret: it can be guessed by who has seen another one."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator

HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[!-~]{1,128}\Z")
# to format a number costs more than all else that is done for an id
_LAST = [b"%02x" % n for n in range(256)]


def ids() -> Iterator[bytes]:
    """Yield the ids of one worker: random bytes chosen once (after the fork), then a counter."""
    prefix = os.urandom(8).hex().encode()
    for n in itertools.count():
        first = b"%b-%04x" % (prefix, n)
        for last in _LAST:
            yield first + last


def acceptable(value: bytes) -> bool:
    """True for an id of a trusted proxy that may be passed on: visible ASCII, at most 128."""
    return _ACCEPTABLE.match(value) is not None
