"""Daemon: limits of workers: memory, age, and how long a request may take. Who is over one is replaced.

The new one comes first, and one of an app at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from pyworker.config.schema import LimitsConfig
from pyworker.daemon.app import App
from pyworker.daemon.brain import Brain
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.loop import LAZY, Loop, Timer
from pyworker.daemon.pulse import OwnTime
from pyworker.daemon.reloads import TOO_LOW
from pyworker.daemon.sample import Sampler
from pyworker.policy.lifecycle import UNTOUCHED
from pyworker.policy.memory import share
from pyworker.protocol.events import Event
from pyworker.protocol.stacks import parse, parse_tasks, whereabouts
from pyworker.unix import oom

SAMPLE_EVERY = 5.0
NOTHING_TO_SAMPLE = LAZY  # seconds until it is looked again whether there is
REQUESTS_EVERY = 0.5
_RAISE = "raise it"
_RAISE_SHARE = "it is each one's share of the limit of the cgroup: raise that, or have fewer workers"


def watch(loop: Loop, brain: Brain, sampler: Sampler) -> None:
    """Look every now and then, for as long as the daemon lives."""

    timers: dict[Callable[[], None], Timer] = {}

    def look_again(look: Callable[[], None], every: float, wanted: Callable[[LimitsConfig], object]) -> Timer:
        limited = any(a.config and a.running and wanted(a.config.limits) for a in brain.apps.values())
        timers[look] = loop.call_later(every, look) if limited else loop.call_lazily(NOTHING_TO_SAMPLE, look)
        return timers[look]

    def look() -> None:
        if look_again(look, SAMPLE_EVERY, lambda limits: limits.memory or limits.max_age).lazy:
            return
        now = loop.clock()
        everyone = sum(len(app.slots()) for app in brain.apps.values() if app.running)
        for app in brain.apps.values():
            config = app.config
            if config is None or not app.running or app.target is not None:
                continue
            limits, memory = config.limits, config.limits.memory
            if memory == "auto":
                limit = oom.group_room()
                memory = None if limit is None else share(limit, everyone)
            if memory is not None or limits.max_age:
                _check_app(brain, sampler, app, memory, limits.max_age, now)

    own_time = OwnTime()

    def look_at_requests() -> None:
        timer = look_again(look_at_requests, REQUESTS_EVERY, lambda limits: limits.request_timeout)
        now = loop.clock()
        own_time.look(now, timer.deadline - now)
        if timer.lazy:
            return
        for app in brain.apps.values():
            if app.config is not None and app.running and app.config.limits.request_timeout:
                _check_requests(brain, app, app.config.limits.request_timeout, loop.clock(), own_time)

    def on_event(event: Event) -> None:
        """An app that has just come, or changed, is not left until the next lazy look: its limits may be shorter."""
        app = brain.apps.get(event.app) if event.type in ("app_started", "reload_committed") else None
        if app is not None and app.config is not None and app.config.limits != LimitsConfig():
            for again, timer in list(timers.items()):
                if timer.lazy:
                    timer.cancel()
                    again()

    brain.events.subscribe(on_event)
    timers[look] = loop.call_later(SAMPLE_EVERY, look)
    look_at_requests()


def _check_app(brain: Brain, sampler: Sampler, app: App, memory: int | None, max_age: float, now: float) -> None:
    if any(w.recycle for w in app.workers.values()):
        return
    for w in sorted(app.workers.values(), key=lambda w: w.born_at):
        if w.state not in UNTOUCHED or w.ready_at is None or not w.pid:
            continue
        # pages shared with the template count by their share only
        used = sampler.pss(w.pid) if memory is not None else None
        if memory is not None and used is not None and used > memory:
            if now - w.ready_at < app.restart_config.min_uptime and not app.runs_once:
                is_share = app.config is not None and app.config.limits.memory == "auto"
                brain.note(app, TOO_LOW + (_RAISE_SHARE if is_share else _RAISE))
            brain.workers.recycle(app, w, f"memory {used // 2**20} MB > {memory // 2**20} MB")
            return
        if max_age and now - w.ready_at > max_age:
            brain.workers.recycle(app, w, f"age {now - w.ready_at:.0f} s > {max_age:g} s", can_wait=True)
            return
    notes = [note for note in app.notes if note.startswith(TOO_LOW)]
    if notes and all(
        w.ready_at is not None and now - w.ready_at >= app.restart_config.min_uptime for w in app.workers.values()
    ):
        for note in notes:
            brain.note_is_over(app, note)


def _check_requests(brain: Brain, app: App, limit: float, now: float, own_time: OwnTime) -> None:
    """Replace a worker that has a request older than the limit, its successor first; its stacks go to the log."""
    if app.target is not None or any(w.recycle for w in app.workers.values()):
        return
    for w in app.workers.values():
        if w.state not in UNTOUCHED or w.ready_at is None or not w.pid:
            continue
        stats = app.board.stats(w.id.serial)
        # a machine that was frozen meanwhile has not given the request that time
        stands = stats.in_flight > 0 and stats.progress_at > 0 and own_time.age(stats.progress_at, now) > limit + 1
        if stands or (stats.oldest_at > 0 and own_time.age(stats.oldest_at, now) > limit):
            brain.workers.recycle(app, w, f"a request runs longer than {limit:g} s; its stacks are in the log")
            brain.stacks.take(app, w, lambda text, *_, w=w: _say_where(brain, app, w, text), to_log=True)
            return


def _say_where(brain: Brain, app: App, handle: WorkerHandle, stacks: str) -> None:
    """The threads of a worker whose request awaits something are idle: say in what its tasks wait."""
    where = whereabouts([*parse_tasks(stacks, handle.pid), *parse(stacks)])
    if where:
        text = f"worker {handle.id.slot}, a request of which runs too long, is in {where}"
        brain.remark(app, text[:500])
