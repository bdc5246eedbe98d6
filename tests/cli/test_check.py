"""`pyworker check`: shows every mistake, exits 78, starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import run, run_on_terminal

GOOD = '[apps.web]\ntarget = "a:b"\n[apps.jobs]\ncommand = "true"\n'


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


def test_good_file_is_fine(tmp_path: Path, home: str) -> None:
    (tmp_path / "app.toml").write_text(GOOD)
    done = run("check", home=home, cwd=str(tmp_path))
    assert done == (0, "app.toml is fine: 2 apps (web, jobs)\n", "")
    assert not Path(home).exists()


def test_the_name_of_the_file_cannot_steer_the_terminal(tmp_path: Path, home: str) -> None:
    tmp_path.joinpath("a\x1b[2J.toml").write_text('[app]\nname = "a"\ncommand = "true"\n')
    raw = run_on_terminal("check", str(tmp_path / "a\x1b[2J.toml"), home=home).raw
    assert r"a\x1b[2J.toml is fine" in raw
    assert "\x1b[2J" not in raw


def test_mistakes_are_shown_on_stderr(tmp_path: Path, home: str) -> None:
    (tmp_path / "x.toml").write_text('[app]\ntarget = "a:b"\nworker = 4\n')
    done = run("check", "x.toml", home=home, cwd=str(tmp_path))
    assert (done.code, done.out) == (78, "")
    assert " --> x.toml:3:1\n" in done.err
    assert done.err.endswith("x.toml has 1 error.\n")


def test_a_broken_rule_of_a_profile_shows_before_it_is_used(tmp_path: Path, home: str) -> None:
    text = '[app]\ntarget = "a:b"\nbind = "nonsense"\n[profiles.dev.app]\nworkers = 2\n[profiles.prod.app]\nbalance = "proxy"\n'
    (tmp_path / "app.toml").write_text(text)
    done = run("check", home=home, cwd=str(tmp_path))
    assert (done.code, done.out) == (78, "")
    assert " --> app.toml:3:8\n" in done.err
    assert " --> app.toml:7:11\n" in done.err
    assert done.err.endswith("app.toml has 2 errors.\n")
    assert "app.toml has 2 errors.\n" in run("check", "--profile", "dev", home=home, cwd=str(tmp_path)).err


def test_a_probe_where_an_app_listens_is_a_mistake(tmp_path: Path, home: str) -> None:
    (tmp_path / "app.toml").write_text('[run]\nprobe = ":8081"\n[app]\ntarget = "a:b"\nbind = "127.0.0.1:8081"\n')
    done = run("check", home=home, cwd=str(tmp_path))
    assert done.code == 78
    assert "listens on 127.0.0.1:8081, and the probe is to do so, too (:8081)\n --> app.toml:2:9\n" in done.err


def test_the_folder_of_the_probes_socket_must_be_there(tmp_path: Path, home: str) -> None:
    (tmp_path / "app.toml").write_text(f'[run]\nprobe = "unix:{tmp_path}/run/probe"\n[app]\ncommand = "true"\n')
    done = run("check", home=home, cwd=str(tmp_path))
    assert done.code == 78
    assert f"`run.probe` is in {tmp_path}/run, which is no folder\n --> app.toml:2:9\n" in done.err
    (tmp_path / "run").mkdir()
    assert run("check", home=home, cwd=str(tmp_path)).code == 0


def test_what_only_a_profile_names_may_be_there_elsewhere(tmp_path: Path, home: str) -> None:
    (tmp_path / "app.toml").write_text('[apps.jobs]\ncommand = "true"\n[profiles.prod.apps.jobs]\ncwd = "/srv/of/another/machine"\n')
    assert run("check", home=home, cwd=str(tmp_path)).code == 0
    assert run("check", "--profile", "prod", home=home, cwd=str(tmp_path)).code == 78


def test_what_the_file_names_must_be_there(tmp_path: Path, home: str) -> None:
    (tmp_path / "app.toml").write_text('[app]\nscript = "gone.py"\n')
    done = run("check", home=home, cwd=str(tmp_path))
    assert done.code == 78
    assert " --> app.toml:2:10\n" in done.err


def test_what_a_start_would_refuse_here_is_a_warning(tmp_path: Path, home: str) -> None:
    (tmp_path / "app.toml").write_text('[apps.app]\ncommand = "no-such-program"\nenv_file = ".env"\nuser = "nobody-of-here"\n')
    done = run("check", home=home, cwd=str(tmp_path))
    assert (done.code, done.out) == (0, "app.toml is fine but for 3 warnings: 1 app (app)\n")
    assert "warning: app.toml:2: `command` of app `app` names no-such-program" in done.err
    assert "warning: app.toml:3: `env_file[0]` of app `app` names .env, which does not exist" in done.err
    assert "warning: app.toml:4: `user` of app `app`" in done.err
    document = json.loads(run("check", "--json", home=home, cwd=str(tmp_path)).out)
    assert (document["ok"], document["errors"], len(document["warnings"])) == (True, [], 3)


def test_a_program_of_what_is_activated_in_this_shell_alone_is_a_warning_as_the_daemon_does_not_find_it(tmp_path: Path, home: str) -> None:
    (tmp_path / "app.toml").write_text('[app]\nname = "api"\ncommand = ["tool"]\n')
    programs = tmp_path / "env" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "tool"):
        (programs / name).touch(mode=0o755)
    done = run("check", home=home, cwd=str(tmp_path), VIRTUAL_ENV=str(programs.parent), PATH=f"{programs}:/usr/bin:/bin")
    assert (done.code, done.out) == (0, "app.toml is fine but for 1 warning: 1 app (api)\n")
    assert f'only the PATH of this shell has it: write "{programs}/tool"' in done.err


def test_json_is_one_document_on_stdout(tmp_path: Path, home: str) -> None:
    file = tmp_path / "app.toml"
    file.write_text('[app]\ntarget = "a:b"\nworker = 4\n')
    done = run("check", str(file), "--json", home=home)
    assert (done.code, done.err) == (78, "")
    assert json.loads(done.out) == {
        "v": 1,
        "ok": False,
        "file": str(file),
        "errors": [
            {
                "code": "unknown_key",
                "message": "unknown key `worker` in [app]",
                "hint": "did you mean `workers`?",
                "key": "app.worker",
                "line": 3,
                "column": 1,
                "end_column": 7,
            }
        ],
        "warnings": [],
    }
    file.write_text(GOOD)
    done = run("check", str(file), "--json", home=home)
    assert (done.code, json.loads(done.out)) == (0, {"v": 1, "ok": True, "file": str(file), "errors": [], "warnings": []})


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("app.json", '{"app": {}}', "a config file is TOML"),
        ("supervisord.conf", "[program:x]\n", "it is a file of supervisor: pyworker import "),
        ("ecosystem.config.js", "module.exports = {}", "it is a file of pm2: pyworker import "),
    ],
)
def test_what_is_no_config_file_of_ours_is_said(tmp_path: Path, home: str, name: str, content: str, hint: str) -> None:
    (tmp_path / name).write_text(content)
    done = run("check", name, home=home, cwd=str(tmp_path))
    assert done.code == 78
    assert f"  = help: {hint}" in done.err


def test_an_app_is_no_config_file(tmp_path: Path, home: str) -> None:
    done = run("check", "shop:app", home=home, cwd=str(tmp_path))
    assert done.code == 78
    assert "  = help: check is for config files; of an app: pyworker start --dry-run shop:app\n" in done.err


def test_without_a_file_it_says_which_names_were_looked_for(tmp_path: Path, home: str) -> None:
    done = run("check", home=home, cwd=str(tmp_path))
    assert done.code == 78
    assert done.err.startswith("error: there is no config file here\n  = help: ")
    assert "1 error" not in done.err  # no app has it
    assert "pyworker.toml" in done.err
