"""Template: finds the HTTP engine and imports all that a worker will need, once, so that workers share it by fork.

The app's environment comes first, then pyworker's own libraries; with neither there is an error that names the
command to type. Makes no loop, no thread, no socket.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import sysconfig
from typing import Any, Literal

from pyworker.config.schema import AppConfig
from pyworker.protocol.template import Engine
from pyworker.record import record
from pyworker.unix.venv import install_command
from pyworker.worker.engines import finder

_WEBSOCKETS = ("uvicorn", "websockets")  # what only websockets need
_SPEAKS_WEBSOCKET = (
    "uvicorn", "websockets", "wsproto", "starlette", "channels", "quart", "litestar", "falcon.asgi", "blacksheep", "sanic",
    "socketio", "engineio", "strawberry", "ariadne",
)  # fmt: skip


@record
class EngineInfo:
    """What was found: `description` for people, `loop` for the worker."""

    description: str
    loop: Literal["asyncio", "uvloop"]


class EngineMissing(Exception):
    """There is no usable engine for this interpreter."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def prepare(app: AppConfig, engine: Engine) -> EngineInfo:
    """Import the engine. Raises EngineMissing."""
    finder.install(engine)
    needed = ["httptools", "uvicorn"]
    optional = [] if app.interface == "wsgi" else ["websockets"]
    if app.loop == "uvloop":
        needed.append("uvloop")
    elif app.loop == "auto":
        optional.append("uvloop")
    sources: dict[str, tuple[str, bool]] = {}  # name -> version, from the app's environment
    missing: list[str] = []
    for name in [*needed, *optional]:
        found = _source(name, engine)
        if found is None:
            if name in needed:
                missing.append(name)
            continue
        if name not in _WEBSOCKETS:
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001  one made for another Python may raise anything (uvloop 0.21 under 3.14)
                if name in needed:
                    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
                    raise _missing([name], engine, f": {kind}{error}") from None
                continue
        sources[name] = found
    if missing:
        raise _missing(missing, engine, "")
    importlib.import_module("pyworker.worker.engines.server")
    loop: Literal["asyncio", "uvloop"] = "uvloop" if "uvloop" in sources else "asyncio"
    return EngineInfo(_describe(sources), loop)


@functools.cache  # the template has asked: each worker would look through sys.path again
def has_websockets() -> bool:
    """True when `websockets` would find its libraries."""
    return all(importlib.util.find_spec(name) is not None for name in _WEBSOCKETS)


def may_use_websockets() -> bool:
    """True when something that the app has imported can serve websockets: then all workers should share the import."""
    return any(name in sys.modules for name in _SPEAKS_WEBSOCKET)


def websockets() -> Any:
    """Return the class that serves websockets. Imported by the template for apps that may use them, by a worker for the
    first one of any other app: it needs uvicorn, whose import is a fifth of the start of a small app.
    """
    return importlib.import_module("pyworker.worker.engines.websocket").WebSockets


def _source(name: str, engine: Engine) -> tuple[str, bool] | None:
    """Return version and whether the app's environment has it; None when nobody has a usable one."""
    theirs = finder.version(name)
    if theirs is not None and finder.tested(name, theirs):
        return theirs, True
    if not finder.fits(engine) or (theirs is not None and name not in finder.REPLACED):
        return None
    own = finder.version(name, engine.path)
    return (own, False) if own is not None and finder.tested(name, own) else None


def _missing(names: list[str], engine: Engine, why: str) -> EngineMissing:
    have = []
    for name in names:
        text = finder.version(name)
        have.append(f"{name} {text} is not in the tested range" if text else f"{name} is not installed")
    if why:
        have = [f"{names[0]} cannot be imported{why}"]
    message = f"no HTTP engine for {sys.executable}: " + ", ".join(have)
    if engine.path and not finder.fits(engine):
        abi = sysconfig.get_config_var("SOABI")
        other = f"is for {engine.abi or 'another interpreter'}, not {abi}"
        own = other if engine.abi != abi else f"is in {engine.path}, which this user cannot reach"
        message += f" (pyworker's own {own})"
    wanted = dict.fromkeys(["uvicorn", "httptools", *names, "websockets"])
    return EngineMissing(message, install_command(sys.executable, *map(finder.requirement, wanted)))


def _describe(sources: dict[str, tuple[str, bool]]) -> str:
    order = [name for name in ("uvicorn", "httptools", "uvloop", "websockets") if name in sources]
    groups = []
    for theirs, place in ((True, "from the app's environment"), (False, "pyworker's own")):
        names = [f"{name} {sources[name][0]}" for name in order if sources[name][1] is theirs]
        if names:
            groups.append(", ".join(names) + f" ({place})")
    return "; ".join(groups)
