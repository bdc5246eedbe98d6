"""The plain part of an ecosystem.config.js: object literals, names for them, process.env. Never executed.

What a value cannot be told without running the file (a function call, a condition) is an error with its line; the reader
may then say `--run`.
"""

from __future__ import annotations

import re
from typing import Any

from pyworker.importers.result import CannotImport

_TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*|/\*.*?\*/)"
    r"|(?P<number>0[xX][0-9a-fA-F]+|\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<text>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)"
    r"|(?P<name>[A-Za-z_$][\w$]*)"
    r"|(?P<mark>\|\||\?\?|=>|===|\.\.\.|[^\s\w])",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]+)\}|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": ""}
_WORDS = {"true": True, "false": False, "null": None, "undefined": None}
_MAX_DEPTH = 60


class EnvironmentText(str):
    """A text with ${VAR} in it that came from process.env."""


def parse(text: str) -> Any:
    """Return what the file exports (module.exports = …, export default …)."""
    return _Parser(text).program()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        self._at = 0
        self._names: dict[str, Any] = {"__dirname": "."}
        self._depth = 0
        position, line = 0, 1
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise CannotImport(f"line {line}: {text[position : position + 20]!r} is not understood", line=line)
            kind = str(match.lastgroup)
            if kind != "space":
                self._tokens.append((kind, match[0], line))
            line += match[0].count("\n")
            position = match.end()

    # ---- statements ------------------------------------------------------------------------------------
    def program(self) -> Any:
        while not self._end():
            if self._words("module", ".", "exports", "=") or self._words("export", "default"):
                value = self._value()
                self._skip(";")
                return value
            if self._peek() in ("const", "let", "var"):
                self._declaration()
            elif self._peek().strip("'\"`") == "use strict" or self._peek() == ";":
                self._next()
            else:
                self._fail("only `const NAME = …` and `module.exports = …` are read")
        raise CannotImport("it exports nothing", "module.exports = { apps: […] }")

    def _declaration(self) -> None:
        self._next()
        kind, name, _ = self._take()
        if kind != "name" or not self._words("="):
            self._fail("this kind of declaration is not read")
        if self._words("require"):
            self._call_arguments()
            self._names[name] = _MODULE
        else:
            self._names[name] = self._value()
        self._skip(";")

    # ---- values ----------------------------------------------------------------------------------------
    def _value(self) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail("this is nested too deeply")
        left = self._sum()
        while self._peek() in ("||", "??"):
            self._next()
            right = self._sum()
            if isinstance(left, EnvironmentText) and left.startswith("${") and ":-" not in left:
                left = EnvironmentText(f"{left[:-1]}:-{_js_text(right)}}}")
            else:
                left = left if left not in (None, False, 0, "") else right
        if self._peek() in ("?", "===", "=>", "(", "&"):
            self._fail("this is computed when the file runs")
        self._depth -= 1
        return left

    def _sum(self) -> Any:
        left = self._product()
        while self._words("+"):
            right = self._product()
            if _is_number(left) and _is_number(right):
                left = left + right
            else:
                joined = _js_text(left) + _js_text(right)
                is_env = isinstance(left, EnvironmentText) or isinstance(right, EnvironmentText)
                left = EnvironmentText(joined) if is_env else joined
        return left

    def _product(self) -> Any:
        left = self._one()
        while self._words("*"):
            right = self._one()
            if not _is_number(left) or not _is_number(right):
                self._fail("this is computed when the file runs")
            left = left * right
        return left

    def _one(self) -> Any:
        kind, text, _ = self._take()
        if kind == "text":
            return self._string(text)
        if kind == "number":
            plain = text.replace("_", "")
            if plain.lower().startswith("0x"):
                return int(plain, 16)
            number = float(plain)
            return int(number) if number == int(number) and "e" not in plain.lower() else number
        if text == "{":
            return self._object()
        if text == "[":
            return self._array()
        if text == "(":
            value = self._value()
            self._expect(")")
            return value
        if text == "-":
            value = self._one()
            if not _is_number(value):
                self._fail("- stands before something that is no number")
            return -value
        if kind == "name":
            return self._name(text)
        self._at -= 1
        return self._fail("a value is expected here")

    def _name(self, name: str) -> Any:
        if name in _WORDS:
            return _WORDS[name]
        if name == "process" and self._words(".", "env"):
            if self._words("."):
                return EnvironmentText(f"${{{self._take()[1]}}}")
            if self._words("["):
                key = self._value()
                self._expect("]")
                return EnvironmentText(f"${{{key}}}")
        if name == "process" and self._words(".", "cwd", "(", ")"):
            return "."
        if name == "require":
            self._call_arguments()
            if self._words(".", "cpus", "(", ")", ".", "length"):
                return "max"
            return self._fail("this is computed when the file runs")
        if name in self._names and self._names[name] is not _MODULE:
            return self._names[name]
        if self._names.get(name) is _MODULE:
            if self._words(".", "join") or self._words(".", "resolve"):
                parts = [_js_text(v) for v in self._call_arguments()]
                return "/".join(p.strip("/") if i else p for i, p in enumerate(parts) if p)
            if self._words(".", "cpus", "(", ")", ".", "length"):
                return "max"
        self._at -= 1
        return self._fail(f"{name} is computed when the file runs")

    def _call_arguments(self) -> list[Any]:
        self._expect("(")
        found = []
        while not self._words(")"):
            found.append(self._value())
            if not self._words(",") and self._peek() != ")":
                self._fail("a , or ) is expected here")
        return found

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._words("}"):
            if self._words("..."):
                spread = self._value()
                if not isinstance(spread, dict):
                    self._fail("... stands before something that is no object")
                found |= spread
            else:
                kind, text, _ = self._take()
                if kind not in ("name", "text", "number"):
                    self._at -= 1
                    self._fail("the name of a setting is expected here")
                key = self._string(text) if kind == "text" else text
                if self._words(":"):
                    found[key] = self._value()
                elif key in self._names and self._peek() in (",", "}"):
                    found[key] = self._names[key]
                else:
                    self._fail("a : is expected here")
            if not self._words(",") and self._peek() != "}":
                self._fail("a , or } is expected here")
        return found

    def _array(self) -> list[Any]:
        found: list[Any] = []
        while not self._words("]"):
            if self._words("..."):
                spread = self._value()
                if not isinstance(spread, list):
                    self._fail("... stands before something that is no list")
                found += spread
            else:
                found.append(self._value())
            if not self._words(",") and self._peek() != "]":
                self._fail("a , or ] is expected here")
        return found

    def _string(self, raw: str) -> str:
        inner = raw[1:-1]
        if raw[0] == "`" and "${" in inner:
            parts = re.split(r"\$\{([^}]*)\}", inner)
            text = ""
            is_env = False
            for index, part in enumerate(parts):
                if index % 2 == 0:
                    text += _unescape(part)
                    continue
                value = _Parser._inside(self, part)
                is_env = is_env or isinstance(value, EnvironmentText)
                text += _js_text(value)
            return EnvironmentText(text) if is_env else text
        return _unescape(inner)

    def _inside(self, text: str) -> Any:
        inner = _Parser(text)
        inner._names = self._names
        value = inner._value()
        return value if inner._end() else self._fail("this is computed when the file runs")

    # ---- tokens ----------------------------------------------------------------------------------------
    def _end(self) -> bool:
        return self._at >= len(self._tokens)

    def _peek(self) -> str:
        return "" if self._end() else self._tokens[self._at][1]

    def _take(self) -> tuple[str, str, int]:
        if self._end():
            raise CannotImport("it ends in the middle of a value")
        self._at += 1
        return self._tokens[self._at - 1]

    def _next(self) -> str:
        return self._take()[1]

    def _words(self, *words: str) -> bool:
        """Go past these tokens when they are next."""
        found = [t for _, t, _ in self._tokens[self._at : self._at + len(words)]]
        if found != list(words):
            return False
        self._at += len(words)
        return True

    def _skip(self, word: str) -> None:
        self._words(word)

    def _expect(self, word: str) -> None:
        if not self._words(word):
            self._fail(f"{word} is expected here")

    def _fail(self, why: str) -> Any:
        line = self._tokens[min(self._at, len(self._tokens) - 1)][2] if self._tokens else 1
        raise CannotImport(
            f"line {line}: {why}", "let Node read it: pyworker import --run FILE (this executes the file)", line
        )


class _Module:
    """What require() returned: only a few of its functions are known."""


_MODULE = _Module()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _js_text(value: Any) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        digits = match[1] or match[2] or match[3]
        if not digits:
            return _SIMPLE.get(match[4], match[4])
        number = int(digits, 16)
        return chr(number) if number < 0x110000 else "\ufffd"

    found = _ESCAPE.sub(one, text)
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs of \\u make one character
