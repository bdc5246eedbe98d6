"""Daemon: who gives a command, for the events that it begins: user, pid and command of the process at the control socket.

Its user and pid are the kernel's word (SO_PEERCRED), its command is its own: shown to a human, nothing is decided by it.
"""

from __future__ import annotations

import os
from itertools import dropwhile, takewhile

from pyworker.daemon.client import Client
from pyworker.daemon.owner import user_name
from pyworker.unix.procfs import read_all

_LONGEST = 80
# options of every command, which may stand before it, and how many words each takes
_BEFORE = {
    "--home": 2, "--timeout": 2, "--color": 2,
    "--json": 1, "--quiet": 1, "-q": 1, "--verbose": 1, "-v": 1, "--yes": 1, "-y": 1,
}  # fmt: skip


def asker(client: Client) -> str:
    """Return "deploy (uid 1000), pid 41210: pyworker reload api"."""
    user, uid = user_name(client.uid), f"uid {client.uid}"
    who = user if user == uid else f"{user} ({uid})"
    if not client.pid:  # of another pid namespace
        return who
    command = _command(client.pid)
    return f"{who}, pid {client.pid}" + (f": {command}" if command else "")


def _command(pid: int) -> str:
    """Return the words of its command line up to the first option: behind that may be what is nobody's business (-e TOKEN=…)."""
    try:
        argv = os.fsdecode(read_all(f"/proc/{pid}/cmdline")).split("\0")
    except OSError:  # it has gone
        return ""
    if os.path.basename(argv[0]).startswith("python"):
        if "-c" in argv:
            return os.path.basename(argv[0])
        argv = list(dropwhile(_is_option, argv[1:]))
    while (option := "".join(argv[1:2]).partition("="))[0] in _BEFORE:
        del argv[1 : 2 if option[1] else 1 + _BEFORE[option[0]]]
    words = [word for word in takewhile(lambda word: not _is_option(word), argv) if word]
    text = " ".join([os.path.basename(words[0]), *words[1:]]) if words else ""
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST]


def _is_option(word: str) -> bool:
    return word.startswith("-")
