"""A config file or the options of a command -> AppConfig values, or every problem of it at once.

The only I/O is reading the one file. Nothing is looked up outside it (that is resolve.py); $PORT and
$WEB_CONCURRENCY come from the `environ` that is passed in. Used by the CLI before it asks the daemon, and by
the daemon itself, which trusts no CLI.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from shlex import quote
from typing import Any

from pyworker import regular
from pyworker.config import syntax
from pyworker.config.address import collide, parse_bind
from pyworker.config.apps import FROM_ENVIRONMENT, apps_of, finish, name_after, path_of, report_finding, run_of
from pyworker.config.check import check
from pyworker.config.convert import build, given, partial
from pyworker.config.identity import IdentityError, Opened, check_probe
from pyworker.config.problem import ConfigError, Problem
from pyworker.config.report import Report
from pyworker.config.schema import KINDS, AppConfig, RunConfig
from pyworker.config.spans import Document, Path, scan
from pyworker.config.suggest import nearest
from pyworker.config.syntax import MAX_FILE
from pyworker.errors import WANTING
from pyworker.record import record, replace

FILES = ("app.toml", "pyworker.toml", "pyproject.toml")
PYPROJECT = "pyproject.toml"

_apps_in: dict[tuple[str, bytes, frozenset[tuple[str, str]], str], tuple[AppConfig, ...]] | None = None


@record
class Loaded:
    """What a file says: its apps in the file's order, its absolute path, which file that was."""

    apps: tuple[AppConfig, ...]
    path: str
    opened: Opened


def find(start_dir: str, environ: Mapping[str, str]) -> str | None:
    """Return the config file that a command without one means: $PYWORKER_CONFIG, else one of FILES in this folder."""
    if named := environ.get("PYWORKER_CONFIG"):
        return os.path.abspath(os.path.join(start_dir, named))
    for name in FILES:
        path = os.path.join(os.path.abspath(start_dir), name)
        if os.path.isfile(path) and (name != PYPROJECT or _has_our_tables(path)):
            return path
    return None


def elsewhere(folder: str) -> str:
    """Return a line of help that says where a config file is when it is not here: just below, or above. "" = nowhere.

    Not in a folder that everybody can write to: what lies in /tmp is nobody's advice.
    """
    below = []
    with contextlib.suppress(OSError):
        below = sorted(e.path for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))[:200]
    above = []
    at = os.path.abspath(folder)
    while at != "/":
        at = os.path.dirname(at)
        above.append(at)
    for place in (*above, *below):
        with contextlib.suppress(OSError):
            if not os.stat(place).st_mode & 0o002 and (path := find(place, {})) is not None:
                return f"there is one in another folder: cd {quote(os.path.relpath(os.path.dirname(path), folder))}\n"
    return ""


def load(path: str, *, only: Sequence[str] = (), environ: Mapping[str, str] | None = None, profile: str = "") -> Loaded:
    """Read a config file; `only` picks some of its apps. Raise ConfigError with all that is wrong in it."""
    path = os.path.abspath(path)
    data, opened = _content(path)
    environ = {name: value for name, value in (environ or {}).items() if name in FROM_ENVIRONMENT}
    asked = (path, data, frozenset(environ.items()), profile)
    apps = _apps_in.get(asked) if _apps_in is not None else None
    if apps is None:
        apps = parse_apps(path, data, environ, profile)
        if _apps_in is not None:
            _apps_in[asked] = apps
    names = [app.name for app in apps]
    for name in only:
        if name not in names:
            meant = nearest(name, names)
            hint = f"did you mean `{meant}`?" if meant else "it has: " + ", ".join(names)
            message = f"no app `{name}` in {os.path.basename(path)}"
            raise ConfigError([Problem(message, hint, file=path, code="no_such_app")])
    chosen = tuple(a for a in apps if not only or a.name in only)
    return Loaded(chosen, path, replace(opened, profile=profile))


