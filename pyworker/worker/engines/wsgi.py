"""Worker: runs a WSGI app for one request (PEP 3333), in the loop (threads = 1) or in a thread of the pool.

The body is collected before the app runs, so a slow client never occupies it. What the app yields is written at once;
when the client reads too slowly the app is not asked for more. In the loop, the app is called as in one thread: it does
not see the loop, all requests share one context, and none begins while another's answer has not been yielded to its end
(Django closes its connections at the end of each). Other workers take the new connections meanwhile, and so that a slow
client holds up few others the app is asked for AHEAD bytes before it has read any. A file holds up nobody: the app is done
with it at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from asyncio.events import _set_running_loop
from collections.abc import Callable, Iterator
from typing import IO, Any

from pyworker.errors import NO_DESCRIPTOR
from pyworker.worker.engines import heads
from pyworker.worker.engines.body import Body
from pyworker.worker.engines.environ import environ, static_part
from pyworker.worker.engines.exchange import BadTarget, Exchange
from pyworker.worker.engines.files import PIECE, FileRest, FileWrapper

UNSENT = 256 * 1024  # bytes a thread may be ahead of the loop
IN_MEMORY = 1 << 20  # bytes of an answer that wait for its client there; more do in a file
AHEAD = 16 << 20  # bytes that an app in the loop may be ahead of its client, as far as the disk has room
ROOM = 256 << 20  # bytes that must be free there
SLICE = 0.02  # seconds a streaming app in the loop may run before the loop turns

MORE, FINISHED, BROKEN = range(3)  # what comes with a piece of output

_statuses: dict[str, tuple[int, bytes]] = {}


class WsgiExchange(Exchange):
    """One request and the call of the app that answers it."""

    __slots__ = (
        "answer", "cut_short", "iterable", "queued", "rest", "room", "scheduled", "sends_rest", "spool", "spool_at", "steps", "taken",
        "threaded", "written",
    )  # fmt: skip

    def try_start(self) -> None:
        connection = self.connection
        server = self.server
        if not self.complete:
            if connection.deaf:
                return
            if self.expects:
                self.expects = False
                connection.write(heads.CONTINUE)
            connection.await_body()
            return
        if connection.write_paused:
            return  # on_writable comes back: the answers of one who reads none must not pile up
        self.started = True
        self.answer: tuple[int, bytes, list[tuple[str, bytes]]] | None = None
        self.iterable: Any = None
        self.steps: Iterator[bytes] | None = None
        self.spool: IO[bytes] | None = None
        self.spool_at = 0
        self.rest: FileRest | None = None  # of a file that is the body
        self.cut_short = self.scheduled = self.queued = self.sends_rest = False
        server.begin(self)
        pool = server.pool
        if pool is not None:
            self.threaded = True
            self.room: threading.Event | None = None
            self.written = self.taken = 0  # bytes given by the thread, and taken by the loop
            pool.submit(self)
            return
        self.threaded = False
        if server.streaming is None and not server.queued:
            self._run_hidden(self._run_in_loop)
        else:
            self.queued = True
            server.queued.append(self)

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client who takes his time, this one's or that of the answer before."""
        return self.connection.write_paused or self.queued or self.sends_rest

    # ---- the app, wherever it runs ---------------------------------------------------------------
    def _call(self) -> bytes | None:
        """Call the app. Return the whole answer when it is there at once, or all of it before `rest`, else None: `steps` has it."""
        connection = self.connection
        static = connection.static
        if static is None:
            static = connection.static = static_part(connection, self.server.root_path, self.threaded)
        result = self.iterable = self.server.application(environ(self, static), self.start_response)
        if (type(result) is list or type(result) is tuple) and not self.status:
            body = result[0] if len(result) == 1 else b"".join(result)
            whole = self._part(body, len(body))
            end = self._end()
            return whole + end if end else whole
        if type(result) is FileWrapper and not self.status and self.answer is not None:
            try:
                rest = result.rest()
            except OSError:  # for a descriptor: it is read as anything else
                rest = None
            if rest is not None:
                return self._of_file(rest)
        self.steps = self._steps(result)
        return None

    def _of_file(self, rest: FileRest) -> bytes:
        """Return the whole answer if it is no more than a piece, else its head: the file is the `rest` then."""
        try:
            is_small = rest.left <= PIECE
            data = rest.read(PIECE) if is_small else b""  # which may be less than its size says: of /sys
            head = self._part(b"", len(data) if is_small else rest.left)
            assert self.remaining is not None
            if is_small or self.nobody or self.gone:
                return head + self._part(data[: self.remaining], None) + self._end()
            rest.left = min(rest.left, self.remaining)  # PEP 3333: until its end, or so many bytes
            self.rest = rest
            return head
        finally:
            if self.rest is None:
                rest.close()

    def _steps(self, result: Any) -> Iterator[bytes]:
        for part in result:
            if part or not isinstance(part, bytes):
                yield self._part(part, None)
            if self.nobody:
                break
        end = self._end()
        if end:
            yield end

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """PEP 3333's start_response."""
        if exc_info is not None:
            try:
                if self.status:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.answer is not None:
            raise AssertionError("start_response was called twice without exc_info")
        code, line = _statuses.get(status) or _status(status)
        try:
            self.answer = code, line, [(name, value.encode("latin-1")) for name, value in headers]
        except AttributeError:
            raise TypeError(f"header names and values must be str: {headers!r:.200}") from None
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333's write()."""
        if not data:
            return
        part = self._part(data, None)
        if self.threaded:
            self._emit(part, MORE)
        elif self.spool is not None or self.connection.write_paused:
            self._keep(part)  # the app cannot be stopped here
        elif not self._has_left():
            self.connection.write(part)

    def _part(self, data: bytes, size: int | None) -> bytes:
        """Return the wire's bytes of one part of the body, with the head before the first."""
        if self.server.forked:
            self.leave_forked()
        if not isinstance(data, bytes):
            raise TypeError(f"the app's body has {type(data).__name__} in it, not bytes")
        if self.gone:
            return b""  # a thread that was given up: somebody else has answered
        head = b""
        if not self.status:
            if self.answer is None:
                raise AssertionError("the app did not call start_response")
            code, line, pairs = self.answer
            head = self.make_head(code, line, pairs, size)
        if self.nobody:
            return head
        length = len(data)
        if self.chunked:
            self.sent += length
            return heads.chunk(data, head)
        if self.remaining is not None:
            if length > self.remaining:
                self.complain("the body is longer than its Content-Length: cut")
                data = data[: self.remaining]
                length = self.remaining
            self.remaining -= length
        self.sent += length
        return head + data if head else data

    def _end(self) -> bytes:
        """Return what ends the body on the wire."""
        if self.server.forked:
            self.leave_forked()
        if self.gone:
            return b""
        if not self.status:
            if self.answer is None:
                raise AssertionError("the app did not call start_response")
            code, line, pairs = self.answer
            return self.make_head(code, line, pairs, 0)
        if self.chunked:
            return b"0\r\n\r\n"
        if self.remaining and not self.nobody:
            self.cut_short = True
            self.complain("the body is shorter than its Content-Length: connection cut")
        return b""

    def _close(self) -> None:
        """Call the iterable's close(), whatever happened, and free the request's body."""
        iterable, self.iterable = self.iterable, None
        try:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()
        except BaseException as error:  # noqa: BLE001 - it is the app's, and its answer was given already
            self.report(error)
        body, self.body = self.body, b""
        if isinstance(body, Body):
            body.close()

    # ---- in the loop -----------------------------------------------------------------------------
    def _run_hidden(self, step: Callable[[], None]) -> None:
        """Run a step as if no loop ran in this thread: Django's ORM, async views and asyncio.run refuse to work in one."""
        _set_running_loop(None)
        try:
            self.server.context.run(step)
        finally:
            _set_running_loop(self.server.loop)

    def run_queued(self) -> None:
        """Run now what has waited for the end of another's answer."""
        self.queued = False
        if not self.done:
            self.server.client_came(self)
            self._run_hidden(self._run_in_loop)

    def _run_in_loop(self) -> None:
        try:
            whole = self._call()
        except BaseException as error:  # noqa: BLE001 - whatever an app raises (SystemExit too) ends one request only
            self._failed(error)
            return
        if whole is None:
            self._pump()
            return
        if self.spool is None and not self.gone:
            self.connection.write(whole)
        if self.iterable.__class__ is not list or self.body:
            self._close()
        if self.rest is not None:
            self._send_rest()
        else:
            self._over()

    def _pump(self) -> None:
        """Write until the app has nothing more or the client cannot take more. Runs in the context of all requests."""
        connection = self.connection
        until = time.monotonic() + SLICE
        try:
            while not self._has_left():
                if self.spool is not None and not connection.write_paused:
                    self._write_kept()
                    continue
                if self.steps is None:
                    if self.spool is None:
                        self._over()
                    return  # on_writable goes on
                if connection.write_paused and not self._may_go_ahead():
                    self.server.begin_stream(self)
                    return  # on_writable goes on
                part = next(self.steps, None)
                if part is None:
                    self._close()
                    self._has_ended()
                    continue
                if connection.write_paused or self._keeps():  # the app may just have called write()
                    self._keep(part)
                else:
                    connection.write(part)
                if time.monotonic() > until:
                    self.server.begin_stream(self)
                    self._go_on_soon()
                    return
        except BaseException as error:  # noqa: BLE001 - as above
            self._failed(error)
            return
        self._close()
        self._over()

    def _send_rest(self) -> None:
        """Write of the file until the client cannot take more, or others have their turn."""
        rest, connection = self.rest, self.connection
        assert rest is not None
        self.sends_rest = True
        until = time.monotonic() + SLICE
        try:
            while not self.done and not self._has_left():
                if connection.write_paused:
                    return  # on_writable goes on
                sent = rest.send(connection)
                if not sent:
                    break
                self.sent += sent
                if self.remaining is not None:
                    self.remaining -= sent
                if time.monotonic() > until:
                    self._go_on_soon()
                    return
            self._end()
        except OSError as error:
            self.cut_short = True
            self.report(error)
        self.rest = None
        rest.close()
        self._over()

    def _has_left(self) -> bool:
        """Whether nobody is there to write to: its end may be known before the loop has had the time to tell."""
        self.gone = self.gone or self.connection.transport.is_closing()
        return self.gone

    def _keeps(self) -> bool:
        # mypy would believe that it has not changed since it was looked at last
        return self.spool is not None

    def _keep(self, part: bytes) -> None:
        """Have a part of the answer wait for its client."""
        if self.spool is None:
            import tempfile

            most = IN_MEMORY if _has_disk() else 0  # 0: as much as there is
            self.spool = tempfile.SpooledTemporaryFile(most)  # noqa: SIM115 - closed when it is written, or released
            self.spool_at = 0
        try:
            self.spool.write(part)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise  # for a file there is no descriptor: what was written stays in memory

    def _may_go_ahead(self) -> bool:
        """Whether the app is asked for more although the client has not taken what there is."""
        kept = self.spool.tell() if self.spool is not None else 0
        return kept < IN_MEMORY // 2 or (kept < AHEAD and _has_disk())

    def _write_kept(self) -> None:
        spool = self.spool
        assert spool is not None
        spool.seek(self.spool_at)
        piece = spool.read(PIECE)
        self.spool_at += len(piece)
        spool.seek(0, 2)
        if piece:
            self.connection.write(piece)
        else:
            self.spool = None
            spool.close()

    def _go_on_soon(self) -> None:
        self.scheduled = True
        self.server.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self.scheduled = False
        if self.rest is not None:
            self._send_rest()
        elif self.spool is not None or (self.steps is not None and not (self.done and self.iterable is None)):
            self._run_hidden(self._pump)

    def _failed(self, error: BaseException) -> None:
        if self.server.forked:
            self.leave_forked(error)
        if isinstance(error, BadTarget):
            status = 400
        else:
            status = 500
            self.report(error)
        self._close()
        if self.spool is not None and self.connection.write_paused and not self.gone:
            self.cut_short = True
            self._has_ended()  # on_writable goes on with what the client has not taken yet
            return
        if not self.done:
            if self.gone:
                self._over()
            else:
                Exchange.refuse(self, status)
        self._release()

    def _over(self) -> None:
        if self.cut_short:
            self.abort()
        else:
            self.finish()
        self._release()

    def _release(self) -> None:
        if self.spool is not None:
            with contextlib.suppress(OSError):  # there is no room for what is in its buffer, and nobody wants it
                self.spool.close()
            self.spool = None
        self._has_ended()

    def _has_ended(self) -> None:
        """The app has yielded all of it: others may be asked for theirs."""
        self.steps = None
        if self.server.streaming is self:
            self.server.end_stream()

    # ---- in a thread -----------------------------------------------------------------------------
    def run_in_thread(self) -> None:
        """Run the app and send what it says to the loop."""
        try:
            whole = self._call()
            if whole is not None:
                self._emit(whole, BROKEN if self.cut_short else FINISHED)
            else:
                assert self.steps is not None
                for part in self.steps:
                    if not self._emit(part, MORE):
                        break
                self._emit(b"", BROKEN if self.cut_short else FINISHED)
        except BaseException as error:  # noqa: BLE001 - whatever an app raises (SystemExit too) ends one request only
            if self.server.forked:
                self.leave_forked(error)
            if isinstance(error, BadTarget):
                self._emit(b"", 400)
            else:
                self.report(error)
                self._emit(b"", 500)
        finally:
            self._close()

    def _emit(self, data: bytes, end: int) -> bool:
        """Give output to the loop, and wait while the client is behind; False when nobody is there any more."""
        pool = self.server.pool
        assert pool is not None
        self.written += len(data)
        pool.deliver(self, data, end)
        if end == MORE:
            while not self.gone and (self.written - self.taken > UNSENT or self.connection.write_paused):
                if self.room is None:
                    self.room = threading.Event()
                self.room.clear()
                if self.written - self.taken > UNSENT or self.connection.write_paused:
                    self.room.wait(1.0)
        return not self.gone

    def on_output(self, data: bytes, end: int) -> None:
        """In the loop: a piece of a thread's output. `end`: MORE, FINISHED, BROKEN, or a status to answer with."""
        self.taken += len(data)
        if self.room is not None:
            self.room.set()
        if self.rest is not None and (self.done or self.gone):
            self.rest.close()
            self.rest = None
        if self.done:
            return
        if self.gone:
            if end != MORE:
                self.finish()
            return
        if end == MORE and self.connection.transport.is_closing():
            return  # as in _has_left
        if data:
            self.connection.write(data)
        if self.rest is not None:
            self._send_rest()
        elif end == FINISHED:
            self.finish()
        elif end == BROKEN:
            self.abort()
        elif end != MORE:
            self.refuse(end)

    # ---- what the connection tells ---------------------------------------------------------------
    def on_body(self, data: bytes) -> None:
        if not isinstance(self.body, Body):
            self.body = Body()
        self.body.append(data)

    def on_writable(self) -> None:
        if not self.started:
            if self.complete:
                self.connection.start_soon()
        elif self.threaded and not self.sends_rest:
            if self.room is not None:
                self.room.set()
        elif not self.scheduled:
            self._go_on_soon()  # asyncio's transport ends twice, with a traceback, when it is in here that a write fails

    def on_lost(self) -> None:
        self.gone = True
        if not self.started:
            if isinstance(self.body, Body):
                self.body.close()
            return
        if self.threaded and not self.sends_rest:
            if self.room is not None:
                self.room.set()
        elif self.queued:
            self._close()
            self.finish()
        else:
            self._go_on()  # now: a server that drains looks next whether this was its last request

    def refuse(self, status: int) -> None:
        super().refuse(status)
        if not self.started:
            if isinstance(self.body, Body):
                self.body.close()
        elif self.threaded and not self.sends_rest:
            if self.room is not None:
                self.room.set()
        elif self.queued:
            self._close()
        elif self.rest is not None:
            if not self.scheduled:
                self._go_on_soon()
        elif (self.steps is not None or self.spool is not None) and not self.scheduled:
            self._go_on_soon()  # its answer is over, and others wait for its end


def _has_disk() -> bool:
    """Whether there is room for what waits for clients."""
    import tempfile

    try:
        disk = os.statvfs(tempfile.gettempdir())
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize >= ROOM


def _status(status: str) -> tuple[int, bytes]:
    """Check a status of the app: "200 OK". Raises ValueError."""
    if not isinstance(status, str):
        raise TypeError(f"the status must be a str: {status!r:.60}")
    if len(status) < 3 or not status[:3].isdigit() or status[3:4] not in ("", " ") or not 200 <= int(status[:3]) < 600:
        raise ValueError(f"not a status: {status!r:.60}")
    if "\n" in status or "\r" in status or "\0" in status:
        raise ValueError("the status holds a line break or a NUL")
    code = int(status[:3])
    line = b"HTTP/1.1 %b\r\n" % (status if len(status) > 3 else status + " ").encode("latin-1")
    if len(_statuses) < 256:
        _statuses[status] = code, line
    return code, line
