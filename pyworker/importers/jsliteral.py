"""The plain part of an ecosystem.config.js: object literals, names for them, process.env. Never executed.

A value that only running the file could tell (a function call, a condition) is `Computed`, with its line and its text; a
statement that is none of `const NAME = …` and `module.exports = …` is passed over and named.
"""

from __future__ import annotations

import math
import posixpath
import re
from typing import Any

from pyworker.importers.result import CannotImport
from pyworker.record import record

_TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*|/\*.*?\*/)"
    r"|(?P<number>0[xX][0-9a-fA-F]+|\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<text>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)"
    r"|(?P<name>[A-Za-z_$][\w$]*)"
    r"|(?P<mark>\|\||\?\?|=>|[=!]==?|\.\.\.|[^\s\w])",
    re.DOTALL,
)
_PATTERN = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/\w*")  # a regular expression
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]+)\}|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": ""}
_WORDS = {"true": True, "false": False, "null": None, "undefined": None}
_MAX_DEPTH = 60
_MAX_SHOWN = 60
_MAX_TEXT = 1024 * 1024  # characters of what is put together: each of forty lines may double the one before
_RUN = "let Node read it: pyworker import --run FILE (this executes the file)"
_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
# a line that begins or ends with one of these goes on
_GOES_ON = {
    ".", ",", "?", ":", "||", "??", "+", "-", "*", "/", "=", "=>", "==", "===", "!=", "!==", "&", "|", "<", ">", "!", "(",
    "[", "else", "catch",
}  # fmt: skip
_CALLS = ("String", "Number", "parseInt", "parseFloat")
_PATHS = ("join", "resolve", "dirname", "homedir")  # functions of the modules path and os
# the folder of the file: what that is to an app depends on the app's own folder
HERE = "\0here"
_FILE = f"{HERE}/ecosystem.config.js"


class EnvironmentText(str):
    """A text with ${VAR} in it that came from process.env."""


@record
class Computed:
    """A value, or a statement, that only running the file could tell: its text and where it stands."""

    text: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.text} is computed when the file runs"


class _NotPlain(CannotImport):
    """What stands here is computed; whoever holds the value may go on behind it."""


def parse(text: str, passed: list[Computed] | None = None) -> Any:
    """Return what the file exports (module.exports = …, export default …); append statements passed over to `passed`."""
    parser = _Parser(text)
    value = parser.program()
    if isinstance(value, Computed):
        raise CannotImport(str(value), _RUN, value.line)
    if passed is not None:
        passed += parser.passed
    return value


def computed_in(value: Any) -> Computed | None:
    """Return the first computed value in it."""
    if isinstance(value, Computed):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for v in inner if (found := computed_in(v)) is not None), None)


