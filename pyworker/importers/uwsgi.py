"""uwsgi.ini -> one app. [uwsgi] is read, and what it takes from other sections; the same key may stand there several times."""

from __future__ import annotations

import posixpath
import re

from pyworker.config.check import clean_name
from pyworker.config.schema import MB
from pyworker.config.units import size_text
from pyworker.importers.result import ENVIRONMENT, MAX_TEXT, Apply, CannotImport, Imported, Result, whole
from pyworker.importers.servers import addresses, count, reload, target, time, to, workers

_LINE = re.compile(r"([\w.-]+)\s*(?:=\s*(.*))?\Z")
_VARIABLE = re.compile(r"%(?:\(([\w.-]+)\)|([A-Za-z%]))")
_ENVIRONMENT = re.compile(r"\$\((\w+)\)")
_SAME = [
    "master", "disable-logging", "die-on-term", "enable-threads", "single-interpreter", "need-app", "strict",
    "thunder-lock", "vacuum", "endif", "end-if", "lazy", "no-orphans", "close-on-exec", "procname-prefix",
    "ignore-sigpipe", "ignore-write-errors", "disable-write-exception", "http-keepalive", "so-keepalive",
    "wsgi-env-behavior", "log-master", "threaded-logger", "add-header", "manage-script-name", "reaper", "memory-report",
    "auto-procname", "show-config", "http-auto-chunked", "http11-socket-keepalive", "http-chunked-input",
]  # fmt: skip
_DROPPED = {
    "chmod-socket": "a socket has the rights that `umask` leaves it",
    "chown-socket": "set user and group",
    **dict.fromkeys(("pidfile", "safe-pidfile"), "pyworker ps knows the pids"),
    **dict.fromkeys(("stats", "stats-server"), "pyworker top, and pyworker metrics for Prometheus"),
    **dict.fromkeys(
        ("static-map", "check-static", "static-expires", "offload-threads"),
        "files are served by nginx or by the app (WhiteNoise)",
    ),
    **dict.fromkeys(("plugin", "plugins"), "Python is all there is here"),
    **dict.fromkeys(
        ("cheaper", "cheaper-initial", "cheaper-algo", "cheaper-step"),
        "the number of workers is what `workers` says; pyworker scale changes it",
    ),
    **dict.fromkeys(("log-format", "logformat"), 'http.access_log = "json" has every field'),
    "log-x-forwarded-for": "http.forwarded_allow_ips names the proxies that are believed",
    **dict.fromkeys(("gevent", "asyncio", "async"), "wsgi apps have `threads`; asgi apps are asynchronous"),
    "post-buffering": "bodies are streamed to the app",
    "harakiri-verbose": "the stacks of a request that takes too long are always logged",
    **dict.fromkeys(
        ("touch-reload", "touch-chain-reload"), "a deploy says pyworker reload NAME, which waits and says how it went"
    ),
    "emperor": "one daemon runs many apps: pyworker start each file",
}
_LOOK = {
    **dict.fromkeys(("cron", "cron2"), 'is a job of its own here: an app with command = […] and cron = "…"'),
    **dict.fromkeys(("mule", "mules"), "is an app of its own here: script = …"),
    "spooler": "is an app of its own here, with a queue such as Celery or rq",
    **dict.fromkeys(
        ("attach-daemon", "attach-daemon2", "smart-attach-daemon"), "is an app of its own here: command = […]"
    ),
    "https": "its address goes into bind, its certificate and key into [app.tls]",
    "mount": "several apps in one worker are not served; mount them in the app, or give each a process",
    "route": "is for the proxy in front, or for the app",
    **dict.fromkeys(("exec-pre-app", "exec-asap", "hook-pre-app"), "hooks.pre_start runs a command before a start"),
    **dict.fromkeys(("include", "ini"), "settings of that file are not in this: import it too"),
    **dict.fromkeys(
        [f"if-{what}" for what in ("env", "not-env", "exists", "not-exists", "file", "dir", "opt")],
        "conditions are not carried over: what follows was translated as if it held",
    ),
    "for": "loops are not carried over",
}


