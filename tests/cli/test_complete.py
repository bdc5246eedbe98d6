"""Completion: what is offered, from a daemon that answers, and from none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyworker.cli import complete, names
from pyworker.cli.commands.completion import _SCRIPTS
from pyworker.cli.commands.daemon import cmd as daemon
from pyworker.cli.commands.export import ENGINES
from pyworker.cli.topics import TOPICS
from pyworker.protocol.control import Reply
from tests.cli import documents
from tests.support.cli import run
from tests.support.fake_control import FakeControl


def words(before: list[str], typed: str) -> list[str]:
    return [word for word, _ in complete.candidates(before, typed)]


@pytest.fixture
def apps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "_apps", lambda home="", workers=False: [("api", "running"), ("jobs", "stopped")])


def test_commands_then_their_options() -> None:
    assert words([], "re") == ["restart", "reload"]
    assert "--save" in words(["scale"], "--")
    assert words(["scale"], "--he") == words([], "--he") == ["--help"]
    assert words(["completion"], "f") == ["fish"]
    assert words(["nothing"], "--") == []


@pytest.mark.usefixtures("apps")
def test_names_of_apps_where_they_belong() -> None:
    assert words(["reload"], "") == ["api", "jobs", "all"]
    assert words(["reload", "api"], "") == ["jobs", "all"]
    assert words(["scale"], "a") == ["api="]
    assert words(["ls"], "j") == ["jobs"]
    assert words(["config", "env"], "a") == ["api"]
    assert words(["check"], "a") == ["__files__"]
    assert words(["start"], "j") == ["jobs"]
    assert words(["start"], "") == ["__files__"]


def test_what_follows_an_option_is_its_value() -> None:
    def after(*typed: str) -> list[str]:
        *before, option, word = typed
        found = complete._values(before, option, word)
        return ["no value"] if found is None else [w for w, _ in found]

    assert after("startup", "--init", "") == ["systemd", "openrc"]
    assert after("start", "--balance", "l") == ["least-connections"]
    assert after("wait", "--for", "") == ["ready", "stopped", "gen="]
    assert after("logs", "-l", "w") == ["warning"]
    assert after("events", "--type", "worker_exited,app_del") == ["worker_exited,app_deleted"]
    assert after("run", "--restart", "n") == ["never"]
    assert after("start", "-e", "") == []
    assert after("import", "-o", "x") == ["__files__"]
    assert after("reload", "--no-wait", "") == ["no value"]
    assert words(["export"], "k") == ["kubernetes"]
    assert "--now" in words(["daemon", "stop"], "--")


def test_options_of_every_command_may_stand_before_it_and_home_is_asked(tmp_path: Path) -> None:
    assert complete._split(["--home", "/x", "-q", "reload", "--timeout=5s"]) == (["reload"], "/x")
    home = str(tmp_path / "state")
    with FakeControl(home, {"ps": lambda _: [Reply(True, documents.ps())]}):
        found = run("__complete", "--home", home, "logs", "api.", home=str(tmp_path / "another"))
    assert [line.split("\t") for line in found.out.splitlines()] == [
        [f"api.{n}", "ready"] for n in (1, 2, 3, 4)
    ]


def test_behind_an_equals_sign_nothing_is_offered_in_any_shell(tmp_path: Path) -> None:
    """bash makes three words of `api=4` and of `--home=DIR`: the name was offered again behind its own =."""
    home = str(tmp_path / "state")
    with FakeControl(home, {"ps": lambda _: [Reply(True, documents.ps())]}):
        assert run("__complete", "scale", "ap", home=home).out == "api=\trunning\n"
        for typed in (("api", "="), ("api", "=", "4"), ("api=",), ("api=4",)):
            assert run("__complete", "scale", *typed, home=home) == (0, "", "")
        assert complete._split(["--home", "=", "/x", "reload"]) == (["reload"], "/x")


def test_without_a_daemon_there_are_no_names(tmp_path: Path) -> None:
    done = run("__complete", "describe", "", home=str(tmp_path / "none"))
    assert done == (0, "", "")


def test_names_are_answered_without_click_or_any_command() -> None:
    code = "import sys; from pyworker.cli.complete import main; main(['reload', '']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"click", "rich", "psutil", "asyncio", "dataclasses"}.isdisjoint(done.stdout.split())


def test_every_word_list_names_commands_that_exist() -> None:
    assert set(names.COMMANDS) | {"export"} >= complete._NAMES | complete._FILES


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_of_their_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(_SCRIPTS[shell])
    subprocess.run([shell, "-n", str(script)], check=True)


def test_bash_completes_a_command(tmp_path: Path) -> None:
    script = (
        _SCRIPTS["bash"]
        + f"""
pyworker() {{ {sys.executable} -m pyworker "$@"; }}
COMP_WORDS=(pyworker rel); COMP_CWORD=1; _pyworker; echo "${{COMPREPLY[*]}}"
"""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "reload\n"


def test_zsh_says_that_a_new_word_begins() -> None:
    """Without it the word before the cursor would be completed a second time."""
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    script = (
        "compdef() { :; }; _files() { :; }; _describe() { print -r -- ${(P)2}; }\n"
        + _SCRIPTS["zsh"]
        + f"""
asked() {{ {sys.executable} -m pyworker "$@"; }}
words=(asked completion ""); CURRENT=3; _pyworker
words=(asked rel); CURRENT=2; _pyworker
"""
    )
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["bash zsh fish", "reload"]


def test_zsh_puts_no_blank_behind_an_equals_sign() -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    script = "compdef() { :; }; _describe() { print -r -- $# $3; }\n" + _SCRIPTS["zsh"] + """
scale() { print 'api=\\trunning'; }; words=(scale a); CURRENT=2; _pyworker
logs() { print 'api\\trunning'; }; words=(logs a); CURRENT=2; _pyworker
"""
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=True)
    assert done.stdout == "4 -S\n2\n"


def test_fish_completes_a_command_and_a_new_word(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = (
        _SCRIPTS["fish"]
        + f"""
function pyworker; end
function env; {sys.executable} -m pyworker $argv[3..-1]; end
complete -C "pyworker rel"
complete -C "pyworker completion "
"""
    )
    made = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(tmp_path))  # fish makes folders there
    done = subprocess.run(["fish", "--no-config", "-c", script], env={**os.environ, **made}, capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()][:1] == ["reload"]
    assert sorted(line.split("\t")[0] for line in done.stdout.splitlines()[1:]) == ["bash", "fish", "zsh"]


def test_a_script_is_not_installed_in_the_folder_that_one_happens_to_be_in(home: str, tmp_path: Path) -> None:
    """A relative path in such a variable is none, say the rules of XDG."""
    done = run("completion", "bash", "--install", home=home, cwd=str(tmp_path), XDG_DATA_HOME="data")
    assert done.code == 0
    assert os.listdir(tmp_path) == [".local"]


def test_the_words_that_are_offered_are_those_that_the_commands_take() -> None:
    taken = {"completion": _SCRIPTS, "daemon": daemon.commands, "export": ENGINES, "help": TOPICS}
    assert {command: sorted(words) for command, words in complete._WORDS.items()} == {c: sorted(w) for c, w in taken.items()}
