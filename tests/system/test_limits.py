"""What a worker is given by the system: the limits of the shell that started pyworker, not those of the daemon."""

from __future__ import annotations

import resource

import pytest

from tests.support.pyworker import Pyworker

SHOWS_LIMIT = """
import resource

def app(environ, start_response):
    body = str(resource.getrlimit(resource.RLIMIT_NOFILE)).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_workers_have_the_file_limit_of_the_shell(pw: Pyworker) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mine = min(soft, 777)
    pw.api(SHOWS_LIMIT, workers=1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (mine, hard))
    try:
        pw.ok("start", "app.toml")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pw.get() == str((mine, hard))


def test_limits_nofile_sets_both(pw: Pyworker) -> None:
    pw.api(SHOWS_LIMIT, workers=1, tables="[app.limits]\nnofile = 345")
    pw.ok("start", "app.toml")
    assert pw.get() == "(345, 345)"


@pytest.mark.parametrize("opened", [46, 48, 52, 54])  # one more, and with a newer libffi its import has none
def test_app_whose_import_leaves_its_worker_no_descriptors_is_told_so(pw: Pyworker, opened: int) -> None:
    source = f"held = [open('/dev/null') for _ in range({opened})]\n" + SHOWS_LIMIT
    pw.api(source, workers=1, tables="[app.limits]\nnofile = 64")
    assert "did not start: too many open files" in pw.run("start", "app.toml").stderr
