"""Daemon: boot order, the watch over the guardian, shutdown order.

Boot: fds from the guardian -> what is wanted from apps.json -> adopt what lives -> start what is missing -> serve.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from collections.abc import Callable

from pyworker import __version__, exchanged, failpoint
from pyworker.daemon import desired, disks, limits, notify, preflight, signals
from pyworker.daemon import run as foreground
from pyworker.daemon.adopt import adopt
from pyworker.daemon.brain import Brain
from pyworker.daemon.bringback import bring_back
from pyworker.daemon.control import ControlServer
from pyworker.daemon.depends import Depends
from pyworker.daemon.events import EventLog
from pyworker.daemon.fdstore import FdStore, become_guardian, start_guardian
from pyworker.daemon.handlers import handle
from pyworker.daemon.home import keep_socket, leave_with_the_home, open_again
from pyworker.daemon.hooks import Hooks
from pyworker.daemon.launcher import Launcher
from pyworker.daemon.loop import Loop, report_to_stderr
from pyworker.daemon.pulse import Pulse
from pyworker.daemon.requests.auto import start_again_after_boot
from pyworker.daemon.requests.delete import app_closed
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.requests.shutdown import shut_down
from pyworker.daemon.sample import Sampler
from pyworker.daemon.schedule import Schedule
from pyworker.daemon.spawn import Spawner
from pyworker.daemon.systemd import ServiceManager
from pyworker.daemon.watch import Watch
from pyworker.protocol.inherited import CONTROL, EVENT, app_of
from pyworker.protocol.names import APPS_FILE, ENV_TICK, HOME_UNUSABLE, LOGS_DIR, NOTIFY_SOCKET
from pyworker.protocol.store import CHANNEL_FD, TICK, Hello, LogStats, Stopping
from pyworker.unix import fds as unix_fds
from pyworker.unix import process, stderr
from pyworker.unix.files import UnsafeDirectory, is_missing
from pyworker.unix.title import set_title

BECOME_AGAIN = 0.5
HOOKS_TIME = 2.0  # seconds that hooks have at a stop to report the end


def main(argv: list[str]) -> int:
    """Run the daemon until it is told to stop; the return value is its exit code."""
    if argv == ["--check"]:
        return preflight.check()
    if len(argv) != 2 or argv[0] != "--home":
        stderr.write("the daemon is started by its guardian; use: pyworker start app.toml\n")
        return 2
    if exchanged.is_exchanged():
        stderr.write(f"daemon: {exchanged.MESSAGE}\n")
        return 1
    home = argv[1]
    disks.spared.add(os.path.join(home, LOGS_DIR))
    _become_quiet()
    loop = Loop()
    started_at = loop.clock()
    store = FdStore(socket.socket(fileno=CHANNEL_FD))
    os.set_inheritable(CHANNEL_FD, False)
    try:
        store.restore()
    except EOFError as error:
        stderr.write(f"daemon: {error}\n")
        return 1
    failpoint.hit("daemon.restored")
    spec = foreground.spec_of(store)
    home_fd = _open_home(home, store, foreground=spec is not None) if home else -1
    if home_fd is None:
        return 1
    events = EventLog(home_fd, last=_lost_event(store))
    events.on_lost = lambda seq: store.put(EVENT, unix_fds.memfd("pyworker-event", b"%d" % seq))
    spawner = Spawner(store, home, Launcher(loop))
    brain = Brain(loop, store, spawner, events, home)
    sampler = Sampler()
    desk = Desk(brain, sampler, home, started_at)
    brain.on_closed = lambda app: app_closed(desk, app)
    running = foreground.Run(desk, spec) if spec is not None else None
    if running is not None:
        signals.catch(loop, foreground.SIGNALS, running.on_signal)
        wanted, note = foreground.wanted(store), ""
    else:
        something_runs = any(app_of(name) is not None for name in store.fds)
        try:
            wanted, note = desired.load(home_fd, something_runs=something_runs)
        except OSError as error:
            stderr.write(f"{HOME_UNUSABLE}: {os.path.join(home, APPS_FILE)}: {error.strerror}\n")
            return 1
    if note:
        stderr.say("daemon", note)

    if running is None:
        brain.save = lambda: desired.save(home_fd, desk.wanted())
    events.emit("daemon_started", pid=os.getpid(), reason=store.reason)
    lost = running is None and is_missing(home_fd, APPS_FILE)
    found = adopt(brain, wanted, complete=not note and not lost)
    if lost and found.wanted:
        stderr.say("daemon", "apps.json is gone: what runs goes on, and is written down again")
    failpoint.hit("daemon.adopted")
    depends, hooks = Depends(brain), Hooks(brain)
    desk.preparing = lambda: hooks.preparing
    brain.gate = lambda app: depends.gate(app) or hooks.gate(app)  # what waits for others is not prepared yet
    brain.stops_after = depends.stops_after
    start_again_after_boot(desk)
    Schedule(desk)
    Watch(desk)
    bring_back(desk, wanted, found)
    store.attach(loop)
    control_fd = store.get(CONTROL)
    if control_fd is None and running is None:
        stderr.write("daemon: the guardian has no control socket\n")
        return 1
    failpoint.hit("daemon.serving")
    if control_fd is not None:
        server = ControlServer(
            loop, socket.socket(fileno=os.dup(control_fd)), os.geteuid(), functools.partial(handle, desk)
        )
        keep_socket(loop, store, home_fd, server)
        if running is None:
            leave_with_the_home(desk, home_fd)
    notify.Notify(loop, store, home_fd, brain).listen()
    Pulse(loop, brain, store, float(os.environ.get(ENV_TICK) or TICK), foreground=running is not None)
    limits.watch(loop, brain, sampler)
    store.on_log_stats = lambda stats: _note_drops(brain, stats)
    manager = _take_orders(desk, hooks, home_fd)
    _watch_guardian(desk, manager)
    store.send(Hello(__version__))  # from here on the guardian passes signals on
    if running is not None:
        store.on_lost = foreground.leave
        running.begin()
    store.on_leave = lambda: _make_room(desk)
    loop.run()
    store.flush_blocking(2.0)
    if disks.some_are_late():
        store.channel.close()  # our end does not, as long as a thread waits for a disk
    return 0


def _become_quiet() -> None:
    process.set_name("pyworker daemon")
    set_title("pyworker daemon")
    process.prctl(process.PR_SET_DUMPABLE, 0)
    unix_fds.raise_nofile()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir("/")


def _open_home(home: str, store: FdStore, *, foreground: bool) -> int | None:
    """Open the home; None, and why is said, if that cannot be. In the foreground there may be none (-1)."""
    try:
        home_fd = open_again(home, store)
    except OSError as error:
        why = f"{error.reason}; {error.hint}" if isinstance(error, UnsafeDirectory) else f"{home}: {error.strerror}"
        stderr.write(f"{HOME_UNUSABLE}: {why}\n")
        return None
    if home_fd >= 0 or foreground:
        return home_fd
    words = f"{home} was removed, and is another daemon's now: what runs goes on without one"
    stderr.write(f"daemon: {words}; to end it: kill {store.guardian_pid}\n")
    return None


def _take_orders(desk: Desk, hooks: Hooks, home_fd: int) -> ServiceManager | None:
    """From here on it can be told to end; by a signal, too, which in the foreground is Run's to take."""
    brain, loop = desk.brain, desk.brain.loop
    manager = ServiceManager.from_environment(desk) if not desk.in_foreground else None

    def leave() -> None:
        _when_hooks_ended(loop, hooks, HOOKS_TIME, lambda: _leave(brain, home_fd))

    def end() -> None:
        if manager is not None:
            manager.stopping()
        _when_all_closed(brain, leave)

    desk.on_shutdown = end
    if desk.in_foreground:
        return None

    def stop() -> None:
        shut_down(desk, now=False)

    # SIGTERM is `daemon stop`, which a service manager says that way; its SIGHUP is a reload of everything
    orders = {signal.SIGTERM: stop} | ({signal.SIGHUP: manager.on_hangup} if manager is not None else {})
    signals.catch(loop, orders, lambda number: orders[signal.Signals(number)]())
    return manager


