"""The page docs/configuration.md, written from the schema: `python -m pyworker.config.reference > docs/configuration.md`.

A test compares the committed page with this output.
"""

from __future__ import annotations

import sys
import typing
from typing import Any

from pyworker.config.convert import expected, hints_of, literals, table_class
from pyworker.config.option import Option, option_of
from pyworker.config.report import shown
from pyworker.config.schema import AppConfig, RunConfig
from pyworker.config.units import duration_text, size_text
from pyworker.record import MISSING, Field, fields

_INTRO = """# Configuration

This page is written from the schema: `python -m pyworker.config.reference > docs/configuration.md`.

A file holds one app, `[app]`, or several, `[apps.NAME]`, each on top of `[defaults]`:

```toml
[app]
target  = "shop.main:app"     # the one thing an app needs: target, script or command
workers = 4
bind    = "127.0.0.1:8000"
```

```toml
[defaults]                    # any option; what does not fit an app's kind is left out
workers = 2

[apps.web]
target = "shop.main:app"
bind   = "127.0.0.1:8000"

[apps.jobs]
command = ["celery", "-A", "shop.jobs", "worker"]
stop.drain_timeout = "2m"     # the same as [apps.jobs.stop] drain_timeout = "2m"
```

In `pyproject.toml` the same tables stand under `[tool.pyworker]`: `[tool.pyworker.app]`.

**Which file.** The one that is named; else `$PYWORKER_CONFIG`; else `app.toml`, `pyworker.toml`, or a `pyproject.toml`
with `[tool.pyworker]` in this folder. `pyworker check` shows every mistake in it and starts nothing.

**Profiles.** `[profiles.NAME.app]`, `[profiles.NAME.apps.APP]` and `[profiles.NAME.defaults]` are laid on the tables of the same
name with `--profile NAME` or `$PYWORKER_PROFILE`; the app keeps its profile through reloads and boots.
`check` looks at all of them.

**Order.** `depends_on` names apps of the same file: a start waits until they are ready (with `[app.health]`: until a check
has passed), and goes on by itself when one that failed is mended. Apps that run are not touched when a dependency dies. A
script or command whose `restart.policy` lets it end, and that has ended with code 0, is as good as ready; one with `"never"` that
listens nowhere, without `[app.health]` and `ready = "notify"`, only then: a migration, say. `--only NAME` brings what NAME
depends on.

**Jobs.** With `cron` a script or command runs at those times and is not restarted in between; `ps` says `scheduled`. A run that is
still at work when its next time comes is not doubled, a reload leaves it alone, and one that is over a limit is ended, as is a
script or command with `restart.policy = "never"` that listens nowhere. Times are local: what summer time leaves out runs once at
the jump, what it repeats runs once (a job of every hour or every few minutes goes on as ever). What was due while pyworker did
not run is left out; while its daemon was replaced, it is made up for. `reload.cron` reloads an app that keeps running, unless a
reload of it is under way.

**Hooks** are commands, run as the app's user in its folder and environment with `PYWORKER_HOOK`, `PYWORKER_APP` and
`PYWORKER_GENERATION`; one as text is split like a shell does, no shell runs. `pre_start` decides: with an exit code that is not 0
the start fails, or the reload or restart is refused, and nothing has changed. What hooks print is shown when they fail, and kept
nowhere else. One that calls `pyworker` has to name a home that is not the default one (`--home`), and the daemon answers its own
user and root only.

**Units.** Time spans and sizes are text with a unit: `"500ms"` `"10s"` `"2m"` `"1h"` `"1d"`, `"64KB"` `"512MB"` `"1GB"`
(powers of 1024). A bare number is refused.

**Paths** are relative to `cwd`, and `cwd` is relative to the file's folder. All are looked up again at each start and
reload, symlinks included.

**Short forms.** `bind`, `env_file` and the other lists take one text too; `args` and `command` as one text are split
like a shell does; no shell runs, so what is for one (`&&`, `|`, `>`, `$NAME`, `~`) is refused
unless it is in quotes. `health = "/healthz"` is `health.path`; `restart = "never"` is `restart.policy`;
`logs = "inherit"` is `logs.file`, and takes back a file that `[defaults]` names.
`watch = true` is all its defaults. In `[apps.NAME]`, `health = false` and `tls = false` take back what `[defaults]` says.

**Addresses.** `"127.0.0.1:8000"`, `"localhost:8000"`, `":8000"` (every IPv4 address of the machine), `"[::1]:8000"`,
`"[::]:8000"` (every IPv6 one; a list of the two for both), `"[fe80::1%eth0]:8000"`, `"unix:/run/api.sock"`. ASGI and WSGI
apps without `bind` listen on `127.0.0.1:8000`, or on `0.0.0.0:$PORT` when the command's environment has `PORT`; without
`workers` they take `$WEB_CONCURRENCY`, else 1.

**Environment of a worker**, in this order, later wins: PATH, HOME, USER, LOGNAME, SHELL, LANG, LC_\\*, TZ and TMPDIR,
with the virtual environment's bin folder first on PATH; `inherit_env` from the shell that typed the command
(what the last one gave stays where none did: in the dashboard, by `cron`, by `watch`); `env_file`
(a name that ends with `?` need not exist); `env`; what is given with `-e`. In `env`, `${VAR}` must be set somewhere,
`${VAR:-default}` need not, `${VAR:?message}` says why it must, `$$` is a dollar sign. pyworker adds PYWORKER_APP, PYWORKER_WORKER
(the slot), PYWORKER_WORKERS (how many), PYWORKER_GENERATION, and for commands NOTIFY_SOCKET and, with `bind`, LISTEN_FDS. An app without a file gets
all of the shell's variables, and when a daemon restores it those of whoever started that daemon: what it needs belongs in a file.

**Takes effect** says when a changed value does: *live*, for all workers at once when `pyworker reload` is
committed, those that still drain too (the reload brings new workers all the same: code may have changed; the number of
workers alone is `pyworker scale`); *reload*, with the new workers of `pyworker reload`; *restart*, when it is started anew
(an app of another `name` is another app).

**Logs** go to files. To have them on stdout, for a container or a unit of systemd's, use `pyworker run` and `--logs`, which has
them there unless `logs.file` names a file (`"inherit"` is none; `"./inherit"` would be one);
`logs.journald` sends each line to the journal beside the file.
"""

