"""CLI: the `pyworker` command. Finds the subcommand, maps every error to words and an exit code.

Commands are imported when they are used; their names and short helps are literals here, so that `pyworker -h` imports
none of them and `pyworker ps` only its own.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import Any

import click

from pyworker import __version__
from pyworker.cli import fail
from pyworker.cli.here import is_gone
from pyworker.cli.names import ALIASES, COMMANDS, ELSEWHERE, GROUPS, HIDDEN, OPTIONS_ELSEWHERE
from pyworker.cli.options import NAMES, OPTIONS, TimeIsUp, shows
from pyworker.cli.render import look, mute, out
from pyworker.errors import BROKEN_DISK, FULL_DISK, NO_DESCRIPTOR, WANTING, Exit, PyworkerError

_HELP = {"help_option_names": ["-h", "--help"]}
# commands with which settings of an app may be typed
_OF_APPS = {"start", "run", "stop", "restart", "reload", "scale"}


class Commands(click.Group):
    """The group of all commands, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        place = entry[0] if entry is not None else HIDDEN.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name or "cmd")
        command.context_settings = {**_HELP, **command.context_settings}
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name == "help":
            name = args[1] if len(args) > 1 else ""
            if not name:
                out(ctx.get_help())
                ctx.exit(0)
            if name not in {*COMMANDS, *ALIASES, *HIDDEN}:
                from pyworker.cli.topics import show

                ctx.exit(show(name))
            self._explain(ctx, ALIASES.get(name, name))
        command = self.get_command(ctx, name)
        if command is None:
            raise _no_such_command(name)
        return ALIASES.get(name, name), command, args[1:]

    def _explain(self, ctx: click.Context, name: str) -> None:
        """`help NAME` of a command: its options, and the topic of that name when there is one."""
        from pyworker.cli.topics import TOPICS

        command = self.get_command(ctx, name)
        if command is not None:
            text = command.get_help(click.Context(command, info_name=name, parent=ctx, **command.context_settings))
            click.echo(f"{text}\n\n{TOPICS[name][1].rstrip()}" if name in TOPICS else text)
            ctx.exit(0)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        columns = look(sys.stdout).width or 100
        formatter.write(click.wrap_text(_TOP, columns) + "\n\n")
        for command, text in _EXAMPLES:
            row = f"  {command:<33}{text}"
            formatter.write((row if len(row) <= columns else f"  {command}\n      {text}") + "\n")
        formatter.write("\n")
        for title, names in GROUPS.items():
            formatter.write(click.wrap_text(f"{title:<10}{'  '.join(names)}", columns, "", " " * 10) + "\n")
        more = "pyworker COMMAND -h for its options, pyworker help topics for the rest."
        formatter.write("\n" + click.wrap_text(more, columns) + "\n")
        if ctx.meta.get("pyworker.long"):
            with formatter.section("\nCommands"):
                formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])
            with formatter.section("Options of every command"):
                records = [p.get_help_record(ctx) for p in self.get_params(ctx)]
                formatter.write_dl([r for r in records if r is not None])


_TOP = f"pyworker {__version__} — run Python apps as pools of workers: restarts, zero-downtime reloads, logs."
_EXAMPLES = (
    ("pyworker start app.toml", "start an app (or: pyworker start shop.main:app -w 4)"),
    ("pyworker ps", "what runs"),
    ("pyworker reload api", "new code in, no request lost"),
)


def _no_such_command(name: str) -> PyworkerError:
    import difflib

    from pyworker.cli.render import argument, line

    if name in ELSEWHERE:
        hint = ELSEWHERE[name]
    elif ":" in name or name.endswith((".toml", ".py")):
        hint = f"pyworker start {argument(name)}"
    else:
        near = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
        hint = f"did you mean `{ALIASES.get(near[0], near[0])}`?" if near else "pyworker -h lists the commands"
    return PyworkerError(f"no such command `{line(name)}`", hint=hint, code="usage")


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"pyworker {__version__}")
        ctx.exit(0)


def _show_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["pyworker.long"] = True
        out(ctx.get_help())
        ctx.exit(0)


def _top(**given: Any) -> int:
    ctx = click.get_current_context()
    ctx.obj = {name: given[name] for name in NAMES}
    if ctx.invoked_subcommand is None:
        out(ctx.get_help())
    return 0


def command_of(name: str) -> click.Command | None:
    """Return a command by its name, the top group for ""."""
    group = _group()
    return group.get_command(click.Context(group), name) if name else group


def _group() -> Commands:
    flags = [
        shows(["--version"], _show_version, "Show the version."),
        shows(["-h", "--help"], _show_help, "Show this."),
    ]
    return Commands(
        "pyworker", params=[*OPTIONS, *flags], callback=_top, invoke_without_command=True, add_help_option=False
    )


def main(argv: list[str]) -> int:
    """Run the command line; return the exit code."""
    _open_streams()
    gc.disable()  # a command lives for milliseconds; the long views (logs -f, events -f) switch it on again
    head = argv[: argv.index("--")] if "--" in argv else argv
    return _run(argv, "--json" in head)


