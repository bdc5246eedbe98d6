"""The tables of a config file -> AppConfig values: [app], [apps.NAME] on [defaults]. No I/O.

One field's value is convert.py's, the rules between fields are check.py's, those between apps between.py's; this file
knows tables, what an app gets when it does not say (name, bind, workers, balance), and where a broken rule stands in
the text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pyworker.config.address import AddressError, is_port, parse_bind
from pyworker.config.between import shared_addresses, wrong_dependencies
from pyworker.config.check import FOR_KINDS, NAME, RESERVED, Finding, check, clean_name
from pyworker.config.convert import SHORT_FORMS, Partial, build, given, hints_of, merge, partial, table_class
from pyworker.config.problem import Problem
from pyworker.config.report import Report, dotted, shown
from pyworker.config.schema import KINDS, AppConfig, RunConfig
from pyworker.config.spans import Path
from pyworker.config.suggest import nearest
from pyworker.record import replace

DEFAULT_BIND = "127.0.0.1:8000"
_INTERPRETER = re.compile(r"(python|pypy|node|deno|bun|ruby|perl|php|bash|sh)[\d.]*\Z")
_SOURCE = re.compile(r"([^/\s]+)\.(pyz?|[cm]?[jt]s|rb|pl|php|sh)\Z")
_EXAMPLE = '[app]\ntarget = "module:app"'


def apps_of(
    raw: dict[str, Any], at: Path, report: Report, environ: Mapping[str, str], folder: str, profile: str = ""
) -> list[AppConfig]:
    """Return the apps of a file, with the tables of [profiles.PROFILE] laid on those of the same name."""
    for name in raw:
        if name not in ("app", "apps", "defaults", "profiles", "run"):
            _unknown_table(name, at, report)
    over = _profile(raw, at, report, profile)
    tables = {n: v for n in ("app", "apps", "defaults") if (v := _table(raw, n, at, report)) is not None}
    if "app" in raw and "apps" in raw:
        hint = f"make [{dotted((*at, 'app'))}] one of the apps: [{dotted((*at, 'apps', 'NAME'))}]"
        report.add((*at, "apps"), "[app] and [apps.NAME] cannot be in one file", hint, at="key", code="conflict")
        return []
    defaults: Partial = {}
    if "defaults" in tables:
        path = (*at, "defaults")
        defaults = partial(AppConfig, tables["defaults"], path, report)
        if "name" in tables["defaults"]:
            report.add((*path, "name"), f"`{dotted((*path, 'name'))}` makes no sense: every app has its own", at="key")
    defaults = merge(defaults, over.defaults)
    found: list[AppConfig | None] = []
    paths: dict[str, Path] = {}
    if "app" in tables:
        path = (*at, "app")
        values = partial(AppConfig, tables["app"], path, report)
        if (*path, "name") not in report.attempted:
            values["name"] = clean_name(folder)
        values = merge(values, over.app)
        paths[values.get("name", "")] = path
        found.append(finish(values, defaults, path, report, environ))
    for name, table in tables.get("apps", {}).items():
        path = paths[name] = (*at, "apps", name)
        if not isinstance(table, dict):
            hint = f"write [{dotted((*at, 'apps', 'NAME'))}] above it, or [{dotted((*at, 'app'))}] for a single app"
            report.add(path, f"`{dotted(path)}` must be a table, not {shown(table)}", hint)
            continue
        values = partial(AppConfig, {k: v for k, v in table.items() if k != "name"}, path, report)
        if "name" in table:
            hint = f"the app is called {name}, as its table is; remove this line"
            report.add((*path, "name"), f"`{dotted((*path, 'name'))}` cannot be set here", hint, at="key")
        if not NAME.match(name) or name in RESERVED:
            why = RESERVED.get(name, "small letters, digits, - and _")
            taken = name in RESERVED or clean_name(name) in paths or clean_name(name) in tables["apps"]
            hint = "choose another name" if taken else f"did you mean [{dotted((*at, 'apps', clean_name(name)))}]?"
            report.add(path, f"an app cannot be called {shown(name)}: {why}", hint, at="key")
            name = "app" if name in RESERVED else clean_name(name)
            paths[name] = path
        values = merge(values, over.apps.get(name, {}))
        found.append(finish({**values, "name": name}, defaults, path, report, environ))
    apps = [a for a in found if a is not None]
    for app, finding in wrong_dependencies(apps, paths):
        path = path_of(finding.key, paths.get(app.name, at), report)
        report_finding(finding, path, paths.get(app.name, at), report)
    for app, index, other in shared_addresses(apps):
        path = path_of(("bind", index), paths.get(app.name, at), report)
        message = f"apps `{other.name}` and `{app.name}` both want {app.bind[index]}"
        if app.bind[index] not in other.bind:
            message += f" (`{other.name}`: {', '.join(other.bind)})"
        report.add(path, message, f'give `{app.name}` another address: bind = "127.0.0.1:8001"', code="conflict")
    if not apps and not report.problems:
        where = "[tool.pyworker.app]" + _EXAMPLE[5:] if at else _EXAMPLE
        message = f"{os.path.basename(report.file)} has no app"
        report.problems.append(Problem(message, f"add one:\n{where}", file=report.file, code="missing_key"))
    return apps


def run_of(raw: dict[str, Any], at: Path, report: Report, given_by: Mapping[str, Any]) -> RunConfig:
    """Return [run], with what options of the command say instead."""
    path = (*at, "run")
    values = partial(RunConfig, _table(raw, "run", at, report) or {}, path, report)
    options = Report()
    values |= partial(RunConfig, dict(given_by), (), options)
    options.stop_if_wrong()
    if values.get("probe"):
        try:
            parse_bind(values["probe"])
        except AddressError as error:
            report.add((*path, "probe"), f"`{dotted((*path, 'probe'))}` is no address: {error}", error.hint)
    found = build(RunConfig, values, path, report)
    assert isinstance(found, RunConfig)
    return found


class _Over(NamedTuple):
    """What a profile says, by the table that it is laid on."""

    app: Partial
    apps: dict[str, Partial]
    defaults: Partial


def _profile(raw: dict[str, Any], at: Path, report: Report, wanted: str) -> _Over:
    """Look at every profile of the file, so that a mistake shows before the day it is used; return the wanted one."""
    chosen = _Over({}, {}, {})
    profiles = _table(raw, "profiles", at, report) or {}
    report.root, report.profile = at, wanted
    there = raw.get("apps")
    known_apps: dict[str, Any] = there if isinstance(there, dict) else {}
    for name, table in profiles.items():
        path = (*at, "profiles", name)
        if not isinstance(table, dict):
            report.add(path, f"`{dotted(path)}` must be a table, not {shown(table)}", f"[{dotted((*path, 'app'))}]")
            continue
        for key in table:
            if key not in ("app", "apps", "defaults"):
                hint = _below(key, (*path, "app")) if "app" in raw else f"[{dotted((*path, 'apps', 'NAME'))}]"
                _unknown(key, path, hint, report)
        parts: dict[str, Partial] = {}
        for key in ("app", "defaults"):
            parts[key] = _laid_over(_table(table, key, path, report) or {}, (*path, key), report)
        if "app" in table and "app" not in raw:
            hint = f"write [{dotted((*path, 'apps', 'NAME'))}], or [{dotted((*path, 'defaults'))}] for all of them"
            message = f"[{dotted((*path, 'app'))}] changes an [app] that this file does not have"
            report.add((*path, "app"), message, hint, at="key")
        apps: dict[str, Partial] = {}
        for app, inner in (_table(table, "apps", path, report) or {}).items():
            here = (*path, "apps", app)
            if app not in known_apps or not isinstance(inner, dict):
                meant = nearest(app, list(known_apps))
                hint = f"did you mean `{meant}`?" if meant else "a profile changes apps, it does not add any"
                report.add(here, f"[{dotted(here)}] changes an app that this file does not have", hint, at="key")
                continue
            apps[app] = _laid_over(inner, here, report)
        if name == wanted:
            chosen = _Over(parts["app"], apps, parts["defaults"])
    if wanted and wanted not in profiles:
        meant = nearest(wanted, list(profiles))
        hint = f"did you mean `{meant}`?" if meant else "it has: " + ", ".join(profiles)
        if not profiles:
            hint = f"it would be [{dotted((*at, 'profiles', wanted, 'app'))}]"
        message = f"{os.path.basename(report.file)} has no profile {shown(wanted)}"
        report.problems.append(Problem(message, hint, file=report.file, code="no_such_profile"))
    return chosen


def _laid_over(table: dict[str, Any], path: Path, report: Report) -> Partial:
    if "name" in table:
        report.add((*path, "name"), "a profile cannot give an app another name", "remove it", at="key")
    return partial(AppConfig, {k: v for k, v in table.items() if k != "name"}, path, report)


def _table(raw: dict[str, Any], name: str, at: Path, report: Report) -> dict[str, Any] | None:
    value = raw.get(name)
    if value is None or isinstance(value, dict):
        return value
    hint = f"write [{dotted((*at, name))}]"
    if isinstance(value, list):
        hint = "one pair of brackets: [app]; several apps are [apps.NAME]"
    report.add((*at, name), f"`{dotted((*at, name))}` must be a table, not {shown(value)}", hint)
    return None


def _unknown_table(name: str, at: Path, report: Report) -> None:
    hint = "known tables: [app], [apps.NAME], [defaults], [profiles.NAME.app], [run]"
    if name in hints_of(AppConfig):
        hint = _below(name, (*at, "app"))
    elif meant := nearest(name, ("app", "apps", "defaults", "profiles", "run")):
        hint = f"did you mean [{dotted((*at, meant))}]?"
    _unknown(name, at, hint, report)


def _unknown(name: str, at: Path, hint: str, report: Report) -> None:
    where = f"in [{dotted(at)}]" if at else "at the top of the file"
    report.add((*at, name), f"unknown key `{dotted((name,))}` {where}", hint, at="key", code="unknown_key")


def _below(name: str, table: Path) -> str:
    """Return where an option belongs that stands above the app's table."""
    hint = hints_of(AppConfig).get(name)
    is_table = name == "env" or (hint is not None and table_class(hint) is not None)
    return f"did you mean [{dotted((*table, name))}]?" if is_table else f"write [{dotted(table)}] above it"


