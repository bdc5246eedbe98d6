"""CLI: `pyworker help TOPIC`: what no single command's help can say. Short; the pages in docs/ have the rest."""

from __future__ import annotations

import difflib
import sys

from pyworker.cli.render import line, out
from pyworker.errors import MEANING, PyworkerError

TOPICS: dict[str, tuple[str, str]] = {
    "config": (
        "where settings come from",
        """\
The file: the one that is named; else $PYWORKER_CONFIG; else app.toml, pyworker.toml or pyproject.toml with
[tool.pyworker] in this folder. [app] is one app; [apps.NAME] are several, on top of [defaults].

What counts: the command line, then a profile (--profile NAME, [profiles.NAME.app]), then the file, then [defaults],
then the environment (PORT, WEB_CONCURRENCY), then the built-in default.

  pyworker init              writes a file
  pyworker check             every mistake in it
  pyworker config --origin   what it comes to, and which line says so
  pyworker diff              what a reload would change
""",
    ),
    "reload": (
        "how code is replaced without losing a request",
        """\
1. The file, the env files and the links are read again; a mistake ends it here.
2. hooks.pre_start runs; then the new code is imported, beside the old workers. If it fails, nothing has changed.
3. One new worker is tried, accepting nothing; then the rest, reload.max_surge at a time.
4. All are ready: the new accept, the old finish what they have (stop.drain_timeout) and leave.
5. For reload.soak the old code stays at hand: too many deaths bring it back by themselves.

A command that binds its own port cannot overlap with its successor: there is a gap, and it is said before.
""",
    ),
    "states": (
        "what the words in ps mean",
        """\
starting    not ready yet; or it waits for an app in depends_on, or for hooks.pre_start
running     every worker is ready
reloading   new workers come up beside the old
degraded    serves, but lacks workers, or one fails its health check, or could not be replaced: the reason is shown
failed      given up, and tried again every restart.retry; or the start failed: the reason is shown
scheduled   a job (cron): runs when its time comes
stopping    finishes its requests; or it serves on until those that depend on it have stopped
stopped     by you; pyworker start NAME
""",
    ),
    "signals": (
        "what signals do",
        """\
To a worker: TERM (or stop.signal) ends it gracefully, and it is replaced: use pyworker restart NAME.2 instead.
To the daemon: TERM stops every app and then the daemon, as pyworker daemon stop does. Under a service manager HUP
reloads every app. A daemon that is killed is started again by its guardian; workers do not notice.
""",
    ),
    "environment": (
        "the variables that count",
        """\
PYWORKER_HOME      the state folder (default: $XDG_STATE_HOME/pyworker, else ~/.local/state/pyworker)
PYWORKER_CONFIG    the config file when none is named
PYWORKER_PROFILE   the profile when none is named
PYWORKER_COLOR     auto, always or never; NO_COLOR is respected
PORT               asgi and wsgi apps without bind listen on 0.0.0.0:$PORT
WEB_CONCURRENCY    their number of workers when `workers` is not set

Beside what the config says (pyworker config env NAME) a worker gets PYWORKER_APP, PYWORKER_WORKER (its slot's
number), PYWORKER_WORKERS (how many there are) and PYWORKER_GENERATION.
""",
    ),
    "exit-codes": (
        "what the codes of commands mean",
        "".join(f"{int(code):<4} {text}\n" for code, text in MEANING.items()).replace("`", ""),
    ),
    "files": (
        "what is where",
        """\
In the state folder ($PYWORKER_HOME), readable by you alone:
apps.json       what is wanted; written at every change, restored when the daemon starts
events.jsonl    what happened
logs/NAME.log   what the workers of an app print; rotated (logs.max_size, logs.max_files)
logs/pyworker.log  what guardian, daemon and logger say
control.sock    where commands ask
notify.sock     where commands say READY=1 (ready = "notify")
lock            who holds it guards this folder
state/          what apps keep there (pyworker.state), the dashboard's last hour
web-token       the dashboard's token
""",
    ),
}


def show(name: str) -> int:
    if name == "topics":
        width = max(map(len, TOPICS))
        out("\n".join(f"{topic:<{width}}  {short}" for topic, (short, _) in TOPICS.items()))
        out(f"{'man':<{width}}  the manual page: pyworker help man | man -l -")
        return 0
    if name == "man":
        from pyworker.cli.manpage import page

        out(page().rstrip("\n"))
        return 0
    if name not in TOPICS:
        from pyworker.cli.names import COMMANDS

        near = difflib.get_close_matches(name, [*TOPICS, *COMMANDS], n=1)
        hint = f"did you mean: pyworker help {near[0]}?" if near else f"topics: {' '.join(TOPICS)}"
        raise PyworkerError(f"there is no help on {line(name)}", hint=hint, code="usage")
    out(TOPICS[name][1].rstrip("\n"))
    sys.stdout.flush()
    return 0
