"""Daemon: `[app.hooks]`: commands before a start or reload, after a reload, and at events.

Run like an exec health check: as the app's user, in its folder and environment, its whole session killed at the
time-out. `pre_start` decides (a failure is a failed start or a refused reload); the others only report. `post_fork`
is the worker's own business.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shlex

from pyworker.config.schema import HealthConfig
from pyworker.daemon import diagnosis
from pyworker.daemon.app import App, Failure, Generation
from pyworker.daemon.brain import Brain
from pyworker.daemon.check import Command, Done
from pyworker.daemon.missing import of_module
from pyworker.daemon.shortage import step_for_words
from pyworker.protocol.events import PRE_START_FAILED, Event
from pyworker.protocol.inherited import fd_name
from pyworker.protocol.wire import to_json

OURS = "hooks."  # how our notes begin
_MAX_QUEUED = 200  # events of one app that wait for a slow hook
_SAID_AFTER = 3.0  # seconds that a pre_start runs before it is said what a start or reload waits for
_MAX_OUTPUT = 8000  # characters of a failed pre_start that are shown


def _last(output: str) -> str:
    """Return the end of what a command printed, as much as is shown, from the begin of a line."""
    end = output[-_MAX_OUTPUT:]
    return (end.partition("\n")[2] or end) if len(output) > len(end) else end


def _failure(generation: Generation, whole: str, ok: bool | None, reason: str) -> Failure:
    """Say why a pre_start failed, which has printed the `whole`."""
    words = generation.config.hooks.pre_start
    first = reason.partition(": " + whole[-300:])[0] if whole else reason
    output = _last(whole)
    _, said = diagnosis.last_words(output.splitlines())
    if said:
        shown = said[:300]
        first, output = f"{first}: {shown}", "" if shown == output.strip() else output
    # None: it was for want of something, and is not its fault
    step = step_for_words(reason, 0) if ok is None else ""
    by_hand = f"try it in {generation.config.cwd}: {shlex.join(words)}"
    steps = [of_module(said, generation.resolved, words), step or by_hand]
    return Failure(f"{PRE_START_FAILED}: {first}", output, "\n".join(filter(None, steps)))


class Hooks:
    """All hooks of all apps; at most one `on_event` of an app runs at a time."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._preparing: dict[tuple[str, int], Command] = {}
        self._queues: dict[str, collections.deque[tuple[App, Event]]] = {}
        self._busy: set[str] = set()
        self._reporting: set[Command] = set()  # post_reload, on_event: nobody else waits for these
        brain.events.subscribe(self._on_event)

    # ---- pre_start -------------------------------------------------------------------------------------
    def gate(self, app: App) -> frozenset[int]:
        """Return the generations whose pre_start has not succeeded yet; begin those that have not begun."""
        waiting: set[int] = set()
        numbers = [app.target] if app.target is not None else []
        if app.starting and app.running:
            numbers.append(app.generation)
        if app.restart_to is not None and app.running:  # a failure leaves what runs alone
            numbers.append(app.restart_to)
        self._give_up(app, numbers)
        for number in numbers:
            generation = app.generations.get(number)
            if generation is None or not generation.config.hooks.pre_start or generation.prepared == "yes":
                continue
            if self._lives(app, generation.number):  # adopted: it was prepared before this daemon was born
                generation.prepared = "yes"
                continue
            if generation.prepared == "no":
                self._prepare(app, generation)
            waiting.add(generation.number)
        return frozenset(waiting)

    def _give_up(self, app: App, numbers: list[int]) -> None:
        """End what prepares any other generation: it was stopped, given up, or replaced by a later command."""
        for key in [k for k in self._preparing if k[0] == app.name and k[1] not in numbers]:
            self._preparing.pop(key).cancel()
            self._brain.store.remove(fd_name("hook", *key))

    def _lives(self, app: App, number: int) -> bool:
        return number in app.templates or any(w.id.generation == number for w in app.workers.values())

    def _prepare(self, app: App, generation: Generation) -> None:
        generation.prepared = "begun"
        words = generation.config.hooks.pre_start
        key = (app.name, generation.number)

        def done(ok: bool | None, reason: str) -> None:
            command = self._preparing.pop(key)
            self._brain.store.remove(fd_name("hook", *key))
            if ok:
                generation.prepared = "yes"
            else:
                failure = diagnosis.explained(
                    lambda: _failure(generation, command.output, ok, reason), Failure(f"{PRE_START_FAILED}: {reason}")
                )
                if app.target == generation.number:
                    app.target_failure = failure
                elif app.starting and app.generation == generation.number:
                    app.start_failure = failure
                elif app.running and app.restart_to == generation.number:
                    app.restart_to = None
                    self._brain.reloads.refuse(app, generation.number, failure)
            self._brain.poke(app)

        command = self._preparing[key] = self._run(app, generation, "pre_start", words, done)
        with contextlib.suppress(OSError):  # it could not be started, or no descriptor is left
            self._brain.store.put(fd_name("hook", *key), os.dup(command.pidfd))  # for the next daemon to end it

        def say() -> None:
            if self._preparing.get(key) is command:
                self._brain.remark(app, f"{OURS}pre_start runs: {shlex.join(words)}")

        self._brain.loop.call_later(_SAID_AFTER, say)

    @property
    def preparing(self) -> list[str]:
        """The apps whose `pre_start` runs."""
        return sorted({name for name, _ in self._preparing})

    @property
    def is_idle(self) -> bool:
        """True when no hook reports something, and none is going to."""
        return not self._reporting and not any(self._queues.values())

    def end(self) -> None:
        """End those that still run: the daemon leaves, and nobody would end one that hangs."""
        for command in self._reporting:
            command.cancel()
        self._reporting.clear()

    # ---- post_reload, on_event ---------------------------------------------------------------------------
    def _on_event(self, event: Event) -> None:
        app = self._brain.apps.get(event.app)
        generation = app.current if app is not None else None
        if app is None or generation is None:
            return
        hooks = generation.config.hooks
        if event.type == "reload_done" and hooks.post_reload:
            self._report(app, generation, "post_reload", hooks.post_reload)
        is_our_own = event.type == "app_note" and str(event.data.get("text", "")).startswith(OURS)
        if hooks.on_event and not is_our_own:
            queue = self._queues.setdefault(app.name, collections.deque())
            if len(queue) < _MAX_QUEUED:
                queue.append((app, event))
            else:
                why = f"is too slow: more than {_MAX_QUEUED} events wait, later ones are dropped"
                self._say_failed(app, "on_event", why)
            self._next(app.name)

    def _next(self, name: str) -> None:
        queue = self._queues.get(name)
        while queue and name not in self._busy:
            app, event = queue.popleft()
            generation = app.current  # as it is by now: a reload may have mended the hook, or removed it
            if generation is not None and (words := generation.config.hooks.on_event):
                self._busy.add(name)
                self._report(app, generation, "on_event", words, json.dumps(to_json(event)).encode() + b"\n")
        if not queue:
            self._queues.pop(name, None)

    def _say_failed(self, app: App, hook: str, why: str) -> None:
        self._brain.note(app, f"{OURS}{hook} failed: {why}")

    def _report(self, app: App, generation: Generation, hook: str, words: tuple[str, ...], stdin: bytes = b"") -> None:
        def done(ok: bool | None, why: str) -> None:
            self._reporting.discard(command)
            if hook == "on_event":
                self._busy.discard(app.name)
                self._brain.loop.call_soon(lambda: self._next(app.name))
            if not ok:
                self._say_failed(app, hook, why)

        command = self._run(app, generation, hook, words, done, stdin)
        self._reporting.add(command)

    def _run(
        self, app: App, generation: Generation, hook: str, words: tuple[str, ...], done: Done, stdin: bytes = b""
    ) -> Command:
        config = HealthConfig(type="exec", command=words, timeout=generation.config.hooks.timeout)
        env = {"PYWORKER_APP": app.name, "PYWORKER_HOOK": hook, "PYWORKER_GENERATION": str(generation.number)}
        of_death = self._brain.deaths.shortages.of_death
        return Command(self._brain.loop, generation.resolved, config, done, stdin=stdin, env=env, of_death=of_death)
