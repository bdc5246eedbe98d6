"""Daemon: the log of events. Each gets a number that never comes twice, a line on disk, and goes to who listens.

A full disk costs lines and never raises (`lost` counts them); a file that somebody moved or removed is made again; lines
that cannot be read are skipped. The words for an event are protocol/events.py's.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from heapq import merge
from operator import attrgetter
from typing import Any

from pyworker.daemon.loop import report_to_stderr
from pyworker.protocol.events import BY_ITSELF, TYPES, Event
from pyworker.protocol.logs import stamp
from pyworker.protocol.names import EVENTS_FILE
from pyworker.protocol.wire import WireError, from_json, parse_json, to_json
from pyworker.unix import stderr
from pyworker.unix.files import same_file

MAX_FILE = 4 * 1024 * 1024
KEPT = 500  # events in memory, and as many of what workers say
_SAID = "worker_message"
_MESSAGE = f'"type":"{_SAID}"'.encode()  # as it is written
_TAIL = 1024 * 1024  # read of each file at the start

Subscriber = Callable[[Event], None]


class EventLog:
    """Events of all apps, in the home that `home_fd` stands for (it stays the caller's and must stay open).

    -1: there is no home, and nothing is written.
    """

    def __init__(
        self,
        home_fd: int,
        clock: Callable[[], float] = time.time,
        *,
        last: int = 0,
        max_file: int = MAX_FILE,
        report: Callable[[str], None] = report_to_stderr,
    ) -> None:
        """`last`: the number of an event that is not on disk, as `on_lost` has said it to a log before this one."""
        self.by = BY_ITSELF  # who begins what is begun now: `by` of the events that have it
        self.lost = 0  # events that are not on disk
        self.on_lost: Callable[[int], None] = lambda seq: None
        self._home_fd = home_fd
        self._clock = clock
        self._max_file = max_file
        self._report = report
        self._subscribers: dict[object, Subscriber] = {}
        self._recent: deque[Event] = deque(maxlen=KEPT)
        self._said: deque[Event] = deque(maxlen=KEPT)  # by workers: however much that is, what has happened stays known
        self._fd = -1
        self._size = 0
        lines = [line for end in (".2", ".1", "") for line in self._read_tail(EVENTS_FILE + end)]
        while lines and len(self._recent) < KEPT:  # the last ones only: to read all would take a third of a second
            line = lines.pop()
            if len(self._said) == KEPT and _MESSAGE in line:
                continue
            event = _parse(line)
            if event is not None:
                self._kept(event.type).appendleft(event)
        self.seq = max((event.seq for event in (*self._recent, *self._said)), default=0)
        self.seq = max(self.seq, last)  # of the last event

    def emit(self, type: str, app: str = "", worker: int | None = None, /, **data: Any) -> Event:
        """Note that something happened. `data` must have exactly the keys that the type declares; `by` need not be given."""
        if "by" in TYPES[type]:
            data = {**data, "by": data.get("by", self.by)}
        if set(data) != set(TYPES[type]):
            raise ValueError(f"event {type} has the data {sorted(TYPES[type])}, not {sorted(data)}")
        self.seq += 1
        event = Event(self.seq, stamp(self._clock()), app, worker, type, _clean(data))
        self._kept(type).append(event)
        self._write(json.dumps(to_json(event), separators=(",", ":")).encode() + b"\n")
        for subscriber in list(self._subscribers.values()):
            try:
                subscriber(event)
            except Exception:  # noqa: BLE001 - who listens must not be able to stop what happens
                self._report(f"a subscriber failed at event {type}")
        return event

    def recent(self, app: str = "", *, since_seq: int = 0) -> list[Event]:
        """Return the events in memory, the oldest first; of one app only, if it is named."""
        events = merge(self._recent, self._said, key=attrgetter("seq"))
        return [e for e in events if e.seq > since_seq and (not app or e.app == app)]

    def _kept(self, type: str) -> deque[Event]:
        return self._said if type == _SAID else self._recent

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with each event from now on, until the function returned here is called."""
        key = object()
        self._subscribers[key] = subscriber

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextlib.contextmanager
    def begun_by(self, who: str) -> Iterator[None]:
        """What begins in here is begun by them."""
        before, self.by = self.by, who
        try:
            yield
        finally:
            self.by = before

    # ---- on disk -----------------------------------------------------------------------------------
    def _write(self, line: bytes) -> None:
        if self._home_fd < 0:
            return
        try:
            if self._fd < 0 or not self._has_its_name():
                self._open()
            elif self._size + len(line) > self._max_file and self._size:
                self._keep_on()
                self._rename(EVENTS_FILE, EVENTS_FILE + ".1")
                self._open()
            written = os.write(self._fd, line)
            if written < len(line):  # the disk is full: half a line must not be joined to the next one
                os.ftruncate(self._fd, self._size)
                self._lose()
            else:
                self._size += written
        except OSError as error:
            if not self.lost:
                stderr.say("daemon", f"cannot write {EVENTS_FILE}: {error.strerror}; events are lost until it can")
            self._lose()

    def _keep_on(self) -> None:
        """Keep on, in a file of its own, what has happened of the file that goes. A worker that says much fills one in seconds."""
        lines = self._read_tail(EVENTS_FILE + ".1", self._max_file)
        happened = [line + b"\n" for line in lines if _MESSAGE not in line]
        before = [line + b"\n" for line in self._read_tail(EVENTS_FILE + ".2", self._max_file)]
        if not before and len(happened) == len(lines):
            return
        text = b"".join([*before, *happened])
        if len(text) > self._max_file:
            text = text[-self._max_file :].partition(b"\n")[2]
        new = EVENTS_FILE + ".new"
        with contextlib.suppress(OSError):  # a full disk: it is the older ones that are lost
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=self._home_fd)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._home_fd)
            with open(fd, "wb") as file:
                file.write(text)
            self._rename(new, EVENTS_FILE + ".2")

    def _rename(self, old: str, new: str) -> None:
        os.replace(old, new, src_dir_fd=self._home_fd, dst_dir_fd=self._home_fd)

    def _lose(self) -> None:
        self.lost += 1
        with contextlib.suppress(OSError):
            self.on_lost(self.seq)

    def _has_its_name(self) -> bool:
        """False when somebody has moved or removed the file."""
        ours = os.fstat(self._fd)
        return same_file(self._home_fd, EVENTS_FILE, ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        self.close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # it may be a pipe
        self._fd = os.open(EVENTS_FILE, flags, 0o600, dir_fd=self._home_fd)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":  # cut short by a crash
            self._size += os.write(self._fd, b"\n")

    def _read_tail(self, name: str, most: int = _TAIL) -> list[bytes]:
        if self._home_fd < 0:
            return []
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._home_fd)
        except OSError:
            return []
        try:
            size = os.fstat(fd).st_size
            data = os.pread(fd, most, max(0, size - most))
        except OSError:
            return []
        finally:
            os.close(fd)
        return data.splitlines()


def stamp_of(moment: float, now: float) -> str:
    """Return a moment of the loop's clock, which shows `now`, as `stamp` does."""
    return stamp(time.time() - (now - moment))


def since_birth(moment: float, now: float, started_at: float | None = None) -> str:
    """Return from when on a process may have printed that was born at a moment of the loop's clock, which shows `now`.

    Some time before, as nobody looks at two clocks at once. `started_at`: its birth by the wall clock of then, which may
    have been set meanwhile.
    """
    by_now = time.time() - (now - moment)
    return stamp(min(by_now, by_now if started_at is None else started_at) - 1.0)


def _parse(line: bytes) -> Event | None:
    try:
        event = from_json(Event, parse_json(line), "event")
    except WireError:  # half a line, or an editor's work
        return None
    assert isinstance(event, Event)
    return event if event.seq < 2**53 else None


def _clean(value: Any) -> Any:
    """Return the value with text that can be encoded: an app's error message may hold a lone surrogate."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_clean(k): _clean(v) for k, v in value.items()}
        case list() | tuple():
            return [_clean(v) for v in value]
        case _:
            return value