def read(text: str, name: str = "web", folder: str = ".", stem: str = "uwsgi") -> Result:
    """Return the app of a uwsgi.ini; `folder` is what %d means, `stem` what %n does."""
    pairs = _pairs(text)
    if not pairs:
        raise CannotImport("there is no [uwsgi] in it", "a uwsgi.ini has its settings under [uwsgi]")
    app = Imported(clean_name(name if stem == "uwsgi" else stem))
    values: dict[str, str] = {}
    if any(key == "chdir" and raw not in (".", "%d") for key, raw in pairs):
        folder = posixpath.abspath(folder)  # seen from there it has another path
    magic = {"d": folder.rstrip("/") + "/", "n": stem, "%": "%"}
    used: set[str] = set()
    settings: list[tuple[str, str]] = []
    size = 0

    def meaning(found: re.Match[str]) -> str:
        return values.get(found[1], found[0]) if found[1] else magic.get(found[2], found[0])

    for key, raw in pairs:
        if raw == "%k" and key != "threads":  # the number of CPUs
            raw = "auto"
        found = _VARIABLE.findall(raw)
        used.update(name.replace("_", "-") for name, _ in found)
        if key.replace("_", "-") in _SETTINGS and any(n not in values if n else m not in magic for n, m in found):
            app.look(key, f"was {raw}: write what that is")
            continue
        size += sum(len(meaning(found)) for found in _VARIABLE.finditer(raw))
        if size > MAX_TEXT:
            raise CannotImport(f"what its variables stand for is more than {MAX_TEXT} characters")
        value = _VARIABLE.sub(meaning, raw)
        if key in ("set", "set-placeholder", "set-ph"):
            key, _, value = value.partition("=")
            values[key.strip()] = value.strip()
            continue
        values[key] = value
        settings.append((key.replace("_", "-"), _ENVIRONMENT.sub(r"${\1}", value)))
    _target(app, dict(settings))
    for key, value in settings:
        if key in _TARGETS:
            continue
        if key in _SETTINGS:
            _SETTINGS[key](app, value, key)
        elif key in _SAME:
            app.done(key)
        elif key in _DROPPED:
            app.drop(key, _DROPPED[key])
        elif key in _LOOK:
            app.look(key, f"{value}: {_LOOK[key]}")  # each of several has its line
        elif key in used:
            app.done(key)  # a name that the file gives to a value of its own
        else:
            app.drop(key, "nothing here matches it")
    return Result("uWSGI", [app], [ENVIRONMENT])


def _pairs(text: str) -> list[tuple[str, str]]:
    """Return the settings of [uwsgi], with those of a section that `ini = :SECTION` names in its place."""
    sections: dict[str, list[tuple[str, str]]] = {}
    section = ""
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = line.strip("[] ")
            continue
        match = _LINE.match(line)
        if match is not None:
            pair = (match[1], re.split(r"\s[;#]", match[2] or "true")[0].strip())
            sections.setdefault(section, []).append(pair)
    found = []
    left = [*reversed(sections.pop("uwsgi", []))]
    while left:
        key, value = left.pop()
        inner = sections.pop(value[1:], None) if key == "ini" and value.startswith(":") else None
        if inner is None:
            found.append((key, value))
        else:
            left += reversed(inner)
    return found


_TARGETS = ("module", "wsgi", "wsgi-file", "file", "callable")