def finish(
    values: Partial, defaults: Partial, path: Path, report: Report, environ: Mapping[str, str]
) -> AppConfig | None:
    """Lay an app on the defaults, fill in what depends on its kind, check the rules between its options."""
    merged = merge(_fitting(defaults, values), values)
    kind = next((k for k in KINDS if merged.get(k) is not None), None)
    if kind == "target":
        _from_environment(merged, path, report, environ)
    elif kind is not None and (*path, "balance") not in report.attempted:
        merged.setdefault("balance", "shared")
    app: AppConfig | None = build(AppConfig, merged, path, report)
    if app is None:
        return None
    for finding in [f for f in check(app, given(merged)) if not _is_known_bad(f, path, report)]:
        where = path_of(finding.key, path, report) if finding.key else path
        if finding.key[:1] == ("health",) and "health" not in values:  # that of [defaults]
            hint = f"for {app.name} alone: health = false in its own table"
            finding = replace(finding, hint=f"{finding.hint}\n{hint}")
        report_finding(finding, where, path, report)
    return app


def _is_known_bad(finding: Finding, path: Path, report: Report) -> bool:
    """True when the finding only follows from a value that was reported already."""
    if finding.key == ():
        return any((*path, k) in report.attempted for k in KINDS)
    if finding.key[0] in ("env", "env_file", "bind"):  # one bad item says nothing about the others
        return path_of(finding.key, path, report) in report.failed
    if finding.code == "invalid_value":  # of this value alone: what is wrong beside it does not matter
        return report.failed_below((*path, *finding.key))
    return report.failed_below((*path, finding.key[0]))


