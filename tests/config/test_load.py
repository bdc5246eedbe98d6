"""Config files: what is read, what every mistake says and where it points."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.config.load import apply_overrides, find, load, load_inline, locate
from pyworker.config.problem import ConfigError, Problem
from pyworker.config.schema import AppConfig
from pyworker.record import fields

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, text: str, name: str = "app.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def one(folder: Path, text: str, **environ: str) -> AppConfig:
    (app,) = load(write(folder, text), environ=environ).apps
    return app


def problems(folder: Path, text: str, name: str = "app.toml") -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text, name))
    return caught.value.problems


def marked(problem: Problem) -> str:
    """What the caret is under."""
    return problem.source[problem.column - 1 : problem.end_column - 1]


# ---- what is read ----------------------------------------------------------------------------------
def test_smallest_file_gives_an_app_with_the_defaults(tmp_path: Path) -> None:
    folder = tmp_path / "My Shop!"
    folder.mkdir()
    app = one(folder, '[app]\ntarget = "shop.main:app"')
    assert app == AppConfig(name="my-shop", target="shop.main:app", bind=("127.0.0.1:8000",))


def test_every_option_is_read(tmp_path: Path) -> None:
    app = one(
        tmp_path,
        """
        [app]
        name = "api"
        target = "a.b:c.d"
        factory = true
        interface = "wsgi"
        threads = 4
        loop = "asyncio"
        cwd = "src"
        python = ".venv"
        workers = "auto"
        bind = ["127.0.0.1:80", "unix:/run/x.sock"]
        balance = "shared"
        backlog = 5
        preload = false
        env = { A = "${B:-1}" }
        env_file = ".env"
        inherit_env = ["AWS_*"]
        user = "www-data"
        group = "33"
        umask = "0027"
        restart = "on-failure"
        stop.signal = "SIGINT"
        stop.drain_timeout = "1.5s"
        reload.max_surge = 2
        health = "/healthz"
        limits.memory = "512MB"
        logs = { file = "x.log", max_size = "1KB", format = "json" }
        """.replace("1KB", "4KB")
        + """
        [app.http]
        forwarded_allow_ips = "*"
        max_body_size = "0B"
        [app.tls]
        cert = "c.pem"
        key = "k.pem"
        """,
    )
    assert app.restart.policy == "on-failure"
    assert app.health is not None
    assert (app.health.path, app.health.type) == ("/healthz", "http")
    assert app.stop.drain_timeout == 1.5
    assert app.limits.memory == 512 << 20
    assert app.logs.max_size == 4096
    assert app.http.forwarded_allow_ips == ("*",)
    assert app.tls is not None
    assert app.tls.cert == "c.pem"
    assert (app.env, app.env_file, app.preload, app.workers) == ({"A": "${B:-1}"}, (".env",), False, "auto")


def test_a_limit_of_memory_may_be_the_share_of_each_worker(tmp_path: Path) -> None:
    assert one(tmp_path, '[app]\ntarget = "a:b"\nlimits.memory = "auto"').limits.memory == "auto"


def test_an_app_may_be_said_to_be_of_either_interface(tmp_path: Path) -> None:
    for interface in ("asgi", "wsgi"):
        assert one(tmp_path, f'[app]\ntarget = "a:b"\ninterface = "{interface}"').interface == interface


def test_workers_with_a_port_each_are_checked_there_without_being_told_where(tmp_path: Path) -> None:
    app = one(tmp_path, '[app]\ncommand = "x --port $PORT"\nbind = "127.0.0.1:80"\nbalance = "proxy"\nhealth = "/healthz"')
    assert app.health is not None
    assert app.health.port is None


def test_a_log_that_is_inherited_takes_back_the_file_of_the_defaults_and_nothing_else(tmp_path: Path) -> None:
    text = """
    [defaults]
    logs.file = "all.log"
    logs.max_size = "1MB"
    [apps.a]
    command = "a"
    logs = "inherit"
    [apps.b]
    command = "b"
    """
    a, b = load(write(tmp_path, text)).apps
    assert (a.logs.named_file, a.logs.max_size) == (None, 1 << 20)
    assert (b.logs.named_file, b.logs.max_size) == ("all.log", 1 << 20)


def test_apps_start_from_the_defaults_which_leave_out_what_does_not_fit(tmp_path: Path) -> None:
    text = """
    [defaults]
    workers = 3
    threads = 2
    http.access_log = "json"
    balance = "round-robin"
    restart = "never"
    env = { A = "1", B = "1" }
    health = "/up"
    [apps.web]
    target = "a:b"
    restart.window = "5s"
    env.B = "2"
    [apps.jobs]
    command = "celery -A 'my app'"
    health = false
    workers = 1
    """
    web, jobs = load(write(tmp_path, text)).apps
    assert (web.name, web.workers, web.threads, web.http.access_log) == ("web", 3, 2, "json")
    assert (web.restart.policy, web.restart.window) == ("never", 5.0)
    assert web.env == {"A": "1", "B": "2"}
    assert (jobs.name, jobs.command, jobs.balance, jobs.threads, jobs.health) == (
        "jobs",
        ("celery", "-A", "my app"),
        "shared",
        1,
        None,
    )
    assert (jobs.workers, jobs.bind) == (1, ())


def test_defaults_of_one_kind_do_not_reach_the_others(tmp_path: Path) -> None:
    text = """
    [defaults]
    balance = "proxy"
    proxy_protocol = true
    hooks.post_fork = "a:forked"
    hooks.pre_start = "true"
    reload.cron = "@daily"
    health = { type = "tcp", port = 80, interval = "1s" }
    [apps.web]
    target = "a:b"
    [apps.own]
    command = "own $PORT"
    bind = ":81"
    health.type = "exec"
    health.command = "true"
    [apps.queue]
    command = "queue"
    [apps.asked]
    command = "asked $PORT"
    bind = ":82"
    [apps.job]
    command = "job"
    cron = "@hourly"
    """
    web, own, queue, asked, job = load(write(tmp_path, text)).apps
    assert [(a.balance, a.proxy_protocol) for a in (web, own, queue)] == [
        ("round-robin", False),
        ("proxy", True),
        ("shared", False),
    ]
    assert [a.hooks.post_fork for a in (web, own)] == ["a:forked", None]
    assert {a.hooks.pre_start for a in (web, own, queue, job)} == {("true",)}
    assert [a.reload.cron for a in (queue, job)] == ["@daily", None]
    assert [a.health and a.health.type for a in (web, own, queue, job)] == [None, "exec", "tcp", None]
    assert [(a.health and a.health.type, a.health and a.health.port) for a in (queue, asked)] == [("tcp", 80), ("tcp", None)]


def test_the_timetable_of_the_defaults_makes_no_job_of_a_web_app(tmp_path: Path) -> None:
    text = '[defaults]\ncron = "@hourly"\nreload.cron = "@daily"\nhealth = "/up"\n[apps.web]\ntarget = "a:b"\n[apps.job]\nscript = "job.py"\n'
    web, job = load(write(tmp_path, text)).apps
    assert (web.cron, web.reload.cron, web.health and web.health.path) == (None, "@daily", "/up")
    assert (job.cron, job.reload.cron, job.health) == ("@hourly", None, None)


def test_what_an_app_says_is_laid_on_the_same_table_of_the_defaults(tmp_path: Path) -> None:
    text = """
    [defaults]
    env = { type = "a", target = "b", REGION = "eu" }
    health = { path = "/healthz", retries = 5 }
    [apps.web]
    target = "a:b"
    env = { type = "x", command = "y" }
    health = { type = "http", interval = "5s" }
    """
    app = one(tmp_path, text)
    assert app.env == {"type": "x", "target": "b", "REGION": "eu", "command": "y"}
    assert app.health is not None
    assert (app.health.path, app.health.retries, app.health.interval) == ("/healthz", 5, 5.0)


def test_a_check_of_the_defaults_that_an_app_cannot_have_names_the_app(tmp_path: Path) -> None:
    text = '[defaults]\nhealth = "/up"\n[apps.web]\ntarget = "a:b"\n[apps.jobs]\ncommand = "x"\n'
    (problem,) = problems(tmp_path, text)
    assert (problem.line, problem.hint.splitlines()[1]) == (2, "for jobs alone: health = false in its own table")


def test_pyproject_holds_the_same_tables(tmp_path: Path) -> None:
    text = '[project]\nname = "x"\n[tool.other]\napp = 1\n[tool.pyworker.app]\nname = "api"\ntarget = "a:b"\n'
    assert load(write(tmp_path, text, "pyproject.toml")).apps[0].name == "api"
    (problem,) = problems(tmp_path, text + "worker = 2\n", "pyproject.toml")
    assert (problem.key, problem.message) == ("tool.pyworker.app.worker", "unknown key `worker` in [tool.pyworker.app]")


def test_only_picks_apps_and_refuses_unknown_names(tmp_path: Path) -> None:
    path = write(tmp_path, '[apps.web]\ntarget = "a:b"\n[apps.jobs]\ncommand = "x"\n')
    assert [a.name for a in load(path, only=("jobs",)).apps] == ["jobs"]
    with pytest.raises(ConfigError) as caught:
        load(path, only=("wep",))
    assert caught.value.problems[0].hint == "did you mean `web`?"


def test_port_and_web_concurrency_are_taken_when_the_file_says_nothing(tmp_path: Path) -> None:
    app = one(tmp_path, '[app]\ntarget = "a:b"', PORT="5000", WEB_CONCURRENCY="3")
    assert (app.bind, app.workers) == (("0.0.0.0:5000",), 3)
    app = one(tmp_path, '[app]\ntarget = "a:b"\nbind = ":1"\nworkers = 2', PORT="5000", WEB_CONCURRENCY="3")
    assert (app.bind, app.workers) == ((":1",), 2)
    with pytest.raises(ConfigError, match="PORT must be a port number"):
        one(tmp_path, '[app]\ntarget = "a:b"', PORT="http")
    for name, text in (("PORT", "0000080000"), ("PORT", "000001"), ("WEB_CONCURRENCY", "0000011001"), ("WEB_CONCURRENCY", "1001")):
        with pytest.raises(ConfigError, match=f"{name} must be a .*number"):
            one(tmp_path, '[app]\ntarget = "a:b"', **{name: text})
    assert one(tmp_path, '[app]\ncommand = "x"', PORT="5000").bind == ()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda f: f.name)
def test_sample_config_loads(file: Path) -> None:
    loaded = load(str(file))
    assert loaded.apps
    assert loaded.opened.info.st_mtime_ns == file.stat().st_mtime_ns


def test_bom_and_crlf_are_no_mistake(tmp_path: Path) -> None:
    assert one(tmp_path, '\ufeff[app]\r\ntarget = "a:b"\r\n').target == "a:b"


# ---- mistakes --------------------------------------------------------------------------------------
def test_all_mistakes_of_a_file_are_reported_at_once_in_its_order(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """[app]
target = "shop.main:app"
worker = 4
workers = "many"
bind = ["127.0.0.1:8000", 9, "nowhere"]
[app.restart]
window = 60
[app.health]
type = "htp"
[app.env]
PORT = 8000
URL = "${X"
""",
    )
    assert [(p.line, marked(p)) for p in found] == [
        (3, "worker"),
        (4, '"many"'),
        (5, "9"),
        (5, '"nowhere"'),
        (7, "60"),
        (9, '"htp"'),
        (11, "8000"),
        (12, '"${X"'),
    ]
    assert [p.hint for p in found][0::2] == [
        "did you mean `workers`?",
        'text needs quotes: "9"',
        'did you mean "60s"?',
        'text needs quotes: PORT = "8000"',
    ]
    assert found[1].message == '`app.workers` must be a whole number or "auto", not "many"'
    assert found[5].hint == 'did you mean "http"?'


BASE = '[app]\ntarget = "a:b"\n'


@pytest.mark.parametrize(
    ("text", "under", "message", "hint"),
    [
        (BASE + "instances = 4", "instances", "unknown key", "`workers`"),
        (BASE + "drain_timeout = 4", "drain_timeout", "unknown key", "`stop.drain_timeout`"),
        (BASE + "timeout = 30", "timeout", "unknown key", "`limits.request_timeout`"),
        (BASE + 'certfile = "a.pem"', "certfile", "unknown key", "`tls.cert`"),
        (BASE + "max_restarts = 3", "max_restarts", "unknown key", "`restart.max_restarts`"),
        (BASE + "stop.graceful_timeout = 30", "graceful_timeout", "unknown key", "`drain_timeout`"),
        (BASE + "[app.health]\nworkers = 2", "workers", "unknown key", "it belongs to [app], above its tables"),
        (BASE + "[app.reload]\ndrain_timeout = 4", "drain_timeout", "unknown key", "it belongs to [app.stop]"),
        (BASE + "[app.reload]\ngraceful_timeout = 4", "graceful_timeout", "unknown key", "did you mean `drain_timeout` in [app.stop]?"),
        (BASE + "port = 8000", "port", "unknown key", 'bind = "127.0.0.1:8000"'),
        (BASE + "reload = true", "true", "must be a table", "watch = true"),
        (BASE + 'description = "the shop"', "description", "unknown key", "known keys: name, target"),
        (BASE + "nice = 5", "nice", "unknown key", "known keys: name, target"),
        (BASE + "zzz = 4", "zzz", "unknown key", "known keys: name, target"),
        ('[app.api]\ntarget = "a:b"', "api", "unknown key", "[apps.api]"),
        ('[app.worker]\nscript = "a.py"', "worker", "unknown key", "[apps.worker]"),
        (BASE + "workers = 0", "0", "at least 1, not 0", ""),
        (BASE + "workers = 1001", "1001", "at most 1000", ""),
        (BASE + 'workers = "4"', '"4"', "whole number", "workers = 4"),
        (BASE + "workers = 2.0", "2.0", "whole number", ""),
        (BASE + "workers = true", "true", "whole number", ""),
        (BASE + "limits.max_requests = 99999999999999999999999", "99999999999999999999999", "at most 9223372036854775807, not 9", ""),
        (BASE + 'factory = "true"', '"true"', "true or false", "without quotes: true"),
        (BASE + "preload = true", "true", '"auto" or false', '"auto"'),
        (BASE + 'restart = "no"', '"no"', "one of", '"never"'),
        (BASE + "restart = false", "false", "must be a table", '"never"'),
        (BASE + 'restart.policy = "unless-stopped"', '"unless-stopped"', "one of", '"always"'),
        (BASE + "stop = 5", "5", "must be a table", "[app.stop]"),
        (BASE + 'stop.kill_timeout = "5 sec"', '"5 sec"', "time span", '"5s"'),
        (BASE + "stop.kill_timeout = 5000", "5000", "with a unit", '"5000ms"'),
        (BASE + 'reload.ready_timeout = "1ms"', '"1ms"', 'at least "100ms", not "1ms"', ""),
        (BASE + 'limits.memory = "1KB"', '"1KB"', 'at least "1MB", not "1KB"', ""),
        (BASE + "bind = 8000", "8000", "text or a list", 'did you mean ":8000"?'),
        (BASE + "bind = true", "true", "text or a list", 'bind = ":8000"'),
        (BASE + "bind = 80000", "80000", "text or a list", 'bind = ":8000"'),
        (BASE + "port = 80000", "port", "unknown key", "did you mean `bind`?"),
        (BASE + 'bind = "8000"', '"8000"', "has no port", '":8000"'),
        (BASE + 'bind = "80000"', '"80000"', "the port must be a number from 0 to 65535", ""),
        (BASE + "workers = " + "1" * 5000, "", "a number of 5000 digits", ""),
        (BASE + "env.A = 1\n[app.env]\nB = 1\n[app.env]", "[app.env]", "cannot declare [app.env] twice", "remove one"),
        ('[apps.a]\ncommand = "true"\n[apps.A]\ncommand = "true"', "A", "small letters", "choose another name"),
        (BASE + 'bind = [":1", "0.0.0.0:1"]', '"0.0.0.0:1"', "twice", "remove one"),
        (BASE + 'bind = [":1", "127.0.0.1:1"]', '"127.0.0.1:1"', 'twice: "0.0.0.0:1" is part of it', "remove one"),
        (BASE + f'bind = {[f":{port}" for port in range(1, 66)]}', "[':1'", "65 addresses: 64 are the most", "two apps"),
        (BASE + f"inherit_env = {['A'] * 501}", "", "501 entries: 500 are the most", ""),
        (BASE + f"inherit_env = ['{'*A' * 129}']", f"'{'*A' * 129}'", "256 characters are the most", ""),
        (BASE + f"env_file = {['.env'] * 501}", "", "501 entries: 500 are the most", ""),
        (BASE + f"watch.paths = {['a'] * 501}", "", "501 entries: 500 are the most", ""),
        (BASE + f"watch.exclude = {['a'] * 501}", "", "501 entries: 500 are the most", ""),
        (f'[app]\ncommand = "a {"b" * 66_000}"', "", "at most 65536 characters", "each word for itself"),
        (BASE + 'env = "A=1"', '"A=1"', "table of NAME", ""),
        (BASE + "env.A = 1979-05-27", "1979-05-27", "a date", ""),
        (BASE + 'env.PYWORKER_APP = "x"', "PYWORKER_APP", "set by pyworker", ""),
        (BASE + 'env.A = "a\\u0000b"', '"a\\u0000b"', "NUL", ""),
        (BASE + 'cwd = "a\\u0000b"', '"a\\u0000b"', "NUL", ""),
        (BASE + 'umask = "0999"', '"0999"', "octal", ""),
        (BASE + "umask = 0o22", "0o22", "text", 'umask = "0022"'),
        (BASE + "limits.memory = inf", "inf", "with a unit", ""),
        (BASE + "limits.memory = nan", "nan", "with a unit", ""),
        (BASE + "stop.drain_timeout = inf", "inf", "with a unit", ""),
        (BASE + "inherit_env = true", "true", "text or a list", 'inherit_env = ["*"]'),
        (BASE + 'logs.file = ""', '""', "is empty", "for example"),
        ('[app]\nscript = ""', '""', "is empty", "server.py"),
        (BASE + 'user = "a:b"', '"a:b"', "name or a number", "two options"),
        (BASE + 'stop.signal = "TRM"', '"TRM"', "signal", '"TERM"'),
        (BASE + 'stop.signal = "KILL"', '"KILL"', "cannot be KILL", "kill_timeout"),
        (BASE + 'stop.signal = "CHLD"', '"CHLD"', "cannot be CHLD", "TERM"),
        (BASE + "stop.signal = 15", "15", "must be text", 'signal = "TERM"'),
        (BASE + 'http.forwarded_allow_ips = ["10.0.0.1/8", "proxy"]', '"proxy"', "must be an address, a network", ""),
        (BASE + 'cron = "@daily"', "cron", "is for scripts and commands", "remove"),
        ("[profile.prod.app]\nworkers = 2\n" + BASE, "profile", "unknown key", "[profiles]"),
        (BASE + 'balance = "proxy"', '"proxy"', "listen on a port of their own", "least-connections"),
        (BASE + "proxy_protocol = true", "proxy_protocol", 'is for balance = "proxy"', "remove it"),
        ('[app]\nscript = "x.py"\nbalance = "least-connections"', '"least-connections"', "ASGI and WSGI", "proxy"),
        ('[app]\ncommand = "x"\nbalance = "proxy"', '"proxy"', "needs an address", "add bind"),
        ('[app]\ncommand = "node x.js"\nbalance = "round-robin"\nipc = false', "ipc", "cannot be false", "remove it"),
        (
            '[app]\ncommand = "node x.js"\nbalance = "round-robin"\n[app.health]\ntype = "http"\nport = 80',
            '"http"',
            "several Node workers",
            "exec",
        ),
        (
            '[app]\ncommand = "x"\nbind = ":80"\nbalance = "proxy"\n[app.health]\nport = 80',
            "port",
            "no meaning with",
            "$PORT",
        ),
        (BASE + 'balance = "roundrobin"', '"roundrobin"', "one of", '"round-robin"'),
        (BASE + 'tls.cert = "x"', "tls", "`app.tls.key` is missing", "key ="),
        (BASE + "args = []", "args", "is for scripts", "remove"),
        (BASE + 'interface = "asgi"\nthreads = 3', "threads", "WSGI", "more workers"),
        (BASE + 'health = "up"', '"up"', "must begin with /", '"/up"'),
        (BASE + 'health.type = "tcp"', '"tcp"', "port of their own", "http"),
        (BASE + 'health.type = "exec"', '"exec"', "needs health.command", ""),
        (BASE + 'health.command = "x"', "command", 'for type = "exec"', ""),
        (BASE + 'health.type = "exec"\nhealth.command = []', "[]", "is empty", ""),
        (BASE + 'health.type = "exec"\nhealth.command = ["a b"]', '["a b"]', "list with one word", '"a b"'),
        (BASE + 'health.host = "a b"', '"a b"', "must be a host name", ""),
        (BASE + 'health.expect = "2x"', '"2x"', "statuses", ""),
        (BASE + "health.port = 80", "port", "asked directly", ""),
        (BASE + 'http.root_path = "api"', '"api"', "begin with /", ""),
        (BASE + 'http.root_path = "/api/"', '"/api/"', "begin with /", ""),
        (BASE + 'script = "x.py"', "script", "`target` are both set", "remove one"),
        ("[app]\nworkers = 2", "[app]", "says nothing to run", "target ="),
        ('[app]\ntraget = "a:b"', "traget", "unknown key", "`target`"),
        ('[app]\ntarget = "shop.main"', '"shop.main"', "module:attribute", '"shop.main:app"'),
        ('[app]\ntarget = "shop.app"', '"shop.app"', "module:attribute", '"shop:app"'),
        ('[app]\ntarget = "shop.web.application"', '"shop.web.application"', "module:attribute", '"shop.web:application"'),
        ('[app]\ntarget = "shop/main.py:app"', '"shop/main.py:app"', "module:attribute", '"shop.main:app"'),
        ('[app]\ntarget = "server.py"', '"server.py"', "module:attribute", 'script = "server.py"'),
        ('[app]\ntarget = "a:make()"', '"a:make()"', "module:attribute", '"a:make" with factory = true'),
        ('[app]\ntarget = "a:make(3)"', '"a:make(3)"', "module:attribute", "a function that takes no arguments"),
        ("[app]\ntarget = 5", "5", "text", 'target = "5"'),
        ("[app]\ncommand = []", "[]", "is empty", ""),
        (BASE + 'hooks.pre_start = [""]', '[""]', "is empty", ""),
        (BASE + 'env_file = [".env", "?"]', '"?"', "is empty", ""),
        ('[app]\ncommand = "sh -c \'x"', '"sh -c \'x"', "cannot be split", "quotes"),
        ('[app]\ncommand = "cd x && y"', '"cd x && y"', "has && in it, and no shell runs it", "sh -c"),
        (BASE + 'hooks.pre_start = "a > b"', '"a > b"', "has > in it, and no shell runs it", "sh -c"),
        ('[app]\ncommand = "x"\nthreads = 2', "threads", "this app is a command", "remove"),
        ('[app]\ncommand = "x"\nbalance = "round-robin"', '"round-robin"', "is for ASGI and WSGI", '"proxy"'),
        ('[app]\nscript = "x.py"\nbalance = "round-robin"', '"round-robin"', "is for ASGI and WSGI", "shared"),
        ('[app]\ncommand = "x"\nhealth = "/"', '"/"', "needs a port", '"exec"'),
        ('[app]\nscript = "x.py"\nhealth = "/"', '"/"', "needs a port", "where this script listens"),
        (BASE + 'name = "Web App"', '"Web App"', "small letters", '"web-app"'),
        (BASE + 'name = "all"', '"all"', "every app", ""),
        (BASE + 'name = "pyworker"', '"pyworker"', "the daemon's own", ""),
        ('[apps.pyworker]\ntarget = "a:b"', "pyworker", "the daemon's own", "choose another name"),
        ('[apps.Web]\ntarget = "a:b"', "Web", "cannot be called", "[apps.web]"),
        ('[apps.web]\nname = "x"\ntarget = "a:b"', "name", "cannot be set here", "remove"),
        ("[apps]\nweb = 1", "1", "must be a table", "[apps.NAME]"),
        ('apps = "x"', '"x"', "must be a table", "[apps]"),
        ('[[app]]\ntarget = "a:b"', "app", "must be a table, not a list", "one pair of brackets"),
        (BASE + '[apps.x]\ntarget = "a:b"', "apps", "cannot be in one file", "[apps.NAME]"),
        ('target = "a:b"', "target", "at the top of the file", "[app]"),
        (BASE + "[health]", "health", "unknown key", "[app.health]"),
        (BASE + "[default]", "default", "unknown key", "[defaults]"),
        ('[defaults]\nname = "x"\n' + BASE, "name", "makes no sense", ""),
        (
            '[apps.a]\ntarget = "a:b"\nbind = ":80"\n[apps.b]\ntarget = "a:b"\nbind = "0.0.0.0:80"',
            '"0.0.0.0:80"',
            "apps `a` and `b` both want",
            "bind =",
        ),
        ('[apps.a]\ntarget = "a:b"\n[apps.b]\ntarget = "a:b"', "[apps.b]", "both want 127.0.0.1:8000", "bind ="),
        (
            '[apps.a]\ntarget = "a:b"\nbind = ":80"\n[apps.b]\ntarget = "a:b"\nbind = "127.0.0.1:80"',
            '"127.0.0.1:80"',
            "both want 127.0.0.1:80 (`a`: :80)",
            "bind =",
        ),
        (
            '[apps.a]\ntarget = "a:b"\nbind = "unix:x"\n[apps.b]\ntarget = "a:b"\nbind = "unix:./x"',
            '"unix:./x"',
            "both want unix:./x (`a`: unix:x)",
            "bind =",
        ),
        ('[app]\ncommand = ["celery -A x"]', '["celery -A x"]', "list with one word", '"celery -A x"'),
        (BASE + 'hooks.pre_start = ["./a b", "c"]\nhooks.on_event = ["a b"]', '["a b"]', "list with one word", '"a b"'),
        (BASE + 'logs = "api.log"', '"api.log"', "must be a table", 'logs.file = "api.log"'),
        (BASE + 'logs = "journald"', '"journald"', "must be a table", "logs.journald = true"),
        (BASE + "logs = 1", "1", "must be a table", 'logs = "inherit"'),
        (BASE + 'env."A=B" = "x"', '"A=B"', "cannot be the name of a variable", "letters"),
        (BASE + 'env."A B" = 1', "1", "must be text", '"A B" = "1"'),
        ('[app]\ntarget = """\na:b\n"""', '"""', "must be module:attribute", 'did you mean "a:b"?'),
    ],
)
def test_mistake_is_shown_with_its_place_and_a_hint(
    tmp_path: Path, text: str, under: str, message: str, hint: str
) -> None:
    (problem,) = problems(tmp_path, text)
    assert message in problem.message
    assert hint in problem.hint
    assert under in marked(problem)
    assert problem.file == str(tmp_path / "app.toml")


