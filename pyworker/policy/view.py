"""What `converge` sees: of one app what is wanted and what is there, as values; and what follows from them without a decision."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Literal, Protocol

from pyworker.config.schema import ReloadConfig, RestartConfig, StopConfig
from pyworker.policy.lifecycle import ALIVE, State
from pyworker.policy.restart import Record
from pyworker.record import record

OPENING_GRACE = 1.0  # a worker that was told to accept counts as accepting after this, answer or not


@record
class WorkerView:
    serial: int
    slot: int
    generation: int
    state: State
    since: float  # when it entered this state
    born_at: float
    ready_at: float | None = None  # held or ready
    recycle: bool = False  # must be replaced: over a limit, asked for it, told by `restart api.2`
    can_wait: bool = False  # and serves well until then
    checked: bool = True  # its first health check has passed (or there is none)
    # understands Drain; else the stop signal is all there is. A script that has bound no port does not
    hears: bool = True
    left: bool | None = None  # of one that leaves: it accepts nothing any more; None: it cannot tell
    job: bool = False  # a run of a job: it ends by itself
    ended: bool = False  # what follows from that is still to come: how it ended is being found out


@record
class TemplateView:
    generation: int
    state: Literal["loading", "ready", "retiring"]
    since: float


@record
class DispatcherView:
    state: Literal["starting", "ready", "stopping"]
    since: float
    finished: bool = False  # it was told that nothing comes any more


@record
class AppView:
    """One app: what is wanted (the upper half) and what is seen."""

    running: bool
    want: int  # slots 1..want
    generation: int  # the committed one
    restart: RestartConfig
    stop: StopConfig
    reload: ReloadConfig
    workers: tuple[WorkerView, ...] = ()
    templates: tuple[TemplateView, ...] = ()
    record: Record = Record()
    stopped_slots: frozenset[int] = frozenset()  # `stop api.2`
    finished_slots: frozenset[int] = frozenset()  # ended by itself and the policy says that is that
    target: int | None = None  # the generation a reload brings up, before its commit
    target_want: int | None = None  # its slots; None: as many as `want`
    target_failed: bool = False  # it must be given up
    previous: int | None = None  # during the soak: where a roll-back goes
    soak_until: float = 0.0
    soak_deaths: int = 0  # unstable deaths of the new generation since the commit
    given_up: str = ""  # why the previous generation is wanted again
    gated: frozenset[int] = frozenset()  # generations that nothing may be started of yet
    job: bool = False  # runs at times of its own and ends by itself: a reload leaves its running worker alone
    target_job: bool = False
    starting: bool = False  # a first start whose outcome is open: one failure ends it
    start_failed: bool = False
    hurry: bool = False  # `stop --now`: no drain
    stops_later: bool = False  # who depends on it is stopped, too, and has not gone yet
    listening: bool = True  # the listeners are open
    # of the committed generation; a reload may make another kind of app of it
    forks: bool = True  # workers are forked from a template (asgi, wsgi)
    target_forks: bool = True
    previous_forks: bool = True
    template_record: Record = Record()  # of the committed generation's
    target_holds: bool = True  # a worker can be ready without accepting
    overlaps: bool = True  # two workers of a slot can live side by side, the target's beside today's
    dispatches: bool = False  # connections are handed out by a dispatcher
    dispatcher: DispatcherView | None = None
    dispatcher_record: Record = Record()
    keep_listening: bool = False  # a hard restart: the listeners stay open in between
    # to be accepted; only where all workers are ours, who do not mind a listener that is shut before they have left it
    nobody_waits: bool = False


class HasSlots(Protocol):
    """What is asked of an app to know its slots."""

    @property
    def want(self) -> int: ...
    @property
    def stopped_slots(self) -> AbstractSet[int]: ...
    @property
    def finished_slots(self) -> AbstractSet[int]: ...


def slots_of(app: HasSlots, want: int | None = None) -> list[int]:
    """Return the slots that should have a worker; of so many, else of those that the committed generation has."""
    return [
        s
        for s in range(1, (app.want if want is None else want) + 1)
        if s not in app.stopped_slots and s not in app.finished_slots
    ]


def alive(app: AppView, generation: int | None = None) -> list[WorkerView]:
    """Return the workers that have not ended, of one generation or of all."""
    return [w for w in app.workers if w.state in ALIVE and generation in (None, w.generation)]


def is_open(worker: WorkerView, now: float) -> bool:
    """Whether this worker counts as accepting."""
    return not worker.ended and (
        worker.state in (State.READY, State.UNHEALTHY)
        or (worker.state is State.OPENING and now - worker.since >= OPENING_GRACE)
    )


def generation_is_open(app: AppView, now: float) -> bool:
    """Whether every slot has an accepting worker of the committed generation, and whoever feeds them is there."""
    if app.dispatches and (app.dispatcher is None or app.dispatcher.state != "ready"):
        return False
    open_slots = {w.slot for w in alive(app, app.generation) if is_open(w, now)}
    return bool(open_slots) and open_slots.issuperset(slots_of(app))


def can_go_back(app: AppView) -> bool:
    """Whether the generation before can be brought back: it is the soak, and what makes its workers is there."""
    ready = any(t.generation == app.previous and t.state == "ready" for t in app.templates)
    return app.running and app.previous is not None and (ready or not app.previous_forks)
