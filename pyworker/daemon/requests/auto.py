"""Daemon: a reload that nobody typed: a timetable or a changed file asked for it."""

from __future__ import annotations

from pyworker.config.problem import ConfigError
from pyworker.daemon.app import App
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.requests.apps import read_again, shell_of
from pyworker.daemon.requests.change import reload_app
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.shortage import step_for


def reload_by_itself(desk: Desk, app: App, why: str) -> None:
    """Reload as a command would; no shell is there."""
    if desk.shutting_down or not app.wanted:
        return
    desk.brain.emit(app, "app_note", None, text=f"reload: {why}")
    try:
        generation = read_again(desk, app, shell_of(app, {}))
        desk.brain.add_generations([(app, generation)])
    except (ConfigError, ListenFailed) as error:
        desk.brain.note_not_reloaded(app, why, error.message)
        return
    except OSError as error:
        desk.brain.note_not_reloaded(app, why, f"{error.strerror}. {step_for(error.errno)}".rstrip())
        return
    reload_app(desk, app, generation, why=why)
    desk.save()
