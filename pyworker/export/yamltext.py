"""Export: plain values as YAML. Every text is quoted, so that no parser takes one for something else."""

from __future__ import annotations

import json
import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*\Z")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def dump(value: Any, indent: int = 0) -> str:
    """Return a dict or list as block YAML, keys in their order. What is None is left out."""
    pad = "  " * indent
    lines: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            if item is None:
                continue
            if isinstance(item, (dict, list)) and item:
                deeper = indent + (1 if isinstance(item, dict) else 0)
                lines.append(f"{pad}{_scalar(str(key))}:\n{dump(item, deeper)}")
            else:
                lines.append(f"{pad}{_scalar(str(key))}: {_scalar(item)}\n")
        return "".join(lines)
    for item in value:
        if isinstance(item, (dict, list)) and item:
            body = dump(item, indent + 1)
            lines.append(f"{pad}- {body[len(pad) + 2 :]}")
        else:
            lines.append(f"{pad}- {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (dict, list)):
        return "{}" if isinstance(value, dict) else "[]"
    text = str(value)
    if _PLAIN.match(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)
