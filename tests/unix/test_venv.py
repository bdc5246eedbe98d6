"""Which command installs a package, in environments as venv, uv, PDM and their projects make them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from pyworker.unix.venv import install_command

BY_UV = "home = /usr/bin\nimplementation = CPython\nuv = 0.13.9\nversion_info = 3.12.1\n"
BY_VENV = "home = /usr/bin\nversion = 3.12.1\ncommand = /usr/bin/python3 -m venv /srv/shop/.venv\n"


def made(environment: Path, config: str) -> str:
    """Make a virtual environment; return its interpreter."""
    (environment / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text(config)
    return str(environment / "bin" / "python")


def test_an_environment_with_a_pip_is_filled_by_it(tmp_path: Path) -> None:
    python = made(tmp_path / ".venv", BY_VENV)
    (tmp_path / ".venv" / "lib" / "python3.12" / "site-packages" / "pip").mkdir()
    assert install_command(python, "flask") == f"{python} -m pip install flask"
    assert install_command("/usr/bin/python3", "flask", upgrade=True) == "/usr/bin/python3 -m pip install -U flask"
    by_uv = made(tmp_path / "seeded", BY_UV)
    (tmp_path / "seeded" / "lib" / "python3.12" / "site-packages" / "pip").mkdir()
    assert install_command(by_uv, "flask") == f"{by_uv} -m pip install flask"


def test_one_of_pipx_has_the_pip_that_all_of_pipx_share(tmp_path: Path) -> None:
    python = made(tmp_path / "pyworker", BY_VENV)
    (tmp_path / "pyworker" / "lib" / "python3.12" / "site-packages" / "pipx_shared.pth").touch()
    assert install_command(python, "flask") == f"{python} -m pip install flask"


@pytest.mark.parametrize(("upgrade", "option"), [(False, ""), (True, "-U ")])
def test_one_of_uv_has_no_pip_and_uv_fills_it(tmp_path: Path, upgrade: bool, option: str) -> None:
    python = made(tmp_path / "env", BY_UV)
    expected = f"uv pip install --python {tmp_path / 'env'} {option}flask"
    assert install_command(python, "flask", upgrade=upgrade) == expected


def test_in_a_project_of_uv_it_is_added_to_the_project(tmp_path: Path) -> None:
    python = made(tmp_path / ".venv", BY_UV)
    (tmp_path / "uv.lock").touch()
    assert install_command(python, "flask", "redis>=5") == f"uv add --project {tmp_path} flask 'redis>=5'"
    assert install_command(python, "flask", upgrade=True) == f"uv sync --project {tmp_path} --upgrade-package flask"
    another = made(tmp_path / "another", BY_UV)
    assert install_command(another, "flask") == f"uv pip install --python {tmp_path / 'another'} flask", "the project's is .venv"


def test_one_without_a_pip_is_filled_by_anothers_or_by_pdm_where_that_has_made_it(tmp_path: Path) -> None:
    python = made(tmp_path / ".venv", BY_VENV)
    assert install_command(python, "flask") == f"pip --python {tmp_path / '.venv'} install flask"
    assert install_command(python, "flask", upgrade=True) == f"pip --python {tmp_path / '.venv'} install -U flask"
    (tmp_path / "pdm.lock").touch()
    assert install_command(python, "flask") == f"pdm add -p {tmp_path} flask"
    assert install_command(python, "flask", upgrade=True) == f"pdm update -p {tmp_path} flask"
    another = made(tmp_path / "another", BY_VENV)
    assert install_command(another, "flask") == f"pip --python {tmp_path / 'another'} install flask", "the project's is .venv"


def test_a_path_with_a_space_is_one_word(tmp_path: Path) -> None:
    python = made(tmp_path / "my app" / ".venv", BY_UV)
    assert shlex.split(install_command(python, "flask"))[4] == str(tmp_path / "my app" / ".venv")
    assert shlex.split(install_command("/srv/my app/bin/python", "flask"))[0] == "/srv/my app/bin/python"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pyvenv.cfg")
    assert install_command(f"{tmp_path}/bin/python", "shop") == f"{tmp_path}/bin/python -m pip install shop"
