"""Web: asks the daemon over its control socket, without blocking the loop."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from pyworker import __version__
from pyworker.protocol.control import PROTOCOL, Answer, Call, Progress, Refused, Reply, Request
from pyworker.protocol.names import CONTROL_SOCKET
from pyworker.protocol.wire import decode, encode
from pyworker.unix.files import socket_path
from pyworker.unix.peer import peer

MAX_ANSWER = 64 * 1024 * 1024
ANSWER_TIME = 10.0  # seconds to the answer of a request that waits for nothing
_AGAIN = 0.05


class Away(Exception):
    """The daemon does not answer, or something else does; the text says which."""


class Declined(Exception):
    """The daemon's refusal."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


async def _open(home: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        with socket_path(home, CONTROL_SOCKET) as path:
            async with asyncio.timeout(ANSWER_TIME):
                reader, writer = await asyncio.open_unix_connection(sock=await _connected(path), limit=MAX_ANSWER)
    except TimeoutError:
        raise Away("the pyworker daemon hangs") from None
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise Away("the pyworker daemon is not running") from None
    except OSError as error:
        raise Away(f"the pyworker daemon of {home} cannot be asked: {error.strerror}") from None
    sock: socket.socket = writer.get_extra_info("socket")
    _, uid = peer(sock)
    if uid not in (0, os.geteuid()) and os.geteuid() != 0:
        writer.close()
        raise Away(f"the socket in {home} belongs to user {uid}")
    return reader, writer


async def _connected(path: str) -> socket.socket:
    """Return a connected socket. asyncio takes one for connected that the kernel refused: too many wait to be let in."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await asyncio.sleep(_AGAIN)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


async def answers(home: str, request: Request) -> AsyncIterator[dict[str, Any] | Reply]:
    """Yield each event of a request, and the Reply last; raise Declined or Away."""
    reader, writer = await _open(home)
    try:
        writer.write(encode(Call(PROTOCOL, __version__, json.loads(encode(request)))) + b"\n")
        await writer.drain()
        while True:
            line = await reader.readline()
            if not line.endswith(b"\n"):
                raise Away("the pyworker daemon went away before it had answered")
            answer: Answer = decode(Answer, line, limit=MAX_ANSWER)
            match answer:
                case Progress():
                    yield answer.event
                case Reply():
                    yield answer
                    return
                case Refused():
                    raise Declined(answer)
    except ValueError as error:
        raise Away(f"the daemon speaks another language than this dashboard ({__version__}): {error}") from None
    except OSError:
        raise Away("the pyworker daemon went away before it had answered") from None
    finally:
        writer.close()


async def ask(home: str, request: Request, timeout: float | None = ANSWER_TIME) -> Reply:
    """Return the reply to a request; `timeout` None: wait for ever."""
    try:
        async with asyncio.timeout(timeout):
            async for answer in answers(home, request):
                if isinstance(answer, Reply):
                    return answer
    except TimeoutError:
        raise Away(f"the pyworker daemon did not answer within {timeout:g} s") from None
    raise AssertionError("answers() ends with a Reply or raises")