@pytest.mark.parametrize(
    "text",
    [
        BASE + 'http.root_path = "/api"',
        BASE + 'balance = "least-connections"',
        BASE + "ipc = false",
        '[app]\ncommand = ["/opt/my app"]',
        BASE + f'name = "{"x" * 64}"',
    ],
)
def test_what_is_no_mistake_is_taken(tmp_path: Path, text: str) -> None:
    one(tmp_path, text)


def test_a_mistake_hides_no_other_one_beside_it_or_between_apps(tmp_path: Path) -> None:
    text = (
        '[apps.web]\ntarget = "web:app"\nwrokers = 1\ndepends_on = ["jobs", "db"]\n'
        '[apps.web.health]\nintervall = "1s"\npath = "healthz"\nexpect = "2x"\n'
        '[apps.jobs]\ncommand = ""\n'
    )
    found = [p.key for p in problems(tmp_path, text)]
    assert found == [
        "apps.web.wrokers", "apps.web.depends_on[1]", "apps.web.health.intervall", "apps.web.health.path",
        "apps.web.health.expect", "apps.jobs.command",
    ]  # fmt: skip


def test_what_is_no_text_at_all_is_not_said_to_need_quotes(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "[app]\ntarget = 2020-01-01\n")
    assert (problem.message, problem.hint) == ("`app.target` must be text, not a date or time", "")


