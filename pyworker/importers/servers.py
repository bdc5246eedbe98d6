"""Settings of gunicorn and uvicorn -> options of app.toml, whether they stood in a file or on a command line."""

from __future__ import annotations

import math
import re
import signal
from typing import Any

from pyworker.config.check import clean_name
from pyworker.importers.result import PORT_IS_TAKEN, Apply, Imported, at_home, seconds, whole

_OWN_WAY = "pyworker does this itself"
_DEFAULTED = re.compile(r"\$\{(\w+):-([^}]+)\}")
_PORT = re.compile(r"\$\{?PORT\b[^}]*\}?")
CONCURRENCY = 'was {}: without `workers` pyworker takes $WEB_CONCURRENCY, else 1; "auto" is one a CPU'


# ---- small translators -----------------------------------------------------------------------------
def to(key: str) -> Apply:
    """Write a text as it is, unless there is a variable in it."""

    def apply(app: Imported, value: Any, source: str) -> None:
        value = at_home(value) if isinstance(value, str) else value
        if not isinstance(value, str) or "$" in value:
            app.look(source, f"was {value}: write it into {key}")
        else:
            app.set(key, value, source)

    return apply


def time(key: str, reason: str = "") -> Apply:
    """Write a number of seconds; `reason`: why to look at it."""

    def apply(app: Imported, value: Any, source: str) -> None:
        number = _number(value)
        if number is None or number < 0:
            app.look(source, f"{value!r} is no time: set {key}")
            return
        app.set(key, seconds(number), source)
        if reason:
            app.look(source, reason)

    return apply


def count(key: str) -> Apply:
    """Write a number; 0 is what is not limited, or the default."""

    def apply(app: Imported, value: Any, source: str) -> None:
        number = _number(value)
        if number is None:
            app.look(source, f"{value!r} is not a plain number: set {key}")
        elif number > 0:
            app.set(key, int(number), source)
        else:
            app.done(source)

    return apply


def stop_signal(app: Imported, value: str, source: str) -> None:
    """A name, with or without SIG, or a number."""
    number = whole(value)
    known = next((s.name for s in signal.Signals if s == number), value)
    name = known.upper().removeprefix("SIG")
    if name == "KILL":
        app.look(source, 'no program can act on KILL; for a hard stop: stop.kill_timeout = "0s"')
    elif f"SIG{name}" not in signal.Signals.__members__:
        app.look(source, f"{value}: stop.signal takes one that has a name, such as TERM; what else does it stop by?")
    else:
        app.set("stop.signal", name, source)