def profiles_in(path: str) -> list[str]:
    """Return the names of the profiles that a file has; raise ConfigError."""
    raw, _ = read(path)
    profiles = _ours(path, raw).get("profiles")
    return list(profiles) if isinstance(profiles, dict) else []


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Parse a file that is loaded again and again in here (once for each of its apps) only once, while it has the same
    content: 500 apps of one file must not cost 500 times 500.
    """
    global _apps_in
    before, _apps_in = _apps_in, {} if _apps_in is None else _apps_in
    try:
        yield
    finally:
        _apps_in = before


def parse_apps(path: str, data: bytes, environ: Mapping[str, str], profile: str = "") -> tuple[AppConfig, ...]:
    """Return the apps of a config file with this content, which need not be written yet; raise ConfigError."""
    raw, text = syntax.parse(data, path)
    report = Report(path, scan(text))
    at, raw = root_of(path), _ours(path, raw)
    apps = apps_of(raw, at, report, environ, os.path.basename(os.path.dirname(path)), profile)
    run_of(raw, at, report, {})
    report.stop_if_wrong()
    return tuple(apps)


def run_config(
    path: str, options: Mapping[str, Any], apps: Sequence[AppConfig] = (), *, is_root: bool = False
) -> RunConfig:
    """Return what [run] of a file says ("" = no file), with options of the command instead where they are not None.

    ConfigError also: one of the apps listens where the probe is to, or root is to make a socket where the file of another says.
    """
    given_by = {name: value for name, value in options.items() if value is not None}
    raw: dict[str, Any] = {}
    report = Report()
    at = root_of(path)
    opened = None
    if path:
        data, opened = _content(path)
        raw, text = syntax.parse(data, path)
        report = Report(path, scan(text))
        raw = _ours(path, raw)
    found = run_of(raw, at, report, given_by)
    report.stop_if_wrong()
    if is_root and opened and found.probe and "probe" not in given_by:
        where = parse_bind(found.probe)
        try:
            if where.family == "unix":
                check_probe(where.path, path, opened)
        except IdentityError as error:
            report.add((*at, "run", "probe"), f"`run.probe` is refused: {error.message}", error.hint, code="identity")
    for app in apps:
        for text in app.bind:
            if found.probe and collide(parse_bind(text), parse_bind(found.probe)):
                message = f"app `{app.name}` listens on {text}, and the probe is to do so, too ({found.probe})"
                hint = "give the probe another address: --probe :8081, or [run] probe"
                report.add((*at, "run", "probe"), message, hint, code="conflict")
    report.stop_if_wrong()
    return found


def load_inline(table: dict[str, Any], cwd: str, environ: Mapping[str, str] | None = None) -> AppConfig:
    """Return an app given as an [app] table without a file; without a name it is called after what it runs."""
    report = Report()
    partial(AppConfig, {"cwd": cwd}, (), report)  # a folder like any other
    values = partial(AppConfig, table, (), report)
    if "name" not in values and ("name",) not in report.attempted:
        values["name"] = name_after(values)
    app = finish(values, {}, (), report, environ or {})
    report.stop_if_wrong()
    assert app is not None
    return replace(app, cwd=os.path.join(cwd, app.cwd))


def apply_overrides(app: AppConfig, overrides: Mapping[str, Any]) -> AppConfig:
    """Return the app with options from the command line, each as in TOML; env is added to, the rest replaced."""
    report = Report()
    changes = dict(overrides)
    once = changes.get("cron") == ""  # `run --once`: TOML has no word for nothing
    if once:
        del changes["cron"]
    if isinstance(workers := changes.get("workers"), str) and workers.isdecimal():
        changes["workers"] = int(workers)
    values = partial(AppConfig, changes, (), report)
    report.stop_if_wrong()
    if "env" in values:
        values["env"] = {**app.env, **values["env"]}
    merged: dict[str, Any] = {}
    for name, value in values.items():
        before = getattr(app, name)
        nested = isinstance(value, dict) and name != "env"
        if nested and before is not None:
            merged[name] = replace(before, **value)
        elif nested:
            merged |= {name: getattr(build(AppConfig, {"name": app.name, name: value}, (), report), name)}
        else:
            merged[name] = value
    if once:
        merged["cron"] = None
    changed = replace(app, **merged)
    stated = given(values) | {(k,) for k in KINDS if getattr(app, k)}
    for finding in check(changed, stated):
        report_finding(finding, finding.key, (), report)
    report.stop_if_wrong()
    return changed


def says_name(path: str) -> bool:
    """Whether a file gives its app a name; False when it is that of the folder, and so another one elsewhere."""
    raw, _ = read(path)
    table = _ours(path, raw).get("app")
    return not isinstance(table, dict) or "name" in table


def locate(file: str, app: str, key: Path, problem: Problem, profile: str = "") -> Problem:
    """Return the problem with the place of an app's key in its file ("": a key of [run]); as it was when that cannot be read now."""
    try:
        _, document = read(file)
    except ConfigError:
        return problem
    report = Report(file, document)
    report.root, report.profile = root_of(file), profile
    path = path_of(key, table_of(file, app, document), report) if app else (*report.root, "run", *key)
    report.add(path, problem.message, problem.hint, code=problem.code)
    return replace(report.problems[0], key=problem.key)


