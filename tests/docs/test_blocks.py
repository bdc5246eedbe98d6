"""Blocks of the pages that test_examples.py does not carry out: they are read by what reads such a language, or run."""

from __future__ import annotations

import http.client
import importlib.resources
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jsonschema
import pytest
import yaml
from websockets.sync.client import connect

from tests.support.pyworker import LONG, running
from tests.support.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCHEMAS = importlib.resources.files("pyworker.protocol") / "schemas"


def blocks(page: Path, *kinds: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def of(kind: str) -> list[object]:
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}:{i}")
        for page in PAGES
        for i, text in enumerate(blocks(page, kind), 1)
    ]


def test_every_block_is_of_a_kind_that_is_looked_at() -> None:
    kinds = {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    carried_out = {ROOT / "README.md", ROOT / "docs" / "tutorial.md", *(ROOT / "docs" / "guides").glob("*.md")}
    assert [page for page in PAGES if blocks(page, "console") and page not in carried_out] == []
    # "" and text show output or a layout; toml is test_site.py's, console and files with a title test_examples.py's, js
    # is run by system/test_node.py
    assert kinds <= {"", "text", "js", "mermaid", "toml", "console", "ini", "python", "sh", "yaml", "json"}


@pytest.mark.parametrize("text", of("sh"))
def test_a_script_is_one(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", of("yaml"))
def test_a_piece_of_yaml_is_one(text: str) -> None:
    assert yaml.safe_load(text)


@pytest.mark.parametrize("text", of("python"))
def test_a_piece_of_python_is_one(text: str) -> None:
    compile(text, "page", "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT


ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": (await receive())["text"].upper()})
    elif scope["type"] == "http":
        headers = dict(scope["headers"])
        body = b" ".join([headers[b"host"], scope["client"][0].encode(), scope["scheme"].encode()])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_in_front_hands_out_files_and_passes_requests_and_websockets_on() -> None:
    [text] = blocks(ROOT / "docs" / "guides" / "fastapi.md", "text")
    with running() as pw:
        port = pw.another_port()
        for told, real in (("listen 80;", f"listen {port};"), ("/srv/api/", f"{pw.folder}/"), (":8000;", f":{pw.port};")):
            assert told in text
            text = text.replace(told, real)
        temporary = "".join(f"{kind}_temp_path tmp-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        pw.write("nginx.conf", f"daemon off; master_process off; pid pid; events {{}}\nhttp {{ access_log off; {temporary}\n{text} }}")
        pw.write("static/a.css", "body {}")
        pw.write("web.py", ASGI)
        pw.ok("start", "web:app", "-b", f"127.0.0.1:{pw.port}")
        nginx = subprocess.Popen(["nginx", "-p", pw.folder, "-c", "nginx.conf", "-e", "stderr"], stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: nginx.poll() is not None or not pw.refuses(port), LONG, "nginx to listen")
            assert nginx.poll() is None, nginx.communicate()[1]
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
            answers = []
            for path in ("/static/a.css", "/"):
                client.request("GET", path, headers={"Host": "example.com", "X-Forwarded-For": "192.0.2.7"})
                answers.append(client.getresponse().read().decode())
            client.close()
            assert answers == ["body {}", "example.com 192.0.2.7 http"]
            with connect(f"ws://127.0.0.1:{port}/") as socket:
                socket.send("hello")
                assert socket.recv(timeout=LONG) == "HELLO"
        finally:
            nginx.kill()
            nginx.communicate()


def by_heading(page: Path) -> dict[str, list[str]]:
    parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        title: [text for kind, text in BLOCK.findall(part) if kind == "json"]
        for title, part in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_every_example_of_json_is_as_its_schema_says() -> None:
    seen = 0
    for title, texts in by_heading(ROOT / "docs" / "json.md").items():
        for text in texts:
            for document in documents(text):
                name = schema_of(title, document)
                schema = json.loads((SCHEMAS / f"{name}.json").read_text())
                if title == "describe":  # a part of one
                    schema = schema["properties"]["apps"]["items"]["properties"]["template"]
                    document = document["template"]
                jsonschema.Draft202012Validator(schema).validate(document)
                seen += 1
    assert seen >= 10


def documents(text: str) -> list[dict[str, object]]:
    """One document over several lines, or one a line; a part of one without its braces."""
    try:
        return [json.loads(text)]
    except ValueError:
        pass
    try:
        return [json.loads("{" + text + "}")]
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


def schema_of(title: str, document: dict[str, object]) -> str:
    if title.startswith("start, reload"):
        return "result" if document["type"] == "result" else "progress"
    return {"Errors": "error", "daemon status": "status", "logs": "log", "Events": "event"}.get(title, title)


def test_the_first_examples_of_shared_state_run(tmp_path: Path) -> None:
    first, second, *_ = blocks(ROOT / "docs" / "state.md", "python")
    plain = [line for line in first.splitlines() if line.strip()]
    code = textwrap.dedent(
        """
        import json, sys
        from pyworker import state as store
        store.connect("sqlite:" + sys.argv[1])
        scope = {}
        store.set("a", {"a": 2}), store.set("b", {"b": 1}), store.set("user:1", 1)
        for line in json.loads(sys.argv[2]):
            if "#" in line and "import" not in line:
                expression, _, told = line.partition("#")
                value = eval(expression, scope)
                known = told.strip()
                if known and not known.startswith("True for"):
                    assert value == eval(known, {}), (line, value)
            elif "(\\"a\\", \\"b\\")" not in line:
                exec(line, scope)
        print("done")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "state"), json.dumps(plain)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert "state.watch" in second


def test_the_examples_of_the_library_run(tmp_path: Path) -> None:
    """The second talks to the worker.py of the third."""
    _, command, fork, worker, *_ = blocks(ROOT / "docs" / "library.md", "python")
    (tmp_path / "worker.py").write_text(worker)
    heard = "async def heard(message, handle):\n"
    assert heard in fork
    body = fork.replace(heard, f"{heard}    answers.append(message)\n")
    code = f"""
import asyncio
async def main():
    import socket
    from pyworker import child_process
    answers = []
    connection, other = socket.socketpair()  # the page has none
{textwrap.indent(command, "    ")}
{textwrap.indent(body, "    ")}
    print(answers, status)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "[{'done': {'job': 1}}, {'done': 'yours'}] ExitStatus(code=0" in done.stdout
    assert done.stderr == ""
