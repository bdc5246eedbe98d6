"""Node's IPC channel: JSON lines on a stream socket, with descriptors that are acknowledged. docs/node-protocol.md

Sans I/O: `Link` is one end of a channel. It is fed what was read and says what to write; whoever owns the socket moves
the bytes and descriptors. Nothing that a peer sends makes it raise.

Three rules carry the rest. A descriptor belongs to the line whose bytes it came with. One descriptor is under way at a
time: whatever is sent after it waits for its acknowledgement, so the order of messages is kept. An acknowledgement that
nobody waits for ends a Node peer with a failed assertion: none is ever sent but for a descriptor that came.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any, NamedTuple, TypeGuard

from pyworker.record import mutable, record

MAX_LINE = 16 * 1024 * 1024  # bytes of one message. Node itself has no limit
MAX_TEXT = 64 * 1024  # ... between the daemon or a dispatcher and a worker
MAX_SHOWN = 4 * 1024  # characters of a message that are kept among the events
MAX_DEPTH = 200  # lists and objects inside one another: code that walks through them needs some frames for each
MAX_RETRANSMISSIONS = 3  # of a descriptor that did not arrive, as in Node
HIGH_WATER = 64 * 1024  # bytes that wait to be sent: from here on `send` says "slow down"
READ_SIZE = 64 * 1024

CHANNEL_FD = "NODE_CHANNEL_FD"
SERIALIZATION = "NODE_CHANNEL_SERIALIZATION_MODE"
UNIQUE_ID = "NODE_UNIQUE_ID"  # set for cluster workers: their id
PEER = "PYWORKER_CHANNEL"  # "1" tells a Python child that its parent is pyworker: files can be sent

INTERNAL_PREFIX = "NODE_"
_MOST_ARRIVED = 64  # descriptors of lines that have no end yet: one is sent at a time
_MOST_REPLIES = 1000  # acknowledgements that wait for a peer which reads nothing
_MOST_JOINED = 1000  # messages in one write
_HANDLES_AT_ONCE = 1  # under way or waiting: with more of them `send` says "slow down", too
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_HANDLE, _ACK, _NACK = "NODE_HANDLE", "NODE_HANDLE_ACK", "NODE_HANDLE_NACK"


class MessageError(ValueError):
    """A message that cannot be sent: no JSON, too long, or with a name that is reserved."""


class Frame(NamedTuple):
    """What to write next: `fd` (-1 = none) rides on the first byte of `data`; `token` is that of its message."""

    data: memoryview
    fd: int
    token: Any = None


class Handle(NamedTuple):
    """A descriptor that came with a message; its receiver owns it."""

    kind: str  # "net.Socket", "net.Server", "net.Native", "dgram.Socket", "dgram.Native", "pyworker.File"
    fd: int
    notes: Mapping[str, Any]  # what else the sender said of it: "dgramType", "key"


# ---- what a Link reports ---------------------------------------------------------------------------
@record
class Message:
    """A message of the program at the other end."""

    value: Any
    handle: Handle | None = None


@record
class Internal:
    """A message whose `cmd` starts with NODE_: of Node's own machinery (cluster), not for the program."""

    value: dict[str, Any]
    handle: Handle | None = None


@record
class Sent:
    """The message of this token is in the kernel's buffer; with a descriptor: the peer has it."""

    token: Any


@record
class NotReceived:
    """The peer could not take this descriptor, however often it was sent."""

    token: Any


@record
class Malformed:
    """A line that is no message. It was skipped."""

    reason: str


@record
class Stray:
    """Descriptors that belong to no message: close them."""

    fds: tuple[int, ...]


Event = Message | Internal | Sent | NotReceived | Malformed | Stray


@mutable
class _Item:
    data: bytes
    token: Any
    fd: int = -1
    retransmissions: int = 0


@mutable
class _Arrived:
    fd: int
    end: int  # of the chunk it came with, in the stream


