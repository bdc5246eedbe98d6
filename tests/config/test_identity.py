"""Who an app runs as, and whose config file root obeys."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyworker.config import identity
from pyworker.config.environment import add_file
from pyworker.config.identity import IdentityError, check_env_file, check_group, check_log, check_owner, identify
from pyworker.config.load import load
from pyworker.config.problem import ConfigError
from pyworker.config.resolve import resolve
from pyworker.config.schema import AppConfig, TlsConfig
from pyworker.daemon.desired import FileSource
from pyworker.daemon.sources import make_generation, read_config, read_tls
from tests.support.words import TOO_MANY_OPEN_FILES

ME = pwd.getpwuid(os.geteuid())
NOBODY = pwd.getpwnam("nobody")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")


def test_root_gets_the_users_ids_and_groups() -> None:
    who = identify("nobody", None, is_root=True)
    assert (who.uid, who.gid, who.home) == (NOBODY.pw_uid, NOBODY.pw_gid, NOBODY.pw_dir)
    assert who.groups == tuple(sorted(set(os.getgrouplist("nobody", NOBODY.pw_gid))))
    assert identify(str(NOBODY.pw_uid), None, is_root=True) == who
    root = identify("root", None, is_root=True)
    assert (root.uid, root.gid) == (0, 0)


def test_the_groups_that_a_user_is_a_member_of_are_given_to_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda user, primary: [primary, 7, 5, 7])
    assert identify("nobody", "6", is_root=True).groups == (5, 6, 7)


def test_group_replaces_the_users_own() -> None:
    who = identify("nobody", "0", is_root=True)
    assert who.gid == 0
    assert 0 in who.groups
    alone = identify(None, "12345", is_root=True)
    assert (alone.uid, alone.gid, alone.groups) == (None, 12345, (12345,))


def test_number_without_a_name_needs_a_group() -> None:
    with pytest.raises(IdentityError, match="group is unknown"):
        identify("4111222", None, is_root=True)
    who = identify("4111222", "4111223", is_root=True)
    assert (who.uid, who.gid, who.groups) == (4111222, 4111223, (4111223,))
    assert identify("4294967294", "4294967294", is_root=True).uid == 4294967294


@pytest.mark.parametrize(
    ("user", "group", "key"),
    [
        ("no-such-user", None, "user"),
        (None, "no-such-group", "group"),
        ("99999999999", None, "user"),
        (None, "99999999999", "group"),
        ("4294967295", "1", "user"),  # -1, for which the kernel changes nothing: root
        (None, "4294967295", "group"),
    ],
)
def test_unknown_names_are_refused(user: str | None, group: str | None, key: str) -> None:
    with pytest.raises(IdentityError) as caught:
        identify(user, group, is_root=True)
    assert caught.value.key == key
    assert caught.value.message.startswith(f"names {user or group}, which is no {key} ")  # after "`user` of app `api`"


@pytest.mark.parametrize("what", ["user", "group", "env_file", "tls"])
def test_a_want_of_descriptors_is_no_mistake_of_the_config(tmp_path: Path, what: str) -> None:
    file = tmp_path / "file"
    file.write_text("A=1\n")
    tls = AppConfig("api", target="a:b", tls=TlsConfig(str(file), str(file)))
    look: dict[str, Callable[[], object]] = {
        "user": lambda: identify("no-such-user", None, is_root=True),
        "group": lambda: identify(None, "no-such-group", is_root=True),
        "env_file": lambda: add_file({}, str(file), (), {}),
        "tls": lambda: read_tls(tls),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match=TOO_MANY_OPEN_FILES):
            look[what]()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("what", ["config", "its owner", "env_file", "tls"])
def test_a_want_of_memory_is_no_mistake_of_the_config(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "app.toml"
    file.write_text("A=1\n")
    tls = AppConfig("api", target="a:b", tls=TlsConfig(str(file), str(file)))
    look: dict[str, Callable[[], object]] = {
        "config": lambda: load(str(file)),
        "its owner": lambda: resolve(
            AppConfig("api", target="a:b", cwd=str(tmp_path)),
            file=str(file), shell_env={}, base_env={}, our_python=sys.executable, is_root=True,
        ),
        "env_file": lambda: add_file({}, str(file), (), {}),
        "tls": lambda: read_tls(tls),
    }

    def want(*_: object, **__: object) -> object:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "open", want)
    monkeypatch.setattr(identity, "check_owner", want)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        look[what]()


def test_others_may_name_themselves_only() -> None:
    who = identify(ME.pw_name, str(os.getegid()), is_root=False)
    assert (who.uid, who.gid, who.groups, who.name) == (None, None, (), ME.pw_name)
    with pytest.raises(IdentityError, match="only root"):
        identify(str(os.geteuid() + 1), None, is_root=False)
    with pytest.raises(IdentityError, match="only root"):
        identify(None, str(os.getegid() + 1), is_root=False)


@needs_root
def test_root_obeys_files_of_root_and_of_the_apps_user_only(tmp_path: Path) -> None:
    folder = tmp_path / "srv"
    folder.mkdir(mode=0o755)
    file = folder / "app.toml"
    file.touch(mode=0o644)
    check_owner(str(file), None)
    os.chown(file, NOBODY.pw_uid, 0)
    check_owner(str(file), NOBODY.pw_uid)
    for uid, step in ((None, ', or run the app as its owner: user = "nobody"'), (1, "")):
        with pytest.raises(IdentityError, match="belongs to nobody") as caught:
            check_owner(str(file), uid)
        assert caught.value.hint == f"chown root {file}{step}"
    os.chown(file, 0, 0)
    os.chmod(file, 0o664)
    with pytest.raises(IdentityError, match="written by its group"):
        check_owner(str(file), None)
    os.chmod(file, 0o644)
    os.chmod(folder, 0o757)
    with pytest.raises(IdentityError, match="its folder can be written by everyone"):
        check_owner(str(file), None)
    os.chmod(folder, 0o1777)
    check_owner(str(file), None)
    os.chmod(file, 0o1666)  # of a file it means nothing
    with pytest.raises(IdentityError, match="it can be written by everyone"):
        check_owner(str(file), None)


@needs_root
def test_link_does_not_hide_whose_file_it_is(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    real = tmp_path / "theirs" / "real.toml"
    real.parent.mkdir()
    real.touch()
    (tmp_path / "app.toml").symlink_to(real)
    check_owner(str(tmp_path / "app.toml"), None)
    for path in (real.parent, real):
        os.chown(path, NOBODY.pw_uid, 0)
        with pytest.raises(IdentityError, match=r"\b(it|its folder) belongs to nobody"):
            check_owner(str(tmp_path / "app.toml"), None)


@needs_root
def test_it_is_the_config_file_that_was_read_whose_owner_counts(tmp_path: Path) -> None:
    """Its owner may have put another one there since; a timetable or a changed file has it read without anybody's doing."""
    os.chmod(tmp_path, 0o755)
    path, roots = tmp_path / "app.toml", tmp_path / "roots.toml"
    roots.write_text('[app]\ncommand = "true"\n')
    theirs = tmp_path / "theirs.toml"
    theirs.write_text('[app]\nname = "evil"\ncommand = "true"\nenv_file = "roots.env"\n')
    (tmp_path / "roots.env").write_text("SECRET=1\n")
    os.chown(theirs, NOBODY.pw_uid, 0)
    for user, why in (("", "it belongs to nobody"), ('user = "nobody"\n', "it is not nobody's own")):
        theirs.write_text(theirs.read_text() + user)
        path.symlink_to(theirs)
        config, file, read = read_config(FileSource(str(path), "evil"), {})
        path.unlink()
        path.symlink_to(roots)
        with pytest.raises(ConfigError, match=why):
            make_generation(1, config, file, read, {})
        path.unlink()


