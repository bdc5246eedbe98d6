"""An image for one test run, made from this machine's own files: nothing is pulled, nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PACKAGES = ("click", "uvicorn", "httptools", "uvloop", "websockets", "dotenv", "h11")
_PROGRAMS = ("sh", "sleep", "rm")
_NAMES = ("__pycache__", "test", "tests", "idlelib", "tkinter", "ensurepip", "turtledemo", "*.a", "config-*")
_LEAVE_OUT = shutil.ignore_patterns(*_NAMES)
_LEAVE_OUT_TOO = shutil.ignore_patterns(*_NAMES, "site-packages", "dist-packages")
CONF = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def root_file_system(*, base_only: bool = False) -> str:
    """Make a folder that is a root file system: Python, what pyworker needs, sh, pyworker. The caller removes it.

    `base_only`: pip instead of pyworker, as an image of Python has it.
    """
    root = tempfile.mkdtemp(prefix="pwi-")
    os.chmod(root, 0o755)
    base = os.path.realpath(sys.base_prefix)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = root + os.path.join(base, "lib", version)  # at the place that is compiled into the interpreter
    shutil.copytree(os.path.join(base, "lib", version), library, ignore=_LEAVE_OUT_TOO)
    site = os.path.join(library, "site-packages")
    os.makedirs(site)
    packages = sysconfig.get_path("purelib")
    wanted = (*_PACKAGES, "pip") if base_only else _PACKAGES
    for name in wanted:
        for found in (os.path.join(packages, name), os.path.join(packages, f"{name}.py")):
            if os.path.isdir(found):
                shutil.copytree(found, os.path.join(site, name), ignore=_LEAVE_OUT)
            elif os.path.exists(found):
                shutil.copy(found, site)
    for name in os.listdir(packages):
        path = os.path.join(packages, name)
        if name.endswith(".so"):
            shutil.copy(path, site)
        elif name.endswith(".dist-info") and name.partition("-")[0].replace("python_", "") in wanted:
            shutil.copytree(path, os.path.join(site, name))
    if not base_only:
        shutil.copytree(os.path.join(ROOT, "pyworker"), os.path.join(site, "pyworker"), ignore=_LEAVE_OUT)
    os.makedirs(os.path.join(root, "usr/bin"), exist_ok=True)
    python = root + os.path.join(base, "bin", version)
    os.makedirs(os.path.dirname(python), exist_ok=True)
    shutil.copy(os.path.realpath(sys.executable), python)
    for link in ("python3", "python"):
        os.symlink(os.path.join(base, "bin", version), os.path.join(root, "usr/bin", link))
    name, module = ("pip", "pip._internal.cli.main") if base_only else ("pyworker", "pyworker.__main__")
    with open(os.path.join(root, "usr/bin", name), "w") as script:
        script.write(f"#!/usr/bin/python3\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
    os.chmod(script.name, 0o755)
    for name in _PROGRAMS:
        found = shutil.which(name)
        assert found is not None
        shutil.copy(os.path.realpath(found), os.path.join(root, "usr/bin", name))
    os.symlink("usr/bin", os.path.join(root, "bin"))
    binaries = [python, *(os.path.join(root, "usr/bin", n) for n in _PROGRAMS)]
    for folder, _, files in os.walk(library):
        binaries += [os.path.join(folder, f) for f in files if ".so" in f]
    for path in sorted({p for binary in binaries for p in _libraries(binary)}):
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            shutil.copy(os.path.realpath(path), target)
    for name in ("app", "proc", "sys", "dev", "etc", "tmp", "run"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    with open(os.path.join(root, "etc/passwd"), "w") as passwd:
        passwd.write("root:x:0:0:root:/:/bin/sh\n")
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o755)  # any user may run it
    return root


def _libraries(binary: str) -> list[str]:
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/[^ ]+\.so[^ ]*) \(0x", listed)
