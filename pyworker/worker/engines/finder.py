"""Template: lends pyworker's own HTTP libraries to an app that has none, without putting their folder on sys.path.

A closed list of names is served, nothing else in that folder can be imported. The lender stands last, so what the
app's environment has wins; only versions that the engine cannot work with are replaced, by one that stands first.
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
import sysconfig
from collections.abc import Sequence
from types import ModuleType

from pyworker.protocol.template import Engine

Version = tuple[int, ...]

LENT = ("uvicorn", "httptools", "uvloop", "websockets", "h11", "click")
TESTED: dict[str, tuple[Version, Version]] = {  # from (included) - to (not included)
    "uvicorn": ((0, 54), (0, 55)),
    "httptools": ((0, 6, 3), (0, 10)),
    "uvloop": ((0, 19), (0, 24)),
    "websockets": ((13,), (18,)),
}
REPLACED = ("uvicorn", "httptools", "uvloop")  # never an app's own websockets, h11 or click


class Lender:
    """A meta-path finder for top-level packages of one folder."""

    def __init__(self, path: str, names: frozenset[str]) -> None:
        self.path = path
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or fullname not in self.names:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [self.path])


def install(engine: Engine) -> None:
    """Make what is missing importable, if the engine fits this interpreter. Twice is once."""
    if not fits(engine) or any(isinstance(finder, Lender) for finder in sys.meta_path):
        return
    replaced = frozenset(name for name in REPLACED if (found := version(name)) is not None and not tested(name, found))
    if replaced:
        sys.meta_path.insert(0, Lender(engine.path, replaced))
    sys.meta_path.append(Lender(engine.path, frozenset(LENT)))


def fits(engine: Engine) -> bool:
    """True when compiled modules of pyworker's environment can be loaded here."""
    return bool(engine.path) and engine.abi == sysconfig.get_config_var("SOABI") and os.path.isdir(engine.path)


def version(name: str, path: str | None = None) -> str | None:
    """Return the version of a distribution in the app's environment (or in one folder), None when it is not there.

    Read off the name of its .dist-info folder, as it is for every wheel; importlib.metadata, which would cost each
    start as much as asyncio, is asked about older kinds only.
    """
    folders = sys.path if path is None else [path]
    plain = name.replace("-", "_")
    for folder in folders:
        for entry in _entries(folder):
            if entry.endswith(".dist-info") and "-" in entry:
                found, _, text = entry.removesuffix(".dist-info").rpartition("-")
                if re.sub(r"[-_.]+", "_", found).lower() == plain:
                    return text
            elif entry.endswith((".egg-info", ".egg")) and re.match(rf"{plain}\b", entry, re.IGNORECASE):
                import importlib.metadata

                for distribution in importlib.metadata.distributions(name=name, path=[folder]):
                    return distribution.version
    return None


def _entries(folder: str) -> list[str]:
    """List a folder of sys.path; nothing for what is none. Not remembered: an app may be installed at any time."""
    try:
        return os.listdir(folder or ".")
    except OSError:
        return []


def requirement(name: str) -> str:
    """Return what pip is told to have: a version that the engine works with."""
    begin, end = (".".join(map(str, bound)) for bound in TESTED[name])
    return f"{name}>={begin},<{end}"


def tested(name: str, version: str) -> bool:
    """True when the engine is known to work with this version."""
    begin, end = TESTED[name]
    return begin <= tuple(int(n) for n in re.findall(r"\d+", version)[:3]) < end
