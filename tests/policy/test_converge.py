"""The brain as a table: what is wanted, what is seen, what is done."""

from __future__ import annotations

from typing import Any

import pytest

from pyworker.config.schema import ReloadConfig, RestartConfig, StopConfig
from pyworker.policy import actions as act
from pyworker.policy import converge as c
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR, Record, after_unstable_death
from pyworker.policy.view import OPENING_GRACE, AppView, DispatcherView, TemplateView, WorkerView, generation_is_open
from pyworker.record import replace


def app(**changes: Any) -> AppView:
    base = AppView(
        running=True,
        want=2,
        generation=1,
        restart=RestartConfig(),
        stop=StopConfig(),
        reload=ReloadConfig(),
        templates=(TemplateView(1, "ready", 0.0),),
    )
    return replace(base, **changes)


def worker(serial: int, slot: int, generation: int = 1, state: State = State.READY, since: float = 0.0, **more: Any) -> WorkerView:
    ready_at = since if state is not State.STARTING else None
    return WorkerView(serial, slot, generation, state, since, since, **{"ready_at": ready_at, **more})


def doing(view: AppView, now: float = 1.0) -> list[act.Action]:
    return [a for a in c.converge(view, now) if not isinstance(a, act.LookAgain)]


BOTH = (worker(1, 1), worker(2, 2))


def test_settled_app_needs_nothing() -> None:
    assert doing(app(workers=BOTH)) == []


def test_missing_template_comes_before_workers() -> None:
    assert doing(app(templates=())) == [act.StartTemplate(1)]


def test_first_start_forks_all_slots_at_once() -> None:
    assert doing(app(starting=True)) == [act.Spawn(1, 1, False), act.Spawn(2, 1, False)]


def test_a_template_is_asked_for_so_many_workers_at_once_as_its_channel_takes() -> None:
    assert doing(app(want=300, starting=True)) == [act.Spawn(slot, 1, False) for slot in range(1, c.FORKS_AT_ONCE + 1)]
    some = tuple(worker(n, n, state=State.STARTING if n > 30 else State.READY) for n in range(1, c.FORKS_AT_ONCE + 1))
    first = c.FORKS_AT_ONCE + 1
    assert doing(app(want=300, starting=True, workers=some)) == [act.Spawn(slot, 1, False) for slot in range(first, first + 30)]
    assert len(doing(app(want=300, starting=True, forks=False, templates=()))) == 300


def test_dead_worker_is_replaced_at_once_in_its_slot() -> None:
    assert doing(app(workers=BOTH[:1])) == [act.Spawn(2, 1, False)]


def test_neither_a_worker_that_leaves_nor_one_of_the_generation_before_fills_a_slot() -> None:
    assert doing(app(workers=(BOTH[0], worker(2, 2, state=State.DRAINING)))) == [act.Spawn(2, 1, False)]
    committed = app(generation=2, templates=(TemplateView(2, "ready", 0.0),), workers=BOTH)
    assert doing(committed) == [act.Spawn(1, 2, False), act.Spawn(2, 2, False)]


def test_one_that_has_ended_keeps_neither_its_slot_nor_its_app_though_it_could_not_be_buried_yet() -> None:
    ended = worker(2, 2, state=State.STOPPED)
    assert doing(app(workers=(BOTH[0], ended), overlaps=False)) == [act.Spawn(2, 1, False)]
    assert doing(app(running=False, workers=(ended,), templates=())) == [act.Close()]


def test_backoff_waits_and_says_until_when() -> None:
    record = after_unstable_death(CLEAR, 1.0, RestartConfig(), jitter=0.0)
    actions = c.converge(app(workers=BOTH[:1], record=record), 1.05)
    assert actions == [act.LookAgain(pytest.approx(1.1))]
    assert doing(app(workers=BOTH[:1], record=record), 1.2) == [act.Spawn(2, 1, False)]


def test_after_an_unstable_death_one_worker_is_tried_at_a_time() -> None:
    record = after_unstable_death(CLEAR, 1.0, RestartConfig(), jitter=0.0)
    assert doing(app(want=4, record=record), 2.0) == [act.Spawn(1, 1, False)]
    trying = (worker(5, 1, state=State.STARTING, since=2.0),)
    assert doing(app(want=4, record=record, workers=trying), 2.5) == []
    ready = (worker(5, 1, since=2.0),)
    assert doing(app(want=4, record=record, workers=ready), 2.5) == [act.Spawn(2, 1, False)]


def test_of_an_app_that_asked_not_to_be_started_again_nothing_is() -> None:
    refused = Record(1, permanent=True)
    assert doing(app(record=refused, workers=BOTH[:1], forks=False, templates=()), 1000.0) == []
    assert doing(app(record=refused, workers=BOTH[:1]), 1000.0) == [act.StopTemplate(1)]


def test_one_is_replaced_while_the_one_before_it_in_another_slot_drains_but_not_in_the_middle_of_a_reload() -> None:
    tired = worker(2, 2, recycle=True)
    drains = worker(1, 1, state=State.DRAINING)
    assert doing(app(workers=(drains, worker(3, 1), tired))) == [act.Spawn(2, 1, False)]
    assert doing(app(workers=(drains, worker(3, 1), tired), target=2)) == [act.StartTemplate(2)]


def test_failed_app_is_probed_with_one_worker() -> None:
    record = Record(10, tuple(float(i) for i in range(10)), 70.0, failed=True)
    assert doing(app(want=3, record=record), 60.0) == []
    assert doing(app(want=3, record=record), 71.0) == [act.Spawn(1, 1, False)]
    probe = (worker(9, 1, since=71.0),)
    assert doing(app(want=3, record=record, workers=probe), 75.0) == []


def test_after_one_that_was_killed_as_not_ready_the_next_is_tried_when_its_death_is_counted_or_does_not_come() -> None:
    record = Record(10, tuple(float(i) for i in range(10)), 70.0, failed=True)
    killed = (worker(9, 1, state=State.KILLED, since=91.0, ready_at=None),)
    assert list(c.converge(app(want=1, record=record, workers=killed), 92.0)) == [act.LookAgain(91.0 + c.UNCOUNTED)]
    assert doing(app(want=1, record=record, workers=killed), 96.5) == [act.Spawn(1, 1, False)]  # it does not die


