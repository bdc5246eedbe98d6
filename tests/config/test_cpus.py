"""Usable CPUs: affinity and cgroup quotas, both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyworker.config.cpus import usable_cpus

ALL = len(os.sched_getaffinity(0))


def tree(root: Path, cgroup: str, files: dict[str, str]) -> tuple[str, str]:
    (root / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root / "cgroup"), str(root / "fs")


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "100000 100000"}, 1),
        ("0::/../x\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/a\n", {"a/cpu.max": "1000000000 100000"}, None),
        (
            "3:cpu,cpuacct:/d\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "90000", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("3:cpu:/d\n", {"cpu/d/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/d\n", {"cpu/d/cpu.cfs_quota_us": "90000", "cpu/d/cpu.cfs_period_us": "100000"}, None),
        ("rubbish\n\n::\n", {"cpu.max": "x"}, None),
        ("0::/\n", {"cpu.max": "0 0"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
    ],
)
def test_quota_limits_the_cpus(tmp_path: Path, cgroup: str, files: dict[str, str], quota: int | None) -> None:
    assert usable_cpus(0, *tree(tmp_path, cgroup, files)) == (quota or ALL)


def test_without_cgroups_the_affinity_counts() -> None:
    assert usable_cpus(0, "/nonexistent", "/nonexistent") == ALL
    assert usable_cpus() >= 1
