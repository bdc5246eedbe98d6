"""CLI, `startup`: the text of the service files, and whether one of them is for a home."""

from __future__ import annotations

import os
import re
from shlex import quote, split

from pyworker import __version__
from pyworker.protocol.names import ENV_HOME

OPENRC_SCRIPT = "/etc/init.d/pyworker"
OPENRC_STARTED = "/run/openrc/started/pyworker"  # OpenRC's own note, for as long as nobody stops the service
_PLAIN = re.compile(r"[\w@%+=:,./-]+\Z")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})


def systemd(command: list[str], home: str, *, user: bool, stop_seconds: int, version: int) -> str:
    """Return the unit. `version`: systemd's; before 253 there is no Type=notify-reload, before 250 no ExitType."""
    reloads = version >= 253
    lines = [
        f"# written by pyworker {__version__}; pyworker startup --remove takes it away",
        "[Unit]",
        "Description=pyworker: pools of workers for Python apps",
        "After=network-online.target",
        "Wants=network-online.target" if not user else "",
        # a disk that is full may have room minutes later
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify-reload" if reloads else "Type=notify",
        # the daemon takes the guardian's place when that dies: the service ends with its last process
        "ExitType=cgroup" if version >= 250 else "",
        "NotifyAccess=all",
        f"Environment={_home(home)}",
        f"ExecStart={' '.join(map(_quoted, command))} daemon run",
        "" if reloads else "ExecReload=/bin/kill -HUP $MAINPID",
        "TimeoutStartSec=5min",
        f"TimeoutStopSec={stop_seconds}",
        "WatchdogSec=2min",
        "KillMode=mixed",
        # a worker that is killed for its memory is replaced; the others serve on
        "OOMPolicy=continue",
        "Restart=always",
        "RestartSec=2",
        # 0: `daemon stop`
        "RestartPreventExitStatus=0 75 78",
        # of a guardian, whose place the daemon takes: as failures they would stay the unit's result, for which the end of
        # the next reload stops all of it
        "SuccessExitStatus=1 ABRT BUS FPE ILL KILL SEGV SYS TRAP",
        "LimitNOFILE=524288",
        "TasksMax=infinity",
        "",
        "[Install]",
        f"WantedBy={'default.target' if user else 'multi-user.target'}",
    ]
    text = "\n".join(lines)
    return re.sub(r"\n\n(?=\w+=)", "\n", re.sub(r"\n{2,}", "\n\n", text)) + "\n"


def openrc(command: list[str], home: str, owner: str) -> str:
    program, *arguments = command
    ours = " ".join([quote(program), *map(quote, arguments)])
    return f"""#!/sbin/openrc-run
# written by pyworker {__version__}; pyworker startup --remove takes it away
description="pyworker: pools of workers for Python apps"
command={quote(program)}
command_args={quote(" ".join([*map(quote, arguments), "daemon", "run", "--wait"]))}
command_user={quote(owner)}
supervisor=supervise-daemon
respawn_delay=2
respawn_max=0
retry="TERM/90/KILL/5"
extra_started_commands="reload"
export {ENV_HOME}={quote(home)}

depend() {{
    use localmount
    after net
}}

reload() {{
    ebegin "Reloading every app"
    {ours} reload all
    eend $?
}}

# the daemon takes the place of a guardian that was killed; supervise-daemon does not know that one, and has one that waits
stop_post() {{
    if {ours} daemon status >/dev/null 2>&1; then
        {ours} daemon stop -y
    fi
}}
"""


def starts(path: str, home: str) -> bool:
    """Whether there is such a service file and it starts the daemon of this home."""
    text = _text(path)
    return text is not None and is_for(text, home)


def other_home(path: str, home: str) -> str:
    """Return the home whose daemon such a service file starts, as the file has it; "" for this one, and without a file."""
    text = _text(path)
    return "" if text is None or is_for(text, home) else text.partition(f"{ENV_HOME}=")[2].partition("\n")[0]


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def written_by(text: str) -> str:
    """Return the version of pyworker that has written a service file; "" if none says so."""
    found = re.search(r"^# written by pyworker (\S+);", text, re.MULTILINE)
    return found[1] if found else ""


def openrc_keeps(home: str) -> bool:
    """Whether OpenRC starts the daemon of this home again, however it ends: supervise-daemon asks for no exit code."""
    return os.path.lexists(OPENRC_STARTED) and starts(OPENRC_SCRIPT, home)


def is_for(text: str, home: str) -> bool:
    """Return whether a service file starts the daemon of this home; one that names no home may."""
    named = [line for line in text.splitlines() if f"{ENV_HOME}=" in line and not line.startswith("#")]
    ours = f"Environment={_home(home)}"
    return not named or any(line == ours or _words(line) == ["export", f"{ENV_HOME}={home}"] for line in named)


def _words(line: str) -> list[str]:
    """Return what a shell makes of a line, however it is quoted."""
    try:
        return split(line)
    except ValueError:
        return []


def _home(home: str) -> str:
    return f"{ENV_HOME}={_quoted(home, expands=False)}"


def _quoted(word: str, *, expands: bool = True) -> str:
    """Quote a word for systemd: % has a meaning of its own, and $ has one in ExecStart= (`expands`)."""
    word = word.replace("%", "%%")
    if expands:
        word = word.replace("$", "$$")
    return word if _PLAIN.match(word) else '"' + word.translate(_ESCAPES) + '"'
