"""Those who give commands, and may hang up; what was answered to them is what must be so in the end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyworker import __version__
from pyworker.protocol import control as k
from pyworker.protocol.wire import encode
from tests.simulation import kernel
from tests.simulation.processes import Move

if TYPE_CHECKING:
    from tests.simulation.daemon import Daemon
    from tests.simulation.world import World


class _Client:
    def __init__(self, request: Any, sock: socket.socket, daemon: Daemon) -> None:
        self.request, self.sock, self.daemon = request, sock, daemon
        self.is_over = False  # answered, or it has hung up
        self.heard = b""

    def names(self, all_of_them: set[str]) -> set[str]:
        """Of the apps that it changes."""
        if isinstance(self.request, k.Ps):
            return set()
        if isinstance(self.request, k.Scale):
            return set(self.request.changes)
        if isinstance(self.request, k.Start):
            return all_of_them
        return {selector.partition(".")[0] for selector in getattr(self.request, "selectors", ())}


class Clients:
    def __init__(self, world: World) -> None:
        self._world = world
        self._all: list[_Client] = []
        self.promised: dict[str, dict[str, Any]] = {}  # app -> what was acknowledged: "wanted", "want", "deleted"

    def __len__(self) -> int:
        return len(self._all)

    def waiting(self) -> list[_Client]:
        return [client for client in self._all if not client.is_over]

    def fds(self) -> set[int]:
        return {client.sock.fileno() for client in self.waiting()}

    def asks(self, request: object) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._world.guardian.address)
        sock.send(encode(k.Call(k.PROTOCOL, __version__, json.loads(encode(request)))) + b"\n")
        sock.setblocking(False)
        self._all.append(client := _Client(request, sock, self._world.daemon))
        self._world.say(f"somebody asks: {request}")
        self._nothing_is_sure(client)

    def moves(self) -> Iterator[Move]:
        for client in self.waiting():
            if kernel.is_readable(client.sock):
                yield Move(2, "client reads", lambda client=client: self._reads(client))  # type: ignore[misc]

    def one_hangs_up(self) -> None:
        if waiting := self.waiting():
            client = self._world.rng.choice(waiting)
            self._world.say(f"who asked {client.request} hangs up")
            self._ends(client)
            self._nothing_is_sure(client)

    def lose_daemon(self) -> None:
        """Whether it has done what they are waiting for, nobody knows."""
        for client in self.waiting():
            self._nothing_is_sure(client)

    def random(self) -> object:
        rng, apps = self._world.rng, self._world.apps
        name, wait = rng.choice(list(apps.workers)), rng.random() < 0.7
        worker = f"{name}.{rng.randrange(1, 3)}"
        start = k.Start(file=apps.file, only=(name,), wait=wait)
        reload = k.Reload((name,), wait=wait, soak=rng.random() < 0.2)
        abort, restart_worker = k.Abort((name,), wait=wait), k.Restart((worker,), wait=wait)
        if self._world.weather_name == "reloads":
            return rng.choice([reload, reload, abort, restart_worker])
        if name not in self._world.daemon.brain.apps and rng.random() < 0.9:
            return start
        some = [start, reload, reload, reload, abort, restart_worker, k.Ps(sample=False), k.Start(names=(name,), wait=wait)]
        some += [k.Stop((name,), now=rng.random() < 0.3, wait=wait), k.Stop((worker,), wait=wait), k.Restart((name,), wait=wait)]
        some += [k.Scale({name: str(rng.randrange(1, 4))}, wait=wait), k.Delete((name,), wait=wait)]
        return rng.choice(some)

    def _nothing_is_sure(self, client: _Client) -> None:
        for name in client.names(set(self._world.apps.workers)):
            self.promised.pop(name, None)

    def _ends(self, client: _Client) -> None:
        client.is_over = True
        client.sock.close()

    def _reads(self, client: _Client) -> None:
        try:
            chunk = client.sock.recv(1 << 20)
        except ConnectionResetError:
            chunk = b""
        client.heard += chunk
        if chunk:
            return
        self._ends(client)
        lines = [json.loads(line) for line in client.heard.split(b"\n") if line]
        finals = [line for line in lines if line["type"] != "progress"]
        said = str(finals).replace(self._world.home, "~")
        self._world.say(f"{client.request} was answered {said[:300]}")
        if len(finals) > 1 or (finals and lines[-1] is not finals[0]):
            self._world.fail(f"{client.request}: more than one answer: {finals}")
        if not finals and client.daemon is self._world.daemon:
            self._world.fail(f"{client.request}: no final answer")
        if finals and finals[0]["type"] == "reply":
            self._note(client, {each["app"]: each for each in finals[0]["body"].get("apps", []) if "app" in each})

    def _note(self, client: _Client, results: dict[str, dict[str, Any]]) -> None:
        known = set(self._world.apps.workers)
        later = self._all[self._all.index(client) + 1 :]
        others = [o for o in self._all if o in later or not o.is_over]
        sure = client.names(known) - {name for other in others for name in other.names(known)}
        request = client.request
        for name in sorted(sure & set(results)):
            promised, is_done = self.promised.setdefault(name, {}), results[name].get("ok")
            match request:
                case k.Stop() if all("." not in selector for selector in request.selectors):
                    promised["wanted"] = False
                case k.Start() | k.Restart() | k.Reload() if is_done:
                    promised["wanted"] = True
                    promised.pop("deleted", None)
                case k.Scale() if is_done:
                    promised["want"] = int(request.changes[name])
                case k.Delete():
                    self.promised[name] = {"deleted": True}