def _fitting(defaults: Partial, values: Partial) -> Partial:
    """Return the defaults without what is not for this kind of app: a [defaults] serves all kinds at once."""
    merged = merge(defaults, values)
    kind = next((k for k in KINDS if merged.get(k)), None)
    if kind is None:
        return defaults
    fitting = {k: v for k, v in defaults.items() if kind in FOR_KINDS.get(k, (kind,))}
    merged = merge(fitting, values)
    if not _can_balance(fitting.get("balance"), kind, merged):
        del fitting["balance"]
    is_proxied = values.get("balance", fitting.get("balance")) == "proxy"
    if not is_proxied:
        fitting.pop("proxy_protocol", None)
    if merged.get("interface") == "asgi":
        fitting.pop("threads", None)
    for table, key in _unfit_keys(kind, merged, is_proxied=is_proxied):
        if fitting.get(table):
            fitting[table] = {k: v for k, v in fitting[table].items() if k != key}
    if merged.get("cron") or (kind == "target" and (fitting.get("health") or {}).get("type") == "tcp"):
        fitting.pop("health", None)
    return fitting


def _unfit_keys(kind: str, merged: Partial, *, is_proxied: bool) -> Iterator[tuple[str, str]]:
    """Name the keys of tables of [defaults] that are not for an app of this kind."""
    if kind == "target" or is_proxied:
        yield "health", "port"
    if kind != "target":
        yield "hooks", "post_fork"
    if merged.get("cron"):
        yield "reload", "cron"


