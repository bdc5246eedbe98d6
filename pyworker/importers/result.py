"""What an import comes to: tables of app.toml, and a word on each setting of the file that was read."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any

from pyworker.errors import Hinted
from pyworker.record import field, mutable, record

MAX_TEXT = 1024 * 1024  # characters of what is put together: each of forty lines may double the one before
_MOST_COMPARED = 1000  # notes; of more, which nobody reads, one may be there twice
DOLLAR = "\0"  # stands in a word for a $ that is only a sign, where others are variables
_DOLLAR = re.compile(r"\$(?!\{\w+(:-[^}]*)?\})")
_HOME = re.compile(r"\$(HOME|\{HOME\})(?=/|\Z)")
_SHELL = re.compile(r"[|&;<>`]|\$\(")


class CannotImport(Hinted):
    """The file as a whole cannot be read."""

    def __init__(self, message: str, hint: str = "", line: int = 0) -> None:
        super().__init__(message, hint)
        self.line = line


@record
class Note:
    """A setting of the old file, and what became of it."""

    key: str
    reason: str


ENVIRONMENT = Note(
    "the environment", 'an app gets what env, env_file (".env") and inherit_env name, not all that the shell has'
)


@mutable
class Imported:
    """One app. `table` is what [apps.NAME] will say; every setting of the source is in one of the three lists."""

    name: str
    table: dict[str, Any] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)  # what [profiles.X.apps.NAME] will say, by X
    translated: list[str] = field(default_factory=list)  # settings with the same meaning here, defaults included
    review: list[Note] = field(default_factory=list)  # translated, and worth a look
    dropped: list[Note] = field(default_factory=list)  # nothing here does that, or nothing has to
    reads: str = ""  # a file that its server reads unasked, if it is there

    def set(self, key: str, value: Any, source: str) -> None:
        """Write an option, dotted ("stop.signal"), and count its source as translated."""
        table = self.table
        *tables, last = key.split(".") if not key.startswith("env.") else ["env", key[4:]]
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
        self.done(source)

    def done(self, source: str) -> None:
        """The setting is what pyworker does anyway."""
        if len(self.translated) > _MOST_COMPARED or source not in self.translated:
            self.translated.append(source)

    def variable(self, name: str, text: str, source: str) -> None:
        """Write a variable of [env]: a $ in its text is one, ${VAR} is looked up."""
        self.set(f"env.{name}", _DOLLAR.sub("$$", text).replace(DOLLAR, "$$"), source)

    def enter(self, folder: str, source: str) -> None:
        """Write the folder that it is started in: one that its command line changes to is seen from there."""
        inner = self.table.get("cwd", "")
        self.set("cwd", inner if inner.startswith("~") else posixpath.join(folder, inner) if inner else folder, source)

    def copies(self, number: int, source: str) -> None:
        """So many processes of what may have several workers itself (numprocs, instances)."""
        inside = self.table.get("workers", 1)
        if number == 1 or not isinstance(inside, int):
            self.done(source)
        else:
            self.set("workers", number * inside, source)
        if inside == "auto" and number > 1:
            self.look(source, f"{number} processes, each with a worker for each CPU: auto is one for each CPU in all")
        elif inside != 1 and number > 1:
            self.look(source, f"{number} processes of {inside} workers each were {number * inside} workers")

    def log(self, path: str, source: str) -> None:
        """Write the file that a stream goes to, "" for none: both go to one here."""
        known = self.table.get("logs", {}).get("file", path)
        if not path:
            self.drop(source, "logs are files of pyworker's own: pyworker logs")
        elif known != path:
            self.look(source, f"one log for both streams: {known}, not also {path}")
        else:
            self.set("logs.file", path, source)

    def look(self, key: str, reason: str) -> None:
        """Translated, but not to exactly the same."""
        reason = reason.replace(DOLLAR, "$")
        if len(self.review) > _MOST_COMPARED or Note(key, reason) not in self.review:
            self.review.append(Note(key, reason))

    def drop(self, key: str, reason: str) -> None:
        """Not translated."""
        self.dropped.append(Note(key, reason))


Apply = Callable[[Imported, Any, str], None]  # what writes a setting of the source, its value and its name


@mutable
class Result:
    kind: str  # "pm2", "supervisor"…
    apps: list[Imported]
    dropped: list[Note] = field(default_factory=list)  # settings of no single app


PORT_IS_TAKEN = "without bind pyworker listens on 0.0.0.0:$PORT when PORT is set"


def needs_shell(text: str) -> bool:
    """Whether a command line means something that only a shell does."""
    return bool(_SHELL.search(text))


def at_home(path: str) -> str:
    """Return a path that begins with $HOME as app.toml writes it."""
    return f"~{path[found.end() :]}" if (found := _HOME.match(path)) is not None else path


def whole(text: str) -> int | None:
    """Return a number that is written in digits, None for any other text. Of one too long for any setting: the first 18."""
    return int(text[:18]) if text.isdecimal() else None


def seconds(value: float) -> str:
    """Return a number of seconds as app.toml writes it."""
    return f"{round(value * 1000)}ms" if value != int(value) else f"{int(value)}s"


def settle(apps: list[Imported]) -> None:
    """Give each app a name and an address that no other has."""
    _name_apart(apps)
    _bind_apart(apps)


def _name_apart(apps: list[Imported]) -> None:
    """Give apps of the same name a number behind it, one that no other has."""
    for app in apps:
        if app.name == "all":
            app.look("name", "all means every app here")
            app.name = "all-of-it"
    taken = {app.name for app in apps}
    seen: dict[str, Iterator[int]] = {}
    for app in apps:
        if app.name not in seen:
            seen[app.name] = itertools.count(2)
            continue
        app.look("name", f"there are several apps called {app.name}")
        names = (f"{app.name[:57]}-{number}" for number in seen[app.name])  # 64 characters at most
        app.name = next(name for name in names if name not in taken)
        taken.add(app.name)


def _bind_apart(apps: list[Imported]) -> None:
    """Web apps without an address would all want the same one: each after the first gets a port of its own, and so
    does the first when another app has its.
    """
    free = [app for app in apps if "target" in app.table and "bind" not in app.table]
    binds = [app.table.get("bind", []) for app in apps]
    taken = {text.rpartition(":")[2] for bind in binds for text in ([bind] if isinstance(bind, str) else bind)}
    if free and ("8000" not in taken or any(note.reason.startswith(PORT_IS_TAKEN) for note in free[0].review)):
        del free[0]
    ports = (port for port in itertools.count(8001) if str(port) not in taken)
    for app, port in zip(free, ports, strict=False):
        address = f"127.0.0.1:{port}"
        app.table["bind"] = address
        app.review = [note for note in app.review if not note.reason.startswith(PORT_IS_TAKEN)]
        app.look("bind", f"{address} is made up: the file has no address for it")
