"""config/canonical.py: what is written is read back as the same app."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.config import canonical
from pyworker.config.convert import hints_of, partial, table_class
from pyworker.config.load import load
from pyworker.config.report import Report
from pyworker.config.schema import AppConfig
from pyworker.record import fields

FULL = """
[apps.web]
target = "a:b"
factory = true
interface = "wsgi"
threads = 4
loop = "asyncio"
cwd = "src"
python = ".venv"
workers = "auto"
bind = [":8000", "unix:/run/x.sock"]
backlog = 10
preload = false
env = { A = "${B:-x}", "odd name" = 'say "hi"\\n' }
env_file = [".env", "more?"]
inherit_env = "AWS_*"
depends_on = "jobs"
user = "www-data"
group = "1000"
umask = "0022"
watch = true
restart = { policy = "never", min_uptime = "1500ms", max_restarts = 3, window = "90s", retry = "0s" }
stop = { drain_timeout = "2m", signal = "INT", kill_timeout = "1s" }
reload = { max_surge = 2, ready_timeout = "5s", soak = "0s", cron = "0 4 * * *" }
health = { path = "/x", expect = "2xx,3xx", interval = "1s", timeout = "2s", retries = 5, start_period = "9s" }
limits = { memory = "512MB", max_requests = 5, max_requests_jitter = 2, max_age = "1d", nofile = 99 }
logs = { file = "x.log", format = "json", max_size = "1GB", max_files = 0, compress = true }
http = { access_log = "json", request_id = false, root_path = "/x", forwarded_allow_ips = ["*"] }
tls = { cert = "c.pem", key = "k.pem" }
hooks = { pre_start = "a 'b c'", post_reload = ["x"], on_event = ["y", "-z"], post_fork = "m:f", timeout = "3s" }

[apps.jobs]
command = ["sh", "-c", "echo \\"$HOME\\" 'x' \\t"]
stop.signal = "QUIT"
restart = "on-failure"

[apps.tick]
script = "t.py"
args = ["-v", ""]
cron = "*/5 * * * *"
"""


def again(tmp_path: Path, apps: tuple[AppConfig, ...], *, everything: bool) -> tuple[AppConfig, ...]:
    text = ""
    for app in apps:
        table = canonical.table(app, everything=everything)
        text += canonical.toml({k: v for k, v in table.items() if k != "name"}, ("apps", app.name)) + "\n"
    (tmp_path / "again.toml").write_text(text)
    return load(str(tmp_path / "again.toml")).apps


@pytest.mark.parametrize("everything", [True, False])
def test_every_key_comes_back(tmp_path: Path, everything: bool) -> None:
    (tmp_path / "app.toml").write_text(FULL)
    apps = load(str(tmp_path / "app.toml")).apps
    assert again(tmp_path, apps, everything=everything) == apps


def test_only_what_is_not_the_default_is_written_when_asked(tmp_path: Path) -> None:
    (tmp_path / "app.toml").write_text('[apps.x]\ntarget = "a:b"\nworkers = 1\nbind = ":1"\nstop.signal = "INT"\n')
    table = canonical.table(load(str(tmp_path / "app.toml")).apps[0])
    assert table == {"name": "x", "target": "a:b", "bind": [":1"], "stop": {"signal": "INT"}}


def test_every_default_is_in_the_whole_table() -> None:
    flat = canonical.flat(AppConfig("x", target="a:b"))
    assert flat["restart.min_uptime"] == "10s"
    assert flat["http.max_header_size"] == "64KB"
    assert not any(value is None for value in flat.values())
    assert {k.partition(".")[0] for k in flat} <= {f.name for f in fields(AppConfig)}


_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.dictionaries(
        _text.filter(bool), st.one_of(_text, st.booleans(), st.integers(-9, 9), st.lists(_text)), max_size=5
    )
)
def test_any_text_survives_being_written(values: dict[str, Any]) -> None:
    assert tomllib.loads(canonical.toml(values, ("a", "odd key"))) == {"a": {"odd key": values}}


def test_no_text_steers_a_terminal() -> None:
    """ESC in one character (C1), and what turns the direction of a line."""
    text = canonical.toml({"env": {"A": "\x9b2J\u202e\x7f\x1b"}}, ("app",))
    assert text == '[app]\n\n[app.env]\nA = "\\u009b2J\\u202e\\u007f\\u001b"\n'


def test_a_table_of_one_key_stands_in_line_with_the_others() -> None:
    text = canonical.toml({"command": "x", "hooks": {"timeout": "10s"}}, ("app",))
    assert text == '[app]\ncommand       = "x"\nhooks.timeout = "10s"\n'


def test_every_option_has_a_line_that_an_app_may_have() -> None:
    for name, cls in {f.name: table_class(hints_of(AppConfig)[f.name]) for f in fields(AppConfig)}.items():
        for key in [name] if cls is None else [f"{name}.{each.name}" for each in fields(cls)]:
            line = canonical.line_of(f"--{key.replace('_', '-')}")
            assert line.startswith(f"{key} = ")
            report = Report()
            partial(AppConfig, tomllib.loads(line), (), report)
            assert not report.problems
    assert canonical.line_of("--graceful-timeout") == 'stop.drain_timeout = "30s"'
    assert canonical.line_of("--no-such-thing") == ""