def _target(app: Imported, settings: dict[str, str]) -> None:
    attribute = settings.get("callable", "application")
    module = settings.get("module") or settings.get("wsgi")
    path = settings.get("wsgi-file") or settings.get("file")
    if module:
        target(app, module if ":" in module else f"{module}:{attribute}", "application", "module")
    elif path:
        if path.startswith("/") and "chdir" in settings:
            path = path.removeprefix(settings["chdir"].rstrip("/") + "/")
        if path.startswith("/"):
            app.look("wsgi-file", "an absolute path: make it a module, seen from cwd")
        name = path.removesuffix(".py").removeprefix("./").strip("/").replace("/", ".")
        target(app, f"{name}:{attribute}", "application", "wsgi-file")
    else:
        target(app, f"CHANGE.ME:{attribute}", "application", "target")
        app.translated.remove("target")
        app.look("target", "neither module nor wsgi-file is set: write module:attribute")
    if "callable" in settings:
        app.done("callable")


def _size(key: str, unit: int) -> Apply:
    def apply(app: Imported, value: str, source: str) -> None:
        if number := whole(value):
            app.set(key, size_text(number * unit), source)
        else:
            app.look(source, f"{value!r}: set {key}")

    return apply


def _http(app: Imported, value: str, source: str) -> None:
    address = value.partition(",")[0]
    text = address if ":" in address else f":{address}" if address.isdecimal() else f"unix:{address}"
    before = app.table.pop("bind", [])
    addresses(app, [*([before] if isinstance(before, str) else before), text], source)


def _socket(app: Imported, value: str, source: str) -> None:
    _http(app, value, source)
    app.look(source, "spoke the uwsgi protocol; this is HTTP: in nginx, proxy_pass http://… instead of uwsgi_pass")


def _env(app: Imported, value: str, source: str) -> None:
    name, _, text = value.partition("=")
    app.variable(name.strip(), text.strip(), source)


def _python_path(app: Imported, value: str, source: str) -> None:
    before = app.table.get("env", {}).get("PYTHONPATH")
    to("env.PYTHONPATH")(app, value if before is None else f"{before}:{value}", source)


def _watch(app: Imported, value: str, source: str) -> None:
    reload(app, value.lower() not in ("0", "false", "no"), source)


def _lazy(app: Imported, value: str, source: str) -> None:
    if value.lower() in ("true", "1", "yes"):
        app.set("preload", False, source)
        app.look(source, "workers fork faster and share memory without it: try to leave preload out")
    else:
        app.done(source)


def _log(app: Imported, value: str, source: str) -> None:
    app.log(value if value.startswith("/") and not value.startswith("/dev/") else "", source)


_SETTINGS: dict[str, Apply] = {
    **dict.fromkeys(("http", "http-socket", "http11-socket"), _http),
    **dict.fromkeys(("socket", "uwsgi-socket"), _socket),
    **dict.fromkeys(("processes", "workers"), workers),
    "threads": count("threads"),
    "listen": count("backlog"),
    "chdir": lambda app, value, source: to("cwd")(app, value.rstrip("/") or "/", source),
    **dict.fromkeys(("virtualenv", "venv", "home", "pyhome"), to("python")),
    "uid": to("user"),
    "gid": to("group"),
    "umask": to("umask"),
    "env": _env,
    **dict.fromkeys(("pythonpath", "python-path", "pp"), _python_path),
    "max-requests": count("limits.max_requests"),
    "max-requests-delta": count("limits.max_requests_jitter"),
    **dict.fromkeys(("reload-on-rss", "evil-reload-on-rss"), _size("limits.memory", MB)),
    "limit-post": _size("http.max_body_size", 1),
    "buffer-size": _size("http.max_header_size", 1),
    "max-worker-lifetime": time("limits.max_age"),
    **dict.fromkeys(("worker-reload-mercy", "reload-mercy"), time("stop.drain_timeout")),
    "harakiri": time("limits.request_timeout", "the worker is replaced with its stacks logged; the others go on"),
    **dict.fromkeys(("py-autoreload", "py-auto-reload", "python-autoreload", "python-auto-reload"), _watch),
    "lazy-apps": _lazy,
    **dict.fromkeys(("daemonize", "daemonize2", "logto", "logto2"), _log),
    "log-maxsize": _size("logs.max_size", 1),
}
