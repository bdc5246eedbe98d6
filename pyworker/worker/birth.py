"""Worker: what one is born with. Made by the template in the child it has just forked; the worker owns all of it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal wraps each call into enums, which can be seen in each fork
import contextlib
import faulthandler
import io
import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Literal

from pyworker import worker
from pyworker.config.schema import AppConfig
from pyworker.protocol.names import ENV_APP, ENV_GENERATION, ENV_WORKER, ENV_WORKERS
from pyworker.protocol.worker import DUMP_SIGNAL
from pyworker.record import record
from pyworker.unix.process import set_name
from pyworker.unix.title import set_title
from pyworker.worker.channel import Channel

if TYPE_CHECKING:
    import asyncio
    import ssl

    from pyworker.worker.engines.server import Server

_DEFAULT = int(signal.SIG_DFL)
_INTERRUPT = int(signal.SIGINT)
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # as in any Python: a write that cannot be done is an error, not the end
_UNTOUCHABLE = (int(signal.SIGKILL), int(signal.SIGSTOP))


@record
class Birth:
    """One worker: who it is, its channel, its listeners (fds), and what serves the app when the template has imported it."""

    app: AppConfig
    generation: int
    slot: int
    held: bool
    workers: int
    channel: Channel
    listener_fds: tuple[int, ...]
    board_fd: int
    row: int
    loop: Literal["asyncio", "uvloop"]
    takes_turns: bool  # such a loop was found to take turns in accepting
    server: Server | None  # None: this worker imports the app itself
    ssl_context: ssl.SSLContext | None
    ipc_fd: int = -1  # the message channel, for pyworker.process
    inbox_fd: int = -1  # where connections come from when a dispatcher hands them out
    stacks_fd: int = -1
    runner: asyncio.Runner | None = None  # a loop that was made before it was needed


def worker_env(app: str, generation: int, slot: int, workers: int) -> dict[str, str]:
    """Return the variables that tell a worker who it is."""
    return {ENV_APP: app, ENV_WORKER: str(slot), ENV_GENERATION: str(generation), ENV_WORKERS: str(workers)}


def name_slot(env: MutableMapping[str, str], app: str, slot: int) -> None:
    """Say which worker it is in OpenTelemetry's attributes, when the app asked for them ([app.metrics])."""
    attributes = env.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if "pyworker.app=" in attributes and "service.instance.id=" not in attributes:
        env["OTEL_RESOURCE_ATTRIBUTES"] = f"{attributes},service.instance.id={app}.{slot},pyworker.worker={slot}"


def take_identity(app: str, generation: int, slot: int, workers: int, title: str = "") -> None:
    """Make this process that worker: environment, `pyworker.worker`, the name in ps, output line by line."""
    for name, value in worker_env(app, generation, slot, workers).items():
        os.environ[name] = value
    name_slot(os.environ, app, slot)
    worker.app, worker.id, worker.generation = app, slot, generation
    set_name(f"{app}.{slot}")
    set_title(f"pyworker worker {app}.{slot}{title}")


def write_by_line() -> None:
    """Have output leave line by line: a pipe would be written in blocks of 8 KiB, and lines reach the log minutes late, or never."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the app may have put something of its own there
            with contextlib.suppress(ValueError):  # or have closed it
                stream.reconfigure(line_buffering=True, errors="backslashreplace")


def reset_signals() -> None:
    """Give every signal its default action of a fresh Python, whatever an import has set; SIGINT stays ignored."""
    signal.set_wakeup_fd(-1)
    default_signals()
    for number in (*_IGNORED, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def set_handlers(found: Mapping[int, Any]) -> None:
    """Do at these signals what was done when `handlers` found that."""
    for number, handler in found.items():
        _signal.signal(number, handler)


def heed_interrupts() -> None:
    """Give SIGINT its default action, too."""
    _signal.signal(_INTERRUPT, signal.default_int_handler)


def keep_from_children(numbers: Iterable[int]) -> None:
    """Have what the app forks (multiprocessing, os.fork) obey these signals as any process does.

    With the handlers of a loop it would be deaf to them, and as it shares the socket by which they wake the loop, they
    would be taken for the worker's own: it would leave whenever an app ends a process of its pool.
    """
    handlers = {number: _signal.getsignal(number) for number in numbers}
    masks = threading.local()  # of the thread that forks

    def before() -> None:
        masks.before = _signal.pthread_sigmask(signal.SIG_BLOCK, handlers)

    def in_parent() -> None:
        _signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def in_child() -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            if _signal.getsignal(number) is handler:
                _signal.signal(number, signal.default_int_handler if number == _INTERRUPT else _DEFAULT)
        in_parent()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def handlers() -> dict[int, Any]:
    """Return what Python does at each signal; None and SIG_DFL may be what code in C does (`faulthandler`)."""
    return {number: _signal.getsignal(number) for number in range(1, signal.NSIG) if number not in _UNTOUCHABLE}


def default_signals() -> None:
    """Give every signal its default action, as a shell starts programs: what is ignored or blocked would stay so over an exec.

    What is handled in C is left alone: `faulthandler` would not see that its handlers are gone, and never set them again.
    """
    for number, handler in handlers().items():
        if handler is not None and handler != _DEFAULT:
            _signal.signal(number, _DEFAULT)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def answer_stacks(stacks_fd: int) -> None:
    """Have every crash of an extension, and SIGABRT, print the stacks of all threads, and DUMP_SIGNAL write them into the
    memfd: in C, so that a blocked loop answers, too. A fork keeps all of it.
    """
    faulthandler.enable(2)  # stderr, whatever the app has put in its place
    if stacks_fd >= 0:
        faulthandler.register(DUMP_SIGNAL, file=stacks_fd, all_threads=True)


def take_back(stacks_fd: int) -> None:
    """Have what is ours as it was before this worker has imported the app; one that is forked from an import has it so, too."""
    write_by_line()
    answer_stacks(stacks_fd)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
