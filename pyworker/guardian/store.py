"""Guardian: file descriptors by name. Owns every fd in it; knows nothing of what they are for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator


class FdStore:
    """name → fd. Every fd in it is close-on-exec and is closed when its name is removed or replaced."""

    def __init__(self, fds: dict[str, int] | None = None) -> None:
        self._fds = dict(fds or {})
        for fd in self._fds.values():
            os.set_inheritable(fd, False)

    def put(self, name: str, fd: int) -> None:
        """Keep `fd` (owned by the store from here) under `name`; what had the name is closed."""
        before = self._fds.pop(name, None)
        self._fds[name] = fd  # at the end: the order in which fds came is the order in which they are restored
        if before is not None:
            os.close(before)

    def remove(self, name: str) -> bool:
        """Close the fd of a name; False when there is none."""
        fd = self._fds.pop(name, None)
        if fd is None:
            return False
        os.close(fd)
        return True

    def get(self, name: str) -> int | None:
        """Return the fd (still the store's) or None."""
        return self._fds.get(name)

    def held(self, names: Iterable[str]) -> dict[str, int]:
        """Return those of the names that are in the store, with their fds."""
        return {name: self._fds[name] for name in names if name in self._fds}

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._fds))

    def __len__(self) -> int:
        return len(self._fds)
