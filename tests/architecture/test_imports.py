"""Who may import whom: the contracts of pyproject.toml, and what a process really has in memory when it starts."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROCESSES = {"cli", "daemon", "guardian", "logger", "template", "dispatcher"}


def imported_by(statement: str) -> set[str]:
    """Return what a fresh interpreter has imported after a statement."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout))


def third_party(modules: set[str]) -> set[str]:
    """Return the packages that are neither ours nor Python's (nor what an editable install puts there)."""
    tops = {m.partition(".")[0] for m in modules}
    return {
        t
        for t in tops - {"pyworker"}
        if t not in sys.stdlib_module_names and not t.startswith(("_", "sitecustom"))
    }


def test_import_contracts_hold() -> None:
    lint = shutil.which("lint-imports", path=os.path.dirname(sys.executable))
    if lint is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [lint, "--no-cache"], capture_output=True, text=True, timeout=110, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("process", ["daemon", "guardian", "logger", "template"])
def test_process_imports_no_other_process(process: str) -> None:
    modules = imported_by(f"import pyworker.{process}.main")
    others = {f"pyworker.{name}" for name in PROCESSES - {process}}
    assert {m for m in modules if m in others or m.startswith(tuple(o + "." for o in others))} == set()


@pytest.mark.parametrize("process", ["daemon", "guardian", "logger"])
def test_process_without_apps_loads_no_worker_and_no_event_loop_of_others(process: str) -> None:
    modules = imported_by(f"import pyworker.{process}.main")
    assert {m for m in modules if m.startswith(("pyworker.worker", "pyworker.template"))} == set()
    assert modules & {"asyncio", "uvicorn", "uvloop", "rich", "click", "multiprocessing"} == set()


@pytest.mark.parametrize("process", ["daemon", "dispatcher", "guardian", "logger"])
def test_what_lives_long_writes_to_stderr_by_what_does_not_fail_for_it(process: str) -> None:
    short_lived = {"__main__.py", "runcheck.py"}
    files = [path for path in (ROOT / "pyworker" / process).rglob("*.py") if path.name not in short_lived]
    assert [path.name for path in files if "sys.stderr" in path.read_text()] == []


@pytest.mark.parametrize("process", ["guardian", "logger"])
def test_small_processes_are_standard_library_only(process: str) -> None:
    assert third_party(imported_by(f"import pyworker.{process}.main")) == set()


@pytest.mark.parametrize(
    "module", ["template.main", "template.script", "template.command", "worker.main", "worker.api"]
)
def test_what_runs_beside_the_app_is_standard_library_only(module: str) -> None:
    assert third_party(imported_by(f"import pyworker.{module}")) == set()


def test_public_package_of_an_app_costs_nothing() -> None:
    modules = imported_by("import pyworker")
    assert {m for m in modules if m.startswith("pyworker.")} <= {"pyworker.worker", "pyworker.worker.api"}


@pytest.mark.parametrize("command", ["describe", "diff", "reload", "restart", "scale"])
def test_what_looks_into_files_is_imported_when_an_app_is_not_known(command: str) -> None:
    assert "pyworker.cli.startable" not in imported_by(f"import pyworker.cli.commands.{command}")
