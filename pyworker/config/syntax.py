"""Bytes -> TOML table, or one ConfigError that shows where the text stops being TOML and what was likely meant."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

from pyworker.config.canonical import literal
from pyworker.config.problem import ConfigError, Problem
from pyworker.config.report import MAX_SOURCE, dotted, short
from pyworker.config.spans import Document

MAX_FILE = 1024 * 1024
_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")
_PAIR = re.compile(r"""\s*((?:[A-Za-z0-9_.-]|"[^"]*"|'[^']*')+)\s*=\s*(.*?)\s*(?:\s#.*)?\Z""")
_COLON_PAIR = re.compile(r"""\s*([A-Za-z0-9_-]+)\s*:\s*(.+)\Z""")
_DUPLICATE = re.compile(r"(Cannot (overwrite|declare)|Duplicate|twice)", re.IGNORECASE)
_TABLE = re.compile(r"""\(['"].*['"],?\)""")  # as tomllib shows the path of one
_ENDLESS = re.compile(r"[0-9][0-9_]{4000,}")  # digits; int() takes 4,300
_LONGEST = 2000  # characters of a line that a likely mistake is looked for in
# a dotted key (in a text, too, which has none in its right mind): to tomllib one of 20,000 parts is 1.5 GB of work
_DEEP = re.compile(
    r"""(?<![A-Za-z0-9_\\-])(?:(?>[A-Za-z0-9_-]++|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){100}"""
)


def parse(data: bytes, file: str) -> tuple[dict[str, Any], str]:
    """Return the table and the text it was read from."""
    if len(data) > MAX_FILE:
        message = f"{os.path.basename(file)} is too large for a config file: at most {MAX_FILE} bytes are read"
        raise ConfigError([Problem(message, "", file=file, code="unreadable")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        message = f"not UTF-8: byte 0x{data[error.start]:02x}"
        raise ConfigError(
            [Problem(message, "save the file as UTF-8", "", file, line, column, column + 1, code="syntax")]
        ) from None
    text = text.removeprefix("\ufeff")  # some editors put it there; it says nothing
    if deep := _DEEP.search(text):
        raise _too_deep(file, text.count("\n", 0, deep.start()) + 1)
    try:
        return tomllib.loads(text), text
    except RecursionError:
        raise _too_deep(file, 1) from None
    except ValueError as error:  # TOMLDecodeError; and int() of a number of 5,000 digits
        raise ConfigError([_problem(str(error), text, file)]) from None


def _too_deep(file: str, line: int) -> ConfigError:
    hint = "a config needs no more than four tables in one another"
    return ConfigError([Problem("nested too deeply", hint, "", file, line, 1, 2, code="syntax")])


def _problem(said: str, text: str, file: str) -> Problem:
    document = Document(text)
    match = _WHERE.search(said)
    said = _TABLE.sub(_as_header, _WHERE.sub("", said))
    endless = None if match else _ENDLESS.search(text)
    if endless:
        said = f"a number of {len(endless[0])} digits"
        line, column = text.count("\n", 0, endless.start()) + 1, endless.start() - text.rfind("\n", 0, endless.start())
    elif match and match[1]:
        line, column = int(match[1]), int(match[2])
    else:
        line, column = document.lines, 1
        while line > 1 and not document.line(line).strip():
            line -= 1
        column = len(document.line(line)) + 1
    if _DUPLICATE.search(said) and not document.line(line)[: column - 1].strip() and line > 1:
        line, column = line - 1, len(document.line(line - 1)) + 1  # tomllib has read on to the next line
    source = document.line(line)
    column, end, hint = _suspect(said, source, column)
    message = f"not valid TOML: {short(said[:1].lower() + said[1:], 200)}"
    return Problem(message, hint, "", file, line, column, end, source if len(source) <= MAX_SOURCE else "", "syntax")


def _as_header(found: re.Match[str]) -> str:
    import ast

    try:
        path = ast.literal_eval(found[0])
    except (ValueError, SyntaxError):  # something else in brackets
        return found[0]
    return f"[{dotted(path)}]" if isinstance(path, tuple) else found[0]


def _suspect(said: str, source: str, column: int) -> tuple[int, int, str]:
    """Return columns to point at, and the likely mistake in this line."""
    if len(source) > _LONGEST:
        return column, column + 1, ""
    pair = _PAIR.match(source)
    bare = (column, max(column + 1, len(source) + 1 if column <= len(source) else column + 1))
    point = (column, column + 1)
    if _DUPLICATE.search(said):
        start = len(source) - len(source.lstrip()) + 1
        return start, len(source.rstrip()) + 1, "this key or table is there already: remove one of the two"
    if said.lower() == "unclosed array":  # what stands here is the line that it was to end before
        return *point, "the list above has no ] at its end, or a comma is missing"
    if any(quote in source for quote in "“”‘’"):
        at = next(i for i, c in enumerate(source) if c in "“”‘’") + 1
        return at, at + 1, "use straight quotes: \" or '"
    if pair is None:
        colon = _COLON_PAIR.match(source)
        if colon and not source.lstrip().startswith("["):
            return *point, f"TOML writes = between key and value: {colon[1]} = {short(colon[2].strip())}"
        if source.lstrip().startswith("[") and "]" not in source:
            return *bare, "the ] at the end is missing"
        if re.fullmatch(r"\s*[A-Za-z0-9_.-]+\s*", source):
            return *point, f"a value is missing: {source.strip()} = …"
        return *point, ""
    key, value = pair[1], pair[2]
    start = pair.start(2) + 1
    whole = (start, start + max(1, len(value)))
    if not value:
        return *point, f"a value is missing: {key} = …"
    if value in ("True", "False", "TRUE", "FALSE", "yes", "no", "on", "off"):
        meant = "true" if value.lower() in ("true", "yes", "on") else "false"
        return *whole, f"true and false are small letters: {key} = {meant}"
    if value.lower() in ("none", "null", "nil"):
        return *whole, "TOML has no such value: leave the line out"
    if value[0] in "\"'" and value.count(value[0]) % 2 == 1:
        return *whole, f"the closing {value[0]} is missing"
    if value[0] == "(":
        return *whole, "a list has square brackets: [ ]"
    if value[0] == "[" and "]" not in value:
        return *point, "the list has no ] at its end, or a comma is missing"
    if value[0] == "{":
        return *point, "a table in braces stands on one line, with commas between and none at the end"
    if value[0] == '"' and "\\" in value:
        return *point, "a backslash is written \\\\ in \"…\"; or use '…'"
    if value[0] not in "\"'[{":
        return *whole, f"text needs quotes: {key} = {literal(short(value))}"
    return *point, ""
