"""JavaScript as tokens, and a place among them: where an expression or a statement ends, not what it means."""

from __future__ import annotations

import re

from pyworker.config.report import short
from pyworker.importers.jsvalues import Computed, NotPlain
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
_OPENING, CLOSING = ("(", "[", "{"), (")", "]", "}")
# a line that begins or ends with one of these goes on
_GOES_ON = {
    ".", ",", "?", ":", "||", "??", "+", "-", "*", "/", "=", "=>", "==", "===", "!=", "!==", "&", "|", "<", ">", "!", "(",
    "[", "else", "catch",
}  # fmt: skip


@record
class Token:
    """`kind`: "number", "text", "name", "mark", or "pattern"."""

    kind: str
    text: str
    line: int
    offset: int


class Tokens:
    """The tokens of a text, read from `at` on."""

    def __init__(self, text: str) -> None:
        self.at = 0
        self.all: list[Token] = []
        self._text = text
        position, line = 0, 1
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise CannotImport(f"line {line}: {text[position : position + 20]!r} is not understood", line=line)
            kind = str(match.lastgroup)
            if match[0] == "/" and not self._is_value_before():
                kind, match = "pattern", _PATTERN.match(text, position) or match
            if kind != "space":
                self.all.append(Token(kind, match[0], line, position))
            line += match[0].count("\n")
            position = match.end()

    def _is_value_before(self) -> bool:
        """Whether a / divides what is before it; else a regular expression begins with it."""
        if not self.all:
            return False
        before = self.all[-1]
        return before.text in CLOSING or (before.kind in ("name", "number", "text") and before.text != "return")

    def are_over(self) -> bool:
        return self.at >= len(self.all)

    def peek(self) -> str:
        """Return the text of the next one, "" behind the last."""
        return "" if self.are_over() else self.all[self.at].text

    def line(self) -> int:
        return self.all[min(self.at, len(self.all) - 1)].line if self.all else 0

    def take(self) -> Token:
        if self.are_over():
            raise CannotImport("it ends in the middle of a value", line=self.line())
        self.at += 1
        return self.all[self.at - 1]

    def accept(self, *texts: str) -> bool:
        """Go past these when they are next."""
        if [token.text for token in self.all[self.at : self.at + len(texts)]] != list(texts):
            return False
        self.at += len(texts)
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise NotPlain

    def go_on(self) -> bool:
        """Whether the next one belongs to what was before it: on the same line, or an operator between them."""
        if self.are_over() or self.at == 0:
            return False
        token, before = self.all[self.at], self.all[self.at - 1]
        if token.text == ";":
            return False
        is_new_line = token.line > before.line + before.text.count("\n")
        return not is_new_line or token.text in _GOES_ON or before.text in _GOES_ON

    def pass_expression(self) -> Computed:
        """Go behind the expression that begins here, whatever it is."""
        start, depth = self.at, 0
        while not self.are_over():
            text = self.peek()
            if depth == 0 and (text in CLOSING or text in (",", ";") or (self.at > start and not self.go_on())):
                break
            depth += (text in _OPENING) - (text in CLOSING)
            self.at += 1
        if depth:
            raise CannotImport("it ends in the middle of a value", line=self.all[start].line)
        return self.since(start)

    def pass_statement(self) -> Computed:
        """Go behind a statement of any kind."""
        start = self.at
        while not self.are_over():
            self.pass_expression()
            if self.are_over() or self.peek() in CLOSING or self.accept(";"):
                break
            if not self.accept(",") and self.at > start and not self.go_on():
                break
        if self.at == start:
            self.take()
        return self.since(start)

    def since(self, start: int) -> Computed:
        """Return what was passed from there on, as it is shown."""
        first, last = self.all[start], self.all[self.at - 1]
        text = " ".join(self._text[first.offset : last.offset + len(last.text)].split()).rstrip(";")
        return Computed(short(text), first.line)
