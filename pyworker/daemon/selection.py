"""Daemon: selectors ("api", "api.2", "w*", "all") -> apps and slots. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from pyworker.record import record

_WORKER = re.compile(r"(.+)\.([0-9]{1,4})\Z")
_WILD = re.compile(r"[*?[]")
_LONGEST = 256  # of a glob; a name has 64


@record
class Selected:
    """One app, or one slot of it."""

    app: str
    slot: int | None = None


def select(selectors: Iterable[str], names: Iterable[str]) -> tuple[list[Selected], list[str]]:
    """Return what is meant, each once and in the order asked for, and the selectors that mean nothing here."""
    known = sorted(names)
    found: dict[Selected, None] = {}
    unknown: list[str] = []
    for selector in selectors:
        if selector == "all":
            matches = [Selected(n) for n in known]
            if not matches:
                continue
        else:
            matches = _matches(selector, known)
        if not matches:
            unknown.append(selector)
        found.update(dict.fromkeys(matches))
    return list(found), unknown


def _matches(selector: str, known: list[str]) -> list[Selected]:
    if selector in known:
        return [Selected(selector)]
    whole = [Selected(n) for n in _like(selector, known)]
    worker = _WORKER.match(selector)
    if whole or worker is None:
        return whole
    return [Selected(n, int(worker[2])) for n in _like(worker[1], known)]


def _like(pattern: str, known: list[str]) -> list[str]:
    if _WILD.search(pattern) is None:  # fnmatch would keep an expression for every name that anybody has ever mistyped
        return [pattern] if pattern in known else []
    if len(pattern) > _LONGEST:  # fnmatch takes the square of the time
        return []
    return [name for name in known if fnmatch.fnmatchcase(name, pattern)]


def nearest(selector: str, names: Iterable[str]) -> str:
    """Return the name that was probably meant, or ""."""
    import difflib

    close = difflib.get_close_matches(selector.partition(".")[0], list(names), 1)
    return close[0] if close else ""
