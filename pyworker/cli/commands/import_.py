"""CLI: `pyworker import`: the file of another process manager -> app.toml, and a report of every setting.

The file is parsed, never executed; `--run` has Node read an ecosystem.config.js, when the user says so.
"""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from pyworker import regular
from pyworker.cli.files import as_bytes, cannot
from pyworker.cli.options import Settings, common, option
from pyworker.cli.render import Look, argument, home, line, look, note, out, paint, wrap
from pyworker.errors import PyworkerError
from pyworker.importers.kinds import KINDS, kind_of
from pyworker.importers.result import CannotImport, Result
from pyworker.unix.files import write_file
from pyworker.unix.venv import install_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyworker.config.problem import Problem
    from pyworker.importers.jsvalues import Computed

_BY_HAND = "mend it; or write an app.toml by hand: pyworker init begins one"
_MAX_FILE = 4 * 1024 * 1024
_MAX_INCLUDED = 500


@click.command()
@click.argument("file")
@option("-o", "--output", metavar="FILE", help="Write it there; default: app.toml, or stdout with -o -.")
@option("--from", "kind", type=click.Choice(KINDS), help="Program that the file is of, when its name does not say.")
@option("--env", "profile", default="", metavar="NAME", help="Take env_NAME of a pm2 file too.")
@option("--run", "execute", is_flag=True, help="Let Node execute an ecosystem.config.js.")
@option("--force", is_flag=True, help="Overwrite the output.")
@common
def cmd(
    settings: Settings, file: str, output: str | None, kind: str | None, profile: str, execute: bool, force: bool
) -> int:
    """Make an app.toml of another program's file, and say what became of every setting.

    \b
    pyworker import ecosystem.config.js       pm2 (.js, .json, .yaml, dump.pm2)
    pyworker import supervisord.conf
    pyworker import gunicorn.conf.py          read, not executed
    pyworker import uwsgi.ini
    pyworker import /etc/systemd/system/shop.service
    pyworker import Procfile -o -             to stdout
    """
    from pyworker.importers.write import document, report

    result = _read(file, kind, profile, execute)
    target = output or "app.toml"
    _settle(result, file, "" if target == "-" else os.path.dirname(os.path.abspath(target)))
    text = document(result, os.path.basename(file))
    problems = _check(text, "app.toml" if target == "-" else target)
    if target == "-":
        if not settings.json:
            out(text.rstrip("\n"), look(sys.stdout, False))
    else:
        _write(target, text, force)
    if settings.json:
        found = {"v": 1, "ok": not problems, "written": None if target == "-" else target, **report(result)}
        out(
            json.dumps(
                {**found, "problems": [p.message for p in problems], **({"text": text} if target == "-" else {})}
            )
        )
    elif not settings.quiet:
        _say(result, file, target, text, problems, look(sys.stderr, settings.color))
    return 0


def _read(file: str, kind: str | None, profile: str, execute: bool) -> Result:
    text = _content(file)
    found = kind or kind_of(file, text)
    if not found:
        hint = f"say it: pyworker import --from {'|'.join(KINDS)} {argument(file)}"
        if "[watcher:" in text:
            hint = "circus files are not read; docs/from-circus.md has circus' words beside ours"
        elif re.search(r'<uwsgi|^uwsgi:|^\s*\{?\s*"uwsgi"\s*:', text, re.MULTILINE):
            hint = "of uWSGI's files the .ini is read: [uwsgi], and a line KEY = VALUE for each setting"
        elif re.search(r"^services:", text, re.MULTILINE):
            hint = "Compose files are not read: a Procfile is, with a line for each service's command, like web: gunicorn shop:app"
        raise PyworkerError(f"{file}: it cannot be told which program this is of", hint=hint, code="usage")
    try:
        try:
            return _parse(found, file, text, profile, execute)
        except RecursionError:
            raise CannotImport("it is nested too deeply") from None
    except CannotImport as error:
        where = f"{file}:{error.line}" if error.line and not error.message.startswith("line") else file
        raise PyworkerError(f"{where}: {error.message}", hint=error.hint or _BY_HAND, code="cannot_import") from None


