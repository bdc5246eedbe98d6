"""Resolving: real paths, the interpreter, the environment, and a place in the file for all that is not there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.cpus import usable_cpus
from pyworker.config.load import load, load_inline
from pyworker.config.problem import ConfigError, Problem
from pyworker.config.resolve import find_paths, resolve
from pyworker.config.schema import ResolvedApp


def resolved(folder: Path, text: str, **options: Any) -> ResolvedApp:
    file = folder / "app.toml"
    file.write_text(text)
    (app,) = load(str(file)).apps
    given: dict[str, Any] = {
        "shell_env": {},
        "base_env": {"PATH": os.defpath},
        "our_python": sys.executable,
        "is_root": False,
    }
    return resolve(app, file=str(file), **{**given, **options})


def problems(folder: Path, text: str, **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        resolved(folder, text, **options)
    return caught.value.problems


def make_venv(folder: Path) -> str:
    """A folder that looks like a virtual environment; its python is a link, as venv makes it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    (folder / "bin" / "python").symlink_to("/bin/sh")
    return str(folder / "bin" / "python")


def test_smallest_app_is_resolved(tmp_path: Path) -> None:
    found = resolved(tmp_path, '[app]\ntarget = "a:b"')
    real = os.path.realpath(tmp_path)
    assert (found.config.cwd, found.workers, found.python) == (real, 1, sys.executable)
    assert (found.uid, found.gid, found.groups) == (None, None, ())
    assert found.env["PYTHONUNBUFFERED"] == "1"
    assert found.source == str(tmp_path / "app.toml")
    assert found.mtime_ns == (tmp_path / "app.toml").stat().st_mtime_ns


def test_the_folder_is_that_of_the_file_that_was_read(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "app.toml").write_text('[app]\ncommand = "true"\n')
    current = tmp_path / "current"
    current.symlink_to("old")
    loaded = load(str(current / "app.toml"))
    current.unlink()
    current.symlink_to("new")
    found = resolve(
        loaded.apps[0], file=loaded.path, shell_env={}, base_env={"PATH": os.defpath}, our_python=sys.executable,
        is_root=os.geteuid() == 0, read=loaded.opened,
    )  # fmt: skip
    assert found.config.cwd == os.path.realpath(tmp_path / "old")


def test_links_are_followed_and_relative_paths_start_at_cwd(tmp_path: Path) -> None:
    # short: the path of a socket has 107 bytes, and in this one is the user's name
    release = tmp_path / "2"
    (release / "run").mkdir(parents=True)
    (release / "server.py").touch()
    (release / ".env").write_text("A=1")
    (tmp_path / "current").symlink_to(release)
    text = """
    [app]
    script = "server.py"
    cwd = "current"
    bind = [":80", "unix:x.sock"]
    env_file = [".env", "none?"]
    logs.file = "run/out.log"
    """
    found = resolved(tmp_path, text)
    real = os.path.realpath(release)
    assert found.config.cwd == real
    assert found.config.script == f"{real}/server.py"
    assert found.config.bind == ("0.0.0.0:80", f"unix:{real}/x.sock")
    assert found.config.logs.file == f"{real}/run/out.log"
    assert found.env["A"] == "1"


@pytest.mark.parametrize(("mark", "name"), [("pyvenv.cfg", "VIRTUAL_ENV"), ("conda-meta", "CONDA_PREFIX")])
def test_interpreter_is_the_venvs_own_path_never_what_it_links_to(tmp_path: Path, mark: str, name: str) -> None:
    python = make_venv(tmp_path / ".venv")
    (tmp_path / ".venv" / "pyvenv.cfg").rename(tmp_path / ".venv" / mark)
    found = resolved(tmp_path, '[app]\ntarget = "a:b"')
    assert found.python == os.path.realpath(tmp_path) + "/.venv/bin/python"
    assert os.path.samefile(found.python, python)
    assert found.env[name] == os.path.dirname(os.path.dirname(found.python))
    assert found.env["PATH"].startswith(os.path.dirname(found.python) + ":")


