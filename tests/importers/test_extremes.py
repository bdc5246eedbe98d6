"""Files with what no setting has: numbers without an end, texts that double line by line, more levels than can be read."""

from __future__ import annotations

import tomllib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pyworker.importers import gunicornconf, pm2, pm2settings, procfile, servers, supervisor, systemd, uwsgi
from pyworker.importers.detect import detect
from pyworker.importers.jsliteral import parse
from pyworker.importers.jsvalues import Computed
from pyworker.importers.result import CannotImport, Imported
from pyworker.importers.write import document
from tests.support.cli import run

LINES = 40


@pytest.mark.parametrize("number", ['float("inf")', "1e400", "9" * 400, 'float("nan")', '"inf"'])
@pytest.mark.parametrize("name", ["timeout", "threads", "workers", "keepalive"])
def test_a_number_without_an_end_is_said_to_be_looked_at(name: str, number: str) -> None:
    (app,) = gunicornconf.read(f"{name} = {number}\n").apps
    assert name in [note.key for note in app.review]


def test_a_time_below_0_is_said_to_be_looked_at_and_the_number_of_cpus_where_none_is_taken() -> None:
    (app,) = gunicornconf.read("wsgi_app = \"a:b\"\ntimeout = -1\ngraceful_timeout = -0.5\n").apps
    assert [note.reason for note in app.review] == ["-1 is no time: set limits.request_timeout", "-0.5 is no time: set stop.drain_timeout"]
    (app,) = uwsgi.read("[uwsgi]\nmodule = shop\nprocesses = %k\nthreads = %k\n").apps
    assert app.table["workers"] == "auto"
    assert [note.reason for note in app.review] == ["was %k: write what that is"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('forwarded_allow_ips = ["127.0.0.1", os.environ["PROXY"]]', "${PROXY}"),
        ("forwarded_allow_ips = [1, 2]", ""),
        ('workers = [os.environ["X"]]', "${X}"),
        ('raw_env = ["THREADS=" + str(multiprocessing.cpu_count())]', "cpu_count()"),
        ("bind = [cpu_count()]", "cpu_count()"),
        ("chdir = [None]", "[None]"),
        ("certfile = 3j", "3j"),
    ],
)
def test_a_value_that_is_computed_or_is_none_of_its_kind_is_never_written(text: str, shown: str) -> None:
    result = gunicornconf.read(f"{text}\n")
    assert tomllib.loads(document(result, "gunicorn.conf.py"))
    assert shown in " ".join(note.reason for note in result.apps[0].review)
    assert "object at" not in document(result, "gunicorn.conf.py")


def test_neither_is_one_of_a_command_line() -> None:
    (app,) = procfile.read("web: gunicorn -t inf -w 1e400 shop:app\n").apps
    assert app.table == {"target": "shop:app"}
    assert {"gunicorn -t", "gunicorn timeout", "gunicorn workers"} & {note.key for note in app.review}


@pytest.mark.parametrize("again", ["x + x", 'f"{x}{x}"', "os.path.join(x, x)"])
def test_a_text_that_doubles_is_not_put_together(again: str) -> None:
    tracemalloc.start()
    try:
        (app,) = gunicornconf.read('x = "aaaaaaaa"\n' + f"x = {again}\n" * LINES + "raw_env = x + x\n").apps
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 64 * 1024 * 1024
    assert "raw_env" in [note.key for note in app.review]


@pytest.mark.parametrize("again", ["{0} + {0}", "`${{{0}}}${{{0}}}`", "path.join({0}, {0})"])
def test_neither_is_one_of_javascript(again: str) -> None:
    lines = "".join(f"const a{n + 1} = {again.format(f'a{n}')};\n" for n in range(LINES))
    text = f"const path = require('path');\nconst a0 = 'aaaaaaaa';\n{lines}module.exports = {{ apps: [{{ script: 'b.js', args: a{LINES} }}] }};\n"
    tracemalloc.start()
    try:
        found = parse(text)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 64 * 1024 * 1024
    assert isinstance(found["apps"][0]["args"], Computed)


