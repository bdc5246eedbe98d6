"""Daemon: who is listening on a port or a Unix socket already. Reads /proc, on the error path only.

The pid of another user's process cannot be known without root; its user can, from /proc/net/tcp. Everything read
here belongs to others and is shown to a human: control characters are taken out, lengths are limited.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import struct
import time
from collections.abc import Collection, Iterator

from pyworker.protocol.names import ENV_APP, GUARDIAN_TITLE, LOCK_FILE
from pyworker.record import record
from pyworker.unix.peer import peer
from pyworker.unix.process import all_pids, stat_number
from pyworker.unix.sockdiag import listening_inode

_LISTEN = "0A"  # TCP_LISTEN in the state column of /proc/net/tcp
_MAX_COMMAND = 120
_MAX_ENV = 2**20
_NEAR = 4  # generations: guardian, daemon, template; or guardian, npm, sh, node
_DELETED = " (deleted)"  # what /proc says behind the path of a file that has none any more
# "socket:[4711]" -> the oldest process that held it when all were looked at: some 5 µs for each descriptor of the machine, and
# apps whose addresses are in use at a boot are tried again for as long as they are
_holders: dict[str, int] = {}


def user_name(uid: int, table: str = "/etc/passwd") -> str:
    """Return the user's name, or "uid 1001" of one without an entry (a container may give out any number).

    The file alone is read: to ask the libc (getpwuid) is to wait for a directory server where there is one, and all apps with it.
    """
    with contextlib.suppress(OSError), open(table, encoding="utf-8", errors="replace") as entries:
        for entry in entries:
            name, _, number, *_ = [*entry.split(":", 3), "", ""]
            if number == str(uid):
                return _printable(name)
    return f"uid {uid}"


@record
class Owner:
    """Who holds an address. `pid` 0: it belongs to `uid`, more than that may not be known."""

    uid: int
    pid: int = 0
    command: str = ""
    age: float = 0.0  # seconds since it was started
    cwd: str = ""
    inodes: frozenset[int] = frozenset()  # of the sockets in question

    @property
    def user(self) -> str:
        return user_name(self.uid)

    def sentence(self) -> str:
        """Return "by gunicorn: master [shop.main:app]  (pid 38120, user deploy, started 2h ago, in /srv/shop)"."""
        if not self.pid:
            return f"by a process of user {self.user} (its pid is visible to root only)"
        where = f", in {self.cwd}" if self.cwd else ""
        return f"by {self.command}  (pid {self.pid}, user {self.user}, started {_ago(self.age)}{where})"


def of_port(host: str, port: int) -> Owner | None:
    """Return who listens on the TCP port at this numeric address, or at one that overlaps it."""
    found = [entry for entry in _listening() if entry[1] == port and _overlap(entry[0], host)]
    if not found:
        return None
    inodes = frozenset(entry[3] for entry in found)
    return _of_inodes(inodes, found[0][2])


def left_by(app: str, workers: Collection[int]) -> tuple[int, Owner] | None:
    """Return the port and the process of what listens, was started by a worker of the app, and is none of its `workers`.

    What a worker had started in a session of its own outlives it, as a child of our guardian.
    """
    listening = {f"socket:[{inode}]": (port, uid) for _, port, uid, inode in _listening()}
    for pid in all_pids():
        is_left = pid not in workers and stat_number(pid, 4) == os.getppid()
        if is_left and f"{ENV_APP}={app}" in _text(pid, "environ", _MAX_ENV).split("\0"):
            found = next((listening[held] for held in _held(pid) if held in listening), None)
            if found is not None:
                return found[0], _of_process(pid, found[1], frozenset())
    return None


def of_unix(connected: socket.socket, file: os.stat_result) -> Owner:
    """Return who listens at the other end of a connection to a Unix socket with this file.

    The kernel's word is who began to listen: a daemon before this one, say, whose guardian has the socket now.
    """
    pid, uid = peer(connected)
    if inode := listening_inode(file):
        found = _of_inodes(frozenset({inode}), uid)
        if found.pid:
            return found
    return _of_process(pid, uid, frozenset()) if stat_number(pid, 22) else Owner(uid)


def guardian_of(found: Owner) -> int:
    """Return the guardian that this is, or was started by, 0: none, or ours. It shows its descriptors to root only."""
    pid, command = found.pid, found.command
    for _ in range(_NEAR):
        if command.startswith(GUARDIAN_TITLE):
            return pid if pid != os.getppid() else 0
        pid = stat_number(pid, 4)  # its parent
        command = _command(pid)
    return 0


def stopped_by(pid: int) -> str:
    """Return the command that ends a process; of the manager that it has, where that is known: it starts it again after a kill."""
    above = pid
    for _ in range(_NEAR):
        words = _command(above).split()
        if words[0] == "PM2":
            return "pm2 stop NAME"
        if any(os.path.basename(word) == "supervisord" for word in words[:2]):
            return "supervisorctl stop NAME"
        above = stat_number(above, 4)
    groups = [line.split(":", 2) for line in _text(pid, "cgroup").splitlines() if line.count(":") > 1]
    path = next((path for _, controllers, path in groups if controllers in ("", "name=systemd")), "")
    unit = os.path.basename(path)
    is_service = unit.endswith(".service") and not unit.startswith("user@")
    # a manager in the service has others, too
    if not is_service or _text(stat_number(pid, 4), "comm").strip() != "systemd":
        return f"kill {pid}"
    return f"systemctl {'--user ' if '/user@' in path else ''}stop {shlex.quote(_printable(unit))}"


def home_of(guardian: int) -> tuple[str, bool]:
    """Return the home that another guardian has locked ("" where that may not be seen), and whether it was deleted."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{guardian}/fd") as entries:
        for entry in entries:
            path = os.readlink(entry.path)
            home, name = os.path.split(path.removesuffix(_DELETED))
            if name == LOCK_FILE:
                return _printable(home), path.endswith(_DELETED)
    return "", False


