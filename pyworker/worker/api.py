"""Worker: what `import pyworker` offers to an app inside one. Outside a worker each call does nothing.

The worker's main (or the script runtime) fills in what happens; this module only keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_stop_callbacks: list[Callable[[], Any]] = []
_on_ready: Callable[[], None] | None = None


def ready() -> None:
    """Say that this worker is ready. Only a script that binds no port needs to: all others are known to be."""
    if _on_ready is not None:
        _on_ready()


def on_stop(fn: Callable[[], Any]) -> Callable[[], Any]:
    """Call `fn` when this worker starts to drain. Usable as a decorator. In an ASGI app it may be async: the app shuts down after it."""
    _stop_callbacks.append(fn)
    return fn


def set_ready(fn: Callable[[], None]) -> None:
    """Runtime: what ready() does in this process."""
    global _on_ready
    _on_ready = fn


def take_stop_callbacks() -> list[Callable[[], Any]]:
    """Runtime: the callbacks, each handed out once."""
    callbacks = list(_stop_callbacks)
    _stop_callbacks.clear()
    return callbacks
