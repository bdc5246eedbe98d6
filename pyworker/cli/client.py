"""CLI: asks the daemon over its control socket. socket and json only: this is on the path of `pyworker ps`.

Requests are plain objects here, not the records of protocol/control.py, whose import that one need not wait for.
tests/support/fake_control.py decodes every request that the tests make with the real classes, so the two cannot drift
apart. Never starts a daemon (launch.py does) and prints nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

from pyworker import __version__
from pyworker.cli.deadline import LOOK, Deadline
from pyworker.cli.homes import apps_wanted, home_of
from pyworker.errors import NO_DESCRIPTOR, WANTING, Exit, PyworkerError
from pyworker.protocol.names import (
    CONTROL_SOCKET,
    DAEMON_LOG,
    ENV_HOME,
    GUARDIAN_TITLE,
    HOME_UNUSABLE,
    LOCK_FILE,
    NOT_STARTED,
    TAKES_OVER_LATER,
)
from pyworker.unix.files import is_locked, socket_path
from pyworker.unix.peer import peer

PROTOCOL = 1  # protocol.control.PROTOCOL; a test holds them equal
ANSWER_TIME = 5.0  # seconds to an answer of a request that waits for nothing
_COME_BACK = 15.0  # seconds that a daemon which went away has to come back
_REPLACED = 45.0  # ... and one that hangs, until its guardian has found that out and another answers
MENDED = "its guardian replaces a daemon that hangs within 35 s"  # decision 30
MAX_ANSWER = 64 * 1024 * 1024
_WANTING = "no process or descriptor is left for it: raise the limit (ulimit -u and -Hn where it is started, pids.max of its cgroup)"
_TOO_SMALL = "raise the limit on the size of a file (ulimit -f where it is started, LimitFSIZE= of its service), and start it anew"
_BROKEN = "mend the installation of pyworker or of its Python; it is started by itself then"
_NO_MEMORY = "free some memory, or raise the limit on it (ulimit -v where it is started, LimitAS= of its service)"
_ENDS = " exited with code 1: starting it again"  # of a daemon that Python cannot start


class DaemonAway(PyworkerError):
    """No daemon answers at this home. Not an error in itself: it is said without the word."""

    bare = True
    step = "pyworker start app.toml"  # its message ends in that


class Lost(PyworkerError):
    """The daemon went away after the request was sent and before its answer was complete."""


def patience(error: PyworkerError) -> float:
    """Return for how many seconds a view that goes on asks again after this error: the guardian mends it, or nobody does."""
    if error.exit != Exit.UNAVAILABLE or error.code != "unavailable":
        return 0.0
    return _COME_BACK if isinstance(error, DaemonAway) else _REPLACED


def waiting(error: PyworkerError) -> str:
    """Return what such a view says while it waits for that."""
    return f"The daemon went away; waiting for another, {patience(error):g} s at most."


class Silent(PyworkerError):
    """The daemon has taken the request and has not answered in time."""

    def __init__(self, home: str, seconds: float) -> None:
        message = f"The pyworker daemon (home {home}) did not answer within {seconds:g} s."
        hint = f"{MENDED}: try again, or wait longer with --timeout 60s"
        if seconds < ANSWER_TIME:
            hint = f"give it more time: --timeout {ANSWER_TIME:g}s, or none"
        if said := guardian_said(home):
            message += f"\n  {said}"
            hint = step_for(said)
        super().__init__(message, hint=hint, code="unavailable")


class RefusedError(PyworkerError):
    """The daemon's refusal; `problems` (of a config file) as in protocol.control.Refused."""

    def __init__(self, answer: dict[str, Any]) -> None:
        code = int(answer.get("exit") or 1)
        super().__init__(
            str(answer.get("message") or "refused"),
            hint=str(answer.get("hint") or ""),
            code=str(answer.get("code") or "failed"),
            exit=Exit(code) if code in set(Exit) else Exit.FAILED,
        )
        self.problems: list[dict[str, Any]] = list(answer.get("problems") or ())


