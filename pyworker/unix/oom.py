"""How often the kernel has killed for want of memory, and the limits of a process. Reads; decides nothing.

Both versions of cgroups are read; a host that mounts neither just knows less.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from pyworker.unix.procfs import read_all

_ROOT = "/sys/fs/cgroup"
_MEMORY = (  # limit, what is used, and in memory.stat what of it is cache
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_LIMITS = {"cpu": "Max cpu time", "address_space": "Max address space", "data": "Max data size"}


class OomKills(NamedTuple):
    """Counters since boot (machine) and since the group was made; -1 = not known."""

    group: int  # kills in the group of cgroups that we are in (the nearest above that counts them), and below it
    machine: int  # read only where the group's is not known


class Limits(NamedTuple):
    """Soft limits of a process; None = unlimited or not known."""

    cpu: int | None  # seconds
    address_space: int | None  # bytes
    data: int | None


def kills(proc: str = "/proc", root: str = _ROOT) -> OomKills:
    """Return the counters of this moment."""
    counted = (
        _kills(os.path.join(folder, name))
        for start in _memory_groups(proc, root)
        for folder in _upwards(start, root)  # a group without the controller (of memory) is counted in the one above
        for name in ("memory.events", "memory.oom_control")
    )
    group = next((number for number in counted if number >= 0), -1)
    # the group's counts whoever is killed in it, for whatever want: what the machine counts beyond is none of ours
    return OomKills(group, _kills(os.path.join(proc, "vmstat")) if group < 0 else -1)


def is_promised_in_full(proc: str = "/proc") -> bool:
    """Whether the kernel gives only what it could give to all at once (vm.overcommit_memory = 2), however much is free."""
    return _number(os.path.join(proc, "sys/vm/overcommit_memory")) == 2


def group_memory(pid: int = 0, proc: str = "/proc", root: str = _ROOT) -> tuple[int | None, int | None]:
    """Return the smallest memory limit of a process's cgroup (0: ours) and those above it, and what is used of it, in bytes.

    Files read long ago, which the kernel gives up first, are not in use: a group that writes logs is full of them.
    """
    found: list[tuple[int, int | None]] = []
    for folder in (folder for start in _memory_groups(proc, root, pid) for folder in _upwards(start, root)):
        for most, used, cache in _MEMORY:
            limit = _number(os.path.join(folder, most))
            if limit is not None and limit < 1 << 60:  # version 1 says "none" with a huge number
                current = _number(os.path.join(folder, used))
                spare = max(0, _field(os.path.join(folder, "memory.stat"), cache))
                found.append((limit, None if current is None else max(0, current - spare)))
    return min(found, key=lambda pair: pair[0], default=(None, None))


def group_limit(proc: str = "/proc", root: str = _ROOT) -> int | None:
    """Return the smallest memory limit of our cgroup and those above it, in bytes."""
    return group_memory(0, proc, root)[0]


def group_room(proc: str = "/proc", root: str = _ROOT) -> int | None:
    """Return how much memory our cgroup may use before the kernel kills (`group_limit`) or slows it down (memory.high)."""
    folders = (folder for start in _memory_groups(proc, root) for folder in _upwards(start, root))
    high = (_number(os.path.join(folder, "memory.high")) for folder in folders)
    return min((most for most in (group_limit(proc, root), *high) if most is not None), default=None)


def limits(pid: int, proc: str = "/proc") -> Limits:
    """Return the limits of a process; one that has ended has them until it is reaped."""
    text = _read(os.path.join(proc, str(pid), "limits"))
    rows = {name: line for line in text.splitlines() for name in _LIMITS.values() if line.startswith(name)}

    def soft(field: str) -> int | None:
        words = rows.get(_LIMITS[field], "")[len(_LIMITS[field]) :].split()
        return int(words[0]) if words and words[0].isdecimal() else None

    return Limits(soft("cpu"), soft("address_space"), soft("data"))


def cpu_seconds(pid: int, proc: str = "/proc") -> float:
    """Return the CPU time that a process has used; one that has ended has it until it is reaped."""
    fields = _read(os.path.join(proc, str(pid), "stat")).rpartition(")")[2].split()
    if len(fields) < 13:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_groups(proc: str, root: str, pid: int = 0) -> list[str]:
    """Return the folders that may describe the memory cgroup of a process (0: us), the likeliest first."""
    folders: list[str] = []
    for line in _read(os.path.join(proc, str(pid or "self"), "cgroup")).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        path = path.lstrip("/")
        if "memory" in controllers.split(","):
            # in a container the path is the host's, and the mount is its own
            folders = [os.path.join(root, "memory", path), os.path.join(root, "memory"), *folders]
        elif number == "0":
            folders += [os.path.join(root, path), os.path.join(root, "unified", path)]
    return [os.path.normpath(folder) for folder in folders]


def _upwards(folder: str, root: str) -> Iterator[str]:
    while folder.startswith(root):
        yield folder
        folder = os.path.dirname(folder)


def _kills(path: str) -> int:
    return _field(path, "oom_kill")


def _field(path: str, name: str) -> int:
    """Return the number behind a name, -1 if there is none. /proc/vmstat has 200 lines: it is not taken apart."""
    _, found, rest = ("\n" + _read(path)).partition(f"\n{name} ")
    value = rest.partition("\n")[0].strip()
    return int(value) if found and value.isdecimal() else -1


def _number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: str) -> str:
    try:  # every few seconds
        return read_all(path).decode(errors="replace")
    except OSError:
        return ""
