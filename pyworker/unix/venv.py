"""Which command puts packages into an interpreter's environment: pip, or what has made it without one (uv, PDM)."""

from __future__ import annotations

import os


def install_command(python: str, *wanted: str, upgrade: bool = False) -> str:
    """Return it, as it is typed in a shell. `wanted`: names, with a range of versions where one is needed."""
    import shlex  # not for a template's start: where all is there nobody asks

    environment = os.path.dirname(os.path.dirname(python))
    project, name = os.path.split(environment)
    packages = shlex.join(wanted)
    settings = _without_pip(environment)
    if not settings:
        return f"{shlex.quote(python)} -m pip install {'-U ' * upgrade}{packages}"
    # what is not in its pyproject.toml the next `sync` takes out
    if name == ".venv" and os.path.exists(os.path.join(project, "pdm.lock")):
        return f"pdm {'update' if upgrade else 'add'} -p {shlex.quote(project)} {packages}"
    if b"\nuv = " not in b"\n" + settings:
        return f"pip --python {shlex.quote(environment)} install {'-U ' * upgrade}{packages}"
    if name != ".venv" or not os.path.exists(os.path.join(project, "uv.lock")):
        return f"uv pip install --python {shlex.quote(environment)} {'-U ' * upgrade}{packages}"
    verb, option = ("sync", "--upgrade-package ") if upgrade else ("add", "")
    return f"uv {verb} --project {shlex.quote(project)} {option}{packages}"


def _without_pip(environment: str) -> bytes:
    """Return the settings of a virtual environment that has no pip, b"" of any other Python."""
    libraries = os.path.join(environment, "lib")
    from pyworker.unix.files import open_regular  # as above

    try:
        with open_regular(os.path.join(environment, "pyvenv.cfg")) as file:  # which is the app's, and may be anything
            settings = file.read(4096)
        versions = os.listdir(libraries)
    except OSError:
        return b""
    for version in versions:
        for pip in "pip", "pipx_shared.pth":  # pipx has one for all environments that it makes
            if os.path.exists(os.path.join(libraries, version, "site-packages", pip)):
                return b""
    return settings
