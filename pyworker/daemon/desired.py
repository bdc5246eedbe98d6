"""Daemon: what is wanted, kept in apps.json. Sources and names, never values of the environment.

Written by rename, so that it is the old file or the new one and never half of one. A file that cannot be read is
put aside and said so; it never keeps the daemon from starting.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from functools import partial
from typing import Any, Literal, Union

from pyworker import failpoint
from pyworker.errors import BROKEN_DISK, WANTING
from pyworker.protocol.inherited import APP_NAME
from pyworker.protocol.names import APPS_FILE, BAD_APPS
from pyworker.protocol.wire import WireError, from_json, parse_json, to_json
from pyworker.record import field, record
from pyworker.unix.files import replacing

VERSION = 1


@record
class FileSource:
    """An app of a config file, with what `start` was told beside it."""

    path: str  # absolute
    app: str  # its name in the file
    overrides: dict[str, Any] = field(default_factory=dict)  # of protocol.control.Start, without env values
    env_names: tuple[str, ...] = ()  # given with -e: known by name only, so a boot cannot set them again
    kind: Literal["file"] = "file"
    profile: str = ""  # of the file


@record
class InlineSource:
    """An app that was given on the command line."""

    table: dict[str, Any]  # the [app] table, without env values
    cwd: str  # where the command was typed
    env_names: tuple[str, ...] = ()
    kind: Literal["inline"] = "inline"


Source = Union[FileSource, InlineSource]


@record
class DesiredApp:
    """What is wanted of one app."""

    name: str
    source: Source
    running: bool = True
    generation: int = 1  # the last one that was committed
    stopped_slots: tuple[int, ...] = ()  # slots that `stop api.2` left empty
    scale: int | None = None  # `scale api=8`; None: as many as the source says
    scale_base: int | str | None = None  # `workers` of the source when it was scaled; another value ends the override


Desired = dict[str, DesiredApp]  # all that is wanted, by name


def without_env_values(table: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Split an [app] table (or overrides) into what may be written down, and the variables, whose values may not."""
    env = table.get("env")
    values = {str(n): str(v) for n, v in env.items()} if isinstance(env, dict) else {}
    return {key: value for key, value in table.items() if key != "env"}, values


def load(home_fd: int, *, something_runs: bool = False) -> tuple[Desired, str]:
    """Return what is wanted, and a note for the operator ("" = none). Nothing wrong with the file raises.

    OSError: it is the machine that lacks something, or its disk is broken; the next daemon may read the file. With
    `something_runs` a broken disk is no reason to wait: what runs would have no daemon.
    """
    try:
        with open(APPS_FILE, "rb", opener=partial(_opener, home_fd)) as file:
            return parse(file.read()), ""
    except FileNotFoundError:
        return Desired(), ""
    except OSError as error:
        if error.errno in WANTING or (error.errno in BROKEN_DISK and not something_runs):
            raise
        why = error.strerror or str(error)
    except WireError as error:
        why = str(error)
    return Desired(), _put_aside(home_fd, why)


def save(home_fd: int, desired: Desired) -> None:
    """Write what is wanted; an OSError (full disk) leaves the old file as it was."""
    apps = [to_json(app) for app in desired.values()]
    data = json.dumps({"v": VERSION, "apps": apps}, indent=1).encode() + b"\n"
    with replacing(home_fd, APPS_FILE) as file:
        file.write(data)
        failpoint.hit("save.before_rename")
    failpoint.hit("save.after_rename")
    # the rename itself; it is done, and a reload that was told otherwise would go back
    with contextlib.suppress(OSError):
        os.fsync(home_fd)


def parse(data: bytes) -> Desired:
    """Return what is wanted by the content of apps.json. WireError: it is nothing that this version understands."""
    raw = parse_json(data, limit=len(data))  # as long as what is wanted: it was written without a limit
    if not isinstance(raw, dict) or raw.get("v") != VERSION or not isinstance(raw.get("apps"), list):
        raise WireError(f"not a list of apps of version {VERSION}")
    apps = Desired()
    for number, value in enumerate(raw["apps"]):
        where = f"apps[{number}]"
        app: DesiredApp = from_json(DesiredApp, value, where)
        if not APP_NAME.match(app.name) or app.name in apps:
            raise WireError(f"{where}.name: {app.name!r:.80} is no name, or there twice")
        apps[app.name] = app
    return apps


def _opener(home_fd: int, name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=home_fd)


def _put_aside(home_fd: int, why: str) -> str:
    bad = BAD_APPS + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    try:
        os.rename(APPS_FILE, bad, src_dir_fd=home_fd, dst_dir_fd=home_fd)
    except OSError as error:
        return f"{APPS_FILE} cannot be read ({why}) and cannot be put aside ({error.strerror}): no app was restored"
    return f"{APPS_FILE} cannot be read ({why}): it is kept as {bad}, no app was restored. Start your apps again"
