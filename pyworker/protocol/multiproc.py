"""Names of prometheus_client's files in an app's folder, by slot: worker and daemon agree on them here. Pure.

Two workers of a slot live side by side in a reload and must not write to one file, so a slot has several names (`w2`,
`w2b`, `w2c`…). Whoever has one holds a record lock (fcntl) on its byte of SLOTS_FILE; the kernel lets it go at the end
of the process, however that comes. Slot 0 is the template's: it has imported the metrics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ENV_DIR = "PROMETHEUS_MULTIPROC_DIR"
SLOTS_FILE = ".slots"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NAME = re.compile(r"w(\d{1,6})([b-z]?)\Z")


def names(slot: int) -> Iterator[tuple[str, int]]:
    """Yield the names of a slot and the byte of each, the one to be preferred first."""
    for number, letter in enumerate(_LETTERS):
        yield f"w{slot}{letter if number else ''}", slot * len(_LETTERS) + number


def byte_of(name: str) -> int | None:
    """Return the byte of a name, None for a text that is none (a pid: of what a worker has forked)."""
    found = _NAME.match(name)
    return None if found is None else int(found[1]) * len(_LETTERS) + _LETTERS.index(found[2] or "a")
