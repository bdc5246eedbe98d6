"""worker/headline.py: the one line of an exception that a message has room for."""

from __future__ import annotations

import traceback

import pytest

from pyworker.worker import headline

MANY = "1 validation error for Settings\nDATABASE_URL\n  Field required\n    For further information visit https://a.b/c"

BETWEEN = "\nDuring handling of the above exception, another exception occurred:\n\n"


def noted() -> Exception:
    error = ValueError("bad port")
    error.add_note("it came from app.ini")
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad port"), "ValueError: bad port"),
        (ValueError(), "ValueError"),
        (ValueError(MANY), "ValueError: 1 validation error for Settings"),
        (noted(), "ValueError: bad port"),
        (ValueError("name \udcff"), "ValueError: name \\udcff"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError("x" * 100_000), f"ValueError: {'x' * (headline.LONGEST - 12)}…"),
        (SyntaxError("invalid syntax", ("app.py", 3, 1, "if x\n")), "SyntaxError: invalid syntax (app.py, line 3)"),
        (ExceptionGroup("two of them", [ValueError("a"), OSError("b")]), "ExceptionGroup: two of them (2 sub-exceptions)"),
    ],
)
def test_it_is_the_first_line_of_what_python_prints_of_the_exception(error: BaseException, line: str) -> None:
    assert headline.of(error) == line


def whole(error: Exception, cause: Exception | None = None) -> str:
    try:
        raise error from cause
    except Exception:  # noqa: BLE001  whatever it is
        return traceback.format_exc()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (whole(ValueError("bad port")), "ValueError: bad port"),
        (whole(ValueError(MANY)), "ValueError: 1 validation error for Settings"),
        (whole(noted()), "ValueError: bad port"),
        (whole(ValueError("bad port"), OSError("no file")), "ValueError: bad port"),
        (whole(OSError("no file")) + BETWEEN + whole(ValueError("bad port")), "ValueError: bad port"),
        (whole(ExceptionGroup("tasks", [ValueError("a"), ValueError("b")])), "ValueError: b"),
        ("no database\nis it running?\n", "no database"),
        ("\n", ""),
        ("", ""),
    ],
)
def test_of_a_traceback_it_is_the_line_that_names_the_exception(text: str, line: str) -> None:
    assert headline.of_text(text) == line
