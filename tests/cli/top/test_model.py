from __future__ import annotations

import pytest

from pyworker.cli.top.keys import keys
from pyworker.cli.top.model import KEPT, Model, Wish
from tests.cli import documents
from tests.cli.top.made import document, model


def press(made: Model, *names: str) -> Wish | None:
    found = None
    for name in names:
        found = made.key(name, 60.0)
    return found


# ---- figures ---------------------------------------------------------------------------------------
def test_rate_and_latency_are_those_between_two_readings() -> None:
    made = Model()
    made.feed(document(10), 100.0)
    made.feed(document(12), 102.0)
    expected = (document(12)["apps"][0]["requests"] - document(10)["apps"][0]["requests"]) / 2
    point = made.points("api")[-1]
    assert point.rate == pytest.approx(expected)
    assert point.p50 is not None
    assert point.p50 < 0.0041


def test_an_app_that_was_made_anew_has_no_negative_rate() -> None:
    made = Model()
    made.feed(document(50), 100.0)
    made.feed(document(0), 101.0)
    assert made.points("api")[-1].rate == 0.0


def test_a_look_between_two_readings_bends_no_curve() -> None:
    made = Model(interval=1.0)
    for at in (0.0, 0.2, 0.4, 1.0, 1.1):
        made.feed(document(int(at)), at)
    assert len(made.points("api")) == 2
    assert made.cpu_of("api", 1) == [document(second)["apps"][0]["pool"][0]["cpu_percent"] for second in (0, 1)]


def test_an_app_that_is_new_in_such_a_look_has_its_figures_at_once() -> None:
    made = Model()
    made.feed({"v": 1, "apps": []}, 0.0)
    made.feed(document(0), 0.2)
    assert (len(made.points("api")), len(made.cpu_of("api", 1))) == (1, 1)


def test_history_is_bounded_and_gone_apps_are_forgotten() -> None:
    made = Model()
    for second in range(KEPT + 20):
        made.feed(document(second), float(second))
    assert len(made.points("api")) == KEPT
    made.feed({"v": 1, "apps": [documents.app("other")]}, 1000.0)
    assert (made.points("api"), made.cpu_of("api", 1)) == ([], [])
    assert (made.app, made.worker) == ("other", 1)


def test_events_come_once() -> None:
    made = model()
    before = list(made.events)
    made.learn(before)
    assert list(made.events) == before


def test_a_daemon_that_answers_again_is_not_away() -> None:
    made = model()
    assert (made.away(60.0), made.away(61.0)) == (60.0, 60.0)
    made.feed(document(62), 62.0)
    assert made.away_since is None


# ---- selection -------------------------------------------------------------------------------------
def test_down_goes_through_workers_and_on_to_the_next_app() -> None:
    made = model()
    seen = [(made.app, made.worker)]
    for _ in range(8):
        press(made, "down")
        seen.append((made.app, made.worker))
    assert seen == [
        ("api", 1), ("api", 2), ("api", 3), ("api", 4), ("admin", 1), ("admin", 2), ("jobs", None), ("hooks", 1),
        ("mail", None),
    ]  # fmt: skip
    press(made, "down")
    assert made.app == "mail"
    press(made, *["up"] * 30)
    assert (made.app, made.worker) == ("api", 1)


def test_tab_goes_round_the_apps() -> None:
    made = model()
    names = [(press(made, "tab"), made.app)[1] for _ in range(5)]
    assert names == ["admin", "jobs", "hooks", "mail", "api"]
    press(made, "backtab")
    assert made.app == "mail"


def test_the_selection_follows_its_worker_and_falls_back_to_the_first() -> None:
    made = model()
    press(made, "down", "down")
    found = document(61)
    found["apps"][0]["pool"] = found["apps"][0]["pool"][:2]  # api.3 has gone
    made.feed(found, 61.0)
    assert (made.app, made.worker) == ("api", 1)


