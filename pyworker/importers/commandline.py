"""A command line that starts a Python server, a script or anything -> target, script or command. Nothing is executed."""

from __future__ import annotations

import copy
import os
import posixpath
import re
import shlex
from collections.abc import Callable
from typing import Any

from pyworker.importers import servers
from pyworker.importers.result import DOLLAR, Imported, at_home, needs_shell, whole

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_NAME = re.compile(r"\$(\w+)")
_WANTED = re.compile(r"\$\{?([A-Za-z_]\w*)")
_COMMENT = re.compile(r"\s#[^'\"]*\Z")
_NO_SHELL = re.compile(r"(?!\w+=)[\w\s./:=,@%+-]*\Z")  # whatever reads it, these characters are what they are
_TARGET = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*(\(\))?)?\Z")
_PYTHON = re.compile(r"python(\d(\.\d+)?)?\Z")
FROM_THE_SHELL = "its variables come from the shell that types pyworker start (inherit_env), or set them in [env]"
_SHELLS = {"sh", "bash", "dash", "zsh"}
# what changes the shell that the rest of a line runs in
_OF_THE_SHELL = {
    "cd", "pushd", "popd", "source", ".", "export", "readonly", "declare", "typeset", "set", "unset", "shopt", "trap",
    "ulimit", "umask", "eval", "exec", "alias", "conda", "mamba", "micromamba", "workon", "pyenv", "nvm", "module",
}  # fmt: skip
RUNNERS = ("poetry", "uv", "pipenv", "pdm", "hatch")  # their `run` starts a program in an environment that they keep

# option -> (setting, takes a value)
_GUNICORN = {
    "-b": "bind", "-w": "workers", "-k": "worker_class", "-t": "timeout", "-u": "user", "-g": "group", "-m": "umask",
    "-e": "raw_env", "-n": "proc_name", "-p": "pidfile", "-c": "config", "--name": "proc_name", "--env": "raw_env",
    "--access-logfile": "accesslog", "--error-logfile": "errorlog", "--log-file": "errorlog", "--log-level": "loglevel",
    "--keep-alive": "keepalive", "--pid": "pidfile", "--preload": "preload_app", "-D": "daemon",
    "--access-logformat": "access_log_format", "--log-config": "logconfig", "--pid-file": "pidfile",
    "--log-config-json": "logconfig_json", "--log-syslog": "syslog", "--log-syslog-to": "syslog_addr",
    "--log-syslog-prefix": "syslog_prefix", "--log-syslog-facility": "syslog_facility", "--no-sendfile": "sendfile",
    "-R": "enable_stdio_inheritance", "--reload-extra-file": "reload_extra_files", "--paster": "paste",
    "--paste-global": "raw_paste_global_conf", "--proxy-allow-from": "proxy_allow_ips",
    "--uwsgi-allow-from": "uwsgi_allow_ips", "--dirty-app": "dirty_apps", "--no-control-socket": "control_socket_disable",
}  # fmt: skip
_GUNICORN_FLAGS = {
    "--preload", "--reload", "-D", "--daemon", "--capture-output", "--reuse-port", "--check-config",
    "-R", "--enable-stdio-inheritance", "--disable-redirect-access-to-syslog", "--log-syslog", "--proxy-protocol",
    "--initgroups", "--print-config", "--spew", "--enable-backlog-metric", "--suppress-ragged-eofs",
    "--do-handshake-on-connect", "--permit-obsolete-folding", "--strip-header-spaces", "--casefold-http-method",
    "--permit-unconventional-http-method", "--permit-unconventional-http-version",
}  # fmt: skip
_UVICORN_FLAGS = {
    "--reload", "--factory", "--proxy-headers", "--access-log", "--use-colors", "--server-header", "--date-header", "--http2",
    "--reset-contextvars",
}  # fmt: skip
# its user and group are those of the socket
_HYPERCORN = {**_GUNICORN, **dict.fromkeys(("-u", "--user", "-g", "--group"), "socket_owner")}
_GRANIAN = {
    "--respawn-failed-workers": "respawn", "--ssl-certificate": "ssl_certfile", "--ssl-ca": "ssl_ca_certs",
    "--working-dir": "app_dir", "--url-path-prefix": "root_path",
}  # fmt: skip
_DAPHNE = {
    "-b": "host", "--bind": "host", "-p": "port", "-u": "uds", "--unix-socket": "uds", "-t": "http_timeout",
    "-e": "endpoint", "-v": "verbosity", "-s": "server_name",
}  # fmt: skip
_WAITRESS = {"--unix-socket": "uds", "--trusted-proxy": "forwarded_allow_ips"}
_GRANIAN_FLAGS = {
    "--reload", "--factory", "--access-log", "--respawn-failed-workers", "--ws", "--log", "--metrics", "--ssl-client-verify",
    "--http1-keep-alive", "--http1-pipeline-flush", "--http2-adaptive-window", "--reload-ignore-worker-failure",
}  # fmt: skip
_WAITRESS_FLAGS = {
    "--call", "--expose-tracebacks", "--ipv4", "--ipv6", "--log-socket-errors", "--asyncore-use-poll",
    "--log-untrusted-proxy-headers", "--clear-untrusted-proxy-headers",
}  # fmt: skip
_VARIABLES = {"raw_env", "pythonpath"}  # become some
_MANY = {"bind", "raw_env", "reload_dir", "reload_include", "reload_exclude", "listen", "endpoint"}


