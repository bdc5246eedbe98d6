"""CLI: where the state folder is when the command line does not say. No click: completion needs it too."""

from __future__ import annotations

import os
import pwd
import re

from pyworker.cli.names import ALIASES, COMMANDS
from pyworker.errors import PyworkerError
from pyworker.protocol.names import APPS_FILE, BAD_APPS, ENV_HOME

_OF_THE_DAEMON = "daemon (?:start|stop|status|upgrade|run)"  # "the pyworker daemon is …" is no command
_COMMAND = re.compile(rf"\bpyworker (?=(?:{'|'.join([*(COMMANDS.keys() | ALIASES) - {'daemon'}, _OF_THE_DAEMON])})\b)")
_options = ""  # of this command line, which a command that is to be typed next has to have, too


def name_in_commands(home: str) -> None:
    """Have `typed` name this home, "" for none: the default one, or that of the environment, needs no name."""
    global _options
    _options = f"--home {home} " if home else ""


def typed(text: str) -> str:
    """Return what is said with the commands in it as they have to be typed to reach the same home."""
    return _COMMAND.sub(lambda found: found[0] + _options, text) if _options else text


def home_of(user: str) -> str:
    """Return where another user's state folder is, unless that user says otherwise."""
    return os.path.expanduser(f"~{user}/.local/state/pyworker")


def default_home() -> str:
    """Return the state folder when none was named on the command line."""
    if home := os.environ.get(ENV_HOME):
        return home
    state = _xdg("XDG_STATE_HOME", "~/.local/state")
    if not os.path.isabs(state):
        why = f"HOME is not set, and the user {os.getuid()} has no entry in /etc/passwd"
        hint = f"say where: --home FOLDER, or set {ENV_HOME}"
        raise PyworkerError(f"nothing says where the state folder is: {why}", hint=hint, code="no_home")
    return os.path.join(state, "pyworker")


def config_home() -> str:
    """Return where programs have their settings of this user."""
    return _xdg("XDG_CONFIG_HOME", "~/.config")


def data_home() -> str:
    """Return where programs have what they keep of this user."""
    return _xdg("XDG_DATA_HOME", "~/.local/share")


def _xdg(name: str, default: str) -> str:
    found = os.environ.get(name, "")
    # the XDG rules say: a relative path is to be ignored
    return found if os.path.isabs(found) else os.path.expanduser(default)


def unreadable(home: str) -> str:
    """Return the sentence about an apps.json that no daemon could read, as long as no app was started since; else ""."""
    try:
        names = os.listdir(home)
    except OSError:
        return ""
    kept = max((name for name in names if name.startswith(BAD_APPS)), default="")
    if not kept or APPS_FILE in names:
        return ""
    return f"What ran before is not restored: {APPS_FILE} could not be read, and is kept as {os.path.join(home, kept)}"


def apps_wanted(home: str) -> dict[str, bool]:
    """Return the apps that the daemon of this home keeps, and whether each is to run."""
    import json

    try:
        with open(os.path.join(home, APPS_FILE), "rb") as file:
            return {str(app["name"]): bool(app.get("running")) for app in json.load(file)["apps"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def user_name() -> str:
    """Return who we are; the number of a user without an entry in /etc/passwd (a container may give out any)."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def lingers(user: str) -> bool:
    """Return whether systemd keeps this user's services from boot on, without a login."""
    return os.path.exists(f"/var/lib/systemd/linger/{user}")
