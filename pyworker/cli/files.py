"""CLI: a file that could not be read, written or removed: the cause and the next step."""

from __future__ import annotations

import errno
import os
import shlex

from pyworker.cli.render import home
from pyworker.errors import FULL_DISK, PyworkerError


def cannot(do: str, path: str, error: OSError | UnicodeDecodeError, instead: str = "") -> PyworkerError:
    """Return the error that says why a command cannot `do` ("read", "write to") a file. `instead`: another way."""
    why, step = _why(path, error)
    hint = "\n".join(filter(None, (step, instead)))
    return PyworkerError(f"cannot {do} {home(path)}: {why}", hint=hint, code="unreadable" if do == "read" else "failed")


def no_file(path: str, step: str = "") -> PyworkerError:
    """Return the error about a file that a command was told to take and that is not there; `step`: when no name is near."""
    return PyworkerError(f"there is no file {path}", hint=_near(path) or step or _look(path), code="no_such_file")


def as_bytes(text: str) -> bytes:
    """Return what goes into a file; raise PyworkerError when a name in it is not UTF-8. Before the file is opened: it may be one of before."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        row = text[text.rfind("\n", 0, error.start) + 1 :].partition("\n")[0]
        hint = "rename the file or folder that has it in its name"
        raise PyworkerError(f"{row!r} cannot be written: it is not UTF-8", hint=hint, code="usage") from None


def _why(path: str, error: OSError | UnicodeDecodeError) -> tuple[str, str]:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8", "save it as UTF-8"
    folder = os.path.dirname(os.path.abspath(path))
    match error.errno:
        case errno.ENOENT if not os.path.isdir(folder):
            step = f"its folder is not there: mkdir -p {shlex.quote(folder)}"
        case errno.ENOENT:
            step = _near(path) or _look(path)
        case errno.EACCES | errno.EPERM:
            what = path if os.path.exists(path) else folder
            step = f"who may do it? ls -ld {shlex.quote(what)}"
        case errno.EISDIR:
            step = "it is a folder: name a file in it"
        case number if number in FULL_DISK:
            step = f"make room: df -h {shlex.quote(folder)}"
        case _:
            step = ""
    return error.strerror or str(error), step


def _near(path: str) -> str:
    import difflib

    folder, name = os.path.split(path)
    try:
        # but for the name itself, which a link to nothing has
        others = [other for other in os.listdir(folder or ".") if other != name]
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.75)
    except OSError:
        near = []
    return f"did you mean {os.path.join(folder, near[0])}?" if near else ""


def _look(path: str) -> str:
    return f"what is there? ls {shlex.quote(os.path.dirname(os.path.abspath(path)))}"