def test_a_sibling_that_lived_on_is_not_taken_for_the_probe_of_a_failed_app() -> None:
    record = Record(10, tuple(float(i) for i in range(1, 11)), 70.0, failed=True)
    assert doing(app(want=3, record=record, workers=BOTH), 71.0) == [act.Spawn(3, 1, False)]
    young = worker(2, 2, since=9.5)  # born between the last deaths but one and the last
    assert doing(app(want=3, record=record, workers=(BOTH[0], young)), 71.0) == [act.Spawn(3, 1, False)]


def test_stable_probe_clears_the_record() -> None:
    record = Record(10, tuple(float(i) for i in range(10)), 70.0, failed=True)
    probe = (worker(9, 1, since=71.0),)
    assert act.ClearRecord() in doing(app(want=3, record=record, workers=probe), 81.5)


def test_a_probe_that_is_sick_does_not_clear_the_record() -> None:
    record = Record(10, tuple(float(i) for i in range(10)), 70.0, failed=True)
    sick = (worker(9, 1, state=State.UNHEALTHY, since=71.0),)
    assert act.ClearRecord() not in doing(app(want=3, record=record, workers=sick), 81.5)


def test_the_record_of_a_slot_that_was_stopped_is_cleared_when_all_others_are_stable() -> None:
    """Nobody was ever tried there again: the app was degraded for ever, with all of its workers ready."""
    record = Record(10, tuple(float(i) for i in range(1, 11)), 70.0, failed=True)
    assert act.ClearRecord() not in doing(app(want=3, record=record, workers=BOTH), 15.0)
    assert doing(app(want=3, record=record, workers=BOTH, stopped_slots=frozenset({3})), 15.0) == [act.ClearRecord()]
    young = (worker(1, 1, since=9.0), worker(2, 2, since=9.5))
    assert c.converge(app(record=record, workers=young), 15.0) == [act.LookAgain(19.0)]


def test_the_record_is_cleared_when_nobody_is_wanted_who_could_be_tried() -> None:
    """All have finished (policy = "on-failure"): a failure of the template that is over was shown for ever."""
    record = Record(1, (61.0,), 61.1)
    done, back = frozenset({1, 2}), (TemplateView(1, "ready", 62.0),)
    assert act.ClearRecord() not in doing(app(record=record, finished_slots=done, forks=True, templates=()), 72.0)
    assert doing(app(record=record, finished_slots=done, forks=True, templates=back), 70.0) == []
    assert doing(app(record=record, finished_slots=done, forks=True, templates=back), 72.0) == [act.ClearRecord()]


def test_a_template_that_is_back_clears_the_record_of_its_deaths_when_all_workers_have_served_on() -> None:
    """Without a worker that is born after them nothing did: the app was degraded for ever."""
    record = Record(10, tuple(float(i) for i in range(1, 11)), 70.0, failed=True)
    back = (TemplateView(1, "ready", 71.0),)
    assert doing(app(record=record, workers=BOTH, templates=back), 72.0) == [act.ClearRecord()]
    assert doing(app(record=record, workers=BOTH, templates=()), 69.0) == []
    assert act.ClearRecord() not in doing(app(record=record, workers=BOTH[:1], templates=back), 72.0)
    young = (BOTH[0], worker(3, 2, since=70.5))
    assert act.ClearRecord() not in doing(app(record=record, workers=young, templates=back), 72.0)


def test_a_worker_that_serves_until_its_successor_does_clears_no_record_of_the_deaths_of_that() -> None:
    """A successor that died as soon as it was there was tried again at once, without end, and never given up."""
    recycled = (replace(BOTH[0], recycle=True), BOTH[1])
    record = after_unstable_death(CLEAR, 100.0, RestartConfig(), jitter=0.0)
    assert doing(app(record=record, workers=recycled), 100.05) == []
    assert doing(app(record=record, workers=recycled), 100.2) == [act.Spawn(1, 1, False)]


def test_permanent_failure_starts_nothing_and_stops_no_sibling() -> None:
    assert doing(app(workers=BOTH[:1], record=Record(1, (0.5,), 0.0, permanent=True), templates=())) == []


def test_a_start_that_failed_for_good_leaves_no_worker_behind() -> None:
    view = app(starting=True, record=Record(1, (0.5,), 0.0, permanent=True), workers=BOTH, templates=())
    assert doing(view) == [act.SendDrain(1, False, "the start failed"), act.SendDrain(2, False, "the start failed")]


@pytest.mark.parametrize("forks", [True, False])
def test_nothing_is_started_of_a_stopped_app(forks: bool) -> None:
    view = app(running=False, forks=forks, workers=(worker(1, 1, state=State.DRAINING),))
    assert act.Spawn not in map(type, doing(view, 0.5))


def test_failed_first_start_ends_the_others() -> None:
    view = app(starting=True, start_failed=True, workers=(worker(2, 2, state=State.STARTING),))
    assert doing(view) == [act.FailStart()]


def test_stuck_start_is_killed_at_ready_timeout() -> None:
    view = app(want=1, workers=(worker(1, 1, state=State.STARTING),))
    assert doing(view, 59.0) == []
    assert doing(view, 60.0) == [act.SendKill(1, "not ready within 60 s")]
    assert doing(replace(view, running=False), 60.0) == [act.SendKill(1, "not ready within 60 s"), act.StopTemplate(1)]


def test_stuck_import_is_ended_at_ready_timeout() -> None:
    view = app(templates=(TemplateView(1, "loading", 0.0),))
    assert doing(view, 30.0) == []
    assert isinstance(doing(view, 61.0)[0], act.StopTemplate)


