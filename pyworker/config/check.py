"""Rules between the options of one app. Pure: no file, no clock, no environment. Those between apps: between.py.

A rule says what is wrong as a Finding; load.py turns it into a Problem with its place in the file.
"""

from __future__ import annotations

import ipaddress
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Literal

from pyworker.config.address import MAX_LISTENERS, Address, AddressError, collide, parse_bind
from pyworker.config.interpolate import InterpolationError, check_syntax
from pyworker.config.report import shown
from pyworker.config.schema import KINDS, AppConfig, HealthConfig, Kind
from pyworker.config.spans import Path
from pyworker.config.suggest import nearest
from pyworker.config.timetable import CronError
from pyworker.config.timetable import parse as parse_cron
from pyworker.record import record

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
MAX_NAMES = 500  # files, folders or globs in one list: the daemon looks at each, at the folders again and again
_LONGEST_GLOB = 256  # of variables: fnmatch takes more than its share of the time
RESERVED = {"all": "that stands for every app", "pyworker": "logs/pyworker.log is the daemon's own"}
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@-]*\$?\Z")
_EXPECT = re.compile(r"[1-5](?:[0-9]{2}|xx)\Z")
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+\Z")
STATE_SERVERS = ("redis://", "rediss://", "unix://")
STATE_HINT = 'for example "redis://127.0.0.1:6379/0", or "${REDIS_URL}"'

# option -> the kinds of app it is for; what is not named here is for all
FOR_KINDS: dict[str, tuple[Kind, ...]] = {
    "factory": ("target",),
    "interface": ("target",),
    "threads": ("target",),
    "loop": ("target",),
    "preload": ("target",),
    "http": ("target",),
    "tls": ("target",),
    "args": ("script",),
    "ready": ("command",),
    "cron": ("script", "command"),
}


@record
class Finding:
    """One broken rule. `message` continues "`app.key` "; with an empty key it is said of the whole table."""

    key: Path
    message: str
    hint: str = ""
    at: Literal["key", "value"] = "value"
    code: str = "invalid_value"


def kind_of(app: AppConfig) -> Kind | None:
    """Return which kind of app this is; None when it is none or more than one."""
    kinds = [kind for kind in KINDS if getattr(app, kind) not in (None, ())]
    return kinds[0] if len(kinds) == 1 else None


def check(app: AppConfig, given: set[tuple[str, ...]]) -> list[Finding]:
    """Return what is wrong with an app; `given`: the keys it states itself, ("health", "path") and the like."""
    found = [*_name(app), *_what_to_run(app, given), *_addresses(app), *_environment(app), *_rights(app), *_stop(app)]
    found += [*_times(app), *_hooks(app), *_lists(app)]
    kind = kind_of(app)
    if kind is not None:
        found += [*_only_for(app, kind, given), *_balance(app, kind), *_health(app, kind, given)]
    return [*found, *_http(app.http.forwarded_allow_ips, app.http.root_path)]


def _http(peers: tuple[str, ...], root_path: str) -> Iterator[Finding]:
    for index, text in enumerate(peers):
        try:
            if text not in ("*", "unix"):
                ipaddress.ip_network(text, strict=False)
        except ValueError:
            message = f'must be an address, a network such as "10.0.0.0/8", "unix" or "*", not {shown(text)}'
            yield Finding(("http", "forwarded_allow_ips", index), message)
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        yield Finding(("http", "root_path"), f"must begin with / and not end with one, not {shown(root_path)}")


def _name(app: AppConfig) -> list[Finding]:
    if app.name in RESERVED:
        return [Finding(("name",), f'must not be "{app.name}": {RESERVED[app.name]}', "choose another name")]
    if NAME.match(app.name):
        return []
    message = f"must be small letters, digits, - and _ (64 at most), not {shown(app.name)}"
    return [Finding(("name",), message, f'did you mean "{clean_name(app.name)}"?')]


def clean_name(text: str) -> str:
    """Return the nearest valid app name; "app" when nothing is left of the text."""
    name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:64] or "app"
    return "pyworker-app" if name == "pyworker" else name


def _what_to_run(app: AppConfig, given: set[tuple[str, ...]]) -> Iterator[Finding]:
    stated = [k for k in KINDS if (k,) in given]
    if len(stated) > 1:
        yield Finding(
            (stated[1],), f"and `{stated[0]}` are both set; an app is one of them", "remove one", "key", "conflict"
        )
    elif not stated:
        hint = 'add target = "module:app" (a web app), script = "server.py" or command = ["…"]'
        yield Finding((), "says nothing to run: one of target, script and command is needed", hint, code="missing_key")
    if app.target is not None:
        yield from _target(app.target)
    if app.script is not None and not app.script.strip():
        yield Finding(("script",), "is empty", 'for example script = "server.py"')
    if ("command",) in given and not (app.command and app.command[0]):
        yield Finding(("command",), "is empty", 'for example command = ["node", "server.js"]')
    yield from _one_word(("command",), app.command)


