"""Daemon: why did it end? A sentence, the traceback or last lines, and the next step, from what is known.

Waits for the logger to have written the last words, and reads the tail of the app's log file, nothing else.
"""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Callable
from typing import TypeVar

from pyworker.config.check import runs_node
from pyworker.config.schema import AppConfig
from pyworker.daemon import disks, owner
from pyworker.daemon.app import App
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.loop import Loop, report_to_stderr
from pyworker.daemon.missing import of_module
from pyworker.daemon.shortage import INSTALLATION, Shortage, step_for
from pyworker.policy.variables import of_variable
from pyworker.protocol.events import exit_words
from pyworker.protocol.logs import IN_HAND, in_hand, parse_record
from pyworker.protocol.names import CLOSED_BY_APP, LOGS_DIR, STOPPED, WHO_STOPPED
from pyworker.protocol.stacks import parse, whereabouts
from pyworker.unix.files import open_regular
from pyworker.unix.process import ExitStatus
from pyworker.unix.ready import ready

Cause = TypeVar("Cause")
LOOK_AGAIN = 0.02  # seconds between two looks whether the logger has come to the end
HELD_OPEN = 0.5  # seconds for what a process left in a pipe that others hold open: its children, a busy launcher
GO_ON = 3.0  # ... while these go on printing
LONGEST = 10.0  # seconds until a logger that stands still is not waited for
_TAIL = 128 * 1024
_LAST_LINES = 20
_DUMP_LINES = 1000  # the stacks of all threads of an import that hangs
_NODE_LINES = 80  # node ends a crash with its version, and the error stands above a long stack
_IN_USE = re.compile(  # without "already": musl; the last is what gRPC says
    r"\bEADDRINUSE\b|[Aa]ddress (already )?in use|\b[Pp]ort (\d+ )?((is )?(already )?in use|not free on )"
    r"|\bFailed to bind to address "
)
_PORT = re.compile(  # with what stands before it: times have colons, too
    r"(?:\d\.\d+|\blocalhost|[\]*:\s]|::):(\d{2,5})\b|\b[Pp]ort:? (\d{2,5})\b|', (\d{2,5})\)"
)
_AFTER_IT = 5  # lines: uvicorn, redis, nginx and PostgreSQL say more when they have found their port taken
_CRASHED = "Fatal Python error: "
# no crash is said by such a function; the latter: for a types.py in PYTHONPATH
_NO_PYTHON = re.compile(_CRASHED + r"(?=\w*(config|init)_\w)\w+: |Could not import runpy module")
_OF_PYTHON = "Python itself did not start: is one of its variables wrong? pyworker describe -v {app} | grep PYTHON"
_OF_WERKZEUG = (  # Flask-SocketIO refuses it where no terminal is
    "socketio.run(…, allow_unsafe_werkzeug=True) has Werkzeug serve it, websockets too\n"
    'or gevent-websocket, once installed: port=int(os.environ["PORT"]) in that call, balance = "proxy",\n'
    "bind = where clients connect (its old and new workers cannot have the same port)"
)
_NO_PROCESS = re.compile(
    r"can't start new thread|\b[Cc]annot fork\b|\bfork: (retry: )?Resource temporarily unavailable"
)
_NODE = re.compile(r"Node\.js v\d")
_NODE_PLACE = re.compile(r"(?!node:).+:\d+\Z")  # the program's own file and line; source and ^^^ stand below it
_NODE_SOURCE = 4  # lines from there to the error
_LONGEST_SOURCE = 200  # characters; of a bundle it is all in one line
_OF_A_BIND_UNSEEN = (  # ours says who has the port
    "its workers share what they bind by Python's own `socket`; gevent and programs in C or Rust do not use that,\n"
    "nor do processes that the script starts (Django's runserver without --noreload); CherryPy and Robyn look first\n"
    "whether somebody listens there\n"
    'for those: balance = "proxy", bind = where clients connect; each worker listens on its own $PORT'
)
_OF_A_BIND_IN_EACH = (
    "each worker binds it, at a reload old and new ones at once, and only one can: give it to an app of its own\n"
    "for Prometheus: [app.metrics] prometheus = true, and a route of this app\n"
    "for debugpy: print(debugpy.listen(0)), a port for each worker, and pyworker logs shows which"
)
_RAISED = r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning|Refused|Timeout)\b.*"
_SAID = (  # uvicorn's exception is above what is passed over
    r"^(?!Usage: |ERROR: +Application startup failed|(DEBUG|INFO|WARNING): )([A-Za-z_][\w.]*: |" + _CRASHED + ").+"
)
_EXCEPTION = re.compile(f"{_RAISED}|{_SAID}")
_FATAL = re.compile(r"\w*(error|fatal|panic|critical|exception)", re.IGNORECASE)
# the first such line says what is wrong
_NPM = re.compile(r"npm (error|ERR!) (?!(code|syscall|path|errno) |A complete log)\S")
_ASK_FOR_HELP = re.compile(r"(Type|Try|See|Run|Use) .*\bhelp\b")  # below what was wrong
_CLOSED = re.compile(
    rf"{re.escape(CLOSED_BY_APP)}|uv__io_poll: Assertion .errno == EINTR|OSError: \[Errno 9\] Bad file descriptor"
)
_OF_A_CLOSER = "does it call os.closerange(), or a daemonize()? leave that out: nothing is open that should not be"
_COLORS = re.compile("\x1b\\[[0-9;]*m")  # Python 3.13 writes tracebacks in colors where FORCE_COLOR is set
_OF_A_JOB = 'a job that may end: restart.policy = "never"'


