"""Every option an operator can set, once: names, types, defaults, help, units, limits.

Values are in the program's own units: durations are float seconds, sizes int bytes. Absent optional
tables are None. This file is pure and standard library only: the daemon, the template and the workers
all read it.
"""

from __future__ import annotations

from typing import Literal

from pyworker.config.option import duration, option
from pyworker.record import field, record

Balance = Literal["round-robin", "shared", "least-connections", "proxy"]
Interface = Literal["auto", "asgi", "wsgi"]
Kind = Literal["target", "script", "command"]
KINDS: tuple[Kind, ...] = ("target", "script", "command")
Policy = Literal["always", "on-failure", "never"]

MB = 1024 * 1024
DEFAULT_UMASK = 0o022  # as under systemd; what the daemon has (0077) is for its own files


@record
class RestartConfig:
    """[app.restart]: what happens when a worker dies by itself."""

    policy: Policy = option("always", help="restart a worker that ended by itself", apply="live")
    min_uptime: float = duration(10.0, "lived this long after ready: replaced at once, record cleared", apply="live")
    max_restarts: int = option(
        10, help="so many unstable deaths in a row within `window`: failed", minimum=1, maximum=1000, apply="live"
    )
    window: float = duration(
        60.0, "the window of `max_restarts`; what is waited between restarts does not count", minimum=1, apply="live"
    )
    retry: float = duration(
        60.0, 'an app that failed after its start, or at a boot, is probed this often; "0s" = never', apply="live"
    )


@record
class StopConfig:
    """[app.stop]: how a worker is asked to leave."""

    drain_timeout: float = duration(30.0, "no new connections; open requests may finish", apply="live")
    signal: str = option("TERM", help="sent to the worker after the drain", example="INT", apply="live")
    kill_timeout: float = duration(10.0, "SIGKILL to the whole session this long after the signal", apply="live")


@record
class ReloadConfig:
    """[app.reload]: new code without a lost request."""

    max_surge: int = option(
        1, help="how many new workers may be starting at once during a reload", minimum=1, maximum=1000, apply="live"
    )
    ready_timeout: float = duration(
        60.0, "a new worker (import included) must be ready within this", minimum=0.1, apply="live"
    )
    soak: float = duration(10.0, "the old template is kept this long; too many deaths roll back from it", apply="live")
    cron: str | None = option(
        None, help="reload by itself at these times (five cron fields, local time)", example="0 4 * * *", apply="live"
    )


@record
class WatchConfig:
    """[app.watch]: for development. `watch = true` is all of it."""

    paths: tuple[str, ...] = option((".",), help="folders that are watched, with all in them", apply="live")
    include: tuple[str, ...] = option(
        ("*.py", "*.toml", ".env"),
        help="names (globs) whose change means a reload; by default, for a `command`, those of JavaScript (`*.js`, `*.ts` …), too",
        apply="live",
    )
    exclude: tuple[str, ...] = option(
        (), help="paths or names (globs) that do not count, beside .git, .venv, __pycache__ and the like", apply="live"
    )
    debounce: float = duration(0.3, "nothing has changed for this long: reload", minimum=0.01, maximum=60, apply="live")


@record
class HooksConfig:
    """[app.hooks]: commands that pyworker runs at certain moments, as the app's user, in its folder and environment."""

    pre_start: tuple[str, ...] = option(
        (), help="before a start, restart or reload; if it fails nothing is started", example="python manage.py check"
    )
    post_reload: tuple[str, ...] = option((), help="when the new workers of a reload accept", apply="live")
    on_event: tuple[str, ...] = option(
        (), help="at every event of the app, one at a time; the event is on stdin as JSON", apply="live"
    )
    post_fork: str | None = option(
        None, help="module:function called in each new worker of an asgi or wsgi app", example="shop.hooks:post_fork"
    )
    timeout: float = duration(
        60.0,
        "a command may take this long; once a daemon that stops has ended its apps, 2 s",
        minimum=0.1,
        apply="live",
    )


