"""The brain: converge(app, now) -> actions. What is wanted, what is seen (`view`), what to do about the difference (`actions`).

Pure and level-triggered: it is run after every event, looks only at values, and an action that was carried out is
visible in the next view, so nothing is done twice and nothing needs to be remembered. A restart, a missed message, a
reload and a crash of the daemon are all the same case here. daemon/brain.py carries the actions out.

Order of one reload: template with the new code -> a canary that accepts nothing -> the rest, `max_surge` at a time
-> Commit -> Go to all the new -> all of them accept -> Drain to the old. Before the Commit the old generation is
never touched.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyworker.policy import actions as act
from pyworker.policy.lifecycle import LEAVING, UNTOUCHED, State
from pyworker.policy.restart import Record
from pyworker.policy.view import (
    OPENING_GRACE,
    AppView,
    DispatcherView,
    WorkerView,
    alive,
    can_go_back,
    generation_is_open,
    is_open,
    slots_of,
)

DRAIN_TIMEOUT = "drain time-out"  # the reason of a SendStop
CANCEL_GRACE = 2.0  # a worker cancels its requests at the drain time-out itself; then it has this long to go
OPENING_TIMEOUT = 10.0  # one that was told to accept, and has not, is stuck after this
QUEUE_GRACE = 1.0  # how long the last workers of an app may take what is queued before the listener is shut
LOOK_WHETHER_LEFT = 0.005  # seconds between looks whether they have: who connects meanwhile is reset
RETIRE_TIMEOUT = 5.0  # a template that was told to leave
FORKS_AT_ONCE = 100  # a template's channel takes some 280 requests that it has not read yet
DISPATCHER_READY_TIMEOUT = 30.0  # it imports nothing of the app, but a machine may be that busy, at its boot for one
DISPATCHER_STOP_TIMEOUT = 5.0
UNDYING = 10.0  # from SIGKILL until one that has not ended is done without: a disk that does not answer may keep it
UNCOUNTED = 5.0  # how long the death of one that was never ready is waited for: there are processes that do not die
MAX_DRAINING = 2  # generations that may drain at once, the one that a commit sends away included


def converge(app: AppView, now: float) -> list[act.Action]:
    """Return what is to be done now, and (LookAgain) when to ask again if nothing happens before."""
    actions: list[act.Action] = []
    ending: set[int] = set()  # one that has no process yet has ended with the first of these
    for part in (_deadlines, _outcomes, _dispatcher, _templates, _reload, _go, _fill, _leave, _close):
        for action in part(app, now):
            if isinstance(action, (act.Commit, act.AbortReload, act.RollBack, act.FailStart)):
                # the view changes under our feet: carry this out, then be asked again
                return [*(a for a in actions if not isinstance(a, act.LookAgain)), action, act.LookAgain(now)]
            if isinstance(action, (act.SendDrain, act.SendStop, act.SendKill, act.DoWithout)):
                if action.serial in ending:
                    continue
                ending.add(action.serial)
            actions.append(action)
    looks = [a.at for a in actions if isinstance(a, act.LookAgain)]
    rest: list[act.Action] = [a for a in actions if not isinstance(a, act.LookAgain)]
    return [*rest, act.LookAgain(min(looks))] if looks else rest


def _when(at: float, now: float, action: act.Action) -> act.Action:
    """Return the action when its time has come, else a look at that time."""
    return action if now >= at else act.LookAgain(at)


# ---- the parts, in the order in which they are asked --------------------------------------------------
def _deadlines(app: AppView, now: float) -> Iterator[act.Action]:
    """Escalate: drain -> stop signal -> SIGKILL; and what does not get ready in time is killed."""
    for w in alive(app):
        match w.state:
            case State.DRAINING:
                patience = 0 if app.hurry else app.stop.drain_timeout + CANCEL_GRACE
                yield _when(w.since + patience, now, act.SendStop(w.serial, DRAIN_TIMEOUT))
            case State.STOPPING:
                yield _when(w.since + app.stop.kill_timeout, now, act.SendKill(w.serial, "kill time-out"))
            case State.STARTING if not w.ended:
                reason = f"not ready within {app.reload.ready_timeout:g} s"
                yield _when(w.since + app.reload.ready_timeout, now, act.SendKill(w.serial, reason))
            case State.OPENING if not w.ended:
                yield _when(w.since + OPENING_TIMEOUT, now, act.SendKill(w.serial, "did not accept when told to"))
                if now < w.since + OPENING_GRACE:
                    yield act.LookAgain(w.since + OPENING_GRACE)
            case State.KILLED:
                yield _when(w.since + UNDYING, now, act.DoWithout(w.serial))
            case _:
                pass
    for t in app.templates:
        if t.state == "loading":
            reason = f"the import took more than {app.reload.ready_timeout:g} s"
            yield _when(t.since + app.reload.ready_timeout, now, act.StopTemplate(t.generation, reason))


def _outcomes(app: AppView, now: float) -> Iterator[act.Action]:
    """End what has been decided: a start or reload that failed, a soak, a record that is forgiven."""
    if app.target is not None and app.target_failed:
        yield act.AbortReload()
    if app.starting and app.start_failed:
        yield act.FailStart()
    if app.previous is not None:
        if can_go_back(app) and (app.given_up or app.soak_deaths * 2 > app.want):
            many = "s" if app.soak_deaths != 1 else ""
            died = f"{app.soak_deaths} worker{many} of generation {app.generation} died in the soak"
            yield act.RollBack(app.previous, app.given_up or died)
        elif not any(w.ended for w in alive(app, app.generation)):  # their deaths count, once they are told
            yield _when(app.soak_until, now, act.EndSoak())
    if not app.record.is_clear and not app.record.permanent:
        last = app.record.deaths[-1] if app.record.deaths else 0.0
        serve = [w for w in alive(app, app.generation) if w.state is State.READY and not w.ended]
        tried = [w for w in serve if w.born_at >= last]
        wanted = slots_of(app)
        settled = {w.slot for w in serve if not w.recycle}  # for that one a successor is still to be tried
        if not tried and wanted and _can_fork(app) and settled.issuperset(wanted):
            # nobody is missing who could be tried: it was the template that died, and it is back; or the slot of who died
            # is not wanted any more (`stop api.2`)
            tried = serve
        ready_at = min((w.ready_at for w in tried if w.ready_at is not None), default=None)
        if not wanted and _can_fork(app):
            ready_at = last  # all have finished or were stopped: nobody will be tried
        if ready_at is not None:
            yield _when(ready_at + app.restart.min_uptime, now, act.ClearRecord())


def _dispatcher(app: AppView, now: float) -> Iterator[act.Action]:
    """Keep a dispatcher for as long as anybody takes connections from it."""
    finished = app.dispatcher is not None and app.dispatcher.finished  # by a stop that was taken back: another one then
    needed = app.dispatches and (app.running or (app.keep_listening and not finished) or bool(alive(app)))
    yield from keep_dispatcher(app.dispatcher, app.dispatcher_record, needed=needed, now=now)


def keep_dispatcher(
    dispatcher: DispatcherView | None, record: Record, *, needed: bool, now: float
) -> Iterator[act.Action]:
    """Have one while it is needed: started again at once after a death, later when it dies again and again."""
    if dispatcher is None:
        if needed:
            yield _when(record.next_at, now, act.StartDispatcher())
        return
    match dispatcher.state:
        case "starting":
            stuck = act.StopDispatcher(f"not ready within {DISPATCHER_READY_TIMEOUT:g} s")
            yield _when(dispatcher.since + DISPATCHER_READY_TIMEOUT, now, stuck)
        case "stopping":
            stuck = act.StopDispatcher("told to stop, and did not")
            yield _when(dispatcher.since + DISPATCHER_STOP_TIMEOUT, now, stuck)
            return
        case "ready":
            pass
    if not needed:
        yield act.StopDispatcher()


def _templates(app: AppView, now: float) -> Iterator[act.Action]:
    """Keep one template for each generation that may still have to fork."""
    needed: set[int] = set()
    if app.running:
        if app.forks and not app.record.permanent:
            needed.add(app.generation)
        if app.target_forks and app.target is not None:
            needed.add(app.target)
        if app.previous is not None:
            needed.add(app.previous)
    existing = {t.generation for t in app.templates}
    for t in app.templates:
        if t.state == "retiring":
            yield _when(t.since + RETIRE_TIMEOUT, now, act.StopTemplate(t.generation))
        elif t.generation not in needed:
            yield act.StopTemplate(t.generation)
    for generation in sorted(needed - existing - app.gated):
        if generation == app.target:
            yield act.StartTemplate(generation)
        elif generation == app.generation:
            yield _when(max(app.record.next_at, app.template_record.next_at), now, act.StartTemplate(generation))


def _reload(app: AppView, now: float) -> Iterator[act.Action]:
    """Bring the target generation up, held; commit when all of it is ready and healthy."""
    target = app.target
    if target is None or not app.running or target in app.gated:
        return
    if app.target_forks and not any(t.generation == target and t.state == "ready" for t in app.templates):
        return
    slots = slots_of(app, app.target_want)
    draining = {w.generation for w in alive(app) if w.state in LEAVING} - {target, app.generation}
    if not app.overlaps or app.target_job:
        # no two of its workers can live side by side: the old leave first, which the CLI has said before; or nothing of it
        # runs before its time has come
        yield act.Commit(target)
        return
    new = [w for w in alive(app, target) if w.state in UNTOUCHED]
    able = [w for w in new if w.state is not State.STARTING and w.checked and not w.ended]
    missing = [s for s in slots if s not in {w.slot for w in new}]
    if missing and (able or not new):
        room = min(app.reload.max_surge, FORKS_AT_ONCE) if able else 1  # the canary goes alone
        starting = sum(w.state is State.STARTING for w in new)
        for slot in missing[: max(0, room - starting)]:
            yield act.Spawn(slot, target, held=app.target_holds)
    elif not missing and len(able) == len(new) and len(draining) < MAX_DRAINING:
        yield act.Commit(target)


def _go(app: AppView, now: float) -> Iterator[act.Action]:
    """Whoever is held and of the committed generation may accept."""
    if app.running:
        for w in alive(app, app.generation):
            if w.state is State.HELD:
                yield act.SendGo(w.serial)


def _fill(app: AppView, now: float) -> Iterator[act.Action]:
    """Start what is missing in the committed generation, and successors of what must be replaced."""
    if not app.running or app.record.permanent or app.generation in app.gated:
        return
    if not _can_fork(app):
        return
    everybody = alive(app)
    current = [w for w in everybody if w.generation == app.generation and w.state in UNTOUCHED]
    starting = sum(w.state is State.STARTING for w in current)
    trying = starting > 0
    calm, dying = app.record.is_clear, _dying(app)
    succession = any(_is_succession(app, slot) for slot in slots_of(app))
    for slot in slots_of(app):
        mine = [w for w in current if w.slot == slot]
        if mine and not all(w.recycle or w.state is State.UNHEALTHY for w in mine):
            continue
        if mine and (succession or app.target is not None):
            continue  # one succession of an app at a time; a reload replaces it anyway
        if not app.overlaps and any(w.slot == slot for w in everybody):
            continue
        if not calm and (trying or (app.record.failed and _probe_is_out(app, current))):
            continue  # after an unstable death one worker is tried at a time, until it is ready
        if not calm and now < dying + UNCOUNTED:
            yield act.LookAgain(dying + UNCOUNTED)
            continue
        if not calm and now < app.record.next_at:
            yield act.LookAgain(app.record.next_at)
            continue
        if app.forks and starting >= FORKS_AT_ONCE:
            break
        yield act.Spawn(slot, app.generation, held=False)
        trying, starting = True, starting + 1
        succession = succession or bool(mine)


def _can_fork(app: AppView) -> bool:
    """Whether what makes workers of the committed generation is there."""
    return not app.forks or any(t.generation == app.generation and t.state == "ready" for t in app.templates)


def _probe_is_out(app: AppView, current: list[WorkerView]) -> bool:
    """Whether a failed app's one probe lives: nothing more is started before it has proved stable."""
    last = app.record.deaths[-1] if app.record.deaths else 0.0
    return any(w.born_at >= last for w in current)


