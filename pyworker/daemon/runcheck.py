"""`python -I -m pyworker.daemon.runcheck FD`: become the command of one exec check, without the daemon's rights.

Started by daemon/check.py with a memfd that says what to run. Rights are given up before the folder is entered and
the command is looked for: nothing that the app's user can write is ever executed with more than that user's rights.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import warnings  # noqa: F401  os.execvpe imports it, as the app's user, who may not be let in where Python is

from pyworker.errors import Exit
from pyworker.unix.fds import read_whole
from pyworker.unix.user import CannotDrop, drop_rights

# seconds that the daemon has to end it first, with all that it has started: it counts no time in which all stand still
GRACE = 300


def main(argv: list[str]) -> int:
    """Exec the command; returns only an exit code for what cannot be run."""
    fd = int(argv[1])
    spec = json.loads(read_whole(fd))
    os.close(fd)
    try:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them: `yes | head` would not end
            signal.signal(number, signal.SIG_DFL)
        # over the exec: who has started it may be gone before it is its time to end it (a killed daemon, an upgrade)
        signal.alarm(math.ceil(spec["timeout"]) + GRACE)
        os.umask(spec["umask"])
        drop_rights(spec["uid"], spec["gid"], tuple(spec["groups"]))
        os.chdir(spec["cwd"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except CannotDrop as error:
        sys.stderr.write(f"{error}\n")
    except OSError as error:
        sys.stderr.write(f"cannot run {spec['argv'][0]} in {spec['cwd']}: {error.strerror}\n")
    return Exit.BAD_CONFIG


if __name__ == "__main__":
    sys.exit(main(sys.argv))
