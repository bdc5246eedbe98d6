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

**Units.** Time spans and sizes are text with a unit: `"500ms"` `"10s"` `"2m"` `"1h"` `"1d"`, `"64KB"` `"512MB"` `"1GB"`
(powers of 1024). A bare number is refused.

**Paths** are relative to `cwd`, and `cwd` is relative to the file's folder. Each start and reload looks them up again,
symlinks included.

**Short forms.**

- `bind`, `env_file` and the other lists take one text, too.
- `args` and `command` as one text are split as a shell does. No shell runs, so what is for one (`&&`, `|`, `>`, `$NAME`,
  `~`) is refused outside of quotes.
- `health = "/healthz"` is `health.path`; `restart = "never"` is `restart.policy`; `watch = true` is all its defaults.
- To take back what `[defaults]` says, write in `[apps.NAME]`: `health = false`, `tls = false`, `logs = "inherit"` (no `logs.file`).

**Addresses.** `"127.0.0.1:8000"`, `"localhost:8000"`, `":8000"` (every IPv4 address of the machine), `"[::1]:8000"`,
`"[::]:8000"` (every IPv6 address; a list of the two for both), `"[fe80::1%eth0]:8000"`, `"unix:/run/api.sock"`. ASGI and WSGI
apps without `bind` listen on `127.0.0.1:8000`, or on `0.0.0.0:$PORT` when the command's environment has `PORT`. Without
`workers` they take `$WEB_CONCURRENCY`, else 1.

**Environment of a worker.** In this order; what comes later wins:

1. PATH (with the virtual environment's bin folder first), HOME, USER, LOGNAME, SHELL, LANG, LC_\\*, TZ and TMPDIR;
2. `inherit_env`: from the shell that typed the last command; reloads by the dashboard, `cron` and `watch` keep these values;
3. `env_file`; a name that ends with `?` need not exist;
4. `env`; in it `${VAR}` must be set somewhere, `${VAR:-default}` need not be, `${VAR:?message}` says why it must be, and `$$` is
   a dollar sign;
5. what is given with `-e`.

pyworker adds PYWORKER_APP, PYWORKER_WORKER (the slot), PYWORKER_WORKERS (how many), PYWORKER_GENERATION, and for commands
NOTIFY_SOCKET and, with `bind`, LISTEN_FDS. An app without a file gets all variables of the shell, and when a daemon
restores it those of whoever started that daemon: if it needs any, give it a file.

**Profiles.** `--profile NAME` or `$PYWORKER_PROFILE` lays `[profiles.NAME.app]`, `[profiles.NAME.apps.APP]` and
`[profiles.NAME.defaults]` on the tables of the same name. The app keeps its profile through reloads and boots. `check` looks at
all profiles.

**Order.** `depends_on` names apps of the same file.

- A start waits until they are ready (with `[app.health]`: until a check has passed). When one has failed, the start goes on as soon
  as it is mended.
- A script or command that may end by its `restart.policy`, and has ended with code 0, counts as ready.
- A migration is a script or command with `restart.policy = "never"` that listens nowhere, without `[app.health]` and
  `ready = "notify"`: it counts as ready only when it has ended with code 0.
- Apps that run are not touched when a dependency dies. `--only NAME` starts what NAME depends on, too.
- Of apps that are stopped together (`stop all`, `daemon stop`, SIGTERM), one serves on until those that depend on it have gone: their
  last requests find it. A worker of it that dies meanwhile is not replaced. The time-outs of these apps add up.
- `stop --now` and a second SIGTERM end all at once. A run of a job keeps nobody waiting. `restart` stops all at once, too.

**Jobs.** With `cron` a script or command runs at those times and is not restarted in between; `ps` says `scheduled`.

- A run that is not over when its next time comes goes on, and no second one starts. A reload leaves it alone. One that is over a limit is
  ended, not replaced; so is a script or command with `restart.policy = "never"` that listens nowhere.
- Times are local. At the change to summer time, runs of the missing hour happen once, at the jump; in autumn, runs of the repeated hour
  happen once. Jobs of every hour or every few minutes go on as always.
- Runs that were due while pyworker did not run are left out. Of those due while its daemon was replaced, or while the job's start waited
  for what it depends on, one is made up for.
- `reload.cron` reloads an app that keeps running, unless a reload of it is under way.

**Hooks** are commands. They run as the app's user, in its folder and environment, with `PYWORKER_HOOK`, `PYWORKER_APP` and
`PYWORKER_GENERATION`.

- When `pre_start` exits with another code than 0, the start fails, or the reload or restart is refused, and nothing has changed.
- What hooks print is shown when they fail, and kept nowhere else.
- A hook that calls `pyworker` must name a home that is not the default one (`--home`). The daemon answers its own user and root
  only.

**Takes effect** says when a changed value does:

- *live*: for all workers, those that drain too, when `pyworker reload` is committed. (It brings new workers all the same, as
  code may have changed. `pyworker scale` changes the number of workers alone.)
- *reload*: with the new workers of `pyworker reload`.
- *restart*: when the app is started anew. (An app of another `name` is another app.)

**Logs** go to files. `pyworker run` has them on stdout, for containers and systemd units, unless `logs.file` names a file
(`"inherit"` means none; `"./inherit"` is a file). `logs.journald` sends each line to the journal, too.
"""

_FOOTER = """## Rules

- An app has exactly one of `target`, `script` and `command`.
- `factory`, `interface`, `threads`, `loop`, `preload`, `http` and `tls` are for `target`; `args` for `script`; `ready` for `command`; `cron` for
  scripts and commands.
- `balance`: `round-robin` is the default for `target`; scripts and commands accept by themselves, which is `shared`.
  `least-connections` is for `target`; `proxy` for scripts and commands that listen on `$PORT`, and needs `bind`; `round-robin`
  also for `command = ["node", …]`. See [balancing.md](balancing.md).
- `limits.max_requests` and `limits.request_timeout` are for `target`: nobody counts the requests of scripts and commands.
- `limits.request_timeout` is an app's time for one request. The time in which it waits for its client (a slow upload, a slow reader)
  does not count; an endless stream is as old as its last such wait. A client that sends or takes nothing for a minute is cut.
- A script is ready when it has bound its port. A command is ready when its health check passes or, with `ready = "notify"`, when it
  says so. Otherwise a script counts as ready after 3 s, and a command after 1 s. On a busy machine the time that it waits for a CPU is
  added, up to half of `reload.ready_timeout`.
- Health checks of a `target` are `http` or `exec`; `http` and `tcp` checks of a script or command need `health.port`, or a TCP address in `bind`.
- `user` and `group` need a daemon that runs as root. Root starts apps only from files that nobody but root and the
  app's user can write. A file of that user's may name only groups that the user is a member of.
- A Unix socket of `bind` keeps its owner and mode until the app is stopped, also when a script tries to remove its file, as servers do
  before they bind. Its folder has to be there. A boot empties `/run`: a line `d /run/shop` in `/etc/tmpfiles.d/shop.conf` makes a folder
  there each time.
- The sockets that a command gets by LISTEN_FDS do not block (O_NONBLOCK), as they are shared.
- `tls.ca`: a client without such a certificate is closed without a word (curl: "Empty reply from server"). Failed handshakes are not
  logged, since scanners make them all day. `openssl verify -purpose sslclient -CAfile CA -untrusted CERT CERT` says what is wrong with a
  client's certificate (CERT: the file that it sends, with what is between it and the CA).
- No two apps of a file may have the same address, or one that is part of the other (`:80` and `127.0.0.1:80`).
"""


def page() -> str:
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
