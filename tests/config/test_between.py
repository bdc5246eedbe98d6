"""How long a stop of all apps of a file may take, what comes with an app that is picked, and that thousands are no work."""

from __future__ import annotations

import pytest

from pyworker.config import between
from pyworker.config.between import BETWEEN_STOPS, longest_stop, shared_addresses, with_dependencies, wrong_dependencies
from pyworker.config.problem import ConfigError
from pyworker.config.report import MAX_PROBLEMS, Report
from pyworker.config.schema import AppConfig, StopConfig


def an_app(name: str, seconds: float, *depends_on: str, cron: str | None = None) -> AppConfig:
    stop = StopConfig(drain_timeout=seconds, kill_timeout=1)
    return AppConfig(name=name, command=("true",), depends_on=depends_on, stop=stop, cron=cron)


def test_the_time_outs_of_those_that_stop_one_after_another_add_up() -> None:
    apart = [an_app("web", 30), an_app("db", 10)]
    assert longest_stop(apart) == 31
    chain = [an_app("web", 30, "cache", "db"), an_app("cache", 5, "db"), an_app("db", 10)]
    assert longest_stop(chain) == 31 + BETWEEN_STOPS + 6 + BETWEEN_STOPS + 11
    assert longest_stop([an_app("a", 60), *chain]) == 61
    assert longest_stop(chain[:1]) == 31  # what it depends on is not among them
    assert longest_stop([]) == 0


def test_nobody_waits_for_the_run_of_a_job() -> None:
    assert longest_stop([an_app("nightly", 60, "db", cron="0 3 * * *"), an_app("db", 10)]) == 61


def test_a_circle_of_two_times_has_an_end() -> None:
    assert longest_stop([an_app("a", 5, "b"), an_app("b", 10, "a")]) >= 6 + BETWEEN_STOPS + 11


def test_many_that_depend_on_one_another_are_no_work() -> None:
    names = [f"a{n}" for n in range(60)]
    assert longest_stop(an_app(name, 1, *names[:n]) for n, name in enumerate(names)) == 60 * 2 + 59 * BETWEEN_STOPS


def test_a_chain_of_thousands_is_looked_through_once() -> None:
    """A file of 150 kB kept who read it for minutes: the daemon, too, when a watched file of some user's was changed."""
    chain = [an_app(f"a{n}", 1, f"a{n + 1}") for n in range(5000)]
    assert list(wrong_dependencies([*chain, an_app("a5000", 1)])) == []
    hints = [finding.hint for _, finding in wrong_dependencies([*chain, an_app("a5000", 1, "a4999")])]
    assert [hint.partition(":")[0] for hint in hints] == ["a4999 -> a5000 -> a4999", "a5000 -> a4999 -> a5000"]


def test_of_more_mistakes_than_anybody_reads_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_for: list[str] = []
    monkeypatch.setattr(between, "nearest", lambda name, _: looked_for.append(name))
    report = Report()

    def all_of(apps: list[AppConfig]) -> None:
        for app, finding in wrong_dependencies(apps):
            report.add(("apps", app.name, *finding.key), finding.message)

    with pytest.raises(ConfigError) as caught:
        all_of([an_app(f"a{n}", 1, f"b{n}") for n in range(5000)])
    assert len(caught.value.problems) == len(looked_for) == MAX_PROBLEMS


def listens(name: str, *bind: str) -> AppConfig:
    return AppConfig(name=name, command=("true",), bind=bind)


def test_thousands_that_have_one_port_are_compared_with_those_in_their_way() -> None:
    apps = [listens(f"a{n}", f"127.1.{n // 250}.{n % 250}:80", f"unix:/run/{n}", ":0") for n in range(5000)]
    assert list(shared_addresses(apps)) == []
    last, wide, file = listens("last", "[::]:80", "127.1.0.7:80"), listens("wide", ":80"), listens("file", "unix:/run/9")
    assert [(app.name, index, other.name) for app, index, other in shared_addresses([*apps, last, wide, file])] == [
        ("last", 1, "a7"), ("wide", 0, "a0"), ("file", 0, "a9"),
    ]  # fmt: skip
    assert [other.name for *_, other in shared_addresses([wide, apps[0]])] == ["wide"]


def test_who_is_picked_brings_all_that_it_depends_on() -> None:
    apps = [an_app("web", 1, "cache", "gone"), an_app("cache", 1, "db"), an_app("db", 1), an_app("a", 1, "b"), an_app("b", 1, "a")]
    assert with_dependencies(apps, ["web", "none"]) == {"web", "cache", "db"}
    assert with_dependencies(apps, ["db", "a"]) == {"db", "a", "b"}
