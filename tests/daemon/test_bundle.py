"""The runtime zip holds all that a worker imports, and is usable by a bare interpreter."""

from __future__ import annotations

import marshal
import os
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pyworker.daemon import bundle
from pyworker.daemon.bundle import cached, runtime_zip

CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
import pyworker.template.main, pyworker.template.script, pyworker.worker.main, pyworker.worker.api
import pyworker.cluster.primary, pyworker.cluster.state
import pyworker
assert pyworker.__file__.startswith(sys.argv[1]), pyworker.__file__
outside = [m.__name__ for m in sys.modules.values() if "site-packages" in str(getattr(m, "__file__", ""))]
assert not outside, outside
for name in ("uvicorn", "httptools", "uvloop", "click", "psutil"):
    assert name not in sys.modules, name
"""


def test_bare_interpreter_imports_the_runtime(tmp_path: Path) -> None:
    path = tmp_path / "runtime.zip"
    path.write_bytes(runtime_zip())
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHECK, str(path)],
        cwd=os.path.dirname(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_bytecode_of_another_version_is_passed_over(tmp_path: Path) -> None:
    path, other = tmp_path / "runtime.zip", tmp_path / "other.zip"
    path.write_bytes(runtime_zip())
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, b"\x01\x02\r\n" + data[4:] if name.endswith(".pyc") else data)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHECK, str(other)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_nothing_but_the_runtime_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "runtime.zip"
    path.write_bytes(runtime_zip())
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert "__main__.py" in names
    folders = {name.split("/")[1] for name in names if name.count("/") > 1}
    assert folders == {"config", "protocol", "policy", "unix", "worker", "template", "cluster"}


def test_what_is_compiled_for_it_is_for_every_user_of_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "one.py").touch(0o644)
    monkeypatch.setattr(bundle, "_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = os.umask(0o077)
    try:
        runtime_zip()
    finally:
        os.umask(before)
    (compiled,) = tmp_path.glob("policy/__pycache__/*")
    assert (compiled.stat().st_mode & 0o777, compiled.parent.stat().st_mode & 0o777) == (0o644, 0o755)


def test_bytecode_from_the_cache_is_that_of_this_very_source(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("a = 1\n")
    assert cached(str(path)) == b""
    py_compile.compile(str(path), doraise=True)
    assert marshal.loads(cached(str(path))).co_names == ("a",)
    path.write_text("a = 22\n")
    assert cached(str(path)) == b""


@pytest.mark.parametrize("mode", [py_compile.PycInvalidationMode.CHECKED_HASH, py_compile.PycInvalidationMode.UNCHECKED_HASH])
def test_bytecode_that_is_checked_by_a_hash_is_left_to_python(tmp_path: Path, mode: py_compile.PycInvalidationMode) -> None:
    path = tmp_path / "module.py"
    path.write_text("a = 1\n")
    py_compile.compile(str(path), doraise=True, invalidation_mode=mode)
    assert cached(str(path)) == b""
