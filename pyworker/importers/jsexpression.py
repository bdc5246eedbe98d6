"""JavaScript's expressions, as far as they are plain: literals, names for them, process.env, paths, a little arithmetic."""

from __future__ import annotations

import re
from typing import Any

from pyworker.importers import jsvalues as js
from pyworker.importers.jstokens import CLOSING, Tokens
from pyworker.importers.jsvalues import Computed, EnvironmentText, NotPlain
from pyworker.importers.result import CannotImport
from pyworker.record import record

_CONSTANTS = {"true": True, "false": False, "null": None, "undefined": None}
_PHRASES = (
    (("process", ".", "cwd", "(", ")"), "."),
    (("process", ".", "platform"), "linux"),
    (("fileURLToPath", "(", "import", ".", "meta", ".", "url", ")"), js.FILE),
)
_MAX_DEPTH = 60
_CONVERSIONS = ("String", "Number", "parseInt", "parseFloat")
PATHS = ("join", "resolve", "dirname", "homedir")  # functions of the modules path and os


@record
class Module:
    """What require() returned: only a few of its functions are known."""


@record
class Function:
    """One of its functions."""

    name: str


class Expressions:
    """Reads them from `tokens`; `names` stand for values. What an object spreads and nobody knows goes to `passed`."""

    def __init__(self, tokens: Tokens, names: dict[str, Any], passed: list[Computed]) -> None:
        self._tokens = tokens
        self._names = names
        self._passed = passed
        self._depth = 0

    def held(self) -> Any:
        """Return the value that stands here, Computed when it is not plain; the tokens are behind it either way."""
        tokens, start, depth = self._tokens, self._tokens.at, self._depth
        try:
            value = self._value()
        except NotPlain:
            self._depth = depth
        else:
            if tokens.are_over() or tokens.peek() in (",", ";", *CLOSING) or not tokens.go_on():
                return value
        tokens.at = start
        return tokens.pass_expression()

    # ---- operators ---------------------------------------------------------------------------------------
    def _value(self) -> Any:
        tokens = self._tokens
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise CannotImport("it is nested too deeply", line=tokens.line())
        left = self._compared()
        while tokens.peek() in ("||", "??"):
            nothing = (None,) if tokens.take().text == "??" else (None, False, 0, "")
            left = js.either(left, self._compared(), nothing)
        if isinstance(left, bool) and tokens.accept("?"):
            first = self._value()
            tokens.expect(":")
            second = self._value()
            left = first if left else second
        if tokens.peek() in ("?", "=>", "(", "&"):
            raise NotPlain
        self._depth -= 1
        return left

    def _compared(self) -> Any:
        left = self._sum()
        if self._tokens.peek() not in ("==", "===", "!=", "!=="):
            return left
        is_equal = self._tokens.take().text in ("==", "===")
        return js.is_same(left, self._sum()) is is_equal

    def _sum(self) -> Any:
        left = self._product()
        while self._tokens.accept("+"):
            left = js.added(left, self._product())
        return left

    def _product(self) -> Any:
        left = self._one()
        while self._tokens.accept("*"):
            left = js.multiplied(left, self._one())
        return left

    def _one(self) -> Any:
        tokens = self._tokens
        for phrase, meaning in _PHRASES:
            if tokens.accept(*phrase):
                return meaning
        token = tokens.take()
        match token.kind, token.text:
            case "text", text:
                return self._string(text)
            case "number", text:
                plain = text.replace("_", "")
                return js.number(int(plain, 16) if plain.lower().startswith("0x") else float(plain))
            case "name", name:
                return self._name(name)
            case _, "{":
                return self._object()
            case _, "[":
                found = self._array()
                if tokens.accept(".", "join"):
                    return js.joined(found, *(self._arguments() or [","])[:1])
                return found
            case _, "(":
                value = self._value()
                tokens.expect(")")
                return value
            case _, "-":
                sign = -1
                while tokens.accept("-"):
                    sign = -sign
                return js.multiplied(sign, self._one())
        raise NotPlain

    # ---- names -------------------------------------------------------------------------------------------
    def _name(self, name: str) -> Any:
        tokens = self._tokens
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name == "process" and tokens.accept(".", "env"):
            return self._variable()
        if name == "Object" and tokens.accept(".", "assign"):
            return self._assigned()
        if name in _CONVERSIONS and tokens.peek() == "(" and (found := self._arguments()):
            return found[0]
        value = self._names.get(name, Computed(name, 0))
        if name == "require" and tokens.accept("("):
            tokens.take()
            tokens.expect(")")
            value = Module()
        if isinstance(value, Module) and tokens.accept("."):
            value = Function(tokens.take().text)
        if isinstance(value, Function) and value.name in PATHS:
            return js.path_of(value.name, self._arguments())
        while isinstance(value, dict) and tokens.accept("."):
            member = tokens.take().text
            value = value.get(member, Computed(member, 0))
        if isinstance(value, Computed | Module | Function):
            raise NotPlain
        return value

    def _variable(self) -> str:
        if self._tokens.accept("."):
            return EnvironmentText(f"${{{self._tokens.take().text}}}")
        self._tokens.expect("[")
        key = self._value()
        self._tokens.expect("]")
        if type(key) is not str:  # also one that is, or has, a variable itself
            raise NotPlain
        return EnvironmentText(f"${{{key}}}")

    def _assigned(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for value in self._between_brackets():
            if not isinstance(value, dict):
                raise NotPlain
            found |= value
        return found

    def _arguments(self) -> list[Any]:
        found = self._between_brackets()
        if js.computed_in(found) is not None:
            raise NotPlain
        return found

    def _between_brackets(self) -> list[Any]:
        found = []
        self._tokens.expect("(")
        while not self._tokens.accept(")"):
            found.append(self._value())
            self._expect_next_or(")")
        return found

    def _expect_next_or(self, end: str) -> None:
        if not self._tokens.accept(",") and self._tokens.peek() != end:
            raise NotPlain

    # ---- literals ----------------------------------------------------------------------------------------
    def _object(self) -> dict[str, Any]:
        tokens = self._tokens
        found: dict[str, Any] = {}
        while not tokens.accept("}"):
            if tokens.accept("..."):
                spread = self.held()
                if isinstance(spread, dict):
                    found |= spread
                else:
                    self._passed.append(spread if isinstance(spread, Computed) else tokens.since(tokens.at - 1))
            else:
                token = tokens.take()
                if token.kind not in ("name", "text", "number"):
                    raise NotPlain
                key = self._string(token.text) if token.kind == "text" else token.text
                if tokens.accept(":"):
                    found[key] = self.held()
                elif token.kind == "name" and tokens.peek() in (",", "}"):
                    value, unknown = self._names.get(key), Computed(key, token.line)
                    is_known = key in self._names and not isinstance(value, Module | Function)
                    found[key] = value if is_known else unknown
                else:
                    raise NotPlain
            self._expect_next_or("}")
        return found

    def _array(self) -> list[Any]:
        found: list[Any] = []
        while not self._tokens.accept("]"):
            if self._tokens.accept("..."):
                spread = self.held()
                if not isinstance(spread, list | Computed):
                    raise NotPlain
                found += [spread] if isinstance(spread, Computed) else spread
            else:
                found.append(self.held())
            self._expect_next_or("]")
        return found

    def _string(self, raw: str) -> str:
        inner = raw[1:-1]
        if raw[0] != "`" or "${" not in inner:
            return js.unescaped(inner)
        text = ""
        for index, part in enumerate(re.split(r"\$\{([^}]*)\}", inner)):
            text = js.added(text, self._inside(part) if index % 2 else js.unescaped(part))
        return text

    def _inside(self, text: str) -> Any:
        try:
            tokens = Tokens(text)
            value = Expressions(tokens, self._names, [])._value()
        except CannotImport:
            raise NotPlain from None
        if not tokens.are_over():
            raise NotPlain
        return value