def test_drain_then_signal_then_kill() -> None:
    stop = StopConfig(drain_timeout=5.0, kill_timeout=2.0)
    view = app(running=False, stop=stop, listening=False, templates=(), workers=(worker(1, 1, state=State.DRAINING),))
    assert doing(view, 6.9) == []
    assert doing(view, 7.0) == [act.SendStop(1, "drain time-out")]
    view = replace(view, workers=(worker(1, 1, state=State.STOPPING, since=7.0),))
    assert doing(view, 8.9) == []
    assert doing(view, 9.0) == [act.SendKill(1, "kill time-out")]


def test_one_that_sigkill_does_not_end_is_done_without() -> None:
    view = app(running=False, listening=False, templates=(), workers=(worker(1, 1, state=State.KILLED),))
    assert doing(view, 9.9) == []
    assert doing(view, 10.0) == [act.DoWithout(1)]


def test_stop_drains_everybody_to_empty_then_shuts_the_port_then_closes() -> None:
    assert doing(app(running=False, workers=BOTH)) == [
        act.StopTemplate(1),
        act.SendDrain(1, True, "stop"),
        act.SendDrain(2, True, "stop"),
    ]
    leaving = (worker(1, 1, state=State.DRAINING), worker(2, 2, state=State.DRAINING))
    assert doing(app(running=False, workers=leaving, templates=()), 0.5) == []
    assert doing(app(running=False, workers=leaving, templates=()), 1.0) == [act.ShutListeners()]
    assert doing(app(running=False, templates=())) == [act.Close()]


def test_a_stop_shuts_the_port_as_soon_as_nobody_accepts_any_more() -> None:
    def leaving(*left: bool | None) -> AppView:
        workers = tuple(worker(n, n, state=State.DRAINING, left=each) for n, each in enumerate(left, 1))
        return app(running=False, workers=workers, templates=())

    assert doing(leaving(True, True), 0.1) == [act.ShutListeners()]
    assert c.converge(leaving(True, False), 0.1)[-1] == act.LookAgain(0.1 + c.LOOK_WHETHER_LEFT)
    assert c.converge(leaving(True, None), 0.1)[-1] == act.LookAgain(c.QUEUE_GRACE)  # that one cannot tell
    assert doing(leaving(True, None), c.QUEUE_GRACE) == [act.ShutListeners()]


def test_a_stop_shuts_the_port_in_a_moment_in_which_nobody_would_be_reset() -> None:
    view = app(running=False, workers=BOTH, templates=(), nobody_waits=True)
    assert doing(view) == [act.SendDrain(1, True, "stop"), act.SendDrain(2, True, "stop")]  # who still serves keeps it
    leaving = tuple(worker(n, n, state=State.DRAINING, left=False) for n in (1, 2))
    assert doing(replace(view, workers=leaving), 0.0) == [act.ShutListeners()]
    assert doing(replace(view, workers=leaving, nobody_waits=False), 0.0) == []


def test_what_stops_later_serves_on_and_nothing_of_it_is_started() -> None:
    assert doing(app(running=False, stops_later=True, workers=BOTH)) == [act.StopTemplate(1)]
    assert doing(app(running=False, stops_later=True, workers=BOTH[:1], templates=())) == []
    assert act.SendDrain(1, True, "stop") in doing(app(running=False, workers=BOTH))
    assert doing(app(running=False, stops_later=True, templates=())) == [act.Close()]  # nobody is left who could serve


def test_stop_now_skips_the_drain() -> None:
    assert act.SendStop(1, "stop") in doing(app(running=False, hurry=True, workers=BOTH))


def test_stop_now_ends_a_drain_that_is_under_way() -> None:
    leaving = (worker(1, 1, state=State.DRAINING, since=1.0),)
    assert act.SendStop(1, c.DRAIN_TIMEOUT) in doing(app(running=False, hurry=True, workers=leaving), 1.0)


def test_worker_that_does_not_hear_is_not_waited_for() -> None:
    deaf = (worker(1, 1, hears=False), worker(2, 2))
    actions = doing(app(running=False, workers=deaf))
    assert actions[1:] == [act.SendStop(1, "stop"), act.SendDrain(2, True, "stop")]


def test_scaling_down_drains_the_last_slots_only() -> None:
    assert doing(app(want=1, workers=BOTH)) == [act.SendDrain(2, False, "scaled down")]


def test_stopped_slot_stays_empty() -> None:
    assert doing(app(workers=BOTH[:1], stopped_slots=frozenset({2}))) == []
    assert doing(app(workers=BOTH, stopped_slots=frozenset({2}))) == [act.SendDrain(2, False, "stop")]


def test_recycled_worker_leaves_after_its_successor_serves() -> None:
    old = replace(BOTH[1], recycle=True)
    assert doing(app(workers=(BOTH[0], old))) == [act.Spawn(2, 1, False)]
    starting = worker(3, 2, state=State.STARTING)
    assert doing(app(workers=(BOTH[0], old, starting))) == []
    assert doing(app(workers=(BOTH[0], old, worker(3, 2)))) == [act.SendDrain(2, False, "replaced")]


def test_a_recycled_worker_leaves_also_when_its_successor_has_passed_no_check_yet() -> None:
    old = replace(BOTH[1], recycle=True)
    assert doing(app(workers=(BOTH[0], old, worker(3, 2, checked=False)))) == [act.SendDrain(2, False, "replaced")]


def test_a_recycled_worker_that_serves_well_stays_until_its_successor_has_passed_a_check() -> None:
    old = replace(BOTH[1], recycle=True, can_wait=True)
    successor = worker(3, 2, checked=False)
    assert doing(app(workers=(BOTH[0], old, successor))) == []
    sick = replace(successor, state=State.UNHEALTHY)
    assert doing(app(workers=(BOTH[0], old, sick)))[-1] == act.SendDrain(3, False, "as sick as the one it was to replace")
    assert doing(app(workers=(BOTH[0], old, replace(successor, checked=True)))) == [act.SendDrain(2, False, "replaced")]


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, []),
        ({"recycle": True}, [act.SendDrain(1, False, "replaced")]),
        ({"state": State.UNHEALTHY}, [act.SendDrain(1, False, "replaced")]),
    ],
    ids=["well", "recycled", "sick"],
)
def test_a_worker_beside_which_no_other_can_live_leaves_before_its_successor_comes(
    changes: dict[str, Any], done: list[act.Action]
) -> None:
    view = app(want=1, overlaps=False, forks=False, templates=(), workers=(replace(BOTH[0], **changes),))
    assert doing(view) == done


