"""cli/files.py: each file that cannot be read or written has its cause and a next step."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyworker.cli
from pyworker.cli.files import cannot, no_file
from pyworker.cli.render import home as home_in
from tests.support.cli import environment, run


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "supervisord.conf").write_text("[program:x]\ncommand = x\n")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("number", "name", "step"),
    [
        (errno.ENOENT, "supervisor.conf", "did you mean {}/supervisord.conf?"),
        (errno.ENOENT, "zzz", "what is there? ls {}"),
        (errno.ENOENT, "a b/app.toml", "its folder is not there: mkdir -p '{}/a b'"),
        (errno.EACCES, "supervisord.conf", "who may do it? ls -ld {}/supervisord.conf"),
        (errno.EACCES, "app.toml", "who may do it? ls -ld {}"),
        (errno.EISDIR, "x", "it is a folder: name a file in it"),
        (errno.ENOSPC, "x", "make room: df -h {}"),
        (errno.EIO, "x", ""),
    ],
)
def test_each_error_has_its_next_step(folder: str, number: int, name: str, step: str) -> None:
    path = os.path.join(folder, name)
    error = cannot("write", path, OSError(number, os.strerror(number)), "or elsewhere")
    assert error.message == f"cannot write {home_in(path)}: {os.strerror(number)}"
    assert error.hint == "\n".join(filter(None, (step.format(folder), "or elsewhere")))


def test_a_link_to_nothing_is_not_meant_instead_of_itself(folder: str) -> None:
    os.symlink("nowhere", f"{folder}/app.toml")
    assert no_file(f"{folder}/app.toml").hint == f"what is there? ls {folder}"


def test_what_is_not_there_may_have_a_name_like_it(folder: str) -> None:
    assert no_file(f"{folder}/supervisor.conf", "do that").hint == f"did you mean {folder}/supervisord.conf?"
    assert no_file(f"{folder}/zzz", "do that").hint == "do that"
    assert no_file(f"{folder}/zzz").hint == f"what is there? ls {folder}"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("import", "supervisor.conf"), "cannot read supervisor.conf: No such file or directory\n  = help: did you mean supervisord.conf?"),
        (("import", "supervisord.conf", "-o", "no/app.toml"), "  = help: name another with -o FILE, or see it with -o -"),
        (("schema", "-o", "no/x.json"), "cannot write no/x.json: No such file or directory\n  = help: its folder is not there: mkdir -p "),
        (("init", "nowhere"), "nowhere is no folder\n  = help: name the folder of the app"),
        (("start", "nowhere.toml"), "there is no file nowhere.toml\n  = help: what is there? ls "),
        (("export", "procfile", "-o", "supervisord.conf/x"), "  = help: choose another folder with -o"),
    ],
)  # fmt: skip
def test_commands_say_it(folder: str, tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    (tmp_path / "app.toml").write_text('[app]\nname = "x"\ncommand = "x"\n')
    found = run(*args, home=str(tmp_path / "home"), cwd=folder)
    assert found.code != 0
    assert said in found.err


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (("init", "--force"), "app.toml"),
        (("import", "supervisord.conf", "--force"), "app.toml"),
        (("export", "procfile", "-f", "own.toml", "-o", ".", "--force"), "Procfile"),
        (("schema", "-o", "x.json"), "x.json"),
    ],
)
def test_a_disk_that_is_full_costs_the_file_that_is_there_nothing_and_leaves_no_half_of_a_new_one(
    folder: str, tmp_path: Path, args: tuple[str, ...], path: str
) -> None:
    (tmp_path / "own.toml").write_text('[app]\nname = "x"\ncommand = "x"\n')
    full = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, "-m", "pyworker", *args]
    for before in ("# mine\n" * 500, None):
        if before is None:
            (tmp_path / path).unlink()
        else:
            (tmp_path / path).write_text(before)
        done = subprocess.run(full, cwd=folder, env=environment(str(tmp_path / "home")), capture_output=True, text=True)
        assert done.returncode == 1
        assert f"{path}: File too large\n  = help: make room: df -h " in done.stderr
        assert (tmp_path / path).exists() == (before is not None)
        assert before is None or (tmp_path / path).read_text() == before
    assert run(*args, home=str(tmp_path / "home"), cwd=folder).code == 0


def test_what_is_shorter_than_what_was_there_has_nothing_of_its_end(folder: str, tmp_path: Path) -> None:
    (tmp_path / "app.toml").write_text("# mine\n" * 500)
    assert run("import", "supervisord.conf", "--force", home=str(tmp_path / "home"), cwd=folder).code == 0
    assert "mine" not in (tmp_path / "app.toml").read_text()


def test_the_file_that_cannot_be_written_is_the_one_that_is_named(folder: str, tmp_path: Path) -> None:
    (tmp_path / ".app.schema.json").mkdir()
    found = run("init", home=str(tmp_path / "home"), cwd=folder)
    assert (found.code, (tmp_path / "app.toml").exists()) == (1, True)
    assert found.err.startswith("error: cannot write .app.schema.json: Is a directory\n")
    (tmp_path / "out" / "Procfile").mkdir(parents=True)
    (tmp_path / "app.toml").write_text('[app]\nname = "x"\ncommand = "x"\n')
    found = run("export", "procfile", "-o", "out", "--force", home=str(tmp_path / "home"), cwd=folder)
    assert found.err.startswith("error: cannot write out/Procfile: Is a directory\n")


def test_every_error_that_a_command_raises_has_a_next_step() -> None:
    without = []
    for path in Path(pyworker.cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "PyworkerError":
                hints = [k.value for k in node.keywords if k.arg == "hint"]
                if not hints or (isinstance(hints[0], ast.Constant) and not hints[0].value):
                    without.append(f"{path.name}:{node.lineno}")
    assert without == []
