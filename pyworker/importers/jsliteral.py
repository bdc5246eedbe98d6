"""The plain part of an ecosystem.config.js: object literals, names for them, process.env. Never executed.

A value that only running the file could tell (a function call, a condition) is `Computed`, with its line and its text; a
statement that is none of `const NAME = …` and `module.exports = …` is passed over and named.
"""

from __future__ import annotations

from typing import Any

from pyworker.importers.jsexpression import PATHS, Expressions, Function, Module
from pyworker.importers.jstokens import Tokens
from pyworker.importers.jsvalues import FILE, HERE, RUN, Computed
from pyworker.importers.result import CannotImport

_NOTHING = object()


def parse(text: str, passed: list[Computed] | None = None) -> Any:
    """Return what the file exports (module.exports = …, export default …); append statements passed over to `passed`."""
    program = _Program(text)
    value = program.exported()
    if isinstance(value, Computed):
        raise CannotImport(str(value), RUN, value.line)
    if passed is not None:
        passed += program.passed
    return value


class _Program:
    def __init__(self, text: str) -> None:
        self.passed: list[Computed] = []
        self._tokens = Tokens(text)
        self._names: dict[str, Any] = {"__dirname": HERE, "__filename": FILE}
        self._expressions = Expressions(self._tokens, self._names, self.passed)

    def exported(self) -> Any:
        tokens = self._tokens
        exported: Any = _NOTHING
        while not tokens.are_over():
            if tokens.accept("module", ".", "exports", "=") or tokens.accept("export", "default"):
                exported = self._expressions.held()
                tokens.accept(";")
            elif tokens.accept("module", ".", "exports", ".", "apps", "=") or tokens.accept(
                "exports", ".", "apps", "="
            ):
                exported = {"apps": self._expressions.held()}
                tokens.accept(";")
            elif tokens.peek() == "import":
                self._import()
            elif tokens.peek() in ("const", "let", "var"):
                self._declaration()
            elif tokens.peek().strip("'\"`") == "use strict" or tokens.peek() == ";":
                tokens.take()
            else:
                is_harmless = tokens.peek() in ("function", "class", "async")
                statement = tokens.pass_statement()
                if not is_harmless:  # what those define is noticed where it is used
                    self.passed.append(statement)
        if exported is _NOTHING:
            raise CannotImport("it exports nothing", f"module.exports = {{ apps: […] }}; or {RUN}")
        return exported

    def _declaration(self) -> None:
        tokens = self._tokens
        start = tokens.at
        tokens.take()
        while True:
            if self._names_of_module("=", "require", "("):
                tokens.accept(")")
            elif not self._name():
                tokens.at = start  # const { a, b } = …: what uses them is computed
                tokens.pass_statement()
                return
            if not tokens.accept(","):
                break
        tokens.accept(";")

    def _name(self) -> bool:
        """Go past NAME = …, when that is next."""
        tokens = self._tokens
        token = tokens.take()
        if token.kind != "name" or not tokens.accept("="):
            return False
        start = tokens.at
        is_required = tokens.peek() == "require"
        if is_required:
            tokens.pass_expression()
            is_required = tokens.at == start + len(("require", "(", "text", ")"))
            tokens.at = tokens.at if is_required else start
        value = Module() if is_required else self._expressions.held()
        if token.text != "__dirname":  # a module's own words for it
            self._names[token.text] = value
        return True

    def _import(self) -> None:
        tokens = self._tokens
        start = tokens.at
        tokens.take()
        if not self._names_of_module("from"):
            tokens.accept("*", "as")
            name = tokens.take().text
            if tokens.accept("from"):
                self._names[name] = Module()
        tokens.at = start
        tokens.pass_statement()

    def _names_of_module(self, *before: str) -> bool:
        """Go past { join, resolve } and what is between it and the name of its module: functions to know by these names."""
        tokens = self._tokens
        start = end = tokens.at
        if tokens.peek() != "{":
            return False
        while end < len(tokens.all) and tokens.all[end].text != "}":
            end += 1
        tokens.at = end + 1
        if not tokens.accept(*before) or tokens.peek().strip("'\"").removeprefix("node:") not in ("path", "os"):
            tokens.at = start
            return False
        tokens.at += 1
        self._names.update((token.text, Function(token.text)) for token in tokens.all[start:end] if token.text in PATHS)
        return True
