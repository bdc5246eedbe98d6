"""The real daemon, put together as its `main` does it, without what needs a process of its own."""

from __future__ import annotations

import functools
import os
import socket
import time
from typing import TYPE_CHECKING

from pyworker import failpoint
from pyworker.daemon import desired
from pyworker.daemon.adopt import adopt
from pyworker.daemon.brain import Brain
from pyworker.daemon.bringback import bring_back
from pyworker.daemon.control import ControlServer
from pyworker.daemon.depends import Depends
from pyworker.daemon.events import EventLog
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handlers import handle
from pyworker.daemon.hooks import Hooks
from pyworker.daemon.launcher import Launcher
from pyworker.daemon.pulse import Pulse
from pyworker.daemon.requests.auto import start_again_after_boot
from pyworker.daemon.requests.delete import app_closed
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.sample import Sampler
from pyworker.daemon.schedule import Schedule
from pyworker.daemon.spawn import Spawner
from pyworker.protocol.inherited import CONTROL, app_of
from pyworker.protocol.names import APPS_FILE
from pyworker.protocol.store import TICK, Hello
from pyworker.unix.files import is_missing
from tests.simulation.kernel import SimulatedLoop

if TYPE_CHECKING:
    from tests.simulation.world import World


class Killed(BaseException):
    """The daemon is no more: nothing of it may handle this."""


class Daemon:
    def __init__(self, world: World, channel: socket.socket) -> None:
        world.daemon = self
        self.loop = loop = SimulatedLoop(world)
        self.store = store = FdStore(channel)
        store.restore()
        failpoint.hit("daemon.restored")
        home_fd = os.open(world.home, os.O_RDONLY | os.O_CLOEXEC)
        events = EventLog(home_fd, last=0, clock=time.time, report=world.report)
        events.subscribe(world.invariants.on_event)
        self.brain = brain = Brain(loop, store, Spawner(store, world.home, Launcher(loop)), events, world.home)
        self.desk = desk = Desk(brain, Sampler(), world.home, loop.clock())
        brain.on_closed = lambda app: app_closed(desk, app)
        wanted, note = desired.load(home_fd, something_runs=any(app_of(name) is not None for name in store.fds))
        if note:
            world.fail(note)

        def save() -> None:
            desired.save(home_fd, {app.name: app.desired() for app in brain.apps.values()})

        brain.save = save
        lost = is_missing(home_fd, APPS_FILE)
        found = adopt(brain, wanted, complete=not note and not lost)
        failpoint.hit("daemon.adopted")
        depends, hooks = Depends(brain), Hooks(brain)
        desk.preparing = lambda: hooks.preparing
        brain.gate = lambda app: depends.gate(app) or hooks.gate(app)
        brain.stops_after = depends.stops_after
        start_again_after_boot(desk)
        Schedule(desk)
        bring_back(desk, wanted, found)
        store.attach(loop)
        failpoint.hit("daemon.serving")
        control = store.get(CONTROL)
        assert control is not None
        listener = socket.socket(fileno=os.dup(control))
        ControlServer(loop, listener, os.geteuid(), functools.partial(handle, desk), report=world.report)
        Pulse(loop, brain, store, TICK)
        store.send(Hello("1"))
        # how many it needs when it has no app
        self.fds_at_boot = None if brain.apps else len(world.daemons_fds())

    def leaves(self) -> bool:
        """Make room for another, as in an upgrade; False: not all of it could be said to the guardian."""
        for app in self.brain.apps.values():
            app.write_memo()
        self.desk.before_leaving()
        self.store.flush_blocking(0)
        return not self.store._outbox
