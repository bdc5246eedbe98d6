"""A small FastAPI app with lifespan, background work, a stream and a websocket. FastAPI wants its names at the top."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse


def fastapi_app() -> Any:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        events.append("startup")
        yield {"ready": "yes"}
        events.append("shutdown")

    app = FastAPI(lifespan=lifespan)
    app.state.events = events

    @app.get("/hello/{name}")
    def hello(name: str, request: Request) -> dict[str, str]:
        return {"hello": name, "ready": request.state.ready}

    @app.post("/size")
    async def size(request: Request, tasks: BackgroundTasks) -> int:
        tasks.add_task(events.append, "background")
        return sum([len(part) async for part in request.stream()])

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> Any:
            for n in range(3):
                yield f"{n} "

        return StreamingResponse(parts())

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text("echo " + await websocket.receive_text())

    return app