def test_a_sick_worker_that_is_alone_stays() -> None:
    """Sick before its first check: its loop stands still. What it has in hand it may still answer."""
    sick = worker(1, 1, state=State.UNHEALTHY, checked=False)
    assert doing(app(want=1, workers=(sick,))) == [act.Spawn(1, 1, False)]


def test_sick_worker_leaves_after_its_successor_has_passed_a_check() -> None:
    sick = replace(BOTH[1], state=State.UNHEALTHY)
    assert doing(app(workers=(BOTH[0], sick))) == [act.Spawn(2, 1, False)]
    successor = worker(3, 2, checked=False)
    assert doing(app(workers=(BOTH[0], sick, successor))) == []
    successor = replace(successor, checked=True)
    assert doing(app(workers=(BOTH[0], sick, successor))) == [act.SendDrain(2, False, "replaced")]


def test_while_all_are_sick_the_successor_goes_and_nobody_else() -> None:
    sick = tuple(replace(w, state=State.UNHEALTHY) for w in BOTH)
    successor = worker(3, 1, state=State.UNHEALTHY, checked=False)
    why = "as sick as the one it was to replace"
    assert doing(app(workers=(*sick, successor)))[-1] == act.SendDrain(3, False, why)
    well = replace(BOTH[0], state=State.READY)  # the one that was to be replaced is well again
    assert doing(app(workers=(well, BOTH[1], successor))) == [act.SendDrain(3, False, why)]


def test_one_of_many_is_replaced_as_one_of_two_is() -> None:
    many = tuple(worker(n, n, recycle=n == 2) for n in range(1, 5))
    assert doing(app(want=4, workers=many)) == [act.Spawn(2, 1, False)]


def test_two_recycles_of_one_app_go_one_after_the_other() -> None:
    both = tuple(replace(w, recycle=True) for w in BOTH)
    assert doing(app(workers=both)) == [act.Spawn(1, 1, False)]
    assert doing(app(workers=(*both, worker(3, 1, state=State.STARTING)))) == []


def test_a_missing_worker_starts_beside_a_succession_and_a_second_succession_does_not() -> None:
    recycled = [worker(slot, slot, recycle=True) for slot in (1, 3)]
    view = app(want=3, workers=(*recycled, worker(4, 1, state=State.STARTING)))
    assert doing(view) == [act.Spawn(2, 1, False)]


def test_a_template_that_was_told_to_leave_and_has_not_is_stopped_again_also_by_a_daemon_that_has_not_told_it() -> None:
    view = app(templates=(TemplateView(1, "ready", 0.0), TemplateView(7, "retiring", 100.0)))
    assert act.LookAgain(100.0 + c.RETIRE_TIMEOUT) in c.converge(view, 100.0)
    assert act.StopTemplate(7) not in c.converge(view, 100.0)
    assert act.StopTemplate(7) in c.converge(view, 100.0 + c.RETIRE_TIMEOUT)


def test_a_template_that_does_not_leave_makes_room_for_the_one_that_is_wanted_again() -> None:
    view = app(workers=BOTH, templates=(TemplateView(1, "retiring", 100.0),))
    assert doing(view, 100.0 + c.RETIRE_TIMEOUT) == [act.StopTemplate(1)]


RELOADING = {"target": 2, "templates": (TemplateView(1, "ready", 0.0), TemplateView(2, "ready", 0.0))}


def test_reload_begins_with_a_template() -> None:
    assert doing(app(target=2, workers=BOTH)) == [act.StartTemplate(2)]


def test_canary_goes_alone_and_is_held() -> None:
    assert doing(app(workers=BOTH, **RELOADING)) == [act.Spawn(1, 2, True)]
    canary = worker(3, 1, 2, State.STARTING)
    assert doing(app(workers=(*BOTH, canary), **RELOADING)) == []


def test_the_rest_follows_a_canary_that_is_ready_and_healthy() -> None:
    canary = worker(3, 1, 2, State.HELD)
    assert doing(app(workers=(*BOTH, canary), **RELOADING)) == [act.Spawn(2, 2, True)]
    unchecked = replace(canary, checked=False)
    assert doing(app(workers=(*BOTH, unchecked), **RELOADING)) == []


def test_a_new_worker_that_has_ended_lets_no_rest_follow_and_no_reload_commit() -> None:
    canary, second = worker(3, 1, 2, ended=True), worker(4, 2, 2)
    assert doing(app(workers=(*BOTH, canary), **RELOADING)) == []
    assert doing(app(workers=(*BOTH, canary, second), **RELOADING)) == []


def test_no_more_of_a_reload_start_at_once_than_max_surge_says() -> None:
    view = app(want=6, reload=ReloadConfig(max_surge=3), workers=tuple(worker(n, n) for n in range(1, 7)), **RELOADING)
    canary, second = worker(11, 1, 2, State.HELD), worker(12, 2, 2, State.STARTING)
    more = replace(view, workers=(*view.workers, canary))
    assert doing(more) == [act.Spawn(slot, 2, True) for slot in (2, 3, 4)]
    more = replace(view, workers=(*view.workers, canary, second))
    assert doing(more) == [act.Spawn(slot, 2, True) for slot in (3, 4)]


def test_nobody_is_forked_by_the_template_of_another_generation() -> None:
    loading = TemplateView(2, "loading", 0.0)
    assert doing(app(target=2, workers=BOTH, templates=(RELOADING["templates"][0], loading))) == []
    assert doing(app(target=2, workers=BOTH[:1], templates=(TemplateView(1, "loading", 0.0), RELOADING["templates"][1]))) == [
        act.Spawn(1, 2, True)
    ]