def _target(target: str) -> list[Finding]:
    module, colon, attribute = target.partition(":")
    if all(p.isidentifier() for p in (*module.split("."), *attribute.split("."))):
        return []
    hint = 'for example "shop.main:app"'
    attribute = attribute.strip()
    path = re.sub(r"\.py\Z", "", module.strip().removeprefix("./")).replace("/", ".")
    usable = all(p.isidentifier() for p in path.split("."))
    if attribute.endswith("()") and usable:
        hint = f'did you mean target = "{path}:{attribute[:-2]}" with factory = true?'
    elif attribute.endswith(")") and "(" in attribute and usable:
        hint = "name a function that takes no arguments and returns the app, with factory = true"
    elif not colon and module.endswith(".py"):
        hint = f'a web app is "{path}:app"; a script that listens by itself is script = "{module}"' if usable else hint
    elif usable and not colon and "." in path and path.rpartition(".")[2] in ("app", "application"):
        hint = 'did you mean "{}:{}"?'.format(*path.rsplit(".", 1))
    elif usable:
        hint = f'did you mean "{path}:{attribute if attribute.isidentifier() else "app"}"?'
    return [Finding(("target",), f"must be module:attribute, not {shown(target)}", hint)]


def _addresses(app: AppConfig) -> Iterator[Finding]:
    if len(app.bind) > MAX_LISTENERS:
        hint = "make two apps of it, or listen on all addresses of the machine at once"
        yield Finding(("bind",), f"names {len(app.bind)} addresses: {MAX_LISTENERS} are the most", hint)
        return
    seen: list[Address] = []
    for index, text in enumerate(app.bind):
        key: Path = ("bind", index)
        try:
            address = parse_bind(text)
        except AddressError as error:
            yield Finding(key, f"is no address: {error}", error.hint)
            continue
        before = next((there for there in seen if collide(there, address)), None)
        if before is not None:
            within = "" if before == address else f": {shown(str(before))} is part of it, or it of that"
            yield Finding(key, f"has {shown(str(address))} twice{within}", "remove one", code="conflict")
        seen.append(address)


def _environment(app: AppConfig) -> Iterator[Finding]:
    for name, text in app.env.items():
        if name.startswith(("PYWORKER_", "LISTEN_FD", "LISTEN_PID")):
            yield Finding(("env", name), "is set by pyworker itself", "choose another name", "key")
        try:
            check_syntax(text)
        except InterpolationError as error:
            yield Finding(("env", name), str(error), error.hint)
    yield from _state(app.state)
    if app.logs.file == "":
        yield Finding(("logs", "file"), "is empty", 'for example file = "/var/log/api.log"')
    yield from (Finding(("env_file", i), "is empty") for i, name in enumerate(app.env_file) if not name.strip("? "))
    for index, name in enumerate(app.inherit_env):
        if len(name) > _LONGEST_GLOB:
            yield Finding(("inherit_env", index), f"is no name: {_LONGEST_GLOB} characters are the most")


def _lists(app: AppConfig) -> Iterator[Finding]:
    found: dict[Path, tuple[str, ...]] = {("env_file",): app.env_file, ("inherit_env",): app.inherit_env}
    if app.watch is not None:
        found |= {("watch", name): getattr(app.watch, name) for name in ("paths", "include", "exclude")}
    for key, names in found.items():
        if len(names) > MAX_NAMES:
            yield Finding(key, f"has {len(names)} entries: {MAX_NAMES} are the most")


def _state(text: str) -> list[Finding]:
    if text == "sqlite" or text.startswith((*STATE_SERVERS, "${")):
        try:
            check_syntax(text)
        except InterpolationError as error:
            return [Finding(("state",), str(error), error.hint)]
        return []
    return [Finding(("state",), f'must be "sqlite" or the address of a Redis server, not {shown(text)}', STATE_HINT)]


def _rights(app: AppConfig) -> Iterator[Finding]:
    for key, name in (("user", app.user), ("group", app.group)):
        if name is not None and not _USER.match(name):
            hint = "user and group are two options" if ":" in name else ""
            yield Finding((key,), f"must be a name or a number, not {shown(name)}", hint)
    if app.umask is not None and not re.fullmatch(r"(0o?)?[0-7]{1,3}", app.umask):
        yield Finding(("umask",), f'must be octal digits such as "0022", not {shown(app.umask)}')


