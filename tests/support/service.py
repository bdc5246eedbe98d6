"""What stands in for a Kubernetes Service and its kubelets on one machine: one address before several pods.

As kube-proxy does it, a new connection goes to the next endpoint in turn, and one that is open stays where it is. Readiness is
asked as a kubelet asks, and what has changed is acted on `lag` seconds later, as a node hears of it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Self

from tests.support.foreground import probe
from tests.support.pyworker import LONG
from tests.support.wait import wait_until


class Service:
    """Used with `with`."""

    def __init__(self, *, period: float, lag: float) -> None:
        self.refused = 0  # connections to an endpoint that was not there any more
        self._period, self._lag = period, lag
        self._pods: dict[int, int] = {}  # port -> port of its probe
        self._said: dict[int, tuple[int, str]] = {}  # by port: the last answer of its probe
        self._endpoints: list[int] = []
        self._turn = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a connection hangs"
        self._listener.close()

    def add(self, port: int, probe_port: int) -> None:
        """Send connections to a pod, too, as soon as it says that it is ready; return when that has come here."""
        self._pods[port] = probe_port

        def what() -> str:
            return f"an endpoint of the pod on {port}; its probe answers {self._said.get(port, 'nothing yet')}"

        wait_until(lambda: port in self._endpoints, LONG * 2, what)

    def forget(self, port: int) -> None:
        """Ask nothing of a pod any more."""
        del self._pods[port]
        wait_until(lambda: port not in self._endpoints, LONG, f"no endpoint of the pod on {port}")

    def _ask(self) -> None:
        while not self._over.is_set():
            for port, asked in list(self._pods.items()):
                self._said[port] = probe(asked, "/readyz")
            ready = [port for port in list(self._pods) if self._said.get(port, (0, ""))[0] == 200]
            self._over.wait(self._lag)
            self._endpoints = ready
            self._over.wait(self._period - self._lag)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._relay, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _relay(self, client: socket.socket) -> None:
        with client:
            endpoints = self._endpoints
            self._turn += 1
            try:
                pod = socket.create_connection(("127.0.0.1", endpoints[self._turn % len(endpoints)]))
            except (OSError, ZeroDivisionError):
                self.refused += 1
                return
            with pod, contextlib.suppress(OSError):
                self._copy({client: pod, pod: client})

    def _copy(self, sinks: dict[socket.socket, socket.socket]) -> None:
        """Copy both ways until both sides have said their last; the end of one is passed on, as it is."""
        sources = list(sinks)
        for sock in sources:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while sources and not self._over.is_set():
            for sock in select.select(sources, [], [], 0.2)[0]:
                data = sock.recv(65536)
                if data:
                    sinks[sock].sendall(data)
                else:
                    sinks[sock].shutdown(socket.SHUT_WR)
                    sources.remove(sock)
