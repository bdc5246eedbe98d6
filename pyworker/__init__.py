"""pyworker: keeps Python programs running.

Importing this package imports nothing else. Inside a worker `pyworker.worker`, `pyworker.ready()` and
`pyworker.on_stop()` are there; they are looked up on first use so that a process that only wants
`__version__` pays for nothing more.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyworker.cluster import child_process as child_process
    from pyworker.cluster import process as process
    from pyworker.cluster import state as state
    from pyworker.worker.api import on_stop as on_stop
    from pyworker.worker.api import ready as ready


def __getattr__(name: str) -> object:
    if name in {"ready", "on_stop"}:
        from pyworker.worker import api

        return getattr(api, name)
    if name in {"child_process", "process", "state"}:
        import importlib

        return importlib.import_module(f"pyworker.cluster.{name}")
    if name in {"cluster", "worker"}:
        import importlib

        return importlib.import_module(f"pyworker.{name}")
    raise AttributeError(f"module 'pyworker' has no attribute {name!r}")
