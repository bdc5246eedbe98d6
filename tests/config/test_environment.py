"""The environment of workers: what is in it, in which order, and what of it is secret."""

from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path

import pytest

from pyworker.config import environment
from pyworker.config.environment import EnvironmentProblem


def test_base_holds_only_what_every_program_needs() -> None:
    found = environment.base(
        {"PATH": "/bin", "LANG": "C", "LC_ALL": "C", "TMPDIR": "/t", "EDITOR": "vi", "HOME": "/h"},
        name="me",
        home="/home/me",
        shell="/bin/sh",
        changed_user=False,
    )
    assert found == {
        "PATH": "/bin",
        "LANG": "C",
        "LC_ALL": "C",
        "TMPDIR": "/t",
        "HOME": "/h",
        "USER": "me",
        "LOGNAME": "me",
        "SHELL": "/bin/sh",
    }


def test_another_users_base_is_that_users() -> None:
    base_env = {"HOME": "/root", "USER": "root", "TMPDIR": "/root/tmp"}
    found = environment.base(base_env, name="www", home="/var/www", shell="", changed_user=True)
    assert (found["HOME"], found["USER"], found["LOGNAME"], found.get("TMPDIR")) == ("/var/www", "www", "www", None)
    assert found["PATH"] == environment.DEFAULT_PATH


def test_what_is_of_a_terminal_is_inherited_by_its_name_only() -> None:
    shell = {"TERM": "xterm", "TMUX": "/tmp/tmux-0/default,1,0", "TERMS": "30 days"}
    env: dict[str, str] = {}
    environment.inherit(env, shell, ("*",))
    assert env == {"TERMS": "30 days"}
    environment.inherit(env, shell, ("TERM",))
    assert env["TERM"] == "xterm"


def test_only_named_variables_are_inherited() -> None:
    shell = {
        "AWS_KEY": "1",
        "AWS_REGION": "2",
        "OTHER": "3",
        "PYWORKER_APP": "x",
        "LISTEN_FDS": "1",
        "LISTEN_PORT": "80",
        "PWD": "/",
        "PATH": "/x",
    }
    env: dict[str, str] = {}
    environment.inherit(env, shell, ("AWS_*",))
    assert env == {"AWS_KEY": "1", "AWS_REGION": "2"}
    environment.inherit(env, shell, ("*",))
    assert env == {"AWS_KEY": "1", "AWS_REGION": "2", "OTHER": "3", "LISTEN_PORT": "80", "PATH": "/x"}


def test_variables_of_the_shell_that_are_no_text_are_left_out() -> None:
    env = environment.base({"TZ": "\udcff", "LANG": "C"}, name="", home="", shell="", changed_user=False)
    environment.inherit(env, {"A": "\udcff", "B": "é", "C": "a\0b", "D=": "x", "": "x"}, ("*",))
    assert env == {"LANG": "C", "B": "é", "PATH": environment.DEFAULT_PATH}


@pytest.mark.parametrize(("mark", "name"), [("pyvenv.cfg", "VIRTUAL_ENV"), ("conda-meta", "CONDA_PREFIX")])
def test_bin_of_the_environment_is_first_on_path(tmp_path: Path, mark: str, name: str) -> None:
    (tmp_path / "bin").mkdir()
    python = str(tmp_path / "bin" / "python")
    env = {"PATH": f"/bin:{tmp_path}/bin"}
    environment.use_venv(env, python)
    assert env == {"PATH": f"/bin:{tmp_path}/bin"}
    (tmp_path / mark).touch()
    environment.use_venv(env, python)
    assert env == {"PATH": f"{tmp_path}/bin:/bin", name: str(tmp_path)}


