"""`from pyworker import state`: values that all workers of an app share, and that outlive them.

    state.set("motd", "hello", ttl=60)
    hits = state.incr("hits")
    async for value in state.watch("flags"):
        ...

Under pyworker the store is there (key `state` of the config). Elsewhere, in a cluster program for instance,
`state.connect("sqlite:./state")` comes first; children that are started after it find the same store.
The functions wait for nothing but the store and may be called from any thread; `state.aio` has the same as coroutines,
run in a thread, for a store on the other side of a network. How it works: docs/state.md.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from pyworker.cluster.state_store import (
    MAX_KEY,
    MAX_MESSAGE,
    MAX_VALUE,
    MISSING,
    Messages,
    State,
    StateError,
    StateTooLarge,
    StateUnavailable,
    Watch,
)
from pyworker.protocol.names import ENV_APP, ENV_STATE

try:  # not at the first use, in the middle of which a signal's handler may come, or a fork
    from pyworker.cluster.state_sqlite import SqliteStore
except ImportError as error:
    SqliteStore, _no_sqlite = None, str(error)  # type: ignore[assignment, misc]

__all__ = [
    "MAX_KEY", "MAX_MESSAGE", "MAX_VALUE", "MISSING", "Messages", "State", "StateError", "StateTooLarge",
    "StateUnavailable", "Watch", "aio", "broadcast", "compare_and_set", "connect", "delete", "get", "incr", "keys",
    "listen", "open", "set", "update", "watch",
]  # fmt: skip

_current: State | None = None
_lock = threading.RLock()  # the handler of a signal may come in the middle


def _forked() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have had it


os.register_at_fork(after_in_child=_forked)


def open(address: str, name: str = "") -> State:  # noqa: A001  state.open reads well
    """Open a store: "sqlite:FOLDER" or "redis://[:PASSWORD@]HOST[:PORT]/[DB]" (also rediss:// and unix://).

    `name` keeps those apart who share one Redis server; default: the app's name, else "default".
    """
    if address.startswith(("redis://", "rediss://", "unix://")):
        from pyworker.cluster.state_redis import RedisStore, without_password

        address, _, named = address.partition("#")  # of `connect`, for children
        name = name or named or os.environ.get(ENV_APP) or "default"
        return State(RedisStore(address, name), without_password(address))
    if address.startswith("sqlite:") and address != "sqlite:":
        if SqliteStore is None:
            raise StateUnavailable(f"this Python was built without SQLite ({_no_sqlite}): use redis://…")
        return State(SqliteStore(address.removeprefix("sqlite:")), address)
    if address.startswith("none:"):  # the daemon says why there is none
        raise StateUnavailable(address.removeprefix("none:"))
    raise StateError(f'{address[:80]!r} is no address of a shared state: "sqlite:FOLDER" or "redis://HOST:PORT/0"')


def connect(address: str, name: str = "") -> State:
    """Make this the store of the functions of this module, here and in every child process started from now on."""
    global _current
    opened = open(address, name)
    if address.startswith("sqlite:"):
        address = "sqlite:" + os.path.abspath(address.removeprefix("sqlite:"))
    elif name:
        address = f"{address.partition('#')[0]}#{name}"
    with _lock:
        before, _current = _current, opened
    os.environ[ENV_STATE] = address
    if before is not None:
        before.close()
    return opened


def _state() -> State:
    global _current
    if _current is None:
        with _lock:
            if _current is None:
                address = os.environ.get(ENV_STATE, "")
                if not address:
                    raise StateUnavailable(
                        "no shared state is set up here: workers under pyworker have one, other programs call "
                        'state.connect("sqlite:./state") first'
                    )
                opened = open(address)
                if _current is None:
                    _current = opened
    return _current


def get(key: str, default: Any = None) -> Any:
    """Return the value of a key."""
    return _state().get(key, default)


def keys(prefix: str = "") -> list[str]:
    """Return the keys that begin with `prefix`, sorted."""
    return _state().keys(prefix)


def set(key: str, value: Any, ttl: float | None = None) -> None:  # noqa: A001  state.set reads well
    """Put a value. With `ttl` it is gone after so many seconds; without, it stays."""
    _state().set(key, value, ttl)


def delete(key: str) -> bool:
    """Remove a key; False when there was none."""
    return _state().delete(key)


def incr(key: str, by: int = 1, ttl: float | None = None) -> int:
    """Add to a counter, which begins at 0, and return it. `ttl` is that of a new counter; an old one keeps its own."""
    return _state().incr(key, by, ttl)


def compare_and_set(key: str, old: Any, new: Any, ttl: float | None = None) -> bool:
    """Put `new` if the value is `old`, and return whether it was. `MISSING` stands for "no such key" on both sides."""
    return _state().compare_and_set(key, old, new, ttl)


def update(
    keys: str | Iterable[str], function: Callable[[Any], Any], *, default: Any = None, ttl: float | None = None
) -> Any:
    """Change a value, or several together, in one transaction; see `State.update`."""
    return _state().update(keys, function, default=default, ttl=ttl)


def watch(key: str, callback: Callable[[Any], object] | None = None) -> Watch:
    """Be told of a key: of its value now, then of each change; see `State.watch`."""
    return _state().watch(key, callback)


def broadcast(message: Any) -> None:
    """Send a JSON value to all sibling workers that `listen`."""
    _state().broadcast(message)


def listen(callback: Callable[[Any], object] | None = None) -> Messages:
    """Be told of each broadcast of the siblings from now on."""
    return _state().listen(callback)


class _Aio:
    """The functions that wait for the store, as coroutines: each runs in a thread, so that the loop goes on."""

    async def get(self, key: str, default: Any = None) -> Any:
        return await asyncio.to_thread(get, key, default)

    async def keys(self, prefix: str = "") -> list[str]:
        return await asyncio.to_thread(keys, prefix)

    async def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        await asyncio.to_thread(set, key, value, ttl)

    async def delete(self, key: str) -> bool:
        return await asyncio.to_thread(delete, key)

    async def incr(self, key: str, by: int = 1, ttl: float | None = None) -> int:
        return await asyncio.to_thread(incr, key, by, ttl)

    async def compare_and_set(self, key: str, old: Any, new: Any, ttl: float | None = None) -> bool:
        return await asyncio.to_thread(compare_and_set, key, old, new, ttl)

    async def update(
        self,
        keys: str | Iterable[str],
        function: Callable[[Any], Any],
        *,
        default: Any = None,
        ttl: float | None = None,
    ) -> Any:
        return await asyncio.to_thread(update, keys, function, default=default, ttl=ttl)

    async def broadcast(self, message: Any) -> None:
        await asyncio.to_thread(broadcast, message)


aio = _Aio()
