"""`pyworker export`: what is written, and what is left alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import run

FILE = '[app]\nname = "api"\ntarget = "web:app"\nbind = "127.0.0.1:8000"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "app.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_exports_are_the_same_to_the_byte(folder: Path, home: str) -> None:
    for engine in ("systemd", "compose", "kubernetes", "nomad", "docker", "procfile"):
        first, second = run("export", engine, home=home), run("export", engine, home=home)
        assert (first.code, first.out) == (0, second.out), first.err
        assert run("export", engine, "-o", "out", home=home).code == 0
        written = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
        assert run("export", engine, "-o", "out", home=home).code == 0, "what it has made it makes again"
        assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == written


def test_a_file_of_somebody_else_is_left_alone_and_nothing_is_written(folder: Path, home: str) -> None:
    (folder / "Dockerfile").write_text("FROM scratch\n")
    done = run("export", "docker", "-o", ".", home=home)
    assert done.code == 1
    assert "Dockerfile" in done.err
    assert "--force" in done.err
    assert (folder / "Dockerfile").read_text() == "FROM scratch\n"
    assert not (folder / ".dockerignore").exists()
    assert run("export", "docker", "-o", ".", "--force", home=home).code == 0
    assert "ENTRYPOINT" in (folder / "Dockerfile").read_text()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_of_its_making_either_and_is_not_waited_for(folder: Path, home: str, make: Callable[[str], None]) -> None:
    make("Dockerfile")
    done = run("export", "docker", "-o", ".", home=home)
    assert done.code == 1
    assert "Dockerfile: is there, and not made by" in done.err


def test_the_dockerfile_installs_what_the_folder_names(folder: Path, home: str) -> None:
    assert "neither requirements.txt nor pyproject.toml" in run("export", "docker", home=home).out
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\ndependencies = ["click"]\n')
    assert "COPY pyproject.toml pyworker-*.whl ./" in run("export", "docker", home=home).out
    (folder / "requirements.txt").write_text("click\n")
    assert "RUN pip install -r requirements.txt ./pyworker-*.whl" in run("export", "docker", home=home).out


def test_an_app_that_is_not_there_and_a_folder_without_a_file(folder: Path, home: str) -> None:
    done = run("export", "compose", "apo", home=home)
    assert done.code != 0
    assert "did you mean `api`?" in done.err
    (folder / "app.toml").unlink()
    assert "there is no config file" in run("export", "compose", home=home).err


def test_as_json_it_is_one_document(folder: Path, home: str) -> None:
    files = json.loads(run("export", "systemd", "--json", home=home).out)["files"]
    assert list(files) == ["api.service"]
    assert run("export", "systemd", "--json", "-o", "out", home=home).code == 0
    assert (folder / "out" / "api.service").read_text() == files["api.service"]


def test_what_its_help_sends_into_a_file_is_one_file(folder: Path, home: str) -> None:
    examples = re.findall(r"^  pyworker (export .*) > \S+$", run("export", "-h", home=home).out, re.MULTILINE)
    assert examples
    for example in examples:
        assert "# ====" not in run(*example.split(), home=home).out


@pytest.mark.parametrize(("name", "meant"), [("k8s", "kubernetes"), ("docker-compose", "compose"), ("dockerfile", "docker")])
def test_an_engine_by_another_name_is_known(home: str, name: str, meant: str) -> None:
    assert f"= help: did you mean {meant}?" in run("export", name, home=home).err


def test_of_an_engine_that_is_none_it_is_said_which_there_are_and_what_to_do_instead(folder: Path, home: str) -> None:
    done = run("export", "supervisord", home=home)
    assert (done.code, done.out) == (2, "")
    assert "there is no export for supervisord; for these: systemd, compose," in done.err
    assert "pyworker run app.toml" in done.err


def test_a_folder_that_no_unit_can_name_costs_the_file_that_is_there_nothing(tmp_path: Path, home: str) -> None:
    folder = tmp_path / "a\udcff"
    folder.mkdir()
    (folder / "app.toml").write_text(FILE)
    assert run("export", "docker", "-o", ".", home=home, cwd=str(folder)).code == 0, "which does not name it"
    (folder / "api.service").write_text("# mine\n")
    done = run("export", "systemd", "-o", ".", "--force", home=home, cwd=str(folder))
    assert done.code == 2
    assert "cannot be written: it is not UTF-8\n  = help: rename the file or folder" in done.err
    assert (folder / "api.service").read_text() == "# mine\n"
