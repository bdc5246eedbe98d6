"""CLI: the manual page pyworker(1), written from the commands themselves: `python -m pyworker.cli.manpage > pyworker.1`."""

from __future__ import annotations

import inspect
import sys

import click

from pyworker import __version__
from pyworker.cli.main import command_of
from pyworker.cli.names import ALIASES, COMMANDS, GROUPS
from pyworker.cli.options import NAMES, SHARED
from pyworker.cli.topics import TOPICS


def page() -> str:
    """Return the page as roff."""
    lines = [
        f'.TH PYWORKER 1 "" "pyworker {__version__}" "User Commands"',
        ".SH NAME",
        r"pyworker \- run Python apps as pools of workers: restarts, zero\-downtime reloads, logs",
        ".SH SYNOPSIS",
        r".B pyworker\fR \fICOMMAND\fR [\fIOPTIONS\fR]",
        ".SH COMMANDS",
    ]
    for group, names in GROUPS.items():
        lines.append(f".SS {group}")
        for name in names:
            lines += _command(name)
    lines += [".SH OPTIONS OF EVERY COMMAND", *_options(command_of(""), wanted=set(NAMES))]
    for topic, (_, text) in TOPICS.items():
        lines += [f".SH {topic.upper().replace('-', ' ')}", ".nf", *map(_text, text.rstrip().split("\n")), ".fi"]
    words = ", ".join(f"{word} = {name}" for word, name in ALIASES.items())
    lines += [".SH OTHER WORDS", _text(words), ".SH SEE ALSO", "systemd(1), systemctl(1)"]
    return "\n".join(lines) + "\n"


def _command(name: str) -> list[str]:
    command = command_of(name)
    assert command is not None
    return _entry(f"pyworker {name}", command, COMMANDS[name][1])


def _entry(name: str, command: click.Command, short: str) -> list[str]:
    lines = [".TP", rf".B {_text(name)}"]
    description = inspect.cleandoc(command.help or short)
    literal = False
    for text in description.split("\n"):
        if text.strip() == "\b":
            lines += [".nf"]
            literal = True
        elif not text.strip():
            lines += [*([".fi"] if literal else []), ".br"]
            literal = False
        else:
            lines.append(_text(text))
    if literal:
        lines.append(".fi")
    lines += [".RS", *_options(command, wanted=None), ".RE"]
    if isinstance(command, click.Group):
        for child in sorted(command.commands):
            lines += _entry(f"{name} {child}", command.commands[child], "")
    return lines


def _options(command: click.Command | None, *, wanted: set[str] | None) -> list[str]:
    """Return the options that are this command's own, or with `wanted` those of that name."""
    lines: list[str] = []
    for option in command.params if command is not None else ():
        is_shared = option.name in SHARED
        if (
            not isinstance(option, click.Option)
            or option.hidden
            or (option.name not in wanted if wanted else is_shared)
        ):
            continue
        value = "" if option.is_flag or option.count else f" {option.metavar or 'VALUE'}"
        names = ", ".join([*option.opts, *option.secondary_opts])
        lines += [".TP", rf".B {_text(names + value)}", _text(option.help or "")]
    return lines


def _text(text: str) -> str:
    """Escape for roff: backslashes, hyphens that are typed, a dot or quote at the beginning."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)  # not every groff reads UTF-8
    return r"\&" + text if text[:1] in (".", "'") else text


if __name__ == "__main__":
    sys.stdout.write(page())
