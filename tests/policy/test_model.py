"""Model check of converge: breadth first over everything that can happen in a reload, two workers, two generations.

The model is the daemon's world with time standing still: templates load, fail or die; workers get ready, accept, end;
messages are lost with a daemon that dies and is started again from what survives (fd names, ledger, the commit).
Every reachable state to DEPTH happenings is visited once; the invariants are asserted in each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from pyworker.config.schema import ReloadConfig, RestartConfig, StopConfig
from pyworker.policy import actions as act
from pyworker.policy import converge as c
from pyworker.policy.lifecycle import LEAVING, UNTOUCHED, Happening, State, advance
from pyworker.policy.restart import CLEAR
from pyworker.policy.view import AppView, TemplateView, WorkerView, is_open
from pyworker.record import replace

NOW = 100.0
DEPTH = 14
WANT = 2
MAX_DEATHS = 3  # unexpected ends on one path: more add states, and nothing new
MAX_CRASHES = 2

START = AppView(
    running=True,
    want=WANT,
    generation=1,
    restart=RestartConfig(),
    stop=StopConfig(),
    reload=ReloadConfig(max_surge=2, soak=10.0),
    workers=tuple(WorkerView(s, s, 1, State.READY, NOW, NOW, NOW) for s in (1, 2)),
    templates=(TemplateView(1, "ready", NOW),),
)


@dataclasses.dataclass(frozen=True)
class World:
    """A state of the model. `serial` is the last one given out; deaths and crashes bound the search."""

    view: AppView
    serial: int = 2
    reloads: int = 0
    deaths: int = 0
    crashes: int = 0

    def key(self) -> object:
        """States that differ only in the numbers of serials are one."""
        order = {w.serial: i for i, w in enumerate(sorted(self.view.workers, key=lambda w: w.serial))}
        workers = tuple(sorted((w.slot, w.generation, order[w.serial], w.state.value) for w in self.view.workers))
        v = self.view
        templates = tuple(sorted((t.generation, t.state) for t in v.templates))
        failed = v.target_failed
        return (workers, templates, v.generation, v.target, failed, v.previous, v.soak_deaths, self.reloads, self.deaths, self.crashes)


def settle(world: World) -> World:
    """Carry out what converge says until it says nothing; assert what must hold of each action."""
    for _ in range(60):
        actions = [a for a in c.converge(world.view, NOW) if not isinstance(a, act.LookAgain)]
        if not actions:
            return world
        for action in actions:
            check(world.view, action)
            world = perform(world, action)
    raise AssertionError(f"does not settle: {actions}")


def check(v: AppView, action: act.Action) -> None:
    """No action may do harm."""
    if isinstance(action, (act.SendDrain, act.SendStop, act.SendKill)):
        victim = next(w for w in v.workers if w.serial == action.serial)
        if victim.state in (State.READY, State.UNHEALTHY):
            others = {w.slot for w in v.workers if is_open(w, NOW) and w.serial != victim.serial}
            assert victim.slot in others or v.want < victim.slot, f"{action} takes the last one of its slot away"
            if v.target is not None:
                assert victim.generation != v.generation or any(
                    w.slot == victim.slot and w.generation == v.generation and w.serial > victim.serial for w in v.workers
                ), "the committed generation was touched before the commit"
    if isinstance(action, act.Commit):
        new = [w for w in v.workers if w.generation == action.generation and w.state in UNTOUCHED]
        assert {w.slot for w in new} == set(range(1, WANT + 1)), "a commit with slots missing"
        assert all(w.state is not State.STARTING for w in new), "a commit with a worker that is not ready"
        assert not v.target_failed
    if isinstance(action, act.SendGo):
        worker = next(w for w in v.workers if w.serial == action.serial)
        assert worker.generation == v.generation, "a worker may accept only after the commit"
    if isinstance(action, act.Spawn):
        same = [w for w in v.workers if (w.slot, w.generation) == (action.slot, action.generation) and w.state in UNTOUCHED]
        assert not same, "two workers of one slot and generation"


def perform(world: World, action: act.Action) -> World:
    v = world.view
    match action:
        case act.StartTemplate(generation=g):
            view = replace(v, templates=(*v.templates, TemplateView(g, "loading", NOW)))
        case act.StopTemplate(generation=g):
            view = replace(v, templates=tuple(t for t in v.templates if t.generation != g))
        case act.Spawn(slot=slot, generation=g):
            new = WorkerView(world.serial + 1, slot, g, State.STARTING, NOW, NOW)
            return replace(world, serial=world.serial + 1, view=replace(v, workers=(*v.workers, new)))
        case act.SendGo(serial=s):
            view = happen(v, s, Happening.GO)
        case act.SendDrain(serial=s):
            view = happen(v, s, Happening.DRAIN)
        case act.SendStop(serial=s):
            view = happen(v, s, Happening.STOP)
        case act.SendKill(serial=s):
            view = happen(v, s, Happening.KILL)
        case act.DoWithout(serial=s):
            view = happen(v, s, Happening.EXIT)
        case act.Commit(generation=g):
            view = replace(v, generation=g, target=None, previous=v.generation, soak_until=NOW + 10, soak_deaths=0)
        case act.AbortReload():
            view = replace(v, target=None, target_failed=False)
        case act.RollBack(generation=g):
            view = replace(v, generation=g, previous=None)
        case act.EndSoak():
            view = replace(v, previous=None)
        case _:
            view = v
    return replace(world, view=view)


def happen(v: AppView, serial: int, happening: Happening) -> AppView:
    workers = []
    for w in v.workers:
        if w.serial == serial:
            state = advance(w.state, happening)
            ready = NOW if state in (State.HELD, State.READY) else w.ready_at
            w = replace(w, state=state, ready_at=ready)
        if w.state is not State.STOPPED:
            workers.append(w)
    return replace(v, workers=tuple(workers))


def happenings(world: World) -> Iterator[World]:
    """Everything that can happen next."""
    v = world.view
    if world.reloads == 0:
        yield replace(world, reloads=1, view=replace(v, target=2, target_failed=False, previous=None))
    for t in v.templates:
        rest = tuple(o for o in v.templates if o is not t)
        if t.state == "loading":
            ready = TemplateView(t.generation, "ready", NOW)
            yield replace(world, view=replace(v, templates=(*rest, ready)))
        if world.deaths < MAX_DEATHS:
            failed = v.target_failed or (t.generation == v.target and t.state == "loading")
            dead = replace(v, templates=rest, target_failed=failed)
            yield replace(world, deaths=world.deaths + 1, view=dead)
    for w in v.workers:
        if w.state is State.STARTING:
            held = w.generation == v.target
            yield replace(world, view=happen(v, w.serial, Happening.IS_READY if held else Happening.ACCEPTS))
        elif w.state is State.OPENING:
            yield replace(world, view=happen(v, w.serial, Happening.ACCEPTS))
        if w.state in LEAVING:
            yield replace(world, view=happen(v, w.serial, Happening.EXIT))
        elif world.deaths < MAX_DEATHS:
            died = happen(v, w.serial, Happening.EXIT)
            if w.generation == v.target:
                died = replace(died, target_failed=True)
            elif w.generation == v.generation and v.previous is not None:
                died = replace(died, soak_deaths=v.soak_deaths + 1)
            yield replace(world, deaths=world.deaths + 1, view=died)
    if world.crashes < MAX_CRASHES:
        # The daemon dies and is back. A reload before its commit is forgotten; what was sent to a worker may not have
        # been noted in the ledger: then its state is an older one, and the message is sent again.
        after = replace(v, target=None, target_failed=False)
        yield replace(world, crashes=world.crashes + 1, view=after)
        for w in v.workers:
            older = {State.OPENING: State.HELD, State.DRAINING: State.READY}.get(w.state)
            if older is not None:
                changed = tuple(replace(o, state=older) if o is w else o for o in after.workers)
                yield replace(world, crashes=world.crashes + 1, view=replace(after, workers=changed))


def left_alone(world: World) -> World:
    """Let everything that is under way come to its good end, with no more accidents."""
    for _ in range(60):
        world = settle(world)
        v = world.view
        templates = tuple(TemplateView(t.generation, "ready", NOW) for t in v.templates)
        v = replace(v, templates=templates, previous=None, record=CLEAR)
        busy = False
        for w in v.workers:
            happening = {
                State.STARTING: Happening.IS_READY if w.generation == v.target else Happening.ACCEPTS,
                State.OPENING: Happening.ACCEPTS,
                State.DRAINING: Happening.EXIT,
                State.STOPPING: Happening.EXIT,
                State.KILLED: Happening.EXIT,
            }.get(w.state)
            if happening is not None:
                busy = True
                v = happen(v, w.serial, happening)
        if templates == world.view.templates and not busy and v.target is None:
            return replace(world, view=v)
        world = replace(world, view=v)
    raise AssertionError(f"never comes to rest: {world.view}")


@pytest.mark.timeout(600)  # some 15 s of CPU time, where there is some
def test_no_order_of_events_loses_a_slot_or_mixes_generations() -> None:
    first = settle(World(START))
    seen = {first.key()}
    tried: set[object] = set()
    frontier = [first]
    visited = [first]
    for _ in range(DEPTH):
        following: list[World] = []
        for world in frontier:
            for happened in happenings(world):
                key = happened.key()
                if key in tried:
                    continue
                tried.add(key)
                now = settle(happened)
                key = now.key()
                if key not in seen:
                    seen.add(key)
                    following.append(now)
        frontier = following
        visited += following
    assert len(seen) > 5000, "the model has lost its states"
    rested: set[object] = set()
    for world in visited[::5]:
        end = left_alone(world).view
        assert sorted(w.slot for w in end.workers) == list(range(1, WANT + 1))
        assert {w.state for w in end.workers} == {State.READY}
        assert {w.generation for w in end.workers} == {end.generation}
        rested.add(end.generation)
    assert rested == {1, 2}, rested