def _of_a_silent_end(app: App) -> str:
    if app.config is not None and app.config.target:
        return "does what it does at its start (its lifespan, hooks.post_fork) call os._exit(), or start another program in its place?"
    hint = "did it put itself into the background? there nobody looks after it: keep it in the foreground"
    hint += f' (no --daemon, "daemon off")\nhad it nothing to do? {_OF_A_JOB}'
    if app.config is not None and app.config.script:
        name = os.path.basename(app.config.script)
        module = name.removesuffix(".py")
        return (
            f"does it make a web app and serve nothing, as by app = FastAPI()? start {module}:app, not {name}\n{hint}"
        )
    return hint


def _of_a_clean_end(app: App, handle: WorkerHandle, text: str) -> str:
    """Return the next step for one that counted as ready and, as far as it is known, served nobody; "" for a server."""
    config = app.config
    if config is None or config.target or handle.bound or (config.command and config.bind):
        return ""
    return _of_a_silent_end(app) if config.script and not text else f"had it done its work? {_OF_A_JOB}"


def when_written(
    loop: Loop, store: FdStore, names: tuple[str, ...], in_hand: Callable[[], bool], then: Callable[[], None]
) -> None:
    """Call back when the logger has written down all that came through these pipes of a process that has ended.

    One that something else still holds open has no end: it is left once it is empty, and the logger has nothing `in_hand`.
    """
    began = loop.clock()

    def look() -> None:
        waited = loop.clock() - began
        found = [ready(fd, select.POLLIN) for fd in map(store.get, names) if fd is not None]
        if any(events & select.POLLHUP for events in found):
            patience = LONGEST
        elif any(found):
            patience = GO_ON
        elif found:
            patience = LONGEST if waited >= HELD_OPEN and in_hand() else HELD_OPEN
        else:
            patience = 0.0
        if waited >= patience:
            then()
        else:
            loop.call_later(LOOK_AGAIN, look)

    loop.call_later(LOOK_AGAIN, look)


def has_in_hand(home: str, app: str) -> bool:
    """Whether the logger has taken something of the app's that it has not written yet."""
    try:
        with open_regular(os.path.join(home, LOGS_DIR, IN_HAND)) as file:
            return app in in_hand(file.read())
    except OSError:
        return False


def explained(find: Callable[[], Cause], otherwise: Cause) -> Cause:
    """Return the cause that is found, `otherwise` if that fails: a death has what follows from it, whatever text it was looked for in."""
    try:
        return find()
    except Exception:  # noqa: BLE001
        report_to_stderr("the cause of an end could not be found")
        return otherwise


def unexplained(status: ExitStatus) -> tuple[str, str, str]:
    """Return what is told in place of what `of_worker` and `of_template` find."""
    return "ended: " + exit_words(status.code, status.signal), "", ""


