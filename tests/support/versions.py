"""A pyworker that is installed for one test only, and can be made another version while it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig

import pyworker
from tests.support.pyworker import Pyworker


def install(pw: Pyworker) -> str:
    """Give `pw` an interpreter with a copy of the package; return the folder of the copy. Libraries are the test's."""
    venv = os.path.join(pw.folder, "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    pw.python = os.path.join(venv, "bin", "python")
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = os.path.join(venv, "lib", name, "site-packages")
    with open(os.path.join(packages, "libraries.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    copy = os.path.join(packages, "pyworker")
    shutil.copytree(os.path.dirname(os.path.abspath(pyworker.__file__)), copy)
    return copy


def set_version(copy: str, version: str) -> None:
    """Replace the version of the copy, as an installer does: another file under the same name."""
    path = os.path.join(copy, "__init__.py")
    with open(path) as file:
        text = file.read()
    with open(path + ".new", "w") as file:
        file.write(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', text))
    os.replace(path + ".new", path)
