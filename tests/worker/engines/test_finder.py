"""Where the HTTP engine comes from: the app's environment, else pyworker's own, lent without being on sys.path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

import pyworker
from pyworker.worker.engines import finder

ROOT = str(Path(pyworker.__file__).parent.parent)
OWN = sysconfig.get_paths()["purelib"]
ABI = str(sysconfig.get_config_var("SOABI"))

PROGRAM = """
import importlib, json, sys
root, options, path, abi, names = json.loads(sys.argv[1])
sys.path.append(root)
from pyworker.config.schema import AppConfig
from pyworker.protocol.template import Engine
from pyworker.worker.engines.prepare import EngineMissing, prepare
sys.path.remove(root)
try:
    found = prepare(AppConfig(name="test", **options), Engine(path, abi))
    result = {"description": found.description, "loop": found.loop}
except EngineMissing as error:
    result = {"message": error.message, "hint": error.hint}
result["imports"] = {}
for name in names:
    try:
        result["imports"][name] = importlib.import_module(name).__file__
    except ImportError:
        result["imports"][name] = None
result["path"] = sys.path
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a fresh environment with nothing in it."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin" / "python")


def site(python: str) -> Path:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return Path(python).parent.parent / "lib" / version / "site-packages"


def prepared(python: str, *names: str, path: str = OWN, abi: str = ABI, **options: Any) -> dict[str, Any]:
    argument = json.dumps([ROOT, options, path, abi, names])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", PROGRAM, argument],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_apps_own_engine_is_used_when_it_has_one() -> None:
    found = prepared(sys.executable)
    assert found["description"].startswith("uvicorn 0.54.")
    assert found["description"].endswith("(from the app's environment)")
    assert found["loop"] == "uvloop"


def test_an_environment_without_engine_is_lent_ours_and_nothing_else(empty: str) -> None:
    found = prepared(empty, "uvicorn", "httptools", "psutil", "rich", "flask", "requests")
    assert found["description"].endswith("(pyworker's own)")
    assert found["loop"] == "uvloop"
    assert OWN not in found["path"]
    imports = found["imports"]
    assert imports["uvicorn"].startswith(OWN)
    assert imports["httptools"].startswith(OWN)
    assert [imports[name] for name in ("psutil", "rich", "flask", "requests")] == [None] * 4


def test_what_pip_installs_with_pyworker_is_what_the_engine_works_with() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    wanted = {name.partition(";")[0] for name in project["dependencies"]}
    assert {finder.requirement(name).strip("'") for name in finder.TESTED} <= wanted


def test_another_abi_gets_the_command_that_installs_it(empty: str) -> None:
    found = prepared(empty, abi="cpython-39-x86_64-linux-gnu")
    assert "uvicorn is not installed" in found["message"]
    assert "cpython-39" in found["message"]
    environment = os.path.dirname(os.path.dirname(empty))
    assert found["hint"].startswith(f"pip --python {environment} install 'uvicorn>=0.54,<0.55'")


def test_an_engine_of_ours_that_the_apps_user_cannot_reach_is_named(empty: str) -> None:
    assert "(pyworker's own is in /root/nowhere, which this user cannot reach)" in prepared(empty, path="/root/nowhere")["message"]


def test_an_untested_version_is_replaced_and_the_apps_other_libraries_are_not(empty: str) -> None:
    packages = site(empty)
    made = []
    for name, version in (("uvicorn", "0.30.1"), ("click", "7.0")):
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("def __getattr__(name): return lambda *a, **k: (lambda f: f)\n")
        (packages / f"{name}-{version}.dist-info").mkdir()
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        made.append(name)
    try:
        refused = prepared(empty, abi="other")
        assert "uvicorn 0.30.1 is not in the tested range" in refused["message"]
        found = prepared(empty, "uvicorn", interface="wsgi", path="/nonexistent", abi=ABI)
        assert "message" in found
    finally:
        import shutil

        for entry in list(packages.iterdir()):
            if entry.name.split("-")[0] in made:
                shutil.rmtree(entry)


def test_the_loop_is_the_one_that_was_asked_for(empty: str, tmp_path: Path) -> None:
    assert prepared(empty, loop="asyncio")["loop"] == "asyncio"
    assert prepared(empty, loop="uvloop")["loop"] == "uvloop"
    without = tmp_path / "packages"
    without.mkdir()
    for entry in Path(OWN).iterdir():
        if entry.name.split("-")[0] in ("uvicorn", "httptools", "websockets", "click", "h11"):
            (without / entry.name).symlink_to(entry)
    assert prepared(empty, path=str(without))["loop"] == "asyncio"
    refused = prepared(empty, path=str(without), loop="uvloop")
    assert "uvloop is not installed" in refused["message"]
    assert "'uvloop>=" in refused["hint"]


def test_a_loop_that_does_not_know_this_python_is_done_without_unless_it_was_asked_for(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False, symlinks=True)
    python = str(tmp_path / "bin" / "python")
    (site(python) / "uvloop").mkdir()
    (site(python) / "uvloop" / "__init__.py").write_text("import asyncio\nasyncio.NoSuchWatcher\n")
    (site(python) / "uvloop-0.21.0.dist-info").mkdir()
    (site(python) / "uvloop-0.21.0.dist-info" / "METADATA").write_text("Name: uvloop\nVersion: 0.21.0\n")
    assert prepared(python)["loop"] == "asyncio"
    assert "uvloop cannot be imported: AttributeError: module 'asyncio'" in prepared(python, loop="uvloop")["message"]


def test_uvicorn_is_imported_for_websockets_only_and_versions_are_read_off_the_folders() -> None:
    found = prepared(sys.executable)
    assert "uvicorn 0.54." in found["description"]
    program = PROGRAM.replace(
        'result["imports"] = {}', 'result["early"] = [n for n in ("uvicorn", "websockets", "importlib.metadata") if n in sys.modules]\n'
        'from pyworker.worker.engines import prepare as p\nresult["can"] = p.has_websockets()\nresult["made"] = p.websockets().__name__\n'
        'result["late"] = "uvicorn" in sys.modules\nresult["imports"] = {}',
    )  # fmt: skip
    argument = json.dumps([ROOT, {}, OWN, ABI, []])
    done = subprocess.run([sys.executable, "-I", "-c", program, argument], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["early"], result["can"], result["made"], result["late"]) == ([], True, "WebSockets", True)