def understand(app: Imported, command: str | list[str], source: str, *, variables: bool = True) -> None:
    """Fill in what the app runs, as well as it can be told from its command line.

    A list is what is executed, without a shell; `variables`: a $ in it is one all the same, a DOLLAR is none.
    """
    _understand(app, command, source, variables=variables)
    app.table = _with_dollars(app.table)


def _with_dollars(value: Any) -> Any:
    match value:
        case str():
            return value.replace(DOLLAR, "$")
        case list():
            return [_with_dollars(inner) for inner in value]
        case dict():
            return {key: _with_dollars(inner) for key, inner in value.items()}
        case _:
            return value


def _understand(app: Imported, command: str | list[str], source: str, *, variables: bool) -> None:
    if isinstance(command, str):
        command = _COMMENT.sub("", command.strip())
        if _steps(app, command, source):
            return
        try:
            words = shlex.split(command)
        except ValueError as error:
            app.set("command", ["sh", "-c", command], source)
            app.look(source, f"could not be split ({error}): it runs in a shell")
            return
    else:
        words = list(command)
    is_shell = is_for_shell(words)
    if is_shell:  # whose own they are
        words = _with_dollars(words)
    elif not variables:
        words = [word.replace("$", DOLLAR) for word in words]
    if is_shell and _steps(app, words[2], source, is_wrapped=True):
        if words[1] == "-lc":
            app.look(
                source, f"{words[0]} -l is left out: what ~/.profile sets, such as a longer PATH, is to be said in env"
            )
        return
    if is_shell or (isinstance(command, str) and needs_shell(command)):
        app.set("command", words if is_shell else ["sh", "-c", command], source)
        line = words[2] if is_shell else str(command)
        is_replaced = line.startswith("exec ") and not needs_shell(line)
        seen = "" if is_replaced else "; pyworker sees the shell, not what it starts"
        app.look(source, f"runs in a shell as before{seen}")
        _inherit(app, line, source)
        return
    whole = words
    words = _without_wrappers(app, words, source)
    text = command if isinstance(command, str) and words == whole else for_shell(words)
    if not words:
        app.look(source, "says nothing to run")
        return
    program = os.path.basename(words[0])
    if _PYTHON.match(program):
        _python(app, words, source, text, variables=variables)
    elif program in _SERVERS and _SERVERS[program](app, words[1:], source):
        _interpreter(app, words[0], source)
    else:
        _command(app, words, source, text, variables=variables)


def is_for_shell(words: list[str]) -> bool:
    """Whether a command is a shell with a line of its own."""
    return len(words) == 3 and os.path.basename(words[0]) in _SHELLS and words[1] in ("-c", "-lc")


