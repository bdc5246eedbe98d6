"""`pyworker import`: how the file of another program is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.cli import run, run_on_terminal


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("app.json", '{"apps": [{"script": "a.py"}]}'),
        ("Procfile", "web: python a.py\r\n"),
        ("supervisord.conf", "[program:web]\r\ncommand = python a.py\r\n"),
    ],
)
def test_a_file_of_an_editor_that_writes_a_byte_order_mark_is_read(
    tmp_path: Path, home: str, name: str, text: str
) -> None:
    (tmp_path / name).write_text("\ufeff" + text, newline="")
    found = run("import", name, "-o", "-", home=home, cwd=str(tmp_path))
    assert found.code == 0
    assert '"a.py"' in found.out


@pytest.mark.parametrize(("name", "text"), [("deep.json", '{"apps":' * 100_000), ("deep.yaml", "a: " + "[" * 5000)])
def test_what_is_nested_too_deeply_is_said(tmp_path: Path, home: str, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = run("import", "--from", "pm2", name, home=home, cwd=str(tmp_path))
    assert (found.code, found.out) == (1, "")
    assert "it is nested too deeply" in found.err


def test_yaml_is_read_as_pm2_reads_it(tmp_path: Path, home: str) -> None:
    text = "apps:\n - script: a.py\n   autorestart: false\n   instances: 2\n   env: {DEBUG: no, AT: 12:30, N: 0.5, NIL: ~}\n"
    (tmp_path / "eco.yaml").write_text(text)
    found = run("import", "eco.yaml", "-o", "-", home=home, cwd=str(tmp_path))
    assert found.code == 0
    for line in ('DEBUG = "no"', 'AT    = "12:30"', 'N     = "0.5"', 'NIL   = ""', "workers        = 2", '= "never"'):
        assert line in found.out


def test_what_is_written_is_as_private_as_what_was_read(tmp_path: Path, home: str) -> None:
    main, more = tmp_path / "supervisord.conf", tmp_path / "more.conf"
    main.write_text("[include]\nfiles = more.conf\n[program:a]\ncommand = python a.py\n")
    more.write_text("[program:b]\ncommand = python b.py\nenvironment = PASSWORD=x\n")
    usual = main.stat().st_mode & 0o044  # of the umask here
    for modes, private in (((0o644, 0o644), False), ((0o644, 0o600), True), ((0o600, 0o644), True)):
        (tmp_path / "app.toml").unlink(missing_ok=True)
        for is_there in (False, True):
            if is_there:
                (tmp_path / "app.toml").chmod(0o644)
            main.chmod(modes[0])
            more.chmod(modes[1])
            assert run("import", "supervisord.conf", "--force", home=home, cwd=str(tmp_path)).code == 0
            assert (tmp_path / "app.toml").stat().st_mode & 0o077 == (0 if private else usual)


def test_what_is_included_and_is_no_file_is_not_waited_for(tmp_path: Path, home: str) -> None:
    (tmp_path / "supervisord.conf").write_text("[include]\nfiles = *.d\n[program:a]\ncommand = python a.py\n")
    os.mkfifo(tmp_path / "pipe.d")
    found = run("import", "supervisord.conf", home=home, cwd=str(tmp_path))
    assert (found.code, found.err.splitlines()[0]) == (1, "error: cannot read ./pipe.d: it is not a regular file")


def test_without_node_it_is_said_that_the_file_is_read_without_it(tmp_path: Path, home: str) -> None:
    (tmp_path / "eco.config.js").write_text('module.exports = {apps: [{script: "a.py"}]}')
    found = run("import", "--run", "eco.config.js", home=home, cwd=str(tmp_path), PATH=str(tmp_path))
    assert (found.code, found.out) == (1, "")
    assert "node cannot be run: No such file or directory" in found.err
    assert "without --run it is read" in found.err


def test_a_file_that_ends_node_is_said_to(tmp_path: Path, home: str) -> None:
    (tmp_path / "eco.config.js").write_text("process.exit(0)")
    (tmp_path / "node").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "node").chmod(0o755)
    found = run("import", "--run", "eco.config.js", home=home, cwd=str(tmp_path), PATH=str(tmp_path))
    assert found.err.splitlines()[0].endswith("node could not read it (exit code 0) and said nothing: does it end by itself?")


def test_what_is_said_of_a_setting_is_wrapped_at_blanks_on_a_narrow_terminal(tmp_path: Path, home: str) -> None:
    (tmp_path / "app.json").write_text('{"apps": [{"script": "a.py", "restart_delay": 1}]}')
    screen = run_on_terminal("import", "app.json", home=home, cwd=str(tmp_path), columns=50).screen
    said = "    - restart_delay left out: the wait before a\n      restart grows by itself, from 0.1 s to 30 s"
    assert said in screen.text


def test_of_a_compose_file_it_is_said_what_is_read_instead(tmp_path: Path, home: str) -> None:
    (tmp_path / "compose.yml").write_text("services:\n  web:\n    command: gunicorn shop:app\n")
    found = run("import", "compose.yml", home=home, cwd=str(tmp_path))
    assert found.code == 2
    assert "= help: Compose files are not read: a Procfile is" in found.err


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("shop.yaml", "uwsgi:\n  module: shop\n", "of uWSGI's files the .ini is read"),
        ("shop.json", '{"uwsgi": {"module": "shop"}}', "of uWSGI's files the .ini is read"),
        ("shop.xml", "<uwsgi><module>shop</module></uwsgi>\n", "of uWSGI's files the .ini is read"),
    ],
)
def test_of_a_kind_of_file_that_is_not_read_it_is_said_which_is(tmp_path: Path, home: str, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    found = run("import", name, home=home, cwd=str(tmp_path))
    assert found.code == 2
    assert f"= help: {told}" in found.err


def test_a_file_that_gunicorn_reads_unasked_is_named_where_it_is_there(tmp_path: Path, home: str) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "gunicorn.conf.py").write_text("workers = 3\n")
    (tmp_path / "Procfile").write_text("a: cd api && gunicorn a:b\nb: gunicorn -c x.py a:b\nc: gunicorn a:b\n")
    found = run("import", "Procfile", "-o", "-", home=home, cwd=str(tmp_path))
    assert found.err.count("unasked") == 1
    assert "pyworker import api/gunicorn.conf.py --from gunicorn -o -" in found.err


def test_apps_are_started_where_they_were_though_the_config_file_is_elsewhere(tmp_path: Path, home: str) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "Procfile").write_text("a: python a.py\nb: cd x && python b.py\nc: cd /srv && python c.py\n")
    found = run("import", "shop/Procfile", "-o", "-", home=home, cwd=str(tmp_path))
    assert [line.partition("= ")[2] for line in found.out.splitlines() if line.startswith("cwd")] == [
        f'"{tmp_path}/shop"', f'"{tmp_path}/shop/x"', '"/srv"'
    ]  # fmt: skip
    (tmp_path / "ecosystem.json").write_text('{"apps": [{"script": "a.py", "name": "a", "cwd": "x"}]}')
    run("import", "ecosystem.json", "-o", "shop/app.toml", home=home, cwd=str(tmp_path))
    assert f'cwd    = "{tmp_path}/x"' in (tmp_path / "shop" / "app.toml").read_text()
    found = run("import", "ecosystem.json", "-o", "-", home=home, cwd=str(tmp_path))
    assert 'cwd    = "x"' in found.out
