"""CLI, `scale`: what the config file says of the number of workers. --save writes it there, and changes nothing else."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyworker.cli.client import ANSWER_TIME, apps_now, ask
from pyworker.cli.deadline import Deadline
from pyworker.cli.files import cannot
from pyworker.cli.options import Settings
from pyworker.cli.render import argument, home, line, note
from pyworker.config.canonical import literal
from pyworker.config.edit import CannotEdit, set_value
from pyworker.config.load import read, root_of, table_of
from pyworker.config.problem import ConfigError
from pyworker.config.spans import Document, Path
from pyworker.errors import PyworkerError
from pyworker.protocol.names import STATE_DIR
from pyworker.unix.files import lock_directory, replacing

_AGAIN = 0.05  # seconds

Scaled = dict[str, tuple[int, int]]  # app -> from, to


def save_workers(settings: Settings, changes: dict[str, str], scaled: Scaled) -> None:
    """Save the apps that these selectors name; `auto` is saved as that, "+2" as the number it came to.

    One that cannot be saved keeps no other from it; raises PyworkerError about all of them.
    """
    failed: dict[str, PyworkerError] = {}
    for name, source, value in _numbers(settings, changes, scaled):
        try:
            with _alone(settings, name):
                _save(settings, name, source, value)
        except PyworkerError as error:
            failed[name] = error
    if failed:
        message = "\n".join(f"{name} was scaled, but not saved: {error.message}" for name, error in failed.items())
        raise PyworkerError(message, hint="\n".join(dict.fromkeys(error.hint for error in failed.values())))


def say_what_is_written(settings: Settings, changes: dict[str, str], scaled: Scaled) -> None:
    """Say of each of these apps whose config file has another number that it has."""
    with contextlib.suppress(PyworkerError):  # what was asked for is done
        for name, source, value in _numbers(settings, changes, scaled):
            file, written = source.get("file"), _written(name, source)
            if file and written is not None and written != value and value != 0:
                short = line(os.path.basename(file))
                note(f"{line(name)}: {short} still says workers = {literal(written)}; with --save it is written there")


def _written(name: str, source: dict[str, Any]) -> Any:
    """Return the number in the config file; that of its last reading where it cannot be read: `--save` is none."""
    known = (source.get("config") or {}).get("workers")
    try:
        raw, document = read(os.path.realpath(source["file"]))
        found: Any = raw
        for key in (*_table(source, name, raw, document), "workers"):
            found = found[key]
    except CannotEdit:  # --save would not write it there
        return None
    except (ConfigError, KeyError, TypeError):
        return known
    return found


def _numbers(settings: Settings, changes: dict[str, str], scaled: Scaled) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield each app, what is known of its config, and its number of workers as a file would say it."""
    for selector, change in changes.items():
        apps = apps_now(settings.home, settings.timeout, [selector])
        sources = ask(settings.home, {"type": "config", "selectors": [selector]}, settings.timeout)["apps"]
        files = {source["name"]: source for source in sources}
        for app in apps:
            name = str(app["name"])
            value: Any = change
            if change != "auto":
                value = int(change) if change.isdecimal() else scaled.get(name, (0, app["workers"]["want"]))[1]
            yield name, files.get(name, {}), value


@contextlib.contextmanager
def _alone(settings: Settings, name: str) -> Iterator[None]:
    """One command at a time: of two that read a file before either has replaced it, the number of one would be lost."""
    patience = ANSWER_TIME if settings.timeout is None else settings.timeout
    deadline = Deadline(patience)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # `pyworker run` may have no such folder
            fd = os.open(os.path.join(settings.home, STATE_DIR), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, fd)
            while not lock_directory(fd):
                if deadline.left() <= 0:
                    message = f"another scale --save has not ended for {patience:g} s"
                    hint = f"pyworker scale {name}=N --save   once that one has ended; it may be stopped, or wait for a disk"
                    raise PyworkerError(message, hint=hint)
                time.sleep(_AGAIN)
        yield


def _save(settings: Settings, name: str, source: dict[str, Any], value: Any) -> None:
    file = source.get("file")
    if not file:
        raise PyworkerError("it has no config file", hint="it was started without one; pyworker init writes one")
    if value == 0:  # a file that said so would be refused, and with it all of its apps at the next boot
        hint = f"pyworker scale {name}=N --save; 0 is kept without that, by a reload and over a boot"
        raise PyworkerError("a config file has at least 1 worker", hint=hint)
    real = os.path.realpath(file)  # a link stays a link
    by_hand = f"write it yourself: workers = {literal(value)}"
    try:
        raw, document = read(real)
        table = _table(source, name, raw, document)
        changed = _change(real, lambda before: set_value(before, table, "workers", value))
        if changed is not None:
            told = {"type": "saved", "path": file, "before": changed[0], "after": changed[1]}
            with contextlib.suppress(PyworkerError):  # a daemon of before: `ps` says then that the file was changed
                ask(settings.home, told, settings.timeout)
    except ConfigError as error:
        where = f"pyworker check {argument(file)}   shows where"
        raise PyworkerError(f"{home(line(file))}: {error.message}", hint=f"{where}\n{by_hand}") from None
    except CannotEdit as error:
        raise PyworkerError(str(error), hint=by_hand) from None
    except OSError as error:
        raise cannot("write", file, error, by_hand) from None
    if not settings.is_silent:
        note(f"{line(name)}: {home(line(file))} now says workers = {value}")


def _table(source: dict[str, Any], name: str, raw: dict[str, Any], document: Document) -> Path:
    """Return the table that the number belongs to: the profile's when that sets it, else the app's own."""
    root = root_of(source["file"])
    own = table_of(source["file"], name, document)
    table: Any = raw
    for key in own:
        table = table.get(key) if isinstance(table, dict) else None
    if isinstance(table, dict) and (other := table.get("name", name)) != name:
        raise CannotEdit(f"its file is of {line(str(other))} by now")
    profile = source.get("profile")
    over: Path = (*root, "profiles", str(profile), *own[len(root) :])
    return over if profile and (*over, "workers") in document.spans else own


def _change(path: str, edit: Callable[[str], str]) -> tuple[int, int] | None:
    """Write by rename, with the old file's mode and owner: a reader sees the old text or the new. Return the mtimes of both; None
    without a change.

    All is done in the folder that was opened. By its path root might come to write in one of its own: the file's owner,
    who may be another user, could have put a link in the folder's place after the file was read.
    """
    folder, name = os.path.split(path)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)

    try:
        with open(name, encoding="utf-8", newline="", opener=opener) as old:
            info, before = os.fstat(old.fileno()), old.read()
        after = edit(before)
        if after == before:
            return None
        with replacing(at, name, stat.S_IMODE(info.st_mode)) as new:
            with contextlib.suppress(OSError):
                os.fchown(new.fileno(), info.st_uid, info.st_gid)
            new.write(after.encode())
            new.flush()
            written_at = os.fstat(new.fileno()).st_mtime_ns
        return info.st_mtime_ns, written_at
    finally:
        os.close(at)
