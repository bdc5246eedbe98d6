"""Names that processes share without a message: environment variables, and paths below the home. Literals only.

A module of its own because `pyworker ps` reads it and must not pay for more.
"""

from __future__ import annotations

# ---- environment names -----------------------------------------------------------------------------
ENV_HOME = "PYWORKER_HOME"  # read by the CLI and the guardian
ENV_SOFT_NOFILE = "PYWORKER_SOFT_NOFILE"  # for the daemon: the soft limit that workers should get back
ENV_FAILPOINTS = "PYWORKER_FAILPOINTS"  # for tests: a folder that arms failpoint.py in all our processes
ENV_TICK = "PYWORKER_TICK"  # for tests: seconds between the signs of life that guardian and daemon ask for
ENV_APP = "PYWORKER_APP"  # set for workers
ENV_WORKER = "PYWORKER_WORKER"  # the slot number
ENV_GENERATION = "PYWORKER_GENERATION"
ENV_WORKERS = "PYWORKER_WORKERS"
ENV_BIRTH = "PYWORKER_BIRTH"  # set for commands: which worker it is, once in all times; see daemon/lost.py
ENV_STATE = "PYWORKER_STATE"  # where pyworker.state of a worker keeps its values

# ---- paths below the home --------------------------------------------------------------------------
CONTROL_SOCKET = "control.sock"
NOTIFY_SOCKET = "notify.sock"
APPS_FILE = "apps.json"
BAD_APPS = f"{APPS_FILE}.bad-"  # and when: one that no daemon could read
LOCK_FILE = "lock"
EVENTS_FILE = "events.jsonl"
LOGS_DIR = "logs"
STATE_DIR = "state"
ROTATED = r"\.([1-9][0-9]{0,3})(\.gz)?"  # what follows a log's own name in those of the files rotated out of it
DAEMON_LOG = "logs/pyworker.log"  # stderr of guardian, daemon and logger; small, for bug reports
GUARDIAN_TITLE = "pyworker guardian"  # how `ps` shows it, and others recognize its pid
GUARDIAN_DIED = "guardian died"  # why a daemon and a logger were started: the daemon before became the guardian
NOT_STARTED = "cannot be started"  # said there by the guardian of the daemon, which the CLI looks for
# ... and of itself, while what another guardian has left waits for it
TAKES_OVER_LATER = "cannot take over yet, trying again"
HOME_UNUSABLE = "daemon: cannot use its home"  # ... and by the daemon, before it ends
# what a template prints that has no channel any more to say it on
CLOSED_BY_APP = "the import of the app has closed descriptors that are not its own, pyworker's too"
STOPPED = "it was stopped by a signal"
WHO_STOPPED = "who has sent it SIGSTOP? the program itself may have"
# said of what SIGKILL was sent to
DOES_NOT_END = "was killed and does not end: the kernel has it wait, most likely for a disk that does not answer"
