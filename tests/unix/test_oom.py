"""The kernel's counters of kills for want of memory, in both versions of cgroups, and a process's limits."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pyworker.unix import oom

V1 = {
    "proc/self/cgroup": "3:cpu:/\n4:memory:/jobs/one\n0::/\n",
    "cgroup/memory/jobs/one/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "cgroup/memory/jobs/one/memory.limit_in_bytes": "67108864\n",
    "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "proc/vmstat": "pgfault 5\noom_kill 7\n",
}
V2 = {
    "proc/self/cgroup": "0::/jobs/one\n",
    "cgroup/jobs/one/memory.events": "low 0\noom 2\noom_kill 2\noom_group_kill 0\n",
    "cgroup/jobs/one/memory.max": "max\n",
    "cgroup/jobs/memory.max": "1048576\n",
    "proc/vmstat": "oom_kill 7\n",
}
NO_CONTROLLER = {  # systemd's DelegateSubgroup=, a pod: the limit is above us, and what is counted as well
    "proc/self/cgroup": "0::/jobs/one/sub\n",
    "cgroup/jobs/one/sub/cgroup.procs": "",
    **{name: text for name, text in V2.items() if name != "proc/self/cgroup"},
}
CONTAINER = {"proc/self/cgroup": "4:memory:/docker/abc\n", "cgroup/memory/memory.oom_control": "oom_kill 1\n"}

NO_GROUP = {"proc/self/cgroup": "0::/\n", "proc/vmstat": "pgfault 5\nthp_oom_kill 4\noom_kill 7\n"}


def lay(tmp_path: Path, files: dict[str, str]) -> dict[str, str]:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"proc": str(tmp_path / "proc"), "root": str(tmp_path / "cgroup")}


@pytest.mark.parametrize(
    ("files", "counted", "limit"),
    [
        (V1, (3, -1), 64 * 2**20),
        (V2, (2, -1), 2**20),
        (NO_CONTROLLER, (2, -1), 2**20),
        (CONTAINER, (1, -1), None),
        (NO_GROUP, (-1, 7), None),
        ({}, (-1, -1), None),
        (V1 | {"cgroup/memory/jobs/one/memory.limit_in_bytes": "9223372036854771712\n"}, (3, -1), None),
        (V2 | {"cgroup/jobs/one/memory.events": "oom_kill 0\n"}, (0, -1), 2**20),  # what the machine has killed was elsewhere
        (V2 | {"cgroup/jobs/one/memory.max": "4194304\n"}, (2, -1), 2**20),  # more than it may have with its siblings
    ],
    ids=["v1", "v2", "no controller", "container", "no group", "nothing", "v1, no limit", "none yet", "two limits"],
)
def test_counters_and_limit(tmp_path: Path, files: dict[str, str], counted: tuple[int, int], limit: int | None) -> None:
    where = lay(tmp_path, files)
    assert oom.kills(**where) == counted
    assert oom.group_limit(**where) == limit


def test_what_the_kernel_would_give_up_at_once_is_not_in_use(tmp_path: Path) -> None:
    v2 = {f"cgroup/jobs/{name}": text for name, text in {
        "memory.current": "1000000\n", "memory.stat": "anon 5\ninactive_file 900000\nactive_file 7\n",
    }.items()}  # fmt: skip
    assert oom.group_memory(**lay(tmp_path / "2", V2 | v2)) == (2**20, 100000)
    v1 = {f"cgroup/memory/jobs/one/{name}": text for name, text in {
        "memory.usage_in_bytes": "1000000\n", "memory.stat": "inactive_file 3\ntotal_inactive_file 900000\n",
    }.items()}  # fmt: skip
    assert oom.group_memory(**lay(tmp_path / "1", V1 | v1)) == (64 * 2**20, 100000)
    v2["cgroup/jobs/memory.current"] = "100\n"  # the files of the kernel are not of one moment
    assert oom.group_memory(**lay(tmp_path / "0", V2 | v2)) == (2**20, 0)


@pytest.mark.parametrize(("high", "most"), [("max", 2**20), ("1000", 1000), ("9999999", 2**20)])
def test_a_group_that_is_slowed_down_before_it_is_killed_may_use_no_more_than_that(
    tmp_path: Path, high: str, most: int
) -> None:
    where = lay(tmp_path, V2 | {"cgroup/jobs/one/memory.high": f"{high}\n"})
    assert oom.group_room(**where) == most
    assert oom.group_limit(**where) == 2**20


def test_limits_and_cpu_time_of_a_process_that_is_not_reaped_yet() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (700, 900))  # one that is reached is raised by the kernel
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))

    process = subprocess.Popen([sys.executable, "-c", "sum(range(10**7))"], preexec_fn=limit)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert oom.limits(process.pid)[:2] == (700, 2**33)
    assert oom.cpu_seconds(process.pid) > 0
    process.wait()
    assert oom.limits(process.pid) == (None, None, None)
    assert oom.cpu_seconds(process.pid) == 0


@pytest.mark.parametrize(("text", "is_so"), [("0\n", False), ("1\n", False), ("2\n", True), (None, False)])
def test_a_kernel_that_promises_no_more_than_it_has_is_known(tmp_path: Path, text: str | None, is_so: bool) -> None:
    if text is not None:
        lay(tmp_path, {"proc/sys/vm/overcommit_memory": text})
    assert oom.is_promised_in_full(str(tmp_path / "proc")) == is_so
