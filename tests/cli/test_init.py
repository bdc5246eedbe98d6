"""`pyworker init`: a short file, its paths as the app sees them."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from tests.support.cli import run

FASTAPI = "from fastapi import FastAPI\nfrom models import x\napp = FastAPI()\n"


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FASTAPI if name.endswith("main.py") else "")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["main.py", "models.py", ".env"], {"target": "main:app", "env_file": ".env"}),
        (["main.py", "venv/pyvenv.cfg"], {"target": "main:app", "python": "venv"}),
        (["main.py", ".venv/pyvenv.cfg"], {"target": "main:app"}),
        (["main.py", "env/conda-meta/history"], {"target": "main:app", "python": "env"}),
        (["src/main.py", "envs/conda-meta/history", "envs/lib/main.py"], {"target": "main:app", "cwd": "src"}),
        (["back/main.py", "back/models.py", ".venv/pyvenv.cfg"], {"target": "main:app", "cwd": "back", "python": "../.venv"}),
        (["back/main.py", "back/models.py", "back/.venv/pyvenv.cfg"], {"target": "main:app", "cwd": "back"}),
        (["back/main.py", "back/models.py", "back/env/pyvenv.cfg", ".env"],
         {"target": "main:app", "cwd": "back", "python": "env", "env_file": "../.env"}),
    ],
)  # fmt: skip
def test_paths_are_as_the_app_sees_them(
    files: list[str], expected: dict[str, object], tmp_path: Path, home: str
) -> None:
    write(tmp_path, *files)
    done = run("init", home=home, cwd=str(tmp_path))
    assert (done.code, done.out) == (0, "")
    assert done.err.splitlines()[-1] == "Wrote app.toml.   Next: pyworker start"
    text = (tmp_path / "app.toml").read_text()
    found = tomllib.loads(text)["app"]
    found.pop("name")
    assert found == {**expected, "workers": "auto", "bind": "127.0.0.1:8000"}
    keys = [line.index(" = ") for line in text.splitlines() if " = " in line]
    assert len({len(line.split(" = ")[0]) for line in text.splitlines() if " = " in line and "#:" not in line}) == 1, keys


@pytest.mark.parametrize(
    ("files", "python"),
    [
        (["uv.lock", "packages/api/pyproject.toml"], "../../../.venv"),
        (["uv.lock"], None),  # a member has a pyproject.toml
        (["uv.lock", "packages/api/pyproject.toml", "packages/api/uv.lock"], None),
        (["packages/api/pyproject.toml"], None),
    ],
)
def test_a_member_of_a_workspace_of_uv_has_the_environment_of_that(
    files: list[str], python: str | None, tmp_path: Path, home: str
) -> None:
    write(tmp_path, ".venv/pyvenv.cfg", "packages/api/src/api/__init__.py", "packages/api/src/api/main.py", *files)
    assert run("init", "packages/api", home=home, cwd=str(tmp_path)).code == 0
    app = tomllib.loads((tmp_path / "packages/api/app.toml").read_text())["app"]
    assert (app["cwd"], app.get("python")) == ("src", python)


def test_the_file_of_another_program_is_pointed_at(tmp_path: Path, home: str) -> None:
    write(tmp_path, "main.py", "models.py", "uwsgi.ini")
    done = run("init", home=home, cwd=str(tmp_path))
    assert done.err.splitlines()[-1] == "uwsgi.ini is here, too: pyworker import uwsgi.ini -o - shows what it comes to."


def test_another_folder_is_named_in_what_to_do_next(tmp_path: Path, home: str) -> None:
    write(tmp_path / "srv", "main.py", "models.py")
    done = run("init", "srv", home=home, cwd=str(tmp_path))
    assert done.err.splitlines()[-1] == "Wrote srv/app.toml.   Next: pyworker start srv/app.toml"


def test_a_pipe_among_the_sources_is_passed_over(tmp_path: Path, home: str) -> None:
    os.mkfifo(tmp_path / "a.py")
    (tmp_path / "main.py").write_text("from fastapi import FastAPI\napp = FastAPI()\n")
    done = run("init", home=home, cwd=str(tmp_path))
    assert (done.code, done.err.splitlines()[0]) == (0, "Found FastAPI: main:app (main.py, line 2).")


def test_a_source_with_a_byte_order_mark_is_read(tmp_path: Path, home: str) -> None:
    (tmp_path / "main.py").write_text("\ufeff" + FASTAPI, encoding="utf-8")
    assert run("init", home=home, cwd=str(tmp_path)).code == 0
    assert tomllib.loads((tmp_path / "app.toml").read_text())["app"]["target"] == "main:app"


def test_the_check_that_a_reload_of_django_needs_is_there_to_be_switched_on(tmp_path: Path, home: str) -> None:
    write(tmp_path, "manage.py", "shop/settings.py")
    (tmp_path / "shop" / "wsgi.py").write_text("application = get_wsgi_application()\n")
    assert run("init", home=home, cwd=str(tmp_path)).code == 0
    text = (tmp_path / "app.toml").read_text()
    assert "health" not in tomllib.loads(text)["app"]
    _, _, check = text.partition("is refused:\n")
    assert tomllib.loads(check.replace("\n# ", "\n").removeprefix("# "))["app"]["health"]["expect"] == "2xx,3xx,404"


@pytest.mark.parametrize(
    "source",
    ["app = FastAPI()\nboth = socketio.ASGIApp(server, app)\n",
     "from nicegui import ui\napp = FastAPI()\nui.run_with(app)\n",
     "app = Flask('x')\ns = SocketIO(app)\nif __name__ == '__main__':\n    s.run(app)\n"],
)  # fmt: skip
def test_an_app_whose_sessions_are_in_one_process_gets_one_worker(source: str, tmp_path: Path, home: str) -> None:
    (tmp_path / "app.py").write_text(source)
    assert run("init", home=home, cwd=str(tmp_path)).code == 0
    assert tomllib.loads((tmp_path / "app.toml").read_text())["app"]["workers"] == 1


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ('{"scripts": {"start": "node --max-old-space-size=300 srv.js"}}', ["node", "--max-old-space-size=300", "srv.js"]),
        ('{"scripts": {"start": "next start"}, "main": "x.js"}', ["npm", "start"]),
        ('{"scripts": {"start": "node a.js && node b.js"}}', ["npm", "start"]),
        ('{"main": "lib/x.js"}', ["node", "lib/x.js"]),
        ('{"scripts": {"start": null}, "main": "x.js"}', ["node", "x.js"]),
        ("{}", ["node", "index.js"]),
    ],
)
def test_a_node_program_is_what_its_package_starts(package: str, command: list[str], tmp_path: Path, home: str) -> None:
    write(tmp_path, "index.js", "package.json")
    (tmp_path / "package.json").write_text(package)
    done = run("init", home=home, cwd=str(tmp_path))
    assert done.err.splitlines()[-1] == "Wrote app.toml.   Next: pyworker start"
    found = tomllib.loads((tmp_path / "app.toml").read_text())["app"]
    assert (found["command"], found["workers"]) == (command, 1)
    assert run("check", home=home, cwd=str(tmp_path)).code == 0


@pytest.mark.parametrize("package", ["", "[]", '{"scripts": 3}', '{"scripts": {"start": "\'"}}', "\x00", '{"main": 5}'])
def test_a_package_that_says_nothing_is_no_program(package: str, tmp_path: Path, home: str) -> None:
    write(tmp_path, "package.json")
    (tmp_path / "package.json").write_text(package)
    assert "No app was recognised" in run("init", home=home, cwd=str(tmp_path)).err


def test_a_line_break_in_the_name_of_a_source_ends_no_comment(tmp_path: Path, home: str) -> None:
    write(tmp_path, "a\nb/main.py", "a\nb/models.py")
    assert run("init", home=home, cwd=str(tmp_path)).code == 0
    assert tomllib.loads((tmp_path / "app.toml").read_text())["app"]["cwd"] == "a\nb"


def test_a_name_that_no_config_file_can_have_costs_the_file_that_is_there_nothing(tmp_path: Path, home: str) -> None:
    write(tmp_path, "b\udcff/main.py", "b\udcff/models.py")
    (tmp_path / "app.toml").write_text("# mine\n")
    done = run("init", "--force", home=home, cwd=str(tmp_path))
    assert done.code == 2
    assert "cannot be written: it is not UTF-8\n  = help: rename the file or folder" in done.err
    assert (tmp_path / "app.toml").read_text() == "# mine\n"
