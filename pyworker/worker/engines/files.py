"""Worker: a file of the disk that a WSGI app gives as its answer (wsgi.file_wrapper, PEP 3333): sent without the app.

The app is done with it at once: nobody waits for the client's time but the client.
"""

from __future__ import annotations

import io
import os
import stat
from typing import IO, TYPE_CHECKING, Any

from pyworker.worker.engines.early import Early

if TYPE_CHECKING:
    from pyworker.worker.engines.connection import Connection

PIECE = 64 * 1024  # bytes of what is written at once
AT_ONCE = 4 * PIECE  # that the kernel is asked to send: it may have to wait for the disk
A_LITTLE = 4096  # that a transport is given to say when the kernel takes more
_PLAIN = (io.BufferedReader, io.BufferedRandom, io.FileIO)  # exactly: what is derived from one may read something else


class FileWrapper:
    """wsgi.file_wrapper: iterates over a file in blocks, and closes it."""

    def __init__(self, filelike: IO[bytes], blksize: int = 65536) -> None:
        self._file = filelike
        self._size = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        data = self._file.read(self._size)
        if not data:
            raise StopIteration
        return data

    # Werkzeug asks for these: without them it reads what is before a range, too

    def seekable(self) -> bool:
        has_place = getattr(self._file, "seekable", None)
        return has_place is not None and bool(has_place())

    def seek(self, *where: int) -> int:
        return self._file.seek(*where)

    def tell(self) -> int:
        return self._file.tell()

    def rest(self) -> FileRest | None:
        """Return what reading it would give, None if that is not just the bytes of a file. Raises OSError: no descriptor.

        The app may close its file, or read on: the one returned has a descriptor and a place of its own.
        """
        try:
            file = _plain(self._file)
            if file is None:
                return None
            at = file.tell()
            if isinstance(file, io.BufferedRandom):
                file.flush()
            status = os.fstat(file.fileno())
        except Exception:  # noqa: BLE001 - a file that is closed, or the app's own: reading it says what is wrong
            return None
        if not stat.S_ISREG(status.st_mode) or not status.st_size:  # of no size are the files of /proc
            return None
        return FileRest(os.dup(file.fileno()), at, max(0, status.st_size - at))


def _plain(file: Any) -> Any:
    """Return the file of Python that is read: this one, or that to which it leaves its reading, as Django's do.

    None if there is none, as behind the buffer of `io.BufferedReader(gzip.open(path))`.
    """
    for _ in range(4):
        if type(file) in _PLAIN:
            return file if type(getattr(file, "raw", file)) is io.FileIO else None
        inner = getattr(file, "file", None)
        if inner is None or file.read != inner.read:
            break
        file = inner
    return None


class FileRest:
    """Bytes of a file that are still to be sent. It owns `fd`.

    The kernel takes them from the file itself (sendfile), past a transport that has nothing to write and encrypts nothing.
    """

    __slots__ = ("at", "fd", "is_direct", "left", "transport")

    def __init__(self, fd: int, at: int, left: int) -> None:
        self.fd = fd
        self.at = at
        self.left = left
        self.transport: Any = None
        self.is_direct = False

    def read(self, size: int) -> bytes:
        """Return the next bytes, b"" when all was read or the file has become shorter. Raises OSError."""
        data = os.pread(self.fd, min(size, self.left), self.at)
        self._took(len(data))
        return data

    def send(self, connection: Connection) -> int:
        """Send some of them and return how many: 0 when all was sent or the file has become shorter. Raises OSError."""
        transport = connection.transport
        if transport is not self.transport:
            self._use(transport, is_direct=not (isinstance(transport, Early) or connection.scheme_is_tls()))
        if self.is_direct and not transport.get_write_buffer_size() and not transport.is_closing():
            try:
                sent = os.sendfile(
                    transport.get_extra_info("socket").fileno(), self.fd, self.at, min(AT_ONCE, self.left)
                )
            except BlockingIOError:
                pass  # the transport is given some, and says when there is room again
            except OSError:
                self.is_direct = False  # the client has left, as the transport will see, or it is no file for sendfile
            else:
                self._took(sent)
                return sent
        data = self.read(A_LITTLE if self.is_direct else PIECE)
        transport.write(data)
        return len(data)

    def _took(self, size: int) -> None:
        self.at += size
        self.left -= size

    def _use(self, transport: Any, *, is_direct: bool) -> None:
        self.transport, self.is_direct = transport, is_direct
        if is_direct:
            transport.set_write_buffer_limits(0)  # it has us go on when nothing waits in it, not a little before

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.transport is not None and not isinstance(self.transport, Early) and not self.transport.is_closing():
            self.transport.set_write_buffer_limits()
