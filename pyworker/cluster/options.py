"""What a cluster runs: the settings that a program gives, checked, and the command line of a worker that follows from them."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from pyworker.cluster.child_process import as_list, interpreter_of
from pyworker.cluster.execution import check_seconds
from pyworker.cluster.parent import Stdio
from pyworker.config.option import option_of
from pyworker.config.schema import Policy, RestartConfig
from pyworker.record import field, fields, record

SCHED_NONE: Scheduling = "none"
SCHED_RR: Scheduling = "round-robin"
Scheduling: TypeAlias = Literal["round-robin", "none"]

_BOOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot.py")
# in a worker of the daemon all of this is in an archive without a name
_BUNDLE = re.match(r"/proc/self/fd/(\d+)(?=/)", _BOOT)
_BOOT_FROM_BUNDLE = (
    "import sys; sys.path[0] = {!r}; from pyworker.cluster import boot; del sys.path[0]; boot.main()"  # [0] is ''
)


@record
class Settings:
    """What `setup_primary` was told."""

    exec: str | None = None  # a script; None: the one that runs here
    args: tuple[str, ...] = ()
    module: str | None = None  # instead of a script: what `python -m` takes
    workers: int = 0  # 0: as many as there are CPUs to use
    scheduling: Scheduling = "round-robin"  # "none": for servers that fork processes of their own to accept in
    exec_path: str | None = None
    exec_args: tuple[str, ...] = ()
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    stdin: Stdio = "inherit"
    stdout: Stdio = "inherit"
    stderr: Stdio = "inherit"
    restart: RestartConfig = field(default_factory=RestartConfig)
    drain_timeout: float = 10.0  # seconds that connections have when a worker leaves
    suicide_timeout: float = 5.0  # seconds that a worker has which announced its death


@record
class Program:
    command: list[str]
    is_node: bool
    pass_fds: tuple[int, ...]


def settings_of(
    exec: str | os.PathLike[str] | None,
    args: Sequence[str],
    restart: RestartConfig | Mapping[str, Any] | None,
    options: dict[str, Any],
) -> Settings:
    """Return them, from the arguments of `setup_primary`; ValueError, TypeError, FileNotFoundError: from none of these."""
    if exec is not None and options.get("module") is not None:
        raise ValueError("either exec or module")
    if options.get("scheduling", "round-robin") not in ("round-robin", "none"):
        raise ValueError(f"scheduling is 'round-robin' or 'none', not {options['scheduling']!r}")
    check_count(options.get("workers", 0))
    for name in ("drain_timeout", "suicide_timeout"):
        check_seconds(name, options.get(name, 0))
    if not isinstance(restart, RestartConfig):
        restart = _restart(restart or {})
    options["exec_args"] = tuple(as_list(options.get("exec_args", ())))
    path = None if exec is None else os.fspath(exec)
    if path is not None and not os.path.exists(os.path.join(options.get("cwd") or "", path)):
        raise FileNotFoundError(errno.ENOENT, "there is no such script for workers to run", path)
    return Settings(exec=path, args=tuple(as_list(args)), restart=restart, **options)


def program_of(settings: Settings) -> Program:
    script = settings.exec
    if script is None and settings.module is None:
        script = sys.argv[0]
        if settings.cwd is not None or not os.path.isfile(script):
            # it was named from another folder: __main__ knows the whole path
            script = getattr(sys.modules["__main__"], "__file__", None) or ""
        if not os.path.isfile(script):
            raise ValueError("what shall workers run? setup_primary(exec=...) or setup_primary(module=...)")
    interpreter, is_node = interpreter_of(script, settings.exec_path)
    start = [interpreter, *settings.exec_args]
    if is_node:
        assert script is not None
        return Program([*start, script, *settings.args], True, ())
    target = ["-m", settings.module] if settings.module is not None else [str(script)]
    boot = [_BOOT] if _BUNDLE is None else ["-c", _BOOT_FROM_BUNDLE.format(_BUNDLE[0])]
    pass_fds = () if _BUNDLE is None else (int(_BUNDLE[1]),)
    return Program([*start, *boot, *target, *settings.args], False, pass_fds)


def check_count(workers: Any) -> None:
    """ValueError: this is no number of workers."""
    if type(workers) is not int or workers < 0:
        raise ValueError(f"workers is a whole number, 0 for as many as there are CPUs, not {workers!r}")


def _restart(said: Mapping[str, Any]) -> RestartConfig:
    """Return what a program says of restarts. What is wrong is refused now: it would show at the first death, and end them."""
    options = {field.name: option_of(field) for field in fields(RestartConfig)}
    for name, value in said.items():
        option = options.get(name)
        if option is None:
            raise ValueError(f"there is no restart.{name}; there are: {', '.join(options)}")
        words = get_args(Policy) if name == "policy" else ()
        if words and value not in words:
            raise ValueError(f"restart.{name} is one of {', '.join(words)}, not {value!r}")
        if option.unit:
            check_seconds(f"restart.{name}", value)
        elif not words and type(value) is not int:
            raise ValueError(f"restart.{name} is a whole number, not {value!r}")
        if option.minimum is not None and value < option.minimum:
            raise ValueError(f"restart.{name} is at least {option.minimum:g}, not {value!r}")
    return RestartConfig(**said)
