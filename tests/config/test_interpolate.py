"""${VAR} in [env]: what is filled in, what is an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.config.interpolate import InterpolationError, Lookup, check_syntax, expand_dotenv, interpolate, literal

ENV = {"A": "1", "EMPTY": "", "X": "${A}"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("${A}", "1"),
        ("<${A}${A}>", "<11>"),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${NO:-}", ""),
        ("${NO:-a b/c}", "a b/c"),
        ("${NO:-${A}}", "1"),
        ("${NO:-${NO2:-x}}y", "xy"),
        ("${A:?must}", "1"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$HOME costs $5", "$HOME costs $5"),
        ("${X}", "${A}"),
        ("end$", "end$"),
    ],
)
def test_variables_are_filled_in(text: str, result: str) -> None:
    assert interpolate(text, ENV.get) == result
    check_syntax(text)


def test_variable_that_is_not_set_is_an_error_that_names_it() -> None:
    with pytest.raises(InterpolationError, match="needs NO, which is not set"):
        interpolate("${NO}", ENV.get)


def test_message_of_a_required_variable_is_shown() -> None:
    with pytest.raises(InterpolationError, match=r"needs EMPTY: set it in \.env"):
        interpolate("${EMPTY:?set it in .env}", ENV.get)
    check_syntax("${EMPTY:?set it in .env}")


@pytest.mark.parametrize(
    "text", ["${A", "${", "${}", "${1}", "${A-b}", "${A:+b}", "${A b}", "${NO:-${A}", "${NO:-${A!}}"]
)
def test_malformed_text_is_refused_whatever_is_set(text: str) -> None:
    with pytest.raises(InterpolationError):
        check_syntax(text)


@given(st.text(alphabet="${}:-?A$ ", max_size=30))
def test_any_text_is_filled_in_or_refused(text: str) -> None:
    try:
        interpolate(text, ENV.get)
    except InterpolationError:
        return


def test_nesting_has_an_end() -> None:
    with pytest.raises(InterpolationError, match="too deeply"):
        interpolate("${N:-" * 50 + "}" * 50, ENV.get)


@pytest.mark.parametrize("fill", [interpolate, expand_dotenv])
def test_what_is_filled_in_is_never_longer_than_a_variable_may_be(fill: Callable[[str, Lookup], str]) -> None:
    """Each line ten times the one before: seven of them took 300 MB, in root's daemon too."""
    lookup = {"A": "x" * 10_000}.get
    assert len(fill("${A}" * 13, lookup)) == 130_000
    with pytest.raises(InterpolationError, match="is more than"):
        fill("${A}" * 100_000, lookup)


def test_dotenv_values_keep_dollars_and_take_unset_as_empty() -> None:
    assert expand_dotenv("pa$$word ${A} ${NO} ${NO:-d} $A", ENV.get) == "pa$$word 1  d $A"
    assert expand_dotenv("${A:-d}${NO:-}} ${A", ENV.get) == "1} ${A"


def test_a_dotenv_value_of_many_defaults_without_an_end_is_looked_through_once() -> None:
    """Else a file of 1 MB has root's daemon stand still for hours."""
    with pytest.raises(InterpolationError, match="is more than"):
        expand_dotenv("${A:-" * 200_000, ENV.get)


@given(st.text(alphabet="${}:-?A$ ", max_size=30))
def test_literal_text_stays_what_it_is(text: str) -> None:
    check_syntax(literal(text))
    assert interpolate(literal(text), ENV.get) == text
