"""pyworker.state, over both stores: what a user can rely on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from pyworker import state
from pyworker.cluster import sqlite_connection, state_redis, state_sqlite
from pyworker.cluster.state_store import MAX_INTEGER, Messages, State
from pyworker.protocol.names import ENV_STATE
from tests.support.forked import ends_well_while_held
from tests.support.redis import RedisServer, redis_server
from tests.support.steps import Rung, acts_at, keeps_locks, no_collection
from tests.support.wait import wait_until

STORES = ["sqlite", "redis"]


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=STORES)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/state"
    server: RedisServer = request.getfixturevalue("server")
    import redis

    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


@pytest.fixture
def opened(address: str) -> Iterator[Callable[[], State]]:
    """Open the store once more: each is what another process would have."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(state.open(address, "test"))


@pytest.fixture
def one(opened: Callable[[], State]) -> State:
    return opened()


def child(address: str, code: str) -> subprocess.Popen[str]:
    """Another process with the same store as `state`; it says "ready" first and waits for a line."""
    lines = ["import os, sys, time", "from pyworker import state", f"state.connect({address!r}, 'test')"]
    lines += ["print('ready', flush=True)", "sys.stdin.readline()", code]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def children(address: str, *codes: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that have the store open and start together."""
    made = [child(address, code) for code in codes]
    try:
        for each in made:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in made:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        yield made
    finally:
        for each in made:
            each.kill()
            each.communicate(timeout=30)


def ends(processes: list[subprocess.Popen[str]]) -> None:
    for each in processes:
        assert each.wait(60) == 0


# ---- values --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [None, True, 0, -1.5, "", "ü😀", [], [1, [2]], {"a": {"b": [None]}}, 2**70])
def test_a_value_comes_back_as_it_was_put(one: State, value: Any) -> None:
    one.set("key", value)
    assert one.get("key", "default") == value
    assert type(one.get("key")) is type(value)


def test_a_key_that_is_not_there_has_the_default(one: State) -> None:
    assert one.get("nothing") is None
    assert one.get("nothing", 7) == 7
    assert not one.delete("nothing")


def test_a_deleted_key_is_gone(one: State) -> None:
    one.set("key", 1)
    assert one.delete("key")
    assert one.get("key") is None
    assert not one.delete("key")


def test_keys_are_listed_by_prefix_and_a_prefix_is_no_pattern(one: State) -> None:
    for key in ("a:1", "a:2", "a*", "b", "a_3", "A:1", "a%"):
        one.set(key, 0)
    assert one.keys("a:") == ["a:1", "a:2"]
    assert one.keys("a*") == ["a*"]
    assert one.keys("a%") == ["a%"]
    assert one.keys() == sorted(["a:1", "a:2", "a*", "b", "a_3", "A:1", "a%"])


def test_another_process_sees_what_was_put(address: str, one: State) -> None:
    one.set("there", {"x": 1})
    with children(address, "state.set('back', state.get('there')['x'] + 1)") as made:
        ends(made)
    assert one.get("back") == 2


@pytest.mark.parametrize(
    ("value", "word"),
    [(object(), "not JSON"), ({1, 2}, "not JSON"), (float("nan"), "not JSON"), (b"x", "not JSON")],
)
def test_what_is_not_json_is_refused_by_name(one: State, value: Any, word: str) -> None:
    with pytest.raises(state.StateError, match=f"the value of 'k' is {word}"):
        one.set("k", value)
    assert one.get("k") is None


def test_a_value_that_contains_itself_is_refused(one: State) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(state.StateError):
        one.set("k", loop)


def test_the_largest_value_fits_and_one_byte_more_does_not(one: State) -> None:
    one.set("k", "x" * (state.MAX_VALUE - 2))
    assert len(one.get("k")) == state.MAX_VALUE - 2
    with pytest.raises(state.StateTooLarge, match=f"{state.MAX_VALUE + 1} bytes as JSON, {state.MAX_VALUE} are allowed"):
        one.set("k", "x" * (state.MAX_VALUE - 1))
    assert len(one.get("k")) == state.MAX_VALUE - 2


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800", "k" * (state.MAX_KEY + 1), "ü" * (state.MAX_KEY // 2 + 1)])
def test_a_key_that_cannot_be_one_is_refused_by_every_function(one: State, key: str) -> None:
    for call in (
        lambda: one.get(key), lambda: one.set(key, 1), lambda: one.delete(key), lambda: one.incr(key),
        lambda: one.update(key, lambda v: v), lambda: one.compare_and_set(key, 1, 2), lambda: one.watch(key),
    ):  # fmt: skip
        with pytest.raises(state.StateError):
            call()


def test_half_a_surrogate_pair_begins_no_key_and_that_is_said(one: State) -> None:
    with pytest.raises(state.StateError, match="valid Unicode"):
        one.keys("\ud800")
    assert one.keys("k" * (state.MAX_KEY + 1)) == []


def test_a_key_of_another_type_is_a_type_error(one: State) -> None:
    with pytest.raises(TypeError, match="a key is a text, not int"):
        one.keys(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a key is a text, not int"):
        one.get(5)  # type: ignore[arg-type]


# ---- time to live --------------------------------------------------------------------------------------
def test_a_value_with_a_ttl_goes_by_itself(one: State) -> None:
    one.set("k", 1, ttl=0.05)
    wait_until(lambda: one.get("k", "gone") == "gone", what="the end of the value")
    assert one.keys() == []
    assert one.incr("k") == 1, "a counter that has expired begins at 0"


def test_set_without_ttl_takes_an_old_one_away(one: State) -> None:
    one.set("other", 0, ttl=0.1)
    one.set("k", 1, ttl=0.1)
    one.set("k", 2)
    wait_until(lambda: one.get("other") is None, what="the end of the other value")
    assert one.get("k") == 2


def test_incr_and_update_keep_the_ttl_that_a_key_has(one: State) -> None:
    one.incr("counter", ttl=2.0)  # as long as a busy machine may take for these four
    one.set("value", 1, ttl=2.0)
    one.incr("counter", ttl=1000)
    one.update("value", lambda v: v + 1)
    wait_until(lambda: one.keys() == [], what="both to end at their first ttl")


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), 1e12])
def test_a_ttl_that_means_nothing_is_refused(one: State, ttl: float) -> None:
    with pytest.raises(state.StateError, match="ttl"):
        one.set("k", 1, ttl=ttl)


# ---- counters and transactions -----------------------------------------------------------------------------
def test_counters_of_several_processes_lose_nothing(address: str, one: State) -> None:
    code = "for _ in range(100): state.incr('hits'); state.incr('down', -2)"
    with children(address, *[code] * 3) as made:
        ends(made)
    assert one.get("hits") == 300
    assert one.get("down") == -600


def test_updates_of_several_processes_lose_nothing(address: str, one: State) -> None:
    one.set("list", [])
    code = "for i in range(40): state.update('list', lambda v: [*v, [os.getpid(), i]])"
    with children(address, *[code] * 3) as made:
        ends(made)
    found = one.get("list")
    assert len(found) == 120
    for pid in {p for p, _ in found}:
        assert [i for p, i in found if p == pid] == list(range(40))


def test_an_update_of_several_keys_is_seen_whole_or_not_at_all(address: str, one: State) -> None:
    one.update(("a", "b"), lambda v: {"a": 0, "b": 0})
    move = "state.update(('a', 'b'), lambda v: {'a': v['a'] + 1, 'b': v['b'] - 1})"
    with children(address, f"for _ in range(150): {move}", "time.sleep(60)") as made:
        seen = 0
        while made[0].poll() is None or seen == 0:
            total: list[int] = []
            one.update(("a", "b"), lambda v, total=total: total.append(v["a"] + v["b"]) or {})
            assert total[-1] == 0
            seen += 1
        assert made[0].wait() == 0
    assert (one.get("a"), one.get("b")) == (150, -150)


def test_an_exception_in_an_update_changes_nothing(one: State) -> None:
    one.set("k", 1)
    with pytest.raises(ZeroDivisionError):
        one.update("k", lambda v: v / 0)
    with pytest.raises(state.StateError, match="not JSON"):
        one.update(("k", "l"), lambda v: {"k": 2, "l": object()})
    assert one.get("k") == 1
    assert one.get("l") is None
    assert one.incr("k") == 2, "the store is free again"


def test_an_update_can_remove_and_gets_the_default(one: State) -> None:
    assert one.update("k", lambda v: v + 1, default=10) == 11
    assert one.update("k", lambda v: state.MISSING) is state.MISSING
    assert one.get("k", "gone") == "gone"


def test_inside_an_update_the_other_functions_say_what_to_do_instead(one: State) -> None:
    for call in (lambda: one.set("x", 1), lambda: one.incr("x"), lambda: one.delete("x"), lambda: one.broadcast(1)):
        with pytest.raises(state.StateError, match="inside the function of an update"):
            one.update("k", lambda v, call=call: call())
    one.set("x", 1)
    assert one.get("x") == 1


def test_an_update_refuses_a_coroutine_and_keys_it_did_not_name(one: State) -> None:
    async def function(value: Any) -> int:
        return 1

    with pytest.raises(TypeError, match="plain function"):
        one.update("k", function)
    with pytest.raises(TypeError, match="some of those keys"):
        one.update(("k",), lambda v: {"other": 1})
    with pytest.raises(state.StateError, match="1 to 100 keys"):
        one.update((), lambda v: {})


def test_compare_and_set_tells_values_apart_as_json_does(one: State) -> None:
    assert one.compare_and_set("k", state.MISSING, {"a": 1, "b": 2})
    assert not one.compare_and_set("k", state.MISSING, 1)
    assert one.compare_and_set("k", {"b": 2, "a": 1}, 1), "the order of keys does not count"
    assert not one.compare_and_set("k", True, 2)
    assert not one.compare_and_set("k", 1.0, 2)
    assert one.compare_and_set("k", 1, None)
    assert one.compare_and_set("k", None, state.MISSING)
    assert one.keys() == []


def test_only_one_process_wins_a_lock(address: str, one: State) -> None:
    code = "got = state.compare_and_set('lock', state.MISSING, os.getpid()); state.incr('won', int(got))"
    with children(address, *[code] * 3) as made:
        ends(made)
        assert one.get("won") == 1
        assert one.get("lock") in [each.pid for each in made]


def test_incr_of_something_else_says_what_it_found(one: State) -> None:
    one.set("k", {"a": 1})
    with pytest.raises(state.StateError, match="no whole number"):
        one.incr("k")
    one.set("k", MAX_INTEGER)
    with pytest.raises(state.StateError, match="64 bits"):
        one.incr("k")
    assert one.get("k") == MAX_INTEGER
    with pytest.raises(TypeError, match="whole number"):
        one.incr("k", 1.5)  # type: ignore[arg-type]


def test_threads_of_one_process_share_the_store(one: State) -> None:
    threads = [threading.Thread(target=lambda: [one.incr("n") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert one.get("n") == 400


def test_a_process_killed_in_the_middle_of_updates_leaves_a_whole_state(address: str, one: State) -> None:
    one.update(("a", "b"), lambda v: {"a": 0, "b": 0})
    code = "while True: state.update(('a', 'b'), lambda v: {'a': v['a'] + 1, 'b': v['b'] + 1})"
    with children(address, code) as made:
        wait_until(lambda: one.get("a") > 20, 30, "some updates")
        made[0].send_signal(signal.SIGKILL)
        made[0].wait(30)
    assert one.get("a") == one.get("b")
    assert one.incr("a") == one.get("b") + 1


# ---- watch ----------------------------------------------------------------------------------------------
class Seen:
    """Values in the order in which a callback got them."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __call__(self, value: Any) -> None:
        self.values.append(value)

    def wait(self, last: Any) -> None:
        wait_until(lambda: self.values[-1:] == [last], what=lambda: f"{last!r}; got {self.values[-5:]}")


def test_a_watch_begins_with_the_value_that_is_there(opened: Callable[[], State]) -> None:
    one, two = opened(), opened()
    one.set("k", "before")
    seen = Seen()
    with two.watch("k", seen):
        seen.wait("before")
        one.set("k", "after")
        seen.wait("after")
        one.delete("k")
        seen.wait(None)
    assert seen.values == ["before", "after", None]


def test_a_second_watch_of_a_key_begins_with_its_value_too(one: State) -> None:
    one.set("k", "there")
    for _ in range(2):
        seen = Seen()
        one.watch("k", seen)
        seen.wait("there")


def test_a_watch_is_told_of_changes_of_its_own_process_too(one: State) -> None:
    seen = Seen()
    one.watch("k", seen)
    seen.wait(None)
    one.incr("k")
    seen.wait(1)
    one.update("k", lambda v: v + 1)
    seen.wait(2)
    one.compare_and_set("k", 2, 3)
    seen.wait(3)


def test_a_watch_is_told_when_a_value_ends_by_its_ttl(opened: Callable[[], State]) -> None:
    one, two = opened(), opened()
    seen = Seen()
    two.watch("k", seen)
    seen.wait(None)
    one.set("k", 1)
    seen.wait(1)
    one.set("k", 2, ttl=0.2)
    seen.wait(None)
    assert seen.values in ([None, 1, 2, None], [None, 1, None])  # 2 may be over before a busy machine looks


def test_other_keys_do_not_wake_a_watch(opened: Callable[[], State]) -> None:
    one, two = opened(), opened()
    seen = Seen()
    two.watch("mine", seen)
    seen.wait(None)
    for i in range(20):
        one.set("other", i)
    one.set("mine", "end")
    seen.wait("end")
    assert seen.values == [None, "end"]


def test_the_final_value_is_never_missed_however_fast_it_changes(address: str, one: State) -> None:
    for turn in range(2):
        seen = Seen()
        with one.watch("k", seen), children(address, f"for i in range(300): state.set('k', [{turn}, i])") as made:
            ends(made)
            seen.wait([turn, 299])
        numbers = [v[1] for v in seen.values if v is not None and v[0] == turn]
        assert numbers == sorted(numbers), "no value is overtaken by an older one"


def test_many_watches_in_one_process_each_get_their_own(one: State) -> None:
    seen = [Seen() for _ in range(30)]
    watches = [one.watch(f"k{i}", each) for i, each in enumerate(seen)]
    for i in range(30):
        one.set(f"k{i}", i)
    for i, each in enumerate(seen):
        each.wait(i)
    watches[0].close()
    one.set("k0", "late")
    one.set("k1", "late")
    seen[1].wait("late")
    assert seen[0].values[-1] == 0


def test_an_async_for_gets_each_value_and_ends_with_close(address: str, one: State) -> None:
    async def main() -> list[Any]:
        got: list[Any] = []
        watch = one.watch("k")
        async for value in watch:
            got.append(value)
            if value is None:
                await state_in_thread(lambda: one.set("k", 1))
            elif value == 1:
                await state_in_thread(lambda: one.set("k", 2))
            else:
                asyncio.get_running_loop().call_soon(watch.close)
        return got

    async def state_in_thread(function: Callable[[], Any]) -> None:
        await asyncio.to_thread(function)

    async def bounded() -> list[Any]:
        async with asyncio.timeout(20):
            return await main()

    assert asyncio.run(bounded()) == [None, 1, 2]


def test_a_slow_reader_gets_the_newest_value_only(one: State) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            watch = one.watch("k")
            assert await anext(watch) is None
            watcher = Seen()
            one.watch("k", watcher)
            for i in range(50):
                one.set("k", i)
            while watcher.values[-1:] != [49]:  # the thread has seen the last one
                await asyncio.sleep(0.005)
            got = await anext(watch)
            while got != 49:
                got = await anext(watch)
            assert len(watch._waiting) == 0
            watch.close()
            with pytest.raises(StopAsyncIteration):
                await anext(watch)

    asyncio.run(main())


def test_a_callback_given_inside_a_loop_is_called_in_it_and_may_be_a_coroutine(one: State) -> None:
    async def main() -> None:
        loop_thread = threading.get_ident()
        got: list[tuple[Any, int]] = []
        done = asyncio.Event()

        async def callback(value: Any) -> None:
            got.append((value, threading.get_ident()))
            if value == "end":
                done.set()

        one.watch("k", callback)
        await asyncio.to_thread(one.set, "k", "end")
        async with asyncio.timeout(20):
            await done.wait()
        assert {ident for _, ident in got} == {loop_thread}

    asyncio.run(main())


def test_a_callback_that_fails_does_not_end_the_others(one: State, capsys: pytest.CaptureFixture[str]) -> None:
    def bad(value: Any) -> None:
        raise RuntimeError("boo")

    seen = Seen()
    one.watch("k", bad)
    one.watch("k", lambda value: sys.exit(3))
    one.watch("k", seen)
    one.set("k", 1)
    seen.wait(1)
    one.set("k", 2)
    seen.wait(2)
    assert "RuntimeError: boo" in capsys.readouterr().err


def test_an_iterator_that_is_dropped_is_watched_no_more(one: State) -> None:
    async def main() -> None:
        async for _ in one.watch("k"):
            break

    asyncio.run(main())
    wait_until(lambda: not one._store._interests.keys(), what="the watch to be forgotten")  # type: ignore[attr-defined]


# ---- broadcast --------------------------------------------------------------------------------------------
def test_a_broadcast_reaches_every_other_process_once_and_not_its_sender(opened: Callable[[], State]) -> None:
    one, two, three = opened(), opened(), opened()
    heard = {name: Seen() for name in "123"}
    for name, each in zip("123", (one, two, three), strict=True):
        each.listen(heard[name])
    for i in range(50):
        one.broadcast({"n": i})
    two.broadcast("end")
    for name in "13":
        heard[name].wait("end")
    heard["2"].wait({"n": 49})
    assert heard["1"].values == ["end"]
    assert heard["2"].values == [{"n": i} for i in range(50)]
    assert heard["3"].values == [{"n": i} for i in range(50)] + ["end"]


def test_listening_begins_now_and_not_before(opened: Callable[[], State]) -> None:
    one, two = opened(), opened()
    one.broadcast("old")
    heard = Seen()
    two.listen(heard)
    one.broadcast("new")
    heard.wait("new")
    assert heard.values == ["new"]


def test_a_message_that_is_too_large_is_refused(one: State) -> None:
    with pytest.raises(state.StateTooLarge, match="the message"):
        one.broadcast("x" * state.MAX_MESSAGE)


def test_messages_for_one_who_does_not_read_are_counted_when_they_are_dropped(opened: Callable[[], State]) -> None:
    one, two = opened(), opened()

    heard = Seen()
    two.listen(heard)  # in the thread: outside of the loop

    async def main() -> None:
        messages = two.listen()
        for i in range(1100):  # more than is kept
            one.broadcast(i)
        heard.wait(1099)
        async with asyncio.timeout(20):
            first = await anext(messages)
        assert first + len(messages._waiting) == 1099
        assert messages.missed == first

    asyncio.run(main())


# ---- connect, processes, forks -----------------------------------------------------------------------------
def test_children_of_a_program_that_connected_share_its_store(address: str, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\nfrom pyworker import state\n"
        f"state.connect({address!r}, 'shop')\n"
        "subprocess.run([sys.executable, '-c', 'from pyworker import state; state.incr(\"n\", 5)'], check=True)\n"
        "print(state.get('n'))"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYWORKER_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
    )
    assert done.stdout == "5\n"


def test_a_program_without_a_store_is_told_how_to_get_one() -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYWORKER_")}
    code = "from pyworker import state\ntry: state.get('k')\nexcept state.StateUnavailable as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert "state.connect(" in done.stdout


def test_an_address_of_nothing_is_refused() -> None:
    with pytest.raises(state.StateError, match="no address of a shared state"):
        state.open("mysql://x")


def test_a_forked_child_goes_on_and_its_parent_too(address: str) -> None:
    code = """
seen = []
state.watch('k', seen.append)
state.set('k', 0)
pids = []
for i in range(3):
    pid = os.fork()
    if pid == 0:
        own = []
        state.watch('k', own.append)
        for _ in range(50): state.incr('k')
        end = time.monotonic() + 20
        while not own and time.monotonic() < end: time.sleep(0.01)
        os._exit(0 if own else 1)
    pids.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
end = time.monotonic() + 20
while seen[-1:] != [150] and time.monotonic() < end: time.sleep(0.01)
assert codes == [0, 0, 0], codes
assert seen[-1] == 150, seen
"""
    with children(address, code) as made:
        ends(made)


def test_two_apps_on_one_redis_do_not_see_each_other(server: RedisServer) -> None:
    with state.open(server.url, "one") as one, state.open(server.url, "two") as two:
        one.set("k", 1)
        assert two.get("k") is None
        assert two.keys() == []


# ---- each store's own ----------------------------------------------------------------------------------------
def test_sqlite_says_which_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is no database, it is a text that somebody has put here" * 100)
    with state.open(f"sqlite:{tmp_path}") as one, pytest.raises(state.StateUnavailable, match=r"state\.db is damaged"):
        one.get("k")


def test_sqlite_files_are_private(tmp_path: Path) -> None:
    with state.open(f"sqlite:{tmp_path}/s") as one:
        one.set("k", 1)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "s").iterdir()}
        assert set(modes.values()) == {0o600}, modes
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_sqlite_says_which_folder_cannot_be_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with (
            state.open(f"sqlite:{tmp_path}/s") as one,
            pytest.raises(state.StateUnavailable, match=f"cannot be opened in {tmp_path}/s: Permission denied"),
        ):
            one.get("k")
    finally:
        tmp_path.chmod(0o700)


