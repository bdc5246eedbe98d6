"""init and import: what they write passes `check` and runs."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.support.pyworker import Pyworker

APP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
"""


def test_init_finds_the_app_and_what_it_writes_starts(pw: Pyworker) -> None:
    pw.write("web.py", APP)
    done = pw.ok("init")
    assert "Found an ASGI app: web:app (web.py, line 2)" in done.stderr
    with open(os.path.join(pw.folder, "app.toml")) as file:
        text = file.read()
    assert text.startswith("#:schema ./.app.schema.json\n")
    assert len(text.splitlines()) <= 10
    pw.ok("check", "--import")
    pw.ok("start", "app.toml", "-w", "1", "-b", f"127.0.0.1:{pw.port}")
    assert pw.get() == "hello"
    again = pw.run("init")
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_init_in_a_folder_without_an_app_says_what_to_write(pw: Pyworker) -> None:
    done = pw.ok("init", "--no-schema")
    assert "No app was recognised: write its target into line 5" in done.stderr
    assert pw.ok("check").returncode == 0
    assert not os.path.exists(os.path.join(pw.folder, ".app.schema.json"))


def test_an_imported_procfile_runs(pw: Pyworker) -> None:
    pw.write("web.py", APP)
    pw.write("Procfile", f"web: uvicorn web:app --port {pw.port} --workers 2\nclock: sleep 1000\n")
    done = pw.ok("import", "Procfile")
    assert "pyworker check: ok" in done.stderr
    assert done.stdout == ""
    pw.ok("start")
    assert pw.get() == "hello"
    assert {a["name"]: a["workers"]["ready"] for a in pw.ps()["apps"]} == {"web": 2, "clock": 1}


WSGI = """
import os
def application(environ, start_response):
    start_response("200 OK", [])
    return [os.environ.get("GREETING", "none").encode()]
"""
FILES = {
    "ecosystem.config.js": """
const isProduction = process.env.NODE_ENV === 'production';
module.exports = { apps: [{ name: 'site', script: 'gunicorn', args: 'site1:application -w 2 -b 127.0.0.1:PORT',
  interpreter: 'none', watch: !isProduction, env: { GREETING: 'a$b' } }] };
""",
    "supervisord.conf": """
[supervisord]
nodaemon = true   ; in front
[include]
files = conf.d/*.conf
""",
    "gunicorn.conf.py": """
import os
HERE = os.path.dirname(os.path.abspath(__file__))
wsgi_app = "site1"
chdir = os.path.join(HERE, ".")
bind = "127.0.0.1:PORT"
workers = int(os.environ.get("WORKERS", "2"))
raw_env = ["GREETING=a$b"]
""",
    "uwsgi.ini": """
[uwsgi]
chdir = %d
wsgi-file = %dsite1.py
http = 127.0.0.1:PORT
processes = 2
env = GREETING=a$b
""",
    "Procfile": "web: GREETING=a$b gunicorn --chdir ./ site1 --bind 127.0.0.1:PORT --workers=2\n",
}
INCLUDED = """
[program:site]
command = gunicorn site1:application --bind 127.0.0.1:PORT
    --workers 2
environment = GREETING="a$b"
"""


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_is_imported_is_checked_and_serves(name: str, pw: Pyworker) -> None:
    pw.write("site1.py", WSGI)
    pw.write(name, FILES[name].replace("PORT", str(pw.port)))
    pw.write("conf.d/site.conf", INCLUDED.replace("PORT", str(pw.port)))
    done = pw.ok("import", name)
    assert "pyworker check: ok" in done.stderr
    pw.ok("check", "--import")
    pw.ok("start")
    (app,) = pw.ps()["apps"]
    assert (app["workers"]["ready"], app["target"]) == (2, "site1:application")
    assert pw.get() == ("a" if name == "Procfile" else "a$b")  # there $b is a variable, and not set


def test_import_never_overwrites_and_says_what_it_cannot_tell(pw: Pyworker) -> None:
    pw.write("app.toml", "# mine\n")
    pw.write("ecosystem.config.js", "module.exports = {\n apps: [{ script: pick() }] }")
    refused = pw.run("import", "ecosystem.config.js")
    assert refused.returncode == 1
    assert "line 2: pick() is computed when the file runs" in refused.stderr
    assert "--run" in refused.stderr
    pw.write("Procfile", "a: sleep 1\n")
    refused = pw.run("import", "Procfile")
    assert "app.toml is there already" in refused.stderr
    body = json.loads(pw.ok("import", "Procfile", "-o", "-", "--json").stdout)
    assert body["apps"] == [{"name": "a", "translated": ["a"], "review": [], "dropped": []}]
    with open(os.path.join(pw.folder, "app.toml")) as file:
        assert file.read() == "# mine\n"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_reads_the_file_when_the_user_says_so(pw: Pyworker) -> None:
    pw.write(
        "ecosystem.config.cjs",
        'console.log("noise");\nconst f = () => "sleep 5";\nmodule.exports = { apps: [{ script: f(), name: "s" }] }',
    )
    done = pw.ok("import", "--run", "ecosystem.config.cjs", "-o", "-")
    assert 'command = ["sleep", "5"]' in done.stdout
    pw.write("ecosystem.config.cjs", 'throw new Error("no such thing")')
    failed = pw.run("import", "--run", "ecosystem.config.cjs", "-o", "-")
    assert failed.returncode == 1
    assert "no such thing" in failed.stderr
