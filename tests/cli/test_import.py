"""`pyworker import`: how the file of another program is read."""

from __future__ import annotations

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
    for mode, private in ((0o644, False), (0o600, True)):
        main.chmod(0o644)
        more.chmod(mode)
        assert run("import", "supervisord.conf", "--force", home=home, cwd=str(tmp_path)).code == 0
        assert (tmp_path / "app.toml").stat().st_mode & 0o077 == (0 if private else usual)


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
