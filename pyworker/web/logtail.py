"""Web: the end of an app's log file, and what is added to it, across rotations. Reads only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from typing import Any

from pyworker.protocol.inherited import APP_NAME
from pyworker.protocol.logs import parse_record
from pyworker.protocol.names import LOGS_DIR
from pyworker.unix.files import open_regular

_TURN = 256 * 1024  # bytes at a time, and of the past
_BEHIND = 4 * _TURN  # more than a browser can show
_POLL = 0.25
_LONGEST = 1024 * 1024
_COLORS = re.compile("\x1b\\[[0-9;]*m")  # a browser shows them as characters


def path_of(home: str, app: str) -> str | None:
    """Return an app's log file; None for a name that is none."""
    if not APP_NAME.match(app) or app == "pyworker":
        return None
    folder = os.path.join(home, LOGS_DIR)
    link = os.path.join(folder, f"{app}.path")  # the logger makes it for a log that is elsewhere
    return os.path.realpath(link) if os.path.islink(link) else os.path.join(folder, f"{app}.log")


async def follow(path: str, count: int) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the last `count` lines, then what is added, a batch at a time; [] when a while has passed without any.

    What comes faster than it can be shown is left out: {"skipped": bytes} stands in its place."""
    fd = -1
    at = 0
    rest = b""
    first = True
    quiet = 0.0
    try:
        while True:
            if fd < 0:
                with contextlib.suppress(OSError), open_regular(path) as file:  # of a pipe the lines are its reader's
                    fd, at = os.dup(file.fileno()), 0
            left_out = _too_much(fd, at, _TURN if first else _BEHIND) if fd >= 0 else 0
            if left_out:
                at += left_out
                rest = b""
            data = os.pread(fd, _TURN, at) if fd >= 0 else b""
            at += len(data)
            if left_out:  # the middle of a line
                data = data.partition(b"\n")[2]
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LONGEST:
                rest = b""
            records = [record for line in lines if (record := _record(line)) is not None]
            if first:
                yield records[-count:] if count else []
                first = False
            elif records or left_out:
                quiet = 0.0
                yield [{"skipped": left_out}, *records] if left_out else records
            if data:
                await asyncio.sleep(_POLL if len(data) == _TURN or left_out else 0)
                continue
            if fd >= 0 and _is_replaced(fd, at, path):
                if os.fstat(fd).st_size > at:  # written between the look and the rotation
                    continue
                os.close(fd)
                fd, at, rest = -1, 0, b""
                continue
            quiet += _POLL
            if quiet >= 15:
                quiet = 0.0
                yield []
            await asyncio.sleep(_POLL)
    finally:
        if fd >= 0:
            os.close(fd)


def _too_much(fd: int, at: int, most: int) -> int:
    """Return how many bytes to pass over, so that a turn is left, when more than `most` waits."""
    waiting = os.fstat(fd).st_size - at
    return waiting - _TURN if waiting > most else 0


def _record(line: bytes) -> dict[str, Any] | None:
    found = parse_record(line)
    if found is None:
        return None
    return {
        "ts": found.ts, "worker": found.worker, "pid": found.pid, "stream": found.stream, "partial": found.partial,
        "msg": _COLORS.sub("", found.msg.decode("utf-8", "backslashreplace")),
    }  # fmt: skip


def _is_replaced(fd: int, at: int, path: str) -> bool:
    ours = os.fstat(fd)
    if ours.st_size < at:
        return True
    try:
        now = os.stat(path)
    except OSError:
        return False
    # an empty one is logrotate's: the logger goes on in ours until it has looked
    return now.st_size > 0 and (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino)
