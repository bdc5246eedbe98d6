"""Shared state in Redis, by its official client (`pip install redis`, in the app's environment).

Values are JSON texts under `pyworker:NAME:KEY`, so that redis-cli can read them. Every write publishes its key on a
channel of ours in the same transaction; keyspace notifications are taken as well where the server sends them, so that
changes by others are seen, too. A key's end is looked for when it is due, notified or not.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from pyworker.cluster.state_store import MAX_INTEGER, StateError, StateTooLarge, StateUnavailable, whole_number
from pyworker.cluster.state_watch import Interests, Thread
from pyworker.unix.venv import install_command

_TIMEOUT = 5.0  # seconds that one call may take
_LOOK = 1.0  # seconds: how long the thread sleeps at most before it looks whether it is still needed
_QUIET = 30.0  # seconds between questions whether a subscription is still there: a NAT forgets it without a word
_QUOTE = "in a password / is written as %2F, ? as %3F, @ as %40, # as %23, % as %25"
_ADD = """
local fresh = redis.call('EXISTS', KEYS[1]) == 0
redis.call('INCRBY', KEYS[1], ARGV[1])
if fresh and ARGV[2] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
redis.call('PUBLISH', KEYS[2], ARGV[3])
return redis.call('GET', KEYS[1])
"""


class RedisStore:
    """The store on a server. `name` keeps the apps that share a server apart."""

    def __init__(self, url: str, name: str) -> None:
        try:
            import redis
        except ImportError:
            raise StateUnavailable(
                'state = "redis://…" needs the Redis client in the app\'s environment: '
                f"{install_command(sys.executable, 'redis')}"
            ) from None
        self._redis: Any = redis
        self._prefix = f"pyworker:{name}:"
        self._changed = f"pyworker!changed:{name}"
        self._messages = f"pyworker!messages:{name}"
        self._where = without_password(url)
        self._quote = _QUOTE if _is_cut_short(url) else ""
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT,
                socket_connect_timeout=_TIMEOUT,
                decode_responses=True,
                # what was sent may have been done: sent again it is done twice
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            )
        except ValueError as error:
            raise StateUnavailable(f"{self._where} is no address of a Redis server: {self._quote or error}") from None
        self._add = self._client.register_script(_ADD)
        self._pid = 0
        self._here()

    def _here(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._interests = Interests()
        self._thread = Thread(self._look_out, lambda error: None)
        self._sender = f"{os.getpid()}-{os.urandom(6).hex()}"
        self._pubsub: Any = None

    @contextlib.contextmanager
    def _answered(self) -> Any:
        """Keep no connection on which an answer may still come, to be taken for that of the next question."""
        try:
            yield
        except BaseException:  # of a signal's handler between the two, too: the client would go on with that one
            self._client.connection_pool.disconnect(inuse_connections=False)
            raise

    @contextlib.contextmanager
    def _calls(self) -> Any:
        errors = self._redis.exceptions
        try:
            with self._answered():
                yield
        except errors.AuthenticationError as error:
            raise StateUnavailable(f"{self._where} refuses the password: {error}") from error
        except (errors.ConnectionError, errors.TimeoutError, errors.WatchError, OSError) as error:
            message = f"{self._where} does not answer: {self._quote or str(error).rstrip('.')}. Does the server run?"
            raise StateUnavailable(message) from error
        except errors.OutOfMemoryError as error:
            raise StateTooLarge(f"{self._where} is full: {error}") from error
        except errors.RedisError as error:
            raise StateUnavailable(f"{self._where}: {error}") from error
        except UnicodeDecodeError as error:
            what = f"a key or value under {self._prefix} on {self._where} is no text"
            raise StateError(f"{what}: {error.object[:40]!r}. Only pyworker.state should write there") from None

    # ---- reading and writing -------------------------------------------------------------------------
    def read(self, keys: Iterable[str]) -> dict[str, str]:
        names = list(keys)
        if not names:
            return {}
        with self._calls():
            return _texts(names, self._client.mget([self._prefix + k for k in names]))

    def keys(self, prefix: str) -> list[str]:
        pattern = f"{self._prefix}{_literal(prefix)}*"
        with self._calls():
            found = set(self._client.scan_iter(match=pattern, count=1000))
        return sorted(key.removeprefix(self._prefix) for key in found)

    def write(self, key: str, text: str, ttl: float | None) -> None:
        with self._calls(), self._client.pipeline(transaction=True) as pipe:
            pipe.set(self._prefix + key, text, px=_milliseconds(ttl))
            pipe.publish(self._changed, key)
            pipe.execute()

    def remove(self, key: str) -> bool:
        with self._calls(), self._client.pipeline(transaction=False) as pipe:  # a full server refuses all transactions
            pipe.delete(self._prefix + key)
            pipe.publish(self._changed, key)
            return bool(pipe.execute()[0])

    def add(self, key: str, by: int, ttl: float | None) -> int:
        if abs(by) > MAX_INTEGER:
            raise StateError(f"the counter {key!r} would leave 64 bits")
        with self._calls():
            try:
                return int(
                    self._add(keys=[self._prefix + key, self._changed], args=[by, _milliseconds(ttl) or "", key])
                )
            except self._redis.exceptions.ResponseError as error:
                if "overflow" in str(error):
                    raise StateError(f"the counter {key!r} would leave 64 bits") from None
                if "not an integer" in str(error):
                    whole_number(self.read([key]).get(key, ""), key)
                raise

    def change(
        self, keys: tuple[str, ...], function: Callable[[dict[str, str]], dict[str, str | None]], ttl: float | None
    ) -> None:
        names = [self._prefix + key for key in keys]
        end = time.monotonic() + _TIMEOUT
        with self._calls(), self._client.pipeline(transaction=True) as pipe:
            while True:
                pipe.watch(*names)
                wanted = function(_texts(list(keys), pipe.mget(names)))
                if not wanted:
                    return
                pipe.multi()
                for key, text in wanted.items():
                    if text is None:
                        pipe.delete(self._prefix + key)
                    else:
                        pipe.set(self._prefix + key, text, px=_milliseconds(ttl), keepttl=ttl is None)
                    pipe.publish(self._changed, key)
                pipe.watching = False  # else a lost connection is a WatchError, too, and what may be done is done again
                try:
                    pipe.execute()
                    return
                except self._redis.exceptions.WatchError:
                    if time.monotonic() > end:
                        raise StateUnavailable(
                            f"others have changed {', '.join(keys)} all the time for {_TIMEOUT:g} s: "
                            "make the update() quicker, or use incr()"
                        ) from None

    # ---- messages and being told ---------------------------------------------------------------------
    def say(self, text: str) -> None:
        self._here()
        with self._calls():
            self._client.publish(self._messages, f"{self._sender} {text}")

    def watch(self, key: str, deliver: Callable[[str | None], None]) -> Callable[[], None]:
        self._here()
        with self._calls():
            self._client.ping()  # what cannot be reached is said here, to the caller
        self._begin()
        end = self._interests.watch(key, deliver)
        self._wake()
        return end

    def listen(self, deliver: Callable[[str, int], None]) -> Callable[[], None]:
        self._here()
        with self._calls():
            self._client.ping()
        self._begin()
        return self._interests.listen(deliver)

    def _begin(self) -> None:
        """Have the thread run and wait until it is subscribed: what is said after `listen` is heard."""
        self._thread.ensure()
        end = time.monotonic() + _TIMEOUT
        while self._pubsub is None and time.monotonic() < end and not self._thread.closed:
            time.sleep(0.002)

    def _wake(self) -> None:
        with contextlib.suppress(Exception), self._answered():
            self._client.publish(self._changed, "")

    def close(self) -> None:
        self._here()
        self._thread.closed = True
        self._wake()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._client.close()

    def _look_out(self) -> None:
        """The thread: subscribed to what changes; after a lost connection everything is read again."""
        db = self._client.connection_pool.connection_kwargs.get("db", 0) or 0
        space = f"__keyspace@{db}__:{self._prefix}"
        pubsub = self._client.pubsub()
        try:
            pubsub.subscribe(self._changed, self._messages)
            pubsub.psubscribe(_literal(space) + "*")
            subscribed = 0
            while subscribed < 3:
                answer = pubsub.get_message(timeout=_TIMEOUT)
                if answer is None:
                    raise TimeoutError("no answer to a subscription")
                subscribed += answer["type"] in ("subscribe", "psubscribe")
            self._pubsub = pubsub
            known: list[str] = []
            due = time.monotonic()
            ask_at, asked = due + _QUIET, False
            while not self._thread.closed:
                keys = self._interests.keys()
                is_due = time.monotonic() >= due
                stale = set(keys) if is_due else set(keys) - set(known)
                known = keys
                if stale or is_due:
                    names = sorted(stale)
                    due = self._next_look(keys)  # before the reading, which then sees what ends between the two
                    self._interests.look(names, self.read(names))
                message = pubsub.get_message(timeout=max(0.001, min(_LOOK, due - time.monotonic())))
                while message is not None:
                    asked = False
                    if self._take(message, space):
                        due = 0.0
                    message = pubsub.get_message(timeout=0)
                if time.monotonic() >= ask_at:
                    if asked:
                        raise TimeoutError("the subscription is gone")
                    pubsub.ping()
                    ask_at, asked = time.monotonic() + _QUIET, True
        finally:
            self._pubsub = None
            with contextlib.suppress(Exception):
                pubsub.close()

    def _take(self, message: dict[str, Any], space: str) -> bool:
        """Hand out a message of ours; return True for the change of a key that is watched."""
        if message["type"] == "pmessage":
            return message["channel"].removeprefix(space) in self._interests.keys()  # noqa: SIM118  a method of ours
        if message["type"] != "message":
            return False
        if message["channel"] == self._messages:
            sender, _, text = message["data"].partition(" ")
            if sender != self._sender:
                self._interests.hear(text, 0)
            return False
        return message["data"] == "" or message["data"] in self._interests.keys()  # noqa: SIM118

    def _next_look(self, keys: list[str]) -> float:
        """Return when the first of the watched values ends, or a while from now."""
        wait = 30.0
        if keys:
            with self._client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.pttl(self._prefix + key)
                wait = min([wait, *(ms / 1000 + 0.001 for ms in pipe.execute() if ms >= 0)])
        return time.monotonic() + wait


def without_password(url: str) -> str:
    """Return an address that may be shown."""
    scheme, _, rest = url.partition("://")
    before, _, where = rest.rpartition("@")
    if ":" not in before and "password=" not in rest:
        return url
    return f"{scheme}://***@{where.partition('?')[0]}"


def _is_cut_short(url: str) -> bool:
    """Whether a sign in the password ends it for a reader of addresses, who takes the rest for something else."""
    before = url.partition("://")[2].rpartition("@")[0]
    return ":" in before and any(sign in before for sign in "/?@")


def _literal(text: str) -> str:
    """Return the pattern that means this text itself."""
    return "".join(f"\\{c}" if c in "*?[]^\\" else c for c in text)


def _milliseconds(ttl: float | None) -> int | None:
    return None if ttl is None else max(1, round(ttl * 1000))


def _texts(keys: list[str], values: list[str | None]) -> dict[str, str]:
    return {key: text for key, text in zip(keys, values, strict=True) if text is not None}
