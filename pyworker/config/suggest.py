"""The nearest of some words to a mistyped one. Pure; for messages only, never to guess a value."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

_MOST_CHOICES = 1000  # that are looked at: of each it takes 20 µs
# what people coming from other tools write -> our key
KNOWN_ELSEWHERE = {
    word: key
    for key, words in {
        "target": "app application wsgi_app entrypoint entry_point module",
        "command": "cmd exec exec_start execstart program node_args interpreter_args",
        "interface": "worker_class",
        "workers": "instances numprocs replicas processes procs num_workers",
        "cwd": "chdir directory working_dir working_directory workdir root app_dir",
        "python": "interpreter venv virtualenv",
        "env": "environment environ envs",
        "env.PYTHONPATH": "pythonpath python_path",
        "env_file": "dotenv",
        "bind": "listen address bind_address host port socket uds fd",
        "ready": "wait_ready",
        "depends_on": "after requires priority",
        "user": "uid",
        "group": "gid",
        "cron": "schedule timer",
        "restart": "autorestart no_autorestart restart_delay",
        "restart.min_uptime": "startsecs",
        "restart.max_restarts": "startretries burst",
        "restart.window": "within",
        "stop.drain_timeout": "graceful_timeout timeout_graceful_shutdown stop_timeout",
        "stop.kill_timeout": "stop_grace_period stopwaitsecs",
        "stop.signal": "stopsignal stop_signal kill_signal",
        "reload.ready_timeout": "listen_timeout",
        "reload.cron": "cron_restart",
        "reload.max_surge": "surge",
        "health": "healthcheck health_check liveness readiness",
        "health.interval": "period",
        "limits.memory": "mem_limit memory_limit max_memory_restart reload_on_rss",
        "limits.max_requests": "limit_max_requests",
        "limits.request_timeout": "timeout harakiri",
        "logs.file": "log_file logfile errorlog stdout_logfile stderr_logfile out_file error_file",
        "http.access_log": "accesslog access_logfile",
        "http.forwarded_allow_ips": "proxy_headers",
        "http.keepalive_timeout": "keepalive keep_alive timeout_keep_alive",
        "preload": "preload_app",
        "tls": "ssl",
        "tls.cert": "certfile ssl_certfile certificate",
        "tls.key": "keyfile ssl_keyfile",
        "watch.paths": "reload_dir reload_dirs",
        "watch.exclude": "ignore_watch watch_ignore reload_exclude",
    }.items()
    for word in words.split()
}


def elsewhere(word: str) -> str:
    """Return our key for a word of another tool, with its table; "" when there is none."""
    return KNOWN_ELSEWHERE.get(_plain(word), "")


def nearest(word: str, choices: Iterable[str], alike: float = 0.6) -> str | None:
    """Return the choice that `word` most likely stands for, or None. `alike`: from 0 to 1, how much it must be."""
    import difflib  # 6 ms, on the way to an error only

    known = list(itertools.islice(choices, _MOST_CHOICES))
    folded = {_plain(c): c for c in known}
    plain = _plain(word)[:100]
    if plain in folded:
        return folded[plain]
    meant = elsewhere(word).rpartition(".")[2]
    if meant in known:
        return meant
    for found in difflib.get_close_matches(plain, folded, n=1, cutoff=alike):
        # description is no script, but pai is api
        if (
            found[0] == plain[0]
            or found[:2] == plain[1::-1]
            or difflib.SequenceMatcher(None, found, plain).ratio() > 0.75
        ):
            return folded[found]
    return None


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_")
