"""CLI: `pyworker check` looks at a config file, says all that is wrong with it, and starts nothing.

Beyond the file itself it looks whether the folders, scripts, interpreters and certificates that it names are
there. Environment, users, rights and programs are those of the machine and the user that will run it: what is wrong
with them here is a warning, and no mistake of the file. With --import it is one: the app is imported as it would be
here, in a process that is thrown away.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable
from typing import Any

import click

from pyworker.cli.fail import words
from pyworker.cli.here import absolute, here
from pyworker.cli.options import Settings, common, of_profile, option
from pyworker.cli.problems import render
from pyworker.cli.render import clean, line, look, note, paint
from pyworker.config.load import elsewhere, find, load, locate, profiles_in, run_config
from pyworker.config.problem import ConfigError, Problem
from pyworker.config.schema import AppConfig
from pyworker.errors import Exit
from pyworker.record import replace

_OUT_OF_DATE, _NO_CLIENT = "certificate", "state"  # the codes of warnings about what start takes


@click.command()
@click.argument("file", required=False)
@option("--import", "imports", is_flag=True, help="Import each target too, in a throw-away process.")
@of_profile
@common
def cmd(settings: Settings, file: str | None, imports: bool, profile: str) -> None:
    """Check a config file; start nothing.

    \b
    pyworker check             the file of this folder
    pyworker check app.toml    exit 0: fine; 78: every mistake is shown
    pyworker check --import    exit 1: the file is fine, and a target cannot be imported
    """
    path = absolute(file) if file else find(here(), os.environ)
    apps: tuple[AppConfig, ...] = ()
    warnings: list[Problem] = []
    if path is None:
        hint = (
            "name one, or go to the folder that has an app.toml, a pyworker.toml, or [tool.pyworker] in pyproject.toml"
        )
        problems = [Problem("there is no config file here", elsewhere(os.getcwd()) + hint, code="no_file")]
    else:
        apps, problems = problems_of(path, profile)
        if problems and file and not file.endswith(".toml"):
            problems = [_no_config(file, problems[0]), *problems[1:]]
        if imports and not problems:
            found = _imported(apps, path, profile)
            warnings = [p for p in found if p.code == _NO_CLIENT]
            problems = [p for p in found if p.code != _NO_CLIENT]
        elif not problems:
            warnings = [*refused_here(apps, path, profile), *_out_of_date(apps, path, profile)]
    if settings.json:
        click.echo(json.dumps(_document(path, problems, warnings)))
    elif problems:
        _show(problems, settings)
    elif not settings.quiet and path is not None:
        _warn(warnings, settings)
        but = f" but for {len(warnings)} warning{'s' if len(warnings) != 1 else ''}" if warnings else ""
        names = ", ".join(app.name for app in apps)
        click.echo(
            f"{line(os.path.basename(path))} is fine{but}: {len(apps)} app{'s' if len(apps) != 1 else ''} ({names})"
        )
    if problems:
        sys.exit(Exit.FAILED if all(p.code == "import" for p in problems) else Exit.BAD_CONFIG)


def _no_config(file: str, problem: Problem) -> Problem:
    """Return the problem of a file that does not claim to be a config file with what was likely meant."""
    from pyworker.cli.startable import NO_TOML, hint_to_import, is_target

    if problem.code == "unreadable" and is_target(file):
        return replace(problem, hint=f"check is for config files; of an app: pyworker start --dry-run {file}")
    if problem.code == "unreadable":
        return problem
    return replace(problem, hint=hint_to_import(file) or problem.hint or NO_TOML)


def problems_of(path: str, profile: str = "") -> tuple[tuple[AppConfig, ...], list[Problem]]:
    """Return the apps of a file, and all that is wrong with it here; of the other profiles, what is wrong anywhere."""
    from pyworker.config.resolve import find_paths

    try:
        loaded = load(path, environ=os.environ, profile=profile)
    except ConfigError as error:
        return (), [*error.problems, *_of_other_profiles(path, profile, error.problems)]
    problems = _of_other_profiles(path, profile, ())
    for app in loaded.apps:
        try:
            find_paths(app, file=loaded.path, our_python=sys.executable, profile=profile)
        except ConfigError as error:
            problems += error.problems
    try:
        problems += _without_folder(run_config(path, {}, loaded.apps).probe or "", path)
    except ConfigError as error:
        problems += error.problems
    return loaded.apps, problems


def _without_folder(probe: str, path: str) -> list[Problem]:
    from pyworker.config.address import parse_bind

    folder = os.path.dirname(parse_bind(probe).path) if probe else ""
    if not folder or os.path.isdir(folder):
        return []
    message, hint = f"`run.probe` is in {folder}, which is no folder", f"make it: mkdir -p {shlex.quote(folder)}"
    return [locate(path, "", ("probe",), Problem(message, hint, "run.probe", path, code="not_found"))]


def _of_other_profiles(path: str, chosen: str, known: tuple[Problem, ...]) -> list[Problem]:
    """Return what is wrong with a file when each of its profiles is laid on it that is not the chosen one."""
    try:
        names = profiles_in(path)
    except ConfigError:  # said already
        return []
    said = {(p.line, p.column, p.message) for p in known}
    found: list[Problem] = []
    for name in names:
        if name == chosen:
            continue
        try:
            load(path, environ=os.environ, profile=name)
        except ConfigError as error:
            for problem in error.problems:
                if (problem.line, problem.column, problem.message) in said:
                    continue
                said.add((problem.line, problem.column, problem.message))
                is_there = "profiles" in problem.key.split(".")
                message = problem.message if is_there else f"with --profile {name}: {problem.message}"
                found.append(replace(problem, message=message))
    return found


def refused_here(apps: Iterable[AppConfig], path: str, profile: str = "") -> list[Problem]:
    """Return what `start` would refuse on this machine, as this user, of files without mistakes. `path`: "" without a file."""
    from pyworker.cli.tryimport import resolved_here

    found: list[Problem] = []
    for app in apps:
        try:
            resolved = resolved_here(app, path and os.path.abspath(path), profile)
            found += _unusable_tls(resolved.config, path, profile)
        except ConfigError as error:
            found += error.problems
    return found


def _unusable_tls(app: AppConfig, path: str, profile: str) -> list[Problem]:
    if app.tls is None:
        return []
    from pyworker.unix import tls

    try:
        tls.context(app.tls.cert, app.tls.key, app.tls.ca)
    except (OSError, ValueError) as error:
        problem = Problem(f"cannot use the TLS certificate of app `{app.name}`: {error}", "", "tls", path, code="tls")
        return [locate(path, app.name, ("tls", "cert"), problem, profile)]
    return []


def _out_of_date(apps: tuple[AppConfig, ...], path: str, profile: str) -> list[Problem]:
    """Return what is to be said of the time of TLS certificates. They are served all the same."""
    from pyworker.policy.certificate import trouble
    from pyworker.unix import tls

    found: list[Problem] = []
    for app in apps:
        valid = tls.validity(app.tls.cert, app.tls.key) if app.tls is not None else None
        what, step = trouble(*valid, time.time()) if valid is not None else ("", "")
        if what:
            message = f"the TLS certificate of app `{app.name}` {what}"
            problem = Problem(message, step, "tls", path, code=_OUT_OF_DATE)
            found.append(locate(path, app.name, ("tls", "cert"), problem, profile))
    return found


def _imported(apps: tuple[AppConfig, ...], path: str, profile: str) -> list[Problem]:
    from pyworker.cli.tryimport import try_import

    problems: list[Problem] = []
    for app in apps:
        if app.target is None:
            continue
        try:
            problems += try_import(app, path, profile)
        except ConfigError as error:
            problems += error.problems
    return problems


def _document(path: str | None, problems: list[Problem], warnings: list[Problem]) -> dict[str, Any]:
    names = ("code", "message", "hint", "key", "line", "column", "end_column")
    errors, refused = ([{name: getattr(p, name) for name in names} for p in some] for some in (problems, warnings))
    return {"v": 1, "ok": not problems, "file": path, "errors": errors, "warnings": refused}


def _warn(problems: list[Problem], settings: Settings) -> None:
    how = look(sys.stderr, settings.color)
    for problem in problems:
        where = f"{os.path.basename(problem.file)}:{problem.line}: " if problem.line else ""
        hint = f"\n  = help: {clean(problem.hint)}" if problem.hint else ""
        head = paint("warning:", "yellow", how)
        then = "" if problem.code in (_OUT_OF_DATE, _NO_CLIENT) else "; here start would refuse it"
        note(f"{head} {where}{clean(problem.message)}{then}{hint}", how)


def _show(problems: list[Problem], settings: Settings) -> None:
    how = look(sys.stderr, settings.color)
    if problems[0].code == "no_file":  # there is nothing that could have errors
        note(words(problems[0].message, "", problems[0].hint, how), how)
        return
    note(render(problems, how.color).rstrip("\n"), how)