def _steps(app: Imported, line: str, source: str, *, is_wrapped: bool = False) -> bool:
    """Fill in what a line of steps runs in the end, when its steps need no shell: cd, variables, a virtual environment, and
    commands before a server. False when it has none; `is_wrapped`: the argument of sh -c, which needs none to be one.
    """
    *first, last = _COMMENT.sub("", line.strip()).split("&&")
    if (not first and not is_wrapped) or any(map(needs_shell, (*first, last))):
        return False
    found = copy.deepcopy(app)
    folder = venv = ""
    before: list[str] = []
    try:
        for step in map(str.strip, first):
            match shlex.split(step):
                case ["cd", path] if not before and re.fullmatch(r"[\w./-]+", path):
                    folder = posixpath.join(folder, path)
                case ["source" | ".", path] if not before and re.fullmatch(r"[~\w./-]+/bin/activate", path):
                    venv = posixpath.join(folder, path.removesuffix("/bin/activate"))
                case ["export", *pairs] if not before and all(map(_ASSIGNMENT.match, pairs)):
                    for name, _, text in (pair.partition("=") for pair in pairs):
                        found.variable(name, _looked_up(text), source)
                case [program, *_] if program not in _OF_THE_SHELL and not _ASSIGNMENT.match(program):
                    before.append(step)
                case _:
                    return False
        shlex.split(last)
    except ValueError:  # a && in quotes
        return False
    understand(found, last.strip(), source)
    if before and ("target" not in found.table or "cwd" in found.table):
        return False
    if is_wrapped and not {"target", "script"} & found.table.keys() and not (first and re.fullmatch(r"[^*?~]*", last)):
        return False
    if folder:
        found.enter(folder, source)
    inner = found.table.get("cwd", "")
    if venv and "python" not in found.table:
        if not venv.startswith(("/", "~")) and inner.startswith("/"):
            return False
        is_seen = not inner or venv.startswith(("/", "~"))
        found.set("python", venv if is_seen else posixpath.relpath(venv, inner), source)
    if before:
        steps = " && ".join(before)
        found.set("hooks.pre_start", hook(steps), source)
        when = "runs before a start and a reload (hooks.pre_start), not before each worker; it has a minute (hooks.timeout)"
        found.look(source, f"{steps}: {when}")
        _inherit(found, steps, source)
    app.name, app.table = found.name, found.table
    app.translated, app.review, app.dropped, app.reads = found.translated, found.review, found.dropped, found.reads
    return True


def hook(line: str) -> str | list[str]:
    """Return a line as an option of [hooks] takes it: without a shell where it needs none."""
    return line if _NO_SHELL.match(line) else ["sh", "-c", line]


def _without_wrappers(app: Imported, words: list[str], source: str) -> list[str]:
    while words:
        found = _ASSIGNMENT.match(words[0])
        if words[0] in ("exec", "nohup") or (
            os.path.basename(words[0]) == "env" and not "".join(words[1:2]).startswith("-")
        ):
            words = words[1:]
        elif found is not None:
            app.variable(found[1], _looked_up(found[2]), source)
            words = words[1:]
        elif words[0] in RUNNERS and words[1:2] == ["run"] and not "".join(words[2:3]).startswith("-"):
            app.look(source, f"`{words[0]} run` is left out: python names the virtual environment (./.venv by default)")
            words = [*(["python"] if "".join(words[2:3]).endswith(".py") else []), *words[2:]]
        else:
            return words
    return words


def _looked_up(text: str) -> str:
    """Return a shell's text as [env] takes it: what is not set is empty there."""
    return _NAME.sub(r"${\1:-}", text)


def _python(app: Imported, words: list[str], source: str, text: str, *, variables: bool) -> None:
    rest = words[1:]
    while rest and rest[0] in ("-u", "-O", "-OO", "-B", "-I", "-E", "-s"):
        if rest[0] not in ("-u", "-B"):
            app.look(source, f"python {rest[0]} is not carried over")
        rest = rest[1:]
    is_module = rest[:1] == ["-m"]
    server = "".join(rest[1:2]) if is_module else os.path.basename("".join(rest[:1]))
    if server in _SERVERS and _SERVERS[server](app, rest[1 + is_module :], source):
        _interpreter(app, words[0], source)
    elif rest and rest[0].endswith("manage.py") and rest[1:2] == ["runserver"]:
        _command(app, words, source, text, variables=variables)
        app.look(
            source, 'runserver is Django\'s development server; in production: target = "PROJECT.wsgi:application"'
        )
    elif rest and rest[0].endswith(".py") and not (variables and any("$" in word for word in rest)):
        app.set("script", rest[0], source)
        if rest[1:]:
            app.set("args", rest[1:], source)
        _interpreter(app, words[0], source)
    else:
        _command(app, words, source, text, variables=variables)


