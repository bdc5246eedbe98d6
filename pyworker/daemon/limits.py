"""Daemon: limits of workers: memory, age, and how long a request may take. Who is over one is replaced.

The new one comes first, and one of an app at a time.
"""

from __future__ import annotations

from pyworker.daemon.app import App
from pyworker.daemon.brain import Brain
from pyworker.daemon.loop import LAZY, Loop
from pyworker.daemon.pulse import OwnTime
from pyworker.daemon.sample import Sampler
from pyworker.policy.lifecycle import UNTOUCHED
from pyworker.policy.memory import share
from pyworker.protocol.worker import STACKS_SIGNAL
from pyworker.unix import oom

SAMPLE_EVERY = 5.0
NOTHING_TO_SAMPLE = LAZY  # seconds until it is looked again whether there is
REQUESTS_EVERY = 0.5


def watch(loop: Loop, brain: Brain, sampler: Sampler) -> None:
    """Look every now and then, for as long as the daemon lives."""

    def look() -> None:
        if any(
            a.config and a.running and (a.config.limits.memory or a.config.limits.max_age) for a in brain.apps.values()
        ):
            loop.call_later(SAMPLE_EVERY, look)
        else:
            loop.call_lazily(NOTHING_TO_SAMPLE, look)
        now = loop.clock()
        everyone = sum(len(app.slots()) for app in brain.apps.values() if app.running)
        for app in brain.apps.values():
            config = app.config
            if config is None or not app.running or (config.limits.memory is None and not config.limits.max_age):
                continue
            if app.target is not None:
                continue
            limits, memory = config.limits, config.limits.memory
            if memory == "auto":
                limit = oom.group_limit()
                memory = None if limit is None else share(limit, everyone)
            if memory is not None or limits.max_age:
                _check_app(brain, sampler, app, memory, limits.max_age, now)

    own_time = OwnTime()

    def look_at_requests() -> None:
        hasty = any(a.config and a.running and a.config.limits.request_timeout for a in brain.apps.values())
        if hasty:
            timer = loop.call_later(REQUESTS_EVERY, look_at_requests)
        else:
            timer = loop.call_lazily(NOTHING_TO_SAMPLE, look_at_requests)
        now = loop.clock()
        own_time.look(now, timer.deadline - now)
        for app in brain.apps.values():
            if app.config is not None and app.running and app.config.limits.request_timeout:
                _check_requests(brain, app, app.config.limits.request_timeout, loop.clock(), own_time)

    loop.call_later(SAMPLE_EVERY, look)
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
            brain.workers.recycle(app, w, f"memory {used // 2**20} MB > {memory // 2**20} MB")
            return
        if max_age and now - w.ready_at > max_age:
            brain.workers.recycle(app, w, f"age {now - w.ready_at:.0f} s > {max_age:g} s")
            return


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
            brain.workers.signal(app, w, STACKS_SIGNAL)
            brain.workers.recycle(app, w, f"a request runs longer than {limit:g} s; its stacks are in the log")
            return
