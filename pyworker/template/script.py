"""Launcher's last step for a script: in the app's interpreter, make this process the worker and run the script in it.

The script is run as __main__, unmodified: sys.argv, sys.path[0] and __file__ are what `python script.py` gives. The only
difference is worker/script.py, which gives it the shared listener when it binds its address.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import sys
import traceback
import types
from importlib.machinery import SourceFileLoader

from pyworker.cluster import given
from pyworker.protocol.worker import Failed
from pyworker.template import bytecode
from pyworker.template.spec import open_channel, pass_on, read_spec, spec_fds
from pyworker.unix.fds import close_all
from pyworker.worker import headline, multiproc, script
from pyworker.worker.birth import answer_stacks, take_identity, write_by_line
from pyworker.worker.channel import Channel, clip
from pyworker.worker.row import Row

_kept: list[object] = []  # the module that still runs beneath us


def main(spec_fd: int, argv: list[str], archive: str, boot: types.ModuleType) -> None:
    """Run the script and leave as it leaves."""
    spec = read_spec(spec_fd)
    fds = spec_fds(spec, spec_fd)
    pass_on(fds, inheritable=False)
    app = spec.app
    path = app.script or ""
    take_identity(app.name, spec.generation, spec.slot, spec.workers, f" ({os.path.basename(path)})")
    write_by_line()
    answer_stacks(spec.stacks_fd)
    runtime = script.Runtime(
        Channel(open_channel(spec)), Row.mapped(spec.board_fd, spec.row), app.stop.signal, app.bind
    )
    keep = (spec.channel_fd, spec.runtime_fd, spec.stacks_fd, spec.ipc_fd)
    close_all([fd for fd in fds if fd not in keep])
    runtime.install()
    if spec.ipc_fd >= 0:
        given.give(spec.ipc_fd)
    _kept.append(boot)
    if app.metrics.prometheus:
        multiproc.prepare()
        multiproc.take(spec.slot)
    sys.argv = [path, *app.args]
    sys.orig_argv = [sys.executable, *sys.argv]  # what reloaders (Flask's debug mode) start again
    sys.path.insert(0, os.path.dirname(path))
    bytecode.install()
    try:
        with io.open_code(path) as source:
            code = compile(source.read(), path, "exec", dont_inherit=True)  # our `from __future__` is not the script's
        module = types.ModuleType("__main__")
        loader = SourceFileLoader("__main__", path)
        module.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None, __loader__=loader)
        sys.modules["__main__"] = module
        exec(code, module.__dict__)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  the script's own: shown as Python shows it, without our frames
        own = error.__traceback__.tb_next if error.__traceback__ is not None else None
        error.__traceback__ = own
        if not runtime.bound:
            text = "".join(traceback.format_exception(error))
            hint = ""
            if own is None and isinstance(error, FileNotFoundError):  # it was there when the config was read
                hint = f"It was removed under the app. To look again where `script` leads: pyworker reload {app.name}"
            elif own is None and _is_zip(path):
                hint = f'It is a zip archive, which Python runs by itself: command = ["python", "{path}"]'
            runtime.fail(Failed("import", headline.of(error), clip(text), hint))
        sys.excepthook(type(error), error, own)
        sys.exit(1)


def _is_zip(path: str) -> bool:
    """Whether a file ends as a zip archive does. Not by `zipfile`: a file of that name beside the script would be imported."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(-22, os.SEEK_END)
        return file.read(4) == b"PK\5\6"
    return False
