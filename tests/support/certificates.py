"""Certificates that are signed by themselves, made by openssl; a test is skipped where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

_CA = """\
[ca]
default_ca = only
[only]
new_certs_dir = {folder}
database = {folder}/index
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def make_certificate(folder: str, name: str, *, valid: tuple[float, float] | None = None) -> None:
    """Write cert.pem and key.pem. `valid`: from when to when, in seconds since the epoch; None: for two days from now on."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout", key]
    if valid is None:
        _openssl(*new, "-x509", "-days", "2", "-addext", "subjectAltName=DNS:localhost", "-out", cert)
        return
    made = os.path.join(folder, "ca")
    os.mkdir(made, 0o700)
    with open(os.path.join(made, "index"), "w"), open(os.path.join(made, "conf"), "w") as conf:
        conf.write(_CA.format(folder=made))
    request = os.path.join(made, "request")
    since, until = (time.strftime("%Y%m%d%H%M%SZ", time.gmtime(each)) for each in valid)
    _openssl(*new, "-out", request)
    _openssl(
        "ca", "-batch", "-selfsign", "-config", conf.name, "-keyfile", key, "-in", request, "-out", cert, "-notext",
        "-startdate", since, "-enddate", until,
    )  # fmt: skip
    shutil.rmtree(made)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
