"""daemon/listening.py: which listener is meant."""

from __future__ import annotations

import errno
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.address import Address
from pyworker.config.schema import AppConfig
from pyworker.daemon import listening as module
from pyworker.daemon.app import Listener
from pyworker.daemon.listener import ListenFailed, bound_to, open_listener
from pyworker.daemon.listening import Listening, why_unreachable
from pyworker.record import replace
from pyworker.unix import user


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_the_listener_of_a_host_name_is_found_by_the_address_that_it_stands_for(name: str) -> None:
    """A script that listens on localhost has looked it up; `bind` has the name."""
    address = Address("inet", name, 0)
    listening = Listening(SimpleNamespace())  # type: ignore[arg-type]
    with open_listener(address) as sock:
        listener = Listener(0, address, sock)
        app: Any = SimpleNamespace(listening=True, listeners={0: listener})
        at = bound_to(sock)
        assert (at.port, at.host) == (sock.getsockname()[1], sock.getsockname()[0])
        assert listening.find(app, at) is listener
        assert listening.find(app, address) is listener
        assert listening.find(app, replace(at, port=at.port - 1)) is None


def test_an_address_of_bind_may_be_written_as_a_name_when_it_was_a_number() -> None:
    with open_listener(Address("inet", "127.0.0.1", 0)) as sock:
        at = bound_to(sock)
        listener = Listener(0, at, sock)
        app: Any = SimpleNamespace(listening=True, listeners={0: listener})
        listening = Listening(SimpleNamespace())  # type: ignore[arg-type]
        assert listening.find_named(app, replace(at, host="localhost")) is listener
        assert listening.find(app, replace(at, host="localhost")) is None, "a worker may ask for it: no name is looked up"
        assert listening.find_named(app, Address("unix", path="/no/such")) is None


class Bound:
    """A listener on an address that no test may have."""

    def __init__(self, *name: Any) -> None:
        self._name = name
        self.family = socket.AF_INET6 if ":" in name[0] else socket.AF_INET

    def getsockname(self) -> tuple[Any, ...]:
        return self._name


def test_a_listener_on_a_network_interface_that_was_made_anew_is_said_to_be_out_of_reach_and_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise ListenFailed("a new one", hint="", code="")

    monkeypatch.setattr(module, "open_listener", opened)
    interface = socket.if_indextoname(index := socket.if_nameindex()[0][0])
    address = Address("inet6", f"fe80::1%{interface}", 8000)
    app: Any = SimpleNamespace(name="api", listening=True, listeners={})
    listening = Listening(SimpleNamespace(apps={}))  # type: ignore[arg-type]
    monkeypatch.setattr(listening, "unused", lambda _: [])
    generation: Any = SimpleNamespace(config=AppConfig("api"), resolved=SimpleNamespace(uid=None, gid=None, groups=(), users_own=False), listeners=())
    for number in (index, index + 1):
        sock: Any = Bound(f"fe80::1%{number}", 8000, 0, number)
        app.listeners = {0: Listener(0, address, sock)}
        assert listening.find(app, address) is (app.listeners[0] if number == index else None)
    again = "its network interface was made anew, and nobody can connect: pyworker reload api makes it again"
    assert why_unreachable(app, app.listeners[0]) == f"{address}: {again}"
    app.generations = {}
    with pytest.raises(ListenFailed, match="a new one"):
        listening.open(app, address, generation)
    gone = replace(address, host="fe80::1%nosuch0")  # a new listener could not be had: the reload would be refused
    app.listeners = {0: Listener(0, gone, sock)}
    assert listening.find(app, gone) is app.listeners[0]


@pytest.mark.parametrize(("host", "is_here"), [("127.0.0.1", True), ("0.0.0.0", True), ("::1", True), ("127.0.0.2", True), ("192.0.2.1", False)])
def test_a_listener_whose_address_the_machine_lost_is_said_to_be_out_of_reach(host: str, is_here: bool) -> None:
    app: Any = SimpleNamespace(name="api")
    sock: Any = Bound(host, 8000, *((0, 0) if ":" in host else ()))
    said = why_unreachable(app, Listener(0, address := Address("inet6" if ":" in host else "inet", host, 8000), sock))
    assert said == ("" if is_here else f"{address}: this machine does not have that address now: nobody can connect until it is back")


@pytest.mark.parametrize(("named", "step"), [(True, 'name where the program listens: bind = "127.0.0.1:8000"'), (False, "pyworker stop api")])
def test_who_listens_beside_what_its_own_bind_names_is_told_to_name_that(named: bool, step: str) -> None:
    """To stop it and start it again would end in the same way."""
    listener: Any = SimpleNamespace(index=0, address=Address("inet", "0.0.0.0", 8000), asked={1})
    generation: Any = SimpleNamespace(listeners=(0,) if named else ())
    app: Any = SimpleNamespace(name="api", generations={1: generation}, listeners={0: listener})
    with pytest.raises(ListenFailed) as caught:
        Listening(SimpleNamespace(apps={"api": app})).open(app, Address("inet", "127.0.0.1", 8000), generation)  # type: ignore[arg-type]
    assert caught.value.hint.startswith(step)


def test_a_root_that_may_not_become_the_user_of_a_config_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without CAP_SETUID, or a user namespace that has not that user."""

    def setgroups(_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(user, "_set_groups", setgroups)
    resolved = SimpleNamespace(uid=os.geteuid() + 1, gid=1, groups=(), users_own=True)
    generation: Any = SimpleNamespace(config=None, resolved=resolved, listeners=())
    app: Any = SimpleNamespace(name="api", generations={}, listeners={})
    listening = Listening(SimpleNamespace(apps={}))  # type: ignore[arg-type]
    monkeypatch.setattr(listening, "unused", lambda _: [])
    with pytest.raises(ListenFailed, match=r"cannot listen on unix:/no/such: cannot become user \d+") as caught:
        listening.open(app, Address("unix", path="/no/such"), generation)
    assert caught.value.code == "no_permission"
