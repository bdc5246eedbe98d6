"""Template: imports the app once, then forks a worker whenever the daemon asks. Runs in the app's interpreter.

It serves nothing, has one thread, and sleeps in one place. The daemon's side is daemon/; the messages are
protocol/template.py. The child of a fork leaves through worker/main.py and never comes back here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import gc
import os
import resource
import select
import signal
import socket
import ssl
import sys
import time
import traceback
import types
import zlib
from collections.abc import Mapping
from os import execve  # debugpy puts one of its own in its place, which would debug the template
from typing import Any, Literal, NamedTuple, NoReturn

from pyworker import __version__, failpoint
from pyworker.errors import Exit
from pyworker.protocol import template as t
from pyworker.protocol import wire
from pyworker.protocol.names import CLOSED_BY_APP
from pyworker.protocol.worker import DUMP_SIGNAL, STACKS_SIGNAL, TASKS_SIGNAL, Drain, Drained, Hello, Kick, Ready
from pyworker.record import compile_init
from pyworker.template import bytecode, forksafe, lazy
from pyworker.template.immortal import forget_lookups, immortalise
from pyworker.template.spare import Spares, name_spare, park
from pyworker.template.spec import open_channel, pass_on, read_spec, spec_fds
from pyworker.unix import tls
from pyworker.unix.fds import Socket, close_all, recv_packet, send_surely
from pyworker.unix.fork import bare_fork
from pyworker.unix.process import PR_SET_CHILD_SUBREAPER, prctl, set_name
from pyworker.unix.title import set_title
from pyworker.worker import ending, headline, multiproc
from pyworker.worker import main as worker_main
from pyworker.worker.birth import (
    Birth,
    answer_stacks,
    handlers,
    heed_interrupts,
    reset_signals,
    set_handlers,
    take_identity,
    write_by_line,
)
from pyworker.worker.channel import Channel, clip
from pyworker.worker.engines import finder, prepare
from pyworker.worker.say import flush, say
from pyworker.worker.target import TargetError, load

_AGAIN = "--loaded="  # the argument of a template that was replaced by a clean one

_is_told = False  # whether Python is told of the first of the two forks that make a worker, too

# what a worker does at these is not for the import of its app to say
_OURS = {signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ, DUMP_SIGNAL, STACKS_SIGNAL, TASKS_SIGNAL}

_FREE = {"asyncio": 10, "uvloop": 15}  # descriptors that a worker needs until it can take its first connection


class _Ready(NamedTuple):
    """What the template holds for its workers."""

    loaded: t.Loaded
    server: Any  # of the app; None: each worker imports that itself
    ssl_context: ssl.SSLContext | None
    takes_turns: bool = False  # the loop of the workers was tried
    handlers: Mapping[int, Any] = {}  # of signals, as the import has set them


def main(spec_fd: int, argv: list[str], archive: str, boot: types.ModuleType) -> None:
    """Run the template; in a forked child, the worker. `boot` is kept alive: we still run inside of it."""
    # the clock is not what an import may have put there (freezegun)
    started, born_at = time.clock_gettime(time.CLOCK_MONOTONIC), time.time_ns()
    spec = read_spec(spec_fd)
    fds = spec_fds(spec, spec_fd)
    pass_on(fds, inheritable=False)
    set_name(f"{spec.app.name}.template")  # a blank in it, and Python 3.12 takes our niceness for a number of threads
    set_title(f"pyworker template {spec.app.name} (generation {spec.generation})")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the daemon's affair
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.modules["__main__"] = types.ModuleType("__main__")  # multiprocessing must not look for the zip's
    sys.argv = [spec.app.target or ""]
    channel = open_channel(spec)
    cpus, niceness = os.sched_getaffinity(0), os.nice(0)
    ready = prepare_app(spec, channel, argv, started, born_at)
    if not ready.loaded.preload and ready.server is not None:
        # an exec keeps them, and each worker's import would begin where this one has ended
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
        replace_self(spec, fds, archive, spec_fd, ready.loaded)
    if not ready.loaded.preload and len(os.listdir("/proc/self/task")) > 1:
        # of a sitecustomize (ddtrace's, say): who starts threads so early means to be forked, and to be told
        global _is_told
        _is_told = True
    ready = ready._replace(takes_turns=ready_for_forks(spec, ready.loaded.loop))
    gc.collect()
    ending.remember_files()
    immortalise()  # so that no worker copies a page because it used what is there
    forget_lookups()
    gc.freeze()  # nor because its collector looked at it
    failpoint.hit("template.loaded")
    send(channel, ready.loaded)
    birth = serve(spec, channel, ready)
    channel.close()
    del channel, boot
    if birth is None:
        flush()
        os._exit(Exit.OK)  # what the app registered for its end is for processes that served
    ending.end(worker_main.run(birth))


def prepare_app(spec: t.LaunchSpec, channel: socket.socket, argv: list[str], started: float, born_at: int) -> _Ready:
    """Import engine and app, say what failed and exit, or return what workers will need."""
    again = next((a.removeprefix(_AGAIN) for a in argv if a.startswith(_AGAIN)), "")
    try:
        finder.install(spec.engine)
        engine = prepare.prepare(spec.app, spec.engine)
    except prepare.EngineMissing as error:
        fail(channel, t.LoadFailed("engine", error.message, "", error.hint))
    try:
        ssl_context = tls_context(spec)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        fail(
            channel,
            t.LoadFailed("config", f"cannot use the TLS certificate: {error}", "", "Check `tls.cert` and `tls.key`."),
        )
    if spec.app.metrics.prometheus:
        multiproc.prepare()
        multiproc.take(0)
    before = forksafe.open_fds()
    untouched = handlers()
    here = os.getcwd()
    sys.path.insert(0, here)  # as uvicorn does; after our own imports, which no file there can shadow
    bytecode.install()
    if again:
        end_what_the_import_has_started()
        return _Ready(wire.decode(t.Loaded, again.encode()), None, ssl_context)
    faulthandler.enable(2)  # an import that crashes says where
    faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)  # one that hangs, too
    untold = Channel(channel)
    try:
        target = load(spec.app)
    except TargetError as error:
        fail(channel, t.LoadFailed(error.kind, error.message, clip(error.traceback), clip(error.hint)))
    except BaseException as error:  # noqa: BLE001  sys.exit(), KeyboardInterrupt and the like at import: all mean "no app"
        fail(channel, t.LoadFailed("import", headline.of(error), clip(traceback.format_exc())))
    if not untold.is_open:
        say(CLOSED_BY_APP)
        flush()
        os._exit(Exit.FAILED)
    gc.unfreeze()  # an app may freeze its objects at the end of its import, and they would not be seen below
    if spec.app.preload is not False:
        lazy.import_now(here)
    own = {n: h for n, h in handlers().items() if h is not None and h is not untouched[n] and n not in _OURS}
    needed = _FREE[engine.loop]
    if not forksafe.leaves_free(needed):  # here in plain words: the loop of a worker would abort
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        why = f"too many open files: after the import of the app fewer than {needed} of {limit} are left for its worker"
        fail(channel, t.LoadFailed("import", why, "", "does it open them all at import? else raise `limits.nofile`"))
    if target.interface == "asgi" and prepare.has_websockets() and prepare.may_use_websockets():
        share_websockets(here)
    why = "preload = false" if spec.app.preload is False else clip(forksafe.why_not(before))
    took, looked_at = time.clock_gettime(time.CLOCK_MONOTONIC) - started, time.clock_gettime_ns(time.CLOCK_REALTIME)
    version = sys.version.split(" ", 1)[0]
    code, newest, newest_at = imported_code(born_at)
    valid = tls.validity(_path(spec.cert_fd), _path(spec.key_fd)) if ssl_context is not None else None
    loaded = t.Loaded(
        os.getpid(), version, target.interface, engine.description, engine.loop, not why, why, round(took, 4),
        __version__, code, clip(newest), newest_at, looked_at, *(valid or ()),
    )  # fmt: skip
    server = worker_main.new_server(spec.app, target.application, target.interface, ssl_context)
    return _Ready(loaded, server, ssl_context, handlers=own)


def ready_for_forks(spec: t.LaunchSpec, loop: Literal["asyncio", "uvloop"]) -> bool:
    """Do here, once, what each worker would do first, as a fork keeps it; return whether their loop can take turns."""
    faulthandler.unregister(STACKS_SIGNAL)  # it would not see that its handler is set back
    reset_signals()
    prctl(PR_SET_CHILD_SUBREAPER, 0)  # or a worker that is orphaned would be this process's, not the guardian's
    write_by_line()
    answer_stacks(spec.stacks_fd)
    faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)
    for first_words in (Hello(""), Ready(serving=True)):
        wire.encode(first_words)  # it looks at a class once
    for heard in (Kick, Drain):
        wire.prepare(heard)
    for made in (Birth, Drained):
        compile_init(made)
    return worker_main.can_take_turns(spec.app, loop)


def share_websockets(here: str) -> None:
    """Import what serves websockets, for all workers. No file of the app's folder (`here`) can shadow it."""
    path = sys.path[:]
    sys.path[:] = [folder for folder in path if folder != here]
    try:
        prepare.websockets()
    except Exception as error:  # noqa: BLE001  packages of the app's environment: their import may raise anything
        say(f"websockets cannot be served: {error}")
    finally:
        sys.path[:] = path


