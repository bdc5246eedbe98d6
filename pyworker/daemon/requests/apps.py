"""Daemon: making and forgetting an app, its generations and what they keep in the store."""

from __future__ import annotations

import contextlib
import os
import shlex

from pyworker.config import environment
from pyworker.config.problem import ConfigError, Problem
from pyworker.config.resolve import DEFAULT_VENV, FROM_SHELL
from pyworker.daemon.app import App, Generation
from pyworker.daemon.board import Board
from pyworker.daemon.desired import Source
from pyworker.daemon.ledger import Ledger
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.sources import make_generation, read_config
from pyworker.protocol.inherited import fd_name


def env_values(app: App) -> dict[str, str]:
    """The values of -e, from the generation that has them."""
    known = app.current.resolved.env if app.current is not None else app.given_env
    return {n: known[n] for n in app.source.env_names if n in known}


def shell_of(desk: Desk, app: App | None, given: dict[str, str]) -> dict[str, str]:
    """What inherit_env picks from: the shell of who typed the command. Where nobody did (the dashboard, a timetable, a changed
    file), what a shell gave to the generation that is there, and of the daemon's own environment what that one has not asked for.
    In the foreground only that: the service's or container's, which a shell in there, or root's, does not have."""
    if desk.in_foreground:
        return dict(os.environ)
    if given or app is None:
        return given
    shell = dict(os.environ)
    if app.current is not None:
        resolved = app.current.resolved
        not_given: dict[str, str] = {}
        environment.inherit(not_given, shell, app.current.config.inherit_env)
        shell = {n: v for n, v in shell.items() if n not in not_given} | resolved.from_shell
        shell |= {n: v for n, v in resolved.env.items() if resolved.env_origins.get(n) == FROM_SHELL}
    return shell


def new_app(desk: Desk, name: str, source: Source) -> App:
    """An app with its board and ledger in the store. OSError (no descriptor is left): there is nothing of it."""
    with contextlib.ExitStack() as undo:
        board = Board.create(name)
        undo.callback(board.close)
        board_fd = os.dup(board.fd)
        undo.callback(os.close, board_fd)
        ledger_fd = Ledger.create(name)
        undo.callback(os.close, ledger_fd)
        ledger = Ledger(ledger_fd)
        undo.pop_all()
    desk.brain.store.put_all({fd_name("board", name): board_fd, fd_name("ledger", name): ledger_fd})
    app = App(name, source, board, ledger)
    desk.brain.apps[name] = app
    return app


def next_generation(desk: Desk, name: str) -> int:
    """The number of the generation after all that were."""
    app = desk.brain.apps.get(name)
    return (max(app.last_generation, app.generation) if app else 0) + 1


def read_again(desk: Desk, app: App, given: dict[str, str]) -> Generation:
    """Return the next generation of an app that is known, read from its source as it is now; raises ConfigError.

    `given`: by the shell of who asks, {} where none is there.
    """
    config, file, read = read_config(app.source, env_values(app))
    generation = make_generation(next_generation(desk, app.name), config, file, read, shell_of(desk, app, given))
    wanted = lost_venv(app.current, generation)
    if wanted and app.current is not None:
        problem = f"the app runs with {app.current.resolved.python}, and {wanted} is not there any more"
        hint = f"make it again: python3 -m venv {shlex.quote(wanted)}; or name another: python = …"
        raise ConfigError([Problem(problem, hint, "python", file, code="not_found")])
    return generation


def begin_anew(desk: Desk, app: App, number: int) -> None:
    """Begin with a generation, once all that is old has left."""
    if app.closed:
        desk.brain.begin(app, number)
        return
    app.wanted, app.running = True, False
    app.restart_to = number
    app.delete_when_closed = False  # not by a later stop, either
    desk.brain.poke(app)


def lost_venv(before: Generation | None, after: Generation) -> str:
    """Return the venv that nobody named if it is gone, and only therefore the interpreter another: it has none of the app's packages."""
    if before is None or after.config.python is not None:
        return ""
    found = os.path.join(before.config.cwd, DEFAULT_VENV, "")
    wanted = os.path.join(after.config.cwd, DEFAULT_VENV)
    return wanted if before.resolved.python.startswith(found) and not os.path.isdir(wanted) else ""


def forget(desk: Desk, app: App) -> None:
    desk.brain.apps.pop(app.name, None)
    app.ledger.close()
    app.board.close()
    desk.brain.store.remove(*(fd_name(kind, app.name) for kind in ("board", "ledger", "logs", "stacks")))
