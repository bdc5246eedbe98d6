"""daemon/templates.py: how much a template may say, and its end. Whole trees are in tests/system."""

from __future__ import annotations

import errno
import os
import signal
import socket
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from pyworker.daemon.deaths import Deaths
from pyworker.daemon.handles import TemplateHandle
from pyworker.daemon.templates import Templates
from pyworker.protocol import template as t
from pyworker.protocol.inherited import fd_name
from pyworker.protocol.wire import encode
from pyworker.unix import process
from pyworker.unix.fds import pass_credentials, send_packet
from tests.support.channels import ends as ends

MANY = 1000


def test_no_answer_to_a_fork_is_one_too_many_and_each_other_message_may_be(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """With many at once most have said Hello before their template's word is read; some were given up unborn."""
    ours, theirs = ends
    pass_credentials(ours)
    brain: Any = SimpleNamespace(loop=SimpleNamespace(clock=lambda: 0.0), poke=lambda app: None, store={})
    handle = TemplateHandle("api", 1, 0.0, state="ready", channel=ours, asked=set(range(MANY)))
    known = {serial: SimpleNamespace(pid=10_000 + serial, id=SimpleNamespace(generation=1)) for serial in range(0, MANY, 2)}
    app: Any = SimpleNamespace(name="api", workers=known, templates={})
    templates = Templates(brain)
    for serial in range(MANY):
        assert send_packet(theirs, encode(t.Forked(serial, 10_000 + serial)))
        templates._on_message(app, handle)
    assert (handle.killed_because, handle.asked) == ("", set())
    for serial in range(MANY):
        assert send_packet(theirs, encode(t.Forked(serial, 10_000 + serial)))
        templates._on_message(app, handle)
    assert handle.killed_because == "its channel said more messages than there is a use for"


@pytest.mark.parametrize("message", [*(t.Forked(1, pid) for pid in (2**40, 1, 0, -1)), t.Parked(2**40), t.Parked(0), t.ForkFailed(1, 2**40)])
def test_a_number_that_is_no_worker_s_pid_or_no_errno_ends_the_template_that_has_said_it(
    ends: tuple[socket.socket, socket.socket], message: t.FromTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -1 all processes that the daemon may signal would be killed, with 0 its own group."""
    for kill in ("kill", "killpg"):
        monkeypatch.setattr(os, kill, lambda *_: pytest.fail("it was signalled"))
    ours, theirs = ends
    pass_credentials(ours)
    loop = SimpleNamespace(clock=lambda: 0.0, call_lazily=lambda delay, call: None)
    brain: Any = SimpleNamespace(loop=loop, poke=lambda app: None, store={})
    brain.deaths = Deaths(brain)
    handle = TemplateHandle("api", 1, 0.0, state="ready", channel=ours, asked={1})
    worker = SimpleNamespace(pid=0, id=SimpleNamespace(generation=1), is_alive=True)
    generation = SimpleNamespace(resolved=SimpleNamespace(uid=None))
    app: Any = SimpleNamespace(name="api", workers={1: worker}, templates={}, generations={1: generation})
    assert send_packet(theirs, encode(message))
    Templates(brain)._on_message(app, handle)
    assert handle.killed_because.startswith("its channel said ")


def test_a_template_whose_import_has_left_a_process_ends_without_a_free_descriptor_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_number(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", no_number)
    monkeypatch.setattr(process, "kill_group_of", lambda *_: True)
    poked: list[Any] = []
    store = SimpleNamespace(get={fd_name("tpid", "api", 1): 0}.get, remove=lambda *_: None, forget=lambda *_: None)
    brain: Any = SimpleNamespace(store=store, poke=poked.append, loop=SimpleNamespace(clock=lambda: 1.0))
    handle = TemplateHandle("api", 1, 0.0, state="retiring")
    app: Any = SimpleNamespace(name="api", templates={1: handle}, workers={}, generations={}, left_behind={})
    Templates(brain).gone(app, handle, process.ExitStatus(0, None))
    assert (app.templates, poked) == ({}, [app])


def test_one_that_may_not_be_signalled_is_not_waited_for_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an app with `user`, where the daemon is a root without CAP_KILL, as in a container."""

    def refused(pidfd: int, number: int) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(signal, "pidfd_send_signal", refused)
    noted: list[str] = []
    store = SimpleNamespace(get={fd_name("tpid", "api", 1): 0}.get)
    brain: Any = SimpleNamespace(store=store, note=lambda app, text: noted.append(text))
    handle = TemplateHandle("api", 1, 0.0, state="loading", pid=4711)
    Templates(brain).stop(SimpleNamespace(name="api", templates={1: handle}), handle, "the import took more than 3 s", 3.0)  # type: ignore[arg-type]
    assert {text.partition(": ")[2] for text in noted} == {
        "its template is another user's, and this daemon may not signal it (CAP_KILL): as root, kill -9 4711 ends it"
    }