def test_interpreter_may_be_a_folder_a_file_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = make_venv(tmp_path / "env")
    monkeypatch.setenv("PATH", str(tmp_path / "env/bin"))
    named = resolved(tmp_path, f'[app]\ntarget = "a:b"\npython = "{os.path.basename(python)}"')
    assert named.python == str(tmp_path / "env/bin/python")
    for given in ("env", "env/bin/python", str(tmp_path / "env"), python):
        found = resolved(tmp_path, f'[app]\ntarget = "a:b"\npython = "{given}"')
        assert os.path.dirname(found.python).endswith("/env/bin")
    with pytest.raises(ConfigError, match="python"):
        resolved(tmp_path, '[app]\ntarget = "a:b"\npython = "no-such-python-9"')


def test_auto_workers_are_counted(tmp_path: Path) -> None:
    found = resolved(tmp_path, '[app]\ntarget = "a:b"\nworkers = "auto"')
    assert (found.workers, found.config.workers) == (usable_cpus(), "auto")


def test_environment_is_built_in_its_order(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=file\nB=file\nDATABASE_URL=postgres://u:p@h/d")
    text = """
    [app]
    target = "a:b"
    env_file = ".env"
    inherit_env = ["A", "S*"]
    [app.env]
    B = "${B}+table"
    C = "${HIDDEN:-no}"
    PYTHONUNBUFFERED = ""
    """
    found = resolved(tmp_path, text, shell_env={"A": "shell", "SX": "1", "HIDDEN": "seen", "OTHER": "x"})
    assert (found.env["A"], found.env["B"], found.env["C"], found.env["SX"]) == ("file", "file+table", "seen", "1")
    assert "OTHER" not in found.env
    assert found.env["PYTHONUNBUFFERED"] == ""
    assert found.secrets == ("DATABASE_URL",)
    assert found.from_shell == {"HIDDEN": "seen", "A": "shell"}  # for a reload that nobody types in a shell


def test_the_shells_path_is_kept_for_a_reload_without_a_shell_as_it_was_before_the_venv_came_first(tmp_path: Path) -> None:
    make_venv(tmp_path / ".venv")
    text = '[app]\ntarget = "a:b"\ninherit_env = ["*"]'
    found = resolved(tmp_path, text, shell_env={"PATH": "/shells/own"})
    assert found.env["PATH"] == f"{tmp_path}/.venv/bin:/shells/own"
    assert found.from_shell == {"PATH": "/shells/own"}


def test_all_that_is_missing_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    text = """[app]
script = "gone.py"
python = "gone"
bind = ["unix:gone/x.sock"]
env_file = [".env"]
logs.file = "gone/x.log"
[app.env]
URL = "${NOT_SET_ANYWHERE}"
"""
    found = problems(tmp_path, text)
    assert [(p.line, p.key) for p in found] == [
        (2, "script"),
        (3, "python"),
        (4, "bind[0]"),
        (5, "env_file[0]"),
        (6, "logs.file"),
        (8, "env.URL"),
    ]
    assert found[0].source == 'script = "gone.py"'
    assert "which does not exist" in found[0].message


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('cwd = "gone"', "cwd", "does not exist"),
        ('cwd = "app.toml"', "cwd", "is not a folder"),
        ('python = "app.toml"', "python", "cannot be executed"),
        ('python = "."', "python", "no usable bin/python"),
        (f'bind = "unix:{"x" * 120}"', "bind[0]", "too long"),
        ('tls = { cert = "app.toml", key = "gone.pem" }', "tls.key", "does not exist"),
        ('logs.file = "."', "logs.file", "is a folder"),
        ('user = "no-such-user"', "user", "no user"),
        ('group = "no-such-group"', "group", "no group"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, text: str, key: str, message: str) -> None:
    (problem,) = problems(tmp_path, f'[app]\ntarget = "a:b"\n{text}\n')
    assert (problem.key, problem.line) == (key, 3)
    assert message in problem.message


def test_a_folder_that_python_runs_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "bot").mkdir()
    (tmp_path / "bot" / "__main__.py").touch()
    (problem,) = problems(tmp_path, '[app]\nscript = "bot"\n')
    assert "which is a folder" in problem.message
    assert problem.hint == 'Python runs its __main__.py: "bot/__main__.py"'


