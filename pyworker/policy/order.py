"""In which order apps that are stopped together end: who depends on another first. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def stops_after(name: str, depends_on: Mapping[str, Iterable[str]], stopping: Collection[str]) -> tuple[str, ...]:
    """Return those of `stopping` whose end an app waits for: who depends on it, over others too.

    In a circle, which a config cannot have but its halves can, nobody waits for the others.
    """
    below = _reached(name, depends_on)
    return tuple(sorted(n for n in set(stopping) - below - {name} if name in _reached(n, depends_on)))


def _reached(name: str, depends_on: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        todo += [n for n in depends_on.get(todo.pop(), ()) if n not in found]
        found.update(todo)
    return found
