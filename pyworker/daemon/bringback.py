"""Daemon: start again what is wanted and does not live: after a boot, and what could not be taken over."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

from pyworker import __version__
from pyworker.config.load import parsed_once
from pyworker.daemon import desired
from pyworker.daemon.adopt import Adopted, found_listeners, let_go, raw_resolved
from pyworker.daemon.app import Failure, Listener
from pyworker.daemon.requests.apps import forget
from pyworker.daemon.requests.auto import READ_AGAIN, RESTORE_AGAIN, start_again
from pyworker.daemon.requests.delete import delete_closed
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.requests.start import restore
from pyworker.daemon.shortage import step_for
from pyworker.unix import fds as unix_fds
from pyworker.unix import stderr

OWN_FDS = 16  # descriptors that the daemon takes for itself after what it restores


def bring_back(desk: Desk, wanted: desired.Desired, found: Adopted) -> None:
    """Start what is wanted and does not live; say so in one line.

    What the daemon has no descriptors for is put into `desk.waiting`, and tried again.
    """
    with _some_kept_free(), parsed_once(), desk.brain.store.together():
        _bring_back(desk, wanted, found)


def _bring_back(desk: Desk, wanted: desired.Desired, found: Adopted) -> None:
    failures: list[str] = []
    restored: list[str] = []
    refused: list[str] = []
    unsaved = False  # what the daemon before this one had decided when it was killed
    for name in sorted(set(found.let_go) - set(wanted) - set(found.wanted)):
        # nobody knows what it is: its fds stay where they are, and its workers serve on
        stderr.say("daemon", f"{name}: left as it runs, nothing says where it is from ({found.let_go[name]})")
    for name, app in {**found.wanted, **wanted}.items():
        desk.brain.store.alive()
        there = desk.brain.apps.get(name)
        if name in found.names and there is not None and (not there.closed or not app.running or there.stays_failed):
            unsaved |= not there.closed and there.desired() != app
            continue
        unread = "its generation cannot be read" if there is not None and desk.brain.store.names("env", name) else ""
        why = found.let_go.get(name, unread)
        listeners, values = there.listeners if there else {}, {}
        if why:
            stderr.say("daemon", f"{name}: cannot be taken over by version {__version__}, started again: {why}")
            env = raw_resolved(desk.brain, name).get("env", {})
            values = {n: str(env[n]) for n in app.source.env_names if n in env}
            listeners = listeners or found_listeners(desk.brain, name)
            let_go(desk.brain, name)
        elif there is not None:
            let_go(desk.brain, name)
        if there is not None:
            forget(desk, there)
        bring = functools.partial(_bring, desk, app, listeners, values)
        try:
            failure = bring()
        except OSError as error:
            failures.append(_try_later(desk, app, bring, error))
            continue
        if why:
            words = f"started again: what ran could not be taken over by pyworker {__version__} ({why})"
            desk.brain.note(desk.brain.apps[name], words)
        if failure:
            failures.append(failure)
            refused.append(name)
        elif app.running:
            restored.append(name)
    _start_later(desk, refused)
    if restored or found.wanted or unsaved:
        desk.save()  # each is a generation further, or the file was lost, or is not of this state
    delete_closed(desk)  # the daemon before this one was about to
    if restored or failures:
        words = f"restored: {', '.join(restored)}" if restored else "restored no app"
        stderr.say("daemon", words + ("; failed: " + "; ".join(failures) if failures else ""))


def _bring(desk: Desk, app: desired.DesiredApp, listeners: dict[int, Listener], values: dict[str, str]) -> str:
    failure = restore(desk, app, values, listeners)
    there = desk.brain.apps[app.name]
    there.restored = app.running
    return failure


def _start_later(desk: Desk, refused: list[str]) -> None:
    apps = [desk.brain.apps[name] for name in refused]
    start_again(desk, [app for app in apps if not app.unusable], RESTORE_AGAIN)
    start_again(desk, [app for app in apps if app.unusable], READ_AGAIN)


def _try_later(desk: Desk, app: desired.DesiredApp, bring: Callable[[], str], error: OSError) -> str:
    """Note what the daemon has no descriptors for, and go on trying; return the words for it."""
    name, reason, hint = app.name, f"cannot be restored yet: {error.strerror}", step_for(error.errno)
    desk.brain.emit_failed(name, Failure(reason, hint=hint))
    desk.waiting[name] = app, desk.brain.fail(f"{reason}; it is tried again", hint=hint)

    def again() -> None:
        if desk.shutting_down or name not in desk.waiting or name in desk.brain.apps:  # somebody has started it anew
            return
        try:
            failure = bring()
        except OSError:
            desk.brain.loop.call_later(RESTORE_AGAIN, again)
            return
        if failure:
            _start_later(desk, [name])
        stderr.say("daemon", failure or f"restored {name}")
        desk.save()

    desk.brain.loop.call_later(RESTORE_AGAIN, again)
    return f"{name}: {reason}, it is tried again. {hint}".rstrip()


@contextlib.contextmanager
def _some_kept_free() -> Iterator[None]:
    """Leave descriptors for the daemon itself: without them it ends over its sockets, and whoever asks hears nothing."""
    kept: list[int] = []
    with contextlib.suppress(OSError):
        while len(kept) < OWN_FDS:
            kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    try:
        yield
    finally:
        unix_fds.close_all(kept)
