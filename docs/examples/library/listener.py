"""Sharing a port, way 2: the listening socket is passed to all children. They accept; the kernel decides who.

Fast and simple, and nothing stands between client and child. Under light load one child may get most connections.
"""

import asyncio
import os
import socket
import sys

from pyworker import child_process, process


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
    await writer.drain()
    writer.close()


async def serve() -> None:
    """The child: serves on what it is handed."""
    parent_gone = asyncio.Event()
    process.on("disconnect", parent_gone.set)

    @process.on("message")
    async def listen(message: str, listener: socket.socket) -> None:
        await asyncio.start_server(answer, sock=listener)
        process.send("listening")

    await parent_gone.wait()


async def main(port: int) -> None:
    children = [child_process.fork(__file__) for _ in range(2)]
    with socket.create_server(("127.0.0.1", port)) as listener:
        for child in children:
            ready = child.messages()
            await child.deliver("listen on this", listener, keep_open=True)
            await anext(ready)
    print("ready", flush=True)
    await asyncio.gather(*(child.wait() for child in children))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])) if process.connected is False else serve())