@record
class HealthConfig:
    """[app.health]: asked of each worker, not of the port."""

    type: Literal["http", "tcp", "exec"] = option("http", help="kind of check")
    path: str = option("/", help="path of the http check", example="/healthz")
    host: str = option("localhost", help="Host header of the http check (Django's ALLOWED_HOSTS must have it)")
    expect: str = option("2xx", help='expected status: "2xx", "200", "2xx,3xx"')
    port: int | None = option(
        None, help="port of the check, for commands that bind their own", minimum=1, maximum=65535
    )
    command: tuple[str, ...] = option((), help="command of the exec check")
    interval: float = duration(10.0, "time between checks", minimum=0.1)
    timeout: float = duration(3.0, "time one check may take", minimum=0.1)
    retries: int = option(3, help="failures in a row before the worker is replaced", minimum=1)
    start_period: float = duration(0.0, "failures during this do not count")


@record
class LimitsConfig:
    """[app.limits]: a worker over a limit is replaced, the new one first."""

    memory: int | Literal["auto"] | None = option(
        None,
        help='memory of a worker; "auto" = its share of the cgroup\'s limit, off where there is none',
        unit="size",
        minimum=MB,
        example="512MB",
        apply="live",
    )
    max_requests: int = option(0, help="requests a worker serves before it is replaced; 0 = off", minimum=0)
    max_requests_jitter: int = option(
        0, help="up to this many more, at random, so that workers do not leave together", minimum=0
    )
    max_age: float = duration(0.0, 'age at which a worker is replaced; "0s" = off', apply="live")
    request_timeout: float = duration(0.0, 'a request stuck longer: stacks to the log, worker replaced; "0s" = off')
    nofile: int | None = option(None, help="soft and hard limit of open files of a worker", minimum=16)


INHERIT = "inherit"  # as logs.file: no file of its own, also where [defaults] names one


@record
class LogsConfig:
    """[app.logs]: where stdout and stderr of the workers go."""

    file: str | None = option(
        None,
        help='log file; default, and meant by "inherit": the stdout of `pyworker run`, else logs/NAME.log in pyworker\'s home',
    )
    format: Literal["text", "json"] = option("text", help="text lines, or one JSON object per line")
    max_size: int = option(50 * MB, help="a file past this size is rotated", unit="size", minimum=4096, apply="live")
    max_files: int = option(5, help="how many rotated files are kept", minimum=0, maximum=1000, apply="live")
    compress: bool = option(False, help="compress rotated files with gzip", apply="live")
    journald: bool = option(
        False,
        help="each line to systemd's journal as well (journalctl -t NAME); no meaning in `pyworker run`",
        apply="live",
    )

    @property
    def named_file(self) -> str | None:
        """The file that is to be written; None where pyworker decides."""
        return None if self.file == INHERIT else self.file


@record
class MetricsConfig:
    """[app.metrics]: for the figures that the app makes itself."""

    prometheus: bool = option(
        False, help="give the workers a common $PROMETHEUS_MULTIPROC_DIR (prometheus_client), and keep it clean"
    )
    opentelemetry: bool = option(
        False, help="name app, worker and generation in $OTEL_RESOURCE_ATTRIBUTES (OpenTelemetry)"
    )


@record
class TlsConfig:
    """[app.tls]: read again at each reload."""

    cert: str = option(help="certificate chain, PEM; `ps` says when it is about to expire", example="/etc/ssl/api.pem")
    key: str = option(help="private key, PEM; never readable by others", example="/etc/ssl/api.key")
    ca: str | None = option(None, help="ask clients for a certificate signed by this CA")


