from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.cli.logview import Entry
from pyworker.cli.records import LEVELS, Filter, Grouper, group, lay_out, level_of, level_word

CHAINED = """\
ERROR payment failed order=8123
Traceback (most recent call last):
  File "/srv/shop/pay.py", line 88, in charge
    raise Declined(code)
KeyError: 5

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/shop/pay.py", line 90, in charge
    raise Declined(code)
shop.pay.Declined: 05"""


def entry(text: str, *, worker: int = 1, second: int = 0, err: bool = True) -> Entry:
    ts = f"2026-01-02T14:{second // 60:02}:{second % 60:02}.000Z".encode()
    return Entry(ts, b"api.%d" % worker, b"%d" % (40 + worker), b"err" if err else b"out", False, text.encode())


def texts(lines: list[Entry]) -> list[str]:
    return ["\n".join(line.msg.decode() for line in record) for record in group(lines)]


def test_a_traceback_its_causes_and_the_line_before_are_one_record() -> None:
    lines = [entry(text) for text in CHAINED.split("\n")]
    assert texts([entry("INFO before"), *lines, entry("INFO after")]) == ["INFO before", CHAINED, "INFO after"]


def test_workers_and_streams_that_print_at_once_are_not_mixed() -> None:
    ours = [entry(text) for text in CHAINED.split("\n")]
    theirs = [entry(text, worker=2) for text in CHAINED.split("\n")]
    out = [entry(f"line {i}", err=False) for i in range(len(ours))]
    mixed = [line for three in zip(ours, theirs, out, strict=True) for line in three]
    found = texts(mixed)
    assert found.count(CHAINED) == 2
    assert [text for text in found if text != CHAINED] == [line.msg.decode() for line in out]


def test_records_come_out_in_the_order_of_their_first_lines() -> None:
    lines = [entry("a"), entry("b", worker=2), entry(" more of a"), entry("c"), entry(" more of b", worker=2)]
    assert texts(lines) == ["a\n more of a", "b\n more of b", "c"]


def test_what_comes_much_later_does_not_continue_a_line() -> None:
    later = [entry(text, second=60) for text in ("Traceback (most recent call last):", "  x", "KeyError: 5", "next")]
    assert texts([entry("started"), *later]) == ["started", "Traceback (most recent call last):\n  x\nKeyError: 5", "next"]


def test_a_record_is_complete_with_the_line_that_does_not_continue_it() -> None:
    grouper, lines = Grouper(), [entry("a"), entry(" more of a"), entry("b")]
    assert [grouper.add(line) for line in lines] == [[], [], [lines[:2]]]
    assert (grouper.flush(), len(grouper)) == ([lines[2:]], 0)


def test_a_record_that_does_not_end_goes_on_as_another() -> None:
    assert [text.count(" on") for text in texts([entry(" on")] * 4001)] == [2000, 2000, 1]


def test_indented_lines_without_a_beginning_are_a_record() -> None:
    assert texts([entry("  half of it"), entry("next")]) == ["  half of it", "next"]


@given(st.lists(st.tuples(st.sampled_from(CHAINED.split("\n")), st.integers(1, 3), st.integers(0, 5)), max_size=60))
def test_no_line_is_lost_or_doubled(lines: list[tuple[str, int, int]]) -> None:
    second = 0
    given = []
    for text, worker, later in lines:
        second += later
        given.append(entry(text, worker=worker, second=second))
    found = [line for record in group(given) for line in record]
    assert sorted(found) == sorted(given)
    for worker in (b"api.1", b"api.2", b"api.3"):
        assert [x for x in found if x.name == worker] == [x for x in given if x.name == worker]


def test_a_filter_looks_at_the_whole_record() -> None:
    record = [entry(text) for text in CHAINED.split("\n")]
    assert Filter(("Declined: 05",)).wants(record)
    assert Filter(("payment", "KeyError")).wants(record)
    assert Filter(("^KeyError",)).wants(record)  # ^ is the beginning of any line
    assert not Filter(("payment", "nothing")).wants(record)
    assert not Filter((), ("KeyError",)).wants(record)
    assert Filter((), (), "error").wants(record)
    assert not Filter((), (), "critical").wants(record)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("INFO:     127.0.0.1 - GET /", "info"), ("2026-01-02 14:00:00,123 WARNING shop: low", "warning"),
        ("[error] it broke", "error"), ("level=debug msg=x", "debug"), ("warn: careful", "warning"),
        ("an error in the middle is no level", "info"), ("x" * 90 + " ERROR", "info"), ("FATAL no memory", "critical"),
        ('{"level":"error","msg":"x"}', "error"), ('{"levelname":"WARNING","message":"x"}', "warning"),
        ('{"level":50,"msg":"as pino says it"}', "error"), ('{"severity":"NOTICE","msg":"x"}', "notice"),
        ('{"msg":"none"}', "info"), ("Traceback (most recent call last):\n  x\nE: y", "error"), ("", "info"),
        ("{not json ERROR", "error"), ('{"level":true,"msg":"x"}', "info"),
    ],
)  # fmt: skip
def test_levels(text: str, level: str) -> None:
    assert level_of(text) == LEVELS[level]


@pytest.mark.parametrize(("word", "level"), [("WARN", "warning"), ("Err", "error"), ("fatal", "critical")])
def test_words_of_others_for_levels(word: str, level: str) -> None:
    assert level_word(word) == level


def test_a_json_line_is_laid_out() -> None:
    line = {
        "timestamp": "2026-01-02", "level": "error", "event": "payment failed", "order": 8123, "who": "a b", "none": None,
        "exc_info": "Traceback:\n  x\nDeclined",
    }  # fmt: skip
    assert lay_out(json.dumps(line).encode()) == (
        "error",
        ['payment failed  order=8123 who="a b"', "  Traceback:", "    x", "  Declined"],
    )
    line = {"level": "ours", "msg": "two\nlines", "exc_info": True, "stack": "one", "to": ["Zoë"], "why": ""}
    assert lay_out(json.dumps(line).encode()) == ("", ['two  level=ours exc_info=true stack=one to=["Zoë"]', "  lines"])


@pytest.mark.parametrize("msg", [b"plain", b"{broken}", b'{"no":"message"}', b"[1]", b'{"msg":3}', b"{" * 9999 + b"}"])
def test_other_lines_are_left_as_they_are(msg: bytes) -> None:
    assert lay_out(msg) is None
