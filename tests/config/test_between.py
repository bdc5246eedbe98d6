"""How long a stop of all apps of a file may take."""

from __future__ import annotations

from pyworker.config.between import BETWEEN_STOPS, longest_stop
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


def test_nobody_waits_for_the_run_of_a_job() -> None:
    assert longest_stop([an_app("nightly", 60, "db", cron="0 3 * * *"), an_app("db", 10)]) == 61


def test_a_circle_of_two_times_has_an_end() -> None:
    assert longest_stop([an_app("a", 5, "b"), an_app("b", 10, "a")]) >= 6 + BETWEEN_STOPS + 11


def test_many_that_depend_on_one_another_are_no_work() -> None:
    names = [f"a{n}" for n in range(60)]
    assert longest_stop(an_app(name, 1, *names[:n]) for n, name in enumerate(names)) == 60 * 2 + 59 * BETWEEN_STOPS