@mutable
class _Writing:
    """What is being written: several plain messages as one, or one with its descriptor."""

    data: memoryview
    items: list[_Item]
    left: int  # bytes that have not gone
    fd: int


class Link:
    """One end of a channel. `tokens` are the caller's own; None means that it does not want to hear of that message.

    Python runs the handler of a signal between two steps of whatever the main thread does: where a function begins, where a
    call has returned, where a loop turns. It may send, too, or raise. So what belongs together is done here without any of
    these in between, or in one call that is C.
    """

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        # reading
        self.offset = 0  # in the stream, of the next byte to come
        self._line_start = 0
        self._parts: list[bytes] = []  # of a line that has no end yet
        self._skipping = False  # inside a line that is too long
        self._arrived: deque[_Arrived] = deque()
        # writing
        self._replies: deque[_Item] = deque()  # acknowledgements overtake everything
        self._queue: deque[_Item] = deque()
        self._taken: list[_Item] = []  # out of one of them, for the next write
        self.gone: list[int] = []  # bytes of each write; the system call itself adds them: written()
        self._writing: _Writing | None = None
        self._unacknowledged: _Item | None = None
        self._backlog = 0
        self._handles = 0  # of the queue, and the one under way

    # ---- sending -------------------------------------------------------------------------------------
    def send(self, value: Any, token: Any = None) -> bool:
        """Queue a message; False when so much waits that the caller had better pause. MessageError."""
        return self._enqueue(_Item(encode_line(value, self._max_line), token))

    def send_handle(
        self, value: Any, kind: str, fd: int, token: Any = None, notes: Mapping[str, Any] | None = None
    ) -> bool:
        """Queue a message with a descriptor, which stays the caller's: close it at `Sent`, never before."""
        wrapped = {"cmd": _HANDLE, "type": kind, **(notes or {}), "msg": value}
        return self._enqueue(_Item(encode_line(wrapped, self._max_line), token, fd))

    @property
    def backlog(self) -> int:
        """Bytes that wait to be written."""
        return self._backlog

    @property
    def is_within_line(self) -> bool:
        """Whether what comes next goes on with a line."""
        return bool(self._parts) or self._skipping

    @property
    def is_calm(self) -> bool:
        """True while so little waits that more may be sent."""
        return self._backlog < HIGH_WATER and self._handles <= _HANDLES_AT_ONCE

    @property
    def is_idle(self) -> bool:
        """True when all is written and acknowledged."""
        waits = self._queue or self._replies or self._taken
        return self._writing is None and self._unacknowledged is None and not waits

    def to_write(self) -> Frame | None:
        """Return what to write now, None when there is nothing (or when an acknowledgement must come first)."""
        if self._writing is None and not self._next():
            return None
        writing = self._writing
        assert writing is not None
        done = len(writing.data) - writing.left
        return Frame(writing.data[done:], -1) if done else Frame(writing.data, writing.fd, writing.items[0].token)

    def written(self, count: int = 0) -> list[Event]:
        """Note that so many bytes of `to_write` have gone, and what `gone` holds."""
        if count > 0:
            self.gone.append(count)
        events: list[Event] = []
        while self.gone:
            writing, count = self._writing, self.gone[0]
            del self.gone[0]  # from here on in one go, see above
            if writing is None:
                continue
            writing.left -= count
            self._backlog -= count
            if writing.left > 0:
                continue
            self._writing = None
            if writing.fd >= 0:
                self._unacknowledged = writing.items[0]
            else:
                events += [Sent(item.token) for item in writing.items if item.token is not None]
        return events

    def refused(self) -> list[Event]:
        """Note that the descriptor of `to_write` cannot be sent: its message does not go."""
        writing = self._writing
        if writing is None:
            return []
        size, token = len(writing.data), writing.items[0].token
        self._writing = None  # as in `written`
        self._backlog -= size
        self._handles -= 1
        return [] if token is None else [NotReceived(token)]

    def withdraw(self) -> bool:
        """Take back what `to_write` returned, one message without a descriptor; False when some of it has gone."""
        writing = self._writing
        if writing is None or writing.left < len(writing.data):
            return False
        self._writing = None
        self._backlog -= writing.left
        return True

    def has(self, token: Any) -> bool:
        """True while the message of this token waits, or is under way."""
        return any(item.token is token for item in self._items())

    def abandon(self) -> tuple[list[Any], tuple[int, ...]]:
        """The channel is over: return the tokens of what was not delivered, and descriptors to close."""
        items = self._items()
        fds = tuple(arrived.fd for arrived in self._arrived)
        self._queue.clear()
        self._replies.clear()
        self._taken.clear()
        self.gone.clear()
        self._arrived.clear()
        self._writing = self._unacknowledged = None
        self._backlog = self._handles = 0
        return [item.token for item in items if item.token is not None], fds

    def _items(self) -> list[_Item]:
        items = [*(self._writing.items if self._writing else ())]
        if self._unacknowledged is not None:
            items.insert(0, self._unacknowledged)
        return [*items, *self._taken, *self._queue]

    def _enqueue(self, item: _Item) -> bool:
        size = len(item.data)  # known before: see above
        self._backlog += size
        self._handles += item.fd >= 0
        self._queue.append(item)
        return self.is_calm

    def _reply(self, name: str) -> None:
        item = _Item(encode_line({"cmd": name}), None)
        size = len(item.data)
        self._backlog += size
        self._replies.append(item)

    def _next(self) -> bool:
        """Have something to write; False when there is nothing that may go now."""
        if not self._taken:
            if self._replies:
                queue, count = self._replies, len(self._replies)
            elif self._unacknowledged is None and self._queue:
                queue, count = self._queue, self._how_many()
            else:
                return False
            self._taken.extend(map(deque.popleft, repeat(queue, count)))
        items = self._taken
        data = items[0].data if len(items) == 1 else b"".join([item.data for item in items])
        writing = _Writing(memoryview(data), items, len(data), items[0].fd)
        self._writing, self._taken = writing, []
        return True

    def _how_many(self) -> int:
        """How many messages at the head of the queue go in one write: one with a descriptor, or what fits without."""
        if self._queue[0].fd >= 0:
            return 1
        count, size, most = 1, len(self._queue[0].data), min(len(self._queue), _MOST_JOINED)
        while count < most:  # by index: it may grow meanwhile
            item = self._queue[count]
            size += len(item.data)
            if item.fd >= 0 or size > HIGH_WATER:
                break
            count += 1
        return count

    # ---- receiving -----------------------------------------------------------------------------------
    def feed(self, data: bytes, fds: Iterable[int] = ()) -> list[Event]:
        """Take what one read returned; the descriptors are the Link's until an event hands them on."""
        events = self.written()  # else an acknowledgement may be of what nobody knows to have gone
        end, self.offset = self.offset, self.offset + len(data)
        if fds:
            fds = tuple(fds)
            room = max(0, _MOST_ARRIVED - len(self._arrived))
            self._arrived.extend(_Arrived(fd, self.offset) for fd in fds[:room])
            if len(fds) > room:
                events.append(Stray(fds[room:]))
        *ended, rest = data.split(b"\n")
        for piece in ended:
            end += len(piece) + 1
            if self._parts:
                piece = b"".join([*self._parts, piece])
                self._parts.clear()
            if self._skipping or len(piece) > self._max_line:
                self._skipping = False
                events.append(Malformed(f"a message of more than {self._max_line} bytes"))
            elif piece and not piece.isspace():
                self._line(piece, events)
            self._line_start = end
        if rest:
            self._parts.append(rest)
            if self._skipping or self.offset - self._line_start > self._max_line:
                self._skipping = True
                self._parts.clear()
        if self._arrived:
            self._strays(self._line_start, events)
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        try:
            value = _decode(line.decode())
        except (ValueError, RecursionError) as error:
            events.append(Malformed(f"no JSON: {str(error)[:80]}"))
            return
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_deep(value, MAX_DEPTH):
            events.append(Malformed(f"a message of more than {MAX_DEPTH} lists and objects inside one another"))
            return
        if not is_internal(value):
            events.append(Message(value))
            return
        match value["cmd"]:
            case "NODE_HANDLE":
                self._handle(value, events)
            case "NODE_HANDLE_ACK":
                self._acknowledged(arrived=True, events=events)
            case "NODE_HANDLE_NACK":
                self._acknowledged(arrived=False, events=events)
            case _:
                events.append(Internal(value))

    def _handle(self, value: dict[str, Any], events: list[Event]) -> None:
        self._strays(self._line_start, events)
        kind = value.get("type")
        if not isinstance(kind, str):
            events.append(Malformed("a handle without a type"))
            return
        if len(self._replies) >= _MOST_REPLIES:
            events.append(Malformed("a handle of a peer that takes no acknowledgements"))
            return
        if not self._arrived:
            self._reply(_NACK)  # it was lost on the way (this process may be out of descriptors): sent again
            return
        fd = self._arrived.popleft().fd
        self._reply(_ACK)
        notes = {name: note for name, note in value.items() if name not in ("cmd", "type", "msg")}
        handle = Handle(kind, fd, notes)
        inner = value.get("msg")
        events.append(Internal(inner, handle) if is_internal(inner) else Message(inner, handle))

    def _acknowledged(self, *, arrived: bool, events: list[Event]) -> None:
        item = self._unacknowledged
        if item is None:
            events.append(Malformed("an acknowledgement of nothing"))
            return
        size = len(item.data)
        self._unacknowledged = None
        if not arrived and item.retransmissions < MAX_RETRANSMISSIONS:
            item.retransmissions += 1
            self._backlog += size
            self._queue.appendleft(item)
            return
        self._handles -= 1
        if item.token is not None:
            events.append(Sent(item.token) if arrived else NotReceived(item.token))

    def _strays(self, before: int, events: list[Event]) -> None:
        """Give up the descriptors whose bytes are all in lines that have ended."""
        fds = []
        while self._arrived and self._arrived[0].end <= before:
            fds.append(self._arrived.popleft().fd)
        if fds:
            events.append(Stray(tuple(fds)))


