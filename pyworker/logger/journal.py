"""Logger: each record to systemd's journal as well, in its own protocol: one datagram of fields.

The file stays what `pyworker logs` and every error message read, so the journal may be slow, full or not there: what
it does not take at once is counted and said in the program's own log, and no worker ever waits for it.
"""

from __future__ import annotations

import socket
import struct

from pyworker.logger.say import say
from pyworker.protocol.logs import JOURNAL, LogRecord, parse_record

_PRIORITY = b"6"  # info, for both streams: many programs log everything to stderr


class Journal:
    """One datagram socket for all apps."""

    def __init__(self, path: str = JOURNAL) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._missed = 0  # records in a row

    def write(self, records: bytes) -> None:
        """Send records, as they stand in a log file of either format."""
        for line in records.split(b"\n"):
            record = parse_record(line) if line else None
            if record is not None:
                self._send(datagram(record))

    def _send(self, data: bytes) -> None:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
                self._socket.connect(self._path)
            self._socket.send(data)
        except OSError as error:
            if not self._missed:
                say(f"the journal takes no lines, they are in the log files only: {error}")
            self._missed += 1
            if not isinstance(error, BlockingIOError):  # it was started again, perhaps
                self.close()
            return
        if self._missed:
            say(f"the journal takes lines again; {self._missed} are in the log files only")
            self._missed = 0

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def datagram(record: LogRecord) -> bytes:
    """Return a record as fields of the journal; `journalctl -t APP` finds it."""
    fields = {
        b"MESSAGE": record.msg,
        b"PRIORITY": _PRIORITY,
        b"SYSLOG_IDENTIFIER": record.app.encode(),
        b"SYSLOG_PID": str(record.pid).encode(),
        b"PYWORKER_APP": record.app.encode(),
        b"PYWORKER_WORKER": str(record.worker).encode(),
        b"PYWORKER_STREAM": record.stream.encode(),
    }
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:  # a JSON log's message may hold one
        return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name + b"=" + value + b"\n"
