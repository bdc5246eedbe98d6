"""The metadata of one option: default, help, unit, limits. Read by loading, checking, docs and JSON Schema."""

from __future__ import annotations

from typing import Any, Literal

from pyworker.record import MISSING, Field, field, record

Unit = Literal["", "duration", "size"]
Apply = Literal["live", "reload", "restart"]


@record
class Option:
    """What is known of an option besides its name, its type and its default (those are the field's)."""

    help: str
    unit: Unit = ""  # "duration": text like "10s" -> float seconds; "size": text like "512MB" -> int bytes
    minimum: float | None = None
    maximum: float | None = None
    example: str = ""
    apply: Apply = "reload"  # how a changed value takes effect


def option(
    default: Any = MISSING,
    *,
    help: str,
    unit: Unit = "",
    minimum: float | None = None,
    maximum: float | None = None,
    example: str = "",
    apply: Apply = "reload",
    factory: Any = MISSING,
) -> Any:
    """Declare one option as a record's field. Everything that is true of it is said here, once."""
    metadata = {"option": Option(help, unit, minimum, maximum, example, apply)}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def duration(
    default: float, help: str, *, minimum: float = 0, maximum: float | None = None, apply: Apply = "reload"
) -> Any:
    """Declare an option that is a span of time; unless more is said, 0 is the least."""
    return option(default, help=help, unit="duration", minimum=minimum, maximum=maximum, apply=apply)


def option_of(field: Field[Any]) -> Option:
    found = field.metadata["option"]
    assert isinstance(found, Option)
    return found
