"""The request of an upgrade: what a refused one leaves behind. Whole upgrades are in tests/system/test_upgrade.py."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from pyworker.daemon.handlers import handle
from pyworker.daemon.loop import Loop
from pyworker.daemon.preflight import Preflight, content_of, why_not
from pyworker.daemon.requests import upgrade
from pyworker.daemon.shortage import step_for
from pyworker.policy.lifecycle import State
from pyworker.protocol import control as k
from tests.support.brain import app_of_one_worker
from tests.support.descriptors import open_fds


def desk_of(home: Path, loop: Any = None) -> Any:
    store = SimpleNamespace(guardian_version="0", logger_version="0", guardian_pid=1, logger_pid=2, send=lambda message: None)
    return SimpleNamespace(
        brain=SimpleNamespace(loop=loop, store=store, logs_to_stdout="", apps={}), home=str(home), handing_over=False,
        upgrading=False, shutting_down=False, preparing=list, operations=SimpleNamespace(under_way=list),
    )  # fmt: skip


def test_one_that_was_refused_has_no_say_in_the_next_and_one_of_a_daemon_that_stops_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    now, answers, hints = 0.0, [], []
    loop = Loop(lambda: now)
    desk = desk_of(tmp_path, loop)
    store = desk.brain.store
    client: Any = SimpleNamespace(
        reply=lambda ok, body: answers.append(body["changed"]),
        refuse=lambda refused: (answers.append(refused.code), hints.append(refused.hint)),
    )
    monkeypatch.setattr(upgrade, "Preflight", lambda loop, python, content, done: done("1", "", ""))
    upgrade.upgrade(desk, client, k.Upgrade(sys.executable))
    store.on_upgrade_failed("its guardian does not start")
    now = upgrade.GUARDIAN_PATIENCE - 1
    upgrade.upgrade(desk, client, k.Upgrade(sys.executable))
    now += 2
    loop.turn(0)
    assert (desk.upgrading, answers) == (True, ["upgrade_refused"])
    assert "pyworker daemon stop, then pyworker daemon start" in hints[0]
    desk.before_leaving()
    assert answers == ["upgrade_refused", True]
    monkeypatch.setattr(store, "send", None)  # not to be asked of the guardian of a daemon that is on its way out
    desk.upgrading, check = False, []
    monkeypatch.setattr(upgrade, "Preflight", lambda loop, python, content, done: check.append(done))
    upgrade.upgrade(desk, client, k.Upgrade(sys.executable))
    desk.shutting_down = True
    check[0]("1", "", "")
    assert answers == ["upgrade_refused", True, "upgrade_refused"]
    loop.close()


def test_one_that_failed_at_once_has_no_say_in_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    desk, begun, ask = desk_of(tmp_path), [], k.Upgrade(sys.executable)
    client: Any = None
    monkeypatch.setattr(upgrade, "Preflight", lambda loop, python, content, done: begun.append(content))
    with monkeypatch.context() as once:
        once.setattr(upgrade, "content_of", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            upgrade.upgrade(desk, client, ask)
    upgrade.upgrade(desk, client, ask)
    assert len(begun) == 1


@pytest.mark.parametrize("what", ["a command on api", "hooks.pre_start of api"])
def test_it_gives_way_to_what_began_while_the_new_version_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, what: str) -> None:
    check: list[Any] = []
    answers: list[Any] = []
    desk, client = desk_of(tmp_path), SimpleNamespace(refuse=answers.append)
    monkeypatch.setattr(upgrade, "Preflight", lambda loop, python, content, done: check.append(done))
    upgrade.upgrade(desk, client, k.Upgrade(sys.executable))  # type: ignore[arg-type]
    monkeypatch.setattr(*((desk.operations, "under_way") if "command" in what else (desk, "preparing")), lambda: ["api"])
    check[0]("1", "", "")
    assert (answers[0].code, desk.upgrading) == ("busy", False)
    assert answers[0].message.startswith(f"nothing was replaced: {what} is under way")


def test_a_command_that_comes_when_the_next_daemon_is_about_to_take_over_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """It would lose its answer."""
    loop, refused = Loop(), []
    desk, client = desk_of(tmp_path, loop), SimpleNamespace(refuse=lambda answer: refused.append(answer.code))
    monkeypatch.setattr(upgrade, "Preflight", lambda loop, python, content, done: done("1", "", ""))
    upgrade.upgrade(desk, client, k.Upgrade(sys.executable))  # type: ignore[arg-type]
    handle(desk, client, k.Stop(("api",)))  # type: ignore[arg-type]
    assert (refused, desk.handing_over) == (["busy"], True)
    desk.brain.store.on_upgrade_failed("its guardian does not start")
    assert not desk.handing_over
    loop.close()


@pytest.mark.parametrize(
    ("words", "number"), [("OSError: [Errno 24] Too many open files", errno.EMFILE), ("MemoryError", errno.ENOMEM), ("bug", 0)]
)
def test_a_check_that_ends_for_want_of_something_says_what_to_do(tmp_path: Path, words: str, number: int) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{words}' >&2; exit 1\n")
    python.chmod(0o755)
    loop = Loop()
    said: list[tuple[str, str]] = []
    preflight = Preflight(loop, str(python), b"", lambda version, why, step: said.append((why, step)))
    while preflight._running:
        loop.turn(5)
    loop.close()
    ((why, step),) = said
    assert why.endswith(f"does not start: {words}")
    assert step == step_for(number)


def test_a_check_that_takes_too_long_may_be_the_machine_s_fault(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    now = 0.0
    loop = Loop(lambda: now)
    said: list[tuple[str, str]] = []
    preflight = Preflight(loop, str(python), b"", lambda version, why, step: said.append((why, step)))
    now = 31.0
    while preflight._running:
        loop.turn(5)
    loop.close()
    ((why, step),) = said
    assert why.endswith("did not start within 30 s")
    assert step.startswith("try again when this machine has less to do")


def test_an_interpreter_that_is_gone_is_named_once() -> None:
    loop = Loop()
    said: list[str] = []
    Preflight(loop, "/nowhere/python", b"", lambda version, why, step: said.append(why))
    loop.close()
    assert [why.count("/nowhere/python") for why in said] == [1]


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_check_that_lacks_descriptors_says_so_and_keeps_none(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    create, made = os.memfd_create, []

    def memfd_create(name: str, flags: int) -> int:
        if len(made) == left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(create(name, flags))
        return made[-1]

    monkeypatch.setattr(os, "memfd_create", memfd_create)
    loop = Loop()
    said: list[tuple[str, str]] = []
    before = open_fds()
    Preflight(loop, sys.executable, b"", lambda version, why, step: said.append((why, step)))
    assert open_fds() == before
    loop.close()
    assert said == [(f"its check cannot be started: {os.strerror(errno.EMFILE)}", step_for(errno.EMFILE))]


def test_what_a_version_cannot_take_over_is_named() -> None:
    with app_of_one_worker(State.READY) as (app, _, _):
        app.closed = False
        app.write_memo()
        content = json.loads(content_of(SimpleNamespace(apps={"api": app}), b""))  # type: ignore[arg-type]
    assert (why_not(b""), why_not(json.dumps(content).encode())) == ("", "")
    memo, generations = content["memos"]["api"], content["generations"]
    assert (sorted(generations), list(memo["workers"])) == (["api.1", "api.2"], ["api.2.1.7"])
    for broken, where in (
        ({"memos": {"api": {**memo, "v": 99}}}, "api: a memo of version 99"),
        ({"memos": {"api": {**memo, "dispatcher": 5}}}, "api: "),
        ({"memos": {"api": {**memo, "listeners": {"0": {"of": "another"}}}}}, "api: "),
        ({"memos": {"api": {**memo, "templates": {"1": 5}}}}, "api: "),
        ({"memos": {"api": {**memo, "workers": {"api.2.1.7": 5}}}}, "api: "),
        ({"memos": {"api": {**memo, "workers": {"api.7": memo["workers"]["api.2.1.7"]}}}}, "api: "),
        ({"generations": {**generations, "api.2": "{}"}}, "api.2: "),
        ({"apps_file": "no JSON"}, "apps.json: "),
    ):
        assert why_not(json.dumps({**content, **broken}).encode()).startswith(where), broken
