"""Selectors as a table."""

from __future__ import annotations

import fnmatch

import pytest

from pyworker.daemon.selection import Selected, nearest, select

NAMES = ("api", "web", "worker-mail", "worker-pdf")


@pytest.mark.parametrize(
    ("selectors", "found", "unknown"),
    [
        (("api",), ["api"], []),
        (("all",), ["api", "web", "worker-mail", "worker-pdf"], []),
        (("w*",), ["web", "worker-mail", "worker-pdf"], []),
        (("api", "api"), ["api"], []),
        (("web", "api"), ["web", "api"], []),
        (("nope", "api"), ["api"], ["nope"]),
        (("api.x",), [], ["api.x"]),
        (("[" * 100_000,), [], ["[" * 100_000]),  # it held up the daemon until its guardian killed it
        (("*.2",), ["api.2", "web.2", "worker-mail.2", "worker-pdf.2"], []),
        (("api.2",), ["api.2"], []),
    ],
)
def test_selection(selectors: tuple[str, ...], found: list[str], unknown: list[str]) -> None:
    selected, missing = select(selectors, NAMES)
    assert [s.app if s.slot is None else f"{s.app}.{s.slot}" for s in selected] == found
    assert missing == unknown


def test_all_of_nothing_is_nothing() -> None:
    assert select(("all",), ()) == ([], [])


def test_a_worker_is_selected_by_its_slot() -> None:
    assert select(("api.12",), NAMES)[0] == [Selected("api", 12)]


def test_the_nearest_name_is_found() -> None:
    assert nearest("wbe", NAMES) == "web"
    assert nearest("zzz", NAMES) == ""


def test_a_mistyped_name_leaves_no_pattern_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(name: str, pattern: str) -> bool:
        raise AssertionError(f"{pattern} would be compiled, and kept")

    monkeypatch.setattr(fnmatch, "fnmatchcase", never)
    assert select(["apu", "apu.2", "x" * 10_000], ["api", "web"]) == ([], ["apu", "apu.2", "x" * 10_000])