def _can_balance(how: str | None, kind: str, merged: Partial) -> bool:
    """Whether a `balance` of [defaults] is one for an app of this kind."""
    if how == "proxy":
        return kind != "target" and bool(merged.get("bind"))
    return how in (None, "shared") or kind == "target"


FROM_ENVIRONMENT = ("PORT", "WEB_CONCURRENCY")  # what is looked at below


def _from_environment(values: Partial, path: Path, report: Report, environ: Mapping[str, str]) -> None:
    if "bind" not in values and (*path, "bind") not in report.attempted:
        port = environ.get("PORT", "")
        if port and not (is_port(port) and int(port)):
            message = f"the environment's PORT must be a port number, not {shown(port)}"
            report.add((*path, "bind"), message, "unset PORT, or set bind")
        values["bind"] = (f"0.0.0.0:{port}",) if port else (DEFAULT_BIND,)
    count = environ.get("WEB_CONCURRENCY")
    if count and "workers" not in values and (*path, "workers") not in report.attempted:
        if not (count.isascii() and count.isdecimal() and len(count) <= 6 and 0 < int(count) <= 1000):
            message = f"the environment's WEB_CONCURRENCY must be a number from 1 to 1000, not {shown(count)}"
            report.add((*path, "workers"), message, "unset WEB_CONCURRENCY, or set workers")
        else:
            values["workers"] = int(count)


def report_finding(finding: Finding, path: Path, table: Path, report: Report) -> None:
    if finding.key == ():
        message = f"[{dotted(table)}] {finding.message}" if table else f"the app {finding.message}"
    else:
        message = f"`{dotted(path)}` {finding.message}"
    report.add(path, message, finding.hint, at=finding.at, code=finding.code)


def path_of(key: Path, table: Path, report: Report) -> Path:
    """Return where an app's key stands: in its own table, else in [defaults]; list items only where there is a list."""
    if not report.has_text:
        return (*table, *key)
    tables = [table]
    if table[-2:-1] == ("apps",) or table[-1:] == ("app",):
        root = table[:-2] if table[-2:-1] == ("apps",) else table[:-1]
        tables.append((*root, "defaults"))
        if report.profile:
            over: Path = (*report.root, "profiles", report.profile)
            tables = [(*over, *table[len(root) :]), (*over, "defaults"), *tables]
    first: Path = ()
    for candidate in tables:
        for length in range(len(key), 0, -1):
            place = (*candidate, *key[:length])
            if not report.has(place):
                continue
            if length == len(key) or isinstance(key[length], int):
                return place
            first = first or (*candidate, *key)
            if SHORT_FORMS.get(str(key[0])) == key[length] and not report.is_table(place):
                return (*candidate, *key)
            break  # a table without it: those below are merged with it
    if first:
        return first
    return (*table, *key) if key and not isinstance(key[-1], int) else (*table, *key[:-1])


def name_after(values: Partial) -> str:
    if values.get("target"):
        return clean_name(str(values["target"]).partition(":")[0].partition(".")[0])
    if values.get("script"):
        return clean_name(os.path.splitext(os.path.basename(values["script"]))[0])
    if values.get("command"):
        return clean_name(_named_by(values["command"]))
    return "app"


def _named_by(command: Sequence[str]) -> str:
    """Return what names a command: of an interpreter, which many apps have, its module or file."""
    program = os.path.basename(command[0])
    if _INTERPRETER.match(program):
        for word, following in pairwise([*command[1:], ""]):
            if word == "-m":
                return following.partition(".")[0]
            if not word.startswith("-") and (source := _SOURCE.search(word)):
                return source[1]
    return program
