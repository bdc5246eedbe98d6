"""Template, worker: prometheus_client names its files by slot instead of by pid ([app.metrics] prometheus = true).

By pid, every worker that is replaced leaves its files behind, and each scrape reads all that there ever were. By slot, a
successor goes on in the files of the one before: its counters, too, and the number of files is bounded. What a worker
forks itself has files of its own, by pid, as prometheus_client has it. An app without prometheus_client loses nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from pyworker.protocol.multiproc import ENV_DIR, SLOTS_FILE, names

_name = ""  # of this process's files
_owner = 0  # the process that has it; what it forks has not
_slots = -1


def prepare() -> None:
    """Before the app is imported: metrics that it makes will ask us for the name of their file."""
    if ENV_DIR not in os.environ:
        return
    try:
        from prometheus_client import values
    except Exception:  # noqa: BLE001  not installed, or broken: then the app will meet that, too
        return
    values.ValueClass = values.MultiProcessValue(process_identifier=_identifier)  # type: ignore[no-untyped-call]


def take(slot: int) -> None:
    """Be this slot: a name that no living process has, without what the one before said of its own moment."""
    global _name, _owner, _slots
    folder = os.environ.get(ENV_DIR)
    if not folder:
        return
    with contextlib.suppress(OSError):  # by pid, then
        if _slots < 0:
            _slots = os.open(os.path.join(folder, SLOTS_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for name, byte in names(slot):
            with contextlib.suppress(BlockingIOError, PermissionError):  # either may mean that another has it
                fcntl.lockf(_slots, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                _name, _owner = name, os.getpid()
                break
        else:
            return
        for file in os.listdir(folder):
            if file.startswith("gauge_live") and file.endswith(f"_{_name}.db"):
                os.unlink(os.path.join(folder, file))


def _identifier() -> str | int:
    pid = os.getpid()
    return _name if pid == _owner else pid
