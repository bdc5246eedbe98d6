"""An app's config -> all that one generation pins: real paths, interpreter, environment, ids, number of workers.

The only module of config besides load.py that looks at the file system. Called at each start and reload, so
that a changed symlink, dotenv file or venv is seen; nothing is kept between calls. It opens no socket, starts
no process and changes nothing. `find_paths` alone is what `pyworker check` uses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any

from pyworker import regular
from pyworker.config import environment
from pyworker.config import identity as ids
from pyworker.config.address import MAX_UNIX_PATH, Address, AddressError, parse_bind
from pyworker.config.check import STATE_HINT, STATE_SERVERS
from pyworker.config.cpus import usable_cpus
from pyworker.config.interpolate import InterpolationError, interpolate
from pyworker.config.load import locate
from pyworker.config.problem import ConfigError, Problem
from pyworker.config.report import dotted
from pyworker.config.schema import AppConfig, ResolvedApp, TlsConfig
from pyworker.config.spans import Path
from pyworker.errors import WANTING
from pyworker.record import replace

DEFAULT_VENV = ".venv"  # in the app's folder: its Python, when the config names none
FROM_SHELL = "shell"  # in ResolvedApp.env_origins: what inherit_env took


def resolve(
    app: AppConfig,
    *,
    file: str,
    shell_env: Mapping[str, str],
    base_env: Mapping[str, str],
    our_python: str,
    is_root: bool,
    read: ids.Opened | None = None,
    profile: str = "",
) -> ResolvedApp:
    """Look everything up; raise ConfigError with all that cannot be had.

    `file` is the config file, "" for an app without one (its cwd is absolute then); `read` which file that was when it
    was read, if that is known, and `profile` the one that it was read with. `shell_env` is what inherit_env
    and ${VAR} may take from; `base_env` gives PATH, LANG and the like. Symlinks are followed, but never the one that
    is a venv's python: the interpreter finds its venv by that path.
    """
    found = _Found(app.name, file, profile)
    shell = _Shell(shell_env)
    who, users_own = _identity(app, file, is_root, found, read)
    config, python = _paths(app, read.real if read else file, our_python, found)
    if is_root and config.logs.named_file is not None:
        _log_file(config.logs.named_file, file, who, found, read)
    env, origins, env_files = _environment(
        app, config, python, who, shell, base_env, found, file if is_root else None, read
    )
    if app.command:
        _command(app, config, env, shell_env, found)
    state = _state(app, env, shell, found)
    found.stop_if_wrong()
    return ResolvedApp(
        config=config,
        workers=usable_cpus() if app.workers == "auto" else app.workers,
        python=python,
        env=env,
        secrets=environment.secrets(env),
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        source=file,
        mtime_ns=read.info.st_mtime_ns if read else _mtime(file),
        env_origins=origins,
        state=state,
        from_shell=shell.asked,
        crc=read.crc if read else 0,
        env_files=env_files,
        users_own=users_own,
    )


def find_paths(app: AppConfig, *, file: str, our_python: str, profile: str = "") -> None:
    """Raise ConfigError when a folder, script, interpreter or certificate that the app names is not there."""
    found = _Found(app.name, file, profile)
    _paths(app, file, our_python, found)
    found.stop_if_wrong()


class _Shell(dict[str, str]):
    """The shell's environment. `asked`: the variables of it that the app's are made of, and that are not among them as they are."""

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__(env)
        self.asked: dict[str, str] = {}

    def get(self, name: str, default: Any = None) -> Any:
        value = super().get(name, default)
        if name in self:
            self.asked[name] = value
        return value


class _Found:
    """The problems so far, each with its place in the config file."""

    def __init__(self, app: str, file: str, profile: str) -> None:
        self.app = app
        self._file = file
        self._profile = profile
        self._problems: list[Problem] = []

    def add(self, key: Path, message: str, hint: str = "", code: str = "invalid_value") -> None:
        """Report what is wrong with an option; the message continues "`workers` "."""
        if code == "not_found" and "${" in message + hint:
            hint = "no variables are filled in in a path: write it out"
        elif code == "not_found" and "/~" in message + hint:
            hint = "~ is the home folder in HOME, or of the user who is named: there is none. Write it out"
        text = f"`{dotted(key)}` of app `{self.app}` {message}" if key else message
        problem = Problem(text, hint, dotted(key), self._file, code=code)
        if self._file and key:
            problem = locate(self._file, self.app, key, problem, self._profile)
        self._problems.append(problem)

    def stop_if_wrong(self) -> None:
        if self._problems:
            raise ConfigError(sorted(self._problems, key=lambda p: (p.line, p.column)))


def _identity(
    app: AppConfig, file: str, is_root: bool, found: _Found, read: ids.Opened | None
) -> tuple[ids.Identity, bool]:
    """Return who the app runs as, and whether root obeys a config file that is in the hands of that user."""
    nobody = ids.Identity(None, None, (), "", "", "")
    users_own = False
    try:
        who = ids.identify(app.user, app.group, is_root=is_root)
    except ids.IdentityError as error:
        found.add((error.key,), error.message, error.hint, "identity")
        return nobody, users_own
    try:
        if is_root and file:
            ids.check_owner(file, who.uid, read)
            if app.group is not None:
                ids.check_group(who, app.group, file, read)
            users_own = bool(who.uid and ids.is_of(who.uid, file, read))
    except ids.IdentityError as error:
        found.add((error.key,) if error.key else (), error.message, error.hint, "identity")
    except OSError as error:
        if error.errno in WANTING:  # no fault of the file's
            raise
        found.add((), f"cannot look at {file}: {error.strerror}", code="unreadable")
    return who, users_own


def _log_file(path: str, file: str, who: ids.Identity, found: _Found, read: ids.Opened | None) -> None:
    with contextlib.suppress(OSError):  # what is not there is said where its path is looked up
        try:
            ids.check_log(path, who.uid, file, read)
        except ids.IdentityError as error:
            found.add(("logs", "file"), f"is refused: {error.message}", error.hint, "identity")


def cwd_of(app: AppConfig, file: str) -> str:
    """Return the real path of the folder that an app of this config file runs in."""
    folder = os.path.dirname(os.path.realpath(file)) if file else "/"
    return os.path.realpath(os.path.join(folder, os.path.expanduser(app.cwd)))


def _paths(app: AppConfig, file: str, our_python: str, found: _Found) -> tuple[AppConfig, str]:
    cwd = cwd_of(app, file)
    if not os.path.isdir(cwd):
        problem = "is not a folder" if os.path.exists(cwd) else "does not exist"
        again = (
            f"--cwd names another one; if it was removed under the app: pyworker delete {app.name}, and start it again"
        )
        hint = "relative to the folder of the config file" if file else again
        found.add(("cwd",), f"names {cwd}, which {problem}", hint, "not_found")
        found.stop_if_wrong()  # all else would be looked for in the wrong place
    script = None if app.script is None else os.path.realpath(_file(cwd, app.script, ("script",), found))
    logs = app.logs
    if logs.named_file is not None:
        logs = replace(logs, file=_new_file(cwd, logs.named_file, ("logs", "file"), found))
    config = replace(
        app,
        cwd=cwd,
        script=script,
        bind=tuple(str(_bind(cwd, text, ("bind", i), found)) for i, text in enumerate(app.bind)),
        env_file=tuple(os.path.join(cwd, os.path.expanduser(name)) for name in app.env_file),
        logs=logs,
        tls=None if app.tls is None else _tls(cwd, app.tls, found),
    )
    return config, _python(app.python, cwd, our_python, found)


def _file(cwd: str, name: str, key: Path, found: _Found) -> str:
    path = os.path.join(cwd, os.path.expanduser(name))
    if not os.path.isfile(path):
        problem = "is a folder" if os.path.isdir(path) else "does not exist"
        main = os.path.isfile(os.path.join(path, "__main__.py"))
        hint = f'Python runs its __main__.py: "{os.path.join(name, "__main__.py")}"' if main else f"looked for {path}"
        found.add(key, f"names {name}, which {problem}", hint, "not_found")
    return path


def _new_file(cwd: str, name: str, key: Path, found: _Found) -> str:
    """Return the real path of a file that need not exist; its folder must."""
    path = os.path.join(cwd, os.path.expanduser(name))
    folder = os.path.realpath(os.path.dirname(path))
    if not os.path.isdir(folder):
        hint = f"make it: mkdir -p {quote(folder)}"
        if folder.startswith("/run/") and not folder.startswith("/run/user/"):
            hint += (
                f"\na boot empties /run: the line `d {folder}` in /etc/tmpfiles.d/{found.app}.conf makes it each time"
            )
        found.add(key, f"is in {folder}, which is no folder", hint, "not_found")
    elif os.path.isdir(path):
        found.add(key, f"names {name}, which is a folder", "name a file in it", "not_found")
    return os.path.join(folder, os.path.basename(path))


def _bind(cwd: str, text: str, key: Path, found: _Found) -> Address | str:
    try:
        address = parse_bind(text)
    except AddressError as error:
        found.add(key, f"is no address: {error}", error.hint)
        return text
    if address.family != "unix":
        return address
    path = _new_file(cwd, address.path, key, found)
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        found.add(key, f"is too long for a Unix socket: {path} (at most {MAX_UNIX_PATH} bytes)", "use a shorter path")
    return Address("unix", path=path)


def _tls(cwd: str, tls: TlsConfig, found: _Found) -> TlsConfig:
    paths: dict[str, str] = {}
    for name in ("cert", "key", "ca"):
        value = getattr(tls, name)
        if value is None:
            continue
        path = paths[name] = _file(cwd, value, ("tls", name), found)  # of a link its own: a renewal turns it
        if os.path.isfile(path) and not os.access(path, os.R_OK):
            hint = f"look at: ls -l {quote(path)}"
            found.add(("tls", name), f"names {value}, which this user may not read", hint, "not_found")
        elif name == "key" and os.path.isfile(path) and os.stat(path).st_mode & (stat.S_IROTH | stat.S_IWOTH):
            found.add(("tls", "key"), f"names {value}, which everyone can read", f"chmod o-rw {quote(path)}")
    return replace(tls, **paths)


def _python(name: str | None, cwd: str, our_python: str, found: _Found) -> str:
    """Return the interpreter's absolute path: given, else of ./.venv, else pyworker's own."""
    if name is None:
        venv = os.path.join(cwd, DEFAULT_VENV)
        if not environment.variable_of(venv):
            return our_python
        path = _venv_python(venv)
        if path is None:
            hint = f"make it again: python3 -m venv --clear {quote(venv)}; or name another: python = …"
            found.add(("python",), f"would be that of {venv}, which has no usable bin/python", hint, "not_found")
        return path or our_python
    given = os.path.normpath(os.path.join(cwd, os.path.expanduser(name)))
    if os.path.isdir(given):
        path = _venv_python(given)
        if path is None:
            hint = f"a virtual environment is made by: python3 -m venv {quote(given)}"
            found.add(("python",), f"names the folder {given}, which has no usable bin/python", hint, "not_found")
        return path or our_python
    if os.path.isfile(given):
        if not os.access(given, os.X_OK):
            hint = f"chmod +x {quote(given)}"
            found.add(("python",), f"names {given}, which cannot be executed", hint, "not_found")
        elif _is_archive(given):  # started as an interpreter it would serve
            hint = f'run it as it is: command = ["{given}"]\nor have a virtual environment of it (of a PEX: pex-tools {quote(given)} venv DIR)'
            found.add(("python",), f"names {given}, a program in a zip archive, and no interpreter", hint)
        return given
    on_path = shutil.which(name) if "/" not in name else None
    if on_path is None:
        hint = f"looked for {given}; {_without_it(given, our_python)}"
        found.add(("python",), f"names {name}, which does not exist", hint, "not_found")
    return on_path or our_python


def _is_archive(path: str) -> bool:
    """Whether a regular file that can be executed is lines for an interpreter, and a zip archive behind them (PEX, shiv)."""
    with contextlib.suppress(OSError), open(path, "rb", opener=regular.opener) as file:
        if file.read(2) == b"#!":
            import zipfile  # mostly it is no script

            return zipfile.is_zipfile(file)
    return False


def _without_it(given: str, our_python: str) -> str:
    folder, name = os.path.split(given)
    if not name.startswith(("python", "pypy")):
        return f"make it: python3 -m venv {quote(given)}"
    venv, last = os.path.split(folder)
    if last == "bin" and not os.path.lexists(venv):
        return f"make it: python3 -m venv {quote(venv)}"
    return f"without `python` it is {our_python}"


def _venv_python(venv: str) -> str | None:
    for name in ("python", "python3"):
        path = os.path.join(venv, "bin", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _environment(
    app: AppConfig,
    config: AppConfig,
    python: str,
    who: ids.Identity,
    shell_env: _Shell,
    base_env: Mapping[str, str],
    found: _Found,
    roots: str | None,
    read: ids.Opened | None,
) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """Return the environment, for each name where its value comes from, and what was read of the env files.

    `roots`: the config file, if root reads it.
    """

    size = 0

    def check(fd: int, path: str) -> None:
        nonlocal size
        if roots is not None:
            ids.check_env_file(fd, path, who.uid, roots, read)
        size += os.fstat(fd).st_size
        if size > environment.MAX_ENV_FILE:
            raise ValueError(f"with those before it it is larger than {environment.MAX_ENV_FILE} bytes")

    origins: dict[str, str] = {}
    files: dict[str, int] = {}
    env: dict[str, str] = {}
    before: dict[str, str] = {}

    def came_from(origin: str, names: Iterable[str] = ()) -> None:
        nonlocal before
        origins.update({name: origin for name in env if name in names or before.get(name) != env[name]})
        before = dict(env)

    env |= environment.base(base_env, name=who.name, home=who.home, shell=who.shell, changed_user=who.uid is not None)
    came_from("base")
    environment.inherit(env, shell_env, app.inherit_env)
    came_from(FROM_SHELL)
    of_shell = {name: value for name, value in env.items() if origins[name] == FROM_SHELL}
    environment.use_venv(env, python)
    came_from("venv")
    for index, path in enumerate(config.env_file):
        try:
            crc = environment.add_file(env, path, ("env_file", index), shell_env, check)
            files[path.removesuffix("?")] = crc
        except ids.IdentityError as error:
            found.add((), error.message, error.hint, "identity")
        except environment.EnvironmentProblem as problem:
            found.add(problem.key, problem.message, problem.hint, "environment")
        came_from(os.path.basename(path).removesuffix("?"))
    for wrong in [*environment.add_table(env, app.env, shell_env), *environment.too_long(env)]:
        found.add(wrong.key, wrong.message, wrong.hint, "environment")
    came_from("[env]", app.env)
    env.setdefault("PYTHONUNBUFFERED", "1")  # so that logs are not held back
    came_from("pyworker")
    # what is replaced now, by a file or the venv's PATH, is the app's again when it no longer is
    shell_env.asked |= {name: value for name, value in of_shell.items() if origins[name] != FROM_SHELL}
    return env, origins, files


def _state(app: AppConfig, env: Mapping[str, str], shell_env: Mapping[str, str], found: _Found) -> str:
    if app.state == "sqlite":
        return ""
    try:
        address = interpolate(app.state, lambda name: env.get(name, shell_env.get(name)))
    except InterpolationError as error:
        found.add(("state",), str(error), error.hint, "environment")
        return ""
    if not address.startswith(STATE_SERVERS):
        found.add(("state",), f"is no address of a Redis server once {app.state} is filled in", STATE_HINT)
    return address


def _command(
    app: AppConfig, config: AppConfig, env: Mapping[str, str], shell_env: Mapping[str, str], found: _Found
) -> None:
    name = app.command[0]
    if environment.program(name, env, config.cwd) is not None:
        return
    file = os.path.normpath(os.path.join(config.cwd, name))
    hint = f"looked for {file}" if "/" in name else f"looked in PATH: {env.get('PATH', '')}"
    if os.path.isfile(file):
        can_be_run = os.access(file, os.X_OK)
        hint = f"there is {file}" + ("" if can_be_run else ", which may not be executed")
        if name.endswith(".py"):
            hint += f': a Python script is script = "{name}"' + (", with args" if app.command[1:] else "")
        else:
            hint += f': write "{os.path.join(".", name)}"' if can_be_run else f": chmod +x {quote(file)}"
    elif "/" not in name and "PATH" in shell_env and (of_shell := environment.program(name, shell_env, config.cwd)):
        hint = f'only the PATH of this shell has it: write "{of_shell}"\n{hint}'
    found.add(("command",), f"names {name}, which is no program", hint, "not_found")


def _mtime(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns if file else 0
    except OSError:
        return 0
