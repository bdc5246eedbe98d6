"""CLI: the virtual environment (venv, Poetry, conda …) that is activated in the shell that typed the command."""

from __future__ import annotations

import os
import re


def activated() -> str:
    """Return its folder; "" without one."""
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = os.environ.get(name, "")
        if os.path.isabs(prefix) and os.access(os.path.join(prefix, "bin", "python"), os.X_OK):
            return prefix
    return ""


def or_activated(hint: str) -> str:
    """Return the next step when a module is not installed, with what is more likely meant than that step."""
    prefix = activated()
    if not hint.startswith("install it: ") or not prefix or re.search(rf"{re.escape(prefix)}(?![\w.-])", hint):
        return hint
    return f'this shell has {prefix} activated, and the app has another Python: set python = "{prefix}"\n{hint}'