def test_dotenv_file_is_read_with_its_variables(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("# c\nA=1\nexport B='two words'\nC=\"${A}-${SHELL_ONLY}-${NO:-d}\"\nD=pa$$w#rd\nBARE\n")
    env = {"A": "0"}
    environment.add_file(env, str(file), ("env_file", 0), {"SHELL_ONLY": "s"})
    assert env == {"A": "1", "B": "two words", "C": "1-s-d", "D": "pa$$w#rd"}


def test_the_mark_that_some_editors_begin_a_dotenv_file_with_is_no_part_of_its_first_name(tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(b"\xef\xbb\xbfA=1\n")
    env: dict[str, str] = {}
    crc = environment.add_file(env, str(tmp_path / "e"), ("env_file", 0), {})
    assert (env, crc) == ({"A": "1"}, zlib.crc32(b"\xef\xbb\xbfA=1\n"))


def test_dotenv_file_that_is_missing_is_an_error_unless_optional(tmp_path: Path) -> None:
    env: dict[str, str] = {}
    with pytest.raises(EnvironmentProblem) as caught:
        environment.add_file(env, str(tmp_path / ".env"), ("env_file", 1), {})
    assert caught.value.key == ("env_file", 1)
    assert '".env?"' in caught.value.hint
    optional = str(tmp_path / ".env?")
    assert environment.add_file(env, optional, ("env_file", 1), {}) == 0
    assert env == {}
    (tmp_path / ".env").write_text("A=1")
    assert environment.add_file(env, optional, ("env_file", 1), {}) == zlib.crc32(b"A=1")
    assert env == {"A": "1"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"A=1\n\nB 'x\nC=2\n", "line 3 is not NAME=value"),
        (b"A=\xff\n", "not UTF-8"),
        (b"A=1\0\n", "line 1 is not"),
        (b"#" * (2 << 20), "larger than"),
    ],
)
def test_broken_dotenv_file_says_what_is_wrong(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "e").write_bytes(data)
    with pytest.raises(EnvironmentProblem, match=message):
        environment.add_file({}, str(tmp_path / "e"), ("env_file", 0), {})


def test_folder_as_dotenv_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        environment.add_file({}, str(tmp_path), ("env_file", 0), {})


def test_nobody_waits_for_a_fifo_as_dotenv_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(EnvironmentProblem, match="not a regular file"):
        environment.add_file({}, str(tmp_path / "fifo"), ("env_file", 0), {})


def test_table_sees_what_is_built_so_far_then_the_shell() -> None:
    env = {"A": "file"}
    table = {"B": "${A} ${S}", "A": "table", "C": "${A}", "D": "${NO}", "E": "${NO:?say so}", "F": "x"}
    found = environment.add_table(env, table, {"A": "shell", "S": "s"})
    assert env == {"A": "table", "B": "file s", "C": "table", "F": "x"}
    assert [p.key for p in found] == [("env", "D"), ("env", "E")]


def test_all_variables_together_are_no_more_than_any_kernel_takes(tmp_path: Path) -> None:
    many = {"A": "x" * 100_000, **{f"B{n}": "${A}" for n in range(100)}}
    env: dict[str, str] = {}
    assert environment.add_table(env, many, {})[0].message.startswith("is too much: with those before it")
    assert sum(map(len, env.values())) <= environment.MAX_ALL
    (tmp_path / "e").write_text("".join(f"{name}={value}\n" for name, value in many.items()))
    with pytest.raises(EnvironmentProblem, match="whose B61 is too much"):
        environment.add_file({}, str(tmp_path / "e"), ("env_file", 0), {})


def test_secrets_are_known_by_name_and_by_passwords_in_urls() -> None:
    env = {
        "STRIPE_KEY": "", "api_token": "", "MY_SECRET_X": "", "PGPASSWORD": "", "SENTRY_DSN": "", "AWS_CREDENTIALS": "",
        "MYSQL_PWD": "", "REDISCLI_AUTH": "", "DATABASE": "postgres://u:p@h/db", "SITE": "https://example.org:80/a@b",
        "LANG": "C", "GIT_AUTHOR_NAME": "",
    }  # fmt: skip
    assert set(env) - set(environment.secrets(env)) == {"SITE", "LANG", "GIT_AUTHOR_NAME"}


