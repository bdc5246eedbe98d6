"""The metadata of one option: default, help, unit, choices. Read by loading, checking, docs and JSON Schema."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pyworker.record import record

Unit = Literal["", "duration", "size"]
Apply = Literal["live", "reload", "restart"]


@record
class Option:
    """What is known of an option besides its name, its type and its default (those are the field's)."""

    help: str
    unit: Unit = ""  # "duration": text like "10s" -> float seconds; "size": text like "512MB" -> int bytes
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    example: str = ""
    apply: Apply = "reload"  # how a changed value takes effect


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    unit: Unit = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    example: str = "",
    apply: Apply = "reload",
    factory: Any = dataclasses.MISSING,
) -> Any:
    """Declare one option as a dataclass field. Everything that is true of it is said here, once."""
    metadata = {"option": Option(help, unit, choices, minimum, maximum, example, apply)}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def option_of(field: dataclasses.Field[Any]) -> Option:
    """Return the declaration of a schema field."""
    found = field.metadata["option"]
    assert isinstance(found, Option)
    return found
