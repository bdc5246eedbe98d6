"""CLI <-> daemon over the control socket: a stream of JSON lines.

The client sends one Request line; the daemon answers with zero or more Progress lines and one final line, Reply or
Refused, and closes. Nothing here is ever sent to another user: the daemon checks the peer's uid first.
A selector is an app's name, "name.2" (one worker), a glob, or "all".
"""

from __future__ import annotations

import re
from typing import Any, Literal, Union

from pyworker.errors import exit_of
from pyworker.record import field, record

PROTOCOL = 1  # raised when an old peer would misunderstand; the same number = they understand each other


@record
class Start:
    """Start apps of a config file, or one app from options; `names` alone starts stopped apps again.

    Progress: events; Reply: {"apps": [what daemon/operations.py: result makes of each]}.
    """

    file: str = ""  # absolute path of a config file
    only: tuple[str, ...] = ()  # of that file; () = all
    inline: dict[str, Any] = field(default_factory=dict)  # the [app] table of an app without a file, as in TOML
    names: tuple[str, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)  # from options: workers, bind, balance, env...
    cwd: str = ""  # where the command was typed
    shell_env: dict[str, str] = field(default_factory=dict)  # what inherit_env may pick from
    wait: bool = True
    profile: str = ""  # of that file
    boots: bool = False  # the daemon was started for it


@record
class Stop:
    """Stop apps or single workers (a stopped slot stays empty). `now`: no drain."""

    selectors: tuple[str, ...]
    now: bool = False
    wait: bool = True


@record
class Restart:
    """Hard: stop all, start all; `api.2`: that worker, successor first."""

    selectors: tuple[str, ...]
    shell_env: dict[str, str] = field(default_factory=dict)
    wait: bool = True


@record
class Reload:
    """New code, no gap. Returns when the new generation accepts; drain and soak go on. `soak`: when that is over, too."""

    selectors: tuple[str, ...]
    shell_env: dict[str, str] = field(default_factory=dict)
    wait: bool = True
    soak: bool = False


@record
class Abort:
    """Give up reloads: before its commit the new generation goes, in its soak the previous one comes back."""

    selectors: tuple[str, ...]
    wait: bool = True


@record
class Scale:
    """changes: app -> "8", "+2", "-1" or "auto"."""

    changes: dict[str, str]
    wait: bool = True


@record
class Saved:
    """`scale --save` has written the numbers of workers that run into a file of apps, and nothing else: it says still
    what runs. `before`, `after`: when the file was changed last (mtime, ns), as it was read and as it is now."""

    path: str
    before: int
    after: int


@record
class Delete:
    """Stop and forget; `logs`: the log files too."""

    selectors: tuple[str, ...]
    logs: bool = False
    wait: bool = True


@record
class Ps:
    """Reply: the document of `ps --json`. `sample`: measure what is measured (CPU, memory, rates); `pss`: each worker's fair share of the memory, too.

    A selector of a worker narrows the `pool`; `whole`: it is refused.
    """

    selectors: tuple[str, ...] = ()
    sample: bool = True
    pss: bool = False
    whole: bool = False


@record
class Describe:
    """Reply: {"apps": [one element of ps' apps plus more]}. `reveal`: secret values too; `whole`: as of Ps."""

    selectors: tuple[str, ...]
    reveal: bool = False
    whole: bool = False


@record
class Stack:
    """Reply: {"v","workers":[{"app","worker","pid","gen","state","error","hint","threads":[ThreadStack…]}]}."""

    selectors: tuple[str, ...]


@record
class Send:
    """A message to workers. Reply: {"v", "workers": [{"app","worker","pid","gen","error"}]}; not ok: nobody has it."""

    selectors: tuple[str, ...]
    text: str  # JSON


@record
class Diff:
    """What a reload would change. Reply: {"same": bool, "changes": [...], "apps": [...]}."""

    selectors: tuple[str, ...] = ()
    shell_env: dict[str, str] = field(default_factory=dict)


@record
class Config:
    """Reply: {"apps": [{"name","file","profile","generation","config","origins"}]}: what runs, with every default."""

    selectors: tuple[str, ...] = ()


@record
class Follow:
    """Progress lines: the events after `since_seq` (0 = none of the past), of the selected apps, until the client leaves."""

    selectors: tuple[str, ...] = ()
    since_seq: int = 0


@record
class Status:
    """Reply: the document of `daemon status --json`."""


@record
class Shutdown:
    """Stop every app, then the daemon, the logger and the guardian. What was wanted stays in apps.json."""

    now: bool = False


@record
class Upgrade:
    """Guardian, daemon and logger become the version that `python` has installed; no worker is touched.

    Answered when the guardian is replaced and the daemon is about to be: {"changed", "from", "to"}; then Status tells.
    The same in every version of the protocol.
    """

    python: str = ""  # the interpreter to run from now on; "": the one that runs
    force: bool = False  # also when it is the same version


Request = Union[
    Start, Stop, Restart, Reload, Abort, Scale, Saved, Delete, Ps, Describe, Diff,
    Config, Stack, Send, Follow, Status, Shutdown, Upgrade,
]  # fmt: skip


@record
class Call:
    """The one line a client sends."""

    protocol: int
    version: str
    request: dict[str, Any]  # an encoded Request


@record
class Progress:
    """An event (protocol/events.py) that belongs to the request."""

    event: dict[str, Any]


@record
class Reply:
    """The end of a request that was carried out; `ok` False: it ran and failed (exit 1)."""

    ok: bool
    body: dict[str, Any]


@record
class Refused:
    """The end of a request that was not carried out.

    code: no_such_app, not_running, config_invalid, busy, no_permission, protocol, usage, failed, port_in_use…
    """

    code: str
    exit: int
    message: str
    hint: str = ""
    problems: tuple[
        dict[str, Any], ...
    ] = ()  # of a config file: {"message","hint","key","line","column","end_column","source","file"}


Answer = Union[Progress, Reply, Refused]


def refusal(code: str, message: str, hint: str, problems: tuple[dict[str, Any], ...] = ()) -> Refused:
    """Return a refusal with the exit code that its code has."""
    return Refused(code, int(exit_of(code)), message, hint, problems)


def is_older(version: str, than: str) -> bool:
    """True when a version number is known to be lower than another."""

    def key(text: str) -> list[int]:
        release = re.match(r"\d+(?:\.\d+)*", text)
        return [int(digits) for digits in release[0].split(".")] if release else []

    return bool(key(version)) and key(version) < key(than)


AppState = Literal["running", "starting", "reloading", "degraded", "stopping", "stopped", "failed", "scheduled"]
