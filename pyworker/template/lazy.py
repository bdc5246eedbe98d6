"""Template: what the app's own modules import lazily (Python 3.15, PEP 810) is imported before the forks.

Else each worker would import it for itself, in the middle of its first requests, and a module that is missing would be found
by a client instead of a reload. One that fails is no reason against a start, as it is none for Python: it may never be used.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from typing import Any

from pyworker.worker import headline
from pyworker.worker.say import say

_LAZY = getattr(types, "LazyImportType", None)


def import_now(here: str) -> None:
    """Import what modules below the folder `here` have left for later, and what those leave; say which cannot be."""
    if _LAZY is None:
        return
    tried: set[tuple[str, str]] = set()
    while left := [each for each in _left(here) if each not in tried]:
        tried.update(left)
        for module, name in left:
            try:
                getattr(sys.modules[module], name)
            except BaseException as error:  # noqa: BLE001  sys.exit(), too: whoever uses it will meet it
                say(f"{module} imports {name} lazily, and that fails: {headline.of(error)}")


def _left(here: str) -> Iterator[tuple[str, str]]:
    here = os.path.join(here, "")
    for module, loaded in list(sys.modules.items()):
        found = names_in(loaded)
        file = found.get("__file__")
        if isinstance(file, str) and file.startswith(here) and f"{os.sep}site-packages{os.sep}" not in file:
            yield from ((module, name) for name, value in list(found.items()) if type(value) is _LAZY)


def names_in(module: object) -> dict[str, Any]:
    """Return what a module holds, without asking it: some are loaded when they are (`importlib.util.LazyLoader`), and
    that may fail. An app may also put anything there.
    """
    try:
        found = object.__getattribute__(module, "__dict__")
    except Exception:  # noqa: BLE001  a property of the app's
        return {}
    return found if isinstance(found, dict) else {}