def imported_code(before: int) -> tuple[str, str, int]:
    """Return a text that changes when a file of the imported modules does, and of those that were changed before a moment (in ns
    since the epoch) which was the last, and when."""
    newest, path = 0, ""
    content = []
    for module in list(sys.modules.values()):
        file = lazy.names_in(module).get("__file__")
        if not isinstance(file, str):
            continue
        try:
            found = os.stat(file)
        except OSError:
            continue  # in a zip, or gone
        content.append(f"{file} {found.st_mtime_ns} {found.st_size}")
        # not by its mtime, which may have been copied with it
        if newest < found.st_ctime_ns < before:
            newest, path = found.st_ctime_ns, file
    return f"{zlib.crc32(chr(10).join(sorted(content)).encode('utf-8', 'surrogateescape')):08x}", path, newest


def replace_self(spec: t.LaunchSpec, fds: list[int], archive: str, spec_fd: int, loaded: t.Loaded) -> NoReturn:
    """Become a template that has not imported the app: same process, same channel, no threads, and none of what it started."""
    for fd in forksafe.open_fds() - {0, 1, 2}:
        with contextlib.suppress(OSError):  # the one of the listing
            os.set_inheritable(fd, False)  # what C code has opened may be, and would keep its lock
    pass_on(fds, inheritable=True)
    role, numbers = "template", [str(spec_fd), str(spec.channel_fd)]
    text = wire.encode(loaded).decode()
    with contextlib.suppress(OSError):  # it was removed
        os.chdir(spec.app.cwd)  # the import may have gone elsewhere, and the app is looked for where it starts
    flush()
    for timer in forksafe.TIMERS:
        signal.setitimer(timer, 0)  # an exec keeps it, without what it calls: its signal would end this process
    # an exec keeps what is blocked, too, and SIGTERM is sent there
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    execve(spec.python, [spec.python, archive, role, *numbers, _AGAIN + text], spec.env)