def _parse(kind: str, file: str, text: str, profile: str, execute: bool) -> Result:
    folder = os.path.basename(os.path.dirname(os.path.abspath(file))) or "web"
    match kind:
        case "pm2":
            from pyworker.importers import pm2

            passed: list[Computed] = []
            return pm2.read(_value(file, text, execute, passed), profile, passed, _here(file))
        case "supervisor":
            from pyworker.importers import supervisor

            here = _here(file)
            return supervisor.read(text, here, _texts(supervisor.included(text, here)))
        case "gunicorn":
            from pyworker.importers import gunicornconf

            return gunicornconf.read(text, folder, os.path.join(_here(file), os.path.basename(file)))
        case "uwsgi":
            from pyworker.importers import uwsgi

            return uwsgi.read(text, folder, _here(file), os.path.splitext(os.path.basename(file))[0])
        case "systemd":
            from pyworker.importers import systemd

            return systemd.read(text, os.path.splitext(os.path.basename(file))[0])
        case _:
            from pyworker.importers import procfile

            return procfile.read(text)


def _settle(result: Result, file: str, folder: str) -> None:
    """Write down where the apps are started when that is not the folder of the config file, and name what lies there unread."""
    where = os.path.dirname(os.path.abspath(file)) if result.kind == "Procfile" else os.getcwd()
    for app in result.apps:
        own = app.table.get("cwd", ".")
        if where != (folder or os.getcwd()) and not own.startswith("~"):
            app.table["cwd"] = os.path.normpath(os.path.join(where, own))
        try:
            path = os.path.join(where, os.path.expanduser(own), app.reads)
        except ValueError:
            # a NUL, or half a character, where the name of a user would be: the check of the config says so
            continue
        if app.reads and os.path.isfile(path):
            named = os.path.relpath(path) if os.path.isabs(path) and path.startswith(os.getcwd()) else path
            reason = f"gunicorn reads {named} unasked, and its settings are not in this"
            app.look("gunicorn config", f"{reason}: pyworker import {argument(named)} --from gunicorn -o -")


def _here(file: str) -> str:
    """Return the folder of the file, as the config file that is written here will say it."""
    folder = os.path.dirname(os.path.abspath(file))
    return "." if folder == os.getcwd() else folder


def _texts(patterns: list[str]) -> list[tuple[str, str]]:
    """Read the files that another includes."""
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    return [(path, _content(path, regular.opener)) for path in paths[:_MAX_INCLUDED]]