@needs_root
def test_a_config_file_of_the_apps_user_gives_no_group_that_the_user_is_no_member_of(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    config = tmp_path / "app.toml"
    config.touch()
    check_group(identify("nobody", "0", is_root=True), "0", str(config))  # root's file says so
    for user in (None, "root"):
        check_group(identify(user, "12345", is_root=True), "12345", str(config))
    os.chown(config, NOBODY.pw_uid, 0)
    own = str(NOBODY.pw_gid)
    check_group(identify("nobody", own, is_root=True), own, str(config))
    with pytest.raises(IdentityError, match="for a config file that belongs to nobody"):
        check_group(identify("nobody", "0", is_root=True), "0", str(config))
    config.write_text('[app]\ncommand = "true"\nuser = "nobody"\ngroup = "0"\n')
    app, file, read = read_config(FileSource(str(config), load(str(config)).apps[0].name), {})
    with pytest.raises(ConfigError, match="`group` of app"):
        make_generation(1, app, file, read, {})


@needs_root
def test_root_reads_no_env_file_of_strangers_and_none_that_the_files_owner_may_not_see(tmp_path: Path) -> None:
    folder = tmp_path / "srv"
    folder.mkdir(mode=0o755)
    config, env = folder / "app.toml", folder / ".env"
    config.touch(mode=0o644)
    env.touch(mode=0o600)

    def check(uid: int | None, config_file: str) -> None:
        with env.open() as file:
            check_env_file(file.fileno(), str(env), uid, config_file)

    check(NOBODY.pw_uid, str(config))  # root's file says that root's secrets go to nobody
    os.chown(folder, NOBODY.pw_uid, 0)  # who can put another config file there
    with pytest.raises(IdentityError, match="whose folder belongs to nobody: it is not nobody's own"):
        check(NOBODY.pw_uid, str(config))
    os.chown(folder, 0, 0)
    os.chown(config, NOBODY.pw_uid, 0)
    with pytest.raises(IdentityError, match="it is not nobody's own"):
        check(NOBODY.pw_uid, str(config))
    os.chown(env, NOBODY.pw_uid, 0)
    check(NOBODY.pw_uid, str(config))
    with pytest.raises(IdentityError, match="belongs to nobody"):
        check(None, str(config))  # an app of root's
    os.chown(env, 0, 0)
    os.chmod(env, 0o666)
    with pytest.raises(IdentityError, match="written by everyone"):
        check(None, "")


@needs_root
def test_it_is_the_open_file_that_root_looks_at_and_not_its_path(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    config, own, others = tmp_path / "app.toml", tmp_path / ".env", tmp_path / "others"
    for path in (config, own):
        path.touch()
        os.chown(path, NOBODY.pw_uid, 0)
    others.write_text("SECRET=1")
    own.unlink()
    own.symlink_to(others)
    with own.open() as file:  # opened while the link was there ...
        own.unlink()
        own.touch()
        os.chown(own, NOBODY.pw_uid, 0)  # ... and looked at when all is well again
        with pytest.raises(IdentityError, match="it is not nobody's own"):
            check_env_file(file.fileno(), str(own), NOBODY.pw_uid, str(config))


@needs_root
def test_root_reads_no_key_of_others_for_a_config_file_of_the_apps_user(tmp_path: Path) -> None:
    folder = tmp_path / "srv"
    folder.mkdir(mode=0o755)
    config, key = folder / "app.toml", tmp_path / "key.pem"
    config.touch()
    pem = b"-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n"
    key.write_bytes(pem)
    app = AppConfig("api", cwd=str(folder), tls=TlsConfig(cert=str(key), key=str(key)))
    assert read_tls(app, NOBODY.pw_uid, str(config))[:2] == (pem, pem)
    os.chown(key, 1, 0)
    assert read_tls(app, 0, str(config))[:2] == (pem, pem)
    os.chown(config, NOBODY.pw_uid, 0)
    with pytest.raises(ConfigError, match="for a config file that belongs to nobody"):
        read_tls(app, NOBODY.pw_uid, str(config))


@needs_root
def test_root_writes_no_log_where_others_could_put_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "srv" / "logs"
    folder.mkdir(parents=True, mode=0o755)
    config = tmp_path / "app.toml"
    config.touch()
    for uid in (None, 0, NOBODY.pw_uid):
        check_log(str(folder / "api.log"), uid, str(config))
    os.chown(config, NOBODY.pw_uid, 0)
    with pytest.raises(IdentityError, match="for a config file that belongs to nobody"):
        check_log("/etc/passwd", NOBODY.pw_uid, str(config))
    os.chown(config, 0, 0)
    os.chown(folder.parent, NOBODY.pw_uid, 0)
    with pytest.raises(IdentityError, match="srv belongs to nobody") as caught:
        check_log(str(folder / "api.log"), NOBODY.pw_uid, str(config))
    assert caught.value.hint == f"chown root {folder.parent}"
    os.chown(folder.parent, 0, 0)
    os.chmod(folder, 0o777)
    with pytest.raises(IdentityError, match="logs can be written by everyone"):
        check_log(str(folder / "api.log"), None, "")
    os.chmod(folder, 0o1777)
    (folder / "link").symlink_to("/etc")
    check_log(str(folder / "link" / "api.log"), None, "")
    os.chown(folder / "link", NOBODY.pw_uid, 0, follow_symlinks=False)
    with pytest.raises(IdentityError, match="link is a link of nobody's"):
        check_log(str(folder / "link" / "api.log"), None, "")
    os.chown(folder / "link", 0, 0, follow_symlinks=False)
    os.chmod(folder, 0o755)
    os.chown(folder, NOBODY.pw_uid, 0)  # who can put another link there
    with pytest.raises(IdentityError, match="logs belongs to nobody"):
        check_log(str(folder / "link" / "api.log"), NOBODY.pw_uid, str(config))
    os.chown(folder, 0, 0)
    home = tmp_path / "home"
    (home / "logs").mkdir(parents=True)
    os.chown(home, NOBODY.pw_uid, 0)  # ... another folder
    (folder / "away").symlink_to(home / "logs")
    with pytest.raises(IdentityError, match="home belongs to nobody"):
        check_log(str(folder / "away" / "api.log"), NOBODY.pw_uid, str(config))