class Answer(NamedTuple):
    """The end of a request that was carried out."""

    ok: bool
    body: dict[str, Any]


def connect(home: str) -> socket.socket:
    """Return a connected control socket; raise DaemonAway, or PyworkerError when it is not ours to use."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # not settimeout: while too many wait to be let in, a connect that may not block fails at once
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("2l", int(ANSWER_TIME), 0))
        with socket_path(home, CONTROL_SOCKET) as path:
            sock.connect(path)
            while not _is_connected(sock):
                sock.connect(path)
        sock.settimeout(ANSWER_TIME)
        _check_peer(sock, home)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        sock.close()
        raise _hidden(home) if is_emptied(home) and is_locked(home) else _away(home) from None
    except PermissionError:
        sock.close()
        raise _not_ours(home) from None
    except (TimeoutError, BlockingIOError):
        sock.close()
        raise Silent(home, ANSWER_TIME) from None
    except OSError as error:
        sock.close()
        if error.errno in WANTING:
            raise
        raise _unusable(home, error) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _is_connected(sock: socket.socket) -> bool:
    """False where a standstill (Ctrl-Z, docker pause) or a signal has ended the wait: Python takes that for connected."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _check_peer(sock: socket.socket, home: str) -> None:
    """Refuse a socket that another user put there: `start` sends the shell's environment through it."""
    _, uid = peer(sock)
    me = os.geteuid()
    if me not in (0, uid) and uid != 0:
        raise _not_ours(home, uid)


def is_emptied(home: str) -> bool:
    """Whether the files of a home were removed: a guardian has made its lock before it answers, and leaves it there."""
    return not os.path.lexists(os.path.join(home, LOCK_FILE))


def _hidden(home: str) -> PyworkerError:
    message = f"A pyworker daemon runs, but its files were removed from {home}: no command reaches it now."
    hint = "it makes its control.sock again within 11 s: try again then"
    return PyworkerError(message, hint=hint, code="unavailable")


def _away(home: str) -> DaemonAway:
    hint = other_daemon(home)
    if ran := [name for name, running in apps_wanted(home).items() if running]:
        hint = f"pyworker daemon start   brings back what ran: {', '.join(ran[:8])}{' …' * (len(ran) > 8)}\n{hint}".rstrip()
    return DaemonAway(
        f"The pyworker daemon is not running. Start an app with: {DaemonAway.step}\n  (no daemon answers at {home})",
        hint=hint,
        code="unavailable",
    )


def check_readable(home: str) -> None:
    """Refuse another user's home, for a command that reads its files itself. One that is not there is nobody's."""
    try:
        os.scandir(home).close()
    except PermissionError:
        raise _not_ours(home) from None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        if error.errno in WANTING:
            raise
        raise _unusable(home, error) from None


def _unusable(home: str, error: OSError) -> PyworkerError:
    """A link to itself, a network disk that is gone."""
    message = f"the state folder {home} cannot be used: {error.strerror}"
    return PyworkerError(message, hint=f"choose another place with --home or {ENV_HOME}", code="no_home")


def _not_ours(home: str, uid: int = -1) -> PyworkerError:
    """`uid`: whose daemon it is, where that is known; else it is that of whom the home is."""
    if uid < 0:
        with contextlib.suppress(OSError):
            uid = os.stat(home).st_uid
    whose = "another user" if uid < 0 else "root" if uid == 0 else f"user {uid}"
    become = "run the command as that user" if uid else "run it with sudo"
    message = f"The pyworker daemon of {home} belongs to {whose}, and this is user {os.geteuid()}."
    return PyworkerError(message, hint=f"{become}, or name a home of your own: --home DIR", code="no_permission")