def _stop(app: AppConfig) -> list[Finding]:
    key = ("stop", "signal")
    plain = app.stop.signal.upper().removeprefix("SIG")
    number = signal.Signals.__members__.get(f"SIG{plain}")
    others = "for example TERM, INT, QUIT, HUP, USR1, USR2"
    if number is None:
        known = [m.removeprefix("SIG") for m in signal.Signals.__members__ if not m.startswith("SIGRT")]
        meant = nearest(plain, known)
        hint = f'did you mean "{meant}"?' if meant else others
        return [Finding(key, f"must be the name of a signal, not {shown(app.stop.signal)}", hint)]
    if number is signal.SIGCHLD:
        return [Finding(key, "cannot be CHLD: every program gets that when one that it has started ends", others)]
    if number in (signal.SIGKILL, signal.SIGSTOP):
        hint = 'for a hard stop: kill_timeout = "0s"'  # the end is SIGKILL anyway
        return [Finding(key, f"cannot be {plain}: no program can act on it", hint)]
    return []


def _times(app: AppConfig) -> Iterator[Finding]:
    keys: list[tuple[Path, str | None]] = [(("cron",), app.cron), (("reload", "cron"), app.reload.cron)]
    for key, text in keys:
        if text is None:
            continue
        try:
            parse_cron(text)
        except CronError as error:
            yield Finding(key, error.message, error.hint)
    if app.cron is not None:
        if app.reload.cron is not None:
            hint = "a job reads its code anew each time it runs; remove reload.cron"
            yield Finding(("reload", "cron"), "is for apps that keep running; this one is a job (cron)", hint)
        if app.health is not None:
            yield Finding(("health",), "is for apps that keep running; this one is a job (cron)", "remove it")


def _hooks(app: AppConfig) -> Iterator[Finding]:
    hook = app.hooks.post_fork
    if hook is not None:
        module, _, function = hook.partition(":")
        if not all(p.isidentifier() for p in (*module.split("."), *function.split("."))):
            hint = 'for example "shop.hooks:post_fork"'
            yield Finding(("hooks", "post_fork"), f"must be module:function, not {shown(hook)}", hint)
        elif kind_of(app) in ("script", "command"):
            hint = "remove it: a script or command can do this itself when it starts"
            yield Finding(("hooks", "post_fork"), "is for ASGI and WSGI apps (target)", hint, "key", "conflict")
    for key in ("pre_start", "post_reload", "on_event"):
        command = getattr(app.hooks, key)
        yield from _one_word(("hooks", key), command)
        if command and not command[0]:
            yield Finding(("hooks", key), "is empty")
    if app.watch is not None and not app.watch.paths:
        yield Finding(("watch", "paths"), "is empty", 'for example paths = ["src"]')


def _only_for(app: AppConfig, kind: Kind, given: set[tuple[str, ...]]) -> Iterator[Finding]:
    for key, kinds in FOR_KINDS.items():
        if kind not in kinds and (key,) in given:
            words = {"target": "ASGI and WSGI apps (target)", "script": "scripts", "command": "commands"}
            whose = " and ".join(words[each] for each in kinds)
            yield Finding((key,), f"is for {whose}; this app is a {kind}", "remove it", "key", "conflict")
    if kind == "target" and app.threads > 1 and app.interface == "asgi":
        yield Finding(("threads",), "is for WSGI apps; this one is ASGI", "use more workers", "key", "conflict")


def _balance(app: AppConfig, kind: Kind) -> list[Finding]:
    if app.proxy_protocol and app.balance != "proxy":
        hint = 'remove it, or use balance = "proxy"'
        return [Finding(("proxy_protocol",), 'is for balance = "proxy"', hint, "key", "conflict")]
    if app.balance == "least-connections" and kind != "target":
        hint = 'use balance = "proxy": each worker listens on a port of its own, $PORT'
        return [Finding(("balance",), f'"least-connections" is for ASGI and WSGI apps; this app is a {kind}', hint)]
    if app.balance == "proxy" and kind == "target":
        hint = 'use balance = "least-connections": ASGI and WSGI workers are handed their connections'
        return [Finding(("balance",), '"proxy" is for programs that listen on a port of their own', hint)]
    if app.balance == "proxy" and not app.bind:
        hint = 'add bind: where clients connect, for example bind = ":8000"; workers get ports of their own in $PORT'
        return [Finding(("balance",), '"proxy" needs an address to accept on', hint, code="missing_key")]
    if app.balance == "round-robin" and kind != "target" and not runs_node(app.command):
        hint = 'use balance = "shared": its workers accept by themselves'
        if kind == "command":
            hint += ', or "proxy": each listens on a port of its own, $PORT'
        message = f'"round-robin" is for ASGI and WSGI apps and for Node programs; this app is a {kind}'
        return [Finding(("balance",), message, hint)]
    if app.balance == "round-robin" and kind == "command" and app.ipc is False:
        hint = "remove it: connections come over the message channel"
        return [Finding(("ipc",), 'cannot be false with balance = "round-robin"', hint, "key", "conflict")]
    return []


