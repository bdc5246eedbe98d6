"""Launcher: from pyworker's interpreter into the app's, without rights. Short-lived.

`python -I -m pyworker.template SPEC_FD` becomes a template. With `--serve CHANNEL_FD` it forks for each script or command
that it is asked for (launches.py), so that hundreds of them need one start of an interpreter. It gives up the daemon's
rights before anything that the app's user can write is looked at, and then execs the app's interpreter or command.
Every failure is a message on the channel and exit code 78; where it cannot read what to start it knows no channel, and may be
tried again. It never imports an app.
"""

from __future__ import annotations

import os
import socket
import sys

from pyworker import __version__, failpoint
from pyworker.errors import Exit
from pyworker.protocol import wire
from pyworker.protocol.names import ENV_FAILPOINTS, ENV_SOFT_NOFILE
from pyworker.protocol.template import LaunchSpec, LoadFailed, boot_command
from pyworker.protocol.worker import Failed, Hello
from pyworker.template import command
from pyworker.template.launches import serve
from pyworker.template.spec import open_channel, pass_on, read_spec, spec_fds
from pyworker.unix import title
from pyworker.unix.fds import keep_from_exec, send_packet
from pyworker.unix.process import set_name
from pyworker.unix.user import CannotDrop, closed_folder, drop_rights, limit_nofile, soft_nofile
from pyworker.worker.channel import Channel
from pyworker.worker.say import say


def main(argv: list[str]) -> int:
    """Launch one, or what is asked for."""
    if argv[1:] == ["--check"]:
        sys.stdout.write(f'{{"version": "{__version__}"}}\n')
        return Exit.OK
    if argv[1] == "--serve":
        with socket.socket(fileno=int(argv[2])) as channel:
            return serve(channel, launch)
    return launch(int(argv[1]))


def launch(spec_fd: int) -> int:
    """Become what the spec describes; returns only an exit code of a failure."""
    try:
        spec = read_spec(spec_fd)
    except (OSError, wire.WireError) as error:
        step = (
            ". Is the daemon of another version? pyworker daemon upgrade" if isinstance(error, wire.WireError) else ""
        )
        say(f"cannot read what to start: {error}{step}")
        return Exit.FAILED  # it is not the app that is wrong
    keep_from_exec()
    set_name("pyworker launch")
    if spec.role != "template":
        os.setsid()
    try:
        take_rights(spec)
    except (CannotDrop, OSError, ValueError) as error:
        return fail(spec, "rights", *_explain(spec, error))
    if spec.role == "template":
        return exec_python(spec, spec_fd)
    channel = Channel(open_channel(spec))
    failpoint.hit("launch.born")
    channel.send(Hello(__version__))
    if command.is_given_up(channel):
        return Exit.OK
    if spec.role == "script":
        return exec_python(spec, spec_fd)
    return command.run(spec, channel)


def take_rights(spec: LaunchSpec) -> None:
    """Set limits, umask and user, in that order (raising a limit needs root), then enter the app's folder as that user."""
    app = spec.app
    if app.limits.nofile is not None:
        limit_nofile(app.limits.nofile)
    elif os.environ.get(ENV_SOFT_NOFILE, "").isdecimal():
        soft_nofile(int(os.environ[ENV_SOFT_NOFILE]))  # as it was before the guardian raised its own
    os.umask(app.file_umask)
    drop_rights(spec.uid, spec.gid, spec.groups)
    os.chdir(app.cwd)


def exec_python(spec: LaunchSpec, spec_fd: int) -> int:
    """Become the app's interpreter running the runtime zip; returns only when that fails."""
    pass_on(spec_fds(spec, spec_fd), inheritable=True)
    armed = {ENV_FAILPOINTS: os.environ[ENV_FAILPOINTS]} if ENV_FAILPOINTS in os.environ else {}
    try:
        os.execve(spec.python, boot_command(spec, spec_fd, title.ROOM), spec.env | armed)
    except OSError as error:
        message = f"cannot run the interpreter {spec.python}: {error.strerror}"
        hint = "Check `python` (a venv folder or an interpreter that this user may run)."
        real = os.path.realpath(spec.python)  # a venv has a link to the Python that made it, which may be root's own
        if closed := closed_folder(os.path.dirname(real)):
            hint = f"It is {real}, and {_user(spec)} may not enter {closed}. Make the venv by a Python that it may run."
        elif not os.path.exists(real):  # it was there when the config was read
            hint = f"It was removed under the app. To look for one again: pyworker reload {spec.app.name}"
        return fail(spec, "exec", message, hint)


def fail(spec: LaunchSpec, kind: str, message: str, hint: str) -> int:
    """Tell the daemon and return the exit code that is not retried."""
    failure: LoadFailed | Failed
    if spec.role == "template":
        failure = LoadFailed("rights" if kind == "rights" else "exec", message, "", hint)
    else:
        failure = Failed("other", message, "", hint)
    try:
        send_packet(open_channel(spec), wire.encode(failure))
    except OSError:
        say(message)
    return Exit.BAD_CONFIG


def _explain(spec: LaunchSpec, error: Exception) -> tuple[str, str]:
    app = spec.app
    if isinstance(error, CannotDrop):
        return str(error), "Only a daemon that runs as root can start an app as another user."
    if isinstance(error, OSError) and error.filename is not None:
        hint = f"Check `cwd`: {_user(spec)} may not enter {closed_folder(app.cwd) or app.cwd}."
        if isinstance(error, FileNotFoundError):  # it was there when the config was read
            hint = f"It was removed under the app. To look again where `cwd` leads: pyworker reload {app.name}"
        return f"cannot enter the folder {app.cwd}: {error.strerror}", hint
    return f"cannot set the limit of open files to {app.limits.nofile}: {error}", "Lower `limits.nofile`."


def _user(spec: LaunchSpec) -> str:
    return f"user {spec.app.user or spec.uid}" if spec.uid is not None else "this user"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