def test_a_new_worker_that_leaves_before_the_commit_is_replaced() -> None:
    new = (worker(3, 1, 2, State.HELD), worker(4, 2, 2, State.STOPPING))
    assert doing(app(workers=(*BOTH, *new), **RELOADING)) == [act.Spawn(2, 2, True)]


def test_a_stop_in_the_middle_of_a_reload_ends_the_new_ones_too() -> None:
    actions = doing(app(running=False, workers=(BOTH[0], worker(3, 1, 2, State.HELD)), **RELOADING))
    assert [a.serial for a in actions if isinstance(a, (act.SendDrain, act.SendStop))] == [1, 3]


def test_commit_when_all_are_held() -> None:
    new = (worker(3, 1, 2, State.HELD), worker(4, 2, 2, State.HELD))
    assert doing(app(workers=(*BOTH, *new), **RELOADING)) == [act.Commit(2)]


def test_what_is_due_is_done_with_the_commit_and_all_else_is_asked_again_at_once() -> None:
    new = (worker(3, 1, 2, State.HELD), worker(4, 2, 2, State.HELD))
    leaves, stuck = worker(5, 1, state=State.DRAINING), worker(6, 2, state=State.STOPPING, since=-100.0)
    found = c.converge(app(workers=(*BOTH, *new, leaves, stuck), **RELOADING), 1.0)
    assert found == [act.SendKill(6, "kill time-out"), act.Commit(2), act.LookAgain(1.0)]


@pytest.mark.parametrize(
    "late",
    [
        worker(4, 2, 2, State.STARTING),
        worker(4, 2, 2, State.HELD, checked=False),
    ],
)
def test_no_commit_while_one_is_not_ready_or_not_checked(late: WorkerView) -> None:
    assert doing(app(workers=(*BOTH, worker(3, 1, 2, State.HELD), late), **RELOADING)) == []


def test_the_canary_goes_alone_and_the_rest_max_surge_at_a_time() -> None:
    many = {**RELOADING, "want": 5, "reload": ReloadConfig(max_surge=3)}
    old = tuple(worker(slot, slot) for slot in range(1, 6))
    assert doing(app(workers=old, **many)) == [act.Spawn(1, 2, True)]
    assert doing(app(workers=(*old, worker(6, 1, 2, State.STARTING)), **many)) == []
    canary = worker(6, 1, 2, State.HELD)
    assert doing(app(workers=(*old, canary), **many)) == [act.Spawn(slot, 2, True) for slot in (2, 3, 4)]
    assert doing(app(workers=(*old, canary, worker(7, 2, 2, State.STARTING)), **many)) == [act.Spawn(slot, 2, True) for slot in (3, 4)]


def test_nothing_is_started_of_a_generation_whose_pre_start_is_at_work() -> None:
    commands = {"forks": False, "target_forks": False, "templates": ()}
    assert doing(app(gated=frozenset({1}), **commands)) == []
    assert doing(app(gated=frozenset({2}), target=2, workers=BOTH, **commands)) == []
    assert doing(app(target=2, workers=BOTH, **commands)) == [act.Spawn(1, 2, True)]


def test_a_stop_in_the_middle_of_a_reload_starts_and_lets_in_nobody() -> None:
    stopped = app(running=False, target=2, forks=False, target_forks=False, templates=(), workers=(*BOTH, worker(3, 1, 2, State.HELD)))
    assert {type(action) for action in doing(stopped)} == {act.SendDrain, act.SendStop}
    held = app(running=False, workers=(worker(1, 1, state=State.HELD),), templates=())
    assert doing(held) == [act.SendStop(1, "stop")]


def test_after_the_commit_the_new_go_and_the_old_stay_until_they_accept() -> None:
    new = (worker(3, 1, 2, State.HELD), worker(4, 2, 2, State.HELD))
    committed = {"generation": 2, "previous": 1, "soak_until": 10.0, "templates": RELOADING["templates"]}
    assert doing(app(workers=(*BOTH, *new), **committed)) == [act.SendGo(3), act.SendGo(4)]
    half = (worker(3, 1, 2, State.READY), worker(4, 2, 2, State.OPENING, since=0.9))
    assert doing(app(workers=(*BOTH, *half), **committed)) == []
    ready = (worker(3, 1, 2), worker(4, 2, 2))
    assert doing(app(workers=(*BOTH, *ready), **committed)) == [
        act.SendDrain(1, False, "replaced by generation 2"),
        act.SendDrain(2, False, "replaced by generation 2"),
    ]


def test_failure_before_the_commit_ends_the_reload_and_touches_nobody() -> None:
    view = app(workers=BOTH, target_failed=True, **RELOADING)
    assert doing(view) == [act.AbortReload()]
    left_over = worker(3, 1, 2, State.HELD)
    assert doing(app(workers=(*BOTH, left_over))) == [act.SendStop(3, "its generation was given up")]


def test_a_failure_that_has_outlived_its_reload_or_start_ends_nothing() -> None:
    assert doing(app(workers=BOTH, target_failed=True)) == []
    assert doing(app(workers=BOTH, start_failed=True)) == []


def test_third_generation_waits_while_two_drain() -> None:
    new = (worker(3, 1, 3, State.HELD), worker(4, 2, 3, State.HELD))
    ancient = (worker(8, 1, 1, State.DRAINING, since=0.5),)
    current = (worker(5, 1, 2), worker(6, 2, 2))
    templates = (TemplateView(2, "ready", 0.0), TemplateView(3, "ready", 0.0))
    older = (*ancient, worker(9, 1, 0, State.DRAINING, since=0.5))
    view = app(generation=2, target=3, workers=(*new, *current, *ancient), templates=templates)
    assert doing(view) == [act.Commit(3)]
    assert doing(replace(view, workers=(*new, *current, *older))) == []