def _lost_event(store: FdStore) -> int:
    """Return the number of the last event that the daemons before this one could not write down, 0: all of them are."""
    fd = store.get(EVENT)
    with contextlib.suppress(OSError, ValueError):
        return int(unix_fds.read_whole(fd)) if fd is not None else 0
    return 0


def _watch_guardian(desk: Desk, manager: ServiceManager | None) -> None:
    """Become the guardian when it is gone. (One that hangs is killed by the pulse.)"""
    store = desk.brain.store
    spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    code = preflight.code_on_disk()

    def become() -> None:
        nonlocal spare
        # The store's fds go along, the numbers in a memfd; the new guardian starts a daemon as always.
        if spare >= 0:
            os.close(spare)  # the memfd must not fail for want of a descriptor
            spare = -1
        try:
            if preflight.code_on_disk() != code and (why := preflight.why_no_guardian()):
                raise RuntimeError(f"the code of pyworker has changed on disk, and its guardian does not start: {why}")
            with signals.held():
                if disks.some_are_late():
                    pid = start_guardian(desk.home, dict(store.fds))
                    if manager is not None:
                        manager.tell(f"MAINPID={pid}")
                    os.closerange(0, os.sysconf("SC_OPEN_MAX"))  # our end closes none, as long as a thread waits
                    os._exit(0)
                # not only once the next daemon says it: until then it would stop or reload nobody
                if manager is not None:
                    manager.tell(f"MAINPID={os.getpid()}")
                become_guardian(desk.home, dict(store.fds))
        except Exception:  # noqa: BLE001  nobody but us holds the ports: never give up
            report_to_stderr("cannot become the guardian, trying again")
            desk.brain.loop.call_later(BECOME_AGAIN, become)

    store.on_lost = become