def test_sqlite_says_that_a_process_has_no_descriptor_left_to_open_it(tmp_path: Path) -> None:
    with state.open(f"sqlite:{tmp_path}") as one:
        one.set("k", 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    said: list[str] = []
    for room in range(10):
        with state.open(f"sqlite:{tmp_path}") as one:
            os.close(lowest := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limits[1]))
            try:
                assert one.get("k") == 1
                break
            except state.StateUnavailable as error:
                said.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert said
    assert all("Too many open files. Close some" in each for each in said), said


def test_sqlite_says_why_the_handler_of_a_signal_cannot_change_what_is_just_being_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, told = state_sqlite._put, []

    def rung(*_: object) -> None:
        try:
            store.incr("signals")
        except state.StateError as error:
            told.append(str(error))

    def interrupted(*args: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)
        put(*args)

    before = signal.signal(signal.SIGUSR1, rung)
    try:
        with state.open(f"sqlite:{tmp_path}/state") as store:
            monkeypatch.setattr(state_sqlite, "_put", interrupted)
            assert store.incr("hits") == 1
            monkeypatch.undo()
            assert store.incr("hits") == 2
            assert store.get("signals") is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(told) == 1
    assert "the handler of a signal" in told[0]


def test_sqlite_has_no_change_left_open_when_the_handler_of_a_signal_raises_in_the_middle_of_it(tmp_path: Path) -> None:
    """As by a library that limits the time of a function with an alarm."""
    rung, inside = 0, False

    def ring(*_: object) -> None:
        nonlocal rung, inside
        if inside:
            rung, inside = rung + 1, False
            raise Rung

    before = signal.signal(signal.SIGALRM, ring)
    with state.open(f"sqlite:{tmp_path}/state") as store, no_collection():
        signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
        try:
            while rung < 300:
                with contextlib.suppress(Rung):
                    inside = True
                    store.incr("n")
                    inside = False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert store.incr("n") > 0


