"""Rules between the apps of one file: who depends on whom, who wants which address. Pure.

The rules of one app are in check.py, whose Finding says what is wrong here, too.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Iterator
from itertools import pairwise

from pyworker.config.address import EVERY, Address, AddressError, collide, parse_bind
from pyworker.config.check import Finding
from pyworker.config.report import MAX_PROBLEMS, shown
from pyworker.config.schema import AppConfig
from pyworker.config.suggest import nearest
from pyworker.record import replace

BETWEEN_STOPS = 3.0  # seconds that an end may take beside its time-outs, before what it depends on is told to stop


def wrong_dependencies(apps: Iterable[AppConfig], named: Container[str] = ()) -> Iterator[tuple[AppConfig, Finding]]:
    """Yield (app, what is wrong) for each depends_on that names no app of the file, or comes back to itself.

    `named`: more names of the file, of apps with mistakes of their own.
    """
    by_name = {app.name: app for app in apps}
    on_circle = {
        edge: (circle, at) for circle in _circles(by_name) for at, edge in enumerate(pairwise((*circle, circle[0])))
    }
    for app in by_name.values():
        for index, name in enumerate(app.depends_on):
            if name not in by_name and name in named:
                continue
            if name not in by_name:
                others = sorted({*by_name} - {app.name})
                meant = nearest(name, others)
                known = f"the other apps: {', '.join(others)}" if others else "there is no other; remove it"
                hint = f"did you mean `{meant}`?" if meant else known
                yield app, Finding(("depends_on", index), f"names {shown(name)}, which is no app of this file", hint)
            elif found := on_circle.get((app.name, name)):
                circle, at = found
                way = " -> ".join((*circle[at:], *circle[: at + 1]))
                hint = f"{way}: none of them could ever start"
                yield app, Finding(("depends_on", index), "goes round in a circle", hint, code="conflict")
            elif by_name[name].cron is not None:
                hint = "a job with cron is never ready: it comes and goes"
                yield app, Finding(("depends_on", index), f"names {shown(name)}, which is a job", hint)


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


def _circles(apps: dict[str, AppConfig]) -> Iterator[list[str]]:
    """Yield circles, as many as anybody reads of: one at least while there is any. Each app is looked at once, so that one of
    many that share a part may be seen only when the others are gone.
    """
    left = MAX_PROBLEMS
    done: set[str] = set()
    for start in apps:
        way = {start: iter(apps[start].depends_on)}  # in order, each with what is still to be looked at
        while way and left:
            name = next(reversed(way))
            after = next((n for n in way[name] if n in apps and n not in done), None)
            if after is None:
                done.add(name)
                del way[name]
            elif after in way:
                names = list(way)
                yield names[names.index(after) :]
                left -= 1
            else:
                way[after] = iter(apps[after].depends_on)


def shared_addresses(apps: Iterable[AppConfig]) -> Iterator[tuple[AppConfig, int, AppConfig]]:
    """Yield (app, index of its bind, the app before it) wherever two apps want the same address, or one within another."""
    taken: dict[Hashable, list[tuple[Address, AppConfig]]] = defaultdict(list)
    for app in apps:
        for index, text in enumerate(app.bind):
            try:
                address = parse_bind(text)
            except AddressError:
                continue
            if address.family == "unix":
                address = replace(address, path=os.path.normpath(os.path.join(app.cwd, address.path)))
            elif not address.port:
                continue
            port, is_wide = (address.family, address.port), address.host in EVERY
            # those that can be in its way, no more: thousands of apps may have one port, each on a host of its own
            known = taken[port] if is_wide else [*taken[*port, EVERY], *taken[address]]
            before = next((other for there, other in known if other is not app and collide(there, address)), None)
            if before is not None:
                yield app, index, before
            for key in (port, (*port, EVERY) if is_wide else address):
                taken[key].append((address, app))