def _make_room(desk: Desk) -> None:
    """An upgrade: leave everything to the daemon that is started next, and stand by until it has it."""
    brain = desk.brain
    failpoint.hit("daemon.leave")
    for app in brain.apps.values():
        app.write_memo()
    desk.before_leaving()
    brain.store.flush_blocking(2.0)
    try:
        if not disks.some_are_late():  # an exec would wait for them
            become_guardian(desk.home, dict(brain.store.fds), standby=True)
    except Exception:  # noqa: BLE001  the upgrade goes on without
        report_to_stderr("cannot stand by")
    brain.loop.stop()


def _note_drops(brain: Brain, stats: LogStats) -> None:
    app = brain.apps.get(stats.app)
    if app is not None:
        app.drops.note(brain.loop.clock(), brain.store.logger_pid, stats.dropped, stats.error[:200])


def _when_all_closed(brain: Brain, then: Callable[[], None]) -> None:
    # a command whose pid is still to be told would run for ever
    if all(a.closed for a in brain.apps.values()) and brain.spawner.launcher.is_idle:
        # the answer to whoever asked goes out first
        brain.loop.call_later(0.05, then)
    else:
        brain.loop.call_later(0.05, lambda: _when_all_closed(brain, then))


def _when_hooks_ended(loop: Loop, hooks: Hooks, left: float, then: Callable[[], None]) -> None:
    if hooks.is_idle or left <= 0:
        hooks.end()
        then()
    else:
        loop.call_later(0.05, lambda: _when_hooks_ended(loop, hooks, left - 0.05, then))


def _leave(brain: Brain, home_fd: int) -> None:
    brain.events.emit("daemon_stopped")
    with contextlib.suppress(OSError):
        if home_fd >= 0:
            os.unlink(NOTIFY_SOCKET, dir_fd=home_fd)
    brain.store.on_lost = lambda: None
    brain.store.send(Stopping())
    brain.store.flush_blocking(2.0)
    brain.loop.stop()
