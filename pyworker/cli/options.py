"""CLI: the options that every command takes, before or after its name, and what they come to.

`common` adds them to a command and hands it one `Settings` as its first argument. Nothing is looked up
here but the environment: no file, no socket.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from pyworker.cli.homes import default_home, name_in_commands
from pyworker.cli.render import argument, note, out
from pyworker.errors import PyworkerError
from pyworker.protocol.names import ENV_HOME

if TYPE_CHECKING:
    from types import FrameType

_LONGEST_HOME = 4096 - 300  # bytes: PATH_MAX, with room for what is in it
SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?\Z")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# seconds, 23 days: poll(2) takes no more milliseconds than an int has, and a socket none of the year 3000
_LONGEST = 2e6


class TimeIsUp(BaseException):
    """--timeout is over for a view that follows: as Ctrl-C, nothing on its way takes it for a failure to wait out."""


class Settings(NamedTuple):
    """What the options shared by all commands say. color None: as the terminal and NO_COLOR have it."""

    json: bool
    quiet: bool
    verbose: bool
    color: bool | None
    yes: bool
    timeout: float | None  # seconds; None = not given
    home: str  # absolute

    @property
    def is_silent(self) -> bool:
        """Whether nothing is said beside what was asked for."""
        return self.json or self.quiet


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A time span as text ("10s", "500ms", "2m") or a bare number of seconds; converts to float seconds, _LONGEST at most."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = SPAN.match(str(value).strip())
        if match is None:
            self.fail(f'{value!r} is not a time span: write "10s", "500ms" or "2m"', param, ctx)
        return min(float(match[1]) * SECONDS[match[2] or "s"], _LONGEST)


class Option(click.Option):
    """An option whose help is one line: click would have `inspect` clean it, and import that for it."""

    def __init__(self, *args: Any, help: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.help = help


option = functools.partial(click.option, cls=Option)
of_profile = option(
    "--profile", default="", envvar="PYWORKER_PROFILE", metavar="NAME", help="Use [profiles.NAME] of the file."
)


def shows(names: list[str], show: Callable[[click.Context, click.Parameter, bool], None], help: str) -> Option:
    """Return an option that shows something, whatever else was typed, instead of running the command."""
    return Option(names, is_flag=True, is_eager=True, expose_value=False, callback=show, help=help)


def _show_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(ctx.get_help())
        ctx.exit()


OPTIONS = (
    Option(["--json"], is_flag=True, default=None, help="Data as JSON; errors as JSON on stderr."),
    Option(["-q", "--quiet"], is_flag=True, default=None, help="Only what was asked for."),
    Option(["-v", "--verbose"], is_flag=True, default=None, help="More detail."),
    Option(["--color"], type=click.Choice(["auto", "always", "never"]), default=None, help="When to use colour."),
    Option(["-y", "--yes"], is_flag=True, default=None, help="Do not ask."),
    Option(
        ["--timeout"],
        type=Duration(),
        default=None,
        metavar="TIME",
        help="Wait or follow no longer than this (exit 75).",
    ),
    Option(["--home"], default=None, metavar="DIR", help=f"State folder; default: ${ENV_HOME}."),
)
HELP = shows(["-h", "--help"], _show_help, "Show this message and exit.")
NAMES: tuple[str, ...] = tuple(str(o.name) for o in OPTIONS)
SHARED = frozenset((*NAMES, HELP.name))  # what is no command's own


def _what_is_wrong_with(home: str) -> str:
    if os.fsencode(home).decode(errors="ignore") != home:  # workers are told where it is, and what is told is text
        return "is not UTF-8"
    if len(os.fsencode(home)) > _LONGEST_HOME or any(len(os.fsencode(name)) > 255 for name in home.split(os.sep)):
        return "has too long a name"
    return ""


def settings_of(given: dict[str, Any]) -> Settings:
    """Return the Settings that these values (name -> value, None or absent = not given) come to."""
    color = given.get("color") or os.environ.get("PYWORKER_COLOR") or "auto"
    home = os.path.abspath(os.path.expanduser(given.get("home") or default_home()))
    if wrong := _what_is_wrong_with(home):
        raise PyworkerError(f"the state folder {home} {wrong}", hint=f"choose another place with --home or {ENV_HOME}", code="no_home")  # fmt: skip
    return Settings(
        json=bool(given.get("json")),
        quiet=bool(given.get("quiet")),
        verbose=bool(given.get("verbose")),
        color={"always": True, "never": False}.get(color),
        yes=bool(given.get("yes")),
        timeout=given.get("timeout"),
        home=home,
    )


def follow_no_longer(settings: Settings) -> None:
    """Have TimeIsUp raised when --timeout is over, whatever this view of ours is at then."""

    def end(_signum: int, _frame: FrameType | None) -> NoReturn:
        raise TimeIsUp

    if settings.timeout is not None:
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, max(settings.timeout, 0.001))


def say(settings: Settings, document: dict[str, Any], text: str) -> int:
    """Say what was done, as JSON or in words; return the exit code."""
    if settings.json:
        out(json.dumps({"v": 1, **document}))
    elif not settings.quiet:
        note(text)
    return 0


def common(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command; it gets `settings: Settings` as its first argument.

    Goes right above the function: @click.command() / @option(...)… / @common / def cmd(settings, …).
    """

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        ctx = click.get_current_context()
        before = ctx.obj if isinstance(ctx.obj, dict) else {}
        here = {name: kwargs.pop(name, None) for name in NAMES}
        given = {name: before.get(name) if here[name] is None else here[name] for name in NAMES}
        ctx.obj = given  # for a command that this one invokes
        settings = settings_of(given)
        # not in JSON: that is the daemon's, unchanged
        name_in_commands(argument(settings.home) if given["home"] and not settings.json else "")
        return fn(settings, *args, **kwargs)

    parameters: list[click.Parameter] = getattr(run, "__click_params__", None) or []
    run.__click_params__ = [HELP, *reversed(OPTIONS), *parameters]  # type: ignore[attr-defined]
    return run
