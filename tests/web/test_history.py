from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyworker.web.history import FIELDS, KEPT, History, Ring
from tests.cli.top.made import document


def test_a_point_says_what_was_between_two_looks() -> None:
    history = History()
    history.feed(document(0), 1000.0, 0.0)
    history.feed(document(5), 1005.0, 5.0)
    (_, last) = history.of("api")
    values = dict(zip(("t", *FIELDS), last, strict=True))
    served = document(5)["apps"][0]["requests"] - document(0)["apps"][0]["requests"]
    assert values["rate"] == pytest.approx(served / 5, rel=1e-3)
    assert values["restarts"] == 0
    assert values["ready"] == 4
    assert history.of("nosuch") == []


def test_memory_is_the_fair_share_where_it_is_known() -> None:
    history, found = History(), document(0)
    found["apps"][0]["pss_bytes"] = 12345
    found["apps"][1]["pss_bytes"] = None
    apps = history.feed(found, 0.0, 0.0)["apps"]
    assert apps["api"][FIELDS.index("memory")] == 12345
    assert apps["admin"][FIELDS.index("memory")] == found["apps"][1]["rss_bytes"]


def test_restarts_are_counted_when_they_happen_not_before_the_first_look() -> None:
    history = History()
    for total, expected in ((7, 0), (9, 2), (9, 0), (0, 0)):
        found = document(0)
        found["apps"][0]["restarts"]["total"] = total
        assert history.feed(found, 0.0, 0.0)["apps"]["api"][FIELDS.index("restarts")] == expected


def test_the_ring_is_bounded_and_survives(tmp_path: Path) -> None:
    path = str(tmp_path / "ring")
    ring, history = Ring(path), History()
    for second in range(2 * KEPT + 10):
        ring.add(history.feed({"v": 1, "apps": []}, float(second), float(second)), history.points)
    assert len(Path(path).read_bytes().splitlines()) < 2 * KEPT
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    found = Ring(path).load(0)
    assert [p["t"] for p in found] == [p["t"] for p in history.points]
    assert Ring(path).load(2 * KEPT) == list(history.points)[-10:]


def test_what_the_clock_was_set_back_from_is_forgotten(tmp_path: Path) -> None:
    ring, history = Ring(str(tmp_path / "ring")), History()
    for epoch in (5000.0, 5005.0, 5010.0, 1500.0, 5007.0, 5006.0):
        ring.add(history.feed({"v": 1, "apps": []}, epoch, 0.0), history.points)
    assert [p["t"] for p in history.points] == [p["t"] for p in Ring(ring.path).load(0)] == [1500, 5006]


def test_damaged_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    good = b'{"t":5,"apps":{"api":[1,2,3,4,5,6,7,8]}}\n'
    path.write_bytes(b"\xff\n" + good + b'{"t":"x","apps":{}}\n{"t":1,"apps":{"api":[1]}}\n[]\n{"t":6,"ap')
    assert Ring(str(path)).load(0) == [{"t": 5, "apps": {"api": [1, 2, 3, 4, 5, 6, 7, 8]}}]
    assert Ring(str(tmp_path / "none")).load(0) == []


def test_a_place_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    Ring(str(tmp_path / "no" / "ring")).add({"t": 1, "apps": {}}, History().points)
