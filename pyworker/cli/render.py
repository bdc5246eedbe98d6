"""CLI: text for people: colour, glyphs, widths, tables, spans of time and sizes.

Pure apart from `look`, which asks a stream what it is. Nothing here is read back by a program, and nothing an app
or the daemon says can steer a terminal: `clean` stands between.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from pyworker.cli.homes import typed

_STYLES = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36",
    "error": "1;31", "header": "1",
}  # fmt: skip
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ASCII = str.maketrans(
    {
        "●": "*", "◐": "~", "▲": "!", "✖": "x", "✗": "x", "✓": "+", "○": "o", "→": "->", "…": "...", "–": "-",
        "—": "-", "·": "-", "µ": "u", "│": "|", "┃": "|", "─": "-", "×": "x",
        **dict.fromkeys("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "."),
    }
)  # fmt: skip
ANSI = re.compile("\x1b\\[[0-9;]*m")
GLYPHS = {
    "running": ("●", "green"), "ready": ("●", "green"), "starting": ("◐", "cyan"), "reloading": ("◐", "cyan"),
    "stopping": ("◐", "cyan"), "draining": ("◐", "cyan"), "killed": ("◐", "cyan"), "held": ("◐", "cyan"),
    "opening": ("◐", "cyan"), "degraded": ("▲", "yellow"), "unhealthy": ("▲", "yellow"), "failed": ("✖", "red"),
    "stopped": ("○", "dim"), "scheduled": ("○", "dim"),
}  # fmt: skip


class Look(NamedTuple):
    """What a stream can show."""

    tty: bool
    color: bool
    ascii: bool  # no glyphs
    width: int  # columns; 0 = unlimited (not a terminal)

    @property
    def mark(self) -> str:
        """What stands where something was cut; one column."""
        return "~" if self.ascii else "…"


def look(stream: TextIO, color: bool | None = None) -> Look:
    """Return what this stream can show. `color`: True, False, or None = as the stream and NO_COLOR have it."""
    env = os.environ
    try:
        tty = stream.isatty()
    except ValueError:  # closed
        tty = False
    if color is None:
        if env.get("NO_COLOR"):
            color = False
        elif env.get("FORCE_COLOR"):
            color = True
        else:
            color = tty and env.get("TERM") != "dumb"
    return Look(tty, color, _wants_ascii(stream), _columns(stream) if tty else 0)


def _wants_ascii(stream: TextIO) -> bool:
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    if locale in {"C", "POSIX"}:  # Python makes UTF-8 of it, the terminal behind it may not
        return True
    try:
        "●→…".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def _columns(stream: TextIO) -> int:
    with contextlib.suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:  # 0: of a terminal that has not been told its size
            return max(20, columns)
    try:
        return max(20, os.get_terminal_size(stream.fileno()).columns or 80)
    except (OSError, ValueError):
        return 80


def rows_of(stream: TextIO) -> int:
    """Return how many lines a terminal has."""
    try:
        return os.get_terminal_size(stream.fileno()).lines or 24
    except (OSError, ValueError):
        return 24


def plain(text: str, how: Look) -> str:
    """Return text as it will be written: → is wider without glyphs, and what is to fit has to be measured so."""
    return text.translate(_ASCII) if how.ascii else text


def can_rewrite(how: Look) -> bool:
    """Return whether a line may be written over another."""
    return how.tty and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def write(stream: TextIO, text: str, how: Look) -> None:
    """Write text (newlines included as given) so that no encoding can make it fail, and flush."""
    text = plain(text, how)
    encoding = getattr(stream, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)
    stream.flush()


def out(text: str, how: Look | None = None) -> None:
    """Write a line of data to stdout."""
    write(sys.stdout, text + "\n", how or look(sys.stdout))


def out_json(value: object, how: Look, *, indent: int | None = None) -> None:
    """Write JSON to stdout. In its texts it is by escapes that what could steer a terminal is made visible."""
    text = json.dumps(value, indent=indent, ensure_ascii=how.ascii)
    out(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text), how)


NO_APP = "No app is known here."


def note(text: str, how: Look | None = None) -> None:
    """Write a line meant for a person to stderr. Where it cannot be written (a full disk, a pipe that nobody reads) the
    command goes on, and its exit code says how it ended.
    """
    try:
        write(sys.stderr, typed(text) + "\n", how or look(sys.stderr))
    except OSError:
        mute(sys.stderr)


def mute(stream: TextIO) -> None:
    """Make sure that nothing more is written to what cannot be written to, not even at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def pause(seconds: float | None, until: int = -1) -> None:
    """Let time pass for a view that follows, or wait until an fd can be read (seconds None: for ever).

    Raise BrokenPipeError as soon as nobody reads stdout any more.
    """
    out = sys.stdout.fileno()
    poll = select.poll()
    poll.register(out, 0)
    if until >= 0:
        poll.register(until, select.POLLIN)
    if any(fd == out for fd, _ in poll.poll(None if seconds is None else seconds * 1000)):
        raise BrokenPipeError


