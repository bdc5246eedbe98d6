"""Shared state: what every store has in common, and the parts that do not depend on where the values are kept.

Runs in the user's program. A store (state_sqlite.py, state_redis.py) keeps JSON texts by key; this file turns them into
values, refuses what does not fit with a sentence, and hands changes to whoever watches. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol, Self, final

MAX_KEY: Final = 512  # bytes
MAX_VALUE: Final = 1024 * 1024  # bytes of JSON
MAX_MESSAGE: Final = 64 * 1024  # bytes of JSON of one broadcast
MAX_KEYS: Final = 100  # of one update
MAX_INTEGER: Final = 2**63 - 1
MAX_TTL: Final = 10 * 365 * 86400.0
KEPT_MESSAGES: Final = 1000  # broadcasts that wait for a reader; the oldest are dropped


class StateError(Exception):
    """What was asked of the shared state cannot be done; the message says why and what to do."""


class StateTooLarge(StateError, ValueError):
    """A key, a value or the whole store is larger than it may be."""


class StateUnavailable(StateError):
    """The store cannot be reached: not set up, locked for too long, damaged, or its server is away."""


@final
class Missing:
    """The one value `MISSING`: no such key."""

    _only: Missing | None = None

    def __new__(cls) -> Self:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __repr__(self) -> str:
        return "state.MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing()


class Store(Protocol):
    """Texts by key. A method is one step that is done whole or not at all; ttl is in seconds, None = see each."""

    def read(self, keys: Iterable[str]) -> dict[str, str]: ...

    def keys(self, prefix: str) -> list[str]: ...

    def write(self, key: str, text: str, ttl: float | None) -> None:
        """Put a value; without ttl it stays for ever."""

    def remove(self, key: str) -> bool: ...

    def add(self, key: str, by: int, ttl: float | None) -> int:
        """Add to a whole number, 0 when there is none; ttl counts when the key is made, else it stays as it is."""

    def change(
        self, keys: tuple[str, ...], function: Callable[[dict[str, str]], dict[str, str | None]], ttl: float | None
    ) -> None:
        """Read, let `function` say what to write (None removes), and write, with nobody else in between.

        Without ttl a key keeps the one it has.
        """

    def say(self, text: str) -> None:
        """Hand a message to everyone who listens, except this process."""

    def watch(self, key: str, deliver: Callable[[str | None], None]) -> Callable[[], None]:
        """Call `deliver` now and after each change, from a thread; return what ends it."""

    def listen(self, deliver: Callable[[str, int], None]) -> Callable[[], None]:
        """Call `deliver(text, missed)` for each message, from a thread; return what ends it."""

    def close(self) -> None: ...


def check_prefix(key: object) -> str:
    """Return a key, or how some begin; or say what no store could take in it."""
    if not isinstance(key, str):
        raise TypeError(f"a key is a text, not {type(key).__name__}")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise StateError("a key must be valid Unicode (it has half of a surrogate pair)") from None
    return key


def check_key(key: object) -> str:
    """Return the key, or say what is wrong with it."""
    key = check_prefix(key)
    size = len(key.encode())
    if not key or "\0" in key:
        raise StateError("a key must not be empty and must not contain NUL")
    if size > MAX_KEY:
        raise StateTooLarge(f"a key may have {MAX_KEY} bytes, this one has {size}: {key[:40]}…")
    return key


def to_text(value: object, what: str, limit: int = MAX_VALUE) -> str:
    """Return a value as JSON: the same text for equal values, whatever the order of their keys."""
    try:
        text = json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
    except RecursionError:
        raise StateError(f"{what} is nested too deeply for JSON, or contains itself") from None
    except (TypeError, ValueError) as error:
        raise StateError(f"{what} is not JSON: {error}. Texts, numbers, lists, dicts, true, false, None are") from None
    if len(text) > limit:
        message = f"{what} has {len(text)} bytes as JSON, {limit} are allowed. Keep it elsewhere and share where it is"
        raise StateTooLarge(message)
    return text


def from_text(text: str, key: str) -> Any:
    """Return the value of a stored text; one that somebody else has written may be no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        message = f"the value of {key!r} is not JSON: {text[:60]!r}. Only pyworker.state should write it"
        raise StateError(message) from None


def whole_number(text: str, key: str) -> int:
    """Return the number that a counter holds."""
    try:
        return int(text)
    except ValueError:
        raise StateError(f"incr of {key!r}: its value is no whole number: {text[:60]}") from None


def check_ttl(ttl: float | None) -> float | None:
    """Return the time to live in seconds."""
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"ttl is a number of seconds, not {type(ttl).__name__}")
    if not 0 < ttl <= MAX_TTL:
        raise StateError(f"ttl must be more than 0 and at most {MAX_TTL:.0f} seconds, not {ttl}")
    return float(ttl)


