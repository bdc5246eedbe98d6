"""Daemon: a reload that nobody typed: a timetable or a changed file asked for it."""

from __future__ import annotations

from pyworker.config.problem import ConfigError
from pyworker.daemon.app import App
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.requests.apps import env_values, next_generation, shell_of
from pyworker.daemon.requests.change import reload_app
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.shortage import step_for
from pyworker.daemon.sources import make_generation, read_config


def reload_by_itself(desk: Desk, app: App, why: str) -> None:
    """Reload as a command would; no shell is there."""
    if desk.shutting_down or not app.wanted:
        return
    desk.brain.emit(app, "app_note", None, text=f"reload: {why}")
    try:
        config, file, read = read_config(app.source, env_values(desk, app))
        generation = make_generation(next_generation(desk, app.name), config, file, read, shell_of(app, {}))
        desk.brain.add_generations([(app, generation)])
    except (ConfigError, ListenFailed) as error:
        desk.brain.note_not_reloaded(app, why, error.message)
        return
    except OSError as error:
        desk.brain.note_not_reloaded(app, why, f"{error.strerror}. {step_for(error.errno)}".rstrip())
        return
    reload_app(desk, app, generation, why=why)
    desk.save()
