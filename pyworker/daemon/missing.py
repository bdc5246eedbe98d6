"""Daemon: the next step when a script or a command ended because a module is not there, from the line that says so.

An ASGI or WSGI app is looked at closer, where it is imported (worker/target.py). Here it is known what was executed, and no
more: where that does not tell which Python it was, the step does not claim to know it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from pyworker.config import environment
from pyworker.config.schema import ResolvedApp
from pyworker.policy.distributions import distribution_of
from pyworker.unix.venv import install_command

_NO_MODULE = re.compile(r"ModuleNotFoundError: No module named '(\w+)(\.?)")
_ASKED = re.compile(r"(/[^:]*/python[\d.]*): .*\bNo module named '?(\w+)(\.?)")  # by `python -m NAME`
_NO_PACKAGE = re.compile(  # Node's, of require and of import; a name that begins with a dot or a slash is a file
    r"Error(?: \[ERR_MODULE_NOT_FOUND\])?: Cannot find (?:module|package) '((?:@[\w.~-]+/)?\w[\w.~-]*)['/]"
)
_IS_NO_PACKAGE = ("is not a package", "cannot be directly executed")
_FOLDERS = ("venv", "env")  # .venv is taken by itself


def of_module(said: str, resolved: ResolvedApp, command: Sequence[str] = ()) -> str:
    """Return what to do about "ModuleNotFoundError: No module named 'flask'" or Node's word for it; "" of any other line.

    `command`: what was executed, when that was not the app (a hook).
    """
    if "\0" in said:  # a hook may print anything, and no path has it
        return ""
    command = command or resolved.config.command
    cwd = resolved.config.cwd
    if package := _NO_PACKAGE.match(said):
        named, installed = (os.path.exists(os.path.join(cwd, name)) for name in ("package.json", "node_modules"))
        return f"in {cwd}: npm install" if named and not installed else f"in {cwd}: npm install {package[1]}"
    if asked := _ASKED.match(said):
        python, module, within = asked.groups()
    elif found := _NO_MODULE.match(said):
        python, (module, within) = _of_command(resolved, command[0]) if command else resolved.python, found.groups()
    else:
        return ""
    if module in sys.stdlib_module_names or _is_there(cwd, module) or said.endswith(_IS_NO_PACKAGE):
        return ""
    for folder in _FOLDERS:
        if os.path.exists(os.path.join(cwd, folder, "bin", "python")) and os.path.join(cwd, folder, "") not in python:
            return f'there is a virtual environment in {folder}: set python = "{folder}"'
    name = distribution_of(module)
    install = f"pip install {'-U ' * bool(within)}{name}"
    if python:
        install = install_command(python, name, upgrade=bool(within))
    step = f"install it{'' if python else ' for its Python'}: {install}"
    if within:  # Python has found the package, and looked in it
        step = f"{name} is installed, and this version has no such module: {install}"
    return f"{step}\nis it the app's own? it is not in {cwd}: set cwd" if asked else step


def _is_there(cwd: str, module: str) -> bool:
    """Whether it is a module of the app's own, which pip would not have."""
    path = os.path.join(cwd, module)
    return os.path.exists(path + ".py") or os.path.isdir(path)


def _of_command(resolved: ResolvedApp, name: str) -> str:
    """Return the Python that a command is, or lies beside in a virtual environment; "" when that cannot be told."""
    path = environment.program(name, resolved.env, resolved.config.cwd)
    if path is None:
        return ""
    if os.path.basename(path).startswith("python"):
        return path
    folder = os.path.dirname(path)
    return os.path.join(folder, "python") if environment.variable_of(os.path.dirname(folder)) else ""