@pytest.mark.parametrize("interpreter", ["/usr/bin/env python3", "/bin/sh\nexec python3 $0"])  # as pex --sh-boot makes it
def test_a_program_in_an_archive_is_no_interpreter(tmp_path: Path, interpreter: str) -> None:
    """It would serve, in the place of the template."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__main__.py").write_text("print('serving')")
    zipapp.create_archive(tmp_path / "src", tmp_path / "shop.pex", interpreter)
    (problem,) = problems(tmp_path, '[app]\ntarget = "a:b"\npython = "shop.pex"\n')
    assert "a program in a zip archive" in problem.message
    assert f'command = ["{tmp_path}/shop.pex"]' in problem.hint


@pytest.mark.parametrize("option", ["cwd", "python", "script", "logs.file"])
@pytest.mark.parametrize(("folder", "hint"), [("${LOGS}", "no variables"), ("~none-of-this-name", "home folder")])
def test_what_a_path_does_not_fill_in_is_no_folder_to_make(
    tmp_path: Path, option: str, folder: str, hint: str
) -> None:
    target = "" if option == "script" else 'target = "a:b"'
    (found,) = problems(tmp_path, f'[app]\n{target}\n{option} = "{folder}/x.log"')
    assert hint in found.hint
    assert "mkdir" not in found.hint


@pytest.mark.skipif(os.path.realpath("/run") != "/run" or not os.path.isdir("/run"), reason="no /run here")
def test_a_folder_below_run_is_to_be_made_at_each_boot_too(tmp_path: Path) -> None:
    """It is there until the machine is started again, and the app would fail then."""
    (found,) = problems(tmp_path, '[app]\nname = "shop"\ntarget = "a:b"\nbind = "unix:/run/pw-none/web.sock"\n')
    made, at_boot = found.hint.split("\n")
    assert made == "make it: mkdir -p /run/pw-none"
    assert at_boot == "a boot empties /run: the line `d /run/pw-none` in /etc/tmpfiles.d/shop.conf makes it each time"
    (elsewhere,) = problems(tmp_path, '[app]\ntarget = "a:b"\nbind = "unix:none/web.sock"\n')
    assert elsewhere.hint == f"make it: mkdir -p {os.path.realpath(tmp_path)}/none"


def test_command_must_be_a_program(tmp_path: Path) -> None:
    assert resolved(tmp_path, '[app]\ncommand = "sh -c true"').config.command == ("sh", "-c", "true")
    (problem,) = problems(tmp_path, '[app]\ncommand = ["no-such-program-9"]')
    assert (problem.key, "no-such-program-9" in problem.message) == ("command", True)
    (tmp_path / "run.sh").touch()
    (problem,) = problems(tmp_path, '[app]\ncommand = ["./run.sh"]')
    assert problem.key == "command"
    (tmp_path / "run.sh").chmod(0o755)
    resolved(tmp_path, '[app]\ncommand = ["./run.sh"]')


@pytest.mark.parametrize("path", ["bin:/none", ":/none", "."])
def test_a_command_is_found_in_a_folder_of_path_that_is_relative_to_the_apps(tmp_path: Path, path: str) -> None:
    program = tmp_path / ("bin" if "bin" in path else "") / "vite"
    program.parent.mkdir(exist_ok=True)
    program.touch(mode=0o755)
    assert resolved(tmp_path, f'[app]\ncommand = ["vite"]\nenv.PATH = "{path}"').config.command == ("vite",)


@pytest.mark.parametrize(
    ("command", "mode", "hint"),
    [
        ("run.py", 0o755, '/run.py: a Python script is script = "run.py"'),
        ("./run.py x", 0o644, '/run.py, which may not be executed: a Python script is script = "./run.py", with args'),
        ("run", 0o755, '/run: write "./run"'),
        ("./run", 0o644, "/run, which may not be executed: chmod +x "),
        ("run2", 0o755, "looked in PATH: "),
    ],
)
def test_a_command_that_is_a_file_of_the_folder_is_told_how_it_is_written(tmp_path: Path, command: str, mode: int, hint: str) -> None:
    for name in ("run", "run.py"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    (found,) = problems(tmp_path, f'[app]\ncommand = "{command}"')
    assert "which is no program" in found.message
    assert hint in found.hint


def test_a_command_that_only_the_shell_finds_is_told_which_file_that_is(tmp_path: Path) -> None:
    program = tmp_path / "env" / "bin" / "streamlit"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    (found,) = problems(tmp_path, '[app]\ncommand = ["streamlit", "run"]', shell_env={"PATH": str(program.parent)})
    assert f'only the PATH of this shell has it: write "{program}"\nlooked in PATH: ' in found.hint


def test_broken_venv_beside_the_app_is_an_error_not_another_python(tmp_path: Path) -> None:
    make_venv(tmp_path / ".venv")
    (tmp_path / ".venv" / "bin" / "python").unlink()
    (problem,) = problems(tmp_path, '[app]\ntarget = "a:b"')
    assert "no usable bin/python" in problem.message


def test_a_certificate_is_known_by_its_link_which_a_renewal_turns(tmp_path: Path) -> None:
    (tmp_path / "c1.pem").touch()
    (tmp_path / "k.pem").touch(mode=0o600)
    (tmp_path / "c.pem").symlink_to("c1.pem")
    tls = resolved(tmp_path, '[app]\ntarget = "a:b"\ntls = { cert = "c.pem", key = "k.pem" }').config.tls
    assert tls is not None
    assert tls.cert == os.path.realpath(tmp_path) + "/c.pem"


def test_private_key_must_not_be_readable_by_everyone(tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    (tmp_path / "k.pem").touch(mode=0o600)
    text = '[app]\ntarget = "a:b"\ntls = { cert = "c.pem", key = "k.pem" }'
    found = resolved(tmp_path, text)
    assert found.config.tls is not None
    assert found.config.tls.key == os.path.realpath(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(0o644)
    (problem,) = problems(tmp_path, text)
    assert "chmod" in problem.hint


def test_the_command_of_a_hint_works_in_a_folder_with_a_space_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my app"
    folder.mkdir()
    (folder / "c.pem").touch()
    (folder / "k.pem").touch(mode=0o604)
    (folder / "python").touch(mode=0o644)
    text = '[app]\ntarget = "a:b"\npython = "./python"\ntls = { cert = "c.pem", key = "k.pem" }'
    for problem in problems(folder, text):
        assert subprocess.run(problem.hint, shell=True, check=False).returncode == 0
    assert resolved(folder, text).python == str(folder / "python")
    (problem,) = problems(folder, '[app]\ntarget = "a:b"\npython = "no-such-venv"')
    assert problem.hint.endswith(f"python3 -m venv '{folder}/no-such-venv'")
    (problem,) = problems(folder, '[app]\ntarget = "a:b"\npython = "no-such-venv/bin/python"')
    assert problem.hint.endswith(f"python3 -m venv '{folder}/no-such-venv'")


def test_no_virtual_environment_is_to_be_made_where_an_interpreter_of_the_system_would_be(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in (f"{tmp_path}/bin/python2", "python9.9"):
        (problem,) = problems(tmp_path, f'[app]\ntarget = "a:b"\npython = "{name}"')
        assert "-m venv" not in problem.hint
        assert "without `python` it is /" in problem.hint


def test_root_refuses_a_file_that_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "app.toml").touch()
    (tmp_path / "app.toml").chmod(0o666)
    (problem,) = problems(tmp_path, '[app]\ntarget = "a:b"', is_root=True)
    assert stat.filemode((tmp_path / "app.toml").stat().st_mode) == "-rw-rw-rw-"
    assert problem.message.startswith("root does not start apps from")


def test_app_without_a_file_is_resolved_from_its_own_folder(tmp_path: Path) -> None:
    app = load_inline({"target": "a:b", "inherit_env": ["*"]}, str(tmp_path))
    found = resolve(app, file="", shell_env={"X": "1"}, base_env={}, our_python=sys.executable, is_root=False)
    assert (found.config.cwd, found.env["X"], found.source, found.mtime_ns) == (os.path.realpath(tmp_path), "1", "", 0)


def test_checking_paths_looks_at_neither_environment_nor_rights(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nscript = "x.py"\nuser = "no-such-user"\nenv_file = ".env"\nenv.A = "${NO}"\n')
    (app,) = load(str(file)).apps
    with pytest.raises(ConfigError) as caught:
        find_paths(app, file=str(file), our_python=sys.executable)
    assert [p.key for p in caught.value.problems] == ["script"]
    (tmp_path / "x.py").touch()
    find_paths(app, file=str(file), our_python=sys.executable)


def test_what_a_profile_says_is_shown_where_the_profile_says_it(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\nscript = "a.py"\n[profiles.dev.app]\nscript = "b.py"\n')
    loaded = load(str(file), profile="dev")
    assert loaded.opened.profile == "dev", "which is what the daemon resolves it with"
    with pytest.raises(ConfigError) as caught:
        find_paths(loaded.apps[0], file=str(file), our_python=sys.executable, profile="dev")
    assert [(p.line, p.source) for p in caught.value.problems] == [(4, 'script = "b.py"')]


def test_each_variable_knows_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FROM_FILE=1\nTWICE=file\n")
    found = resolved(
        tmp_path,
        '[app]\ntarget = "a:b"\nenv_file = [".env", "none.env?"]\ninherit_env = ["AWS_*"]\n'
        '[app.env]\nTWICE = "table"\nPATH = "${PATH}"\n',
        shell_env={"AWS_REGION": "x", "OTHER": "y"},
        base_env={"PATH": os.defpath, "LANG": "C.UTF-8"},
    )
    wanted = {"LANG": "base", "AWS_REGION": "shell", "FROM_FILE": ".env", "TWICE": "[env]", "PATH": "[env]"}
    assert {name: found.env_origins[name] for name in wanted} == wanted
    assert found.env_origins["PYTHONUNBUFFERED"] == "pyworker"
    assert found.env_origins.keys() == found.env.keys()


def test_what_the_venv_sets_and_an_optional_file_that_is_there_are_named(tmp_path: Path) -> None:
    make_venv(tmp_path / ".venv")
    (tmp_path / ".env").write_text("A=1\n")
    found = resolved(tmp_path, '[app]\ntarget = "a:b"\nenv_file = ".env?"\n')
    assert {name: found.env_origins[name] for name in ("PATH", "VIRTUAL_ENV", "A")} == {
        "PATH": "venv", "VIRTUAL_ENV": "venv", "A": ".env"
    }  # fmt: skip
    assert list(found.env_files) == [str(tmp_path.resolve() / ".env")]


def test_the_address_of_a_state_server_is_looked_at_when_it_is_filled_in(tmp_path: Path) -> None:
    text = '[app]\ntarget = "a:b"\nstate = "${CACHE}"\n'
    assert resolved(tmp_path, text, shell_env={"CACHE": "redis://h:1/0"}).state == "redis://h:1/0"
    (found,) = problems(tmp_path, text, shell_env={"CACHE": "memcached://h"})
    assert "no address of a Redis server once ${CACHE} is filled in" in found.message


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path.resolve()
    monkeypatch.setenv("HOME", str(home))
    (home / "shop").mkdir()
    (home / "job.py").touch()
    python = make_venv(home / "venv")
    text = '[app]\nscript = "~/job.py"\ncwd = "~/shop"\npython = "~/venv"\nenv_file = "~/.env?"\nlogs.file = "~/job.log"\n'
    found = resolved(tmp_path, text)
    config = found.config
    assert (config.cwd, config.script, found.python) == (f"{home}/shop", f"{home}/job.py", python)
    assert (config.env_file, config.logs.file) == ((f"{home}/.env?",), f"{home}/job.log")


def test_without_its_folder_nothing_else_of_an_app_is_looked_for(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, '[app]\nscript = "x.py"\ncwd = "none"\n')
    assert (found.key, found.hint) == ("cwd", "relative to the folder of the config file")


@pytest.mark.skipif(os.getuid() != 0, reason="only root is that careful")
def test_root_takes_no_secrets_from_a_file_that_anybody_can_write(tmp_path: Path) -> None:
    (tmp_path / ".env").touch()
    (tmp_path / ".env").chmod(0o666)
    text = '[app]\ntarget = "a:b"\nenv_file = [".env", "missing?"]'
    assert resolved(tmp_path, text)
    (found,) = problems(tmp_path, text, is_root=True)
    assert "can be written by everyone" in found.message
    assert found.hint.startswith("chmod go-w ")


def test_all_env_files_together_are_no_larger_than_one_may_be(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("A=" + "x" * 100_000)
    resolved(tmp_path, f"[app]\ntarget = 'a:b'\nenv_file = {['e'] * 10}")
    (found,) = problems(tmp_path, f"[app]\ntarget = 'a:b'\nenv_file = {['e'] * 11}")
    assert "`env_file[10]` of app" in found.message
    assert "with those before it it is larger than" in found.message
