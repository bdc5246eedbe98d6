"""The nearest of some words to a mistyped one. Pure; for messages only, never to guess a value."""

from __future__ import annotations

from collections.abc import Iterable

# what people coming from other tools write -> our key
KNOWN_ELSEWHERE = {
    "app": "target", "application": "target", "wsgi_app": "target", "entrypoint": "target", "module": "target",
    "cmd": "command", "exec": "command", "instances": "workers", "numprocs": "workers", "replicas": "workers",
    "processes": "workers", "num_workers": "workers", "chdir": "cwd", "directory": "cwd", "working_dir": "cwd",
    "workdir": "cwd", "interpreter": "python", "venv": "python", "virtualenv": "python", "environment": "env",
    "environ": "env", "envs": "env", "listen": "bind", "address": "bind", "host": "bind", "port": "bind",
    "socket": "bind", "healthcheck": "health", "preload_app": "preload", "root": "cwd", "dotenv": "env_file",
    "graceful_timeout": "drain_timeout", "stop_grace_period": "kill_timeout", "stopwaitsecs": "kill_timeout",
    "stopsignal": "signal", "startsecs": "min_uptime", "startretries": "max_restarts", "mem_limit": "memory",
    "max_memory_restart": "memory", "burst": "max_restarts", "within": "window", "period": "interval",
}  # fmt: skip


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that `word` most likely stands for, or None."""
    import difflib  # 6 ms, on the way to an error only

    known = list(choices)
    folded = {c.lower().replace("-", "_"): c for c in known}
    plain = word.strip().lower().replace("-", "_")[:100]
    if plain in folded:
        return folded[plain]
    if (meant := KNOWN_ELSEWHERE.get(plain)) in known:
        return meant
    found = difflib.get_close_matches(plain, folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None