def of_worker(
    app: App,
    handle: WorkerHandle,
    status: ExitStatus,
    home: str,
    shortage: Shortage,
    since: str = "",
    born: str = "",
) -> tuple[str, str, str]:
    """Return (reason, traceback or last lines, hint) for a worker that ended by itself.

    `since`: what it printed before is not why it ended. `born`: what stands before is of another process that had its pid.
    """
    is_script = app.config is not None and bool(app.config.script)
    if handle.failure is not None:
        port = _of_port_of_import(app, handle.failure.message, handle)
        hint = _OF_A_BIND_UNSEEN if port and is_script else port or handle.failure.hint
        text = handle.failure.traceback
        hint = hint or _of_no_process(handle.failure.message) or _of_words(app, handle, handle.failure.message, text)
        if status.signal == 9 and handle.ready_at is None:  # not by itself: it may have said what it waits for
            text = text or "\n".join(last_lines(log_file(app, home), handle.pid, since=born))
        return handle.failure.message, text, hint
    log = log_file(app, home)
    lines, said = last_words(last_lines(log, handle.pid, _NODE_LINES, born))
    if since:
        said = last_words(last_lines(log, handle.pid, _NODE_LINES, since))[1]
    text = "\n".join(lines)
    if shortage.reason:
        return shortage.reason, "", shortage.hint
    if status.signal == 9:
        unsure = "if nobody did that, the kernel did: out of memory? (dmesg, memory.events)"
        sure = "somebody did that: the kernel has counted no kill for want of memory"
        return "killed by SIGKILL from outside", "", sure if shortage.certain else unsure
    if status.signal is not None:
        return _crash_words(status, log, handle.pid, born), text, _of_descriptor(app.config, text)
    if status.code == 0 and handle.ready_at is None:
        return "exited with code 0 before it was ready", text, _of_a_silent_end(app)
    if status.code == 0 and not _IN_USE.search(said):  # some that start a server as their child say that, and end well
        return "ended by itself with code 0", "", _of_a_clean_end(app, handle, text)
    said = shortage.explains(said)
    words = exit_words(status.code, None)
    if said:
        config = app.config if app.config is not None and app.config.command else None
        held = config is not None and bool(config.bind) and config.balance != "proxy" and not runs_node(config.command)
        hint = of_port_in_use(said, siblings=config is not None and app.want > 1, held=held, app=app)
        if hint and is_script:
            hint = _OF_A_BIND_UNSEEN
        hint = hint or _of_no_process(said) or _of_python(app, lines) or _of_words(app, handle, said, text)
        hint = hint or _of_descriptor(app.config, said)
        return said[:300], text, hint
    if text:
        return "exited " + words, text, "it printed nothing at its end: does something in it call os._exit()?"
    # what it printed may have gone elsewhere: to the stdout of `pyworker run`, to a pipe
    return "exited " + words, "", "it printed nothing; run it by hand to see more" * _is_file(log)


def _crash_words(status: ExitStatus, log: str, pid: int, since: str) -> str:
    """Return how a process ended, and where it was if it had the time to write its stacks (`faulthandler`)."""
    words = exit_words(status.code, status.signal)
    dump = last_lines(log, pid, _DUMP_LINES, since) if status.signal is not None else []
    begin = next((i for i in reversed(range(len(dump))) if dump[i].startswith(_CRASHED)), len(dump))
    where = whereabouts(thread for thread in parse("\n".join(dump[begin:])) if thread.current)
    return f"{words}: it was in {where}" if where else words


def _of_no_process(said: str) -> str:
    """Return the next step when a program could make no process or thread; else ""."""
    return f"{step_for(errno.EAGAIN)} (threads count, too)" if _NO_PROCESS.search(said) else ""


def _of_python(app: App, lines: list[str]) -> str:
    """Return the next step when Python has ended before it ran anything; else ""."""
    return _OF_PYTHON.format(app=app.name) if any(map(_NO_PYTHON.match, lines)) else ""