def test_a_filter_hides_apps_and_escape_shows_them() -> None:
    made = model()
    press(made, "/", "a", "d")
    assert [app["name"] for app in made.apps()] == ["admin"]
    assert made.app == "admin"
    assert press(made, "q") is None  # a letter of the filter
    press(made, "backspace", "enter")
    assert made.filter == "ad"
    assert press(made, "r") is None
    assert made.question is not None  # a key again
    press(made, "n", "esc")
    assert len(made.apps()) == 5
    press(made, "/", "x", "y", "enter")
    assert press(made, "d") is None  # of what is not shown
    press(made, "esc")
    assert made.app == "api"


# ---- what keys want --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("names", "wish"),
    [
        (("q",), Wish("quit")), (("enter",), Wish("logs", "api.1")), (("down", "enter"), Wish("logs", "api.2")),
        (("end", "enter"), Wish("logs", "mail")), (("end", "home", "enter"), Wish("logs", "api.1")), (("d",), Wish("describe", "api")),
        (("r", "y"), Wish("reload", "api")), (("r", "Y"), Wish("reload", "api")), (("R", "y"), Wish("restart", "api")), (("r", "n"), None),
        (("r", "q"), None), (("r", "esc"), None), (("+", "y"), Wish("scale", "api", 5)),
        (("+", "+", "+", "enter"), Wish("scale", "api", 7)), (("-", "y"), Wish("scale", "api", 3)),
        (("-", "+", "y"), None), (("-",) * 9 + ("y",), Wish("scale", "api", 0)), (("?", "r"), None), (("?", "r", "d"), Wish("describe", "api")),
        (("?", "q"), None), (("x",), None),
    ],
)  # fmt: skip
def test_what_keys_want(names: tuple[str, ...], wish: Wish | None) -> None:
    made = model()
    assert press(made, *names) == wish
    assert made.question is None


def test_nothing_is_done_without_an_answer() -> None:
    made = model()
    for key in ("r", "R", "+", "-"):
        assert press(made, key) is None
        assert made.question is not None
        press(made, "n")


@pytest.mark.parametrize(("names", "says"), [(("r", "n"), "nothing was done"), (("-", "+", "y"), "api has 4 workers already")])
def test_what_was_not_done_is_said_for_a_while(names: tuple[str, ...], says: str) -> None:
    made = model()
    press(made, *names)
    assert made.message == says
    assert made.message_until > 60.0


def test_one_less_than_no_workers_is_none() -> None:
    made = model()
    made.document["apps"][0]["workers"]["want"] = 0
    assert press(made, "-", "y") is None
    assert press(made, "+", "y") == Wish("scale", "api", 1)


def test_sorting_goes_round_and_ends_as_it_was() -> None:
    made = model()
    by_number = [w["worker"] for w in made.pool(made.apps()[0])]
    press(made, "s")
    assert [w["worker"] for w in made.pool(made.apps()[0])] == by_number[::-1]  # the last has the most CPU
    press(made, "s", "s", "s")
    assert [w["worker"] for w in made.pool(made.apps()[0])] == by_number


# ---- bytes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "found", "rest"),
    [
        (b"q", ["q"], b""), (b"\x1b[A\x1b[B", ["up", "down"], b""), (b"\x1bOA", ["up"], b""), (b"\r\t", ["enter", "tab"], b""),
        (b"\x1b[Z", ["backtab"], b""), (b"\x1b", [], b"\x1b"), (b"\x1b[", [], b"\x1b["), (b"\x1b\x1b[A", ["esc", "up"], b""),
        (b"\x1b[1;5Cq", ["q"], b""), (b"\x1b[<0;3;4Mr", ["r"], b""), ("ü€😀q".encode(), ["ü", "€", "😀", "q"], b""), (b"\xc3", [], b"\xc3"),
        (b"\x01\x02q", ["q"], b""), (b"\x1bxq", ["q"], b""), (b"\x1bx", [], b""), (b"\x1b[" + b"1" * 40 + b"q", [], b""),
    ],
)  # fmt: skip
def test_bytes_become_keys(data: bytes, found: list[str], rest: bytes) -> None:
    assert keys(data) == (found, rest)


def test_any_cut_of_the_bytes_gives_the_same_keys() -> None:
    data = b"\x1b[A\x1bOBq\x1b[5~\xc3\xbc\r"
    whole = keys(data)[0]
    for at in range(1, len(data)):
        first, rest = keys(data[:at])
        assert first + keys(rest + data[at:])[0] == whole