def other_daemon(home: str) -> str:
    """Return a hint when a daemon of somebody else's would be meant: root's for a user, the user's under sudo."""
    others = []
    if os.geteuid() != 0:
        others.append(("root", home_of("root"), "sudo pyworker …"))
    elif user := os.environ.get("SUDO_USER"):
        others.append((user, home_of(user), "the same without sudo"))
    for name, path, instead in others:
        if path != home and os.path.lexists(os.path.join(path, CONTROL_SOCKET)):
            return f"{name} has a daemon of its own: {instead}"
    return ""


def guardian_said(home: str) -> str:
    """Return the guardian's last line if it is that there can be no daemon now: nobody else can say so.

    Of one that ends at once, again and again, with what it printed last.
    """
    try:
        with open(os.path.join(home, DAEMON_LOG), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if " guardian[" in line), "")
    if f"]: the daemon {NOT_STARTED}: " in last or f"]: {TAKES_OVER_LATER}: " in last:
        return last
    return f"{last}: {lines[-1]}" if _ENDS in last and lines[-1] != last else ""


def guardian_without_daemon(home: str) -> str:
    """Return the pid of a guardian that cannot start a daemon, else "": what it said may be old, and its pid another's."""
    said = guardian_said(home)
    if TAKES_OVER_LATER in said:  # it is told by a signal as little: that waits until it has taken over
        return ""
    pid = said.partition(" guardian[")[2].partition("]")[0]
    try:
        with open(f"/proc/{int(pid)}/cmdline", "rb") as file:
            return pid if file.read().startswith(GUARDIAN_TITLE.encode()) else ""
    except (OSError, ValueError):
        return ""


def step_for(said: str) -> str:
    """Return what to do about what the guardian said."""
    if os.strerror(errno.EFBIG) in said:
        return _TOO_SMALL
    if "MemoryError" in said or os.strerror(errno.ENOMEM) in said:
        return _NO_MEMORY
    if any(os.strerror(number) in said for number in NO_DESCRIPTOR):  # as a traceback, too
        return _WANTING
    if HOME_UNUSABLE in said or TAKES_OVER_LATER in said:
        return "mend that: the daemon is started by itself then"
    broken = _ENDS in said or os.strerror(errno.ENOENT) in said or os.strerror(errno.EACCES) in said
    return _BROKEN if broken else _WANTING