def root_of(path: str) -> tuple[str, ...]:
    """Return where our tables begin in a file of this name."""
    return ("tool", "pyworker") if os.path.basename(path) == PYPROJECT else ()


def table_of(path: str, app: str, document: Document) -> Path:
    """Return the table of a file that is an app's own: [apps.NAME], or [app]."""
    root = root_of(path)
    return (*root, "apps", app) if (*root, "apps", app) in document.spans else (*root, "app")


def read(path: str) -> tuple[dict[str, Any], Document]:
    """Return a TOML file parsed, and where everything in it stands; raise ConfigError."""
    data, _ = _content(path)
    raw, text = syntax.parse(data, path)
    return raw, scan(text)


def _content(path: str) -> tuple[bytes, Opened]:
    """Return the bytes of a config file and which file it is; raise ConfigError."""
    shown_name = os.path.basename(path)

    def refuse(message: str, hint: str = "") -> ConfigError:
        return ConfigError([Problem(message, hint, file=path, code="unreadable")])

    try:
        with open(path, "rb", opener=regular.opener) as file:
            info = os.fstat(file.fileno())
            data = file.read(MAX_FILE + 1)
            opened = Opened(os.readlink(f"/proc/self/fd/{file.fileno()}"), info, zlib.crc32(data))
    except FileNotFoundError:
        raise refuse(f"cannot read {shown_name}: no such file", f"looked for {path}") from None
    except IsADirectoryError:
        inside = next((n for n in FILES if os.path.isfile(os.path.join(path, n))), "app.toml")
        hint = f"did you mean {os.path.join(path, inside)}?"
        raise refuse(f"{shown_name} is a folder, not a config file", hint) from None
    except OSError as error:
        if error.errno in WANTING:  # no fault of the file's: who reads it is told what is missing
            raise
        step = f"let this user read {path}" if isinstance(error, PermissionError) else f"looked for {path}"
        raise refuse(f"cannot read {shown_name}: {error.strerror}", step) from None
    except ValueError:  # a NUL, which only what comes over the control socket may hold
        raise refuse("cannot read the config file: no file can have such a name") from None
    return data, opened


def _has_our_tables(path: str) -> bool:
    try:
        raw, _ = read(path)
    except ConfigError:
        return False  # somebody else's file: not ours to complain about unless it was named
    return bool(_ours(path, raw))


def _ours(path: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Return our tables of what was read from a file."""
    for name in root_of(path):
        inner = raw.get(name)
        raw = inner if isinstance(inner, dict) else {}
    return raw
