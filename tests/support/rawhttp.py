"""A client that sends exactly the bytes it is told to, and reads one response at a time."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, Self


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return any((name.lower(), value.lower()) == ("connection", "close") for name, value in self.headers.items())


class Client:
    """One connection. `recv` returns None when the server has closed instead of answering."""

    def __init__(self, address: Any, *, family: int = socket.AF_INET, timeout: float = 30, context: Any = None) -> None:
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise
        if context is not None:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self.buffer = b""

    @classmethod
    def of(cls, sock: socket.socket) -> Self:
        """Speak on a connection that is there already."""
        made = cls.__new__(cls)
        made.sock, made.buffer = sock, b""
        return made

    def send(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def get(self, path: str = "/", *lines: str) -> Response | None:
        head = "".join(f"{line}\r\n" for line in (f"GET {path} HTTP/1.1", "Host: test", *lines))
        return self.send(f"{head}\r\n".encode()).recv()

    def post(self, path: str, body: bytes, *lines: str) -> Response | None:
        head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n"
        return self.send((head + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode() + body).recv()

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            return False
        self.buffer += data
        return bool(data)

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self.buffer:
            if not self._more():
                return None
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes | None:
        parts, missing = [self.buffer], size - len(self.buffer)  # joined once: each `+=` would copy all of a long body
        while missing > 0:
            self.buffer = b""
            if not self._more():
                return None
            parts.append(self.buffer)
            missing -= len(self.buffer)
        whole = b"".join(parts)
        found, self.buffer = whole[:size], whole[size:]
        return found

    def recv(self, *, head_only: bool = False) -> Response | None:
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        line, *rest = head.decode("latin-1").split("\r\n")
        assert line.startswith("HTTP/1."), f"what was behind the answer before: {line[:60]!r}"
        headers: dict[str, str] = {}
        for field in rest:
            name, _, value = field.partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        status = int(line.split()[1])
        if head_only or status in (100, 204, 304):
            return Response(status, headers, b"")
        if "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        else:
            body = self.rest()
        return None if body is None else Response(status, headers, body)

    def _chunks(self) -> bytes | None:
        parts = []
        while True:
            line = self._until(b"\r\n")
            if line is None:
                return None
            part = self._exactly(int(line, 16) + 2)
            if part is None:
                return None
            if line == b"0":
                return b"".join(parts)
            parts.append(part[:-2])

    def rest(self) -> bytes:
        """Everything until the server closes."""
        parts = [self.buffer]
        self.buffer = b""
        while self._more():
            parts.append(self.buffer)
            self.buffer = b""
        return b"".join(parts)

    def closed(self) -> bool:
        """Wait for the server's end-of-file; True when nothing came before it."""
        return self.rest() == b""

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
