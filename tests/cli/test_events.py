from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pyworker.cli import eventlog
from tests.support.cli import environment, run
from tests.support.fake_control import CLOSE, HANG, FakeControl, event
from tests.support.wait import wait_until

EXITED = {
    "generation": 7,
    "pid": 9,
    "code": 1,
    "signal": None,
    "after_s": 0.3,
    "reason": "KeyError: 'x'",
    "traceback": "",
}


def line(seq: int, app: str, worker: int | None, type: str, **data: Any) -> str:
    value = {"v": 1, "time": "2020-01-01T12:00:00.000Z", "seq": seq, "app": app, "worker": worker, "type": type}
    return json.dumps({**value, "data": data}) + "\n"


@pytest.fixture
def past(home: str) -> str:
    os.makedirs(home, mode=0o700)
    with open(f"{home}/events.jsonl", "w") as file:
        file.write(line(1, "api", None, "scaled", **{"from": 2, "to": 4}))
        file.write(line(2, "api", 1, "worker_exited", **EXITED))
        file.write("not json\n{}\n[]\n")
        file.write(line(3, "mail", 1, "worker_backoff", **{"try": 3, "max": 10, "delay_s": 1.6}))
        file.write(line(4, "mail", None, "worker_ready"))  # its data are missing
        file.write('{"v":1,"torn')
    return home


def test_the_past_is_shown_without_a_daemon(past: str) -> None:
    assert run("events", home=past) == (
        0,
        "2020-01-01 12:00:00  api       scaled    2 → 4 workers\n"
        "2020-01-01 12:00:00  api.1     exited    pid 9 with code 1 after 0.3s: KeyError: 'x'\n"
        "2020-01-01 12:00:00  mail.1    backoff   try 3 of 10 in 1.6 s\n"
        "2020-01-01 12:00:00  mail      worker ready\n",
        "",
    )


@pytest.mark.parametrize(
    ("args", "seqs"),
    [
        ((), [1, 2, 3, 4]), (("api",), [1, 2]), (("api.1",), [2]), (("m*",), [3, 4]), (("all",), [1, 2, 3, 4]),
        (("-n", "1"), [4]), (("-n", "1", "api"), [2]), (("--since-seq", "2"), [3, 4]), (("-n", "0"), []),
        (("--since", "2020-01-01T12:00:00Z"), [1, 2, 3, 4]), (("--since", "2020-01-01T12:00:01Z"), []), (("--since", "15m"), []),
        (("--type", "scaled,worker_exited"), [1, 2]),
    ],
)  # fmt: skip
def test_events_are_picked(past: str, args: tuple[str, ...], seqs: list[int]) -> None:
    found = run("events", "--json", *args, home=past)
    assert [json.loads(text)["seq"] for text in found.out.splitlines()] == seqs


def test_what_happened_before_the_clock_was_set_back_is_told_with_its_time_and_not_as_of_now() -> None:
    now = datetime.now(UTC)
    before, to_come = ((now + timedelta(seconds=seconds)).isoformat() for seconds in (-10_890, 90_000))
    assert (eventlog.ago(before), eventlog.ago(to_come)) == ("3h 1m ago", eventlog.clock(to_come))


def test_rotated_files_are_read_too(past: str) -> None:
    os.rename(f"{past}/events.jsonl", f"{past}/events.jsonl.1")
    with open(f"{past}/events.jsonl", "w") as file:
        file.write(line(5, "api", None, "app_stopped"))
    assert [json.loads(text)["seq"] for text in run("events", "--json", home=past).out.splitlines()] == [1, 2, 3, 4, 5]


def test_a_name_that_nothing_has_happened_to_is_said(past: str) -> None:
    found = run("events", "apii", home=past)
    assert (found.code, found.out) == (4, "")
    assert "nothing has happened to apii" in found.err
    assert run("events", "mail", "--type", "scaled", home=past).code == 0


def test_a_name_that_nothing_has_happened_to_is_said_beside_others(past: str) -> None:
    found = run("events", "apii", "mail", home=past)
    assert (found.code, found.err) == (0, "nothing has happened to apii, as far as is known\n")
    assert "mail.1" in found.out


def test_an_unknown_type_gets_a_suggestion(home: str) -> None:
    found = run("events", "--type", "worker_exit", home=home)
    assert found.code == 2
    assert "did you mean worker_exited?" in found.err
    assert "app_started, app_stopped" in run("events", "--type", "zzz", home=home).err


@pytest.mark.parametrize(
    ("args", "shown"),
    [(("-n", "1"), [4, 10, 11, 20, 21]), (("-n", "0"), [10, 11, 20, 21]), (("--type", "app_stopped"), [10, 20])],
)
def test_follow_goes_on_where_the_file_ended_and_with_the_next_daemon(past: str, args: tuple[str, ...], shown: list[int]) -> None:
    follows = iter([CLOSE, HANG])

    def follow(_request: Any) -> Iterator[Any]:
        found = event("api", None, "app_stopped")
        found.event["seq"] = 10 * len(daemon.requests)
        yield found
        yield found  # it is sent again, and so is an old one
        found.event["seq"] = 2
        yield found
        found.event |= {"seq": 10 * len(daemon.requests) + 1, "type": "template_starting"}
        yield found
        yield next(follows)

    with FakeControl(past, {"follow": follow}) as daemon:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", "events", "-f", "--json", *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(past), text=True,
        )  # fmt: skip
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline())["seq"] for _ in shown]
        wait_until(lambda: len(daemon.requests) == 2, what="the second follow")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert lines == shown
    assert (process.returncode, out, err) == (130, "", "")
    assert [request.since_seq for request in daemon.requests] == [4, 11]


def test_follow_says_of_each_loss_that_it_waits(past: str) -> None:
    process: subprocess.Popen[str] | None = None
    for _ in range(2):
        with FakeControl(past, {"follow": lambda _: [HANG]}) as daemon:
            process = process or subprocess.Popen(
                [sys.executable, "-m", "pyworker", "events", "-f"],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(past), text=True,
            )  # fmt: skip
            wait_until(lambda daemon=daemon: bool(daemon.requests), what="the follow")
        assert process.stderr is not None
        assert process.stderr.readline().startswith("The daemon went away; waiting for another")
    assert process is not None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == ""


def test_follow_ends_when_nobody_reads_it_and_not_at_the_next_event(past: str) -> None:
    with FakeControl(past, {"follow": lambda _: [HANG]}):
        process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", "events", "-f"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(past), text=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr is not None
        with process.stderr as stderr:
            assert stderr.read() == ""


def test_a_folder_in_place_of_the_file_is_as_none(home: str) -> None:
    os.makedirs(f"{home}/events.jsonl/folder", mode=0o700)
    assert run("events", home=home).code == 0
