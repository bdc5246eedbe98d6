"""How long until it is there again: kill -9 of daemon, guardian, logger, template and a worker, of a running app.

    python benchmarks/recovery.py [--rounds 20]

Daemon and guardian: until `status` is answered by another one (asked on the control socket without a pause). Logger and
template: until another one is reported. Worker: until the app has all its workers ready again. Upgrade: from the
request until guardian, daemon and logger are all replaced. Milliseconds; the machine's load is printed beside them.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.support.control import ask
from tests.support.pyworker import Pyworker, running
from tests.support.sources import ASGI

LIMIT = 30.0


def reply(pw: Pyworker, request: dict[str, object]) -> dict[str, object]:
    """Ask until somebody answers."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        answer = ask(pw.home, request)
        if answer is not None and answer["type"] == "reply":
            body: dict[str, object] = answer["body"]
            return body
    raise SystemExit(f"nobody answers {request} within {LIMIT:g} s")


def status(pw: Pyworker) -> dict[str, object]:
    return reply(pw, {"type": "status"})


def template(pw: Pyworker) -> object:
    found = reply(pw, {"type": "describe", "selectors": ["api"]})["apps"][0]["template"]  # type: ignore[index]
    return found["pid"] if found and found["state"] == "ready" else 0


def settle(pw: Pyworker) -> None:
    """Wait until all is there and has been for long enough not to be in a backoff."""
    wait(lambda: ready(pw) and template(pw) and status(pw)["logger_pid"])
    time.sleep(5.5)  # Backoff.good_life: deaths in a row are answered more slowly on purpose


def ready(pw: Pyworker) -> bool:
    app = reply(pw, {"type": "ps"})["apps"][0]  # type: ignore[index]
    return bool(app["workers"]["want"] == app["workers"]["ready"] == app["workers"]["total"])


def wait(predicate: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not predicate():
        if time.monotonic() > end:
            raise SystemExit(f"not there again within {LIMIT:g} s")
        time.sleep(0.001)


def killed(pw: Pyworker, role: str) -> float:
    """Kill it and return the milliseconds until another one is there."""
    before = status(pw)
    names = {"daemon": "pid", "guardian": "guardian_pid", "logger": "logger_pid"}
    if role in names:
        name = names[role]
        victim = int(str(before[name]))
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        wait(lambda: status(pw)[name] not in (0, victim))
    elif role == "template":
        victim = int(str(template(pw)))
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        wait(lambda: template(pw) not in (0, victim))
    else:
        victim = pw.pids()[0]
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        wait(lambda: victim not in [w["pid"] for w in reply(pw, {"type": "ps"})["apps"][0]["pool"]] and ready(pw))  # type: ignore[index]
    return (time.monotonic() - began) * 1000


def upgraded(pw: Pyworker) -> float:
    before = status(pw)
    began = time.monotonic()
    ask(pw.home, {"type": "upgrade", "force": True})
    wait(lambda: all(status(pw)[name] not in (None, 0, before[name]) for name in ("pid", "logger_pid")))
    return (time.monotonic() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rounds} rounds\n")
    print(f"{'killed':<10}{'median ms':>11}{'worst ms':>11}")
    with running() as pw:
        pw.api(ASGI)
        pw.ok("start", "app.toml")
        for role in ("daemon", "guardian", "logger", "template", "worker", "upgrade"):
            found = []
            for _ in range(rounds):
                settle(pw)
                found.append(upgraded(pw) if role == "upgrade" else killed(pw, role))
            print(f"{role:<10}{statistics.median(found):>11.0f}{max(found):>11.0f}", flush=True)


if __name__ == "__main__":
    main()