class Dropped:
    """A setting that nothing has to be done about, whatever its value."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __call__(self, app: Imported, value: Any, source: str) -> None:
        app.drop(source, self._reason)


def _same(app: Imported, value: Any, source: str) -> None:
    app.done(source)


def _number(value: Any) -> float | None:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def addresses(app: Imported, values: list[str], source: str) -> None:
    """Set bind from "host:port", "unix:path"; a lone $PORT is what pyworker takes by itself."""
    found = []
    for value in values:
        if ("${PORT" not in value or len(values) > 1) and (variable := _DEFAULTED.search(value)) is not None:
            value = _DEFAULTED.sub(r"\2", value)
            app.look(source, f"was made of ${variable[1]}: {value} is what it is without it")
        if len(values) == 1 and (port := _PORT.search(value)) is not None:
            app.done(source)
            app.look(source, PORT_IS_TAKEN + _without(value, port[0]))
        elif "$" in value:
            app.look(source, f"{value} is made of a variable: workers share one address, write it into bind")
        elif value.startswith("fd://"):
            app.look(source, f"{value}: pyworker opens its own sockets; name the address in bind")
        else:
            found.append(value if ":" in value else f"{value}:8000")
    if found:
        app.set("bind", found[0] if len(found) == 1 else found, source)


def _without(value: str, variable: str) -> str:
    """Return what to say of an address that had a port of its own for a day without $PORT."""
    own = _DEFAULTED.match(variable)
    if own is None or own[2] == "8000":
        return ""
    return f'; without it on port 8000, not {own[2]}: bind = "{value.replace(variable, own[2])}"'


def _bind(app: Imported, value: Any, source: str) -> None:
    addresses(app, [str(v) for v in value] if isinstance(value, list | tuple) else str(value).split(","), source)


def workers(app: Imported, value: Any, source: str) -> None:
    if value == "auto":
        app.set("workers", "auto", source)
    elif re.match(r"\$\{?WEB_CONCURRENCY\b", str(value)):
        app.done(source)
        app.look(source, CONCURRENCY.format(value))
    else:
        count("workers")(app, value, source)


def _worker_class(app: Imported, value: Any, source: str) -> None:
    name = str(value)
    if name == "asgi" or "uvicorn" in name or name.endswith(("ASGIWorker", "H11Worker")):
        app.set("interface", "asgi", source)
    elif name in ("sync", "gthread"):
        app.done(source)
    else:
        app.look(source, f"{name}: there is no such worker here; wsgi apps have `threads`, asgi apps are asynchronous")


def _access_log(app: Imported, value: Any, source: str) -> None:
    if value in (None, "", False, "/dev/null"):
        app.done(source)
        return
    app.set("http.access_log", "text", source)
    if value not in ("-", True):
        app.look(source, f"access lines go to the app's log, not to {value}")


def _environment(app: Imported, value: Any, source: str) -> None:
    for pair in value if isinstance(value, list | tuple) else [value]:
        name, _, text = str(pair).partition("=")
        if "$" in name:
            app.look(source, f"was {pair}: write it into env")
        else:
            app.variable(name, text, source)


def reload(app: Imported, value: Any, source: str) -> None:
    """Write `watch` for a server that starts anew when a file changes."""
    app.done(source)
    if value:
        app.table.setdefault("watch", True)
        app.look(source, "watch = true is for development: take it out of what runs in production")


def _watch(app: Imported, key: str, value: Any, source: str) -> None:
    before = app.table.get("watch")
    values = value if isinstance(value, list) else [value]
    app.set("watch", {**(before if isinstance(before, dict) else {}), key: values}, source)


def _names(key: str) -> Apply:
    def apply(app: Imported, value: Any, source: str) -> None:
        names = [str(v).strip() for v in (value if isinstance(value, list | tuple) else str(value).split(","))]
        if "$" in str(names):
            app.look(source, f"was {', '.join(names)}: write it into {key}")
        else:
            app.set(key, names, source)

    return apply


def _proxy_protocol(app: Imported, value: Any, source: str) -> None:
    if value in (False, "off"):
        app.done(source)
    else:
        app.look(source, "PROXY headers are not read: let the proxy send X-Forwarded-For")


def _umask(app: Imported, value: Any, source: str) -> None:
    app.set("umask", f"{value:04o}" if isinstance(value, int) else str(value).removeprefix("0o"), source)


_TIMEOUT = (
    "gunicorn kills a worker that says nothing for so long; here a request that runs longer has its stacks logged and "
    "its worker replaced"
)
_HOOK = "a function of gunicorn's, not carried over"
_HOOKS = [
    "on_starting", "on_reload", "when_ready", "pre_fork", "post_fork", "post_worker_init", "worker_int", "worker_abort",
    "pre_exec", "pre_request", "post_request", "child_exit", "worker_exit", "nworkers_changed", "on_exit",
    "ssl_context",
]  # fmt: skip

_IN_WORKER = "a function of gunicorn's with its own arguments; hooks.post_fork takes a function without any"
_AT_EXIT = f"{_HOOK}; what a worker does at its end is the app's: atexit, or its lifespan's shutdown"
_INSTEAD = {
    **dict.fromkeys(("post_fork", "post_worker_init"), _IN_WORKER),
    **dict.fromkeys(("on_starting", "pre_exec"), f"{_HOOK}; hooks.pre_start runs a command before a start"),
    "on_reload": f"{_HOOK}; hooks.post_reload runs a command after a reload",
    **dict.fromkeys(
        ("when_ready", "child_exit", "nworkers_changed", "on_exit"),
        f"{_HOOK}; hooks.on_event runs a command at each event",
    ),
    **dict.fromkeys(("worker_exit", "worker_int"), _AT_EXIT),
    "worker_abort": f"{_HOOK}; the stacks of a stuck worker are in the log by themselves",
    "ssl_context": f"{_HOOK}; [app.tls] has cert and key",
}


def _config(app: Imported, value: Any, source: str) -> None:
    kind, colon, name = str(value).partition(":")
    file = f"{name.replace('.', '/')}.py" if kind == "python" and colon else name if kind == "file" and colon else value
    app.look(source, f"settings of {value} are not in this: pyworker import {file} --from gunicorn -o -")


def _name(app: Imported, value: Any, source: str) -> None:
    if source == "proc_name":  # on a command line it is not what names the app: the file that has the line does
        app.name = clean_name(str(value))
    app.done(source)


def target(app: Imported, text: str, default: str, source: str) -> None:
    """Write what is served, `default` being the name of the app in a module; one that is called is a factory."""
    module, _, attribute = text.partition(":")
    app.set("target", f"{module}:{attribute.removesuffix('()') or default}", source)
    if attribute.endswith("()"):
        app.set("factory", True, source)


_UNMATCHED = (
    "check_config", "print_config", "spew", "enable_backlog_metric", "uwsgi_allow_ips", "http_protocols",
    "http2_cleartext", "http2_max_concurrent_streams", "http2_initial_window_size", "http2_max_frame_size",
    "http2_max_header_list_size", "raw_paste_global_conf", "permit_obsolete_folding", "strip_header_spaces",
    "permit_unconventional_http_method", "permit_unconventional_http_version", "casefold_http_method", "header_map",
    "asgi_lifespan", "asgi_disconnect_grace_period", "websocket_max_message_size", "http_parser", "control_socket",
    "control_socket_mode", "control_socket_disable",
)  # fmt: skip
_DIRTY = (
    "dirty_apps", "dirty_workers", "dirty_timeout", "dirty_threads", "dirty_graceful_timeout", "on_dirty_starting",
    "dirty_post_fork", "dirty_worker_init", "dirty_worker_exit",
)  # fmt: skip
_SAME_OF_GUNICORN = (
    "preload_app", "capture_output", "disable_redirect_access_to_syslog", "sendfile", "reload_engine", "initgroups",
    "enable_stdio_inheritance",
)  # fmt: skip
_TLS = ("ssl_version", "ciphers", "cert_reqs", "suppress_ragged_eofs", "do_handshake_on_connect")

GUNICORN: dict[str, Apply] = {
    "bind": _bind,
    "workers": workers,
    "worker_class": _worker_class,
    "threads": count("threads"),
    "timeout": time("limits.request_timeout", _TIMEOUT),
    "graceful_timeout": time("stop.drain_timeout"),
    "keepalive": time("http.keepalive_timeout"),
    "max_requests": count("limits.max_requests"),
    "max_requests_jitter": count("limits.max_requests_jitter"),
    "chdir": to("cwd"),
    "user": lambda app, v, s: app.set("user", str(v), s),
    "group": lambda app, v, s: app.set("group", str(v), s),
    "umask": _umask,
    "raw_env": _environment,
    **dict.fromkeys(_SAME_OF_GUNICORN, _same),
    "reload": reload,
    "accesslog": _access_log,
    "wsgi_app": lambda app, v, s: target(app, str(v), "application", s),
    "backlog": count("backlog"),
    "certfile": to("tls.cert"),
    "keyfile": to("tls.key"),
    "ca_certs": to("tls.ca"),
    "forwarded_allow_ips": _names("http.forwarded_allow_ips"),
    "pythonpath": lambda app, v, s: app.set("env.PYTHONPATH", str(v).replace(",", ":"), s),
    "errorlog": Dropped("what the app prints is in its log: pyworker logs"),
    "loglevel": Dropped("the level is the app's own business"),
    "access_log_format": Dropped('http.access_log = "json" has every field'),
    "pidfile": Dropped("pyworker ps knows the pids"),
    "daemon": Dropped(_OWN_WAY),
    "proc_name": _name,
    "worker_tmp_dir": Dropped("no heartbeat files are used"),
    "worker_connections": Dropped("asgi workers take what the system allows"),
    "reuse_port": Dropped("workers share one socket and take turns"),
    **dict.fromkeys(("statsd_host", "statsd_prefix", "dogstatsd_tags"), Dropped("pyworker metrics is for Prometheus")),
    **dict.fromkeys(
        ("logconfig", "logconfig_dict", "logger_class", "logconfig_json"), Dropped("configure logging in the app")
    ),
    "secure_scheme_headers": Dropped("X-Forwarded-Proto of a trusted proxy counts: http.forwarded_allow_ips"),
    **dict.fromkeys(
        ("limit_request_line", "limit_request_fields", "limit_request_field_size"),
        Dropped("http.max_header_size bounds the whole header"),
    ),
    "reload_extra_files": Dropped("watch.include names the files that count"),
    **dict.fromkeys(
        ("syslog", "syslog_addr", "syslog_prefix", "syslog_facility"),
        Dropped("logs.journald, or what the app's own logging does"),
    ),
    "default_proc_name": Dropped("processes are named after the app"),
    "tmp_upload_dir": Dropped("TMPDIR in env is what Python takes"),
    "proxy_protocol": _proxy_protocol,
    "proxy_allow_ips": Dropped("PROXY headers are not read"),
    "forwarder_headers": Dropped("X-Forwarded-* of a trusted proxy count: http.forwarded_allow_ips"),
    "paste": lambda app, v, s: app.look(s, "PasteDeploy files are not read: target names a module that loads it"),
    "root_path": to("http.root_path"),
    "asgi_loop": lambda app, v, s: loop(app, v, s),
    "protocol": lambda app, v, s: app.done(s) if v == "http" else app.look(s, f"{v}: HTTP is all that is spoken here"),
    **dict.fromkeys(_DIRTY, Dropped("what is not for a request's worker is an app of its own here")),
    **dict.fromkeys(_UNMATCHED, Dropped("nothing here matches it")),
    **dict.fromkeys(_TLS, Dropped("the TLS of Python's defaults is what is spoken")),
    "config": _config,
    **dict.fromkeys(_HOOKS, lambda app, v, s: app.look(s, _INSTEAD.get(s, _HOOK))),
}


def gunicorn(app: Imported, settings: dict[str, Any], prefix: str = "") -> None:
    """Translate gunicorn's settings, named as in its config file. None, and a text of nothing, are its defaults."""
    for name in [n for n, v in settings.items() if v in (None, "") and not isinstance(GUNICORN.get(n), Dropped)]:
        del settings[name]
        app.done(prefix + name)
    _apply(app, settings, GUNICORN, prefix, "gunicorn")