class Call:
    """One request on its way. A context manager: leaving it closes the connection (what was asked goes on)."""

    def __init__(self, home: str, request: dict[str, Any]) -> None:
        self.home = home
        self.request = request
        self._buffer = bytearray()
        self._sock = connect(home)
        try:
            self._send({"type": "call", "protocol": PROTOCOL, "version": __version__, "request": request})
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def fileno(self) -> int:
        """Return the connection, to wait for more of the answer."""
        return self._sock.fileno()

    def _send(self, call: dict[str, Any]) -> None:
        try:
            data = json.dumps(call, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError as error:  # a word of the command line, or this folder
            text = error.object
            word = text[text.rfind('"', 0, error.start) + 1 : text.find('"', error.start)]
            raise PyworkerError(f"{word} is not UTF-8", hint="give it another name", code="usage") from None
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise Silent(self.home, ANSWER_TIME) from None
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was read whole: the reason is there to be read

    def answers(self, tick: float | None, deadline: Deadline | None) -> Iterator[dict[str, Any] | Answer | None]:
        """Yield each event (a dict), None after each `tick` seconds without one, and the Answer last.

        Raises RefusedError; Lost at end-of-file; TimeoutError when `deadline` has passed.
        """
        while True:
            line = self._line(tick, deadline)
            if line is None:
                yield None
                continue
            answer = self._parse(line)
            match answer.get("type"):
                case "progress" if isinstance(answer.get("event"), dict):
                    yield answer["event"]
                case "reply" if isinstance(answer.get("body"), dict):
                    yield Answer(bool(answer.get("ok")), answer["body"])
                    return
                case "refused":
                    raise RefusedError(answer)
                case other:
                    raise self._stranger(f"it sent {str(other)[:40]!r}")

    def _line(self, tick: float | None, deadline: Deadline | None) -> bytes | None:
        while (end := self._buffer.find(b"\n")) < 0:
            left = None if deadline is None else min(deadline.left(), LOOK)
            if left is not None and left <= 0:
                raise TimeoutError
            self._sock.settimeout(left if tick is None else tick if left is None else min(tick, left))
            try:
                data = self._sock.recv(256 * 1024)
            except TimeoutError:
                if tick is not None:
                    return None
                continue
            except ConnectionResetError:
                data = b""
            finally:
                if deadline is not None:
                    deadline.left()  # looked at here, too: what is done until the next wait takes time of its own
            if not data:
                raise Lost(
                    f"The pyworker daemon (home {self.home}) went away before it had answered.",
                    hint="its guardian starts it again at once; pyworker ps shows what runs",
                    code="unavailable",
                )
            self._buffer += data
            if len(self._buffer) > MAX_ANSWER:
                raise self._stranger("it sent a line without an end")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise self._stranger("it sent something that is not JSON") from None
        if not isinstance(answer, dict):
            raise self._stranger("it sent something that is not an object")
        return answer

    def _stranger(self, what: str) -> PyworkerError:
        return PyworkerError(
            f"The pyworker daemon (home {self.home}) speaks another language than this command ({__version__}): {what}.",
            hint="bring it to this command's version, no request is lost: pyworker daemon upgrade",
            code="protocol",
        )


def ask(home: str, request: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
    """Send a request that only reads and return its reply's body. Asked again once if the daemon dies meanwhile."""
    seconds = ANSWER_TIME if timeout is None else timeout
    deadline = Deadline(seconds)
    try:
        return _ask_once(home, request, seconds, deadline)
    except Lost:  # the socket outlives the daemon: its successor answers
        return _ask_once(home, request, seconds, deadline if timeout is not None else Deadline(seconds))


def tell(home: str, request: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
    """As `ask`, of what is done at once and must not be done twice: it may have been done when this raises Lost or Silent."""
    seconds = ANSWER_TIME if timeout is None else timeout
    return _ask_once(home, request, seconds, Deadline(seconds))


def ps(names: Iterable[str] = (), **wants: bool) -> dict[str, Any]:
    """Return the request for what runs, all of it or these; `wants`: what protocol.control.Ps has beside them."""
    return {"type": "ps", "selectors": list(names), "sample": False, **wants}


def figures(names: Iterable[str]) -> dict[str, Any]:
    """Return the request of those who show figures, with each worker's fair share of memory, of whole apps only."""
    return ps(names, sample=True, pss=True, whole=True)


def apps_now(home: str, timeout: float | None = None, names: Iterable[str] = (), **wants: bool) -> list[dict[str, Any]]:
    """Return what `ps` knows of apps."""
    apps: list[dict[str, Any]] = ask(home, ps(names, **wants), timeout)["apps"]
    return apps


def _ask_once(home: str, request: dict[str, Any], seconds: float, deadline: Deadline) -> dict[str, Any]:
    try:
        return perform(home, request, lambda event: None, None, deadline).body
    except TimeoutError:
        raise Silent(home, seconds) from None


Listener = Callable[["dict[str, Any] | None"], None]


def perform(
    home: str, request: dict[str, Any], on_event: Listener, tick: float | None, timeout: Deadline | float | None
) -> Answer:
    """Send a request that does something; `on_event` gets each event, and None after each `tick` seconds without.

    Raises TimeoutError after `timeout` seconds; what was asked goes on all the same.
    """
    deadline = Deadline(timeout) if isinstance(timeout, (int, float)) else timeout
    with Call(home, request) as call:
        for answer in call.answers(tick, deadline):
            if isinstance(answer, Answer):
                return answer
            on_event(answer)
    raise AssertionError("answers() ends with an Answer or raises")


def shell_env() -> dict[str, str]:
    """Return this shell's environment for `inherit_env`; variables that are no text (stray bytes) are left out."""
    return {k: v for k, v in os.environ.items() if _is_text(k) and _is_text(v)}


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