def end_what_the_import_has_started() -> None:
    """Each worker starts its own. Only now: a thread of the import (a Pool's) would have started it again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def tls_context(spec: t.LaunchSpec) -> ssl.SSLContext | None:
    """Make the context from the PEM files that the daemon has read, and forget those."""
    if spec.app.tls is None:
        return None
    if spec.cert_fd < 0:  # never HTTP in clear instead
        raise ValueError("an older daemon has not handed it on, and a reload reads it again")
    return tls.context(_path(spec.cert_fd), _path(spec.key_fd), _path(spec.ca_fd) if spec.ca_fd >= 0 else None)


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def serve(spec: t.LaunchSpec, channel: socket.socket, ready: _Ready) -> Birth | None:
    """Fork workers until told to retire or left alone; return a Birth in each child, None in the template."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    spares = Spares(fork_worker, wanted=ready.loaded.preload)
    youngest = 0  # the pid of the last worker
    while True:
        found = poll.poll(spares.wait_ms())
        if not found:
            parked = spares.make()
            if parked is not None:
                return wait_for_need(spec, channel, ready, parked, youngest)
            if spares.fileno() >= 0:
                poll.register(spares.fileno(), 0)  # only its end
                send(channel, t.Parked(spares.pid))
            continue
        if any(fd == spares.fileno() for fd, _ in found):
            poll.unregister(spares.fileno())
            spares.ended()
            continue
        try:
            packet = recv_packet(channel, wire.MAX_MESSAGE, 5)
        except OSError:
            spares.close()
            return None
        if packet is None:
            continue
        if not packet.data and not packet.fds:
            spares.close()
            return None
        try:
            message = wire.decode(t.ToTemplate, packet.data)
        except wire.WireError as error:
            say(f"ignored a message of the daemon: {error}")
            close_all(packet.fds)
            continue
        match message:
            case t.Retire():
                close_all(packet.fds)
                spares.close()
                return None
            case t.Ping(number):
                spares.end_stopped()
                send(channel, t.Pong(number))
            case t.Fork():
                failpoint.hit("template.fork")
                if len(packet.fds) != 3 + message.ipc + message.inbox or packet.truncated:
                    close_all(packet.fds)
                    send(channel, t.ForkFailed(message.serial, errno.EMFILE))  # the kernel could not hand them all over
                    continue
                if spares.fileno() >= 0:
                    poll.unregister(spares.fileno())
                pid = spares.hand(packet) or fork_worker()
                if pid == 0:
                    return become_worker(spec, channel, ready, message, packet.fds)
                youngest = max(pid, 0)
                close_all(packet.fds)
                failpoint.hit("template.forked")
                send(channel, t.Forked(message.serial, pid) if pid > 0 else t.ForkFailed(message.serial, -pid))


