"""Worker: the ASGI lifespan of one worker: startup before it is ready, shutdown after its drain.

An app that does not know lifespan is served without: it raises before it takes the startup message, or answers with
something else. One that takes the message and then raises, or says startup.failed, has failed to start.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from typing import Any

from pyworker.worker import headline, say
from pyworker.worker.ending import end_forked


class LifespanFailed(Exception):
    """The app's startup failed. `traceback` is "" when the app only sent a message."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.message = message
        self.traceback = traceback


class Lifespan:
    """Runs the app's lifespan coroutine. `state` is copied into each request's scope."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self.state: dict[str, Any] = {}
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answer: asyncio.Future[tuple[str, str]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked = False  # the app has taken the startup message
        self._foreign = False  # it answered with something that is not lifespan
        self._serving = False  # startup is complete, and nobody has asked for shutdown

    async def startup(self) -> None:
        """Return when the app may serve; raises LifespanFailed."""
        self._pid = os.getpid()
        self._task = asyncio.get_running_loop().create_task(self._run())
        kind, message = await self._ask("lifespan.startup")
        if kind == "lifespan.startup.failed":
            text = message.strip()
            await asyncio.wait([self._task], timeout=1)
            raise LifespanFailed(headline.of_text(text) or "the app's lifespan startup failed", text)
        if kind == "raised" and message:
            raise LifespanFailed(headline.of_text(message), message)
        if kind != "lifespan.startup.complete":
            await self._abandon()

    async def shutdown(self) -> None:
        """Let the app clean up; what goes wrong is printed, and stops nothing."""
        if self._task is None or self._task.done():
            return
        self._serving = False
        kind, message = await self._ask("lifespan.shutdown")
        if kind != "lifespan.shutdown.complete" and message:
            say.write(f"lifespan shutdown failed: {message.rstrip()}\n")
        await asyncio.wait([self._task], timeout=1)
        await self._abandon()

    async def _abandon(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1)

    async def _ask(self, kind: str) -> tuple[str, str]:
        self._answer = asyncio.get_running_loop().create_future()
        self._messages.put_nowait({"type": kind})
        return await self._answer

    def _tell(self, kind: str, message: str = "") -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((kind, message))

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._application(scope, self._receive, self._send)
        except BaseException as error:
            self._leave_forked(error)
            # read by nobody when the app knows no lifespan; it opens the source files, in each worker of such an app
            has_failed = self._asked and not self._foreign
            text = _app_frames(error) if has_failed else ""
            self._tell("raised", text)
            if self._serving and not isinstance(error, asyncio.CancelledError):  # nobody waits for it: it would be lost
                say.write(f"the app's lifespan has ended while the app serves:\n{text}")
            if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
                raise
        else:
            self._leave_forked()
            self._tell("returned")

    def _leave_forked(self, error: BaseException | None = None) -> None:
        """End this process if it is one that the app has forked in its lifespan."""
        if os.getpid() != self._pid:
            end_forked("error in the app's lifespan", error)

    async def _receive(self) -> dict[str, Any]:
        self._asked = True
        return await self._messages.get()

    async def _send(self, message: dict[str, Any]) -> None:
        self._leave_forked()  # before it answers for its parent, and serves on in that one's loop
        kind = message["type"]
        if not kind.startswith("lifespan."):
            self._foreign = True
            raise RuntimeError(f"{kind!r:.60} is not a message of lifespan")
        if kind == "lifespan.startup.complete":
            self._serving = True
        self._tell(kind, str(message.get("message") or ""))  # some send the exception itself, or None


def _app_frames(error: BaseException) -> str:
    """Return the traceback from the app on: its first frame is ours."""
    ours = error.__traceback__
    return "".join(traceback.format_exception(type(error), error, ours.tb_next if ours is not None else None))