def loop(app: Imported, value: Any, source: str) -> None:
    """Write which event loop a server had, if there is one here."""
    if value in ("auto", "asyncio", "uvloop"):
        app.set("loop", value, source)
    else:
        app.look(source, f"loop {value} is not known here")


def _interface(app: Imported, value: Any, source: str) -> None:
    name = {"asgi3": "asgi", "asginl": "asgi"}.get(str(value), str(value))
    if name in ("auto", "asgi", "wsgi"):
        app.set("interface", name, source)
    else:
        app.look(source, f"interface {value} is not served here")


_SAME_OF_UVICORN = (
    "proxy_headers", "no_access_log", "no_use_colors", "lifespan", "http", "ws", "no_server_header", "date_header",
)  # fmt: skip
UVICORN: dict[str, Apply] = {
    "workers": workers,
    "reload": reload,
    "reload_dir": lambda app, v, s: _watch(app, "paths", v, s),
    "reload_include": lambda app, v, s: _watch(app, "include", ["*.py", *v], s),
    "reload_exclude": lambda app, v, s: _watch(app, "exclude", v, s),
    "factory": lambda app, v, s: app.set("factory", True, s) if v else app.done(s),
    "interface": _interface,
    "loop": loop,
    "env_file": to("env_file"),
    "root_path": to("http.root_path"),
    **dict.fromkeys(_SAME_OF_UVICORN, _same),
    "forwarded_allow_ips": _names("http.forwarded_allow_ips"),
    "timeout_keep_alive": time("http.keepalive_timeout"),
    "timeout_graceful_shutdown": time("stop.drain_timeout"),
    "limit_max_requests": count("limits.max_requests"),
    "limit_max_requests_jitter": count("limits.max_requests_jitter"),
    "limit_concurrency": Dropped("there is no limit of this kind here"),
    "backlog": count("backlog"),
    "ssl_certfile": to("tls.cert"),
    "ssl_keyfile": to("tls.key"),
    "ssl_ca_certs": to("tls.ca"),
    "app_dir": to("cwd"),
    "access_log": _access_log,
    "log_level": Dropped("the level is the app's own business"),
    "log_config": Dropped("configure logging in the app"),
    "use_colors": Dropped("colours are the terminal's business"),
    "fd": Dropped("pyworker opens the socket: bind"),
    "server_header": lambda app, v, s: app.set("http.server_header", True, s),
}


