"""Writes the pages that are made from the code: `python docs/make.py`. A test compares them with what is there."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click

from pyworker.cli.main import ALIASES, COMMANDS, GROUPS, Commands, _group, command_of
from pyworker.cli.manpage import page as manual
from pyworker.cli.options import OPTIONS, SHARED
from pyworker.config.convert import expected, hints_of, literals, table_class
from pyworker.config.option import Option, option_of
from pyworker.config.report import shown
from pyworker.config.schema import AppConfig, RunConfig
from pyworker.config.units import duration_text, size_text
from pyworker.errors import MEANING as MEANING_OF_EXIT
from pyworker.errors import Exit
from pyworker.policy.lifecycle import TABLE, Happening, State
from pyworker.protocol.events import TYPES, WHEN
from pyworker.record import MISSING, Field, fields

HERE = pathlib.Path(__file__).parent
SCHEMAS = HERE.parent / "pyworker" / "protocol" / "schemas"

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


# what may end any worker: drawn once, as the way of one that serves
ENDS = {
    Happening.DRAIN: {State.READY},
    Happening.STOP: {State.DRAINING},
    Happening.KILL: {State.STOPPING},
    Happening.EXIT: {State.DRAINING, State.STOPPING, State.KILLED},
}


def tables_of_options() -> str:
    """Return the options that a config file takes, table by table."""
    tables = [options_of(AppConfig, "## [app], [apps.NAME], [defaults]")]
    for field in fields(AppConfig):
        nested = table_class(hints_of(AppConfig)[field.name])
        if nested is not None:
            tables.append(options_of(nested, f"## [app.{field.name}]", option_of(field).help))
    tables.append(options_of(RunConfig, "## [run]", "for `pyworker run`, of the whole file"))
    return "\n".join(tables)


def options_of(cls: Any, title: str, lead: str = "") -> str:
    lines = [title, ""]
    if lead:
        lines += [f"{lead[0].upper()}{lead[1:]}.", ""]
    lines += ["| option | value | default | takes effect | |", "|---|---|---|---|---|"]
    for field in fields(cls):
        hint = hints_of(cls)[field.name]
        if table_class(hint) is not None:
            continue
        option = option_of(field)
        cells = (f"`{field.name}`", kind_of(hint, option), default_of(field, option), option.apply, help_of(option))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def kind_of(hint: Any, option: Option) -> str:
    if option.unit:
        text = "time span" if option.unit == "duration" else "size"
        text += "".join(f' or `"{word}"`' for word in literals(hint))
    elif (words := typing.get_args(hint)) and all(isinstance(word, str) for word in words):
        text = " ".join(f"`{shown(word)}`" for word in words)
    elif "tuple" in str(hint):
        text = "text or list"
    elif "dict" in str(hint):
        text = "table of texts"
    else:
        text = expected(hint, option)
    number = in_units(option)
    if option.minimum is not None and option.maximum is not None:
        return f"{text}, {number(option.minimum)} to {number(option.maximum)}"
    if option.minimum:
        return f"{text}, at least {number(option.minimum)}"
    return text


def default_of(field: Field[Any], option: Option) -> str:
    value = field.default
    if field.name in ("bind", "name"):
        return "see above" if field.name == "bind" else "the folder's name"
    if value is MISSING or value is None or value in ("", ()):
        required = value is MISSING and field.default_factory is MISSING
        return "required" if required else ""
    if isinstance(value, tuple):
        return "`[" + ", ".join(shown(v) for v in value) + "]`"
    return f"`{in_units(option)(value) if option.unit else shown(value)}`"


def in_units(option: Option) -> Any:
    match option.unit:
        case "duration":
            return lambda n: f'"{duration_text(n)}"'
        case "size":
            return lambda n: f'"{size_text(int(n))}"'
        case "":
            return lambda n: f"{n:g}"


def help_of(option: Option) -> str:
    example = f"; for example `{option.example}`" if option.example else ""
    return option.help.replace("<", "&lt;") + example


def lifecycle() -> str:
    """Return docs/lifecycle.md."""
    edges = [
        f"    {state.value} --> {after.value}: {happening.value}"
        for state, row in TABLE.items()
        for happening, after in row.items()
        if after is not state and state in ENDS.get(happening, {state})
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
            "A worker may be drained, stopped or killed, or end, in nearly every state: the last table has all of it.",
            "",
            "| state | meaning |",
            "|---|---|",
            *meanings,
            "",
            "`·`: nothing changes, so that a late message of a dying worker does no harm.",
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
        *_options([*OPTIONS]),
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
    own = [p for p in command.params if p.name not in SHARED]
    same = [p for p in own if name == "run" and isinstance(p, click.Option) and p.name in _names_of("start")]
    lines += ["```", "", *_options([p for p in own if p not in same])]
    if same:
        lines += [f"As for [start](#start): {', '.join(f'`{p.opts[-1]}`' for p in same)}.", ""]
    if isinstance(command, click.Group) and not isinstance(command, Commands):
        for child in command.list_commands(context):
            inner = command.get_command(context, child)
            assert inner is not None
            lines += [line.replace("## ", "### ", 1) for line in _command(f"{name} {child}", inner, "")]
    return lines


def _names_of(name: str) -> set[str | None]:
    command = command_of(name)
    assert command is not None
    return {p.name for p in command.params}


def _options(params: list[click.Parameter]) -> list[str]:
    rows = []
    for param in params:
        record = param.get_help_record(click.Context(click.Command("x")))
        if record is not None and isinstance(param, click.Option):
            name, text = (" ".join(part.split()).replace("|", "\\|") for part in record)
            rows.append(f"| `{name}` | {text} |")
    return ["| option | |", "|---|---|", *rows, ""] if rows else []


def events() -> str:
    """Return the table of events."""
    rows = [
        f"| `{kind}` | {', '.join(f'`{key}`' for key in keys) or '–'} | {WHEN[kind]} |" for kind, keys in TYPES.items()
    ]
    return "\n".join(["| type | data | when |", "|---|---|---|", *rows])


def exit_codes() -> str:
    """Return the table of exit codes."""
    rows = [f"| {int(code)} | `{code.name}` | {MEANING_OF_EXIT[code]} |" for code in Exit]
    return "\n".join(["| code | name | when |", "|---|---|---|", *rows])


def shapes() -> str:
    """Return the tables of the JSON that commands print, key by key."""
    lines: list[str] = []
    for path in sorted(SCHEMAS.glob("*.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        lines += ["", f"### {path.stem}.json", "", schema["title"] + ".", ""]
        rows = [f"| `{key}` | {value} |" for key, value in _keys(schema, "")]
        if path.stem == "describe":
            inherited = {f"| `{key}` | {value} |" for key, value in _keys(json.loads((SCHEMAS / "ps.json").read_text()), "")}
            rows = [row for row in rows if row not in inherited]
            lines += ["`apps[]` has all that it has in [ps.json](#psjson), and besides:", ""]
        lines += ["| key | value |", "|---|---|", *rows]
    return "\n".join(lines[1:])


def _keys(schema: dict[str, Any], before: str) -> Iterator[tuple[str, str]]:
    required = schema.get("required", [])
    told: dict[str, str] = {}
    for key, value in schema.get("properties", {}).items():
        if key == "v":
            continue
        items = json.dumps(value.get("items") if isinstance(value, dict) else None)
        same = f" like `{told[items]}`" if "properties" in items and items in told else ""
        told.setdefault(items, f"{before}{key}")
        yield f"{before}{key}", _value(value) + same + ("" if key in required else "; may be missing")
        if same:
            continue
        inner = value
        name = f"{before}{key}"
        while isinstance(inner, dict) and "items" in inner:
            inner, name = inner["items"], name + "[]"
        if isinstance(inner, dict):
            yield from _keys(inner, name + ".")


def _value(schema: Any) -> str:
    if not isinstance(schema, dict) or not schema:
        return "anything"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_value(inner) for inner in schema["anyOf"])
    kinds = schema.get("type", "anything")
    words = [WORDS.get(kind, kind) for kind in (kinds if isinstance(kinds, list) else [kinds])]
    if schema.get("pattern", "").startswith("^\\d{4}-"):
        words[0] = "time"
    if words[0] == "list" and isinstance(schema.get("items"), dict) and "properties" not in schema["items"]:
        words[0] = f"list of {_value(schema['items'])}"
    return " or ".join(words)


WORDS = {"string": "text", "integer": "whole number", "boolean": "true or false", "array": "list", "object": "table"}
# page -> name of a part of it -> what makes that part, between <!-- made: NAME --> and <!-- made: end -->
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "json.md": {"events": events, "shapes": shapes},
    "exit-codes.md": {"exit codes": exit_codes},
    "configuration.md": {"options": tables_of_options},
}


def with_parts(name: str) -> str:
    """Return a page with its made parts made anew."""
    text = (HERE / name).read_text(encoding="utf-8")
    for part, make in PARTS[name].items():
        begin, end = f"<!-- made: {part} -->\n", "\n<!-- made: end -->"
        head, found, rest = text.partition(begin)
        assert found, f"{name} has no place for {part}"
        text = head + begin + make() + end + rest.partition(end)[2]
    return text


PAGES: dict[str, Callable[[], str]] = {
    "lifecycle.md": lifecycle,
    "commands.md": commands,
    "pyworker.1": manual,
    **{name: functools.partial(with_parts, name) for name in PARTS},
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
