"""What a new process is given: the names of fds in the guardian's store. Environment names and paths are in names.py.

fds are the state: the guardian's store maps these names to descriptors, and a daemon that starts again
knows from the names alone what runs. A worker is known by (app, generation, slot, serial), never by pid.
"""

from __future__ import annotations

import re

from pyworker.record import record

_APP = "[a-z0-9][a-z0-9_-]{0,63}"
APP_NAME = re.compile(rf"{_APP}\Z")

# ---- fd names in the guardian's store --------------------------------------------------------------
LOCK = "lock"
CONTROL = "control"
NOTIFY = "notify"
RUN = "run"  # in the foreground (`pyworker run`): what runs, protocol/run.py; sealed
WANTED = "wanted"  # in the foreground: the memfd that stands for apps.json
PROBE = "probe"  # in the foreground: the listener of the probe endpoint
EVENT = "event"  # the number of the last event that could not be written to disk
MINUTES = "minutes"  # when timetables were looked at last: a memfd that is written each minute (daemon/schedule.py)
STANDBY = "standby"  # in an upgrade: the channel to the guardian that stands by (guardian/standby.py)
LIFELINE = "lifeline"  # write end of a pipe held by guardian and daemon: its end tells the logger that both are gone,
#                        a byte tells the one of a dead guardian that the next guardian's has its descriptors


@record
class WorkerId:
    """The identity of a worker; its text is the tail of its fds' names."""

    app: str
    generation: int
    slot: int
    serial: int  # unique in the app; never used again

    def __str__(self) -> str:
        return f"{self.app}.{self.generation}.{self.slot}.{self.serial}"


@record
class FdName:
    """A parsed store name: kind and what it belongs to."""

    kind: str
    app: str
    numbers: tuple[int, ...]

    @property
    def worker(self) -> WorkerId:
        generation, slot, serial = self.numbers
        return WorkerId(self.app, generation, slot, serial)


# kind -> how many numbers follow the app's name
KINDS = {
    "listen": 1,  # listen.APP.INDEX          a listener (bound, listening, O_NONBLOCK)
    "board": 0,  # board.APP                  the scoreboard memfd
    "ledger": 0,  # ledger.APP                daemon's own memo of the app (a memfd; see daemon/)
    "stacks": 0,  # stacks.APP                memfd that workers write their stacks into when asked (O_APPEND)
    "logs": 0,  # logs.APP                    memfd: how the app's log is written (protocol/logs.py)
    "env": 1,  # env.APP.GENERATION           sealed memfd: the resolved app of a live generation
    "template": 1,  # template.APP.GENERATION daemon's end of the template's channel
    "tpid": 1,  # tpid.APP.GENERATION         the template's pidfd
    "spare": 1,  # spare.APP.GENERATION       the pidfd of the worker that it has forked ahead of need, or had
    "ctl": 3,  # ctl.APP.GEN.SLOT.SERIAL      daemon's end of the worker's channel
    "ipc": 3,  # ipc.APP.GEN.SLOT.SERIAL      daemon's end of the worker's message channel (Node's convention)
    "pid": 3,  # pid.APP.GEN.SLOT.SERIAL      the worker's pidfd
    "out": 3,  # out.APP.GEN.SLOT.SERIAL      read end of the worker's stdout
    "err": 3,  # err.APP.GEN.SLOT.SERIAL      read end of the worker's stderr
    "tout": 1,  # tout.APP.GENERATION         read end of the template's stdout
    "inbox": 1,  # inbox.APP.SLOT             reading end: connections that the slot's worker is to take
    "feed": 1,  # feed.APP.SLOT               its writing end, which the dispatcher gets
    "dispatcher": 0,  # dispatcher.APP        daemon's end of the dispatcher's channel
    "dpid": 0,  # dpid.APP                    the dispatcher's pidfd
    "hook": 1,  # hook.APP.GENERATION         the pidfd of its pre_start, while that runs
    "terr": 1,  # terr.APP.GENERATION         read end of the template's stderr
}
_STORED = re.compile(rf"[a-z][a-z0-9]{{0,31}}(?:\.({_APP})(?:\.[0-9]{{1,18}}){{0,8}})?\Z")
PIDFD_KINDS = frozenset({"pid", "tpid", "dpid", "spare", "hook"})
LOGGER_KINDS = PIDFD_KINDS | {"logs", "out", "err", "tout", "terr"}  # what the logger is handed


def fd_name(kind: str, app: str, *numbers: int) -> str:
    """Return the store name of an fd."""
    assert KINDS[kind] == len(numbers), (kind, numbers)
    return ".".join((kind, app, *map(str, numbers)))


def worker_fd(kind: str, worker: WorkerId) -> str:
    """Return the store name of one of a worker's fds."""
    return fd_name(kind, worker.app, worker.generation, worker.slot, worker.serial)


def app_of(name: str) -> str | None:
    """Return the app that a store name belongs to, also one of a kind that a later version will have; else None."""
    found = _STORED.match(name)
    return found[1] if found is not None else None


def may_be_stored(name: str) -> bool:
    """Whether a name is well-formed. Its kind may be one that only a later version knows: that is kept, too."""
    return _STORED.match(name) is not None


def parse_fd_name(name: str) -> FdName | None:
    """Return what a store name says, or None for the fixed names and for anything malformed."""
    if app_of(name) is None:
        return None
    kind, app, *numbers = name.split(".")
    if KINDS.get(kind) != len(numbers):
        return None
    return FdName(kind, app, tuple(map(int, numbers)))
