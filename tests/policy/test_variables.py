"""A variable that is missing: what Python and the libraries that read settings say of it, and what to do."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from pyworker.policy.variables import of_variable


def raised(by: Callable[[], Any]) -> tuple[str, str]:
    """Return the last line and the whole of a traceback."""
    try:
        by()
    except Exception as error:  # noqa: BLE001
        return traceback.format_exception_only(error)[-1].strip(), "".join(traceback.format_exception(error))
    raise AssertionError("nothing was raised")


def test_what_the_environment_does_not_have_is_to_be_set() -> None:
    hint = of_variable(*raised(lambda: os.environ["KEY_OF_NOBODY"]))
    assert "set env.KEY_OF_NOBODY," in hint
    assert 'inherit_env = "KEY_OF_NOBODY"' in hint


def test_an_app_that_is_given_all_of_the_shells_is_told_to_set_it_there() -> None:
    hint = of_variable(*raised(lambda: os.environ["KEY_OF_NOBODY"]), ("*",))
    assert "export KEY_OF_NOBODY there, or -e KEY_OF_NOBODY=…" in hint
    assert "inherit_env" not in hint


def test_any_other_key_that_is_missing_is_no_variable() -> None:
    assert of_variable(*raised(lambda: {}["KEY_OF_NOBODY"])) == ""

    def behind_it() -> None:
        try:
            os.environ["KEY_OF_NOBODY"]
        except KeyError:
            {}["OTHER"]

    assert of_variable(*raised(behind_it)) == ""


@pytest.mark.parametrize(
    "said",
    [
        "django.core.exceptions.ImproperlyConfigured: Set the SECRET_KEY environment variable",
        "decouple.UndefinedValueError: SECRET_KEY not found. Declare it as envvar or define a default value.",
        'environs.exceptions.EnvError: Environment variable "SECRET_KEY" not set',
        "RuntimeError: missing required environment variable: SECRET_KEY",
        "Error: environment variable SECRET_KEY is required",
    ],
)
def test_what_libraries_say_is_understood(said: str) -> None:
    assert "set env.SECRET_KEY," in of_variable(said, f"Traceback (most recent call last):\n  [...]\n{said}")
    assert of_variable("Error: environment variable is not set", "") == ""


def test_of_pydantics_settings_the_field_is_shown_and_the_name_of_its_variable_not_made_up() -> None:
    text = (
        'Traceback (most recent call last):\n  File "/srv/shop/main.py", line 5, in <module>\n    settings = Settings()\n'
        '  File "/srv/.venv/lib/python3.12/site-packages/pydantic_settings/main.py", line 190, in __init__\n    super().__init__(\n'
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for Settings\nsecret_key\n"
        "  Field required [type=missing, input_value={}, input_type=dict]\n"
    )
    said = "pydantic_core._pydantic_core.ValidationError: 1 validation error for Settings"
    assert "set its variable in env" in of_variable(said, text)
    assert of_variable(said, text.replace("pydantic_settings", "pydantic")) == ""
    assert of_variable(said, text.replace("type=missing", "type=int_parsing")) == "", "it is set, and wrong"