def _is_deep(value: Any, left: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return not left or any(_is_deep(inner, left - 1) for inner in value)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # "NaN", "Infinity", "1e999": whoever is shown it could not read it as JSON
        raise ValueError(f"{text[:20]} is not a number here")
    return number


_decode = json.JSONDecoder(parse_constant=_finite, parse_float=_finite).decode


def is_internal(value: Any) -> TypeGuard[dict[str, Any]]:
    """True for a message of Node's own machinery."""
    if not isinstance(value, dict):
        return False
    cmd = value.get("cmd")
    return isinstance(cmd, str) and len(cmd) > len(INTERNAL_PREFIX) and cmd.startswith(INTERNAL_PREFIX)


def check_message(value: Any) -> None:
    """Refuse a program's message that the other end would take for one of Node's own, and never show."""
    if is_internal(value):
        raise MessageError(f"a message's `cmd` may not start with {INTERNAL_PREFIX}: {value['cmd']!r:.60}")


def shown(value: Any) -> tuple[str, int]:
    """Return a message as the text that people are shown, of a long one its beginning, and the length of it all."""
    text = json.dumps(value, ensure_ascii=False)
    return text[:MAX_SHOWN].encode(errors="replace").decode(), len(text)  # half a surrogate pair is no text


def encode_line(value: Any, limit: int = MAX_LINE) -> bytes:
    """Return a message as its line. MessageError names what JSON cannot say."""
    try:
        line = _encode(value).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"this message cannot be sent as JSON: {error}") from None
    if len(line) - 1 > limit:
        raise MessageError(f"a message of {len(line) - 1} bytes; {limit} are the most that is taken")
    return line
