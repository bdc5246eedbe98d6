"""cli/units.py: the service files are what the service managers read."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyworker.cli import client, homes, units
from pyworker.cli.commands import daemon, startup
from pyworker.errors import PyworkerError
from tests.support.cli import run
from tests.support.fake_control import FakeControl, replies

COMMAND = ["/opt/my app/bin/pyworker"]


@pytest.mark.parametrize("version", [247, 252, 253, 257])
def test_the_unit_has_what_this_systemd_knows(version: int) -> None:
    text = units.systemd(COMMAND, "/var/lib/py%worker", user=False, stop_seconds=90, version=version)
    assert ("Type=notify-reload" in text) is (version >= 253)
    assert ("ExecReload=" in text) is (version < 253)
    assert ("ExitType=cgroup" in text) is (version >= 250)
    assert 'ExecStart="/opt/my app/bin/pyworker" daemon run' in text
    assert "PYWORKER_HOME=/var/lib/py%%worker" in text
    dollars = units.systemd(["/opt/a$b"], "/srv/a$b", user=False, stop_seconds=90, version=version)
    assert 'ExecStart="/opt/a$$b" daemon run' in dollars
    assert 'PYWORKER_HOME="/srv/a$b"' in dollars, "$ has no meaning there"
    broken = units.systemd(COMMAND, "/srv/a\nUser=b", user=False, stop_seconds=90, version=version)
    assert 'Environment=PYWORKER_HOME="/srv/a\\nUser=b"' in broken.splitlines()
    assert "\n\n\n" not in text


def test_a_daemon_that_cannot_start_is_tried_again_for_as_long_as_it_takes() -> None:
    assert "\nStartLimitIntervalSec=0\n" in units.systemd(COMMAND, "/home/a", user=False, stop_seconds=90, version=257)
    assert "\nrespawn_max=0\n" in units.openrc(COMMAND, "/home/a", "deploy")


def test_a_daemon_that_was_stopped_stays_so_even_if_a_guardian_had_been_killed_before() -> None:
    text = units.systemd(COMMAND, "/home/a", user=False, stop_seconds=90, version=257)
    assert "0" in text.split("\nRestartPreventExitStatus=")[1].split("\n")[0].split()


@pytest.mark.parametrize("version", [247, 257])
def test_a_guardian_that_was_killed_is_no_failure_for_which_the_next_reload_would_end_the_service(version: int) -> None:
    text = units.systemd(COMMAND, "/home/a", user=False, stop_seconds=90, version=version)
    assert {"1", "KILL", "SEGV"} <= set(text.split("\nSuccessExitStatus=")[1].split("\n")[0].split())
    assert "\nRestart=always\n" in text, "one that died with all others is started again"


@pytest.mark.parametrize("user", [False, True])
def test_systemd_accepts_it(user: bool, tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed")
    version = int(subprocess.run([verify, "--version"], capture_output=True, text=True, check=True).stdout.split()[1])
    unit = tmp_path / "pyworker.service"
    unit.write_text(units.systemd(["/bin/true"], "/var/lib/x", user=user, stop_seconds=90, version=version))
    tmp_path.chmod(0o700)
    done = subprocess.run(
        [verify, *(["--user"] if user else []), "verify", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "pyworker.service" not in done.stderr, done.stderr
    assert done.returncode == 0


def test_the_init_script_is_shell(tmp_path: Path) -> None:
    script = tmp_path / "pyworker"
    script.write_text(units.openrc(COMMAND, "/home/a b", "deploy"))
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert "command='/opt/my app/bin/pyworker'" in script.read_text()
    assert "PYWORKER_HOME='/home/a b'" in script.read_text()


@pytest.mark.parametrize(("runs", "stopped"), [(True, "daemon stop -y\n"), (False, "")])
def test_the_init_script_stops_a_guardian_that_nobody_supervises(runs: bool, stopped: str, tmp_path: Path) -> None:
    program = tmp_path / "py worker"
    program.write_text(f'#!/bin/sh\n[ "$2" = status ] && exit {0 if runs else 69}\necho "$@"\n')
    program.chmod(0o755)
    script = units.openrc([str(program)], str(tmp_path), "deploy")
    done = subprocess.run(["sh", "-c", f"{script}\nstop_post"], capture_output=True, text=True, check=False)
    assert done.stdout == stopped


@pytest.mark.parametrize("quoted", ["'/srv/o'\\''neill/é'", "\"/srv/o'neill/é\"", "/srv/o\\'neill/é"])
def test_the_home_in_a_script_is_what_a_shell_reads_however_it_was_quoted(quoted: str) -> None:
    script = f"#!/sbin/openrc-run\nexport PYWORKER_HOME={quoted}\n"
    assert units.is_for(script, "/srv/o'neill/é")
    assert not units.is_for(script, "/srv/o")


@pytest.fixture
def openrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return OpenRC's note that it has started what its script for `home` starts."""
    script, started = tmp_path / "script", tmp_path / "started"
    script.write_text(units.openrc(COMMAND, str(tmp_path / "home"), "deploy"))
    started.symlink_to(script)
    monkeypatch.setattr(units, "OPENRC_SCRIPT", str(script))
    monkeypatch.setattr(units, "OPENRC_STARTED", str(started))
    return started


