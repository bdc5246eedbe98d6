"""Durations and sizes: units are required, values round-trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.config.units import UnitError, bare_number_hint, duration_text, parse_duration, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("1d", 86400), ("1.5h", 5400), ("0s", 0), (" 3 s ", 3)],
)
def test_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 << 20), ("1GB", 1 << 30), ("64KB", 65536), ("0B", 0), ("1.5KB", 1536), ("1TB", 1 << 40)],
)
def test_size_is_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [("30", '"30s"'), ("30 seconds", '"30s"'), ("5min", '"5m"'), ("2H", '"2h"'), ("5y", "units: ms s m h d")],
)
def test_wrong_duration_unit_gets_a_suggestion(text: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_duration(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "hint"), [("512", '"512MB"'), ("512mb", '"512MB"'), ("1GiB", '"1GB"'), ("1g", '"1GB"')]
)
def test_wrong_size_unit_gets_a_suggestion(text: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_size(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["", "s", "-1s", "1e3s", "nan s", "1s2", "٣s", "9999999999999d", "1_000s"])
def test_nonsense_is_no_duration(text: str) -> None:
    with pytest.raises(UnitError):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**9))
def test_durations_round_trip(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(duration_text(seconds)) == pytest.approx(seconds, rel=1e-5)


@given(st.integers(min_value=0, max_value=2**50))
def test_sizes_round_trip(size: int) -> None:
    if size >= 10**15 and size % 1024:
        return  # more digits than a size may have
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize(
    ("value", "unit", "hint"),
    [
        (30, "duration", '"30s"'),
        (5000, "duration", '"5000ms"'),
        (512, "size", '"512MB"'),
        (512 << 20, "size", '"512MB"'),
    ],
)
def test_bare_number_gets_the_likely_unit(value: int, unit: str, hint: str) -> None:
    assert hint in bare_number_hint(value, unit)