def _content(path: str, opener: Callable[[str, int], int] | None = None) -> str:
    """Read a file. From here on nobody may read what is written who may not read this one: it may hold passwords."""
    try:
        with open(path, encoding="utf-8-sig", opener=opener) as file:
            os.umask(_umask() | (~os.fstat(file.fileno()).st_mode & 0o077))
            return file.read(_MAX_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise cannot("read", path, error) from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _value(file: str, text: str, execute: bool, passed: list[Computed]) -> Any:
    from pyworker.importers.jsliteral import parse

    ending = os.path.splitext(file)[1].lower()
    if ending in (".yaml", ".yml"):
        try:
            import yaml  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            hint = f"{install_command(sys.executable, 'pyyaml')}; or write it as JSON"
            raise CannotImport("reading YAML needs PyYAML, which is not installed", hint) from None
        try:
            return yaml.load(text, Loader=_as_pm2_reads_it(yaml))
        except RecursionError:
            raise CannotImport("it is nested too deeply") from None
        except yaml.YAMLError as error:
            raise CannotImport(f"it is no YAML: {str(error).splitlines()[0]}") from None
        except ValueError:
            raise CannotImport("it has a number of thousands of digits") from None
    if ending in (".js", ".cjs", ".mjs"):
        return _by_node(file) if execute else parse(text, passed)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return parse("module.exports = " + text)  # pm2 reads its JSON as JavaScript: comments and all


def _as_pm2_reads_it(yaml: Any) -> Any:
    """PyYAML's loader, but no, on and 12:30 are texts, as for pm2."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined, unused-ignore]
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, regex) for tag, regex in found if tag.rpartition(":")[2] in ("null", "merge")]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    for kind, pattern, first in (
        ("bool", r"(?i:true|false)\Z", "tTfF"),
        ("int", r"[-+]?(0|[1-9][0-9]*)\Z", "-+0123456789"),
        ("float", r"[-+]?[0-9]+\.[0-9]+\Z", "-+0123456789"),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), list(first))
    return Loader


_SCRIPT = """
const file = process.argv[1];
import(require("url").pathToFileURL(file)).then(m => {
  require("fs").writeFileSync(Number(process.argv[2]), JSON.stringify(m.default ?? m));
  process.exit(0);
}).catch(e => { console.error(String(e.stack ?? e)); process.exit(1); });
"""


_NOT_RUN = "without --run it is read, not executed"


def _by_node(file: str) -> Any:
    nothing = subprocess.DEVNULL
    # not in a folder: it may be full, or this a container that has none which can be written to
    with open(os.memfd_create("errors"), "w+b") as errors, open(os.memfd_create("answer"), "w+b") as answer:
        fd = answer.fileno()
        words = ["node", "-e", _SCRIPT, os.path.abspath(file), str(fd)]
        try:
            code = subprocess.call(words, pass_fds=[fd], stdin=nothing, stdout=nothing, stderr=errors)
        except OSError as error:
            raise CannotImport(f"node cannot be run: {error.strerror}", _NOT_RUN) from None
        answer.seek(0)
        errors.seek(0)
        text, said = answer.read(), errors.read(2000).decode(errors="replace").strip()
    if code or not text:
        why = f": {said}" if said else " and said nothing: does it end by itself?"
        raise CannotImport(f"node could not read it (exit code {code}){why}", _NOT_RUN)
    return json.loads(text)


def _check(text: str, target: str) -> list[Problem]:
    """Return what `pyworker check` would say of the form; the folders it names need not be here."""
    from pyworker.config.load import parse_apps
    from pyworker.config.problem import ConfigError

    try:
        parse_apps(os.path.abspath(target if target.endswith(".toml") else "app.toml"), as_bytes(text), {})
    except ConfigError as error:
        return list(error.problems)
    return []


def _write(target: str, text: str, force: bool) -> None:
    try:
        mask = _umask()
        write_file(target, as_bytes(text), new=not force, mask=mask & 0o077 if mask & 0o044 else 0)
    except FileExistsError:
        hint = "name another with -o FILE, see it with -o -, or overwrite it with --force"
        raise PyworkerError(f"{target} is there already", hint=hint, code="exists") from None
    except OSError as error:
        raise cannot("write", target, error, "name another with -o FILE, or see it with -o -") from None


def _say(result: Result, file: str, target: str, text: str, problems: list[Problem], how: Look) -> None:
    count = len(result.apps)
    note(f"Read {count} app{'s' if count != 1 else ''} from {home(line(file))} ({result.kind}).", how)
    for app in result.apps:
        settings = len(app.translated)
        plural = "s" if settings != 1 else ""
        note(
            f"  {paint('✓', 'green', how)} {paint(line(app.name), 'bold', how)}: {settings} setting{plural} translated",
            how,
        )
        for found in app.review:
            _mark("    ", "!", f"{line(found.key)}: {line(found.reason)}", how)
        for found in app.dropped:
            _mark("    ", "-", f"{line(found.key)} left out: {line(found.reason)}", how)
    for found in result.dropped:
        _mark("  ", "-", f"{line(found.key)} left out: {line(found.reason)}", how)
    where = "" if target == "-" else f"Wrote {target} ({len(text.splitlines())} lines). "
    if problems:
        note(f"{where}It is not complete yet:", how)
        for problem in problems:
            _mark("  ", "!", f"line {problem.line}: {line(problem.message)}", how)
        note(f"Edit it, then: pyworker check{'' if target == '-' else ' ' + argument(target)}", how)
    elif target != "-":
        from pyworker.cli.commands.check import problems_of

        missing = problems_of(target)[1]
        if missing:
            note(f"{where}What it names is not all here:", how)
        for problem in missing:
            _mark("  ", "!", f"line {problem.line}: {line(problem.message)}", how)
            note(f"    {line(problem.hint)}", how)
        typed = argument(target)
        done = f"pyworker check {typed}" if missing else f"pyworker start {typed} -n"
        note(f"{'' if missing else where + 'pyworker check: ok.   '}Next: {done}", how)


def _mark(blanks: str, mark: str, text: str, how: Look) -> None:
    first, *more = wrap(f"{blanks}{mark} {text}", how.width, len(blanks) + 2)
    shown = paint(mark, "yellow" if mark == "!" else "dim", how)
    note("\n".join([first.replace(mark, shown, 1), *more]), how)