@record
class HttpConfig:
    """[app.http]: what the web server of asgi and wsgi apps does."""

    access_log: Literal["off", "text", "json"] = option(
        "off", help="one line to the app's log for each request that reaches the app"
    )
    request_id: bool = option(True, help="take X-Request-ID from a trusted proxy or make one; sent back in the answer")
    forwarded_allow_ips: tuple[str, ...] = option(
        ("127.0.0.1", "::1", "unix"),
        help='peers whose X-Forwarded-* headers are believed; addresses, networks, "unix" or "*"',
    )
    root_path: str = option(
        "", help="path prefix the app is mounted at (ASGI root_path, WSGI SCRIPT_NAME)", example="/api"
    )
    keepalive_timeout: float = duration(5.0, "an idle keep-alive connection is closed after this")
    header_timeout: float = duration(15.0, "a request's header must be complete within this (408)", minimum=0.1)
    max_header_size: int = option(64 * 1024, help="larger headers are refused (431)", unit="size", minimum=1024)
    max_body_size: int = option(0, help='larger bodies are refused (413); "0B" = no limit', unit="size", minimum=0)
    server_header: bool = option(False, help="send `Server: pyworker`")
    websocket_max_size: int = option(16 * MB, help="largest websocket message", unit="size", minimum=1)


@record
class RunConfig:
    """[run]: for `pyworker run`, of the whole file. Everything else pays no attention to it."""

    probe: str | None = option(
        None, help="serve /livez, /readyz, /readyz/APP and /metrics on this address", example=":8081", apply="restart"
    )
    lame_duck: float = duration(
        0.0,
        "after SIGTERM, say not ready and serve on for this long, then drain: load balancers need to notice",
        maximum=600,
        apply="restart",
    )
    logs: Literal["short", "json", "plain"] = option(
        "short",
        help='what stdout gets: "api.2 | line", a JSON object per line, or what the app printed and nothing else',
        apply="restart",
    )


