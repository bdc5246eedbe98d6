"""Daemon, requests Diff and Config: what runs against what is written down. They change nothing."""

from __future__ import annotations

import contextlib
from typing import Any

from pyworker.config import canonical
from pyworker.config.difference import differences
from pyworker.config.environment import without_passwords
from pyworker.config.load import load
from pyworker.config.origin import origins
from pyworker.config.problem import ConfigError
from pyworker.daemon.app import App, Generation, overlaps
from pyworker.daemon.client import Client
from pyworker.daemon.desired import FileSource
from pyworker.daemon.report import changed_files
from pyworker.daemon.requests.apps import read_again
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.protocol import control as k
from pyworker.record import replace


def diff(desk: Desk, client: Client, request: k.Diff) -> None:
    """Read each app's source again, as a reload would, and compare; nothing is kept of it."""
    for app in desk.apps(request.selectors):
        if app.current is None and app.failure is not None:  # a boot could not read it
            read_again(desk, app, request.shell_env)
    compared = [compare(desk, app, request.shell_env) for app in _known(desk, request.selectors)]
    changes = [{"app": c["app"], **change} for c in compared for change in c["changes"]]
    more = [] if request.selectors else _not_started(desk)
    client.reply(True, {"v": 1, "same": not changes, "changes": changes, "not_started": more, "apps": compared})


def _known(desk: Desk, selectors: tuple[str, ...]) -> list[App]:
    """The apps of some selectors whose config has been read. Refuse: one that is named has only been stopped since a boot."""
    apps = desk.apps(selectors)
    unread = [app for app in apps if app.current is None]
    if selectors and unread:
        name, failed = unread[0].name, unread[0].failure is not None
        text = f"{name} {'has failed' if failed else 'is stopped'}, and has not been started since the daemon was: its config was not read"
        raise Refuse("not_running", text, f"pyworker start {name}")
    return [app for app in apps if app.current is not None]


def _not_started(desk: Desk) -> list[dict[str, Any]]:
    """Return the apps that no `start` has taken, of the files whose other apps are known."""
    known = [app.source for app in desk.brain.apps.values() if isinstance(app.source, FileSource)]
    found = []
    for path, profile in {source.path: source.profile for source in known}.items():
        with contextlib.suppress(ConfigError):  # of those that were read again now there is none
            started = {source.app for source in known if source.path == path}
            apps = load(path, profile=profile).apps
            found += [{"app": app.name, "file": path} for app in apps if app.name not in started]
    return found


def compare(desk: Desk, app: App, shell_env: dict[str, str]) -> dict[str, Any]:
    """One app; raises ConfigError when its source is wrong now."""
    current = app.current
    assert current is not None
    new = read_again(desk, app, shell_env)
    changes = [
        {"key": c.key, "old": c.old, "new": c.new, "apply": c.apply, "secret": c.secret}
        for c in differences(current.resolved, new.resolved)
        if c.key != "workers" or new.resolved.workers != app.scale  # scaled to what is written: that runs
    ]
    changes += _of_certificates(current, new)
    return {
        "app": app.name,
        "file": new.resolved.source or None,
        "gen": app.generation,
        "running": app.running,
        "overlaps": overlaps(current.config) and overlaps(new.config),
        "scaled": app.scale if app.scale != new.resolved.workers else None,
        "changes": changes,
    }


def _of_certificates(current: Generation, new: Generation) -> list[dict[str, Any]]:
    """Return the files of [tls] whose path is the same and whose content is not."""
    before, now = current.config.tls, new.config.tls
    if before is None or now is None:
        return []
    return [
        {"key": f"tls.{name}", "old": path, "new": path, "apply": "reload", "secret": False}
        for name, old, read in zip(("cert", "key", "ca"), current.tls, new.tls, strict=True)
        if old != read and (path := getattr(now, name)) == getattr(before, name)
    ]


def config(desk: Desk, client: Client, request: k.Config) -> None:
    """The config of the committed generation, every default filled in, and where each value comes from."""
    found = [_config(app) for app in _known(desk, request.selectors)]
    client.reply(True, {"v": 1, "apps": found})


def _config(app: App) -> dict[str, Any]:
    current = app.current
    assert current is not None
    source = app.source
    path, profile = (source.path, source.profile) if isinstance(source, FileSource) else ("", "")
    overrides = source.overrides if isinstance(source, FileSource) else source.table
    resolved = current.resolved
    config = current.config
    if app.scale is not None and app.scale != resolved.workers:
        config, overrides = replace(config, workers=app.scale), {**overrides, "workers": app.scale}
    body: dict[str, Any] = {
        "name": app.name,
        "file": path or None,
        "profile": profile,
        "generation": app.generation,
        "changed": bool(changed := changed_files(app)),
        "changed_files": changed,
        "config": _masked(canonical.table(config, everything=True), resolved.secrets),
        "origins": {},
    }
    try:
        known = origins(config, path, {}, profile=profile, overrides=overrides)
    except ConfigError:  # the file is gone or no TOML any more: what runs is still what runs
        return body
    body["origins"] = {key: {"text": o.words(path), "kind": o.kind, "line": o.line or None} for key, o in known.items()}
    return body


def _masked(table: dict[str, Any], secrets: tuple[str, ...]) -> dict[str, Any]:
    table["state"] = without_passwords(table["state"])
    if "env" in table:
        table["env"] = {n: "***" if n in secrets else v for n, v in table["env"].items()}
    return table
