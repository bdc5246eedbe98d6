"""Shared state: one SQLite connection of a process: opened when it is needed, never alive through a fork.

SQLite's locks belong to the process that took them (see `_before_fork`). What SQLite says when it fails comes out as a
StateError. What is kept in the file, and for whom, is state_sqlite.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from pyworker.cluster.state_store import StateError, StateTooLarge, StateUnavailable
from pyworker.errors import FULL_DISK, NO_DESCRIPTOR, is_raised_by_program

FILE = "state.db"
BELL = "bell"  # beside it: see state_sqlite.py; its flock is the gate of those who open the file
MAX_SIZE = 256 * 1024 * 1024  # of the file
PATIENCE = 5.0  # seconds that a transaction waits for that of another process
_PAGE = 4096
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT NOT NULL, expires REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS expiring ON state (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS messages (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, sender TEXT, text TEXT);
"""
_BUSY = f"another process, or thread, has held the shared state for more than {PATIENCE:g} s: is there a slow update()?"
_IN_A_HANDLER = (
    "the handler of a signal came in the middle of {} of the shared state and cannot {} it, too: "
    "let it set a flag, or use loop.add_signal_handler"
)
_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_opening = threading.local()  # .now: this thread does


class Connection:
    """One SQLite connection that is opened when it is needed, used by one thread at a time, closed before a fork."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.closed = False
        self.opened = 0  # how often: what was seen through another connection says nothing about this one
        self.file = (0, 0, 0)  # which one: device, inode, and how many were removed before: its inode may be theirs
        self._removed = 0
        self._db: sqlite3.Connection | None = None
        self._depth = 0
        self._torn = False  # forked in the middle of a transaction of another thread
        _connections.add(self)

    @contextlib.contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection; every failure of SQLite comes out as a StateError."""
        with self.lock:
            if self._torn:
                raise StateUnavailable(
                    "this process was forked in the middle of an update() of the shared state and cannot use it: "
                    "fork before, or start a new program (of multiprocessing: spawn)"
                )
            if self.closed:
                raise StateUnavailable("this shared state was closed")
            if self._db is not None and self._depth == 0 and self._was_removed():
                self.drop()  # else we would go on alone, in a file that nobody else opens any more
                self._removed += 1
            self._depth += 1
            try:
                yield self._db or self._opened()
            except sqlite3.Error as error:
                raise _explain(error, self.folder) from error
            finally:
                self._depth -= 1

    def _opened(self) -> sqlite3.Connection:
        db, found = _open(self.folder)
        if self._db is not None:  # the handler of a signal has opened it meanwhile
            db.close()
            return self._db
        self._db, self.file = db, (*found, self._removed)
        self.opened += 1
        return db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection inside a transaction that no other process's overlaps."""
        began = time.monotonic()
        with self.use() as db:
            if db.in_transaction:
                raise StateError(_IN_A_HANDLER.format("a change", "change"))
            # each of the threads before this one may have waited as long in vain
            if time.monotonic() - began > PATIENCE:
                raise StateUnavailable(_BUSY)
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.drop()

    def drop(self) -> None:
        """Close the connection; the next use opens it again."""
        with self.lock:
            if self._db is not None and self._depth == 0:
                db, self._db = self._db, None
                db.close()

    def _was_removed(self) -> bool:
        try:
            return _identity(os.path.join(self.folder, FILE)) != self.file[:2]
        except FileNotFoundError:
            # the folder of an app with a `user` is the daemon's to make: until it is there all go on with what they have
            with contextlib.suppress(OSError):
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
            return os.path.isdir(self.folder)
        except OSError as error:  # who may not look knows nothing
            if is_raised_by_program(error):
                raise
            return False

    def before_fork(self) -> None:
        if self.lock.acquire(timeout=PATIENCE):
            self.drop()
            self._torn = self._db is not None  # the forking thread itself is inside a transaction
        else:
            self._torn = True

    def after_fork(self, *, child: bool) -> None:
        if child:
            self.lock = threading.RLock()
            self._depth = 0
            if self._torn:
                _never_closed.append(self._db)
                self._db = None
            return
        self._torn = False
        with contextlib.suppress(RuntimeError):  # it was not to be had
            self.lock.release()


