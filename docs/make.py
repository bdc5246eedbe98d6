"""Writes the pages that are made from the code: `python docs/make.py`. A test compares them with what is there."""

from __future__ import annotations

import pathlib
import re
import textwrap
from collections.abc import Callable

import click

from pyworker.cli.main import ALIASES, COMMANDS, GROUPS, Commands, _group
from pyworker.cli.manpage import page as manual
from pyworker.cli.options import NAMES, options
from pyworker.config.reference import page as configuration
from pyworker.policy.lifecycle import TABLE, Happening, State

HERE = pathlib.Path(__file__).parent

MEANING = {
    State.STARTING: "asked for; not ready yet",
    State.HELD: "ready, accepts nothing before it is told to",
    State.OPENING: "told to accept, has not answered yet",
    State.READY: "accepts",
    State.UNHEALTHY: "accepts, but is being replaced",
    State.DRAINING: "accepts nothing any more, finishes what it has",
    State.STOPPING: "has been sent the stop signal",
    State.KILLED: "has been sent SIGKILL",
    State.STOPPED: "has ended",
}


def lifecycle() -> str:
    """Return docs/lifecycle.md."""
    edges = [
        f"    {state.value} --> {after.value}: {happening.value}"
        for state, row in TABLE.items()
        for happening, after in row.items()
        if after is not state
    ]
    meanings = [f"| `{state.value}` | {MEANING[state]} |" for state in State]
    head = "| state | " + " | ".join(h.value for h in Happening) + " |"
    rule = "|---" * (len(Happening) + 1) + "|"
    rows = [
        f"| `{state.value}` | "
        + " | ".join("·" if row[h] is state else row[h].value for h in Happening)
        + " |"
        for state, row in TABLE.items()
    ]
    return "\n".join(
        [
            "# The life of a worker",
            "",
            "Made by `python docs/make.py` from `TABLE` in [`policy/lifecycle.py`](../pyworker/policy/lifecycle.py),",
            "the only place where a worker changes its state. Do not edit.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            "    [*] --> starting",
            *edges,
            "    stopped --> [*]",
            "```",
            "",
            "| state | meaning |",
            "|---|---|",
            *meanings,
            "",
            "Every pair has an answer; `·` means that nothing changes, so that the late words of a dying worker do no harm.",
            "",
            head,
            rule,
            *rows,
            "",
        ]
    )


def commands() -> str:
    """Return docs/commands.md: what `-h` says of every command, in one page."""
    group = _group()
    lines = [
        "# Commands",
        "",
        "Made by `python docs/make.py` from the commands themselves. Do not edit.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {title} | {' '.join(f'[{name}](#{name})' for name in names)} |" for title, names in GROUPS.items()),
        "",
        "Words that mean the same: " + ", ".join(f"`{word}` = `{name}`" for word, name in ALIASES.items()) + ".",
        "",
        "## Options of every command",
        "",
        *_options(list(options())),
    ]
    for names in GROUPS.values():
        for name in names:
            command = group.get_command(click.Context(group), name)
            assert command is not None
            lines += _command(name, command, COMMANDS[name][1])
    return "\n".join(lines)


def _command(name: str, command: click.Command, short: str) -> list[str]:
    context = click.Context(command, info_name=f"pyworker {name}", terminal_width=110)
    head, _, rest = re.sub(r" *\x08\n", "", command.help or "").partition("\n")
    lines = [f"## {name}", "", head or short, "", "```text", " ".join(command.get_usage(context).split()[1:])]
    lines += ["", *textwrap.dedent(rest).strip("\n").split("\n")] if rest.strip() else []
    lines += ["```", "", *_options([p for p in command.params if p.name not in NAMES])]
    if isinstance(command, click.Group) and not isinstance(command, Commands):
        for child in command.list_commands(context):
            inner = command.get_command(context, child)
            assert inner is not None
            lines += [line.replace("## ", "### ", 1) for line in _command(f"{name} {child}", inner, "")]
    return lines


def _options(params: list[click.Parameter]) -> list[str]:
    rows = []
    for param in params:
        record = param.get_help_record(click.Context(click.Command("x")))
        if record is not None and isinstance(param, click.Option):
            name, text = (" ".join(part.split()).replace("|", "\\|") for part in record)
            rows.append(f"| `{name}` | {text} |")
    return ["| option | |", "|---|---|", *rows, ""] if rows else []


PAGES: dict[str, Callable[[], str]] = {
    "lifecycle.md": lifecycle,
    "commands.md": commands,
    "configuration.md": configuration,
    "pyworker.1": manual,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