def clean(text: object) -> str:
    """Return text of foreign origin with everything that could steer a terminal made visible. Newline and tab stay."""
    return _CONTROL.sub(lambda found: escaped(found[0]), str(text))


def line(text: object) -> str:
    """Return foreign text as one clean line."""
    return clean(text).replace("\n", " ").replace("\t", " ")


def escaped(character: str) -> str:
    """Return what is shown for a character that is not."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def paint(text: str, style: str, how: Look) -> str:
    """Return text in a style ("" = none)."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if how.color and style and text else text


def width(text: str) -> int:
    """Return how many columns a terminal needs for text."""
    if text.isascii() and "\x1b" not in text:
        return len(text)
    bare = ANSI.sub("", text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in bare)


def cut(text: str, columns: int, end: str = "", mark: str = "…") -> str:
    """Return text (without styles) cut to so many columns, with `mark` where something is gone; columns <= 0: not at all.

    `end` is what it ends with and what stays.
    """
    if columns <= 0 or width(text) <= columns:
        return text
    kept = ""
    room = columns - 1 - width(end)
    for c in text:
        room -= width(c)
        if room < 0:
            break
        kept += c
    return f"{kept}{mark}{end}"


def wrap(text: str, columns: int, indent: int) -> list[str]:
    """Return text in lines of at most so many columns, broken at blanks, all but the first indented; columns <= 0: one.

    For what must not be cut: the cause stands at the end of a line.
    """
    lines, lead = [], ""
    while columns > 0 and width(lead + text) > columns:
        start, count, room = len(text) - len(text.lstrip()), 0, columns - len(lead)
        while count < len(text) and (room := room - width(text[count])) >= 0:
            count += 1
        at = text.rfind(" ", start, count + 1)
        if at <= start:  # one long word
            at = max(count, start + 1)
        lines.append(lead + text[:at].rstrip())
        lead, text = " " * min(indent, columns // 2), text[at:].lstrip()
    return [*lines, lead + text]


def pad(text: str, columns: int) -> str:
    """Return text filled with blanks to so many columns."""
    return text + " " * (columns - width(text))


class Column(NamedTuple):
    """A column of a table. When the terminal is too narrow the one with the lowest `keep` above 0 leaves first."""

    title: str
    right: bool = False
    keep: int = 0  # 0 = never dropped
    shrink: int = 0  # may be cut to so many columns; 0 = never


class Cell(NamedTuple):
    """A cell with a style of its own."""

    text: str
    style: str = ""
    end: str = ""  # of the text; never cut


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell | str]], how: Look, indent: str = "") -> list[str]:
    """Return the lines of a table. On a terminal it fits the width; elsewhere nothing is cut or dropped."""
    cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
    cells = [[c._replace(text=plain(c.text, how)) for c in row] for row in cells] if how.ascii else cells
    shown = list(range(len(columns)))
    need = [max([width(c.title), *(width(row[i].text) for row in cells)]) for i, c in enumerate(columns)]
    while how.width and _total(need, shown, indent) > how.width:
        over = _total(need, shown, indent) - how.width
        candidates = [i for i in shown if columns[i].shrink and need[i] > columns[i].shrink]
        can_give = sum(need[i] - columns[i].shrink for i in candidates)
        droppable = [i for i in shown if columns[i].keep]
        if over > can_give and droppable:
            shown.remove(min(droppable, key=lambda i: columns[i].keep))
            continue
        for i in sorted(candidates, key=lambda i: -need[i]):
            give = min(over, need[i] - columns[i].shrink)
            need[i] -= give
            over -= give
        break
    lines = [_row([Cell(columns[i].title, "header") for i in shown], shown, columns, need, how, indent)]
    lines.extend(_row([row[i] for i in shown], shown, columns, need, how, indent) for row in cells)
    return lines