class _Parser:
    def __init__(self, text: str) -> None:
        self.passed: list[Computed] = []
        self._text = text
        self._tokens: list[tuple[str, str, int, int]] = []  # kind, text, line, offset
        self._at = 0
        self._names: dict[str, Any] = {"__dirname": HERE, "__filename": _FILE}
        self._depth = 0
        position, line = 0, 1
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise CannotImport(f"line {line}: {text[position : position + 20]!r} is not understood", line=line)
            kind = str(match.lastgroup)
            if match[0] == "/" and not self._is_value_before():
                kind, match = "pattern", _PATTERN.match(text, position) or match
            if kind != "space":
                self._tokens.append((kind, match[0], line, position))
            line += match[0].count("\n")
            position = match.end()

    def _is_value_before(self) -> bool:
        """Whether a / divides what is before it; else a regular expression begins with it."""
        kind, text, *_ = self._tokens[-1] if self._tokens else ("", "", 0, 0)
        return text in _CLOSING or (kind in ("name", "number", "text") and text != "return")

    # ---- statements ------------------------------------------------------------------------------------
    def program(self) -> Any:
        exported: Any = _NOTHING
        while not self._end():
            if self._words("module", ".", "exports", "=") or self._words("export", "default"):
                exported = self._held()
                self._words(";")
            elif self._words("module", ".", "exports", ".", "apps", "=") or self._words("exports", ".", "apps", "="):
                exported = {"apps": self._held()}
                self._words(";")
            elif self._peek() == "import":
                self._import()
            elif self._peek() in ("const", "let", "var"):
                self._declaration()
            elif self._peek().strip("'\"`") == "use strict" or self._peek() == ";":
                self._next()
            else:
                is_harmless = self._peek() in ("function", "import", "class", "async")
                statement = self._pass_statement()
                if not is_harmless:  # what those define is noticed where it is used
                    self.passed.append(statement)
        if exported is _NOTHING:
            raise CannotImport("it exports nothing", f"module.exports = {{ apps: […] }}; or {_RUN}")
        return exported

    def _declaration(self) -> None:
        start = self._at
        self._next()
        while True:
            if self._taken_from(("=", "require", "(")):
                self._words(")")
                if self._words(","):
                    continue
                break
            kind, name, *_ = self._take()
            if kind != "name" or not self._words("="):
                self._at = start  # const { a, b } = …: what uses them is computed
                self._pass_statement()
                return
            if self._peek() == "require":
                begin = self._at
                self._pass_over(begin)
                is_module = self._at == begin + len(("require", "(", "text", ")"))
                self._at = self._at if is_module else begin
                self._names[name] = _MODULE if is_module else self._held()
            elif name == "__dirname":
                self._held()  # a module's own words for it
            else:
                self._names[name] = self._held()
            if not self._words(","):
                break
        self._words(";")

    def _import(self) -> None:
        start = self._at
        self._next()
        if not self._taken_from(("from",)):
            self._words("*", "as")
            name = self._next()
            if self._words("from"):
                self._names[name] = _MODULE
        self._at = start
        self._pass_statement()

    def _taken_from(self, before: tuple[str, ...]) -> bool:
        """Go past { join, resolve } and what is between it and the name of its module: functions to know by these names."""
        start, end = self._at, self._at
        if self._peek() != "{":
            return False
        while end < len(self._tokens) and self._tokens[end][1] != "}":
            end += 1
        self._at = end + 1
        if not self._words(*before) or self._peek().strip("'\"").removeprefix("node:") not in ("path", "os"):
            self._at = start
            return False
        self._at += 1
        self._names.update((name, _Function(name)) for _, name, *_ in self._tokens[start:end] if name in _PATHS)
        return True

    def _pass_statement(self) -> Computed:
        """Go behind a statement of any kind."""
        start = self._at
        while not self._end():
            self._pass_over(self._at)
            if self._end() or self._peek() in _CLOSING or self._words(";"):
                break
            if not self._words(",") and self._at > start and not self._goes_on():
                break
        if self._at == start:
            self._next()
        return self._shown(start)

    def _goes_on(self) -> bool:
        """Whether the next token belongs to what was before it: on the same line, or an operator between them."""
        if self._end() or self._at == 0:
            return False
        _, text, line, _ = self._tokens[self._at]
        _, before, line_before, _ = self._tokens[self._at - 1]
        if text == ";":
            return False
        is_new_line = line > line_before + before.count("\n")
        return not is_new_line or text in _GOES_ON or before in _GOES_ON

    def _pass_over(self, start: int) -> Computed:
        """Go behind the expression that begins at a token, whatever it is."""
        self._at = start
        depth = 0
        while not self._end():
            text = self._peek()
            if depth == 0 and (text in _CLOSING or text in (",", ";") or (self._at > start and not self._goes_on())):
                break
            depth += (text in _OPENING) - (text in _CLOSING)
            self._at += 1
        if depth:
            raise CannotImport("it ends in the middle of a value", line=self._tokens[start][2])
        return self._shown(start)

    def _shown(self, start: int) -> Computed:
        _, _, line, first = self._tokens[start]
        _, last, _, offset = self._tokens[self._at - 1]
        text = " ".join(self._text[first : offset + len(last)].split()).rstrip(";")
        return Computed(text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…", line)

    # ---- values ----------------------------------------------------------------------------------------
    def _held(self) -> Any:
        """Return the value that stands here, Computed when it is not plain; the parser is behind it either way."""
        start, depth = self._at, self._depth
        try:
            value = self._value()
        except _NotPlain:
            self._depth = depth
        else:
            if self._end() or self._peek() in (",", ";", *_CLOSING) or not self._goes_on():
                return value
        return self._pass_over(start)

    def _value(self) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise CannotImport("it is nested too deeply", line=self._line())
        left = self._compared()
        while self._peek() in ("||", "??"):
            nothing = (None,) if self._next() == "??" else (None, False, 0, "")
            right = self._compared()
            if isinstance(left, EnvironmentText) and left.startswith("${") and ":-" not in left:
                left = EnvironmentText(f"{left[:-1]}:-{_js_text(right)}}}")
            else:
                left = left if left not in nothing else right
        if isinstance(left, bool) and self._words("?"):
            first = self._value()
            self._expect(":")
            second = self._value()
            left = first if left else second
        if self._peek() in ("?", "=>", "(", "&"):
            self._fail("this is computed when the file runs")
        self._depth -= 1
        return left

    def _compared(self) -> Any:
        left = self._sum()
        if self._peek() not in ("==", "===", "!=", "!=="):
            return left
        is_equal = self._next() in ("==", "===")
        right = self._sum()
        if not (type(left) is str and type(right) is str):
            self._fail("this is computed when the file runs")
        return (left == right) is is_equal

    def _sum(self) -> Any:
        left = self._product()
        while self._words("+"):
            right = self._product()
            if _is_number(left) and _is_number(right):
                left = _number(left + right)
            else:
                joined = self._bounded(_js_text(left) + _js_text(right))
                is_env = isinstance(left, EnvironmentText) or isinstance(right, EnvironmentText)
                left = EnvironmentText(joined) if is_env else joined
        return left

    def _product(self) -> Any:
        left = self._one()
        while self._words("*"):
            right = self._one()
            if not _is_number(left) or not _is_number(right):
                self._fail("this is computed when the file runs")
            left = _number(left * right)
        return left

    def _one(self) -> Any:
        kind, text, *_ = self._take()
        if kind == "text":
            return self._string(text)
        if kind == "number":
            plain = text.replace("_", "")
            return _number(int(plain, 16) if plain.lower().startswith("0x") else float(plain))
        if text == "{":
            return self._object()
        if text == "[":
            found = self._array()
            return self._joined(found) if self._words(".", "join") else found
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
        if name == "fileURLToPath" and self._words("(", "import", ".", "meta", ".", "url", ")"):
            return _FILE
        if name == "process" and self._words(".", "platform"):
            return "linux"
        if name == "Object" and self._words(".", "assign"):
            return self._assigned()
        if name in _CALLS and self._peek() == "(" and len(found := self._call_arguments()) >= 1:
            return found[0]
        value = self._names.get(name)
        if name == "require" and self._words("("):
            value = _MODULE
            self._next()
            self._expect(")")
        if value is _MODULE and self._words("."):
            value = _Function(self._next())
        if isinstance(value, _Function) and value.name in _PATHS:
            return self._path(value.name)
        while isinstance(value, dict) and self._words("."):
            value = value.get(self._next(), _MODULE)
        is_known = value is not None or name in self._names
        if not is_known or value is _MODULE or isinstance(value, Computed | _Function):
            self._fail(f"{name} is computed when the file runs")
        return value

    def _path(self, function: str) -> str:
        values = self._call_arguments()
        is_env = function == "homedir" or any(isinstance(v, EnvironmentText) for v in values)
        parts = [_js_text(v) for v in values if v != ""]
        match function:
            case "homedir":
                path = "${HOME}"
            case "dirname":
                path = "/".join(parts)
                path = posixpath.join(path, "..") if path.endswith((".", HERE)) else posixpath.dirname(path)
            case "resolve":
                path = posixpath.join(*parts) if parts else "."
            case _:
                path = "/".join(p.strip("/") if i else p for i, p in enumerate(parts))
        path = self._bounded(path)
        if is_env:
            return EnvironmentText(path)
        return path if HERE in path else posixpath.normpath(path)

    def _joined(self, values: list[Any]) -> str:
        separator = self._call_arguments() or [","]
        if computed_in(values) is not None:
            self._fail("this is computed when the file runs")
        text = self._bounded(_js_text(separator[0]).join("" if v is None else _js_text(v) for v in values))
        return EnvironmentText(text) if any(isinstance(v, EnvironmentText) for v in values) else text

    def _assigned(self) -> dict[str, Any]:
        self._expect("(")
        found: dict[str, Any] = {}
        while not self._words(")"):
            value = self._value()
            if not isinstance(value, dict):
                self._fail("this is computed when the file runs")
            found |= value
            if not self._words(",") and self._peek() != ")":
                self._fail("a , or ) is expected here")
        return found

    def _call_arguments(self) -> list[Any]:
        self._expect("(")
        found = []
        while not self._words(")"):
            found.append(self._value())
            if not self._words(",") and self._peek() != ")":
                self._fail("a , or ) is expected here")
        if computed_in(found) is not None:
            self._fail("this is computed when the file runs")
        return found

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._words("}"):
            if self._words("..."):
                spread = self._held()
                if isinstance(spread, dict):
                    found |= spread
                else:
                    self.passed.append(spread if isinstance(spread, Computed) else self._shown(self._at - 1))
            else:
                kind, text, line, _ = self._take()
                if kind not in ("name", "text", "number"):
                    self._at -= 1
                    self._fail("the name of a setting is expected here")
                key = self._string(text) if kind == "text" else text
                if self._words(":"):
                    found[key] = self._held()
                elif kind == "name" and self._peek() in (",", "}"):
                    value = self._names.get(key, _MODULE)
                    found[key] = Computed(key, line) if value is _MODULE or isinstance(value, _Function) else value
                else:
                    self._fail("a : is expected here")
            if not self._words(",") and self._peek() != "}":
                self._fail("a , or } is expected here")
        return found

    def _array(self) -> list[Any]:
        found: list[Any] = []
        while not self._words("]"):
            if self._words("..."):
                spread = self._held()
                if not isinstance(spread, list | Computed):
                    self._fail("... stands before something that is no list")
                found += [spread] if isinstance(spread, Computed) else spread
            else:
                found.append(self._held())
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
                value = self._inside(part)
                is_env = is_env or isinstance(value, EnvironmentText)
                text = self._bounded(text + _js_text(value))
            return EnvironmentText(text) if is_env else text
        return _unescape(inner)

    def _inside(self, text: str) -> Any:
        try:
            inner = _Parser(text)
            inner._names = self._names
            value = inner._value()
        except CannotImport:
            return self._fail("this is computed when the file runs")
        return value if inner._end() else self._fail("this is computed when the file runs")

    # ---- tokens ----------------------------------------------------------------------------------------
    def _end(self) -> bool:
        return self._at >= len(self._tokens)

    def _peek(self) -> str:
        return "" if self._end() else self._tokens[self._at][1]

    def _take(self) -> tuple[str, str, int, int]:
        if self._end():
            raise CannotImport("it ends in the middle of a value", line=self._line())
        self._at += 1
        return self._tokens[self._at - 1]

    def _next(self) -> str:
        return self._take()[1]

    def _words(self, *words: str) -> bool:
        """Go past these tokens when they are next."""
        found = [t for _, t, *_ in self._tokens[self._at : self._at + len(words)]]
        if found != list(words):
            return False
        self._at += len(words)
        return True

    def _expect(self, word: str) -> None:
        if not self._words(word):
            self._fail(f"{word} is expected here")

    def _bounded(self, text: str) -> str:
        return text if len(text) <= _MAX_TEXT else str(self._fail("a text this long is computed when the file runs"))

    def _fail(self, why: str) -> Any:
        raise _NotPlain(f"line {self._line()}: {why}", _RUN, self._line())

    def _line(self) -> int:
        return self._tokens[min(self._at, len(self._tokens) - 1)][2] if self._tokens else 0


class _Module:
    """What require() returned: only a few of its functions are known."""


@record
class _Function:
    """One of its functions."""

    name: str


_MODULE = _Module()
_NOTHING = object()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> float:
    """Return a number as JavaScript has it, a double, which may be infinite; a whole one as an int."""
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    return int(number) if number.is_integer() else number


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
