"""The peers: installed from the registries into benchmarks/.peers, once. What cannot be had is reported, not fatal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(HERE)
PEERS = os.path.join(HERE, ".peers")
APPS = os.path.join(HERE, "apps")
VENV = os.path.join(PEERS, "venv")
PYTHON = os.path.join(VENV, "bin", "python")
PM2 = os.path.join(PEERS, "node", "node_modules", ".bin", "pm2")
APT = os.path.join(PEERS, "apt")
_PIP = ("uvicorn[standard]", "django", "gunicorn", "granian", "circus", "supervisor", "uwsgi", "py-spy")
_DEBS = {"wrk": ("wrk", "libluajit-5.1-2", "libluajit-5.1-common"), "nginx": ("nginx",)}


def install() -> dict[str, str]:
    """Install what is missing; return what could not be installed, with the reason."""
    missing: dict[str, str] = {}
    os.makedirs(PEERS, exist_ok=True)
    if not os.path.exists(PYTHON):
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    for package in _PIP:
        base = package.partition("[")[0]
        mark = os.path.join(PEERS, f".{base}.installed")
        if os.path.exists(mark):
            continue
        print(f"installing {package}", file=sys.stderr, flush=True)
        command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
        if why := _try(command, 600):
            missing[base] = why
        else:
            open(mark, "w").close()
    # pyworker as users have it: installed, not where it is worked at
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--force-reinstall", "--no-deps", ROOT]
    if why := _try([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT], 600) or _try(command, 600):
        raise RuntimeError(f"pyworker cannot be installed: {why}")
    if shutil.which("npm") is None:
        missing["pm2"] = "npm is not installed"
    elif not os.path.exists(PM2):
        print("installing pm2", file=sys.stderr, flush=True)
        folder = os.path.join(PEERS, "node")
        os.makedirs(folder, exist_ok=True)
        if why := _try(["npm", "install", "--silent", "--prefix", folder, "pm2"], 600):
            missing["pm2"] = why
    for program, packages in _DEBS.items():
        if binary(program) is None:
            print(f"downloading {program}", file=sys.stderr, flush=True)
            if why := _unpack(packages):
                missing[program] = why
    return missing


def binary(name: str) -> str | None:
    """Return the path of a program of the system or of an unpacked package."""
    found = shutil.which(name)
    if found:
        return found
    for folder in ("usr/bin", "usr/sbin"):
        path = os.path.join(APT, folder, name)
        if os.path.exists(path):
            return path
    return None


def tool(name: str) -> str:
    """Return the path of a program of the peers' venv."""
    return os.path.join(VENV, "bin", name)


def environment() -> dict[str, str]:
    """Return the environment that every contender gets: unpacked libraries are found, nothing of ours leaks in."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYWORKER_", "LISTEN_", "PYTHON"))}
    folders = [os.path.join(APT, "usr/lib", each) for each in ("x86_64-linux-gnu", "aarch64-linux-gnu")]
    env["LD_LIBRARY_PATH"] = ":".join(folders)
    env.pop("PORT", None)
    env.pop("WEB_CONCURRENCY", None)
    return env


def versions() -> dict[str, str]:
    """Return the versions of all that is installed."""
    found: dict[str, str] = {}
    done = subprocess.run([PYTHON, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        name, _, version = line.partition("==")
        if name.lower() in ("gunicorn", "uvicorn", "granian", "circus", "supervisor", "uwsgi", "uvloop", "httptools", "django"):
            found[name.lower()] = version
    pm2 = os.path.join(PEERS, "node", "node_modules", "pm2", "package.json")  # its own --version starts its daemon
    for name, command in (("node", ["node", "--version"]), ("pm2", ["node", "-p", f"require('{pm2}').version"])):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
            found[name] = done.stdout.strip() or "?"
        except (OSError, subprocess.TimeoutExpired):
            continue
    return found


def _try(command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:200]
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        return (lines[-1] if lines else f"exit code {done.returncode}")[:200]
    return ""


def _unpack(packages: tuple[str, ...]) -> str:
    """Download Debian packages and unpack them here: no root needed, and no service of theirs is started."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return "not installed, and this is no Debian to fetch it from"
    folder = os.path.join(PEERS, "debs")
    os.makedirs(folder, exist_ok=True)
    os.makedirs(APT, exist_ok=True)
    for package in packages:
        try:
            done = subprocess.run(["apt-get", "download", "-q", package], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return f"apt-get download {package}: no answer"
        if done.returncode:
            return f"apt-get download {package}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"[:200]
        for name in os.listdir(folder):
            if name.startswith(package + "_") and (why := _try(["dpkg", "-x", os.path.join(folder, name), APT], 60)):
                return why
    return ""