def _dying(app: AppView) -> float:
    """Return since when one that was never ready is told to leave: its death says when the next one is tried."""
    leaving = (w.since for w in alive(app, app.generation) if w.state not in UNTOUCHED and w.ready_at is None)
    return max(leaving, default=-UNCOUNTED)


def _is_succession(app: AppView, slot: int) -> bool:
    """Whether a worker of this slot is being replaced by another right now."""
    mine = [w for w in alive(app, app.generation) if w.slot == slot and w.state in UNTOUCHED]
    return len(mine) > 1


def _leave(app: AppView, now: float) -> Iterator[act.Action]:
    """Tell those to leave that are not wanted any more."""
    slots = set(slots_of(app))
    current_open = generation_is_open(app, now)
    for w in alive(app):
        if w.state not in UNTOUCHED or (w.generation == app.target and app.running):
            continue
        reason = _reason_to_leave(app, w, slots, current_open, now)
        if reason is None:
            continue
        if w.state in (State.STARTING, State.HELD) or not w.hears or app.hurry:
            yield act.SendStop(w.serial, reason)
        else:
            yield act.SendDrain(w.serial, to_empty=not app.running and not app.keep_listening, reason=reason)


def _reason_to_leave(app: AppView, w: WorkerView, slots: set[int], current_open: bool, now: float) -> str | None:
    if not app.running:
        return None if app.stops_later else "stop"
    if app.starting and app.record.permanent:
        return "the start failed"
    if w.generation != app.generation:
        if app.job and w.job:
            return None
        if w.state in (State.STARTING, State.HELD):
            return "its generation was given up"
        if current_open or not slots or not app.overlaps:
            return f"replaced by generation {app.generation}"
        return None
    if w.slot not in slots:
        return "scaled down" if w.slot > app.want else "stop"
    open_here = [o for o in alive(app, app.generation) if o.slot == w.slot and is_open(o, now)]
    newer = [o for o in open_here if o.serial > w.serial and o.state is not State.UNHEALTHY]
    # one that is only sick, or that serves well, stays until its successor has passed a check: what ails that may ail them all
    if any(o.checked or (w.recycle and not w.can_wait) for o in newer):
        return "replaced"
    if w.state is State.UNHEALTHY and not w.checked and any(o.serial < w.serial for o in open_here):
        return "as sick as the one it was to replace"
    if not app.overlaps and (w.recycle or w.state is State.UNHEALTHY):
        return "replaced"
    return None


def _close(app: AppView, now: float) -> Iterator[act.Action]:
    """Close the port when nobody is queued, or the last worker has taken who was; forget the app when the last has gone."""
    if app.running or app.keep_listening:
        return
    left = alive(app)
    if app.listening and left and all(w.state in LEAVING for w in left):
        shut_at = max(w.since for w in left) + QUEUE_GRACE
        if now >= shut_at or app.hurry or app.nobody_waits or all(w.left for w in left):
            yield act.ShutListeners()
        else:
            can_tell = all(w.left is not None for w in left)
            yield act.LookAgain(min(shut_at, now + LOOK_WHETHER_LEFT) if can_tell else shut_at)
    if not left and not app.templates and app.dispatcher is None:
        yield act.Close()
