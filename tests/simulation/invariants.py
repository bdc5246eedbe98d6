"""What must hold: after each step, at each event, and in the end, when the world has been kind for a while."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pyworker.daemon import report
from pyworker.daemon.app import App
from pyworker.daemon.events import Event
from pyworker.protocol.inherited import parse_fd_name
from pyworker.protocol.wire import to_json
from tests.simulation.processes import Dispatcher, Launcher, Process, Template, Worker, _AnyWorker

if TYPE_CHECKING:
    from tests.simulation.world import World

_OF_WORKERS = ("ctl", "pid", "out", "err", "ipc")
_OF_TEMPLATES = ("template", "tpid", "tout", "terr", "spare")
_OF_SLOTS = ("inbox", "feed")
_OF_DISPATCHERS = ("dispatcher", "dpid")
_PROBE_EVERY = 50.0  # seconds: `retry` is 60


class Invariants:
    def __init__(self, world: World) -> None:
        self._world = world
        self._serves = 0  # workers, in a life of reloads: from the start of the app to its end
        self._probed: dict[str, tuple[float, int]] = {}  # failed app -> when a worker of it was born, commands by then

    # ---- at any time -------------------------------------------------------------------------------------
    def after_step(self) -> None:
        world = self._world
        for app in world.daemon.brain.apps.values():
            if app.running and not app.closed and app.current is not None and app.listening:
                for index in app.current.listeners:
                    if index not in app.listeners:
                        world.fail(f"{app.name}: its port was closed while it runs")
            pids = [worker.pid for worker in app.workers.values() if worker.is_alive and worker.pid]
            if len(set(pids)) != len(pids):
                world.fail(f"{app.name}: two workers are one process: {pids}")
        if world.weather_name == "reloads":
            slots = {p.id.slot for p in world.alive(Worker) if p.stage == "serving"}
            if len(slots) < self._serves:
                world.fail(f"during a reload or restart of a worker, slots {sorted(slots)} only are served")
        if world.step % 25 == 0:
            self._can_be_shown()

    def on_event(self, event: Event) -> None:
        world, reason = self._world, str(event.data.get("reason", ""))
        world.say(f"event {event.type} {event.app or ''} {event.data}")
        world.events[event.type] += 1
        if event.type in ("app_running", "app_stopping", "app_failed", "app_started"):
            # by policy "never" one that a killed daemon was about to have forked may count as one that has ended
            self._serves = event.data["workers"] if event.type == "app_running" else 0
        if event.type == "worker_starting":
            self._is_within_limit(event)
        process = world.processes.get(event.data.get("pid", 0))
        if event.type == "worker_exited" and isinstance(process, Worker):
            if "not ready within" in reason and process.stage in ("serving", "held"):
                world.fail(f"{process} was killed as not ready, and was")
            if "did not accept" in reason and process.stage == "serving":
                world.fail(f"{process} was killed as one that does not accept, and did")
        if event.type == "dispatcher_exited" and "not ready" in reason and process is not None and process.stage == "up":
            world.fail(f"{process} was killed as not ready, and was")

    def _is_within_limit(self, event: Event) -> None:
        """A failed app is tried by one worker each `retry` seconds, unless somebody asks for more."""
        world, app = self._world, self._world.daemon.brain.apps.get(event.app)
        if app is None or not app.record.failed or event.data["generation"] != app.generation:
            return
        asked = [worker.born_at for worker in app.workers.values() if worker.pid == event.data["pid"]]
        if asked and app.record.deaths and asked[0] <= app.record.deaths[-1]:
            return  # before it had failed, in the same round maybe
        before, commands = self._probed.get(app.name, (-_PROBE_EVERY, 0))
        if world.now - before < _PROBE_EVERY and commands == len(world.clients):
            world.fail(f"{app.name} has failed, and was tried at {before} and {world.now}")
        self._probed[app.name] = world.now, len(world.clients)

    def _can_be_shown(self) -> None:
        brain = self._world.daemon.brain
        daemon = {"pid": 1, "version": "1", "uptime_s": 1.0}
        report.ps_document(brain, None, list(brain.apps.values()), daemon, pss=False)

    # ---- in the end --------------------------------------------------------------------------------------
    def when_settled(self) -> None:
        world, brain = self._world, self._world.daemon.brain
        for client in world.clients.waiting():
            world.fail(f"{client.request} was never answered")
        known = {worker.pid: worker for app in brain.apps.values() for worker in app.workers.values() if worker.is_alive}
        for process in world.alive(_AnyWorker):
            if process.pid not in known:
                world.fail(f"nobody knows {process}, which is {process.stage}")
        templates = {template.pid for app in brain.apps.values() for template in app.templates.values()}
        for process in world.alive(Template):
            if process.pid not in templates:
                world.fail(f"nobody knows {process}, which is {process.stage}")
        for pid, worker in known.items():
            if pid not in world.processes or not world.processes[pid].is_alive:
                world.fail(f"worker {worker.id}, pid {pid}, is said to be {worker.state.value}, and is dead")
        for process in world.processes.values():
            if not process.is_alive and not process.is_reaped:
                world.fail(f"a zombie stays: {process}, of {process.parent}")
        for app in brain.apps.values():
            self._is_as_wanted(app)
            self._is_as_promised(app)
        self._store_is_right()
        self._is_written_down()
        self._can_be_shown()

    def _is_as_wanted(self, app: App) -> None:
        world = self._world
        workers = [worker for worker in app.workers.values() if worker.is_alive]
        if not app.running:
            if workers:
                world.fail(f"{app.name} is not to run, and does: {_shown(app)}")
            if app.wanted and app.failure is None:
                world.fail(f"{app.name} does not run, and nothing says why: {_shown(app)}")
            if not app.closed:
                world.fail(f"{app.name} is never closed: {_shown(app)}")
            return
        if not app.wanted or app.record.permanent or app.blocked:
            return
        if app.target is not None or app.previous is not None or app.reload_from is not None:
            world.fail(f"{app.name}: its reload is never over: {_shown(app)}")
        if any(worker.id.generation != app.generation for worker in workers):
            world.fail(f"{app.name} has workers that are not of generation {app.generation}: {_shown(app)}")
        if app.starting:
            world.fail(f"{app.name} starts for ever: {_shown(app)}")
        if not app.is_job and sorted(worker.id.slot for worker in workers) != app.slots():
            world.fail(f"{app.name}: slots {app.slots()} are wanted: {_shown(app)}")
        for worker in workers:
            if world.processes[worker.pid].stage != "serving":
                world.fail(f"{app.name}: {world.processes[worker.pid]} is {world.processes[worker.pid].stage}: {_shown(app)}")
        if app.failure is not None and not app.is_job and not app.has_ended_badly():
            world.fail(f"{app.name} is as it should be, and shows a failure: {_shown(app)}")

    def _is_as_promised(self, app: App) -> None:
        promised = self._world.clients.promised.get(app.name, {})
        if (
            promised.get("wanted", app.wanted) != app.wanted
            or (app.running and promised.get("want", app.want) != app.want)
            or promised.get("deleted")
        ):
            self._world.fail(f"{app.name}: {promised} was acknowledged: {_shown(app)}")

    def _store_is_right(self) -> None:
        world, right = self._world, set()
        for app in world.daemon.brain.apps.values():
            alive = [worker.id for worker in app.workers.values() if worker.is_alive]
            slots = {*app.slots(), *(of.slot for of in alive)}
            right |= {f"{kind}.{of}" for kind in _OF_WORKERS for of in alive}
            right |= {f"{kind}.{app.name}.{number}" for kind in _OF_TEMPLATES for number in app.templates}
            right |= {f"{kind}.{app.name}.{slot}" for kind in _OF_SLOTS for slot in slots}
            right |= {f"{kind}.{app.name}" for kind in ("board", "ledger", "logs", "stacks")}
            right |= {f"{kind}.{app.name}" for kind in _OF_DISPATCHERS if app.dispatcher is not None}
            right |= {f"env.{app.name}.{number}" for number in app.generations}
            right |= {f"listen.{app.name}.{index}" for index in app.listeners}
        for whose, names in (("guardian", world.guardian.store), ("daemon", world.daemon.store.fds)):
            left = {name for name in names if parse_fd_name(name) is not None} - right
            if left:
                world.fail(f"the {whose} keeps {sorted(left)} for nothing")

    def _is_written_down(self) -> None:
        apps, path = self._world.daemon.brain.apps.values(), Path(self._world.home, "apps.json")
        written = json.loads(path.read_text())["apps"] if path.exists() else []
        wanted = json.loads(json.dumps([to_json(app.desired()) for app in apps]))
        if sorted(written, key=lambda app: str(app["name"])) != sorted(wanted, key=lambda app: str(app["name"])):
            self._world.fail(f"apps.json says {written}, wanted is {wanted}")

    def when_deleted(self) -> None:
        world = self._world
        if world.daemon.brain.apps:
            world.fail(f"not deleted: {[_shown(app) for app in world.daemon.brain.apps.values()]}")
        left: list[Process] = [*world.alive(_AnyWorker), *world.alive(Template), *world.alive(Dispatcher), *world.alive(Launcher)]
        if left:
            world.fail(f"alive after all was deleted: {', '.join(map(str, left))}")
        self._store_is_right()
        fds, before = world.daemons_fds(), world.daemon.fds_at_boot
        if before is not None and len(fds) > before + 3:
            world.fail(f"the daemon had {before} fds, has {len(fds)}: {sorted(os.readlink(f'/proc/self/fd/{fd}') for fd in fds)}")


def _shown(app: App) -> str:
    keys = "name wanted running closed starting generation target previous restart_to reload_from want stopped_slots"
    keys += " finished_slots record failure blocked"
    workers = [f"{worker.id} {worker.state.value} {worker.pid}" for worker in app.workers.values()]
    templates = [f"{template.generation} {template.state} {template.pid}" for template in app.templates.values()]
    return ", ".join([*(f"{key}={getattr(app, key)}" for key in keys.split()), f"{workers=}", f"{templates=}"])