@record
class AppConfig:
    """[app] or [apps.NAME]: one app. Exactly one of target, script and command is set."""

    name: str = option(
        help="shown in ps and logs: [a-z0-9][a-z0-9_-]{0,63}; default: the folder's name", apply="restart"
    )
    target: str | None = option(None, help="module:attribute of an ASGI or WSGI app", example="shop.main:app")
    script: str | None = option(None, help="a Python script that binds its own port", example="server.py")
    args: tuple[str, ...] = option((), help="arguments of the script")
    command: tuple[str, ...] = option((), help="any command: a list (no shell) or one text split like a shell does")
    factory: bool = option(False, help="target is a function that returns the app")
    interface: Interface = option("auto", help="auto looks at the target")
    threads: int = option(
        1,
        help="threads of a wsgi worker; 1 = requests run in the loop itself, one after the other",
        minimum=1,
        maximum=1024,
    )
    loop: Literal["auto", "asyncio", "uvloop"] = option(
        "auto", help="event loop; auto = uvloop when it can be imported"
    )
    cwd: str = option(".", help="working directory; relative to the config file")
    python: str | None = option(
        None,
        help="venv folder or interpreter; default: ./.venv when there is one, else (without a config file) the shell's, else pyworker's own",
        example=".venv",
    )
    workers: int | Literal["auto"] = option(
        1, help='number of workers, or "auto" = usable CPUs', minimum=1, maximum=1000, apply="live"
    )
    bind: tuple[str, ...] = option(
        (), help='one address or a list: "host:port" ":8000" "[::1]:8000" "unix:/run/api.sock"'
    )
    balance: Balance = option("round-robin", help="who gets the next connection")
    proxy_protocol: bool = option(
        False, help='tell workers of balance = "proxy" who their client is (PROXY protocol, version 2)'
    )
    backlog: int = option(2048, help="listen() queue", minimum=1, maximum=65535)
    preload: Literal["auto", False] = option("auto", help="auto: import once, then fork; false: import in each worker")
    ready: Literal["auto", "notify"] = option(
        "auto", help="notify: a command says READY=1 on $NOTIFY_SOCKET before it counts as ready"
    )
    ipc: Literal["auto", True, False] = option(
        "auto",
        help="a message channel (NODE_CHANNEL_FD) for each worker; auto: targets, scripts (not with proxy), node",
    )
    env: dict[str, str] = option(
        factory=dict, help="environment of the workers; ${VAR} ${VAR:-default} ${VAR:?message} $$"
    )
    env_file: tuple[str, ...] = option(
        (), help="dotenv files, later ones win; read at every start and reload", example=".env"
    )
    inherit_env: tuple[str, ...] = option(
        (), help='names (globs) taken from the shell that runs `pyworker start`; "*" = all but its terminal\'s'
    )
    depends_on: tuple[str, ...] = option(
        (),
        help="apps of the same file that must be ready before this one starts, and stop after it",
        example="db",
        apply="live",
    )
    cron: str | None = option(
        None,
        help="a job: runs at these times (five cron fields, local time) and is not restarted in between",
        example="*/15 * * * *",
        apply="live",
    )
    user: str | None = option(None, help="run as this user (the daemon must be root)", example="www-data")
    group: str | None = option(None, help="run as this group", example="www-data")
    umask: str | None = option(
        None,
        help=f'octal, as text: "0027"; without it {DEFAULT_UMASK:04o}; of new Unix sockets in `bind`, too (else 0666)',
    )
    restart: RestartConfig = option(RestartConfig(), help="restarts and their limiter")
    stop: StopConfig = option(StopConfig(), help="drain, signal, kill")
    reload: ReloadConfig = option(ReloadConfig(), help="zero-downtime reload")
    health: HealthConfig | None = option(
        None, help="health checks; whatever brings a worker waits for its first; absent: ready once it accepts"
    )
    limits: LimitsConfig = option(LimitsConfig(), help="memory, requests, age, time")
    logs: LogsConfig = option(LogsConfig(), help="log files")
    http: HttpConfig = option(HttpConfig(), help="web server options of asgi and wsgi apps")
    tls: TlsConfig | None = option(None, help="serve HTTPS")
    metrics: MetricsConfig = option(MetricsConfig(), help="for the figures that the app makes itself")
    state: str = option(
        "sqlite",
        help='where `pyworker.state` keeps its values: "sqlite" = in pyworker\'s home, or a server, "redis://…"; ${VAR}',
        example="redis://127.0.0.1:6379/0",
    )
    watch: WatchConfig | None = option(
        None, help="reload when a file changes (development); `watch = true` is all its defaults", apply="live"
    )
    hooks: HooksConfig = option(HooksConfig(), help="commands at certain moments")

    @property
    def file_umask(self) -> int:
        """What every process of the app begins with."""
        return DEFAULT_UMASK if self.umask is None else int(self.umask, 8)


@record
class ResolvedApp:
    """What one generation pins: the config with nothing left to look up.

    `config.cwd`, `config.script`, bind paths and log paths are absolute and real (symlinks followed);
    `config.workers` may still be "auto"; `workers` is the number. `env` is the complete environment of
    a worker except for PYWORKER_* and LISTEN_FDS; it may hold secrets and is never logged.
    """

    config: AppConfig
    workers: int
    python: str  # absolute path of the app's interpreter (a venv's bin/python is not resolved further)
    env: dict[str, str]
    secrets: tuple[str, ...]  # names in env whose values are masked on every screen
    uid: int | None  # None: not changed
    gid: int | None
    groups: tuple[int, ...]
    source: str  # the config file, or "" for an app given on the command line
    mtime_ns: int  # of the source when it was read; 0 without a file
    env_origins: dict[str, str] = field(default_factory=dict)  # name in env -> "base", "shell", a file's name, "[env]"
    state: str = ""  # address of the server that `state` names, its variables filled in; "" = embedded
    # of the shell: what ${VAR} was filled in with, and what inherit_env took and a file, say, has replaced
    from_shell: dict[str, str] = field(default_factory=dict)
    crc: int = 0  # of the source's content; 0: not known
    env_files: dict[str, int] = field(default_factory=dict)  # path -> CRC of what was read there; 0: nothing was
    users_own: bool = False  # the config file is in the hands of `user`: root makes for it only what that one may make
