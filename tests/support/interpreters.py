"""Pythons that tests run beside their own. "" where this machine has none: the test is skipped."""

from __future__ import annotations

import functools
import glob
import os
import shutil
import subprocess
import sys
import sysconfig

_OF_THE_SYSTEM = "/usr/bin:/usr/local/bin"
_VERSION = "import sys, ensurepip, venv; print(*sys.version_info[:2], sys.executable)"


def of_the_system() -> str:
    """Any Python 3 that every user may run."""
    return shutil.which("python3", path=_OF_THE_SYSTEM) or ""


def for_all_users() -> str:
    """A Python of the tests' own version, that every user may run, if every user also comes to what pyworker needs."""
    if not _open_to_all(sysconfig.get_path("purelib")):
        return ""
    own = os.path.realpath(sys.executable)
    if _open_to_all(own):
        return own
    return shutil.which(f"python{sys.version_info[0]}.{sys.version_info[1]}", path=_OF_THE_SYSTEM) or ""


@functools.cache
def of_another_version() -> str:
    """A Python that pyworker supports and that is not of the tests' own version, so that nothing compiled fits both."""
    beside = glob.glob(os.path.join(os.path.dirname(os.path.realpath(sys.base_prefix)), "*", "bin", "python3"))
    named = [shutil.which(f"python3.{minor}") or "" for minor in range(11, 20)]
    for path in [*named, *sorted(beside)]:
        if not path:
            continue
        done = subprocess.run([path, "-I", "-c", _VERSION], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            major, minor, executable = done.stdout.strip().split(" ", 2)
            if (3, 11) <= (int(major), int(minor)) != sys.version_info[:2]:
                return executable
    return ""


def _open_to_all(path: str) -> bool:
    while os.stat(path).st_mode & 0o005 == 0o005:
        if path == "/":
            return True
        path = os.path.dirname(path)
    return False
