"""Which command puts packages into an interpreter's environment: pip, or uv where that has made it, without a pip."""

from __future__ import annotations

import os


def install_command(python: str, *wanted: str, upgrade: bool = False) -> str:
    """Return it, as it is typed in a shell. `wanted`: names, with a range of versions where one is needed."""
    import shlex  # not for a template's start: where all is there nobody asks

    environment = os.path.dirname(os.path.dirname(python))
    project, name = os.path.split(environment)
    packages = shlex.join(wanted)
    if not _is_without_pip(environment):
        return f"{shlex.quote(python)} -m pip install {'-U ' * upgrade}{packages}"
    if name != ".venv" or not os.path.exists(os.path.join(project, "uv.lock")):
        return f"uv pip install --python {shlex.quote(environment)} {'-U ' * upgrade}{packages}"
    # what is not in its pyproject.toml the next `uv sync` takes out
    verb, option = ("sync", "--upgrade-package ") if upgrade else ("add", "")
    return f"uv {verb} --project {shlex.quote(project)} {option}{packages}"


def _is_without_pip(environment: str) -> bool:
    libraries = os.path.join(environment, "lib")
    from pyworker.unix.files import open_regular  # as above

    try:
        with open_regular(os.path.join(environment, "pyvenv.cfg")) as file:  # which is the app's, and may be anything
            settings = file.read(4096)
        versions = os.listdir(libraries)
    except OSError:
        return False
    made_by_uv = b"\nuv = " in b"\n" + settings
    return made_by_uv and not any(os.path.exists(os.path.join(libraries, v, "site-packages", "pip")) for v in versions)