@pytest.mark.parametrize(("want", "deaths", "goes_back"), [(1, 1, True), (2, 1, False), (2, 2, True), (4, 2, False), (4, 3, True)])
def test_the_death_of_more_than_half_of_the_workers_in_the_soak_brings_the_generation_before_back(
    want: int, deaths: int, goes_back: bool
) -> None:
    view = app(
        want=want, generation=2, previous=1, soak_until=10.0, soak_deaths=deaths, templates=RELOADING["templates"],
        workers=tuple(worker(slot, slot, 2) for slot in range(1, want + 1)),
    )  # fmt: skip
    assert (act.RollBack in map(type, doing(view))) is goes_back


@pytest.mark.parametrize(("now", "looks_at"), [(1.0, 1.0 + OPENING_GRACE), (1.0 + OPENING_GRACE, 1.0 + c.OPENING_TIMEOUT)])
def test_one_that_was_told_to_accept_is_looked_at_when_it_counts_as_accepting_and_when_it_is_stuck(
    now: float, looks_at: float
) -> None:
    view = app(workers=(worker(1, 1), worker(2, 2, state=State.OPENING, since=1.0)))
    assert c.converge(view, now) == [act.LookAgain(looks_at)]


@pytest.mark.parametrize(
    ("waits", "leave"),
    [
        (OPENING_GRACE - 0.1, []),
        (OPENING_GRACE, [act.SendDrain(1, False, "replaced by generation 2"), act.SendDrain(2, False, "replaced by generation 2")]),
    ],
)
def test_the_old_do_not_wait_for_ever_for_one_that_was_told_to_accept_and_says_nothing(waits: float, leave: list[act.Action]) -> None:
    new = (worker(3, 1, 2, State.READY), worker(4, 2, 2, State.OPENING, since=1.0))
    view = app(generation=2, previous=1, soak_until=30.0, templates=RELOADING["templates"], workers=(*BOTH, *new))
    assert doing(view, 1.0 + waits) == leave


GONE_SOON = (worker(1, 1, state=State.DRAINING, since=0.0), worker(2, 2, state=State.DRAINING, since=5.0))


@pytest.mark.parametrize(
    ("view", "now", "closes"),
    [
        ({"workers": GONE_SOON}, 4.9 + c.QUEUE_GRACE, False),  # the last of them may take what is queued
        ({"workers": GONE_SOON}, 5.0 + c.QUEUE_GRACE, True),
        ({"workers": GONE_SOON, "hurry": True}, 5.0, True),
        ({"workers": (GONE_SOON[0], worker(2, 2))}, 5.0, False),
        ({"workers": GONE_SOON, "keep_listening": True}, 5.0 + c.QUEUE_GRACE, False),  # it is begun again in a moment
        ({"keep_listening": True}, 5.0, False),
        ({"templates": (TemplateView(1, "retiring", 4.0),)}, 5.0, False),
        ({}, 5.0, True),
    ],
)
def test_the_port_of_what_is_stopped_is_closed_when_nobody_may_take_from_it_any_more(
    view: dict[str, Any], now: float, closes: bool
) -> None:
    actions = doing(app(**{"running": False, "templates": (), "workers": ()} | view), now)
    assert any(isinstance(action, (act.ShutListeners, act.Close)) for action in actions) is closes


def test_a_restart_of_all_leaves_what_is_queued_to_the_next_and_asks_nobody_to_empty_it() -> None:
    drains = [act.SendDrain(1, False, "stop"), act.SendDrain(2, False, "stop")]
    assert doing(app(running=False, keep_listening=True, workers=BOTH, templates=())) == drains


def test_one_that_still_starts_is_stopped_as_it_hears_nothing_yet() -> None:
    starting = worker(3, 1, state=State.STARTING)
    assert doing(app(running=False, workers=(starting,), templates=())) == [act.SendStop(3, "stop")]
    given_up = app(workers=(BOTH[0], worker(4, 1, 2, State.STARTING)))  # also where a slot of today's is not open
    assert act.SendStop(4, "its generation was given up") in doing(given_up)


def test_one_that_has_served_well_stays_while_its_successor_is_sick() -> None:
    tired = worker(1, 1, recycle=True, can_wait=True)
    sick = worker(3, 1, state=State.UNHEALTHY)
    assert doing(app(workers=(tired, BOTH[1], sick))) == []
    assert doing(app(workers=(tired, BOTH[1], replace(sick, state=State.READY)))) == [act.SendDrain(1, False, "replaced")]


def test_in_the_soak_a_template_of_the_generation_before_that_has_died_is_not_started_again() -> None:
    new = (worker(3, 1, 2), worker(4, 2, 2))
    only_today = (TemplateView(2, "ready", 0.0),)
    assert doing(app(generation=2, previous=1, soak_until=30.0, templates=only_today, workers=new)) == []


def test_one_that_was_told_to_accept_and_has_not_for_long_is_killed() -> None:
    view = app(workers=(worker(1, 1), worker(2, 2, state=State.OPENING, since=1.0)))
    assert act.SendKill(2, "did not accept when told to") not in doing(view, 0.9 + c.OPENING_TIMEOUT)
    assert act.SendKill(2, "did not accept when told to") in doing(view, 1.0 + c.OPENING_TIMEOUT)


def test_an_app_of_which_nothing_is_to_run_is_not_open() -> None:
    assert not generation_is_open(app(finished_slots=frozenset({1, 2})), 1.0)  # else its failure would be forgotten


def test_too_many_deaths_in_the_soak_roll_back() -> None:
    view = app(generation=2, previous=1, soak_until=10.0, soak_deaths=2, templates=RELOADING["templates"])
    assert doing(view) == [act.RollBack(1, "2 workers of generation 2 died in the soak")]


def test_a_soak_that_is_given_up_rolls_back() -> None:
    view = app(generation=2, previous=1, soak_until=10.0, given_up="no more", templates=RELOADING["templates"])
    assert doing(view) == [act.RollBack(1, "no more")]


