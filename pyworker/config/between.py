"""Rules between the apps of one file: who depends on whom, who wants which address. Pure.

The rules of one app are in check.py, whose Finding says what is wrong here, too.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable

from pyworker.config.address import Address, AddressError, collide, parse_bind
from pyworker.config.check import Finding
from pyworker.config.report import shown
from pyworker.config.schema import AppConfig
from pyworker.config.suggest import nearest
from pyworker.record import replace

BETWEEN_STOPS = 3.0  # seconds that an end may take beside its time-outs, before what it depends on is told to stop


def wrong_dependencies(apps: Iterable[AppConfig], named: Container[str] = ()) -> list[tuple[AppConfig, Finding]]:
    """Return (app, what is wrong) for each depends_on that names no app of the file, or comes back to itself.

    `named`: more names of the file, of apps with mistakes of their own.
    """
    by_name = {app.name: app for app in apps}
    wrong: list[tuple[AppConfig, Finding]] = []
    for app in by_name.values():
        for index, name in enumerate(app.depends_on):
            if name not in by_name and name in named:
                continue
            if name not in by_name:
                others = sorted({*by_name} - {app.name})
                meant = nearest(name, others)
                known = f"the other apps: {', '.join(others)}" if others else "there is no other; remove it"
                hint = f"did you mean `{meant}`?" if meant else known
                wrong.append(
                    (app, Finding(("depends_on", index), f"names {shown(name)}, which is no app of this file", hint))
                )
            elif path := _way_back(by_name, app.name, name):
                hint = f"{' -> '.join(path)}: none of them could ever start"
                wrong.append((app, Finding(("depends_on", index), "goes round in a circle", hint, code="conflict")))
            elif by_name[name].cron is not None:
                hint = "a job with cron is never ready: it comes and goes"
                wrong.append((app, Finding(("depends_on", index), f"names {shown(name)}, which is a job", hint)))
    return wrong


def with_dependencies(apps: Iterable[AppConfig], only: Iterable[str]) -> set[str]:
    by_name = {app.name: app for app in apps}
    found: set[str] = set()
    todo = list(only)
    while todo:
        name = todo.pop()
        if name in by_name and name not in found:
            found.add(name)
            todo += by_name[name].depends_on
    return found


def longest_stop(apps: Iterable[AppConfig]) -> float:
    """Return how long a stop of all of these may take: who depends on another is stopped first; a run of a job keeps nobody."""
    by_name = {app.name: app for app in apps}
    own = {name: app.stop.drain_timeout + app.stop.kill_timeout for name, app in by_name.items()}
    ends_at = own
    # each round takes in those before one more; of a circle, whose halves are of two times, it is too long
    for _ in by_name:
        before, ends_at = ends_at, dict(own)
        for app in by_name.values():
            for name in app.depends_on if app.cron is None else ():
                if name in own:
                    ends_at[name] = max(ends_at[name], before[app.name] + BETWEEN_STOPS + own[name])
        if ends_at == before:
            break
    return max(ends_at.values(), default=0.0)


def _way_back(apps: dict[str, AppConfig], start: str, name: str) -> list[str]:
    """Return the names from `start` over `name` back to `start`; [] when there is no such way."""
    todo = [[start, name]]
    seen: set[str] = set()
    while todo:
        path = todo.pop(0)
        if path[-1] == start:
            return path
        if path[-1] not in seen and path[-1] in apps:
            seen.add(path[-1])
            todo += [[*path, after] for after in apps[path[-1]].depends_on]
    return []


def shared_addresses(apps: Iterable[AppConfig]) -> list[tuple[AppConfig, int, AppConfig]]:
    """Return (app, index of its bind, the app before it) wherever two apps want the same address, or one within another."""
    taken: dict[tuple[str, int], list[tuple[Address, AppConfig]]] = {}
    clashes = []
    for app in apps:
        for index, text in enumerate(app.bind):
            try:
                address = parse_bind(text)
            except AddressError:
                continue
            if address.family == "unix":
                address = replace(address, path=os.path.normpath(os.path.join(app.cwd, address.path)))
            known = taken.setdefault((address.family, address.port), [])
            before = next((other for there, other in known if other is not app and collide(there, address)), None)
            if before is not None:
                clashes.append((app, index, before))
            known.append((address, app))
    return clashes