def _interpreter(app: Imported, program: str, source: str) -> None:
    """/srv/app/venv/bin/gunicorn says which virtual environment the app has, /usr/bin/python3 that it has none."""
    folder, bin_dir = os.path.split(os.path.dirname(at_home(program)))
    if bin_dir == "bin" and folder in ("/usr", "/", "/usr/local"):
        if _PYTHON.match(os.path.basename(program)):
            app.set("python", program, source)  # the machine's own, with the packages that it has
        elif folder == "/usr":  # a server of Debian's, say, runs by it
            app.set("python", "/usr/bin/python3", source)
    elif bin_dir == "bin":
        if "$" in folder or DOLLAR in folder:
            app.look(source, f"{folder} is a virtual environment: write it into python")
            return
        inner = app.table.get("cwd", "")  # where the server changes to
        if inner and not folder.startswith(("/", "~")) and not inner.startswith(("/", "~")):
            folder = os.path.relpath(folder or ".", inner)
        app.set("python", folder or ".", source)


def _command(app: Imported, words: list[str], source: str, text: str, *, variables: bool) -> None:
    """`text`: the words as a shell is to read them."""
    if variables and any("$" in word for word in words):
        app.set("command", ["sh", "-c", f"exec {text}"], source)
        app.look(source, "uses variables, which only a shell fills in")
        _inherit(app, " ".join(words), source)
    else:
        app.set("command", words, source)
    if os.path.basename(words[0]) == "flask" and "run" in words:
        app.look(source, "flask run is Flask's development server; in production: target = …")
    inside = next((w for w in words if os.path.basename(w) in (*_SERVERS, "uwsgi")), None)
    if inside is not None:
        ending = ".ini" if os.path.basename(inside) == "uwsgi" else (".conf.py", "_conf.py", "_config.py")
        is_paste = any("paste" in word for word in words)
        file = next((w.rpartition("=")[2] for w in words if w.endswith(ending)), "") if not is_paste else ""
        ours = f"pyworker import {shlex.quote(file)} -o -, or target = …," if file else "target = …"
        app.look(source, f"{inside} has processes of its own; {ours} makes its app's workers ours")


def _inherit(app: Imported, text: str, source: str) -> None:
    """What a line looks up in the environment is no worker's, unless it is named."""
    known = {*app.table.get("env", {}), "HOME", "PATH", "USER", "SHELL", "LANG", "PWD"}
    names = [
        n
        for n in dict.fromkeys(_WANTED.findall(text))
        if n not in known and not n.startswith("PYWORKER_") and f"{n}=" not in text and f"for {n} in" not in text
    ]
    if names:
        app.set("inherit_env", names, source)
        app.look(source, FROM_THE_SHELL)


def for_shell(words: list[str]) -> str:
    """Return a line that a shell splits into these again; a $ before a name is one, $(…) and a DOLLAR are texts."""
    return " ".join(map(_for_shell, words))


def _for_shell(word: str) -> str:
    if re.fullmatch(r"([\w@%+=:,./{}-]|\$(?=[A-Za-z_{]))+", word):
        return word
    if not re.search(r"\$[A-Za-z_{]", word):
        return shlex.quote(word.replace(DOLLAR, "$"))
    return '"' + re.sub(r'(["\\`\0]|\$(?![A-Za-z_{]))', r"\\\1", word).replace(DOLLAR, "$") + '"'


# ---- servers -----------------------------------------------------------------------------------------
def _options(
    words: list[str], short: dict[str, str], flags: set[str], app: Imported, source: str
) -> tuple[dict[str, Any], list[str]]:
    """Split a command line into settings and what stands alone."""
    settings: dict[str, Any] = {}
    alone: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            alone.append(word)
            continue
        option, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not equals and not word.startswith("--") and len(word) > 2:
            option, value, equals = word[:2], word[2:], "="
        name = short.get(option, option.lstrip("-").replace("-", "_"))
        is_bare = not equals and (not rest or rest[0].startswith("--"))  # an option is no value of another
        is_flag = option in flags or option.startswith("--no-")
        if is_flag or (is_bare and rest and name not in _MANY and not servers.says_something(name)):
            settings[name] = True
            continue
        if is_bare:
            app.look(source, f"{option} has no value")
            continue
        if not equals:
            value = rest.pop(0)
        value = _looked_up(value) if name in _VARIABLES else value.replace(DOLLAR, "$")
        if name in _MANY:
            settings.setdefault(name, []).append(value)
        else:
            settings[name] = value
    return settings, alone