class State:
    """A mapping that all who open the same store share. Every method may be called from any thread."""

    def __init__(self, store: Store, address: str) -> None:
        self._store = store
        self._changing = threading.local()
        self._open: weakref.WeakSet[Watch | Messages] = weakref.WeakSet()
        self.address = address  # without the password

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key."""
        text = self._store.read([check_key(key)]).get(key)
        return default if text is None else from_text(text, key)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted."""
        return self._store.keys(check_prefix(prefix))

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Put a value. With `ttl` it is gone after so many seconds; without, it stays."""
        check_key(key)
        text = to_text(value, f"the value of {key!r}")
        self._refuse_inside_update("set")
        self._store.write(key, text, check_ttl(ttl))

    def delete(self, key: str) -> bool:
        """Remove a key; False when there was none."""
        check_key(key)
        self._refuse_inside_update("delete")
        return self._store.remove(key)

    def incr(self, key: str, by: int = 1, ttl: float | None = None) -> int:
        """Add to a counter, which begins at 0, and return it. `ttl` is that of a new counter; an old one keeps its own."""
        check_key(key)
        if isinstance(by, bool) or not isinstance(by, int):
            raise TypeError(f"a counter grows by a whole number, not {type(by).__name__}")
        self._refuse_inside_update("incr")
        return self._store.add(key, by, check_ttl(ttl))

    def compare_and_set(self, key: str, old: Any, new: Any, ttl: float | None = None) -> bool:
        """Put `new` if the value is `old`, and return whether it was. `MISSING` stands for "no such key" on both sides.

        1 and 1.0 and True are three values here; the order of a dict's keys does not count.
        """
        before = None if old is MISSING else to_text(old, f"the old value of {key!r}")
        after = None if new is MISSING else to_text(new, f"the value of {key!r}")
        done = False

        def swap(found: dict[str, str]) -> dict[str, str | None]:
            nonlocal done
            text = found.get(key)
            done = (None if text is None else to_text(from_text(text, key), key)) == before
            return {key: after} if done else {}

        self._refuse_inside_update("compare_and_set")
        self._store.change((check_key(key),), swap, check_ttl(ttl))
        return done

    def update(
        self,
        keys: str | Iterable[str],
        function: Callable[[Any], Any],
        *,
        default: Any = None,
        ttl: float | None = None,
    ) -> Any:
        """Change a value, or several together, in one transaction: nobody reads or writes in between.

        For one key `function` is given the value (`default` when there is none) and returns the new one, which is also
        returned here; `MISSING` removes the key. For several it is given a dict of those that are there and returns a
        dict of what to write. It must be quick and free of side effects: it may be called again when somebody else was
        faster. An exception in it leaves everything as it was.
        """
        single = isinstance(keys, str)
        names: tuple[str, ...] = (keys,) if isinstance(keys, str) else tuple(keys)
        if not names or len(names) > MAX_KEYS:
            raise StateError(f"an update is of 1 to {MAX_KEYS} keys, not {len(names)}")
        for name in names:
            check_key(name)
        result: Any = None

        def change(found: dict[str, str]) -> dict[str, str | None]:
            nonlocal result
            values = {key: from_text(text, key) for key, text in found.items()}
            self._changing.now = True
            try:
                result = function(values.get(names[0], default)) if single else function(values)
            finally:
                self._changing.now = False
            if asyncio.iscoroutine(result):
                result.close()
                raise TypeError("update() needs a plain function: a transaction cannot wait for a coroutine")
            wanted: Any = {names[0]: result} if single else result
            if not isinstance(wanted, Mapping) or not set(wanted) <= set(names):
                raise TypeError("the function of an update of several keys returns a dict of some of those keys")
            return {k: None if v is MISSING else to_text(v, f"the value of {k!r}") for k, v in wanted.items()}

        self._refuse_inside_update("update")
        self._store.change(names, change, check_ttl(ttl))
        return result

    def watch(self, key: str, callback: Callable[[Any], object] | None = None) -> Watch:
        """Be told of a key: of its value now, then of each change (None: it was removed, or its time was over).

        Values that are replaced before you look are skipped; the last one never is. With a callback it is called in the
        event loop if one runs here, else in a thread of ours. Without, `async for value in state.watch(key)`.
        """
        watch = Watch(check_key(key), callback)
        self._begin(watch, lambda deliver: self._store.watch(key, deliver))
        return watch

    def broadcast(self, message: Any) -> None:
        """Send a JSON value to all other processes that share this state and `listen`. Nobody is waited for."""
        text = to_text(message, "the message", MAX_MESSAGE)
        self._refuse_inside_update("broadcast")
        self._store.say(text)

    def listen(self, callback: Callable[[Any], object] | None = None) -> Messages:
        """Be told of each broadcast of the others from now on: by a callback as in `watch`, or `async for`."""
        messages = Messages(callback)
        self._begin(messages, self._store.listen)
        return messages

    def close(self) -> None:
        """End all watching and close the store."""
        for each in list(self._open):
            each.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<State {self.address}>"

    def _begin(self, stream: Watch | Messages, begin: Callable[[Callable[..., None]], Callable[[], None]]) -> None:
        try:
            stream._end = end = begin(_deliverer(stream))
            self._open.add(stream)
            weakref.finalize(stream, end).atexit = False  # an `async for` that was left without close()
        except BaseException:  # no thread is to be had, or of a signal's handler: whoever tries again is told once
            stream.close()
            raise

    def _refuse_inside_update(self, name: str) -> None:
        if getattr(self._changing, "now", False):
            raise StateError(f"{name}() inside the function of an update(): name the key in the update's keys instead")


def _deliverer(stream: Watch | Messages) -> Callable[..., None]:
    """Return what the store calls. Only a callback keeps its stream alive: an iterator lives as long as its loop over it."""
    if stream._callback is not None:
        return stream._deliver
    reference = weakref.ref(stream)

    def deliver(*what: Any) -> None:
        found = reference()
        if found is not None:
            found._deliver(*what)

    return deliver


class _Stream:
    """From the thread that looks to whoever waits: a callback (in a loop, or in that thread) or an async iterator."""

    def __init__(self, callback: Callable[[Any], object] | None, kept: int) -> None:
        self._callback = callback
        self._waiting: deque[Any] = deque(maxlen=kept)
        self._lock = threading.Lock()
        self._wake: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Callable[[], None] = lambda: None
        self._pid = os.getpid()
        self.closed = False
        if callback is not None:
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                self._loop = None  # called in our thread

    def close(self) -> None:
        """Be told of nothing any more. An `async for` ends."""
        self.closed = True
        if self._pid == os.getpid():
            self._end()
        self._rouse(self._set)

    def _put(self, value: Any) -> None:
        if self.closed:
            return
        if self._callback is not None and self._loop is None:
            self._call(value)
            return
        with self._lock:
            self._lost(len(self._waiting) == self._waiting.maxlen)
            self._waiting.append(value)
        self._rouse(self._set if self._callback is None else self._call_waiting)

    def _lost(self, one: bool) -> None:
        pass

    def _set(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def _rouse(self, function: Callable[[], None]) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(function)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                self.closed = True

    def _call_waiting(self) -> None:
        while not self.closed:
            with self._lock:
                if not self._waiting:
                    return
                value = self._waiting.popleft()
            self._call(value)

    def _call(self, value: Any) -> None:
        assert self._callback is not None
        try:
            result = self._callback(value)
        except (Exception, SystemExit) as error:  # the user's own: it must not end the watching of the others
            if self._loop is not None:
                if isinstance(error, SystemExit):
                    raise
                self._loop.call_exception_handler(
                    {"message": "a callback of pyworker.state failed", "exception": error}
                )
            else:
                import sys

                sys.excepthook(type(error), error, error.__traceback__)
            return
        if self._loop is not None and asyncio.iscoroutine(result):
            task = self._loop.create_task(result)
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._callback is not None:
            raise TypeError("this one has a callback; to iterate, leave the callback out")
        if self._wake is None:
            self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        while True:
            self._wake.clear()
            with self._lock:
                if self._waiting:
                    return self._waiting.popleft()
            if self.closed:
                raise StopAsyncIteration
            await self._wake.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_tasks: set[asyncio.Task[Any]] = set()


class Watch(_Stream):
    """What `watch` returns: an async iterator of values, and `close()`. Keeps one value: the newest not yet taken."""

    def __init__(self, key: str, callback: Callable[[Any], object] | None) -> None:
        super().__init__(callback, 1)
        self.key = key

    def _deliver(self, text: str | None) -> None:
        try:
            value = None if text is None else from_text(text, self.key)
        except StateError:
            value = None  # a stranger wrote something else there: no value of ours
        self._put(value)


class Messages(_Stream):
    """What `listen` returns: an async iterator of messages, and `close()`."""

    def __init__(self, callback: Callable[[Any], object] | None) -> None:
        super().__init__(callback, KEPT_MESSAGES)
        self.missed = 0  # messages that were dropped because they were not taken in time

    def _lost(self, one: bool) -> None:
        self.missed += one

    def _deliver(self, text: str, missed: int) -> None:
        self.missed += missed
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # a stranger's
            return
        self._put(value)
