"""The virtual environment (venv, Poetry, conda …) that is activated in the shell that typed the command, or is kept elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator

from pyworker import regular

_MOST = 1024 * 1024  # characters of a file that are read
_KEPT_ELSEWHERE = (  # a file, what is in it, whose it is, what says where
    ("poetry.lock", "", "Poetry", "poetry env info --path"),
    ("pyproject.toml", "[tool.poetry", "Poetry", "poetry env info --path"),
    ("Pipfile", "", "Pipenv", "pipenv --venv"),
    ("pyproject.toml", "[tool.hatch.env", "Hatch", "hatch env find"),  # with less, it may only be what builds the wheel
)


def activated() -> str:
    """Return its folder; "" without one."""
    return next(_activated(), "")


def _activated() -> Iterator[str]:
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):  # both are, where conda's own stays so
        prefix = os.environ.get(name, "")
        if os.path.isabs(prefix) and os.access(os.path.join(prefix, "bin", "python"), os.X_OK):
            yield prefix


def before_activation() -> dict[str, str]:
    """Return our environment without the programs of what is activated: they are one project's, and of no shell after a boot."""
    programs = {os.path.join(prefix, "bin") for prefix in _activated()}
    env = dict(os.environ)
    if "PATH" in env:
        env["PATH"] = os.pathsep.join(p for p in env["PATH"].split(os.pathsep) if p not in programs)
    return env


def or_activated(hint: str, cwd: str) -> str:
    """Return the next step when a module is not installed, with what is more likely meant than that step by an app in `cwd`."""
    if not hint.startswith("install it: "):
        return hint
    if (prefix := activated()) and not _names(hint, prefix):
        return f'this shell has {prefix} activated, and the app has another Python: set python = "{prefix}"\n{hint}'
    for file, words, tool, says in _KEPT_ELSEWHERE if _names(hint, sys.prefix) and not prefix else ():
        if _has(os.path.join(cwd, file), words):
            other = f"{tool} keeps this project's environment elsewhere, and the app has pyworker's own Python"
            there = "" if _is_here(cwd) else f"cd {shlex.quote(cwd)} && "
            return f"{other}: set python to what this says: {there}{says}\n{hint}"
    if _names(hint, sys.prefix) and os.path.exists(os.path.join(sys.prefix, "uv-receipt.toml")):  # of uv tool install
        own = shlex.quote(os.path.join("" if _is_here(cwd) else cwd, ".venv"))
        step = hint.removeprefix("install it: ").replace(shlex.quote(sys.prefix), own)
        lost = "the app has pyworker's own Python, and uv tool upgrade takes out what is added to that"
        return f"{lost}: give it one of its own: uv venv {own} && {step}"
    return hint


def _has(path: str, words: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace", opener=regular.opener) as file:
            return words in file.read(_MOST)
    except OSError:
        return False


def _is_here(folder: str) -> bool:
    try:
        return not folder or os.path.samefile(folder, ".")
    except OSError:
        return False


def _names(hint: str, prefix: str) -> bool:
    return re.search(rf"{re.escape(prefix)}(?![\w.-])", hint) is not None