def test_an_app_of_another_name_than_it_may_have_is_still_found_in_the_file(tmp_path: Path) -> None:
    text = '[apps.a]\ntarget = "a:b"\nbind = ":1"\n[apps."My App"]\ntarget = "c:d"\nbind = ":1"\n'
    name, clash = problems(tmp_path, text)
    assert (name.line, clash.line, marked(clash)) == (4, 6, '":1"')


def test_what_follows_from_a_mistake_is_not_reported_too(tmp_path: Path) -> None:
    text = '[app]\ntarget = "web:app"\n[app.health]\ntyp = "exec"\ncommand = "./check"\n'
    assert [p.key for p in problems(tmp_path, text)] == ["app.health.typ"]


def test_mistake_in_the_defaults_is_shown_once_where_it_stands(tmp_path: Path) -> None:
    text = '[defaults]\nstop.signal = "XYZ"\nworkers = "x"\n[apps.a]\ncommand = "a"\n[apps.b]\ncommand = "b"\n'
    signal, workers = problems(tmp_path, text)
    assert (signal.line, signal.key) == (2, "defaults.stop.signal")
    assert (workers.line, workers.key) == (3, "defaults.workers")


@pytest.mark.parametrize("text", ["", "# nothing\n", "[defaults]\nworkers = 2\n", "[apps]\n"])
def test_file_without_an_app_shows_an_example(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.message == "app.toml has no app"
    assert 'target = "module:app"' in problem.hint


@pytest.mark.parametrize(
    ("text", "line", "under", "hint"),
    [
        ("[app]\nname = api\n", 2, "api", 'name = "api"'),
        ("[app]\nbind = 127.0.0.1:8000\n", 2, "127.0.0.1:8000", '"127.0.0.1:8000"'),
        ("[app]\ncwd = C:\\data\n", 2, "C:\\data", "cwd = 'C:\\data'"),
        ("[app]\nretry = 10s # x\n", 2, "10s", '"10s"'),
        ("[app]\nfactory = True\n", 2, "True", "= true"),
        ("[app]\nuser = None\n", 2, "None", "leave the line out"),
        ("[app]\nname: api\n", 2, ":", "name = api"),
        ("[app]\nname =\n", 2, "", "a value is missing"),
        ("[app]\nname\n", 2, "", "a value is missing"),
        ('[app]\nname = "api\n', 2, '"api', 'closing "'),
        ("[app]\nname = “api”\n", 2, "“", "straight quotes"),
        ('[app]\nname = "a"\nname = "b"\n', 3, 'name = "b"', "there already"),
        ("[app]\n[x]\n[app]\n", 3, "[app]", "there already"),
        ("[app\nname = 1\n", 1, "", "]"),
        ('[app]\nbind = ["a"\nname = "x"\n', 3, "", "no ]"),
        ('[app]\nbind = ["a"\nworkers=2\n', 3, "", "no ]"),
        ('[app]\ncwd = "C:\\data"\n', 2, "", "backslash"),
    ],
)
def test_syntax_error_shows_the_usual_suspect(tmp_path: Path, text: str, line: int, under: str, hint: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.message.startswith("not valid TOML: ")
    assert problem.code == "syntax"
    assert problem.line == line
    assert hint in problem.hint
    if under:
        assert marked(problem) == under


def test_files_that_cannot_be_read_are_clear_errors(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(str(path))
        (problem,) = caught.value.problems
        return f"{problem.message} {problem.hint}"

    assert "no such file" in message(tmp_path / "none.toml")
    assert "is a folder" in message(tmp_path)
    os.mkfifo(tmp_path / "fifo.toml")
    assert "not a regular file" in message(tmp_path / "fifo.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (2 << 20))
    assert "too large" in message(tmp_path / "big.toml")
    (tmp_path / "latin.toml").write_bytes(b"[app]\nname = 'caf\xe9'\n")
    assert "UTF-8" in message(tmp_path / "latin.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    assert "nested too deeply" in message(tmp_path / "deep.toml")
    (tmp_path / "digits.toml").write_text("a = " + "9" * 5000)
    assert "not valid TOML" in message(tmp_path / "digits.toml")


def test_a_file_of_nonsense_gives_a_bounded_number_of_problems(tmp_path: Path) -> None:
    found = problems(tmp_path, "[app]\n" + "".join(f"k{i} = {i}\n" for i in range(500)))
    assert len(found) == 100


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="[]app=.\n\"'bind12 {}", max_size=80).map(str.encode))
def test_any_bytes_load_or_are_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        load(str(path))


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from([f.name for f in fields(AppConfig)])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_NAMES | st.text(max_size=5), _JUNK, max_size=6))
def test_any_inline_table_is_an_app_or_a_config_error(table: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        load_inline({"target": "a:b", **table}, "/")


# ---- inline, overrides, find, locate ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("table", "name"),
    [
        ({"target": "shop.main:app"}, "shop"),
        ({"script": "/srv/My Server.py"}, "my-server"),
        ({"command": ["/usr/bin/node", "--trace-warnings", "srv/x.js", "y.js"]}, "x"),
        ({"command": "python3.12 -u -m bots.mail --fast"}, "bots"),
        ({"command": "python -c 'import a.b'"}, "python"),
        ({"command": "python -m"}, "app"),
        ({"command": "python3.12"}, "python3-12"),
        ({"command": ["bash", "-lc", "exec serve --bind 0.0.0.0:80"]}, "bash"),
        ({"command": "python bin/worker config.toml"}, "python"),
        ({"command": ["/opt/bin/worker", "x.py"]}, "worker"),
        ({"command": "node x.js", "name": "front"}, "front"),
    ],
)
def test_inline_app_is_named_after_what_it_runs(table: dict[str, Any], name: str) -> None:
    app = load_inline(table, "/srv")
    assert (app.name, app.cwd) == (name, "/srv/.")


def test_inline_mistakes_name_the_key_without_a_place() -> None:
    with pytest.raises(ConfigError) as caught:
        load_inline({"target": "a:b", "workers": 0, "bind": ["x"]}, "/")
    assert [(p.key, p.line) for p in caught.value.problems] == [("workers", 0), ("bind[0]", 0)]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"command": ["a\udcff"]}, "command[0]"),
        ({"target": "a:b", "bind": "unix:/run/\udcff"}, "bind"),
        ({"target": "a:b", "env": {"A": "\udcff"}}, "env.A"),
        ({"target": "a:b", "env": {"\udcff": "1"}}, 'env."\udcff"'),
        ({"target": "a:b", "env_file": ["\ud800"]}, "env_file[0]"),
    ],
)
def test_bytes_that_are_no_text_in_an_option_are_a_mistake(table: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_inline(table, "/")
    assert [p.key for p in caught.value.problems] == [key]


def test_a_path_with_a_nul_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="NUL"):
        load_inline({"target": "a:b"}, "/srv/\0")
    with pytest.raises(ConfigError, match="no file can have such a name"):
        load("/srv/\0.toml")


