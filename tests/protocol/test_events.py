"""Every event has its words."""

from __future__ import annotations

from typing import Any

import pytest

from pyworker.protocol.events import TYPES, Event, and_why, exit_words, names_in_words, sentence, try_in_words

NUMBERS = {"took_s", "after_s", "delay_s", "window_s"}


def sample(key: str) -> Any:
    if key in NUMBERS:
        return 1.5
    if key == "listen":
        return ["http://127.0.0.1:8000"]
    if key in ("reason", "text", "why", "traceback", "hint"):
        return "because"
    return 7


@pytest.mark.parametrize("type_", sorted(TYPES))
def test_every_event_has_a_sentence(type_: str) -> None:
    data = {key: sample(key) for key in TYPES[type_]}
    words = sentence(Event(1, "2026-11-23T14:02:31.104Z", "api", 1, type_, data))
    assert words
    assert "\n" not in words


def test_a_try_beyond_the_limit_names_none() -> None:
    assert try_in_words(10, 10, 25.64) == "try 10 of 10 in 25.6 s"
    assert try_in_words(13, 10, 30.0) == "try 13 in 30.0 s"


def test_a_try_whose_wait_is_over_is_said_to_be_now() -> None:
    assert try_in_words(1, 10, 0.0) == "try 1 of 10 now"


def test_how_a_process_ended() -> None:
    assert exit_words(3, None) == "with code 3"
    assert exit_words(None, 9) == "killed by signal 9 (KILL)"
    assert exit_words(None, None) == "status unknown"


def test_how_a_process_ended_is_said_once() -> None:
    assert and_why("exited with code 3", "with code 3") == ""
    assert and_why("ended by itself with code 0", "with code 0") == ""
    assert and_why("killed by signal 6 (ABRT)", "killed by signal 6 (ABRT)") == ""
    assert and_why("exited with code 0 before it was ready", "with code 0") == " before it was ready"
    assert and_why("KeyError: 'x'", "with code 1") == ": KeyError: 'x'"


def test_a_worker_that_never_was_a_process_has_no_pid_and_no_status() -> None:
    data = {"pid": 0, "code": None, "signal": None, "after_s": 0.1, "reason": "cannot fork: no"}
    assert sentence(Event(1, "2026-11-23T14:02:31.104Z", "api", 1, "worker_exited", data)) == "not born  cannot fork: no"


def test_a_job_that_starts_has_no_worker_yet() -> None:
    for scheduled, said in ((True, "scheduled"), (False, "starting  0 workers")):
        data = {"generation": 1, "workers": 0, "scheduled": scheduled, "listen": []}
        assert sentence(Event(1, "2026-11-23T14:02:31.104Z", "nightly", None, "app_started", data)) == said
    of_the_version_before = {"generation": 1, "workers": 2, "listen": []}
    event = Event(1, "2026-11-23T14:02:31.104Z", "api", None, "app_started", of_the_version_before)
    assert sentence(event) == "starting  2 workers"


def test_a_worker_that_is_stopped_before_it_has_a_pid_is_named_without() -> None:
    data = {"generation": 1, "pid": 0, "took_s": 0.0, "requests": 0, "cancelled": 0, "reason": "stop"}
    for type_, words in (("worker_stopped", "stopped   gen 1 in 0.0s"), ("worker_draining", "draining  gen 1 (stop)")):
        assert sentence(Event(1, "2026-11-23T14:02:31.104Z", "api", 1, type_, data)) == words


def test_requests_that_were_cut_off_need_not_have_had_their_time() -> None:  # `stop --now` leaves none
    data = {"generation": 1, "pid": 7, "took_s": 0.0, "requests": 1, "cancelled": 2, "killed": False}
    said = sentence(Event(1, "2026-11-23T14:02:31.104Z", "api", 1, "worker_stopped", data))
    assert said == "stopped   gen 1 pid 7 in 0.0s, finished 1 request, 2 cut off"


def test_of_hundreds_of_names_the_first_ones_are_shown() -> None:
    names = [f"a{i}" for i in range(200)]
    assert names_in_words(names[:2]) == "a0, a1"
    assert names_in_words(names) == "a0, a1, a2, a3, a4, a5, a6, a7, a8, a9 and 190 more"
