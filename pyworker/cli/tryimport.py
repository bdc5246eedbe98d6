"""CLI, `check --import`: import an app's target as its template would, in a process of its own that is thrown away.

The same code that the template runs (worker/target.py) runs in the app's interpreter, folder and environment; what it
says is what `start` would say. Nothing of the app runs in this process, and no server is started. Its `pyworker.state`
is empty, and thrown away too; a server that its config names is that server. With `user` it is another's code: it gets no
terminal of ours, and no right.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

from pyworker.cli.render import clean, look, write
from pyworker.config.activated import before_activation, or_activated
from pyworker.config.load import locate
from pyworker.config.problem import Problem
from pyworker.config.resolve import resolve
from pyworker.config.schema import AppConfig, ResolvedApp
from pyworker.policy.variables import of_variable
from pyworker.protocol.events import exit_words
from pyworker.protocol.names import ENV_STATE
from pyworker.unix.user import drop_rights

_LONGEST = 1024 * 1024  # bytes of an answer
_LAST_WORDS = 1.0  # seconds for what has been printed: something that the import has started may hold the pipe for ever

_CHILD = """
import faulthandler, json, os, sys
faulthandler.enable()
ours, answer, target, factory, interface, server = sys.argv[1:7]
sys.path.insert(0, ours)
from pyworker.config.schema import AppConfig
from pyworker.unix.venv import install_command
from pyworker.worker.target import TargetError, load
sys.path[0] = os.getcwd()
sys.argv[:] = [target]
found = {}
try:
    app = AppConfig(name="app", target=target, factory=factory == "1", interface=interface)
    found["interface"] = load(app).interface
    if server:
        import redis
except TargetError as error:
    found.update(message=error.message, traceback=error.traceback, hint=error.hint)
except ImportError:
    found["without"] = install_command(sys.executable, "redis")
with os.fdopen(int(answer), "w") as file:
    json.dump(found, file)
os._exit(0)  # threads of the app's must not hold us
"""


def resolved_here(app: AppConfig, file: str, profile: str) -> ResolvedApp:
    """Resolve an app as it would be on this machine, for this user; raises ConfigError. `file`: "" without one."""
    return resolve(
        app, file=file, shell_env=os.environ, base_env=before_activation(), our_python=sys.executable,
        is_root=os.geteuid() == 0, profile=profile,
    )  # fmt: skip


def try_import(app: AppConfig, file: str, profile: str) -> list[Problem]:
    """Return what is wrong, or nothing; raises ConfigError when its environment cannot be resolved."""
    resolved = resolved_here(app, file, profile)
    with _empty_state(resolved.uid) as state:
        return _try(app, file, profile, resolved, resolved.state or state)


@contextlib.contextmanager
def _empty_state(uid: int | None) -> Iterator[str]:
    """What ENV_STATE says of a store that is thrown away; "" where no folder can be made: most apps ask for none at import."""
    with contextlib.ExitStack() as made:
        try:
            folder = tempfile.mkdtemp()
            # by no TemporaryDirectory: what it cannot remove it first makes writable, through any link of the app's
            made.callback(shutil.rmtree, folder, ignore_errors=True)
            if uid is not None:
                os.chown(folder, uid, -1)
        except OSError:
            yield ""
        else:
            yield f"sqlite:{folder}"


def _try(app: AppConfig, file: str, profile: str, resolved: ResolvedApp, state: str) -> list[Problem]:
    env = {**resolved.env, "PYWORKER_APP": app.name, "PYTHONDONTWRITEBYTECODE": "1"}
    if state:
        env[ENV_STATE] = state
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # no pipe: what the import has started may hold its end
    answer = os.memfd_create("pyworker-answer", os.MFD_CLOEXEC)
    flags = ("1" if app.factory else "0", app.interface, "1" if resolved.state else "")
    words = [ours, str(answer), app.target or "", *flags]

    def become() -> None:
        os.umask(resolved.config.file_umask)
        drop_rights(resolved.uid, resolved.gid, resolved.groups)

    with open(answer, "rb"):
        try:
            child = subprocess.Popen(
                [resolved.python, "-c", _CHILD, *words],
                cwd=resolved.config.cwd, env=env, pass_fds=[answer], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=become,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            why = f"its rights cannot be those of {app.user or app.group}"
            if isinstance(error, OSError):
                why = str(error.strerror)
            return [_problem(app, file, profile, f"cannot run {resolved.python}: {why}", "")]
        assert child.stdout is not None
        shown = threading.Thread(target=_show, args=(child.stdout,), daemon=True)
        shown.start()
        timeout = app.reload.ready_timeout
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return [
                _problem(app, file, profile, f"the import took more than {timeout:g} s", "does it wait for something?")
            ]
        finally:
            try:  # whatever the import has started goes with it
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
            shown.join(_LAST_WORDS)
        text = os.pread(answer, _LONGEST, 0)
    found = _answer(text)
    if found is None:
        how = f"exit code {code}" if code >= 0 else exit_words(None, -code)
        return [_problem(app, file, profile, f"importing {app.target} ended the process ({how})", "")]
    if "without" in found:
        message = f'{app.name}: state = "redis://…" needs the Redis client, which is not in the app\'s environment'
        problem = Problem(message, f"install it: {found['without']}", "state", file, code="state")
        return [locate(file, app.name, ("state",), problem, profile)]
    if "message" not in found:
        return []
    said, hint = found.get("traceback", "").rstrip(), found.get("hint", "")
    traceback = f"\n{said}" if said else ""
    hint = or_activated(hint, resolved.config.cwd) or of_variable(found["message"], said, app.inherit_env)
    return [_problem(app, file, profile, f"{app.name}: {found['message']}{traceback}", hint)]


def _answer(text: bytes) -> dict[str, str] | None:
    """Return what the import has come to; None when nothing was said: the app can have written there, too."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if is_one else None


def _show(output: IO[bytes]) -> None:
    """Print what the import prints, on stderr: it may not steer the terminal, nor read what is typed there."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    with output:
        while data := os.read(output.fileno(), 64 * 1024):
            with contextlib.suppress(OSError):
                write(sys.stderr, clean(decoder.decode(data)), look(sys.stderr))


def _problem(app: AppConfig, file: str, profile: str, message: str, hint: str) -> Problem:
    problem = Problem(message, hint, "target", file, code="import")
    return locate(file, app.name, ("target",), problem, profile)