def test_overrides_replace_options_and_add_to_the_environment() -> None:
    app = load_inline({"target": "a:b", "env": {"A": "1"}, "stop": {"signal": "INT"}}, "/")
    changed = apply_overrides(
        app, {"workers": "4", "bind": [":9"], "env": {"B": "2"}, "stop": {"drain_timeout": "1s"}, "health": "/up"}
    )
    assert (changed.workers, changed.bind, changed.env) == (4, (":9",), {"A": "1", "B": "2"})
    assert (changed.stop.signal, changed.stop.drain_timeout) == ("INT", 1.0)
    assert changed.health is not None
    assert apply_overrides(app, {}) == app
    with pytest.raises(ConfigError, match="port of their own"):
        apply_overrides(app, {"balance": "proxy"})
    with pytest.raises(ConfigError, match="this app is a target"):
        apply_overrides(app, {"args": ["x"]})


def test_file_is_found_in_the_documented_order(tmp_path: Path) -> None:
    here = str(tmp_path)
    assert find(here, {}) is None
    write(tmp_path, "[project]\n", "pyproject.toml")
    assert find(here, {}) is None
    project = write(tmp_path, "[tool.pyworker.app]\n", "pyproject.toml")
    assert find(here, {}) == project
    second = write(tmp_path, "", "pyworker.toml")
    assert find(here, {}) == second
    first = write(tmp_path, "", "app.toml")
    assert find(here, {}) == first
    assert find(here, {"PYWORKER_CONFIG": "other.toml"}) == str(tmp_path / "other.toml")


