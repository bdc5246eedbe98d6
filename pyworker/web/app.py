"""Web: the routes. Everything but the page itself and /healthz wants the token."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import pathlib
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyworker.protocol import control as k
from pyworker.protocol import metrics
from pyworker.protocol.inherited import APP_NAME
from pyworker.web import logtail
from pyworker.web.control import Away, Declined, ask
from pyworker.web.guard import Guard
from pyworker.web.history import FIELDS, STEP
from pyworker.web.hub import Hub

_PAGE = pathlib.Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/app.css": ("app.css", "text/css"),
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_CHANGE = re.compile(r"[0-9]{1,4}\Z")
_HEARTBEAT = 15.0
_HALF_BODY = 10.0  # seconds for the body of a request, which is a number
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(hub: Hub, guard: Guard) -> Starlette:
    api = functools.partial(_guarded, guard)
    routes = [
        # read now: after an upgrade of the files this process would serve another version's page
        *(Route(path, _fixed((_PAGE / name).read_bytes(), kind)) for path, (name, kind) in _FILES.items()),
        Route("/healthz", _healthz),
        Route("/metrics", api(functools.partial(_metrics, hub))),
        Route("/api/state", api(functools.partial(_state, hub))),
        Route("/api/stream", api(functools.partial(_stream, hub))),
        Route("/api/apps/{app}/history", api(functools.partial(_history, hub))),
        Route("/api/apps/{app}/logs", api(functools.partial(_logs, hub))),
        Route("/api/apps/{app}/{action}", api(functools.partial(_act, hub)), methods=["POST"]),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(hub.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(_Walls, guard=guard)])


class _Walls:
    """Headers on every answer; a Host that is not ours gets nothing."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"], *((name.encode(), value.encode()) for name, value in _HEADERS.items()),
                ]  # fmt: skip
            await send(message)

        request = Request(scope)
        if not self._guard.knows_host(request.headers.get("host", "")):
            text = "this name is not known here; start pyworker web with --allow-host NAME\n"
            await PlainTextResponse(text, 421)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def _guarded(guard: Guard, endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        if not guard.has_token(request.headers):
            hint = "send `Authorization: Bearer TOKEN`; it is in web-token in pyworker's home"
            return _error(401, "no_token", "the token is missing or wrong", {"www-authenticate": "Bearer"}, hint)
        if request.method not in {"GET", "HEAD"} and not guard.same_origin(request.headers):
            return _error(403, "other_origin", "this must come from the dashboard's own page")
        return await endpoint(request)

    return guarded


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None, hint: str = "") -> JSONResponse:
    value = {"v": 1, "error": {"code": code, "message": message, "hint": hint}}
    return JSONResponse(value, status, headers)


# ---- reading ---------------------------------------------------------------------------------------
def _fixed(content: bytes, kind: str) -> Endpoint:
    async def fixed(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return fixed


async def _healthz(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _metrics(hub: Hub, _request: Request) -> Response:
    try:
        text = metrics.render((await ask(hub.home, k.Ps((), pss=True))).body)
    except (Away, Declined):
        text = metrics.down()
    return Response(text, headers={"content-type": metrics.CONTENT_TYPE})


async def _state(hub: Hub, _request: Request) -> Response:
    return JSONResponse(hub.state())


async def _history(hub: Hub, request: Request) -> Response:
    points = hub.history.of(request.path_params["app"])
    return JSONResponse({"v": 1, "step_s": STEP, "fields": ["t", *FIELDS], "points": points})


async def _stream(hub: Hub, request: Request) -> Response:
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")

    async def lines() -> AsyncGenerator[str, None]:
        stream = hub.stream()
        try:
            following = asyncio.ensure_future(anext(stream))
            while True:
                done, _ = await asyncio.wait({following}, timeout=_HEARTBEAT)
                if not done:
                    yield ": still here\n\n"
                    continue
                try:
                    kind, value = following.result()
                except StopAsyncIteration:
                    return
                yield _sse(kind, value)
                following = asyncio.ensure_future(anext(stream))
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await following
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator

    return _streamed(request, lines())


async def _logs(hub: Hub, request: Request) -> Response:
    path = logtail.path_of(hub.home, request.path_params["app"])
    if path is None:
        return _error(404, "no_such_app", "no app has this name")
    if not os.path.exists(path):  # it may have printed nothing yet
        try:
            await ask(hub.home, k.Ps((request.path_params["app"],)))
        except Declined as error:
            return _error(404, error.refused.code, error.refused.message, hint=error.refused.hint)
        except Away:
            pass

    async def lines() -> AsyncGenerator[str, None]:
        async for batch in logtail.follow(path, 300):
            yield _sse("lines", batch) if batch else ": still here\n\n"

    return _streamed(request, lines())


def _streamed(request: Request, lines: AsyncGenerator[str, None]) -> Response:
    kind = "text/event-stream"
    if "gzip" in request.headers.get("accept-encoding", ""):
        return StreamingResponse(_packed(lines), headers={"content-encoding": "gzip"}, media_type=kind)
    return StreamingResponse(lines, media_type=kind)


async def _packed(lines: AsyncGenerator[str, None]) -> AsyncIterator[bytes]:
    """Yield each message at once, in less than a tenth of its bytes: a look at hundreds of apps has hundreds of kilobytes."""
    pack = zlib.compressobj(1, wbits=31)
    async with contextlib.aclosing(lines):
        async for line in lines:
            yield pack.compress(line.encode()) + pack.flush(zlib.Z_SYNC_FLUSH)


def _sse(kind: str, value: Any) -> str:
    # JSON has no newline in it, so that one data line is all
    return f"event: {kind}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n"


# ---- doing -----------------------------------------------------------------------------------------
async def _act(hub: Hub, request: Request) -> Response:
    app, action = request.path_params["app"], request.path_params["action"]
    if not APP_NAME.match(app) or app == "all":  # a name, never a glob or `all`
        return _error(404, "no_such_app", "no app has this name")
    wish: k.Request
    match action:
        case "reload":
            wish = k.Reload((app,))
        case "restart":
            wish = k.Restart((app,))
        case "stop":
            wish = k.Stop((app,))
        case "start":
            wish = k.Start(names=(app,))
        case "scale":
            change = await _number(request)
            if change is None:
                return _error(400, "usage", 'send {"workers": N}')
            wish = k.Scale({app: change})
        case _:
            return _error(404, "usage", "reload, restart, stop, start or scale")
    try:
        reply = await ask(hub.home, wish, None)
    except Declined as error:
        refused = error.refused
        return _error(409, refused.code, refused.message, hint=refused.hint)
    except Away as error:
        return _error(503, "unavailable", str(error))
    finally:
        hub.refresh()
    return JSONResponse({"v": 1, "ok": reply.ok, "apps": reply.body.get("apps") or []})


async def _number(request: Request) -> str | None:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return None
    body = b""
    try:
        async with asyncio.timeout(_HALF_BODY):
            async for chunk in request.stream():
                body += chunk
                if len(body) > 1000:
                    return None
        found = str(json.loads(body)["workers"])
    except (ValueError, RecursionError, KeyError, TypeError, TimeoutError):
        return None
    return found if _CHANGE.match(found) or found == "auto" else None