@pytest.mark.parametrize(
    "text",
    [
        "a0 = aaaaaaaa\n" + "".join(f"a{n + 1} = %(a{n})%(a{n})\n" for n in range(LINES)),
        "a = " + "a" * 100_000 + "\n" + "".join(f"b{n} = %(a)\n" for n in range(LINES)),
    ],
)
def test_neither_is_one_of_uwsgi(text: str) -> None:
    with pytest.raises(CannotImport, match="more than 1048576 characters"):
        uwsgi.read(f"[uwsgi]\n{text}module = shop\n")


@pytest.mark.parametrize(
    "text",
    [
        f"[program:{'a' * 100_000}]\ncommand = {'%(program_name)s' * 100}\n",
        "[supervisord]\nenvironment = A=" + "a" * 100_000 + "\n" + "".join(f"[program:p{n}]\ncommand = a\n" for n in range(100)),
        "[DEFAULT]\nx = " + "a" * 100_000 + "\n" + "".join(f"[program:p{n}]\ncommand = a\n" for n in range(100)),
    ],
)
def test_nor_is_what_all_programs_of_supervisors_share(text: str) -> None:
    with pytest.raises(CannotImport, match="more than 4194304 characters"):
        supervisor.read(text)


def test_what_is_no_setting_of_supervisors_is_named() -> None:
    """A file with a hundred thousand such lines took minutes."""
    with pytest.raises(CannotImport, match='line 3, "x", is no NAME = VALUE'):
        supervisor.read("[program:a]\ncommand = a\n" + "x\n" * 100_000)


def test_of_very_many_settings_each_is_looked_at_once() -> None:
    (app,) = uwsgi.read("[uwsgi]\nmodule = shop\n" + "".join(f"mule = m{n}\n" for n in range(100_000))).apps
    assert len(app.review) == 100_000


def test_a_script_of_blanks_is_none() -> None:
    (app,) = pm2.read({"apps": [{"script": " "}]}).apps
    assert "command" not in app.table


DEEP = ["x = " + "+".join(["1"] * 5000), "x = " + "-" * 20_000 + "1", "if " + "+".join(["1"] * 700) + ":\n  pass"]


@pytest.mark.parametrize("text", DEEP)
def test_more_levels_than_can_be_read_are_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(text)
    found = run("import", "gunicorn.conf.py", home=str(tmp_path / "home"), cwd=str(tmp_path))
    assert (found.code, found.out) == (1, "")
    assert "it is nested too deeply" in found.err


def test_any_number_of_minus_signs_is_read() -> None:
    assert parse("module.exports = " + "- " * 20_001 + "1") == -1


@pytest.mark.parametrize("text", DEEP)
def test_a_source_of_such_levels_hides_no_other(text: str) -> None:
    (found,) = detect({"deep.py": text, "main.py": "from fastapi import FastAPI\napp = FastAPI()\n"})
    assert found.target == "main:app"