def _target(app: Imported, alone: list[str], default: str, source: str) -> bool:
    if not alone or not _TARGET.match(alone[0]):
        return False
    servers.target(app, alone[0], default, source)
    for word in alone[1:]:
        app.drop(word, "a second argument, which the server ignored")
    return True


def _of(
    name: str,
    short: dict[str, str],
    flags: set[str],
    default: str,
    translate: Callable[[Imported, dict[str, Any], str], None],
) -> Callable[[Imported, list[str], str], bool]:
    """Return what reads the command line of a server that is given its app as a word, `default` being the app's name."""

    def read(app: Imported, words: list[str], source: str) -> bool:
        settings, alone = _options(words, short, flags, app, source)
        if not _target(app, alone, default, source):
            return False
        translate(app, settings, f"{name} ")
        return True

    return read


def _gunicorn(app: Imported, settings: dict[str, Any], prefix: str) -> None:
    if "config" not in settings:
        app.reads = "gunicorn.conf.py"
    servers.gunicorn(app, settings, prefix)


def _hypercorn(app: Imported, settings: dict[str, Any], prefix: str) -> None:
    if "worker_class" in settings:
        servers.loop(app, settings.pop("worker_class"), f"{prefix}worker_class")
    if "config" in settings and not settings["config"].startswith(("python:", "file:")):
        app.look(f"{prefix}config", f"settings of {settings.pop('config')}, which is TOML, are not in this: write them")
    servers.gunicorn(app, settings, prefix)


def _daphne(app: Imported, settings: dict[str, Any], prefix: str) -> None:
    app.table["interface"] = "asgi"
    for text in settings.pop("endpoint", ()):
        app.look(f"{prefix}endpoint", f"was {text}: write it into bind; of ssl: the certificate and key into tls")
    servers.uvicorn(app, settings, prefix)


def _waitress(app: Imported, settings: dict[str, Any], prefix: str) -> None:
    if settings.pop("call", False):
        app.table["factory"] = True
    text = settings.pop("threads", "4")
    if (threads := whole(text)) is not None:
        app.table["threads"] = threads
    else:
        app.look(f"{prefix}threads", f"was {text}: write what that is")
    listen = settings.pop("listen", None)
    if listen is not None:
        found = [a.replace("*", "0.0.0.0") for text in listen for a in text.split()]
        servers.addresses(app, found, f"{prefix}listen")
    elif not {"host", "port", "uds"} & set(settings):
        settings["port"] = "8080"
    if "port" in settings:
        settings.setdefault("host", "0.0.0.0")
    servers.uvicorn(app, settings, prefix)


def _fastapi(app: Imported, words: list[str], source: str) -> bool:
    if words[:1] not in (["run"], ["dev"]):
        return False
    settings, alone = _options(
        words[1:], {"-e": "entrypoint"}, {"--reload", "--no-reload", "--proxy-headers"}, app, source
    )
    name = str(settings.pop("app", "app"))
    path = alone[0] if alone else "main.py"
    module = path.removesuffix(".py").removeprefix("./").strip("/").replace("/", ".")
    app.set("target", str(settings.pop("entrypoint", f"{module}:{name}")), source)
    app.look(source, f"is {app.table['target']} the app? fastapi run looks for it in the file")
    if words[0] == "run":
        settings.setdefault("host", "0.0.0.0")
    servers.uvicorn(app, settings, "fastapi ")
    return True


_SERVERS = {
    # all of gunicorn's may be in its config file, the app too
    "gunicorn": _of("gunicorn", _GUNICORN, _GUNICORN_FLAGS, "application", _gunicorn),
    "uvicorn": _of("uvicorn", {}, _UVICORN_FLAGS, "app", servers.uvicorn),
    "hypercorn": _of("hypercorn", _HYPERCORN, {"--reload", "--debug", "-D", "--daemon"}, "app", _hypercorn),
    "granian": _of("granian", _GRANIAN, _GRANIAN_FLAGS, "app", servers.uvicorn),
    "daphne": _of("daphne", _DAPHNE, {"--proxy-headers"}, "application", _daphne),
    "waitress-serve": _of("waitress", _WAITRESS, _WAITRESS_FLAGS, "app", _waitress),
    "fastapi": _fastapi,
}
