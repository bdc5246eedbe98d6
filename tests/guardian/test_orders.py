"""Which signal is an order for which daemon, and which ones nobody could follow."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.guardian.main import Guardian
from pyworker.guardian.orders import Orders


class Foreground:
    """A guardian's orders, beside a daemon that is there, or is still to come."""

    def __init__(self, *, version: str = "", starts: int = 1, hung_up: bool = False, makes_room: bool = False) -> None:
        self.told: list[int] = []
        self.daemon: Any = SimpleNamespace(version=version, starts=starts, signal=self.told.append)
        signals: Any = SimpleNamespace(has_lost_its_terminal=lambda: hung_up)
        upgrade: Any = SimpleNamespace(is_to_replace=lambda program: makes_room)
        self.orders = Orders(self.daemon, signals, upgrade)

    def greets(self) -> list[int]:
        """Return what the daemon is told when it says that it is there."""
        self.daemon.version = "1"
        self.orders.pass_on_all()
        return self.told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_each_signal_that_means_a_stop_is_one_for_the_daemon(number: int) -> None:
    foreground = Foreground(version="1")
    assert foreground.orders.take(number)
    assert foreground.told == [signal.SIGTERM]


def test_what_comes_before_the_daemon_can_take_it_is_told_to_it_once_when_it_can() -> None:
    foreground = Foreground()
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
        assert foreground.orders.take(number)
    assert foreground.greets() == [signal.SIGUSR1, signal.SIGTERM]
    foreground.orders.pass_on_all()
    assert len(foreground.told) == 2


@pytest.mark.parametrize(("starts", "how_often"), [(1, 2), (0, 1)])
def test_a_stop_that_no_daemon_could_do_has_all_leave(
    starts: int, how_often: int, capfd: pytest.CaptureFixture[str]
) -> None:
    foreground = Foreground(starts=starts)
    followed = [foreground.orders.take(signal.SIGINT) for _ in range(how_often)]
    assert followed == [True] * (how_often - 1) + [False]
    assert "told to stop" in capfd.readouterr().err


def test_the_end_of_the_terminal_is_one_stop_however_often_it_is_said() -> None:
    foreground = Foreground(version="1", hung_up=True)
    assert foreground.orders.take(signal.SIGHUP)
    assert foreground.orders.take(signal.SIGHUP)
    assert foreground.told == [signal.SIGTERM]
    assert foreground.orders.take(signal.SIGTERM)  # said by somebody: all at once
    assert foreground.told == [signal.SIGTERM] * 2


@pytest.mark.parametrize(("number", "makes_room"), [(signal.SIGHUP, False), (signal.SIGTERM, True)])
def test_all_else_is_for_the_daemon_that_is_there(number: int, makes_room: bool) -> None:
    foreground = Foreground(version="1", makes_room=makes_room)
    assert foreground.orders.take(number)
    assert foreground.told == [number]


def test_a_reload_is_for_the_daemon_that_comes_where_the_one_before_makes_room() -> None:
    foreground = Foreground(version="1", makes_room=True)
    assert foreground.orders.take(signal.SIGHUP)
    assert foreground.told == []
    assert foreground.greets() == [signal.SIGHUP]


@pytest.mark.parametrize("told", [True, False])
def test_the_daemon_after_one_that_has_died_goes_on_with_a_stop(told: bool) -> None:
    foreground = Foreground(version="1")
    if told:
        foreground.orders.take(signal.SIGTERM)
    foreground.told.clear()
    foreground.daemon.version = ""
    foreground.orders.remind()
    assert foreground.greets() == ([signal.SIGTERM] if told else [])


def test_a_stop_that_is_asked_for_again_while_the_logger_writes_its_last_lines_leaves_it_to_that() -> None:
    """In the foreground: without a daemon to take it, a second one has all left at once."""
    orders = Foreground().orders
    orders.pass_on(signal.SIGTERM)
    signals = SimpleNamespace(read=lambda: [signal.SIGINT])
    guardian: Any = SimpleNamespace(_foreground=True, _signals=signals, _orders=orders, _all_ended=True, _left=False)
    Guardian._on_signal(guardian)
    assert not guardian._left
