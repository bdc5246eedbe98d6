"""Named places in our own processes at which a test makes something go wrong. Every process; unarmed it costs one `if`.

Armed by PYWORKER_FAILPOINTS, a folder, in the environment of the guardian when it starts. A point that is passed looks
for a file of its name there, takes it away (so it acts once, whoever passes it first) and does what the file says:

    kill            SIGKILL to itself
    raise           an exception that no code expects
    raise:ENOSPC    that OSError
    sleep:0.2       nothing for so many seconds
    hold            nothing until the test removes NAME.hit
    spin            a loop without an end

A trailing "always" leaves the file where it is: a fault that lasts until the test removes it. What was taken away is
kept as NAME.hit, so that a test can tell that its point was reached.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from pyworker.protocol.names import ENV_FAILPOINTS

# name -> the moment; tests/architecture holds this table and the calls equal, tests/system/test_failpoints runs them all
POINTS = {
    "guardian.adopted": "a daemon or an older guardian became this one and has taken over the fds",
    "guardian.start_logger": "the logger is about to be started",
    "guardian.start_daemon": "the daemon is about to be started",
    "guardian.daemon_started": "the daemon runs and was sent nothing yet",
    "guardian.store": "fds have arrived and are not in the store yet",
    "guardian.exited": "a child was found ended and the daemon was not told",
    "guardian.collect": "the daemon has acknowledged an end and the child is not reaped yet",
    "guardian.exec": "an upgrade: all fds are inheritable, the exec is next",
    "guardian.execed": "an upgrade: the new version runs and has taken over nothing",
    "guardian.leave": "an upgrade: a program is about to be told to make room",
    "guardian.stands_by": "an upgrade: the daemon has become a guardian that stands by and has not said so",
    "daemon.restored": "all fds have come from the guardian",
    "daemon.adopt_app": "an app is about to be adopted",
    "daemon.adopted": "all apps are adopted, what does not live is not started yet",
    "daemon.serving": "the daemon is about to answer requests",
    "daemon.leave": "an upgrade: the daemon makes room",
    "daemon.become_guardian": "the guardian is dead, the exec is next",
    "start.listening": "the listeners of a generation are open, the generation is not stored",
    "start.pinned": "the generation is stored, nothing is started",
    "spawn.template": "a template's channel and pipes are stored, its process does not exist",
    "spawn.worker": "a worker's channel and pipes are stored, its process does not exist",
    "spawn.claim": "a worker's pid is known and its pidfd not stored",
    "launch.born": "a script or command was forked for and has not said Hello",
    "launch.started": "a command runs and the daemon was not told",
    "launch.leave": "the commands of a batch run and the daemon was told, the guardian has not got them yet",
    "template.loaded": "the app is imported, the daemon was not told",
    "template.fork": "a worker was asked for and is not forked",
    "template.forked": "a worker is forked, the daemon was not told",
    "spare.park": "a worker was forked ahead of need, nobody has asked for it",
    "spare.order": "a spare has its order and is no worker yet",
    "save.before_rename": "apps.json is written under another name",
    "save.after_rename": "apps.json is renamed into place",
    "ledger.half": "the memo of an app is written, its number is not",
    "reload.target": "the new generation is the target and nothing of it is started",
    "reload.before_commit": "all new workers are ready, the commit is next",
    "reload.committed": "the new generation counts, none of its workers accepts",
    "reload.go": "a new worker is about to be told to accept",
    "reload.drain": "an old worker is about to be told to drain",
    "death.finish": "a worker's end is known, nothing follows from it yet",
    "death.bury": "the successor of a worker was asked for, the rest of its end is to come",
    "logger.take": "fds have come to the logger and are not read yet",
    "logger.write": "records are about to be written",
    "logger.leave": "the logger leaves",
    "rotate.before_rename": "a full log file is about to be renamed",
    "rotate.after_rename": "the log file is renamed, there is no new one",
}

_folder = os.environ.get(ENV_FAILPOINTS, "")


class Unexpected(Exception):
    """What `raise` raises."""


def hit(name: str) -> None:
    """Pass a point."""
    if _folder:
        _act(name)


def _act(name: str) -> None:
    path = os.path.join(_folder, name)
    try:
        with open(path) as file:
            words = file.read().split()
        if words[-1:] != ["always"]:
            os.rename(path, path + ".hit")  # of two that pass at once one has it
    except OSError:
        return
    action, _, argument = (words or [""])[0].partition(":")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "sleep":
        time.sleep(float(argument))
    elif action == "hold":
        while os.path.exists(path + ".hit"):
            time.sleep(0.01)
    elif action == "spin":
        while True:
            pass
    elif argument:
        number = getattr(errno, argument)
        raise OSError(number, os.strerror(number))
    else:
        raise Unexpected(name)