def test_a_password_with_spaces_or_slashes_makes_a_url_secret() -> None:
    env = {"A": "postgres://shop:correct horse@db/shop", "B": "redis://:a/b@cache", "C": "x"}
    assert set(environment.secrets(env)) == {"A", "B"}


def test_a_password_that_is_a_parameter_makes_a_value_secret() -> None:
    env = {
        "A": "host=db user=shop password=x", "B": "AccountName=shop;AccountKey=x==", "C": "https://hooks.example/?a=1&token=x",
        "D": "password=", "E": "https://example.org/?next=token", "F": "--no-password",
    }  # fmt: skip
    assert set(environment.secrets(env)) == {"A", "B", "C"}


def test_a_value_that_contains_a_secret_is_one() -> None:
    env = {"API_TOKEN": "tok-123456", "OPTIONS": "--auth tok-123456", "SHORT_KEY": "1", "PORT": "8001"}
    assert set(environment.secrets(env)) == {"API_TOKEN", "OPTIONS", "SHORT_KEY"}


def test_a_long_value_is_looked_through_once() -> None:
    """From each letter of it on, as it was, a million take a quarter of an hour, in the daemon."""
    assert environment.secrets({"A": "x" * 1_000_000, "B": "x" * 1_000_000 + "://u:secret@host"}) == ("B",)


def test_a_variable_that_no_program_can_be_run_with_is_named() -> None:
    fits = "x" * (environment.MAX_STRING - len("BIG=") - 1)
    subprocess.run(["true"], env={"BIG": fits}, executable="/bin/true", check=True)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(["true"], env={"BIG": fits + "x"}, executable="/bin/true", check=True)
    assert environment.too_long({"BIG": fits, "A": "1"}) == []
    (found,) = environment.too_long({"BIG": fits + "x", "A": "1"})
    assert (found.key, found.message) == (
        ("env", "BIG"), f"is {environment.MAX_STRING} bytes with its name; the kernel takes {environment.MAX_STRING - 1}"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://:s3cret@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://app:s3@cr:et@h", "redis://app:***@h"),
        ("redis://h/0?password=s3cret&db=1", "redis://h/0?password=***&db=1"),
        ("unix:///run/redis.sock?db=1&password=s3cret", "unix:///run/redis.sock?db=1&password=***"),
        ("redis://:${PW}@h", "redis://:${PW}@h"),
        ("redis://h/0?password=${PW}", "redis://h/0?password=${PW}"),
        ("redis://h:6379/0", "redis://h:6379/0"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert environment.without_passwords(address) == shown


@pytest.mark.parametrize("text", ["://a:" * 100_000, "://:" * 100_000 + " @"])
def test_a_value_that_is_nearly_an_address_is_looked_through_once(text: str) -> None:
    """One of 128 kB had the daemon stand still for a quarter of a minute, each time that somebody looked at its app."""
    assert environment.without_passwords(text) == text


@pytest.mark.parametrize("text", ["A=" + "x" + " " * 100_000 + "y\n", "A=b\n" * 10_001, "A=b\r" * 10_001])
def test_a_file_that_would_take_its_parser_minutes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "e").write_text(text)
    with pytest.raises(EnvironmentProblem, match="more than 10000 lines, or a thousand blanks"):
        environment.add_file({}, str(tmp_path / "e"), ("env_file", 0), {})


def test_where_there_are_more_secrets_than_can_be_looked_for_nothing_is_shown() -> None:
    env = {f"KEY{n}": f"secret{n}" for n in range(environment.MOST_TELLING)} | {"A": "plain"}
    assert "A" not in environment.secrets(env)
    env["KEY"] = "another"
    assert set(environment.secrets(env)) == set(env)
