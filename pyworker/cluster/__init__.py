"""The public library, in the user's own program: `from pyworker import child_process, cluster, process, state`.

This package itself is `cluster`: Node's, for Python. `python -m pyworker.cluster --workers 4 app.py` needs no code at all.

    cluster.run("app.py", workers=4)     # an unmodified program, 4 times, behind one port

Importing it imports nothing else; a worker's side is installed on first use, or by the primary before the program runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyworker.cluster.child import ThisWorker
    from pyworker.cluster.members import Worker as Worker
    from pyworker.cluster.options import SCHED_NONE as SCHED_NONE
    from pyworker.cluster.options import SCHED_RR as SCHED_RR
    from pyworker.cluster.options import Scheduling
    from pyworker.cluster.options import Settings as Settings
    from pyworker.cluster.primary import Cluster as Cluster

    is_primary: bool
    is_worker: bool
    worker: ThisWorker | None
    workers: dict[int, Worker]
    settings: Settings
    scheduling_policy: Scheduling

    _default = Cluster()
    setup_primary = _default.setup_primary
    fork = _default.fork
    start = _default.start
    serve = _default.serve
    disconnect = _default.disconnect
    on = _default.on
    once = _default.once
    off = _default.off
    events = _default.events
    listeners = _default.listeners

_OF_CLUSTER = {
    *("setup_primary", "fork", "start", "serve", "disconnect", "workers", "settings", "scheduling_policy"),
    *("on", "once", "off", "events", "listeners"),
}
_TYPES = {
    "Cluster": "primary",
    "Worker": "members",
    **dict.fromkeys(("Settings", "SCHED_NONE", "SCHED_RR"), "options"),
}


def run(exec: Any = None, args: Any = (), **options: Any) -> None:
    """Run a script as a cluster until SIGTERM or SIGINT: the one call. The options are those of `setup_primary`.

    Returns also when all workers have ended and none is replaced; exits with 1 when they could not be kept alive.

    In a worker it returns at once, so that a program may call it in its first lines, without a script: then it is
    run itself, once as the primary and in every worker from its beginning.
    """
    from pyworker.cluster import child

    if child.worker is not None:
        return
    import asyncio
    import sys

    if not asyncio.run(_cluster().serve(exec, args, **options)):
        sys.exit(1)
    if exec is None and options.get("module") is None:
        sys.exit(0)


_made: Any = None


def _cluster() -> Any:
    global _made
    if _made is None:
        from pyworker.cluster.primary import Cluster

        _made = Cluster()
    return _made


if not TYPE_CHECKING:  # a name that is misspelled is an error of a type checker

    def __getattr__(name: str) -> Any:
        if name in ("is_primary", "is_worker", "worker"):
            from pyworker.cluster import child

            return child.worker if name == "worker" else (child.worker is None) == (name == "is_primary")
        if name in _OF_CLUSTER:
            return getattr(_cluster(), name)
        if name in _TYPES:
            import importlib

            return getattr(importlib.import_module(f"{__name__}.{_TYPES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
