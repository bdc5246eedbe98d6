"""The apps in configs/ answer as their own docstrings say."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sample_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop(spec.name, None)
    return module


def ask(path: str, query: bytes = b"") -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    shop = load(CONFIGS / "shop" / "main.py")
    asyncio.run(shop.app({"type": "http", "path": path, "query_string": query}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent[1:])


def test_shop_says_who_answers() -> None:
    status, headers, body = ask("/api/whoami")
    assert (status, headers[b"content-type"], int(headers[b"content-length"])) == (200, b"application/json", len(body))
    assert json.loads(body) == {"app": None, "worker": None, "generation": None, "pid": os.getpid()}


@pytest.mark.parametrize(
    ("path", "query", "status", "inside"),
    [
        ("/", b"", 200, b"The Shop"),
        ("/api/items", b"", 200, b"coffee"),
        ("/healthz", b"", 200, b"ok"),
        ("/slow", b"s=0", 200, b"pid"),
        ("/slow", b"s=-1&s=\xff", 200, b"pid"),
        ("/none", b"", 404, b"no page /none"),
    ],
)
def test_shop_pages_answer(path: str, query: bytes, status: int, inside: bytes) -> None:
    found, _, body = ask(path, query)
    assert found == status
    assert inside in body


def test_hello_is_a_valid_wsgi_app() -> None:
    environ: dict[str, Any] = {}
    environ["QUERY_STRING"] = ""
    setup_testing_defaults(environ)
    started: list[str] = []
    answer = validator(load(CONFIGS / "samples" / "hello_wsgi.py").app)(
        environ, lambda status, headers, exc=None: started.append(status)
    )
    body = b"".join(answer)
    answer.close()  # type: ignore[attr-defined]
    assert started == ["200 OK"]
    assert str(os.getpid()).encode() in body