def _of_words(app: App, handle: WorkerHandle, said: str, text: str) -> str:
    """Return the next step when a worker's last words name a module, Werkzeug or a variable; else ""."""
    generation = app.generations.get(handle.id.generation)
    step = of_module(said, generation.resolved) if generation is not None else ""
    return step or (_OF_WERKZEUG if "allow_unsafe_werkzeug=True" in said else _of_variable(app, said, text))


def _of_variable(app: App, said: str, text: str) -> str:
    return of_variable(said, text, app.config.inherit_env if app.config is not None else ())


def _of_descriptor(config: AppConfig | None, said: str) -> str:
    """Return the next step when a server was to take a socket by its number (of a systemd unit's, mostly), or an app has closed
    those of its worker's loop; else "".
    """
    if config is not None and config.target and _CLOSED.search(said):
        return _OF_A_CLOSER
    if config is None or "Bad file descriptor" not in said or not any("fd://" in word for word in config.command):
        return ""
    return (
        "the sockets of `bind` are its descriptors from 3 on\n"
        "gunicorn takes them by itself (LISTEN_FDS), and fails when they are named as well: leave fd://… out"
    )


def of_port_in_use(said: str, *, siblings: bool, held: bool = False, app: App | None = None) -> str:
    """Return the next step when a program found its port taken (by a sibling, or held for it by us); else ""."""
    if not _IN_USE.search(said):
        return ""
    if held:
        return (
            "pyworker itself listens at `bind`, for a program that takes it (LISTEN_FDS; script = …; Node)\n"
            'one that binds its own port: no `bind`; or balance = "proxy", and it listens on $PORT'
        )
    if siblings:
        return (
            "its workers cannot each bind the same port. Node programs share it: bind = their address\n"
            'others: balance = "proxy", bind = where clients connect; each worker listens on its own $PORT'
        )
    port = next(filter(None, found.groups()), "") if (found := _PORT.search(said)) else ""
    taken = owner.of_port("0.0.0.0", int(port)) if port else None  # on whichever address
    if taken is not None:
        return f"port {port} is taken {taken.sentence()}"
    left = owner.left_by(app.name, {w.pid for w in app.workers.values()}) if app is not None else None
    if left is not None:
        return (
            f"port {left[0]} is taken {left[1].sentence()}\nan earlier worker has left that process: kill {left[1].pid}"
        )
    return "who has it? ss -ltnp"


def _of_port_of_import(app: App, said: str, worker: WorkerHandle | None = None) -> str:
    """Return the next step when an app found the port taken that its import binds, by a worker of its own if there is another; else ""."""
    if not _IN_USE.search(said):
        return ""
    others = any(each is not worker for each in app.workers.values())
    return _OF_A_BIND_IN_EACH if others else of_port_in_use(said, siblings=False)


def last_words(lines: list[str]) -> tuple[list[str], str]:
    """Return the lines that are shown, and the one of them that says what was wrong."""
    is_node = bool(lines) and _NODE.match(lines[-1]) is not None
    looked = lines[:-1] if is_node else lines[-_LAST_LINES:]
    named = (i for i in reversed(range(len(looked))) if _EXCEPTION.match(looked[i]))
    found = next((i for i in named if is_node or not _is_heading(looked, i)), None)
    if found is None or not re.match(_RAISED, looked[found]):
        late = reversed(range(max(0, len(looked) - _AFTER_IT), len(looked)))
        found = next((i for i in late if _IN_USE.search(looked[i])), found)
    if found is None:
        if npm := next(filter(_NPM.match, looked), ""):
            return lines[-_LAST_LINES:], npm
        words = [line for line in looked if line.strip() and not _ASK_FOR_HELP.match(line)] or looked
        return lines[-_LAST_LINES:], words[-1] if words else ""
    shown = [*_node_place(looked[:found]), *looked[found:]] if is_node else looked
    return shown[:_LAST_LINES], looked[found]


def _node_place(above: list[str]) -> list[str]:
    """Return what node says above an error of where it is: of a syntax error its stack has nothing."""
    near = above[-_NODE_SOURCE:]
    place = next((near[i:] for i in range(len(near)) if _NODE_PLACE.match(near[i])), [])
    return place if all(len(line) <= _LONGEST_SOURCE for line in place) else place[:1]


