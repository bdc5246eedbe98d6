"""What stands in for the methods of sockets, for `os.unlink` and `ssl` in a program whose listeners are shared (binding.py).

Each does what the original does to all that is none of ours. Originals are taken when this is imported, before any is replaced.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyworker.cluster import uvloop_servers

if TYPE_CHECKING:
    from pyworker.cluster.binding import Binding

FOR_EVER = 2_000_000.0  # seconds; the longest time-out a socket takes is 24 days

_bind = socket.socket.bind
_listen = socket.socket.listen
_accept = socket.socket.accept
_setblocking = socket.socket.setblocking
_settimeout = socket.socket.settimeout
_getsockname = socket.socket.getsockname
_setsockopt = socket.socket.setsockopt
_shutdown = socket.socket.shutdown
_close = socket.socket.close
_unlink = os.unlink


def install(binding: Binding) -> None:
    """Put them in place, for good."""
    for method in (*_to_serve(binding), *_of_what_is_shared(binding), *_of_an_inbox(binding)):
        method.__doc__ = getattr(socket.socket, method.__name__).__doc__
        setattr(socket.socket, method.__name__, method)
    _keep_files(binding)
    if "ssl" in sys.modules:
        _teach_ssl(sys.modules["ssl"], binding)
    else:
        _when_imported("ssl", lambda module: _teach_ssl(module, binding))
    _when_imported("uvloop", lambda module: uvloop_servers.teach(module, binding))


def _to_serve(binding: Binding) -> list[Callable[..., Any]]:
    """How a program gets its listener, and connections of it."""

    def bind(self: socket.socket, address: Any) -> None:
        if not binding.adopt(self, address):
            _bind(self, address)

    def listen(self: socket.socket, *backlog: int) -> None:
        if self not in binding.adopted:
            _listen(self, *backlog)
        else:
            binding.on_listen(self)

    def accept(self: socket.socket) -> tuple[socket.socket, Any]:
        if self not in binding.adopted:
            return _accept(self)
        return binding.accept(self)

    return [bind, listen, accept]


def _of_what_is_shared(binding: Binding) -> list[Callable[..., Any]]:
    """What would be felt by all workers that share the listener."""

    def setblocking(self: socket.socket, flag: bool) -> None:
        if flag and self in binding.adopted:
            settimeout(self, None)
        else:
            _setblocking(self, flag)

    def settimeout(self: socket.socket, value: float | None) -> None:
        if value is None and self in binding.adopted:
            # the real call would make the listener block for every worker that shares it
            if self.gettimeout() is not None:
                _settimeout(self, FOR_EVER)
        else:
            _settimeout(self, value)

    def shutdown(self: socket.socket, how: int) -> None:
        if self in binding.adopted:
            binding.shut(self)
        else:
            _shutdown(self, how)

    return [setblocking, settimeout, shutdown]


def _of_an_inbox(binding: Binding) -> list[Callable[..., Any]]:
    """What an inbox is asked that is no listener itself."""

    def getsockname(self: socket.socket) -> Any:
        inbox = binding.inboxes.get(self)
        return _getsockname(self) if inbox is None else inbox.sockname

    def setsockopt(self: socket.socket, *args: Any) -> None:
        if self not in binding.inboxes:
            _setsockopt(self, *args)  # an inbox has no TCP: its listener is elsewhere

    def close(self: socket.socket) -> None:
        inbox = binding.inboxes.get(self)
        _close(self)
        if inbox is not None and self.fileno() < 0 and binding.is_own_process:
            inbox.close()  # what it has not taken is another worker's

    return [getsockname, setsockopt, close]


def _keep_files(binding: Binding) -> None:
    """Have the file of a shared Unix socket stay."""

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None or not binding.keeps(path):
            _unlink(path, dir_fd=dir_fd)

    unlink.__doc__ = _unlink.__doc__
    unlink.__module__, unlink.__qualname__ = "os", "unlink"  # it is pickled by its name, for a pool of processes
    os.unlink = os.remove = unlink
    os.supports_dir_fd.add(unlink)  # shutil.rmtree looks whether it is safe from links


def _teach_ssl(ssl: Any, binding: Binding) -> None:
    """A socket that is wrapped is another object; ours stay ours. (asyncio wraps no sockets.)"""
    original = ssl.SSLContext.wrap_socket

    def wrap_socket(self: Any, sock: socket.socket, *args: Any, **options: Any) -> Any:
        if sock in binding.adopted:
            return binding.exchange(sock, lambda blank: original(self, blank, *args, **options))
        is_open = sock in binding.accepted
        made = original(self, sock, *args, **options)
        if is_open:
            binding.accepted.add(made)
        return made

    wrap_socket.__doc__ = original.__doc__
    ssl.SSLContext.wrap_socket = wrap_socket


def _when_imported(name: str, then: Callable[[Any], None]) -> None:
    """Call `then(module)` right after each import of `name` by the script; who only looks for it changes nothing."""

    class Finder:
        @staticmethod
        def find_spec(fullname: str, path: Any, target: Any = None) -> Any:
            if fullname != name:
                return None
            others = [each for each in sys.meta_path if each is not Finder and hasattr(each, "find_spec")]
            spec = next(filter(None, (each.find_spec(name, path, target) for each in others)), None)
            if spec is not None and spec.loader is not None:
                real = spec.loader.exec_module

                def exec_module(module: Any) -> None:
                    real(module)
                    then(module)

                spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Finder)
