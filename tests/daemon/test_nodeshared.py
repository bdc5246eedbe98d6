"""daemon/nodeshared.py: what Node programs listen on. That they share it is in tests/system/test_node.py."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from pyworker.config.address import Address
from pyworker.config.schema import AppConfig, ResolvedApp
from pyworker.daemon.app import Generation
from pyworker.daemon.listening import Listening
from pyworker.daemon.nodeshared import _find, for_whoever_asked, listener_for
from pyworker.protocol import dispatcher as d


def test_a_node_worker_that_listens_while_there_is_no_descriptor_is_told_so() -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    resolved = ResolvedApp(AppConfig("api", command=("node", "a.js")), 1, "", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(name="api", generations={}, target=None, current=Generation(1, resolved), listening=True, listeners={})
    brain: Any = SimpleNamespace(listening=SimpleNamespace(find=lambda app, address: None, open=refuse, unused=lambda app: []))
    assert listener_for(brain, app, "tcp4", "127.0.0.1", 8000) == (None, errno.EMFILE)


@pytest.mark.parametrize(
    ("kind", "where", "why"),
    [
        ("unix", "/no/such/folder/x", "there is no folder /no/such/folder"),
        ("unix", "\0x", "abstract"),
        ("tcp4", "localhost", "no IP address"),  # the resolver may take long, and the daemon is everybody's
        ("tcp6", "localhost", "no IP address"),
    ],
)
def test_a_node_worker_that_listens_where_that_cannot_be_is_not_told_that_it_is_in_use(kind: str, where: str, why: str) -> None:
    resolved = ResolvedApp(AppConfig("api", command=("node", "a.js")), 1, "", {}, (), None, None, (), "", 0)
    app: Any = SimpleNamespace(name="api", generations={}, target=None, current=Generation(1, resolved), listening=True, listeners={})
    brain: Any = SimpleNamespace(apps={}, notes=[], note=lambda app, text: brain.notes.append(text))
    brain.listening = Listening(brain)
    assert listener_for(brain, app, kind, where, 0) == (None, errno.EADDRNOTAVAIL)
    assert why in brain.notes[0]


def test_a_node_worker_that_names_a_unix_socket_by_a_link_shares_the_one_of_bind(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.sock").touch()
    (tmp_path / "link").symlink_to("real")
    resolved = ResolvedApp(AppConfig("api", command=("node", "a.js")), 1, "", {}, (), None, None, (), "", 0)
    ours: Any = SimpleNamespace(index=0, address=Address("unix", path=str(tmp_path / "real" / "x.sock")))
    app: Any = SimpleNamespace(generations={}, target=None, current=Generation(1, resolved), listening=True, listeners={0: ours})
    brain: Any = SimpleNamespace()
    brain.listening = Listening(brain)
    assert listener_for(brain, app, "unix", str(tmp_path / "link" / "x.sock"), -1) == (ours, 0)


@pytest.mark.parametrize(
    ("named", "asked", "kind", "host", "given"),
    [
        ((0,), set(), "tcp6", "::1", "the first"),
        ((), {1}, "tcp6", "::1", "another"),
        ((), {1}, "any", "", "the first"),  # there can be none beside it
        ((), set(), "any", "", "another"),  # in its place
    ],
)
def test_a_node_worker_shares_the_listener_of_its_port_if_bind_names_it(
    named: tuple[int, ...], asked: set[int], kind: str, host: str, given: str
) -> None:
    """What the program itself has asked for on another address is another one."""
    resolved = ResolvedApp(AppConfig("api", command=("node", "a.js")), 1, "", {}, (), None, None, (), "", 0)
    generation = Generation(1, resolved, named)
    sock = SimpleNamespace(family=socket.AF_INET, getsockname=lambda: ("127.0.0.1", 8000))
    first: Any = SimpleNamespace(index=0, address=Address("inet", "127.0.0.1", 8000), asked=asked, given="the first", sock=sock)
    app: Any = SimpleNamespace(
        name="api", generations={1: generation}, target=None, current=generation, listening=True, listeners={0: first}
    )
    brain: Any = SimpleNamespace()
    brain.listening = Listening(brain)
    brain.listening.open = lambda *_: SimpleNamespace(given="another")
    found: Any = listener_for(brain, app, kind, host, 8000)[0]
    assert found.given == given


def test_a_port_that_a_node_worker_listens_on_is_never_taken_for_one_that_nobody_has_asked_for() -> None:
    """One that has asked for very much, or in very many words, is not known to have asked."""
    generation = SimpleNamespace(listeners=(), config=None)
    listener: Any = SimpleNamespace(index=0, address=Address("inet", "127.0.0.1", 8000), asked=set(), sock=SimpleNamespace(fileno=lambda: 0))
    app: Any = SimpleNamespace(
        workers={}, generations={3: generation}, target=None, current=generation, listening=True, listeners={0: listener},
        write_memo=lambda: None,
    )
    brain: Any = SimpleNamespace(note_is_over=lambda *_: None)
    brain.listening = Listening(brain)
    assert for_whoever_asked(brain, app, d.Wants("key", "tcp4", "127.0.0.1", 8000)) == (listener, 0)
    assert brain.listening.unused(app) == []


@pytest.mark.parametrize(
    ("address", "answer"), [("127.0.0.1", 0), (None, 0), ("localhost", errno.EADDRNOTAVAIL), ("192.0.2.1", errno.EADDRNOTAVAIL)]
)
def test_a_udp_socket_is_made_at_once_or_not_at_all(address: str | None, answer: int) -> None:
    generation: Any = SimpleNamespace(resolved=SimpleNamespace(uid=None), listeners=())
    question = {"address": address, "port": 0, "addressType": "udp4"}
    found = _find(SimpleNamespace(), SimpleNamespace(), generation, question)  # type: ignore[arg-type]
    if isinstance(found, socket.socket):
        found.close()
    assert answer == (found if isinstance(found, int) else 0)
