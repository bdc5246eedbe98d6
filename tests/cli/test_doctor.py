"""`pyworker doctor`: each thing that is wrong has what to do about it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker import __version__
from pyworker.cli import homes, units
from pyworker.cli.commands import doctor, startup
from pyworker.cli.options import settings_of
from pyworker.cli.render import Look
from pyworker.errors import PyworkerError
from pyworker.unix import oom
from tests.support.cli import run
from tests.support.fake_control import HANG, FakeControl


def test_a_machine_without_a_daemon_is_fine(home: str) -> None:
    done = run("doctor", "--json", home=home)
    body = json.loads(done.out)
    assert (done.code, body["ok"]) == (0, True)
    assert {c["id"] for c in body["checks"]} >= {"python", "daemon", "home", "nofile", "cpus", "clock"}
    assert not Path(home).exists()


def test_a_daemon_that_does_not_answer_has_the_next_step_of_its_cause(home: str) -> None:
    cause = "2026-11-26T14:26:42Z guardian[83]: the daemon cannot be started: Resource temporarily unavailable; trying again"
    with FakeControl(home, {"status": lambda _: [HANG]}):
        os.mkdir(f"{home}/logs")
        Path(home, "logs", "pyworker.log").write_text(f"{cause}\n")
        found = run("doctor", "--timeout", "100ms", home=home)
    assert found.code == 1
    assert cause in found.out
    assert "ulimit -u" in found.out
    assert "pyworker daemon stop" not in found.out


def test_a_folder_that_others_can_read_is_a_failure_with_its_remedy(home: str) -> None:
    home += " of ours"
    Path(home).mkdir(mode=0o755)
    Path(home).chmod(0o755)
    (Path(home) / "apps.json.bad-1").write_text("x")
    done = run("doctor", home=home)
    assert done.code == 1
    assert f"chmod 700 '{home}'" in done.out
    assert f"rm '{home}'/apps" in done.out
    assert "to look at" in done.err


def found(check: Callable[..., Iterator[doctor.Found]], home: Path, **facts: Any) -> list[tuple[str, str, str]]:
    """What one check finds, and what it says to do."""
    settings = settings_of({"home": str(home)})
    known = {"status": {"version": __version__, "pid": 1}, "apps": [], "configs": [], "error": None, **facts}
    return [(f.id, f.status, f.fix) for f in check(settings, known)]


def app(name: str = "api", want: int = 2, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": "running", "workers": {"want": want}, "drops": 0, "last_failure": None, **more}


def test_a_daemon_of_another_version_and_one_that_does_not_answer(tmp_path: Path) -> None:
    ((_, status, fix),) = found(doctor._daemon, tmp_path, status={"version": "0.0.1", "pid": 1})
    assert (status, fix.split("   ")[0]) == ("warn", "pyworker daemon upgrade")
    ((_, status, fix),) = found(doctor._daemon, tmp_path, error=PyworkerError("it hangs", hint="mend it"))
    assert (status, fix) == ("fail", "mend it")


def test_a_folder_that_cannot_be_made_or_written_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    assert found(doctor._home, tmp_path / "a" / "b")[0][:2] == ("home", "ok")
    monkeypatch.setattr(os, "access", lambda *_: False)  # what root may is not what the others may
    ((_, status, fix),) = found(doctor._home, tmp_path / "a" / "b")
    assert (status, "--home" in fix) == ("fail", True)
    assert found(doctor._home, tmp_path)[0][:2] == ("home", "fail")


def test_root_may_look_into_the_home_of_a_unit_that_has_a_user_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    theirs = list(os.stat(tmp_path))
    theirs[4] = 65534
    monkeypatch.setattr(os, "stat", lambda *_, **__: os.stat_result(theirs))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert found(doctor._home, tmp_path)[0][:2] == ("home", "fail")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert found(doctor._home, tmp_path)[0][:2] == ("home", "ok")
    assert found(doctor._home, tmp_path, status=None)[0][:2] == ("home", "fail"), "what root starts there is root's"


def test_a_folder_of_roots_that_workers_of_other_users_pass_through_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, modes = os.stat, {}

    def of_root(path: Any, **more: Any) -> Any:
        found = list(stat(path, **more))
        found[0], found[4] = modes.get(str(path), found[0]), 0
        return os.stat_result(found)

    monkeypatch.setattr(os, "stat", of_root)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for mode, status in ((0o40711, "ok"), (0o40755, "fail")):
        modes[str(tmp_path)] = mode
        assert found(doctor._home, tmp_path)[0][:2] == ("home", status)


def test_a_socket_that_is_left_over_is_stale(tmp_path: Path) -> None:
    (tmp_path / "control.sock").touch()
    assert ("stale", "warn") in [f[:2] for f in found(doctor._daemon, tmp_path, status=None)]


def test_few_open_files_and_a_short_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "prlimit", lambda pid, _: (1024, 1024) if pid == 4712 else (65536, 65536))
    assert found(doctor._files, tmp_path, status=None)[0][:2] == ("nofile", "ok")
    assert found(doctor._files, tmp_path, status={"pid": 4712})[0][:2] == ("nofile", "warn")  # the daemon's, not the shell's
    monkeypatch.setattr(doctor, "_number", lambda _: 128)
    configs = [{"name": "api", "config": {"backlog": 4096}}]
    assert found(doctor._backlog, tmp_path, configs=configs) == [
        ("somaxconn", "warn", "sysctl net.core.somaxconn=4096")
    ]


def test_more_workers_than_the_cpus_can_carry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyworker.config.cpus.usable_cpus", lambda pid: 2)
    assert found(doctor._cpus, tmp_path, apps=[app(want=12)])[0][:2] == ("cpus", "ok")
    assert found(doctor._cpus, tmp_path, apps=[app(want=13)])[0][:2] == ("cpus", "warn")


@pytest.mark.parametrize(
    ("limit", "used", "status"),
    [(3 * 2**30, 0, "ok"), (2**30, 0, "warn"), (3 * 2**30, int(2.9 * 2**30), "warn"), (None, None, None)],
)
def test_what_the_workers_may_use_is_held_against_the_cgroup(
    limit: int | None, used: int | None, status: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oom, "group_memory", lambda pid: (limit, used))
    configs = [{"name": "api", "config": {"limits": {"memory": "512MB"}}}]
    seen = found(doctor._memory, tmp_path, apps=[app(want=4)], configs=configs)
    assert [f[:2] for f in seen] == ([("memory", status)] if status else [])


def test_a_clock_that_went_back(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    assert found(doctor._clock, tmp_path)[0][1] == "ok"
    os.utime(tmp_path / "events.jsonl", (time.time() + 3600, time.time() + 3600))
    assert found(doctor._clock, tmp_path)[0][:2] == ("clock", "warn")


def test_what_starts_it_at_boot_and_whether_it_lives_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "_units", lambda of=doctor._units: of()[-1:])  # not what this machine has
    monkeypatch.setattr(doctor, "lingers", lambda user: (tmp_path / user).exists())
    monkeypatch.setattr(doctor, "user_name", lambda: "ada")
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    nothing = [("boot", "warn", "pyworker startup")]
    monkeypatch.setattr(doctor, "is_possible", lambda: False)
    assert found(doctor._boot, tmp_path)[0][2] == "neither systemd nor OpenRC runs here: pyworker run app.toml"
    monkeypatch.setattr(doctor, "is_possible", lambda: True)
    assert found(doctor._boot, tmp_path) == nothing
    unit = tmp_path / "systemd" / "user" / "pyworker.service"
    enabled = unit.parent / "default.target.wants" / unit.name
    enabled.parent.mkdir(parents=True)
    unit.write_text(units.systemd(["pyworker"], "/home/of/another", user=True, stop_seconds=90, version=257))
    assert found(doctor._boot, tmp_path) == nothing
    unit.write_text(units.systemd(["pyworker"], str(tmp_path), user=True, stop_seconds=90, version=257))
    assert found(doctor._boot, tmp_path) == [("boot", "warn", "systemctl --user enable pyworker.service")]
    enabled.symlink_to(unit)
    assert found(doctor._boot, tmp_path)[1] == ("linger", "warn", "loginctl enable-linger ada")
    (tmp_path / "ada").touch()
    assert [f[:2] for f in found(doctor._boot, tmp_path)] == [("boot", "ok")]
    monkeypatch.setattr(startup, "_systemd_version", lambda: 257)
    unit.write_text(startup._plan(settings_of({"home": str(tmp_path)}), "systemd", True).text.replace(__version__, "0.0.9"))
    assert [f[:2] for f in found(doctor._boot, tmp_path)] == [("boot", "ok")]
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=on-failure"))
    assert found(doctor._boot, tmp_path) == [("boot", "warn", "pyworker startup --user")]


def test_pyworker_run_is_not_told_to_start_at_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_units", list)
    monkeypatch.setattr(doctor, "is_possible", lambda: True)
    assert found(doctor._boot, tmp_path, apps=[app()]) == []
    (tmp_path / "apps.json").touch()
    assert found(doctor._boot, tmp_path, apps=[app()]) == [("boot", "warn", "pyworker startup")]


def test_apps_that_are_not_well_have_their_own_next_step(tmp_path: Path) -> None:
    failed = app(state="failed", last_failure={"message": "no module redis", "hint": "pip install redis"})
    assert found(doctor._apps, tmp_path, apps=[failed, app(drops=3)]) == [
        ("app", "fail", "pip install redis"),
        ("logs", "warn", "is the disk full or slow?"),
    ]
    folder = app(drops=1, notes=["log: cannot open api.log: Is a directory"])
    (log,) = doctor._apps(settings_of({"home": str(tmp_path)}), {"apps": [folder]})
    assert log.message == "1 line of api could not be written to its log: cannot open api.log: Is a directory"


def test_what_is_degraded_only_while_a_worker_is_replaced_is_told_how_many_serve(tmp_path: Path) -> None:
    replaced = app(name="api", state="degraded", last_failure=None, workers={"want": 2, "ready": 1, "total": 2}, pool=[])
    (unwell,) = doctor._apps(settings_of({"home": str(tmp_path)}), {"apps": [replaced]})
    assert unwell.message == "api is degraded: 1 of 2 workers are ready"


def test_each_of_several_next_steps_has_a_line_of_its_own() -> None:
    said = doctor._words(doctor.Found("app", "fail", "api has failed", "look here\nor there"), Look(False, False, False, 0))
    assert said == "✗ api has failed\n    = look here\n    = or there"


def test_a_user_without_a_name_is_called_by_his_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_242_424)
    assert homes.user_name() == "4242424"


@pytest.mark.parametrize(("flag", "said"), [(os.ST_RDONLY, "is on a file system that can only be read"), (0, "cannot be written to")])
def test_a_home_that_cannot_be_written_to_is_said_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: int, said: str
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flag))
    first = next(doctor._home(settings_of({"home": str(tmp_path)}), {"status": None}))
    assert first.message == f"{tmp_path} {said}"
    assert ("chmod" in first.fix) == (flag == 0)
