"""Daemon: what nobody typed: a reload by a timetable or a changed file, and another try of what a boot could not start."""

from __future__ import annotations

from collections.abc import Sequence

from pyworker.config.load import parsed_once
from pyworker.config.problem import ConfigError
from pyworker.daemon.app import App
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.requests.apps import read_again
from pyworker.daemon.requests.change import reload_app
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.shortage import step_for
from pyworker.policy.restart import wants_replacement
from pyworker.protocol.events import Event

# seconds until an app is tried again that a boot had no descriptors or no address for, ...
RESTORE_AGAIN = 5.0
# ... and one whose config cannot be used: a disk may be mounted later, and users of a network be known then
READ_AGAIN = 15.0


def reload_by_itself(desk: Desk, app: App, why: str) -> None:
    """Reload as a command would; no shell is there."""
    if desk.shutting_down or not app.wanted:
        return
    desk.brain.remark(app, f"reload: {why}")
    with desk.brain.events.begun_by(f"itself: {why}"):
        _reload(desk, app, why)


def _reload(desk: Desk, app: App, why: str) -> None:
    try:
        generation = read_again(desk, app, {})
        desk.brain.add_generations([(app, generation)])
    except (ConfigError, ListenFailed) as error:
        desk.brain.reloads.note_not_reloaded(app, why, error.message)
        return
    except OSError as error:
        desk.brain.reloads.note_not_reloaded(app, why, f"{error.strerror}. {step_for(error.errno)}".rstrip())
        return
    reload_app(desk, app, generation, why=why)
    desk.save()


def start_again_after_boot(desk: Desk) -> None:
    """What a boot (or `pyworker run`) has begun and could not start is tried every `restart.retry`: a database
    may come up later than the app."""

    def on_event(event: Event) -> None:
        app = desk.brain.apps.get(event.app) if event.type == "app_failed" else None
        if app is None or app.running or app.config is None:
            return
        is_left = app.is_unusable or not wants_replacement(app.restart_config, clean=False)
        app.restored = (app.restored or desk.in_foreground) and not is_left  # the next daemon goes by that, too
        if app.restored:
            start_again(desk, [app], app.restart_config.retry)

    desk.brain.events.subscribe(on_event)


def start_again(desk: Desk, apps: Sequence[App], every: float) -> None:
    """Do it until each is begun, or somebody has said something else. 0: never."""

    def again() -> None:
        with parsed_once():
            wanted = [app for app in apps if _is_to_start(desk, app)]
            left = [app for app in wanted if not app.closed or not _begins(desk, app)]
        if len(left) < len(wanted):
            desk.save()
        start_again(desk, left, every)

    if every and apps:
        desk.brain.loop.call_later(every, again)


def _is_to_start(desk: Desk, app: App) -> bool:
    if desk.shutting_down or desk.brain.apps.get(app.name) is not app:
        return False
    return app.restored and app.wanted and not app.running and app.restart_to is None


def _begins(desk: Desk, app: App) -> bool:
    desk.brain.store.alive()  # each of many may wait for a server of users
    try:
        generation = read_again(desk, app, {})
        desk.brain.add_generations([(app, generation)])
    except (ConfigError, ListenFailed) as error:
        before, app.failure = app.failure, desk.brain.fail(error.message, hint=error.hint)
        # below its first line stands who has an address, and for how long
        if before is not None and before.message.partition("\n")[0] == error.message.partition("\n")[0]:
            app.failure.at = before.at
        return False
    except OSError:
        return False
    desk.brain.begin(app, generation.number)
    app.restored = True
    return True
