"""CLI: the `pyworker` command. Finds the subcommand, maps every error to words and an exit code.

Commands are imported when they are used; their names and short helps are literals here, so that `pyworker -h` imports
none of them and `pyworker ps` only its own.
"""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

import click

from pyworker import __version__
from pyworker.cli import fail
from pyworker.cli.options import NAMES, options
from pyworker.cli.render import look
from pyworker.errors import Exit, PyworkerError

_HERE = "pyworker.cli.commands."
# name -> module with a `cmd`, short help
COMMANDS: dict[str, tuple[str, str]] = {
    "start": (_HERE + "start", "Start an app, and the daemon when none runs."),
    "run": (_HERE + "run", "Run in the foreground: containers, service managers."),
    "stop": (_HERE + "stop", "Stop apps or single workers."),
    "restart": (_HERE + "restart", "Stop all workers, start all (reload has no gap)."),
    "reload": (_HERE + "reload", "New code in, no request lost."),
    "scale": (_HERE + "scale", "More or fewer workers: scale api=8."),
    "delete": (_HERE + "delete", "Stop apps and forget them."),
    "ps": (_HERE + "ps", "What runs."),
    "top": (_HERE + "top", "Watch the apps, full screen."),
    "describe": (_HERE + "describe", "All about one app."),
    "logs": (_HERE + "logs", "What the workers print."),
    "events": (_HERE + "events", "What happened."),
    "stack": (_HERE + "stack", "Where the threads of a worker are right now."),
    "send": (_HERE + "send", "A message to workers: send api '{...}'."),
    "wait": (_HERE + "wait", "Wait until apps are ready or stopped."),
    "metrics": (_HERE + "metrics", "Figures for Prometheus."),
    "web": (_HERE + "web", "A dashboard in the browser."),
    "check": (_HERE + "check", "Check a config file; start nothing."),
    "init": (_HERE + "init", "Write an app.toml for what is in a folder."),
    "import": (_HERE + "import_", "app.toml from pm2, supervisor, gunicorn, uWSGI, a Procfile."),
    "diff": (_HERE + "diff", "What a reload would change."),
    "config": (_HERE + "config", "A config with every default, and where it comes from."),
    "schema": (_HERE + "schema", "The JSON Schema of config files."),
    "daemon": (_HERE + "daemon", "The daemon: status, start, stop, upgrade."),
}
GROUPS = {
    "Run": ("start", "run", "stop", "restart", "reload", "scale", "send", "delete"),
    "Look": ("ps", "describe", "logs", "events", "stack", "wait", "metrics", "top", "web"),
    "Config": ("init", "import", "check", "diff", "config", "schema"),
    "Machine": ("daemon",),
}
ALIASES = {
    "ls": "ps",
    "list": "ps",
    "status": "ps",
    "show": "describe",
    "info": "describe",
    "monit": "top",
    "rm": "delete",
    "del": "delete",
}
# words of other programs: what to say here
_ELSEWHERE = {
    "save": "not needed: what runs is saved at every change and restored when the daemon starts",
    "resurrect": "not needed: the daemon restores what ran when it starts (pyworker daemon start)",
    "kill": "pyworker daemon stop   stops every app and the daemon",
    "log": "pyworker logs",
    "tail": "pyworker logs -f",
    "up": "pyworker start",
    "down": "pyworker stop all",
}
_HELP = {"help_option_names": ["-h", "--help"]}


class Commands(click.Group):
    """The group of all commands, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        command: click.Command = importlib.import_module(entry[0]).cmd
        command.context_settings = {**_HELP, **command.context_settings}
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name == "help":
            args = [*(args[1:2] or [""]), "--help"]
            name = args[0]
            if not name:
                click.echo(ctx.get_help())
                ctx.exit(0)
        command = self.get_command(ctx, name)
        if command is None:
            raise _no_such_command(name)
        return ALIASES.get(name, name), command, args[1:]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(_TOP)
        for title, names in GROUPS.items():
            formatter.write(f"{title:<10}{'  '.join(names)}\n")
        formatter.write("\npyworker COMMAND -h for its options.\n")
        if ctx.meta.get("pyworker.long"):
            with formatter.section("\nCommands"):
                formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])
            with formatter.section("Options of every command"):
                records = [p.get_help_record(ctx) for p in self.get_params(ctx)]
                formatter.write_dl([r for r in records if r is not None])


_TOP = f"""\
pyworker {__version__} — run Python apps as pools of workers: restarts, zero-downtime reloads, logs.

  pyworker start app.toml          start an app (or: pyworker start shop.main:app -w 4)
  pyworker ps                      what runs
  pyworker reload api              new code in, no request lost

"""


def _no_such_command(name: str) -> PyworkerError:
    import difflib

    from pyworker.cli.render import line

    if name in _ELSEWHERE:
        hint = _ELSEWHERE[name]
    else:
        near = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
        hint = f"did you mean `{ALIASES.get(near[0], near[0])}`?" if near else "pyworker -h lists the commands"
    return PyworkerError(f"no such command `{line(name)}`", hint=hint, code="usage", exit=Exit.USAGE)


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"pyworker {__version__}")
        ctx.exit(0)


def _show_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["pyworker.long"] = True
        click.echo(ctx.get_help())
        ctx.exit(0)


def _top(**given: Any) -> int:
    ctx = click.get_current_context()
    ctx.obj = {name: given[name] for name in NAMES}
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    return 0


def _group() -> Commands:
    flags: list[click.Parameter] = [
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version.",
        ),
        click.Option(
            ["-h", "--help"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_help,
            help="Show this.",
        ),
    ]
    return Commands(
        "pyworker",
        params=[*options(), *flags],
        callback=_top,
        invoke_without_command=True,
        add_help_option=False,
    )


def main(argv: list[str]) -> int:
    """Run the command line; return the exit code."""
    gc.disable()  # a command lives for milliseconds; the long views (logs -f, events -f) switch it on again
    head = argv[: argv.index("--")] if "--" in argv else argv
    as_json = "--json" in head
    try:
        code = _run(argv, as_json)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has seen enough
        fail.quiet_stdout()
        return 0
    return code


def _run(argv: list[str], as_json: bool) -> int:
    how = look(sys.stderr, {"always": True, "never": False}.get(_color(argv)))
    try:
        group = _group()
        with group.make_context("pyworker", list(argv)) as ctx:
            code = group.invoke(ctx)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except fail.Shown as shown:
        return shown.exit
    except (KeyboardInterrupt, click.exceptions.Abort):
        return int(Exit.INTERRUPTED)
    except PyworkerError as error:
        return fail.report(error, as_json, how)
    except click.ClickException as error:
        return fail.report(_usage(error), as_json, how)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  the last resort: words and a traceback instead of a bare one
        return fail.bug(error, as_json, how)


def _color(argv: list[str]) -> str:
    for i, word in enumerate(argv):
        if word == "--color" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith("--color="):
            return word.partition("=")[2]
    return ""


def _usage(error: click.ClickException) -> PyworkerError:
    message = error.format_message().rstrip(".")
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else "pyworker"
    hint = f"{path} -h shows its options"
    possibilities = getattr(error, "possibilities", None)
    if possibilities:
        message = f"No such option: {getattr(error, 'option_name', '')}"
        hint = "did you mean " + " or ".join(f"`{p}`" for p in sorted(possibilities)) + f"?\n{hint}"
    return PyworkerError(message[:1].lower() + message[1:], hint=hint, code="usage", exit=Exit.USAGE)