def _is_heading(lines: list[str], index: int) -> bool:
    """Whether a line that looks like an exception ("Jupyter: Interactive Computing") is none: it names no failure, stands
    below no traceback, and is not the last word."""
    above, line = "".join(lines[max(0, index - 1) : index]), lines[index]
    if re.match(_RAISED, line) or _FATAL.match(line) or above.startswith((" ", "\t")):
        return False
    return any(after.strip() for after in lines[index + 1 :])


def with_code(reason: str, status: ExitStatus) -> str:
    """Return the reason with the exit code, which the last line of a program does not say; an exception needs none."""
    code = status.code
    if not code or reason == "exited " + exit_words(code, None) or (code == 1 and _EXCEPTION.match(reason)):
        return reason
    return f"{reason} (exit code {code})"


def of_template(
    app: App, handle: TemplateHandle, status: ExitStatus, home: str, since: str = ""
) -> tuple[str, str, str]:
    """Return (reason, traceback or last lines, hint) for a template that ended; `since` as of a worker."""
    if handle.killed_because:
        dump = last_lines(log_file(app, home), handle.pid, _DUMP_LINES, since) if handle.loaded is None else []
        where = whereabouts(parse("\n".join(dump)))
        hint = "does the import wait for something? raise reload.ready_timeout if it needs longer"
        if STOPPED in handle.killed_because:
            hint = WHO_STOPPED
        return handle.killed_because + (f": it is in {where}" if where else ""), "", hint
    if handle.failure is not None:
        hint = handle.failure.hint or _of_no_process(handle.failure.message)
        hint = hint or _of_variable(app, handle.failure.message, handle.failure.traceback)
        hint = hint or _of_port_of_import(app, handle.failure.message)
        return handle.shortage.explains(handle.failure.message), handle.failure.traceback, hint
    if status.code is not None and handle.state == "loading":
        generation = app.generations.get(handle.generation)
        python = generation.resolved.python if generation is not None else "python"
        lines = last_lines(log_file(app, home), handle.pid, since=since)
        said = "\n".join(lines)
        if "pyworker.template" in said:  # not yet the app's interpreter
            return f"the launcher ended with exit code {status.code}", said, INSTALLATION
        if hint := _of_python(app, lines) or _of_descriptor(app.config, said):
            return last_words(lines)[1], said, hint
        hint = f"is it a Python, 3.11 or newer? {python} -V\nor does the import call os._exit()?"
        if status.code == 0:
            hint = "does the import put itself into the background, or call os._exit()? leave that out: it is there already"
        return f"{python} ended with exit code {status.code} before the app was imported", said, hint
    if handle.shortage.reason:
        if handle.loaded is None:
            return f"its import was {handle.shortage.reason}", "", "raise the limit, or have less loaded at import"
        return f"the template was {handle.shortage.reason}", "", handle.shortage.hint
    return "the template " + _crash_words(status, log_file(app, home), handle.pid, since), "", ""


def log_file(app: App, home: str) -> str:
    """Return the path of the app's log, where it is a file."""
    config = app.config
    return (config.logs.named_file if config else None) or os.path.join(home, LOGS_DIR, f"{app.name}.log")


def _tail(path: str) -> bytes:
    with open_regular(path) as file:  # the log may be a pipe: its lines are its reader's
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL))
        return file.read(_TAIL)


def _is_file(path: str) -> bool:
    try:
        return disks.ask(path, lambda: os.path.isfile(path))
    except OSError:
        return False


def last_lines(path: str, pid: int, count: int = _LAST_LINES, since: str = "") -> list[str]:
    """Return the last lines that a process wrote (since a time), stderr if it wrote any there, without colors and control
    characters."""
    try:
        raw = disks.ask(path, lambda: _tail(path)).split(b"\n")
    except OSError:
        return []
    found: dict[str, list[str]] = {"out": [], "err": []}
    for line in raw:
        record = parse_record(line.rstrip(b"\r"))  # one inside of a line ends none
        if record is not None and record.pid == pid and record.ts >= since:
            text = _COLORS.sub("", record.msg.decode("utf-8", "backslashreplace"))
            found[record.stream].append(
                "".join(ch if ch.isprintable() or ch == "\t" else repr(ch)[1:-1] for ch in text)
            )
    return (found["err"] or found["out"])[-count:]
