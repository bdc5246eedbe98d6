"""HTTPS: certificate and key are read again at each reload; a mistake in them is refused before anything is touched."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time

from tests.support.pyworker import Pyworker, kill
from tests.support.sources import WSGI

TLS = '[app.tls]\ncert = "cert.pem"\nkey = "key.pem"'


def served(pw: Pyworker) -> str:
    return ssl.get_server_certificate(("127.0.0.1", pw.port), timeout=30)


def mine(pw: Pyworker) -> str:
    with open(os.path.join(pw.folder, "cert.pem")) as file:
        return file.read()


def test_a_reload_serves_the_new_certificate(pw: Pyworker) -> None:
    pw.make_certificate("one")
    pw.api(WSGI, tables=TLS)
    pw.ok("start", "app.toml")
    assert served(pw).strip() == mine(pw).strip()
    assert pw.app()["listen"] == [f"https://127.0.0.1:{pw.port}"]
    old = mine(pw)
    pw.make_certificate("two")
    assert served(pw).strip() == old.strip()
    pw.ok("reload", "api")
    assert served(pw).strip() == mine(pw).strip()


def test_a_certificate_that_was_renewed_is_said_until_a_reload_serves_it(pw: Pyworker) -> None:
    pw.make_certificate("one")
    pw.api(WSGI, tables=TLS)
    pw.ok("start", "app.toml")
    assert pw.ok("diff").stdout.startswith("No difference")
    pw.make_certificate("two")
    assert pw.app()["config"]["changed_files"] == [cert := os.path.join(pw.folder, "cert.pem")]
    changed = pw.run("diff")
    assert (changed.returncode, f"{cert}: its content has changed" in " ".join(changed.stdout.split())) == (1, True)
    document = json.loads(pw.run("diff", "--json").stdout)
    assert [(c["key"], c["old"] == c["new"], c["apply"]) for c in document["changes"]] == [
        ("tls.cert", True, "reload"), ("tls.key", True, "reload"),
    ]  # fmt: skip
    pw.ok("reload", "api")
    assert pw.ok("diff").stdout.startswith("No difference")
    assert pw.app()["config"]["changed_files"] == []


def test_a_broken_certificate_is_refused_and_the_old_goes_on(pw: Pyworker) -> None:
    pw.make_certificate("one")
    pw.api(WSGI, tables=TLS)
    pw.ok("start", "app.toml")
    before, old = pw.pids(), mine(pw)
    pw.write("cert.pem", "this is no certificate\n")
    refused = pw.run("reload", "api")
    assert refused.returncode in (1, 78), refused.stderr
    assert "cert" in refused.stderr
    os.unlink(os.path.join(pw.folder, "cert.pem"))
    missing = pw.run("reload", "api")
    assert missing.returncode == 78, missing.stderr
    assert "cert.pem" in missing.stderr
    assert pw.pids() == before
    assert served(pw).strip() == old.strip()


def test_a_restart_refuses_a_bad_certificate_in_the_words_of_a_reload_before_it_stops_anything(pw: Pyworker) -> None:
    pw.make_certificate("one")
    pw.api(WSGI, tables=TLS)
    pw.ok("start", "app.toml")
    before, old = pw.pids(), mine(pw)
    pw.make_certificate("two")
    pw.write("cert.pem", old)  # not the one of the key
    words = "cannot use the TLS certificate: `tls.key` is not the key of the (first) certificate in `tls.cert`"
    assert words in pw.run("reload", "api").stderr
    refused = pw.run("restart", "api")
    assert (refused.returncode, words in refused.stderr) == (78, True), refused.stderr
    assert pw.pids() == before
    assert served(pw).strip() == old.strip()
    pw.make_certificate("two")
    pw.ok("restart", "api")
    assert served(pw).strip() == mine(pw).strip()


def test_an_empty_file_is_refused_and_never_means_http_in_clear_or_unknown_clients(pw: Pyworker) -> None:
    pw.make_certificate("one")
    pw.api(WSGI, tables=f'{TLS}\nca = "cert.pem"')
    pw.ok("start", "app.toml")
    before = pw.pids()
    for name, content, words in (
        ("cert.pem", "", "cert.pem is empty"),
        ("key.pem", "\n", "key.pem is empty"),
        ("key.pem", "-----BEGIN CERTIFICATE-----", "has no BEGIN … PRIVATE KEY----- in it"),
    ):
        pw.make_certificate("two")
        pw.write(name, content)
        refused = pw.run("reload", "api")
        assert (refused.returncode, words in refused.stderr) == (78, True), refused.stderr
        assert f'{name[:-4]} = "{name}"\n' in refused.stderr, refused.stderr  # where it stands, and a caret below
        assert "^^^" in refused.stderr
    assert pw.pids() == before


def test_workers_of_a_template_that_a_later_daemon_makes_serve_the_same_certificate(pw: Pyworker) -> None:
    pw.make_certificate("one")
    pw.api(WSGI, tables=TLS)
    pw.ok("start", "app.toml")
    old, template, workers = mine(pw), pw.role("template"), pw.pids()
    pw.make_certificate("two")
    for pid in (pw.role("daemon"), template, *workers):
        kill(pid)
    pw.wait_steady()
    assert not {*workers, template} & {*pw.pids(), pw.role("template")}
    assert served(pw).strip() == old.strip()


def test_a_key_with_a_pass_phrase_is_refused_in_words(pw: Pyworker) -> None:
    pw.make_certificate("one")
    key, locked = (os.path.join(pw.folder, name) for name in ("key.pem", "locked.pem"))
    subprocess.run(["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:x", "-out", locked], check=True)
    os.replace(locked, key)
    pw.api(WSGI, tables=TLS)
    refused = pw.run("start", "app.toml")
    assert refused.returncode == 1
    assert "the key is encrypted" in refused.stderr


def test_what_is_wrong_with_which_file_is_told_by_check_too(pw: Pyworker) -> None:
    pw.api(WSGI, tables=TLS)
    pw.make_certificate("one")
    one = mine(pw)
    with open(os.path.join(pw.folder, "key.pem")) as file:
        key = file.read()
    pw.make_certificate("two")
    for certificate, with_key, words in (
        (one, None, "`tls.key` is not the key of the (first) certificate in `tls.cert`"),
        (one[:200], None, "`tls.cert` is no certificate, or not whole"),
        (one, key[:100], "`tls.key` is no private key, or not whole"),
    ):
        pw.write("cert.pem", certificate)
        if with_key is not None:
            pw.write("key.pem", with_key)
        os.chmod(os.path.join(pw.folder, "key.pem"), 0o600)
        assert f"{words}; here start" in pw.ok("check").stderr  # and nothing of "[SSL] PEM lib (_ssl.c:3916)"
        refused = pw.run("start", "app.toml")
        assert (refused.returncode, words in refused.stderr) == (1, True), refused.stderr


def test_a_certificate_near_its_end_is_spoken_of_until_a_reload_has_a_new_one(pw: Pyworker) -> None:
    now, day = time.time(), 86400.0
    pw.make_certificate("old", valid=(now - 90 * day, now - 3.5 * day))
    pw.api(WSGI, tables=TLS)
    warned = pw.ok("check").stderr.splitlines()
    assert warned[0] == "warning: app.toml:8: the TLS certificate of app `api` has expired 3 days ago"
    assert warned[1:] == ["  = help: renew it and reload the app: clients refuse it outside of its time"]
    said = "its TLS certificate has expired 3 days ago; renew it and reload the app: clients refuse it outside of its time"
    assert said in pw.ok("start", "app.toml").stderr
    assert pw.app()["notes"] == [said]
    nearly = said.replace("has expired 3 days ago", "expires in 5 days")
    pw.make_certificate("nearly", valid=(now - 90 * day, now + 5.5 * day))
    pw.ok("reload", "api")
    assert pw.app()["notes"] == [nearly]
    kill(pw.role("daemon"))
    assert pw.app()["notes"] == [nearly]
    pw.make_certificate("new")
    pw.ok("reload", "api")
    assert pw.app()["notes"] == []
    assert pw.ok("check").stderr == ""
