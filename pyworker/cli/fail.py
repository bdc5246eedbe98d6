"""CLI: the one place that turns an error into words (or a JSON line) on stderr and an exit code.

First what and why, last the next step. A traceback of the user's code is shown once, as the daemon cut it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pyworker.cli.render import Look, clean, line, note, paint
from pyworker.errors import Exit, PyworkerError
from pyworker.exchanged import is_exchanged
from pyworker.record import fields

_CHANGED = "Nothing was changed: what runs goes on."
# what the mistakes of a config file prevented
_PREVENTED = {
    **dict.fromkeys(("start", "run"), "Nothing was started."),
    **dict.fromkeys(("reload", "restart", "scale"), _CHANGED),
}


_AGAIN = "an upgrade (pip install -U pyworker)? when it is done, run this again; if it stays so, install pyworker anew"


class Shown(Exception):
    """What went wrong is on the screen already; only the exit code is left."""

    def __init__(self, exit: int) -> None:
        super().__init__()
        self.exit = exit


def report(error: PyworkerError, as_json: bool, how: Look, command: str = "") -> int:
    """Write the error to stderr and return its exit code. `command`: the one that failed."""
    problems = list(getattr(error, "problems", ()) or ())
    if as_json:
        note(json.dumps(document(error)), how)
    elif problems:
        from pyworker.cli.problems import render

        closing = _PREVENTED.get(command, "")
        note(render(_problems(problems), how.color, closing=closing).rstrip("\n"), how)
    else:
        note(words(error.message, error.traceback, error.hint, how, bare=getattr(error, "bare", False)), how)
    return int(error.exit)


def is_said(lines: str, message: str) -> bool:
    """Whether lines of a traceback have nothing that the message has not (which may add the exit code)."""
    return lines.strip() in (message, message.rpartition(" (exit code ")[0])


def without_causes(text: str, causes: Iterable[str]) -> str:
    """Return what is said of an app that waits in vain (daemon/depends.py) without causes that are said beside it."""
    for cause in filter(None, causes):
        text = text.replace(f", which failed: {cause}", ", which failed")
    return text


def words(message: str, traceback: str, hint: str, how: Look, *, notes: Iterable[str] = (), bare: bool = False) -> str:
    """Return an error as text: message, the traceback below it, one `= help:` line for each line of the hint.

    `notes`: what else is known of it, and need not be its cause. `bare`: without the word "error".
    """
    first, *more = clean(message).rstrip("\n").split("\n")
    head = first if bare else f"{paint('error:', 'error', how)} {paint(first, 'bold', how)}"
    lines = [head, *more]
    if traceback:
        lines += ["", *clean(traceback).strip("\n").split("\n")]
    below = [("help", h) for h in clean(hint).split("\n") if h.strip()] + [("note", line(n)) for n in notes]
    if below and traceback:
        lines.append("")
    lines += [f"  {paint(f'= {kind}:', 'cyan', how)} {text}" for kind, text in below]
    return "\n".join(lines)


def document(error: PyworkerError) -> dict[str, Any]:
    """Return the JSON form of an error. A `step` is a hint that its message has, too."""
    body: dict[str, Any] = {
        "code": error.code,
        "exit": int(error.exit),
        "message": error.message,
        "hint": error.hint or getattr(error, "step", ""),
    }
    if error.traceback:
        body["traceback"] = error.traceback
    problems = [p if isinstance(p, dict) else dict(vars(p)) for p in getattr(error, "problems", ()) or ()]
    if problems:
        first = problems[0]
        body["where"] = {k: first.get(k) for k in ("file", "line", "column", "key")}
        body["problems"] = problems
    return {"v": 1, "error": body}


def _problems(problems: list[Any]) -> Any:
    """Return problems as the class that the config reader uses; the daemon sends them as objects."""
    if not any(isinstance(p, dict) for p in problems):
        return tuple(problems)
    from pyworker.config.problem import Problem

    known = {f.name for f in fields(Problem)}
    return tuple(Problem(**{k: v for k, v in p.items() if k in known}) for p in problems)


def bug(error: BaseException, as_json: bool, how: Look) -> int:
    """Report an exception that nobody foresaw: it is our fault, and the traceback is what a bug report needs."""
    import traceback

    is_ours = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "pyworker"
    if is_ours or is_exchanged():
        message = f"the files of pyworker were exchanged while this command ran: {type(error).__name__}: {error}"
        return report(PyworkerError(message, hint=_AGAIN), as_json, how)
    text = "".join(traceback.format_exception(error))
    if as_json:
        failed = PyworkerError(f"pyworker itself failed: {type(error).__name__}: {error}", code="bug", hint=text)
        note(json.dumps(document(failed)), how)
    else:
        note(clean(text).rstrip("\n"), how)
        hint = "this is a bug of pyworker: please report it with the lines above"
        note(words(f"pyworker itself failed: {type(error).__name__}: {error}", "", hint, how), how)
    return int(Exit.FAILED)