def test_key_of_a_running_app_is_found_again_in_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[defaults]\nuser = "x"\n[apps.web]\ncwd = "y"\n')
    problem = Problem("m", key="cwd", file=path)
    assert locate(path, "web", ("cwd",), problem).line == 4
    assert locate(path, "web", ("user",), problem).line == 2
    assert locate(path, "web", ("script",), problem).line == 3
    assert locate(str(tmp_path / "gone.toml"), "web", ("cwd",), problem) == problem


def test_an_app_without_a_name_keeps_that_of_the_link_when_the_link_leads_to_another_release(tmp_path: Path) -> None:
    for release in ("41", "42"):
        (tmp_path / release).mkdir()
        write(tmp_path / release, '[app]\ntarget = "a:b"\n')
    (tmp_path / "shop").symlink_to("41")
    before = load(str(tmp_path / "shop" / "app.toml"))
    (tmp_path / "shop").unlink()
    (tmp_path / "shop").symlink_to("42")
    assert [app.name for app in (*before.apps, *load(str(tmp_path / "shop" / "app.toml")).apps)] == ["shop", "shop"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a || b", "||"), ("a | b", "|"), ("a & b", "&"), ("a &", "&"), ("cd x; y", ";"), ("a 2>/dev/null", "2>"), ("a >>b", ">>"), ("a <b", "<"),
        ("a $HOME", "$HOME"), ("a --db=${DB}/x", "${DB}"), ("a $(date)", "$("), ("a `date`", "`"), ("~/a", "~"), ("a ~", "~"), ("a 'it is' && b", "&&"),
    ],
)  # fmt: skip
def test_a_command_for_a_shell_is_told_that_none_runs_it(tmp_path: Path, text: str, found: str) -> None:
    (wrong,) = problems(tmp_path, f"[app]\ncommand = \"{text}\"")
    assert f"has {found} in it, and no shell runs it" in wrong.message


@pytest.mark.parametrize(
    "text",
    [
        "sh -c 'cd ~/x && y > $HOME/z'", "a '$HOME' '>' '&&'", r"a \$HOME \; \&", "a http://b/?c=1&d=2", "find . -name *.pyc -exec rm {} ;", "a ^x$ b|c p$q <tag>",
        "a --port $PORT --listen 127.0.0.1:${PORT}", "a x->y >=3 --x=~/y",
    ],
)  # fmt: skip
def test_what_a_program_may_be_given_as_it_is_is_no_mistake(tmp_path: Path, text: str) -> None:
    assert one(tmp_path, f"[app]\ncommand = \"\"\"{text}\"\"\"".replace("\\", "\\\\")).command
