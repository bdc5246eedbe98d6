"""pyworker runs under one version of Python, the app under another: all that is compiled is of two kinds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.support import interpreters
from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.sources import ASGI, version
from tests.support.wait import wait_until

pytestmark = pytest.mark.skipif(not interpreters.of_another_version(), reason="no Python of another version here")

SHOWN = "import sys\nprint('runs under', *sys.version_info[:2], sep='.')\n"
SCRIPT = """
import http.server, os
import pyworker
VERSION = "one"

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            os._exit(3)
        pyworker.state.incr("requests")
        body = f"{VERSION} {os.getpid()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args): pass

http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


def make_venv(pw: Pyworker) -> str:
    """Make the app's environment of the other Python, with nothing in it, and return its version, "3.11"."""
    python = interpreters.of_another_version()
    command = [python, "-m", "venv", "--without-pip", os.path.join(pw.folder, ".venv")]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    done = subprocess.run([python, "-V"], check=True, timeout=60, capture_output=True, text=True)
    return ".".join(done.stdout.split()[1].split(".")[:2])


def install(python: str, advised: str) -> None:
    """Install what an error advised. Needs a registry: without one there is nothing to test."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--retries", "0", "--no-cache-dir", *shlex.split(advised)]
    try:
        done = subprocess.run(command, timeout=90, check=False, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        pytest.skip(f"is not installed in time: {advised}")
    if done.returncode:
        pytest.skip(f"cannot be installed here: {advised}: {done.stderr.strip().splitlines()[-1]}")


def both_answer(pw: Pyworker, word: str) -> None:
    left = set(pw.pids())

    def ask() -> bool:
        answer, pid = pw.get().split()
        assert answer == word
        left.discard(int(pid))
        return not left

    wait_until(ask, LONG, f"an answer of {left}")


def one_answers(pw: Pyworker, word: str) -> None:
    """Which one is the system's affair: workers of a script have no turns."""
    answer, pid = pw.get().split()
    assert answer == word
    assert int(pid) in pw.pids()


def wait_printed(pw: Pyworker, line: str, times: int) -> None:
    wait_until(lambda: pw.ok("logs", "api").stdout.count(line) == times, LONG, f"{times} times in the log: {line}")


def crash(pw: Pyworker) -> None:
    """Have one worker end in a request, and wait until it is replaced."""
    before = pw.pids()
    with pytest.raises((AssertionError, OSError)):
        pw.get("/crash")
    wait_until(lambda: len(set(pw.pids()) & set(before)) == 1, LONG, "the end of one worker to be noticed")
    pw.wait_steady()
    wait_until(lambda: "with code 3" in pw.ok("events", "api").stdout, LONG, "its end to be told")


@pytest.mark.timeout(240)  # it installs
def test_an_app_under_another_python_is_served_replaced_and_reloaded(pw: Pyworker) -> None:
    named = make_venv(pw)
    pw.api(SHOWN + ASGI, top='python = ".venv"')
    refused = pw.run("start", "app.toml")
    advice = re.search(r"= help: pip --python (\S+) install (.+)", refused.stderr)
    assert refused.returncode != 0, refused.stdout
    assert advice is not None, refused.stderr  # our own engine is compiled for another version
    install(advice[1], advice[2])

    pw.ok("start", "app.toml")
    template = json.loads(pw.ok("describe", "api", "--json").stdout)["apps"][0]["template"]
    assert template["python"].startswith(named + ".")
    assert template["preload"], template["why"]
    wait_printed(pw, f"runs under.{named}", 1)
    both_answer(pw, "one")
    stacks = json.loads(pw.ok("stack", "api", "--json").stdout)["workers"]
    assert [bool(worker["threads"]) for worker in stacks] == [True, True], stacks

    spare = pw.spare()
    kill(pw.pids()[0])
    wait_until(lambda: spare in pw.pids(), LONG, "the spare to take its place")
    pw.wait_steady()
    crash(pw)
    pw.write("web.py", "import no_such_module")
    assert "No module named 'no_such_module'" in pw.run("reload", "api").stderr
    both_answer(pw, "one")
    pw.write("web.py", version(SHOWN + ASGI, "two"))
    pw.ok("reload", "api")
    pw.wait_steady()  # the old ones have left
    both_answer(pw, "two")


def test_a_script_under_another_python_shares_port_and_state_and_is_reloaded(pw: Pyworker) -> None:
    named = make_venv(pw)
    source = SHOWN + SCRIPT.replace("PORT", str(pw.port))
    pw.write("web.py", source)
    pw.write("app.toml", f'[app]\nname = "api"\nscript = "web.py"\npython = ".venv"\nworkers = 2\nbind = "127.0.0.1:{pw.port}"\n')
    pw.ok("start", "app.toml")
    one_answers(pw, "one")
    wait_printed(pw, f"runs under.{named}", 2)
    stacks = json.loads(pw.ok("stack", "api", "--json").stdout)["workers"]
    assert all("serve_forever" in str(worker["threads"]) for worker in stacks), stacks
    crash(pw)
    one_answers(pw, "one")
    pw.write("web.py", version(source, "two"))
    pw.ok("reload", "api")
    pw.wait_steady()  # the old ones have left
    one_answers(pw, "two")