def _total(need: list[int], shown: list[int], indent: str) -> int:
    return len(indent) + sum(need[i] for i in shown) + 2 * (len(shown) - 1)


def _row(row: list[Cell], shown: list[int], columns: Sequence[Column], need: list[int], how: Look, indent: str) -> str:
    parts = []
    for cell, i in zip(row, shown, strict=True):
        text = cut(cell.text, need[i], cell.end, how.mark) if how.width else cell.text
        blanks = " " * (need[i] - width(text))
        styled = paint(text, cell.style, how)
        parts.append(blanks + styled if columns[i].right else styled + blanks)
    return (indent + "  ".join(parts)).rstrip()


def state(word: str, how: Look) -> Cell:
    """Return a state as glyph and word on a terminal, as the bare word elsewhere."""
    glyph, style = GLYPHS.get(word, ("○", ""))
    return Cell(f"{glyph} {line(word)}" if how.tty else line(word), style)


_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def span(seconds: float | None, *, gap: str = " ", none: str = "–") -> str:
    """Return a span of time in at most two units: "3d 4h", "14m 3s", "45s"."""
    if seconds is None:
        return none
    rest = max(0, int(seconds))
    for i, (length, unit) in enumerate(_UNITS):
        if rest >= length:
            count, rest = divmod(rest, length)
            smaller = _UNITS[i + 1] if i + 1 < len(_UNITS) else None
            second = f"{gap}{rest // smaller[0]}{smaller[1]}" if smaller and rest >= smaller[0] else ""
            return f"{count}{unit}{second}"
    return "0s"


def size(count: int | None, *, gap: str = " ", unit: str = "B", none: str = "–") -> str:
    """Return a number of bytes in powers of 1024: "352 MB", "1.1 GB"; with gap="" and unit="": "352M"."""
    if count is None:
        return none
    if count < 1024:
        return f"{count}{gap}{unit or 'B'}"
    value = float(count)
    for prefix in "KMGT":
        value /= 1024
        if value < 1000 or prefix == "T":
            text = f"{value:.1f}" if prefix in "GT" and value < 10 else f"{value:.0f}"
            return f"{text}{gap}{prefix}{unit}"
    raise AssertionError


def percent(value: float | None, *, none: str = "–") -> str:
    return none if value is None else f"{value:.1f}%"


def rate(value: float | None, *, thousands: str = ",", none: str = "–") -> str:
    """Return requests per second; below 10 with one digit after the point, unless that is 0."""
    if value is None:
        return none
    if 0.05 <= value < 9.95 and round(value, 1) != round(value):
        return f"{value:.1f}"
    return f"{value:,.0f}".replace(",", thousands)


def ready(workers: Mapping[str, Any], *, none: str = "–") -> str:
    """Return how many workers are ready of how many are wanted: "3/4"; "0/–" of an app not read since a boot."""
    want = workers.get("want")
    return f"{workers.get('ready') or 0}/{none if want is None else want}"


def latency(seconds: float | None) -> str:
    """Return how long an answer took: "85 µs", "3.1 ms", "412 ms", "1.5 s"."""
    if seconds is None:
        return "–"
    if seconds < 0.0001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def home(path: str) -> str:
    """Return a path with the user's home as ~."""
    base = os.path.expanduser("~")
    return "~" + path[len(base) :] if base != "/" and (path == base or path.startswith(base + "/")) else path


def argument(path: str) -> str:
    """Return a path as it is typed behind a command: in quotes where a shell needs them."""
    from shlex import quote

    shown = home(path)
    return f"~/{quote(shown[2:])}" if shown[:2] == "~/" else shown if shown == "~" else quote(shown)