MANY = "9" * 5000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("eco.yaml", f"apps: [{{script: a.py, instances: {MANY}}}]"),
        ("supervisord.conf", f"[program:a]\ncommand = a\nnumprocs = {MANY}\nstartsecs = {MANY}\nstopsignal = {MANY}\n"),
        ("supervisord.conf", f"[program:a]\ncommand = a\nstdout_logfile_maxbytes = {MANY}\nstartretries = {MANY}\n"),
        ("uwsgi.ini", f"[uwsgi]\nprocesses = {MANY}\nharakiri = {MANY}\nlimit-post = {MANY}\n"),
        ("Procfile", f"web: waitress-serve --threads {MANY} a:b\n"),
        ("gunicorn.conf.py", 'b = "\\ud800"\nbind = b\n'),
        ("eco.json", '{"apps": [{"script": "a.py", "cwd": "~\\u0000"}, {"script": "b.py", "cwd": "~\\ud800"}]}'),
        ("a.service", "[Service]\nExecStart=/bin/true\nWorkingDirectory=~\0\n"),
        ("eco.json", '{"apps": [{"script": "a\\ud800.py", "env": {"A": "\\ud800"}}]}'),
    ],
)
def test_digits_without_an_end_and_halves_of_characters_are_no_bug(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = run("import", name, "-o", "-", home=str(tmp_path / "home"), cwd=str(tmp_path))
    assert found.code in (0, 1)
    assert "itself failed" not in found.err
    assert found.out or "digits" in found.err


@pytest.mark.parametrize(
    "line",
    [
        "waitress-serve --threads --call shop:app",
        "waitress-serve --listen --call shop:app",
        "uvicorn --reload-include --reload shop:app",
        "uvicorn --host --port 80 shop:app",
        "gunicorn --umask --reload shop:app",
        "gunicorn shop:app --bind",
    ],
)
def test_an_option_of_a_server_without_its_value_is_named(line: str) -> None:
    (app,) = procfile.read(f"web: {line}\n").apps
    assert app.table["target"] == "shop:app"
    assert [note.reason for note in app.review if "no value" in note.reason] == [
        f"{next(word for word in line.split() if word.startswith('--'))} has no value"
    ]
    assert "True" not in str(app.table.get("bind"))


def _doubled() -> dict[str, list[object]]:
    value: list[object] = ["x"]
    for _ in range(LINES):
        value = [value, value]
    return {"apps": [{"script": "b.py", "env": {"X": value}}]}


def _endless() -> dict[str, list[object]]:
    env: dict[str, object] = {}
    env["X"] = env
    return {"apps": [{"script": "b.py", "env": env}]}


@pytest.mark.parametrize("made", [_doubled, _endless])
def test_values_that_names_multiply_are_refused(made: Callable[[], object]) -> None:
    with pytest.raises(CannotImport, match="more than 1000000 values"):
        pm2.read(made())


@pytest.mark.parametrize("names", [("web", "Web", "web-2"), ("a" * 70, "a" * 80), ("all", "all-of-it", "all")])
def test_no_two_apps_have_one_name(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("".join(f"{name}: sleep 1\n" for name in names))
    found = run("import", "Procfile", home=str(tmp_path / "home"), cwd=str(tmp_path))
    assert "pyworker check: ok" in found.err
    assert found.err.count("✓") == len(names)


@pytest.mark.parametrize("value", ["0", "1", "x", "/x/y", "$A/b", "true", "infinity"])
def test_whatever_a_setting_is_set_to_it_is_translated_looked_at_or_dropped(value: str) -> None:
    read = {
        "[program:a]\ncommand=b\n": (supervisor.read, (*supervisor._PROGRAM, *supervisor._DROPPED)),
        "[uwsgi]\nmodule=a:b\n": (uwsgi.read, (*uwsgi._SETTINGS, *uwsgi._SAME, *uwsgi._DROPPED, *uwsgi._LOOK)),
        "[Service]\nExecStart=b\n": (lambda text: systemd.read(text, "a"), (*systemd._SERVICE, *systemd._DROPPED)),
        "[Service]\nExecStart=gunicorn a:b\n": (lambda text: systemd.read(text, "a"), (*systemd._SERVICE, *systemd._DROPPED)),
    }
    for start, (reads, keys) in read.items():
        for key in keys:
            assert key in _named(reads(f"{start}{key}={value}\n").apps[0]), (start, key)
    for key in (*pm2settings.SETTINGS, *pm2settings.DROPPED):
        assert key in _named(pm2.read({"script": "a.py", key: value}).apps[0]), ("pm2", key)
    for key in servers.GUNICORN:
        assert key in _named(gunicornconf.read(f"{key} = {value!r}\n").apps[0]), ("gunicorn", key)


def _named(app: Imported) -> set[str]:
    return {*app.translated, *(note.key for note in (*app.review, *app.dropped))}