def says_something(name: str) -> bool:
    """Whether a setting is translated by what it says; all others may be flags."""
    apply = GUNICORN.get(name) or UVICORN.get(name)
    return name in ("host", "port", "uds") or not (apply in (None, _same) or isinstance(apply, Dropped))


def uvicorn(app: Imported, settings: dict[str, Any], prefix: str = "") -> None:
    """Translate uvicorn's options, named as in uvicorn.run()."""
    left = dict(settings)
    host, port, socket = left.pop("host", None), left.pop("port", None), left.pop("uds", None)
    if socket is not None:
        addresses(app, [f"unix:{socket}"], prefix + "uds")
    elif host is not None or port is not None:
        name = f"[{host}]" if host and ":" in str(host) else host or "127.0.0.1"
        addresses(app, [f"{name}:{port if port is not None else 8000}"], prefix + ("port" if host is None else "host"))
        if host is not None and port is not None:
            app.done(prefix + "port")
    _apply(app, left, UVICORN, prefix, "uvicorn")


def _apply(app: Imported, settings: dict[str, Any], table: dict[str, Apply], prefix: str, program: str) -> None:
    for name, value in settings.items():
        apply = table.get(name)
        if apply is None:
            app.drop(prefix + name, f"a setting of {prefix.strip() or program}'s that has nothing to match here")
        else:
            apply(app, value, prefix + name)
    tls = app.table.get("tls", {})
    if "cert" in tls:
        tls.setdefault("key", tls["cert"])  # without a file of its own it is in that of the certificate
    elif tls:
        app.look(prefix + "certfile", "tls needs a cert")
        del app.table["tls"]
    threads = app.table.get("threads", 1)
    if app.table.get("interface") == "asgi" and threads != 1:
        app.table.pop("threads")
        app.drop(prefix + "threads", "asgi workers have one thread")
