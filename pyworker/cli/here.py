"""CLI: this folder and the paths in it, by the names that who typed the command has for them.

An app keeps them, and a reload looks them up again: in `/srv/shop/current`, a link to `releases/42`, that has to be `current`.
"""

import contextlib
import os


def here() -> str:
    """Return this folder as `pwd` shows it, links included; without links where the shell does not say."""
    said = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if said.startswith("/") and said == os.path.normpath(said) and os.path.samefile(said, "."):
            return said
    return os.getcwd()


def absolute(path: str) -> str:
    """Return the absolute path; where `..` leads to is the kernel's word, as for any program that opens it."""
    return os.path.abspath(path if ".." in path.split(os.sep) else os.path.join(here(), path))


def is_gone() -> bool:
    """Return whether this folder was removed: nothing relative can be found from it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