_FOOTER = """## Rules

- An app has exactly one of `target`, `script` and `command`.
- `factory`, `interface`, `threads`, `loop`, `preload`, `http` and `tls` are for `target`; `args` for `script`; `ready` for `command`; `cron` for
  scripts and commands.
- `balance`: `round-robin` is the default for `target`; scripts and commands accept by themselves, which is `shared`.
  `least-connections` is for `target`; `proxy` for scripts and commands that listen on `$PORT`, and needs `bind`; `round-robin`
  also for `command = ["node", …]`. See [balancing.md](balancing.md).
- `limits.max_requests` and `limits.request_timeout` are for `target`: nobody counts the requests of scripts and commands.
- `limits.request_timeout`: an app's time for one request. While it waits for its client (a slow upload, a slow reader) nothing is
  counted; a stream that has no end is as old as its last such wait. Who sends or takes nothing for a minute is cut.
- A script is ready when it has bound its port, a command when its health check passes or, with `ready = "notify"`, when it says so.
  Where nothing says it, a script counts as ready after 3 s, a command after 1 s; what it waits for a CPU on a busy machine comes
  on top of it, up to half of `reload.ready_timeout`.
- Health checks of a `target` are `http` or `exec`; `http` and `tcp` checks of a script or command need `health.port`, or a TCP address in `bind`.
- `user` and `group` need a daemon that runs as root. Root starts apps only from files that nobody but root and the
  app's user can write, and for a file of that user's with no group that the user is no member of.
- A Unix socket of `bind` keeps its owner and mode until the app is stopped; a script that removes its file, as servers do before
  they bind, leaves it where it is. Its folder has to be there; of one below `/run`, which a boot empties, a line `d /run/shop` in
  `/etc/tmpfiles.d/shop.conf` makes it each time. The sockets that a command gets by LISTEN_FDS do not
  block (O_NONBLOCK), as they are shared.
- `tls.ca`: who shows no such certificate is closed without a word (curl: "Empty reply from server"). No handshake that fails is
  logged, as none is by uvicorn, or by nginx above `info`: scanners make them all day. The client's side tells why:
  `openssl s_client -connect HOST:PORT`.
- No two apps of a file may have the same address, or one that is part of the other (`:80` and `127.0.0.1:80`).
"""


def page() -> str:
    """Return the whole page."""
    sections = [_INTRO, _table(AppConfig, "## [app], [apps.NAME], [defaults]")]
    for field in fields(AppConfig):
        nested = table_class(hints_of(AppConfig)[field.name])
        if nested is not None:
            sections.append(_table(nested, f"## [app.{field.name}]", option_of(field).help))
    sections.append(_table(RunConfig, "## [run]", "for `pyworker run`, of the whole file"))
    return "\n".join([*sections, _FOOTER])


def _table(cls: Any, title: str, lead: str = "") -> str:
    lines = [title, ""]
    if lead:
        lines += [f"{lead[0].upper()}{lead[1:]}.", ""]
    lines += ["| option | value | default | takes effect | |", "|---|---|---|---|---|"]
    for field in fields(cls):
        hint = hints_of(cls)[field.name]
        if table_class(hint) is not None:
            continue
        option = option_of(field)
        cells = (f"`{field.name}`", _kind(hint, option), _default(field, option), option.apply, _help(option))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _kind(hint: Any, option: Option) -> str:
    if option.unit:
        text = "time span" if option.unit == "duration" else "size"
        text += "".join(f' or `"{word}"`' for word in literals(hint))
    elif (words := typing.get_args(hint)) and all(isinstance(word, str) for word in words):
        text = " ".join(f"`{shown(word)}`" for word in words)
    elif "tuple" in str(hint):
        text = "text or list"
    elif "dict" in str(hint):
        text = "table of texts"
    else:
        text = expected(hint, option)
    number = _in_units(option)
    if option.minimum is not None and option.maximum is not None:
        return f"{text}, {number(option.minimum)} to {number(option.maximum)}"
    if option.minimum:
        return f"{text}, at least {number(option.minimum)}"
    return text


def _default(field: Field[Any], option: Option) -> str:
    value = field.default
    if field.name in ("bind", "name"):
        return "see above" if field.name == "bind" else "the folder's name"
    if value is MISSING or value is None or value in ("", ()):
        required = value is MISSING and field.default_factory is MISSING
        return "required" if required else ""
    if isinstance(value, tuple):
        return "`[" + ", ".join(shown(v) for v in value) + "]`"
    return f"`{_in_units(option)(value) if option.unit else shown(value)}`"


def _in_units(option: Option) -> Any:
    match option.unit:
        case "duration":
            return lambda n: f'"{duration_text(n)}"'
        case "size":
            return lambda n: f'"{size_text(int(n))}"'
        case "":
            return lambda n: f"{n:g}"


def _help(option: Option) -> str:
    example = f"; for example `{option.example}`" if option.example else ""
    return option.help.replace("<", "&lt;") + example


if __name__ == "__main__":
    sys.stdout.write(page())