def test_openrc_keeps_the_daemon_of_its_script_from_its_start_to_its_stop(openrc: Path, tmp_path: Path) -> None:
    assert units.openrc_keeps(str(tmp_path / "home"))
    assert not units.openrc_keeps(str(tmp_path / "another"))
    openrc.unlink()
    assert not units.openrc_keeps(str(tmp_path / "home"))


def test_a_daemon_that_openrc_would_start_again_is_not_stopped_behind_its_back(openrc: Path, tmp_path: Path) -> None:
    """It said "The daemon has stopped.", and two seconds later another ran."""
    home = tmp_path / "home"
    home.mkdir()
    with FakeControl(str(home), {"ps": replies({"apps": []})}) as fake, pytest.raises(PyworkerError, match="OpenRC keeps this daemon") as refused:
        daemon.stop.main(["--home", str(home)], standalone_mode=False)
    assert "rc-service pyworker stop" in refused.value.hint
    assert [type(request).__name__ for request in fake.requests] == ["Ps"]


def test_the_script_of_a_service_that_openrc_keeps_is_not_taken_away(
    openrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could tell supervise-daemon then to let the daemon go."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    typed = ["--system", "--init", "openrc", "--remove", "--yes", "--home", str(tmp_path / "home")]
    with pytest.raises(PyworkerError, match="OpenRC keeps the daemon") as refused:
        startup.cmd.main(typed, standalone_mode=False)
    assert refused.value.hint.startswith("rc-service pyworker stop && pyworker startup --remove")
    assert Path(units.OPENRC_SCRIPT).exists()


def test_print_changes_nothing_and_remove_finds_nothing(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    done = run("startup", "--user", "--print", "--init", "systemd", home=home)
    assert "WantedBy=default.target" in done.out
    gone = run("startup", "--user", "--remove", "--init", "systemd", home=home, HOME=str(tmp_path))
    assert gone.code == 0
    assert "Nothing to remove" in gone.err
    assert not Path(home).exists()


def test_without_a_terminal_nothing_is_written_unasked(tmp_path: Path) -> None:
    done = run("startup", "--user", "--init", "systemd", home=str(tmp_path / "home"), HOME=str(tmp_path))
    assert done.code == 2
    assert "write   " in done.err
    assert "-y" in done.err
    assert not (tmp_path / ".config").exists()


def test_where_no_service_manager_runs_it_is_said_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(startup, "_SYSTEMD_RUNS", str(tmp_path / "none"))
    monkeypatch.setattr(startup, "_runs_openrc", lambda: False)
    with pytest.raises(PyworkerError, match="neither systemd nor OpenRC runs here") as refused:
        startup.cmd.main(["--user", "--home", str(tmp_path)], standalone_mode=False)
    assert "pyworker run app.toml" in refused.value.hint
    assert capsys.readouterr().err == ""
    for words in (["--print"], ["--remove"]):
        assert startup.cmd.main(["--user", *words, "--home", str(tmp_path)], standalone_mode=False) == 0
    assert "[Service]" in capsys.readouterr().out
    monkeypatch.setattr(startup, "_SYSTEMD_RUNS", str(tmp_path))
    with pytest.raises(PyworkerError, match="no terminal to ask on"):
        startup.cmd.main(["--user", "--home", str(tmp_path)], standalone_mode=False)


def test_by_sudo_openrc_starts_the_daemon_of_who_typed_it_in_the_home_of_that_user(tmp_path: Path) -> None:
    typed = ("startup", "--system", "--init", "openrc", "--print")
    theirs = run(*typed, home=str(tmp_path / "roots"), PYWORKER_HOME="", SUDO_USER="root").out
    assert f"PYWORKER_HOME={os.path.expanduser('~root')}/.local/state/pyworker" in theirs
    assert "command_user=root" in theirs
    named = run(*typed, home=str(tmp_path / "named"), SUDO_USER="root").out
    assert f"PYWORKER_HOME={tmp_path}/named" in named


def test_by_sudo_the_machines_service_says_whose_apps_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "control.sock").touch()
    monkeypatch.setattr(client, "home_of", lambda _user: str(tmp_path))
    monkeypatch.setattr(client, "apps_wanted", lambda _home: {"shop": True})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_USER", "deploy")
    with pytest.raises(PyworkerError, match="no terminal to ask on"):
        startup.cmd.main(["--system", "--init", "systemd", "--home", str(tmp_path / "roots")], standalone_mode=False)
    said = capsys.readouterr().err
    assert "It is for the apps that root starts. deploy has a daemon of its own: the same without sudo" in said
    assert "linger" not in said, "which is for services of users"


@pytest.mark.parametrize(("active", "said"), [(0, "The daemon that systemd has started goes on"), (3, "pyworker daemon stop -y &&")])
def test_a_file_that_is_written_anew_has_nobody_stop_what_systemd_keeps_already(active: int, said: str, home: str, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", systemctl=f"[ $2 = is-active ] && exit {active}")
    with FakeControl(home, {"status": replies({"apps": 1})}):
        done = run("startup", "--user", "--init", "systemd", home=home, HOME=str(tmp_path), PATH=path)
    assert said in done.err


def test_it_is_said_of_a_file_that_is_replaced_or_removed_that_it_is_for_another_home(tmp_path: Path) -> None:
    """Its apps would be missing after the next boot, and nobody had been told."""
    unit = tmp_path / ".config" / "systemd" / "user" / "pyworker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(units.systemd(COMMAND, "/srv/shop", user=True, stop_seconds=90, version=257))
    typed = ("startup", "--user", "--init", "systemd")
    for words, said in (((), "starts the daemon of /srv/shop now"), (("--remove",), "It is for the daemon of /srv/shop, not of")):
        assert said in run(*typed, *words, home=str(tmp_path / "home"), HOME=str(tmp_path)).err
        assert "daemon of" not in run(*typed, *words, home="/srv/shop", HOME=str(tmp_path)).err
    assert "/srv/shop" in unit.read_text(), "nobody has said yes"


@pytest.mark.parametrize("runs", [True, False])
def test_the_daemon_of_another_home_that_systemd_has_started_is_not_taken_for_this_one(runs: bool, home: str, tmp_path: Path) -> None:
    unit = tmp_path / ".config" / "systemd" / "user" / "pyworker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(units.systemd(COMMAND, "/srv/shop", user=True, stop_seconds=90, version=257))
    path = programs(tmp_path / "bin", systemctl="exit 0", loginctl="exit 0")
    with FakeControl(home, {"status": replies({"apps": 1})}) if runs else contextlib.nullcontext():
        said = run("startup", "--user", "--init", "systemd", home=home, HOME=str(tmp_path), PATH=path).err
    assert "The daemon of /srv/shop goes on" in said
    assert "The daemon that systemd has started goes on" not in said
    assert "--now" not in said, "the unit is started: systemd would do nothing"
    assert f"  {'pyworker daemon stop -y && ' if runs else ''}systemctl --user restart pyworker     (which stops the apps of /srv/shop)" in said


def programs(folder: Path, **scripts: str) -> str:
    """Return a PATH of these alone."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def users_startup(tmp_path: Path, **environment: str) -> str:
    """What `startup --user` ends with when something fails."""
    typed = ("startup", "--user", "--init", "systemd", "-y")
    done = run(*typed, home=str(tmp_path / "home"), HOME=str(tmp_path), XDG_CONFIG_HOME="", **environment)
    assert done.code == 1
    return done.err


def test_startup_does_what_it_shows_and_remove_undoes_it(tmp_path: Path) -> None:
    log, home = tmp_path / "log", str(tmp_path / "home")
    path = programs(tmp_path / "bin", systemctl=f'echo "$@" >> {log}', loginctl="")
    (folder := tmp_path / ".config" / "systemd" / "user").mkdir(parents=True)
    typed = ("startup", "--user", "--init", "systemd", "-y")
    done = run(*typed, home=home, HOME=str(tmp_path), PATH=path, XDG_CONFIG_HOME="")
    assert done.code == 0, done.err
    assert f"PYWORKER_HOME={home}\n" in (folder / "pyworker.service").read_text()
    assert log.read_text().splitlines() == ["--version", "--user daemon-reload", "--user enable --now pyworker.service"]
    assert "Done. pyworker startup --remove undoes it" in done.err
    log.unlink()
    done = run(*typed, "--remove", home=home, HOME=str(tmp_path), PATH=path, XDG_CONFIG_HOME="")
    assert done.code == 0, done.err
    assert os.listdir(folder) == []
    assert log.read_text().splitlines() == ["--version", "--user disable pyworker.service", "--user daemon-reload"]


def test_with_openrc_it_is_a_script_for_the_machine_that_only_root_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, script = tmp_path / "log", tmp_path / "init.d" / "pyworker"
    say = f'echo "${{0##*/}} $@" >> {log}'
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", **dict.fromkeys(("rc-update", "rc-service", "systemctl"), say)))
    monkeypatch.setattr(units, "OPENRC_SCRIPT", str(script))
    typed = ["--init", "openrc", "--yes", "--home", str(tmp_path / "home")]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PyworkerError, match="writing a system service needs root"):
        startup.cmd.main(typed, standalone_mode=False)
    with pytest.raises(PyworkerError, match="OpenRC has no services of users"):
        startup.cmd.main([*typed, "--user"], standalone_mode=False)
    assert not script.exists()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert startup.cmd.main(typed, standalone_mode=False) == 0
    assert (script.read_text()[:3], script.stat().st_mode & 0o777) == ("#!/", 0o755)
    assert startup.cmd.main([*typed, "--remove"], standalone_mode=False) == 0
    assert not script.exists()
    assert log.read_text().splitlines() == [
        "rc-update add pyworker default", "rc-service pyworker start", "rc-update del pyworker default"
    ]  # fmt: skip


def test_who_may_not_turn_lingering_on_is_told_who_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "lingers", lambda _user: False)
    linger = startup._commands("systemd", True, start=True)[-1]
    assert startup._way_on(linger).endswith(f"as root: loginctl enable-linger {homes.user_name()}")
    monkeypatch.setattr(startup, "lingers", lambda _user: True)
    assert linger not in startup._commands("systemd", True, start=True)


def test_who_has_come_by_su_is_told_how_to_have_services(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", systemctl='echo "no bus in $XDG_RUNTIME_DIR" >&2; exit 1')
    said = users_startup(tmp_path, PATH=path, XDG_RUNTIME_DIR=str(tmp_path))
    assert f"no bus in {tmp_path}" in said
    assert f"As root: loginctl enable-linger {homes.user_name()}" in said
    assert f"no bus in /run/user/{os.geteuid()}" in users_startup(tmp_path, PATH=path, XDG_RUNTIME_DIR="")


@pytest.mark.parametrize("part", [sys.executable, startup.__file__])
def test_the_interpreter_and_the_package_count_among_what_root_will_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    theirs = {part: ("/home/ada/python", "user 1000")}
    monkeypatch.setattr(startup, "_not_of_root", theirs.get)
    monkeypatch.setattr(startup, "_command", lambda: ["/opt/pyworker/bin/pyworker"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(PyworkerError, match="no terminal to ask on"):
        startup.cmd.main(["--system", "--init", "systemd", "--home", str(tmp_path)], standalone_mode=False)
    assert "Root will run what user 1000 can change (/home/ada/python)" in capsys.readouterr().err


def test_it_is_said_when_others_can_change_what_root_will_run(tmp_path: Path) -> None:
    assert startup._not_of_root("/bin/sh") is None
    program = tmp_path / "bin" / "pyworker"
    program.parent.mkdir()
    program.touch()
    if os.geteuid() == 0:
        os.chown(program.parent, 65534, 0)
        assert startup._not_of_root(str(program)) == (str(program.parent), "user 65534")
        os.chown(program.parent, 0, 50)
        assert startup._not_of_root(str(program)) is None
        os.chmod(program.parent, 0o2775)  # as /usr/local is on some Debians
        assert startup._not_of_root(str(program)) == (str(program.parent), "group 50")
    else:
        assert startup._not_of_root(str(program)) == (str(program), f"user {os.geteuid()}")