def runs_node(command: Sequence[str]) -> bool:
    """Whether the command is Node itself: only its programs share a port by Node's cluster."""
    return bool(command) and command[0].rpartition("/")[2] in ("node", "nodejs")


def _health(app: AppConfig, kind: Kind, given: set[tuple[str, ...]]) -> Iterator[Finding]:
    health = app.health
    if health is None:
        return
    owners = {"path": "http", "host": "http", "expect": "http", "command": "exec"}
    for key, owner in owners.items():
        if ("health", key) in given and health.type != owner:
            yield Finding(
                ("health", key), f'is for type = "{owner}", not "{health.type}"', "remove it", "key", "conflict"
            )
    if health.type == "http":
        yield from _health_request(health)
    elif health.type == "exec":
        yield from _health_command(health, is_given=("health", "command") in given)
    yield from _health_port(app, kind, health)


def _health_request(health: HealthConfig) -> Iterator[Finding]:
    if not health.path.startswith("/"):
        hint = f'did you mean "/{health.path}"?' if _HEADER_SAFE.match("/" + health.path) else "no spaces, ASCII only"
        yield Finding(("health", "path"), f"must begin with /, not {shown(health.path)}", hint)
    elif not _HEADER_SAFE.match(health.path):
        yield Finding(("health", "path"), f"must have no spaces, and ASCII only, not {shown(health.path)}")
    if not _HEADER_SAFE.match(health.host):
        yield Finding(("health", "host"), f"must be a host name, not {shown(health.host)}")
    if not all(_EXPECT.match(p.strip()) for p in health.expect.split(",")):
        message = f'must be statuses such as "2xx", "200" or "2xx,3xx", not {shown(health.expect)}'
        yield Finding(("health", "expect"), message)


def _health_command(health: HealthConfig, *, is_given: bool) -> list[Finding]:
    if not health.command and not is_given:
        hint = 'for example command = ["./check.sh"]'
        return [Finding(("health", "type"), '"exec" needs health.command', hint, code="missing_key")]
    if wrong := _one_word(("health", "command"), health.command):
        return wrong
    if not (health.command and health.command[0]):
        return [Finding(("health", "command"), "is empty")]
    return []


def _health_port(app: AppConfig, kind: Kind, health: HealthConfig) -> list[Finding]:
    """Whether there is a port to ask, and it is known which."""
    if health.type == "exec":
        if health.port is None:
            return []
        return [Finding(("health", "port"), 'is for type = "http" or "tcp"', "remove it", "key", "conflict")]
    if kind == "target":
        if health.type == "tcp":
            hint = 'use type = "http": it asks each worker over a connection of its own'
            return [Finding(("health", "type"), '"tcp" is for apps with a port of their own', hint, code="conflict")]
        if health.port is not None:
            message = "is for apps with a port of their own: each worker is asked directly"
            return [Finding(("health", "port"), message, "remove it", "key", "conflict")]
        return []
    if kind == "command" and app.balance == "round-robin":
        hint = 'use type = "exec", or balance = "proxy": then each worker has a port to ask'
        message = f'"{health.type}" cannot ask one of several Node workers behind one port'
        return [Finding(("health", "type"), message, hint, code="conflict")]
    if app.balance == "proxy":
        if health.port is None:
            return []
        hint = "remove it: each worker is asked on its own $PORT"
        return [Finding(("health", "port"), 'has no meaning with balance = "proxy"', hint, "key", "conflict")]
    if health.port is None and not any(_has_port(text) for text in app.bind):
        script = "add health.port: where this script listens"
        hint = script if kind == "script" else 'add health.port, or use type = "exec"'
        return [Finding(("health", "type"), f'"{health.type}" needs a port to ask', hint, code="missing_key")]
    return []


def _has_port(text: str) -> bool:
    try:
        return parse_bind(text).family != "unix"
    except AddressError:
        return False


def _one_word(key: Path, words: tuple[str, ...]) -> list[Finding]:
    """["celery -A shop"] is a program of that name, which nobody has; one with a path may have a space in it."""
    if len(words) == 1 and " " in words[0].strip() and "/" not in words[0].split()[0]:
        hint = f"write it as a text, which is split ({shown(words[0])}), or each word in quotes of its own"
        return [Finding(key, "is a list with one word, and that has spaces in it", hint)]
    return []