def test_sqlite_is_opened_also_where_the_handler_of_a_signal_has_raised_while_its_folder_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TimeoutError is an OSError: for os.path that is no folder."""
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    with state.open(f"sqlite:{tmp_path}") as store:
        assert store.incr("n") == 1


def test_sqlite_is_used_by_the_handler_of_a_signal_in_the_middle_of_its_first_use_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_STATE, f"sqlite:{tmp_path}/state")
    said: list[Any] = []

    def rung() -> None:
        try:
            said.append(state.get("k", "there"))
        except state.StateError as error:
            said.append(str(error)[:23])

    for step in itertools.count(1):
        monkeypatch.setattr(state, "_current", None)
        rang = acts_at(step, lambda: state.get("k"), rung)
        state._state().close()
        if not rang:
            break
    assert set(said) == {"there", "the handler of a signal"}


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # one that is just made: Python closes it
def test_what_the_handler_of_a_signal_raises_in_sqlite_s_first_use_and_in_a_change_is_the_caller_s(tmp_path: Path) -> None:
    if keeps_locks():
        pytest.skip("this Python leaves a lock locked where a handler raises: docs/reliability.md")
    for step in itertools.count(1):
        with state.open(f"sqlite:{tmp_path}/{step}") as store:
            if not acts_at(step, lambda store=store: store.set("k", 1), within="pyworker/cluster/"):
                break
            store.set("k", 2)
            assert store.get("k") == 2
    with state.open(f"sqlite:{tmp_path}/state") as store:
        store.set("k", 0)
        assert next(step for step in itertools.count(1) if not acts_at(step, partial(store.incr, "k"), within="pyworker/cluster/")) > 10
    gc.collect()  # here, and not in a later test, which would be told of it


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # as above
def test_sqlite_that_is_there_is_not_begun_anew_wherever_the_handler_of_a_signal_has_raised(tmp_path: Path) -> None:
    if keeps_locks():
        pytest.skip("this Python leaves a lock locked where a handler raises: docs/reliability.md")

    def rung() -> NoReturn:
        raise Rung  # which os.makedirs keeps to itself in one place

    with state.open(f"sqlite:{tmp_path}") as first:
        first.set("k", 0)
        for step in itertools.count(1):
            with state.open(f"sqlite:{tmp_path}") as store:
                has_come = acts_at(step, partial(store.get, "k"), rung)
                assert store.incr("k") == first.get("k") == step
            if not has_come:
                break


def test_sqlite_is_opened_in_a_child_that_was_forked_while_another_thread_opened_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_STATE, f"sqlite:{tmp_path}/state")
    monkeypatch.setattr(state, "_current", None)
    assert ends_well_while_held(state._lock, lambda: state.set("k", 1))
    assert state.get("k") == 1
    state._state().close()


def test_sqlite_that_is_just_being_opened_by_one_who_was_stopped_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_connection, "PATIENCE", 0.2)
    stopped = sqlite_connection.open_bell(str(tmp_path))
    fcntl.flock(stopped, fcntl.LOCK_EX)
    with state.open(f"sqlite:{tmp_path}") as one:
        with pytest.raises(state.StateUnavailable, match=r"another process has been opening .* with a T"):
            one.get("k")
        os.close(stopped)
        assert one.get("k") is None


def test_sqlite_connection_is_dropped_by_nobody_while_another_thread_has_it(tmp_path: Path) -> None:
    one = sqlite_connection.Connection(str(tmp_path))
    with one.use():
        pass
    dropping = threading.Thread(target=one.drop)
    with one.lock:
        dropping.start()
        dropping.join(0.1)
        assert one._db is not None
    dropping.join()
    assert one._db is None


def test_who_tries_again_to_listen_is_told_once_where_the_handler_of_a_signal_has_raised(
    opened: Callable[[], State], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = opened(), opened()
    heard: list[Any] = []
    start = threading.Thread.start

    def rung(thread: threading.Thread) -> None:
        start(thread)
        raise Rung

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", rung)
        with pytest.raises(Rung):
            one.listen(heard.append)
    other.broadcast(0)
    one.listen(heard.append)
    wait_until(lambda: [thread.name for thread in threading.enumerate()].count("pyworker-state") == 1)
    other.broadcast(1)
    other.broadcast(2)
    wait_until(lambda: 2 in heard)
    assert heard == [1, 2]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_sqlite_that_was_removed_is_begun_anew_by_those_who_have_it_open(tmp_path: Path, what: str) -> None:
    address = f"sqlite:{tmp_path}/state"
    with state.open(address) as old:
        old.set("who", "old")
        old.broadcast("to nobody")
        values: list[Any] = []
        heard: list[Any] = []
        old.watch("who", values.append)
        old.listen(heard.append)
        wait_until(lambda: values == ["old"])
        if what == "folder":
            (tmp_path / "state").rename(tmp_path / "gone")  # in one step: it may be made again before rmtree has ended
        else:
            (tmp_path / "state" / "state.db").unlink()
        with state.open(address) as new:
            assert new.get("who") is None
            assert new.incr("hits") == 1
            assert old.incr("hits") == 2, "both have the same one"
            new.set("who", "new")
            new.broadcast("hello")
            wait_until(lambda: values[-1] == "new")
            wait_until(lambda: heard == ["hello"])

            def is_quick(value: int) -> bool:
                began = time.monotonic()
                new.set("who", value)
                wait_until(lambda: values[-1] == value)
                return time.monotonic() - began < 0.9

            assert any(map(is_quick, range(5))), "the bell is heard again"


def test_sqlite_that_was_removed_is_heard_anew_where_the_next_file_gets_the_same_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(path: str) -> tuple[int, int]:  # as of ext4, which gives a free number away again
        os.stat(path)
        return 1, 1

    monkeypatch.setattr(sqlite_connection, "_identity", identity)
    folder, heard = tmp_path / "state", list[Any]()
    with state.open(f"sqlite:{folder}") as alone:
        alone.listen(heard.append)
        with state.open(f"sqlite:{folder}") as other:
            other.broadcast(1)
            other.broadcast(2)
        wait_until(lambda: heard == [1, 2])
        folder.rename(tmp_path / "gone")  # in one step: it may be made again before rmtree has ended
        wait_until(lambda: (folder / "state.db").exists())
        with state.open(f"sqlite:{folder}") as other:
            other.broadcast(3)
            wait_until(lambda: heard == [1, 2, 3])


def test_sqlite_whose_folder_was_removed_is_used_on_where_it_cannot_be_made_again_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of an app with `user` is made by the daemon."""
    folder = tmp_path / "state"

    def refuse(path: str, **_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with state.open(f"sqlite:{folder}") as one, state.open(f"sqlite:{folder}") as other:
        assert (one.incr("hits"), other.incr("hits")) == (1, 2)
        with monkeypatch.context() as patch:
            patch.setattr(os, "makedirs", refuse)
            shutil.rmtree(folder)
            assert (one.incr("hits"), other.incr("hits")) == (3, 4)
        folder.mkdir(0o700)
        assert (one.incr("hits"), other.incr("hits")) == (1, 2)


def test_sqlite_whose_file_alone_was_removed_can_be_used_while_others_have_it_open(tmp_path: Path) -> None:
    address = f"sqlite:{tmp_path}/state"
    code = "state.set('k', 'v' * 9000)\nprint('open', flush=True)\nsys.stdin.readline()"
    with children(address, code) as (other,):
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        (tmp_path / "state" / "state.db").unlink()
        with state.open(address, "test") as one:
            assert one.incr("hits") == 1
            assert one.incr("hits") == 2


def test_sqlite_waits_for_a_transaction_of_another_process_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyworker.cluster.sqlite_connection.PATIENCE", 0.2)
    address = f"sqlite:{tmp_path}"
    with (
        state.open(address) as one,
        children(address, "state.update('k', lambda v: (state._current.get('k'), print('in', flush=True), time.sleep(60)))") as made,
    ):
        assert made[0].stdout is not None
        assert made[0].stdout.readline() == "in\n"
        assert one.get("k") is None, "reading waits for nobody"
        with pytest.raises(state.StateUnavailable, match=r"another process, or thread, has held .* slow update"):
            one.set("k", 1)


def test_sqlite_does_not_wait_once_more_for_who_has_waited_behind_other_threads_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with state.open(f"sqlite:{tmp_path}") as one:
        one.set("k", 1)
        late = SimpleNamespace(monotonic=itertools.count(0, 10).__next__)
        monkeypatch.setattr(sqlite_connection, "time", late)
        with pytest.raises(state.StateUnavailable, match=r"another process, or thread, has held .* slow update"):
            one.set("k", 2)
        assert one.get("k") == 1, "reading waits for nobody"


def test_sqlite_that_is_full_says_so_and_goes_on_after_a_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyworker.cluster.sqlite_connection.MAX_SIZE", 400 * 1024)
    with state.open(f"sqlite:{tmp_path}") as one:

        def fill() -> None:
            for i in range(100):
                one.set(f"k{i}", "x" * 10_000)

        with pytest.raises(state.StateTooLarge, match="is full"):
            fill()
        one.delete("k0")
        one.delete("k1")
        one.set("small", 1)
        assert one.get("small") == 1


def test_sqlite_makes_room_by_itself_from_what_has_expired(tmp_path: Path) -> None:
    import sqlite3

    with state.open(f"sqlite:{tmp_path}") as one:
        for i in range(20):
            one.set(f"k{i}", i, ttl=0.01)
        store: Any = one._store

        def purged() -> bool:
            store._purge_at = 0
            one.set("other", 1)
            with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as db:
                return bool(db.execute("SELECT count(*) FROM state").fetchone() == (1,))

        wait_until(purged, what="the expired rows to go")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What SQLite's state takes for now: it stands still unless a test moves it."""
    now = [time.time()]
    monkeypatch.setattr("pyworker.cluster.state_sqlite.time", SimpleNamespace(time=lambda: now[0], monotonic=time.monotonic))
    return now


def test_sqlite_that_is_full_of_what_has_expired_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr("pyworker.cluster.sqlite_connection.MAX_SIZE", 400 * 1024)
    with state.open(f"sqlite:{tmp_path}") as one:

        def fill() -> None:
            for i in range(100):
                one.set(f"k{i}", "x" * 10_000, ttl=60)

        for write in (
            lambda: one.set("new", "x" * 100_000),
            lambda: one.incr("n"),
            lambda: one.update("new", lambda _: "x" * 100_000),
            lambda: one.broadcast("x" * 50_000),
        ):
            with pytest.raises(state.StateTooLarge, match="is full"):
                fill()
            clock[0] += 60
            write()
            one.delete("new")


def test_sqlite_tells_a_watch_of_a_value_that_ends_while_it_looks(tmp_path: Path, clock: list[float]) -> None:
    with state.open(f"sqlite:{tmp_path}") as one:
        store: Any = one._store
        fetch = store._new_messages

        def slowly(db: Any) -> Any:
            clock[0] += 60
            return fetch(db)

        one.set("k", 1, ttl=60)
        seen = Seen()
        one.watch("other", seen)
        seen.wait(None)  # the thread's first look may come before the watch that it was started for
        store._new_messages = slowly
        seen = Seen()
        one.watch("k", seen)
        seen.wait(None)
        assert seen.values == [1, None]


def test_sqlite_message_that_comes_while_listening_begins_waits_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with state.open(f"sqlite:{tmp_path}") as one, state.open(f"sqlite:{tmp_path}") as two:
        seen = Seen()
        one.watch("k", seen)
        seen.wait(None)
        interests: Any = one._store._interests  # type: ignore[attr-defined]
        listen = interests.listen

        def late(hear: Any) -> Any:
            two.broadcast("early")
            two.set("k", 1)
            seen.wait(1)
            return listen(hear)

        monkeypatch.setattr(interests, "listen", late)
        heard: list[Any] = []
        one.listen(heard.append)
        wait_until(lambda: heard, what="the message")


def test_sqlite_without_inotify_looks_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(path: str) -> int:
        raise OSError(24, "no more inotify instances")

    monkeypatch.setattr("pyworker.unix.bell.watch", none_left)
    with state.open(f"sqlite:{tmp_path}") as one, state.open(f"sqlite:{tmp_path}") as two:
        seen = Seen()
        two.watch("k", seen)
        for i in range(10):
            one.set("k", i)
            seen.wait(i)


def test_sqlite_change_whose_writer_died_before_it_rang_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with state.open(f"sqlite:{tmp_path}") as one, state.open(f"sqlite:{tmp_path}") as two:
        seen = Seen()
        two.watch("k", seen)
        seen.wait(None)
        monkeypatch.setattr(one._store, "_ring", lambda: None)
        one.set("k", 1)
        seen.wait(1)


def test_redis_that_goes_away_is_named_without_its_password_and_watches_catch_up() -> None:
    with redis_server() as server, state.open(server.url, "test") as one:
        seen = Seen()
        one.watch("k", seen)
        one.set("k", "before")
        seen.wait("before")
        server.stop()
        with pytest.raises(state.StateUnavailable, match="does not answer") as failure:
            one.get("k")
        assert "s3cret" not in str(failure.value)
        assert "s3cret" not in repr(one)
        server.start()
        one.set("k", "after")
        seen.wait("after")


def test_redis_that_does_what_it_is_told_and_does_not_answer_is_not_told_again(server: RedisServer) -> None:
    with state.open(f"{server.url}?socket_timeout=3&retry_on_timeout=true", "mute") as one:
        pool: Any = one._store._client.connection_pool  # type: ignore[attr-defined]

        def mute(value: int) -> int:
            (connection,) = [*pool._in_use_connections, *pool._available_connections]
            connection.send_command("CLIENT", "REPLY", "OFF")
            return value

        one.incr("n")
        with pytest.raises(state.StateUnavailable, match="does not answer"):
            one.update("n", lambda value: mute(value) + 1)
        assert one.get("n") == 2
        mute(0)
        with pytest.raises(state.StateUnavailable, match="does not answer"):
            one.incr("n")
        assert one.get("n") == 3


def test_redis_gives_no_answer_to_a_question_that_the_handler_of_a_signal_has_ended_to_the_next_one(server: RedisServer) -> None:
    if keeps_locks():
        pytest.skip("this Python leaves a lock locked where a handler raises: docs/reliability.md")

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    with state.open(server.url, "rung") as one:
        one.set("a", "of a")
        one.set("b", "of b")
        for step in itertools.count(1):
            try:
                has_come = acts_at(step, partial(one.get, "a"), interrupt, within="redis/client.py")
            except KeyboardInterrupt:
                has_come = True
            assert one.get("b") == "of b"
            if not has_come:
                break


def subscriptions(one: State, change: Callable[[Any], None]) -> list[Any]:
    """Those that a store makes from now on, each changed before it is used."""
    made: list[Any] = []
    client: Any = one._store._client  # type: ignore[attr-defined]
    pubsub = client.pubsub

    def make() -> Any:
        made.append(pubsub())
        change(made[-1])
        return made[-1]

    client.pubsub = make
    return made


def test_redis_costs_nothing_while_nobody_says_anything(server: RedisServer) -> None:
    waits: list[float] = []

    def noted(pubsub: Any) -> None:
        get_message = pubsub.get_message
        pubsub.get_message = lambda timeout: (waits.append(timeout), get_message(timeout=timeout))[1]

    with state.open(server.url, "quiet") as one:
        subscriptions(one, noted)
        one.listen(lambda _: None)
        wait_until(lambda: any(0.5 < wait <= 1.0 for wait in waits), what="a long wait for messages")


@pytest.mark.parametrize("answers", [True, False])
def test_redis_subscription_that_answers_nothing_is_made_again(
    answers: bool, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_redis, "_QUIET", 0.1)
    monkeypatch.setattr(state_redis, "_LOOK", 0.05)
    asked: list[int] = []

    def noted(pubsub: Any) -> None:
        ping = pubsub.ping
        pubsub.ping = lambda: (asked.append(1), ping() if answers else None)

    with state.open(server.url, "deaf") as one, state.open(server.url, "deaf") as two:
        made = subscriptions(one, noted)
        heard: list[Any] = []
        one.listen(heard.append)
        wait_until(lambda: len(asked) > 2, what="questions")
        assert (len(made) == 1) is answers
        wait_until(lambda: (two.broadcast("still"), heard)[1], what="a message to be heard")


def test_redis_tells_a_watch_of_a_value_that_ends_while_it_looks(server: RedisServer) -> None:
    with state.open(server.url, "ends") as one:
        seen = Seen()
        one.watch("k", seen)
        seen.wait(None)
        store: Any = one._store
        next_look = store._next_look

        def slowly(keys: list[str]) -> Any:
            wait_until(lambda: one.get("k") is None, what="its end")
            return next_look(keys)

        store._next_look = slowly
        one.set("k", 1, ttl=0.3)
        wait_until(lambda: one.get("k") is None, what="its end")
        seen.wait(None)


def test_redis_values_can_be_read_by_others_and_their_changes_are_noticed(server: RedisServer) -> None:
    import redis

    with state.open(server.url, "test") as one, redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.config_set("notify-keyspace-events", "KEA")
        seen = Seen()
        one.watch("k", seen)
        seen.wait(None)
        one.set("k", {"a": 1})
        assert json.loads(client.get("pyworker:test:k")) == {"a": 1}
        seen.wait({"a": 1})
        client.set("pyworker:test:k", "5")  # by a stranger, who publishes nothing
        seen.wait(5)
        client.config_set("notify-keyspace-events", "")


def test_a_message_of_a_stranger_that_is_no_json_is_passed_over() -> None:
    heard: list[Any] = []
    messages = Messages(heard.append)
    for text in ("no", "[" * 100_000, '"yes"'):
        messages._deliver(text, 0)
    assert heard == ["yes"]


def test_a_counter_is_exact_up_to_its_last_bit(one: State) -> None:
    assert one.incr("n", 2**53) == 2**53
    assert one.incr("n") == 2**53 + 1
    assert one.incr("n", MAX_INTEGER - 2**53 - 1) == MAX_INTEGER
    assert one.get("n") == MAX_INTEGER


@pytest.mark.parametrize("password", ["p/secret", "p@x/secret", "p?secret", "secret/x", "%2Fsecret"])
def test_a_password_that_breaks_the_address_of_redis_is_not_shown(password: str) -> None:
    with pytest.raises(state.StateUnavailable) as caught:
        state.open(f"redis://:{password}@127.0.0.1:1/0").set("a", 1)
    assert str(caught.value).startswith("redis://***@127.0.0.1:1/0 ")
    assert "secret" not in str(caught.value)
    assert ("%2F" in str(caught.value)) == ("%" not in password)


def test_redis_that_is_full_lets_keys_be_deleted(server: RedisServer) -> None:
    import redis

    with state.open(server.url, "test") as one, redis.Redis.from_url(server.url) as client:
        one.set("k", 1)
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(state.StateTooLarge, match="is full"):
                one.set("k", 2)
            assert one.delete("k")
        finally:
            client.config_set("maxmemory", 0)


def test_redis_values_that_are_no_text_are_named(server: RedisServer) -> None:
    import redis

    with state.open(server.url, "test") as one, redis.Redis.from_url(server.url) as client:
        client.set("pyworker:test:bytes", b"\xff")
        with pytest.raises(state.StateError, match=r"pyworker:test: .* is no text: b'\\xff'"):
            one.get("bytes")


def test_redis_with_a_wrong_password_says_so(server: RedisServer) -> None:
    with (
        state.open(server.url.replace("s3cret", "wr0ng"), "test") as one,
        pytest.raises(state.StateUnavailable, match="password") as failure,
    ):
        one.get("k")
    assert "wr0ng" not in str(failure.value)


def test_a_python_without_sqlite_is_sent_to_redis_and_can_go_there() -> None:
    code = """
import sys
sys.modules["sqlite3"] = None
from pyworker import state
try:
    state.open("sqlite:/nowhere")
except state.StateUnavailable as error:
    print(error)
state.open("redis://127.0.0.1:1/0").close()
print("redis")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert said[0].startswith("this Python was built without SQLite")
    assert said[0].endswith("use redis://…")
    assert said[1:] == ["redis"]


def test_redis_without_its_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(state.StateUnavailable, match="pip install redis"):
        state.open("redis://127.0.0.1:1/0")
