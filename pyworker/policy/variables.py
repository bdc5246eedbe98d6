"""What to do about a variable that the app's environment does not have, from what its traceback and last line say. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

# what os.environ["SECRET_KEY"] raises; any other dict's error has no frame of `os` above it
_LOOKED_UP = re.compile(
    r'  File "(?:<frozen os>|[^"]*/os\.py)", line \d+, in __getitem__\n(?: .*\n)*KeyError: \'(\w+)\'\s*\Z'
)
_SAID = re.compile(  # by django-environ, python-decouple, environs, and by hand
    r"Set the ([A-Z][A-Z0-9_]+) environment variable"
    r"|\b([A-Z][A-Z0-9_]+) not found\. Declare it as envvar"
    r"|[Ee]nvironment variable:? [\"'`]?([A-Z][A-Z0-9_]+)[\"'`]?:? (?:is )?(?:not set|missing|required|empty)"
    r"|[Mm]issing (?:required )?environment variables?:? [\"'`]?([A-Z][A-Z0-9_]+)"
)


def of_variable(said: str, traceback: str, inherit_env: Sequence[str] = ()) -> str:
    """Return the next step; "" when something else was wrong. `inherit_env`: what the app is given of the shell's."""
    found = _LOOKED_UP.search(traceback) or _SAID.search(said)
    if found is not None:
        name = next(filter(None, found.groups()))
    elif "pydantic_settings" in traceback and "[type=missing," in traceback:
        name = ""  # its field is named below the message; it may have an alias, or a prefix
    else:
        return ""
    if "*" in inherit_env:  # an app without a file
        return f"it is given what the shell has that types the command: export {name or 'its variable'} there, or -e {name or 'NAME'}=…"
    env, of_shell = (f"env.{name}", f'inherit_env = "{name}"') if name else ("its variable in env", "inherit_env")
    return (
        f'set {env}, or name a file that has it: env_file = ".env"\n'
        f"of what the shell has set the app is given only what {of_shell} names"
    )
