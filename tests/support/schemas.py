"""The JSON Schemas that are shipped in the package, and what is held to them."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

import jsonschema


def names() -> set[str]:
    """The schemas there are."""
    folder = importlib.resources.files("pyworker.protocol") / "schemas"
    return {file.name.removesuffix(".json") for file in folder.iterdir()}


def schema(name: str) -> dict[str, Any]:
    file = importlib.resources.files("pyworker.protocol") / "schemas" / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def check(name: str, value: Any) -> None:
    """Fail unless the value is as its schema says, with no key that it does not name."""
    found = schema(name)
    # the data of an event stands beside its name
    jsonschema.Draft202012Validator(found if name == "progress" else _closed(found)).validate(value)


def _closed(found: Any) -> Any:
    """The same schema for what is printed today: those that are shipped allow keys of later versions."""
    if isinstance(found, dict) and "properties" in found:
        inner = {key: _closed(value) for key, value in found["properties"].items()}
        return {"additionalProperties": False} | found | {"properties": inner}
    if isinstance(found, dict) and "items" in found:
        return found | {"items": _closed(found["items"])}
    return found


def check_operation(values: list[Any]) -> None:
    """The same for the lines of start, reload…: events, then a result."""
    *events, last = values
    for value in events:
        check("progress", value)
    check("result", last)
