"""CLI top: the terminal. Takes it (other buffer, no cursor, keys at once), gives it back whatever ends the program.

Ctrl-C, TERM, HUP, an exception: all leave through __exit__. Ctrl-Z gives the terminal back too, and takes it again
at `fg`. A change of the window's size, a key and a byte in the waking pipe all end `wait`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from pyworker.cli.render import Look, look, width, write
from pyworker.cli.top.keys import keys

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # other buffer, no cursor, no wrapping
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[0m\x1b[?1049l"
_HOME, _CLEAR_LINE = "\x1b[H", "\x1b[K"
_ESCAPE_PATIENCE = 0.05  # seconds in which the rest of a key's bytes must come
# the terminal draws all between these at once, if it knows them; else they do nothing
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"


class Screen:
    """A full screen on stdout, keys from stdin. A context manager."""

    def __init__(self, color: bool | None) -> None:
        self._color = color
        self._in = sys.stdin.fileno()
        self._before: list[Any] = []
        self._rest = b""
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old: dict[int, Any] = {}
        self._old_wakeup = -1
        self._taken = False

    # ---- taking and giving back --------------------------------------------------------------------
    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._in)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: _end, signal.SIGHUP: _end, signal.SIGWINCH: _nothing, signal.SIGTSTP: self._suspend,
        }  # fmt: skip
        for number, handler in handlers.items():
            self._old[number] = signal.signal(number, handler)
        try:
            self._take()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # a second signal in here must not leave the terminal half given back
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        old_int = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._give_back()
        finally:
            signal.set_wakeup_fd(self._old_wakeup)
            for number, handler in self._old.items():
                signal.signal(number, handler)
            signal.signal(signal.SIGINT, old_int)
            os.close(self._wake_r)
            os.close(self._wake_w)

    def _take(self) -> None:
        self._taken = True
        tty.setcbreak(self._in, termios.TCSANOW)
        self._write(_ENTER)

    def _give_back(self) -> None:
        if not self._taken:
            return
        self._taken = False
        with contextlib.suppress(OSError, ValueError):  # the terminal itself may be gone
            self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Give the terminal to another program for a while. Ctrl-C is that program's."""
        self._give_back()
        # not SIG_IGN: that would be the program's too
        old = signal.signal(signal.SIGINT, _nothing)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old)
            self._take()

    def _suspend(self, _signum: int, _frame: FrameType | None) -> None:
        was_taken = self._taken
        mode = termios.tcgetattr(self._in)  # of a log that is followed
        termios.tcsetattr(self._in, termios.TCSANOW, self._before)
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # here it stops, and goes on at `fg`
        signal.signal(signal.SIGTSTP, self._suspend)
        if was_taken:
            self._before = termios.tcgetattr(self._in)
            self._take()
        else:
            termios.tcsetattr(self._in, termios.TCSANOW, mode)

    # ---- drawing -----------------------------------------------------------------------------------
    def look(self) -> Look:
        """Return what the terminal can show, as wide as it is now."""
        how = look(sys.stdout, self._color)
        with contextlib.suppress(OSError, ValueError):  # the real width, also when COLUMNS says what it was
            return how._replace(width=os.get_terminal_size(sys.stdout.fileno()).columns or 80)
        return how

    def draw(self, lines: list[str]) -> None:
        """Draw a whole frame over the one before: each line is cleared behind its end, so nothing flickers.

        Not one that fills the window: the cursor then still stands on the last character, which would be cleared.
        """
        how = self.look()
        full = [text if width(text) >= how.width else text + _CLEAR_LINE for text in lines]
        self._write(_BEGIN + _HOME + "\r\n".join(full) + _END)

    def _write(self, text: str) -> None:
        write(sys.stdout, text, self.look())

    # ---- waiting -----------------------------------------------------------------------------------
    def wake(self) -> None:
        """End a `wait`; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_w, b"\0")

    def wait(self, seconds: float) -> list[str]:
        """Wait for keys, a wake-up or the time; return the keys."""
        patience = min(seconds, _ESCAPE_PATIENCE) if self._rest else seconds
        readable, _, _ = select.select([self._in, self._wake_r], [], [], max(0.0, patience))
        if self._wake_r in readable:
            os.read(self._wake_r, 4096)
        if self._in not in readable:
            if self._rest and not readable:
                rest, self._rest = self._rest, b""
                return ["esc"] if rest == b"\x1b" else []
            return []
        data = os.read(self._in, 1024)
        if not data:  # the terminal has gone
            raise SystemExit(128 + signal.SIGHUP)
        found, self._rest = keys(self._rest + data)
        return found


def _end(signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    """The waking pipe has done it."""
