"""Shared state in one SQLite file that every process opens for itself. No server, no daemon, nothing in between.

A commit is announced by one byte written to the file `bell` beside it: the kernel (inotify) wakes whoever watches. That
works while the daemon is away, in a cluster program, between any two processes of one user. A writer that is killed
between its commit and its byte has committed all the same, and watchers look by themselves once a second.
"""

from __future__ import annotations

import contextlib
import os
import select
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from pyworker.cluster.sqlite_connection import BELL, Connection, open_bell
from pyworker.cluster.state_store import (
    KEPT_MESSAGES,
    MAX_INTEGER,
    StateError,
    StateTooLarge,
    StateUnavailable,
    whole_number,
)
from pyworker.cluster.state_watch import Interests, Thread
from pyworker.errors import is_raised_by_program
from pyworker.unix import bell
from pyworker.unix.ready import green_poll

_LOOK = 1.0  # seconds: watchers look by themselves, for changes whose writer died before it could ring
_POLL = 0.02  # seconds, where the kernel has no inotify for us
_MESSAGES_AGE = 60.0  # seconds that a broadcast is kept for those who are slow to fetch it
T = TypeVar("T")


class SqliteStore:
    """The store in a folder, which is made (0700) when it is not there."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.abspath(folder)
        self._writing = Connection(self._folder)
        self._looking = Connection(self._folder)
        self._bell = -1
        self._bell_of = (0, 0, 0)  # the file that it is beside
        self._purge_at = 0.0
        self._pid = 0
        self._wake_fd = self._rung_fd = -1
        self._here()

    def _here(self) -> None:
        """Begin anew in a child that was forked from this process: threads and those who watch stay behind."""
        if self._pid == os.getpid():
            return
        for fd in (self._wake_fd, self._rung_fd):
            if fd >= 0:
                os.close(fd)
        self._wake_fd = self._rung_fd = -1
        self._interests = Interests()
        self._thread = Thread(self._look_out, self._away)
        self._sender = f"{os.getpid()}-{os.urandom(6).hex()}"
        self._heard = 0  # number of the last message that was handed out
        self._heard_of = (0, 0, 0)  # the file that it is of
        self._pid = os.getpid()

    # ---- reading and writing -------------------------------------------------------------------------
    def read(self, keys: Iterable[str]) -> dict[str, str]:
        with self._writing.use() as db:
            return _read(db, keys)

    def keys(self, prefix: str) -> list[str]:
        with self._writing.use() as db:
            rows = db.execute(
                "SELECT key FROM state WHERE substr(key, 1, ?) = ? AND (expires IS NULL OR expires > ?) ORDER BY key",
                (len(prefix), prefix, time.time()),
            )
            return [row[0] for row in rows]

    def write(self, key: str, text: str, ttl: float | None) -> None:
        def step(db: sqlite3.Connection) -> None:
            _put(db, key, text, None if ttl is None else time.time() + ttl)
            self._purge(db)

        self._do(step)
        self._ring()

    def remove(self, key: str) -> bool:
        with self._writing.transaction() as db:
            there = bool(_read(db, [key]))
            db.execute("DELETE FROM state WHERE key = ?", (key,))
        if there:
            self._ring()
        return there

    def add(self, key: str, by: int, ttl: float | None) -> int:
        def step(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT value, expires FROM state WHERE key = ?", (key,)).fetchone()
            if row is not None and row[1] is not None and row[1] <= time.time():
                row = None
            number = whole_number(row[0] if row else "0", key) + by
            if not -MAX_INTEGER <= number <= MAX_INTEGER:
                raise StateError(f"the counter {key!r} would leave 64 bits")
            _put(db, key, str(number), row[1] if row else None if ttl is None else time.time() + ttl)
            self._purge(db)
            return number

        number = self._do(step)
        self._ring()
        return number

    def change(
        self, keys: tuple[str, ...], function: Callable[[dict[str, str]], dict[str, str | None]], ttl: float | None
    ) -> None:
        def step(db: sqlite3.Connection) -> bool:
            wanted = function(_read(db, keys))
            for key, text in wanted.items():
                if text is None:
                    db.execute("DELETE FROM state WHERE key = ?", (key,))
                    continue
                if ttl is not None:
                    expires: float | None = time.time() + ttl
                else:
                    row = db.execute("SELECT expires FROM state WHERE key = ?", (key,)).fetchone()
                    expires = row[0] if row else None
                    if expires is not None and expires <= time.time():
                        expires = None
                _put(db, key, text, expires)
            return bool(wanted)

        if self._do(step):
            self._ring()

    def _do(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """Do a step in a transaction. Where there is no room, all that has expired goes first."""
        try:
            with self._writing.transaction() as db:
                return step(db)
        except StateTooLarge as error:
            if not isinstance(error.__cause__, sqlite3.Error):
                raise  # one value is too large, whatever room there is
            with self._writing.transaction() as db:
                gone = db.execute("DELETE FROM state WHERE expires <= ?", (time.time(),)).rowcount
            if not gone:
                raise
        with self._writing.transaction() as db:
            return step(db)

    def _purge(self, db: sqlite3.Connection) -> None:
        """Now and then: what has expired makes room, a few rows at a time."""
        now = time.monotonic()
        if now < self._purge_at:
            return
        self._purge_at = now + 1.0
        db.execute(
            "DELETE FROM state WHERE key IN (SELECT key FROM state WHERE expires <= ? LIMIT 1000)", (time.time(),)
        )

    # ---- messages ------------------------------------------------------------------------------------
    def say(self, text: str) -> None:
        self._here()
        now = time.time()

        def step(db: sqlite3.Connection) -> None:
            cursor = db.execute("INSERT INTO messages (at, sender, text) VALUES (?, ?, ?)", (now, self._sender, text))
            oldest = (cursor.lastrowid or 0) - KEPT_MESSAGES
            db.execute("DELETE FROM messages WHERE seq <= ?", (oldest,))
            db.execute(
                "DELETE FROM messages WHERE seq IN (SELECT seq FROM messages WHERE at < ? ORDER BY seq LIMIT 100)",
                (now - _MESSAGES_AGE,),
            )

        self._do(step)
        self._ring()

    # ---- being told ----------------------------------------------------------------------------------
    def watch(self, key: str, deliver: Callable[[str | None], None]) -> Callable[[], None]:
        self._here()
        with self._looking.use():
            pass  # what cannot be opened is said here, to the caller
        self._thread.ensure()
        end = self._interests.watch(key, deliver)
        self._wake()
        return end

    def listen(self, deliver: Callable[[str, int], None]) -> Callable[[], None]:
        self._here()
        with self._looking.use() as db:
            last, file = _last_message(db), self._looking.file
        self._thread.ensure()
        if not self._interests.listening:
            self._heard, self._heard_of = last, file
        end = self._interests.listen(deliver)
        self._wake()
        return end

    def close(self) -> None:
        self._here()
        self._thread.closed = True
        self._wake()
        self._thread.join()
        self._writing.close()
        self._looking.close()
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def _ring(self) -> None:
        """Tell all watchers of this folder, whoever they are. Needs nobody who listens and never waits."""
        try:
            if self._bell_of != self._writing.file:
                with self._writing.lock:
                    self._take_bell()
            bell.ring(self._bell)
        except OSError as error:
            if is_raised_by_program(error):
                raise

    def _take_bell(self) -> None:
        file = self._writing.file
        if self._bell_of != file:
            before, self._bell = self._bell, open_bell(self._folder)
            self._bell_of = file
            if before >= 0:
                os.close(before)

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake_fd, 1)

    def _look_out(self) -> None:
        """The thread: whenever the bell rings look at what is watched, and hand out what is new."""
        wake = self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with contextlib.suppress(OSError):  # none left for this user: looked every 20 ms instead
                os.close(open_bell(self._folder))
                self._rung_fd = bell.watch(os.path.join(self._folder, BELL))
            poll = green_poll()
            poll.register(wake, select.POLLIN)
            if self._rung_fd >= 0:
                poll.register(self._rung_fd, select.POLLIN)
            seen: object = None
            file: object = None
            expires: float | None = None
            while not self._thread.closed:
                begun, keys = self._interests.begun, self._interests.keys()
                messages: list[tuple[int, str, str]] = []
                found: dict[str, str] | None = None
                with self._looking.use() as db:
                    if file not in (None, self._looking.file):
                        raise StateUnavailable("the file was removed")  # the bell, too: all of it anew, in a moment
                    file = self._looking.file
                    version = (self._looking.opened, db.execute("PRAGMA data_version").fetchone()[0], begun)
                    if version != seen or (expires is not None and expires <= time.time()):
                        seen = version
                        now = time.time()  # one moment for both: what ends between them would be told by neither
                        found = _read(db, keys, now)
                        messages = self._new_messages(db)
                        expires = _next_expiry(db, keys, now)
                if found is not None:  # outside of the lock: a callback may take its time, and fork
                    self._interests.look(keys, found)
                    self._hand_out(messages)
                wait = _LOOK if self._rung_fd >= 0 else _POLL
                if expires is not None:
                    wait = min(wait, max(0.0, expires - time.time()) + 0.001)
                poll.poll(wait * 1000)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(wake)
                if self._rung_fd >= 0:
                    bell.take(self._rung_fd)
        finally:
            self._wake_fd = -1
            os.close(wake)
            if self._rung_fd >= 0:
                rung, self._rung_fd = self._rung_fd, -1
                os.close(rung)

    def _new_messages(self, db: sqlite3.Connection) -> list[tuple[int, str, str]]:
        if not self._interests.listening:
            return []
        if self._heard_of != self._looking.file:  # that one was removed; here they are counted anew
            self._heard, self._heard_of = 0, self._looking.file
        rows = db.execute("SELECT seq, sender, text FROM messages WHERE seq > ? ORDER BY seq", (self._heard,))
        return rows.fetchall()

    def _hand_out(self, messages: list[tuple[int, str, str]]) -> None:
        for seq, sender, text in messages:
            missed, self._heard = seq - self._heard - 1, seq
            if sender != self._sender:
                self._interests.hear(text, missed)

    def _away(self, error: Exception) -> None:
        """The file cannot be read just now (a full disk, a deleted folder): the thread tries again."""
        self._looking.drop()


def _read(db: sqlite3.Connection, keys: Iterable[str], now: float | None = None) -> dict[str, str]:
    names = list(keys)
    now = time.time() if now is None else now
    found: dict[str, str] = {}
    for start in range(0, len(names), 500):
        part = names[start : start + 500]
        marks = ",".join("?" * len(part))
        rows = db.execute(
            f"SELECT key, value FROM state WHERE key IN ({marks}) AND (expires IS NULL OR expires > ?)", (*part, now)
        )
        found.update(rows)
    return found


def _next_expiry(db: sqlite3.Connection, keys: list[str], now: float) -> float | None:
    times = [
        row[0]
        for key in keys
        for row in db.execute("SELECT expires FROM state WHERE key = ? AND expires > ?", (key, now))
    ]
    return min(times, default=None)


def _last_message(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").fetchone()
    return int(row[0]) if row else 0


def _put(db: sqlite3.Connection, key: str, text: str, expires: float | None) -> None:
    db.execute(
        "INSERT INTO state (key, value, expires) VALUES (?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires",
        (key, text, expires),
    )
