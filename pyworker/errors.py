"""Errors someone can act on, and the exit codes that scripts may rely on. Runs anywhere."""

from __future__ import annotations

import enum
import errno

# what an OSError says that is no fault of the file at hand
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN_DISK = (errno.EIO, errno.ESTALE)  # or one of the network that is gone; of a terminal: it was closed
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
# what the system lacks now and may have the next time; of an accept, all else is about the client that it has taken
WANTING = (*NO_DESCRIPTOR, errno.ENOBUFS, errno.ENOMEM)
# of an epoll: this user may wait for no more descriptors (fs.epoll.max_user_watches), or no memory
NO_ROOM = (errno.ENOSPC, errno.ENOMEM)


class Exit(enum.IntEnum):
    """What a `pyworker` command exits with. Documented in docs/exit-codes.md; never renumbered."""

    OK = 0
    FAILED = 1  # the operation ran and failed: app not ready, reload refused
    USAGE = 2  # bad option or argument
    NOT_RUNNING = 3  # a known app that is not running
    NO_SUCH_APP = 4
    UNAVAILABLE = 69  # EX_UNAVAILABLE: the daemon cannot be reached
    BUSY = 75  # EX_TEMPFAIL: another reload is under way, or --timeout was hit
    NO_PERMISSION = 77  # EX_NOPERM
    BAD_CONFIG = 78  # EX_CONFIG; a worker that exits with it is not retried
    INTERRUPTED = 130  # Ctrl-C in a foreground wait


# what docs/exit-codes.md and `pyworker help exit-codes` say
MEANING: dict[Exit, str] = {
    Exit.OK: "done, or nothing was to be done (`start` of what runs already)",
    Exit.FAILED: "tried and failed: the app is not ready or fails its health check, the reload was refused; `diff`: something differs",
    Exit.USAGE: "a wrong option or argument",
    Exit.NOT_RUNNING: "the app is known and does not run; `ps --check` when not all of them do",
    Exit.NO_SUCH_APP: "no app or worker of that name in the daemon that was asked; a worker where an app is meant",
    Exit.UNAVAILABLE: "no daemon answers, or it could not be started",
    Exit.BUSY: "another operation is under way, or `--timeout` was hit; the operation itself goes on",
    Exit.NO_PERMISSION: "another user's daemon, an unsafe home folder",
    Exit.BAD_CONFIG: "the config file has mistakes; nothing was started or changed",
    Exit.INTERRUPTED: "Ctrl-C while waiting; the operation itself goes on",
}


# the codes with an exit code of their own; all others have 1
_EXITS = {
    **dict.fromkeys(("usage", "no_such_file"), Exit.USAGE),
    "not_running": Exit.NOT_RUNNING,
    "no_such_app": Exit.NO_SUCH_APP,
    **dict.fromkeys(("unavailable", "daemon_not_started", "protocol"), Exit.UNAVAILABLE),
    **dict.fromkeys(("busy", "timeout"), Exit.BUSY),
    "no_permission": Exit.NO_PERMISSION,
    **dict.fromkeys(("config_invalid", "no_file"), Exit.BAD_CONFIG),
}


def exit_of(code: str) -> Exit:
    """Return what a command exits with that failed for this."""
    return _EXITS.get(code, Exit.FAILED)


def is_raised_by_program(error: OSError) -> bool:
    """Whether this is the program's own, as the TimeoutError that the handler of a signal raises in the midst of our code."""
    return error.errno is None


def lacking_in_words(error: OSError) -> str:
    """Return what is lacking, of an accept or an epoll (`NO_ROOM`)."""
    if error.errno == errno.ENOSPC:  # no disk
        return "fs.epoll.max_user_watches (sysctl) is reached"
    return error.strerror or str(error)


class Hinted(ValueError):
    """A value that is wrong: `message` says how, `hint` what may have been meant, or is to be written (may be "")."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class PyworkerError(Exception):
    """A failure with its cause (`message`), the next step (`hint`) and a stable `code` word.

    `message` is one sentence (may have further lines of detail), `hint` says what to do, in words; `exit` is the code's
    unless it is said; `traceback` are the app's own last lines, where they are the cause.
    """

    def __init__(
        self, message: str, *, hint: str = "", code: str = "failed", exit: Exit | None = None, traceback: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.traceback = traceback
        self.code = code
        self.exit = exit_of(code) if exit is None else exit