@pytest.mark.parametrize(
    "changes",
    [
        {"running": False},
        {"templates": RELOADING["templates"][1:]},
        {"templates": (TemplateView(3, "ready", 0.0), RELOADING["templates"][1])},
        {"templates": (TemplateView(1, "loading", 0.0), TemplateView(2, "ready", 0.0))},
    ],
    ids=["stopped", "no template of the old", "one of another", "it is not ready"],
)
def test_a_generation_whose_workers_cannot_be_made_is_not_gone_back_to(changes: dict[str, Any]) -> None:
    view = app(generation=2, previous=1, soak_until=10.0, given_up="no more", templates=RELOADING["templates"])
    assert act.RollBack not in map(type, doing(replace(view, **changes)))


def test_soak_ends() -> None:
    view = app(generation=2, previous=1, soak_until=10.0, workers=(worker(3, 1, 2), worker(4, 2, 2)), templates=RELOADING["templates"])
    assert doing(view, 10.0) == [act.EndSoak()]
    assert c.converge(view, 9.0) == [act.LookAgain(10.0)]


def test_one_that_has_ended_neither_serves_nor_clears_the_record() -> None:
    gone = app(want=1, workers=(worker(3, 1, ended=True),), record=Record(deaths=(-1.0,), tries=1))
    assert not generation_is_open(gone, 1.0)
    assert c.converge(gone, 100.0) == []


@pytest.mark.parametrize("state", [State.STARTING, State.OPENING])
def test_one_that_has_ended_is_not_said_to_be_late(state: State) -> None:
    assert doing(app(want=1, workers=(worker(3, 1, state=state),)), 100.0) != []
    assert doing(app(want=1, workers=(worker(3, 1, state=state, ended=True),)), 100.0) == []


def test_a_soak_does_not_end_before_a_death_in_it_is_counted() -> None:
    workers = (worker(3, 1, 2, ended=True), worker(4, 2, 2))
    view = app(generation=2, previous=1, soak_until=10.0, workers=workers, templates=RELOADING["templates"])
    assert c.converge(view, 10.0) == []


def test_command_with_its_own_port_stops_before_it_starts() -> None:
    kind = {"forks": False, "target_forks": False, "overlaps": False, "templates": (), "want": 1}
    old = worker(1, 1, hears=False)
    assert doing(app(target=2, workers=(old,), **kind)) == [act.Commit(2)]
    assert doing(app(generation=2, workers=(old,), **kind)) == [act.SendStop(1, "replaced by generation 2")]
    leaving = worker(1, 1, state=State.STOPPING)
    assert doing(app(generation=2, workers=(leaving,), **kind)) == []
    assert doing(app(generation=2, **kind)) == [act.Spawn(1, 2, False)]


def test_a_reload_may_make_another_kind_of_app_of_it() -> None:
    """From an app that is forked to a command, and back: what counts is the generation that comes up."""
    to_command = app(target=2, workers=BOTH, target_forks=False, target_holds=False)
    assert doing(to_command) == [act.Spawn(1, 2, False)]
    deaf = (worker(1, 1, hears=False), worker(2, 2, hears=False))
    to_app = app(target=2, workers=deaf, forks=False, templates=())
    assert doing(to_app) == [act.StartTemplate(2)]
    ready = replace(to_app, templates=(TemplateView(2, "ready", 0.0),))
    assert doing(ready) == [act.Spawn(1, 2, True)]
    soaking = app(
        generation=2, previous=1, previous_forks=False, soak_until=9.0, soak_deaths=2,
        workers=(worker(3, 1, 2), worker(4, 2, 2)), templates=(TemplateView(2, "ready", 0.0),),
    )  # fmt: skip
    assert act.RollBack in map(type, doing(soaking))


def test_nothing_of_a_gated_generation_is_started() -> None:
    waiting = app(templates=(), workers=(), starting=True, gated=frozenset({1}))
    assert doing(waiting) == []
    assert any(isinstance(a, act.StartTemplate) for a in doing(replace(waiting, gated=frozenset())))


def test_a_gated_target_leaves_the_old_generation_alone() -> None:
    view = app(workers=(worker(1, 1), worker(2, 2)), target=2, gated=frozenset({2}))
    assert doing(view) == []


def test_the_running_job_of_an_old_generation_ends_by_itself() -> None:
    old = replace(worker(1, 1, generation=1), job=True)
    view = app(generation=2, workers=(old,), templates=(), forks=False, overlaps=False, finished_slots=frozenset({1, 2}))
    assert any(isinstance(a, (act.SendDrain, act.SendStop)) for a in doing(view))
    assert doing(replace(view, job=True)) == []
    begun = replace(old, state=State.STARTING, ready_at=None)
    assert doing(replace(view, job=True, workers=(begun,))) == []


def test_a_reload_starts_no_run_of_a_job_beside_the_one_that_is_under_way() -> None:
    run = replace(worker(1, 1, generation=1), job=True)
    view = app(want=1, target=2, workers=(run,), templates=(), forks=False, target_forks=False, job=True, target_job=True)
    assert doing(view) == [act.Commit(2)]


def test_the_workers_of_a_service_that_a_reload_makes_a_job_leave() -> None:
    """As runs of the job they stayed for ever, and it had none of its own for as long."""
    serves = worker(1, 1, generation=1)
    before = app(want=1, target=2, workers=(serves,), templates=(), forks=False, target_forks=False, target_job=True)
    assert doing(before) == [act.Commit(2)]
    after = app(want=1, generation=2, workers=(serves,), templates=(), forks=False, job=True, finished_slots=frozenset({1}))
    assert doing(after) == [act.SendDrain(1, to_empty=False, reason="replaced by generation 2")]


# ---- a dispatcher ----------------------------------------------------------------------------------------
HANDS_OUT = DispatcherView("ready", 0.0)


def test_a_dispatcher_is_started_beside_the_template_and_kept_while_workers_live() -> None:
    view = app(dispatches=True, templates=(), starting=True)
    assert doing(view) == [act.StartDispatcher(), act.StartTemplate(1)]
    leaving = (worker(1, 1, state=State.DRAINING, since=0.9),)
    assert act.StartDispatcher() in doing(app(dispatches=True, running=False, workers=leaving, templates=()))
    hard_restart = app(dispatches=True, running=False, keep_listening=True, templates=(), dispatcher=HANDS_OUT)
    assert doing(hard_restart) == []


