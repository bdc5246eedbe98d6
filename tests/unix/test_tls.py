"""The time of a certificate, which the standard library tells of a peer's only."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from pyworker.unix.tls import validity
from tests.support.certificates import make_certificate

SINCE, UNTIL = 1_577_836_800.0, 1_580_515_200.0  # January 2020


@pytest.mark.parametrize("valid", [(SINCE, UNTIL), (UNTIL, 4_000_000_000.0), (4_000_000_000.0, 4_100_000_000.0)])
def test_the_time_of_a_certificate_is_told_whether_or_not_it_has_come(tmp_path: Path, valid: tuple[float, float]) -> None:
    make_certificate(str(tmp_path), "one", valid=valid)
    assert validity(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")) == valid


def test_it_is_the_first_certificate_of_a_chain_that_counts_also_behind_its_key(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_certificate(str(other), "other")
    make_certificate(str(tmp_path), "one", valid=(SINCE, UNTIL))
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + cert.read_text() + (other / "cert.pem").read_text())
    assert validity(str(both), str(both)) == (SINCE, UNTIL)


def test_it_is_told_also_behind_an_import_that_has_replaced_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificate(str(tmp_path), "one", valid=(SINCE, UNTIL))

    def refuse(*_: object, **more: object) -> NoReturn:
        raise RuntimeError("name the encoding")

    monkeypatch.setattr("builtins.open", refuse)
    assert validity(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")) == (SINCE, UNTIL)


def test_of_a_certificate_that_no_client_would_take_nothing_is_told(tmp_path: Path) -> None:
    make_certificate(str(tmp_path), "one")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    usage = tmp_path / "usage"
    usage.write_text("extendedKeyUsage=clientAuth\n")
    for command in (["req", "-new", "-subj", "/CN=two", "-key", str(key), "-out", str(tmp_path / "request")],
                    ["x509", "-req", "-in", str(tmp_path / "request"), "-signkey", str(key), "-extfile", str(usage), "-out", str(cert)]):  # fmt: skip
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    assert validity(str(cert), str(key)) is None


def test_of_files_that_cannot_be_used_nothing_is_told(tmp_path: Path) -> None:
    make_certificate(str(tmp_path), "one")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    assert validity(str(key), str(key)) is None
    assert validity(str(tmp_path / "missing"), str(key)) is None
    whole = cert.read_text()
    for broken in (whole[:200], whole.replace("-----END", "é-----END", 1)):
        cert.write_text(broken)
        assert validity(str(cert), str(key)) is None