def wait_for_need(
    spec: t.LaunchSpec, channel: socket.socket, ready: _Ready, parked: socket.socket, youngest: int
) -> Birth | None:
    """Be the spare; return a Birth when it is needed, else end."""
    name_spare(spec.app.name, spec.generation)
    channel.close()  # its end is the template's end, which the daemon waits for
    os.setsid()
    heed_interrupts()
    runner = worker_main.ready_runner(spec.app, ready.loaded.loop)
    packet = park(parked, youngest)
    if packet is None:
        os._exit(Exit.OK)  # what the app registered for its end is for processes that served
    failpoint.hit("spare.order")
    fork = wire.decode(t.Fork, packet.data)
    if len(packet.fds) != 3 + fork.ipc + fork.inbox or packet.truncated:
        os._exit(Exit.FAILED)  # out of descriptors: it counts as a worker that died at birth
    return become_worker(spec, channel, ready, fork, packet.fds, runner)


def fork_worker() -> int:
    """Fork twice, so that the worker is nobody's child here: the guardian gets it. Return 0 in the worker, its pid in
    the template, -errno when a fork failed.
    """
    flush()  # what is buffered would be written twice
    try:
        reader, writer = os.pipe()
    except OSError as error:
        return -(error.errno or 1)
    middle = python_fork() if _is_told else bare_fork()
    if middle < 0:
        close_all([reader, writer])
        return middle
    if middle == 0:
        pid = python_fork()
        if pid == 0:
            close_all([reader, writer])
            return 0
        with contextlib.suppress(OSError):  # the template has been killed
            os.write(writer, str(pid).encode())
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 32)
    os.close(reader)
    os.waitpid(middle, 0)
    return int(answer) if answer else -errno.EAGAIN  # the one in the middle was killed


def python_fork() -> int:
    """Fork as `bare_fork` does, with Python's own handlers."""
    try:
        return os.fork()
    except OSError as error:
        return -(error.errno or 1)


def become_worker(
    spec: t.LaunchSpec,
    channel: socket.socket,
    ready: _Ready,
    fork: t.Fork,
    fds: list[int],
    runner: asyncio.Runner | None = None,
) -> Birth:
    """Turn the forked child into a worker: its own session, output, signals, name; nothing of the template's is kept."""
    if os.getsid(0) != os.getpid():  # a spare has done both before
        os.setsid()
        heed_interrupts()
    set_handlers(ready.handlers)
    ctl_fd, out_fd, err_fd = fds[:3]
    ipc_fd = fds[3] if fork.ipc else -1
    inbox_fd = fds[-1] if fork.inbox else -1
    os.dup2(out_fd, 1)
    os.dup2(err_fd, 2)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    channel.close()
    close_all([null, out_fd, err_fd, spec.cert_fd, spec.key_fd, spec.ca_fd])
    take_identity(spec.app.name, spec.generation, fork.slot, fork.workers)
    if spec.app.metrics.prometheus:
        multiproc.take(fork.slot)
    return Birth(
        app=spec.app,
        generation=spec.generation,
        slot=fork.slot,
        held=fork.held,
        workers=fork.workers,
        channel=Channel(Socket(fileno=ctl_fd)),
        listener_fds=spec.listener_fds,
        board_fd=spec.board_fd,
        row=fork.row,
        inbox_fd=inbox_fd,
        ipc_fd=ipc_fd,
        loop=ready.loaded.loop,
        takes_turns=ready.takes_turns,
        server=ready.server,
        ssl_context=ready.ssl_context,
        stacks_fd=spec.stacks_fd,
        runner=runner,
    )


def send(channel: socket.socket, message: t.FromTemplate) -> None:
    """Send, waiting for a daemon that does not read just now. One that is gone is noticed by the next receive."""
    send_surely(channel, wire.encode(message))


def fail(channel: socket.socket, failure: t.LoadFailed) -> NoReturn:
    """Report and exit: 78 unless a later try may go better (an import that needs a database, say)."""
    if not send_surely(channel, wire.encode(failure)):  # what reads our stderr may be there
        say(failure.traceback or failure.message)
    flush()
    os._exit(Exit.FAILED if failure.kind in ("import", "other") else Exit.BAD_CONFIG)