def _listening() -> list[tuple[str, int, int, int]]:
    """Return (address, port, uid, inode) of every listening TCP socket of this network namespace."""
    found = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{name}") as table:
            next(table, None)
            for line in table:
                columns = line.split()
                if len(columns) > 9 and columns[3] == _LISTEN:
                    address, _, port = columns[1].partition(":")
                    # Words of 32 bits, each in the byte order of the machine.
                    raw = b"".join(struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8))
                    text = socket.inet_ntop(family, raw).removeprefix("::ffff:")  # IPv4 by an IPv6 socket: Java's
                    found.append((text, int(port, 16), int(columns[7]), int(columns[9])))
    return found


def _overlap(theirs: str, ours: str) -> bool:
    """True when two sockets on these addresses cannot both listen on one port."""
    if theirs == ours or theirs == "::":  # "::" takes IPv4 connections too, unless it was told not to
        return True
    if ":" in theirs or ":" in ours:
        return ours == "::" and ":" in theirs
    return "0.0.0.0" in (theirs, ours)


def _of_inodes(inodes: frozenset[int], uid: int) -> Owner:
    """Return the oldest process that holds one of the sockets: the master, not one of its children."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    known = {_holders[name] for name in wanted & _holders.keys()}
    holders = [pid for pid in known if not wanted.isdisjoint(_held(pid))]
    if not holders:
        _look_at_all(wanted)
        holders = [_holders[name] for name in wanted & _holders.keys()]
    if not holders:
        return Owner(uid, inodes=inodes)
    return _of_process(max(holders, key=_age), uid, inodes)


def _look_at_all(wanted: set[str]) -> None:
    """Note who holds these sockets and, as they may be asked for next, those before and all that listen on a TCP port."""
    wanted = wanted | _holders.keys() | {f"socket:[{inode}]" for *_, inode in _listening()}
    _holders.clear()
    for pid in all_pids():
        for name in wanted.intersection(_held(pid)):
            if name not in _holders or _age(pid) > _age(_holders[name]):
                _holders[name] = pid


def _of_process(pid: int, uid: int, inodes: frozenset[int]) -> Owner:
    with contextlib.suppress(OSError):
        uid = os.stat(f"/proc/{pid}").st_uid
    cwd = ""
    with contextlib.suppress(OSError):
        cwd = _printable(os.readlink(f"/proc/{pid}/cwd"))
    return Owner(uid, pid, _command(pid), _age(pid), cwd, inodes)


def _held(pid: int) -> Iterator[str]:
    """Yield what the descriptors of a process are; nothing of another user's, or of one that is gone."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                yield os.readlink(entry.path)


def _command(pid: int) -> str:
    for name, separator in (("cmdline", "\0"), ("comm", "\n")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
            text = file.read(4096).decode("utf-8", "backslashreplace").rstrip(separator).replace("\0", " ").strip()
            if text:
                return _printable(text)
    return "a process"


def _text(pid: int, name: str, most: int = 4096) -> str:
    """Return a file of /proc/PID, "" when the process is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read(most)
    return ""


def _age(pid: int) -> float:
    """Return how long ago a process was started, 0.0 when it is gone."""
    started = stat_number(pid, 22)  # in clock ticks since the boot
    if not started:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"))


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= _MAX_COMMAND else shown[: _MAX_COMMAND - 1] + "…"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return f"{int(seconds)}s ago"
