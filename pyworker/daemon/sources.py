"""Daemon: from where an app is described to a generation that pins everything. Reads config, env and PEM files.

Called at each start, reload and restart: config, env files, interpreter and symlinks are read again each time.
"""

from __future__ import annotations

import errno
import os
import sys

from pyworker.config.identity import IdentityError, Opened, check_named
from pyworker.config.interpolate import literal_env
from pyworker.config.load import apply_overrides, load, load_inline, locate
from pyworker.config.problem import ConfigError, Problem
from pyworker.config.resolve import cwd_of, resolve
from pyworker.config.schema import AppConfig
from pyworker.daemon import disks
from pyworker.daemon.app import Generation
from pyworker.daemon.desired import InlineSource, Source
from pyworker.errors import WANTING
from pyworker.record import replace
from pyworker.unix import fds as unix_fds
from pyworker.unix.files import open_regular

NO_ANSWER = "no_answer"
_IN_PEM = {"cert": "CERTIFICATE-----", "key": "PRIVATE KEY-----", "ca": "CERTIFICATE-----"}


def read_config(source: Source, values: dict[str, str]) -> tuple[AppConfig, str, Opened | None]:
    """Return the app's config, its file ("" without one) and which file that was; raises ConfigError.

    `values`: those of source.env_names (given with -e), which no file holds.
    """
    missing = [name for name in source.env_names if name not in values]
    if missing:
        message = f"the value of {', '.join(missing)} was given with -e and cannot be restored"
        hint = "start the app again with -e, or put the value into an env_file"
        raise ConfigError([Problem(message, hint, "env", code="environment")])
    env = {"env": {name: values[name] for name in source.env_names}} if source.env_names else {}
    if isinstance(source, InlineSource):
        return load_inline(literal_env({**source.table, **env}), source.cwd), "", None
    try:
        loaded = load(source.path, only=(source.app,), profile=source.profile)
    except ConfigError as error:
        first = error.problems[0]
        if first.code != "no_such_app":
            raise
        hint = f"{first.hint}\nis it to go? pyworker delete {source.app}"
        raise ConfigError([replace(first, hint=hint)]) from None
    overrides = literal_env({**source.overrides, **env})
    app = loaded.apps[0]
    return (apply_overrides(app, overrides) if overrides else app), loaded.path, loaded.opened


def make_generation(
    number: int, app: AppConfig, file: str, read: Opened | None, shell_env: dict[str, str]
) -> Generation:
    """Resolve all that the app's config leaves open; raises ConfigError, with the code NO_ANSWER when another time may do."""
    if app.logs.named_file is not None:
        _ask_disk(cwd_of(app, read.real if read else file), app.logs.named_file, file)
    resolved = resolve(
        app,
        file=file,
        shell_env=shell_env,
        base_env=dict(os.environ),
        our_python=sys.executable,
        is_root=os.geteuid() == 0,
        read=read,
        profile=read.profile if read else "",
    )
    return Generation(number, resolved, tls=read_tls(resolved.config, resolved.uid, file, read))


def _ask_disk(cwd: str, log: str, file: str) -> None:
    """Refuse a log whose folder the daemon could wait for without end."""
    path = os.path.join(cwd, os.path.expanduser(log))
    try:
        disks.ask(path, lambda: os.stat(path))
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            hint = "dmesg may say why; name another file, or try again when it does"
            text = f"`logs.file` is {path}, and its disk does not answer"
            raise ConfigError([Problem(text, hint, "logs.file", file, code=NO_ANSWER)]) from None


def read_tls(
    config: AppConfig, uid: int | None = None, config_file: str = "", read: Opened | None = None
) -> tuple[bytes, bytes, bytes]:
    """Return certificate, key and CA as the daemon may read them; workers may not need to.

    `uid`: of the app's workers. For a config file of theirs root reads what is theirs only.
    """
    if config.tls is None:
        return b"", b"", b""
    parts = []
    for name in ("cert", "key", "ca"):
        path = getattr(config.tls, name)
        if path is None:
            parts.append(b"")
            continue
        try:
            with open_regular(os.path.join(config.cwd, path)) as file:
                check_named(file.fileno(), path, f"tls.{name}", uid, config_file, read)
                content = file.read(1024 * 1024)
            if problem := _no_pem(content, path, name, config_file):
                place = ("tls", name), problem, read.profile if read else ""
                raise ConfigError([locate(config_file, config.name, *place) if config_file else problem])
            parts.append(content)
        except IdentityError as error:
            raise ConfigError([Problem(error.message, error.hint, error.key, config_file, code="identity")]) from None
        except OSError as error:
            if error.errno in WANTING:
                raise
            hint = "it must be a PEM file that pyworker may read"
            raise ConfigError([Problem(f"cannot read {path}: {error.strerror}", hint, f"tls.{name}")]) from None
    return parts[0], parts[1], parts[2]


def check_tls(generation: Generation) -> None:
    """Refuse what the generation's template would refuse, before anything is stopped for it; raises ConfigError."""
    if generation.config.tls is None:
        return
    from pyworker.unix import tls  # the only need of OpenSSL here, and 4 MB

    memfds: list[int] = []
    try:
        memfds.extend(unix_fds.memfd("pyworker-pem", content) for content in generation.tls if content)
        paths = [f"/proc/self/fd/{fd}" for fd in memfds]
        tls.context(paths[0], paths[1], paths[2] if generation.tls[2] else None)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        if type(error) is OSError and error.errno in WANTING:  # an SSLError's number is one of OpenSSL's
            raise
        problem = f"cannot use the TLS certificate: {error}"
        hint = "Check `tls.cert` and `tls.key`."
        raise ConfigError([Problem(problem, hint, "tls", generation.resolved.source, code="tls")]) from None
    finally:
        unix_fds.close_all(memfds)


def _no_pem(content: bytes, path: str, name: str, config_file: str) -> Problem | None:
    """Return what is wrong with a file that holds nothing of use; an empty one would mean HTTP in clear, or clients that nobody
    asks who they are."""
    if _IN_PEM[name].encode() in content:
        return None
    problem = f"{path} has no BEGIN … {_IN_PEM[name]} in it" if content.strip() else f"{path} is empty"
    return Problem(problem, "it must be a PEM file; was it written to its end?", f"tls.{name}", config_file, code="tls")
