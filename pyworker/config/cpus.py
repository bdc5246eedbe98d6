"""How many CPUs a process may use: affinity and cgroup quota, what `workers = "auto"` means."""

from __future__ import annotations

import math
import os
from collections.abc import Callable


def usable_cpus(pid: int = 0, proc: str = "", cgroups: str = "/sys/fs/cgroup") -> int:
    """Return min(CPUs of the affinity mask, CPU quota rounded up), at least 1. os.cpu_count() knows neither. 0: ours."""
    quota = _quota(proc or f"/proc/{pid or 'self'}/cgroup", cgroups)
    try:
        allowed = len(os.sched_getaffinity(pid))
    except OSError:  # it has just ended
        allowed = len(os.sched_getaffinity(0))
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _quota(proc: str, cgroups: str) -> float | None:
    """Return the smallest quota from our cgroup up to the root, in CPUs; None = no limit."""
    try:
        with open(proc) as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            quotas += _walk(cgroups, path, _v2)
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu", "cpu,cpuacct"):
                quotas += _walk(os.path.join(cgroups, mount), path, _v1)
    return min(quotas, default=None)


def _walk(root: str, path: str, read: Callable[[str], float | None]) -> list[float]:
    """Read the quota of every folder from `path` up to `root`; a path outside (another namespace) is the root."""
    parts = [p for p in path.split("/") if p not in ("", "..")]
    found = [read(os.path.join(root, *parts[:n])) for n in range(len(parts), -1, -1)]
    return [q for q in found if q is not None]


def _v2(folder: str) -> float | None:
    quota, _, period = _text(os.path.join(folder, "cpu.max")).partition(" ")
    return _ratio(quota, period)


def _v1(folder: str) -> float | None:
    quota = _text(os.path.join(folder, "cpu.cfs_quota_us"))
    return _ratio(quota, _text(os.path.join(folder, "cpu.cfs_period_us")))


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal()) or int(quota) == 0 or int(period) == 0:
        return None  # "max", -1, or no such file
    return int(quota) / int(period)


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(100).strip()
    except OSError:
        return ""
