"""Whose files are whose: with prometheus_client itself, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyworker.protocol.multiproc import byte_of, names

BEGIN = """
import os, sys
from pyworker.worker import multiproc
multiproc.prepare()
multiproc.take({slot})
from prometheus_client import Counter, Gauge
COUNT, LIVE = Counter("served", "x"), Gauge("live", "x", multiprocess_mode="liveall")
"""


def start(folder: Path, slot: int, code: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN.format(slot=slot) + code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".slots"}


def test_names_and_bytes_belong_to_each_other() -> None:
    seen = set()
    for slot in range(50):
        for name, byte in names(slot):
            assert byte_of(name) == byte
            seen.add(byte)
    assert len(seen) == 50 * 26
    for other in ("12", "w", "w2a", "w2B", "x2", "w2bb", "", "w2\n"):
        assert byte_of(other) is None


def test_a_successor_goes_on_in_the_files_of_its_slot(tmp_path: Path) -> None:
    for total in (1.0, 2.0):
        with start(tmp_path, 2, "COUNT.inc(); print(COUNT._value.get(), LIVE._value.get()); LIVE.set(5)") as process:
            assert process.communicate()[0] == f"{total} 0.0\n"  # the counter goes on, what was true of the other does not
    assert files(tmp_path) == {"counter_w2.db", "gauge_liveall_w2.db"}


def test_two_of_a_slot_never_write_to_one_file(tmp_path: Path) -> None:
    with start(tmp_path, 2, "print('up', flush=True); input(); COUNT.inc()") as old:
        assert old.stdout is not None
        assert old.stdout.readline() == "up\n"
        with start(tmp_path, 2, "COUNT.inc()") as new:
            assert new.wait(60) == 0
        assert {"counter_w2.db", "counter_w2b.db"} <= files(tmp_path)
        old.communicate("\n")
    with start(tmp_path, 2, "print(COUNT._value.get())") as next_one:  # the first name is free again
        assert next_one.communicate()[0] == "1.0\n"


def test_what_a_worker_forks_has_files_of_its_own(tmp_path: Path) -> None:
    code = "COUNT.inc()\npid = os.fork()\nif pid == 0: COUNT.inc(); os._exit(0)\nos.waitpid(pid, 0); print(pid)"
    with start(tmp_path, 1, code) as process:
        child = process.communicate()[0].strip()
    assert {"counter_w1.db", f"counter_{child}.db"} <= files(tmp_path)


def test_a_folder_that_is_not_there_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyworker.worker import multiproc

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "none"))
    multiproc.take(1)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    multiproc.prepare()
    multiproc.take(1)


def test_an_app_without_prometheus_client_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyworker.worker import multiproc

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    multiproc.prepare()
