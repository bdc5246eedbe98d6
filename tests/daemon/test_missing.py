"""What is said of a module that a script or a command did not find."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig
from pyworker.daemon.missing import of_module

SAID = "ModuleNotFoundError: No module named 'yaml'"


def resolved(folder: Path, *command: str) -> Any:
    what: Any = {"command": command} if command else {"script": "app.py"}
    config = AppConfig("api", cwd=str(folder), **what)
    return SimpleNamespace(config=config, python="/own/bin/python", env={"PATH": f"{folder}/.venv/bin"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    for name in ("python", "python3", "celery"):
        (programs / name).touch(mode=0o755)
    return tmp_path


def test_of_a_script_it_is_installed_for_its_interpreter(folder: Path) -> None:
    assert of_module(SAID, resolved(folder)) == "install it: /own/bin/python -m pip install PyYAML"


def test_of_a_command_it_is_installed_for_the_python_that_it_is_or_lies_beside(folder: Path) -> None:
    programs = folder / ".venv" / "bin"
    for command, python in (("python3", "python3"), (".venv/bin/python", "python"), ("celery", "python")):
        found = of_module(SAID, resolved(folder, command, "app.py"))
        assert found == f"install it: {programs / python} -m pip install PyYAML"


def test_where_a_command_does_not_tell_its_python_none_is_made_up(folder: Path) -> None:
    assert of_module(SAID, resolved(folder, "/bin/sh", "-c", "python app.py")) == "install it for its Python: pip install PyYAML"


@pytest.mark.parametrize(
    "said",
    ["No module named gunicorn", "Error while finding module specification for 'gunicorn.app' (ModuleNotFoundError: No module named 'gunicorn')"],
)
def test_what_python_was_asked_to_run_may_be_the_apps_own(folder: Path, said: str) -> None:
    found = of_module(f"/usr/bin/python3.12: {said}", resolved(folder, "python3", "-m", "gunicorn"))
    install, own = found.split("\n")
    assert install == "install it: /usr/bin/python3.12 -m pip install gunicorn"
    assert f"not in {folder}" in own


def test_a_line_that_is_nearly_one_is_looked_through_once(folder: Path) -> None:
    """An app that printed 64 kB of it had the daemon stand still for seconds at each of its ends."""
    assert of_module("/python: " * 100_000, resolved(folder)) == ""


def test_a_path_that_there_cannot_be_is_not_looked_for(folder: Path) -> None:
    """A hook may print anything."""
    assert of_module("/srv\0/python3: No module named gunicorn", resolved(folder)) == ""


def test_a_virtual_environment_that_is_not_used_is_named(folder: Path) -> None:
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").touch(mode=0o755)
    assert of_module(SAID, resolved(folder)) == 'there is a virtual environment in venv: set python = "venv"'
    assert "install it" in of_module(SAID, resolved(folder, "venv/bin/python", "app.py"))


def test_of_a_package_that_is_there_another_version_may_have_the_module(folder: Path) -> None:
    said = "ModuleNotFoundError: No module named 'yaml.nodes2'"
    found = "PyYAML is installed, and this version has no such module: "
    assert of_module(said, resolved(folder)) == f"{found}/own/bin/python -m pip install -U PyYAML"
    assert of_module(said, resolved(folder, "/bin/sh", "-c", "python app.py")) == f"{found}pip install -U PyYAML"
    hidden = "ModuleNotFoundError: No module named 'yaml.nodes'; 'yaml' is not a package"  # by a yaml.py beside the script
    assert of_module(hidden, resolved(folder, "python", "scripts/app.py")) == ""
    asked = "/usr/bin/python3: No module named yaml.__main__; 'yaml' is a package and cannot be directly executed"
    assert of_module(asked, resolved(folder, "python3", "-m", "yaml")) == ""


def test_what_pip_would_not_have_is_not_asked_of_it(folder: Path) -> None:
    (folder / "shop").mkdir()
    for module in ("shop.models", "winreg"):
        assert of_module(f"ModuleNotFoundError: No module named '{module}'", resolved(folder)) == ""
    assert of_module("ValueError: No module named 'yaml'", resolved(folder)) == ""


@pytest.mark.parametrize(
    ("said", "package"),
    [
        ("Error: Cannot find module 'express'", "express"),
        ("Error: Cannot find module '@hono/node-server/vercel'", "@hono/node-server"),
        ("Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'hono' imported from /srv/server.mjs", "hono"),
    ],
)
def test_a_package_that_node_does_not_find_is_one_for_npm(folder: Path, said: str, package: str) -> None:
    node = resolved(folder, "node", "server.js")
    assert of_module(said, node) == f"in {folder}: npm install {package}"
    (folder / "package.json").touch()
    assert of_module(said, node) == f"in {folder}: npm install"
    (folder / "node_modules").mkdir()
    assert of_module(said, node) == f"in {folder}: npm install {package}"


def test_a_file_that_node_does_not_find_is_nothing_for_npm(folder: Path) -> None:
    for module in ("./routes", "../routes", "/srv/routes.js", "node:nothing"):
        assert of_module(f"Error: Cannot find module '{module}'", resolved(folder, "node", "server.js")) == ""