_never_closed: list[object] = []  # closing one of these would take the parent's locks away


def _before_fork() -> None:
    for each in list(_connections):
        each.before_fork()


def _after_fork_in_parent() -> None:
    for each in list(_connections):
        each.after_fork(child=False)


def _after_fork_in_child() -> None:
    for each in list(_connections):
        each.after_fork(child=True)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def open_bell(folder: str) -> int:
    return os.open(os.path.join(folder, BELL), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _open(folder: str) -> tuple[sqlite3.Connection, tuple[int, int]]:
    """Open the file, made when it is not there. One process at a time: switching to WAL does not wait by itself."""
    if getattr(_opening, "now", False):
        raise StateError(_IN_A_HANDLER.format("the opening", "open"))
    try:
        _opening.now = True
        return _open_alone(folder)
    finally:
        _opening.now = False


def _open_alone(folder: str) -> tuple[sqlite3.Connection, tuple[int, int]]:
    try:
        # with exist_ok it would be looked at, and what a signal's handler raises there be taken for "no folder"
        with contextlib.suppress(FileExistsError):
            os.makedirs(folder, mode=0o700)
        gate = open_bell(folder)
    except OSError as error:
        if is_raised_by_program(error):
            raise
        raise _unopened(error, folder) from None
    db: sqlite3.Connection | None = None
    try:
        _enter(gate, folder)
        path = os.path.join(folder, FILE)
        # not os.path.exists: a TimeoutError that a signal's handler raises in it would be "there is none"
        try:
            file = _identity(path)
        except FileNotFoundError:
            # of one that was removed alone: who has it open goes on in them until he looks
            for rest in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + rest)
            # private from the start. Never touched again: closing any fd of it would let go the locks of our connections
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            file = _identity(path)
        db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA max_page_count = {MAX_SIZE // _PAGE}")
        db.execute("PRAGMA journal_size_limit = 4194304")
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] < 3:
            db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")
        return db, file
    except BaseException as error:
        lacking = error if isinstance(error, OSError) else _lacking(gate) if isinstance(error, sqlite3.Error) else None
        if db is not None:
            db.close()
        if lacking is not None and not is_raised_by_program(lacking):
            raise _unopened(lacking, folder) from None
        raise
    finally:
        os.close(gate)


def _enter(gate: int, folder: str) -> None:
    """Take the lock of the gate. Who has it may have been stopped: nobody waits for ever."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise StateUnavailable(
                    f"another process has been opening the shared state in {folder} for more than {PATIENCE:g} s: "
                    "was one stopped? `ps -eo pid,stat,args` shows it with a T"
                ) from None
            time.sleep(0.002)


def _lacking(gate: int) -> OSError | None:
    """Return why no descriptor is to be had, if none is: SQLite says only that it could not open something."""
    try:
        os.close(os.dup(gate))
    except OSError as error:
        return error
    return None


def _unopened(error: OSError, folder: str) -> StateUnavailable:
    step = "Which user owns the folder?"
    if error.errno in NO_DESCRIPTOR:
        step = "Close some, or raise the limit (limits.nofile of an app, `ulimit -n`)"
    elif error.errno in FULL_DISK:
        step = "Make room on its disk"
    return StateUnavailable(f"the shared state cannot be opened in {folder}: {error.strerror}. {step}")


def _explain(error: sqlite3.Error, folder: str) -> StateError:
    code: Any = getattr(error, "sqlite_errorcode", 0)
    path = os.path.join(folder, FILE)
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StateUnavailable(_BUSY)
        case sqlite3.SQLITE_FULL:
            return StateTooLarge(
                f"the shared state is full. When {path} has grown to {MAX_SIZE // 2**20} MB: delete keys, or give them a ttl. "
                "When it is smaller: its disk is full, and no key can be deleted until there is room"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            message = f"{path} is damaged: {error}. Stop the app and remove the file to begin with an empty state"
            return StateUnavailable(message)
        case sqlite3.SQLITE_IOERR:
            return StateUnavailable(
                f"{path} cannot be read or written: {error}. Is its disk full (`df {folder}`), or failing (`dmesg`)?"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StateUnavailable(f"{path} cannot be written: {error}. Which user owns it?")
    return StateUnavailable(f"the shared state in {path}: {error}")