def _open_streams() -> None:
    """Put /dev/null in the place of what the caller has closed (`2>&-`): else a socket of ours would have its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(fd, True)
            setattr(sys, name, os.fdopen(fd, "w" if number else "r", closefd=False))


def _run(argv: list[str], as_json: bool) -> int:
    how = look(sys.stderr, {"always": True, "never": False}.get(_color(argv)))
    ctx: click.Context | None = None
    try:
        group = _group()
        with group.make_context("pyworker", list(argv)) as ctx:
            code = group.invoke(ctx)
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except fail.Shown as shown:
        return shown.exit
    except (KeyboardInterrupt, click.exceptions.Abort):
        return int(Exit.INTERRUPTED)
    except TimeIsUp:
        over = PyworkerError("the time of --timeout is over", code="timeout", hint="a longer --timeout, or none")
        return fail.report(over, as_json, how)
    except PyworkerError as error:
        return fail.report(error, as_json, how, (ctx and ctx.invoked_subcommand) or "")
    except click.ClickException as error:
        return fail.report(_usage(error, (ctx and ctx.invoked_subcommand) or ""), as_json, how)
    except BrokenPipeError:  # the reader of our output has seen enough
        mute(sys.stdout)
        return 0
    except Exception as error:  # noqa: BLE001  the last resort: words and a traceback instead of a bare one
        if isinstance(error, FileNotFoundError) and is_gone():
            gone = PyworkerError("the folder you are in was removed", hint="cd to one that is there", exit=Exit.USAGE)
            return fail.report(gone, as_json, how)
        if (refused := _of_the_system(error)) is not None:
            return fail.report(refused, as_json, how)
        return fail.bug(error, as_json, how)


def _of_the_system(error: Exception) -> PyworkerError | None:
    """Return in words what the system lacks or what fails in it, None for what is a mistake of ours."""
    number, name = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    message = hint = ""
    if name is None and (number in FULL_DISK or (number in BROKEN_DISK and not _is_stdout_well())):
        mute(sys.stdout)
        step = "make room on its disk" if number in FULL_DISK else "its terminal is gone, or its disk is broken (dmesg)"
        message, hint = f"the output cannot be written: {os.strerror(number)}", f"{step}, or send it to another"
    elif number in BROKEN_DISK:
        message = f"{name or 'a file that this command needs'} cannot be read: {os.strerror(number)}"
        hint = "its disk is broken, or not there any more: dmesg"
    elif isinstance(error, PermissionError) and isinstance(name, str):
        from pyworker.cli.files import cannot

        return cannot("open", name, error)
    elif number in NO_DESCRIPTOR:
        message = "no descriptor is left for this command"
        hint = "close some files, or raise the limit on them (ulimit -n; of the machine: sysctl fs.file-max)"
    elif isinstance(error, MemoryError) or number in WANTING:
        message, hint = "no memory is left for this command", "free some, or raise the limit on it (ulimit -v)"
    return PyworkerError(message, hint=hint) if message else None


def _is_stdout_well() -> bool:
    """Whether it can be written to: what it did not take is still in its buffer."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _color(argv: list[str]) -> str:
    for i, word in enumerate(argv):
        if word == "--color" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith("--color="):
            return word.partition("=")[2]
    return os.environ.get("PYWORKER_COLOR", "")


def _is_like(typed: str, option: str) -> bool:
    """Whether one may be meant by the other. click counts the dashes as well, so that --grep is like --help."""
    import difflib

    a, b = typed.strip("-"), option.strip("-")
    return a in b or b in a or difflib.SequenceMatcher(None, a, b).ratio() >= 0.7


def _usage(error: click.ClickException, command: str) -> PyworkerError:
    """`command`: the one that was typed; an option without its value does not know it."""
    # with possibilities, what click makes of them stands in format_message()
    message = error.message if hasattr(error, "possibilities") else error.format_message()
    message = message.partition(" Choose from:")[0].rstrip(".")  # the choices are in the argument's name
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else f"pyworker {command}".rstrip()
    word = getattr(error, "command_name", "")
    hint = f"{path} -h shows its {'commands' if word else 'options'}"
    typed = getattr(error, "option_name", "")
    near = [p for p in getattr(error, "possibilities", None) or () if _is_like(typed, p)]
    ours = {name for option in ctx.command.params for name in option.opts} if ctx is not None else set()
    known = OPTIONS_ELSEWHERE.get(typed, ())
    elsewhere = ELSEWHERE.get(f"{path} {word}".removeprefix("pyworker "), "") if word else ""
    meant = elsewhere or next((m for m in known if m[0] != "-" or m.split()[0] in ours), "")
    if not meant and hasattr(error, "possibilities") and path.rpartition(" ")[2] in _OF_APPS:
        from pyworker.config.canonical import line_of

        meant = f"app.toml has it, in [app]: {line}" if (line := line_of(typed)) else ""
    if meant:
        hint = f"{meant}\n{hint}"
    elif near:
        hint = "did you mean " + " or ".join(f"`{p}`" for p in sorted(near)) + f"?\n{hint}"
    return PyworkerError(message[:1].lower() + message[1:], hint=hint, code="usage")
