"""Template: bytecode that is older than its source is not used.

Python compares the second of a source's last change, and its size. What was changed in the second in which it had been
compiled, to something of the same length, would be taken for the old code: by a reload that comes at once, and from then on.
"""

from __future__ import annotations

import contextlib
import os
from importlib.machinery import SourceFileLoader
from importlib.util import cache_from_source
from typing import Any

_path_stats = SourceFileLoader.path_stats


def install() -> None:
    """Have every import of this process, and of what is forked from it, look more closely."""
    SourceFileLoader.path_stats = _path_stats_of_fresh  # type: ignore[method-assign]


def _path_stats_of_fresh(self: SourceFileLoader, path: str) -> dict[str, Any]:
    stats = {**_path_stats(self, path)}
    with contextlib.suppress(OSError, NotImplementedError):  # nothing was compiled, or is kept
        if os.stat(cache_from_source(path)).st_mtime < stats["mtime"]:
            stats["size"] = -1  # which no bytecode has been made from: it is compiled, and kept, again
    return stats