def test_a_dispatcher_that_a_stop_has_finished_makes_room_for_that_of_the_start_that_took_it_back() -> None:
    view = app(dispatches=True, running=False, keep_listening=True, templates=())
    finished = replace(view, dispatcher=replace(HANDS_OUT, finished=True))
    assert act.StopDispatcher() in doing(finished)
    assert act.StartDispatcher() in doing(view)


def test_an_app_whose_dispatcher_is_not_there_is_not_open() -> None:
    view = app(dispatches=True, workers=BOTH)
    assert not generation_is_open(view, 1.0)
    comes = DispatcherView("starting", 0.0)
    assert not generation_is_open(replace(view, dispatcher=comes), 1.0)
    assert generation_is_open(replace(view, dispatcher=HANDS_OUT), 1.0)


def test_old_workers_of_a_reload_stay_while_there_is_no_dispatcher() -> None:
    both = (*BOTH, worker(3, 1, 2), worker(4, 2, 2))
    view = app(dispatches=True, generation=2, workers=both, templates=(TemplateView(2, "ready", 0.0),))
    assert [a for a in doing(view) if isinstance(a, act.SendDrain)] == []
    drains = [a for a in doing(replace(view, dispatcher=HANDS_OUT)) if isinstance(a, act.SendDrain)]
    assert [a.serial for a in drains] == [1, 2]


def test_an_app_closes_only_when_its_dispatcher_has_left() -> None:
    view = app(dispatches=True, running=False, templates=(), dispatcher=HANDS_OUT)
    assert doing(view) == [act.StopDispatcher()]
    left = replace(view, dispatcher=DispatcherView("stopping", 1.0))
    assert doing(left) == []
    assert doing(replace(view, dispatcher=None)) == [act.Close()]


def test_a_dispatcher_that_dies_again_and_again_is_waited_for() -> None:
    record = Record(tries=3, next_at=5.0)
    actions = c.converge(app(dispatches=True, workers=BOTH, dispatcher_record=record), 1.0)
    assert actions == [act.LookAgain(5.0)]


def test_a_template_that_dies_again_and_again_is_waited_for_unless_it_is_a_reloads() -> None:
    view = app(workers=BOTH, templates=(), template_record=Record(tries=3, next_at=5.0))
    assert c.converge(view, 1.0) == [act.LookAgain(5.0)]
    assert act.StartTemplate(1) in c.converge(view, 5.0)
    assert act.StartTemplate(2) in c.converge(replace(view, target=2), 1.0)


def test_an_app_that_hands_nothing_out_any_more_lets_its_dispatcher_go() -> None:
    assert doing(app(workers=BOTH, dispatcher=HANDS_OUT)) == [act.StopDispatcher()]


def test_nobody_of_the_old_generation_stays_when_the_committed_one_wants_no_worker() -> None:
    view = app(want=0, generation=2, templates=(TemplateView(2, "ready", 0.0),), workers=BOTH)
    assert [a.serial for a in doing(view) if isinstance(a, act.SendDrain)] == [1, 2]


def test_a_target_that_wants_no_worker_is_committed_when_its_template_is_ready() -> None:
    ready = (TemplateView(1, "ready", 0.0), TemplateView(2, "ready", 0.0))
    assert doing(app(target=2, target_want=0, target_forks=True, workers=BOTH, templates=ready)) == [act.Commit(2)]


@pytest.mark.parametrize("want", [1, 3])
def test_another_number_of_workers_touches_the_old_generation_at_the_commit_and_not_before(want: int) -> None:
    view = app(target=2, target_want=want, target_forks=True, workers=BOTH)
    assert doing(view) == [act.StartTemplate(2)]
    ready = replace(view, templates=(TemplateView(1, "ready", 0.0), TemplateView(2, "ready", 0.0)))
    held = tuple(worker(2 + slot, slot, 2, State.HELD) for slot in range(1, want + 1))
    assert doing(replace(ready, workers=(*BOTH, *held[:-1])))[0] == act.Spawn(want, 2, held=True)
    assert doing(replace(ready, workers=(*BOTH, *held))) == [act.Commit(2)]


NEW_ONE = DispatcherView("starting", 0.0)
LEAVING_ONE = DispatcherView("stopping", 0.0)
WAITS = Record(tries=2, next_at=7.0)


@pytest.mark.parametrize(
    ("dispatcher", "record", "needed", "now", "steps"),
    [
        (None, CLEAR, True, 1.0, [act.StartDispatcher()]),
        (None, CLEAR, False, 1.0, []),
        (None, WAITS, True, 1.0, [act.LookAgain(7.0)]),
        (None, WAITS, True, 7.0, [act.StartDispatcher()]),
        (HANDS_OUT, CLEAR, True, 1.0, []),
        (HANDS_OUT, CLEAR, False, 1.0, [act.StopDispatcher()]),
        (NEW_ONE, CLEAR, True, 1.0, [act.LookAgain(c.DISPATCHER_READY_TIMEOUT)]),
        (NEW_ONE, CLEAR, True, 30.0, [act.StopDispatcher("not ready within 30 s")]),
        (NEW_ONE, CLEAR, False, 1.0, [act.LookAgain(c.DISPATCHER_READY_TIMEOUT), act.StopDispatcher()]),
        (LEAVING_ONE, CLEAR, True, 1.0, [act.LookAgain(c.DISPATCHER_STOP_TIMEOUT)]),
        (LEAVING_ONE, CLEAR, False, 5.0, [act.StopDispatcher("told to stop, and did not")]),
    ],
)
def test_a_dispatcher_is_kept_while_it_is_needed(
    dispatcher: DispatcherView | None, record: Record, needed: bool, now: float, steps: list[object]
) -> None:
    assert list(c.keep_dispatcher(dispatcher, record, needed=needed, now=now)) == steps
